//! Training: the step, its schedule, validation, and what a run leaves behind.

mod initial;
mod log;
mod run_folder;
mod schedule;
mod trainer;

pub use initial::{Start, similarity, state as initial_state, temperature};
pub use log::{Monitor, Silent, StepRecord, ValidationRecord};
pub use run_folder::{Checkpoint, RunFolder, Saved};
pub use schedule::factor;
pub use trainer::{Outcome, Trainer};
pub(crate) use trainer::{load_sources, mixture};

use std::path::Path;

use crate::backend::Backend;
use crate::config::RunConfig;
use crate::error::Result;
use crate::model::T5;
use crate::pretrained::{self, Tokenizer};
use crate::tasks::Task;

/// What every run on one model shares: it is read once and never changes.
pub struct Frozen<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// T5 on it.
    pub model: T5<B>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// SHA-256 of the model's tensors, which prompts carry.
    pub model_hash: String,
}

impl<'a, B: Backend> Frozen<'a, B> {
    /// Reads the model in `folder` and copies it to the device; the files are let go again.
    ///
    /// # Errors
    /// Those of reading a checkpoint or a tokenizer.
    pub fn load(backend: &'a B, folder: &Path) -> Result<Self> {
        let checkpoint = pretrained::Checkpoint::open(folder)?;
        let tokenizer = Tokenizer::open(folder, checkpoint.config())?;
        let model_hash = checkpoint.sha256()?.to_owned();
        let model = T5::load(backend, &checkpoint)?;
        Ok(Self { backend, model, tokenizer, model_hash })
    }
}

/// The task that a run's settings describe.
///
/// # Errors
/// If no known task has that name, or the template or labels cannot be read.
pub fn task(config: &RunConfig) -> Result<Task> {
    let task = match &config.template {
        Some(template) => {
            let name = if config.task.is_empty() { "custom" } else { &config.task };
            Task::generic(name, template, config.labels.as_deref(), &config.label_field)?
        }
        None => {
            let task = Task::named(&config.task)?;
            match &config.labels {
                Some(labels) => task.with_labels(labels)?,
                None => task,
            }
        }
    };
    Ok(task.with_lowercase(config.lowercase))
}
