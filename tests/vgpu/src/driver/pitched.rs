//! Copies and fills of rows that lie apart, and copies that find out by themselves on which side memory is.

use super::memory::{allocate, at_once};
use super::state::{Work, state};
use super::work::submit;
use super::{check, exported, give};
use crate::codes::*;
use crate::memory::is_of_device;

/// Bytes that rows of `cuMemAllocPitch` are a multiple of.
const PITCH: usize = 512;

/// `CUmemorytype` by number.
const HOST: u32 = 1;
const ARRAY: u32 = 3;

/// One side of a `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plane {
    x: usize,
    y: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: usize,
    pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Copy2 {
    from: Plane,
    to: Plane,
    width: usize,
    height: usize,
}

/// One side of a `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Room {
    x: usize,
    y: usize,
    z: usize,
    level: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: usize,
    context: usize,
    pitch: usize,
    height: usize,
}

/// `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Copy3 {
    from: Room,
    to: Room,
    width: usize,
    height: usize,
    depth: usize,
}

/// Where rows of a copy or fill lie: the first, and from one row and one layer to the next.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub start: u64,
    pub pitch: usize,
    pub layer: usize,
}

impl Plane {
    fn rows(&self) -> Result<Rows, u32> {
        if self.kind == ARRAY {
            return Err(no_arrays());
        }
        let base = if self.kind == HOST { self.host } else { self.device };
        Ok(Rows { start: base + (self.y * self.pitch + self.x) as u64, pitch: self.pitch, layer: 0 })
    }
}

impl Room {
    fn rows(&self) -> Result<Rows, u32> {
        if self.kind == ARRAY {
            return Err(no_arrays());
        }
        let base = if self.kind == HOST { self.host } else { self.device };
        let layer = self.pitch * self.height;
        Ok(Rows {
            start: base + (self.z * layer + self.y * self.pitch + self.x) as u64,
            pitch: self.pitch,
            layer,
        })
    }
}

/// Says that arrays are none here.
pub(crate) fn no_arrays() -> u32 {
    eprintln!("vgpu: arrays, textures and surfaces are not modelled");
    NOT_SUPPORTED
}

/// Copies between any two places, on a stream or at once.
pub(crate) fn copy(to: u64, from: u64, bytes: usize, stream: Option<usize>) -> Result<(), u32> {
    if bytes == 0 {
        return Ok(());
    }
    let work = work_between(to, from, bytes);
    match stream {
        Some(stream) => check(submit(stream, work)),
        None => at_once(&work),
    }
}

/// The copy between two places that their sides ask for.
fn work_between(to: u64, from: u64, bytes: usize) -> Work {
    let state = state();
    let is_device = is_of_device;
    let is_mapped = |address: u64| state.device.memory.find(address).is_some();
    match (is_device(to), is_device(from)) {
        (true, true) => Work::Copy { to, from, bytes },
        (true, false) => Work::Upload { to, from: from as usize, bytes },
        (false, true) => Work::Download { to: to as usize, from, bytes },
        (false, false) => match (is_mapped(to), is_mapped(from)) {
            (true, true) => Work::Copy { to, from, bytes },
            (true, false) => Work::Upload { to, from: from as usize, bytes },
            (false, true) => Work::Download { to: to as usize, from, bytes },
            (false, false) => Work::Between { to: to as usize, from: from as usize, bytes },
        },
    }
}

/// The copies of rows that a `CUDA_MEMCPY3D` asks for.
pub(super) fn works_of(copy: *const Copy3) -> Result<Vec<Work>, u32> {
    if copy.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and a CUDA_MEMCPY3D by the C signature.
    let copy = unsafe { copy.read_unaligned() };
    let mut works = Vec::new();
    let (to, from) = (copy.to.rows()?, copy.from.rows()?);
    each_row(to, from, [copy.width, copy.height, copy.depth], |to, from, bytes| {
        if bytes > 0 {
            works.push(work_between(to, from, bytes));
        }
        Ok(())
    })?;
    Ok(works)
}

/// Copies rows.
pub(crate) fn copy_rows(to: Rows, from: Rows, size: [usize; 3], stream: Option<usize>) -> Result<(), u32> {
    each_row(to, from, size, |to, from, bytes| copy(to, from, bytes, stream))
}

/// Calls `go` with places and bytes of each row; rows that follow each other without a gap on both sides go as one.
fn each_row(
    to: Rows,
    from: Rows,
    [width, height, depth]: [usize; 3],
    mut go: impl FnMut(u64, u64, usize) -> Result<(), u32>,
) -> Result<(), u32> {
    let overlap = |rows: Rows| height > 1 && rows.pitch < width;
    if overlap(to) || overlap(from) {
        return Err(INVALID_VALUE);
    }
    for layer in 0..depth {
        let at = |rows: Rows, row: usize| rows.start + (layer * rows.layer + row * rows.pitch) as u64;
        if to.pitch == width && from.pitch == width {
            go(at(to, 0), at(from, 0), width * height)?;
            continue;
        }
        for row in 0..height {
            go(at(to, row), at(from, row), width)?;
        }
    }
    Ok(())
}

/// Fills rows with a pattern.
pub(crate) fn fill_rows(
    address: u64,
    pitch: usize,
    pattern: &[u8],
    [width, height]: [usize; 2],
    stream: Option<usize>,
) -> Result<(), u32> {
    if width == 0 {
        return Ok(());
    }
    for row in 0..height {
        let start = address + (row * pitch) as u64;
        let work = Work::Fill { address: start, pattern: pattern.to_vec(), count: width };
        match stream {
            Some(stream) => check(submit(stream, work))?,
            None => at_once(&work)?,
        }
    }
    Ok(())
}

fn two(copy: *const Copy2, stream: Option<usize>) -> Result<(), u32> {
    if copy.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and a CUDA_MEMCPY2D by the C signature.
    let copy = unsafe { copy.read_unaligned() };
    copy_rows(copy.to.rows()?, copy.from.rows()?, [copy.width, copy.height, 1], stream)
}

fn three(copy: *const Copy3, stream: Option<usize>) -> Result<(), u32> {
    if copy.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and a CUDA_MEMCPY3D by the C signature.
    let copy = unsafe { copy.read_unaligned() };
    copy_rows(copy.to.rows()?, copy.from.rows()?, [copy.width, copy.height, copy.depth], stream)
}

/// Allocates rows, and says how far they lie apart.
pub(crate) fn allocate_rows(to: *mut u64, pitch: *mut usize, width: usize, height: usize) -> Result<(), u32> {
    let apart = width.checked_next_multiple_of(PITCH).ok_or(INVALID_VALUE)?;
    give(pitch, apart)?;
    allocate(to, apart.checked_mul(height).ok_or(INVALID_VALUE)?)
}

exported! {
    fn cuMemAllocPitch_v2(to: *mut u64, pitch: *mut usize, width: usize, height: usize, _element: u32) {
        allocate_rows(to, pitch, width, height)
    }
    fn cuMemcpy(to: u64, from: u64, bytes: usize) {
        copy(to, from, bytes, None)
    }
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: usize) {
        copy(to, from, bytes, Some(stream))
    }
    fn cuMemcpyPeer(to: u64, _to_context: usize, from: u64, _from_context: usize, bytes: usize) {
        copy(to, from, bytes, None)
    }
    fn cuMemcpy2D_v2(copy: *const Copy2) {
        two(copy, None)
    }
    fn cuMemcpy2DUnaligned_v2(copy: *const Copy2) {
        two(copy, None)
    }
    fn cuMemcpy2DAsync_v2(copy: *const Copy2, stream: usize) {
        two(copy, Some(stream))
    }
    fn cuMemcpy3D_v2(copy: *const Copy3) {
        three(copy, None)
    }
    fn cuMemcpy3DAsync_v2(copy: *const Copy3, stream: usize) {
        three(copy, Some(stream))
    }
    fn cuMemsetD16_v2(address: u64, value: u16, count: usize) {
        fill_rows(address, 0, &value.to_le_bytes(), [count, 1], None)
    }
    fn cuMemsetD2D8_v2(address: u64, pitch: usize, value: u8, width: usize, height: usize) {
        fill_rows(address, pitch, &[value], [width, height], None)
    }
    fn cuMemsetD2D16_v2(address: u64, pitch: usize, value: u16, width: usize, height: usize) {
        fill_rows(address, pitch, &value.to_le_bytes(), [width, height], None)
    }
    fn cuMemsetD2D32_v2(address: u64, pitch: usize, value: u32, width: usize, height: usize) {
        fill_rows(address, pitch, &value.to_le_bytes(), [width, height], None)
    }
    fn cuMemsetD2D8Async(address: u64, pitch: usize, value: u8, width: usize, height: usize, stream: usize) {
        fill_rows(address, pitch, &[value], [width, height], Some(stream))
    }
    fn cuMemsetD2D16Async(address: u64, pitch: usize, value: u16, width: usize, height: usize, stream: usize) {
        fill_rows(address, pitch, &value.to_le_bytes(), [width, height], Some(stream))
    }
    fn cuMemsetD2D32Async(address: u64, pitch: usize, value: u32, width: usize, height: usize, stream: usize) {
        fill_rows(address, pitch, &value.to_le_bytes(), [width, height], Some(stream))
    }
}
