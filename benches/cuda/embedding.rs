//! Looking up the rows of long sources.

use criterion::Criterion;
use cudarc::driver::CudaSlice;
use promptmix::backend::{Batch, Example, Side};
use promptmix::cuda::embedding::{EmbeddedRows, Embedding};
use promptmix::cuda::{DropoutMask, Packed};

use crate::gpu::{Cost, Gpu, numbers};

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    let kernels = gpu.kernels();
    let (vocabulary, width) = (gpu.size(32_128, 100), gpu.size(768, 72));
    let (examples, length) = (gpu.size(32, 3), gpu.size(256, 9));
    let ids = |b: usize| (0..length).map(|i| ((b * length + i) * 7_919 % vocabulary) as u32).collect();
    let example = |b| Example { source: ids(b), target: vec![1], ..Example::default() };
    let examples: Vec<Example> = (0..examples).map(example).collect();
    let batch = Batch::pack(&examples, 0, 0, vocabulary).expect("a batch");
    let packed = Packed::new(kernels.stream(), batch).expect("a batch on the device");
    let rows = packed.rows(Side::Encoder).count();
    gpu.say("embedding", &[("rows", rows), ("vocabulary", vocabulary), ("width", width)]);
    let table = numbers(1, vocabulary * width, 1.0);
    let table_device = gpu.floats(&table);
    let embedding = Embedding { rows: packed.rows(Side::Encoder), width, mask: DropoutMask::default() };
    let (mut x, mut copy) = (gpu.unwritten_floats(rows * width), gpu.unwritten_halves(rows * width));
    let mut partials = gpu.unwritten_floats(rows * width.div_ceil(64));
    let mut forward = |x: &mut CudaSlice<f32>| {
        let written = EmbeddedRows { x, copy: Some(&mut copy), partials: &mut partials };
        embedding.forward(kernels, &table_device, written).expect("a launch");
    };
    forward(&mut x);
    let source: Vec<u32> = examples.iter().flat_map(|example| example.source.clone()).collect();
    gpu.check("embedding", &x, (16, 0.0), |i| table[source[i / width] as usize * width + i % width]);
    let cost = Cost { operations: 2 * rows * width, bytes: 10 * rows * width };
    gpu.measure(criterion, "embedding", "forward", cost, || forward(&mut x));
}
