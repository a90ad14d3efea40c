//! The GPUs of a machine and its driver.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUdevice_attribute_enum as DeviceAttribute, is_culib_present};

use super::failure::{driver, no_driver};
use crate::error::Result;

/// What a machine's GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number, from 0.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub compute_capability: (i32, i32),
    /// Its memory, in bytes.
    pub memory: usize,
    /// Its multiprocessors.
    pub multiprocessors: usize,
}

/// The GPUs that the driver finds.
///
/// # Errors
/// No driver, or what it says.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let count = device_count()?;
    (0..count).map(|ordinal| context(ordinal).and_then(|context| info(&context))).collect()
}

/// The CUDA version that the driver speaks, as 1000·major + 10·minor.
///
/// # Errors
/// No driver, or what it says.
pub fn driver_version() -> Result<i32> {
    device_count()?;
    let mut version = 0;
    // SAFETY: the driver's library is there, and the pointer is to an int.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|error| driver("ask the driver for its version", error))?;
    Ok(version)
}

pub(super) fn device_count() -> Result<usize> {
    // SAFETY: looks for the library and opens it, which runs what every CUDA program runs.
    if !unsafe { is_culib_present() } {
        return Err(no_driver());
    }
    match cudarc::driver::result::init() {
        Err(error) if error.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        other => other.map_err(|error| driver("start the driver", error))?,
    }
    let count = CudaContext::device_count().map_err(|error| driver("count the GPUs", error))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub(super) fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    CudaContext::new(ordinal).map_err(|error| driver(&format!("open GPU {ordinal}"), error))
}

pub(super) fn info(context: &CudaContext) -> Result<DeviceInfo> {
    let ask = |error| driver("describe the GPU", error);
    let multiprocessors =
        context.attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).map_err(ask)?;
    Ok(DeviceInfo {
        ordinal: context.ordinal(),
        name: context.name().map_err(ask)?,
        compute_capability: context.compute_capability().map_err(ask)?,
        memory: context.total_mem().map_err(ask)?,
        multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
    })
}
