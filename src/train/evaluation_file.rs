//! `evaluation.json` in a run's folder: what its best state came to on the splits of its own data, kept for whoever shows
//! or compares runs later.
//!
//! One entry a split, task and decoding; evaluating again replaces it. Other data than the run's own, and a task or labels that
//! are not the run's own, never come in here: their numbers say nothing of how the run did what it was trained for.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::TrainedRun;
use super::run_folder::EVALUATIONS;
use crate::backend::Backend;
use crate::config::Decoding;
use crate::data::Split;
use crate::error::Result;
use crate::evaluate::Evaluation;
use crate::files;

/// `evaluation.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Evaluations {
    /// One of each split, task and decoding, in the order in which they were first evaluated.
    pub evaluations: Vec<EvaluationRecord>,
}

/// What a run's best state came to on one split of one of its tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct EvaluationRecord {
    /// Which rows were evaluated.
    pub split: Split,
    /// The task, one of the run's own.
    pub task: String,
    /// How answers were got.
    pub decoding: Decoding,
    /// The run's own data, where it lay.
    pub data: PathBuf,
    /// Steps before the state that was evaluated. A run that has found a better one since has outdated the entry.
    pub best_step: u64,
    /// The program's version.
    pub promptmix: String,
    /// Rows that were evaluated.
    pub examples: usize,
    /// Answers that are no label of the task.
    pub invalid: usize,
    /// Each metric's name and value, from 0 to 1 but for correlations, from -1; `None` where it is not defined.
    pub metrics: Vec<(String, Option<f64>)>,
    /// What the weights belong to: the sources, then `target`; empty without a mixture.
    pub prompts: Vec<String>,
    /// The mean weight of each over the rows.
    pub attention: Vec<f64>,
    /// The standard deviation of each weight over the rows.
    pub attention_std: Vec<f64>,
    /// The share of rows whose largest source is not the one that is largest most often.
    pub attention_minority: f64,
}

impl EvaluationRecord {
    /// Of `evaluation`, for which `run` answered `split` of its own data in `data` as its selected task, by `decoding`.
    pub fn new<B: Backend>(
        run: &TrainedRun<'_, B>,
        data: &Path,
        split: Split,
        decoding: Decoding,
        evaluation: &Evaluation,
    ) -> Self {
        let (scores, spread) = (&evaluation.scores, &evaluation.spread);
        let metrics = scores.values.iter().map(|(metric, value)| (metric.to_string(), *value));
        Self {
            split,
            task: run.task().name.clone(),
            decoding,
            data: data.to_owned(),
            best_step: run.best_step(),
            promptmix: env!("CARGO_PKG_VERSION").into(),
            examples: scores.examples,
            invalid: scores.invalid,
            metrics: metrics.collect(),
            prompts: run.prompts(),
            attention: spread.mean.clone(),
            attention_std: spread.standard_deviation.clone(),
            attention_minority: spread.minority,
        }
    }
}

impl Evaluations {
    /// What was found for the run in `folder` so far; nothing if it was never evaluated.
    ///
    /// # Errors
    /// If `evaluation.json` cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let advice = "the file was damaged or edited: remove it and evaluate the run again";
        let stored = files::read_json(&folder.join(EVALUATIONS), "what promptmix evaluate found", advice)?;
        Ok(stored.unwrap_or_default())
    }

    /// Writes `record` into `evaluation.json` of the run in `folder`, over what it held of the same split, task and decoding.
    ///
    /// # Errors
    /// If the file cannot be read or replaced; the old one then still stands.
    pub fn store(folder: &Path, record: EvaluationRecord) -> Result<()> {
        // Two that evaluate different splits at a time must not lose each other's entry. `config.toml` is replaced only where
        // training makes a run longer; then, where it is missing, and where the file system has no locks, the user sees to it.
        let locked = folder.join("config.toml");
        files::refuse_stream(&locked)?;
        let lock = File::open(locked).and_then(|file| file.lock().map(|()| file));
        let mut stored = Self::read(folder)?;
        let same = |other: &&mut EvaluationRecord| {
            (other.split, &other.task, other.decoding) == (record.split, &record.task, record.decoding)
        };
        match stored.evaluations.iter_mut().find(same) {
            Some(other) => *other = record,
            None => stored.evaluations.push(record),
        }
        let written = files::write_json(&folder.join(EVALUATIONS), &stored);
        drop(lock);
        written
    }
}
