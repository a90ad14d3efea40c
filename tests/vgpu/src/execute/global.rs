//! Accesses to global memory: bounds, alignment, what was written, races between blocks, sectors.

use super::access::{extent, is_stretch, lanes_of};
use super::block::Room;
use super::warp::{Next, Warp};
use crate::check::Check;
use crate::memory::{Allocation, CHUNK};
use crate::program::{Access, FULL, LANES};
use crate::shadow::Touch;

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
        let first = (addresses[0].wrapping_sub(allocation.base)) as usize;
        if first.is_multiple_of(CHUNK) && is_stretch(addresses, mask, bytes) {
            // Whole chunks one after the other, as most accesses are.
            out.count = LANES * bytes / CHUNK;
            for (index, piece) in out.found[..out.count].iter_mut().enumerate() {
                let (chunk, lane) = (first / CHUNK + index, index * CHUNK / bytes);
                *piece = (chunk as u64) << 24 | 0xffff << 8 | lane as u64;
            }
            return out;
        }
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

/// Writes what is not there already, as something that was written; gives the lanes whose bytes that were.
#[inline(always)]
fn write_changes<const N: usize>(
    allocation: &Allocation,
    addresses: &[u64; LANES],
    mask: u32,
    data: &[[u8; N]; LANES],
) -> u32 {
    let mut changing = 0;
    if !is_stretch(addresses, mask, N) || !allocation.is_written(addresses[0], LANES * N) {
        // Of lanes that write to one place, each comes after those before it.
        for lane in lanes_of(mask) {
            if !allocation.holds(addresses[lane], &data[lane]) {
                changing |= 1 << lane;
                allocation.write(addresses[lane], &data[lane]);
            }
        }
        return changing;
    }
    let mut before = [[0u8; N]; LANES];
    allocation.read(addresses[0], before.as_flattened_mut());
    for (lane, (before, data)) in before.iter().zip(data).enumerate() {
        changing |= u32::from(before != data) << lane;
    }
    if changing == FULL {
        allocation.write(addresses[0], data.as_flattened());
    } else {
        for lane in lanes_of(changing) {
            allocation.write(addresses[lane], &data[lane]);
        }
    }
    changing
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
        touch: Touch,
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
    pub(super) fn check_declared(
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
            room.counters.loads.count(addresses, mask, u64::from(mask.count_ones()) * N as u64);
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
        if is_stretch(addresses, mask, N) {
            allocation.read(addresses[0], data.as_flattened_mut());
        } else {
            for lane in lanes_of(mask) {
                allocation.read(addresses[lane], &mut data[lane]);
            }
        }
        if CHECKS && (strong || N > CHUNK) {
            for lane in lanes_of(mask) {
                self.check_read(room, me, at, lane, allocation, addresses[lane], N, strong);
            }
        } else if CHECKS {
            if room.watched {
                for lane in lanes_of(mask) {
                    self.before_wait(room, me, at, lane, allocation, addresses[lane], N, false);
                }
            }
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
        self.before_wait(room, me, at, lane, allocation, address, bytes, false);
        if strong && room.launch.synchronizes {
            room.knowledge.meet(&room.launch.releases, address, room.linear, false, || ());
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
            Some(allocation) if !CHECKS && is_stretch(addresses, mask, N) => {
                allocation.write(addresses[0], data.as_flattened());
                allocation.mark_written(addresses[0], LANES * N);
            }
            Some(allocation) if !CHECKS => {
                for lane in lanes_of(mask) {
                    allocation.write(addresses[lane], &data[lane]);
                    allocation.mark_written(addresses[lane], N);
                }
            }
            Some(allocation) if !access.strong && N <= CHUNK => {
                let changing = write_changes(allocation, addresses, mask, data);
                if room.watched || room.launch.settings.outputs.is_some() {
                    for lane in lanes_of(mask) {
                        let address = addresses[lane];
                        self.check_declared(room, me, at, lane, allocation, address, N);
                        self.before_wait(room, me, at, lane, allocation, address, N, true);
                    }
                }
                if changing != mask {
                    for (chunk, bits, _) in Pieces::new(allocation, addresses, mask & !changing, N).iter() {
                        let fresh = allocation.touch_unchanged_bits(chunk, bits, room.launch.memory.epoch);
                        room.counters.stores.unique_bytes += u64::from(fresh);
                    }
                }
                if changing != 0 {
                    let who = room.knowledge.toucher(room);
                    for (chunk, bits, lane) in Pieces::new(allocation, addresses, changing, N).iter() {
                        let touch = allocation.touch_bits(chunk, bits, true, false, who);
                        self.report_global(room, me, at, lane, allocation, (chunk, bits), true, touch);
                        allocation.mark_written_bits(chunk, bits);
                    }
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
            room.counters.stores.count(addresses, mask, u64::from(mask.count_ones()) * N as u64);
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
            self.before_wait(room, me, at, lane, allocation, address, N, true);
            if access.ordered && room.launch.synchronizes {
                room.knowledge.fence();
            }
            if access.strong && room.launch.synchronizes {
                room.knowledge.meet(&room.launch.releases, address, room.linear, true, || ());
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
}
