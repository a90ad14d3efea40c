//! Who touched global memory during a launch: by chunk of 16 bytes while whole chunks are touched, else by word.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};

/// Bytes that one page of the shadow covers.
pub const PAGE: usize = 4096;
/// Bytes of a chunk: what the shadow keeps together where it can.
pub const CHUNK: usize = 16;

/// Who touched one word last during a launch, packed: epoch, block, clock, flags and bytes.
#[derive(Default)]
struct Word {
    writer: AtomicU64,
    reader: AtomicU64,
}

/// Who touched one chunk as a whole, packed likewise, and which of its bytes anybody touched.
#[derive(Default)]
struct Chunk {
    writer: AtomicU64,
    reader: AtomicU64,
    /// The epoch; whether words were read and written on their own; a bit for every byte written, and read.
    marks: AtomicU64,
}

/// The shadow of one page. Words are kept once one is touched on its own.
pub struct Page {
    chunks: Box<[Chunk]>,
    words: OnceLock<Box<[Word]>>,
    /// The epoch, and how many chunks several blocks have read in it: when all have been, further reads
    /// change nothing.
    read_by_many: AtomicU64,
    /// The last epoch in which anybody wrote here.
    written: AtomicU16,
}

impl Default for Page {
    fn default() -> Self {
        let chunks = (0..PAGE / CHUNK).map(|_| Chunk::default()).collect();
        let (read_by_many, written) = (AtomicU64::new(0), AtomicU16::new(0));
        Self { chunks, words: OnceLock::new(), read_by_many, written }
    }
}

impl Page {
    /// Whether a read can neither conflict nor change what is known.
    #[inline(always)]
    pub fn is_read_by_many(&self, epoch: u16) -> bool {
        self.read_by_many.load(Relaxed) == u64::from(epoch) << 48 | (PAGE / CHUNK) as u64
            && self.written.load(Relaxed) != epoch
    }

    fn count_read_by_many(&self, epoch: u16) {
        let start = u64::from(epoch) << 48;
        let next = |before: u64| Some(1 + if before >> 48 == u64::from(epoch) { before } else { start });
        // The closure always gives a value, so this cannot fail.
        let _ = self.read_by_many.fetch_update(Relaxed, Relaxed, next);
    }

    #[inline(always)]
    fn note_write(&self, epoch: u16) {
        if self.written.load(Relaxed) != epoch {
            self.written.store(epoch, Relaxed);
        }
    }

    /// Notes that a block reads or writes the bytes of a chunk that `bits` names, and tells of the first conflict.
    #[inline]
    pub fn touch(&self, chunk: usize, bits: u16, write: bool, atomic: bool, who: Toucher) -> Touch {
        if !write && !atomic && self.is_read_by_many(who.epoch) {
            return Touch::default();
        }
        if bits == u16::MAX && !atomic {
            self.touch_chunk(chunk, write, who)
        } else {
            self.touch_words(chunk, bits, write, atomic, who)
        }
    }

    /// Marks bytes of a chunk as written by nobody in particular; tells how many of them for the first time.
    #[inline(always)]
    pub fn mark_written(&self, chunk: usize, bits: u16, epoch: u16) -> u32 {
        self.chunks[chunk].mark(epoch, u64::from(bits) << 16)
    }

    /// The launches that last wrote and last read some bytes of a chunk; none where none did.
    pub fn last(&self, index: usize, bits: u16) -> (Option<u16>, Option<u16>) {
        let chunk = &self.chunks[index];
        let words = self.words.get().map(|words| &words[index * 4..index * 4 + 4]).unwrap_or_default();
        let touched = words.iter().enumerate().filter(|(part, _)| u64::from(bits) >> (4 * part) & 0xf != 0);
        let mine = |part: usize, entry: u64| {
            if u64::from(bits) >> (4 * part) & 0xf & entry != 0 { entry } else { 0 }
        };
        let entries = |part: usize, word: &Word| {
            (mine(part, word.writer.load(Relaxed)), mine(part, word.reader.load(Relaxed)))
        };
        let of_chunk = (chunk.writer.load(Relaxed), chunk.reader.load(Relaxed));
        let newest = |before: u64, entry: u64| before.max(entry >> 48);
        let (writer, reader) = touched
            .map(|(part, word)| entries(part, word))
            .chain([of_chunk])
            .fold((0, 0), |(writer, reader), of| (newest(writer, of.0), newest(reader, of.1)));
        let launch = |epoch: u64| (epoch != 0).then_some(epoch as u16);
        (launch(writer), launch(reader))
    }

    /// Forgets all touches.
    pub fn forget(&self) {
        self.read_by_many.store(0, Relaxed);
        self.written.store(0, Relaxed);
        for chunk in &self.chunks {
            for entry in [&chunk.writer, &chunk.reader, &chunk.marks] {
                entry.store(0, Relaxed);
            }
        }
        for word in self.words.get().into_iter().flatten() {
            word.writer.store(0, Relaxed);
            word.reader.store(0, Relaxed);
        }
    }

    /// A plain touch of a whole chunk.
    #[inline]
    fn touch_chunk(&self, index: usize, write: bool, who: Toucher) -> Touch {
        let chunk = &self.chunks[index];
        let epoch = u64::from(who.epoch) << 48;
        let marks = chunk.marks.load(Relaxed);
        let parts = PARTS_WRITTEN | if write { PARTS_READ } else { 0 };
        if marks >> 48 == u64::from(who.epoch) && marks & parts != 0 {
            return self.touch_words(index, u16::MAX, write, false, who);
        }
        let mut out = Touch::default();
        let stamp = epoch | u64::from(who.block) << 16 | u64::from(who.clock) << 8 | 0xf;
        let (writer, reader) = (chunk.writer.load(Relaxed), chunk.reader.load(Relaxed));
        out.conflict = conflict(writer, 0xf, false, who);
        out.fresh = chunk.mark(who.epoch, 0xffff << if write { 16 } else { 0 });
        if write {
            self.note_write(who.epoch);
            out.conflict = out.conflict.or(conflict(reader, 0xf, false, who));
            if writer != stamp {
                chunk.writer.store(stamp, Relaxed);
            }
        } else if reader != stamp {
            let now = reader >> 48 == u64::from(who.epoch);
            if now && reader & MANY == 0 && (reader >> 16) as u32 != who.block {
                let before = chunk.reader.swap(stamp | MANY, Relaxed);
                if before & MANY == 0 {
                    self.count_read_by_many(who.epoch);
                }
            } else if !now || reader & MANY == 0 {
                // Of many readers it does not matter which is named.
                chunk.reader.store(stamp, Relaxed);
            }
        }
        out
    }

    /// A touch of some bytes of a chunk, word by word.
    fn touch_words(&self, index: usize, bits: u16, write: bool, atomic: bool, who: Toucher) -> Touch {
        let chunk = &self.chunks[index];
        let words = self.words.get_or_init(|| (0..PAGE / 4).map(|_| Word::default()).collect());
        let marks = if write { u64::from(bits) << 16 | PARTS_WRITTEN } else { u64::from(bits) | PARTS_READ };
        let mut out = Touch { fresh: chunk.mark(who.epoch, marks), conflict: None };
        out.conflict = conflict(chunk.writer.load(Relaxed), 0xf, false, who);
        if write {
            self.note_write(who.epoch);
            out.conflict = out.conflict.or(conflict(chunk.reader.load(Relaxed), 0xf, false, who));
        }
        for (part, word) in words[index * 4..index * 4 + 4].iter().enumerate() {
            let mine = u64::from(bits) >> (4 * part) & 0xf;
            if mine != 0 {
                out.conflict = out.conflict.or(word.touch(mine, write, atomic, who));
            }
        }
        out
    }
}

const ATOMIC: u64 = 1 << 4;
const MANY: u64 = 1 << 5;
const PARTS_READ: u64 = 1 << 32;
const PARTS_WRITTEN: u64 = 1 << 33;

/// The identity of whoever touches memory during a launch.
#[derive(Clone, Copy, Debug)]
pub struct Toucher {
    /// Number of the launch, from 1 to 65535.
    pub epoch: u16,
    /// The block.
    pub block: u32,
    /// How many fences it has passed.
    pub clock: u8,
}

/// What a touch found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Touch {
    /// Bytes that the launch touched for the first time this way.
    pub fresh: u32,
    /// Another block (and its clock) that touched the same bytes, and whether there were many such.
    pub conflict: Option<(u32, u8, bool)>,
}

impl Chunk {
    /// Sets marks of an epoch, and tells how many of them were not set.
    #[inline(always)]
    fn mark(&self, epoch: u16, bits: u64) -> u32 {
        let mut before = self.marks.load(Relaxed);
        loop {
            let old = if before >> 48 == u64::from(epoch) { before } else { u64::from(epoch) << 48 };
            let new = old | bits;
            let fresh = (new & !old & 0xffff_ffff).count_ones();
            if new == before {
                return fresh;
            }
            match self.marks.compare_exchange_weak(before, new, Relaxed, Relaxed) {
                Ok(_) => return fresh,
                Err(now) => before = now,
            }
        }
    }
}

impl Word {
    /// Notes a touch of the bytes of a word that `mine` names, and tells of a conflict.
    #[inline]
    fn touch(&self, mine: u64, write: bool, atomic: bool, who: Toucher) -> Option<(u32, u8, bool)> {
        let stamp = u64::from(who.epoch) << 48 | u64::from(who.block) << 16 | u64::from(who.clock) << 8;
        let now = |entry: u64| entry >> 48 == u64::from(who.epoch);
        let block = |entry: u64| (entry >> 16) as u32;
        let (writer, reader) = (self.writer.load(Relaxed), self.reader.load(Relaxed));
        let mut out = conflict(writer, mine, atomic, who);
        if write {
            out = out.or(conflict(reader, mine, atomic, who));
            // Bytes of another block's write stay known only when they are not of this word.
            let kept = if now(writer) && block(writer) == who.block { writer & 0xf } else { 0 };
            let next = stamp | mine | kept | if atomic { ATOMIC } else { 0 };
            if next != writer {
                self.writer.store(next, Relaxed);
            }
        } else {
            let before = if now(reader) { reader & 0xf } else { 0 };
            let many = now(reader) && (block(reader) != who.block || reader & MANY != 0);
            let all_atomic = if atomic && (!now(reader) || reader & ATOMIC != 0) { ATOMIC } else { 0 };
            let next = stamp | mine | before | if many { MANY } else { 0 } | all_atomic;
            if next != reader {
                self.reader.store(next, Relaxed);
            }
        }
        out
    }
}

/// Whether an entry is of another block that touched some of the bytes in this launch: the block, its clock, and
/// whether there were many such.
#[inline(always)]
fn conflict(entry: u64, mine: u64, atomic: bool, who: Toucher) -> Option<(u32, u8, bool)> {
    let many = entry & MANY != 0;
    let clock = (entry >> 8) as u8;
    // An atomic is itself part of what it releases: whoever counted behind it comes after it.
    let clock = if entry & ATOMIC != 0 { clock.saturating_sub(1) } else { clock };
    (entry >> 48 == u64::from(who.epoch)
        && entry & mine != 0
        && (many || (entry >> 16) as u32 != who.block)
        && !(atomic && entry & ATOMIC != 0))
        .then_some(((entry >> 16) as u32, clock, many))
}
