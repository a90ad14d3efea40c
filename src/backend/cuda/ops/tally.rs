//! The sums that a pass adds to each run's statistics: `kernels/tally.cu`.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::TallyArguments;
use super::packing::Described;
use crate::backend::Side;
use crate::backend::cuda::runtime::arguments::tally::{StepStatistics as DeviceStatistics, THREADS};
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::error::Result;

/// What a pass left that is added up, all in f32.
pub(crate) struct PassStatistics<'a> {
    /// Whose label rows, with their weights and runs.
    pub(crate) batch: Described<'a>,
    /// \[T\]: the objective of each label row.
    pub(crate) objective: &'a dyn DevicePtr<f32>,
    /// \[B, per_example\]: the mixture's weights.
    pub(crate) attention: &'a dyn DevicePtr<f32>,
    /// 0 without a scorer.
    pub(crate) per_example: usize,
}

impl PassStatistics<'_> {
    /// Launches it: adds to `statistics`, one a run.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub(crate) fn launch(
        &self,
        kernels: &Kernels,
        statistics: &mut dyn DevicePtrMut<DeviceStatistics>,
    ) -> Result<()> {
        let (batch, runs) = (self.batch.batch(), statistics.len());
        let mut operands = kernels.operands();
        let attention = batch.examples() * self.per_example;
        let arguments = TallyArguments {
            batch: self.batch.read(&mut operands)?,
            objective: operands.read("objective", self.objective, batch.rows(Side::Decoder))?,
            attention: operands.read("attention", self.attention, attention)?,
            statistics: operands.write("tallies", statistics, runs)?,
            per_example: self.per_example as i32,
            ..TallyArguments::default()
        };
        let kernel = Kernel { file: "tally", name: "tally" };
        // SAFETY: every length was checked, and each block's run has its statistics.
        unsafe { kernels.launch(kernel, [runs as u32, 1, 1], THREADS as u32, 0, &arguments, &operands) }
    }
}
