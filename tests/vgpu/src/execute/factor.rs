//! The factors of a `wgmma` in shared memory: where their units of 16 bytes lie, the checks of reading them, and the numbers.

use std::rc::Rc;

use super::block::Room;
use super::descriptor::Descriptor;
use super::mix;
use super::product::{self, Right};
use super::proxy::report_unfenced;
use super::shared::CHUNK;
use super::shared_runs::Odd;
use super::warp::Warp;
use crate::check::Check;
use crate::number::{E4M3, E5M2, read_tf32};
use crate::program::{Narrow, TensorFormat, Wgmma};
use crate::tensor_map::Swizzle;

/// Depth of a product.
pub(super) const DEPTH: usize = 16;

/// Units that a warp reads of one factor, in the order in which they are used.
pub(super) struct Units {
    /// The chunks of the shared memory of all blocks where they lie.
    pub chunks: Rc<[u32]>,
    /// Positions of those that have no value.
    pub unknown: Vec<usize>,
}

/// What says where the units of a factor lie: the descriptor, whether rows are innermost, the first row and how many, and the
/// block.
type Layout = (u64, bool, usize, usize, usize);

/// Where the units of factors lie that were read before: kernels go through few descriptors again and again.
pub(super) struct Places(Vec<Option<(Layout, Rc<[u32]>)>>);

impl Places {
    /// Kept at a time, each at a place of its own.
    const COUNT: usize = 1024;

    /// None yet: most kernels have no such factors.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    fn at(&mut self, layout: &Layout) -> &mut Option<(Layout, Rc<[u32]>)> {
        let &(bits, _, first_row, _, block) = layout;
        let place = mix(bits ^ (first_row as u64) << 16 ^ (block as u64) << 32) as usize % Self::COUNT;
        if self.0.is_empty() {
            self.0.resize(Self::COUNT, None);
        }
        &mut self.0[place]
    }

    fn get(&mut self, layout: &Layout) -> Option<Rc<[u32]>> {
        let known = self.at(layout).as_ref();
        known.filter(|(known, _)| known == layout).map(|(_, chunks)| chunks.clone())
    }
}

/// The right factor of a product, by blocks of eight columns.
pub(super) struct RightFactor {
    pub blocks: Vec<Right>,
    /// Which columns of each block have a value; none where all have.
    pub known: Option<Vec<[bool; 8]>>,
}

impl RightFactor {
    /// Out of its units.
    pub fn new(room: &Room<'_>, op: &Wgmma, units: &Units) -> Self {
        let brain = op.format == TensorFormat::Brain;
        let count = op.columns / 8;
        let mut blocks = vec![[[0.0; 8]; DEPTH]; count * passes(op)];
        if !op.is_plain() {
            for (index, &chunk) in units.chunks.iter().enumerate() {
                let (column, half) = (index / 2, index % 2);
                let values = unit(room, chunk);
                each_value(op, 1, half, &values, |pass, k, value| {
                    blocks[column / 8 * passes(op) + pass][k][column % 8] = value;
                });
            }
        }
        for (block, right) in blocks.iter_mut().enumerate().take(if op.is_plain() { count } else { 0 }) {
            if op.turned[1] {
                for (k, row) in right.iter_mut().enumerate() {
                    *row = product::widened(brain, &unit(room, units.chunks[k * count + block]));
                }
            } else {
                for (half, rows) in right.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let columns = std::array::from_fn(|column| {
                        unit(room, units.chunks[(block * 8 + column) * 2 + half])
                    });
                    *rows = product::widened_and_turned(brain, &columns);
                }
            }
        }
        let known = (!units.unknown.is_empty()).then(|| {
            let mut known = vec![[true; 8]; count];
            for &index in &units.unknown {
                if op.turned[1] {
                    known[index % count] = [false; 8];
                } else {
                    known[index / 16][index / 2 % 8] = false;
                }
            }
            known
        });
        Self { blocks, known }
    }
}

/// How many products of sixteen depths make up the whole.
pub(super) fn passes(op: &Wgmma) -> usize {
    if op.bytes.is_some() { 2 } else { 1 }
}

/// Calls `give` with the numbers of the first or second unit of a row, where they are not of sixteen bits: the pass, the depth
/// in it, and the number.
pub(super) fn each_value(
    op: &Wgmma,
    side: usize,
    half: usize,
    bytes: &[u8; CHUNK],
    mut give: impl FnMut(usize, usize, f32),
) {
    match op.bytes {
        Some(kinds) => {
            for (k, &byte) in bytes.iter().enumerate() {
                give(half, k, narrow(kinds[side], byte));
            }
        }
        None => {
            for (k, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
                give(0, 4 * half + k, read_tf32(u32::from_le_bytes(*word)));
            }
        }
    }
}

/// A number of eight bits.
pub(super) fn narrow(kind: Narrow, byte: u8) -> f32 {
    match kind {
        Narrow::S8 => f32::from(byte as i8),
        Narrow::E4M3 => E4M3.decode(u32::from(byte)) as f32,
        Narrow::E5M2 => E5M2.decode(u32::from(byte)) as f32,
        _ => f32::from(byte),
    }
}

/// The bytes of a unit.
#[inline(always)]
pub(super) fn unit(room: &Room<'_>, chunk: u32) -> [u8; CHUNK] {
    // A unit lies inside, as was checked.
    room.shared.data.as_chunks().0.get(chunk as usize).copied().unwrap_or([0; CHUNK])
}

impl Warp {
    /// The units of a factor, checked: row by row with two units each, or depth by depth with all groups of eight rows.
    pub(super) fn units<const CHECKS: bool>(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        bits: u64,
        turned: bool,
        first_row: usize,
        rows: usize,
    ) -> Option<Units> {
        let descriptor = match Descriptor::decode(bits) {
            Ok(descriptor) => descriptor,
            Err(message) => {
                room.report(Check::Descriptor, at, me, 0, || message);
                return None;
            }
        };
        let layout = (bits, turned, first_row, rows, room.cluster.current);
        let chunks = match room.places.get(&layout) {
            Some(chunks) => chunks,
            None => {
                let chunks = self.place(room, me, at, &descriptor, layout)?;
                *room.places.at(&layout) = Some((layout, chunks.clone()));
                chunks
            }
        };
        let mut unknown = Vec::new();
        let mut next = 0;
        while CHECKS && let Some(odd) = room.read_chunks(me, &chunks, next, descriptor.span) {
            next = odd.position + 1;
            let chunk = chunks[odd.position] as usize;
            // A copy may bring what nobody wrote, and a store what was never computed; that harms only the numbers which are
            // computed of it.
            if (odd.found.unwritten || odd.found.hollow) && !odd.found.pending {
                unknown.push(odd.position);
            }
            self.judge_unit(room, me, at, chunk, descriptor.span, odd);
        }
        Some(Units { chunks, unknown })
    }

    /// Finds out where the units of a factor lie, or reports that they do not lie in shared memory.
    fn place(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        descriptor: &Descriptor,
        (bits, turned, first_row, rows, block): Layout,
    ) -> Option<Rc<[u32]>> {
        let mut addresses = Vec::with_capacity(2 * rows);
        if turned {
            for k in 0..DEPTH {
                addresses.extend((0..rows / 8).map(|group| descriptor.along_rows(first_row / 8 + group, k)));
            }
        } else {
            for row in first_row..first_row + rows {
                addresses.extend([0, 1].map(|half| descriptor.along_k(row, half)));
            }
        }
        let limit = room.cluster.bytes as u64;
        if addresses.iter().any(|address| address + CHUNK as u64 > limit) {
            room.report(Check::Descriptor, at, me, 0, || {
                format!("the matrix of the descriptor 0x{bits:016x} reaches beyond the {limit} bytes of shared memory")
            });
            return None;
        }
        let base = block * room.cluster.stride;
        Some(addresses.into_iter().map(|address| ((base + address as usize) / CHUNK) as u32).collect())
    }

    /// Reports what is wrong with a unit.
    #[cold]
    fn judge_unit(&self, room: &mut Room<'_>, me: usize, at: usize, chunk: usize, span: u64, odd: Odd) {
        let Odd { mut found, unfenced, layout, .. } = odd;
        found.unwritten &= layout.is_none();
        found.hollow = false;
        if found.is_clean() {
            let other = layout.filter(|layout| layout.span() as u64 != span);
            complain(room, me, at, chunk, span, unfenced, other);
        } else {
            self.report_shared(room, me, at, 0, chunk * CHUNK, CHUNK, false, found);
        }
    }
}

impl Room<'_> {
    /// Checks and notes that a product of a warp reads chunks from a position on, up to the first that is odd.
    fn read_chunks(&mut self, me: usize, chunks: &[u32], from: usize, span: u64) -> Option<Odd> {
        let readers = (self.reader(me), me);
        let proxies = self.proxies.as_ref()?;
        self.shared.read_chunks(chunks, from, readers, span, proxies, &self.clocks)
    }
}

#[cold]
fn complain(
    room: &mut Room<'_>,
    me: usize,
    at: usize,
    chunk: usize,
    span: u64,
    unfenced: Option<super::proxy::Unfenced>,
    layout: Option<Swizzle>,
) {
    if let Some(unfenced) = unfenced {
        report_unfenced(room, me, at, 0, chunk, unfenced);
    }
    if let Some(layout) = layout {
        let place = room.cluster.name(chunk * CHUNK);
        room.report(Check::Descriptor, at, me, 0, || {
            let own = [Swizzle::None, Swizzle::Span32, Swizzle::Span64, Swizzle::Span128]
                .into_iter()
                .find(|swizzle| swizzle.span() as u64 == span)
                .map_or("another", Swizzle::name);
            format!(
                "{place} was written by a tensor copy with {}, and the descriptor says {own}",
                layout.name()
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layouts that fall on one place are told apart by whatever part of them differs.
    #[test]
    fn a_layout_is_found_by_all_of_its_parts() {
        let known: Layout = (1, false, 0, 64, 0);
        let mut places = Places::new();
        let place = |places: &mut Places, layout: &Layout| std::ptr::from_mut(places.at(layout));
        let own = place(&mut places, &known);
        let mut others: Vec<Layout> = vec![(1, true, 0, 64, 0), (1, false, 0, 32, 0)];
        let all: [fn(usize) -> Layout; 3] =
            [|n| (1 + n as u64, false, 0, 64, 0), |n| (1, false, n, 64, 0), |n| (1, false, 0, 64, n)];
        for of in all {
            let alike = (1..100_000).map(of).find(|layout| place(&mut places, layout) == own);
            others.push(alike.expect("a layout at the same place"));
        }
        *places.at(&known) = Some((known, Rc::new([7])));
        assert_eq!(places.get(&known).as_deref(), Some(&[7][..]));
        for other in others {
            assert_eq!(places.get(&other), None, "{other:?}");
        }
    }
}
