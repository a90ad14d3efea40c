//! Whole trainings side by side.
//!
//! Small trainings are independent and too short to share out over threads, so each worker runs whole ones on a backend of
//! one thread: the numbers depend on neither the count of workers nor their order.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use crate::backend::cpu::Cpu;
use crate::error::{Error, Result};
use crate::model::Frozen;
use crate::train::{Monitor, StepRecord, ValidationRecord};

/// Who listens to a comparison.
pub trait Progress {
    /// A part of the work begins, of so many steps in all.
    fn begin(&mut self, what: &'static str, steps: u64);
    /// One of its steps is done.
    fn step(&mut self);
}

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

    /// The folder of the T5.
    pub fn model(&self) -> &Path {
        self.model
    }

    /// Does all jobs, each worker one after the other, and gives their results in the jobs' order.
    ///
    /// # Errors
    /// Those of loading the model, and the first of a job; jobs that were not begun then stay undone.
    pub fn run<J: Sync, R: Send>(
        &self,
        jobs: &[J],
        progress: &mut dyn Progress,
        work: impl Fn(&Frozen<'_, Cpu>, &J, &mut Ticks) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let workers = self.count.clamp(1, jobs.len().max(1));
        let next = AtomicUsize::new(0);
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
                let mut monitor = Ticks(sender.clone());
                let (next, finish, work) = (&next, &finish, &work);
                scope.spawn(move || {
                    let opened = Cpu::new(Some(1));
                    let frozen = opened.as_ref().map(|backend| Frozen::load(backend, self.model));
                    let frozen = match (&opened, frozen) {
                        (Ok(_), Ok(Ok(frozen))) => frozen,
                        (_, Ok(Err(error))) => return finish(0, Err(error)),
                        _ => {
                            let what = "one worker thread more";
                            return finish(0, Err(Error::setting("--threads", "fewer", what, "")));
                        }
                    };
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(job) = jobs.get(index) else { break };
                        finish(index, work(&frozen, job, &mut monitor));
                    }
                });
            }
            drop(sender);
            ticks.iter().for_each(|()| progress.step());
        });
        let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

/// Passes a worker's steps on.
#[derive(Debug)]
pub struct Ticks(Sender<()>);

impl Ticks {
    /// A step is done.
    pub fn done(&mut self) {
        // Whoever listened may be gone; the work goes on all the same.
        let _ = self.0.send(());
    }
}

impl Monitor for Ticks {
    fn step(&mut self, _: &StepRecord) {
        self.done();
    }
    fn validating(&mut self, _: usize, _: usize) {}
    fn validated(&mut self, _: &ValidationRecord) {}
    fn note(&mut self, _: &str) {}
}
