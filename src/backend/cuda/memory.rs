//! Device memory: a pool of single allocations, and arenas, each one allocation in which recorded work places its buffers.
//!
//! Work that is recorded takes and gives back the same sizes in the same order every time. So it is rehearsed: issued once
//! with nothing launched and no memory behind its buffers, which says how large its arena must be. All shapes of one
//! recorder share an arena of the largest one's size, and within a captured graph nothing is allocated.

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

/// Device memory on one stream.
///
/// Everything on its buffers runs on that stream, so one that was given back may be handed out again at once.
#[derive(Debug)]
pub(super) struct Memory {
    stream: Arc<CudaStream>,
    source: Source,
    totals: Rc<Totals>,
    poison: bool,
}

#[derive(Debug)]
enum Source {
    /// Single allocations. Those that were given back wait here by their size.
    Pool(RefCell<BTreeMap<usize, Vec<CudaSlice<u8>>>>),
    /// Parts of one allocation.
    Arena { whole: CudaSlice<u8>, places: RefCell<Places> },
    /// Parts of nothing.
    Rehearsal(RefCell<Places>),
}

/// Bytes of all memory of a device.
#[derive(Debug, Default)]
pub(super) struct Totals {
    held: Cell<usize>,
    peak: Cell<usize>,
    allocated: Cell<usize>,
}

impl Totals {
    /// Bytes asked of the driver and not given back to it.
    pub(super) fn allocated(&self) -> usize {
        self.allocated.get()
    }

    /// Bytes in use, arenas as a whole.
    pub(super) fn held(&self) -> usize {
        self.held.get()
    }

    /// The most bytes that were in use at a time.
    pub(super) fn peak(&self) -> usize {
        self.peak.get()
    }

    /// What a pool may have of the driver while `held` bytes are in use: a quarter above the most that ever were, so that
    /// work of ever new shapes does not add them all up.
    fn bound(&self, held: usize) -> usize {
        self.peak.get().max(held) / 4 * 5
    }

    fn hold(&self, bytes: usize) {
        let held = self.held.get() + bytes;
        self.held.set(held);
        self.peak.set(self.peak.get().max(held));
    }

    fn release(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
    }
}

/// Which parts of a stretch of bytes are free, from where to where; no two touch.
#[derive(Debug)]
struct Places {
    free: BTreeMap<usize, usize>,
    /// Where the highest part that was ever taken ends.
    most: usize,
}

impl Places {
    fn new(bytes: usize) -> Self {
        Self { free: BTreeMap::from([(0, bytes)]), most: 0 }
    }

    /// Takes the lowest part that is large enough: what is taken last is given back first, mostly, so little is lost
    /// between parts, and the same sequence always gets the same places.
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let (&start, &end) = self.free.iter().find(|(start, end)| *end - *start >= bytes)?;
        self.free.remove(&start);
        if start + bytes < end {
            self.free.insert(start + bytes, end);
        }
        self.most = self.most.max(start + bytes);
        Some(start)
    }

    fn give(&mut self, mut start: usize, bytes: usize) {
        let mut end = start + bytes;
        if let Some(after) = self.free.remove(&end) {
            end = after;
        }
        if let Some((&before, &touching)) = self.free.range(..start).next_back()
            && touching == start
        {
            start = before;
        }
        self.free.insert(start, end);
    }
}

fn rounded(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(GRANULE)
}

impl Memory {
    /// A pool.
    pub(super) fn pool(stream: Arc<CudaStream>, poison: bool) -> Rc<Self> {
        Rc::new(Self { stream, source: Source::Pool(RefCell::default()), totals: Rc::default(), poison })
    }

    /// An arena of `bytes`, counted with this pool's memory.
    ///
    /// # Errors
    /// What the driver says.
    pub(super) fn arena(&self, bytes: usize) -> Result<Rc<Self>> {
        let bytes = rounded(bytes);
        let whole = self.allocate(bytes)?;
        self.totals.hold(bytes);
        let source = Source::Arena { whole, places: RefCell::new(Places::new(bytes)) };
        Ok(Rc::new(Self {
            stream: self.stream.clone(),
            source,
            totals: self.totals.clone(),
            poison: self.poison,
        }))
    }

    /// Memory without bytes behind it, for a rehearsal.
    pub(super) fn rehearsal(&self) -> Rc<Self> {
        let source = Source::Rehearsal(RefCell::new(Places::new(usize::MAX / 2)));
        Rc::new(Self { stream: self.stream.clone(), source, totals: Rc::default(), poison: false })
    }

    /// Bytes that an arena needs in which the same is taken and given back.
    pub(super) fn bytes(&self) -> usize {
        match &self.source {
            Source::Pool(_) => self.totals.held(),
            Source::Arena { whole, .. } => whole.len(),
            Source::Rehearsal(places) => places.borrow().most,
        }
    }

    fn allocate(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        // SAFETY: a buffer's content is unspecified until something is written to it.
        let fresh = unsafe { self.stream.alloc::<u8>(bytes) };
        let fresh = fresh.map_err(|error| driver(&format!("allocate {bytes} bytes on the GPU"), error))?;
        self.totals.allocated.set(self.totals.allocated.get() + bytes);
        Ok(fresh)
    }

    /// `length` numbers of unspecified content.
    pub(super) fn take<T: DeviceRepr>(self: &Rc<Self>, length: usize) -> Result<Buffer<T>> {
        let bytes = rounded(length * size_of::<T>());
        let slice = match &self.source {
            Source::Pool(free) => {
                let reused = free.borrow_mut().get_mut(&bytes).and_then(Vec::pop);
                let slice = match reused {
                    Some(slice) => slice,
                    None => {
                        self.make_room(&mut free.borrow_mut(), bytes);
                        self.allocate(bytes)?
                    }
                };
                self.totals.hold(bytes);
                slice
            }
            Source::Arena { whole, places } => {
                let start = places.borrow_mut().take(bytes).ok_or_else(|| {
                    Error::device(
                        "place a buffer of recorded work",
                        format!("{bytes} bytes more than its rehearsal took"),
                        "this is a defect of promptmix: report it",
                    )
                })?;
                // SAFETY: this part of the arena is nobody else's until it is given back, and `give` does not free it.
                unsafe {
                    self.stream.upgrade_device_ptr(whole.device_ptr(&self.stream).0 + start as u64, bytes)
                }
            }
            Source::Rehearsal(places) => {
                let start = places.borrow_mut().take(bytes).ok_or_else(absent)?;
                // SAFETY: nothing is launched or copied in a rehearsal, so that the address is never used; null is kept
                // for what kernels take as absent.
                unsafe { self.stream.upgrade_device_ptr((GRANULE + start) as u64, bytes) }
            }
        };
        let buffer = Buffer { slice: Some(slice), length, memory: Some(self.clone()), numbers: PhantomData };
        if self.poison {
            let at = address(&buffer.view()?, &self.stream);
            // SAFETY: the buffer has that many bytes, and is used on this stream alone.
            unsafe { cudarc::driver::result::memset_d8_async(at, POISON, bytes, self.stream.cu_stream()) }
                .map_err(|error| driver("poison a buffer", error))?;
        }
        Ok(buffer)
    }

    /// Gives waiting allocations back to the driver, the largest first, until `bytes` more are within the bound.
    fn make_room(&self, free: &mut BTreeMap<usize, Vec<CudaSlice<u8>>>, bytes: usize) {
        let bound = self.totals.bound(self.totals.held() + bytes);
        while self.totals.allocated() + bytes > bound {
            let Some(mut largest) = free.last_entry() else { break };
            match largest.get_mut().pop() {
                Some(slice) => self.totals.allocated.set(self.totals.allocated.get() - slice.len()),
                None => drop(largest.remove()),
            }
        }
    }

    fn give(&self, slice: CudaSlice<u8>) {
        let bytes = slice.len();
        match &self.source {
            Source::Pool(free) => {
                self.totals.release(bytes);
                free.borrow_mut().entry(bytes).or_default().push(slice);
            }
            Source::Arena { whole, places } => {
                let start = slice.leak() - whole.device_ptr(&self.stream).0;
                places.borrow_mut().give(start as usize, bytes);
            }
            Source::Rehearsal(places) => places.borrow_mut().give(slice.leak() as usize - GRANULE, bytes),
        }
    }

    /// What all memory of the device holds together.
    pub(super) fn totals(&self) -> &Rc<Totals> {
        &self.totals
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Source::Arena { whole, .. } = &self.source {
            self.totals.release(whole.len());
            self.totals.allocated.set(self.totals.allocated.get() - whole.len());
        }
    }
}

/// `length` numbers in device memory, of a pool or an arena and back to it; or nothing, where the allocation failed.
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
            memory.give(slice);
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
