//! Devices and what they tell of themselves.

use std::ffi::{CStr, c_char, c_int, c_void};

use super::super::state::state;
use super::super::{CURRENT, contexts, entry};
use super::{DEVICE, exported, give, of_driver, ready, remember, runtime, same};
use crate::codes::*;

/// Bytes of `cudaDeviceProp`.
const PROPERTIES: usize = 1008;

/// The fields of `cudaDeviceProp` of 4 bytes: their place, and the attribute that they are.
const WORDS: &[(usize, u32)] = &[
    (304, 12),
    (308, 10),
    (320, 1),
    (324, 2),
    (328, 3),
    (332, 4),
    (336, 5),
    (340, 6),
    (344, 7),
    (360, 75),
    (364, 76),
    (384, 16),
    (388, 18),
    (392, 19),
    (560, 31),
    (564, 32),
    (568, 33),
    (572, 34),
    (576, 50),
    (584, 40),
    (588, 41),
    (592, 37),
    (596, 38),
    (600, 108),
    (604, 39),
    (608, 78),
    (612, 79),
    (616, 80),
    (632, 82),
    (636, 83),
    (640, 84),
    (644, 85),
    (648, 86),
    (652, 88),
    (656, 89),
    (660, 90),
    (664, 91),
    (668, 95),
    (680, 100),
    (684, 101),
    (688, 106),
    (692, 109),
    (704, 99),
    (720, 115),
    (748, 120),
];

/// The fields of 8 bytes that are an attribute.
const LONGS: &[(usize, u32)] =
    &[(296, 8), (312, 11), (352, 9), (368, 14), (376, 51), (624, 81), (672, 97), (696, 111)];

/// An attribute of a device.
fn attribute(which: u32, ordinal: c_int) -> Result<c_int, u32> {
    let mut value = 0;
    // SAFETY: a place for the value.
    of_driver(unsafe { super::super::cuDeviceGetAttribute(&mut value, which, ordinal) })?;
    Ok(value)
}

/// A `cudaDeviceProp` of CUDA 13.
fn properties(ordinal: c_int) -> Result<[u8; PROPERTIES], u32> {
    let mut out = [0u8; PROPERTIES];
    // SAFETY: room for 256 bytes of the name.
    of_driver(unsafe { super::super::cuDeviceGetName(out.as_mut_ptr().cast(), 256, ordinal) })?;
    out[256..272].copy_from_slice(&super::super::identity(ordinal));
    let total = state().device.memory.usage().1;
    out[288..296].copy_from_slice(&total.to_le_bytes());
    for &(at, which) in WORDS {
        out[at..at + 4].copy_from_slice(&attribute(which, ordinal)?.to_le_bytes());
    }
    for &(at, which) in LONGS {
        out[at..at + 8].copy_from_slice(&i64::from(attribute(which, ordinal)?).to_le_bytes());
    }
    Ok(out)
}

fn entry_point(
    name: *const c_char,
    to: *mut *mut c_void,
    version: c_int,
    status: *mut u32,
) -> Result<(), u32> {
    if name.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and ends in 0 by the C signature.
    let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| INVALID_VALUE)?;
    let found = entry::function(name, version);
    if !status.is_null() {
        give(status, u32::from(found.is_none()))?;
    }
    give(to, found.unwrap_or(std::ptr::null_mut()))
}

exported! {
    fn cudaGetDeviceCount(to: *mut c_int) {
        // SAFETY: no preconditions.
        remember(of_driver(unsafe { super::super::cuInit(0) }))?;
        give(to, state().devices)
    }
    fn cudaGetDevice(to: *mut c_int) {
        give(to, DEVICE.get())
    }
    fn cudaSetDevice(ordinal: c_int) {
        if !(0..state().devices).contains(&ordinal) {
            return remember(Err(INVALID_DEVICE));
        }
        if DEVICE.replace(ordinal) != ordinal {
            CURRENT.set(0);
        }
        remember(ready())
    }
}

same! {
    fn cudaDeviceGetAttribute(to: *mut c_int, which: u32, ordinal: c_int) = super::super::cuDeviceGetAttribute;
    fn cudaDeviceSynchronize() = super::super::cuCtxSynchronize;
    fn cudaDeviceGetLimit(to: *mut usize, limit: u32) = super::super::cuCtxGetLimit;
    fn cudaDeviceSetLimit(limit: u32, value: usize) = super::super::cuCtxSetLimit;
    fn cudaDeviceGetCacheConfig(to: *mut u32) = super::super::cuCtxGetCacheConfig;
    fn cudaDeviceSetCacheConfig(config: u32) = super::super::cuCtxSetCacheConfig;
    fn cudaDeviceGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) = super::super::cuCtxGetStreamPriorityRange;
    fn cudaDeviceCanAccessPeer(to: *mut c_int, ordinal: c_int, peer: c_int) = contexts::cuDeviceCanAccessPeer;
    fn cudaDeviceGetPCIBusId(to: *mut c_char, room: c_int, ordinal: c_int) = contexts::cuDeviceGetPCIBusId;
    fn cudaProfilerStart() = super::super::cuProfilerStart;
    fn cudaProfilerStop() = super::super::cuProfilerStop;
    fn cudaCtxResetPersistingL2Cache() = contexts::cuCtxResetPersistingL2Cache;
}

runtime! {
    fn cudaGetDeviceProperties(to: *mut [u8; PROPERTIES], ordinal: c_int) {
        give(to, properties(ordinal)?)
    }
    fn cudaDeviceReset() {
        let ordinal = DEVICE.get();
        // SAFETY: no preconditions.
        of_driver(unsafe { super::super::cuDevicePrimaryCtxReset_v2(ordinal) })
    }
    fn cudaInitDevice(_ordinal: c_int, _flags: u32, _set: u32) {
        Ok(())
    }
    fn cudaSetDeviceFlags(_flags: u32) {
        Ok(())
    }
    fn cudaGetDeviceFlags(to: *mut u32) {
        give(to, 0)
    }
    fn cudaDeviceEnablePeerAccess(_peer: c_int, _flags: u32) {
        Err(NOT_SUPPORTED)
    }
    fn cudaGetDriverEntryPoint(name: *const c_char, to: *mut *mut c_void, _flags: u64, status: *mut u32) {
        entry_point(name, to, 13_000, status)
    }
    fn cudaGetDriverEntryPointByVersion(
        name: *const c_char,
        to: *mut *mut c_void,
        version: u32,
        _flags: u64,
        status: *mut u32,
    ) {
        entry_point(name, to, version as c_int, status)
    }
}
