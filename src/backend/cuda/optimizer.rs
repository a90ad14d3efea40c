//! The trained state and AdamW over it, with the ring of its reports: `kernels/optimizer.cu`.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr};

use super::arguments::optimizer::{
    self as layout, BLOCK_NUMBERS, COUNTERS, OptimizerArguments, Report, Settings, Status, THREADS,
};
use super::arguments::tally;
use super::failure::driver;
use super::input::{Told, schedule_words, settings};
use super::kernels::{Kernel, Kernels};
use super::memory::{Buffer, address, address_mut, check_length};
use super::{Cuda, failure};
use crate::backend::{Group, OptimizerStep, Segment, StateLayout, StepReport, Tally};
use crate::error::{Error, Result};

/// Steps whose reports the ring holds.
pub(super) const PLACES: usize = 64;
/// Steps that are issued before their reports are read, unless [`Cuda::set_steps_ahead`] says otherwise: some tenths of a
/// second of work, so that reading costs nothing and a log is still lively.
pub(super) const STEPS_AHEAD: usize = 16;

/// Trained state of some runs, with gradient and moments, in f32.
#[derive(Debug)]
pub struct State {
    pub(super) layout: StateLayout,
    pub(super) runs: usize,
    pub(super) values: Buffer<f32>,
    pub(super) gradient: Buffer<f32>,
    first_moment: Buffer<f32>,
    second_moment: Buffer<f32>,
    /// \[runs, blocks\], and behind them the norms, \[runs\].
    partials: Buffer<f64>,
    /// \[runs, 2\], zero between launches: blocks of a run that are done.
    counters: Buffer<i32>,
    segments: Buffer<layout::Segment>,
    /// \[runs\]
    pub(super) tallies: Buffer<tally::Tally>,
    /// \[runs\]
    statuses: Buffer<Status>,
    /// \[PLACES, runs\]
    ring: Buffer<Report>,
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
            partials: cuda.allocate(runs * (layout.len().div_ceil(BLOCK_NUMBERS) + 1)),
            counters: cuda.allocate(runs * COUNTERS),
            segments: cuda.allocate(layout.segments().len()),
            tallies: cuda.allocate(runs),
            statuses: cuda.allocate(runs),
            ring: cuda.allocate(PLACES * runs),
        };
        let segments: Vec<layout::Segment> = layout.segments().iter().map(segment).collect();
        cuda.attempt(|| {
            cuda.upload(&segments, &mut state.segments)?;
            cuda.upload(&narrowed(values), &mut state.values)?;
            cuda.clear(&mut state.gradient)?;
            cuda.clear(&mut state.first_moment)?;
            cuda.clear(&mut state.second_moment)?;
            cuda.clear(&mut state.tallies)?;
            cuda.clear(&mut state.counters)?;
            cuda.clear(&mut state.statuses)
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
        self.set_going(cuda, updates)
    }

    /// Lets every run go on behind so many updates, with no report in the ring.
    fn set_going(&mut self, cuda: &Cuda, updates: &[u64]) -> Result<()> {
        cuda.upload(&going(updates), &mut self.statuses)
    }

    fn statuses(&self, cuda: &Cuda) -> Vec<Status> {
        cuda.download(&self.statuses, self.runs)
    }

    pub(super) fn updates(&self, cuda: &Cuda) -> Vec<u64> {
        self.statuses(cuda).into_iter().map(|status| status.updates).collect()
    }

    pub(super) fn read_gradient(&self, cuda: &Cuda) -> Vec<f64> {
        widened(cuda, &self.gradient)
    }

    pub(super) fn write_gradient(&mut self, cuda: &Cuda, values: &[f64]) -> Result<()> {
        cuda.upload(&narrowed(values), &mut self.gradient)
    }

    pub(super) fn begin_step(&mut self, cuda: &Cuda) -> Result<()> {
        cuda.clear(&mut self.gradient)?;
        cuda.clear(&mut self.tallies)
    }

    pub(super) fn read_tallies(&self, cuda: &Cuda) -> Vec<Tally> {
        let tallies = cuda.download(&self.tallies, self.runs);
        tallies.into_iter().map(|tally| Tally { loss: tally.loss, entropy: tally.entropy }).collect()
    }

    pub(super) fn write_tallies(&mut self, cuda: &Cuda, tallies: &[Tally]) -> Result<()> {
        let of = |tally: &Tally| tally::Tally { loss: tally.loss, entropy: tally.entropy };
        cuda.upload(&tallies.iter().map(of).collect::<Vec<_>>(), &mut self.tallies)
    }

    pub(super) fn take_reports(&mut self, cuda: &Cuda) -> Result<Vec<Vec<StepReport>>> {
        let statuses = self.statuses(cuda);
        let ring = cuda.download(&self.ring, written(&statuses)? * self.runs);
        let updates: Vec<u64> = statuses.iter().map(|status| status.updates).collect();
        self.set_going(cuda, &updates)?;
        Ok(reports(&ring, self.runs))
    }
}

/// What lets runs go on behind so many updates each, with no report in the ring.
fn going(updates: &[u64]) -> Vec<Status> {
    updates.iter().map(|&updates| Status { updates, reports: 0, halted: 0 }).collect()
}

/// Steps whose reports are in the ring.
fn written(statuses: &[Status]) -> Result<usize> {
    let written = statuses.iter().map(|status| status.reports as usize).max().unwrap_or(0);
    if written <= PLACES {
        return Ok(written);
    }
    let found = format!("{written} were taken since they were last read");
    Err(Error::device(format!("report more than {PLACES} steps"), found, "read reports more often"))
}

/// The ring's reports: for each step one a run.
fn reports(ring: &[Report], runs: usize) -> Vec<Vec<StepReport>> {
    let report = |report: &Report| StepReport {
        tally: Tally { loss: report.loss, entropy: report.entropy },
        gradient_norm: report.norm,
        applied: report.applied == 1.0,
    };
    ring.chunks_exact(runs).map(|step| step.iter().map(report).collect()).collect()
}

fn segment(segment: &Segment) -> layout::Segment {
    let group = match segment.group {
        Group::Prompt => layout::Group::Prompt,
        Group::Scorer => layout::Group::Scorer,
        Group::Temperature => layout::Group::Temperature,
    };
    layout::Segment {
        start: segment.range.start as i64,
        end: segment.range.end as i64,
        group: group as i32,
        trained: i32::from(segment.trained),
    }
}

fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn widened(cuda: &Cuda, buffer: &Buffer<f32>) -> Vec<f64> {
    cuda.download(buffer, buffer.len()).into_iter().map(f64::from).collect()
}

impl Cuda {
    pub(super) fn launch_optimizer(&self, state: &mut State, steps: &[OptimizerStep]) -> Result<()> {
        let length = state.layout.len();
        super::memory::check_length("the optimizer's steps, one a run", state.runs, steps.len())?;
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
            counters: self.address_of(&state.counters)?,
            segments: self.address_of(&state.segments)?,
            settings: Told::address(&self.schedule, self, &steps.to_vec(), "a schedule", |steps| {
                schedule_words(steps)
            })?,
            tallies: self.address_of(&state.tallies)?,
            statuses: self.address_of(&state.statuses)?,
            ring: self.address_of(&state.ring)?,
            length: length as i64,
            segment_count: state.layout.segments().len() as i32,
            blocks: i32::try_from(blocks).map_err(|_| failure::absent())?,
            runs: state.runs as i32,
            places: PLACES as i32,
        };
        // SAFETY: every buffer was made for this layout and number of runs.
        unsafe { launch(self.kernels(), state.runs, &arguments) }
    }
}

/// Launches norm and update of a step, which ends with its report.
///
/// # Safety
/// `arguments` has buffers for `runs` runs of its length and segments.
unsafe fn launch(kernels: &Kernels, runs: usize, arguments: &OptimizerArguments) -> Result<()> {
    let whole = [arguments.blocks as u32, runs as u32, 1];
    for name in ["gradient_norm", "adamw"] {
        // SAFETY: the caller's promise.
        unsafe { kernels.launch(Kernel { file: "optimizer", name }, whole, THREADS as u32, 0, arguments)? };
    }
    Ok(())
}

/// AdamW over the flat trained numbers of some runs, with clip by global norm and a finite flag a run, for launches on
/// cudarc's own buffers.
///
/// It holds what a step needs beside the caller's values, gradient and moments, each \[runs, length\] in f32: segments, rates,
/// partial norms, and on the device each run's count of updates and the reports of the steps that were not read yet.
#[derive(Debug)]
pub struct AdamW {
    runs: usize,
    length: usize,
    segment_count: usize,
    segments: CudaSlice<layout::Segment>,
    settings: CudaSlice<Settings>,
    partials: CudaSlice<f64>,
    counters: CudaSlice<i32>,
    tallies: CudaSlice<tally::Tally>,
    statuses: CudaSlice<Status>,
    ring: CudaSlice<Report>,
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
        let stretches: Vec<layout::Segment> = segments.iter().map(segment).collect();
        Ok(Self {
            runs,
            length,
            segment_count: segments.len(),
            segments: stream.clone_htod(&stretches).map_err(fail)?,
            settings: stream
                .clone_htod(&settings(&vec![OptimizerStep::new(0.0, 0.0); runs]))
                .map_err(fail)?,
            partials: stream.alloc_zeros(runs * (length.div_ceil(BLOCK_NUMBERS) + 1)).map_err(fail)?,
            counters: stream.alloc_zeros(runs * COUNTERS).map_err(fail)?,
            tallies: stream.alloc_zeros(runs).map_err(fail)?,
            statuses: stream.alloc_zeros(runs).map_err(fail)?,
            ring: stream.alloc_zeros(PLACES * runs).map_err(fail)?,
        })
    }

    /// Sets rates, decay, moments and clip of the steps from now on, one a run.
    ///
    /// # Errors
    /// Not one a run, and what the driver says.
    pub fn schedule(&mut self, kernels: &Kernels, steps: &[OptimizerStep]) -> Result<()> {
        check_length("steps", self.runs, steps.len())?;
        let copied = kernels.stream().memcpy_htod(&settings(steps), &mut self.settings);
        copied.map_err(|error| driver("copy to the GPU", error))
    }

    /// Launches a step: two kernels. A run whose gradient is not finite is left as it is, by later steps too until
    /// [`AdamW::reports`] has told of it.
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
            counters: self.counters.device_ptr(stream).0,
            segments: self.segments.device_ptr(stream).0,
            settings: self.settings.device_ptr(stream).0,
            tallies: self.tallies.device_ptr(stream).0,
            statuses: self.statuses.device_ptr(stream).0,
            ring: self.ring.device_ptr(stream).0,
            length: self.length as i64,
            segment_count: self.segment_count as i32,
            blocks: i32::try_from(blocks).map_err(|_| failure::absent())?,
            runs: self.runs as i32,
            places: PLACES as i32,
        };
        // SAFETY: every length was checked, and what this holds was made for these segments and runs.
        unsafe { launch(kernels, self.runs, &arguments) }
    }

    /// Waits for the steps since the last call, at most 64, and lets runs that halted go on: for each step one report a run,
    /// with its gradient's norm before the clip and whether it was updated. Their tallies are 0.
    ///
    /// # Errors
    /// More steps than are remembered, and what the driver says.
    pub fn reports(&mut self, kernels: &Kernels) -> Result<Vec<Vec<StepReport>>> {
        let (stream, fail) = (kernels.stream(), |error| driver("read the optimizer's reports", error));
        let statuses = stream.clone_dtoh(&self.statuses).map_err(fail)?;
        let ring = stream.clone_dtoh(&self.ring).map_err(fail)?;
        let updates: Vec<u64> = statuses.iter().map(|status| status.updates).collect();
        stream.memcpy_htod(&going(&updates), &mut self.statuses).map_err(fail)?;
        Ok(reports(&ring[..written(&statuses)? * self.runs], self.runs))
    }
}
