//! Whole trainings side by side.
//!
//! Small trainings are independent and too short to share out over threads, so each worker runs whole ones on a backend of
//! one thread: the numbers depend on neither the count of workers nor their order.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::progress::Progress;
use super::runner::{EvaluationJob, Listener, Runner, Training, interrupted, open};
use crate::backend::cpu::Cpu;
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
    /// [`Error::Setting`] for none.
    pub fn new(model: &'a Path, count: Option<usize>) -> Result<Self> {
        if count == Some(0) {
            return Err(Error::setting("workers", "at least one", "none", ""));
        }
        let cores = || thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self { model, count: count.unwrap_or_else(cores) })
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
        let (next, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
        let take = |mut progress: Remote<'_>| -> Result<Vec<(usize, R)>> {
            // On the worker's own thread: to hand each op to another costs a seventh of the time.
            let backend = Cpu::with_caller(Some(1))?;
            let frozen = Frozen::load(&backend, self.model)?;
            let mut results = Vec::new();
            while !progress.ends() {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(index) else { break };
                results.push((index, work(&frozen, job, &mut progress)));
            }
            Ok(results)
        };
        let mut results = thread::scope(|scope| {
            let (sender, said) = channel();
            let start = |_| {
                let (remote, take) = (Remote { sender: sender.clone(), ended: &ended }, &take);
                let end = || ended.store(true, Ordering::Relaxed);
                let work = move || take(remote).inspect_err(|_| end());
                thread::Builder::new().spawn_scoped(scope, work).inspect_err(|_| end())
            };
            let started: std::io::Result<Vec<_>> =
                (0..self.count.clamp(1, jobs.len().max(1))).map(start).collect();
            drop(sender);
            for say in said {
                say(progress);
                if progress.ends() {
                    ended.store(true, Ordering::Relaxed);
                }
            }
            let workers = started.map_err(|error| {
                let found = format!("{}: {error}", self.count);
                let advice = "ask for fewer by --threads, or raise the limit";
                Error::setting("workers", "as many threads as the system can start", found, advice)
            })?;
            let join = |worker: thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let results: Vec<Vec<(usize, R)>> = workers.into_iter().map(join).collect::<Result<_>>()?;
            Ok::<_, Error>(results.into_iter().flatten().collect::<Vec<_>>())
        })?;
        if ended.into_inner() {
            return Err(interrupted(results.len(), jobs.len()));
        }
        results.sort_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }
}

impl Runner for Workers<'_> {
    fn train(&self, trainings: &[Training], progress: &mut dyn Progress) -> Result<Vec<Result<Outcome>>> {
        self.run(trainings, progress, |frozen, training, progress| {
            let mut member = open(frozen, training, progress)?;
            member.trainer.run(member.folder.as_mut(), &mut Listener::new(progress))
        })
    }

    fn evaluate(
        &self,
        runs: &[EvaluationJob],
        progress: &mut dyn Progress,
    ) -> Result<Vec<Result<Evaluated>>> {
        self.run(runs, progress, |frozen, run, progress| {
            let evaluated = evaluate_tasks(frozen, &run.config, run.folder.as_deref(), run.split);
            progress.step();
            evaluated
        })
    }
}

/// Something that a worker says, told to whoever listens.
type Say = Box<dyn FnOnce(&mut dyn Progress) + Send>;

/// Passes on what a worker says to the thread that shows it.
struct Remote<'a> {
    sender: Sender<Say>,
    ended: &'a AtomicBool,
}

impl Remote<'_> {
    fn say(&self, what: impl FnOnce(&mut dyn Progress) + Send + 'static) {
        // Whoever listened may be gone; the work goes on all the same.
        let _ = self.sender.send(Box::new(what));
    }
}

impl Progress for Remote<'_> {
    fn begin(&mut self, what: &str, steps: u64) {
        let what = what.to_owned();
        self.say(move |progress| progress.begin(&what, steps));
    }
    fn more(&mut self, steps: u64) {
        self.say(move |progress| progress.more(steps));
    }
    fn step(&mut self) {
        self.say(|progress| progress.step());
    }
    fn note(&mut self, text: &str) {
        let text = text.to_owned();
        self.say(move |progress| progress.note(&text));
    }
    fn ends(&mut self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}
