//! The trained state and AdamW over it: `kernels/optimizer.cu`.

use super::kernels::{Arguments, Kernel};
use super::memory::Buffer;
use super::{Cuda, failure};
use crate::backend::{Group, OptimizerReport, OptimizerStep, StateLayout};
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
        let numbers = cuda.download(&self.reports, self.runs * 2);
        let report = |pair: &[f64]| OptimizerReport { gradient_norm: pair[0], applied: pair[1] == 1.0 };
        numbers.chunks_exact(2).map(report).collect()
    }
}

fn words(segment: &crate::backend::Segment) -> [i64; SEGMENT_WORDS] {
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
        let whole = [blocks as u32, state.runs as u32, 1];
        for (name, grid) in
            [("gradient_norm", whole), ("adamw", whole), ("finish_step", [state.runs as u32, 1, 1])]
        {
            // SAFETY: every buffer was made for this layout and number of runs.
            unsafe { self.kernels().launch(Kernel { file: "optimizer", name }, grid, 256, 0, &arguments)? };
        }
        Ok(())
    }
}
