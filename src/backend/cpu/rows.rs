//! Activations, and how their rows are shared out among threads.

use std::ops::Range;

use super::element::Element;
use super::pool::Buffer;
use crate::backend::{Batch, DropoutStep, Mask, Matrix, Side, Site};
use crate::error::{Error, Result};

/// A row-major matrix of activations.
#[derive(Debug)]
pub struct Rows<E: Element> {
    pub(super) data: Buffer<E>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl<E: Element> Rows<E> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All numbers, row-major.
    pub fn values(&self) -> &[E] {
        &self.data
    }

    pub(super) fn row(&self, row: usize) -> &[E] {
        &self.data[row * self.width..(row + 1) * self.width]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [E] {
        let width = self.width;
        &mut self.data[row * width..(row + 1) * width]
    }

    pub(super) fn range(&self, rows: Range<usize>) -> &[E] {
        &self.data[rows.start * self.width..rows.end * self.width]
    }
}

impl<E: Element> Matrix for Rows<E> {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.width]
    }

    fn is_norm_of(&self, rows: usize, _width: usize) -> bool {
        [self.rows, self.width] == [rows, 1]
    }
}

/// How a matrix's rows are cut into pieces of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Rows of a block.
    pub size: usize,
    /// Threads that each block's matrix products use.
    pub inner_threads: usize,
}

/// Rows of a block at most: the weight is packed anew for each block, so that few large ones take less than many small ones;
/// what a block holds between its products stays within a few megabytes a thread.
const LARGEST_BLOCK: usize = 1024;
/// Up to this many rows the weight's packing would dominate a block of its own: one block, all threads inside it.
const SMALL: usize = 192;
/// The GEMM crate sums the product of a single row in another order, so a block of one would show how rows were cut; of a
/// few more, packing would cost as much as the product.
const SMALLEST_BLOCK: usize = 65;

/// Consecutive ranges of examples, about equal in rows: one a thread, unless they would be too small.
pub(super) fn parts(batch: &Batch, threads: usize) -> Vec<Range<usize>> {
    let rows = batch.real_rows(Side::Encoder);
    let most = threads.min(rows / SMALL).max(1);
    let mut parts: Vec<Range<usize>> = Vec::with_capacity(most);
    let mut last = None;
    for b in 0..batch.examples() {
        // An example belongs where its middle row falls.
        let range = batch.range(Side::Encoder, b);
        let of = Some((range.start + range.end) * most / (2 * rows));
        match parts.last_mut() {
            Some(part) if of == last => part.end = b + 1,
            _ => parts.push(b..b + 1),
        }
        last = of;
    }
    parts
}

/// Fails unless `parts` are consecutive ranges of all of the batch's examples, none of them empty.
pub(super) fn check_parts(batch: &Batch, parts: &[Range<usize>]) -> Result<()> {
    let after = |end: Option<usize>, part: &Range<usize>| {
        end.filter(|&end| part.start == end && part.start < part.end).map(|_| part.end)
    };
    if parts.iter().fold(Some(0), after) == Some(batch.examples()) {
        return Ok(());
    }
    let expected = format!("consecutive ranges of {} examples", batch.examples());
    Err(Error::tensor("the parts of a batch", expected, format!("{parts:?}"), ""))
}

impl Blocks {
    /// Equal blocks, a multiple of `threads` of them unless they would be too small; how rows are cut does not change a
    /// row's result.
    pub(super) fn of(rows: usize, threads: usize) -> Self {
        if rows <= SMALL || threads == 1 && rows <= LARGEST_BLOCK {
            return Self { size: rows.max(1), inner_threads: threads };
        }
        let blocks = threads * rows.div_ceil(threads * LARGEST_BLOCK);
        let least = rows.div_ceil(blocks).max(SMALLEST_BLOCK);
        let size = (least..rows).find(|size| matches!(rows % size, 0 | SMALLEST_BLOCK..)).unwrap_or(rows);
        Self { size, inner_threads: 1 }
    }
}

/// Cuts a row-major matrix into consecutive pieces of `lengths` rows.
pub(super) fn split_rows<E>(
    mut data: &mut [E],
    width: usize,
    lengths: impl IntoIterator<Item = usize>,
) -> Vec<&mut [E]> {
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, rest) = data.split_at_mut(length * width);
        pieces.push(piece);
        data = rest;
    }
    pieces
}

/// The mask of one site over packed rows: finds a packed row's example and its row within it.
pub(super) struct RowMask<'a> {
    batch: &'a Batch,
    side: Side,
    step: &'a DropoutStep,
    site: Site,
}

impl<'a> RowMask<'a> {
    pub(super) fn new(batch: &'a Batch, side: Side, mask: Mask<'a>) -> Option<Self> {
        mask.map(|(step, site)| Self { batch, side, step, site })
    }

    /// Writes the multipliers (0 or 1 / (1 - p)) of packed rows `first..`, row by row of `width`; 0 after the last example.
    #[inline(always)]
    pub(super) fn fill<E: Element>(&self, first: usize, width: usize, multipliers: &mut [E]) {
        let saved = E::from_f64(self.step.scale());
        let mut b = self.example_of(first);
        for (offset, row) in multipliers.chunks_exact_mut(width).enumerate() {
            let packed = first + offset;
            while b < self.batch.examples() && packed >= self.batch.range(self.side, b).end {
                b += 1;
            }
            if b == self.batch.examples() {
                row.fill(E::zero());
                continue;
            }
            let within = packed - self.batch.range(self.side, b).start;
            self.step.row(self.site, self.batch.run(b), self.batch.example_index(b), within).fill(
                saved,
                E::zero(),
                row,
            );
        }
    }

    fn example_of(&self, packed: usize) -> usize {
        let (mut low, mut high) = (0, self.batch.examples());
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.batch.range(self.side, middle).start <= packed {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }
}
