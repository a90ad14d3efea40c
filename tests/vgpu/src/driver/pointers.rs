//! What the driver tells of an address, and host memory that a program makes known to it.

use std::ffi::{c_int, c_void};

use super::state::{DEFAULT_POOL, primary, state};
use super::{exported, give};
use crate::codes::*;

/// What is known of an address.
pub(crate) struct Place {
    pub base: u64,
    pub size: usize,
    /// Whether the host reaches it too.
    pub host: bool,
    /// Whether it is managed: the host's and the device's alike.
    pub managed: bool,
}

/// What is known of an address; none where nothing is allocated, nor made known.
pub(crate) fn place(address: u64) -> Option<Place> {
    let state = state();
    let allocation = state.device.memory.find(address)?;
    let base = allocation.base;
    Some(Place {
        base,
        size: allocation.size,
        host: state.pinned.contains_key(&(base as usize)),
        managed: state.managed.contains(&(base as usize)),
    })
}

/// Writes one attribute of an address.
fn attribute(to: *mut c_void, attribute: u32, address: u64) -> Result<(), u32> {
    let place = place(address).ok_or(INVALID_VALUE)?;
    match attribute {
        // The context.
        1 => give(to.cast::<usize>(), primary(state().ordinal)),
        // The side: host 1, device 2.
        2 => give(to.cast::<u32>(), if place.host && !place.managed { 1 } else { 2 }),
        // Its addresses on the device and on the host, which are one where both reach it.
        3 => give(to.cast::<u64>(), address),
        4 if place.host => give(to.cast::<u64>(), address),
        4 => Err(INVALID_VALUE),
        6 | 10 => give(to.cast::<u32>(), 0),
        7 => give(to.cast::<u64>(), place.base),
        8 => give(to.cast::<u32>(), u32::from(place.managed)),
        9 => give(to.cast::<c_int>(), state().ordinal),
        11 => give(to.cast::<u64>(), place.base),
        12 => give(to.cast::<usize>(), place.size),
        13 => give(to.cast::<u32>(), 1),
        14 => give(to.cast::<u64>(), 0),
        17 => give(to.cast::<usize>(), if place.host { 0 } else { DEFAULT_POOL }),
        _ => Err(INVALID_VALUE),
    }
}

exported! {
    fn cuPointerGetAttribute(to: *mut c_void, which: u32, address: u64) {
        attribute(to, which, address)
    }
    fn cuPointerGetAttributes(count: u32, which: *const u32, to: *const *mut c_void, address: u64) {
        if which.is_null() || to.is_null() {
            return Err(INVALID_VALUE);
        }
        for index in 0..count as usize {
            // SAFETY: the caller gives `count` attributes and places for them.
            let (which, to) = unsafe { (*which.add(index), *to.add(index)) };
            // An address that is not known is no error here: it has no attributes.
            if attribute(to, which, address).is_err() && !to.is_null() {
                match which {
                    2 | 8 | 13 => give(to.cast::<u32>(), 0)?,
                    9 => give(to.cast::<c_int>(), -2)?,
                    1 | 3 | 4 | 7 | 11 | 12 => give(to.cast::<u64>(), 0)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
    fn cuPointerSetAttribute(_value: *const c_void, _which: u32, address: u64) {
        place(address).map(|_| ()).ok_or(INVALID_VALUE)
    }
    fn cuMemGetAddressRange_v2(base: *mut u64, size: *mut usize, address: u64) {
        let place = place(address).ok_or(NOT_FOUND)?;
        if !base.is_null() {
            give(base, place.base)?;
        }
        if size.is_null() { Ok(()) } else { give(size, place.size) }
    }
    fn cuMemHostRegister_v2(host: usize, bytes: usize, _flags: u32) {
        if host == 0 || bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let mut state = state();
        if state.pinned.iter().any(|(&start, &size)| start < host + bytes && host < start + size) {
            return Err(ALREADY_REGISTERED);
        }
        state.pinned.insert(host, bytes);
        state.registered.insert(host);
        // SAFETY: the caller promises that the memory stays until it is no longer registered.
        unsafe { state.device.memory.map_host(host as *mut u8, bytes) };
        Ok(())
    }
    fn cuMemHostUnregister(host: usize) {
        let mut state = state();
        if !state.registered.remove(&host) {
            return Err(NOT_REGISTERED);
        }
        let bytes = state.pinned.get(&host).copied().unwrap_or(0);
        let _ = state.settle(|reading| (host..host + bytes).contains(&reading.from));
        state.pinned.remove(&host);
        state.free(host as u64);
        Ok(())
    }
    fn cuMemHostGetFlags(to: *mut u32, host: usize) {
        if !state().is_pinned(host) {
            return Err(INVALID_VALUE);
        }
        give(to, 0)
    }
    fn cuMemRangeGetAttribute(to: *mut c_int, bytes: usize, _which: u32, address: u64, _size: usize) {
        place(address).ok_or(INVALID_VALUE)?;
        // No advice is kept, and no place preferred.
        if bytes == 4 { give(to, 0) } else { Ok(()) }
    }
    fn cuMemAdvise(_address: u64, _bytes: usize, _advice: u32, _device: c_int) {
        Ok(())
    }
    fn cuMemPrefetchAsync(_address: u64, _bytes: usize, _device: c_int, _stream: usize) {
        Ok(())
    }
}
