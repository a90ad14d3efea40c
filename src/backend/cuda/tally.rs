//! What a pass adds up of each run: `kernels/tally.cu`.

use super::Cuda;
use super::arguments::tally::{THREADS, TallyArguments};
use super::kernels::Kernel;
use super::loss::LossKept;
use super::mix::MixKept;
use super::optimizer::State;
use crate::backend::Batch;
use crate::error::Result;

impl Cuda {
    pub(super) fn launch_tally(
        &self,
        batch: &Batch,
        loss: &LossKept,
        mix: &MixKept,
        state: &mut State,
    ) -> Result<()> {
        let arguments = TallyArguments {
            batch: self.describe(batch)?.address(self)?,
            objective: self.address_of(loss.objective())?,
            attention: self.address_of(mix.weights())?,
            tallies: self.address_of(&state.tallies)?,
            per_example: (mix.weights().len() / batch.examples()) as i32,
            padding: 0,
        };
        let kernel = Kernel { file: "tally", name: "tally" };
        // SAFETY: loss and attention were made for this batch, tallies for the state's runs.
        unsafe { self.kernels().launch(kernel, [state.runs as u32, 1, 1], THREADS as u32, 0, &arguments) }
    }
}
