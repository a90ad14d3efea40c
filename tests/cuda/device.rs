//! The device of a test, its operands, and how closely its results must follow.

use promptmix::backend::cpu::Cpu;
use promptmix::backend::{Backend, Batch, Example, Format};
use promptmix::cuda::{Cuda, FATBINS, Precision, Rows};
use promptmix::verify::{Tolerance, compare};

/// Half a place of bf16, relative: its significand has 8 bits.
pub const BF16_ROUNDING: f64 = 1.0 / 256.0;

/// A GPU whose checks fail the test that it is dropped in.
pub struct Device {
    pub cuda: Cuda,
    // Dropped behind the backend, which still launches nothing then.
    pub gpu: vgpu::Gpu,
}

/// A poisoned device; none, with a printed reason, in a build without kernels, which in CI fails.
pub fn device(precision: Precision) -> Option<Device> {
    if FATBINS.is_empty() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs without nvcc; run scripts/install-cuda-compiler first"
        );
        eprintln!("skipped: this build has no kernels; run scripts/install-cuda-compiler");
        return None;
    }
    let gpu = vgpu::load().expect("a GPU, virtual or real");
    let cuda = Cuda::poisoning(0, precision).expect("a device");
    Some(Device { cuda, gpu })
}

/// The CPU as the reference, in f64.
pub fn reference() -> Cpu<f64> {
    Cpu::poisoning(Some(2)).expect("threads")
}

/// Uniform numbers from -1 to 1 that bf16 holds exactly.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        half::bf16::from_f32((state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0).to_f32()
    };
    (0..count).map(|_| draw()).collect()
}

/// Examples of the given source and target lengths before prompts of `prompt_length`; ids below `vocabulary`.
pub fn batch(lengths: &[(usize, usize)], prompt_length: usize, vocabulary: usize) -> Batch {
    let examples = lengths.iter().enumerate().map(|(index, &(n, t))| Example {
        source: (0..n).map(|i| ((7 * index + 3 * i + 1) % vocabulary) as u32).collect(),
        target: (0..t).map(|i| ((5 * index + 11 * i + 2) % vocabulary) as u32).collect(),
        index: 3 + index as u32,
        ..Example::default()
    });
    Batch::pack(&examples.collect::<Vec<_>>(), prompt_length, 0, vocabulary).expect("a batch")
}

/// The same activation on the reference, which has one format alone.
pub fn on_reference(cpu: &Cpu<f64>, values: &[f32], width: usize) -> promptmix::backend::cpu::Rows<f64> {
    cpu.activation_of(&values.iter().copied().map(f64::from).collect::<Vec<_>>(), width)
}

/// An activation on the device.
pub fn on_device(cuda: &Cuda, values: &[f32], width: usize, format: Format) -> Rows {
    let rows = cuda.activation_of(values, width, format);
    cuda.health().expect("an upload");
    rows
}

/// Fails unless `found` follows `expected` within `tolerance`; also on a NaN, another length, and all zeros.
pub fn close(what: &str, found: &[f64], expected: &[f64], tolerance: Tolerance) {
    let comparison = compare(found, expected);
    assert!(comparison.passes(tolerance), "{what}: {comparison:?}, wanted {tolerance}");
}
