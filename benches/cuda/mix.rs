//! The mixture of six sources for a batch, with the bottleneck scorer.

use criterion::Criterion;
use cudarc::driver::CudaSlice;
use promptmix::backend::{Batch, Example, Mixing, Scorer, Side, StateLayout};
use promptmix::cuda::mix::{FrozenSources, MixBackward, MixForward, PromptMix, pooled_keys};
use promptmix::cuda::{DropoutMask, Packed};

use crate::gpu::{Cost, Gpu, numbers};

const SOURCES: usize = 6;

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    let kernels = gpu.kernels();
    let (vocabulary, width, length) = (gpu.size(32_128, 100), gpu.size(768, 72), gpu.size(100, 5));
    let ids = |b: usize| (0..25).map(|i| ((b * 25 + i) * 7_919 % vocabulary) as u32).collect();
    let example = |b| Example { source: ids(b), target: vec![1], ..Example::default() };
    let examples: Vec<Example> = (0..gpu.size(32, 3)).map(example).collect();
    let batch = Batch::pack(&examples, length, 0, vocabulary).expect("a batch");
    let packed = Packed::new(kernels.stream(), batch).expect("a batch on the device");
    let batch = packed.described().batch();
    let mixing = Mixing { scorer: Some(Scorer::Bottleneck), temperature: width as f64, ..Mixing::plain() };
    let bottleneck_dim = gpu.size(100, 7);
    let layout = StateLayout::new(&mixing, 1, length, width, bottleneck_dim, false);
    let (values, sources) = (numbers(1, layout.len(), 0.1), numbers(2, SOURCES * length * width, 1.0));
    let narrow: Vec<f32> = sources.iter().map(|&value| value as f32).collect();
    let keys: Vec<f64> = pooled_keys(&narrow, length, width).into_iter().map(f64::from).collect();
    let table = gpu.floats(&numbers(3, vocabulary * width, 1.0));
    let (values_device, sources_device, keys) =
        (gpu.floats(&values), gpu.floats(&sources), gpu.floats(&keys));
    let rows = batch.rows(Side::Encoder);
    let sizes = [
        ("examples", batch.examples()),
        ("prompt", length),
        ("width", width),
        ("sources", SOURCES),
        ("bottleneck", bottleneck_dim),
    ];
    gpu.say("mix", &sizes);
    let mut x = gpu.floats(&vec![0.0; rows * width]);
    let mut mix = PromptMix::new(kernels, packed.described(), &mixing, &layout, SOURCES, 1).expect("a shape");
    let (sources_known, values_known) =
        (Some(FrozenSources { prompts: &sources_device, keys: &keys }), &values_device);
    let forward = |mix: &mut PromptMix<'_>, x: &mut CudaSlice<f32>| {
        let (copy, partials, mask) = (None, None, DropoutMask::default());
        let of = MixForward {
            table: &table,
            sources: sources_known,
            values: values_known,
            x,
            copy,
            partials,
            mask,
        };
        mix.forward(kernels, of).expect("a launch");
    };
    forward(&mut mix, &mut x);
    // Rows against the weights that the kernels found; those are against the CPU in the tests.
    let attention = kernels.stream().clone_dtoh(&mix.attention()).expect("weights");
    for weights in attention.chunks_exact(SOURCES + 1) {
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5, "weights sum to one: {weights:?}");
    }
    let place = |i: usize| {
        let row = i / width;
        let b = (0..batch.examples())
            .find(|&b| batch.range(Side::Encoder, b).contains(&row))
            .expect("an example");
        (b, row - batch.range(Side::Encoder, b).start, i % width)
    };
    gpu.check("mixture", &x, (SOURCES, 0.0), |i| {
        let (b, row, column) = place(i);
        if row >= length {
            return 0.0;
        }
        let weights = &attention[b * (SOURCES + 1)..][..SOURCES + 1];
        let own = (1.0 + f64::from(weights[SOURCES])) * values[row * width + column];
        let source = |j: usize| f64::from(weights[j]) * sources[(j * length + row) * width + column];
        own + (0..SOURCES).map(source).sum::<f64>()
    });
    let (examples, prompt) = (batch.examples(), length * width);
    let cost = Cost {
        operations: 2 * examples * ((SOURCES + 1) * (prompt + width) + 2 * width * bottleneck_dim),
        bytes: 4 * (examples * (prompt + 25 * width) + (SOURCES + 1) * prompt + 2 * width * bottleneck_dim),
    };
    gpu.measure(criterion, "mix", "forward", cost, || forward(&mut mix, &mut x));

    let d_x = numbers(4, rows * width, 1.0);
    let d_device = gpu.floats(&d_x);
    let mut gradient = gpu.floats(&vec![0.0; layout.len()]);
    let backward = |mix: &mut PromptMix<'_>, gradient: &mut CudaSlice<f32>| {
        let of = MixBackward { sources: sources_known, values: values_known, d_x: &d_device, gradient };
        mix.backward(kernels, of).expect("a launch");
    };
    backward(&mut mix, &mut gradient);
    let found = kernels.stream().clone_dtoh(&gradient).expect("a gradient");
    assert!(found.iter().all(|value| value.is_finite()) && found.iter().any(|&value| value != 0.0));
    let cost = Cost {
        operations: 2 * examples * ((SOURCES + 2) * prompt + 4 * width * bottleneck_dim),
        bytes: 4 * (2 * examples * prompt + (SOURCES + 1) * prompt + 2 * layout.len()),
    };
    gpu.measure(criterion, "mix", "backward", cost, || backward(&mut mix, &mut gradient));
}
