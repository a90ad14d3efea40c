//! A trained run, opened to be evaluated.

use std::path::Path;

use super::setup::{mixture, prompt_names, sources_of};
#[cfg(feature = "cli")]
use super::task_data::open_splits;
use super::task_data::{longest_target, split_examples};
use super::{RunFolder, RunManifest};
use crate::backend::{Backend, Scorer};
use crate::config::{Decoding, RunConfig};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, Evaluator};
use crate::model::{Frozen, Mixture};
use crate::tasks::Task;

/// Examples of a batch: forward alone keeps little.
const BATCH: usize = 64;

/// A trained run's best state, with its frozen model.
pub struct TrainedRun<'a, B: Backend> {
    frozen: &'a Frozen<'a, B>,
    config: RunConfig,
    /// The run's own tasks, in the order of their target prompts.
    tasks: Vec<Task>,
    /// The task that is evaluated, and the target prompt that answers.
    task: Task,
    target_prompt: usize,
    mixture: Mixture<B>,
    state: B::State,
    best_step: u64,
    longest_target: usize,
}

impl<'a, B: Backend> TrainedRun<'a, B> {
    /// Opens the run in `folder`, whose settings are `saved`, on the model that it was trained with.
    ///
    /// # Errors
    /// If the model is another one, or the run has no saved state; those of the device.
    pub fn open(frozen: &'a Frozen<'a, B>, folder: &Path, saved: &RunManifest) -> Result<Self> {
        saved.check_model(&frozen.model_hash, "--run")?;
        let config = saved.located(folder);
        let tasks = super::tasks(&config)?;
        let sources = sources_of(frozen, saved, &config, "--run")?;
        let mixture = mixture(frozen, &config, &sources, tasks.len())?;
        let (values, best_step) = RunFolder::load_best_of_step(folder, &mixture.layout)?;
        let state = frozen.backend.state(&mixture.layout, &values, 1)?;
        let task = tasks[0].clone();
        let (target_prompt, longest_target) = (0, longest_target(frozen, &config, &task)?);
        Ok(Self { frozen, config, tasks, task, target_prompt, mixture, state, best_step, longest_target })
    }

    /// What the weights of its mixture belong to: the sources, then `target`; nothing without a mixture.
    pub fn prompts(&self) -> Vec<String> {
        prompt_names(&self.config, &self.mixture)
    }

    /// What to tell the user where the mixture is the same for every example of `evaluation`, though its scorer reads the input.
    pub fn constant_warning(&self, evaluation: &Evaluation) -> Option<String> {
        let is_constant =
            self.mixture.mixing.scorer.is_some_and(Scorer::reads_input) && evaluation.spread.is_constant();
        is_constant.then(|| evaluation.spread.constant_warning(&self.config))
    }

    /// The tasks it was trained on, in the order of their target prompts.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// Answers as the task of this name, one of the run's own, from now on; the first does so from the beginning.
    ///
    /// # Errors
    /// [`Error::Setting`] if the run has no such task.
    pub fn select(&mut self, name: &str) -> Result<()> {
        let Some(index) = self.tasks.iter().position(|task| task.name == name) else {
            let names: Vec<&str> = self.tasks.iter().map(|task| task.name.as_str()).collect();
            let expected = format!("one of the run's tasks, {}", names.join(", "));
            return Err(Error::setting("--task", expected, name, "a target prompt belongs to one task"));
        };
        self.target_prompt = index;
        self.task = self.tasks[index].clone();
        self.longest_target = longest_target(self.frozen, &self.config, &self.task)?;
        Ok(())
    }

    /// The steps after which its best state came.
    pub fn best_step(&self) -> u64 {
        self.best_step
    }

    /// The settings it was trained with.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The task that it answers as.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Evaluates other data than it was trained on, as another task if need be.
    ///
    /// # Errors
    /// Those of the task's settings.
    pub fn set_task(&mut self, task: Task) -> Result<()> {
        let tokenizer = &self.frozen.tokenizer;
        self.longest_target = task.longest_target(|text: &str| tokenizer.encode(text))?;
        self.task = task;
        Ok(())
    }

    /// Answers a split of the data in `folder` and evaluates the answers.
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
        let (config, longest) = (&self.config, self.longest_target);
        let examples = split_examples(self.frozen, config, &self.task, folder, split, longest)?;
        let count = examples.len();
        self.evaluator(decoding).evaluate(&self.state, &examples, &mut |done| progress(done, count))
    }

    /// What is worth knowing of how rows of a split of the data in `folder` are read, such as that none of them can be left out.
    #[cfg(feature = "cli")]
    pub(crate) fn remark(&self, folder: &Path, split: Split) -> Result<Option<String>> {
        let splits = open_splits(&self.config, &self.task, folder)?;
        Ok(splits.get(split)?.rows_for(&self.task)?.remark().map(str::to_owned))
    }

    fn evaluator(&self, decoding: Decoding) -> Evaluator<'_, B> {
        Evaluator {
            frozen: self.frozen,
            mixture: &self.mixture,
            task: &self.task,
            target_prompt: self.target_prompt as u32,
            decoding,
            batch_size: BATCH,
            longest_target: self.longest_target,
            pooled_width: self.config.pools_padding().then_some(self.config.max_source_length),
        }
    }
}
