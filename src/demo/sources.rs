//! The source prompts of the demonstration and of the study.

use std::path::{Path, PathBuf};

use super::generate::{GeneratedTask, Rows, SOURCES};
use crate::config::{Decoding, Method, RunConfig};
use crate::error::Result;
use crate::experiment::{Progress, Runner, Source, Training, train_all};

/// How source prompts are learnt.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SourceSettings {
    /// Seed of the generated rows and of the trainings.
    pub seed: u64,
    /// Rows of a source task.
    pub rows: Rows,
    /// Steps of a training.
    pub steps: u64,
    /// Learning rate of a training.
    pub learning_rate: f64,
    /// M, of every prompt.
    pub prompt_length: usize,
    /// Examples a batch, of every training.
    pub batch_size: usize,
}

impl Default for SourceSettings {
    fn default() -> Self {
        Self {
            seed: 1,
            rows: Rows { train: 480, validation: 64, test: 2 },
            steps: 150,
            learning_rate: 1.0,
            prompt_length: 10,
            batch_size: 16,
        }
    }
}

impl SourceSettings {
    /// What every training on generated rows in `data` shares.
    pub(super) fn run(&self, model: &Path, task: &str, labels: [&str; 2], data: PathBuf) -> RunConfig {
        RunConfig {
            model: model.display().to_string(),
            task: task.into(),
            template: Some("{text}".into()),
            labels: Some(labels.join(",")),
            data,
            prompt_length: self.prompt_length,
            batch_size: self.batch_size,
            decoding: Decoding::Labels,
            threads: Some(1),
            ..RunConfig::default()
        }
    }

    /// Writes the rows of the source tasks called `names` below `out` and learns their prompts, or goes on with those that
    /// are there; gives back the best validation of each.
    pub(super) fn train(
        &self,
        runner: &dyn Runner,
        model: &Path,
        names: &[&str],
        out: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Vec<f64>> {
        let tasks: Vec<GeneratedTask> =
            SOURCES.into_iter().filter(|task| names.contains(&task.name)).collect();
        for task in &tasks {
            task.write(&data_folder(out, task.name), self.rows, self.seed)?;
        }
        let trainings: Vec<Training> = tasks
            .iter()
            .map(|task| {
                let config = RunConfig {
                    method: Method::PromptTuning,
                    steps: Some(self.steps),
                    validate_every: Some((self.steps / 3).max(1)),
                    learning_rate: self.learning_rate,
                    seed: self.seed,
                    ..self.run(model, task.name, task.labels, data_folder(out, task.name))
                };
                Training::new(task.name, config, out.join("sources").join(task.name))
            })
            .collect();
        let outcomes = train_all("source prompts", &trainings, 0, runner, progress)?;
        Ok(outcomes.iter().map(|outcome| outcome.best).collect())
    }
}

/// Where a task's rows are.
pub(super) fn data_folder(out: &Path, name: &str) -> PathBuf {
    out.join("data").join(name)
}

/// The prompts that were learnt on the source tasks called `names`.
pub(super) fn source_paths(out: &Path, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| out.join("sources").join(name).join("prompt.safetensors")).collect()
}

/// The same as sources of a study.
pub(super) fn sources(out: &Path, names: &[&str]) -> Vec<Source> {
    let source = |(name, prompt): (&&str, PathBuf)| Source {
        name: (*name).to_owned(),
        prompt: Some(prompt),
        config: RunConfig::default(),
    };
    names.iter().zip(source_paths(out, names)).map(source).collect()
}
