//! The frozen head and cross entropy over a batch's label rows.

use criterion::Criterion;
use cudarc::driver::CudaSlice;
use promptmix::backend::Objective;
use promptmix::cuda::loss::{CrossEntropy, CrossEntropyRows, HiddenGradient, LossScratch, Plan};
use promptmix::cuda::{LabelRows, Precision};

use crate::gpu::{Cost, Gpu, numbers};

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    let kernels = gpu.kernels();
    let (rows, vocabulary, width) = (gpu.size(64, 5), gpu.size(32_128, 100), gpu.size(768, 72));
    gpu.say("loss", &[("rows", rows), ("vocabulary", vocabulary), ("width", width)]);
    let labels: Vec<u32> = (0..rows).map(|row| (row * 7_919 % vocabulary) as u32).collect();
    let weights: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32 / rows as f32).collect();
    let label_rows = LabelRows::new(kernels.stream(), &labels, &weights).expect("labels");
    let (hidden, lm_head) =
        (numbers(1, rows * width, 1.0), numbers(2, vocabulary * width, 3.0 * (width as f64).powf(-0.5)));
    let (hidden_device, head_device) = (gpu.halves(&hidden), gpu.halves(&lm_head));
    let plan = Plan::new(kernels, Precision::Bf16, rows, [vocabulary, width]).expect("a head that fits");
    let objective = Objective::default();
    let entropy =
        CrossEntropy { labels: label_rows.rows(), plan, lm_head: &head_device, objective, mean: None };
    let lengths = plan.scratch();
    let (mut partials, mut label_logits) =
        (gpu.unwritten_floats(lengths.partials), gpu.unwritten_floats(lengths.label_logits));
    let mut weighted = gpu.unwritten_floats(lengths.weighted);
    let (mut negative, mut d_hidden) = (gpu.unwritten_floats(rows), gpu.unwritten_floats(rows * width));
    let mut losses = gpu.unwritten_floats(rows);
    let mut greedy: CudaSlice<u32> = kernels.stream().alloc_zeros(rows).expect("room");
    let mut launch = |negative: &mut CudaSlice<f32>, d_hidden: Option<&mut CudaSlice<f32>>| {
        let scratch = LossScratch { partials: &mut partials, label_logits: &mut label_logits };
        let written =
            CrossEntropyRows { negative_log_likelihood: negative, loss: &mut losses, greedy: &mut greedy };
        let gradient = d_hidden.map(|d_hidden| HiddenGradient { d_hidden, weighted: &mut weighted });
        entropy.launch(kernels, &hidden_device, scratch, written, gradient).expect("a launch");
    };
    launch(&mut negative, Some(&mut d_hidden));

    let logits = |row: usize| -> Vec<f64> {
        let own = &hidden[row * width..][..width];
        lm_head.chunks_exact(width).map(|e| own.iter().zip(e).map(|(a, b)| a * b).sum()).collect()
    };
    let log_sum_exp = |logits: &[f64]| logits.iter().map(|z| z.exp()).sum::<f64>().ln();
    gpu.check("loss", &negative, (width, 0.0), |row| {
        let logits = logits(row);
        log_sum_exp(&logits) - logits[labels[row] as usize]
    });
    // Of each row the probabilities, once.
    let probabilities: Vec<Vec<f64>> = (0..rows)
        .map(|row| {
            let logits = logits(row);
            let sum = log_sum_exp(&logits);
            logits.iter().map(|z| (z - sum).exp()).collect()
        })
        .collect();
    // Each word's weight is rounded to bf16 before it meets the head.
    gpu.check("loss gradient", &d_hidden, (width, 2.0), |i| {
        let (row, column) = (i / width, i % width);
        let at = |word: usize| lm_head[word * width + column];
        let mean: f64 = probabilities[row].iter().enumerate().map(|(word, p)| p * at(word)).sum();
        f64::from(weights[row]) * (mean - at(labels[row] as usize))
    });

    let (numbers, words) = (rows * width, vocabulary * width);
    let cost = Cost { operations: 2 * rows * words, bytes: 2 * (words + numbers) + 12 * rows };
    gpu.measure(criterion, "loss", "forward", cost, || launch(&mut negative, None));
    let cost = Cost { operations: 4 * rows * words, bytes: 2 * words + 6 * numbers + 12 * rows };
    gpu.measure(criterion, "loss", "with gradient", cost, || launch(&mut negative, Some(&mut d_hidden)));
}
