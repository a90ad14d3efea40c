//! Whole trainings side by side.
//!
//! Small trainings are independent and too short to share out over threads, so each worker runs whole ones on a backend of
//! one thread: the numbers depend on neither the count of workers nor their order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::progress::Progress;
use super::runner::{EvaluationJob, Listener, Results, Runner, Training, interrupted, open};
use crate::backend::cpu::{Cpu, thread_count};
use crate::error::{Error, Result};
use crate::model::Frozen;
use crate::train::{Evaluated, Outcome, evaluate_tasks};

/// Workers on one frozen T5.
#[derive(Clone, Copy, Debug)]
pub struct Workers<'a> {
    model: &'a Path,
    count: usize,
}

impl<'a> Workers<'a> {
    /// So many workers, one a core for `None`, on the T5 in the folder `model`.
    ///
    /// # Errors
    /// [`Error::Setting`] for none, and for more than the CPU's backend takes.
    pub fn new(model: &'a Path, count: Option<usize>) -> Result<Self> {
        Ok(Self { model, count: thread_count(count)? })
    }

    /// Workers.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Does all jobs, each worker one after the other, and gives their results in the jobs' order; or the first error of a worker
    /// that cannot begin, and then jobs that were not begun stay undone.
    fn run<J: Sync, R: Send>(
        &self,
        jobs: &[J],
        progress: &mut dyn Progress,
        work: impl Fn(&Frozen<'_, Cpu>, &J, &mut dyn Progress) -> R + Sync,
    ) -> Result<Vec<R>> {
        let shared = Shared { progress: Mutex::new(progress), has_failed: AtomicBool::new(false) };
        let next = AtomicUsize::new(0);
        let fail = || shared.has_failed.store(true, Ordering::Relaxed);
        let work_on_jobs = || -> Result<Vec<(usize, R)>> {
            // On the worker's own thread: to hand each op to another costs a seventh of the time.
            let backend = Cpu::with_caller(Some(1))?;
            let frozen = Frozen::load(&backend, self.model)?;
            let (mut progress, mut results) = (&shared, Vec::new());
            while !shared.is_over() {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(index) else { break };
                results.push((index, work(&frozen, job, &mut progress)));
            }
            Ok(results)
        };
        let results = thread::scope(|scope| {
            let worker = || work_on_jobs().inspect_err(|_| fail());
            let start = |_| thread::Builder::new().spawn_scoped(scope, worker);
            let started = (0..self.count.min(jobs.len())).map(start).collect::<std::io::Result<Vec<_>>>();
            let started = started.inspect_err(|_| fail()).map_err(|error| {
                let found = format!("{}: {error}", self.count);
                let advice = "ask for fewer by --threads, or raise the limit";
                Error::setting("workers", "as many threads as the system can start", found, advice)
            })?;
            let join = |worker: thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            started.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let results: BTreeMap<usize, R> = results.into_iter().flatten().collect();
        if shared.is_over() {
            return Err(interrupted(results.len(), jobs.len()));
        }
        Ok(results.into_values().collect())
    }
}

impl Runner for Workers<'_> {
    fn train(&self, trainings: &[Training], progress: &mut dyn Progress) -> Results<Outcome> {
        self.run(trainings, progress, |frozen, training, progress| {
            let mut member = open(frozen, training, progress)?;
            let mut listener = Listener::of(Some(&training.name), progress);
            member.trainer.run(member.folder.as_mut(), &mut listener)
        })
    }

    fn evaluate(&self, runs: &[EvaluationJob], progress: &mut dyn Progress) -> Results<Evaluated> {
        self.run(runs, progress, |frozen, run, progress| {
            let evaluated = evaluate_tasks(frozen, &run.config, run.folder.as_deref(), run.split);
            progress.step();
            evaluated
        })
    }
}

/// The progress of all workers, who end where one has failed.
struct Shared<'p> {
    progress: Mutex<&'p mut dyn Progress>,
    has_failed: AtomicBool,
}

impl<'p> Shared<'p> {
    fn lock(&self) -> MutexGuard<'_, &'p mut dyn Progress> {
        // A worker that panicked while it spoke takes the program with it; the others may end before that.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a worker has failed, or the end was asked for.
    fn is_over(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed) || self.lock().ends()
    }
}

impl Progress for &Shared<'_> {
    fn begin(&mut self, what: &str, steps: u64) {
        self.lock().begin(what, steps);
    }
    fn more(&mut self, steps: u64) {
        self.lock().more(steps);
    }
    fn step(&mut self) {
        self.lock().step();
    }
    fn note(&mut self, text: &str) {
        self.lock().note(text);
    }
    fn ends(&mut self) -> bool {
        self.is_over()
    }
}
