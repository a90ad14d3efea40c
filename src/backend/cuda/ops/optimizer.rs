//! AdamW over the trained state, with the ring of its reports: `kernels/optimizer.cu`.

use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};

use super::OptimizerArguments;
use super::packing::Words;
use crate::backend::cuda::runtime::arguments::optimizer::{
    self as words, BLOCK_NUMBERS, COUNTERS, Report, Settings, Status, THREADS,
};
use crate::backend::cuda::runtime::arguments::tally::StepStatistics as DeviceStatistics;
use crate::backend::cuda::runtime::capture::check_not_capturing;
use crate::backend::cuda::runtime::error::driver;
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::check_stream;
use crate::backend::ops::check_one_a_run;
use crate::backend::{Group, OptimizerStep, Segment, StepReport, StepStatistics};
use crate::error::{Error, Result};

/// Steps whose reports the ring holds.
pub(crate) const PLACES: usize = 64;

/// What an optimizer step reads and writes, each \[runs, length\] in f32.
pub struct StepOperands<'a> {
    /// The trained numbers.
    pub values: &'a mut dyn DevicePtrMut<f32>,
    /// Their gradient, which the clip scales.
    pub gradient: &'a dyn DevicePtr<f32>,
    /// The running mean of the gradient.
    pub first_moment: &'a mut dyn DevicePtrMut<f32>,
    /// The running mean of its square.
    pub second_moment: &'a mut dyn DevicePtrMut<f32>,
}

/// What a step is over beside its operands, in memory of any kind. `statistics` belongs to who adds them up.
pub(crate) struct Progress<'a> {
    /// As [`device_segments`] makes them.
    pub(crate) segments: &'a dyn DevicePtr<words::Segment>,
    /// Of every run, what passes added up.
    pub(crate) statistics: &'a dyn DevicePtr<DeviceStatistics>,
    pub(crate) partials: &'a mut dyn DevicePtrMut<f64>,
    /// Zero between launches: blocks of a run that are done.
    pub(crate) counters: &'a mut dyn DevicePtrMut<i32>,
    pub(crate) statuses: &'a mut dyn DevicePtrMut<Status>,
    pub(crate) ring: &'a mut dyn DevicePtrMut<Report>,
}

/// The sizes of a step, and the one place that launches it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Update {
    pub(crate) runs: usize,
    /// Of one run.
    pub(crate) length: usize,
    pub(crate) segments: usize,
}

impl Update {
    fn blocks(self) -> usize {
        self.length.div_ceil(BLOCK_NUMBERS)
    }

    /// Numbers of [`Progress::partials`]: \[runs, blocks\], and after them the norms, \[runs\].
    pub(crate) fn partials(self) -> usize {
        self.runs * (self.blocks() + 1)
    }

    /// Numbers of [`Progress::counters`], one a run and kernel.
    pub(crate) fn counters(self) -> usize {
        self.runs * COUNTERS
    }

    /// Reports of [`Progress::ring`].
    pub(crate) fn ring(self) -> usize {
        PLACES * self.runs
    }

    /// Launches norm and update, which ends with the step's report. `settings` are [`schedule_words`] of a step a run.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub(crate) fn launch(
        self,
        kernels: &Kernels,
        of: StepOperands<'_>,
        settings: Words<'_>,
        progress: Progress<'_>,
    ) -> Result<()> {
        if self.length == 0 {
            return Err(Error::tensor("the trained state", "at least one number", "none", ""));
        }
        let (Self { runs, length, segments }, all) = (self, self.runs * self.length);
        let too_long = || Error::tensor("the trained state", "fewer numbers", length.to_string(), "");
        let blocks = i32::try_from(self.blocks()).map_err(|_| too_long())?;
        let mut operands = kernels.operands();
        let arguments = OptimizerArguments {
            values: operands.write("values", of.values, all)?,
            gradient: operands.read("gradient", of.gradient, all)?,
            first_moment: operands.write("first_moment", of.first_moment, all)?,
            second_moment: operands.write("second_moment", of.second_moment, all)?,
            partials: operands.write("partials", progress.partials, self.partials())?,
            counters: operands.write("counters", progress.counters, self.counters())?,
            segments: operands.read("segments", progress.segments, segments)?,
            settings: settings.read(&mut operands, "settings")?,
            statistics: operands.read("tallies", progress.statistics, runs)?,
            statuses: operands.write("statuses", progress.statuses, runs)?,
            ring: operands.write("ring", progress.ring, self.ring())?,
            length: length as i64,
            segment_count: segments as i32,
            blocks,
            runs: runs as i32,
            places: PLACES as i32,
        };
        for name in ["gradient_norm", "adamw"] {
            let (kernel, grid) = (Kernel { file: "optimizer", name }, [blocks as u32, runs as u32, 1]);
            // SAFETY: every length was checked, and settings are one a run.
            unsafe { kernels.launch(kernel, grid, THREADS as u32, 0, &arguments, &operands)? };
        }
        Ok(())
    }
}

/// Segments as the kernels read them.
pub(crate) fn device_segments(segments: &[Segment]) -> Vec<words::Segment> {
    let group = |group| match group {
        Group::Prompt => words::Group::Prompt,
        Group::Scorer => words::Group::Scorer,
        Group::Temperature => words::Group::Temperature,
    };
    let segment = |segment: &Segment| words::Segment {
        start: segment.range.start as i64,
        end: segment.range.end as i64,
        group: group(segment.group) as i32,
        trained: i32::from(segment.trained),
    };
    segments.iter().map(segment).collect()
}

/// The settings of a step, one a run, as integers for the device.
pub(crate) fn schedule_words(steps: &[OptimizerStep]) -> Vec<i32> {
    let settings = |step: &OptimizerStep| Settings {
        prompt_rate: step.prompt_learning_rate,
        scorer_rate: step.scorer_learning_rate,
        weight_decay: step.weight_decay,
        beta1: step.beta1,
        beta2: step.beta2,
        epsilon: step.epsilon,
        max_grad_norm: step.max_grad_norm,
    };
    let settings: Vec<Settings> = steps.iter().map(settings).collect();
    bytemuck::cast_slice(&settings).to_vec()
}

/// The status with which runs go on after so many updates each, with no report in the ring.
pub(crate) fn going(updates: impl Iterator<Item = u64>) -> Vec<Status> {
    updates.map(|updates| Status { updates, ..Status::default() }).collect()
}

/// Steps whose reports are in the ring.
///
/// # Errors
/// More than it holds.
pub(crate) fn reported(statuses: &[Status]) -> Result<usize> {
    let reported = statuses.iter().map(|status| status.reports as usize).max().unwrap_or(0);
    if reported <= PLACES {
        return Ok(reported);
    }
    let found = format!("{reported} were taken since they were last read");
    Err(Error::device(format!("report more than {PLACES} steps"), found, "read reports more often"))
}

/// The ring's reports of so many runs: for each step one a run.
pub(crate) fn step_reports(ring: &[Report], runs: usize) -> Vec<Vec<StepReport>> {
    let report = |report: &Report| StepReport {
        statistics: StepStatistics { loss: report.loss, entropy: report.entropy },
        gradient_norm: report.norm,
        applied: report.applied == 1.0,
    };
    ring.chunks_exact(runs.max(1)).map(|step| step.iter().map(report).collect()).collect()
}

/// AdamW over the flat trained numbers of some runs, with clip by global norm and a finite flag a run.
///
/// It holds what a step needs beside the caller's values, gradient and moments, each \[runs, length\] in f32: segments, rates,
/// partial norms, and on the device each run's count of updates and the reports of the steps that were not read yet. Launches
/// of one `AdamW` belong on the stream of the kernels that it was made with; others are refused.
///
/// The first step moves a number by the rate, against its gradient, however large that is:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use promptmix::backend::OptimizerStep;
/// use promptmix::cuda::Kernels;
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::optimizer::{AdamW, StepOperands};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let mut adamw = AdamW::vector(&kernels, 2)?;
/// adamw.schedule(&kernels, &[OptimizerStep::new(0.25, 0.0)])?;
/// let mut values = stream.clone_htod(&[1.0_f32, 1.0])?;
/// let gradient = stream.clone_htod(&[0.01_f32, -5.0])?;
/// let (mut first, mut second) = (stream.alloc_zeros::<f32>(2)?, stream.alloc_zeros::<f32>(2)?);
/// let operands = StepOperands {
///     values: &mut values,
///     gradient: &gradient,
///     first_moment: &mut first,
///     second_moment: &mut second,
/// };
/// adamw.step(&kernels, operands)?;
/// assert!(adamw.reports(&kernels)?[0][0].applied);
/// let values = stream.clone_dtoh(&values)?;
/// assert!((values[0] - 0.75).abs() < 1e-5 && (values[1] - 1.25).abs() < 1e-5);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AdamW {
    update: Update,
    segments: CudaSlice<words::Segment>,
    settings: CudaSlice<i32>,
    partials: CudaSlice<f64>,
    counters: CudaSlice<i32>,
    statistics: CudaSlice<DeviceStatistics>,
    statuses: CudaSlice<Status>,
    ring: CudaSlice<Report>,
}

impl AdamW {
    /// For `runs` runs whose numbers are cut up into `segments`, in order and without gaps from 0 on. A segment's group says
    /// which rate of [`OptimizerStep`] it follows, and whether it decays.
    ///
    /// # Errors
    /// No run, no number, or a gap; what the driver says.
    pub fn new(kernels: &Kernels, segments: &[Segment], runs: usize) -> Result<Self> {
        let length = segments.last().map_or(0, |last| last.range.end);
        let starts = segments.iter().map(|segment| segment.range.start);
        let ends = std::iter::once(0).chain(segments.iter().map(|segment| segment.range.end));
        let backward = segments.iter().any(|segment| segment.range.start > segment.range.end);
        if length == 0 || runs == 0 || backward || !starts.eq(ends.take(segments.len())) {
            let expected = "one after the other from 0 on, for a run or more";
            let found = format!("{} segments up to {length}, {runs} runs", segments.len());
            return Err(Error::tensor("segments", expected, found, ""));
        }
        check_not_capturing(kernels.stream(), "make an AdamW")?;
        let (stream, fail) = (kernels.stream(), |error| driver("prepare the optimizer", error));
        let update = Update { runs, length, segments: segments.len() };
        let settings = schedule_words(&vec![OptimizerStep::new(0.0, 0.0); runs]);
        Ok(Self {
            update,
            segments: stream.clone_htod(&device_segments(segments)).map_err(fail)?,
            settings: stream.clone_htod(&settings).map_err(fail)?,
            partials: stream.alloc_zeros(update.partials()).map_err(fail)?,
            counters: stream.alloc_zeros(update.counters()).map_err(fail)?,
            statistics: stream.alloc_zeros(runs).map_err(fail)?,
            statuses: stream.alloc_zeros(runs).map_err(fail)?,
            ring: stream.alloc_zeros(update.ring()).map_err(fail)?,
        })
    }

    /// For one vector of `length` numbers, all trained alike: at [`OptimizerStep::prompt_learning_rate`], with weight decay.
    ///
    /// # Errors
    /// No number, and what the driver says.
    pub fn vector(kernels: &Kernels, length: usize) -> Result<Self> {
        let (range, shape) = (0..length, vec![length]);
        let whole = Segment { name: "vector", range, shape, group: Group::Prompt, trained: true };
        Self::new(kernels, &[whole], 1)
    }

    fn check_stream(&self, kernels: &Kernels) -> Result<()> {
        check_stream("an AdamW with its counts", self.counters.stream(), kernels.stream())
    }

    /// Sets rates, decay, moments and clip of the steps from now on, one a run. Until it is called, rates are 0.
    ///
    /// # Errors
    /// Not one a run, and what the driver says.
    pub fn schedule(&mut self, kernels: &Kernels, steps: &[OptimizerStep]) -> Result<()> {
        check_one_a_run("the optimizer's steps", self.update.runs, steps.len())?;
        self.check_stream(kernels)?;
        check_not_capturing(kernels.stream(), "schedule a step")?;
        let copied = kernels.stream().memcpy_htod(&schedule_words(steps), &mut self.settings);
        copied.map_err(|error| driver("copy to the GPU", error))
    }

    /// Launches a step: two kernels. A run whose gradient is not finite is left as it is, by later steps too until
    /// [`AdamW::reports`] has reported it.
    ///
    /// Moves 4 bytes a number for the norm, then 16 in and 12 out; about 12 operations a number, with norms in f64.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub fn step(&mut self, kernels: &Kernels, of: StepOperands<'_>) -> Result<()> {
        self.check_stream(kernels)?;
        let progress = Progress {
            segments: &self.segments,
            statistics: &self.statistics,
            partials: &mut self.partials,
            counters: &mut self.counters,
            statuses: &mut self.statuses,
            ring: &mut self.ring,
        };
        self.update.launch(kernels, of, Words::Slice(&self.settings), progress)
    }

    /// Waits for the steps since the last call, at most 64, and lets runs that halted go on: for each step, in order, one report
    /// a run, with its gradient's norm before the clip and whether the run was updated. A gradient that is not finite is in the
    /// report of the step that had it: its norm is not finite, and the run was not updated, nor was it by the steps after it,
    /// whatever the norm in their reports. Their statistics are 0.
    ///
    /// # Errors
    /// More steps than are remembered, and what the driver says.
    pub fn reports(&mut self, kernels: &Kernels) -> Result<Vec<Vec<StepReport>>> {
        self.check_stream(kernels)?;
        check_not_capturing(kernels.stream(), "read the optimizer's reports")?;
        let (stream, fail) = (kernels.stream(), |error| driver("read the optimizer's reports", error));
        let statuses = stream.clone_dtoh(&self.statuses).map_err(fail)?;
        let ring = stream.clone_dtoh(&self.ring).map_err(fail)?;
        let going = going(statuses.iter().map(|status| status.updates));
        stream.memcpy_htod(&going, &mut self.statuses).map_err(fail)?;
        let runs = self.update.runs;
        Ok(step_reports(&ring[..reported(&statuses)? * runs], runs))
    }
}
