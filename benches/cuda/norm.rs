//! The final norm over the encoder's rows.

use criterion::Criterion;
use cudarc::driver::CudaSlice;
use half::bf16;
use promptmix::cuda::norm::{FinalNorm, FinalNormGradient, NormedRows};
use promptmix::cuda::{DropoutMask, Sequences};

use crate::gpu::{Cost, EPSILON, Gpu, lengths, numbers, partial_squares, reciprocal};

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    let kernels = gpu.kernels();
    let sequences = Sequences::new(kernels.stream(), &lengths(gpu)).expect("sequences");
    let (rows, width) = (sequences.count(), gpu.size(768, 72));
    gpu.say("norm", &[("rows", rows), ("width", width)]);
    let (x, d_h, norm_weights) =
        (numbers(1, rows * width, 1.0), numbers(2, rows * width, 1.0), numbers(3, width, 1.0));
    let (x_device, d_device, partials) =
        (gpu.floats(&x), gpu.floats(&d_h), gpu.floats(&partial_squares(&x, width)));
    let norm_weight = gpu.floats(&norm_weights);
    let (epsilon, mask) = (EPSILON as f32, DropoutMask::default());
    let norm = FinalNorm {
        rows: sequences.rows(),
        width,
        epsilon,
        norm_weight: Some(&norm_weight),
        scale: 0.5,
        mask,
    };
    let input = NormedRows { x: &x_device, partials: &partials };
    let row = |i: usize| &x[i / width * width..][..width];
    let mut h = gpu.unwritten_halves(rows * width);
    let forward = |h: &mut CudaSlice<bf16>| norm.forward(kernels, input, h).expect("a launch");
    forward(&mut h);
    gpu.check("final norm", &h, (width, 1.0), |i| x[i] * reciprocal(row(i)) * norm_weights[i % width] * 0.5);
    let cost = Cost { operations: 3 * rows * width, bytes: 6 * rows * width };
    gpu.measure(criterion, "norm", "forward", cost, || forward(&mut h));

    let (mut d_x, mut copy) = (gpu.unwritten_floats(rows * width), gpu.unwritten_halves(rows * width));
    let mut backward = |d_x: &mut CudaSlice<f32>| {
        let written = FinalNormGradient { d_x, copy: Some(&mut copy), inner: None };
        norm.backward(kernels, input, &d_device, written).expect("a launch");
    };
    backward(&mut d_x);
    gpu.check("final norm backward", &d_x, (width, 0.0), |i| {
        let (start, r) = (i / width * width, reciprocal(row(i)));
        let g = |column: usize| d_h[start + column] * norm_weights[column] * 0.5;
        let inner: f64 = (0..width).map(|column| g(column) * x[start + column]).sum();
        r * g(i - start) - r.powi(3) * inner / width as f64 * x[i]
    });
    let cost = Cost { operations: 10 * rows * width, bytes: 14 * rows * width };
    gpu.measure(criterion, "norm", "backward", cost, || backward(&mut d_x));
}
