//! Head and cross entropy: `kernels/loss.cu`.

use half::bf16;
use promptmix::Result;
use promptmix::backend::{Device as _, Format, LmHead, Objective, Readers, Side};
use promptmix::cuda::loss::{
    CrossEntropy as RawCrossEntropy, CrossEntropyRows, HiddenGradient, LossScratch, Plan,
};
use promptmix::cuda::{LabelRows, Precision, ReadOperand};
use promptmix::verify::compare;

use crate::device::{Bounds, Case, Place, Results, batch, device, follow, matrix, numbers, roundings};

#[derive(Debug)]
struct CrossEntropy {
    targets: Vec<usize>,
    width: usize,
    vocabulary: usize,
    objective: Objective,
}

/// The mean of the rows of a matrix.
pub fn mean_row(rows: &[f32], width: usize) -> Vec<f32> {
    let sum =
        |column: usize| rows[column..].iter().step_by(width).map(|&value| f64::from(value)).sum::<f64>();
    (0..width).map(|column| (sum(column) * width as f64 / rows.len() as f64) as f32).collect()
}

impl Case for CrossEntropy {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { width, vocabulary, .. } = *self;
        let lengths: Vec<(usize, usize)> = self.targets.iter().map(|&t| (1, t)).collect();
        let batch = batch(&lengths, 1, vocabulary);
        let rows = batch.rows(Side::Decoder);
        let batch = batch.weighted((0..rows).map(|row| 0.5 + 0.25 * row as f64).collect())?;
        let batch = batch.with_objective(self.objective);
        let lm_head: Vec<f32> = matrix(1, vocabulary, width).iter().map(|value| 2.0 * value).collect();
        let mean = mean_row(&lm_head, width);
        let weight = backend.weight(lm_head, vocabulary, width, Readers::Lookup)?;
        let mean = backend.weight(mean, 1, width, Readers::Lookup)?;
        let lm_head = LmHead { weight: &weight, mean: &mean };
        let hidden = backend.place(&numbers(2, rows * width, 1.0), width, Format::Operand)?;
        let mut d_hidden = backend.rows(rows, width, Format::Float)?;
        let saved = backend.loss(&batch, &hidden, &lm_head, Some(&mut d_hidden))?;
        let loss = backend.read_loss(&saved)?;
        let without = backend.read_loss(&backend.loss(&batch, &hidden, &lm_head, None)?)?;
        assert_eq!(loss, without, "a gradient changes no loss");
        let logits = backend.read(&backend.logits(&batch, &hidden, &weight)?)?;
        let greedy = loss.greedy.iter().map(|&id| f64::from(id) + 1.0).collect();
        Ok(vec![
            ("-log p", loss.negative_log_likelihood),
            ("objective", loss.objective),
            ("greedy + 1", greedy),
            ("d_hidden", backend.read(&d_hidden)?),
            ("logits", logits),
        ])
    }
}

/// bf16: each weight of the sum over the vocabulary is rounded once, and the head's rows are as they are.
fn cross_entropy(targets: &[usize], vocabulary: usize, width: usize) {
    let smoothed = Objective { label_smoothing: 0.1, z_loss: 1e-2 };
    for objective in [Objective::default(), smoothed] {
        let case = CrossEntropy { targets: targets.to_vec(), width, vocabulary, objective };
        follow(&case, Bounds { terms: vocabulary.max(width), bf16: roundings(4.0) });
    }
}

#[test]
fn vocabularies_beside_a_step() {
    for vocabulary in [2, 15, 17, 33, 65, 1_000] {
        cross_entropy(&[1, 3, 2, 40], vocabulary, 40);
    }
    cross_entropy(&[1], 17, 8);
}

/// Rows beside sixteen and beside a block of 32, columns beside those of a warp.
#[test]
fn rows_and_columns_beside_a_block() {
    for (rows, width) in [(15, 120), (16, 128), (17, 136), (31, 256), (32, 264), (33, 520)] {
        cross_entropy(&[rows], 300, width);
    }
}

/// More columns than a block holds the sums of: slices of 1,024.
#[test]
fn widths_of_two_and_four_slices() {
    cross_entropy(&[3, 2], 100, 1_024);
    cross_entropy(&[3, 2], 70, 1_032);
    cross_entropy(&[18], 50, 2_048);
    cross_entropy(&[3], 40, 4_096);
}

#[test]
fn t5_vocabulary_at_t5_small_width() {
    let objective = Objective::default();
    let case = CrossEntropy { targets: vec![2, 3], width: 512, vocabulary: 32_128, objective };
    follow(&case, Bounds { terms: 512, bf16: roundings(4.0) });
}

#[test]
fn launched_alone_on_buffers_of_ones_own() {
    let Some(device) = device(Precision::Bf16) else { return };
    let kernels = device.cuda.kernels();
    let stream = kernels.stream();
    let (rows, vocabulary, width) = (3, 70, 24);
    let (hidden, lm_head) = (numbers(1, rows * width, 1.0), numbers(2, vocabulary * width, 0.7));
    let (labels, weights) = ([69_u32, 0, 33], [1.0_f32, 0.5, 0.25]);
    let mean = mean_row(&lm_head.iter().map(|&value| value as f32).collect::<Vec<_>>(), width);
    let objective = Objective { label_smoothing: 0.2, z_loss: 0.01 };
    let (mut negative, mut losses, mut d_hidden) = (Vec::new(), Vec::new(), Vec::new());
    for (row, &label) in labels.iter().enumerate() {
        let own = &hidden[row * width..(row + 1) * width];
        let dot = |e: &[f64]| own.iter().zip(e).map(|(a, b)| a * b).sum::<f64>();
        let z: Vec<f64> = lm_head.chunks_exact(width).map(dot).collect();
        let log_sum_exp = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        let of_mean = z.iter().sum::<f64>() / vocabulary as f64;
        negative.push(log_sum_exp - z[label as usize]);
        losses.push(
            0.8 * (log_sum_exp - z[label as usize])
                + 0.2 * (log_sum_exp - of_mean)
                + 0.01 * log_sum_exp * log_sum_exp,
        );
        for column in 0..width {
            let d: f64 = (0..vocabulary)
                .map(|v| {
                    let d_z =
                        (z[v] - log_sum_exp).exp() * (1.0 + 0.02 * log_sum_exp) - 0.2 / vocabulary as f64;
                    (d_z - if v == label as usize { 0.8 } else { 0.0 }) * lm_head[v * width + column]
                })
                .sum();
            d_hidden.push(f64::from(weights[row]) * d);
        }
    }

    let up = |values: &[f64]| {
        let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f64(value)).collect();
        stream.clone_htod(&values).expect("an upload")
    };
    let floats = |count: usize| stream.clone_htod(&vec![f32::NAN; count]).expect("an upload");
    let (hidden, lm_head) = (up(&hidden), up(&lm_head));
    let mean = stream.clone_htod(&mean).expect("an upload");
    let label_rows = LabelRows::new(stream, &labels, &weights).expect("labels");
    let plan =
        |rows| Plan::new(kernels, Precision::Bf16, rows, [vocabulary, width]).expect("a head that fits");
    let (labels, plan_of_rows) = (label_rows.rows(), plan(rows));
    let entropy =
        RawCrossEntropy { labels, plan: plan_of_rows, lm_head: &lm_head, objective, mean: Some(&mean) };
    let lengths = plan_of_rows.scratch();
    let (mut found, mut loss, mut gradient) = (floats(rows), floats(rows), floats(rows * width));
    let mut greedy = stream.clone_htod(&[u32::MAX; 3]).expect("an upload");
    let mut partials = floats(lengths.partials);
    let (mut label_logits, mut weighted) = (floats(lengths.label_logits), floats(lengths.weighted));
    let before = kernels.launches();
    let mut launch = |entropy: RawCrossEntropy<'_>, hidden: &dyn ReadOperand, with_gradient: bool| {
        let scratch = LossScratch { partials: &mut partials, label_logits: &mut label_logits };
        let written =
            CrossEntropyRows { negative_log_likelihood: &mut found, loss: &mut loss, greedy: &mut greedy };
        let gradient = HiddenGradient { d_hidden: &mut gradient, weighted: &mut weighted };
        entropy.launch(kernels, hidden, scratch, written, with_gradient.then_some(gradient))
    };
    launch(entropy, &hidden, true).expect("a loss");
    assert_eq!(kernels.launches() - before, 2);
    let short = launch(entropy, &hidden.slice(1..), false);
    assert!(short.expect_err("too short").to_string().contains("hidden: expected 72 numbers"));
    let missing = launch(RawCrossEntropy { mean: None, ..entropy }, &hidden, true);
    assert!(missing.expect_err("no mean").to_string().contains("mean"));
    let beyond = LabelRows::new(stream, &[70], &[1.0]).expect("a label");
    let of_one = RawCrossEntropy { labels: beyond.rows(), plan: plan(1), ..entropy };
    let refused = launch(of_one, &hidden, false).expect_err("a label beyond the head").to_string();
    assert!(refused.contains("at least 71 rows"), "{refused}");
    let refused = launch(RawCrossEntropy { plan: plan(2), ..entropy }, &hidden, false);
    assert!(refused.expect_err("a plan for two rows").to_string().contains("labels: expected 2 rows"));
    let read = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
    for (what, found, expected) in [
        ("-log p", read(stream.clone_dtoh(&found).expect("read")), negative),
        ("loss", read(stream.clone_dtoh(&loss).expect("read")), losses),
        ("d_hidden", read(stream.clone_dtoh(&gradient).expect("read")), d_hidden),
    ] {
        let comparison = compare(&found, &expected);
        assert!(comparison.passes(roundings(4.0)), "{what}: {comparison:?}");
    }
    device.cuda.synchronize().expect("a healthy device");

    assert!(LabelRows::new(stream, &[1, 2], &[1.0]).is_err() && LabelRows::new(stream, &[], &[]).is_err());
}
