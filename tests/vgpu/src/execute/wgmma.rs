//! `wgmma.mma_async`: D = A B + D of m64nNk16 by four warps, each of which computes the sixteen rows of its own.
//!
//! The fragments are those of the figures in the PTX manual, section "Register fragments and shared memory matrix layouts"
//! of wgmma with k16: warp `w` of the four holds rows `16 w` to `16 w + 15`, and for every eight columns `j` the registers
//! `4 j` to `4 j + 3` of D as `mma.m16n8k16` has them; A in registers is as `mma.m16n8k16` has it too.

use std::collections::VecDeque;
use std::rc::Rc;

use super::block::Room;
use super::factor::{DEPTH, RightFactor, each_value, narrow, passes, unit};
use super::product::{self, Block, Right, halves};
use super::warp::{Hold, Next, Warp};
use crate::check::Check;
use crate::number::{from_f16, read_tf32, to_f16};
use crate::program::{FULL, LANES, TensorFormat, Wgmma, WgmmaLeft};

/// Rows of a warp.
const ROWS: usize = 16;
/// Warps of a warpgroup.
const WARPS: usize = 4;

/// What the warps of a warpgroup have issued: all must issue the same, and none of it is done before all have.
///
/// What products read counts as read by a warp of its own beside each warp, as it goes on while the warp does: whoever waits for
/// a group comes after what all four read for it.
#[derive(Default)]
pub(super) struct Warpgroup {
    issued: [u64; WARPS],
    first: u64,
    /// From the first that not all have issued.
    log: VecDeque<Issued>,
    /// By warp and committed group: the clock of what it read.
    commits: [Vec<u16>; WARPS],
    /// Chunks that products may read, by committed group.
    reading: Vec<(u32, Rc<[u32]>)>,
}

/// A product that the first of four warps has issued.
struct Issued {
    at: usize,
    descriptors: [u64; 2],
    /// The right factor, which is the same for all four and read once for all of them.
    right: Rc<RightFactor>,
}

impl Warpgroup {
    /// Forgets what all four have issued.
    fn forget(&mut self) {
        while self.issued.iter().all(|&issued| issued > self.first) {
            self.log.pop_front();
            self.first += 1;
        }
    }
}

impl Warp {
    pub(super) fn wgmma<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Wgmma,
        mask: u32,
    ) -> Next {
        self.whole_warp(room, me, at, mask);
        let rank = me % room.cluster.warps % WARPS;
        let own = me % room.cluster.warps;
        if own - rank + WARPS > room.cluster.warps {
            room.report(Check::MemberMask, at, me, 0, || {
                "wgmma needs four warps, the first a multiple of four, and the block has fewer".to_string()
            });
            return Next::Fault;
        }
        let bits = |slot: u32| &self.registers.longs[slot as usize].0;
        let left_bits = match op.a {
            WgmmaLeft::Shared(slot) => Some(bits(slot)),
            WgmmaLeft::Registers(_) => None,
        };
        let right_bits = bits(op.b);
        let differ = |bits: &[u64; LANES]| bits.iter().any(|one| *one != bits[0]);
        let adds = self.registers.predicates[op.accumulates as usize];
        if differ(right_bits) || left_bits.is_some_and(differ) || adds != 0 && adds != FULL {
            room.report(Check::Descriptor, at, me, 0, || {
                "descriptors and the scale of D must be the same in all lanes".to_string()
            });
            return Next::Fault;
        }
        let (adds, pair) = (adds != 0, [left_bits.map_or(0, |bits| bits[0]), right_bits[0]]);
        if CHECKS {
            room.clocks.lend(me, room.reader(me));
        }
        // The chunks that this warp reads, of each factor.
        let mut read = [None, None];
        let right = match room.issued(me, at, rank, pair) {
            Some(right) => right,
            None => {
                let Some(units) = self.units::<CHECKS>(room, me, at, pair[1], op.turned[1], 0, op.columns)
                else {
                    return Next::Fault;
                };
                let right = Rc::new(RightFactor::new(room, op, &units));
                read[1] = Some(units.chunks);
                room.issue(me, at, rank, pair, right.clone());
                right
            }
        };
        // The left factor: sixteen rows by two units, or sixteen depths by two groups of rows.
        let mut left: Block = [[[0.0; DEPTH]; 8]; 2];
        let mut second = op.bytes.map(|_| Box::new(left));
        let mut rows_known = [true; ROWS];
        match op.a {
            WgmmaLeft::Shared(_) => {
                let Some(units) =
                    self.units::<CHECKS>(room, me, at, pair[0], op.turned[0], rank * ROWS, ROWS)
                else {
                    return Next::Fault;
                };
                let brain = op.format == TensorFormat::Brain;
                let mut bytes = [[0; 16]; 2 * ROWS];
                bytes.iter_mut().zip(&*units.chunks).for_each(|(into, &chunk)| *into = unit(room, chunk));
                let mut values = [[0.0; 8]; 2 * ROWS];
                if op.is_plain() {
                    product::widen(brain, &bytes, &mut values);
                }
                if !op.is_plain() {
                    fill_other(op, &bytes, &mut left, second.as_deref_mut());
                } else if op.turned[0] {
                    for (index, values) in values.into_iter().enumerate() {
                        for (row, value) in values.into_iter().enumerate() {
                            left[index % 2][row][index / 2] = value;
                        }
                    }
                } else {
                    let halves = left.as_flattened_mut().as_flattened_mut().as_chunks_mut().0;
                    halves.copy_from_slice(&values);
                }
                for &index in &units.unknown {
                    let (outer, inner) = (index / 2, index % 2);
                    let rows = if op.turned[0] { inner * 8..inner * 8 + 8 } else { outer..outer + 1 };
                    rows_known[rows].fill(false);
                }
                read[0] = Some(units.chunks);
            }
            WgmmaLeft::Registers(registers) => {
                for (index, slot) in registers.into_iter().enumerate() {
                    let register = &self.registers.words[slot as usize].0;
                    for (lane, &word) in register.iter().enumerate() {
                        let (row, k) = (lane / 4 + 8 * (index % 2), 2 * (lane % 4) + 8 * (index / 2));
                        if op.is_plain() {
                            let pair = halves(op.format, word);
                            left[row / 8][row % 8][k] = pair[0];
                            left[row / 8][row % 8][k + 1] = pair[1];
                        } else if let (Some([kind, _]), Some(second)) = (op.bytes, second.as_deref_mut()) {
                            let block = if index < 2 { &mut left } else { second };
                            for (byte, value) in word.to_le_bytes().into_iter().enumerate() {
                                block[row / 8][row % 8][4 * (lane % 4) + byte] = narrow(kind, value);
                            }
                        } else {
                            left[row / 8][row % 8][lane % 4 + 4 * (index / 2)] = read_tf32(word);
                        }
                        if CHECKS {
                            rows_known[row] &= self.valid[slot as usize] >> lane & 1 != 0;
                        }
                    }
                }
            }
        }
        if op.negates {
            for left in std::iter::once(&mut left).chain(second.as_deref_mut()) {
                left.as_flattened_mut().as_flattened_mut().iter_mut().for_each(|value| *value = -*value);
            }
        }
        let known = |block: usize| right.known.as_ref().map_or([true; 8], |known| known[block]);
        if op.is_plain() {
            for (block, columns) in right.blocks.iter().enumerate() {
                self.multiply(op, adds, &left, columns, block);
                if CHECKS {
                    self.mark_known(op, adds, block, &rows_known, &known(block));
                }
            }
        } else {
            for block in 0..op.columns / 8 {
                self.multiply_other(op, adds, [Some(&left), second.as_deref()], &right.blocks, block);
                if CHECKS {
                    self.mark_known(op, adds, block, &rows_known, &known(block));
                }
            }
        }
        room.counters.tensor_multiply_adds += (ROWS * op.depth() * op.columns) as u64;
        room.counters.warpgroup_multiply_adds += (ROWS * op.depth() * op.columns) as u64;
        let left_bytes = if left_bits_are_shared(op) { ROWS * 32 } else { 0 };
        room.counters.warpgroup_shared_bytes += (left_bytes + op.columns * 32 / WARPS) as u64;
        if CHECKS {
            self.begin_product(room, me, at, op, adds);
            read.into_iter().flatten().for_each(|chunks| room.begin_read(me, rank, chunks));
        }
        Next::Continue
    }

    /// `wgmma.commit_group`.
    pub(super) fn commit_products(&mut self, room: &mut Room<'_>, me: usize) {
        if let Some(flight) = &mut self.flight {
            flight.commit();
        }
        let rank = me % room.cluster.warps % WARPS;
        let reader = room.reader(me);
        let clock = room.clocks.now(reader);
        room.clocks.advance(reader);
        room.warpgroups.entry(me - rank).or_default().commits[rank].push(clock);
        room.committed.push(me - rank);
        room.progress += 1;
    }

    /// `wgmma.wait_group`: waits until all four warps have issued the groups that are waited for.
    pub(super) fn wait_for_products(&mut self, room: &mut Room<'_>, me: usize, leave: u32) -> Next {
        let rank = me % room.cluster.warps % WARPS;
        let Some(group) = room.warpgroups.get(&(me - rank)) else { return Next::Continue };
        let Some(last) = group.commits[rank].len().checked_sub(leave as usize + 1) else {
            return Next::Continue;
        };
        if group.commits.iter().any(|commits| commits.len() <= last) {
            return Next::Park(Hold::Warpgroup(me - rank));
        }
        let clocks: [u16; WARPS] = std::array::from_fn(|other| group.commits[other][last]);
        if !room.launch.settings.checks {
            return Next::Continue;
        }
        for (other, clock) in clocks.into_iter().enumerate() {
            let reader = room.reader(me - rank + other);
            room.clocks.see(me, reader, clock);
        }
        room.end_read(me - rank, last as u32);
        self.end_products(leave);
        Next::Continue
    }

    /// Eight columns of D.
    #[inline(always)]
    fn multiply(&mut self, op: &Wgmma, adds: bool, left: &Block, right: &Right, block: usize) {
        const NOTHING: [u32; LANES] = [0; LANES];
        if op.half_accumulator {
            let sums = self.half_sums(op, adds, block);
            let sums = product::fragment_product(left, right, [&sums[0], &sums[1], &sums[2], &sums[3]]);
            self.put_half_sums(op, block, &sums);
            return;
        }
        let slots = [0, 1, 2, 3].map(|index| op.d[block * 4 + index] as usize);
        let sums = if adds {
            slots.map(|slot| &self.registers.words[slot].0)
        } else {
            [&NOTHING, &NOTHING, &NOTHING, &NOTHING]
        };
        let sums = product::fragment_product(left, right, sums);
        for (slot, sum) in slots.into_iter().zip(sums) {
            self.registers.words[slot].0 = sum;
        }
    }

    /// What eight columns of D hold, where that is halves.
    #[inline(always)]
    fn half_sums(&self, op: &Wgmma, adds: bool, block: usize) -> [[u32; LANES]; 4] {
        let mut sums = [[0; LANES]; 4];
        if adds {
            for index in 0..2 {
                let words = &self.registers.words[op.d[block * 2 + index] as usize].0;
                for (lane, &word) in words.iter().enumerate() {
                    sums[2 * index][lane] = from_f16(word & 0xffff).to_bits();
                    sums[2 * index + 1][lane] = from_f16(word >> 16).to_bits();
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn put_half_sums(&mut self, op: &Wgmma, block: usize, sums: &[[u32; LANES]; 4]) {
        for index in 0..2 {
            let half = |part: usize, lane: usize| to_f16(f32::from_bits(sums[2 * index + part][lane]));
            self.registers.words[op.d[block * 2 + index] as usize].0 =
                std::array::from_fn(|lane| half(0, lane) | half(1, lane) << 16);
        }
    }

    /// Eight columns of D where A and B are not of sixteen bits: tf32, or bytes in two products one behind the other. Sums of
    /// integers begin at nothing: a product of 32 bytes each is below 2^24, which f32 has exactly.
    #[inline(never)]
    fn multiply_other(
        &mut self,
        op: &Wgmma,
        adds: bool,
        left: [Option<&Block>; 2],
        right: &[Right],
        block: usize,
    ) {
        let mut sums = if op.half_accumulator {
            self.half_sums(op, adds, block)
        } else if adds && op.integer.is_none() {
            [0, 1, 2, 3].map(|index| self.registers.words[op.d[block * 4 + index] as usize].0)
        } else {
            [[0; LANES]; 4]
        };
        let right = &right[block * passes(op)..];
        for (left, right) in left.into_iter().flatten().zip(right) {
            sums = product::fragment_product(left, right, [&sums[0], &sums[1], &sums[2], &sums[3]]);
        }
        if op.half_accumulator {
            return self.put_half_sums(op, block, &sums);
        }
        for (index, sum) in sums.into_iter().enumerate() {
            let words = &mut self.registers.words[op.d[block * 4 + index] as usize].0;
            let Some(saturate) = op.integer else {
                *words = sum;
                continue;
            };
            for (word, sum) in words.iter_mut().zip(sum) {
                let before = if adds { *word as i32 } else { 0 };
                let sum = f32::from_bits(sum) as i32;
                *word = if saturate { before.saturating_add(sum) } else { before.wrapping_add(sum) } as u32;
            }
        }
    }

    /// Marks which numbers of eight columns of D have a value.
    fn mark_known(&mut self, op: &Wgmma, adds: bool, block: usize, rows: &[bool; ROWS], columns: &[bool; 8]) {
        let all = rows.iter().all(|&known| known) && columns.iter().all(|&known| known);
        let registers = if op.half_accumulator { 2 } else { 4 };
        for index in 0..registers {
            let slot = op.d[block * registers + index] as usize;
            let mut valid = FULL;
            if !all {
                valid = 0;
                for lane in 0..LANES {
                    let row = lane / 4 + 8 * (if op.half_accumulator { index } else { index / 2 });
                    let column = 2 * (lane % 4);
                    let known = rows[row]
                        && if op.half_accumulator {
                            columns[column] && columns[column + 1]
                        } else {
                            columns[column + index % 2]
                        };
                    valid |= u32::from(known) << lane;
                }
            }
            self.valid[slot] = if adds { self.valid[slot] & valid } else { valid };
        }
    }
}

/// The left factor of other than sixteen bits, out of its units.
#[inline(never)]
fn fill_other(op: &Wgmma, bytes: &[[u8; 16]; 2 * ROWS], left: &mut Block, mut second: Option<&mut Block>) {
    for (index, bytes) in bytes.iter().enumerate() {
        let row = index / 2;
        each_value(op, 0, index % 2, bytes, |pass, k, value| match &mut second {
            Some(second) if pass == 1 => second[row / 8][row % 8][k] = value,
            _ => left[row / 8][row % 8][k] = value,
        });
    }
}

fn left_bits_are_shared(op: &Wgmma) -> bool {
    matches!(op.a, WgmmaLeft::Shared(_))
}

impl Room<'_> {
    /// The warp as which the products of a warp read.
    pub fn reader(&self, me: usize) -> usize {
        self.cluster.all_warps() + me
    }

    fn begin_read(&mut self, me: usize, rank: usize, chunks: Rc<[u32]>) {
        if let Some(proxies) = &mut self.proxies {
            chunks.iter().for_each(|&chunk| proxies.begin_read(chunk as usize));
        }
        let group = self.warpgroups.entry(me - rank).or_default();
        let number = group.commits[rank].len() as u32;
        group.reading.push((number, chunks));
    }

    fn end_read(&mut self, first: usize, last: u32) {
        let Some(group) = self.warpgroups.get_mut(&first) else { return };
        let proxies = &mut self.proxies;
        group.reading.retain(|(number, chunks)| {
            let over = *number <= last;
            if over && let Some(proxies) = proxies {
                chunks.iter().for_each(|&chunk| proxies.end_read(chunk as usize));
            }
            !over
        });
    }

    /// Words on which warp of a warpgroup has not issued what others wait for.
    pub fn missing_of_warpgroup(&self, first: usize) -> String {
        let shortest = self
            .warpgroups
            .get(&first)
            .and_then(|group| (0..WARPS).min_by_key(|&rank| group.commits[rank].len()));
        format!(
            "waits for wgmma that warp {} of the warpgroup never executes; all four must",
            shortest.unwrap_or(0)
        )
    }

    /// The right factor of a product that another warp of the warpgroup has issued already.
    fn issued(&mut self, me: usize, at: usize, rank: usize, pair: [u64; 2]) -> Option<Rc<RightFactor>> {
        let group = self.warpgroups.entry(me - rank).or_default();
        let known = group.log.get((group.issued[rank] - group.first) as usize)?;
        let same = (known.at, known.descriptors) == (at, pair);
        let right = same.then(|| known.right.clone());
        if same {
            group.issued[rank] += 1;
            group.forget();
        } else {
            // The product that comes of it is the warp's own.
            self.report(Check::Descriptor, at, me, 0, || {
                "the four warps of a warpgroup must execute the same wgmma with the same descriptors"
                    .to_string()
            });
        }
        right
    }

    /// Notes a product that a warp is the first of its warpgroup to issue.
    fn issue(&mut self, me: usize, at: usize, rank: usize, descriptors: [u64; 2], right: Rc<RightFactor>) {
        let group = self.warpgroups.entry(me - rank).or_default();
        group.issued[rank] += 1;
        let index = (group.issued[rank] - group.first) as usize;
        if index > group.log.len() {
            group.log.push_back(Issued { at, descriptors, right });
        }
        group.forget();
    }

    /// Reports products that not all four warps of a warpgroup have issued when they have ended.
    pub fn judge_warpgroups(&mut self) {
        for (first, group) in std::mem::take(&mut self.warpgroups) {
            if let Some(at) = group.log.front().map(|issued| issued.at) {
                let missing = group.issued.iter().position(|&issued| issued == group.first).unwrap_or(0);
                self.report(Check::MemberMask, at, first, 0, || {
                    format!("warp {missing} of the warpgroup ended without this wgmma, which all four must execute")
                });
            }
        }
    }
}
