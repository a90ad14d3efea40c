//! Contexts of a thread, one above the other, and what devices say of each other.

use std::cell::RefCell;
use std::ffi::{c_char, c_int};

use super::state::{device_of_primary, state};
use super::{CURRENT, device, exported, give};
use crate::codes::*;

thread_local! {
    /// The contexts below the current one.
    static BELOW: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Makes a context current, above the one that is.
pub(super) fn push(context: usize) {
    BELOW.with_borrow_mut(|below| below.push(CURRENT.replace(context)));
}

/// Takes the current context away, and gives it; 0 when there is none.
pub(super) fn pop() -> usize {
    let below = BELOW.with_borrow_mut(Vec::pop).unwrap_or(0);
    CURRENT.replace(below)
}

pub(super) fn create(to: *mut usize, ordinal: c_int) -> Result<(), u32> {
    device(ordinal)?;
    let mut state = state();
    state.open(ordinal)?;
    let context = state.handle();
    state.contexts.push(context);
    drop(state);
    push(context);
    give(to, context)
}

/// Tells the device of a context; 0 is the current one.
pub(super) fn device_of(to: *mut c_int, context: usize) -> Result<(), u32> {
    let context = if context == 0 { CURRENT.get() } else { context };
    if context == 0 {
        return Err(INVALID_CONTEXT);
    }
    give(to, device_of_primary(context).unwrap_or(state().ordinal))
}

fn has_context() -> Result<(), u32> {
    if CURRENT.get() == 0 { Err(INVALID_CONTEXT) } else { Ok(()) }
}

exported! {
    fn cuCtxCreate_v2(to: *mut usize, _flags: u32, ordinal: c_int) {
        create(to, ordinal)
    }
    fn cuCtxCreate_v3(to: *mut usize, _affinity: *mut u8, _count: c_int, _flags: u32, ordinal: c_int) {
        create(to, ordinal)
    }
    fn cuCtxPushCurrent_v2(context: usize) {
        if context == 0 {
            return Err(INVALID_CONTEXT);
        }
        push(context);
        Ok(())
    }
    fn cuCtxPopCurrent_v2(to: *mut usize) {
        has_context()?;
        let context = pop();
        if to.is_null() { Ok(()) } else { give(to, context) }
    }
    fn cuCtxGetFlags(to: *mut u32) {
        has_context()?;
        give(to, 0)
    }
    fn cuCtxGetId(_context: usize, to: *mut u64) {
        has_context()?;
        give(to, 1)
    }
    fn cuCtxGetApiVersion(_context: usize, to: *mut u32) {
        give(to, 13_000)
    }
    fn cuCtxGetSharedMemConfig(to: *mut c_int) {
        give(to, 0)
    }
    fn cuCtxSetSharedMemConfig(_config: c_int) {
        Ok(())
    }
    fn cuCtxResetPersistingL2Cache() {
        Ok(())
    }
    fn cuCtxGetDevice_v2(to: *mut c_int, context: usize) {
        device_of(to, context)
    }
    fn cuCtxEnablePeerAccess(_context: usize, _flags: u32) {
        Err(NOT_SUPPORTED)
    }
    fn cuCtxDisablePeerAccess(_context: usize) {
        Err(NOT_SUPPORTED)
    }
    fn cuDeviceCanAccessPeer(to: *mut c_int, ordinal: c_int, peer: c_int) {
        device(ordinal)?;
        device(peer)?;
        // A process has contexts on one device at a time.
        give(to, 0)
    }
    fn cuDeviceGetP2PAttribute(to: *mut c_int, _attribute: u32, ordinal: c_int, peer: c_int) {
        device(ordinal)?;
        device(peer)?;
        give(to, 0)
    }
    fn cuDevicePrimaryCtxSetFlags_v2(ordinal: c_int, _flags: u32) {
        device(ordinal)
    }
    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, ordinal: c_int) {
        device(ordinal)?;
        let (first, second) = state().device.profile.capability;
        give(major, first as c_int)?;
        give(minor, second as c_int)
    }
    fn cuDeviceGetPCIBusId(to: *mut c_char, room: c_int, ordinal: c_int) {
        device(ordinal)?;
        let text = format!("0000:{:02x}:00.0", ordinal + 1);
        if to.is_null() || (room as usize) <= text.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller gave room for `room` bytes, more than the text has.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len());
            to.add(text.len()).write(0);
        }
        Ok(())
    }
    fn cuDeviceGetByPCIBusId(to: *mut c_int, text: *const c_char) {
        if text.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, and ends in 0 by the C signature.
        let text = unsafe { std::ffi::CStr::from_ptr(text) }.to_str().map_err(|_| INVALID_VALUE)?;
        let bus = text.split(':').rev().nth(1).and_then(|bus| c_int::from_str_radix(bus, 16).ok());
        let ordinal = bus.ok_or(INVALID_VALUE)? - 1;
        device(ordinal)?;
        give(to, ordinal)
    }
}
