//! What a run says while it goes: a record a step, a record a validation.

use serde::{Deserialize, Serialize};

use crate::count::counted;
use crate::evaluate::{AttentionSpread, Evaluation};
use crate::tasks::Task;

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Counted from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Epochs begun, counted from 1.
    pub epoch: u64,
    /// Mean cross entropy over the step's label tokens.
    pub loss: f64,
    /// L2 norm of the gradient before the clip.
    pub gradient_norm: f64,
    /// The prompt's learning rate.
    pub learning_rate: f64,
    /// The scorer's learning rate.
    pub scorer_learning_rate: f64,
    /// Wall time of the step: the mean over the steps that were issued together, before the device was asked what they came
    /// to.
    pub milliseconds: f64,
    /// Runs whose examples were in the step's batch: its wall time is that of all of them together. Not in the log where it
    /// is 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub sharing_runs: usize,
    /// Source and target tokens a second over the same steps; prompt rows do not count.
    pub tokens_per_second: f64,
    /// Mean over the batch of -sum_j a_j ln a_j; `None` without a scorer.
    pub attention_entropy: Option<f64>,
}

fn one() -> usize {
    1
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

impl StepRecord {
    /// What is worth a curve, by TensorBoard's tags.
    pub(super) fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars: Vec<(String, f64)> = [
            ("train/loss", self.loss),
            ("train/gradient_norm", self.gradient_norm),
            ("train/learning_rate", self.learning_rate),
            ("train/scorer_learning_rate", self.scorer_learning_rate),
            ("train/tokens_per_second", self.tokens_per_second),
        ]
        .map(|(tag, value)| (tag.to_owned(), value))
        .into();
        scalars.extend(self.attention_entropy.map(|entropy| ("train/attention_entropy".to_owned(), entropy)));
        scalars
    }
}

impl StepRecord {
    /// A line of text, with the learning rates of what trains alone.
    pub(super) fn line(&self, trains_prompt: bool, trains_scorer: bool) -> String {
        let (prompt, scorer) = (self.learning_rate, self.scorer_learning_rate);
        let rates = match (trains_prompt, trains_scorer) {
            (true, true) => format!(" rate {prompt:.3e}/{scorer:.3e}"),
            (true, false) => format!(" rate {prompt:.3e}"),
            (false, true) => format!(" scorer rate {scorer:.3e}"),
            (false, false) => String::new(),
        };
        let sharing =
            if self.sharing_runs > 1 { format!(" for {} runs", self.sharing_runs) } else { String::new() };
        let entropy =
            self.attention_entropy.map_or_else(String::new, |entropy| format!(" entropy {entropy:.4}"));
        format!(
            "step {}/{} loss {:.4} gradient {:.3e}{rates} {:.1} ms{sharing} {:.0} tokens/s{entropy}",
            self.step, self.steps, self.loss, self.gradient_norm, self.milliseconds, self.tokens_per_second
        )
    }
}

/// With both learning rates; the record does not know what trains.
impl std::fmt::Display for StepRecord {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.line(true, true))
    }
}

/// One task's part in a validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The task's name.
    pub task: String,
    /// Each metric's name and value.
    pub metrics: Vec<(String, Option<f64>)>,
    /// The mean of the metrics.
    pub mean: f64,
    /// The mixture over the task's validation rows.
    #[serde(flatten)]
    pub spread: AttentionSpread,
    /// Generations that are no label of the task.
    pub invalid: usize,
}

impl TaskRecord {
    pub(super) fn new((task, evaluation): (&Task, &Evaluation)) -> Self {
        let metrics = &evaluation.scores.values;
        Self {
            task: task.name.clone(),
            metrics: metrics.iter().map(|(metric, value)| (metric.to_string(), *value)).collect(),
            mean: evaluation.scores.mean().unwrap_or(f64::NAN),
            spread: evaluation.spread.clone(),
            invalid: evaluation.scores.invalid,
        }
    }
}

/// One validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Steps before it.
    pub step: u64,
    /// Each metric's name and value; with several tasks the name is that of the task and the metric's.
    pub metrics: Vec<(String, Option<f64>)>,
    /// The mean over the tasks of the mean of their metrics: what the best is chosen by.
    pub mean: f64,
    /// Whether it is the best so far.
    pub best: bool,
    /// What the weights of a mixture belong to: the sources, then `target`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// The mixture over the validation rows of each task, averaged over the tasks.
    #[serde(flatten)]
    pub spread: AttentionSpread,
    /// Generations that are no label of their task.
    pub invalid: usize,
    /// Each task's part, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskRecord>,
}

impl ValidationRecord {
    pub(super) fn new(
        step: u64,
        mean: f64,
        best: bool,
        prompts: Vec<String>,
        mut tasks: Vec<TaskRecord>,
    ) -> Self {
        let several = tasks.len() > 1;
        let of = |task: &TaskRecord| if several { format!("{} ", task.task) } else { String::new() };
        let named = |task: &TaskRecord| {
            let metrics = task.metrics.iter().map(|(name, value)| (format!("{}{name}", of(task)), *value));
            metrics.collect::<Vec<_>>()
        };
        let spread = AttentionSpread::average(&tasks.iter().map(|task| &task.spread).collect::<Vec<_>>());
        let metrics = tasks.iter().flat_map(named).collect();
        let invalid = tasks.iter().map(|task| task.invalid).sum();
        if !several {
            tasks.clear();
        }
        Self { step, metrics, mean, best, prompts, spread, invalid, tasks }
    }

    /// The names of the metrics that are not defined.
    pub(super) fn undefined(&self) -> Vec<String> {
        let undefined = self.metrics.iter().filter(|(_, value)| value.is_none());
        undefined.map(|(name, _)| name.clone()).collect()
    }
}

impl ValidationRecord {
    /// What is worth a curve, by TensorBoard's tags.
    pub(super) fn scalars(&self) -> Vec<(String, f64)> {
        let metrics = self.metrics.iter().filter_map(|(name, value)| {
            value.map(|value| (format!("validation/{}", name.replace(' ', "_")), value))
        });
        let named = |of: &'static str, values: &[f64]| {
            let tags = self.prompts.iter().map(move |prompt| format!("{of}/{}", prompt.replace(' ', "_")));
            tags.zip(values.to_vec()).collect::<Vec<_>>()
        };
        let minority = (!self.spread.mean.is_empty())
            .then(|| ("validation/attention_minority".to_owned(), self.spread.minority));
        metrics
            .chain(named("attention", &self.spread.mean))
            .chain(named("attention_std", &self.spread.standard_deviation))
            .chain(minority)
            .collect()
    }
}

impl std::fmt::Display for ValidationRecord {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "validation at step {}:", self.step)?;
        for (name, value) in &self.metrics {
            match value {
                Some(value) => write!(formatter, " {name} {value:.4}")?,
                None => write!(formatter, " {name} undefined")?,
            }
        }
        if self.invalid > 0 {
            let are = if self.invalid == 1 { "is" } else { "are" };
            write!(formatter, " ({} {are} no label)", counted(self.invalid, "answer"))?;
        }
        if self.tasks.len() > 1 {
            write!(formatter, ", mean {:.4}", self.mean)?;
        }
        write!(formatter, "{}", if self.best { " best so far" } else { "" })?;
        for task in &self.tasks {
            write_attention(formatter, &format!("{}: ", task.task), &self.prompts, &task.spread)?;
        }
        if self.tasks.is_empty() {
            write_attention(formatter, "", &self.prompts, &self.spread)?;
        }
        Ok(())
    }
}

fn write_attention(
    formatter: &mut std::fmt::Formatter<'_>,
    of: &str,
    prompts: &[String],
    spread: &AttentionSpread,
) -> std::fmt::Result {
    if spread.mean.is_empty() {
        return Ok(());
    }
    write!(formatter, "; {of}attention {}", spread.describe(prompts))?;
    write!(formatter, "; another largest source for {:.0} % of the rows", 100.0 * spread.minority)
}

/// Who listens to a run.
pub trait Monitor {
    /// What follows is of the run of this name, of those that share a batch; of all of them for `None`.
    fn of_run(&mut self, _: Option<&str>) {}
    /// A step was taken.
    fn step(&mut self, _: &StepRecord) {}
    /// So many of so many validation examples are answered.
    fn validating(&mut self, _: usize, _: usize) {}
    /// A validation is done.
    fn validated(&mut self, _: &ValidationRecord) {}
    /// Something the user should know.
    fn note(&mut self, text: &str);
    /// Whether the run is to end after the step at hand, with a checkpoint.
    fn ends(&mut self) -> bool {
        false
    }
    /// Whether the run is to end before its first step, asked while rows are read, when nothing has been written.
    fn ends_before_first_step(&mut self) -> bool {
        self.ends()
    }
}

/// Nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn note(&mut self, _: &str) {}
}
