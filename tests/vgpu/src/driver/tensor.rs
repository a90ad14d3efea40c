//! Tensor maps, as `cuTensorMapEncodeTiled` makes them.

use super::state::state;
use super::{exported, give};
use crate::codes::*;
use crate::tensor_map::{MAP_BYTES, MAX_DIMENSIONS, MapError, Request, TensorMap};

/// A slice of the caller's.
fn slice<'a, T>(from: *const T, count: usize) -> Result<&'a [T], u32> {
    if count == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and the C signature promises that many.
    Ok(unsafe { std::slice::from_raw_parts(from, count) })
}

exported! {
    fn cuTensorMapEncodeTiled(
        to: *mut [u8; MAP_BYTES],
        kind: u32,
        rank: u32,
        address: u64,
        dimensions: *const u64,
        strides: *const u64,
        boxes: *const u32,
        steps: *const u32,
        interleave: u32,
        swizzle: u32,
        _promotion: u32,
        fill: u32,
    ) {
        if state().device.profile.capability.0 < 9 {
            eprintln!("vgpu: tensor maps need compute capability 9.0");
            return Err(NOT_SUPPORTED);
        }
        let rank = rank as usize;
        if !(1..=MAX_DIMENSIONS).contains(&rank) || to.is_null() || !(to as usize).is_multiple_of(64) {
            eprintln!("vgpu: a tensor map of {rank} dimensions at {to:?}; 1 to 5 and a multiple of 64 are allowed");
            return Err(INVALID_VALUE);
        }
        let request = Request {
            kind,
            address,
            dimensions: slice(dimensions, rank)?,
            strides: slice(strides, rank - 1)?,
            boxes: slice(boxes, rank)?,
            steps: slice(steps, rank)?,
            interleave,
            swizzle,
            fill,
        };
        let map = TensorMap::new(&request).map_err(|error| {
            eprintln!("vgpu: no tensor map: {error}");
            if matches!(error, MapError::Unknown(_)) { NOT_SUPPORTED } else { INVALID_VALUE }
        })?;
        give(to, map.encode())
    }
    fn cuTensorMapReplaceAddress(map: *mut [u8; MAP_BYTES], address: u64) {
        if map.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, and a CUtensorMap by the C signature.
        let found = TensorMap::decode(&unsafe { map.read_unaligned() }).ok_or(INVALID_VALUE)?;
        if !address.is_multiple_of(16) {
            return Err(INVALID_VALUE);
        }
        give(map, TensorMap { address, ..found }.encode())
    }
}
