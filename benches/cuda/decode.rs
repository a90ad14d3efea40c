//! A decoding step after some tokens.

use criterion::Criterion;
use promptmix::backend::Heads;
use promptmix::cuda::decode::DecodeStep;

use crate::gpu::{Cost, Gpu, numbers};

const MAX_DISTANCE: usize = 127;

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    let kernels = gpu.kernels();
    let (examples, length) = (gpu.size(64, 2), gpu.size(64, 34));
    let heads = Heads { count: gpu.size(12, 2), width: 64 };
    let (total, position) = (heads.total(), length - 1);
    gpu.say(
        "decode",
        &[("examples", examples), ("tokens", length), ("heads", heads.count), ("width", heads.width)],
    );
    let (qkv, cache) =
        (numbers(1, examples * 3 * total, 0.5), numbers(2, examples * length * 2 * total, 0.5));
    let biases = numbers(3, heads.count * (2 * MAX_DISTANCE + 1), 1.0);
    let (qkv_device, bias) = (gpu.halves(&qkv), gpu.floats(&biases));
    let (mut cache_device, mut o) = (gpu.halves(&cache), gpu.unwritten_halves(examples * total));
    let step = DecodeStep { examples, heads, length, position, bias: (&bias, MAX_DISTANCE) };
    step.forward(kernels, &qkv_device, &mut cache_device, &mut o).expect("a launch");
    gpu.check("decode", &o, (heads.width, 2.0), |i| {
        let (example, column) = (i / total, i % total);
        let head = column / heads.width;
        let own = &qkv[example * 3 * total..][..3 * total];
        let of = |key: usize, part: usize, column: usize| {
            let earlier = (example * length + key) * 2 * total + part * total + column;
            if key == position { own[(1 + part) * total + column] } else { cache[earlier] }
        };
        let weight = |key: usize| {
            let columns = head * heads.width..(head + 1) * heads.width;
            let product: f64 = columns.map(|column| own[column] * of(key, 0, column)).sum();
            (product
                + biases[head * (2 * MAX_DISTANCE + 1) + MAX_DISTANCE - (position - key).min(MAX_DISTANCE)])
            .exp()
        };
        let sum: f64 = (0..length).map(weight).sum();
        (0..length).map(|key| weight(key) / sum * of(key, 1, column)).sum()
    });
    let cost =
        Cost { operations: 4 * examples * length * total, bytes: 2 * examples * total * (2 * length + 4) };
    gpu.measure(criterion, "decode", "step", cost, || {
        step.forward(kernels, &qkv_device, &mut cache_device, &mut o).expect("a launch");
    });
}
