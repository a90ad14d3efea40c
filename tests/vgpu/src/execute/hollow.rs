//! Values that were never computed, on their way through the memory of a block or a thread: who copies a structure of which
//! only a part is set does nothing wrong as long as nobody goes by the rest.

use super::access::lanes_of;
use super::block::Room;
use super::warp::Warp;
use crate::check::Check;
use crate::program::{Access, LANES, Op};
use crate::ptx::Space;

/// A byte of local memory that nobody wrote.
pub(super) const UNWRITTEN: u8 = 0;
/// One that was written.
pub(super) const WRITTEN: u8 = 1;
/// One that was written with a value that was never computed.
const HOLLOW: u8 = 2;

impl Warp {
    /// By element of an access: its place in front of the next, and the lanes that have a value of it.
    fn valid_elements(&self, room: &Room<'_>, at: usize, access: &Access) -> Vec<u32> {
        let ids = &room.launch.program.notes[at].uses[access.stored()];
        let mut ids = ids.iter();
        let valid = |id: Option<&u32>| id.map_or(u32::MAX, |&id| self.valid[id as usize]);
        access.elements.iter().map(|element| element.slot.map_or(u32::MAX, |_| valid(ids.next()))).collect()
    }

    /// Notes where a store under way put values that were never computed; where others see them, that is an error.
    #[cold]
    pub(super) fn note_hollow(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
    ) {
        let size = access.size;
        for (element, valid) in self.valid_elements(room, at, access).into_iter().enumerate() {
            for lane in lanes_of(mask & !valid) {
                let address = addresses[lane] + (element * size) as u64;
                match space {
                    Space::Local => {
                        let place = lane * room.launch.program.local + address as usize;
                        self.local_written[place..place + size].fill(HOLLOW);
                        self.local_hollow = true;
                    }
                    Space::Shared => {
                        if let Some(place) = room.locate_shared(me, at, lane, address, size) {
                            room.shared.hollow.extend(place..place + size);
                        }
                    }
                    _ => {
                        room.report(Check::UninitializedRegister, at, me, lane, || {
                            "a value that was never computed is stored here".to_string()
                        });
                        return;
                    }
                }
            }
        }
    }

    /// Forgets that bytes of shared memory held such values, as they are written anew.
    #[cold]
    pub(super) fn fill_hollow(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) {
        for lane in lanes_of(mask) {
            if let Some(place) = room.locate_shared(me, at, lane, addresses[lane], bytes) {
                for byte in place..place + bytes {
                    room.shared.hollow.remove(&byte);
                }
            }
        }
    }

    /// Carries over to the registers of a load which of what it fetched was never computed.
    #[cold]
    pub(super) fn fetch_hollow(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        access: &Access,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
    ) {
        // Matrices come in by other ways, and their registers are checked where they are used.
        if !matches!(room.launch.program.code[at].op, Op::Load(_)) {
            return;
        }
        let size = access.size;
        let mut ids = room.launch.program.notes[at].defines.clone().into_iter();
        for (element, _) in access.elements.iter().enumerate().filter(|(_, element)| element.slot.is_some()) {
            let Some(id) = ids.next() else { return };
            for lane in lanes_of(mask) {
                let address = addresses[lane] + (element * size) as u64;
                let hollow = match space {
                    Space::Local => {
                        let place = lane * room.launch.program.local + address as usize;
                        self.local_written[place..place + size].contains(&HOLLOW)
                    }
                    _ => room
                        .locate_shared(me, at, lane, address, size)
                        .is_some_and(|place| (place..place + size).any(|byte| room.shared.hollow.contains(&byte))),
                };
                if hollow {
                    self.valid[id as usize] &= !(1 << lane);
                }
            }
        }
    }
}
