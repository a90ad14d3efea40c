//! Values that were never computed, on their way through the memory of a block or a thread: who copies a structure of which
//! only a part is set does nothing wrong as long as nobody goes by the rest.

use super::access::lanes_of;
use super::block::Room;
use super::warp::Warp;
use crate::check::Check;
use crate::program::{Access, LANES, MatrixMove, Op, WideSum};
use crate::ptx::Space;

/// A byte of local memory that nobody wrote.
pub(super) const UNWRITTEN: u8 = 0;
/// One that was written.
pub(super) const WRITTEN: u8 = 1;
/// One that was written with a value that was never computed.
const HOLLOW: u8 = 2;

/// A load that brought what nobody wrote.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    check: Check,
    at: usize,
    lane: usize,
    place: String,
}

impl Warp {
    /// Reports a value that was never computed where it decides something: at the load that brought it, if one did.
    #[cold]
    pub(super) fn report_hollow(&self, room: &mut Room<'_>, me: usize, at: usize, lane: usize) {
        let note = &room.launch.program.notes[at];
        let used = note.uses.iter().find(|&&id| self.valid[id as usize] >> lane & 1 == 0);
        match used.and_then(|id| self.origins.get(id)).cloned() {
            Some(origin) => room.report(origin.check, origin.at, me, origin.lane, || origin.place),
            None => room.report(Check::UninitializedRegister, at, me, lane, || {
                "a value that was never computed is used here".to_string()
            }),
        }
    }

    /// The lanes whose results have a value though not all operands have, and remembers where the others come from.
    #[cold]
    pub(super) fn pass_hollow(&mut self, room: &Room<'_>, at: usize, valid: u32) -> u32 {
        let program = room.launch.program;
        let note = &program.notes[at];
        let origin = note
            .uses
            .iter()
            .filter(|&&id| self.valid[id as usize] != u32::MAX)
            .find_map(|id| self.origins.get(id))
            .cloned();
        for id in &note.defines {
            match &origin {
                Some(origin) => drop(self.origins.insert(*id, origin.clone())),
                None => drop(self.origins.remove(id)),
            }
        }
        // One operand may say all: false and anything, true or anything.
        let first = program.registers[0] + program.registers[1];
        let settled = |value: bool| {
            note.uses.iter().fold(0, |lanes, &id| {
                let bits =
                    id.checked_sub(first).and_then(|slot| self.registers.predicates.get(slot as usize));
                let bits = bits.map_or(0, |&bits| if value { bits } else { !bits });
                lanes | bits & self.valid[id as usize]
            })
        };
        match &*note.opcode {
            "and.pred" => valid | settled(false),
            "or.pred" => valid | settled(true),
            _ => valid,
        }
    }

    /// Carries over to the sums of a product which rows of the left factor, columns of the right one and sums before have a
    /// value; `false` for what is no such product.
    #[cold]
    pub(super) fn pass_product(&mut self, room: &Room<'_>, at: usize) -> bool {
        // Rows of A, and whether D holds two sums a register; of each the registers.
        let (tall, halves, [a, b, c, d]) = match &room.launch.program.code[at].op {
            Op::Mma(op) => (true, op.half_accumulator, [&op.a, &op.b, &op.c, &op.d]),
            Op::WideMma(op) if op.sum != WideSum::Double => {
                (op.rows == 16, op.sum == WideSum::Half, [&op.a, &op.b, &op.c, &op.d])
            }
            _ => return false,
        };
        let bad = |slot: u32, lane: usize| self.valid[slot as usize] >> lane & 1 == 0;
        let (mut rows, mut columns) = ([false; 16], [false; 8]);
        for lane in 0..LANES {
            for (index, &slot) in a.iter().enumerate() {
                rows[lane / 4 + if tall { 8 * (index % 2) } else { 0 }] |= bad(slot, lane);
            }
            columns[lane / 4] |= b.iter().any(|&slot| bad(slot, lane));
        }
        let mut results = Vec::with_capacity(d.len());
        for (index, &slot) in c.iter().enumerate() {
            let mut valid = 0;
            for lane in 0..LANES {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                let hollow = if halves {
                    rows[row + 8 * index] || columns[column] || columns[column + 1]
                } else {
                    rows[row + 8 * (index / 2)] || columns[column + index % 2]
                };
                valid |= u32::from(!hollow && !bad(slot, lane)) << lane;
            }
            results.push(valid);
        }
        let origin = a.iter().chain(b).chain(c).find_map(|slot| self.origins.get(slot)).cloned();
        for (&slot, valid) in d.iter().zip(results) {
            self.valid[slot as usize] = valid;
            self.alert |= valid != u32::MAX;
            if let Some(origin) = origin.as_ref().filter(|_| valid != u32::MAX) {
                self.origins.insert(slot, origin.clone());
            } else {
                self.origins.remove(&slot);
            }
        }
        true
    }

    /// As [`Warp::fetch_hollow`], of matrices: a row of eight lies in four lanes, or in a column of all.
    #[cold]
    pub(super) fn fetch_hollow_matrices(
        &mut self,
        room: &Room<'_>,
        at: usize,
        op: &MatrixMove,
        rows: &[u64; LANES],
    ) {
        for (matrix, &slot) in op.registers.iter().enumerate() {
            let mut valid = u32::MAX;
            self.origins.remove(&slot);
            for row in 0..8 {
                let (lane, place) = (8 * matrix + row, rows[8 * matrix + row] as usize);
                let unwritten = !room.shared.is_written(place, 16);
                let hollow = (place..place + 16).any(|byte| room.shared.hollow.contains(&byte));
                if !unwritten && !hollow {
                    continue;
                }
                valid &= !if op.transposed { 0x1111_1111 << (row / 2) } else { 0xf << (4 * row) };
                if unwritten {
                    let place = format!("16 bytes at {}", room.cluster.name(place));
                    let origin = Origin { check: Check::UninitializedShared, at, lane, place };
                    self.origins.entry(slot).or_insert(origin);
                }
            }
            self.valid[slot as usize] = valid;
            self.alert |= valid != u32::MAX;
        }
    }

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
        // Matrices are followed by `fetch_hollow_matrices`.
        if !matches!(room.launch.program.code[at].op, Op::Load(_)) {
            return;
        }
        let size = access.size;
        let mut ids = room.launch.program.notes[at].defines.clone().into_iter();
        for (element, _) in access.elements.iter().enumerate().filter(|(_, element)| element.slot.is_some()) {
            let Some(id) = ids.next() else { return };
            self.origins.remove(&id);
            for lane in lanes_of(mask) {
                let address = addresses[lane] + (element * size) as u64;
                let (hollow, check, place) = match space {
                    Space::Local => {
                        let place = lane * room.launch.program.local + address as usize;
                        let written = &self.local_written[place..place + size];
                        let unwritten = written.contains(&UNWRITTEN).then_some(Check::UninitializedLocal);
                        (
                            written.iter().any(|&byte| byte != WRITTEN),
                            unwritten,
                            format!("local offset {address}"),
                        )
                    }
                    _ => {
                        let Some(place) = room.locate_shared(me, at, lane, address, size) else { return };
                        let unwritten = !room.shared.is_written(place, size);
                        let hollow = (place..place + size).any(|byte| room.shared.hollow.contains(&byte));
                        let check = unwritten.then_some(Check::UninitializedShared);
                        (hollow || unwritten, check, room.cluster.name(place))
                    }
                };
                if !hollow {
                    continue;
                }
                self.valid[id as usize] &= !(1 << lane);
                self.alert = true;
                if let Some(check) = check {
                    let place = format!("{size} bytes at {place}");
                    self.origins.entry(id).or_insert(Origin { check, at, lane, place });
                }
            }
        }
    }
}
