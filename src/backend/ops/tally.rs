//! The sums that a pass adds to each run's statistics.

use super::{LossOps, MixOps};
use crate::backend::Batch;
use crate::error::Result;

/// The statistics of a step.
pub trait StatisticsOps: LossOps + MixOps {
    /// Adds a pass's part to each run's statistics: the objectives of its label rows by their weights, and the entropy
    /// -sum_j a_j ln a_j of each of its rows of attention.
    ///
    /// # Errors
    /// What the driver says.
    fn add_statistics(
        &self,
        batch: &Batch,
        loss: &Self::DeviceLoss,
        mix: &Self::MixSaved,
        state: &mut Self::State,
    ) -> Result<()>;
}
