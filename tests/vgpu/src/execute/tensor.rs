//! Matrix moves and tensor-core products.
//!
//! The fragments are those of the figures in the PTX manual, section "Matrix fragments for mma.m16n8k16" and
//! its neighbours. With `group = lane / 4` and `thread = lane % 4`:
//!
//! * A, 16-bit: register `i` holds row `group + 8 * (i % 2)`, columns `2 * thread + 8 * (i / 2)` and the next.
//! * A, tf32: the same with one column `thread + 4 * (i / 2)` a register.
//! * B, 16-bit: register `i` holds rows `2 * thread + 8 * i` and the next, column `group`.
//! * B, tf32: row `thread + 4 * i`, column `group`.
//! * C and D: elements 0 and 1 are row `group`, columns `2 * thread` and the next; 2 and 3 are row `group + 8`.

use super::block::Room;
use super::product::{Tile, halves, multiply_add_tile, product, turned};
use super::warp::{Next, Warp, space_of};
use crate::number::{read_tf32, to_f16};
use crate::program::{
    Access, FULL, LANES, MatrixMove, Mma, SHARED_WINDOW, TensorFormat, Wmma, WmmaFactors, WmmaSum,
};
use crate::ptx::Space;

impl Warp {
    pub(super) fn mma(&mut self, op: &Mma) {
        if !op.half_accumulator && op.c.len() == 4 {
            let words = |slot: u32| &self.registers.words[slot as usize].0;
            let c = [words(op.c[0]), words(op.c[1]), words(op.c[2]), words(op.c[3])];
            let out = match (&op.a[..], &op.b[..]) {
                (&[a0, a1, a2, a3], &[b0, b1]) => {
                    let a = [words(a0), words(a1), words(a2), words(a3)];
                    product(op.format, &a, &[words(b0), words(b1)], c)
                }
                (&[a0, a1], &[b0]) => product(op.format, &[words(a0), words(a1)], &[words(b0)], c),
                _ => None,
            };
            if let Some(out) = out {
                for (slot, values) in op.d.iter().zip(out) {
                    self.registers.words[*slot as usize].0 = values;
                }
                return;
            }
        }
        self.mma_plainly(op);
    }

    /// Element by element, as the figures have it.
    fn mma_plainly(&mut self, op: &Mma) {
        let words = |slot: u32| &self.registers.words[slot as usize].0;
        let mut a = [[0f32; 16]; 16];
        let mut b = [[0f32; 8]; 16];
        let mut c: Tile = [[0f32; 8]; 16];
        if op.format == TensorFormat::Tf32 {
            for (index, &slot) in op.a.iter().enumerate() {
                for (lane, &word) in words(slot).iter().enumerate() {
                    a[lane / 4 + 8 * (index % 2)][lane % 4 + 4 * (index / 2)] = read_tf32(word);
                }
            }
            for (index, &slot) in op.b.iter().enumerate() {
                for (lane, &word) in words(slot).iter().enumerate() {
                    b[lane % 4 + 4 * index][lane / 4] = read_tf32(word);
                }
            }
        } else {
            for (index, &slot) in op.a.iter().enumerate() {
                let register = words(slot);
                for group in 0..8 {
                    let row = &mut a[group + 8 * (index % 2)];
                    for thread in 0..4 {
                        let pair = halves(op.format, register[group * 4 + thread]);
                        let column = 2 * thread + 8 * (index / 2);
                        row[column] = pair[0];
                        row[column + 1] = pair[1];
                    }
                }
            }
            for (index, &slot) in op.b.iter().enumerate() {
                let register = words(slot);
                for thread in 0..4 {
                    for group in 0..8 {
                        let pair = halves(op.format, register[group * 4 + thread]);
                        let row = 2 * thread + 8 * index;
                        b[row][group] = pair[0];
                        b[row + 1][group] = pair[1];
                    }
                }
            }
        }
        if op.half_accumulator {
            for (index, &slot) in op.c.iter().enumerate() {
                for (lane, &word) in words(slot).iter().enumerate() {
                    let pair = halves(TensorFormat::Half, word);
                    c[lane / 4 + 8 * index][2 * (lane % 4)] = pair[0];
                    c[lane / 4 + 8 * index][2 * (lane % 4) + 1] = pair[1];
                }
            }
        } else {
            for (index, &slot) in op.c.iter().enumerate() {
                for (lane, &word) in words(slot).iter().enumerate() {
                    c[lane / 4 + 8 * (index / 2)][2 * (lane % 4) + index % 2] = f32::from_bits(word);
                }
            }
        }
        multiply_add_tile(op.depth, &a, &b, &mut c);
        for (index, &slot) in op.d.iter().enumerate() {
            let register = &mut self.registers.words[slot as usize].0;
            for (lane, word) in register.iter_mut().enumerate() {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                *word = if op.half_accumulator {
                    let row = &c[row + 8 * index];
                    to_f16(row[column]) | to_f16(row[column + 1]) << 16
                } else {
                    let value = c[row + 8 * (index / 2)][column + index % 2];
                    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
                };
            }
        }
    }

    /// `ldmatrix` and `stmatrix`: lane `8 m + r` gives the address of row `r` of matrix `m`; a row is eight
    /// 16-bit elements, of which lane `l` holds elements `2 (l % 4)` and the next of row `l / 4`.
    pub(super) fn matrix<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &MatrixMove,
        mask: u32,
    ) -> Next {
        self.whole_warp(room, me, at, mask);
        let rows = self.addresses(&op.address).map(|address| {
            if space_of(address) == Space::Shared { address - SHARED_WINDOW } else { address }
        });
        let matrices = op.registers.len();
        if CHECKS {
            let lanes = if matrices == 4 { FULL } else { (1 << (8 * matrices)) - 1 };
            room.counters.matrix.count(&rows, lanes, 16);
        }
        let lanes = if matrices == 4 { FULL } else { (1 << (8 * matrices)) - 1 };
        let mut moved = [0; LANES];
        let Some(rows) = self.shared_places(room, me, at, &rows, lanes, 16, &mut moved) else {
            return Next::Fault;
        };
        if op.store {
            let mut data = [[0u8; 16]; LANES];
            for (rows, &slot) in data.as_chunks_mut::<8>().0.iter_mut().zip(&op.registers) {
                let register = &self.registers.words[slot as usize].0;
                let words = if op.transposed { turned(register) } else { *register };
                for (row, words) in rows.iter_mut().zip(words.as_chunks::<4>().0) {
                    for (bytes, word) in row.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                        *bytes = word.to_le_bytes();
                    }
                }
            }
            self.put_shared::<CHECKS, 16>(room, me, at, rows, lanes, &data);
            return Next::Continue;
        }
        if CHECKS {
            // Which lane reads what is the instruction's own affair: a row counts as read by the lane that
            // named it.
            self.touch_shared_lanes(room, me, at, rows, lanes, 16);
        }
        for (rows, &slot) in rows.as_chunks::<8>().0.iter().zip(&op.registers) {
            let mut words = [0u32; LANES];
            for (words, &place) in words.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
                let place = place as usize;
                let (bytes, _) = room.shared.data[place..place + 16].as_chunks::<4>();
                for (word, bytes) in words.iter_mut().zip(bytes) {
                    *word = u32::from_le_bytes(*bytes);
                }
            }
            if op.transposed {
                words = turned(&words);
            }
            self.registers.words[slot as usize].0 = words;
        }
        if CHECKS && (room.unwritten || !room.shared.hollow.is_empty()) {
            room.unwritten = false;
            self.fetch_hollow_matrices(room, at, op, rows);
        }
        Next::Continue
    }

    /// `wmma`. The manual leaves its fragments open; here element `e` of a fragment of `p` places a lane, counted along
    /// rows, is in lane `e / p`, place `e % p`, which has nothing in common with `mma`'s tables. Fragments with more places
    /// than elements hold them over and over.
    #[inline(never)]
    pub(super) fn wmma<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Wmma,
    ) -> Next {
        match op {
            Wmma::Move { shape, per_register, store, row_major, size, space, registers, address, stride } => {
                let base = self.addresses(address);
                let packed = if *row_major { shape[1] } else { shape[0] } as u64;
                let stride =
                    stride.map_or(packed, |slot| u64::from(self.registers.words[slot as usize].0[0]));
                let places_of_lane = registers.len() * per_register;
                for position in 0..places_of_lane {
                    let places: [u64; LANES] = std::array::from_fn(|lane| {
                        let element = (lane * places_of_lane + position) % (shape[0] * shape[1]);
                        let (row, column) = ((element / shape[1]) as u64, (element % shape[1]) as u64);
                        let (line, along) = if *row_major { (row, column) } else { (column, row) };
                        base[lane].wrapping_add((line * stride + along) * *size as u64)
                    });
                    let slot = registers[position / per_register];
                    let part = position % per_register;
                    let outcome =
                        self.wmma_element::<CHECKS>(room, me, at, *space, *size, *store, slot, part, &places);
                    if outcome != Next::Continue {
                        return outcome;
                    }
                }
                Next::Continue
            }
            Wmma::Multiply { shape: [m, n, k], factors, sums, saturate, d, a, b, c } => {
                room.counters.tensor_multiply_adds += (m * n * k) as u64;
                let left = self.wmma_factor(*factors, false, a, m * k);
                let right = self.wmma_factor(*factors, true, b, k * n);
                let start = self.wmma_sums(sums[1], c, m * n);
                let products = |row: usize, column: usize| {
                    (0..*k).map({
                        let (left, right) = (&left, &right);
                        move |i| (left[row * k + i], right[i * n + column])
                    })
                };
                let mut out = vec![0f64; m * n];
                for (element, value) in out.iter_mut().enumerate() {
                    let (row, column) = (element / n, element % n);
                    let before = start[element];
                    *value = match factors {
                        WmmaFactors::Float(_) => {
                            let add = |sum: f32, (a, b): (f64, f64)| (a as f32).mul_add(b as f32, sum);
                            f64::from(products(row, column).fold(before as f32, add))
                        }
                        WmmaFactors::Double => {
                            products(row, column).fold(before, |sum, (a, b)| a.mul_add(b, sum))
                        }
                        WmmaFactors::Bytes(..) => {
                            let sum = products(row, column).fold(before, |sum, (a, b)| sum + a * b);
                            if *saturate { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum }
                        }
                    };
                }
                self.put_wmma_sums(sums[0], d, &out);
                Next::Continue
            }
        }
    }

    /// The elements of a factor, which are all exact in f64.
    fn wmma_factor(&self, factors: WmmaFactors, right: bool, registers: &[u32], count: usize) -> Vec<f64> {
        let per_register = match factors {
            WmmaFactors::Float(TensorFormat::Tf32) | WmmaFactors::Double => 1,
            WmmaFactors::Float(_) => 2,
            WmmaFactors::Bytes(..) => 4,
        };
        let places = registers.len() * per_register;
        (0..count)
            .map(|element| {
                let (lane, position) = (element / places, element % places);
                let (slot, part) = (registers[position / per_register] as usize, position % per_register);
                if factors == WmmaFactors::Double {
                    return f64::from_bits(self.registers.longs[slot].0[lane]);
                }
                let word = self.registers.words[slot].0[lane];
                match factors {
                    WmmaFactors::Float(TensorFormat::Tf32) => f64::from(read_tf32(word)),
                    WmmaFactors::Float(format) => f64::from(halves(format, word)[part]),
                    WmmaFactors::Bytes(a, b) => {
                        f64::from(super::factor::narrow(if right { b } else { a }, word.to_le_bytes()[part]))
                    }
                    WmmaFactors::Double => 0.0,
                }
            })
            .collect()
    }

    /// The elements of an accumulator.
    fn wmma_sums(&self, kind: WmmaSum, registers: &[u32], count: usize) -> Vec<f64> {
        let per_register = if kind == WmmaSum::Half { 2 } else { 1 };
        let places = registers.len() * per_register;
        (0..count)
            .map(|element| {
                let (lane, position) = (element / places, element % places);
                let slot = registers[position / per_register] as usize;
                if kind == WmmaSum::Double {
                    return f64::from_bits(self.registers.longs[slot].0[lane]);
                }
                let word = self.registers.words[slot].0[lane];
                match kind {
                    WmmaSum::Half => f64::from(halves(TensorFormat::Half, word)[position % 2]),
                    WmmaSum::Integer => f64::from(word as i32),
                    _ => f64::from(f32::from_bits(word)),
                }
            })
            .collect()
    }

    fn put_wmma_sums(&mut self, kind: WmmaSum, registers: &[u32], values: &[f64]) {
        let per_register = if kind == WmmaSum::Half { 2 } else { 1 };
        let places = registers.len() * per_register;
        for (element, &value) in values.iter().enumerate() {
            let (lane, position) = (element / places, element % places);
            let slot = registers[position / per_register] as usize;
            if kind == WmmaSum::Double {
                self.registers.longs[slot].0[lane] = value.to_bits();
                continue;
            }
            let word = &mut self.registers.words[slot].0[lane];
            *word = match kind {
                WmmaSum::Half => {
                    let shift = 16 * (position % 2);
                    *word & !(0xffff << shift) | to_f16(value as f32) << shift
                }
                // Sums that leave 32 bits wrap.
                WmmaSum::Integer => value as i64 as u32,
                _ => (value as f32).to_bits(),
            };
        }
    }

    /// Moves one element of all lanes, `part` of a register.
    fn wmma_element<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        space: Space,
        size: usize,
        store: bool,
        slot: u32,
        part: usize,
        places: &[u64; LANES],
    ) -> Next {
        let long = size == 8;
        let access = Access {
            space,
            size,
            signed: false,
            strong: false,
            ordered: false,
            elements: vec![crate::program::Element { slot: Some(slot), long }],
            address: crate::program::Address { base: None, offset: 0 },
        };
        if size >= 4 {
            return self.at_places::<CHECKS>(room, me, at, &access, store, places);
        }
        // Each element moves through the register that it is a part of.
        let shift = 8 * size * part;
        let bits = if size == 1 { 0xffu32 } else { 0xffff };
        let before = self.registers.words[slot as usize].0;
        if store {
            self.registers.words[slot as usize].0 = before.map(|word| word >> shift & bits);
        }
        let outcome = self.at_places::<CHECKS>(room, me, at, &access, store, places);
        let register = &mut self.registers.words[slot as usize].0;
        if store {
            *register = before;
        } else {
            for (word, before) in register.iter_mut().zip(before) {
                // Parts come in order, and those behind are yet to come.
                *word = before & !(bits << shift) | (*word & bits) << shift;
            }
        }
        outcome
    }
}
