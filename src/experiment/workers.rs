//! Whole trainings side by side.
//!
//! Small trainings are independent and too short to share out over threads, so each worker runs whole ones on a backend of
//! one thread: the numbers depend on neither the count of workers nor their order.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use super::progress::Progress;
use super::runner::{Evaluated, EvaluationJob, Runner, Training, evaluate, interrupted, open};
use crate::backend::cpu::Cpu;
use crate::error::{Error, Result};
use crate::model::Frozen;
use crate::train::{Monitor, Outcome, Silent, StepRecord};

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
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self { model, count: count.unwrap_or_else(cores) })
    }

    /// Workers.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Does all jobs, each worker one after the other, and gives their results in the jobs' order; or the first error of the model
    /// or of a job, and then jobs that were not begun stay undone.
    fn run<J: Sync, R: Send>(
        &self,
        jobs: &[J],
        progress: &mut dyn Progress,
        work: impl Fn(&Frozen<'_, Cpu>, &J, &mut Ticks<'_>) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let workers = self.count.clamp(1, jobs.len().max(1));
        let (next, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results: Mutex<Vec<(usize, Result<R>)>> = Mutex::new(Vec::with_capacity(jobs.len()));
        let finish = |index: usize, result: Result<R>| {
            if result.is_err() {
                next.store(jobs.len(), Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, result));
        };
        std::thread::scope(|scope| {
            let (sender, ticks) = channel();
            for _ in 0..workers {
                let mut monitor = Ticks { sender: sender.clone(), ended: &ended };
                let (next, finish, work) = (&next, &finish, &work);
                let worker = std::thread::Builder::new().spawn_scoped(scope, move || {
                    let begun = Cpu::new(Some(1)).and_then(|backend| {
                        let frozen = Frozen::load(&backend, self.model)?;
                        loop {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            let Some(job) = jobs.get(index) else { return Ok(()) };
                            finish(index, work(&frozen, job, &mut monitor));
                        }
                    });
                    if let Err(error) = begun {
                        finish(0, Err(error));
                    }
                });
                if let Err(error) = worker {
                    let found = format!("{workers}: {error}");
                    let advice = "ask for fewer by --threads, or raise the limit";
                    finish(
                        0,
                        Err(Error::setting(
                            "workers",
                            "as many threads as the system can start",
                            found,
                            advice,
                        )),
                    );
                    break;
                }
            }
            drop(sender);
            for tick in ticks {
                match tick {
                    Tick::Step => progress.step(),
                    Tick::More(steps) => progress.more(steps),
                    Tick::Note(note) => progress.note(&note),
                }
                if progress.ends() {
                    ended.store(true, Ordering::Relaxed);
                    next.store(jobs.len(), Ordering::Relaxed);
                }
            }
        });
        if ended.load(Ordering::Relaxed) {
            let done = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len();
            return Err(interrupted(done, jobs.len()));
        }
        let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

impl Runner for Workers<'_> {
    fn train(&self, trainings: &[Training], progress: &mut dyn Progress) -> Result<Vec<Result<Outcome>>> {
        self.run(trainings, progress, |frozen, training, ticks| {
            Ok(open(frozen, training, ticks).and_then(|(mut trainer, mut folder)| {
                if training.config.steps.is_none() {
                    let _ = ticks.sender.send(Tick::More(trainer.step_count() + trainer.steps_left()));
                }
                (0..trainer.step_count()).for_each(|_| ticks.done());
                trainer.run(Some(&mut folder), ticks)
            }))
        })
    }

    fn evaluate(
        &self,
        runs: &[EvaluationJob],
        progress: &mut dyn Progress,
    ) -> Result<Vec<Result<Evaluated>>> {
        self.run(runs, progress, |frozen, run, ticks| {
            let evaluated = evaluate(frozen, run, &mut Silent);
            ticks.done();
            Ok(evaluated)
        })
    }
}

#[derive(Debug)]
enum Tick {
    Step,
    More(u64),
    Note(String),
}

/// Passes a worker's steps and notes on.
#[derive(Debug)]
struct Ticks<'a> {
    sender: Sender<Tick>,
    ended: &'a AtomicBool,
}

impl Ticks<'_> {
    fn done(&mut self) {
        // Whoever listened may be gone; the work goes on all the same.
        let _ = self.sender.send(Tick::Step);
    }
}

impl Monitor for Ticks<'_> {
    fn step(&mut self, _: &StepRecord) {
        self.done();
    }
    fn note(&mut self, text: &str) {
        let _ = self.sender.send(Tick::Note(text.to_owned()));
    }
    fn ends(&mut self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}
