//! The device of a bench: operands on it, checks, and timing by events.

use std::cell::RefCell;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUevent_flags};
use cudarc::driver::{CudaContext, CudaSlice, DeviceRepr};
use half::bf16;
use promptmix::cuda::{FATBINS, Kernels, devices};
use promptmix::verify::{Tolerance, compare};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Entries of a result that are compared with sums of their own.
const CHECKED: usize = 200;

/// What a launch costs at least.
#[derive(Clone, Copy)]
pub struct Cost {
    /// Floating-point operations.
    pub operations: usize,
    /// Bytes of its operands, each once.
    pub bytes: usize,
}

struct Figure {
    name: String,
    cost: Cost,
    microseconds: Vec<f64>,
}

/// A GPU with the kernels of this build.
pub struct Gpu {
    kernels: Kernels,
    /// Larger than the level-2 cache: writing it leaves nothing else there.
    flush: RefCell<CudaSlice<u8>>,
    figures: RefCell<Vec<Figure>>,
    /// Dropped last: what the virtual GPU's checks found fails the bench.
    virtual_gpu: Option<vgpu::Gpu>,
}

impl Gpu {
    /// The first GPU, or why there is none.
    pub fn open() -> Result<Self, String> {
        if FATBINS.is_empty() {
            return Err("this build has no GPU kernels".into());
        }
        let is_virtual = std::env::var("PROMPTMIX_TEST_DEVICE").is_ok_and(|device| device == "vgpu");
        let virtual_gpu = is_virtual.then(|| vgpu::load().expect("the virtual GPU"));
        if devices().map_or(true, |found| found.is_empty()) {
            return Err("no GPU".into());
        }
        let context = CudaContext::new(0).map_err(|error| format!("the GPU cannot be opened: {error}"))?;
        let cache =
            context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).unwrap_or(1 << 26) as usize;
        let stream = context.new_stream().expect("a stream");
        let flush = stream.alloc_zeros(if is_virtual { 1 << 10 } else { 2 * cache }).expect("a buffer");
        let kernels = Kernels::new(stream).expect("the kernels of this build");
        Ok(Self { kernels, flush: flush.into(), figures: RefCell::default(), virtual_gpu })
    }

    pub fn is_virtual(&self) -> bool {
        self.virtual_gpu.is_some()
    }

    /// A size of the step that is timed, or a small one for the virtual GPU.
    pub fn size(&self, full: usize, small: usize) -> usize {
        if self.is_virtual() { small } else { full }
    }

    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    pub fn floats(&self, values: &[f64]) -> CudaSlice<f32> {
        let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        self.kernels.stream().clone_htod(&values).expect("an upload")
    }

    pub fn halves(&self, values: &[f64]) -> CudaSlice<bf16> {
        let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f64(value)).collect();
        self.kernels.stream().clone_htod(&values).expect("an upload")
    }

    /// Results not yet written: NaN.
    pub fn unwritten_floats(&self, count: usize) -> CudaSlice<f32> {
        self.floats(&vec![f64::NAN; count])
    }

    /// Results not yet written: NaN.
    pub fn unwritten_halves(&self, count: usize) -> CudaSlice<bf16> {
        self.halves(&vec![f64::NAN; count])
    }

    /// Fails the bench unless entries of `slice`, spread over it, are what `of` says, within `terms` roundings of f32 and
    /// `halves` of bf16 of the largest.
    pub fn check<T: DeviceRepr + Clone + Default + Into<f64>>(
        &self,
        what: &str,
        slice: &CudaSlice<T>,
        (terms, halves): (usize, f64),
        of: impl Fn(usize) -> f64,
    ) {
        let found = self.kernels.stream().clone_dtoh(slice).expect("a download");
        let step = (found.len() / CHECKED).max(1) | 1;
        let places = || (0..found.len()).step_by(step);
        let expected: Vec<f64> = places().map(of).collect();
        let chosen: Vec<f64> = places().map(|place| found[place].clone().into()).collect();
        let comparison = compare(&chosen, &expected);
        let tolerance =
            Tolerance::OfLargest(4.0 * terms.max(16) as f64 * 2.0_f64.powi(-24) + halves * 2.0_f64.powi(-8));
        assert!(comparison.passes(tolerance), "{what}: {comparison:?}, wanted {tolerance}");
    }

    /// Says which sizes the kernels that come next are at.
    pub fn say(&self, group: &str, sizes: &[(&str, usize)]) {
        let sizes: Vec<String> = sizes.iter().map(|(name, size)| format!("{name} {size}")).collect();
        println!("{group}: {}", sizes.join(", "));
    }

    /// Times `launch` under `group/name`.
    pub fn measure(
        &self,
        criterion: &mut Criterion,
        group: &str,
        name: &str,
        cost: Cost,
        mut launch: impl FnMut(),
    ) {
        let mut all = criterion.benchmark_group(group);
        all.throughput(Throughput::ElementsAndBytes {
            elements: cost.operations as u64,
            bytes: cost.bytes as u64,
        });
        let mut microseconds = Vec::new();
        all.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut sum = 0.0;
                for _ in 0..iterations {
                    let milliseconds = self.once(&mut launch);
                    microseconds.push(milliseconds * 1e3);
                    sum += milliseconds;
                }
                Duration::from_secs_f64(sum / 1e3)
            });
        });
        all.finish();
        if !microseconds.is_empty() {
            self.figures.borrow_mut().push(Figure { name: format!("{group}/{name}"), cost, microseconds });
        }
    }

    /// Milliseconds of one launch after a flush, by the device's events.
    fn once(&self, launch: &mut impl FnMut()) -> f64 {
        let stream = self.kernels.stream();
        stream.memset_zeros(&mut *self.flush.borrow_mut()).expect("a flush");
        let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).expect("an event");
        let start = event();
        launch();
        let end = event();
        f64::from(start.elapsed_ms(&end).expect("two events"))
    }

    /// What was measured, as one line of JSON.
    pub fn figures(&self) -> serde_json::Value {
        let figures = self.figures.borrow();
        let kernels = figures.iter().map(|figure| {
            let mut times = figure.microseconds.clone();
            times.sort_by(f64::total_cmp);
            let median = times[times.len() / 2];
            serde_json::json!({
                "kernel": figure.name, "median_us": median, "least_us": times[0], "launches": times.len(),
                "gflop_per_s": figure.cost.operations as f64 / median / 1e3,
                "gb_per_s": figure.cost.bytes as f64 / median / 1e3,
            })
        });
        serde_json::json!({ "kernels": kernels.collect::<Vec<_>>() })
    }
}

/// Uniform numbers between -1 and 1, times `scale`, that bf16 holds.
pub fn numbers(seed: u64, count: usize, scale: f64) -> Vec<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut number = || f64::from(random.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0;
    (0..count).map(|_| bf16::from_f64(number() * scale).to_f64()).collect()
}

/// Rows of the step that is timed: 32 examples after prompts of 100 with sentences of SST-2's usual length, or few.
pub fn lengths(gpu: &Gpu) -> Vec<usize> {
    if gpu.is_virtual() { vec![70, 1, 30] } else { (0..32).map(|i| 112 + i % 27).collect() }
}

/// The partial sums of squares of rows of `width`.
pub fn partial_squares(rows: &[f64], width: usize) -> Vec<f64> {
    let parts = rows.chunks_exact(width).flat_map(|row| row.chunks(64));
    parts.map(|part| part.iter().map(|value| value * value).sum()).collect()
}

/// A row's reciprocal root mean square.
pub fn reciprocal(row: &[f64]) -> f64 {
    (row.iter().map(|value| value * value).sum::<f64>() / row.len() as f64 + EPSILON).sqrt().recip()
}

/// Of every norm here.
pub const EPSILON: f64 = 1e-6;
