//! Training: the step, its schedule, validation, and what a run leaves behind.

mod change_sources;
mod events;
mod initial;
mod log;
mod run_folder;
mod schedule;
mod trained_run;
mod trainer;

pub use change_sources::change_sources;
pub(crate) use initial::normal;
pub use initial::{Start, state as initial_state, temperature};
pub use log::{Monitor, Silent, StepRecord, ValidationRecord};
pub use run_folder::{Checkpoint, ExampleRecord, LastState, RunFolder, Saved};
pub use schedule::factor;
pub use trained_run::TrainedRun;
pub use trainer::{Outcome, Trainer};

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
