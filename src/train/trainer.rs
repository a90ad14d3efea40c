//! One run: what it reads and holds, and what it gives to each step. Its loop, its validation, the search for what is not
//! finite and the forecast of its memory are files of their own.

mod memory;
mod not_finite;
mod steps;
mod validation;

use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use self::memory::foresee;
pub(super) use self::steps::Pace;
use super::log::Monitor;
use super::ranks::{Alone, Ranks};
use super::run_folder::{Checkpoint, ExampleRecord, RunFolder};
use super::setup::{initial_values, load_sources, mixture, prompt_names};
use super::step::Shared;
use super::task_data::{TaskData, sha256};
use super::tasks;
use crate::backend::{Backend, Objective};
use crate::config::{Method, RunConfig};
use crate::count::counted;
use crate::data::{Batches, SplitSource, data_of_tasks, refuse_without};
use crate::error::{Error, Result};
use crate::model::{Frozen, Mixture};
use crate::prompts::Prompt;
use crate::tasks::Task;

/// A run that is ready to take steps.
pub struct Trainer<'a, B: Backend> {
    pub(super) frozen: &'a Frozen<'a, B>,
    pub(super) config: RunConfig,
    /// One or more; the index of each is that of its target prompt.
    pub(super) tasks: Vec<TaskData>,
    pub(super) mixture: Mixture<B>,
    state: B::State,
    batches: Batches,
    steps: u64,
    warmup: u64,
    pub(super) checkpoint: Checkpoint,
    pub(super) best: Vec<f64>,
    best_examples: Vec<ExampleRecord>,
    graph_cache: B::GraphCache,
    ranks: Rc<dyn Ranks>,
    /// What the mixture's weights belong to.
    prompts: Vec<String>,
    /// The frozen prompts of the mixture; none without one.
    sources: Vec<Prompt>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// Steps taken.
    pub steps: u64,
    /// The best validation's mean metric; one that is not defined counts as 0.
    #[serde(rename = "validation")]
    pub best: f64,
    /// Metrics that were not defined at the best validation, as [`ValidationRecord::metrics`](crate::train::ValidationRecord::metrics)
    /// names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undefined: Vec<String>,
    /// The step it came after.
    pub best_step: u64,
    /// Numbers that trained.
    #[serde(rename = "trained-numbers", default)]
    pub trained: usize,
    /// Rows it learnt from, of each task.
    pub rows: Vec<usize>,
    /// Whether patience ended the run.
    #[serde(default)]
    pub stopped_early: bool,
}

/// What is said after the value of a best validation: of how many `metrics` it is the mean, where it is of several, and which of them
/// are `undefined` there.
pub(crate) fn remark_on_best<'a>(metrics: impl Iterator<Item = &'a String>, undefined: &[String]) -> String {
    let metrics: Vec<&str> = metrics.map(String::as_str).collect();
    let of = if metrics.len() > 1 { format!(" (mean of {})", metrics.join(" and ")) } else { String::new() };
    of + &remark_on_undefined(undefined)
}

/// What is said after a best validation of the metrics that are `undefined` there; empty for none.
fn remark_on_undefined(undefined: &[String]) -> String {
    match undefined {
        [] => String::new(),
        undefined => format!(" ({} undefined, which counts as 0)", undefined.join(" and ")),
    }
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// Reads data and prompts and sets up the state, by `config`. `monitor` hears how many rows were truncated and
    /// what else is worth knowing.
    ///
    /// # Errors
    /// Those of the settings, the data, the prompts and the device.
    pub fn new(frozen: &'a Frozen<'a, B>, config: &RunConfig, monitor: &mut dyn Monitor) -> Result<Self> {
        config.check()?;
        let described = tasks(config)?;
        let sources = load_sources(frozen, config)?;
        let mixture = mixture(frozen, config, &sources, described.len())?;
        let names: Vec<&str> = described.iter().map(|task| &task.name[..]).collect();
        let places = data_of_tasks(&config.data.to_string_lossy(), &names)?;
        names.iter().try_for_each(|name| refuse_without(&config.data, &names, name))?;
        let load = |(task, place)| TaskData::load(frozen, config, task, place, monitor);
        let tasks = described.into_iter().zip(places).map(load).collect::<Result<Vec<_>>>()?;
        let values = initial_values(frozen, config, &tasks, &mixture.layout, &sources, monitor)?;
        let mut state = frozen.backend.state(&mixture.layout, &values, 1)?;
        foresee(frozen, config, &tasks, &mixture, &mut state)?;
        let sizes: Vec<usize> = tasks.iter().map(|data| data.training.len()).collect();
        let batch_size = config.batch_size * config.gradient_accumulation_steps;
        let batches = Batches::mixed(&sizes, &config.shares(&sizes), batch_size, config.seed)?;
        let checkpoint = Checkpoint {
            data_sha256: Some(sha256(tasks.iter().map(|data| &data.training))),
            validation_sha256: Some(sha256(tasks.iter().map(|data| &data.validation))),
            ..Checkpoint::default()
        };
        let prompts = prompt_names(config, &mixture);
        let steps = config.steps(batches.steps_per_epoch());
        let warmup = config.warmup_steps(steps);
        if steps <= warmup {
            monitor.note(&format!(
                "the run of {} lies within its warm-up of {warmup}: the learning rate never reaches its peak; give \
                 --warmup-steps or more steps",
                counted(steps, "step")
            ));
        }
        Ok(Self {
            frozen,
            config: config.clone(),
            tasks,
            mixture,
            state,
            batches,
            steps,
            warmup,
            checkpoint,
            best: values,
            best_examples: Vec::new(),
            graph_cache: B::GraphCache::default(),
            ranks: Rc::new(Alone),
            prompts,
            sources: if config.method == Method::Attempt { sources } else { Vec::new() },
        })
    }

    /// Shares every step's rows out among `ranks`; each of them makes a trainer of equal settings.
    #[must_use]
    pub fn on_ranks(mut self, ranks: Rc<dyn Ranks>) -> Self {
        self.ranks = ranks;
        self
    }

    /// Goes on from the last checkpoint in `folder`, as if the run had never stopped; from the start if it was broken off
    /// before the first one.
    ///
    /// # Errors
    /// If the checkpoint is malformed, damaged, of another state or of other training rows, or missing though the run has
    /// taken steps; if a source has changed; those of the device.
    pub fn resume(&mut self, folder: &Path) -> Result<()> {
        RunFolder::saved(folder)?.check_sources(&self.sources, &self.config.sources, "--resume")?;
        let Some(last) = RunFolder::load_last(folder, &self.mixture.layout)? else { return Ok(()) };
        let [began, now] = [&last.checkpoint, &self.checkpoint];
        for (rows, began, now, otherwise) in [
            (
                "training",
                &began.data_sha256,
                &now.data_sha256,
                "train anew on these, with --initial-prompt if the prompt is to go on",
            ),
            (
                "validation",
                &began.validation_sha256,
                &now.validation_sha256,
                "train anew, as the best so far was chosen by those",
            ),
        ] {
            if began.is_some() && began != now {
                return Err(Error::setting(
                    "--resume",
                    format!("the {rows} rows that the run began with"),
                    "others: the data changed, its task's file or the tokenizer",
                    format!("put them back; or {otherwise}"),
                ));
            }
        }
        let [values, first, second] = &last.state;
        self.frozen.backend.write_state(
            &mut self.state,
            [values, first, second],
            &[last.checkpoint.updates],
        )?;
        self.batches.seek(last.checkpoint.step);
        self.best = last.best;
        let validation_sha256 = self.checkpoint.validation_sha256.take();
        self.checkpoint = Checkpoint { validation_sha256, ..last.checkpoint };
        Ok(())
    }

    /// The tasks, in the order of their target prompts.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.iter().map(|data| &data.task)
    }

    /// SHA-256 of the frozen model.
    pub fn model_hash(&self) -> &str {
        &self.frozen.model_hash
    }

    /// Training examples of each task.
    pub fn training_rows(&self) -> Vec<usize> {
        self.tasks.iter().map(|data| data.training.len()).collect()
    }

    /// The mixture.
    pub fn mixture(&self) -> &Mixture<B> {
        &self.mixture
    }

    /// Numbers that train.
    pub fn trained(&self) -> usize {
        self.mixture.layout.trained()
    }

    /// Steps taken so far.
    pub fn step_count(&self) -> u64 {
        self.checkpoint.step
    }

    /// Steps still to take, unless patience ends the run before.
    pub fn steps_left(&self) -> u64 {
        self.steps.saturating_sub(self.checkpoint.step)
    }

    /// The current parameters, flat, by the mixture's layout.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn parameters(&self) -> Result<Vec<f64>> {
        self.frozen.backend.read_state(&self.state).map(|[values, ..]| values)
    }

    /// The parameters of the best validation so far.
    pub fn best_parameters(&self) -> &[f64] {
        &self.best
    }

    /// Whether this run and `other` can take their next step in one batch: equal in all that is not stacked.
    pub(super) fn stacks_with(&self, other: &Self) -> bool {
        let key = |trainer: &Self| {
            let Shared { step, dropout, pooled_width, objective, .. } =
                trainer.shared(trainer.checkpoint.step);
            (step, dropout.to_bits(), pooled_width, objective, trainer.config.sources.clone())
        };
        self.mixture.mixing == other.mixture.mixing
            && self.mixture.layout == other.mixture.layout
            && key(self) == key(other)
    }

    /// Parameters and moments, flat, and the updates they have had.
    pub(super) fn full_state(&self) -> Result<([Vec<f64>; 3], u64)> {
        Ok((self.frozen.backend.read_state(&self.state)?, self.checkpoint.updates))
    }

    /// Takes over what a stack's step made of this run's parameters and moments.
    pub(super) fn set_state(&mut self, [values, first, second]: [&[f64]; 3]) -> Result<()> {
        let updates = [self.checkpoint.updates];
        self.frozen.backend.write_state(&mut self.state, [values, first, second], &updates)
    }

    /// What all runs of the step after `step` others have in common.
    pub(super) fn shared(&self, step: u64) -> Shared {
        Shared {
            step,
            dropout: self.dropout(),
            seeds: vec![self.config.seed],
            pooled_width: self.pooled_width(),
            objective: Objective { label_smoothing: self.config.label_smoothing, z_loss: self.config.z_loss },
            ranks: self.ranks.clone(),
        }
    }

    fn dropout(&self) -> f64 {
        self.config.dropout.unwrap_or(f64::from(self.frozen.model.config().dropout_rate))
    }

    /// The settings as they work: what was left out has the value that holds for it.
    pub fn effective(&self) -> RunConfig {
        let config = &self.config;
        let mixes = self.mixture.mixing.scorer.is_some();
        let width = self.mixture.layout.width;
        RunConfig {
            steps: Some(self.steps),
            epochs: None,
            validate_every: Some(self.validation_interval()),
            warmup_steps: Some(self.warmup),
            weight_decay: Some(config.weight_decay()),
            scorer_learning_rate: mixes.then(|| config.scorer_learning_rate()),
            temperature: mixes.then(|| super::temperature(config, width)),
            standardize_inputs: mixes.then(|| config.standardizes_inputs()),
            dropout: Some(self.dropout()),
            prompt_init: Some(config.prompt_init()),
            data_seed: Some(config.data_seed()),
            splits: self.split_source(),
            max_target_length: self.tasks.iter().map(|task| task.longest_target).max(),
            ..config.clone()
        }
    }

    /// Who says which rows validate and test; `None` where it is another for one task than for another.
    fn split_source(&self) -> Option<SplitSource> {
        let of = |task: &TaskData| SplitSource::of(self.config.split_source(), &task.task, &task.place);
        let first = self.tasks.first().map(of);
        first.filter(|first| self.tasks.iter().all(|task| of(task) == *first))
    }

    fn validation_interval(&self) -> u64 {
        self.config.validate_every.unwrap_or_else(|| self.batches.steps_per_epoch())
    }

    fn pooled_width(&self) -> Option<usize> {
        self.config.pools_padding().then_some(self.config.max_source_length)
    }
}
