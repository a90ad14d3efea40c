//! Training: the step, its schedule, validation, and what a run leaves behind.

mod best;
mod change_sources;
mod evaluate_tasks;
mod evaluation_file;
mod events;
mod initial;
mod log;
mod manifest;
mod places;
mod predictor;
mod ranks;
mod repeats;
mod run_folder;
mod runs_beneath;
mod schedule;
mod setup;
mod shared_batch;
mod step;
mod task_data;
mod trained_on;
mod trained_run;
mod trainer;

pub use change_sources::change_sources;
pub use evaluate_tasks::Evaluated;
pub(crate) use evaluate_tasks::{
    complete, evaluate_tasks, mean_attention, mean_metric, metrics_of_runs, named_metrics,
};
pub use evaluation_file::{EvaluationRecord, Evaluations};
pub(crate) use initial::write_random_like;
pub use initial::{Start, state as initial_state, temperature};
pub use log::{Monitor, Silent, StepRecord, TaskRecord, ValidationRecord};
pub use manifest::RunManifest;
pub use predictor::{Prediction, Predictor, Request};
#[cfg(feature = "mpi")]
pub use ranks::Mpi;
pub use ranks::{Alone, Ranks};
pub(crate) use repeats::name_of_repeats;
#[cfg(feature = "report")]
pub(crate) use repeats::{NAME_BREAKS, common_ends};
pub use repeats::{differing_settings, repeats};
pub use run_folder::{Checkpoint, ExampleRecord, LastState, RunFolder};
pub(crate) use run_folder::{DRAW, FEW_SHOT_SETTINGS};
#[cfg(feature = "cli")]
pub(crate) use runs_beneath::sort_key;
pub use runs_beneath::{FoundRun, runs_beneath, trained_on};
pub use schedule::factor;
#[cfg(feature = "cli")]
pub(crate) use setup::TARGET;
pub use shared_batch::{Member, run_together};
pub use task_data::check_data;
#[cfg(feature = "cli")]
pub(crate) use task_data::count_training_rows;
pub use trained_on::TrainedOn;
pub use trained_run::TrainedRun;
pub(crate) use trainer::remark_on_best;
pub use trainer::{Outcome, Trainer};

pub use crate::prompts::similarity;

use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::config::{Difference, RunConfig};
use crate::error::{Error, Result};
use crate::prompts;
use crate::tasks::Task;

/// Sets a trainer on the last checkpoint of the run in `path`, and opens its folder to go on with.
///
/// # Errors
/// If the run was begun on another model, or its files are damaged.
pub fn resume<B: Backend>(trainer: &mut Trainer<'_, B>, path: &Path) -> Result<RunFolder> {
    RunFolder::saved(path)?.check_model(trainer.model_hash(), "--resume")?;
    trainer.resume(path)?;
    let mut folder = RunFolder::open(path)?;
    folder.rewind(trainer.step_count())?;
    Ok(folder)
}

/// The folder of a run by `trainer`'s settings in `path`: made anew, or opened after the last checkpoint of a run that is there.
/// What such a run was trained with has to be the settings of now, if `is_compared`, but for the places of what is the same; not where
/// the settings are the run's own and only its files may have moved.
///
/// # Errors
/// As [`resume`] and [`RunFolder::create`]; [`Error::Setting`] if a run of other settings is there.
pub(crate) fn begin_or_resume<B: Backend>(
    trainer: &mut Trainer<'_, B>,
    path: &Path,
    is_compared: bool,
) -> Result<RunFolder> {
    let is_there = path.join("run.json").is_file();
    let differences = match is_there && is_compared {
        true => differences(&RunFolder::saved(path)?, path, trainer),
        false => Vec::new(),
    };
    // A run that failed before its first step, as by a setting that is now another, is no obstacle.
    if !is_there || (!differences.is_empty() && !RunFolder::has_begun(path)?) {
        return RunFolder::create(path, &trainer.config, trainer.model_hash());
    }
    if differences.is_empty() {
        return resume(trainer, path);
    }
    let listed: Vec<String> = differences.iter().map(ToString::to_string).collect();
    Err(Error::setting(
        "--out",
        format!("a run of these settings in {}", path.display()),
        format!("a run of other settings: {}", listed.join(", ")),
        "name another folder, or undo the change",
    ))
}

/// In which settings the run in `path` differs from the one by `trainer`. A model and sources of the same numbers, and files in the same
/// place, are the same whatever they are called.
fn differences<B: Backend>(saved: &RunManifest, path: &Path, trainer: &Trainer<'_, B>) -> Vec<Difference> {
    let mut before = saved.located(path);
    if saved.model_hash == trainer.model_hash() {
        before.model.clone_from(&trainer.config.model);
    }
    if saved.sources_sha256 == trainer.sources_sha256() {
        before.sources.clone_from(&trainer.config.sources);
    }
    places::with_whole_paths(&before).differences(&places::with_whole_paths(&trainer.config))
}

/// The tasks that a run's settings describe, in the order of their target prompts.
///
/// # Errors
/// If no known task has such a name, a task's file, the template or the labels cannot be read, or a task is given twice.
pub fn tasks(config: &RunConfig) -> Result<Vec<Task>> {
    let names: Vec<&str> = config.task_names().collect();
    let mut tasks: Vec<Task> = Vec::with_capacity(names.len());
    for name in names {
        let mut one = config.clone();
        one.task = name.to_owned();
        let task = task(&one)?;
        if tasks.iter().any(|other| other.name == task.name) {
            return Err(Error::setting("--task", "each task once", format!("{} twice", task.name), ""));
        }
        tasks.push(task);
    }
    Ok(tasks)
}

/// The one task that a run's settings describe.
///
/// # Errors
/// As [`tasks`].
pub fn task(config: &RunConfig) -> Result<Task> {
    let task = match &config.template {
        Some(template) => {
            let name = if config.task.is_empty() { "custom" } else { &config.task };
            Task::generic(name, template, config.labels.as_deref(), &config.label_field)?
        }
        None => {
            let task = Task::find(&config.task).map_err(|error| match error {
                Error::Setting { setting, expected, found, advice } if setting == "task" => {
                    let advice = format!("{advice}, or a --template and --labels");
                    Error::setting(setting, expected, found, advice)
                }
                other => other,
            })?;
            match &config.labels {
                Some(labels) => task.with_labels(labels)?,
                None => task,
            }
        }
    };
    // A task's own file may ask for it, whatever the flag says.
    let lowercase = config.lowercase || task.lowercase;
    Ok(task.with_lowercase(lowercase))
}

/// What to call the prompts at `paths` where people read it: a run's folder and its own `prompt.safetensors` by the folder's
/// name, others by their stem; equal names get numbers.
pub fn source_names(paths: &[PathBuf]) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(paths.len());
    for path in paths {
        let name = prompts::name_of(path);
        let same =
            names.iter().filter(|other| **other == name || other.starts_with(&format!("{name} ("))).count();
        names.push(if same == 0 { name } else { format!("{name} ({})", same + 1) });
    }
    names
}
