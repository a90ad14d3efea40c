//! Means and standard deviations over runs, and paired differences of two methods.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of a sample: over one less than there are values; 0 of a single one.
pub fn standard_deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt()
}

/// The index of the largest, the first of equals; numbers that are none lose.
pub(crate) fn first_best(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, other| {
        if values[other] > values[best] || values[best].is_nan() { other } else { best }
    })
}

/// A number over several runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Spread {
    /// What it is.
    pub name: String,
    /// The mean.
    pub mean: f64,
    /// The standard deviation, of a sample: over one less than there are runs; 0 of one.
    pub deviation: f64,
}

impl Spread {
    /// The spread of `values`.
    pub fn new(name: impl Into<String>, values: &[f64]) -> Self {
        Self { name: name.into(), mean: mean(values), deviation: standard_deviation(values) }
    }
}

/// The differences of two methods, a pair a place.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Paired {
    /// The mean difference.
    pub mean: f64,
    /// Its 95 % interval, by Student's t over the pairs; infinite for a single pair.
    pub interval: [f64; 2],
    /// The standard deviation of the differences.
    pub standard_deviation: f64,
}

impl Paired {
    /// Of `ours` less `theirs`, value by value.
    pub fn new(ours: &[f64], theirs: &[f64]) -> Self {
        let differences: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours - theirs).collect();
        let (mean, deviation) = (mean(&differences), standard_deviation(&differences));
        let count = differences.len() as f64;
        let half = match StudentsT::new(0.0, 1.0, count - 1.0) {
            Ok(t) => t.inverse_cdf(0.975) * deviation / count.sqrt(),
            Err(_) => f64::INFINITY,
        };
        Self { mean, interval: [mean - half, mean + half], standard_deviation: deviation }
    }
}
