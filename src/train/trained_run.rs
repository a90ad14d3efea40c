//! A trained run, opened to be judged.

use std::path::Path;

use super::trainer::{load_sources, mixture};
use super::{RunFolder, Saved};
use crate::backend::Backend;
use crate::config::{Decoding, RunConfig};
use crate::data::{ExampleSettings, Examples, Split, Splits};
use crate::error::Result;
use crate::evaluate::{Evaluation, Evaluator};
use crate::model::{Frozen, Mixture};
use crate::tasks::{Purpose, Task};

/// Examples of a batch: forward alone keeps little.
const BATCH: usize = 64;

/// A trained run's best state, behind its frozen model.
pub struct TrainedRun<'a, B: Backend> {
    frozen: &'a Frozen<'a, B>,
    config: RunConfig,
    task: Task,
    mixture: Mixture<B>,
    state: B::State,
    longest_target: usize,
}

impl<'a, B: Backend> TrainedRun<'a, B> {
    /// Opens the run in `folder`, whose settings are `saved`, on the model that it was trained with.
    ///
    /// # Errors
    /// If the model is another one, or the run has no saved state.
    pub fn open(frozen: &'a Frozen<'a, B>, folder: &Path, saved: &Saved) -> Result<Self> {
        saved.check_model(&frozen.model_hash, "--run")?;
        let config = saved.config.clone();
        let task = super::task(&config)?;
        let sources = load_sources(frozen, &config)?;
        let mixture = mixture(frozen, &config, &sources)?;
        let values = RunFolder::load_best(folder, &mixture.layout)?;
        let state = frozen.backend.state(&mixture.layout, &values, 1);
        let tokenizer = &frozen.tokenizer;
        let longest_target = match config.max_target_length {
            Some(length) => length,
            None => task.longest_target(|text: &str| tokenizer.encode(text))?,
        };
        Ok(Self { frozen, config, task, mixture, state, longest_target })
    }

    /// The settings it was trained with.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Its task.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Judges other data than it was trained on, as another task if need be.
    ///
    /// # Errors
    /// Those of the task's settings.
    pub fn set_task(&mut self, task: Task) -> Result<()> {
        let tokenizer = &self.frozen.tokenizer;
        self.longest_target = task.longest_target(|text: &str| tokenizer.encode(text))?;
        self.task = task;
        Ok(())
    }

    /// Answers a split of the data in `folder` and judges the answers.
    ///
    /// # Errors
    /// Those of the data and of evaluation.
    pub fn evaluate(
        &self,
        folder: &Path,
        split: Split,
        decoding: Decoding,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Evaluation> {
        let splits = Splits::open(folder, self.task.split, self.config.split_validation_test)?;
        let settings =
            ExampleSettings::new(self.config.max_source_length, self.longest_target, Purpose::Evaluation);
        let tokenizer = &self.frozen.tokenizer;
        let encode = |text: &str| tokenizer.encode(text);
        let examples = Examples::load(splits.get(split)?, &self.task, &encode, &settings)?;
        let count = examples.len();
        self.evaluator(decoding).evaluate(&self.state, &examples, &mut |done| progress(done, count))
    }

    fn evaluator(&self, decoding: Decoding) -> Evaluator<'_, B> {
        Evaluator {
            frozen: self.frozen,
            mixture: &self.mixture,
            task: &self.task,
            decoding,
            batch_size: BATCH,
            longest_target: self.longest_target,
            pooled_width: self.config.pools_padding().then_some(self.config.max_source_length),
        }
    }
}
