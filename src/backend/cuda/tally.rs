//! What a pass adds up of each run: `kernels/tally.cu`.

use super::Cuda;
use super::kernels::{Arguments, Kernel};
use super::loss::LossKept;
use super::mix::MixKept;
use super::optimizer::State;
use crate::backend::Batch;
use crate::error::Result;

#[derive(Clone, Copy)]
#[repr(C)]
struct TallyArguments {
    batch: u64,
    objective: u64,
    attention: u64,
    tallies: u64,
    per_example: i32,
    padding: i32,
}
const _: () = assert!(size_of::<TallyArguments>() == 40);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for TallyArguments {}

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
        unsafe { self.kernels().launch(kernel, [state.runs as u32, 1, 1], 256, 0, &arguments) }
    }
}
