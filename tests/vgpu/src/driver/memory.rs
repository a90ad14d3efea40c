//! Allocation, pools, copies and fills.

use std::alloc::Layout;

use super::state::{DEFAULT_POOL, Work, state};
use super::work::{note_free, perform, submit};
use super::{check, exported, give};
use crate::codes::*;

pub(super) fn allocate(to: *mut u64, bytes: usize) -> Result<(), u32> {
    let mut state = state();
    check(state.sticky)?;
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    let address = state.device.memory.allocate(bytes).ok_or(OUT_OF_MEMORY)?;
    give(to, address)
}

fn free(address: u64) -> Result<(), u32> {
    if address == 0 {
        return Ok(());
    }
    state().free(address).ok_or(INVALID_VALUE)
}

/// Host memory that the device reaches too.
fn allocate_host(to: *mut usize, bytes: usize) -> Result<(), u32> {
    let layout = Layout::from_size_align(bytes.max(1), 4096).map_err(|_| INVALID_VALUE)?;
    // SAFETY: the size is at least 1.
    let host = unsafe { std::alloc::alloc_zeroed(layout) };
    if host.is_null() {
        return Err(OUT_OF_MEMORY);
    }
    let mut state = state();
    state.pinned.insert(host as usize, bytes.max(1));
    // SAFETY: just allocated; freed only by `free_host`, which unmaps it first.
    unsafe { state.device.memory.map_host(host, bytes.max(1)) };
    give(to, host as usize)
}

fn free_host(host: usize) -> Result<(), u32> {
    let mut state = state();
    let bytes = *state.pinned.get(&host).ok_or(INVALID_VALUE)?;
    if state.registered.contains(&host) {
        return Err(INVALID_VALUE);
    }
    // Freeing waits for the device.
    let _ = state.settle(|reading| (host..host + bytes).contains(&reading.from));
    state.pinned.remove(&host);
    state.managed.remove(&host);
    state.free(host as u64);
    let layout = Layout::from_size_align(bytes, 4096).map_err(|_| INVALID_VALUE)?;
    // SAFETY: allocated by `allocate_host` with this layout, and forgotten above.
    unsafe { std::alloc::dealloc(host as *mut u8, layout) };
    Ok(())
}

/// Work of a call that waits for the device: it runs on the null stream.
pub(super) fn at_once(work: &Work) -> Result<(), u32> {
    let mut state = state();
    state.not_while_capturing(CAPTURE_IMPLICIT)?;
    check(state.sticky)?;
    state.calls().count(work);
    state.calls().waits += 1;
    drop(state);
    let code = perform(work, 0);
    super::state::state().wait_for(0);
    check(code)
}

fn some(bytes: usize, work: impl FnOnce() -> Result<(), u32>) -> Result<(), u32> {
    if bytes == 0 { Ok(()) } else { work() }
}

/// Whether a stream captures.
fn captures(stream: usize) -> bool {
    state().capturing.contains_key(&stream)
}

exported! {
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let state = state();
        check(state.sticky)?;
        let (used, all) = state.device.memory.usage();
        give(free, (all - used) as usize)?;
        give(total, all as usize)
    }
    fn cuMemAlloc_v2(to: *mut u64, bytes: usize) {
        state().not_while_capturing(CAPTURE_UNSUPPORTED)?;
        allocate(to, bytes)
    }
    fn cuMemAllocManaged(to: *mut u64, bytes: usize, _flags: u32) {
        state().not_while_capturing(CAPTURE_UNSUPPORTED)?;
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let mut host = 0usize;
        allocate_host(&mut host, bytes)?;
        state().managed.insert(host);
        give(to, host as u64)
    }
    fn cuMemFree_v2(address: u64) {
        let mut state = state();
        state.not_while_capturing(CAPTURE_UNSUPPORTED)?;
        let pinned = state.pinned.contains_key(&(address as usize));
        drop(state);
        if pinned { free_host(address as usize) } else { free(address) }
    }
    fn cuMemAllocAsync(to: *mut u64, bytes: usize, stream: usize) {
        if captures(stream) {
            // Memory nodes are left out: nothing is to be allocated inside a graph.
            return state().not_while_capturing(CAPTURE_UNSUPPORTED).and(Err(CAPTURE_UNSUPPORTED));
        }
        if !state().has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        allocate(to, bytes)
    }
    fn cuMemAllocFromPoolAsync(to: *mut u64, bytes: usize, pool: usize, stream: usize) {
        if captures(stream) {
            return state().not_while_capturing(CAPTURE_UNSUPPORTED).and(Err(CAPTURE_UNSUPPORTED));
        }
        if !state().has_stream(stream) || !state().pools.contains_key(&pool) {
            return Err(INVALID_HANDLE);
        }
        allocate(to, bytes)
    }
    fn cuMemFreeAsync(address: u64, stream: usize) {
        if captures(stream) {
            return state().not_while_capturing(CAPTURE_UNSUPPORTED).and(Err(CAPTURE_UNSUPPORTED));
        }
        note_free(address, stream);
        free(address)
    }
    fn cuMemHostAlloc(to: *mut usize, bytes: usize, _flags: u32) {
        allocate_host(to, bytes)
    }
    fn cuMemAllocHost_v2(to: *mut usize, bytes: usize) {
        allocate_host(to, bytes)
    }
    fn cuMemFreeHost(host: usize) {
        free_host(host)
    }
    fn cuMemHostGetDevicePointer_v2(to: *mut u64, host: usize, _flags: u32) {
        if state().device.memory.find(host as u64).is_none() {
            return Err(INVALID_VALUE);
        }
        give(to, host as u64)
    }
    fn cuMemAdvise_v2(_address: u64, _bytes: usize, _advice: u32, _place: u64) {
        Ok(())
    }
    fn cuMemPrefetchAsync_v2(_address: u64, _bytes: usize, _place: u64, _flags: u32, _stream: usize) {
        Ok(())
    }
    fn cuStreamAttachMemAsync(_stream: usize, _address: u64, _bytes: usize, _flags: u32) {
        Ok(())
    }
    fn cuDeviceGetDefaultMemPool(to: *mut usize, _device: i32) {
        give(to, DEFAULT_POOL)
    }
    fn cuDeviceGetMemPool(to: *mut usize, _device: i32) {
        give(to, DEFAULT_POOL)
    }
    fn cuDeviceSetMemPool(_device: i32, pool: usize) {
        if state().pools.contains_key(&pool) { Ok(()) } else { Err(INVALID_VALUE) }
    }
    fn cuMemPoolCreate(to: *mut usize, _properties: *const u8) {
        let mut state = state();
        let pool = state.handle();
        state.pools.insert(pool, std::collections::HashMap::new());
        give(to, pool)
    }
    fn cuMemPoolDestroy(pool: usize) {
        if pool == DEFAULT_POOL {
            return Err(INVALID_VALUE);
        }
        state().pools.remove(&pool).map(|_| ()).ok_or(INVALID_VALUE)
    }
    fn cuMemPoolTrimTo(pool: usize, _keep: usize) {
        if state().pools.contains_key(&pool) { Ok(()) } else { Err(INVALID_VALUE) }
    }
    fn cuMemPoolSetAttribute(pool: usize, attribute: u32, value: *const u64) {
        if value.is_null() {
            return Err(INVALID_VALUE);
        }
        // Attributes 1 to 3 are 32-bit flags, the others 64-bit sizes.
        // SAFETY: not null, and of the size that the attribute has.
        let value = unsafe {
            if attribute <= 3 { u64::from(value.cast::<u32>().read_unaligned()) } else { value.read_unaligned() }
        };
        state().pools.get_mut(&pool).ok_or(INVALID_VALUE)?.insert(attribute, value);
        Ok(())
    }
    fn cuMemPoolGetAttribute(pool: usize, attribute: u32, to: *mut u64) {
        let state = state();
        let stored = state.pools.get(&pool).ok_or(INVALID_VALUE)?.get(&attribute).copied();
        match attribute {
            1..=3 => give(to.cast::<u32>(), stored.unwrap_or(1) as u32),
            // What is reserved and used is what is allocated.
            5..=8 => give(to, state.device.memory.usage().0),
            _ => give(to, stored.unwrap_or(0)),
        }
    }
    fn cuMemcpyHtoD_v2(to: u64, from: usize, bytes: usize) {
        some(bytes, || at_once(&Work::Upload { to, from, bytes }))
    }
    fn cuMemcpyDtoH_v2(to: usize, from: u64, bytes: usize) {
        some(bytes, || at_once(&Work::Download { to, from, bytes }))
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        some(bytes, || at_once(&Work::Copy { to, from, bytes }))
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: usize, bytes: usize, stream: usize) {
        some(bytes, || check(submit(stream, Work::Upload { to, from, bytes })))
    }
    fn cuMemcpyDtoHAsync_v2(to: usize, from: u64, bytes: usize, stream: usize) {
        some(bytes, || check(submit(stream, Work::Download { to, from, bytes })))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) {
        some(bytes, || check(submit(stream, Work::Copy { to, from, bytes })))
    }
    fn cuMemcpyPeerAsync(to: u64, _to_context: usize, from: u64, _from_context: usize, bytes: usize, stream: usize) {
        some(bytes, || check(submit(stream, Work::Copy { to, from, bytes })))
    }
    fn cuMemsetD8_v2(address: u64, value: u8, count: usize) {
        some(count, || at_once(&Work::Fill { address, pattern: vec![value], count }))
    }
    fn cuMemsetD32_v2(address: u64, value: u32, count: usize) {
        some(count, || at_once(&Work::Fill { address, pattern: value.to_le_bytes().to_vec(), count }))
    }
    fn cuMemsetD8Async(address: u64, value: u8, count: usize, stream: usize) {
        some(count, || check(submit(stream, Work::Fill { address, pattern: vec![value], count })))
    }
    fn cuMemsetD16Async(address: u64, value: u16, count: usize, stream: usize) {
        some(count, || check(submit(stream, Work::Fill { address, pattern: value.to_le_bytes().to_vec(), count })))
    }
    fn cuMemsetD32Async(address: u64, value: u32, count: usize, stream: usize) {
        some(count, || check(submit(stream, Work::Fill { address, pattern: value.to_le_bytes().to_vec(), count })))
    }
}
