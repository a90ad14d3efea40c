//! Device memory that is given back to be taken again: a step asks for the same sizes in the same order every time, so after
//! the first nothing is allocated.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr};

use super::failure::{absent, driver};
use crate::error::{Error, Result};

/// Sizes are rounded up to this, in bytes: every buffer is aligned for the widest access, and near sizes share.
const GRANULE: usize = 512;
/// What poisoned memory holds: a NaN in f32 and in bf16.
const POISON: u8 = 0xFF;

/// A pool of device memory on one stream.
///
/// Everything on the pool's buffers runs on that stream, so one that was given back may be handed out again at once.
#[derive(Debug)]
pub(super) struct Memory {
    stream: Arc<CudaStream>,
    free: RefCell<BTreeMap<usize, Vec<CudaSlice<u8>>>>,
    totals: Rc<Totals>,
    poison: bool,
    capturing: Cell<bool>,
}

/// Bytes of all pools of a device.
#[derive(Debug, Default)]
pub(super) struct Totals {
    held: Cell<usize>,
    peak: Cell<usize>,
    allocated: Cell<usize>,
}

impl Totals {
    /// Bytes asked of the driver so far.
    pub(super) fn allocated(&self) -> usize {
        self.allocated.get()
    }

    /// Bytes in use.
    pub(super) fn held(&self) -> usize {
        self.held.get()
    }

    /// The most bytes that were in use at a time.
    pub(super) fn peak(&self) -> usize {
        self.peak.get()
    }
}

impl Memory {
    pub(super) fn new(stream: Arc<CudaStream>, poison: bool, totals: Rc<Totals>) -> Rc<Self> {
        Rc::new(Self { stream, free: RefCell::default(), totals, poison, capturing: Cell::new(false) })
    }

    /// `length` numbers of unspecified content.
    pub(super) fn take<T: DeviceRepr>(self: &Rc<Self>, length: usize) -> Result<Buffer<T>> {
        let bytes = (length * size_of::<T>()).max(1).next_multiple_of(GRANULE);
        let reused = self.free.borrow_mut().get_mut(&bytes).and_then(Vec::pop);
        let mut slice = match reused {
            Some(slice) => slice,
            None if self.capturing.get() => {
                return Err(Error::device(
                    "capture a step",
                    format!("it needs {bytes} bytes more than the step before it"),
                    "this is a defect of promptmix: report it",
                ));
            }
            None => {
                // SAFETY: a buffer's content is unspecified until something is written to it.
                let fresh = unsafe { self.stream.alloc::<u8>(bytes) };
                let fresh =
                    fresh.map_err(|error| driver(&format!("allocate {bytes} bytes on the GPU"), error))?;
                self.totals.allocated.set(self.totals.allocated.get() + bytes);
                fresh
            }
        };
        if self.poison && !self.capturing.get() {
            self.stream
                .memset_zeros(&mut slice)
                .and_then(|()| self.stream.memcpy_htod(&vec![POISON; bytes], &mut slice))
                .map_err(|error| driver("poison a buffer", error))?;
        }
        let held = self.totals.held.get() + bytes;
        self.totals.held.set(held);
        self.totals.peak.set(self.totals.peak.get().max(held));
        Ok(Buffer { slice: Some(slice), length, memory: Some(self.clone()), numbers: PhantomData })
    }

    /// While a step is captured nothing may be allocated: all it needs must be free already.
    pub(super) fn capturing(&self, capturing: bool) {
        self.capturing.set(capturing);
    }

    /// What all pools of the device hold together.
    pub(super) fn totals(&self) -> &Rc<Totals> {
        &self.totals
    }
}

/// `length` numbers in device memory, from a pool and back to it; or nothing, where the allocation failed.
#[derive(Debug)]
pub struct Buffer<T> {
    slice: Option<CudaSlice<u8>>,
    length: usize,
    memory: Option<Rc<Memory>>,
    numbers: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// A buffer that could not be allocated: every use of it is an error.
    pub(super) fn absent() -> Self {
        Self { slice: None, length: 0, memory: None, numbers: PhantomData }
    }

    /// Numbers in it.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All of it, to read.
    ///
    /// # Errors
    /// If its allocation failed.
    pub fn view(&self) -> Result<CudaView<'_, T>> {
        let slice = self.slice.as_ref().ok_or_else(absent)?;
        // SAFETY: the slice holds at least `length` numbers of T, any bits are a T, and it is aligned to 256 bytes.
        unsafe { slice.transmute(self.length) }.ok_or_else(absent)
    }

    /// All of it, to write.
    ///
    /// # Errors
    /// If its allocation failed.
    pub fn view_mut(&mut self) -> Result<CudaViewMut<'_, T>> {
        let length = self.length;
        let slice = self.slice.as_mut().ok_or_else(absent)?;
        // SAFETY: as in `view`.
        unsafe { slice.transmute_mut(length) }.ok_or_else(absent)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let (Some(slice), Some(memory)) = (self.slice.take(), self.memory.take()) {
            let bytes = slice.len();
            memory.totals.held.set(memory.totals.held.get() - bytes);
            memory.free.borrow_mut().entry(bytes).or_default().push(slice);
        }
    }
}

/// The address of what a kernel reads.
pub fn address<T>(view: &CudaView<'_, T>, stream: &CudaStream) -> u64 {
    view.device_ptr(stream).0
}

/// The address of what a kernel writes.
pub fn address_mut<T>(view: &mut CudaViewMut<'_, T>, stream: &CudaStream) -> u64 {
    view.device_ptr_mut(stream).0
}

/// An argument of a raw launch that has not the length its shape implies.
pub(super) fn check_length(what: &str, expected: usize, found: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::tensor(what, format!("{expected} numbers"), found.to_string(), ""))
}
