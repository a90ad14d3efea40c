//! `cp.async`: asynchronous copies of a lane's 4, 8 or 16 bytes into shared memory.

use super::access::lanes_of;
use super::block::Room;
use super::warp::{Next, Warp, space_of};
use crate::check::Check;
use crate::program::{AsyncCopy, LANES, SHARED_WINDOW};
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
pub(super) fn strip(address: u64) -> u64 {
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
        let mut moved = [0; LANES];
        let Some(places) = self.shared_places(room, me, at, &to, mask, N, &mut moved) else {
            return Next::Fault;
        };
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
                self.before_wait(room, me, at, lane, allocation, address, count, false);
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
            to: places.map(|place| place as u32),
            data: [[0; 16]; LANES],
            group: self.groups,
            uniform: true,
        };
        let first = mask.trailing_zeros() as usize & 31;
        for lane in lanes_of(mask) {
            let place = places[lane] as usize;
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
}
