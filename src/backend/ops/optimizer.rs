//! The trained state of one or more runs, and AdamW over it.

use super::Device;
use crate::backend::{OptimizerStep, StateLayout, StepReport, StepStatistics};
use crate::error::{Error, Result};

/// Fails unless `found` numbers are so many for each run.
pub(crate) fn check_length(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::tensor(what, format!("{expected} numbers"), found.to_string(), ""))
}

/// Fails unless there are as many numbers as `runs` states of `layout` have.
pub(crate) fn check_state(what: &str, layout: &StateLayout, runs: usize, found: usize) -> Result<()> {
    check_length(what, runs.saturating_mul(layout.len()), found)
}

/// Fails unless `found` of `what` are one a run.
pub(crate) fn check_one_a_run(what: &str, runs: usize, found: usize) -> Result<()> {
    if runs == found {
        return Ok(());
    }
    Err(Error::tensor(what, format!("{runs}, one a run"), found.to_string(), ""))
}

/// State, gradient, moments and the update.
pub trait OptimizerOps: Device {
    /// Trained state of one or more runs, its gradient and its moments.
    type State;

    /// Copies `runs` stacked states of `layout` to the device; gradient and moments start at zero.
    ///
    /// # Errors
    /// Another number of values, and what the driver says.
    fn state(&self, layout: &StateLayout, values: &[f64], runs: usize) -> Result<Self::State>;
    /// Reads parameters, first and second moments back: three flat vectors of all runs.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    fn read_state(&self, state: &Self::State) -> Result<[Vec<f64>; 3]>;
    /// Overwrites parameters, first and second moments, and the number of updates each run has had.
    ///
    /// # Errors
    /// Another number of values, and what the driver says.
    fn write_state(&self, state: &mut Self::State, values: [&[f64]; 3], updates: &[u64]) -> Result<()>;
    /// Updates that each run has had.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    fn updates(&self, state: &Self::State) -> Result<Vec<u64>>;
    /// Reads the gradient back, flat, all runs.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    fn read_gradient(&self, state: &Self::State) -> Result<Vec<f64>>;
    /// Overwrites the gradient; flat, all runs.
    ///
    /// # Errors
    /// Another number of values, and what the driver says.
    fn write_gradient(&self, state: &mut Self::State, values: &[f64]) -> Result<()>;
    /// Begins a step: clears the gradient and the statistics of all runs.
    ///
    /// # Errors
    /// What the driver says.
    fn begin_step(&self, state: &mut Self::State) -> Result<()>;
    /// Reads back the statistics of the step so far, one a run.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    fn read_statistics(&self, state: &Self::State) -> Result<Vec<StepStatistics>>;
    /// Overwrites the statistics, one a run.
    ///
    /// # Errors
    /// Not one a run, and what the driver says.
    fn write_statistics(&self, state: &mut Self::State, statistics: &[StepStatistics]) -> Result<()>;
    /// AdamW with decoupled decay and clip by global norm, by one of `steps` a run. A run whose summed loss or whose
    /// gradient is not finite is left as it is, and so it is by every later call until [`OptimizerOps::reports`] has reported it.
    ///
    /// # Errors
    /// Not one step a run, and what the driver says.
    fn optimizer_step(&self, state: &mut Self::State, steps: &[OptimizerStep]) -> Result<()>;
    /// How many optimizer steps may be issued between two calls of [`OptimizerOps::reports`]: the device works on while the
    /// host prepares so many.
    fn steps_ahead(&self) -> usize {
        1
    }
    /// Waits for what every optimizer step since the last call did: for each step, in order, one report a run.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    fn reports(&self, state: &mut Self::State) -> Result<Vec<Vec<StepReport>>>;
}
