//! `run.json`: what a run was trained with, and whether what is found now is that.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::trained_on::TrainedOn;
use crate::backend::Scorer;
use crate::config::{Method, RunConfig};
use crate::data::{SplitSource, data_of_tasks};
use crate::error::{Error, Result};
use crate::prompts::Prompt;
use crate::tasks::{Target, Task};

/// The version of the folder's format.
pub(super) const FORMAT: u32 = 2;

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunManifest {
    /// The version of the folder's format.
    pub format: u32,
    /// The program's version.
    pub promptmix: String,
    /// SHA-256 of the frozen model.
    pub model_hash: String,
    /// The settings.
    pub config: RunConfig,
    /// Where training ran: relative paths of the settings start there. Not in folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_in: Option<PathBuf>,
    /// Whether the model was a folder of that machine, not one of the hub's. Not in folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_is_folder: Option<bool>,
    /// Numbers that the optimizer moves, written when training begins. Not in folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_numbers: Option<usize>,
    /// The settings as they work: those that were not given with the value that holds for them, written when training begins. Not in
    /// folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<RunConfig>,
    /// What it was last trained on, written when training begins and when it goes on elsewhere. Not in folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<TrainedOn>,
    /// [`Prompt::sha256`] of each source of the mixture, in the order of the settings, written when training begins. Not in folders
    /// of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources_sha256: Vec<String>,
    /// SHA-256 of what each task makes of rows, in the order of the settings, written when training begins: a task's file may be edited
    /// later. Not in folders of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks_sha256: Vec<String>,
}

/// What is known of a run when its training begins, each as the manifest has it.
pub(super) struct Beginning {
    pub trained_numbers: usize,
    pub effective: RunConfig,
    /// None where there is no step to take.
    pub trained_on: Option<TrainedOn>,
    pub sources_sha256: Vec<String>,
    pub tasks_sha256: Vec<String>,
}

impl RunManifest {
    /// Of a run that begins here.
    pub(super) fn new(config: &RunConfig, model_hash: &str) -> Self {
        Self {
            format: FORMAT,
            promptmix: env!("CARGO_PKG_VERSION").into(),
            model_hash: model_hash.into(),
            config: config.clone(),
            trained_in: std::env::current_dir().ok(),
            model_is_folder: Some(Path::new(&config.model).is_dir()),
            trained_numbers: None,
            effective: None,
            trained_on: None,
            sources_sha256: Vec::new(),
            tasks_sha256: Vec::new(),
        }
    }

    /// With the splits that the run has been trained on: before a task's own data set on the hub had the task's rule without being asked,
    /// its files went by their names.
    pub(super) fn with_splits_of_then(mut self) -> Self {
        let by_names = |effective: &RunConfig| effective.splits == Some(SplitSource::Hub);
        if self.config.split_source().is_none()
            && self.effective.as_ref().is_none_or(by_names)
            && owns_data(&self.config).unwrap_or(false)
        {
            self.config.splits = Some(SplitSource::Hub);
        }
        self
    }

    /// Takes in what is known when training begins.
    pub(super) fn begin(&mut self, beginning: Beginning) {
        let Beginning { trained_numbers, effective, trained_on, sources_sha256, tasks_sha256 } = beginning;
        (self.trained_numbers, self.effective) = (Some(trained_numbers), Some(effective));
        (self.sources_sha256, self.tasks_sha256) = (sources_sha256, tasks_sha256);
        if trained_on.is_some() {
            self.trained_on = trained_on;
        }
    }

    /// Whether a target prompt is learnt: not where a scorer alone trains.
    pub fn trains_prompt(&self) -> bool {
        self.config.method != Method::Attempt || !self.config.without_target()
    }

    /// Whether a mixture's scorer, or its temperature, is learnt.
    pub fn trains_scorer(&self) -> bool {
        let config = &self.config;
        let has_numbers = !matches!(config.scorer, Scorer::Dot | Scorer::Uniform);
        let learns_temperature = config.learn_temperature && config.scorer.reads_input();
        config.method == Method::Attempt && (has_numbers && !config.freeze_scorer || learns_temperature)
    }

    /// Whether the optimizer moves the segment of this name.
    pub(super) fn trains(&self, segment: &str) -> bool {
        match segment {
            "target_prompts" | "log_temperature" => true,
            "input_mean" | "input_scale" => false,
            "norm_weight" | "norm_bias" if !self.config.trains_layer_norm() => false,
            _ => !self.config.freeze_scorer,
        }
    }

    /// Whether the run was trained with the model of this SHA-256; `flag` named the run.
    ///
    /// # Errors
    /// [`Error::Setting`] if it was another one.
    pub fn check_model(&self, model_hash: &str, flag: &str) -> Result<()> {
        if self.model_hash == model_hash {
            return Ok(());
        }
        Err(Error::setting(
            flag,
            format!("a run on this model, {model_hash}"),
            format!("one on {}", self.model_hash),
            "prompts are of use only to the model they were trained with; its files may have changed since",
        ))
    }

    /// The names of the run's tasks that make other texts of rows than in its training, as `tasks` has them now, in the order of the
    /// settings.
    pub fn changed_tasks(&self, tasks: &[Task]) -> Vec<String> {
        let known = self.tasks_sha256.iter().zip(tasks);
        known
            .filter(|(known, task)| **known != texts_sha256(task))
            .map(|(_, task)| task.name.clone())
            .collect()
    }

    /// Whether `source`, which lies at `path`, is the one that the run was trained with as the `index`th; `flag` named the run.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is another prompt.
    pub(super) fn check_source(&self, index: usize, source: &Prompt, path: &Path, flag: &str) -> Result<()> {
        let found = source.sha256();
        let Some(known) = self.sources_sha256.get(index).filter(|known| **known != found) else {
            return Ok(());
        };
        Err(Error::setting(
            flag,
            format!("the source that the run was trained with in {}, of SHA-256 {known}", path.display()),
            format!("other numbers, of SHA-256 {found}"),
            "a mixture is of these numbers: put the old file back, or train anew",
        ))
    }

    /// As [`check_source`](Self::check_source), of all sources in the order of the settings.
    ///
    /// # Errors
    /// As there.
    pub(super) fn check_sources(&self, sources: &[Prompt], paths: &[PathBuf], flag: &str) -> Result<()> {
        let mut all = sources.iter().zip(paths).enumerate();
        all.try_for_each(|(index, (source, path))| self.check_source(index, source, path, flag))
    }
}

/// Whether a task of `config` reads its own data set on the hub.
fn owns_data(config: &RunConfig) -> Result<bool> {
    let tasks = super::tasks(config)?;
    let names: Vec<&str> = tasks.iter().map(|task| &task.name[..]).collect();
    let places = data_of_tasks(&config.data.to_string_lossy(), &names)?;
    Ok(tasks.iter().zip(places).any(|(task, place)| task.owns(&place)))
}

/// SHA-256 of all that says which texts `task` makes of a row: its template and its answers, not its metrics and splits.
pub(super) fn texts_sha256(task: &Task) -> String {
    let answers = match &task.target {
        Target::Classes { field, classes, .. } => {
            let classes: Vec<_> = classes.iter().map(|class| (&class.label, &class.values)).collect();
            serde_json::json!([field, classes])
        }
        other => serde_json::json!(other),
    };
    let texts = serde_json::json!([task.source, answers, task.lowercase]).to_string();
    format!("{:x}", Sha256::digest(texts))
}
