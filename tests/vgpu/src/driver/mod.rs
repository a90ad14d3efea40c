//! The C functions of `libcuda` that programs call, over [`crate::device::Device`].
//!
//! Streams carry out work at once and in order; what a program may not do on a device (capture rules,
//! handles, limits, errors that stick) is refused here with the number a device gives.

mod contexts;
mod early;
mod entry;
mod extension;
mod fatbin;
pub use extension::{Calls, Change, Summary};
mod graphs;
mod launch;
mod libraries;
mod memory;
mod model_time;
mod modules;
mod order;
mod pitched;
mod pointers;
mod runtime;
mod state;
mod streams;
mod tensor;
mod work;

use std::ffi::{c_char, c_int};

use crate::codes::*;
use crate::device::number;
use state::{device_of_primary, primary, state};

const COMPUTE_CAPABILITY_MAJOR: u32 = 75;
const COMPUTE_CAPABILITY_MINOR: u32 = 76;

/// Defines exported functions that answer an error number and never unwind into C.
macro_rules! exported {
    ($(fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($argument: $kind),*) -> u32 {
            let body = || -> Result<(), u32> { $body };
            let body = || {
                let late = $crate::driver::early::before_call(stringify!($name));
                body().and($crate::driver::check(late))
            };
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
                Ok(Ok(())) => $crate::codes::SUCCESS,
                Ok(Err(code)) => code,
                Err(_) => $crate::codes::UNKNOWN,
            }
        }
    )*};
}
pub(crate) use exported;

/// Writes through a pointer of the caller.
pub(crate) fn give<T>(to: *mut T, value: T) -> Result<(), u32> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and the C signature promises room for a T.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// An error number as a result.
pub(crate) fn check(code: u32) -> Result<(), u32> {
    if code == SUCCESS { Ok(()) } else { Err(code) }
}

thread_local! {
    static CURRENT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn device(ordinal: c_int) -> Result<(), u32> {
    if (0..state().devices).contains(&ordinal) { Ok(()) } else { Err(INVALID_DEVICE) }
}

/// A device's identity: the same for the same ordinal in every process.
fn identity(ordinal: c_int) -> [u8; 16] {
    let mut identity = *b"virtual-gpu-0000";
    identity[12..].copy_from_slice(&ordinal.to_be_bytes());
    identity
}

exported! {
    fn cuInit(_flags: u32) {
        extension::watch_exit();
        let state = state();
        match &state.profile_problem {
            None if state.devices == 0 => Err(NO_DEVICE),
            None => Ok(()),
            Some(problem) => {
                eprintln!("vgpu: {problem}");
                Err(NOT_INITIALIZED)
            }
        }
    }
    fn cuDriverGetVersion(version: *mut c_int) {
        give(version, number("VGPU_DRIVER").map_or(13_000, |version| version as c_int))
    }
    fn cuDeviceGet(to: *mut c_int, ordinal: c_int) {
        device(ordinal)?;
        give(to, ordinal)
    }
    fn cuDeviceGetCount(to: *mut c_int) {
        give(to, state().devices)
    }
    fn cuDeviceGetName(to: *mut c_char, room: c_int, ordinal: c_int) {
        device(ordinal)?;
        let title = state().device.profile.title.as_bytes();
        let room = usize::try_from(room).unwrap_or(0);
        if to.is_null() || room == 0 {
            return Err(INVALID_VALUE);
        }
        let count = title.len().min(room - 1);
        // SAFETY: the caller gave room for `room` bytes, and `count` is below it.
        unsafe {
            std::ptr::copy_nonoverlapping(title.as_ptr(), to.cast(), count);
            to.add(count).write(0);
        }
        Ok(())
    }
    fn cuDeviceGetUuid(to: *mut [u8; 16], ordinal: c_int) {
        device(ordinal)?;
        give(to, identity(ordinal))
    }
    fn cuDeviceGetUuid_v2(to: *mut [u8; 16], ordinal: c_int) {
        device(ordinal)?;
        give(to, identity(ordinal))
    }
    fn cuDeviceTotalMem_v2(to: *mut usize, ordinal: c_int) {
        device(ordinal)?;
        give(to, state().device.memory.usage().1 as usize)
    }
    fn cuDeviceGetAttribute(to: *mut c_int, attribute: u32, ordinal: c_int) {
        device(ordinal)?;
        let claimed = number("VGPU_CAPABILITY").map(|capability| capability as i32);
        let value = match (attribute, claimed) {
            (COMPUTE_CAPABILITY_MAJOR, Some(claimed)) => claimed / 10,
            (COMPUTE_CAPABILITY_MINOR, Some(claimed)) => claimed % 10,
            _ => state().device.profile.attribute(attribute).ok_or(INVALID_VALUE)?,
        };
        give(to, value)
    }
    fn cuDevicePrimaryCtxRetain(to: *mut usize, ordinal: c_int) {
        device(ordinal)?;
        let mut state = state();
        state.open(ordinal)?;
        state.primary_references += 1;
        give(to, primary(ordinal))
    }
    fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) {
        device(ordinal)?;
        let mut state = state();
        if state.primary_references == 0 {
            return Err(INVALID_CONTEXT);
        }
        state.primary_references -= 1;
        if state.primary_references == 0 {
            // The last release destroys the context, and its error with it.
            state.sticky = SUCCESS;
        }
        Ok(())
    }
    fn cuDevicePrimaryCtxReset_v2(ordinal: c_int) {
        device(ordinal)?;
        state().sticky = SUCCESS;
        Ok(())
    }
    fn cuDevicePrimaryCtxGetState(ordinal: c_int, flags: *mut u32, active: *mut c_int) {
        device(ordinal)?;
        give(flags, 0)?;
        let state = state();
        give(active, c_int::from(state.primary_references > 0 && state.ordinal == ordinal))
    }
    fn cuCtxCreate_v4(to: *mut usize, _parameters: *mut u8, _flags: u32, ordinal: c_int) {
        contexts::create(to, ordinal)
    }
    fn cuCtxDestroy_v2(context: usize) {
        let mut state = state();
        let before = state.contexts.len();
        state.contexts.retain(|known| *known != context);
        if state.contexts.len() == before {
            return Err(INVALID_CONTEXT);
        }
        state.sticky = SUCCESS;
        if CURRENT.get() == context {
            contexts::pop();
        }
        Ok(())
    }
    fn cuCtxGetCurrent(to: *mut usize) {
        give(to, CURRENT.get())
    }
    fn cuCtxSetCurrent(context: usize) {
        let state = state();
        let is_primary = device_of_primary(context).is_some_and(|ordinal| ordinal < state.devices);
        if context != 0 && !is_primary && !state.contexts.contains(&context) {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.set(context);
        Ok(())
    }
    fn cuCtxGetDevice(to: *mut c_int) {
        contexts::device_of(to, 0)
    }
    fn cuCtxSynchronize() {
        let mut state = state();
        state.calls().waits += 1;
        state.not_while_capturing(CAPTURE_UNSUPPORTED)?;
        state.order.wait_for_all();
        state.settle(|_| true)
    }
    fn cuCtxSetFlags(_flags: u32) {
        Ok(())
    }
    fn cuCtxGetLimit(to: *mut usize, limit: u32) {
        // Stack, printf buffer and device heap, as a device has them by default.
        give(to, match limit { 0 => 1024, 1 => 1 << 20, 2 => state().device.heap_bytes, _ => return Err(INVALID_VALUE) })
    }
    fn cuCtxSetLimit(limit: u32, value: usize) {
        const HEAP: u32 = 2;
        if limit == HEAP {
            state().device.heap_bytes = value;
        }
        Ok(())
    }
    fn cuCtxGetCacheConfig(to: *mut u32) {
        give(to, 0)
    }
    fn cuCtxSetCacheConfig(_config: u32) {
        Ok(())
    }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        give(least, 0)?;
        give(greatest, -5)
    }
    fn cuProfilerStart() {
        Ok(())
    }
    fn cuProfilerStop() {
        Ok(())
    }
    fn cuGetErrorName(code: u32, to: *mut *const c_char) {
        match describe(code) {
            Some((name, _)) => give(to, name.as_ptr()),
            None => Err(INVALID_VALUE),
        }
    }
    fn cuGetErrorString(code: u32, to: *mut *const c_char) {
        match describe(code) {
            Some((_, meaning)) => give(to, meaning.as_ptr()),
            None => Err(INVALID_VALUE),
        }
    }
}
