//! Loads and stores: which space an address lies in, how bytes and registers meet, local memory and arguments.
//! Shared and global memory have files of their own.

use super::block::Room;
use super::hollow::{UNWRITTEN, WRITTEN};
use super::shared::CHUNK;
use super::warp::{Next, Warp, space_of};
use crate::check::Check;
use crate::program::lanes::merge;
use crate::program::{Access, LANES, LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW};
use crate::ptx::Space;

/// The lanes of a mask, in order.
pub(super) fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

/// Whether the addresses of some lanes are all multiples of a power of two, the lowest, and the highest.
#[inline(always)]
pub(super) fn extent(addresses: &[u64; LANES], mask: u32, bytes: usize) -> (bool, u64, u64) {
    let (mut odd, mut low, mut high) = (0, u64::MAX, 0);
    if mask == crate::program::FULL {
        for &address in addresses {
            odd |= address;
            low = low.min(address);
            high = high.max(address);
        }
    } else {
        for lane in lanes_of(mask) {
            odd |= addresses[lane];
            low = low.min(addresses[lane]);
            high = high.max(addresses[lane]);
        }
    }
    (odd & (bytes as u64 - 1) == 0, low, high)
}

/// Whether all lanes are there and touch one stretch in order, `bytes` each.
#[inline(always)]
pub(super) fn is_stretch(addresses: &[u64; LANES], mask: u32, bytes: usize) -> bool {
    let mut wrong = u64::from(!mask);
    for (lane, &address) in addresses.iter().enumerate() {
        wrong |= address ^ addresses[0].wrapping_add((lane * bytes) as u64);
    }
    wrong == 0
}

/// Whether the lanes from `first` on are all there and cover one chunk in order, `bytes` each.
#[inline(always)]
pub(super) fn covers(addresses: &[u64; LANES], mask: u32, first: usize, bytes: usize) -> bool {
    let count = CHUNK / bytes;
    let wanted = ((1u32 << count) - 1) << first;
    if mask & wanted != wanted || !addresses[first].is_multiple_of(CHUNK as u64) {
        return false;
    }
    let mut wrong = 0;
    for position in 1..count {
        wrong |= addresses[first + position] ^ (addresses[first] + (position * bytes) as u64);
    }
    wrong == 0
}

impl Warp {
    /// Writes what the lanes fetched into the registers of a load.
    #[inline]
    pub(super) fn scatter<const N: usize>(&mut self, access: &Access, data: &[[u8; N]; LANES], mask: u32) {
        for (index, element) in access.elements.iter().enumerate() {
            let Some(slot) = element.slot else { continue };
            let slot = slot as usize;
            match (access.size, element.long) {
                (4, false) => {
                    merge(&mut self.registers.words[slot].0, &part(data, index, u32::from_le_bytes), mask);
                }
                (8, true) => {
                    merge(&mut self.registers.longs[slot].0, &part(data, index, u64::from_le_bytes), mask);
                }
                (size, long) => {
                    let values: [u64; LANES] = match size {
                        1 => part(data, index, u8::from_le_bytes).map(u64::from),
                        2 => part(data, index, u16::from_le_bytes).map(u64::from),
                        4 => part(data, index, u32::from_le_bytes).map(u64::from),
                        _ => part(data, index, u64::from_le_bytes),
                    };
                    let shift = 64 - 8 * size as u32;
                    let extend = |value: u64| ((value << shift) as i64 >> shift) as u64;
                    let values = if access.signed { values.map(extend) } else { values };
                    if long {
                        merge(&mut self.registers.longs[slot].0, &values, mask);
                    } else {
                        merge(&mut self.registers.words[slot].0, &values.map(|value| value as u32), mask);
                    }
                }
            }
        }
    }

    /// Reads what the lanes will store from the registers of a store.
    #[inline]
    pub(super) fn gather<const N: usize>(&self, access: &Access) -> [[u8; N]; LANES] {
        let mut data = [[0u8; N]; LANES];
        for (index, element) in access.elements.iter().enumerate() {
            let Some(slot) = element.slot else { continue };
            let slot = slot as usize;
            if element.long {
                let values = &self.registers.longs[slot].0;
                match access.size {
                    1 => fill(&mut data, index, values, |value| [value as u8]),
                    2 => fill(&mut data, index, values, |value| (value as u16).to_le_bytes()),
                    4 => fill(&mut data, index, values, |value| (value as u32).to_le_bytes()),
                    _ => fill(&mut data, index, values, u64::to_le_bytes),
                }
            } else {
                let values = &self.registers.words[slot].0;
                match access.size {
                    1 => fill(&mut data, index, values, |value| [value as u8]),
                    2 => fill(&mut data, index, values, |value| (value as u16).to_le_bytes()),
                    4 => fill(&mut data, index, values, u32::to_le_bytes),
                    _ => fill(&mut data, index, values, |value| u64::from(value).to_le_bytes()),
                }
            }
        }
        data
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
        match access.space {
            Space::Generic => self.by_space(&addresses, mask, |warp, space, addresses, mask| {
                warp.load_from::<CHECKS>(room, me, at, access, space, addresses, mask)
            }),
            space => self.load_from::<CHECKS>(room, me, at, access, space, &addresses, mask),
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
        let outcome = match access.space {
            Space::Generic => self.by_space(&addresses, mask, |warp, space, addresses, mask| {
                warp.store_to::<CHECKS>(room, me, at, access, space, addresses, mask)
            }),
            space => self.store_to::<CHECKS>(room, me, at, access, space, &addresses, mask),
        };
        self.hollow = false;
        outcome
    }

    /// Splits generic addresses by the space they lie in, and makes them addresses of that space.
    pub(super) fn by_space(
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
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Next {
        match access.size * access.elements.len() {
            1 => self.load_sized::<CHECKS, 1>(room, me, at, access, space, addresses, mask),
            2 => self.load_sized::<CHECKS, 2>(room, me, at, access, space, addresses, mask),
            4 => self.load_sized::<CHECKS, 4>(room, me, at, access, space, addresses, mask),
            8 => self.load_sized::<CHECKS, 8>(room, me, at, access, space, addresses, mask),
            16 => self.load_sized::<CHECKS, 16>(room, me, at, access, space, addresses, mask),
            _ => self.load_sized::<CHECKS, 32>(room, me, at, access, space, addresses, mask),
        }
    }

    fn load_sized<const CHECKS: bool, const N: usize>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Next {
        let mut data = [[0u8; N]; LANES];
        let outcome = match space {
            Space::Global | Space::Constant | Space::Generic => {
                self.read_global::<CHECKS, N>(room, me, at, access.strong, addresses, mask, &mut data)
            }
            Space::Shared => self.read_shared::<CHECKS, N>(room, me, at, addresses, mask, &mut data),
            Space::Local => self.read_local::<CHECKS, N>(room, me, at, addresses, mask, &mut data),
            Space::Parameter => Self::read_arguments(room, me, at, addresses, mask, &mut data),
        };
        if outcome == Next::Continue {
            self.scatter(access, &data, mask);
            if CHECKS
                && (space == Space::Shared && (room.unwritten || !room.shared.hollow.is_empty())
                    || space == Space::Local && self.local_hollow)
            {
                room.unwritten = false;
                self.fetch_hollow(room, me, at, access, space, addresses, mask);
            }
        }
        outcome
    }

    fn store_to<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Next {
        match access.size * access.elements.len() {
            1 => self.store_sized::<CHECKS, 1>(room, me, at, access, space, addresses, mask),
            2 => self.store_sized::<CHECKS, 2>(room, me, at, access, space, addresses, mask),
            4 => self.store_sized::<CHECKS, 4>(room, me, at, access, space, addresses, mask),
            8 => self.store_sized::<CHECKS, 8>(room, me, at, access, space, addresses, mask),
            16 => self.store_sized::<CHECKS, 16>(room, me, at, access, space, addresses, mask),
            _ => self.store_sized::<CHECKS, 32>(room, me, at, access, space, addresses, mask),
        }
    }

    fn store_sized<const CHECKS: bool, const N: usize>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Next {
        let data = self.gather::<N>(access);
        if CHECKS && space == Space::Shared && !room.shared.hollow.is_empty() {
            self.fill_hollow(room, me, at, addresses, mask, N);
        }
        let outcome = match space {
            Space::Global | Space::Generic => {
                self.write_global::<CHECKS, N>(room, me, at, access, addresses, mask, &data)
            }
            Space::Shared => self.write_shared::<CHECKS, N>(room, me, at, addresses, mask, &data),
            Space::Local => self.write_local::<CHECKS, N>(room, me, at, addresses, mask, &data),
            Space::Parameter | Space::Constant => {
                room.report(Check::OutOfBounds, at, me, mask.trailing_zeros() as usize, || {
                    "a store to arguments or constants, which cannot be written".to_string()
                });
                Next::Fault
            }
        };
        if CHECKS && self.hollow && outcome == Next::Continue {
            self.note_hollow(room, me, at, access, space, addresses, mask);
        }
        outcome
    }

    fn read_local<const CHECKS: bool, const N: usize>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        addresses: &[u64; LANES],
        mask: u32,
        data: &mut [[u8; N]; LANES],
    ) -> Next {
        for lane in lanes_of(mask) {
            let Some(place) = self.local_place(room, me, at, lane, addresses[lane], N) else {
                return Next::Fault;
            };
            // What comes of it shows whether anybody goes by it.
            self.local_hollow |= CHECKS && self.local_written[place..place + N].contains(&UNWRITTEN);
            data[lane].copy_from_slice(&self.local[place..place + N]);
        }
        Next::Continue
    }

    fn write_local<const CHECKS: bool, const N: usize>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        addresses: &[u64; LANES],
        mask: u32,
        data: &[[u8; N]; LANES],
    ) -> Next {
        for lane in lanes_of(mask) {
            let Some(place) = self.local_place(room, me, at, lane, addresses[lane], N) else {
                return Next::Fault;
            };
            self.local[place..place + N].copy_from_slice(&data[lane]);
            if CHECKS {
                self.local_written[place..place + N].fill(WRITTEN);
            }
        }
        Next::Continue
    }

    fn read_arguments<const N: usize>(
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        addresses: &[u64; LANES],
        mask: u32,
        data: &mut [[u8; N]; LANES],
    ) -> Next {
        for lane in lanes_of(mask) {
            let start = addresses[lane] as usize;
            let Some(found) = start.checked_add(N).and_then(|end| room.launch.arguments.get(start..end))
            else {
                room.report(Check::OutOfBounds, at, me, lane, || {
                    format!("{N} bytes at offset {start} of the arguments, which are fewer")
                });
                return Next::Fault;
            };
            data[lane].copy_from_slice(found);
        }
        Next::Continue
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
        let mut go = |warp: &mut Self, space, places: &[u64; LANES], mask| {
            if store {
                warp.store_to::<CHECKS>(room, me, at, access, space, places, mask)
            } else {
                warp.load_from::<CHECKS>(room, me, at, access, space, places, mask)
            }
        };
        if access.space == Space::Generic {
            self.by_space(places, full, go)
        } else {
            go(self, access.space, places, full)
        }
    }
}

/// An element of what the lanes fetched.
#[inline(always)]
fn part<const N: usize, const S: usize, T>(
    data: &[[u8; N]; LANES],
    index: usize,
    decode: impl Fn([u8; S]) -> T,
) -> [T; LANES] {
    std::array::from_fn(|lane| {
        // A load has as many bytes as its elements, so the part is always there.
        let bytes = data[lane].as_chunks::<S>().0.get(index).copied().unwrap_or([0; S]);
        decode(bytes)
    })
}

/// Puts an element into what the lanes store.
#[inline(always)]
fn fill<const N: usize, const S: usize, T: Copy>(
    data: &mut [[u8; N]; LANES],
    index: usize,
    values: &[T; LANES],
    encode: impl Fn(T) -> [u8; S],
) {
    for (bytes, value) in data.iter_mut().zip(values) {
        if let Some(into) = bytes.as_chunks_mut::<S>().0.get_mut(index) {
            *into = encode(*value);
        }
    }
}
