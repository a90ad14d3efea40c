//! What memory a run will take, worked out before its first step.

use super::Trainer;
use super::validation::EVALUATION_BATCH;
use crate::backend::{Backend, DropoutStep, MicroBatch, OptimizerStep};
use crate::config::{Decoding, RunConfig};
use crate::data::Examples;
use crate::error::Result;
use crate::model::{self, Frozen, Mixture};
use crate::train::task_data::TaskData;

impl<B: Backend> Trainer<'_, B> {
    /// Bytes that steps need on `examples` of this run's longest examples, shared by `runs` runs, and validation beside them.
    pub(in crate::train) fn needed_bytes(
        &self,
        state: &mut B::State,
        examples: usize,
        runs: usize,
    ) -> Result<usize> {
        needed_bytes(self.frozen, &self.config, &self.tasks, &self.mixture, state, examples, runs)
    }
}

/// Fails if training on batches of the longest examples, and validation beside it, will not fit into the device's free
/// memory.
pub(super) fn foresee<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    tasks: &[TaskData],
    mixture: &Mixture<B>,
    state: &mut B::State,
) -> Result<()> {
    let Some(free) = frozen.backend.free_bytes() else { return Ok(()) };
    model::foresee(free, config.batch_size, |examples| {
        needed_bytes(frozen, config, tasks, mixture, state, examples, 1)
    })
}

/// Bytes that steps on `examples` of the longest examples need, shared by `runs` runs, and validation beside them.
fn needed_bytes<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    tasks: &[TaskData],
    mixture: &Mixture<B>,
    state: &mut B::State,
    examples: usize,
    runs: usize,
) -> Result<usize> {
    let (backend, model) = (frozen.backend, &frozen.model);
    type Length = fn(&Examples, usize) -> usize;
    let longest = |of: &dyn Fn(&TaskData) -> &Examples, length: Length| {
        let of_task = |data| (0..of(data).len()).map(|row| length(of(data), row)).max();
        tasks.iter().filter_map(of_task).max().unwrap_or(1)
    };
    let batch = |examples, of: &dyn Fn(&TaskData) -> &Examples| {
        let (source, target) = (longest(of, Examples::source_length), longest(of, Examples::target_length));
        model::batch_of_lengths(examples, mixture.layout.prompt_length, source, target)
    };
    // Unrecorded work may hold a quarter more than it uses.
    let validation = batch(EVALUATION_BATCH, &|data| &data.validation)?;
    let answered = tasks.iter().map(|data| data.longest_target).max();
    let answered = answered.filter(|_| config.decoding == Decoding::Greedy);
    let validation = model.evaluation_bytes(backend, mixture, state, &validation, answered)? / 4 * 5;
    let rate = config.dropout.unwrap_or(f64::from(model.config().dropout_rate));
    let dropout = DropoutStep::new(rate, 0, &vec![config.seed; runs]);
    let schedule = vec![OptimizerStep::new(0.0, 0.0); runs];
    let batch = batch(examples, &|data| &data.training)?;
    let micro = MicroBatch { batch: &batch, dropout: dropout.as_ref(), first: true, last: Some(&schedule) };
    let bytes = model.step_bytes(backend, mixture, state, &micro)? + validation;
    // A recorded shape is rounded up, and what it is told of is small.
    Ok(bytes + bytes / 64)
}
