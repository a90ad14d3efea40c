//! What a run says while it goes: a record a step, a record a validation.

use serde::{Deserialize, Serialize};

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
    /// Wall time of the step.
    pub milliseconds: f64,
    /// Source and target tokens a second; prompt rows do not count.
    pub tokens_per_second: f64,
    /// Mean over the batch of -sum_j a_j ln a_j; `None` without a scorer.
    pub attention_entropy: Option<f64>,
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

impl std::fmt::Display for StepRecord {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "step {}/{} loss {:.4} gradient {:.3e} rate {:.3e}/{:.3e} {:.1} ms {:.0} tokens/s",
            self.step,
            self.steps,
            self.loss,
            self.gradient_norm,
            self.learning_rate,
            self.scorer_learning_rate,
            self.milliseconds,
            self.tokens_per_second
        )?;
        match self.attention_entropy {
            Some(entropy) => write!(formatter, " entropy {entropy:.4}"),
            None => Ok(()),
        }
    }
}

/// One validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Steps before it.
    pub step: u64,
    /// Each metric's name and value.
    pub metrics: Vec<(String, Option<f64>)>,
    /// The mean of the metrics: what the best is chosen by.
    pub mean: f64,
    /// Whether it is the best so far.
    pub best: bool,
    /// The mixture averaged over the validation rows, the target prompt last.
    pub attention: Vec<f64>,
    /// Generations that are no label of the task.
    pub invalid: usize,
}

impl ValidationRecord {
    /// What is worth a curve, by TensorBoard's tags.
    pub(super) fn scalars(&self) -> Vec<(String, f64)> {
        let metrics = self.metrics.iter().filter_map(|(name, value)| {
            value.map(|value| (format!("validation/{}", name.replace(' ', "_")), value))
        });
        let last = self.attention.len().saturating_sub(1);
        let attention = self.attention.iter().enumerate().map(|(index, &weight)| {
            let prompt = if index == last { "target".to_owned() } else { format!("source_{}", index + 1) };
            (format!("attention/{prompt}"), weight)
        });
        metrics.chain(attention).collect()
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
            write!(formatter, " ({} answers are no label)", self.invalid)?;
        }
        write!(formatter, "{}", if self.best { " best so far" } else { "" })
    }
}

/// Who listens to a run.
pub trait Monitor {
    /// A step was taken.
    fn step(&mut self, record: &StepRecord);
    /// `done` of `examples` validation examples are answered.
    fn validating(&mut self, done: usize, examples: usize);
    /// A validation is done.
    fn validated(&mut self, record: &ValidationRecord);
    /// Something the user should know.
    fn note(&mut self, text: &str);
}

/// Nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn step(&mut self, _: &StepRecord) {}
    fn validating(&mut self, _: usize, _: usize) {}
    fn validated(&mut self, _: &ValidationRecord) {}
    fn note(&mut self, _: &str) {}
}
