//! `malloc` and `free` of kernels: memory of the device's heap.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use super::access::lanes_of;
use super::block::Room;
use super::warp::{Next, Warp};
use crate::check::Check;
use crate::program::Op;

/// What `malloc` aligns to.
const ALIGN: u64 = 16;

/// The heap of a device: what of it is taken.
#[derive(Default)]
struct Heap {
    base: u64,
    /// The bytes from the start that were ever taken.
    taken: u64,
    /// By address, the bytes of what is in use.
    live: BTreeMap<u64, u64>,
    /// By block and bytes, what a block freed: the same block may have it again. Others may from the next launch on, for
    /// nothing orders them before.
    freed: HashMap<(u32, u64), Vec<u64>>,
    epoch: u16,
}

/// Blocks have numbers, and this is none.
const ANYBODY: u32 = u32::MAX;

impl Heap {
    fn begin(&mut self, base: u64, epoch: u16) {
        if self.base != base {
            *self = Self { base, ..Self::default() };
        }
        if self.epoch != epoch {
            self.epoch = epoch;
            for ((_, bytes), places) in std::mem::take(&mut self.freed) {
                self.freed.entry((ANYBODY, bytes)).or_default().extend(places);
            }
        }
    }

    fn allocate(&mut self, block: u32, bytes: u64, limit: u64) -> Option<u64> {
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGN)?;
        let known = [block, ANYBODY].into_iter().find_map(|who| self.freed.get_mut(&(who, bytes))?.pop());
        let address = match known {
            Some(address) => address,
            None if bytes <= limit - self.taken => {
                self.taken += bytes;
                self.base + self.taken - bytes
            }
            None => return None,
        };
        self.live.insert(address, bytes);
        Some(address)
    }

    fn release(&mut self, block: u32, address: u64) -> bool {
        let Some(bytes) = self.live.remove(&address) else { return false };
        self.freed.entry((block, bytes)).or_default().push(address);
        true
    }
}

static HEAP: Mutex<Option<Heap>> = Mutex::new(None);

fn with_heap<T>(room: &Room<'_>, go: impl FnOnce(&mut Heap) -> T) -> T {
    let mut heap = HEAP.lock().unwrap_or_else(PoisonError::into_inner);
    let heap = heap.get_or_insert_with(Heap::default);
    heap.begin(room.launch.shape.heap.0, room.launch.memory.epoch);
    go(heap)
}

/// Whether a kernel allocates.
pub fn allocates(program: &crate::program::Program) -> bool {
    program.code.iter().any(|decoded| matches!(decoded.op, Op::Allocate(..)))
}

impl Warp {
    /// `malloc`: nothing where the heap is full, as on a device.
    #[cold]
    pub(super) fn allocate(&mut self, room: &Room<'_>, mask: u32, to: u32, size: u32) -> Next {
        let limit = room.launch.shape.heap.1 as u64;
        for lane in lanes_of(mask) {
            let bytes = self.registers.longs[size as usize].0[lane];
            let address = with_heap(room, |heap| heap.allocate(room.linear, bytes, limit));
            self.registers.longs[to as usize].0[lane] = address.unwrap_or(0);
        }
        Next::Continue
    }

    /// `free`.
    #[cold]
    pub(super) fn give_back(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        mask: u32,
        address: u32,
    ) -> Next {
        for lane in lanes_of(mask) {
            let address = self.registers.longs[address as usize].0[lane];
            if address != 0 && !with_heap(room, |heap| heap.release(room.linear, address)) {
                room.report(Check::Freed, at, me, lane, || {
                    format!("free of 0x{address:x}, which malloc did not give or which was freed before")
                });
                return Next::Fault;
            }
        }
        Next::Continue
    }
}
