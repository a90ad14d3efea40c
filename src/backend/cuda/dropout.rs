//! A step's dropout on the device: threshold, scale, step number and seeds, as `kernels/dropout.cuh` reads them.

use super::Cuda;
use super::arguments::dropout as layout;
use super::input::Told;
use crate::backend::{DropoutStep, Mask};
use crate::error::Result;

impl layout::Mask {
    /// Whether anything may be dropped.
    pub(super) fn is_some(&self) -> bool {
        self.step != 0
    }
}

/// What the device is told of a step: its numbers, and the seeds of all runs from the place of the first on.
pub(super) fn words(step: &DropoutStep) -> Vec<i32> {
    let seeds = step.seeds();
    let mut numbers = layout::DropoutStep {
        threshold: step.threshold(),
        scale: step.scale() as f32,
        step: step.step(),
        runs: seeds.len() as u32,
        ..Default::default()
    };
    let (first, others) = seeds.split_at(seeds.len().min(numbers.seeds.len()));
    numbers.seeds[..first.len()].copy_from_slice(first);
    [bytemuck::cast_slice(&[numbers]), bytemuck::cast_slice(others)].concat()
}

impl Cuda {
    /// The argument for `mask`; the step's numbers are uploaded unless the device has them.
    pub(super) fn mask(&self, mask: Mask<'_>) -> Result<layout::Mask> {
        let Some((step, site)) = mask else { return Ok(layout::Mask::default()) };
        let step = Told::address(&self.dropout, self, step, "dropout", words)?;
        Ok(layout::Mask { step, site: site.0, padding: 0 })
    }
}
