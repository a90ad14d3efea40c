//! Means, standard deviations and paired differences.

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

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand, with 2.776445 as tables of Student's t have it for four degrees of freedom at 0.975.
    #[test]
    fn a_paired_interval_is_that_of_the_t_table() {
        let (a, b) = ([0.98, 0.95, 0.99, 0.97, 0.96], [0.90, 0.93, 0.91, 0.96, 0.88]);
        let paired = Paired::new(&a, &b);
        assert!((paired.mean - 0.054).abs() < 1e-12);
        let expected = [0.009_576_88, 0.098_423_12];
        for (found, expected) in paired.interval.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} and not {expected}");
        }
    }

    #[test]
    fn one_pair_says_nothing_of_its_spread() {
        let paired = Paired::new(&[0.5], &[0.25]);
        assert_eq!(paired.mean, 0.25);
        assert!(paired.interval[1].is_infinite());
    }
}
