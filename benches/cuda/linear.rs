//! Products at the shapes of a layer, and the gate.

use criterion::Criterion;
use cudarc::driver::CudaSlice;
use half::bf16;
use promptmix::backend::Activation;
use promptmix::cuda::feed_forward::Gate;
use promptmix::cuda::linear::{Epilogue, Linear, Norm};
use promptmix::cuda::{DropoutMask, Sequences};

use crate::gpu::{Cost, EPSILON, Gpu, lengths, numbers, partial_squares, reciprocal};

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    let rows: usize = lengths(gpu).iter().sum();
    for (name, rows, out, input) in [
        ("qkv", rows, 2_304, 768),
        ("output", rows, 768, 768),
        ("inner", rows, 3_072, 768),
        ("outer", rows, 768, 3_072),
        ("decoder", 64, 768, 3_072),
        ("square", 4_096, 4_096, 4_096),
    ] {
        let (rows, out, input) = (gpu.size(rows, 40), gpu.size(out, 136), gpu.size(input, 72));
        product(gpu, criterion, name, [rows, out, input]);
    }
    gate(gpu, criterion, rows, gpu.size(2_048, 72));
}

fn product(gpu: &Gpu, criterion: &mut Criterion, name: &str, [rows, out, input]: [usize; 3]) {
    gpu.say(&format!("linear/{name}"), &[("rows", rows), ("out", out), ("in", input)]);
    let kernels = gpu.kernels();
    let sequences = Sequences::new(kernels.stream(), &[rows]).expect("rows");
    let mut linear = Linear::new(kernels, sequences.rows(), out, input).expect("widths that fit");
    let (x, dz) = (numbers(1, rows * input, 1.0), numbers(2, rows * out, 1.0));
    let w = numbers(3, out * input, (input as f64).powf(-0.5));
    let (x_device, dz_device, w_device) = (gpu.halves(&x), gpu.halves(&dz), gpu.halves(&w));
    let partials = gpu.floats(&partial_squares(&x, input));
    let norm = Norm { partials: &partials, epsilon: EPSILON as f32 };
    let cost = Cost { operations: 2 * rows * out * input, bytes: 2 * (rows * (out + input) + out * input) };

    let mut z = gpu.unwritten_halves(rows * out);
    let mut forward = |z: &mut CudaSlice<bf16>| {
        linear.forward(kernels, &x_device, &w_device, Epilogue::Project { norm, z }).expect("a launch");
    };
    forward(&mut z);
    gpu.check(name, &z, (input, 1.0), |i| {
        let (row, column) = (&x[i / out * input..][..input], &w[i % out * input..][..input]);
        reciprocal(row) * row.iter().zip(column).map(|(x, w)| x * w).sum::<f64>()
    });
    gpu.measure(criterion, "linear", &format!("{name}/forward"), cost, || forward(&mut z));

    let mut d_x = gpu.unwritten_halves(rows * input);
    let mut backward = |z: &mut CudaSlice<bf16>| {
        linear.backward(kernels, &dz_device, &w_device, Epilogue::Plain { z }).expect("a launch");
    };
    backward(&mut d_x);
    gpu.check(name, &d_x, (out, 1.0), |i| {
        (0..out).map(|depth| dz[i / input * out + depth] * w[depth * input + i % input]).sum()
    });
    gpu.measure(criterion, "linear", &format!("{name}/backward"), cost, || backward(&mut d_x));
}

fn gate(gpu: &Gpu, criterion: &mut Criterion, rows: usize, width: usize) {
    let kernels = gpu.kernels();
    let sequences = Sequences::new(kernels.stream(), &[rows]).expect("rows");
    gpu.say("linear/gate", &[("rows", rows), ("width", width)]);
    let (activation, mask) = (Activation::GatedSilu, DropoutMask::default());
    let gate = Gate { rows: sequences.rows(), width, activation, mask };
    let (z, d) = (numbers(1, rows * 2 * width, 2.0), numbers(2, rows * width, 1.0));
    let (z_device, d_device) = (gpu.halves(&z), gpu.halves(&d));
    let silu = |z: f64| z / (1.0 + (-z).exp());
    let halves =
        |i: usize| (z[i / width * 2 * width + i % width], z[(i / width * 2 + 1) * width + i % width]);
    let mut a = gpu.unwritten_halves(rows * width);
    let forward = |a: &mut CudaSlice<bf16>| gate.forward(kernels, &z_device, a).expect("a launch");
    forward(&mut a);
    gpu.check("gate", &a, (16, 1.0), |i| silu(halves(i).0) * halves(i).1);
    let cost = Cost { operations: 6 * rows * width, bytes: 6 * rows * width };
    gpu.measure(criterion, "linear", "gate/forward", cost, || forward(&mut a));

    let (mut dz, mut inner) = (gpu.unwritten_halves(rows * 2 * width), gpu.unwritten_floats(rows));
    let mut backward = |dz: &mut CudaSlice<bf16>| {
        gate.backward(kernels, &z_device, &d_device, dz, &mut inner).expect("a launch")
    };
    backward(&mut dz);
    gpu.check("gate", &dz, (16, 1.0), |i| {
        let (row, column) = (i / (2 * width), i % (2 * width));
        let at = row * width + column % width;
        let ((z0, z1), s) = (halves(at), 1.0 / (1.0 + (-halves(at).0).exp()));
        d[at] * if column < width { z1 * s * (1.0 + z0 * (1.0 - s)) } else { z0 * s }
    });
    let cost = Cost { operations: 15 * rows * width, bytes: 10 * rows * width };
    gpu.measure(criterion, "linear", "gate/backward", cost, || backward(&mut dz));
}
