//! Bulk copies: stretches and boxes of tensors between global and shared memory, and within a cluster.
//!
//! What comes into shared memory is read when the copy is issued and lands when somebody waits for its barrier; until then the
//! bytes are awaited. What goes to global memory is read when the copy is issued and written when its group is waited for.

use std::sync::Arc;

use super::access::lanes_of;
use super::block::Room;
use super::copies::strip;
use super::gate::Landing;
use super::proxy::{report_reuse, report_unfenced};
use super::shared::{CHUNK, Touch};
use super::warp::{Next, Warp, space_of};
use crate::check::{Check, Report};
use crate::program::{Address, BulkCopy, BulkWay, LANES, PARAMETER_WINDOW, TensorCopy};
use crate::ptx::Space;
use crate::tensor_map::{MAP_BYTES, Swizzle, TensorMap};

/// A bulk copy to global memory of one lane that its group has not been waited for.
pub(super) struct Outgoing {
    lane: usize,
    group: u32,
    /// The chunks that it may still read; none once that was waited for.
    source: Option<std::ops::Range<usize>>,
    writes: Vec<(u64, Vec<u8>)>,
    at: usize,
}

/// What comes into shared memory.
struct Incoming {
    data: Arc<Vec<u8>>,
    unwritten: Arc<[u32]>,
    layout: Option<Swizzle>,
}

impl Warp {
    pub(super) fn bulk_copy(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &BulkCopy,
        mask: u32,
    ) -> Next {
        let (to, from) = (self.addresses(&op.to), self.addresses(&op.from));
        for lane in lanes_of(mask) {
            let size = self.registers.words[op.size as usize].0[lane] as usize;
            if !size.is_multiple_of(16) || to[lane] % 16 != 0 || from[lane] % 16 != 0 {
                room.report(Check::Misaligned, at, me, lane, || {
                    format!(
                        "a bulk copy of {size} bytes from 0x{:x} to 0x{:x}; all must be multiples of 16",
                        from[lane], to[lane]
                    )
                });
                return Next::Fault;
            }
            if size == 0 {
                room.report(Check::OutOfBounds, at, me, lane, || "a bulk copy of nothing".to_string());
                return Next::Fault;
            }
            let done = match op.way {
                BulkWay::ToGlobal => self.send(room, me, at, lane, strip(from[lane]), to[lane], size),
                BulkWay::ToShared => {
                    let Some(data) = self.fetch(room, me, at, lane, from[lane], size) else {
                        return Next::Fault;
                    };
                    let incoming = Incoming { data: Arc::new(data), unwritten: Arc::new([]), layout: None };
                    self.deliver(
                        room,
                        me,
                        at,
                        lane,
                        strip(to[lane]),
                        op.barrier.as_ref(),
                        op.blocks,
                        &incoming,
                    )
                }
                BulkWay::ToPeer => {
                    let Some(place) = room.locate_shared(me, at, lane, strip(from[lane]), size) else {
                        return Next::Fault;
                    };
                    self.read_async(room, me, at, lane, place, size);
                    let data = Arc::new(room.shared.data[place..place + size].to_vec());
                    room.counters.peer_bytes += size as u64;
                    let incoming = Incoming { data, unwritten: Arc::new([]), layout: None };
                    self.deliver(
                        room,
                        me,
                        at,
                        lane,
                        strip(to[lane]),
                        op.barrier.as_ref(),
                        op.blocks,
                        &incoming,
                    )
                }
            };
            if done.is_none() {
                return Next::Fault;
            }
        }
        Next::Continue
    }

    pub(super) fn tensor_copy(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &TensorCopy,
        mask: u32,
    ) -> Next {
        let (maps, shared) = (self.addresses(&op.map), self.addresses(&op.shared).map(strip));
        for lane in lanes_of(mask) {
            let Some(map) = self.tensor_map(room, me, at, lane, maps[lane]) else { return Next::Fault };
            if map.rank != op.coordinates.len() {
                let (rank, given) = (map.rank, op.coordinates.len());
                room.report(Check::TensorMap, at, me, lane, || {
                    format!("{given} coordinates for a tensor of {rank} dimensions")
                });
                return Next::Fault;
            }
            let words = |slot: &u32| i64::from(self.registers.words[*slot as usize].0[lane] as i32);
            let coordinates: Vec<i64> = op.coordinates.iter().map(words).collect();
            self.note_box(room, me, at, lane, &map, &coordinates);
            let Some(way) = op.way else { continue };
            // Boxes begin on 128 bytes; a permuted one is laid out by the bits of its address.
            if !shared[lane].is_multiple_of(128) {
                room.report(Check::Misaligned, at, me, lane, || {
                    format!("a box at shared address {}, which is no multiple of 128", shared[lane])
                });
                return Next::Fault;
            }
            if map.swizzle != Swizzle::None && map.inner_bytes() != map.swizzle.span() {
                room.report(Check::TensorMap, at, me, lane, || {
                    format!(
                        "rows of {} bytes under {} are not modelled: rows must fill the span",
                        map.inner_bytes(),
                        map.swizzle.name()
                    )
                });
                return Next::Fault;
            }
            let done = if way == BulkWay::ToGlobal {
                self.send_box(room, me, at, lane, &map, &coordinates, shared[lane])
            } else {
                self.fetch_box(room, me, at, lane, &map, &coordinates, shared[lane]).and_then(|incoming| {
                    self.deliver(room, me, at, lane, shared[lane], op.barrier.as_ref(), op.blocks, &incoming)
                })
            };
            if done.is_none() {
                return Next::Fault;
            }
        }
        Next::Continue
    }

    /// The tensor map at an address, or a report.
    fn tensor_map(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        address: u64,
    ) -> Option<TensorMap> {
        let mut bytes = [0u8; MAP_BYTES];
        let wrong = |room: &mut Room<'_>, what: String| {
            room.report(Check::TensorMap, at, me, lane, || what);
            None
        };
        if !address.is_multiple_of(64) {
            return wrong(room, format!("a tensor map at 0x{address:x}, which is no multiple of 64"));
        }
        match space_of(address) {
            Space::Parameter => {
                let start = (address - PARAMETER_WINDOW) as usize;
                match room.launch.arguments.get(start..start + MAP_BYTES) {
                    Some(found) => bytes.copy_from_slice(found),
                    None => {
                        return wrong(
                            room,
                            format!("a tensor map at offset {start} of the arguments, which are fewer"),
                        );
                    }
                }
            }
            Space::Global => {
                let allocation = self.locate(room, me, at, lane, address, MAP_BYTES)?;
                allocation.read(address, &mut bytes);
            }
            _ => {
                return wrong(
                    room,
                    "a tensor map in local or shared memory; it must be a __grid_constant__ parameter, a constant or in global memory".to_string(),
                );
            }
        }
        match TensorMap::decode(&bytes) {
            Some(map) => Some(map),
            None => wrong(room, "what lies there was not made by cuTensorMapEncodeTiled".to_string()),
        }
    }

    /// Keeps in mind whether a box meets its tensor.
    fn note_box(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        map: &TensorMap,
        coordinates: &[i64],
    ) {
        if !room.launch.settings.checks || room.launch.settings.sample_blocks.is_some() {
            return;
        }
        let inside = (0..map.rank).all(|axis| {
            let reach = i64::from(map.boxes[axis] - 1) * i64::from(map.steps[axis]);
            coordinates[axis] < map.dimensions[axis] as i64 && coordinates[axis] + reach >= 0
        });
        let detail = || {
            format!(
                "no box of this copy meets its tensor of {:?} elements; one was at {coordinates:?} (innermost first)",
                &map.dimensions[..map.rank]
            )
        };
        if !room.log.note_box(at, inside) {
            let report: Report = room.describe(Check::TensorMap, at, me, lane, detail);
            room.log.add_box(at, inside, report);
        }
    }

    /// Bytes of global memory, under the checks.
    fn fetch(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        from: u64,
        size: usize,
    ) -> Option<Vec<u8>> {
        let allocation = self.locate(room, me, at, lane, from, size)?;
        let mut data = room.spare.pop().unwrap_or_default();
        data.resize(size, 0);
        allocation.read(from, &mut data);
        if room.launch.settings.checks {
            self.check_written(room, me, at, lane, allocation, from, size);
            self.before_wait(room, me, at, lane, allocation, from, size, false);
            self.touch_global(room, me, at, lane, allocation, from, size, false, false);
        }
        let loads = &mut room.counters.loads;
        loads.requests += 1;
        loads.bytes += size as u64;
        loads.sectors += (size as u64).div_ceil(32);
        room.counters.bulk_in_bytes += size as u64;
        Some(data)
    }

    /// A box of a tensor as it will lie in shared memory.
    fn fetch_box(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        map: &TensorMap,
        coordinates: &[i64],
        shared: u64,
    ) -> Option<Incoming> {
        let (inner, rows, element) = (map.inner_bytes(), map.rows(), map.element);
        let mut data = room.spare.pop().unwrap_or_default();
        data.resize(inner * rows, 0);
        let mut unwritten = Vec::new();
        let mut bytes = vec![0; inner];
        let checks = room.launch.settings.checks;
        let (mut sectors, mut moved) = (0, 0);
        for row in 0..rows {
            let start = row * inner;
            // All pieces of a row change places alike: where any do, the row is a span.
            let turn = (map.swizzle.place(shared + start as u64) - shared) as usize ^ start;
            let place = |index: usize| (start + index * CHUNK) ^ turn;
            let Some((address, columns)) = map.row(coordinates, row) else {
                fill_outside(&mut data[start..start + inner], map);
                continue;
            };
            let (first, size) = (columns.start * element, columns.len() * element);
            let allocation = self.locate(room, me, at, lane, address, size)?;
            if size == inner && turn == 0 {
                allocation.read(address, &mut data[start..start + inner]);
            } else {
                if size < inner {
                    fill_outside(&mut bytes, map);
                }
                // In one piece: memory that is far away comes sooner so.
                allocation.read(address, &mut bytes[first..first + size]);
                for (index, piece) in bytes.as_chunks::<CHUNK>().0.iter().enumerate() {
                    data[place(index)..][..CHUNK].copy_from_slice(piece);
                }
            }
            if checks {
                if !allocation.is_written(address, size) {
                    let unknown = |index: &usize| !is_piece_written(room, address, &columns, element, *index);
                    let unknown = (0..inner / CHUNK).filter(unknown);
                    unwritten.extend(unknown.map(|index| (place(index) / CHUNK) as u32));
                }
                self.before_wait(room, me, at, lane, allocation, address, size, false);
                self.touch_global(room, me, at, lane, allocation, address, size, false, false);
            }
            sectors += (address + size as u64 - 1) / 32 - address / 32 + 1;
            moved += size as u64;
        }
        let loads = &mut room.counters.loads;
        loads.requests += 1;
        loads.bytes += moved;
        loads.sectors += sectors;
        room.counters.bulk_in_bytes += moved;
        Some(Incoming { data: Arc::new(data), unwritten: unwritten.into(), layout: Some(map.swizzle) })
    }

    /// Sends bytes on their way into the shared memory of one block or several.
    fn deliver(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        to: u64,
        barrier: Option<&Address>,
        blocks: Option<u32>,
        incoming: &Incoming,
    ) -> Option<()> {
        let gate = barrier.map(|barrier| strip(self.addresses(barrier)[lane]))?;
        let size = incoming.data.len();
        let mut pool = Vec::new();
        let mut targets = vec![(to, gate)];
        if let Some(slot) = blocks {
            // The same offsets in every block that the mask names.
            let mask = self.registers.words[slot as usize].0[lane] & 0xffff;
            let there = |address: u64, block: u64| (address & 0xff_ffff) | (block + 1) << 24;
            targets = (0..16u64)
                .filter(|block| mask >> block & 1 != 0)
                .map(|block| (there(to, block), there(gate, block)))
                .collect();
            room.counters.multicast_bytes += size as u64 * (targets.len() as u64).saturating_sub(1);
        }
        let mut landings = Vec::new();
        for (to, gate) in targets {
            let place = room.locate_shared(me, at, lane, to, size)?;
            let gate = room.locate_shared(me, at, lane, gate, 8)?;
            if room.launch.settings.checks {
                let chunks = place / CHUNK..(place + size) / CHUNK;
                let found = room.shared.await_copy(chunks.clone(), lane, me, &room.clocks);
                self.report_shared(room, me, at, lane, place, size, true, found);
                let reused = room.proxies.as_mut().and_then(|proxies| proxies.fill(chunks, incoming.layout));
                if let Some(chunk) = reused {
                    report_reuse(room, me, at, lane, chunk);
                }
            }
            room.shared.data[place..place + size].fill(0xff);
            let phase = room.gate(me, at, lane, gate, true)?.phase();
            landings.push((place, gate, phase));
        }
        room.clocks.give(me, &mut pool);
        let time = self.landing_time(size);
        for (to, gate, phase) in landings {
            let landing = Landing {
                to,
                data: incoming.data.clone(),
                unwritten: incoming.unwritten.clone(),
                issuer: (me, at, lane),
                time,
                pool: pool.clone(),
                phase,
            };
            room.gates.get_mut(&gate)?.land_later(landing);
        }
        room.progress += 1;
        Some(())
    }

    /// Checks and notes a read of shared memory by the asynchronous proxy.
    fn read_async(&self, room: &mut Room<'_>, me: usize, at: usize, lane: usize, place: usize, size: usize) {
        if !room.launch.settings.checks {
            return;
        }
        let touch = Touch { write: false, atomic: false, warp: me };
        let found = room.shared.touch(place, size, lane, touch, &room.clocks);
        self.report_shared(room, me, at, lane, place, size, false, found);
        let Some(proxies) = &room.proxies else { return };
        let wrong = (place / CHUNK..(place + size).div_ceil(CHUNK))
            .find_map(|chunk| proxies.check(chunk, me, &room.clocks).map(|unfenced| (chunk, unfenced)));
        if let Some((chunk, unfenced)) = wrong {
            report_unfenced(room, me, at, lane, chunk, unfenced);
        }
    }

    fn send(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        from: u64,
        to: u64,
        size: usize,
    ) -> Option<()> {
        let place = room.locate_shared(me, at, lane, from, size)?;
        self.read_async(room, me, at, lane, place, size);
        let data = room.shared.data[place..place + size].to_vec();
        self.aim(room, me, at, lane, to, size)?;
        self.depart(room, at, lane, place, size, vec![(to, data)]);
        Some(())
    }

    fn send_box(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        map: &TensorMap,
        coordinates: &[i64],
        shared: u64,
    ) -> Option<()> {
        let (inner, size) = (map.inner_bytes(), map.box_bytes());
        let place = room.locate_shared(me, at, lane, shared, size)?;
        self.read_async(room, me, at, lane, place, size);
        let mut writes = Vec::new();
        for row in 0..map.rows() {
            let Some((address, columns)) = map.row(coordinates, row) else { continue };
            let mut bytes = Vec::with_capacity(inner);
            for index in 0..inner / CHUNK {
                let from = map.swizzle.place(shared + (row * inner + index * CHUNK) as u64) - shared;
                let from = place + from as usize;
                bytes.extend_from_slice(&room.shared.data[from..from + CHUNK]);
            }
            let bytes = bytes[columns.start * map.element..columns.end * map.element].to_vec();
            self.aim(room, me, at, lane, address, bytes.len())?;
            writes.push((address, bytes));
        }
        self.depart(room, at, lane, place, size, writes);
        Some(())
    }

    /// Checks and notes that a bulk copy will write to global memory.
    fn aim(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        to: u64,
        size: usize,
    ) -> Option<()> {
        let allocation = self.locate(room, me, at, lane, to, size)?;
        if room.launch.settings.checks {
            self.before_wait(room, me, at, lane, allocation, to, size, true);
            self.touch_global(room, me, at, lane, allocation, to, size, true, false);
            self.check_declared(room, me, at, lane, allocation, to, size);
        }
        let stores = &mut room.counters.stores;
        stores.requests += 1;
        stores.bytes += size as u64;
        stores.sectors += (size as u64).div_ceil(32);
        room.counters.bulk_out_bytes += size as u64;
        Some(())
    }

    fn depart(
        &mut self,
        room: &mut Room<'_>,
        at: usize,
        lane: usize,
        place: usize,
        size: usize,
        writes: Vec<(u64, Vec<u8>)>,
    ) {
        let chunks = place / CHUNK..(place + size).div_ceil(CHUNK);
        if let Some(proxies) = &mut room.proxies {
            chunks.clone().for_each(|chunk| proxies.begin_read(chunk));
        }
        let group = self.bulk_groups[lane];
        self.outgoing.push(Outgoing { lane, group, source: Some(chunks), writes, at });
    }

    /// `cp.async.bulk.commit_group`.
    pub(super) fn bulk_commit(&mut self, mask: u32) {
        for lane in 0..LANES {
            self.bulk_groups[lane] += mask >> lane & 1;
        }
    }

    /// `cp.async.bulk.wait_group`: all but the last `leave` groups are done, or at least read their sources.
    pub(super) fn bulk_wait(&mut self, room: &mut Room<'_>, leave: u32, sources: bool, mask: u32) {
        let groups = self.bulk_groups;
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.retain_mut(|one| {
            let due = mask >> one.lane & 1 != 0 && one.group.saturating_add(leave) < groups[one.lane];
            if due {
                one.release(room);
            }
            if due && !sources {
                one.arrive(room);
            }
            !due || sources
        });
        self.outgoing = outgoing;
    }

    /// What is still under way when lanes end arrives, and a source that nobody waited for is reported.
    pub(super) fn end_bulk(&mut self, room: &mut Room<'_>, me: usize, mask: u32) {
        for mut one in std::mem::take(&mut self.outgoing) {
            if mask >> one.lane & 1 == 0 {
                self.outgoing.push(one);
                continue;
            }
            if one.source.is_some() {
                room.report(Check::AsyncCopyNotAwaited, one.at, me, one.lane, || {
                    "the thread ends before it has waited for this bulk store to read its source: the block's shared memory may be gone".to_string()
                });
            }
            one.release(room);
            one.arrive(room);
        }
    }
}

impl Outgoing {
    fn release(&mut self, room: &mut Room<'_>) {
        if let (Some(chunks), Some(proxies)) = (self.source.take(), &mut room.proxies) {
            chunks.for_each(|chunk| proxies.end_read(chunk));
        }
    }

    fn arrive(&mut self, room: &Room<'_>) {
        for (address, bytes) in self.writes.drain(..) {
            let view = room.launch.memory;
            if let Some(allocation) = view.find(address, bytes.len()).and_then(|index| view.get(index)) {
                allocation.write(address, &bytes);
                allocation.mark_written(address, bytes.len());
            }
        }
    }
}

/// Fills a row of a box with what lies outside of its tensor.
fn fill_outside(row: &mut [u8], map: &TensorMap) {
    row.chunks_mut(map.element).for_each(|into| into.copy_from_slice(&map.outside[..into.len()]));
}

/// Whether the bytes of a 16-byte piece of a row that lie inside the tensor were ever written.
fn is_piece_written(
    room: &Room<'_>,
    address: u64,
    columns: &std::ops::Range<usize>,
    element: usize,
    index: usize,
) -> bool {
    let (start, end) = (index * CHUNK, (index + 1) * CHUNK);
    let (first, last) = (columns.start * element, columns.end * element);
    let (from, to) = (start.max(first), end.min(last));
    if from >= to {
        return true;
    }
    let view = room.launch.memory;
    let place = address + (from - first) as u64;
    view.find(place, to - from)
        .and_then(|index| view.get(index))
        .is_some_and(|allocation| allocation.is_written(place, to - from))
}
