//! What a run folder says of its run.

use std::path::Path;

use serde::Deserialize;

use super::TARGET;
use crate::error::{Error, Result};
use crate::evaluate::AttentionSpread;
use crate::prompts::Prompt;
use crate::train::{ExampleRecord, RunFolder, Saved, TaskRecord, source_names};

/// A run, read back.
pub(super) struct History {
    pub(super) name: String,
    pub(super) saved: Saved,
    pub(super) steps: Vec<Step>,
    pub(super) validations: Vec<Validation>,
    pub(super) examples: Vec<ExampleRecord>,
    pub(super) sources: Vec<String>,
    /// The sources that are still where they were.
    pub(super) source_prompts: Vec<(String, Prompt)>,
    /// What it learnt; with several tasks each under the task's name.
    pub(super) target_prompts: Vec<(Option<String>, Prompt)>,
}

/// A step of the log. Numbers that were not finite are none.
#[derive(Deserialize)]
pub(super) struct Step {
    pub(super) step: u64,
    #[serde(deserialize_with = "or_nan")]
    pub(super) loss: f64,
    #[serde(deserialize_with = "or_nan")]
    pub(super) gradient_norm: f64,
    pub(super) learning_rate: f64,
    pub(super) milliseconds: f64,
}

/// A validation of the log.
#[derive(Deserialize)]
pub(super) struct Validation {
    pub(super) step: u64,
    pub(super) metrics: Vec<(String, Option<f64>)>,
    #[serde(deserialize_with = "or_nan")]
    pub(super) mean: f64,
    pub(super) best: bool,
    pub(super) attention: Vec<f64>,
    #[serde(default)]
    pub(super) attention_std: Vec<f64>,
    #[serde(default)]
    pub(super) attention_minority: f64,
    pub(super) invalid: usize,
    /// Each task's part, where there are several.
    #[serde(default)]
    pub(super) tasks: Vec<TaskRecord>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Step(Step),
    Validation(Validation),
}

/// JSON has no NaN: it is written as null.
fn or_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Validation {
    pub(super) fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(metric, _)| metric == name)?.1
    }
}

impl History {
    /// Reads the run in `folder`, which may still be going on.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let saved = RunFolder::saved(folder)?;
        let (mut steps, mut validations) = (Vec::new(), Vec::new());
        for line in lines(&folder.join("log.jsonl"))? {
            match line {
                Line::Step(step) => steps.push(step),
                Line::Validation(validation) => validations.push(validation),
            }
        }
        let examples = folder.join("examples.jsonl");
        let examples = if examples.exists() { lines(&examples)? } else { Vec::new() };
        let sources = source_names(&saved.config.sources);
        // A source that has moved since is left out of the comparison; the run itself does not need it to be shown.
        let source_prompts = sources.iter().zip(&saved.config.sources);
        let source_prompts = source_prompts
            .filter_map(|(name, path)| Some((name.clone(), Prompt::load(path).ok()?)))
            .collect();
        let target_prompts = target_prompts(folder)?;
        let name = folder.canonicalize().ok();
        let name = name.as_deref().unwrap_or(folder).file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        Ok(Self { name, saved, steps, validations, examples, sources, source_prompts, target_prompts })
    }

    /// A value of each step.
    pub(super) fn curve(&self, value: impl Fn(&Step) -> Option<f64>) -> Vec<(u64, f64)> {
        self.steps.iter().filter_map(|step| Some((step.step, value(step)?))).collect()
    }

    /// The names of what validation measured.
    pub(super) fn metrics(&self) -> Vec<String> {
        let first = self.validations.first();
        first.map_or_else(Vec::new, |first| first.metrics.iter().map(|(name, _)| name.clone()).collect())
    }

    /// The best validation.
    pub(super) fn best(&self) -> Option<&Validation> {
        self.validations.iter().rev().find(|validation| validation.best)
    }

    /// What the mixture's weights belong to, in their order; nothing without a mixture.
    pub(super) fn columns(&self) -> Vec<String> {
        let weights = self.best().map_or(0, |best| best.attention.len());
        let mut names: Vec<String> = self.sources.clone();
        names.push(TARGET.to_owned());
        names.truncate(weights);
        names
    }

    /// Weights in the order of `columns`, some of which the run may not have.
    pub(super) fn by_column(&self, weights: &[f64], columns: &[String]) -> Vec<Option<f64>> {
        let own = self.columns();
        columns
            .iter()
            .map(|column| weights.get(own.iter().position(|name| name == column)?).copied())
            .collect()
    }

    /// A sentence on how the mixture differs between the validation rows of the best step; `None` where there is no mixture,
    /// or the log is of a version that did not say.
    pub(super) fn attention_spread(&self) -> Option<String> {
        let best = self.best().filter(|best| !best.attention_std.is_empty())?;
        let spread = AttentionSpread::of_means(&best.attention, &best.attention_std, best.attention_minority);
        let mut text = format!(
            "Weights over all validation rows, mean and standard deviation: {}; the largest source is another than the \
             commonest for {:.0} % of the rows.",
            spread.describe(&self.columns()),
            100.0 * spread.minority
        );
        if self.saved.config.scorer.reads_input() && spread.is_constant() {
            text.push_str(&format!(" Note: {}.", spread.constant_warning()));
        }
        Some(text)
    }

    /// Whether it has examples with their mixture.
    pub(super) fn explains(&self) -> bool {
        self.examples.first().is_some_and(|example| !example.attention.is_empty())
    }
}

/// The best prompt in a run's folder, or those of its several tasks by name.
fn target_prompts(folder: &Path) -> Result<Vec<(Option<String>, Prompt)>> {
    let one = folder.join("prompt.safetensors");
    if one.exists() {
        return Ok(vec![(None, Prompt::load(&one)?)]);
    }
    let Ok(entries) = std::fs::read_dir(folder.join("prompts")) else { return Ok(Vec::new()) };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort();
    let named = |path: &std::path::PathBuf| {
        let prompt = Prompt::load(path)?;
        Ok((Some(prompt.name().to_owned()), prompt))
    };
    paths.iter().map(named).collect()
}

/// Adds task and number to a name that another run has too.
pub(super) fn name_apart(runs: &mut [History]) {
    for index in 1..runs.len() {
        let same = runs[..index].iter().filter(|run| run.name == runs[index].name).count();
        if same > 0 {
            let task = runs[index].saved.config.task.clone();
            runs[index].name = format!("{} {task} ({})", runs[index].name, same + 1);
        }
    }
}

/// The lines of a file, but for a last one that is not yet whole.
fn lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read(path).map_err(|source| Error::file("read", path, source))?;
    let text = String::from_utf8_lossy(&text);
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let lines = text[..whole].lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| {
                let advice = "the log was damaged or edited";
                Error::format(path, Some(index as u64 + 1), "a record of the run", error.to_string(), advice)
            })
        })
        .collect()
}
