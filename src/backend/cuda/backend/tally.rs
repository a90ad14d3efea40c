//! The sums that a pass adds to each run's statistics.

use super::{Cuda, DeviceLoss, MixSaved, State};
use crate::backend::cuda::ops::tally::PassStatistics;
use crate::backend::ops::{check_length, check_runs};
use crate::backend::{Batch, Side, StatisticsOps};
use crate::error::Result;

impl StatisticsOps for Cuda {
    fn add_statistics(
        &self,
        batch: &Batch,
        loss: &DeviceLoss,
        mix: &MixSaved,
        state: &mut State,
    ) -> Result<()> {
        check_runs("the tally", batch, &state.layout, state.runs)?;
        check_length("the loss", batch.rows(Side::Decoder), loss.objective().len())?;
        mix.check_examples(batch)?;
        let pass = PassStatistics {
            batch: self.described(batch)?,
            objective: loss.objective(),
            attention: mix.weights(),
            per_example: mix.weights().len() / batch.examples(),
        };
        pass.launch(self.kernels(), &mut state.statistics)
    }
}
