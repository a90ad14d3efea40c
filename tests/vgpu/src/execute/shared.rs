//! Shared memory of a block, and what its check knows: which bytes were written, which are still
//! awaited from `cp.async`, and who touched them when.
//!
//! Two touches of which neither is known to the other by the clocks race.
//!
//! Touches are kept for chunks of 16 bytes while a warp touches whole chunks, as tiles are moved. A chunk that is
//! touched in part gets a cell for each word, and a word that is touched in part one for each byte, until
//! somebody writes the whole chunk again.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

pub use super::chunk::{CHUNK, Collision, MANY_LANES, ONES};
use super::chunk::{Chunk, FRESH_CHUNK, NOBODY, Toucher, unordered_read};
use super::clocks::Clocks;

/// A thread that is no writer of anything: several lanes of a warp.
const SEVERAL: u16 = u16::MAX - 1;

/// Who touched one word (or one byte of a word that is touched in parts).
#[derive(Clone, Copy)]
struct Cell {
    writer: u16,
    clock: u16,
    tick: u32,
    atomic: bool,
    reader_warp: u16,
    reader_lane: u8,
    reader_tick: u32,
}

const FRESH: Cell =
    Cell { writer: NOBODY, clock: 0, tick: 0, atomic: false, reader_warp: 0, reader_lane: 0, reader_tick: 0 };

/// A touch: what of, by which warp.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    /// Whether it writes.
    pub write: bool,
    /// Whether it is an atomic, which meets other atomics unharmed.
    pub atomic: bool,
    /// The warp.
    pub warp: usize,
}

/// The shared memory of a block.
#[derive(Default)]
pub struct Shared {
    /// Its bytes.
    pub data: Vec<u8>,
    checked: bool,
    warps: usize,
    pub(super) chunks: Vec<Chunk>,
    /// By chunk and warp: the clock of the warp's last read, unless the chunk itself says so.
    pub(super) chunk_reads: Vec<u16>,
    /// Cells of words, of which those count whose chunk is split; then groups of four for the bytes of words. None until
    /// the first chunk is split: they are many, and most launches are short.
    cells: Vec<Cell>,
    reads: Vec<u16>,
    /// For words that are touched in parts: where the cells of their bytes begin.
    bytes: HashMap<u32, u32>,
    free_bytes: Vec<u32>,
    words: usize,
    /// Bytes that hold a value that was never computed.
    pub hollow: HashSet<usize>,
}

/// Shared memory of launches that have ended.
static LEFT: Mutex<Vec<Shared>> = Mutex::new(Vec::new());
/// The most of it that is kept: a worker takes one, but blocks that run together have one each.
const MAX_LEFT: usize = 16;

/// What a read or write of shared memory found wrong. It is small enough to come back in a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// Bytes that were never written.
    pub unwritten: bool,
    /// Bytes that hold a value that was never computed.
    pub hollow: bool,
    /// Bytes of an asynchronous copy that was not waited for.
    pub pending: bool,
    /// A race.
    pub collision: Option<Collision>,
}

impl Finding {
    /// Whether nothing is wrong.
    #[inline(always)]
    pub fn is_clean(&self) -> bool {
        !self.unwritten && !self.hollow && !self.pending && self.collision.is_none()
    }
}

impl Shared {
    /// Memory of a size in bytes, in what a block of an earlier launch left if there is any.
    pub fn new(bytes: usize, warps: usize, checked: bool) -> Self {
        let chunks = if checked { bytes.div_ceil(CHUNK) } else { 0 };
        let mut out = LEFT.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        (out.checked, out.warps, out.words) = (checked, warps, chunks * 4);
        out.data.resize(bytes.next_multiple_of(4), 0xff);
        out.chunks.resize(chunks, FRESH_CHUNK);
        out.chunk_reads.resize(chunks * warps, 0);
        out.cells.clear();
        out.reads.clear();
        out.reset();
        out
    }

    /// Leaves it to blocks of launches to come. What it takes is large, and asking the system for it anew costs a short
    /// launch more than all else.
    pub fn leave(self) {
        let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        if left.len() < MAX_LEFT {
            left.push(self);
        }
    }

    /// Makes it fresh for the next block.
    pub fn reset(&mut self) {
        self.data.fill(0xff);
        self.chunks.fill(FRESH_CHUNK);
        self.chunk_reads.fill(0);
        self.cells.truncate(self.words);
        self.reads.truncate(self.words * self.warps);
        self.bytes.clear();
        self.free_bytes.clear();
        self.hollow.clear();
    }

    /// Whether bytes that lie inside were all written.
    pub fn is_written(&self, at: usize, bytes: usize) -> bool {
        (at..at + bytes).all(|byte| self.chunks[byte / CHUNK].written >> (byte % CHUNK) & 1 != 0)
    }

    /// Checks and notes a touch of bytes that lie inside, by one lane.
    #[inline]
    pub fn touch(&mut self, at: usize, bytes: usize, lane: usize, touch: Touch, clocks: &Clocks) -> Finding {
        let mut out = Finding::default();
        if !self.checked {
            return out;
        }
        let (mut from, end) = (at, at + bytes);
        while from < end {
            let count = (CHUNK - from % CHUNK).min(end - from);
            let found = if count == CHUNK {
                self.touch_chunk(from / CHUNK, lane as u64 * ONES, touch, clocks)
            } else {
                self.touch_part(from, count, lane, touch, clocks)
            };
            out.unwritten |= found.unwritten;
            out.hollow |= found.hollow;
            out.pending |= found.pending;
            out.collision = out.collision.or(found.collision);
            from += count;
        }
        out
    }

    /// Notes bytes of a chunk as written if they are; tells which were wrong.
    #[inline(always)]
    fn mark(&mut self, chunk: usize, mask: u16, write: bool) -> Finding {
        let mut hollow = false;
        if !self.hollow.is_empty() {
            if write {
                self.fill(chunk, mask);
            } else {
                hollow = self.is_hollow(chunk, mask);
            }
        }
        let chunk = &mut self.chunks[chunk];
        let pending = chunk.pending & mask != 0;
        let unwritten = !write && chunk.written & mask != mask;
        if write {
            chunk.written |= mask;
        }
        Finding { unwritten, hollow, pending, collision: None }
    }

    /// Whether any of some bytes of a chunk hold a value that was never computed.
    #[cold]
    pub(super) fn is_hollow(&self, chunk: usize, mask: u16) -> bool {
        (0..CHUNK).any(|byte| mask >> byte & 1 != 0 && self.hollow.contains(&(chunk * CHUNK + byte)))
    }

    /// Forgets that bytes held a value that was never computed.
    #[cold]
    pub(super) fn fill(&mut self, chunk: usize, mask: u16) {
        for byte in (0..CHUNK).filter(|byte| mask >> byte & 1 != 0) {
            self.hollow.remove(&(chunk * CHUNK + byte));
        }
    }

    /// Checks and notes a touch of a whole chunk, by the lanes that the bytes of `lanes` name, one for every two
    /// bytes of the chunk.
    #[inline(always)]
    pub fn touch_chunk(&mut self, index: usize, lanes: u64, touch: Touch, clocks: &Clocks) -> Finding {
        let mut out = self.mark(index, u16::MAX, touch.write);
        let chunk = &mut self.chunks[index];
        out.collision = if chunk.split {
            self.touch_split(index, lanes, touch, clocks)
        } else {
            let who = Toucher::new(touch.warp, clocks);
            chunk.touch(&mut self.chunk_reads, index, lanes, touch.write, touch.atomic, who)
        };
        out
    }

    /// Checks and notes a touch of a whole chunk whose words have cells of their own.
    #[inline(never)]
    pub fn touch_split(
        &mut self,
        index: usize,
        lanes: u64,
        touch: Touch,
        clocks: &Clocks,
    ) -> Option<Collision> {
        let mut out = None;
        for part in 0..4 {
            let own = (lanes >> (16 * part)) as u16;
            let word = index * 4 + part;
            let found = if own as u8 == (own >> 8) as u8 {
                self.touch_word(word, 0xf, own as usize & 0xff, touch, clocks)
            } else {
                let first = self.touch_word(word, 0x3, own as usize & 0xff, touch, clocks);
                first.or(self.touch_word(word, 0xc, own as usize >> 8, touch, clocks))
            };
            out = out.or(found);
        }
        if touch.write {
            self.unite(index, lanes, touch, clocks);
        }
        out
    }

    /// Checks and notes a touch of a part of a chunk.
    fn touch_part(&mut self, at: usize, bytes: usize, lane: usize, touch: Touch, clocks: &Clocks) -> Finding {
        let chunk = at / CHUNK;
        let mask = (((1u32 << bytes) - 1) << (at % CHUNK)) as u16;
        let mut out = self.mark(chunk, mask, touch.write);
        if !self.chunks[chunk].split {
            self.split(chunk, clocks);
        }
        for part in at % CHUNK / 4..=(at % CHUNK + bytes - 1) / 4 {
            let found =
                self.touch_word(chunk * 4 + part, (mask >> (4 * part)) as u8 & 0xf, lane, touch, clocks);
            out.collision = out.collision.or(found);
        }
        out
    }

    /// Gives the words of a chunk cells of their own, made of the chunk's.
    fn split(&mut self, index: usize, clocks: &Clocks) {
        if self.cells.is_empty() {
            self.cells.resize(self.words, FRESH);
            self.reads.resize(self.words * self.warps, 0);
        }
        let chunk = &mut self.chunks[index];
        chunk.split = true;
        let chunk = *chunk;
        let row = index * self.warps..(index + 1) * self.warps;
        if chunk.reader_warp != NOBODY {
            self.chunk_reads[row.start + usize::from(chunk.reader_warp)] = chunk.reader_clock;
        }
        for part in 0..4 {
            let word = index * 4 + part;
            let (writers, readers) =
                ((chunk.writer_lanes >> (16 * part)) as u16, (chunk.reader_lanes >> (16 * part)) as u16);
            let lane_of = |lanes: u16, upper: bool| if upper { (lanes >> 8) as u8 } else { lanes as u8 };
            let cell = |upper: bool| Cell {
                writer: if chunk.writer == NOBODY {
                    NOBODY
                } else {
                    chunk.writer * 32 + u16::from(lane_of(writers, upper))
                },
                clock: chunk.clock,
                tick: chunk.tick,
                atomic: chunk.atomic,
                reader_warp: chunk.reader_warp,
                reader_lane: if readers as u8 == (readers >> 8) as u8 { readers as u8 } else { MANY_LANES },
                reader_tick: chunk.reader_tick,
            };
            self.cells[word] = cell(false);
            self.reads[word * self.warps..(word + 1) * self.warps]
                .copy_from_slice(&self.chunk_reads[row.clone()]);
            // Two lanes wrote the halves of the word, which matters as long as the warp has not moved on.
            let differ = writers as u8 != (writers >> 8) as u8;
            if differ && chunk.writer != NOBODY && clocks.ticks[usize::from(chunk.writer)] == chunk.tick {
                let first = self.split_word(word);
                self.cells[first + 2] = cell(true);
                self.cells[first + 3] = cell(true);
            }
        }
    }

    /// Makes a chunk one again that was just written as a whole.
    fn unite(&mut self, index: usize, lanes: u64, touch: Touch, clocks: &Clocks) {
        if !self.bytes.is_empty() {
            for word in index * 4..index * 4 + 4 {
                self.free_bytes.extend(self.bytes.remove(&(word as u32)));
            }
        }
        // Reads that came before this write need not be kept: whoever is ordered after it is so after them.
        self.chunk_reads[index * self.warps..(index + 1) * self.warps].fill(0);
        let chunk = &mut self.chunks[index];
        *chunk = Chunk {
            writer_lanes: lanes,
            tick: clocks.ticks[touch.warp],
            writer: touch.warp as u16,
            clock: clocks.of(touch.warp)[touch.warp],
            atomic: touch.atomic,
            written: chunk.written,
            pending: chunk.pending,
            ..FRESH_CHUNK
        };
    }

    /// The cells of the bytes of a word, made of the word's cell at first.
    fn split_word(&mut self, word: usize) -> usize {
        if let Some(&first) = self.bytes.get(&(word as u32)) {
            return first as usize;
        }
        let first = self.free_bytes.pop().map_or(self.cells.len(), |first| first as usize);
        if first == self.cells.len() {
            self.cells.resize(first + 4, FRESH);
            self.reads.resize((first + 4) * self.warps, 0);
        }
        let row = word * self.warps..(word + 1) * self.warps;
        for byte in first..first + 4 {
            self.cells[byte] = self.cells[word];
            self.reads.copy_within(row.clone(), byte * self.warps);
        }
        self.bytes.insert(word as u32, first as u32);
        first
    }

    /// Checks and notes a touch of some bytes of a word.
    #[inline]
    fn touch_word(
        &mut self,
        word: usize,
        mask: u8,
        lane: usize,
        touch: Touch,
        clocks: &Clocks,
    ) -> Option<Collision> {
        let whole = mask == 0xf;
        if whole && (self.bytes.is_empty() || !self.bytes.contains_key(&(word as u32))) {
            return self.touch_cell(word, lane, touch, clocks);
        }
        let first = self.split_word(word);
        let mut out = None;
        for byte in 0..4 {
            if mask >> byte & 1 != 0 {
                out = out.or(self.touch_cell(first + byte, lane, touch, clocks));
            }
        }
        out
    }

    #[inline(always)]
    fn touch_cell(&mut self, index: usize, lane: usize, touch: Touch, clocks: &Clocks) -> Option<Collision> {
        let Touch { write, atomic, warp } = touch;
        let known = clocks.of(warp);
        let (now, tick) = (known[warp], clocks.ticks[warp]);
        let thread = if lane == usize::from(MANY_LANES) { SEVERAL } else { (warp * 32 + lane) as u16 };
        let reads = &mut self.reads[index * self.warps..(index + 1) * self.warps];
        let cell = &mut self.cells[index];
        let mut out = None;
        if cell.writer != NOBODY && cell.writer != thread && !(atomic && cell.atomic) {
            let other = usize::from(cell.writer) / 32;
            if other == warp {
                if cell.tick == tick {
                    out = Some(Collision::Lanes(cell.writer % 32));
                }
            } else if known[other] <= cell.clock {
                out = Some(Collision::Warps(other as u16));
            }
        }
        let again = usize::from(cell.reader_warp) == warp && cell.reader_tick == tick && reads[warp] == now;
        if write {
            if out.is_none() {
                out = unordered_read(reads, known, warp);
                if out.is_none() && again && cell.reader_lane != lane as u8 {
                    out = Some(Collision::Lanes(u16::from(cell.reader_lane)));
                }
            }
            cell.writer = thread;
            cell.clock = now;
            cell.tick = tick;
            cell.atomic = atomic;
        } else {
            cell.reader_lane = if again && cell.reader_lane != lane as u8 { MANY_LANES } else { lane as u8 };
            cell.reader_warp = warp as u16;
            cell.reader_tick = tick;
            reads[warp] = now;
        }
        out
    }

    /// Whether any of some bytes were never written.
    pub fn is_unwritten(&self, at: usize, bytes: usize) -> bool {
        self.checked && parts(at, bytes).any(|(chunk, mask)| self.chunks[chunk].written & mask != mask)
    }

    /// Whether any of some bytes hold a value that was never computed.
    pub fn holds_hollow(&self, at: usize, bytes: usize) -> bool {
        !self.hollow.is_empty() && parts(at, bytes).any(|(chunk, mask)| self.is_hollow(chunk, mask))
    }

    /// Whether writing some bytes would change nothing at all: they are there, written and awaited by nobody.
    /// Such a write harms nobody in any order.
    #[inline(always)]
    pub fn holds(&self, at: usize, bytes: &[u8]) -> bool {
        let settled = |(chunk, mask): (usize, u16)| {
            let chunk = &self.chunks[chunk];
            chunk.written & mask == mask && chunk.pending & mask == 0
        };
        self.data[at..at + bytes.len()] == *bytes && (!self.checked || parts(at, bytes.len()).all(settled))
    }

    /// Marks a chunk as never written: what was copied there was never written where it came from.
    pub fn set_unwritten(&mut self, chunk: usize) {
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            chunk.written = 0;
        }
    }

    /// Marks bytes as awaiting an asynchronous copy, or as arrived.
    #[inline]
    pub fn set_pending(&mut self, at: usize, bytes: usize, pending: bool) {
        if !self.checked {
            return;
        }
        if bytes == CHUNK && at.is_multiple_of(CHUNK) {
            self.chunks[at / CHUNK].pending = if pending { u16::MAX } else { 0 };
            return;
        }
        for (chunk, mask) in parts(at, bytes) {
            let chunk = &mut self.chunks[chunk];
            chunk.pending = if pending { chunk.pending | mask } else { chunk.pending & !mask };
        }
    }
}

/// The chunks that a stretch touches, each with a bit for every byte of it.
#[inline(always)]
fn parts(at: usize, bytes: usize) -> impl Iterator<Item = (usize, u16)> {
    let end = at + bytes;
    let mut from = at;
    std::iter::from_fn(move || {
        let count = (CHUNK - from % CHUNK).min(end - from);
        let part = (from / CHUNK, (((1u32 << count) - 1) << (from % CHUNK)) as u16);
        from += count;
        (count > 0).then_some(part)
    })
}
