//! `mma.sync` of integers, 8-bit floats and f64, element by element.
//!
//! The fragments are those of the figures in the PTX manual. With `group = lane / 4`, `thread = lane % 4` and `n` elements of a
//! 32-bit register (4 of 8 bits, 8 of 4 bits; 1 of f64):
//!
//! * A: element `e` of register `i` is row `group + 8 * (i % 2)`, column `n * thread + e + 4 * n * (i / 2)`; with 8 rows, row `group`.
//! * B: element `e` of register `i` is row `n * thread + e + 4 * n * i`, column `group`.
//! * C and D: register `i` is row `group + 8 * (i / 2)`, column `2 * thread + i % 2`; halves lie two in a register.

use super::warp::Warp;
use crate::number::{E4M3, E5M2, from_f16, to_f16};
use crate::program::{LANES, Narrow, WideMma, WideSum};

/// Rows, columns and the largest depth of a product.
const ROWS: usize = 16;
const COLUMNS: usize = 8;

impl Warp {
    pub(super) fn wide_mma(&mut self, op: &WideMma) {
        let per_register = op.a_kind.per_register();
        let mut a = vec![[0f64; ROWS]; op.depth];
        let mut b = vec![[0f64; COLUMNS]; op.depth];
        for lane in 0..LANES {
            let (group, thread) = (lane / 4, lane % 4);
            for (index, &slot) in op.a.iter().enumerate() {
                for element in 0..per_register {
                    let row = if op.rows == 8 { group } else { group + 8 * (index % 2) };
                    let step = if op.rows == 8 { index } else { index / 2 };
                    let column = per_register * (thread + 4 * step) + element;
                    a[column][row] = self.element(op.a_kind, slot, lane, element);
                }
            }
            for (index, &slot) in op.b.iter().enumerate() {
                for element in 0..per_register {
                    let row = per_register * (thread + 4 * index) + element;
                    b[row][group] = self.element(op.b_kind, slot, lane, element);
                }
            }
        }
        // Every lane's sums are made of what all lanes held before any of them is written.
        let mut out = vec![[0u64; LANES]; op.d.len()];
        for (index, register) in out.iter_mut().enumerate() {
            for (lane, value) in register.iter_mut().enumerate() {
                let (group, thread) = (lane / 4, lane % 4);
                let start = |slot: u32| self.registers.words[slot as usize].0[lane];
                let factors =
                    |row: usize, column: usize| a.iter().zip(&b).map(move |(a, b)| (a[row], b[column]));
                let (row, column) = (group + 8 * (index / 2), 2 * thread + index % 2);
                *value = match op.sum {
                    WideSum::Integer { saturate } => {
                        let start = i64::from(start(op.c[index]) as i32);
                        let sum = factors(row, column).fold(start, |sum, (a, b)| sum + (a * b) as i64);
                        let held = if saturate { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
                        u64::from(held as u32)
                    }
                    WideSum::Single => {
                        let start = f32::from_bits(start(op.c[index]));
                        let add = |sum: f32, (a, b): (f64, f64)| (a as f32).mul_add(b as f32, sum);
                        let sum = factors(row, column).fold(start, add);
                        u64::from(if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits() })
                    }
                    WideSum::Half => {
                        let one = |half: u32| {
                            let start = from_f16(start(op.c[index]) >> (16 * half) & 0xffff);
                            let add = |sum: f32, (a, b): (f64, f64)| (a as f32).mul_add(b as f32, sum);
                            to_f16(factors(group + 8 * index, 2 * thread + half as usize).fold(start, add))
                        };
                        u64::from(one(0) | one(1) << 16)
                    }
                    WideSum::Double => {
                        let start = f64::from_bits(self.registers.longs[op.c[index] as usize].0[lane]);
                        factors(row, column).fold(start, |sum, (a, b)| a.mul_add(b, sum)).to_bits()
                    }
                };
            }
        }
        for (&slot, values) in op.d.iter().zip(out) {
            if op.sum == WideSum::Double {
                self.registers.longs[slot as usize].0 = values;
            } else {
                self.registers.words[slot as usize].0 = values.map(|value| value as u32);
            }
        }
    }

    /// An element of a fragment's register; every one is exact in f64.
    fn element(&self, kind: Narrow, slot: u32, lane: usize, element: usize) -> f64 {
        if kind == Narrow::Double {
            return f64::from_bits(self.registers.longs[slot as usize].0[lane]);
        }
        let word = self.registers.words[slot as usize].0[lane];
        let byte = word >> (8 * (element & 3)) & 0xff;
        let four = word >> (4 * (element & 7)) & 15;
        match kind {
            Narrow::S8 => f64::from(byte as u8 as i8),
            Narrow::U8 => f64::from(byte),
            Narrow::S4 => f64::from((four as i32) << 28 >> 28),
            Narrow::U4 => f64::from(four),
            Narrow::E4M3 => E4M3.decode(byte),
            Narrow::E5M2 => E5M2.decode(byte),
            Narrow::Double => 0.0,
        }
    }
}
