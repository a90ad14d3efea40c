//! Operands and results of ops, and how closely f32 must follow f64.

use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Rows};
use promptmix::backend::{
    Batch, Device, DropoutStep, Embedding, EmbeddingOps, Example, Format, Mask, Readers, Residual, Side, Site,
};
use promptmix::verify::{Tolerance, compare};

use crate::random::Random;

/// Poisoned buffers: what an op reads before writing shows as NaN.
pub fn cpu() -> Cpu<f32> {
    Cpu::poisoning(Some(2)).expect("threads")
}

/// Numbers that f32 holds exactly, so that only the op itself rounds.
pub fn numbers(seed: u64, count: usize, deviation: f64) -> Vec<f64> {
    Random::new(seed).normals(count, deviation).into_iter().map(|value| f64::from(value as f32)).collect()
}

pub fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// An activation that holds `values`: the rows of a table, looked up in order.
pub fn rows(cpu: &Cpu<f32>, values: &[f64], width: usize) -> Result<Rows<f32>> {
    let count = values.len() / width;
    let table = cpu.weight(narrowed(values), count, width, Readers::Many)?;
    let target = (1..=count as u32).map(|id| id.min(count as u32 - 1)).collect();
    let example = Example { source: vec![0], target, ..Example::default() };
    let lookup = Batch::pack(&[example], 1, 0, count)?;
    let x = cpu.rows(count, width, Format::Float)?;
    let mut residual = Residual { x, r: cpu.rows(count, 1, Format::Norm)? };
    let (table, batch, side) = (&table, &lookup, Side::Decoder);
    cpu.embed(Embedding { table, batch, side, mask: None, epsilon: 1e-6 }, &mut residual)?;
    Ok(residual.x)
}

/// One example that should say `labels`, each row's loss weighted.
pub fn labelled(labels: &[u32], weights: &[f64], vocabulary: usize) -> Batch {
    let example = Example { source: vec![0], target: labels.to_vec(), ..Example::default() };
    let batch = Batch::pack(&[example], 1, 0, vocabulary).expect("a batch");
    batch.weighted(weights.to_vec()).expect("a weight a row")
}

/// Examples of the given source and target lengths before prompts of `prompt_length`.
pub fn batch(lengths: &[(usize, usize)], prompt_length: usize) -> Batch {
    let lengths = lengths.iter().enumerate();
    let examples: Vec<Example> = lengths
        .map(|(index, &(n, t))| Example {
            source: vec![1; n],
            target: vec![1; t],
            index: 3 + index as u32,
            ..Example::default()
        })
        .collect();
    Batch::pack(&examples, prompt_length, 0, 2).expect("a batch")
}

/// The multipliers of one mask row, 1 where nothing is dropped.
pub fn mask_row(mask: Mask<'_>, head: usize, index: u32, row: usize, length: usize) -> Vec<f64> {
    let mut multipliers = vec![1.0; length];
    if let Some((step, site)) = mask {
        step.row(site.head(head), 0, index, row).fill(step.scale(), 0.0, &mut multipliers);
    }
    multipliers
}

/// The multipliers of all packed rows of `width`.
pub fn masks(batch: &Batch, side: Side, mask: Mask<'_>, width: usize) -> Vec<f64> {
    let of_example = |b: usize| {
        (0..batch.range(side, b).len())
            .flat_map(move |row| mask_row(mask, 0, batch.example_index(b), row, width))
    };
    (0..batch.examples()).flat_map(of_example).collect()
}

pub fn mask_of(dropout: &Option<DropoutStep>, site: Site) -> Mask<'_> {
    dropout.as_ref().map(|step| (step, site))
}

/// The rounding of sums of `length` terms in f32, as a part of the largest result: each of the terms may be off by half
/// a unit in the last place (2^-24) of a partial sum, and partial sums reach a few times the largest result.
pub fn bound(length: usize) -> f64 {
    4.0 * length.max(16) as f64 * 2.0_f64.powi(-24)
}

pub fn close(what: &str, actual: &[f64], expected: &[f64], bound: f64) {
    // One row's softmax has no gradient: then both must be zero to rounding.
    if expected.iter().all(|&value| value == 0.0) {
        assert_eq!(actual.len(), expected.len(), "{what}");
        let worst = actual.iter().fold(0.0, |worst: f64, value| worst.max(value.abs()));
        assert!(
            worst <= bound && actual.iter().all(|value| value.is_finite()),
            "{what}: {worst:e} instead of 0"
        );
        return;
    }
    let comparison = compare(actual, expected);
    assert!(comparison.passes(Tolerance::OfLargest(bound)), "{what}: bound {bound:.1e}, {comparison:?}");
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// y += alpha·x.
pub fn add_scaled(y: &mut [f64], alpha: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += alpha * x);
}

/// Scores become probabilities; returns the log-sum-exp.
pub fn softmax(scores: &mut [f64]) -> f64 {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
    scores.iter_mut().for_each(|score| *score = (*score - most).exp() / sum);
    most + sum.ln()
}
