//! The trained state, and AdamW over it.

use super::{Buffer, Cuda};
use crate::backend::cuda::ops::optimizer::{
    Progress, StepOperands, Update, device_segments, going, reported, step_reports,
};
use crate::backend::cuda::runtime::arguments::optimizer::{Report, Segment, Status};
use crate::backend::cuda::runtime::arguments::tally::StepStatistics as DeviceStatistics;
use crate::backend::ops::{check_one_a_run, check_state};
use crate::backend::{OptimizerOps, OptimizerStep, StateLayout, StepReport, StepStatistics};
use crate::error::Result;

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
    counters: Buffer<i32>,
    segments: Buffer<Segment>,
    /// One a run.
    pub(super) statistics: Buffer<DeviceStatistics>,
    /// One a run.
    statuses: Buffer<Status>,
    ring: Buffer<Report>,
}

impl State {
    /// Fails unless `found` numbers are what all runs have of `what`.
    fn check(&self, what: &str, found: usize) -> Result<()> {
        check_state(what, &self.layout, self.runs, found)
    }

    fn update(&self) -> Update {
        let (length, segments) = (self.layout.len(), self.layout.segments().len());
        Update { runs: self.runs, length, segments }
    }
}

fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

impl Cuda {
    fn widened(&self, buffer: &Buffer<f32>) -> Result<Vec<f64>> {
        Ok(self.download(buffer, buffer.len())?.into_iter().map(f64::from).collect())
    }
}

impl OptimizerOps for Cuda {
    type State = State;

    fn state(&self, layout: &StateLayout, values: &[f64], runs: usize) -> Result<State> {
        check_state("the state", layout, runs, values.len())?;
        let (length, segments) = (values.len(), layout.segments());
        let update = Update { runs, length: layout.len(), segments: segments.len() };
        let mut state = State {
            layout: layout.clone(),
            runs,
            values: self.allocate(length)?,
            gradient: self.allocate(length)?,
            first_moment: self.allocate(length)?,
            second_moment: self.allocate(length)?,
            partials: self.allocate(update.partials())?,
            counters: self.allocate(update.counters())?,
            segments: self.allocate(segments.len())?,
            statistics: self.allocate(runs)?,
            statuses: self.allocate(runs)?,
            ring: self.allocate(update.ring())?,
        };
        self.upload(&device_segments(segments), &mut state.segments)?;
        self.upload(&narrowed(values), &mut state.values)?;
        self.clear(&mut state.gradient)?;
        self.clear(&mut state.first_moment)?;
        self.clear(&mut state.second_moment)?;
        self.clear(&mut state.statistics)?;
        self.clear(&mut state.counters)?;
        self.clear(&mut state.statuses)?;
        Ok(state)
    }

    fn read_state(&self, state: &State) -> Result<[Vec<f64>; 3]> {
        Ok([
            self.widened(&state.values)?,
            self.widened(&state.first_moment)?,
            self.widened(&state.second_moment)?,
        ])
    }

    fn write_state(&self, state: &mut State, values: [&[f64]; 3], updates: &[u64]) -> Result<()> {
        let names = ["the state", "the first moments", "the second moments"];
        names.into_iter().zip(values).try_for_each(|(what, values)| state.check(what, values.len()))?;
        check_one_a_run("the updates", state.runs, updates.len())?;
        self.upload(&narrowed(values[0]), &mut state.values)?;
        self.upload(&narrowed(values[1]), &mut state.first_moment)?;
        self.upload(&narrowed(values[2]), &mut state.second_moment)?;
        self.upload(&going(updates.iter().copied()), &mut state.statuses)
    }

    fn updates(&self, state: &State) -> Result<Vec<u64>> {
        let statuses = self.download(&state.statuses, state.runs)?;
        Ok(statuses.into_iter().map(|status| status.updates).collect())
    }

    fn read_gradient(&self, state: &State) -> Result<Vec<f64>> {
        self.widened(&state.gradient)
    }

    fn write_gradient(&self, state: &mut State, values: &[f64]) -> Result<()> {
        state.check("the gradient", values.len())?;
        self.upload(&narrowed(values), &mut state.gradient)
    }

    fn begin_step(&self, state: &mut State) -> Result<()> {
        self.clear(&mut state.gradient)?;
        self.clear(&mut state.statistics)
    }

    fn read_statistics(&self, state: &State) -> Result<Vec<StepStatistics>> {
        let statistics = self.download(&state.statistics, state.runs)?;
        Ok(statistics
            .into_iter()
            .map(|sums| StepStatistics { loss: sums.loss, entropy: sums.entropy })
            .collect())
    }

    fn write_statistics(&self, state: &mut State, statistics: &[StepStatistics]) -> Result<()> {
        check_one_a_run("the tallies", state.runs, statistics.len())?;
        let statistics =
            statistics.iter().map(|&StepStatistics { loss, entropy }| DeviceStatistics { loss, entropy });
        self.upload(&statistics.collect::<Vec<_>>(), &mut state.statistics)
    }

    fn optimizer_step(&self, state: &mut State, steps: &[OptimizerStep]) -> Result<()> {
        check_one_a_run("the optimizer's steps", state.runs, steps.len())?;
        let (update, settings) = (state.update(), self.schedule_words(steps)?);
        let operands = StepOperands {
            values: &mut state.values,
            gradient: &state.gradient,
            first_moment: &mut state.first_moment,
            second_moment: &mut state.second_moment,
        };
        let progress = Progress {
            segments: &state.segments,
            statistics: &state.statistics,
            partials: &mut state.partials,
            counters: &mut state.counters,
            statuses: &mut state.statuses,
            ring: &mut state.ring,
        };
        update.launch(self.kernels(), operands, settings, progress)
    }

    fn steps_ahead(&self) -> usize {
        self.steps_ahead.get()
    }

    fn reports(&self, state: &mut State) -> Result<Vec<Vec<StepReport>>> {
        let statuses = self.download(&state.statuses, state.runs)?;
        let ring = self.download(&state.ring, reported(&statuses)? * state.runs)?;
        let updates = statuses.iter().map(|status| status.updates);
        self.upload(&going(updates), &mut state.statuses)?;
        Ok(step_reports(&ring, state.runs))
    }
}
