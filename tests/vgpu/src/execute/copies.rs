//! Asynchronous copies into and out of shared memory: `cp.async`, and bulk copies that an mbarrier counts.

use super::access::lanes_of;
use super::block::{Landing, Room};
use super::shared::Touch;
use super::warp::{Next, Warp, space_of};
use crate::check::Check;
use crate::program::{AsyncCopy, BulkCopy, LANES, SHARED_WINDOW};
use crate::ptx::Space;

/// A `cp.async` of some lanes that has not landed.
#[derive(Clone, Debug)]
pub(super) struct PendingCopy {
    /// The lanes whose part has not landed.
    lanes: u32,
    size: usize,
    to: [u32; LANES],
    data: [[u8; 16]; LANES],
    group: [u32; LANES],
    /// Whether all lanes have the same group.
    uniform: bool,
}

/// An address without the window of shared memory.
fn strip(address: u64) -> u64 {
    if space_of(address) == Space::Shared { address - SHARED_WINDOW } else { address }
}

impl Warp {
    pub(super) fn async_copy<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &AsyncCopy,
        mask: u32,
    ) -> Next {
        match op.size {
            4 => self.async_copy_sized::<CHECKS, 4>(room, me, at, op, mask),
            8 => self.async_copy_sized::<CHECKS, 8>(room, me, at, op, mask),
            _ => self.async_copy_sized::<CHECKS, 16>(room, me, at, op, mask),
        }
    }

    fn async_copy_sized<const CHECKS: bool, const N: usize>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &AsyncCopy,
        mask: u32,
    ) -> Next {
        let to = self.addresses(&op.to).map(strip);
        let from = self.addresses(&op.from);
        // Lanes that read all, and those that read a part and leave zeros for the rest.
        let (mut whole, mut partly) = (mask, 0u32);
        let mut wanted = [N; LANES];
        if let Some(slot) = op.source_size {
            let sizes = &self.registers.words[slot as usize].0;
            for lane in lanes_of(mask) {
                wanted[lane] = sizes[lane] as usize;
                if wanted[lane] > N {
                    room.report(Check::Trap, at, me, lane, || {
                        format!("cp.async is to read {} bytes and to write {N}", wanted[lane])
                    });
                    return Next::Fault;
                }
                if wanted[lane] < N {
                    whole &= !(1 << lane);
                    partly |= u32::from(wanted[lane] > 0) << lane;
                }
            }
        }
        if let Some(slot) = op.ignore {
            let ignored = self.registers.predicates[slot as usize];
            whole &= !ignored;
            partly &= !ignored;
        }
        if !self.shared_places(room, me, at, &to, mask, N) {
            return Next::Fault;
        }
        let mut read = [[0u8; N]; LANES];
        for lane in lanes_of(partly) {
            let (address, count) = (from[lane], wanted[lane]);
            if !address.is_multiple_of(N as u64) {
                return self.misaligned(room, me, at, lane, address, N);
            }
            let Some(allocation) = self.locate(room, me, at, lane, address, count) else {
                return Next::Fault;
            };
            allocation.read(address, &mut read[lane][..count]);
            if CHECKS {
                self.check_written(room, me, at, lane, allocation, address, count);
                self.touch_global(room, me, at, lane, allocation, address, count, false, false);
                room.counters.loads.bytes += count as u64;
            }
        }
        if whole != 0
            && self.fetch_global::<CHECKS, N>(room, me, at, false, &from, whole, &mut read) != Next::Continue
        {
            return Next::Fault;
        }
        let mut copy = PendingCopy {
            lanes: mask,
            size: N,
            to: to.map(|place| place as u32),
            data: [[0; 16]; LANES],
            group: self.groups,
            uniform: true,
        };
        let first = mask.trailing_zeros() as usize & 31;
        for lane in lanes_of(mask) {
            let place = to[lane] as usize;
            if CHECKS {
                self.touch_shared(room, me, at, lane, place, N, true, false);
                room.shared.set_pending(place, N, true);
            }
            // Until it lands, nothing sensible is there.
            room.shared.data[place..place + N].fill(0xff);
            copy.data[lane][..N].copy_from_slice(&read[lane]);
            copy.uniform &= self.groups[lane] == self.groups[first];
        }
        self.copies.push(copy);
        if CHECKS {
            room.counters.async_stores.count(&to, mask, N);
            let reading = whole | partly;
            if reading != 0 {
                room.counters.loads.count(&from, reading, u64::from(whole.count_ones()) * N as u64);
            }
        }
        Next::Continue
    }

    pub(super) fn async_wait(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        leave: u32,
        uncommitted: bool,
        mask: u32,
    ) {
        let groups = self.groups;
        self.land_copies(room, me, at, mask, |lane, group| {
            uncommitted || group.saturating_add(leave) < groups[lane]
        });
    }

    /// Lets copies of some lanes land that `choose` names by lane and group.
    pub(super) fn land_copies(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        mask: u32,
        choose: impl Fn(usize, u32) -> bool,
    ) {
        if self.copies.is_empty() {
            return;
        }
        let checks = room.launch.settings.checks;
        // Lanes that have committed the same groups are chosen alike.
        let first = self.groups[mask.trailing_zeros() as usize & 31];
        let alike = lanes_of(mask).all(|lane| self.groups[lane] == first);
        let mut copies = std::mem::take(&mut self.copies);
        copies.retain_mut(|copy| {
            let concerned = copy.lanes & mask;
            let mut landing = 0;
            if concerned != 0 && alike && copy.uniform {
                let lane = concerned.trailing_zeros() as usize;
                landing = if choose(lane, copy.group[lane]) { concerned } else { 0 };
            } else {
                for lane in lanes_of(concerned) {
                    landing |= u32::from(choose(lane, copy.group[lane])) << lane;
                }
            }
            for lane in lanes_of(landing) {
                let place = copy.to[lane] as usize;
                if checks {
                    room.shared.set_pending(place, copy.size, false);
                    self.touch_shared(room, me, at, lane, place, copy.size, true, false);
                }
                room.shared.data[place..place + copy.size].copy_from_slice(&copy.data[lane][..copy.size]);
            }
            copy.lanes &= !landing;
            copy.lanes != 0
        });
        self.copies = copies;
    }

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
            let (shared, global) = if op.to_shared { (to[lane], from[lane]) } else { (from[lane], to[lane]) };
            let shared = strip(shared) as usize;
            if !size.is_multiple_of(16) || !shared.is_multiple_of(16) || global % 16 != 0 {
                room.report(Check::Misaligned, at, me, lane, || {
                    format!("a bulk copy of {size} bytes between shared {shared} and 0x{global:x}; all must be multiples of 16")
                });
                return Next::Fault;
            }
            if size == 0 || shared.checked_add(size).is_none_or(|end| end > room.shared.data.len()) {
                room.report(Check::OutOfBounds, at, me, lane, || {
                    format!(
                        "a bulk copy of {size} bytes at shared offset {shared} of {}",
                        room_size(size, shared)
                    )
                });
                return Next::Fault;
            }
            let Some(allocation) = self.locate(room, me, at, lane, global, size) else { return Next::Fault };
            let mut data = vec![0u8; size];
            if op.to_shared {
                allocation.read(global, &mut data);
                if room.launch.settings.checks && !allocation.is_written(global, size) {
                    room.report(Check::UninitializedGlobal, at, me, lane, || {
                        format!("{size} bytes at 0x{global:x}")
                    });
                }
                self.touch_shared(room, me, at, lane, shared, size, true, false);
                self.touch_global(room, me, at, lane, allocation, global, size, false, false);
                room.shared.set_pending(shared, size, true);
                room.shared.data[shared..shared + size].fill(0xff);
                let Some(barrier) = &op.barrier else { continue };
                let gate = strip(self.addresses(barrier)[lane]);
                match room.gates.get_mut(&gate) {
                    Some(gate) => gate.landing.push(Landing { to: shared, data, warp: me, lane }),
                    None => {
                        room.report(Check::UninitializedShared, at, me, lane, || {
                            format!("the mbarrier at shared offset {gate} was not initialised")
                        });
                        return Next::Fault;
                    }
                }
                room.counters.loads.requests += 1;
                room.counters.loads.bytes += size as u64;
                room.counters.loads.sectors += (size as u64).div_ceil(32);
            } else {
                self.touch_shared(room, me, at, lane, shared, size, false, false);
                data.copy_from_slice(&room.shared.data[shared..shared + size]);
                self.touch_global(room, me, at, lane, allocation, global, size, true, false);
                allocation.write(global, &data);
                allocation.mark_written(global, size);
                room.counters.stores.requests += 1;
                room.counters.stores.bytes += size as u64;
                room.counters.stores.sectors += (size as u64).div_ceil(32);
            }
        }
        Next::Continue
    }

    /// Lets the bulk copies land that an mbarrier counts.
    pub(super) fn land_bulk(&mut self, room: &mut Room<'_>, place: u64) {
        let Some(gate) = room.gates.get_mut(&place) else { return };
        let landing = std::mem::take(&mut gate.landing);
        for copy in landing {
            let Some(gate) = room.gates.get_mut(&place) else { return };
            gate.bytes -= copy.data.len() as i64;
            let mut pool = std::mem::take(&mut gate.pool);
            room.shared.set_pending(copy.to, copy.data.len(), false);
            let touch = Touch { write: true, atomic: false, warp: copy.warp };
            // The copy was checked when it was issued; here it only becomes the last writer.
            room.shared.touch(copy.to, copy.data.len(), copy.lane, touch, &room.clocks);
            room.shared.data[copy.to..copy.to + copy.data.len()].copy_from_slice(&copy.data);
            room.clocks.give(copy.warp, &mut pool);
            if let Some(gate) = room.gates.get_mut(&place) {
                gate.pool = pool;
            }
        }
    }
}

fn room_size(size: usize, shared: usize) -> String {
    if size == 0 {
        "a copy of nothing".to_string()
    } else {
        format!("memory that ends before {}", shared + size)
    }
}
