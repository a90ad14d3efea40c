//! Cross attention of a few target rows over the encoder's rows, absorbed.

use criterion::Criterion;
use cudarc::driver::CudaSlice;
use half::bf16;
use promptmix::backend::Heads;
use promptmix::cuda::cross_attention::{
    AbsorbedBackward, AbsorbedCrossAttention, AbsorbedForward, AbsorbedGradient, AbsorbedShape,
    QueryGradient, Wide,
};
use promptmix::cuda::{DropoutMask, PairedSequences};

use crate::gpu::{Cost, Gpu, lengths, numbers};

/// Label rows of an example.
const TARGETS: usize = 2;

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    let (kernels, sources) = (gpu.kernels(), lengths(gpu));
    let heads = Heads { count: gpu.size(12, 2), width: gpu.size(64, 16) };
    let (depth, total, width) = (gpu.size(768, 72), heads.total(), heads.width);
    let pairs: Vec<(usize, usize)> = sources.iter().map(|&n| (TARGETS, n)).collect();
    let sequences = PairedSequences::new(kernels.stream(), &pairs).expect("examples");
    let (rows, targets) = (sequences.sources(), sequences.targets());
    let sizes =
        [("rows", rows), ("targets", targets), ("depth", depth), ("heads", heads.count), ("width", width)];
    gpu.say("cross attention", &sizes);
    let fan_in = (depth as f64).powf(-0.5);
    let (q, d_o) =
        (numbers(1, targets * total, 3.0 * (width as f64).powf(-0.5)), numbers(2, targets * total, 1.0));
    let (h, w_k, w_v) =
        (numbers(3, rows * depth, 1.0), numbers(4, total * depth, fan_in), numbers(5, total * depth, fan_in));
    let (q_device, h_device, d_device) = (gpu.halves(&q), gpu.halves(&h), gpu.halves(&d_o));
    let (k_device, v_device) = (gpu.halves(&w_k), gpu.halves(&w_v));
    let shape = AbsorbedShape { batch: sequences.described(), heads, depth };
    let mask = DropoutMask::default();
    let attention = AbsorbedCrossAttention { shape, w_k: &k_device, w_v: &v_device, mask };
    let lengths = attention.lengths().expect("a shape");
    let (mut absorbed_q, mut mixed) =
        (gpu.unwritten_halves(lengths.wide), gpu.unwritten_halves(lengths.wide));
    let (mut scores, mut sums) = (gpu.unwritten_floats(lengths.pairs), gpu.unwritten_floats(lengths.sums));
    let (mut nothing, mut o) = (gpu.unwritten_halves(8), gpu.unwritten_halves(targets * total));
    let mut forward = |o: &mut CudaSlice<bf16>| {
        let of = AbsorbedForward {
            q: &q_device,
            h: &h_device,
            absorbed_q: Wide::Made(&mut absorbed_q),
            scores: &mut scores,
            sums: &mut sums,
            dropped: &mut nothing.slice_mut(0..0),
            mixed: &mut mixed,
            o,
        };
        attention.forward(kernels, of).expect("a launch");
    };
    forward(&mut o);

    let starts: Vec<usize> =
        sources.iter().scan(0, |end, n| Some(std::mem::replace(end, *end + n))).collect();
    // A row of a weight of a head, times a row of h.
    let projected = |weight: &[f64], column: usize, source: usize| -> f64 {
        let (w, h) = (&weight[column * depth..][..depth], &h[source * depth..][..depth]);
        w.iter().zip(h).map(|(w, h)| w * h).sum()
    };
    // q W_k of a target and head, \[D\]; d_o W_v likewise.
    let widened = |rows: &[f64], weight: &[f64], target: usize, head: usize| -> Vec<f64> {
        let columns = || head * width..(head + 1) * width;
        (0..depth)
            .map(|c| columns().map(|column| rows[target * total + column] * weight[column * depth + c]).sum())
            .collect()
    };
    let over_sources = |wide: &[f64], target: usize| -> Vec<f64> {
        let example = target / TARGETS;
        let rows = h[starts[example] * depth..].chunks_exact(depth).take(sources[example]);
        rows.map(|h| wide.iter().zip(h).map(|(a, b)| a * b).sum()).collect()
    };
    let weights = |target: usize, head: usize| -> Vec<f64> {
        let scores = over_sources(&widened(&q, &w_k, target, head), target);
        let exponentials: Vec<f64> = scores.iter().map(|score| score.exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        exponentials.iter().map(|value| value / sum).collect()
    };
    // q', the weights, what is mixed and o are each rounded to bf16.
    gpu.check("cross attention", &o, (depth, 4.0), |i| {
        let (target, column) = (i / total, i % total);
        let weights = weights(target, column / width);
        let first = starts[target / TARGETS];
        weights.iter().enumerate().map(|(n, weight)| weight * projected(&w_v, column, first + n)).sum()
    });
    let all: usize = sources.iter().sum();
    // A row is a target and head: its scores and mixture over all sources of its example, and two products with a weight.
    let products = 2 * TARGETS * heads.count * depth * all + 2 * targets * total * depth;
    let cost =
        Cost { operations: 2 * products, bytes: 2 * (all * depth + 2 * total * depth + 2 * targets * total) };
    gpu.measure(criterion, "cross attention", "forward", cost, || forward(&mut o));

    let [mut d_mixed, mut d_absorbed_q] = [(); 2].map(|()| gpu.unwritten_halves(lengths.wide));
    let [mut ds, mut p] = [(); 2].map(|()| gpu.unwritten_halves(lengths.pairs));
    let (mut d_q, mut d_h) = (gpu.unwritten_halves(targets * total), gpu.floats(&vec![0.0; rows * depth]));
    let mut backward = |d_q: &mut CudaSlice<bf16>| {
        let from = AbsorbedBackward {
            h: &h_device,
            absorbed_q: &absorbed_q,
            scores: &scores,
            sums: &sums,
            o: &o,
            d_o: &d_device,
            d_mixed: Wide::Made(&mut d_mixed),
        };
        let of_q = QueryGradient { d_absorbed_q: &mut d_absorbed_q, d_q, inner: None };
        let gradient = AbsorbedGradient { ds: &mut ds, p: &mut p, d_q: Some(of_q), d_h: Some(&mut d_h) };
        attention.backward(kernels, from, gradient).expect("a launch");
    };
    backward(&mut d_q);
    gpu.check("cross attention backward", &d_q, (depth, 8.0), |i| {
        let (target, column) = (i / total, i % total);
        let (head, first) = (column / width, starts[target / TARGETS]);
        let weights = weights(target, head);
        let d_weights = over_sources(&widened(&d_o, &w_v, target, head), target);
        let mean: f64 = weights.iter().zip(&d_weights).map(|(weight, d)| weight * d).sum();
        let d_scores = weights.iter().zip(&d_weights).map(|(weight, d)| weight * (d - mean));
        d_scores.enumerate().map(|(n, d)| d * projected(&w_k, column, first + n)).sum()
    });
    let cost = Cost {
        operations: 4 * products,
        bytes: 2 * (3 * all * depth + 2 * total * depth + 4 * targets * total),
    };
    gpu.measure(criterion, "cross attention", "backward", cost, || backward(&mut d_q));
}
