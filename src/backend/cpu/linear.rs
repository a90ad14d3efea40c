//! Projections through frozen weights, with what stands before and after them.
//!
//! Rows are cut into blocks; within one, the product and the loop that follows it run back to back on cached data. A
//! row's result does not depend on the cut: each is summed in the same order whatever block it falls in.

use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::element::Element;
use super::matrix::{self, View, ViewMut, transpose_into};
use super::pool::Buffer;
use super::rows::{Blocks, RowMask, Rows, split_rows};
use super::vector::{add_scaled, dot, multiply, reciprocal_rms, scale, vectorised};
use super::{Cpu, Weight};
use crate::backend::{
    LinearOps, Projection, ProjectionBackward, Residual, ResidualProjection, ResidualProjectionBackward,
    Scope, Side,
};
use crate::error::Result;

impl<E: Element> LinearOps for Cpu<E> {
    fn project(&self, of: Projection<'_, Self>, z: &mut Rows<E>) -> Result<()> {
        of.check(z)?;
        let (weight, Residual { x, r }) = (of.weight, of.input);
        let blocks = Blocks::of(x.rows, self.share);
        let width = x.width;
        self.run(|| {
            z.data.par_chunks_mut(blocks.size * weight.out).enumerate().for_each(|(block, z)| {
                let rows = z.len() / weight.out;
                let first = block * blocks.size;
                let mut scaled = self.pool.take(rows * width);
                vectorised!(self, {
                    scaled.copy_from_slice(x.range(first..first + rows));
                    scale_rows(&mut scaled, width, &r.values()[first..first + rows]);
                });
                let x = View::new(&scaled, rows, width, width);
                multiply_weight(self, x, weight, z, blocks);
            });
        });
        Ok(())
    }

    fn project_backward(&self, of: ProjectionBackward<'_, Self>, d_x: &mut Rows<E>) -> Result<()> {
        of.check(d_x)?;
        let ProjectionBackward { batch, scope, dz, weight, input: Residual { x, r }, .. } = of;
        let width = weight.input;
        match scope {
            Scope::All => {
                let blocks = Blocks::of(x.rows, self.share);
                self.run(|| {
                    d_x.data.par_chunks_mut(blocks.size * width).enumerate().for_each(|(block, d_x)| {
                        let first = block * blocks.size;
                        let rows = first..first + d_x.len() / width;
                        let dz = View::new(dz.range(rows.clone()), rows.len(), weight.out, weight.out);
                        let (x, r) = (x.range(rows.clone()), &r.values()[rows]);
                        add_norm_backward(self, dz, weight, x, r, d_x, blocks);
                    });
                });
            }
            Scope::Prompt => {
                let length = batch.prompt_length();
                let examples = (0..batch.examples()).map(|b| batch.range(Side::Encoder, b).len());
                let pieces = split_rows(&mut d_x.data, width, examples);
                let blocks = Blocks { size: length, inner_threads: 1 };
                self.run(|| {
                    pieces.into_par_iter().enumerate().for_each(|(b, d_x)| {
                        let rows = batch.scoped_range(Side::Encoder, scope, b);
                        let dz = dz.range(b * length..(b + 1) * length);
                        let dz = View::new(dz, length, weight.out, weight.out);
                        let (x, r) = (x.range(rows.clone()), &r.values()[rows]);
                        add_norm_backward(self, dz, weight, x, r, &mut d_x[..length * width], blocks);
                    });
                });
            }
        }
        Ok(())
    }

    fn add_project(&self, of: ResidualProjection<'_, Self>, next: &mut Residual<Self>) -> Result<()> {
        of.check(next)?;
        let ResidualProjection { y, weight, x, .. } = of;
        let mask = RowMask::new(of.batch, of.side, of.mask);
        let blocks = Blocks::of(x.rows, self.share);
        let width = weight.out;
        self.run(|| {
            let x_next = next.x.data.par_chunks_mut(blocks.size * width);
            let outputs = x_next.zip(next.r.data.par_chunks_mut(blocks.size));
            outputs.enumerate().for_each(|(block, (x_next, r_next))| {
                let first = block * blocks.size;
                let rows = first..first + r_next.len();
                let y = View::new(y.range(rows.clone()), rows.len(), y.width, y.width);
                multiply_weight(self, y, weight, x_next, blocks);
                finish_sublayer(self, mask.as_ref(), first, of.epsilon, x.range(rows), x_next, r_next);
            });
        });
        Ok(())
    }

    fn add_project_backward(
        &self,
        of: ResidualProjectionBackward<'_, Self>,
        d_y: &mut Rows<E>,
    ) -> Result<()> {
        of.check(d_y)?;
        let ResidualProjectionBackward { d_x, weight, .. } = of;
        let mask = RowMask::new(of.batch, of.side, of.mask);
        let blocks = Blocks::of(d_x.rows, self.share);
        self.run(|| {
            d_y.data.par_chunks_mut(blocks.size * weight.input).enumerate().for_each(|(block, d_y)| {
                let first = block * blocks.size;
                let rows = d_y.len() / weight.input;
                let destination = ViewMut::new(d_y, rows, weight.input, weight.input);
                let d_x = d_x.range(first..first + rows);
                multiply_masked(self, destination, mask.as_ref(), first, d_x, weight, blocks);
            });
        });
        Ok(())
    }
}

/// z = x W^T.
///
/// The GEMM crate packs a weight anew for every product unless its rows lie as in W^T. Where W^T is not stored, few rows read
/// the weight: packing it would cost as much as the product, so z^T = W x^T is computed, and x and z, which are small, are
/// transposed.
pub(super) fn multiply_weight<E: Element>(
    cpu: &Cpu<E>,
    x: View<'_, E>,
    weight: &Weight<E>,
    z: &mut [E],
    blocks: Blocks,
) {
    /// Rows are rounded up to whole vectors, the widest of which holds sixteen numbers.
    const VECTOR: usize = 16;
    /// Outputs of a piece of the product.
    const OUTPUTS: usize = 128;
    let (out, input, rows) = (weight.out, weight.input, x.rows());
    if let Some(transposed) = weight.transposed() {
        return cpu.multiply(ViewMut::new(z, rows, out, out), false, x, transposed, blocks);
    }
    let padded = rows.next_multiple_of(VECTOR);
    let mut x_transposed = cpu.pool.take(input * padded);
    vectorised!(cpu, {
        for x in x_transposed.chunks_exact_mut(padded) {
            x[rows..].fill(E::zero());
        }
        transpose_into(x, ViewMut::new(&mut x_transposed, input, rows, padded));
    });
    let x = View::new(&x_transposed, input, padded, padded);
    let mut z_transposed = cpu.pool.take(out * padded);
    z_transposed.par_chunks_mut(OUTPUTS * padded).enumerate().for_each(|(piece, z)| {
        let outputs = z.len() / padded;
        let weight = &weight.values()[piece * OUTPUTS * input..];
        let weight = View::new(weight, outputs, input, input);
        matrix::multiply(ViewMut::new(z, outputs, padded, padded), false, weight, x, 1);
    });
    // Not the rows that fill up a vector.
    cpu.operations.fetch_add(2 * (rows * out * input) as u64, Ordering::Relaxed);
    z.par_chunks_mut(VECTOR * out).enumerate().for_each(|(piece, z)| {
        let rows = z.len() / out;
        let z_transposed = View::new(&z_transposed[piece * VECTOR..], out, rows, padded);
        vectorised!(cpu, transpose_into(z_transposed, ViewMut::new(z, rows, out, out)));
    });
}

/// destination = mask(d) W; `first` is the packed row of d's first.
pub(super) fn multiply_masked<E: Element>(
    cpu: &Cpu<E>,
    destination: ViewMut<'_, E>,
    mask: Option<&RowMask<'_>>,
    first: usize,
    d: &[E],
    weight: &Weight<E>,
    blocks: Blocks,
) {
    let dropped = mask.map(|mask| masked(cpu, mask, first, weight.out, d));
    let d = dropped.as_deref().unwrap_or(d);
    let d = View::new(d, d.len() / weight.out, weight.out, weight.out);
    cpu.multiply(destination, false, d, weight.view(), blocks);
}

/// The epilogue that every sublayer ends with: `x_next` holds the sublayer's output on entry.
pub(super) fn finish_sublayer<E: Element>(
    cpu: &Cpu<E>,
    mask: Option<&RowMask<'_>>,
    first: usize,
    epsilon: f64,
    x: &[E],
    x_next: &mut [E],
    r_next: &mut [E],
) {
    let width = x_next.len() / r_next.len();
    let mut multipliers = cpu.pool.take(if mask.is_some() { x_next.len() } else { 0 });
    vectorised!(cpu, {
        if let Some(mask) = mask {
            mask.fill(first, width, &mut multipliers);
            multiply(x_next, &multipliers);
        }
        add_residual(x, x_next, r_next, E::from_f64(epsilon));
    });
}

#[inline(always)]
fn add_residual<E: Element>(x: &[E], x_next: &mut [E], r_next: &mut [E], epsilon: E) {
    let width = x_next.len() / r_next.len();
    for ((x, x_next), r) in x.chunks_exact(width).zip(x_next.chunks_exact_mut(width)).zip(r_next) {
        add_scaled(x_next, E::one(), x);
        *r = reciprocal_rms(x_next, epsilon);
    }
}

/// d_x += r·G - r²·(<G, x·r> / D)·x with G = dz W.
pub(super) fn add_norm_backward<E: Element>(
    cpu: &Cpu<E>,
    dz: View<'_, E>,
    weight: &Weight<E>,
    x: &[E],
    r: &[E],
    d_x: &mut [E],
    blocks: Blocks,
) {
    let width = weight.input;
    let mut g = cpu.pool.take(r.len() * width);
    cpu.multiply(ViewMut::new(&mut g, r.len(), width, width), false, dz, weight.view(), blocks);
    vectorised!(cpu, norm_backward(&g, x, r, d_x));
}

/// d_x += r·g - r³·(<g, x> / D)·x, row by row.
#[inline(always)]
pub(super) fn norm_backward<E: Element>(g: &[E], x: &[E], r: &[E], d_x: &mut [E]) {
    let width = x.len() / r.len().max(1);
    let rows = g.chunks_exact(width).zip(x.chunks_exact(width)).zip(d_x.chunks_exact_mut(width));
    for (((g, x), d_x), &r) in rows.zip(r) {
        let pull = r * r * r * dot(g, x) / E::from_f64(width as f64);
        for ((d_x, &g), &x) in d_x.iter_mut().zip(g).zip(x) {
            *d_x = *d_x + r * g - pull * x;
        }
    }
}

/// A copy of `rows` with the mask applied.
pub(super) fn masked<E: Element>(
    cpu: &Cpu<E>,
    mask: &RowMask<'_>,
    first: usize,
    width: usize,
    rows: &[E],
) -> Buffer<E> {
    let mut dropped = cpu.pool.take(rows.len());
    vectorised!(cpu, {
        mask.fill(first, width, &mut dropped);
        multiply(&mut dropped, rows);
    });
    dropped
}

#[inline(always)]
pub(super) fn scale_rows<E: Element>(rows: &mut [E], width: usize, factors: &[E]) {
    for (row, &factor) in rows.chunks_exact_mut(width).zip(factors) {
        scale(row, factor);
    }
}
