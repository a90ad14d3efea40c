//! Memory: allocation, copies and fills.

use std::ffi::{c_int, c_void};

use super::super::pitched::{Rows, allocate_rows, copy, copy_rows, fill_rows};
use super::super::pointers::place;
use super::super::state::state;
use super::super::{memory, pitched, pointers};
use super::images::symbol;
use super::{give, of_driver, runtime, same};
use crate::codes::*;

/// `cudaPointerAttributes`.
#[repr(C)]
pub(crate) struct PointerAttributes {
    kind: u32,
    device: c_int,
    on_device: u64,
    on_host: u64,
    reserved: [u64; 8],
}

/// Rows of a copy in two dimensions.
fn rows(start: u64, pitch: usize) -> Rows {
    Rows { start, pitch, layer: 0 }
}

/// A stretch of a variable of the device.
fn part(host: usize, bytes: usize, offset: usize) -> Result<u64, u32> {
    let (address, size) = symbol(host)?;
    if offset.checked_add(bytes).is_none_or(|end| end > size) {
        return Err(INVALID_VALUE);
    }
    Ok(address + offset as u64)
}

same! {
    fn cudaMallocManaged(to: *mut u64, bytes: usize, flags: u32) = memory::cuMemAllocManaged;
    fn cudaMallocHost(to: *mut usize, bytes: usize) = memory::cuMemAllocHost_v2;
    fn cudaHostAlloc(to: *mut usize, bytes: usize, flags: u32) = memory::cuMemHostAlloc;
    fn cudaHostGetDevicePointer(to: *mut u64, host: usize, flags: u32) = memory::cuMemHostGetDevicePointer_v2;
    fn cudaHostGetFlags(to: *mut u32, host: usize) = pointers::cuMemHostGetFlags;
    fn cudaHostRegister(host: usize, bytes: usize, flags: u32) = pointers::cuMemHostRegister_v2;
    fn cudaHostUnregister(host: usize) = pointers::cuMemHostUnregister;
    fn cudaMallocAsync(to: *mut u64, bytes: usize, stream: usize) = memory::cuMemAllocAsync;
    fn cudaMallocFromPoolAsync(to: *mut u64, bytes: usize, pool: usize, stream: usize) = memory::cuMemAllocFromPoolAsync;
    fn cudaFreeAsync(address: u64, stream: usize) = memory::cuMemFreeAsync;
    fn cudaMemGetInfo(free: *mut usize, total: *mut usize) = memory::cuMemGetInfo_v2;
    fn cudaMemAdvise(address: u64, bytes: usize, advice: u32, place: u64) = memory::cuMemAdvise_v2;
    fn cudaMemPrefetchAsync(address: u64, bytes: usize, place: u64, flags: u32, stream: usize) = memory::cuMemPrefetchAsync_v2;
    fn cudaMemPoolTrimTo(pool: usize, keep: usize) = memory::cuMemPoolTrimTo;
    fn cudaMemPoolSetAttribute(pool: usize, which: u32, value: *const u64) = memory::cuMemPoolSetAttribute;
    fn cudaMemPoolGetAttribute(pool: usize, which: u32, to: *mut u64) = memory::cuMemPoolGetAttribute;
    fn cudaMemPoolCreate(to: *mut usize, properties: *const u8) = memory::cuMemPoolCreate;
    fn cudaMemPoolDestroy(pool: usize) = memory::cuMemPoolDestroy;
    fn cudaDeviceGetDefaultMemPool(to: *mut usize, ordinal: c_int) = memory::cuDeviceGetDefaultMemPool;
    fn cudaDeviceGetMemPool(to: *mut usize, ordinal: c_int) = memory::cuDeviceGetMemPool;
    fn cudaDeviceSetMemPool(ordinal: c_int, pool: usize) = memory::cuDeviceSetMemPool;
}

runtime! {
    fn cudaMalloc(to: *mut u64, bytes: usize) {
        // Nothing is a size here, and gives no address.
        if bytes == 0 {
            return give(to, 0);
        }
        // SAFETY: the same contract.
        of_driver(unsafe { memory::cuMemAlloc_v2(to, bytes) })
    }
    fn cudaFree(address: u64) {
        // SAFETY: the same contract.
        of_driver(unsafe { memory::cuMemFree_v2(address) })
    }
    fn cudaFreeHost(host: usize) {
        if host == 0 {
            return Ok(());
        }
        // SAFETY: the same contract.
        of_driver(unsafe { memory::cuMemFreeHost(host) })
    }
    fn cudaMallocPitch(to: *mut u64, pitch: *mut usize, width: usize, height: usize) {
        allocate_rows(to, pitch, width, height)
    }
    fn cudaMemcpy(to: u64, from: u64, bytes: usize, _kind: u32) {
        copy(to, from, bytes, None)
    }
    fn cudaMemcpyAsync(to: u64, from: u64, bytes: usize, _kind: u32, stream: usize) {
        copy(to, from, bytes, Some(stream))
    }
    fn cudaMemcpyPeer(to: u64, _to_device: c_int, from: u64, _from_device: c_int, bytes: usize) {
        copy(to, from, bytes, None)
    }
    fn cudaMemcpyPeerAsync(to: u64, _to_device: c_int, from: u64, _from_device: c_int, bytes: usize, stream: usize) {
        copy(to, from, bytes, Some(stream))
    }
    fn cudaMemcpy2D(to: u64, to_pitch: usize, from: u64, from_pitch: usize, width: usize, height: usize, _kind: u32) {
        copy_rows(rows(to, to_pitch), rows(from, from_pitch), [width, height, 1], None)
    }
    fn cudaMemcpy2DAsync(
        to: u64,
        to_pitch: usize,
        from: u64,
        from_pitch: usize,
        width: usize,
        height: usize,
        _kind: u32,
        stream: usize,
    ) {
        copy_rows(rows(to, to_pitch), rows(from, from_pitch), [width, height, 1], Some(stream))
    }
    fn cudaMemcpyToSymbol(host: usize, from: u64, bytes: usize, offset: usize, _kind: u32) {
        copy(part(host, bytes, offset)?, from, bytes, None)
    }
    fn cudaMemcpyToSymbolAsync(host: usize, from: u64, bytes: usize, offset: usize, _kind: u32, stream: usize) {
        copy(part(host, bytes, offset)?, from, bytes, Some(stream))
    }
    fn cudaMemcpyFromSymbol(to: u64, host: usize, bytes: usize, offset: usize, _kind: u32) {
        copy(to, part(host, bytes, offset)?, bytes, None)
    }
    fn cudaMemcpyFromSymbolAsync(to: u64, host: usize, bytes: usize, offset: usize, _kind: u32, stream: usize) {
        copy(to, part(host, bytes, offset)?, bytes, Some(stream))
    }
    fn cudaMemset(address: u64, value: c_int, bytes: usize) {
        fill_rows(address, 0, &[value as u8], [bytes, 1], None)
    }
    fn cudaMemsetAsync(address: u64, value: c_int, bytes: usize, stream: usize) {
        fill_rows(address, 0, &[value as u8], [bytes, 1], Some(stream))
    }
    fn cudaMemset2D(address: u64, pitch: usize, value: c_int, width: usize, height: usize) {
        fill_rows(address, pitch, &[value as u8], [width, height], None)
    }
    fn cudaMemset2DAsync(address: u64, pitch: usize, value: c_int, width: usize, height: usize, stream: usize) {
        fill_rows(address, pitch, &[value as u8], [width, height], Some(stream))
    }
    fn cudaPointerGetAttributes(to: *mut PointerAttributes, address: u64) {
        let ordinal = state().ordinal;
        let known = place(address);
        // Memory that is not known is the host's own: 0; else host 1, device 2, managed 3.
        let kind = known.as_ref().map_or(0, |place| match (place.managed, place.host) {
            (true, _) => 3,
            (false, true) => 1,
            (false, false) => 2,
        });
        give(to, PointerAttributes {
            kind,
            device: if known.is_some() { ordinal } else { -2 },
            on_device: if known.is_some() { address } else { 0 },
            on_host: if kind == 2 { 0 } else { address },
            reserved: [0; 8],
        })
    }
    fn cudaMallocArray(_to: *mut usize, _format: *const c_void, _width: usize, _height: usize, _flags: u32) {
        Err(pitched::no_arrays())
    }
    fn cudaMalloc3DArray(_to: *mut usize, _format: *const c_void, _width: usize, _height: usize, _depth: usize, _flags: u32) {
        Err(pitched::no_arrays())
    }
    fn cudaCreateTextureObject(_to: *mut u64, _resource: *const c_void, _texture: *const c_void, _view: *const c_void) {
        Err(pitched::no_arrays())
    }
    fn cudaCreateSurfaceObject(_to: *mut u64, _resource: *const c_void) {
        Err(pitched::no_arrays())
    }
}
