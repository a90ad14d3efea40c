//! Atomics on shared and global memory.

use std::sync::atomic::Ordering::Relaxed;

use super::access::lanes_of;
use super::block::Room;
use super::warp::{Next, Warp};
use crate::check::Check;
use crate::memory::Allocation;
use crate::number::{BF16, F16, Rounding};
use crate::program::{Atomic, AtomicKind, LANES};
use crate::ptx::Space;

impl Warp {
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
        for lane in lanes_of(mask) {
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
                    if room.shared.holds_hollow(place, op.size) {
                        room.report(Check::UninitializedRegister, at, me, lane, || {
                            format!("an atomic on a value that was never computed, at shared offset {place}")
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

    fn atomic_global<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Atomic,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Next {
        let count = op.operands.len();
        for lane in lanes_of(mask) {
            let total = op.size * count;
            if !addresses[lane].is_multiple_of(total as u64) {
                return self.misaligned(room, me, at, lane, addresses[lane], total);
            }
            for element in 0..count {
                let address = addresses[lane] + (element * op.size) as u64;
                let Some(allocation) = self.locate(room, me, at, lane, address, op.size) else {
                    return Next::Fault;
                };
                if CHECKS {
                    room.counters.global_atomics += 1;
                    if !allocation.is_written(address, op.size) && op.kind != AtomicKind::Exchange {
                        room.report(Check::UninitializedGlobal, at, me, lane, || {
                            format!("an atomic on memory that was never written, at 0x{address:x}")
                        });
                    }
                    if room.launch.synchronizes && op.ordered {
                        room.knowledge.fence();
                    }
                    self.before_wait(room, me, at, lane, allocation, address, op.size, true);
                    self.touch_global(room, me, at, lane, allocation, address, op.size, true, true);
                    self.check_declared(room, me, at, lane, allocation, address, op.size);
                }
                let (operand, swap) = self.atomic_operands(op, lane, element);
                let act = || exchange(op, allocation, address, operand, swap);
                let old = if CHECKS && room.launch.synchronizes {
                    room.knowledge.meet(&room.launch.releases, address, room.linear, true, act)
                } else {
                    act()
                };
                let Some(old) = old else { return Next::Fault };
                allocation.mark_written(address, op.size);
                self.atomic_result(op, lane, element, old);
            }
        }
        if CHECKS {
            room.counters.stores.count(
                addresses,
                mask,
                u64::from(mask.count_ones()) * (op.size * count) as u64,
            );
        }
        Next::Continue
    }

    fn atomic_operands(&self, op: &Atomic, lane: usize, element: usize) -> (u64, u64) {
        let get = |slot: u32| {
            if op.size == 8 {
                self.registers.longs[slot as usize].0[lane]
            } else {
                u64::from(self.registers.words[slot as usize].0[lane])
            }
        };
        (get(op.operands[element]), op.swap.map_or(0, get))
    }

    fn atomic_result(&mut self, op: &Atomic, lane: usize, element: usize, old: u64) {
        if let Some(&slot) = op.destinations.get(element) {
            if op.size == 8 {
                self.registers.longs[slot as usize].0[lane] = old;
            } else {
                self.registers.words[slot as usize].0[lane] = old as u32;
            }
        }
    }
}

/// Carries out an atomic, and gives what was there before; none where the address is not aligned.
fn exchange(op: &Atomic, allocation: &Allocation, address: u64, operand: u64, swap: u64) -> Option<u64> {
    if op.size == 8 {
        let cell = allocation.atomic_long(address)?;
        let mut old = cell.load(Relaxed);
        while let Err(now) =
            cell.compare_exchange_weak(old, combine(op.kind, 8, old, operand, swap), Relaxed, Relaxed)
        {
            old = now;
        }
        return Some(old);
    }
    // Halves share a word with their neighbours.
    let shift = (address % 4) * 8;
    let keep = if op.size == 4 { 0 } else { !(0xffffu32 << shift) };
    let cell = allocation.atomic_word(address & !3)?;
    let mut word = cell.load(Relaxed);
    loop {
        let old = u64::from((word & !keep) >> shift);
        let new = (combine(op.kind, op.size, old, operand, swap) as u32) << shift;
        match cell.compare_exchange_weak(word, (word & keep) | (new & !keep), Relaxed, Relaxed) {
            Ok(_) => return Some(old),
            Err(now) => word = now,
        }
    }
}

/// What an atomic leaves behind.
fn combine(kind: AtomicKind, size: usize, old: u64, operand: u64, swap: u64) -> u64 {
    let extend = |value: u64| if size == 8 { value as i64 } else { i64::from(value as u32 as i32) };
    let limit = if size == 8 { u64::MAX } else { u64::from(u32::MAX) };
    let single = |value: u64| f32::from_bits(value as u32);
    let narrow = |format: crate::number::Format, a: u64, b: u64| {
        let sum = format.decode(a as u32 & 0xffff) + format.decode(b as u32 & 0xffff);
        u64::from(format.encode(sum, Rounding::Nearest, false))
    };
    let pair = |format| narrow(format, old, operand) | narrow(format, old >> 16, operand >> 16) << 16;
    let value = match kind {
        AtomicKind::Add => old.wrapping_add(operand),
        AtomicKind::AddSingle => u64::from((single(old) + single(operand)).to_bits()),
        AtomicKind::AddDouble => (f64::from_bits(old) + f64::from_bits(operand)).to_bits(),
        AtomicKind::AddHalf => narrow(F16, old, operand),
        AtomicKind::AddBrain => narrow(BF16, old, operand),
        AtomicKind::AddHalfPair => pair(F16),
        AtomicKind::AddBrainPair => pair(BF16),
        AtomicKind::MinSigned => extend(old).min(extend(operand)) as u64,
        AtomicKind::MaxSigned => extend(old).max(extend(operand)) as u64,
        AtomicKind::MinUnsigned => old.min(operand),
        AtomicKind::MaxUnsigned => old.max(operand),
        AtomicKind::And => old & operand,
        AtomicKind::Or => old | operand,
        AtomicKind::Xor => old ^ operand,
        AtomicKind::Exchange => operand,
        AtomicKind::CompareSwap => {
            let same = if size == 2 { old & 0xffff == operand & 0xffff } else { old == operand };
            if same { swap } else { old }
        }
        AtomicKind::Increment => {
            if old >= operand {
                0
            } else {
                old + 1
            }
        }
        AtomicKind::Decrement => {
            if old == 0 || old > operand {
                operand
            } else {
                old - 1
            }
        }
    };
    value & limit
}
