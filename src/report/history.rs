//! What a run folder says of its run.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::evaluate::AttentionSpread;
use crate::experiment::FewShotRuns;
use crate::files;
use crate::prompts::Prompt;
use crate::train::{
    EvaluationRecord, Evaluations, ExampleRecord, FoundRun, RunFolder, RunManifest, TaskRecord, source_names,
};

/// What the mixture's own part is called.
pub(super) const TARGET: &str = "own target";

/// A run, read back.
pub(super) struct History {
    pub(super) name: String,
    pub(super) saved: RunManifest,
    /// Numbers that train; `None` if an older version wrote the folder and nothing was validated yet.
    pub(super) trained: Option<usize>,
    /// What it came to on test rows, where those were evaluated.
    pub(super) test: Option<Test>,
    pub(super) steps: Vec<Step>,
    pub(super) validations: Vec<Validation>,
    pub(super) examples: Vec<ExampleRecord>,
    pub(super) sources: Vec<String>,
    /// The sources that are still where they were.
    pub(super) source_prompts: Vec<(String, Prompt)>,
    /// What it learnt; with several tasks each under the task's name.
    pub(super) target_prompts: Vec<(Option<String>, Prompt)>,
}

/// What a run came to on test rows.
pub(super) struct Test {
    /// Each metric's name and value, named as in validation.
    pub(super) metrics: Vec<(String, Option<f64>)>,
    /// Answers that are no label, where that is known.
    pub(super) invalid: Option<usize>,
    /// What a reader must know of these numbers, if anything.
    pub(super) remark: Option<String>,
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
    /// Not in logs of older versions.
    #[serde(default)]
    pub(super) scorer_learning_rate: Option<f64>,
    pub(super) milliseconds: f64,
    /// Runs that shared the step's batch and its time.
    #[serde(default = "one")]
    pub(super) sharing_runs: usize,
}

fn one() -> usize {
    1
}

/// A validation of the log.
#[derive(Deserialize)]
pub(super) struct Validation {
    pub(super) step: u64,
    pub(super) metrics: Vec<(String, Option<f64>)>,
    #[serde(deserialize_with = "or_nan")]
    pub(super) mean: f64,
    pub(super) best: bool,
    #[serde(flatten)]
    pub(super) spread: AttentionSpread,
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
    /// Reads the run that was found, which may still be going on.
    pub(super) fn read(found: FoundRun) -> Result<Self> {
        let FoundRun { name, path } = found;
        let folder = path.as_path();
        let saved = RunFolder::saved(folder)?;
        let trained = RunFolder::trained_numbers(folder, &saved)?;
        let (mut steps, mut validations) = (Vec::new(), Vec::new());
        for line in lines(&folder.join("log.jsonl"))? {
            match line {
                Line::Step(step) => steps.push(step),
                Line::Validation(validation) => validations.push(validation),
            }
        }
        let examples = lines(&folder.join("examples.jsonl"))?;
        let sources = source_names(&saved.config.sources);
        // A source that has moved since is left out of the comparison; the run itself does not need it to be shown.
        let source_prompts = sources.iter().zip(&saved.config.sources);
        let source_prompts = source_prompts
            .filter_map(|(name, path)| Some((name.clone(), Prompt::load(path).ok()?)))
            .collect();
        let target_prompts = target_prompts(folder)?;
        let mut history = Self {
            name,
            saved,
            trained,
            test: None,
            steps,
            validations,
            examples,
            sources,
            source_prompts,
            target_prompts,
        };
        history.test = match history.test_of(&Evaluations::read(folder)?) {
            None => few_shot_test(folder)?,
            test => test,
        };
        Ok(history)
    }

    /// What `promptmix evaluate` found on test rows: as the run itself gets its answers, if it was evaluated so.
    fn test_of(&self, stored: &Evaluations) -> Option<Test> {
        let own = self.saved.config.decoding;
        let on_test = || stored.evaluations.iter().filter(|record| record.split.name() == "test");
        let decoding = on_test().map(|record| record.decoding).find(|decoding| *decoding == own);
        let decoding = decoding.or_else(|| on_test().next().map(|record| record.decoding))?;
        let records: Vec<&EvaluationRecord> =
            on_test().filter(|record| record.decoding == decoding).collect();
        let several = self.saved.config.is_multi_task();
        let named = |record: &EvaluationRecord| {
            let of = if several { format!("{} ", record.task) } else { String::new() };
            let metrics = record.metrics.iter().map(|(name, value)| (format!("{of}{name}"), *value));
            metrics.collect::<Vec<_>>()
        };
        let best = self.best().map(|best| best.step);
        let is_outdated = records.iter().any(|record| best.is_some_and(|best| record.best_step != best));
        let mut remarks = Vec::new();
        if decoding != own {
            remarks.push(format!("answers by {} decoding", text(&json(&decoding))));
        }
        if is_outdated {
            remarks.push("of an earlier best step: evaluate again".to_owned());
        }
        Some(Test {
            metrics: records.iter().flat_map(|record| named(record)).collect(),
            invalid: Some(records.iter().map(|record| record.invalid).sum()),
            remark: (!remarks.is_empty()).then(|| remarks.join("; ")),
        })
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

    /// The mixture of each task at the best step, under the task's name where there are several; nothing without a mixture.
    pub(super) fn attention(&self) -> Vec<(Option<&str>, &[f64])> {
        match self.best() {
            Some(best) if !best.spread.mean.is_empty() && best.tasks.is_empty() => {
                vec![(None, best.spread.mean.as_slice())]
            }
            Some(best) => {
                let tasks = best.tasks.iter().filter(|task| !task.spread.mean.is_empty());
                tasks.map(|task| (Some(task.task.as_str()), task.spread.mean.as_slice())).collect()
            }
            None => Vec::new(),
        }
    }

    /// What the mixture's weights belong to, in their order; nothing without a mixture.
    pub(super) fn columns(&self) -> Vec<String> {
        let weights = self.best().map_or(0, |best| best.spread.mean.len());
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
        let spread = &self.best().filter(|best| !best.spread.standard_deviation.is_empty())?.spread;
        let mut text = format!(
            "Weights over all validation rows, mean and standard deviation: {}; the largest source is another than the \
             commonest for {:.0} % of the rows.",
            spread.describe(&self.columns()),
            100.0 * spread.minority
        );
        if self.saved.config.scorer.reads_input() && spread.is_constant() {
            text.push_str(&format!(" Note: {}.", spread.constant_warning(&self.saved.config)));
        }
        Some(text)
    }

    /// Whether it has examples with their mixture.
    pub(super) fn explains(&self) -> bool {
        self.examples.first().is_some_and(|example| !example.attention.is_empty())
    }
}

/// A value as it stands in files.
pub(super) fn json(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// A setting as a reader would write it.
pub(super) fn text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "default".into(),
        serde_json::Value::String(text) if text.is_empty() => "none".into(),
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(values) if values.is_empty() => "none".into(),
        serde_json::Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// What the summary of few-shot runs, beside a draw's folder, says of its test rows.
fn few_shot_test(folder: &Path) -> Result<Option<Test>> {
    let Ok(whole) = folder.canonicalize() else { return Ok(None) };
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else { return Ok(None) };
    let Some(runs) = FewShotRuns::saved(parent)? else { return Ok(None) };
    let draw = runs.draws.into_iter().find(|draw| draw.folder.as_os_str() == name && !draw.test.is_empty());
    Ok(draw.map(|draw| Test { metrics: draw.test, invalid: None, remark: None }))
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

/// The lines of a file, but for a last one that is not yet whole; none where a run that is just beginning has no such file.
fn lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>> {
    let Some(text) = files::read(path)? else { return Ok(Vec::new()) };
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
