//! What loads, stores and atomics do in shared memory, under its checks.

use super::access::{covers, extent, lanes_of};
use super::block::Room;
use super::proxy::report_reuse;
use super::shared::{CHUNK, Collision, Finding, MANY_LANES, ONES, Touch};
use super::warp::{Next, Warp};
use crate::check::Check;
use crate::program::{LANES, Op};

/// One lane in every two bytes of a chunk: the lane itself for 16 bytes a lane, neighbours for less.
const fn pattern(bytes: usize) -> u64 {
    match bytes {
        2 => 0x0706_0504_0302_0100,
        4 => 0x0303_0202_0101_0000,
        8 => 0x0101_0101_0000_0000,
        _ => 0,
    }
}

/// Whole chunks that lanes read, put together by chunk: the chunk, its reader or [`MANY_LANES`], and the first of them.
struct Readers {
    /// Chunk, reader and first lane, packed: this is filled for every access, and tuples are slow to clear.
    found: [u64; LANES],
    count: usize,
    /// By the low bits of a chunk: where it may have been put, counted from 1.
    hints: [u8; LANES],
}

impl Readers {
    #[inline(always)]
    fn new(addresses: &[u64; LANES], mask: u32) -> Self {
        let mut out = Self { found: [0; LANES], count: 0, hints: [0; LANES] };
        for lane in lanes_of(mask) {
            out.add(addresses[lane] as usize / CHUNK, lane as u64);
        }
        out
    }

    /// A chunk that is put down twice only costs time.
    #[inline(always)]
    fn add(&mut self, chunk: usize, lane: u64) {
        let hint = &mut self.hints[chunk % LANES];
        if let Some(known) = usize::from(*hint).checked_sub(1)
            && self.found[known] >> 16 == chunk as u64
        {
            self.found[known] |= u64::from(MANY_LANES) << 8;
        } else {
            self.found[self.count] = (chunk as u64) << 16 | lane << 8 | lane;
            self.count += 1;
            *hint = self.count as u8;
        }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, u64, usize)> {
        let unpack = |&reader: &u64| ((reader >> 16) as usize, reader >> 8 & 0xff, reader as usize & 0xff);
        self.found[..self.count].iter().map(unpack)
    }
}

impl Warp {
    pub(super) fn read_shared<const CHECKS: bool, const N: usize>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        addresses: &[u64; LANES],
        mask: u32,
        data: &mut [[u8; N]; LANES],
    ) -> Next {
        let mut moved = [0; LANES];
        let Some(places) = self.shared_places(room, me, at, addresses, mask, N, &mut moved) else {
            return Next::Fault;
        };
        for lane in lanes_of(mask) {
            let place = places[lane] as usize;
            data[lane].copy_from_slice(&room.shared.data[place..place + N]);
        }
        if CHECKS {
            room.counters.shared_loads.count(addresses, mask, N);
            self.touch_shared_lanes(room, me, at, places, mask, N);
        }
        Next::Continue
    }

    /// Checks and notes a read of several lanes.
    pub(super) fn touch_shared_lanes(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) {
        let touch = Touch { write: false, atomic: false, warp: me };
        if bytes == CHUNK {
            for (chunk, reader, lane) in Readers::new(addresses, mask).iter() {
                let found = room.shared.touch_chunk(chunk, reader * ONES, touch, &room.clocks);
                self.report_shared(room, me, at, lane, chunk * CHUNK, CHUNK, false, found);
            }
            return;
        }
        let group = if matches!(bytes, 2 | 4 | 8) { CHUNK / bytes } else { 1 };
        let mut first = 0;
        let mut last = (u64::MAX, 0);
        while first < LANES {
            if group > 1 && covers(addresses, mask, first, bytes) {
                let (place, lanes) =
                    (addresses[first] as usize, pattern(bytes) + first as u64 * 0x0101_0101_0101_0101);
                let found = room.shared.touch_chunk(place / CHUNK, lanes, touch, &room.clocks);
                self.report_shared(room, me, at, first, place, CHUNK, false, found);
            } else {
                for lane in lanes_of(mask & (((1u64 << group) - 1) << first) as u32) {
                    // The second lane that reads the same says that there are several; more say nothing new.
                    last =
                        if last.0 == addresses[lane] { (last.0, last.1 + 1) } else { (addresses[lane], 0) };
                    if last.1 < 2 {
                        let place = addresses[lane] as usize;
                        let found = room.shared.touch(place, bytes, lane, touch, &room.clocks);
                        self.report_shared(room, me, at, lane, place, bytes, false, found);
                    }
                }
            }
            first += group;
        }
    }

    pub(super) fn write_shared<const CHECKS: bool, const N: usize>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        addresses: &[u64; LANES],
        mask: u32,
        data: &[[u8; N]; LANES],
    ) -> Next {
        let mut moved = [0; LANES];
        let Some(places) = self.shared_places(room, me, at, addresses, mask, N, &mut moved) else {
            return Next::Fault;
        };
        if CHECKS {
            room.counters.shared_stores.count(addresses, mask, N);
        }
        self.put_shared::<CHECKS, N>(room, me, at, places, mask, data);
        Next::Continue
    }

    /// Writes what lanes store at places that were found good, under the checks.
    pub(super) fn put_shared<const CHECKS: bool, const N: usize>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        addresses: &[u64; LANES],
        mask: u32,
        data: &[[u8; N]; LANES],
    ) {
        if !CHECKS {
            for lane in lanes_of(mask) {
                let place = addresses[lane] as usize;
                room.shared.data[place..place + N].copy_from_slice(&data[lane]);
            }
            return;
        }
        let touch = Touch { write: true, atomic: false, warp: me };
        let group = if matches!(N, 2 | 4 | 8) { CHUNK / N } else { 1 };
        let mut first = 0;
        while first < LANES {
            if group > 1 && covers(addresses, mask, first, N) {
                let place = addresses[first] as usize;
                let bytes = data[first..first + group].as_flattened();
                if !room.shared.holds(place, bytes) {
                    let lanes = pattern(N) + first as u64 * ONES;
                    let found = room.shared.touch_chunk(place / CHUNK, lanes, touch, &room.clocks);
                    self.report_shared(room, me, at, first, place, CHUNK, true, found);
                    self.note_store(room, me, at, first, place, CHUNK);
                    room.shared.data[place..place + CHUNK].copy_from_slice(bytes);
                }
            } else {
                for lane in lanes_of(mask & (((1u64 << group) - 1) << first) as u32) {
                    let place = addresses[lane] as usize;
                    if !room.shared.holds(place, &data[lane]) {
                        let found = room.shared.touch(place, N, lane, touch, &room.clocks);
                        self.report_shared(room, me, at, lane, place, N, true, found);
                        self.note_store(room, me, at, lane, place, N);
                        room.shared.data[place..place + N].copy_from_slice(&data[lane]);
                    }
                }
            }
            first += group;
        }
    }

    /// Where the bytes of all lanes lie in the shared memory of all blocks, put into `moved` unless that is where the
    /// addresses say; none, and a report, where one is not aligned or not inside.
    #[inline]
    pub(super) fn shared_places<'p>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        addresses: &'p [u64; LANES],
        mask: u32,
        bytes: usize,
        moved: &'p mut [u64; LANES],
    ) -> Option<&'p [u64; LANES]> {
        let (aligned, _, high) = extent(addresses, mask, bytes);
        let size = room.cluster.bytes as u64;
        if room.cluster.size == 1 && aligned && high <= size && bytes as u64 <= size - high {
            return Some(addresses);
        }
        for lane in lanes_of(mask) {
            moved[lane] = self.shared_place(room, me, at, lane, addresses[lane], bytes)? as u64;
        }
        Some(moved)
    }

    /// Where a lane's bytes lie in the shared memory of all blocks, or a report.
    #[inline(always)]
    pub(super) fn shared_place(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        address: u64,
        bytes: usize,
    ) -> Option<usize> {
        if !address.is_multiple_of(bytes as u64) {
            room.report(Check::Misaligned, at, me, lane, || {
                format!("an access of {bytes} bytes at shared offset {address}")
            });
            return None;
        }
        let place = room.locate_shared(me, at, lane, address, bytes)?;
        if room.cluster.split(address).0 != room.cluster.current {
            room.counters.peer_bytes += bytes as u64;
        }
        Some(place)
    }

    /// Checks and notes one lane's touch of shared memory.
    #[inline]
    pub(super) fn touch_shared(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        place: usize,
        bytes: usize,
        write: bool,
        atomic: bool,
    ) {
        let touch = Touch { write, atomic, warp: me };
        let found = if bytes == CHUNK && place.is_multiple_of(CHUNK) {
            room.shared.touch_chunk(place / CHUNK, lane as u64 * ONES, touch, &room.clocks)
        } else {
            room.shared.touch(place, bytes, lane, touch, &room.clocks)
        };
        self.report_shared(room, me, at, lane, place, bytes, write, found);
        if write {
            self.note_store(room, me, at, lane, place, bytes);
        }
    }

    /// Reports what a touch found wrong.
    #[inline(always)]
    pub(super) fn report_shared(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        place: usize,
        bytes: usize,
        write: bool,
        found: Finding,
    ) {
        if !found.is_clean() {
            report(room, me, at, lane, place, bytes, write, found);
        }
    }
}

#[cold]
fn report(
    room: &mut Room<'_>,
    me: usize,
    at: usize,
    lane: usize,
    place: usize,
    bytes: usize,
    write: bool,
    found: Finding,
) {
    let name = room.cluster.name(place);
    let (warps, all) = (room.cluster.warps.max(1), room.cluster.all_warps());
    if found.pending {
        room.report(Check::AsyncCopyNotAwaited, at, me, lane, || {
            format!("{bytes} bytes at {name} belong to an asynchronous copy that was not waited for")
        });
        // Who else touches them is beside the point.
        return;
    }
    // What a load brings shows its faults where somebody goes by it.
    if !write && matches!(room.launch.program.code[at].op, Op::Load(_) | Op::Matrix(_)) {
        room.unwritten |= found.unwritten;
    } else if found.unwritten {
        room.report(Check::UninitializedShared, at, me, lane, || format!("{bytes} bytes at {name}"));
    } else if found.hollow {
        room.report(Check::UninitializedRegister, at, me, lane, || {
            format!("{bytes} bytes at {name} hold a value that was never computed")
        });
    }
    let verb = if write { "writes" } else { "reads" };
    match found.collision {
        None => {}
        // What a product of a warpgroup may still read.
        Some(Collision::Warps(other)) if usize::from(other) >= all => {
            report_reuse(room, me, at, lane, place / CHUNK)
        }
        Some(Collision::Warps(other)) => room.report(Check::SharedRaceBetweenWarps, at, me, lane, || {
            format!(
                "{verb} {bytes} bytes at {name}; warp {} touched them with no barrier between",
                usize::from(other) % warps
            )
        }),
        Some(Collision::Lanes(other)) => room.report(Check::SharedRaceBetweenLanes, at, me, lane, || {
            let other = if other > 31 { "other lanes".to_string() } else { format!("lane {other}") };
            format!("{verb} {bytes} bytes at {name}; {other} touched them with no __syncwarp between")
        }),
    }
}
