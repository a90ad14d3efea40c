//! Loads, stores, atomics and asynchronous copies: which space an address lies in, and what happens in
//! shared and local memory. Global memory has a file of its own.

use super::block::{Landing, Room};
use super::global::{combine, sectors};
use super::shared::{Collision, Finding, Who, wavefronts};
use super::warp::{Next, Warp, space_of};
use crate::check::Check;
use crate::program::{
    Access, AsyncCopy, Atomic, BulkCopy, LANES, LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW,
};
use crate::ptx::Space;

/// A `cp.async` that has not landed.
#[derive(Clone, Debug)]
pub(super) struct PendingCopy {
    lane: usize,
    to: usize,
    size: usize,
    data: [u8; 16],
    group: u32,
}

impl Warp {
    /// Writes a lane's bytes into the registers of a load.
    #[inline(always)]
    pub(super) fn scatter(&mut self, access: &Access, lane: usize, bytes: &[u8]) {
        for (element, chunk) in access.elements.iter().zip(bytes.chunks_exact(access.size)) {
            let Some(slot) = element.slot else { continue };
            let value = match *chunk {
                [a] => u64::from(a),
                [a, b] => u64::from(u16::from_le_bytes([a, b])),
                [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => 0,
            };
            let shift = 64 - 8 * access.size as u32;
            let value = if access.signed { ((value << shift) as i64 >> shift) as u64 } else { value };
            if element.long {
                self.registers.longs[slot as usize].0[lane] = value;
            } else {
                self.registers.words[slot as usize].0[lane] = value as u32;
            }
        }
    }

    /// Reads a lane's bytes from the registers of a store.
    #[inline(always)]
    pub(super) fn gather(&self, access: &Access, lane: usize, bytes: &mut [u8]) {
        for (element, chunk) in access.elements.iter().zip(bytes.chunks_exact_mut(access.size)) {
            let Some(slot) = element.slot else { continue };
            let value = if element.long {
                self.registers.longs[slot as usize].0[lane]
            } else {
                u64::from(self.registers.words[slot as usize].0[lane])
            };
            chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
        }
    }

    pub(super) fn load<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        mask: u32,
    ) -> Next {
        let addresses = self.addresses(&access.address);
        let bytes = access.size * access.elements.len();
        match access.space {
            Space::Generic => self.by_space(&addresses, mask, |warp, space, addresses, mask| {
                let moved = Access { space, ..access.clone() };
                warp.load_from::<CHECKS>(room, me, at, &moved, addresses, mask, bytes)
            }),
            _ => self.load_from::<CHECKS>(room, me, at, access, &addresses, mask, bytes),
        }
    }

    pub(super) fn store<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        mask: u32,
    ) -> Next {
        let addresses = self.addresses(&access.address);
        let bytes = access.size * access.elements.len();
        match access.space {
            Space::Generic => self.by_space(&addresses, mask, |warp, space, addresses, mask| {
                let moved = Access { space, ..access.clone() };
                warp.store_to::<CHECKS>(room, me, at, &moved, addresses, mask, bytes)
            }),
            _ => self.store_to::<CHECKS>(room, me, at, access, &addresses, mask, bytes),
        }
    }

    /// Splits generic addresses by the space they lie in, and makes them addresses of that space.
    fn by_space(
        &mut self,
        addresses: &[u64; LANES],
        mask: u32,
        mut go: impl FnMut(&mut Self, Space, &[u64; LANES], u32) -> Next,
    ) -> Next {
        for (space, window) in [
            (Space::Global, 0),
            (Space::Shared, SHARED_WINDOW),
            (Space::Local, LOCAL_WINDOW),
            (Space::Parameter, PARAMETER_WINDOW),
        ] {
            let mut lanes = 0;
            for (lane, &address) in addresses.iter().enumerate() {
                lanes |= u32::from(space_of(address) == space) << lane;
            }
            if lanes & mask != 0 {
                let moved = addresses.map(|address| address.wrapping_sub(window));
                match go(self, space, &moved, lanes & mask) {
                    Next::Continue => {}
                    other => return other,
                }
            }
        }
        Next::Continue
    }

    fn load_from<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) -> Next {
        match access.space {
            Space::Global | Space::Constant | Space::Generic => match bytes {
                1 => self.load_global::<CHECKS, 1>(room, me, at, access, addresses, mask),
                2 => self.load_global::<CHECKS, 2>(room, me, at, access, addresses, mask),
                4 => self.load_global::<CHECKS, 4>(room, me, at, access, addresses, mask),
                8 => self.load_global::<CHECKS, 8>(room, me, at, access, addresses, mask),
                16 => self.load_global::<CHECKS, 16>(room, me, at, access, addresses, mask),
                _ => self.load_global::<CHECKS, 32>(room, me, at, access, addresses, mask),
            },
            Space::Shared => {
                if CHECKS {
                    let (passes, least) = wavefronts(addresses, mask, bytes);
                    let traffic = &mut room.counters.shared_loads;
                    traffic.requests += 1;
                    traffic.wavefronts += passes;
                    traffic.conflicts += passes - least;
                }
                for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
                    let Some(place) = self.shared_place(room, me, at, lane, addresses[lane], bytes) else {
                        return Next::Fault;
                    };
                    if CHECKS {
                        self.touch_shared(room, me, at, lane, place, bytes, false, false);
                    }
                    let mut buffer = [0u8; 32];
                    buffer[..bytes].copy_from_slice(&room.shared.data[place..place + bytes]);
                    self.scatter(access, lane, &buffer[..bytes]);
                }
                Next::Continue
            }
            Space::Local => {
                for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
                    let Some(place) = self.local_place(room, me, at, lane, addresses[lane], bytes) else {
                        return Next::Fault;
                    };
                    if CHECKS && self.local_written[place..place + bytes].contains(&0) {
                        room.report(Check::UninitializedLocal, at, me, lane, || {
                            format!("{bytes} bytes at local offset {}", addresses[lane])
                        });
                    }
                    let mut buffer = [0u8; 32];
                    buffer[..bytes].copy_from_slice(&self.local[place..place + bytes]);
                    self.scatter(access, lane, &buffer[..bytes]);
                }
                Next::Continue
            }
            Space::Parameter => {
                for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
                    let start = addresses[lane] as usize;
                    let Some(found) =
                        start.checked_add(bytes).and_then(|end| room.launch.arguments.get(start..end))
                    else {
                        room.report(Check::OutOfBounds, at, me, lane, || {
                            format!("{bytes} bytes at offset {start} of the arguments, which are fewer")
                        });
                        return Next::Fault;
                    };
                    self.scatter(access, lane, found);
                }
                Next::Continue
            }
        }
    }

    fn store_to<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) -> Next {
        match access.space {
            Space::Global | Space::Generic => match bytes {
                1 => self.store_global::<CHECKS, 1>(room, me, at, access, addresses, mask),
                2 => self.store_global::<CHECKS, 2>(room, me, at, access, addresses, mask),
                4 => self.store_global::<CHECKS, 4>(room, me, at, access, addresses, mask),
                8 => self.store_global::<CHECKS, 8>(room, me, at, access, addresses, mask),
                16 => self.store_global::<CHECKS, 16>(room, me, at, access, addresses, mask),
                _ => self.store_global::<CHECKS, 32>(room, me, at, access, addresses, mask),
            },
            Space::Shared => {
                if CHECKS {
                    let (passes, least) = wavefronts(addresses, mask, bytes);
                    let traffic = &mut room.counters.shared_stores;
                    traffic.requests += 1;
                    traffic.wavefronts += passes;
                    traffic.conflicts += passes - least;
                }
                for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
                    let Some(place) = self.shared_place(room, me, at, lane, addresses[lane], bytes) else {
                        return Next::Fault;
                    };
                    let mut buffer = [0u8; 32];
                    self.gather(access, lane, &mut buffer[..bytes]);
                    self.write_shared::<CHECKS>(room, me, at, lane, place, &buffer[..bytes]);
                }
                Next::Continue
            }
            Space::Local => {
                for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
                    let Some(place) = self.local_place(room, me, at, lane, addresses[lane], bytes) else {
                        return Next::Fault;
                    };
                    let mut buffer = [0u8; 32];
                    self.gather(access, lane, &mut buffer[..bytes]);
                    self.local[place..place + bytes].copy_from_slice(&buffer[..bytes]);
                    if CHECKS {
                        self.local_written[place..place + bytes].fill(1);
                    }
                }
                Next::Continue
            }
            Space::Parameter | Space::Constant => {
                room.report(Check::OutOfBounds, at, me, mask.trailing_zeros() as usize, || {
                    "a store to arguments or constants, which cannot be written".to_string()
                });
                Next::Fault
            }
        }
    }

    /// Writes bytes to shared memory under the checks.
    #[inline]
    pub(super) fn write_shared<const CHECKS: bool>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        place: usize,
        bytes: &[u8],
    ) {
        if CHECKS {
            // Writing what is there already harms nobody.
            let same = room.shared.data[place..place + bytes.len()] == *bytes;
            self.touch_shared(room, me, at, lane, place, bytes.len(), true, same);
        }
        room.shared.data[place..place + bytes.len()].copy_from_slice(bytes);
    }

    /// The offset of a lane's bytes in shared memory, or a report.
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
        let size = room.shared.data.len() as u64;
        if address > size || bytes as u64 > size - address {
            room.report(Check::OutOfBounds, at, me, lane, || {
                format!("{bytes} bytes at offset {address} of {size} bytes of shared memory")
            });
            return None;
        }
        Some(address as usize)
    }

    fn local_place(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        address: u64,
        bytes: usize,
    ) -> Option<usize> {
        let size = room.launch.program.local as u64;
        if !address.is_multiple_of(bytes as u64) || address > size || bytes as u64 > size - address {
            room.report(Check::OutOfBounds, at, me, lane, || {
                format!("{bytes} bytes at offset {address} of {size} bytes of local memory")
            });
            return None;
        }
        Some(lane * room.launch.program.local + address as usize)
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
        let who = Who { warp: me, lane };
        let Finding { unwritten, pending, collision } =
            room.shared.touch(place, bytes, write, atomic, who, &room.clocks);
        if pending {
            room.report(Check::AsyncCopyNotAwaited, at, me, lane, || {
                format!("{bytes} bytes at shared offset {place} belong to an asynchronous copy that was not waited for")
            });
        } else if unwritten {
            room.report(Check::UninitializedShared, at, me, lane, || {
                format!("{bytes} bytes at shared offset {place}")
            });
        }
        let verb = if write { "writes" } else { "reads" };
        match collision {
            None => {}
            Some(Collision::Warps(other)) => room.report(Check::SharedRaceBetweenWarps, at, me, lane, || {
                format!("{verb} {bytes} bytes at shared offset {place}; warp {other} touched them with no barrier between")
            }),
            Some(Collision::Lanes(other)) => room.report(Check::SharedRaceBetweenLanes, at, me, lane, || {
                let other = if other > 31 { "other lanes".to_string() } else { format!("lane {other}") };
                format!("{verb} {bytes} bytes at shared offset {place}; {other} touched them with no __syncwarp between")
            }),
        }
    }

    pub(super) fn atomic<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Atomic,
        mask: u32,
    ) -> Next {
        let addresses = self.addresses(&op.address);
        match op.space {
            Space::Shared => self.atomic_shared::<CHECKS>(room, me, at, op, &addresses, mask),
            Space::Global => self.atomic_global::<CHECKS>(room, me, at, op, &addresses, mask),
            _ => self.by_space(&addresses, mask, |warp, space, addresses, mask| match space {
                Space::Shared => warp.atomic_shared::<CHECKS>(room, me, at, op, addresses, mask),
                _ => warp.atomic_global::<CHECKS>(room, me, at, op, addresses, mask),
            }),
        }
    }

    fn atomic_shared<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Atomic,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Next {
        for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
            for element in 0..op.operands.len() {
                let address = addresses[lane] + (element * op.size) as u64;
                let Some(place) = self.shared_place(room, me, at, lane, address, op.size) else {
                    return Next::Fault;
                };
                if CHECKS {
                    // An atomic reads too; what was never written is reported before the write marks it.
                    if room.shared.is_unwritten(place, op.size) {
                        room.report(Check::UninitializedShared, at, me, lane, || {
                            format!("an atomic on {} bytes at shared offset {place}", op.size)
                        });
                    }
                    self.touch_shared(room, me, at, lane, place, op.size, true, true);
                }
                let mut bytes = [0u8; 8];
                bytes[..op.size].copy_from_slice(&room.shared.data[place..place + op.size]);
                let old = u64::from_le_bytes(bytes);
                let (operand, swap) = self.atomic_operands(op, lane, element);
                let new = combine(op.kind, op.size, old, operand, swap);
                room.shared.data[place..place + op.size].copy_from_slice(&new.to_le_bytes()[..op.size]);
                self.atomic_result(op, lane, element, old);
            }
        }
        Next::Continue
    }

    pub(super) fn async_copy<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &AsyncCopy,
        mask: u32,
    ) -> Next {
        let to = self.addresses(&op.to).map(|address| {
            if space_of(address) == Space::Shared { address - SHARED_WINDOW } else { address }
        });
        let from = self.addresses(&op.from);
        let mut reading = 0;
        for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
            let mut wanted =
                op.source_size.map_or(op.size, |slot| self.registers.words[slot as usize].0[lane] as usize);
            if op.ignore.is_some_and(|slot| self.registers.predicates[slot as usize] >> lane & 1 != 0) {
                wanted = 0;
            }
            if wanted > op.size {
                room.report(Check::Trap, at, me, lane, || {
                    format!("cp.async is to read {wanted} bytes and to write {}", op.size)
                });
                return Next::Fault;
            }
            let Some(place) = self.shared_place(room, me, at, lane, to[lane], op.size) else {
                return Next::Fault;
            };
            let mut data = [0u8; 16];
            if wanted > 0 {
                reading |= 1 << lane;
                if !from[lane].is_multiple_of(op.size as u64) {
                    room.report(Check::Misaligned, at, me, lane, || {
                        format!("cp.async of {} bytes from 0x{:x}", op.size, from[lane])
                    });
                    return Next::Fault;
                }
                let Some(allocation) = self.locate(room, me, at, lane, from[lane], wanted) else {
                    return Next::Fault;
                };
                allocation.read(from[lane], &mut data[..wanted]);
                if CHECKS {
                    if !allocation.is_written(from[lane], wanted) {
                        let offset = from[lane] - allocation.base;
                        room.report(Check::UninitializedGlobal, at, me, lane, || {
                            format!(
                                "{wanted} bytes at offset {offset} of an allocation of {} bytes",
                                allocation.size
                            )
                        });
                    }
                    self.touch_global(room, me, at, lane, allocation, from[lane], wanted, false, false);
                    room.counters.loads.bytes += wanted as u64;
                }
            }
            if CHECKS {
                self.touch_shared(room, me, at, lane, place, op.size, true, false);
                room.shared.set_pending(place, op.size, true);
            }
            // Until it lands, nothing sensible is there.
            room.shared.data[place..place + op.size].fill(0xff);
            self.copies.push(PendingCopy { lane, to: place, size: op.size, data, group: self.groups[lane] });
        }
        if CHECKS {
            let (passes, least) = wavefronts(&to, mask, op.size);
            let traffic = &mut room.counters.async_stores;
            traffic.requests += 1;
            traffic.wavefronts += passes;
            traffic.conflicts += passes - least;
            if reading != 0 {
                room.counters.loads.requests += 1;
                room.counters.loads.sectors += sectors(&from, reading, op.size);
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
        let mut copies = std::mem::take(&mut self.copies);
        copies.retain(|copy| {
            if mask >> copy.lane & 1 == 0 || !choose(copy.lane, copy.group) {
                return true;
            }
            if checks {
                room.shared.set_pending(copy.to, copy.size, false);
                self.touch_shared(room, me, at, copy.lane, copy.to, copy.size, true, false);
            }
            room.shared.data[copy.to..copy.to + copy.size].copy_from_slice(&copy.data[..copy.size]);
            false
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
        let strip =
            |address: u64| if space_of(address) == Space::Shared { address - SHARED_WINDOW } else { address };
        let (to, from) = (self.addresses(&op.to), self.addresses(&op.from));
        for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
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
            let who = Who { warp: copy.warp, lane: copy.lane };
            // The copy was checked when it was issued; here it only becomes the last writer.
            room.shared.touch(copy.to, copy.data.len(), true, false, who, &room.clocks);
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

impl Warp {
    /// A load or store of all lanes at given addresses rather than those of the access.
    pub(super) fn at_places<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        store: bool,
        places: &[u64; LANES],
    ) -> Next {
        let full = crate::program::FULL;
        let bytes = access.size * access.elements.len();
        let mut go = |warp: &mut Self, space, places: &[u64; LANES], mask| {
            let access = Access { space, ..access.clone() };
            if store {
                warp.store_to::<CHECKS>(room, me, at, &access, places, mask, bytes)
            } else {
                warp.load_from::<CHECKS>(room, me, at, &access, places, mask, bytes)
            }
        };
        if access.space == Space::Generic {
            self.by_space(places, full, go)
        } else {
            go(self, access.space, places, full)
        }
    }
}
