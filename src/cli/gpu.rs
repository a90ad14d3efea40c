//! The GPU that commands take if none is named.

use std::path::Path;

use super::pci;
use crate::error::Error;

/// What there is.
pub(super) enum Gpu {
    /// No GPU, or none that is to be seen.
    None,
    /// One that this build and the driver can use.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "such a build uses none"))]
    Usable { ordinal: usize, name: String },
    /// There is one, and why it cannot be used.
    Unused(Error),
}

/// Whether the user hides all GPUs: CUDA programs see those before the first number of this list that is none.
fn are_hidden() -> bool {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES");
    visible.is_ok_and(|list| list.trim().is_empty() || list.trim_start().starts_with('-'))
}

/// The first GPU that can be used; of several processes on this machine each has the one of its number.
pub(super) fn find() -> Gpu {
    if are_hidden() {
        return Gpu::None;
    }
    let is_there = || pci::nvidia_gpus(Path::new(pci::BUS)) > 0;
    usable(is_there)
}

#[cfg(feature = "cuda")]
fn usable(is_there: impl Fn() -> bool) -> Gpu {
    use super::ranks;
    use crate::backend::cuda::{devices, first_usable_device, usable_device};

    let found = match first_usable_device() {
        Ok(Some(_)) if ranks::launched() => usable_device(ranks::local_rank()).map(Some),
        found => found,
    };
    match found {
        Ok(Some(info)) => Gpu::Usable { ordinal: info.ordinal, name: info.name },
        Err(error) => Gpu::Unused(error),
        // No driver, or one that finds none of those that are there.
        Ok(None) if is_there() => match devices().and_then(|_| usable_device(0)) {
            Err(error) => Gpu::Unused(error),
            Ok(info) => Gpu::Usable { ordinal: info.ordinal, name: info.name },
        },
        Ok(None) => Gpu::None,
    }
}

#[cfg(not(feature = "cuda"))]
fn usable(is_there: impl Fn() -> bool) -> Gpu {
    if is_there() { Gpu::Unused(not_in_this_build()) } else { Gpu::None }
}

/// A build that cannot use any GPU.
#[cfg(not(feature = "cuda"))]
pub(super) fn not_in_this_build() -> Error {
    Error::unsupported(
        "--device cuda",
        "this program was built without the feature `cuda`",
        "build it with the feature, which is on by default; --device cpu needs none",
    )
}
