//! Pearson's and Spearman's correlation.

/// The number an invalid generation stands for in a correlation: T5's own choice, outside STS-B's 0 to 5, so that
/// nonsense costs and no row is left out.
pub const INVALID: f64 = -1.0;

/// Pearson's correlation in -1..=1. `None` where it is not defined: fewer than two pairs, slices of unequal length, a
/// constant side, or a value that is not finite.
pub fn pearson(predictions: &[f64], references: &[f64]) -> Option<f64> {
    if predictions.len() != references.len() || predictions.len() < 2 {
        return None;
    }
    let x = centred(predictions)?;
    let y = centred(references)?;
    let product = sum(x.iter().zip(&y).map(|(x, y)| x * y));
    Some(product.clamp(-1.0, 1.0))
}

/// Spearman's correlation: [`pearson`] of the ranks, equal values sharing the mean of their ranks. `None` as there.
pub fn spearman(predictions: &[f64], references: &[f64]) -> Option<f64> {
    if predictions.iter().chain(references).any(|value| !value.is_finite()) {
        return None;
    }
    pearson(&ranks(predictions), &ranks(references))
}

/// Deviations from the mean, divided by their Euclidean length. Each side is scaled before the product is formed, so
/// that no square of a large or tiny number enters it.
fn centred(values: &[f64]) -> Option<Vec<f64>> {
    if values.iter().any(|value| !value.is_finite()) || values.iter().all(|value| *value == values[0]) {
        return None;
    }
    // Halves keep the sum of the largest numbers of f64 finite.
    let count = values.len() as f64;
    let mean = sum(values.iter().map(|value| value / count));
    let mut deviations: Vec<f64> = values.iter().map(|value| value - mean).collect();
    let largest = deviations.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    if !(largest > 0.0 && largest.is_finite()) {
        return None;
    }
    deviations.iter_mut().for_each(|value| *value /= largest);
    let length = sum(deviations.iter().map(|value| value * value)).sqrt();
    deviations.iter_mut().for_each(|value| *value /= length);
    Some(deviations)
}

/// Ranks from 1; ties share the mean of the ranks they take up.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    // `==` and not the bit pattern decides a tie: 0.0 and -0.0 are one value.
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]).scan(0, |before, tied| {
        *before += tied.len();
        Some((*before, tied))
    }) {
        let (last, tied) = tied;
        let first = last - tied.len() + 1;
        let rank = (first + last) as f64 / 2.0;
        tied.iter().for_each(|index| ranks[*index] = rank);
    }
    ranks
}

/// Neumaier's compensated sum: the error does not grow with the number of terms.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut total, mut lost) = (0.0_f64, 0.0_f64);
    for value in values {
        let next = total + value;
        lost += if total.abs() >= value.abs() { (total - next) + value } else { (value - next) + total };
        total = next;
    }
    total + lost
}
