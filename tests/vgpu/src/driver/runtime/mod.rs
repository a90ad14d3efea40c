//! CUDA's runtime, over the driver's functions: for programs that are linked with `nvcc -cudart shared`.
//!
//! NVIDIA's own runtime speaks to NVIDIA's driver through tables that are not public, so that it cannot run on another.
//! Programs find these functions because `vgpu run` loads this library before all others.

mod device;
mod errors;
mod images;
mod launch;
mod memory;
mod streams;

use std::cell::Cell;
use std::ffi::c_int;

use super::state::{primary, state};
use super::{CURRENT, exported, give};
use crate::codes::*;

thread_local! {
    /// The last error of a thread, which `cudaGetLastError` gives once.
    static LAST: Cell<u32> = const { Cell::new(SUCCESS) };
    /// The device that a thread chose.
    static DEVICE: Cell<c_int> = const { Cell::new(0) };
}

/// Keeps an error for `cudaGetLastError`.
fn remember(outcome: Result<(), u32>) -> Result<(), u32> {
    if let Err(code) = outcome
        && code != NOT_READY
    {
        LAST.set(code);
    }
    outcome
}

/// The error number of a driver function as a result.
fn of_driver(code: u32) -> Result<(), u32> {
    super::check(code)
}

/// Makes the primary context of the thread's device current, as the runtime does at its first call.
fn ready() -> Result<(), u32> {
    if CURRENT.get() != 0 {
        return Ok(());
    }
    // SAFETY: no preconditions.
    of_driver(unsafe { super::cuInit(0) })?;
    let ordinal = DEVICE.get();
    let mut state = state();
    if !(0..state.devices).contains(&ordinal) {
        return Err(INVALID_DEVICE);
    }
    state.open(ordinal)?;
    state.primary_references = state.primary_references.max(1);
    CURRENT.set(primary(ordinal));
    Ok(())
}

/// Defines functions of the runtime: they make the device ready first, and keep their error.
macro_rules! runtime {
    ($(fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {
        $crate::driver::exported! {$(
            fn $name($($argument: $kind),*) {
                let body = || -> Result<(), u32> {
                    $crate::driver::runtime::ready()?;
                    $body
                };
                $crate::driver::runtime::remember(body())
            }
        )*}
    };
}
use runtime;

/// Defines functions of the runtime that are a function of the driver under another name.
macro_rules! same {
    ($(fn $name:ident($($argument:ident: $kind:ty),* $(,)?) = $driver:path;)*) => {
        $crate::driver::runtime::runtime! {$(
            fn $name($($argument: $kind),*) {
                // SAFETY: the caller keeps the contract of the driver's function, whose C signature is the same.
                $crate::driver::runtime::of_driver(unsafe { $driver($($argument),*) })
            }
        )*}
    };
}
use same;

exported! {
    fn cudaGetLastError() {
        super::check(LAST.replace(SUCCESS).max(sticky()))
    }
    fn cudaPeekAtLastError() {
        super::check(LAST.get().max(sticky()))
    }
    fn cudaRuntimeGetVersion(version: *mut c_int) {
        give(version, 13_000)
    }
    fn cudaDriverGetVersion(version: *mut c_int) {
        // SAFETY: the same contract.
        of_driver(unsafe { super::cuDriverGetVersion(version) })
    }
}

/// The error that sticks, which every call tells.
fn sticky() -> u32 {
    state().sticky
}
