//! Operations on registers that are no plain lane operations: general conversions, carries, vectors of registers.

use super::warp::{Next, Warp};
use crate::program::lanes::merge;
use crate::program::{Carry, Conversion, LANES, Pack, Registers};

impl Warp {
    pub(super) fn convert(&mut self, conversion: &Conversion, mask: u32) -> Next {
        let read = |registers: &Registers, id: u32, lane: usize| match id >> 28 {
            0 => u64::from(registers.words[id as usize].0[lane]),
            _ => registers.longs[(id & 0xfff_ffff) as usize].0[lane],
        };
        for lane in 0..LANES {
            if mask >> lane & 1 == 0 {
                continue;
            }
            let mut sources = [0u64; 2];
            for (into, id) in sources.iter_mut().zip(&conversion.sources) {
                *into = read(&self.registers, *id, lane);
            }
            let value = conversion.convert(&sources[..conversion.sources.len().min(2)]);
            let id = conversion.destination;
            match id >> 28 {
                0 => self.registers.words[id as usize].0[lane] = value as u32,
                _ => self.registers.longs[(id & 0xfff_ffff) as usize].0[lane] = value,
            }
        }
        Next::Continue
    }

    pub(super) fn carry(&mut self, carry: &Carry, mask: u32) -> Next {
        let bits = if carry.long { 64 } else { 32 };
        let limit = (1u128 << bits) - 1;
        for lane in 0..LANES {
            if mask >> lane & 1 == 0 {
                continue;
            }
            let registers = &mut self.registers;
            let get = |index: usize| {
                let slot = carry.slots.sources[index] as usize;
                if carry.long {
                    u128::from(registers.longs[slot].0[lane])
                } else {
                    u128::from(registers.words[slot].0[lane])
                }
            };
            let (a, b) = match carry.product {
                None => (get(0), get(1)),
                Some(high) => {
                    let product = if carry.signed {
                        let extend = |value: u128| (value as i128) << (128 - bits) >> (128 - bits);
                        extend(get(0)).wrapping_mul(extend(get(1))) as u128
                    } else {
                        get(0).wrapping_mul(get(1))
                    };
                    ((if high { product >> bits } else { product }) & limit, get(2))
                }
            };
            let flag = u128::from(registers.predicates[carry.carry as usize] >> lane & 1);
            let flag = if carry.reads { flag } else { 0 };
            let (value, out) = if carry.subtract {
                (a.wrapping_sub(b).wrapping_sub(flag), a < b + flag)
            } else {
                (a + b + flag, a + b + flag > limit)
            };
            let slot = carry.slots.destination as usize;
            if carry.long {
                registers.longs[slot].0[lane] = (value & limit) as u64;
            } else {
                registers.words[slot].0[lane] = (value & limit) as u32;
            }
            if carry.writes {
                let register = &mut registers.predicates[carry.carry as usize];
                *register = (*register & !(1 << lane)) | u32::from(out) << lane;
            }
        }
        Next::Continue
    }

    pub(super) fn join(&mut self, pack: &Pack, mask: u32) -> Next {
        let part_mask = u64::MAX >> (64 - pack.bits);
        let mut whole = [0u64; LANES];
        for (position, part) in pack.parts.iter().enumerate() {
            let Some(part) = part else { continue };
            let part = &self.registers.words[*part as usize].0;
            for lane in 0..LANES {
                whole[lane] |= (u64::from(part[lane]) & part_mask) << (position as u32 * pack.bits);
            }
        }
        if pack.long {
            merge(&mut self.registers.longs[pack.whole as usize].0, &whole, mask);
        } else {
            let words = whole.map(|value| value as u32);
            merge(&mut self.registers.words[pack.whole as usize].0, &words, mask);
        }
        Next::Continue
    }

    pub(super) fn split(&mut self, pack: &Pack, mask: u32) -> Next {
        let part_mask = u64::MAX >> (64 - pack.bits);
        let whole: [u64; LANES] = if pack.long {
            self.registers.longs[pack.whole as usize].0
        } else {
            self.registers.words[pack.whole as usize].0.map(u64::from)
        };
        for (position, part) in pack.parts.iter().enumerate() {
            let Some(part) = part else { continue };
            let shift = position as u32 * pack.bits;
            let words = whole.map(|value| (value >> shift & part_mask) as u32);
            merge(&mut self.registers.words[*part as usize].0, &words, mask);
        }
        Next::Continue
    }
}
