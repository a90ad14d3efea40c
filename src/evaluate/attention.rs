//! How a mixture's weights differ from example to example.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::config::{Preset, RunConfig};

/// Prompts whose weights are written out in one line at most.
const SHOWN: usize = 8;
/// Standard deviation below which a weight counts as the same for every example: the second digit does not change.
const CONSTANT: f64 = 0.005;

/// Mean and spread over examples of the weights of a mixture, with the keys of a run's log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AttentionSpread {
    /// The mean weight of each prompt, sources first; empty without a mixture.
    #[serde(rename = "attention")]
    pub mean: Vec<f64>,
    /// The standard deviation of each prompt's weight, over the number of examples; empty in logs of older versions.
    #[serde(rename = "attention_std", default)]
    pub standard_deviation: Vec<f64>,
    /// The source that is the largest most often; `None` without sources or examples, and of a log, which does not say.
    #[serde(skip)]
    pub commonest: Option<usize>,
    /// The share of examples whose largest source is another.
    #[serde(rename = "attention_minority", default)]
    pub minority: f64,
}

impl AttentionSpread {
    /// Of the weights of each example, the first `sources` of which are the sources'.
    pub fn new(rows: &[Vec<f64>], sources: usize) -> Self {
        let width = rows.first().map_or(0, Vec::len);
        let count = rows.len().max(1) as f64;
        let mut mean = vec![0.0; width];
        for row in rows {
            mean.iter_mut().zip(row).for_each(|(mean, weight)| *mean += weight / count);
        }
        let mut variance = vec![0.0; width];
        for row in rows {
            let differences = row.iter().zip(&mean).map(|(weight, mean)| weight - mean);
            variance
                .iter_mut()
                .zip(differences)
                .for_each(|(sum, difference)| *sum += difference.powi(2) / count);
        }
        let standard_deviation = variance.into_iter().map(f64::sqrt).collect();
        let sources = sources.min(width);
        let mut times = vec![0_usize; sources];
        for row in rows {
            if let Some(largest) = largest(&row[..sources]) {
                times[largest] += 1;
            }
        }
        let commonest = largest(&times.iter().map(|&times| times as f64).collect::<Vec<_>>());
        let minority = commonest.map_or(0.0, |source| 1.0 - times[source] as f64 / count);
        Self { mean, standard_deviation, commonest, minority }
    }

    /// From numbers that do not say which source is the commonest.
    pub fn of_means(mean: Vec<f64>, standard_deviation: Vec<f64>, minority: f64) -> Self {
        Self { mean, standard_deviation, commonest: None, minority }
    }

    /// The mean of several, all of as many prompts.
    pub(crate) fn average(spreads: &[&Self]) -> Self {
        let count = spreads.len().max(1) as f64;
        let average = |of: fn(&Self) -> &[f64]| {
            let mut mean = vec![0.0; spreads.first().map_or(0, |first| of(first).len())];
            for spread in spreads {
                mean.iter_mut().zip(of(spread)).for_each(|(mean, value)| *mean += value / count);
            }
            mean
        };
        let minority = spreads.iter().map(|spread| spread.minority).sum::<f64>() / count;
        Self::of_means(average(|of| &of.mean), average(|of| &of.standard_deviation), minority)
    }

    /// Whether no weight differs between examples by more than the second digit.
    pub fn is_constant(&self) -> bool {
        !self.standard_deviation.is_empty()
            && self.standard_deviation.iter().all(|deviation| *deviation < CONSTANT)
    }

    /// The weights in a line, `film 0.42 ± 0.08, ..`, by the prompts' `names`; with many, those of the largest mean.
    pub fn describe(&self, names: &[String]) -> String {
        let mut order: Vec<usize> = (0..self.mean.len()).collect();
        if order.len() > SHOWN {
            order.sort_by(|&a, &b| self.mean[b].total_cmp(&self.mean[a]));
        }
        let mut text = String::new();
        for &prompt in order.iter().take(SHOWN) {
            let comma = if text.is_empty() { "" } else { ", " };
            let name = names.get(prompt).map_or("?", String::as_str);
            let (mean, deviation) = (self.mean[prompt], self.standard_deviation.get(prompt));
            let deviation = deviation.copied().unwrap_or(f64::NAN);
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}{name} {mean:.2} ± {deviation:.2}");
        }
        if order.len() > SHOWN {
            let _ = write!(text, " and {} more", order.len() - SHOWN);
        }
        text
    }

    /// A sentence on which source is the largest; empty where there are fewer than two.
    pub fn describe_largest(&self, names: &[String]) -> String {
        match self.commonest.and_then(|source| names.get(source)) {
            Some(name) => format!(
                "the largest source is {name} for {:.0} % of the rows and another for {:.0} %",
                100.0 * (1.0 - self.minority),
                100.0 * self.minority
            ),
            None => String::new(),
        }
    }

    /// What to tell the user of a mixture that is the same for every example, though its scorer reads the input: what a run by other
    /// settings than `config` could do about it.
    pub fn constant_warning(&self, config: &RunConfig) -> String {
        let most = self.standard_deviation.iter().copied().fold(0.0, f64::max);
        let mut ways = Vec::new();
        if !config.standardizes_inputs() {
            if config.preset != Preset::Tuned {
                ways.push("with --preset tuned (standardized inputs and a scorer rate of 0.01)".to_owned());
            }
            ways.push("with --standardize-inputs".to_owned());
        }
        let rate = config.scorer_learning_rate();
        let tuned = RunConfig { preset: Preset::Tuned, scorer_learning_rate: None, ..config.clone() };
        if config.freeze_scorer {
            ways.push("without --freeze-scorer".to_owned());
        } else if rate == 0.0 {
            ways.push("with a --scorer-learning-rate above 0".to_owned());
        } else if rate > tuned.scorer_learning_rate() {
            ways.push(format!("with a --scorer-learning-rate below {rate}"));
        }
        if !config.freeze_scorer && rate > 0.0 {
            ways.push("for more steps".to_owned());
        }
        format!(
            "the mixture is the same for every example: no weight has a standard deviation above {most:.4}. Train {}; --scorer \
             constant learns a fixed mixture with a number a prompt, which is as good where all rows ask the same",
            ways.join(", or ")
        )
    }
}

/// The index of the largest, the first of equals; `None` of nothing.
fn largest(values: &[f64]) -> Option<usize> {
    (0..values.len()).reduce(|best, other| if values[other] > values[best] { other } else { best })
}
