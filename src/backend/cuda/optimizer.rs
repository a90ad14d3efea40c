//! The trained state and AdamW over it: `kernels/optimizer.cu`.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr};

use super::failure::driver;
use super::kernels::{Arguments, Kernel, Kernels};
use super::memory::{Buffer, address, address_mut, check_length};
use super::{Cuda, failure};
use crate::backend::{Group, OptimizerReport, OptimizerStep, Segment, StateLayout};
use crate::error::{Error, Result};

/// Numbers that a block updates.
const BLOCK_NUMBERS: usize = 2048;

/// A stretch of the state; `Segment` of the kernel file, as 64-bit words: start, end, and group with trained.
const SEGMENT_WORDS: usize = 3;
/// f64 numbers of a run's settings.
const SETTINGS: usize = 7;

#[derive(Clone, Copy)]
#[repr(C)]
struct OptimizerArguments {
    values: u64,
    gradient: u64,
    first_moment: u64,
    second_moment: u64,
    partials: u64,
    segments: u64,
    settings: u64,
    updates: u64,
    reports: u64,
    length: i64,
    segment_count: i32,
    blocks: i32,
}
const _: () = assert!(size_of::<OptimizerArguments>() == 88);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for OptimizerArguments {}

/// Trained state of some runs, with gradient and moments, in f32.
#[derive(Debug)]
pub struct State {
    pub(super) layout: StateLayout,
    pub(super) runs: usize,
    pub(super) values: Buffer<f32>,
    pub(super) gradient: Buffer<f32>,
    first_moment: Buffer<f32>,
    second_moment: Buffer<f32>,
    partials: Buffer<f64>,
    segments: Buffer<i64>,
    settings: Buffer<f64>,
    updates: Buffer<u64>,
    reports: Buffer<f64>,
}

impl State {
    pub(super) fn new(cuda: &Cuda, layout: &StateLayout, values: &[f64], runs: usize) -> Self {
        assert_eq!(values.len(), runs * layout.len(), "state of {runs} runs");
        let length = values.len();
        let mut state = Self {
            layout: layout.clone(),
            runs,
            values: cuda.allocate(length),
            gradient: cuda.allocate(length),
            first_moment: cuda.allocate(length),
            second_moment: cuda.allocate(length),
            partials: cuda.allocate(runs * layout.len().div_ceil(BLOCK_NUMBERS)),
            segments: cuda.allocate(layout.segments().len() * SEGMENT_WORDS),
            settings: cuda.allocate(runs * SETTINGS),
            updates: cuda.allocate(runs),
            reports: cuda.allocate(runs * 2),
        };
        let segments: Vec<i64> = layout.segments().iter().flat_map(words).collect();
        cuda.attempt(|| {
            cuda.upload(&segments, &mut state.segments)?;
            cuda.upload(&narrowed(values), &mut state.values)?;
            cuda.clear(&mut state.gradient)?;
            cuda.clear(&mut state.first_moment)?;
            cuda.clear(&mut state.second_moment)?;
            cuda.clear(&mut state.updates)
        });
        state
    }

    pub(super) fn read(&self, cuda: &Cuda) -> [Vec<f64>; 3] {
        [&self.values, &self.first_moment, &self.second_moment].map(|buffer| widened(cuda, buffer))
    }

    pub(super) fn write(&mut self, cuda: &Cuda, values: [&[f64]; 3], updates: &[u64]) -> Result<()> {
        cuda.upload(&narrowed(values[0]), &mut self.values)?;
        cuda.upload(&narrowed(values[1]), &mut self.first_moment)?;
        cuda.upload(&narrowed(values[2]), &mut self.second_moment)?;
        cuda.upload(updates, &mut self.updates)
    }

    pub(super) fn updates(&self, cuda: &Cuda) -> Vec<u64> {
        cuda.download(&self.updates, self.runs)
    }

    pub(super) fn read_gradient(&self, cuda: &Cuda) -> Vec<f64> {
        widened(cuda, &self.gradient)
    }

    pub(super) fn write_gradient(&mut self, cuda: &Cuda, values: &[f64]) -> Result<()> {
        cuda.upload(&narrowed(values), &mut self.gradient)
    }

    pub(super) fn zero_gradient(&mut self, cuda: &Cuda) -> Result<()> {
        cuda.clear(&mut self.gradient)
    }

    pub(super) fn schedule(&mut self, cuda: &Cuda, steps: &[OptimizerStep]) -> Result<()> {
        let settings: Vec<f64> = steps.iter().flat_map(settings).collect();
        cuda.upload(&settings, &mut self.settings)
    }

    pub(super) fn reports(&self, cuda: &Cuda) -> Vec<OptimizerReport> {
        read_reports(&cuda.download(&self.reports, self.runs * 2))
    }
}

fn read_reports(numbers: &[f64]) -> Vec<OptimizerReport> {
    let report = |pair: &[f64]| OptimizerReport { gradient_norm: pair[0], applied: pair[1] == 1.0 };
    numbers.chunks_exact(2).map(report).collect()
}

fn words(segment: &Segment) -> [i64; SEGMENT_WORDS] {
    let group = match segment.group {
        Group::Prompt => 0,
        Group::Scorer => 1,
        Group::Temperature => 2,
    };
    [segment.range.start as i64, segment.range.end as i64, group | i64::from(segment.trained) << 32]
}

fn settings(step: &OptimizerStep) -> [f64; SETTINGS] {
    [
        step.prompt_learning_rate,
        step.scorer_learning_rate,
        step.weight_decay,
        step.beta1,
        step.beta2,
        step.epsilon,
        step.clip_norm,
    ]
}

fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn widened(cuda: &Cuda, buffer: &Buffer<f32>) -> Vec<f64> {
    cuda.download(buffer, buffer.len()).into_iter().map(f64::from).collect()
}

impl Cuda {
    pub(super) fn launch_optimizer(&self, state: &mut State) -> Result<()> {
        let length = state.layout.len();
        if length == 0 {
            return Err(Error::tensor("the trained state", "at least one number", "none", ""));
        }
        let blocks = length.div_ceil(BLOCK_NUMBERS);
        let arguments = OptimizerArguments {
            values: self.address_of(&state.values)?,
            gradient: self.address_of(&state.gradient)?,
            first_moment: self.address_of(&state.first_moment)?,
            second_moment: self.address_of(&state.second_moment)?,
            partials: self.address_of(&state.partials)?,
            segments: self.address_of(&state.segments)?,
            settings: self.address_of(&state.settings)?,
            updates: self.address_of(&state.updates)?,
            reports: self.address_of(&state.reports)?,
            length: length as i64,
            segment_count: state.layout.segments().len() as i32,
            blocks: i32::try_from(blocks).map_err(|_| failure::absent())?,
        };
        // SAFETY: every buffer was made for this layout and number of runs.
        unsafe { launch(self.kernels(), state.runs, &arguments) }
    }
}

/// Launches norm, update and report of a step.
///
/// # Safety
/// `arguments` has buffers for `runs` runs of its length and segments.
unsafe fn launch(kernels: &Kernels, runs: usize, arguments: &OptimizerArguments) -> Result<()> {
    let whole = [arguments.blocks as u32, runs as u32, 1];
    for (name, grid) in [("gradient_norm", whole), ("adamw", whole), ("finish_step", [runs as u32, 1, 1])] {
        // SAFETY: the caller's promise.
        unsafe { kernels.launch(Kernel { file: "optimizer", name }, grid, 256, 0, arguments)? };
    }
    Ok(())
}

/// AdamW over the flat trained numbers of some runs, with clip by global norm and a finite flag a run, for launches on
/// cudarc's own buffers.
///
/// It holds what a step needs beside the caller's values, gradient and moments, each \[runs, length\] in f32: segments, rates,
/// partial norms, and on the device the count of updates and the last report of each run.
#[derive(Debug)]
pub struct AdamW {
    runs: usize,
    length: usize,
    segment_count: usize,
    segments: CudaSlice<i64>,
    settings: CudaSlice<f64>,
    partials: CudaSlice<f64>,
    updates: CudaSlice<u64>,
    reports: CudaSlice<f64>,
}

impl AdamW {
    /// For `runs` runs whose numbers are cut up into `segments`, in order and without gaps from 0 on.
    ///
    /// # Errors
    /// No run, no number, or a gap; what the driver says.
    pub fn new(kernels: &Kernels, segments: &[Segment], runs: usize) -> Result<Self> {
        let length = segments.last().map_or(0, |last| last.range.end);
        let starts = segments.iter().map(|segment| segment.range.start);
        let ends = std::iter::once(0).chain(segments.iter().map(|segment| segment.range.end));
        if length == 0 || runs == 0 || !starts.eq(ends.take(segments.len())) {
            let found = format!("{} segments up to {length}, {runs} runs", segments.len());
            return Err(Error::tensor(
                "segments",
                "one after the other from 0 on, for a run or more",
                found,
                "",
            ));
        }
        let (stream, fail) = (kernels.stream(), |error| driver("prepare the optimizer", error));
        let words: Vec<i64> = segments.iter().flat_map(words).collect();
        Ok(Self {
            runs,
            length,
            segment_count: segments.len(),
            segments: stream.clone_htod(&words).map_err(fail)?,
            settings: stream.alloc_zeros(runs * SETTINGS).map_err(fail)?,
            partials: stream.alloc_zeros(runs * length.div_ceil(BLOCK_NUMBERS)).map_err(fail)?,
            updates: stream.alloc_zeros(runs).map_err(fail)?,
            reports: stream.alloc_zeros(runs * 2).map_err(fail)?,
        })
    }

    /// Sets rates, decay, moments and clip of the steps from now on, one a run.
    ///
    /// # Errors
    /// Not one a run, and what the driver says.
    pub fn schedule(&mut self, kernels: &Kernels, steps: &[OptimizerStep]) -> Result<()> {
        check_length("steps", self.runs, steps.len())?;
        let numbers: Vec<f64> = steps.iter().flat_map(settings).collect();
        let copied = kernels.stream().memcpy_htod(&numbers, &mut self.settings);
        copied.map_err(|error| driver("copy to the GPU", error))
    }

    /// Launches a step: three kernels. A run whose gradient is not finite is left as it is.
    ///
    /// Moves 4 bytes a number for the norm, then 16 in and 12 out; about 12 operations a number, with norms in f64.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub fn step(
        &mut self,
        kernels: &Kernels,
        values: &mut CudaViewMut<'_, f32>,
        gradient: &CudaView<'_, f32>,
        first_moment: &mut CudaViewMut<'_, f32>,
        second_moment: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let (all, stream) = (self.runs * self.length, kernels.stream());
        check_length("values", all, values.len())?;
        check_length("gradient", all, gradient.len())?;
        check_length("first_moment", all, first_moment.len())?;
        check_length("second_moment", all, second_moment.len())?;
        let blocks = self.length.div_ceil(BLOCK_NUMBERS);
        let arguments = OptimizerArguments {
            values: address_mut(values, stream),
            gradient: address(gradient, stream),
            first_moment: address_mut(first_moment, stream),
            second_moment: address_mut(second_moment, stream),
            partials: self.partials.device_ptr(stream).0,
            segments: self.segments.device_ptr(stream).0,
            settings: self.settings.device_ptr(stream).0,
            updates: self.updates.device_ptr(stream).0,
            reports: self.reports.device_ptr(stream).0,
            length: self.length as i64,
            segment_count: self.segment_count as i32,
            blocks: i32::try_from(blocks).map_err(|_| failure::absent())?,
        };
        // SAFETY: every length was checked, and what this holds was made for these segments and runs.
        unsafe { launch(kernels, self.runs, &arguments) }
    }

    /// Each run's gradient norm, before the clip, and whether it was updated, of the last step; waits for it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn reports(&self, kernels: &Kernels) -> Result<Vec<OptimizerReport>> {
        let copied = kernels.stream().clone_dtoh(&self.reports);
        Ok(read_reports(&copied.map_err(|error| driver("copy from the GPU", error))?))
    }
}
