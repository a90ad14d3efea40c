//! The source prompts of the demonstration and of the study.

use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::generate::{GeneratedTask, Rows, SOURCES};
use crate::config::{Decoding, Method, RunConfig};
use crate::error::{Error, Result};
use crate::experiment::{Progress, Runner, Training, train_all};
use crate::prompts::{Prompt, PromptMetadata};
use crate::train::normal;

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

/// For each of `sources` a prompt of noise in `folder`, each row with the norm of the source's.
pub(super) fn write_noise(sources: &[PathBuf], noise: &[PathBuf], seed: u64) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for (source, path) in sources.iter().zip(noise) {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|error| Error::file("create", folder, error))?;
        let source = Prompt::load(source)?;
        let noise = Prompt::new(
            source.name(),
            noise_like(&source, &mut random),
            source.length(),
            source.width(),
            PromptMetadata {
                model_sha256: source.metadata().model_sha256.clone(),
                ..PromptMetadata::default()
            },
        )?;
        noise.save(path)?;
    }
    Ok(())
}

fn noise_like(source: &Prompt, random: &mut ChaCha8Rng) -> Vec<f32> {
    let norm = |row: &[f64]| row.iter().map(|value| value * value).sum::<f64>().sqrt();
    let mut values = Vec::with_capacity(source.values().len());
    for row in source.values().chunks_exact(source.width()) {
        let row: Vec<f64> = row.iter().map(|&value| f64::from(value)).collect();
        let noise: Vec<f64> = row.iter().map(|_| normal(random)).collect();
        let scale = norm(&row) / norm(&noise);
        values.extend(noise.iter().map(|value| (value * scale) as f32));
    }
    values
}
