//! The device of a test, its operands, and how closely its results must follow.

use std::path::PathBuf;

use cudarc::driver::{CudaSlice, DeviceRepr};
use half::bf16;
use promptmix::Result;
use promptmix::backend::cpu::Cpu;
use promptmix::backend::{Backend, Batch, Device as _, DropoutStep, Example, Format, Mask, Side, Site};
use promptmix::cuda::{Cuda, Kernels, Precision};
use promptmix::verify::{Tolerance, compare};

use crate::random::Random;

/// A GPU whose checks fail the test that it is dropped in.
pub struct Device {
    pub cuda: Cuda,
    // Dropped after the backend, which still launches nothing then.
    pub gpu: vgpu::Gpu,
}

/// The project's folder: where cargo runs the tests, or where a program of tests was carried to.
pub fn project() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A poisoned device; none, with a printed reason, in a build without kernels, which in CI fails.
pub fn device(precision: Precision) -> Option<Device> {
    of_backend(|| Cuda::poisoning(0, precision))
}

/// The same without poison, whose fills come between launches: here they follow each other as in training.
pub fn launching_device(precision: Precision) -> Option<Device> {
    of_backend(|| Cuda::new(0, precision))
}

fn of_backend(cuda: impl FnOnce() -> Result<Cuda>) -> Option<Device> {
    if !crate::kernels::are_built() {
        return None;
    }
    let gpu = vgpu::load().expect("a GPU, virtual or real");
    Some(Device { cuda: cuda().expect("a device"), gpu })
}

/// A backend that a test can put numbers on.
pub trait Place: Backend {
    /// An activation that holds `values`, \[rows, width\].
    fn place(&self, values: &[f64], width: usize, format: Format) -> Result<Self::Rows>;
}

impl Place for Cpu<f64> {
    fn place(&self, values: &[f64], width: usize, _: Format) -> Result<Self::Rows> {
        Ok(self.activation_of(values, width))
    }
}

impl Place for Cuda {
    fn place(&self, values: &[f64], width: usize, format: Format) -> Result<Self::Rows> {
        self.activation_of(&narrowed(values), width, format)
    }
}

/// What an op gives, by name.
pub type Results = Vec<(&'static str, Vec<f64>)>;

/// An op on given operands, for any device.
pub trait Case: std::fmt::Debug {
    /// Runs it and reads back all that it gives.
    fn run<B: Place>(&self, backend: &B) -> Result<Results>;
}

/// How far a result may be off, as a part of its largest entry.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Terms of the longest sum, for [`sums`] in f32.
    pub terms: usize,
    /// In bf16.
    pub bf16: Tolerance,
}

/// A bound for bf16: of a result of so many roundings (2^-9 each), with the growth that sums between them give
/// it, as a part of the largest entry.
pub fn roundings(count: f64) -> Tolerance {
    Tolerance::OfLargest(count * 2.0_f64.powi(-9))
}

/// Runs `case` on the CPU in f64 and on the device in both precisions: twice, the second time with blocks and warps in
/// another order, which must change no bit.
pub fn follow(case: &impl Case, bounds: Bounds) {
    let expected = case.run(&Cpu::<f64>::poisoning(Some(2)).expect("threads")).expect("results of the CPU");
    for precision in [Precision::F32, Precision::Bf16] {
        let Some(device) = device(precision) else { return };
        let seed = |seed| {
            device.gpu.change(&vgpu::Change { seed: Some(seed), ..Default::default() });
        };
        let run = || {
            let results = case.run(&device.cuda).and_then(|results| {
                device.cuda.synchronize()?;
                Ok(results)
            });
            results.unwrap_or_else(|error| {
                panic!("{case:?} {precision:?}: {error}\n{:#?}", device.gpu.take_reports().first())
            })
        };
        seed(1);
        let found = run();
        seed(1234);
        let again = run();
        let tolerance = match precision {
            Precision::F32 => sums(bounds.terms),
            _ => bounds.bf16,
        };
        assert_eq!(found.len(), expected.len());
        for (((name, expected), (_, found)), (_, again)) in expected.iter().zip(&found).zip(&again) {
            let what = format!("{name} of {case:?} in {precision:?}");
            let comparison = compare(found, expected);
            assert!(comparison.passes(tolerance), "{what}: {comparison:?}, wanted {tolerance}");
            assert!(found == again, "{what}: other bits in another order of blocks");
        }
    }
}

/// Normal numbers that bf16 holds exactly, so that only the op itself rounds.
pub fn numbers(seed: u64, count: usize, deviation: f64) -> Vec<f64> {
    let normals = Random::new(seed).normals(count, deviation);
    normals.into_iter().map(|value| half::bf16::from_f64(value).to_f64()).collect()
}

/// Frozen numbers of an `[out, in]` matrix, spread so that its products keep the size of their input.
pub fn matrix(seed: u64, out: usize, input: usize) -> Vec<f32> {
    narrowed(&numbers(seed, out * input, (input as f64).powf(-0.5)))
}

pub fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// Examples of the given source and target lengths before prompts of `prompt_length`; ids below `vocabulary`.
pub fn batch(lengths: &[(usize, usize)], prompt_length: usize, vocabulary: usize) -> Batch {
    let mut random = Random::new(41);
    let mut ids = |count: usize| (0..count).map(|_| random.below(vocabulary) as u32).collect();
    let lengths = lengths.iter().enumerate();
    let examples: Vec<Example> = lengths
        .map(|(index, &(n, t))| Example {
            source: ids(n),
            target: ids(t),
            index: 3 + index as u32,
            ..Example::default()
        })
        .collect();
    Batch::pack(&examples, prompt_length, 0, vocabulary).expect("a batch")
}

/// A step's dropout, or none for probability 0.
pub fn dropout(probability: f64) -> Option<DropoutStep> {
    DropoutStep::new(probability, 5, &[77])
}

pub fn mask_of(dropout: &Option<DropoutStep>, side: Side, kind: promptmix::backend::SiteKind) -> Mask<'_> {
    dropout.as_ref().map(|step| (step, Site::new(side, kind, 1)))
}

/// A device for raw launches on cudarc's own buffers.
pub struct Raw(Device);

impl Raw {
    /// None, with a printed reason, in a build without kernels.
    pub fn new() -> Option<Self> {
        device(Precision::Bf16).map(Self)
    }

    pub fn kernels(&self) -> &Kernels {
        self.0.cuda.kernels()
    }

    pub fn is_virtual(&self) -> bool {
        self.0.gpu.is_virtual()
    }

    pub fn capability(&self) -> (i32, i32) {
        self.0.cuda.info().compute_capability
    }

    /// Has the virtual GPU run blocks and warps in another order.
    pub fn order(&self, seed: u64) {
        self.0.gpu.change(&vgpu::Change { seed: Some(seed), ..Default::default() });
    }

    pub fn floats(&self, values: &[f64]) -> CudaSlice<f32> {
        self.kernels().stream().clone_htod(&narrowed(values)).expect("an upload")
    }

    /// The first `count` of some numbers; nobody has written what is after them.
    pub fn partly_written(&self, values: &[f64], count: usize) -> CudaSlice<f32> {
        // SAFETY: numbers in f32 of any bits are numbers.
        let mut buffer = unsafe { self.kernels().stream().alloc(values.len()) }.expect("memory");
        let written = narrowed(&values[..count]);
        let mut part = buffer.slice_mut(0..count);
        self.kernels().stream().memcpy_htod(&written, &mut part).expect("an upload");
        buffer
    }

    pub fn halves(&self, values: &[f64]) -> CudaSlice<bf16> {
        let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f64(value)).collect();
        self.kernels().stream().clone_htod(&values).expect("an upload")
    }

    /// NaN, which an output must not keep.
    pub fn poisoned_floats(&self, count: usize) -> CudaSlice<f32> {
        self.floats(&vec![f64::NAN; count])
    }

    pub fn poisoned_halves(&self, count: usize) -> CudaSlice<bf16> {
        self.halves(&vec![f64::NAN; count])
    }

    pub fn read<T: DeviceRepr + Clone + Default + Into<f64>>(&self, slice: &CudaSlice<T>) -> Vec<f64> {
        let values = self.kernels().stream().clone_dtoh(slice).expect("a download");
        self.0.cuda.synchronize().expect("a healthy device");
        values.into_iter().map(Into::into).collect()
    }

    /// Fails unless `slice` holds what is expected.
    #[track_caller]
    pub fn holds<T: DeviceRepr + Clone + Default + Into<f64>>(
        &self,
        what: &str,
        slice: &CudaSlice<T>,
        expected: &[f64],
        tolerance: Tolerance,
    ) {
        let comparison = compare(&self.read(slice), expected);
        assert!(comparison.passes(tolerance), "{what}: {comparison:?}, wanted {tolerance}");
    }
}

/// The bound of an f32 sum of `terms`: each may be off by half a place of a partial sum, and partial sums reach a few
/// times the largest result.
pub fn sums(terms: usize) -> Tolerance {
    Tolerance::OfLargest(4.0 * terms.max(16) as f64 * 2.0_f64.powi(-24))
}

/// The partial sums of squares of rows of `width`, 64 columns each.
pub fn partial_squares(rows: &[f64], width: usize) -> Vec<f64> {
    let parts = rows.chunks_exact(width).flat_map(|row| row.chunks(64));
    parts.map(|part| part.iter().map(|value| value * value).sum()).collect()
}

/// Each row's reciprocal root mean square.
pub fn reciprocals(rows: &[f64], width: usize, epsilon: f64) -> Vec<f64> {
    let mean = |row: &[f64]| row.iter().map(|value| value * value).sum::<f64>() / width as f64;
    rows.chunks_exact(width).map(|row| (mean(row) + epsilon).sqrt().recip()).collect()
}
