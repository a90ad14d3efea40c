//! Names of the runtime's errors.

use std::ffi::{CStr, c_char};

use crate::codes::describe;

/// Errors that only the runtime gives.
pub(super) const INVALID_CONFIGURATION: u32 = 9;
pub(super) const INVALID_SYMBOL: u32 = 13;
pub(super) const MISSING_CONFIGURATION: u32 = 52;
pub(super) const INVALID_DEVICE_FUNCTION: u32 = 98;

/// Errors of the runtime alone, and those it calls by another name than the driver: number, name, and meaning where the
/// driver has none.
const NAMES: &[(u32, &CStr, &CStr)] = &[
    (0, c"cudaSuccess", c""),
    (1, c"cudaErrorInvalidValue", c""),
    (2, c"cudaErrorMemoryAllocation", c""),
    (3, c"cudaErrorInitializationError", c""),
    (9, c"cudaErrorInvalidConfiguration", c"invalid configuration argument"),
    (12, c"cudaErrorInvalidPitchValue", c"invalid pitch argument"),
    (13, c"cudaErrorInvalidSymbol", c"invalid device symbol"),
    (35, c"cudaErrorInsufficientDriver", c"CUDA driver version is insufficient for CUDA runtime version"),
    (46, c"cudaErrorDevicesUnavailable", c""),
    (52, c"cudaErrorMissingConfiguration", c"__global__ function call is not configured"),
    (98, c"cudaErrorInvalidDeviceFunction", c"invalid device function"),
    (100, c"cudaErrorNoDevice", c""),
    (101, c"cudaErrorInvalidDevice", c""),
    (201, c"cudaErrorDeviceUninitialized", c""),
    (209, c"cudaErrorNoKernelImageForDevice", c""),
    (218, c"cudaErrorInvalidPtx", c""),
    (222, c"cudaErrorUnsupportedPtxVersion", c""),
    (301, c"cudaErrorFileNotFound", c""),
    (400, c"cudaErrorInvalidResourceHandle", c""),
    (401, c"cudaErrorIllegalState", c""),
    (500, c"cudaErrorSymbolNotFound", c""),
    (600, c"cudaErrorNotReady", c""),
    (700, c"cudaErrorIllegalAddress", c""),
    (701, c"cudaErrorLaunchOutOfResources", c""),
    (702, c"cudaErrorLaunchTimeout", c""),
    (710, c"cudaErrorAssert", c""),
    (712, c"cudaErrorHostMemoryAlreadyRegistered", c""),
    (713, c"cudaErrorHostMemoryNotRegistered", c""),
    (716, c"cudaErrorMisalignedAddress", c""),
    (719, c"cudaErrorLaunchFailure", c""),
    (720, c"cudaErrorCooperativeLaunchTooLarge", c""),
    (801, c"cudaErrorNotSupported", c""),
    (900, c"cudaErrorStreamCaptureUnsupported", c""),
    (901, c"cudaErrorStreamCaptureInvalidated", c""),
    (903, c"cudaErrorStreamCaptureUnmatched", c""),
    (904, c"cudaErrorStreamCaptureUnjoined", c""),
    (905, c"cudaErrorStreamCaptureIsolation", c""),
    (906, c"cudaErrorStreamCaptureImplicit", c""),
    (907, c"cudaErrorCapturedEvent", c""),
    (908, c"cudaErrorStreamCaptureWrongThread", c""),
    (912, c"cudaErrorInvalidClusterSize", c""),
    (999, c"cudaErrorUnknown", c""),
];

fn find(code: u32) -> Option<&'static (u32, &'static CStr, &'static CStr)> {
    NAMES.iter().find(|(known, _, _)| *known == code)
}

#[unsafe(no_mangle)]
extern "C" fn cudaGetErrorName(code: u32) -> *const c_char {
    find(code).map_or(c"unrecognized error code", |(_, name, _)| name).as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn cudaGetErrorString(code: u32) -> *const c_char {
    let own = find(code).map(|(_, _, meaning)| *meaning).filter(|meaning| !meaning.is_empty());
    own.or_else(|| describe(code).map(|(_, meaning)| meaning)).unwrap_or(c"unrecognized error code").as_ptr()
}
