//! Shared memory of a block, and what its check knows: which bytes were written, which are still
//! awaited from `cp.async`, and who touched them when.
//!
//! Order between warps is kept as vector clocks: a warp's own entry ticks at every barrier it passes, and
//! whoever passes the barrier with it learns all it knew. Two touches of which neither is known to the
//! other race. Lanes of one warp are ordered by `__syncwarp` and barriers, which move the warp's tick.
//!
//! Touches are kept for chunks of 16 bytes while a warp touches whole chunks, as tiles are moved. A chunk that is
//! touched in part gets a cell for each word, and a word that is touched in part one for each byte, until
//! somebody writes the whole chunk again.

use std::collections::HashMap;

const NOBODY: u16 = u16::MAX;
/// A thread that is no writer of anything: several lanes of a warp.
const SEVERAL: u16 = u16::MAX - 1;
/// Several lanes instead of one.
pub const MANY_LANES: u8 = u8::MAX;
/// Bytes of a chunk.
pub const CHUNK: usize = 16;
/// One in every byte.
pub const ONES: u64 = 0x0101_0101_0101_0101;

/// What the warps of a block know of each other.
pub struct Clocks {
    /// `known[w * warps + u]`: touches by warp `u` at clocks below this came before what warp `w` does now.
    known: Vec<u16>,
    warps: usize,
    /// Moves at everything that orders the lanes of a warp.
    pub ticks: Vec<u32>,
}

impl Clocks {
    /// For a block of so many warps.
    pub fn new(warps: usize) -> Self {
        Self { known: vec![1; warps * warps], warps, ticks: vec![1; warps] }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.known.fill(1);
        self.ticks.fill(1);
    }

    /// What a warp knows.
    #[inline(always)]
    fn of(&self, warp: usize) -> &[u16] {
        &self.known[warp * self.warps..(warp + 1) * self.warps]
    }

    /// A warp's own clock.
    pub fn now(&self, warp: usize) -> u16 {
        self.of(warp)[warp]
    }

    /// Whether what another warp did at a clock came before what a warp does now.
    pub fn knows(&self, warp: usize, other: usize, clock: u16) -> bool {
        warp == other || self.of(warp)[other] > clock
    }

    /// Lets `to` know all that a warp knows, and keeps its own clock.
    pub fn lend(&mut self, warp: usize, to: usize) {
        let own = self.now(to);
        self.known.copy_within(warp * self.warps..(warp + 1) * self.warps, to * self.warps);
        self.known[to * self.warps + to] = own;
    }

    /// Lets a warp know what another did at a clock, and nothing else.
    pub fn see(&mut self, warp: usize, other: usize, clock: u16) {
        let known = &mut self.known[warp * self.warps + other];
        *known = (*known).max(clock.saturating_add(1));
    }

    /// Ends the warp's present interval, but orders none of its lanes.
    pub fn advance(&mut self, warp: usize) {
        let own = &mut self.known[warp * self.warps + warp];
        *own = own.saturating_add(1);
    }

    /// Ends the warp's present interval and adds what it knows to `pool`.
    pub fn give(&mut self, warp: usize, pool: &mut Vec<u16>) {
        let own = &mut self.known[warp * self.warps + warp];
        *own = own.saturating_add(1);
        self.ticks[warp] += 1;
        pool.resize(self.warps, 0);
        for (into, from) in pool.iter_mut().zip(self.of(warp)) {
            *into = (*into).max(*from);
        }
    }

    /// Lets a warp learn what is in `pool`.
    pub fn take(&mut self, warp: usize, pool: &[u16]) {
        self.ticks[warp] += 1;
        for (into, from) in self.known[warp * self.warps..(warp + 1) * self.warps].iter_mut().zip(pool) {
            *into = (*into).max(*from);
        }
    }
}

/// Who touched a chunk, as long as whole chunks are touched.
#[derive(Clone, Copy)]
struct Chunk {
    /// The lane of the last writer of every two bytes.
    writer_lanes: u64,
    /// The lane that read every two bytes last, or [`MANY_LANES`].
    reader_lanes: u64,
    tick: u32,
    reader_tick: u32,
    writer: u16,
    clock: u16,
    /// The warp that read last since the last plain write.
    reader_warp: u16,
    atomic: bool,
    /// Whether other warps have read too since the last plain write.
    several: bool,
    /// Whether the cells of its words say more.
    split: bool,
}

const FRESH_CHUNK: Chunk = Chunk {
    writer_lanes: 0,
    reader_lanes: 0,
    tick: 0,
    reader_tick: 0,
    writer: NOBODY,
    clock: 0,
    reader_warp: NOBODY,
    atomic: false,
    several: false,
    split: false,
};

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

/// How two touches collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collision {
    /// Between warps; the other warp.
    Warps(u32),
    /// Between lanes of one warp; the other lane, 255 for several.
    Lanes(u32),
}

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
pub struct Shared {
    /// Its bytes.
    pub data: Vec<u8>,
    checked: bool,
    warps: usize,
    /// A bit a byte, for every chunk: which bytes were written.
    written: Vec<u16>,
    /// Likewise: which bytes an asynchronous copy will still write.
    pending: Vec<u16>,
    pending_chunks: usize,
    chunks: Vec<Chunk>,
    /// By chunk and warp: the clock of the warp's last read.
    chunk_reads: Vec<u16>,
    /// Cells of words, of which those count whose chunk is split; then groups of four for the bytes of words.
    cells: Vec<Cell>,
    reads: Vec<u16>,
    /// For words that are touched in parts: where the cells of their bytes begin.
    bytes: HashMap<u32, u32>,
    free_bytes: Vec<u32>,
    words: usize,
}

/// What a read or write of shared memory found wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// Bytes that were never written.
    pub unwritten: bool,
    /// Bytes of an asynchronous copy that was not waited for.
    pub pending: bool,
    /// A race.
    pub collision: Option<Collision>,
}

impl Finding {
    /// Whether nothing is wrong.
    #[inline(always)]
    pub fn is_clean(&self) -> bool {
        !self.unwritten && !self.pending && self.collision.is_none()
    }
}

impl Shared {
    /// Memory of a size in bytes.
    pub fn new(bytes: usize, warps: usize, checked: bool) -> Self {
        let words = bytes.div_ceil(4);
        let chunks = if checked { bytes.div_ceil(CHUNK) } else { 0 };
        Self {
            data: vec![0xff; words * 4],
            checked,
            warps,
            written: vec![0; chunks],
            pending: vec![0; chunks],
            pending_chunks: 0,
            chunks: vec![FRESH_CHUNK; chunks],
            chunk_reads: vec![0; chunks * warps],
            cells: vec![FRESH; chunks * 4],
            reads: vec![0; chunks * 4 * warps],
            bytes: HashMap::new(),
            free_bytes: Vec::new(),
            words: chunks * 4,
        }
    }

    /// Makes it fresh for the next block.
    pub fn reset(&mut self) {
        self.data.fill(0xff);
        self.written.fill(0);
        if self.pending_chunks > 0 {
            self.pending.fill(0);
            self.pending_chunks = 0;
        }
        self.chunks.fill(FRESH_CHUNK);
        self.chunk_reads.fill(0);
        self.cells.truncate(self.words);
        self.reads.truncate(self.words * self.warps);
        self.bytes.clear();
        self.free_bytes.clear();
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
            out.pending |= found.pending;
            out.collision = out.collision.or(found.collision);
            from += count;
        }
        out
    }

    /// Notes bytes as written and awaited no longer than they are; tells which were wrong.
    #[inline(always)]
    fn mark(&mut self, chunk: usize, mask: u16, write: bool) -> Finding {
        let pending = self.pending_chunks > 0 && self.pending[chunk] & mask != 0;
        let written = &mut self.written[chunk];
        let unwritten = !write && *written & mask != mask;
        if write {
            *written |= mask;
        }
        Finding { unwritten, pending, collision: None }
    }

    /// Checks and notes a touch of a whole chunk, by the lanes that the bytes of `lanes` name, one for every two
    /// bytes of the chunk.
    #[inline]
    pub fn touch_chunk(&mut self, index: usize, lanes: u64, touch: Touch, clocks: &Clocks) -> Finding {
        let mut out = self.mark(index, u16::MAX, touch.write);
        let Touch { write, atomic, warp } = touch;
        if self.chunks[index].split {
            for part in 0..4 {
                let own = (lanes >> (16 * part)) as u16;
                let word = index * 4 + part;
                let found = if own as u8 == (own >> 8) as u8 {
                    self.touch_word(word, 0xf, own as usize & 0xff, touch, clocks)
                } else {
                    let first = self.touch_word(word, 0x3, own as usize & 0xff, touch, clocks);
                    first.or(self.touch_word(word, 0xc, own as usize >> 8, touch, clocks))
                };
                out.collision = out.collision.or(found);
            }
            if write {
                self.unite(index, lanes, touch, clocks);
            }
            return out;
        }
        let known = clocks.of(warp);
        let (now, tick) = (known[warp], clocks.ticks[warp]);
        let reads = &mut self.chunk_reads[index * self.warps..(index + 1) * self.warps];
        let chunk = &mut self.chunks[index];
        if chunk.writer != NOBODY && !(atomic && chunk.atomic) {
            let other = usize::from(chunk.writer);
            if other == warp {
                if chunk.tick == tick && chunk.writer_lanes != lanes {
                    out.collision = Some(Collision::Lanes(first_other(chunk.writer_lanes, lanes)));
                }
            } else if known[other] <= chunk.clock {
                out.collision = Some(Collision::Warps(other as u32));
            }
        }
        if write {
            if out.collision.is_none() {
                // Reads before the last plain write came before that, and that before this.
                let reader = usize::from(chunk.reader_warp);
                if chunk.several {
                    out.collision = unordered_read(reads, known, warp);
                } else if chunk.reader_warp != NOBODY && reader != warp && reads[reader] >= known[reader] {
                    out.collision = Some(Collision::Warps(reader as u32));
                }
                let own = reads[warp] == now
                    && usize::from(chunk.reader_warp) == warp
                    && chunk.reader_tick == tick
                    && chunk.reader_lanes != lanes;
                if out.collision.is_none() && own {
                    out.collision = Some(Collision::Lanes(first_other(chunk.reader_lanes, lanes)));
                }
            }
            chunk.writer_lanes = lanes;
            chunk.writer = warp as u16;
            chunk.clock = now;
            chunk.tick = tick;
            chunk.atomic = atomic;
            // Atomics are in no order among each other, so that each must still come after the reads.
            if !atomic {
                chunk.reader_warp = NOBODY;
                chunk.several = false;
            }
        } else {
            chunk.several |= chunk.reader_warp != NOBODY && usize::from(chunk.reader_warp) != warp;
            let again =
                usize::from(chunk.reader_warp) == warp && chunk.reader_tick == tick && reads[warp] == now;
            let before = if again { chunk.reader_lanes } else { lanes };
            chunk.reader_lanes = lanes | differing_bytes(before ^ lanes);
            chunk.reader_warp = warp as u16;
            chunk.reader_tick = tick;
            reads[warp] = now;
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
        let chunk = &mut self.chunks[index];
        chunk.split = true;
        let chunk = *chunk;
        let row = index * self.warps..(index + 1) * self.warps;
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
        self.chunks[index] = Chunk {
            writer_lanes: lanes,
            tick: clocks.ticks[touch.warp],
            writer: touch.warp as u16,
            clock: clocks.of(touch.warp)[touch.warp],
            atomic: touch.atomic,
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
                    out = Some(Collision::Lanes(u32::from(cell.writer) % 32));
                }
            } else if known[other] <= cell.clock {
                out = Some(Collision::Warps(other as u32));
            }
        }
        let again = usize::from(cell.reader_warp) == warp && cell.reader_tick == tick && reads[warp] == now;
        if write {
            if out.is_none() {
                out = unordered_read(reads, known, warp);
                if out.is_none() && again && cell.reader_lane != lane as u8 {
                    out = Some(Collision::Lanes(u32::from(cell.reader_lane)));
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
        self.checked && (at..at + bytes).any(|byte| self.written[byte / CHUNK] >> (byte % CHUNK) & 1 == 0)
    }

    /// Whether writing some bytes would change nothing at all: they are there, written and awaited by nobody.
    /// Such a write harms nobody in any order.
    #[inline(always)]
    pub fn holds(&self, at: usize, bytes: &[u8]) -> bool {
        self.data[at..at + bytes.len()] == *bytes
            && !self.is_unwritten(at, bytes.len())
            && (self.pending_chunks == 0
                || (at..at + bytes.len()).all(|byte| self.pending[byte / CHUNK] >> (byte % CHUNK) & 1 == 0))
    }

    /// Marks a chunk as never written: what was copied there was never written where it came from.
    pub fn set_unwritten(&mut self, chunk: usize) {
        if let Some(written) = self.written.get_mut(chunk) {
            *written = 0;
        }
    }

    /// Marks bytes as awaiting an asynchronous copy, or as arrived.
    #[inline]
    pub fn set_pending(&mut self, at: usize, bytes: usize, pending: bool) {
        if !self.checked {
            return;
        }
        let (mut from, end) = (at, at + bytes);
        while from < end {
            let count = (CHUNK - from % CHUNK).min(end - from);
            let mask = (((1u32 << count) - 1) << (from % CHUNK)) as u16;
            let state = &mut self.pending[from / CHUNK];
            let before = *state;
            *state = if pending { before | mask } else { before & !mask };
            self.pending_chunks += usize::from(before == 0 && *state != 0);
            self.pending_chunks -= usize::from(before != 0 && *state == 0);
            from += count;
        }
    }
}

/// Another warp that read and is not known to have done so before.
#[inline(always)]
fn unordered_read(reads: &[u16], known: &[u16], warp: usize) -> Option<Collision> {
    // Counted first, as that goes in one sweep; the warp's own reads are always among them or never.
    let mut unordered = 0u16;
    for (&read, &known) in reads.iter().zip(known) {
        unordered += u16::from(read >= known);
    }
    if unordered <= u16::from(reads[warp] >= known[warp]) {
        return None;
    }
    let mut pairs = reads.iter().zip(known).enumerate();
    let other = pairs.find(|(other, (read, known))| read >= known && *other != warp);
    other.map(|(other, _)| Collision::Warps(other as u32))
}

/// 255 in every byte that is not 0.
#[inline(always)]
fn differing_bytes(value: u64) -> u64 {
    if value == 0 {
        return 0;
    }
    let low = 0x7f * ONES;
    let high = (((value & low) + low) | value) & !low;
    (high >> 7) * 0xff
}

/// The lane that the first differing byte of `before` names.
fn first_other(before: u64, lanes: u64) -> u32 {
    let byte = (before ^ lanes).trailing_zeros() / 8 * 8;
    (before >> byte) as u32 & 0xff
}
