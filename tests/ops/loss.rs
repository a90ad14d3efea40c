//! The head and its cross entropy: log_sum_exp(h · E_v) - h · E_label, and weight·(sum_v p_v E_v - E_label).

use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Rows};
use promptmix::backend::{Batch, Device, Format, LmHead, Loss, LossOps, Objective, Readers};
use serde::Deserialize;

use crate::operands::{add_scaled, bound, close, cpu, dot, labelled, narrowed, numbers, rows, softmax};
use crate::random::Random;

/// The mean of the rows of a matrix.
fn mean_row(rows: &[f32], width: usize) -> Vec<f32> {
    let sum =
        |column: usize| rows[column..].iter().step_by(width).map(|&value| f64::from(value)).sum::<f64>();
    (0..width).map(|column| (sum(column) * width as f64 / rows.len() as f64) as f32).collect()
}

/// The loss after the head \[V, D\] of these rows.
fn loss_of(
    cpu: &Cpu<f32>,
    batch: &Batch,
    hidden: &Rows<f32>,
    lm_head: &[f32],
    width: usize,
    d_hidden: Option<&mut Rows<f32>>,
) -> Result<Loss> {
    let mean = cpu.weight(mean_row(lm_head, width), 1, width, Readers::Lookup)?;
    let weight = cpu.weight(lm_head.to_vec(), lm_head.len() / width, width, Readers::Many)?;
    cpu.read_loss(&cpu.loss(batch, hidden, &LmHead { weight: &weight, mean: &mean }, d_hidden)?)
}

fn check(count: usize, vocabulary: usize, width: usize, objective: Objective) -> Result<()> {
    let cpu = cpu();
    let mut random = Random::new(9);
    // Logits of deviation about 3, so that a softmax is neither flat nor one word.
    let hidden = numbers(1, count * width, 3.0 * (width as f64).powf(-0.5));
    let lm_head = numbers(2, vocabulary * width, 1.0);
    // The first and the last word of the vocabulary are labels too.
    let labels: Vec<u32> = (0..count)
        .map(|row| match row {
            0 => vocabulary as u32 - 1,
            1 => 0,
            _ => random.below(vocabulary) as u32,
        })
        .collect();
    let weights: Vec<f64> =
        (0..count).map(|row| if row % 5 == 4 { 0.0 } else { f64::from(random.uniform() as f32) }).collect();
    let (mut negative, mut d_hidden, mut greedy) = (Vec::new(), vec![0.0; count * width], Vec::new());
    let mut objectives = Vec::new();
    let Objective { label_smoothing, z_loss } = objective;
    for (row, &label) in labels.iter().enumerate() {
        let embedding = |v: usize| &lm_head[v * width..(v + 1) * width];
        let mut p: Vec<f64> =
            (0..vocabulary).map(|v| dot(&hidden[row * width..(row + 1) * width], embedding(v))).collect();
        let of_label = p[label as usize];
        greedy.push((0..vocabulary).fold(0, |best, v| if p[v] > p[best] { v } else { best }) as u32);
        let mean = p.iter().sum::<f64>() / vocabulary as f64;
        let log_sum_exp = softmax(&mut p);
        negative.push(log_sum_exp - of_label);
        objectives.push(
            (1.0 - label_smoothing) * (log_sum_exp - of_label)
                + label_smoothing * (log_sum_exp - mean)
                + z_loss * log_sum_exp * log_sum_exp,
        );
        let d_row = &mut d_hidden[row * width..(row + 1) * width];
        for (v, p) in p.iter().enumerate() {
            let d_z = p * (1.0 + 2.0 * z_loss * log_sum_exp) - label_smoothing / vocabulary as f64;
            add_scaled(d_row, weights[row] * d_z, embedding(v));
        }
        add_scaled(d_row, -weights[row] * (1.0 - label_smoothing), embedding(label as usize));
    }

    let lm_head = narrowed(&lm_head);
    let hidden = rows(&cpu, &hidden, width)?;
    let what = format!("{count} rows, {vocabulary} words, D {width}, {objective:?}");
    let mut d_rows = cpu.rows(count, width, Format::Float)?;
    let batch = labelled(&labels, &weights, vocabulary).with_objective(objective);
    let loss = loss_of(&cpu, &batch, &hidden, &lm_head, width, Some(&mut d_rows))?;
    // The log-sum-exp sums positive terms; what rounds is a logit's sum of D terms and the sixteen lanes over V.
    let bound = bound(width + vocabulary / 16);
    close(&format!("loss of {what}"), &loss.negative_log_likelihood, &negative, bound);
    // The squared log-sum-exp and the mean of the logits are of a few units, as the log-sum-exp is.
    close(&format!("objective of {what}"), &loss.objective, &objectives, 2.0 * bound);
    close(&format!("d_hidden of {what}"), &cpu.read(&d_rows)?, &d_hidden, bound);
    assert_eq!(loss.greedy, greedy, "{what}");
    let without = loss_of(&cpu, &batch, &hidden, &lm_head, width, None)?;
    assert_eq!(without, loss, "{what}: the same loss without a gradient");
    Ok(())
}

#[test]
fn rows_words_and_widths_that_nothing_divides() -> Result<()> {
    for (count, vocabulary, width) in [
        (1, 7, 9),
        (7, 8, 1),
        (8, 63, 65),
        (9, 65, 13),
        (63, 129, 8),
        (1, 1_023, 7),
        (2, 1_024, 9),
        (3, 1_025, 13),
        (65, 2_100, 63),
    ] {
        check(count, vocabulary, width, Objective::default())?;
        check(count, vocabulary, width, Objective { label_smoothing: 0.1, z_loss: 1e-2 })?;
    }
    check(9, 65, 13, Objective { label_smoothing: 0.3, z_loss: 0.0 })?;
    check(9, 65, 13, Objective { label_smoothing: 0.0, z_loss: 0.1 })?;
    Ok(())
}

/// 255, 256 and 257 label rows: around the rows that share one pass over the vocabulary.
#[test]
fn more_label_rows_than_share_a_pass() -> Result<()> {
    for count in [255, 256, 257] {
        check(count, 1_100, 5, Objective::default())?;
    }
    Ok(())
}

#[test]
fn a_vocabulary_of_one_word_costs_nothing() -> Result<()> {
    let cpu = cpu();
    let mut d_hidden = cpu.rows(2, 3, Format::Float)?;
    let batch = labelled(&[0, 0], &[1.0, 1.0], 1);
    let hidden = rows(&cpu, &numbers(1, 6, 1.0), 3)?;
    let loss = loss_of(&cpu, &batch, &hidden, &[1.0, -2.0, 3.0], 3, Some(&mut d_hidden))?;
    assert_eq!(loss.negative_log_likelihood, [0.0, 0.0]);
    assert_eq!(cpu.read(&d_hidden)?, [0.0; 6]);
    Ok(())
}

/// Equal logits: the lowest word is said, within a stretch of the vocabulary and across stretches, wherever the lanes
/// of a vector fall.
#[test]
fn ties_go_to_the_lowest_word() -> Result<()> {
    let (cpu, vocabulary, width) = (cpu(), 3_000, 3);
    let batch = labelled(&[7], &[1.0], vocabulary);
    for tied in [[5, 6], [17, 900], [1_023, 1_024], [40, 2_999], [2_500, 2_980]] {
        let mut lm_head = numbers(1, vocabulary * width, 0.1);
        for word in tied {
            lm_head[word * width..(word + 1) * width].copy_from_slice(&[2.0, 2.0, 2.0]);
        }
        let loss = loss_of(&cpu, &batch, &rows(&cpu, &[1.0; 3], width)?, &narrowed(&lm_head), width, None)?;
        assert_eq!(loss.greedy, [tied[0] as u32]);
    }
    let zeros = vec![0.0; vocabulary * width];
    assert_eq!(loss_of(&cpu, &batch, &rows(&cpu, &[1.0; 3], width)?, &zeros, width, None)?.greedy, [0]);
    Ok(())
}

/// e^x overflows f32 from 88.7 on, and underflows below -87: logits beyond both must not.
#[test]
fn large_logits_neither_overflow_nor_vanish() -> Result<()> {
    let cpu = cpu();
    let lm_head = [300.0, 299.0, -300.0, 0.0];
    for label in 0..4 {
        let batch = labelled(&[label], &[1.0], 4);
        let loss =
            loss_of(&cpu, &batch, &rows(&cpu, &[1.0], 1)?, &lm_head, 1, None)?.negative_log_likelihood[0];
        let expected = (1.0 + (-1.0_f64).exp()).ln() + [0.0, 1.0, 600.0, 300.0][label as usize];
        // A unit in the last place of 300 is 3e-5.
        assert!((loss - expected).abs() <= 6e-5, "label {label}: {loss} instead of {expected}");
    }
    Ok(())
}

/// What PyTorch gave: `scripts/peers/make_smoothed_losses.py`.
#[derive(Deserialize)]
struct Golden {
    width: usize,
    hidden: Vec<f32>,
    #[serde(rename = "head")]
    lm_head: Vec<f32>,
    labels: Vec<u32>,
    cases: Vec<GoldenCase>,
}

#[derive(Deserialize)]
struct GoldenCase {
    label_smoothing: f64,
    z_loss: f64,
    losses: Vec<f64>,
    d_hidden: Vec<f64>,
}

#[test]
fn label_smoothing_and_z_loss_as_pytorch_has_them() -> Result<()> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ops/smoothed_losses.json");
    let golden: Golden =
        serde_json::from_slice(&std::fs::read(golden).expect("golden numbers")).expect("JSON");
    let (cpu, width, count) = (cpu(), golden.width, golden.labels.len());
    let hidden: Vec<f64> = golden.hidden.iter().copied().map(f64::from).collect();
    let hidden = rows(&cpu, &hidden, width)?;
    let vocabulary = golden.lm_head.len() / width;
    assert!(golden.cases.len() >= 4 && golden.cases.iter().any(|case| case.label_smoothing > 0.0));
    for case in &golden.cases {
        let objective = Objective { label_smoothing: case.label_smoothing, z_loss: case.z_loss };
        // The script sums the rows' losses.
        let batch = labelled(&golden.labels, &vec![1.0; count], vocabulary).with_objective(objective);
        let mut d_hidden = cpu.rows(count, width, Format::Float)?;
        let loss = loss_of(&cpu, &batch, &hidden, &golden.lm_head, width, Some(&mut d_hidden))?;
        close(&format!("{objective:?}"), &loss.objective, &case.losses, bound(width + vocabulary));
        let what = format!("d_hidden with {objective:?}");
        close(&what, &cpu.read(&d_hidden)?, &case.d_hidden, bound(width + vocabulary));
    }
    Ok(())
}
