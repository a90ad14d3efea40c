//! Who listens to a comparison.

use crate::train::Silent;

/// Who listens to a comparison, on the thread that has something to say.
pub trait Progress: Send {
    /// A part of the work begins, of so many steps in all.
    fn begin(&mut self, _: &str, _: u64) {}
    /// So many steps more: those of a training that counts in epochs, once its rows are read.
    fn more(&mut self, _: u64) {}
    /// One of its steps is done.
    fn step(&mut self) {}
    /// Something worth knowing; the same words may come once a run.
    fn note(&mut self, _: &str) {}
    /// Whether the work is to end early, with a checkpoint of each run. Asked after each step.
    fn ends(&mut self) -> bool {
        false
    }
}

impl Progress for Silent {}
