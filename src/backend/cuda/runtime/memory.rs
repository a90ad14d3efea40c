//! Device memory: a pool of single allocations, and arenas, each one allocation in which captured work places its buffers.
//!
//! Captured work takes and gives back the same sizes in the same order every time. So a dry run issues it once with nothing
//! launched and no memory in its buffers, which says how large its arena must be. All shapes of one graph cache share an
//! arena of the largest one's size, and within a captured graph nothing is allocated.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice,
    SyncOnDrop,
};

use super::error::driver;
use crate::error::{Error, Result};

/// Sizes are rounded up to this, in bytes: every buffer is aligned for the widest access, and near sizes share.
const GRANULE: usize = 512;
/// What poisoned memory holds: a NaN in f32 and in bf16.
const POISON: u8 = 0xFF;

/// Device memory on one stream.
///
/// Everything on its buffers runs on that stream, so one that was given back may be handed out again at once.
#[derive(Debug)]
pub(crate) struct Memory {
    stream: Arc<CudaStream>,
    source: Source,
    totals: Arc<Totals>,
    poison: bool,
}

#[derive(Debug)]
enum Source {
    /// Single allocations. Those that were given back wait here by their size.
    Pool(Mutex<BTreeMap<usize, Vec<CudaSlice<u8>>>>),
    /// Parts of one allocation.
    Arena { whole: CudaSlice<u8>, places: Mutex<Places> },
    /// Parts of nothing.
    DryRun(Mutex<Places>),
}

/// Bytes of all memory of a device.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    held: AtomicUsize,
    peak: AtomicUsize,
    allocated: AtomicUsize,
}

impl Totals {
    /// Bytes asked of the driver and not given back to it.
    pub(crate) fn allocated(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Bytes in use, arenas as a whole.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The most bytes that were in use at a time.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// What a pool may have of the driver while `held` bytes are in use: a quarter above the most that ever were, so that
    /// work of ever new shapes does not add them all up.
    fn bound(&self, held: usize) -> usize {
        self.peak.load(Ordering::Relaxed).max(held) / 4 * 5
    }

    fn hold(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(held, Ordering::Relaxed);
    }

    fn release(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Which parts of a range of bytes are free, from where to where; no two touch.
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

/// A thread that panicked left nothing half done: each use takes or gives a whole entry.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rounded(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(GRANULE)
}

impl Memory {
    /// A pool.
    pub(crate) fn pool(stream: Arc<CudaStream>, poison: bool) -> Arc<Self> {
        Arc::new(Self { stream, source: Source::Pool(Mutex::default()), totals: Arc::default(), poison })
    }

    /// An arena of `bytes`, counted with this pool's memory.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn arena(&self, bytes: usize) -> Result<Arc<Self>> {
        let bytes = rounded(bytes);
        let whole = self.allocate(bytes)?;
        self.totals.hold(bytes);
        let source = Source::Arena { whole, places: Mutex::new(Places::new(bytes)) };
        Ok(Arc::new(Self {
            stream: self.stream.clone(),
            source,
            totals: self.totals.clone(),
            poison: self.poison,
        }))
    }

    /// Addresses without memory, for a dry run.
    pub(crate) fn dry_run(&self) -> Arc<Self> {
        let source = Source::DryRun(Mutex::new(Places::new(usize::MAX / 2)));
        Arc::new(Self { stream: self.stream.clone(), source, totals: Arc::default(), poison: false })
    }

    /// Bytes that an arena needs in which the same is taken and given back.
    pub(crate) fn bytes(&self) -> usize {
        match &self.source {
            Source::Pool(_) => self.totals.held(),
            Source::Arena { whole, .. } => whole.len(),
            Source::DryRun(places) => locked(places).most,
        }
    }

    fn allocate(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        // SAFETY: a buffer's content is unspecified until something is written to it.
        let fresh = unsafe { self.stream.alloc::<u8>(bytes) };
        let fresh = fresh.map_err(|error| driver(&format!("allocate {bytes} bytes on the GPU"), error))?;
        self.totals.allocated.fetch_add(bytes, Ordering::Relaxed);
        Ok(fresh)
    }

    /// `length` numbers of unspecified content.
    pub(crate) fn take<T: DeviceRepr>(self: &Arc<Self>, length: usize) -> Result<Buffer<T>> {
        let bytes = rounded(length * size_of::<T>());
        let slice = match &self.source {
            Source::Pool(free) => {
                let mut free = locked(free);
                let slice = match free.get_mut(&bytes).and_then(Vec::pop) {
                    Some(slice) => slice,
                    None => {
                        self.make_room(&mut free, bytes);
                        self.allocate(bytes)?
                    }
                };
                self.totals.hold(bytes);
                slice
            }
            Source::Arena { whole, places } => {
                let start = locked(places).take(bytes).ok_or_else(|| {
                    Error::device(
                        "place a buffer of captured work",
                        format!("{bytes} bytes more than its dry run took"),
                        "this is a defect of promptmix: report it",
                    )
                })?;
                // SAFETY: this part of the arena is nobody else's until it is given back, and `give` does not free it.
                unsafe {
                    self.stream.upgrade_device_ptr(whole.device_ptr(&self.stream).0 + start as u64, bytes)
                }
            }
            Source::DryRun(places) => {
                let start = locked(places).take(bytes).ok_or_else(|| {
                    Error::device(
                        "foresee the memory of a step",
                        format!("{bytes} bytes more than addresses"),
                        "",
                    )
                })?;
                // SAFETY: nothing is launched or copied in a dry run, so that the address is never used; null is left
                // for what kernels take as absent.
                unsafe { self.stream.upgrade_device_ptr((GRANULE + start) as u64, bytes) }
            }
        };
        let buffer = Buffer { slice: Some(slice), length, memory: self.clone(), numbers: PhantomData };
        if self.poison {
            let at = buffer.address();
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
                Some(slice) => {
                    self.totals.allocated.fetch_sub(slice.len(), Ordering::Relaxed);
                }
                None => drop(largest.remove()),
            }
        }
    }

    fn give(&self, slice: CudaSlice<u8>) {
        let bytes = slice.len();
        match &self.source {
            Source::Pool(free) => {
                self.totals.release(bytes);
                locked(free).entry(bytes).or_default().push(slice);
            }
            Source::Arena { whole, places } => {
                let start = slice.leak() - whole.device_ptr(&self.stream).0;
                locked(places).give(start as usize, bytes);
            }
            Source::DryRun(places) => locked(places).give(slice.leak() as usize - GRANULE, bytes),
        }
    }

    /// What all memory of the device holds together.
    pub(crate) fn totals(&self) -> &Arc<Totals> {
        &self.totals
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Source::Arena { whole, .. } = &self.source {
            self.totals.release(whole.len());
            self.totals.allocated.fetch_sub(whole.len(), Ordering::Relaxed);
        }
    }
}

/// `length` numbers in device memory, of a pool or an arena and back to it.
#[derive(Debug)]
pub struct Buffer<T> {
    /// None once it is given back, in `drop`.
    slice: Option<CudaSlice<u8>>,
    length: usize,
    memory: Arc<Memory>,
    numbers: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// Numbers in it.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where it lies. Everything on it runs on one stream.
    pub(crate) fn address(&self) -> u64 {
        self.slice.as_ref().map_or(0, |slice| slice.device_ptr(&self.memory.stream).0)
    }

    /// All of it, to read.
    ///
    /// # Errors
    /// None of a buffer that is in use.
    pub fn view(&self) -> Result<CudaView<'_, T>> {
        let slice = self.slice.as_ref().ok_or_else(gone)?;
        // SAFETY: the slice holds at least `length` numbers of T, any bits are a T, and it is aligned to 256 bytes.
        unsafe { slice.transmute(self.length) }.ok_or_else(gone)
    }

    /// All of it, to write.
    ///
    /// # Errors
    /// None of a buffer that is in use.
    pub(crate) fn view_mut(&mut self) -> Result<CudaViewMut<'_, T>> {
        let slice = self.slice.as_mut().ok_or_else(gone)?;
        // SAFETY: as in `view`.
        unsafe { slice.transmute_mut(self.length) }.ok_or_else(gone)
    }
}

fn gone() -> Error {
    Error::device("use a buffer", "it was given back", "this is a defect of promptmix: report it")
}

impl<T> DeviceSlice<T> for Buffer<T> {
    fn len(&self) -> usize {
        self.length
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.memory.stream
    }
}

impl<T> DevicePtr<T> for Buffer<T> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        match &self.slice {
            Some(slice) => slice.device_ptr(stream),
            None => (0, SyncOnDrop::Record(None)),
        }
    }
}

impl<T> DevicePtrMut<T> for Buffer<T> {
    fn device_ptr_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        match &mut self.slice {
            Some(slice) => slice.device_ptr_mut(stream),
            None => (0, SyncOnDrop::Record(None)),
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(slice) = self.slice.take() {
            self.memory.give(slice);
        }
    }
}
