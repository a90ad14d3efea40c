//! A step's dropout on the device: threshold, scale, step number and seeds, as `kernels/dropout.cuh` reads them.

use super::Cuda;
use super::input::Told;
use crate::backend::{DropoutStep, Mask};
use crate::error::Result;

/// One site's mask, as kernels take it; `Mask` of `kernels/dropout.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MaskArgument {
    step: u64,
    site: u32,
    padding: u32,
}

impl MaskArgument {
    /// Whether anything may be dropped.
    pub(super) fn is_some(&self) -> bool {
        self.step != 0
    }
}

impl Cuda {
    /// The argument for `mask`; the step's numbers are uploaded unless the device has them.
    pub(super) fn mask(&self, mask: Mask<'_>) -> Result<MaskArgument> {
        let Some((step, site)) = mask else { return Ok(MaskArgument::default()) };
        let words = |step: &DropoutStep| step.words().into_iter().map(|word| word as i32).collect();
        let step = Told::address(&self.dropout, self, step, "dropout", words)?;
        Ok(MaskArgument { step, site: site.0, padding: 0 })
    }
}
