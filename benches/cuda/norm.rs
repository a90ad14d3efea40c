//! The final norm over the encoder's rows.

use criterion::Criterion;
use promptmix::cuda::Sequences;
use promptmix::cuda::norm::FinalNorm;

use crate::gpu::{Cost, EPSILON, Floats, Gpu, Halves, lengths, numbers, partial_squares, reciprocal};

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    let kernels = gpu.kernels();
    let sequences = Sequences::new(kernels.stream(), &lengths(gpu)).expect("sequences");
    let (rows, width) = (sequences.rows(), gpu.size(768, 72));
    let (x, d_h, gains) =
        (numbers(1, rows * width, 1.0), numbers(2, rows * width, 1.0), numbers(3, width, 1.0));
    let (x_device, d_device, partials) =
        (gpu.floats(&x), gpu.floats(&d_h), gpu.floats(&partial_squares(&x, width)));
    let gain = gpu.floats(&gains);
    let gain = gain.as_view();
    let norm =
        FinalNorm { sequences: &sequences, width, epsilon: EPSILON as f32, gain: Some(&gain), scale: 0.5 };
    let row = |i: usize| &x[i / width * width..][..width];
    let mut h = gpu.unwritten_halves(rows * width);
    let forward = |h: &mut Halves<'_>| {
        norm.forward(kernels, &x_device.as_view(), &partials.as_view(), h).expect("a launch");
    };
    forward(&mut h.as_view_mut());
    gpu.check("final norm", &h, (width, 1.0), |i| x[i] * reciprocal(row(i)) * gains[i % width] * 0.5);
    let cost = Cost { operations: 3 * rows * width, bytes: 6 * rows * width };
    gpu.measure(criterion, "norm", "forward", cost, || forward(&mut h.as_view_mut()));

    let (mut d_x, mut copy) = (gpu.unwritten_floats(rows * width), gpu.unwritten_halves(rows * width));
    let backward = |d_x: &mut Floats<'_>, copy: &mut Halves<'_>| {
        let (x, d_h) = (&x_device.as_view(), &d_device.as_view());
        norm.backward(kernels, x, &partials.as_view(), d_h, d_x, copy).expect("a launch");
    };
    backward(&mut d_x.as_view_mut(), &mut copy.as_view_mut());
    gpu.check("final norm backward", &d_x, (width, 0.0), |i| {
        let (start, r) = (i / width * width, reciprocal(row(i)));
        let g = |column: usize| d_h[start + column] * gains[column] * 0.5;
        let inner: f64 = (0..width).map(|column| g(column) * x[start + column]).sum();
        r * g(i - start) - r.powi(3) * inner / width as f64 * x[i]
    });
    let cost = Cost { operations: 10 * rows * width, bytes: 14 * rows * width };
    gpu.measure(criterion, "norm", "backward", cost, || {
        backward(&mut d_x.as_view_mut(), &mut copy.as_view_mut());
    });
}
