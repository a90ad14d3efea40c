//! A step's dropout on the device: threshold, scale, step number and seeds, as `kernels/dropout.cuh` reads them.

use super::Cuda;
use super::memory::{Buffer, address};
use crate::backend::{DropoutStep, Mask};
use crate::error::Result;

/// The step's dropout that the device has.
#[derive(Debug)]
pub(super) struct DeviceDropout {
    step: DropoutStep,
    words: Buffer<u32>,
}

/// One site's mask, as kernels take it; `Mask` of `kernels/dropout.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MaskArgument {
    step: u64,
    site: u32,
    padding: u32,
}

impl Cuda {
    /// The argument for `mask`; the step's numbers are uploaded unless the device has them.
    pub(super) fn mask(&self, mask: Mask<'_>) -> Result<MaskArgument> {
        let Some((step, site)) = mask else { return Ok(MaskArgument::default()) };
        let mut known = self.dropout.borrow_mut();
        if known.as_ref().is_none_or(|known| known.step != *step) {
            let words = step.words();
            // The same place for every step, where the number of runs allows: a captured graph reads it there.
            let mut buffer = match known.take() {
                Some(known) if known.words.len() == words.len() => known.words,
                _ => self.allocate(words.len()),
            };
            self.upload(&words, &mut buffer)?;
            *known = Some(DeviceDropout { step: step.clone(), words: buffer });
        }
        let step = match known.as_ref() {
            Some(known) => address(&known.words.view()?, self.kernels().stream()),
            None => 0,
        };
        Ok(MaskArgument { step, site: site.0, padding: 0 })
    }
}
