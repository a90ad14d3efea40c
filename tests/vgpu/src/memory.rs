//! Device memory: allocations at addresses of their own, what of them was written, and who touched
//! them during a launch.
//!
//! Addresses are never given twice, so that freed memory is told from fresh memory, and never fall
//! near another allocation. The bytes live in host memory that several worker threads reach at once,
//! as the multiprocessors of a device do; a kernel that races gets what a device would give it: some value.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

pub use crate::shadow::CHUNK;
use crate::shadow::{PAGE, Page, Touch, Toucher};

/// Where device addresses start.
const FIRST_ADDRESS: u64 = 0x2000_0000_0000;
/// Where they end: no host memory lies between.
const LAST_ADDRESS: u64 = 0x4000_0000_0000;
/// Free addresses between allocations.
const GAP: u64 = 1 << 16;
/// Alignment of every allocation.
const ALIGN: u64 = 512;
/// What fresh memory is filled with: NaN in every float format, -1 as an integer.
const POISON: u8 = 0xff;

/// A stretch of device memory.
pub struct Allocation {
    /// Its first address.
    pub base: u64,
    /// Its size in bytes.
    pub size: usize,
    host: *mut u8,
    layout: Option<Layout>,
    /// A bit a byte, for every chunk: whether it was written since it was allocated.
    written: Vec<AtomicU16>,
    shadow: Vec<OnceLock<Page>>,
    /// The streams whose work ever touched it.
    streams: AtomicU64,
}

// SAFETY: the pointer is to memory that the allocation owns (or that the driver keeps pinned as long), and
// every access through it is bounds-checked; racing accesses are those of the kernel being modelled.
unsafe impl Send for Allocation {}
// SAFETY: as for Send.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(layout) = self.layout {
            // SAFETY: made by alloc with this layout, and dropped once.
            unsafe { std::alloc::dealloc(self.host, layout) };
        }
    }
}

impl Allocation {
    /// Notes that work of a stream touches it.
    #[inline(always)]
    pub fn note_stream(&self, stream: StreamBit) {
        if self.streams.load(Relaxed) & stream.0 == 0 {
            self.streams.fetch_or(stream.0, Relaxed);
        }
    }

    /// Whether work of any other stream ever touched it.
    #[inline(always)]
    pub fn is_shared(&self, stream: StreamBit) -> bool {
        let streams = self.streams.load(Relaxed);
        stream == StreamBit::LAST || streams & !stream.0 != 0
    }

    fn offset(&self, address: u64, bytes: usize) -> Option<usize> {
        let offset = address.checked_sub(self.base)? as usize;
        (offset <= self.size && bytes <= self.size - offset).then_some(offset)
    }

    /// Whether a stretch lies inside.
    pub fn contains(&self, address: u64, bytes: usize) -> bool {
        self.offset(address, bytes).is_some()
    }

    /// Reads bytes; `false` when they are not all inside.
    #[inline(always)]
    pub fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let Some(offset) = self.offset(address, out.len()) else { return false };
        // SAFETY: the range was just checked against the allocation, which lives as long as `self`.
        unsafe { std::ptr::copy_nonoverlapping(self.host.add(offset), out.as_mut_ptr(), out.len()) };
        true
    }

    /// Writes bytes; `false` when they are not all inside.
    #[inline(always)]
    pub fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let Some(offset) = self.offset(address, bytes.len()) else { return false };
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host.add(offset), bytes.len()) };
        true
    }

    /// The host address of a stretch, for copies to and from the host.
    pub fn pointer(&self, address: u64, bytes: usize) -> Option<*mut u8> {
        // SAFETY: the offset lies inside the allocation.
        self.offset(address, bytes).map(|offset| unsafe { self.host.add(offset) })
    }

    /// An aligned 32-bit word as an atomic.
    pub fn atomic_word(&self, address: u64) -> Option<&AtomicU32> {
        let pointer = self.pointer(address, 4)?.cast::<u32>();
        // SAFETY: inside the allocation; aligned; AtomicU32 has the layout of u32.
        pointer.is_aligned().then(|| unsafe { AtomicU32::from_ptr(pointer) })
    }

    /// An aligned 64-bit word as an atomic.
    pub fn atomic_long(&self, address: u64) -> Option<&AtomicU64> {
        let pointer = self.pointer(address, 8)?.cast::<u64>();
        // SAFETY: as in `atomic_word`.
        pointer.is_aligned().then(|| unsafe { AtomicU64::from_ptr(pointer) })
    }

    /// Whether all of a stretch was written since it was allocated.
    #[inline(always)]
    pub fn is_written(&self, address: u64, bytes: usize) -> bool {
        let Some(offset) = self.offset(address, bytes) else { return false };
        each_chunk(offset, bytes, |chunk, bits| self.written[chunk].load(Relaxed) & bits == bits)
    }

    /// Marks a stretch as written.
    #[inline(always)]
    pub fn mark_written(&self, address: u64, bytes: usize) {
        let Some(offset) = self.offset(address, bytes) else { return };
        each_chunk(offset, bytes, |chunk, bits| {
            let cell = &self.written[chunk];
            if bits == u16::MAX {
                cell.store(bits, Relaxed);
            } else if cell.load(Relaxed) & bits != bits {
                cell.fetch_or(bits, Relaxed);
            }
            true
        });
    }

    /// Marks the bytes of one chunk that `bits` names as written.
    #[inline(always)]
    pub fn mark_written_bits(&self, chunk: usize, bits: u16) {
        if let Some(cell) = self.written.get(chunk)
            && cell.load(Relaxed) & bits != bits
        {
            cell.fetch_or(bits, Relaxed);
        }
    }

    /// Whether up to 32 bytes are there already, and were written.
    #[inline(always)]
    pub fn holds(&self, address: u64, bytes: &[u8]) -> bool {
        let mut before = [0u8; 32];
        let Some(before) = before.get_mut(..bytes.len()) else { return false };
        self.read(address, before) && before == bytes && self.is_written(address, bytes.len())
    }

    /// Marks a stretch as written exactly where another is.
    pub fn copy_marks(&self, to: u64, from: &Self, source: u64, bytes: usize) {
        if from.is_written(source, bytes) {
            return self.mark_written(to, bytes);
        }
        for index in 0..bytes as u64 {
            if from.is_written(source + index, 1) {
                self.mark_written(to + index, 1);
            }
        }
    }

    /// Notes that a block reads or writes, and tells of the first conflict. `atomic` touches meet each other unharmed.
    #[inline]
    pub fn touch(&self, address: u64, bytes: usize, write: bool, atomic: bool, who: Toucher) -> Touch {
        let mut out = Touch::default();
        let Some(offset) = self.offset(address, bytes) else { return out };
        let (mut from, end) = (offset, offset + bytes);
        while from < end {
            let page = self.shadow[from / PAGE].get_or_init(Page::default);
            let count = (PAGE - from % PAGE).min(end - from);
            if write || atomic || !page.is_read_by_many(who.epoch) {
                each_chunk(from % PAGE, count, |chunk, bits| {
                    let found = page.touch(chunk, bits, write, atomic, who);
                    out.fresh += found.fresh;
                    out.conflict = out.conflict.or(found.conflict);
                    true
                });
            }
            from += count;
        }
        out
    }

    /// [`Allocation::touch`] of the bytes of one chunk that `bits` names, which lie inside.
    #[inline]
    pub fn touch_bits(&self, chunk: usize, bits: u16, write: bool, atomic: bool, who: Toucher) -> Touch {
        let Some(page) = self.shadow.get(chunk * CHUNK / PAGE) else { return Touch::default() };
        page.get_or_init(Page::default).touch(chunk % (PAGE / CHUNK), bits, write, atomic, who)
    }

    /// Whether the bytes of one chunk that `bits` names were written since the chunk was allocated.
    #[inline(always)]
    pub fn is_written_bits(&self, chunk: usize, bits: u16) -> bool {
        self.written.get(chunk).is_some_and(|written| written.load(Relaxed) & bits == bits)
    }

    /// Counts a write that changes nothing, which conflicts with nobody: the bytes that are written first by it.
    pub fn touch_unchanged(&self, address: u64, bytes: usize, epoch: u16) -> u32 {
        let Some(offset) = self.offset(address, bytes) else { return 0 };
        let mut fresh = 0;
        each_chunk(offset, bytes, |chunk, bits| {
            fresh += self.touch_unchanged_bits(chunk, bits, epoch);
            true
        });
        fresh
    }

    /// [`Allocation::touch_unchanged`] of the bytes of one chunk that `bits` names, which lie inside.
    #[inline(always)]
    pub fn touch_unchanged_bits(&self, chunk: usize, bits: u16, epoch: u16) -> u32 {
        let page = self.shadow[chunk * CHUNK / PAGE].get_or_init(Page::default);
        page.mark_written(chunk % (PAGE / CHUNK), bits, epoch)
    }

    /// Whether a launch from `since` on, and before the one of `now`, wrote any of some bytes.
    pub fn written_since(&self, address: u64, bytes: usize, since: u16, now: u16) -> bool {
        let Some(offset) = self.offset(address, bytes) else { return false };
        !each_chunk(offset, bytes, |chunk, bits| {
            let page = self.shadow.get(chunk * CHUNK / PAGE).and_then(OnceLock::get);
            !page.is_some_and(|page| {
                let (writer, _) = page.last(chunk % (PAGE / CHUNK), bits);
                writer.is_some_and(|epoch| epoch != now && now.wrapping_sub(epoch) <= now.wrapping_sub(since))
            })
        })
    }

    /// The name of a launch among some that last touched any of a stretch, where one of the two writes.
    pub fn meets(&self, stretch: Stretch, concurrent: &Concurrent) -> Option<Arc<str>> {
        if concurrent.launches.is_empty() {
            return None;
        }
        let offset = self.offset(stretch.start, stretch.bytes)?;
        let mut found = None;
        each_chunk(offset, stretch.bytes, |chunk, bits| {
            let Some(page) = self.shadow.get(chunk * CHUNK / PAGE).and_then(OnceLock::get) else {
                return true;
            };
            let (writer, reader) = page.last(chunk % (PAGE / CHUNK), bits);
            let reader = reader.filter(|_| stretch.write);
            found = [writer, reader].into_iter().flatten().find_map(|epoch| concurrent.launch(epoch));
            found.is_none()
        });
        found
    }

    fn forget_touches(&self) {
        self.shadow.iter().filter_map(OnceLock::get).for_each(Page::forget);
    }
}

/// Calls `visit` with each chunk that a stretch touches and the bits of the bytes it takes of it, while it says so.
#[inline(always)]
fn each_chunk(offset: usize, bytes: usize, mut visit: impl FnMut(usize, u16) -> bool) -> bool {
    let end = offset + bytes;
    let mut at = offset;
    while at < end {
        let from = at % CHUNK;
        let count = (CHUNK - from).min(end - at);
        let bits = (((1u32 << count) - 1) << from) as u16;
        if !visit(at / CHUNK, bits) {
            return false;
        }
        at += count;
    }
    true
}

/// A stretch of memory that a piece of work touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Its first address.
    pub start: u64,
    /// Its bytes.
    pub bytes: usize,
    /// Whether it is written.
    pub write: bool,
}

impl Stretch {
    /// Whether two overlap and one is written.
    pub fn meets(&self, other: &Self) -> bool {
        (self.write || other.write) && self.start < other.end() && other.start < self.end()
    }

    fn end(&self) -> u64 {
        self.start + self.bytes as u64
    }
}

/// A bit of its own for each stream; those of the many share the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBit(u64);

impl StreamBit {
    /// Of a stream beyond the 63rd.
    const LAST: Self = Self(1 << 63);

    /// Of the stream that came as the `index`-th.
    pub fn of(index: usize) -> Self {
        Self(1 << index.min(63))
    }
}

/// Work that may run at the same time, by name.
#[derive(Clone, Debug, Default)]
pub struct Concurrent {
    /// Launches by their number, in its order.
    launches: Vec<(u16, Arc<str>)>,
    /// Copies, fills and frees, in the order of their starts.
    stretches: Vec<(Stretch, Arc<str>)>,
    /// For each of them the furthest end up to it.
    ends: Vec<u64>,
}

impl Concurrent {
    /// Of launches by their number, and of copies, fills and frees.
    pub fn new(mut launches: Vec<(u16, Arc<str>)>, mut stretches: Vec<(Stretch, Arc<str>)>) -> Self {
        launches.sort_by_key(|(epoch, _)| *epoch);
        stretches.sort_by_key(|(stretch, _)| stretch.start);
        let ends = stretches.iter().scan(0, |most, (stretch, _)| {
            *most = stretch.end().max(*most);
            Some(*most)
        });
        let ends = ends.collect();
        Self { launches, stretches, ends }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.launches.is_empty() && self.stretches.is_empty()
    }

    /// The copy, fill or free that meets a stretch.
    pub fn meets(&self, stretch: &Stretch) -> Option<Arc<str>> {
        let after = self.stretches.partition_point(|(other, _)| other.start < stretch.end());
        let before = self.ends.partition_point(|&end| end <= stretch.start);
        let near = self.stretches.get(before..after)?;
        near.iter().find(|(other, _)| other.meets(stretch)).map(|(_, name)| name.clone())
    }

    fn launch(&self, epoch: u16) -> Option<Arc<str>> {
        let index = self.launches.binary_search_by_key(&epoch, |(epoch, _)| *epoch).ok()?;
        Some(self.launches[index].1.clone())
    }
}

/// All device memory.
pub struct Memory {
    live: BTreeMap<u64, Arc<Allocation>>,
    freed: BTreeMap<u64, usize>,
    next: u64,
    used: u64,
    limit: u64,
    epoch: u16,
}

impl Memory {
    /// Memory of a size in bytes.
    pub fn new(limit: u64) -> Self {
        Self { live: BTreeMap::new(), freed: BTreeMap::new(), next: FIRST_ADDRESS, used: 0, limit, epoch: 0 }
    }

    /// Bytes in use, and in all.
    pub fn usage(&self) -> (u64, u64) {
        (self.used, self.limit)
    }

    /// Allocates; none when the memory is full or `size` is 0.
    pub fn allocate(&mut self, size: usize) -> Option<u64> {
        let padded = (size as u64).checked_next_multiple_of(ALIGN)?;
        if size == 0 || self.used.checked_add(padded)? > self.limit {
            return None;
        }
        let layout = Layout::from_size_align(padded as usize, ALIGN as usize).ok()?;
        // SAFETY: the layout has a size above 0.
        let host = unsafe { std::alloc::alloc(layout) };
        if host.is_null() {
            return None;
        }
        // SAFETY: just allocated with this size.
        unsafe { std::ptr::write_bytes(host, POISON, padded as usize) };
        let base = self.next;
        self.next += padded + GAP;
        self.used += padded;
        self.insert(base, size, host, Some(layout));
        Some(base)
    }

    /// Allocates at an address at which the host reaches it too; none when the memory is full or `size` is 0.
    pub fn allocate_managed(&mut self, size: usize) -> Option<u64> {
        let padded = (size as u64).checked_next_multiple_of(ALIGN)?;
        if size == 0 || self.used.checked_add(padded)? > self.limit {
            return None;
        }
        let layout = Layout::from_size_align(padded as usize, ALIGN as usize).ok()?;
        // SAFETY: the layout has a size above 0.
        let host = unsafe { std::alloc::alloc_zeroed(layout) };
        if host.is_null() {
            return None;
        }
        self.used += padded;
        self.insert(host as u64, size, host, Some(layout));
        Some(host as u64)
    }

    /// Makes a stretch of host memory reachable at its own address.
    ///
    /// # Safety
    /// The memory must stay valid for reads and writes until [`Memory::free`] is called for it.
    pub unsafe fn map_host(&mut self, host: *mut u8, size: usize) {
        self.insert(host as u64, size, host, None);
        if let Some(allocation) = self.live.get(&(host as u64)) {
            // What the host wrote is not known; all of it counts as written.
            allocation.mark_written(host as u64, size);
        }
    }

    fn insert(&mut self, base: u64, size: usize, host: *mut u8, layout: Option<Layout>) {
        let written = (0..size.div_ceil(CHUNK)).map(|_| AtomicU16::new(0)).collect();
        let streams = AtomicU64::new(0);
        let shadow = (0..size.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        self.freed.remove(&base);
        self.live.insert(base, Arc::new(Allocation { base, size, host, layout, written, shadow, streams }));
    }

    /// Frees the allocation that starts at an address, and gives its bytes; none when none does.
    pub fn free(&mut self, base: u64) -> Option<usize> {
        let allocation = self.live.remove(&base)?;
        if allocation.layout.is_some() {
            self.used -= (allocation.size as u64).next_multiple_of(ALIGN);
        }
        self.freed.insert(base, allocation.size);
        if self.freed.len() > 1 << 14 {
            self.freed.pop_first();
        }
        Some(allocation.size)
    }

    /// The allocation that holds an address.
    pub fn find(&self, address: u64) -> Option<&Arc<Allocation>> {
        self.live
            .range(..=address)
            .next_back()
            .map(|(_, allocation)| allocation)
            .filter(|a| a.contains(address, 0))
    }

    /// What a launch needs: all allocations, and the number of the launch.
    pub fn view(&mut self) -> View {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            // Stamps of the previous round could be taken for new ones.
            self.live.values().for_each(|allocation| allocation.forget_touches());
            self.epoch = 1;
        }
        View {
            allocations: self.live.values().cloned().collect(),
            freed: self.freed.iter().map(|(&base, &size)| (base, size)).collect(),
            epoch: self.epoch,
            unfinished: None,
            stream: StreamBit::of(0),
            concurrent: Concurrent::default(),
        }
    }

    /// The number of the last launch.
    pub fn epoch(&self) -> u16 {
        self.epoch
    }
}

/// Whether an address is one of device memory, whether or not anything is allocated there.
pub fn is_of_device(address: u64) -> bool {
    (FIRST_ADDRESS..LAST_ADDRESS).contains(&address)
}

/// The memory as one launch sees it.
pub struct View {
    allocations: Vec<Arc<Allocation>>,
    freed: Vec<(u64, usize)>,
    /// Number of the launch.
    pub epoch: u16,
    /// For a launch that may begin before others have ended: the first of these.
    pub unfinished: Option<u16>,
    /// The stream of the launch.
    pub stream: StreamBit,
    /// What may run at the same time on other streams.
    pub concurrent: Concurrent,
}

impl View {
    /// The index of the allocation that holds a stretch.
    pub fn find(&self, address: u64, bytes: usize) -> Option<usize> {
        let after = self.allocations.partition_point(|allocation| allocation.base <= address);
        let index = after.checked_sub(1)?;
        self.allocations[index].contains(address, bytes).then_some(index)
    }

    /// An allocation by its index, for work of the launch to touch.
    #[inline(always)]
    pub fn get(&self, index: usize) -> Option<&Allocation> {
        let allocation = self.allocations.get(index)?;
        allocation.note_stream(self.stream);
        Some(allocation)
    }

    /// Words for a report on an address that no allocation holds, and whether it was freed.
    pub fn explain(&self, address: u64, bytes: usize) -> (bool, String) {
        let after = self.freed.partition_point(|(base, _)| *base <= address);
        if let Some((base, size)) = after.checked_sub(1).and_then(|index| self.freed.get(index))
            && address < base + *size as u64
        {
            let offset = address - base;
            return (
                true,
                format!("{bytes} bytes at offset {offset} of an allocation of {size} bytes that was freed"),
            );
        }
        let after = self.allocations.partition_point(|allocation| allocation.base <= address);
        let detail = match after.checked_sub(1).map(|index| &self.allocations[index]) {
            Some(near) if address - near.base < near.size as u64 + GAP => format!(
                "{bytes} bytes at offset {} of an allocation of {} bytes",
                address - near.base,
                near.size
            ),
            _ => format!("{bytes} bytes at 0x{address:x}, where nothing is allocated"),
        };
        (false, detail)
    }
}
