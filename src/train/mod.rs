//! Training: the step, its schedule, validation, and what a run leaves behind.

mod events;
mod initial;
mod log;
mod predictor;
mod ranks;
mod run_folder;
mod schedule;
mod step;
mod sweep;
mod trained_run;
mod trainer;

pub(crate) use initial::normal;
pub use initial::{Start, similarity, state as initial_state, temperature};
pub use log::{Monitor, Silent, StepRecord, ValidationRecord};
pub use predictor::{Prediction, Predictor, Request};
#[cfg(feature = "mpi")]
pub use ranks::Mpi;
pub use ranks::{Alone, Ranks};
pub use run_folder::{Checkpoint, ExampleRecord, LastState, RunFolder, Saved};
pub use schedule::factor;
pub use sweep::{Member, SweepMonitor, run_together};
pub use trained_run::TrainedRun;
pub use trainer::{Outcome, Trainer};

use std::path::PathBuf;

use crate::config::RunConfig;
use crate::error::Result;
use crate::tasks::Task;

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

/// What to call the prompts at `paths` where people read it: a run's own `prompt.safetensors` by its folder, others by
/// their stem; equal names get numbers.
pub fn source_names(paths: &[PathBuf]) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(paths.len());
    for path in paths {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let folder = path.parent().and_then(std::path::Path::file_name);
        let name = match folder {
            Some(folder) if stem == "prompt" => folder.to_string_lossy().into_owned(),
            _ => stem.into_owned(),
        };
        let same =
            names.iter().filter(|other| **other == name || other.starts_with(&format!("{name} ("))).count();
        names.push(if same == 0 { name } else { format!("{name} ({})", same + 1) });
    }
    names
}
