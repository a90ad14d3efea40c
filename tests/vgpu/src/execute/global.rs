//! Accesses to global memory: bounds, alignment, what was written, races between blocks, sectors.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::access::{extent, lanes_of};
use super::banks::sectors;
use super::block::Room;
use super::warp::{Next, Warp};
use crate::check::Check;
use crate::memory::{Allocation, CHUNK, Toucher};
use crate::number::{BF16, F16, Rounding};
use crate::program::{Access, Atomic, AtomicKind, LANES, Op, Program};

/// Whether a kernel has anything by which blocks could order their accesses.
pub(super) fn synchronizes(program: &Program) -> bool {
    program.code.iter().any(|decoded| match &decoded.op {
        Op::Fence(wide) => *wide,
        Op::Atomic(atomic) => atomic.ordered,
        Op::Load(access) | Op::Store(access) => access.ordered,
        _ => false,
    })
}

/// By address: the blocks that released there, each with its clock, in order.
#[derive(Default)]
pub(crate) struct Releases {
    by_address: Mutex<HashMap<u64, Vec<(u32, u8)>>>,
    any: AtomicBool,
}

/// What a block knows of others: how much of which addresses' releases it has seen.
#[derive(Default)]
pub(super) struct Knowledge {
    clock: u8,
    seen: Vec<(u64, usize)>,
}

impl Knowledge {
    /// What the block did so far becomes part of its next release.
    pub fn fence(&mut self) {
        // A block that fences more often than can be told apart releases everything at once.
        self.clock = self.clock.saturating_add(1);
    }

    fn toucher(&self, room: &Room<'_>) -> Toucher {
        Toucher { epoch: room.launch.memory.epoch, block: room.linear, clock: self.clock }
    }

    fn meet(&mut self, releases: &Releases, address: u64, block: u32, releasing: bool) {
        if !releasing && !releases.any.load(Relaxed) {
            return;
        }
        let Ok(mut map) = releases.by_address.lock() else { return };
        let list = map.entry(address).or_default();
        if releasing && self.clock > 0 {
            releases.any.store(true, Relaxed);
            match list.last_mut() {
                Some(last) if last.0 == block => last.1 = self.clock,
                _ => list.push((block, self.clock)),
            }
        }
        let count = list.len();
        match self.seen.iter_mut().find(|(known, _)| *known == address) {
            Some((_, seen)) => *seen = count,
            None => self.seen.push((address, count)),
        }
    }

    /// Whether what another block did at a clock came before what this one does now.
    fn knows(&self, releases: &Releases, block: u32, clock: u8, many: bool) -> bool {
        if self.seen.is_empty() {
            return false;
        }
        // Of many readers only some are known by name; whoever synchronised at all is trusted with the rest.
        if many {
            return true;
        }
        let Ok(map) = releases.by_address.lock() else { return true };
        self.seen.iter().any(|(address, count)| {
            map.get(address).is_some_and(|list| {
                list[..(*count).min(list.len())]
                    .iter()
                    .any(|&(other, at)| other == block && (at > clock || at == u8::MAX))
            })
        })
    }
}

/// The bytes that lanes touch, put together by chunk: the chunk, a bit for each of its bytes, and the first lane.
/// To the check of races between blocks all lanes of a warp are one.
struct Pieces {
    /// Chunk, bits and lane, packed: this is filled for every access, and tuples are slow to clear.
    found: [u64; 2 * LANES],
    count: usize,
    /// By the low bits of a chunk: where it may have been put, counted from 1.
    hints: [u8; LANES],
}

impl Pieces {
    /// Of accesses that lie inside an allocation, of at most one chunk each.
    #[inline(always)]
    fn new(allocation: &Allocation, addresses: &[u64; LANES], mask: u32, bytes: usize) -> Self {
        let mut out = Self { found: [0; 2 * LANES], count: 0, hints: [0; LANES] };
        for lane in lanes_of(mask) {
            let offset = (addresses[lane] - allocation.base) as usize;
            // An allocation of the host's own may begin anywhere, and then an access may span two chunks.
            let bits = ((1u32 << bytes) - 1) << (offset % CHUNK);
            out.add(offset / CHUNK, bits as u16, lane);
            if bits >> CHUNK != 0 {
                out.add(offset / CHUNK + 1, (bits >> CHUNK) as u16, lane);
            }
        }
        out
    }

    /// A chunk that is put down twice only costs time.
    #[inline(always)]
    fn add(&mut self, chunk: usize, bits: u16, lane: usize) {
        let hint = &mut self.hints[chunk % LANES];
        if let Some(known) = usize::from(*hint).checked_sub(1)
            && self.found[known] >> 24 == chunk as u64
        {
            self.found[known] |= u64::from(bits) << 8;
        } else {
            self.found[self.count] = (chunk as u64) << 24 | u64::from(bits) << 8 | lane as u64;
            self.count += 1;
            *hint = self.count as u8;
        }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, u16, usize)> {
        let unpack = |&piece: &u64| ((piece >> 24) as usize, (piece >> 8) as u16, piece as usize & 0xff);
        self.found[..self.count].iter().map(unpack)
    }
}

impl Warp {
    /// The allocation that holds a lane's bytes, or a report.
    #[inline(always)]
    pub(super) fn locate<'m>(
        &self,
        room: &mut Room<'m>,
        me: usize,
        at: usize,
        lane: usize,
        address: u64,
        bytes: usize,
    ) -> Option<&'m Allocation> {
        let view = room.launch.memory;
        if let Some(allocation) = view.get(room.sites[at])
            && allocation.contains(address, bytes)
        {
            return Some(allocation);
        }
        match view.find(address, bytes) {
            Some(index) => {
                room.sites[at] = index;
                view.get(index)
            }
            None => {
                let (freed, detail) = view.explain(address, bytes);
                room.report(if freed { Check::Freed } else { Check::OutOfBounds }, at, me, lane, || detail);
                None
            }
        }
    }

    pub(super) fn misaligned(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        address: u64,
        bytes: usize,
    ) -> Next {
        room.report(Check::Misaligned, at, me, lane, || {
            format!(
                "an access of {bytes} bytes at 0x{address:x}, {} past a multiple of it",
                address % bytes as u64
            )
        });
        Next::Fault
    }

    /// Reports bytes that nobody ever wrote.
    #[inline(always)]
    pub(super) fn check_written(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        allocation: &Allocation,
        address: u64,
        bytes: usize,
    ) {
        if !allocation.is_written(address, bytes) {
            let offset = (address - allocation.base) as usize;
            self.report_unwritten(room, me, at, lane, allocation, offset, bytes);
        }
    }

    #[cold]
    fn report_unwritten(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        allocation: &Allocation,
        offset: usize,
        bytes: usize,
    ) {
        room.report(Check::UninitializedGlobal, at, me, lane, || {
            format!("{bytes} bytes at offset {offset} of an allocation of {} bytes", allocation.size)
        });
    }

    /// Checks and notes one touch of global memory.
    #[inline]
    pub(super) fn touch_global(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        allocation: &Allocation,
        address: u64,
        bytes: usize,
        write: bool,
        atomic: bool,
    ) {
        let who = room.knowledge.toucher(room);
        let touch = allocation.touch(address, bytes, write, atomic, who);
        let offset = (address - allocation.base) as usize;
        // Of what spans several chunks, the first is named.
        let bits = (((1u64 << bytes.min(CHUNK)) - 1) << (offset % CHUNK)) as u16;
        self.report_global(room, me, at, lane, allocation, (offset / CHUNK, bits), write, touch);
    }

    /// Counts what a touch of bytes of a chunk found fresh, and reports a race.
    #[inline(always)]
    fn report_global(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        allocation: &Allocation,
        (chunk, bits): (usize, u16),
        write: bool,
        touch: crate::memory::Touch,
    ) {
        let traffic = if write { &mut room.counters.stores } else { &mut room.counters.loads };
        traffic.unique_bytes += u64::from(touch.fresh);
        if let Some((block, clock, many)) = touch.conflict
            && !room.knowledge.knows(&room.launch.releases, block, clock, many)
        {
            let other = if many { "several blocks".to_string() } else { format!("block {block}") };
            let offset = chunk * CHUNK + bits.trailing_zeros() as usize;
            let own = room.linear;
            room.report(Check::GlobalRaceBetweenBlocks, at, me, lane, || {
                format!(
                    "{} {} bytes at offset {offset} of an allocation of {} bytes that {other} touched in the same \
                     launch (this is block {own})",
                    if write { "writes" } else { "reads" },
                    bits.count_ones(),
                    allocation.size,
                )
            });
        }
    }

    /// Reports a write outside the outputs that a test declared.
    #[inline(always)]
    fn check_declared(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        allocation: &Allocation,
        address: u64,
        bytes: usize,
    ) {
        let end = address + bytes as u64;
        if let Some(outputs) = &room.launch.settings.outputs
            && !outputs.iter().any(|(start, size)| address >= *start && end <= start + size)
        {
            let offset = address - allocation.base;
            room.report(Check::UndeclaredWrite, at, me, lane, || {
                format!(
                    "writes {bytes} bytes at offset {offset} of an allocation of {} bytes",
                    allocation.size
                )
            });
        }
    }

    /// The allocation that holds the bytes of all lanes, if one does and all are aligned.
    #[inline(always)]
    fn locate_all<'m>(
        &self,
        room: &mut Room<'m>,
        at: usize,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) -> Option<&'m Allocation> {
        let (aligned, low, high) = extent(addresses, mask, bytes);
        let span = (high - low) as usize + bytes;
        let view = room.launch.memory;
        if !aligned {
            return None;
        }
        match view.get(room.sites[at]) {
            Some(known) if known.contains(low, span) => Some(known),
            _ => {
                let index = view.find(low, span)?;
                room.sites[at] = index;
                view.get(index)
            }
        }
    }

    pub(super) fn read_global<const CHECKS: bool, const N: usize>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        strong: bool,
        addresses: &[u64; LANES],
        mask: u32,
        data: &mut [[u8; N]; LANES],
    ) -> Next {
        let outcome = self.fetch_global::<CHECKS, N>(room, me, at, strong, addresses, mask, data);
        if CHECKS {
            let traffic = &mut room.counters.loads;
            traffic.requests += 1;
            traffic.sectors += sectors(addresses, mask);
            traffic.bytes += u64::from(mask.count_ones()) * N as u64;
        }
        outcome
    }

    /// Reads under the checks, but counts no request.
    pub(super) fn fetch_global<const CHECKS: bool, const N: usize>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        strong: bool,
        addresses: &[u64; LANES],
        mask: u32,
        data: &mut [[u8; N]; LANES],
    ) -> Next {
        let Some(allocation) = self.locate_all(room, at, addresses, mask, N) else {
            // Lanes in several allocations, or a fault that one of them makes.
            for lane in lanes_of(mask) {
                let address = addresses[lane];
                if !address.is_multiple_of(N as u64) {
                    return self.misaligned(room, me, at, lane, address, N);
                }
                let Some(allocation) = self.locate(room, me, at, lane, address, N) else {
                    return Next::Fault;
                };
                allocation.read(address, &mut data[lane]);
                if CHECKS {
                    self.check_read(room, me, at, lane, allocation, address, N, strong);
                }
            }
            return Next::Continue;
        };
        for lane in lanes_of(mask) {
            allocation.read(addresses[lane], &mut data[lane]);
        }
        if CHECKS && (strong || N > CHUNK) {
            for lane in lanes_of(mask) {
                self.check_read(room, me, at, lane, allocation, addresses[lane], N, strong);
            }
        } else if CHECKS {
            let pieces = Pieces::new(allocation, addresses, mask, N);
            let who = room.knowledge.toucher(room);
            for (chunk, bits, lane) in pieces.iter() {
                if !allocation.is_written_bits(chunk, bits) {
                    let offset = chunk * CHUNK + bits.trailing_zeros() as usize;
                    self.report_unwritten(room, me, at, lane, allocation, offset, bits.count_ones() as usize);
                }
                let touch = allocation.touch_bits(chunk, bits, false, false, who);
                self.report_global(room, me, at, lane, allocation, (chunk, bits), false, touch);
            }
        }
        Next::Continue
    }

    fn check_read(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        allocation: &Allocation,
        address: u64,
        bytes: usize,
        strong: bool,
    ) {
        self.check_written(room, me, at, lane, allocation, address, bytes);
        if strong && room.launch.synchronizes {
            room.knowledge.meet(&room.launch.releases, address, room.linear, false);
        }
        self.touch_global(room, me, at, lane, allocation, address, bytes, false, strong);
    }

    pub(super) fn write_global<const CHECKS: bool, const N: usize>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        addresses: &[u64; LANES],
        mask: u32,
        data: &[[u8; N]; LANES],
    ) -> Next {
        let all = self.locate_all(room, at, addresses, mask, N);
        match all {
            Some(allocation) if !CHECKS => {
                for lane in lanes_of(mask) {
                    allocation.write(addresses[lane], &data[lane]);
                    allocation.mark_written(addresses[lane], N);
                }
            }
            Some(allocation) if !access.strong && N <= CHUNK => {
                let mut changing = 0;
                for lane in lanes_of(mask) {
                    let address = addresses[lane];
                    if allocation.holds(address, &data[lane]) {
                        let fresh = allocation.touch_unchanged(address, N, room.launch.memory.epoch);
                        room.counters.stores.unique_bytes += u64::from(fresh);
                    } else {
                        changing |= 1 << lane;
                        allocation.write(address, &data[lane]);
                    }
                    self.check_declared(room, me, at, lane, allocation, address, N);
                }
                let who = room.knowledge.toucher(room);
                for (chunk, bits, lane) in Pieces::new(allocation, addresses, changing, N).iter() {
                    let touch = allocation.touch_bits(chunk, bits, true, false, who);
                    self.report_global(room, me, at, lane, allocation, (chunk, bits), true, touch);
                    allocation.mark_written_bits(chunk, bits);
                }
            }
            _ => {
                for lane in lanes_of(mask) {
                    let address = addresses[lane];
                    if !address.is_multiple_of(N as u64) {
                        return self.misaligned(room, me, at, lane, address, N);
                    }
                    let Some(allocation) = self.locate(room, me, at, lane, address, N) else {
                        return Next::Fault;
                    };
                    self.put::<CHECKS, N>(room, me, at, lane, access, allocation, address, &data[lane]);
                }
            }
        }
        if CHECKS {
            let traffic = &mut room.counters.stores;
            traffic.requests += 1;
            traffic.sectors += sectors(addresses, mask);
            traffic.bytes += u64::from(mask.count_ones()) * N as u64;
        }
        Next::Continue
    }

    /// Writes `N` bytes under the checks.
    #[inline(always)]
    fn put<const CHECKS: bool, const N: usize>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        access: &Access,
        allocation: &Allocation,
        address: u64,
        bytes: &[u8],
    ) {
        if CHECKS {
            if access.ordered && room.launch.synchronizes {
                room.knowledge.fence();
            }
            if access.strong && room.launch.synchronizes {
                room.knowledge.meet(&room.launch.releases, address, room.linear, true);
            }
            // Whoever writes what is there already harms nobody, in whatever order.
            if !access.strong && allocation.holds(address, bytes) {
                let fresh = allocation.touch_unchanged(address, N, room.launch.memory.epoch);
                room.counters.stores.unique_bytes += u64::from(fresh);
            } else {
                self.touch_global(room, me, at, lane, allocation, address, N, true, access.strong);
            }
            self.check_declared(room, me, at, lane, allocation, address, N);
        }
        allocation.write(address, bytes);
        allocation.mark_written(address, N);
    }

    pub(super) fn atomic_global<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Atomic,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Next {
        let count = op.operands.len();
        for lane in lanes_of(mask) {
            let total = op.size * count;
            if !addresses[lane].is_multiple_of(total as u64) {
                return self.misaligned(room, me, at, lane, addresses[lane], total);
            }
            for element in 0..count {
                let address = addresses[lane] + (element * op.size) as u64;
                let Some(allocation) = self.locate(room, me, at, lane, address, op.size) else {
                    return Next::Fault;
                };
                if CHECKS {
                    room.counters.global_atomics += 1;
                    if !allocation.is_written(address, op.size) && op.kind != AtomicKind::Exchange {
                        room.report(Check::UninitializedGlobal, at, me, lane, || {
                            format!("an atomic on memory that was never written, at 0x{address:x}")
                        });
                    }
                    if room.launch.synchronizes {
                        if op.ordered {
                            room.knowledge.fence();
                        }
                        room.knowledge.meet(&room.launch.releases, address, room.linear, true);
                    }
                    self.touch_global(room, me, at, lane, allocation, address, op.size, true, true);
                    self.check_declared(room, me, at, lane, allocation, address, op.size);
                }
                let (operand, swap) = self.atomic_operands(op, lane, element);
                let old = if op.size == 8 {
                    let Some(cell) = allocation.atomic_long(address) else { return Next::Fault };
                    let mut old = cell.load(Relaxed);
                    while let Err(now) = cell.compare_exchange_weak(
                        old,
                        combine(op.kind, 8, old, operand, swap),
                        Relaxed,
                        Relaxed,
                    ) {
                        old = now;
                    }
                    old
                } else {
                    // Halves share a word with their neighbours.
                    let shift = (address % 4) * 8;
                    let keep = if op.size == 4 { 0 } else { !(0xffffu32 << shift) };
                    let Some(cell) = allocation.atomic_word(address & !3) else { return Next::Fault };
                    let mut word = cell.load(Relaxed);
                    loop {
                        let old = u64::from((word & !keep) >> shift);
                        let new = (combine(op.kind, op.size, old, operand, swap) as u32) << shift;
                        match cell.compare_exchange_weak(
                            word,
                            (word & keep) | (new & !keep),
                            Relaxed,
                            Relaxed,
                        ) {
                            Ok(_) => break old,
                            Err(now) => word = now,
                        }
                    }
                };
                allocation.mark_written(address, op.size);
                self.atomic_result(op, lane, element, old);
            }
        }
        if CHECKS {
            let traffic = &mut room.counters.stores;
            traffic.requests += 1;
            traffic.sectors += sectors(addresses, mask);
            traffic.bytes += u64::from(mask.count_ones()) * (op.size * count) as u64;
        }
        Next::Continue
    }

    pub(super) fn atomic_operands(&self, op: &Atomic, lane: usize, element: usize) -> (u64, u64) {
        let get = |slot: u32| {
            if op.size == 8 {
                self.registers.longs[slot as usize].0[lane]
            } else {
                u64::from(self.registers.words[slot as usize].0[lane])
            }
        };
        (get(op.operands[element]), op.swap.map_or(0, get))
    }

    pub(super) fn atomic_result(&mut self, op: &Atomic, lane: usize, element: usize, old: u64) {
        if let Some(&slot) = op.destinations.get(element) {
            if op.size == 8 {
                self.registers.longs[slot as usize].0[lane] = old;
            } else {
                self.registers.words[slot as usize].0[lane] = old as u32;
            }
        }
    }
}

/// What an atomic leaves behind.
pub(super) fn combine(kind: AtomicKind, size: usize, old: u64, operand: u64, swap: u64) -> u64 {
    let extend = |value: u64| if size == 8 { value as i64 } else { i64::from(value as u32 as i32) };
    let limit = if size == 8 { u64::MAX } else { u64::from(u32::MAX) };
    let single = |value: u64| f32::from_bits(value as u32);
    let narrow = |format: crate::number::Format, a: u64, b: u64| {
        let sum = format.decode(a as u32 & 0xffff) + format.decode(b as u32 & 0xffff);
        u64::from(format.encode(sum, Rounding::Nearest, false))
    };
    let pair = |format| narrow(format, old, operand) | narrow(format, old >> 16, operand >> 16) << 16;
    let value = match kind {
        AtomicKind::Add => old.wrapping_add(operand),
        AtomicKind::AddSingle => u64::from((single(old) + single(operand)).to_bits()),
        AtomicKind::AddDouble => (f64::from_bits(old) + f64::from_bits(operand)).to_bits(),
        AtomicKind::AddHalf => narrow(F16, old, operand),
        AtomicKind::AddBrain => narrow(BF16, old, operand),
        AtomicKind::AddHalfPair => pair(F16),
        AtomicKind::AddBrainPair => pair(BF16),
        AtomicKind::MinSigned => extend(old).min(extend(operand)) as u64,
        AtomicKind::MaxSigned => extend(old).max(extend(operand)) as u64,
        AtomicKind::MinUnsigned => old.min(operand),
        AtomicKind::MaxUnsigned => old.max(operand),
        AtomicKind::And => old & operand,
        AtomicKind::Or => old | operand,
        AtomicKind::Xor => old ^ operand,
        AtomicKind::Exchange => operand,
        AtomicKind::CompareSwap => {
            let same = if size == 2 { old & 0xffff == operand & 0xffff } else { old == operand };
            if same { swap } else { old }
        }
        AtomicKind::Increment => {
            if old >= operand {
                0
            } else {
                old + 1
            }
        }
        AtomicKind::Decrement => {
            if old == 0 || old > operand {
                operand
            } else {
                old - 1
            }
        }
    };
    value & limit
}
