//! The GPUs of a machine and its driver.

use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute_enum as DeviceAttribute, CUresult};
use cudarc::driver::{CudaContext, result};

use super::error::{self, driver};
use super::table::COMPILER;
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

impl DeviceInfo {
    /// Whether it is the virtual GPU of this project's tests, whose events tell no device's time.
    pub fn is_virtual(&self) -> bool {
        self.name.starts_with("Virtual GPU")
    }
}

/// Where the GPU of a context is on the PCI bus, as tools name it.
#[cfg(feature = "cli")]
pub(crate) fn pci_place(context: &CudaContext) -> Result<String> {
    let number = |which| context.attribute(which).map_err(|error| driver("say where the GPU is", error));
    let domain = number(DeviceAttribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?;
    let bus = number(DeviceAttribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?;
    let device = number(DeviceAttribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?;
    Ok(format!("{domain:08x}:{bus:02x}:{device:02x}.0"))
}

/// The GPUs that the driver finds.
///
/// # Errors
/// No driver, or what it says.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    (0..device_count()?).map(describe).collect()
}

/// What GPU number `ordinal` is, if the kernels of this build run on it. No context is made.
///
/// # Errors
/// No kernels in this build, no driver or one too old, no such GPU or one too old, and what the driver says.
pub fn usable_device(ordinal: usize) -> Result<DeviceInfo> {
    let release = compiler_release().ok_or_else(error::no_kernels)?;
    let count = device_count()?;
    if ordinal >= count {
        return Err(error::no_gpu(ordinal, count));
    }
    let speaks = driver_version()?;
    if speaks / 1000 < release / 1000 {
        return Err(error::old_driver(speaks, release));
    }
    let info = describe(ordinal)?;
    if info.compute_capability < error::OLDEST {
        return Err(error::old_gpu(&info.name, info.compute_capability));
    }
    Ok(info)
}

/// The first GPU that the kernels of this build run on; `None` on a machine without a driver, or whose driver finds no GPU.
///
/// # Errors
/// There are GPUs and none can be used: why the first cannot.
pub fn first_usable_device() -> Result<Option<DeviceInfo>> {
    if !has_driver() {
        return Ok(None);
    }
    let mut failure = None;
    for ordinal in 0..device_count()? {
        match usable_device(ordinal) {
            Ok(info) => return Ok(Some(info)),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// The context of a GPU that the kernels of this build run on, and what it is.
pub(crate) fn open(ordinal: usize) -> Result<(Arc<CudaContext>, DeviceInfo)> {
    let info = usable_device(ordinal)?;
    let context = CudaContext::new(ordinal).map_err(|error| error::busy(ordinal, error))?;
    Ok((context, info))
}

/// The toolkit's release that the kernels were compiled with, as 1000·major + 10·minor; `None` without kernels.
fn compiler_release() -> Option<i32> {
    let (_, release) = COMPILER.split_once("release ")?;
    let (major, rest) = release.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(1000 * major.parse::<i32>().ok()? + 10 * minor.parse::<i32>().ok()?)
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

/// Names of the driver's library. A missing one is a panic in cudarc, which asks for it itself only under some of its features:
/// another crate of the program may have chosen others.
const DRIVER: [&str; 2] =
    if cfg!(windows) { ["nvcuda.dll", "nvcuda64.dll"] } else { ["libcuda.so", "libcuda.so.1"] };

fn has_driver() -> bool {
    // SAFETY: opens the driver's library, which runs what every CUDA program runs.
    DRIVER.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

fn device_count() -> Result<usize> {
    if !has_driver() {
        return Err(error::no_driver());
    }
    match result::init() {
        Err(error) if error.0 == CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        other => other.map_err(|error| driver("start the driver", error))?,
    }
    let count = CudaContext::device_count().map_err(|error| driver("count the GPUs", error))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// What the GPU of a context is.
pub(crate) fn info(context: &CudaContext) -> Result<DeviceInfo> {
    describe(context.ordinal())
}

/// What a GPU is, of those that [`device_count`] has counted.
fn describe(ordinal: usize) -> Result<DeviceInfo> {
    let ask = |error| driver(&format!("describe GPU {ordinal}"), error);
    let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX)).map_err(ask)?;
    // SAFETY: the driver has just given this handle.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map_err(ask);
    let multiprocessors = attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(DeviceInfo {
        ordinal,
        name: result::device::get_name(device).map_err(ask)?,
        compute_capability: (
            attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device) }.map_err(ask)?,
        multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
    })
}
