//! A chunk of shared memory and who touched it: what the check of races keeps while whole chunks are touched.

use super::clocks::Clocks;

/// A warp or thread that is none.
pub const NOBODY: u16 = u16::MAX;
/// Several lanes instead of one.
pub const MANY_LANES: u8 = u8::MAX;
/// Bytes of a chunk.
pub const CHUNK: usize = 16;
/// One in every byte.
pub const ONES: u64 = 0x0101_0101_0101_0101;

/// How two touches collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collision {
    /// Between warps; the other warp.
    Warps(u16),
    /// Between lanes of one warp; the other lane, 255 for several.
    Lanes(u16),
}

/// What is known of a chunk: its bytes, and who touched it as long as whole chunks are touched. All that a touch of a
/// whole chunk needs lies here, but the clocks of several readers.
#[derive(Clone, Copy)]
pub struct Chunk {
    /// The lane of the last writer of every two bytes.
    pub writer_lanes: u64,
    /// The lane that read every two bytes last, or [`MANY_LANES`].
    pub reader_lanes: u64,
    /// The last writer's tick, and the last reader's.
    pub tick: u32,
    pub reader_tick: u32,
    /// The last writer, and its clock then.
    pub writer: u16,
    pub clock: u16,
    /// The warp that read last since the last plain write, and its clock then; the row of reads has the others'.
    pub reader_warp: u16,
    pub reader_clock: u16,
    /// A bit a byte: which bytes were written, and which an asynchronous copy will still write.
    pub written: u16,
    pub pending: u16,
    /// Whether the last write was an atomic.
    pub atomic: bool,
    /// Whether other warps have read too since the last plain write.
    pub several: bool,
    /// Whether the cells of its words say more.
    pub split: bool,
}

/// A chunk that nobody has touched.
pub const FRESH_CHUNK: Chunk = Chunk {
    writer_lanes: 0,
    reader_lanes: 0,
    tick: 0,
    reader_tick: 0,
    writer: NOBODY,
    clock: 0,
    reader_warp: NOBODY,
    reader_clock: 0,
    written: 0,
    pending: 0,
    atomic: false,
    several: false,
    split: false,
};

/// Who touches a chunk: the warp's clock and tick, and what it knows of others.
#[derive(Clone, Copy)]
pub struct Toucher<'a> {
    warp: usize,
    now: u16,
    tick: u32,
    known: &'a [u16],
}

impl<'a> Toucher<'a> {
    #[inline(always)]
    pub fn new(warp: usize, clocks: &'a Clocks) -> Self {
        let known = clocks.of(warp);
        Self { warp, now: known[warp], tick: clocks.ticks[warp], known }
    }
}

impl Chunk {
    /// Checks and notes a touch of all of it while it is not split, but not of its bytes. `reads` is the row of reads of
    /// all chunks, of which the one at `index` is this chunk's.
    #[inline(always)]
    pub fn touch(
        &mut self,
        reads: &mut [u16],
        index: usize,
        lanes: u64,
        write: bool,
        atomic: bool,
        who: Toucher<'_>,
    ) -> Option<Collision> {
        let Toucher { warp, now, tick, known } = who;
        let mut out = None;
        if self.writer != NOBODY && !(atomic && self.atomic) {
            let other = usize::from(self.writer);
            if other == warp {
                if self.tick == tick && self.writer_lanes != lanes {
                    out = Some(Collision::Lanes(first_other(self.writer_lanes, lanes)));
                }
            } else if known[other] <= self.clock {
                out = Some(Collision::Warps(self.writer));
            }
        }
        let reader = usize::from(self.reader_warp);
        let own = reader == warp && self.reader_tick == tick && self.reader_clock == now;
        // The row learns of a reader when another takes its place.
        if self.reader_warp != NOBODY && (write || reader != warp) {
            reads[index * known.len() + reader] = self.reader_clock;
        }
        if !write {
            self.several |= self.reader_warp != NOBODY && reader != warp;
            let before = if own { self.reader_lanes } else { lanes };
            self.reader_lanes = lanes | differing_bytes(before ^ lanes);
            self.reader_warp = warp as u16;
            self.reader_clock = now;
            self.reader_tick = tick;
            return out;
        }
        if out.is_none() && self.reader_warp != NOBODY {
            // Reads before the last plain write came before that, and that before this.
            if self.several {
                out = unordered_read(&reads[index * known.len()..(index + 1) * known.len()], known, warp);
            } else if reader != warp && self.reader_clock >= known[reader] {
                out = Some(Collision::Warps(self.reader_warp));
            }
            if out.is_none() && own && self.reader_lanes != lanes {
                out = Some(Collision::Lanes(first_other(self.reader_lanes, lanes)));
            }
        }
        self.writer_lanes = lanes;
        self.writer = warp as u16;
        self.clock = now;
        self.tick = tick;
        self.atomic = atomic;
        // Atomics are in no order among each other, so that each must still come after the reads.
        if !atomic {
            self.reader_warp = NOBODY;
            self.several = false;
        }
        out
    }
}

/// Another warp that read and is not known to have done so before.
#[inline]
pub fn unordered_read(reads: &[u16], known: &[u16], warp: usize) -> Option<Collision> {
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
    other.map(|(other, _)| Collision::Warps(other as u16))
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
fn first_other(before: u64, lanes: u64) -> u16 {
    let byte = (before ^ lanes).trailing_zeros() / 8 * 8;
    (before >> byte) as u16 & 0xff
}
