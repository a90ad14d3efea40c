//! Accuracy, F1 and Matthews correlation over class indices. A prediction of `None` is a generation outside the label
//! set: wrong, and of no class.
//!
//! Slices of one call have equal lengths; [`evaluate`](super::evaluate) checks it, and a longer slice's surplus is
//! ignored here.

use std::collections::{BTreeMap, HashMap};

/// Share of predictions equal to their label; `None` without examples.
pub fn accuracy(predictions: &[Option<u32>], labels: &[u32]) -> Option<f64> {
    let examples = predictions.len().min(labels.len());
    let right =
        predictions.iter().zip(labels).filter(|(prediction, label)| **prediction == Some(**label)).count();
    (examples > 0).then(|| right as f64 / examples as f64)
}

/// F1 of class `positive`: `2·tp / (2·tp + fp + fn)`, and 0 where the class occurs in neither slice.
///
/// An invalid prediction for a positive example is a miss; for a negative one it is no false alarm. `None` without
/// examples.
pub fn f1(predictions: &[Option<u32>], labels: &[u32], positive: u32) -> Option<f64> {
    if predictions.is_empty() || labels.is_empty() {
        return None;
    }
    let (mut both, mut predicted, mut actual) = (0_u64, 0_u64, 0_u64);
    for (prediction, label) in predictions.iter().zip(labels) {
        let is_predicted = *prediction == Some(positive);
        let is_actual = *label == positive;
        both += u64::from(is_predicted && is_actual);
        predicted += u64::from(is_predicted);
        actual += u64::from(is_actual);
    }
    Some(if predicted + actual == 0 { 0.0 } else { 2.0 * both as f64 / (predicted + actual) as f64 })
}

/// Mean of [`f1`] over classes 0 to `classes` - 1, each counted whether it occurs or not; `None` without examples.
pub fn macro_f1(predictions: &[Option<u32>], labels: &[u32], classes: u32) -> Option<f64> {
    let mut sum = 0.0;
    for class in 0..classes {
        sum += f1(predictions, labels, class)?;
    }
    (classes > 0).then(|| sum / f64::from(classes))
}

/// Matthews correlation of any number of classes (Gorodkin 2004), invalid predictions being one class more.
///
/// 0 where predictions or labels are all of one class; `None` without examples.
pub fn matthews(predictions: &[Option<u32>], labels: &[u32]) -> Option<f64> {
    let examples = predictions.len().min(labels.len()) as f64;
    if examples == 0.0 {
        return None;
    }
    // Ordered maps, so that the sums run in one order on every machine.
    let mut predicted: BTreeMap<Option<u32>, f64> = BTreeMap::new();
    let mut actual: BTreeMap<Option<u32>, f64> = BTreeMap::new();
    let mut right = 0.0;
    for (prediction, label) in predictions.iter().zip(labels) {
        *predicted.entry(*prediction).or_default() += 1.0;
        *actual.entry(Some(*label)).or_default() += 1.0;
        right += f64::from(u8::from(*prediction == Some(*label)));
    }
    // Counts are whole numbers, so every product below is exact up to 2^53.
    let squares =
        |counts: &BTreeMap<Option<u32>, f64>| counts.values().map(|count| count * count).sum::<f64>();
    let shared: f64 =
        actual.iter().map(|(class, count)| count * predicted.get(class).copied().unwrap_or(0.0)).sum();
    let covariance = right * examples - shared;
    let spread = (examples * examples - squares(&predicted)) * (examples * examples - squares(&actual));
    Some(if spread == 0.0 { 0.0 } else { covariance / spread.sqrt() })
}

/// Share of groups in which every prediction is right; `None` without examples.
pub fn group_exact_match(predictions: &[Option<u32>], labels: &[u32], groups: &[u32]) -> Option<f64> {
    let mut right: HashMap<u32, bool> = HashMap::new();
    for ((prediction, label), group) in predictions.iter().zip(labels).zip(groups) {
        *right.entry(*group).or_insert(true) &= *prediction == Some(*label);
    }
    let whole = right.values().filter(|right| **right).count();
    (!right.is_empty()).then(|| whole as f64 / right.len() as f64)
}
