//! A program that embeds the kernels and nothing else: built with the feature `cuda` alone, it launches ops on cudarc's own buffers
//! and compares each with sums by hand.

use cudarc::driver::CudaSlice;
use half::bf16;
use promptmix::backend::{Heads, Objective, OptimizerStep};
use promptmix::cuda::attention::{Attention, AttentionInput};
use promptmix::cuda::linear::{Epilogue, Linear};
use promptmix::cuda::loss::{CrossEntropy, CrossEntropyRows, LossScratch, Plan};
use promptmix::cuda::optimizer::{AdamW, StepOperands};
use promptmix::cuda::{LabelRows, Precision, Sequences};

#[path = "embedder/graphs.rs"]
mod graphs;
#[path = "common/launching.rs"]
mod launching;
#[path = "embedder/layer.rs"]
mod layer;
#[path = "../examples/embed_layer/layer.rs"]
mod layer_of_example;
#[path = "embedder/scale.rs"]
mod scale;
#[path = "embedder/streams.rs"]
mod streams;

use launching::{Program, program};

impl Program {
    fn poison(&self, count: usize) -> CudaSlice<f32> {
        self.stream.clone_htod(&vec![f32::NAN; count]).expect("an upload")
    }

    fn poison_bf16(&self, count: usize) -> CudaSlice<bf16> {
        self.stream.clone_htod(&vec![bf16::NAN; count]).expect("an upload")
    }

    fn read_bf16(&self, slice: &CudaSlice<bf16>) -> Vec<f64> {
        self.stream.clone_dtoh(slice).expect("a download").into_iter().map(f64::from).collect()
    }
}

/// Fails on another length, NaN, and what is farther off than `bound` of the largest.
#[track_caller]
fn near(found: &[f64], expected: &[f64], bound: f64) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    assert!(largest > 0.0, "something to compare with");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= bound * largest, "{i}: {found} instead of {expected}");
    }
}

#[test]
fn a_product_is_the_sum_by_hand() {
    let Some(program) = program() else { return };
    let (rows, out, input) = (37, 24, 40);
    let sequences = Sequences::new(&program.stream, &[30, 7]).expect("two sequences");
    let ((a, on_device), (w, weight)) = (program.numbers(rows * input, 1), program.numbers(out * input, 77));
    let mut linear = Linear::new(&program.kernels, sequences.rows(), out, input).expect("a product");
    let mut z = program.poison(rows * out);
    linear.forward(&program.kernels, &on_device, &weight, Epilogue::Float { z: &mut z }).expect("a launch");
    let dot = |row: usize, column: usize| -> f64 {
        (0..input).map(|k| a[row * input + k] * w[column * input + k]).sum()
    };
    let expected: Vec<f64> = (0..rows * out).map(|i| dot(i / out, i % out)).collect();
    let found: Vec<f64> = program.stream.clone_dtoh(&z).expect("z").into_iter().map(f64::from).collect();
    // f32 sums of 40 products that are exact in f32.
    near(&found, &expected, 40.0 * f64::from(f32::EPSILON));
    // The same weight the other way, rounded to bf16 once.
    let ((dz, on_device), mut d_a) = (program.numbers(rows * out, 5), program.poison_bf16(rows * input));
    linear
        .backward(&program.kernels, &on_device, &weight, Epilogue::Plain { z: &mut d_a })
        .expect("a launch");
    let dot = |row: usize, column: usize| -> f64 {
        (0..out).map(|k| dz[row * out + k] * w[k * input + column]).sum()
    };
    let expected: Vec<f64> = (0..rows * input).map(|i| dot(i / input, i % input)).collect();
    near(&program.read_bf16(&d_a), &expected, 1.0 / 256.0);
}

#[test]
fn an_operand_that_does_not_fit_is_named() {
    let Some(program) = program() else { return };
    let (rows, out, input) = (9, 16, 24);
    let sequences = Sequences::new(&program.stream, &[rows]).expect("a sequence");
    let ((_, a), (_, weight)) = (program.numbers(rows * input, 1), program.numbers(out * input, 2));
    let mut linear = Linear::new(&program.kernels, sequences.rows(), out, input).expect("a product");
    let mut z = program.poison_bf16(rows * out);
    let float = program.poison(out * input);
    let kernels = &program.kernels;
    let refused = |result: promptmix::Result<()>, said: &str| {
        let error = result.expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    };
    let said = "weight: expected bf16, as the operands before it, found f32";
    refused(linear.forward(kernels, &a, &float, Epilogue::Plain { z: &mut z }), said);
    let said = "z: expected 144 numbers, found 136";
    refused(linear.forward(kernels, &a, &weight, Epilogue::Plain { z: &mut z.slice_mut(8..) }), said);
    let mut longer = program.poison_bf16(rows * out + 1);
    let said = "z: expected an address that is a multiple of 16 bytes, found 2 bytes beyond one";
    refused(linear.forward(kernels, &a, &weight, Epilogue::Plain { z: &mut longer.slice_mut(1..) }), said);
    let mut d_h = program.poison(rows * out);
    let said = "the epilogue: expected one of a forward product, found Accumulate";
    refused(linear.forward(kernels, &a, &weight, Epilogue::Accumulate { d_h: &mut d_h }), said);
    // cudarc orders streams by events of one `CudaContext`; another one of the same device knows nothing of them.
    let other = program.stream.context().new_stream().expect("a second stream");
    let same = other.clone_htod(&vec![bf16::ONE; rows * input]).expect("an upload");
    linear
        .forward(kernels, &same, &weight, Epilogue::Plain { z: &mut z })
        .expect("another stream of the context");
    // Nothing was written before that: a refused launch is none.
    assert!(program.read_bf16(&z).iter().all(|value| value.is_finite()));
    let untouched = program.stream.clone_dtoh(&d_h).expect("d_h");
    assert!(untouched.iter().all(|value| value.is_nan()));
}

#[test]
fn attention_is_the_sum_by_hand() {
    let Some(program) = program() else { return };
    let (heads, lengths) = (Heads { count: 2, width: 16 }, [5, 70]);
    let sequences = Sequences::new(&program.stream, &lengths).expect("two sequences");
    let (rows, total) = (sequences.count(), heads.total());
    let (qkv, on_device) = program.numbers(rows * 3 * total, 3);
    let (mut o, mut log_sum_exp) = (program.poison_bf16(rows * total), program.poison(rows * heads.count));
    Attention::of_itself(sequences.rows(), heads)
        .forward(&program.kernels, AttentionInput::Packed(&on_device), &mut o, &mut log_sum_exp)
        .expect("a launch");
    let at = |row: usize, part: usize, column: usize| qkv[(row * 3 + part) * total + column];
    let mut expected = vec![0.0; rows * total];
    for (first, length) in [(0, lengths[0]), (lengths[0], lengths[1])] {
        for (query, head) in (first..first + length).flat_map(|row| [(row, 0), (row, 1)]) {
            let columns = head * heads.width..(head + 1) * heads.width;
            let score =
                |key: usize| columns.clone().map(|c| at(query, 0, c) * at(key, 1, c)).sum::<f64>().exp();
            let weights: Vec<f64> = (first..first + length).map(score).collect();
            let sum: f64 = weights.iter().sum();
            for column in columns.clone() {
                let mixed = weights.iter().enumerate().map(|(key, w)| w / sum * at(first + key, 2, column));
                expected[query * total + column] = mixed.sum();
            }
        }
    }
    // Weights and result are rounded to bf16.
    near(&program.read_bf16(&o), &expected, 2.0 / 256.0);
}

#[test]
fn cross_entropy_is_the_sum_by_hand() {
    let Some(program) = program() else { return };
    let (width, vocabulary, labels) = (24, 50, [3_u32, 49, 0]);
    let rows = LabelRows::new(&program.stream, &labels, &[1.0; 3]).expect("three rows");
    let (hidden, on_device) = program.numbers(3 * width, 9);
    let (head, lm_head) = program.numbers(vocabulary * width, 31);
    let plan = Plan::new(&program.kernels, Precision::Bf16, 3, [vocabulary, width]).expect("a plan");
    let (mut partials, mut label_logits) = (program.poison(plan.scratch().partials), program.poison(3));
    let (mut likelihood, mut loss) = (program.poison(3), program.poison(3));
    let mut greedy = program.stream.alloc_zeros::<u32>(3).expect("room");
    CrossEntropy {
        labels: rows.rows(),
        plan,
        lm_head: &lm_head,
        objective: Objective::default(),
        mean: None,
    }
    .launch(
        &program.kernels,
        &on_device,
        LossScratch { partials: &mut partials, label_logits: &mut label_logits },
        CrossEntropyRows { negative_log_likelihood: &mut likelihood, loss: &mut loss, greedy: &mut greedy },
        None,
    )
    .expect("a launch");
    let logits = |row: usize| -> Vec<f64> {
        let word = |v: usize| (0..width).map(|c| hidden[row * width + c] * head[v * width + c]).sum();
        (0..vocabulary).map(word).collect()
    };
    let greedy = program.stream.clone_dtoh(&greedy).expect("greedy");
    let mut expected = Vec::new();
    for (row, &label) in labels.iter().enumerate() {
        let logits = logits(row);
        expected.push(logits.iter().map(|z| z.exp()).sum::<f64>().ln() - logits[label as usize]);
        assert!(logits.iter().all(|&logit| logit <= logits[greedy[row] as usize]), "row {row}");
    }
    let found: Vec<f64> =
        program.stream.clone_dtoh(&loss).expect("loss").into_iter().map(f64::from).collect();
    // f32 sums of 24 and of 50 terms.
    near(&found, &expected, 100.0 * f64::from(f32::EPSILON));
}

#[test]
fn adamw_moves_a_plain_vector_and_says_which_step_was_not_finite() {
    let Some(program) = program() else { return };
    let length = 3_000;
    let upload = |values: &[f32]| program.stream.clone_htod(values).expect("an upload");
    let start: Vec<f32> = (0..length).map(|i| (i % 7) as f32 - 3.0).collect();
    let gradient: Vec<f32> = (0..length).map(|i| ((i % 5) as f32 - 2.0) / 100.0).collect();
    let (mut values, mut first, mut second) =
        (upload(&start), upload(&vec![0.0; length]), upload(&vec![0.0; length]));
    let mut adamw = AdamW::vector(&program.kernels, length).expect("an optimizer");
    adamw.schedule(&program.kernels, &[OptimizerStep::new(0.1, 0.0)]).expect("a schedule");
    let mut broken = gradient.clone();
    broken[17] = f32::INFINITY;
    for gradient in [&gradient, &broken] {
        let gradient = upload(gradient);
        adamw
            .step(
                &program.kernels,
                StepOperands {
                    values: &mut values,
                    gradient: &gradient,
                    first_moment: &mut first,
                    second_moment: &mut second,
                },
            )
            .expect("a launch");
    }
    let reports = adamw.reports(&program.kernels).expect("reports");
    assert_eq!(reports.iter().map(|step| step[0].applied).collect::<Vec<bool>>(), [true, false]);
    // The first step of Adam moves by the rate in the gradient's direction, whatever its size.
    let step = |(start, gradient): (&f32, &f32)| {
        let moved = if *gradient == 0.0 { 0.0 } else { 0.1 * f64::from(gradient.signum()) };
        f64::from(*start) - moved
    };
    let expected: Vec<f64> = start.iter().zip(&gradient).map(step).collect();
    let found: Vec<f64> =
        program.stream.clone_dtoh(&values).expect("values").into_iter().map(f64::from).collect();
    // epsilon is 1e-8 beside gradients of 1e-2; the rest is f32.
    near(&found, &expected, 1e-5);
}
