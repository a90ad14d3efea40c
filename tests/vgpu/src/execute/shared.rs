//! The shared memory of a block, and who may touch it when.
//!
//! Order between warps is kept as vector clocks: a warp's own entry ticks at every barrier it passes, and
//! whoever passes the barrier with it learns all it knew. Two touches of which neither is known to the
//! other race. Lanes of one warp are ordered by `__syncwarp` and barriers, which move the warp's tick.

use std::collections::HashMap;

const NOBODY: u16 = u16::MAX;
const MANY_LANES: u8 = u8::MAX;

/// What the warps of a block know of each other.
pub struct Clocks {
    /// `known[w][u]`: touches by warp `u` at clocks below this came before what warp `w` does now.
    pub known: Vec<Vec<u16>>,
    /// Moves at everything that orders the lanes of a warp.
    pub ticks: Vec<u32>,
}

impl Clocks {
    /// For a block of so many warps.
    pub fn new(warps: usize) -> Self {
        Self { known: vec![vec![1; warps]; warps], ticks: vec![1; warps] }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.known.iter_mut().for_each(|row| row.fill(1));
        self.ticks.fill(1);
    }

    /// Ends the warp's present interval and adds what it knows to `pool`.
    pub fn give(&mut self, warp: usize, pool: &mut Vec<u16>) {
        self.known[warp][warp] = self.known[warp][warp].saturating_add(1);
        self.ticks[warp] += 1;
        pool.resize(self.known.len(), 0);
        for (into, from) in pool.iter_mut().zip(&self.known[warp]) {
            *into = (*into).max(*from);
        }
    }

    /// Lets a warp learn what is in `pool`.
    pub fn take(&mut self, warp: usize, pool: &[u16]) {
        self.ticks[warp] += 1;
        for (into, from) in self.known[warp].iter_mut().zip(pool) {
            *into = (*into).max(*from);
        }
    }
}

/// Who touched one word (or one byte of a word that is touched in parts).
#[derive(Clone, Copy)]
struct Cell {
    writer: u16,
    clock: u16,
    tick: u32,
    atomic: bool,
    reader_warp: u8,
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

/// A touch: by which thread, at which of its warp's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// The warp.
    pub warp: usize,
    /// The lane.
    pub lane: usize,
}

/// The shared memory of a block.
pub struct Shared {
    /// Its bytes.
    pub data: Vec<u8>,
    checked: bool,
    warps: usize,
    /// Four bits a word: which bytes were written.
    written: Vec<u8>,
    /// Four bits a word: which bytes an asynchronous copy will still write.
    pending: Vec<u8>,
    pending_words: usize,
    cells: Vec<Cell>,
    reads: Vec<u16>,
    /// For words that are touched in parts: where the cells of their bytes begin.
    split: HashMap<u32, u32>,
    words: usize,
}

/// What a read or write of shared memory found wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Finding {
    /// Bytes that were never written.
    pub unwritten: bool,
    /// Bytes of an asynchronous copy that was not waited for.
    pub pending: bool,
    /// A race.
    pub collision: Option<Collision>,
}

impl Shared {
    /// Memory of a size in bytes.
    pub fn new(bytes: usize, warps: usize, checked: bool) -> Self {
        let words = bytes.div_ceil(4);
        let tracked = if checked { words } else { 0 };
        Self {
            data: vec![0xff; words * 4],
            checked,
            warps,
            written: vec![0; tracked],
            pending: vec![0; tracked],
            pending_words: 0,
            cells: vec![FRESH; tracked],
            reads: vec![0; tracked * warps],
            split: HashMap::new(),
            words: tracked,
        }
    }

    /// Makes it fresh for the next block.
    pub fn reset(&mut self) {
        self.data.fill(0xff);
        self.written.fill(0);
        if self.pending_words > 0 {
            self.pending.fill(0);
            self.pending_words = 0;
        }
        self.cells.truncate(self.words);
        self.cells.fill(FRESH);
        self.reads.truncate(self.words * self.warps);
        self.reads.fill(0);
        self.split.clear();
    }

    /// The cells of the bytes of a word, made of the word's cell at first.
    fn split(&mut self, word: usize) -> usize {
        if let Some(&first) = self.split.get(&(word as u32)) {
            return first as usize;
        }
        let first = self.cells.len();
        let (cell, reads) = (self.cells[word], word * self.warps..(word + 1) * self.warps);
        for _ in 0..4 {
            self.cells.push(cell);
            self.reads.extend_from_within(reads.clone());
        }
        self.split.insert(word as u32, first as u32);
        first
    }

    /// Checks and notes a touch of bytes that lie inside. `unchanged` says that a write leaves the bytes as they are.
    #[inline]
    pub fn touch(
        &mut self,
        at: usize,
        bytes: usize,
        write: bool,
        atomic: bool,
        who: Who,
        clocks: &Clocks,
    ) -> Finding {
        let mut out = Finding::default();
        if !self.checked {
            return out;
        }
        if at.is_multiple_of(4) && bytes.is_multiple_of(4) && self.split.is_empty() {
            return self.touch_words(at / 4, bytes / 4, write, atomic, who, clocks);
        }
        let mut offset = at;
        let end = at + bytes;
        while offset < end {
            let word = offset / 4;
            let count = (4 - offset % 4).min(end - offset);
            let mask = ((1u8 << count) - 1) << (offset % 4);
            if self.pending_words > 0 && self.pending[word] & mask != 0 {
                out.pending = true;
            }
            if write {
                self.written[word] |= mask;
            } else if self.written[word] & mask != mask {
                out.unwritten = true;
            }
            if count == 4 && (self.split.is_empty() || !self.split.contains_key(&(word as u32))) {
                let found = self.cell(word, write, atomic, who, clocks);
                out.collision = out.collision.or(found);
            } else {
                let first = self.split(word);
                for byte in 0..4 {
                    if mask >> byte & 1 != 0 {
                        let found = self.cell(first + byte, write, atomic, who, clocks);
                        out.collision = out.collision.or(found);
                    }
                }
            }
            offset += count;
        }
        out
    }

    /// [`Shared::touch`] for whole words while no word is split: the common case, kept short.
    #[inline]
    fn touch_words(
        &mut self,
        word: usize,
        count: usize,
        write: bool,
        atomic: bool,
        who: Who,
        clocks: &Clocks,
    ) -> Finding {
        let mut out = Finding::default();
        let range = word..word + count;
        if self.pending_words > 0 {
            out.pending = self.pending[range.clone()].iter().any(|&pending| pending != 0);
        }
        if write {
            self.written[range.clone()].fill(0xf);
        } else {
            out.unwritten = self.written[range.clone()].iter().any(|&written| written != 0xf);
        }
        let Who { warp, lane } = who;
        let known = &clocks.known[warp][..];
        let (now, tick) = (known[warp], clocks.ticks[warp]);
        let thread = (warp * 32 + lane) as u16;
        if !write {
            let first = range.start;
            let warps = self.warps;
            for (index, cell) in self.cells[range.clone()].iter_mut().enumerate() {
                // Whoever wrote last did so before, as this warp knows.
                let other = usize::from(cell.writer) / 32;
                let ordered = cell.writer == NOBODY
                    || cell.writer == thread
                    || if other == warp { cell.tick != tick } else { known[other] > cell.clock }
                    || atomic && cell.atomic;
                if !ordered {
                    let lanes = Collision::Lanes(u32::from(cell.writer) % 32);
                    let found = if other == warp { lanes } else { Collision::Warps(other as u32) };
                    out.collision = out.collision.or(Some(found));
                }
                let last = &mut self.reads[(first + index) * warps + warp];
                let again = usize::from(cell.reader_warp) == warp && cell.reader_tick == tick && *last == now;
                cell.reader_lane =
                    if again && cell.reader_lane != lane as u8 { MANY_LANES } else { lane as u8 };
                cell.reader_warp = warp as u8;
                cell.reader_tick = tick;
                *last = now;
            }
            return out;
        }
        for index in range {
            let found = self.cell(index, write, atomic, who, clocks);
            out.collision = out.collision.or(found);
        }
        out
    }

    #[inline(always)]
    fn cell(
        &mut self,
        index: usize,
        write: bool,
        atomic: bool,
        who: Who,
        clocks: &Clocks,
    ) -> Option<Collision> {
        let Who { warp, lane } = who;
        let known = &clocks.known[warp];
        let (now, tick) = (known[warp], clocks.ticks[warp]);
        let thread = (warp * 32 + lane) as u16;
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
        if write {
            if out.is_none() {
                // Counted first, as that goes in one sweep; its own reads are always among them or never.
                let mut unordered = 0u16;
                for (&read, &known) in reads.iter().zip(known) {
                    unordered += u16::from(read >= known);
                }
                if unordered > u16::from(reads[warp] >= now) {
                    let mut pairs = reads.iter().zip(known).enumerate();
                    let other = pairs.find(|(other, (read, known))| read >= known && *other != warp);
                    out = other.map(|(other, _)| Collision::Warps(other as u32));
                }
                let own =
                    reads[warp] == now && usize::from(cell.reader_warp) == warp && cell.reader_tick == tick;
                if out.is_none() && own && cell.reader_lane != lane as u8 {
                    out = Some(Collision::Lanes(u32::from(cell.reader_lane)));
                }
            }
            cell.writer = thread;
            cell.clock = now;
            cell.tick = tick;
            cell.atomic = atomic;
        } else {
            let again =
                usize::from(cell.reader_warp) == warp && cell.reader_tick == tick && reads[warp] == now;
            cell.reader_lane = if again && cell.reader_lane != lane as u8 { MANY_LANES } else { lane as u8 };
            cell.reader_warp = warp as u8;
            cell.reader_tick = tick;
            reads[warp] = now;
        }
        out
    }

    /// Whether any of some bytes inside one word were never written.
    pub fn is_unwritten(&self, at: usize, bytes: usize) -> bool {
        self.checked && (at..at + bytes).any(|byte| self.written[byte / 4] >> (byte % 4) & 1 == 0)
    }

    /// Marks bytes as awaiting an asynchronous copy, or as arrived.
    pub fn set_pending(&mut self, at: usize, bytes: usize, pending: bool) {
        if !self.checked {
            return;
        }
        let (mut offset, end) = (at, at + bytes);
        while offset < end {
            let word = offset / 4;
            let count = (4 - offset % 4).min(end - offset);
            let mask = ((1u8 << count) - 1) << (offset % 4);
            let before = self.pending[word];
            let after = if pending { before | mask } else { before & !mask };
            self.pending[word] = after;
            self.pending_words += usize::from(before == 0 && after != 0);
            self.pending_words -= usize::from(before != 0 && after == 0);
            offset += count;
        }
    }
}

/// Passes over the banks that the accesses of some lanes need together, and the fewest that their bytes would.
///
/// Lanes come in groups that the hardware serves together: 32 lanes of up to 4 bytes, 16 of 8, 8 of 16.
pub fn wavefronts(addresses: &[u64; 32], mask: u32, bytes: usize) -> (u64, u64) {
    let group = match bytes {
        0..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    let (mut total, mut least) = (0, 0);
    let mut first = 0;
    while first < 32 {
        let lanes = (mask >> first) & if group == 32 { u32::MAX } else { (1 << group) - 1 };
        if lanes != 0 {
            total += if spread(addresses, first, lanes, bytes) {
                1
            } else {
                passes(addresses, first, lanes, bytes)
            };
            least += 1;
        }
        first += group;
    }
    (total, least)
}

/// Whether no two lanes meet on a bank, as a quick look can tell.
#[inline(always)]
fn spread(addresses: &[u64; 32], first: usize, mut lanes: u32, bytes: usize) -> bool {
    let words = bytes.div_ceil(4) as u32;
    let banks = ((1u64 << words) - 1) as u32;
    let (mut seen, mut clash) = (0u32, false);
    while lanes != 0 {
        let lane = first + lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        let own = banks.rotate_left((addresses[lane] / 4 % 32) as u32);
        clash |= seen & own != 0;
        seen |= own;
    }
    !clash && words <= 8
}

/// The most distinct words that fall on one bank.
fn passes(addresses: &[u64; 32], first: usize, mut lanes: u32, bytes: usize) -> u64 {
    let mut seen = [u64::MAX; 32];
    let mut clash: Vec<u64> = Vec::new();
    while lanes != 0 {
        let lane = first + lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        let (from, to) = (addresses[lane] / 4, (addresses[lane] + bytes as u64 - 1) / 4);
        for word in from..=to {
            let bank = (word % 32) as usize;
            if seen[bank] == u64::MAX {
                seen[bank] = word;
            } else if seen[bank] != word && !clash.contains(&word) {
                clash.push(word);
            }
        }
    }
    let mut per_bank = [1u64; 32];
    for word in clash {
        per_bank[(word % 32) as usize] += 1;
    }
    per_bank.into_iter().max().unwrap_or(1)
}
