//! Self attention: over the encoder's rows, and causal over a few target rows, which have kernels of their own.

use criterion::Criterion;
use cudarc::driver::CudaSlice;
use half::bf16;
use promptmix::backend::Heads;
use promptmix::cuda::attention::{
    Attention, AttentionBackward, AttentionGradient, AttentionInput, Delta, InputGradient,
};
use promptmix::cuda::{Precision, Sequences};

use crate::gpu::{Cost, Gpu, lengths, numbers};

const MAX_DISTANCE: usize = 127;

/// Label rows of the decoder's examples, in turn.
const TARGETS: [usize; 3] = [2, 1, 3];

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    let lengths = lengths(gpu);
    let short: Vec<usize> = (0..lengths.len()).map(|i| TARGETS[i % TARGETS.len()]).collect();
    attention(gpu, criterion, "attention", &lengths, false);
    attention(gpu, criterion, "short attention", &short, true);
}

fn attention(gpu: &Gpu, criterion: &mut Criterion, name: &str, lengths: &[usize], causal: bool) {
    let kernels = gpu.kernels();
    let sequences = Sequences::new(kernels.stream(), lengths).expect("sequences");
    let heads = Heads { count: gpu.size(12, 2), width: 64 };
    let (rows, total) = (sequences.count(), heads.total());
    gpu.say(
        name,
        &[("rows", rows), ("sequences", lengths.len()), ("heads", heads.count), ("width", heads.width)],
    );
    let qkv = numbers(1, rows * 3 * total, 0.5);
    let biases = numbers(2, heads.count * (2 * MAX_DISTANCE + 1), 1.0);
    let d_o = numbers(3, rows * total, 1.0);
    let (qkv_device, bias, d_device) = (gpu.halves(&qkv), gpu.floats(&biases), gpu.halves(&d_o));
    let bias = Some((&bias as _, MAX_DISTANCE));
    let attention = Attention { bias, causal, ..Attention::of_itself(sequences.rows(), heads) };
    let input = AttentionInput::Packed(&qkv_device);
    let mut o = gpu.unwritten_halves(rows * total);
    let mut sums = gpu.unwritten_floats(rows * heads.count);
    let mut forward = || attention.forward(kernels, input, &mut o, &mut sums).expect("a launch");
    forward();

    let starts: Vec<usize> =
        lengths.iter().scan(0, |end, n| Some(std::mem::replace(end, *end + n))).collect();
    let at = |row: usize, part: usize, column: usize| qkv[(row * 3 + part) * total + column];
    let sequence_of = |row: usize| {
        let sequence = starts.partition_point(|&start| start <= row) - 1;
        starts[sequence]..starts[sequence] + lengths[sequence]
    };
    // The first key that a row sees, and the weights of all that it sees.
    let weights = |row: usize, head: usize| -> (usize, Vec<f64>) {
        let all = sequence_of(row);
        let (first, end) = (all.start, if causal { row + 1 } else { all.end });
        let scores = (first..end).map(|key| {
            let columns = head * heads.width..(head + 1) * heads.width;
            let product: f64 = columns.map(|column| at(row, 0, column) * at(key, 1, column)).sum();
            let distance = (key as i64 - row as i64).clamp(-(MAX_DISTANCE as i64), MAX_DISTANCE as i64);
            (product + biases[head * (2 * MAX_DISTANCE + 1) + (distance + MAX_DISTANCE as i64) as usize])
                .exp()
        });
        let scores: Vec<f64> = scores.collect();
        let sum: f64 = scores.iter().sum();
        (first, scores.iter().map(|score| score / sum).collect())
    };
    // Weights are rounded to bf16 before they meet the values, and so is the result.
    gpu.check(name, &o, (heads.width, 3.0), |i| {
        let (row, column) = (i / total, i % total);
        let (first, weights) = weights(row, column / heads.width);
        weights.iter().enumerate().map(|(key, weight)| weight * at(first + key, 2, column)).sum()
    });
    let squares: usize = lengths.iter().map(|n| if causal { n * (n + 1) / 2 } else { n * n }).sum();
    let cost = Cost { operations: 4 * squares * total, bytes: rows * (8 * total + 4 * heads.count) };
    let forward = || attention.forward(kernels, input, &mut o, &mut sums).expect("a launch");
    gpu.measure(criterion, name, "forward", cost, forward);

    let mut delta = gpu.unwritten_floats(rows * heads.count);
    let mut d_qkv = gpu.unwritten_halves(rows * 3 * total);
    assert_eq!(attention.needs_delta(Precision::Bf16), !causal, "short sequences have kernels of their own");
    let backward = |delta: &mut CudaSlice<f32>, d_qkv: &mut CudaSlice<bf16>| {
        let delta = (!causal).then_some(Delta::Scratch(delta));
        let from = AttentionBackward { input, o: &o, log_sum_exp: &sums, d_o: &d_device, delta };
        let gradient = AttentionGradient { of_input: InputGradient::Packed(d_qkv), inner: None };
        attention.backward(kernels, from, gradient).expect("a launch");
    };
    backward(&mut delta, &mut d_qkv);
    // d_q of a row needs its own weights alone; d_k and d_v sum over all rows, d_v is checked.
    gpu.check(&format!("{name} backward"), &d_qkv, (heads.width, 6.0), |i| {
        let (row, part, column) = (i / (3 * total), i / total % 3, i % total);
        let head = column / heads.width;
        let columns = || head * heads.width..(head + 1) * heads.width;
        let d_weight = |row: usize, key: usize| -> f64 {
            columns().map(|column| d_o[row * total + column] * at(key, 2, column)).sum()
        };
        let d_scores = |row: usize| -> (usize, Vec<f64>) {
            let (first, weights) = weights(row, head);
            let d: Vec<f64> = (0..weights.len()).map(|key| d_weight(row, first + key)).collect();
            let mean: f64 = weights.iter().zip(&d).map(|(weight, d)| weight * d).sum();
            (first, weights.iter().zip(&d).map(|(weight, d)| weight * (d - mean)).collect())
        };
        if part == 0 {
            let (first, d) = d_scores(row);
            return d.iter().enumerate().map(|(key, d)| d * at(first + key, 1, column)).sum();
        }
        let all = sequence_of(row);
        let first = all.start;
        (if causal { row } else { first }..all.end)
            .map(|query| match part {
                1 => d_scores(query).1[row - first] * at(query, 0, column),
                _ => weights(query, head).1[row - first] * d_o[query * total + column],
            })
            .sum()
    });
    let cost = Cost { operations: 10 * squares * total, bytes: rows * (16 * total + 8 * heads.count) };
    gpu.measure(criterion, name, "backward", cost, || {
        backward(&mut delta, &mut d_qkv);
    });
}
