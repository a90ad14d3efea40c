//! Rows that enter a stack and rows that leave it: embedding and final norm.

use rayon::prelude::*;

use super::element::Element;
use super::linear::{masked, norm_backward};
use super::rows::{Blocks, RowMask, Rows};
use super::vector::{multiply, reciprocal_rms, vectorised};
use super::{Cpu, Weight};
use crate::backend::{Batch, Mask, Scope, Side};

#[allow(clippy::too_many_arguments)] // an op's operands are its signature
pub(super) fn embed<E: Element>(
    cpu: &Cpu<E>,
    table: &Weight<E>,
    side: Side,
    batch: &Batch,
    mask: Mask<'_>,
    epsilon: f64,
    x: &mut Rows<E>,
    r: &mut Rows<E>,
) {
    let width = table.input;
    x.expect_shape(batch.rows(side), width, "x");
    r.expect_shape(x.rows, 1, "r");
    let mut write = |row: usize, id: u32| {
        x.row_mut(row).copy_from_slice(table.row(id as usize));
    };
    match side {
        Side::Decoder => batch.decoder_ids().iter().enumerate().for_each(|(row, &id)| write(row, id)),
        Side::Encoder => {
            for b in 0..batch.examples() {
                let first = batch.range(side, b).start + batch.prompt_length();
                batch.source(b).iter().enumerate().for_each(|(token, &id)| write(first + token, id));
            }
        }
    }
    let mask = RowMask::new(batch, side, mask);
    let blocks = Blocks::of(x.rows, cpu.share);
    cpu.run(|| {
        let rows = x.data.par_chunks_mut(blocks.size * width).zip(r.data.par_chunks_mut(blocks.size));
        rows.enumerate().for_each(|(block, (x, r))| {
            if let Some(mask) = &mask {
                let dropped = masked(cpu, mask, block * blocks.size, width, x);
                x.copy_from_slice(&dropped);
            }
            vectorised!(cpu, {
                for (x, r) in x.chunks_exact(width).zip(r) {
                    *r = reciprocal_rms(x, E::from_f64(epsilon));
                }
            });
        });
    });
}

pub(super) fn embed_backward<E: Element>(cpu: &Cpu<E>, batch: &Batch, mask: Mask<'_>, d_x: &mut Rows<E>) {
    let Some(mask) = RowMask::new(batch, Side::Encoder, mask) else { return };
    let width = d_x.width;
    for b in 0..batch.examples() {
        let rows = batch.scoped_range(Side::Encoder, Scope::Prompt, b);
        let d_x = &mut d_x.data[rows.start * width..rows.end * width];
        let dropped = masked(cpu, &mask, rows.start, width, d_x);
        d_x.copy_from_slice(&dropped);
    }
}

#[allow(clippy::too_many_arguments)] // an op's operands are its signature
pub(super) fn final_norm<E: Element>(
    cpu: &Cpu<E>,
    batch: &Batch,
    side: Side,
    x: &Rows<E>,
    r: &Rows<E>,
    gain: Option<&Weight<E>>,
    scale: f64,
    mask: Mask<'_>,
    h: &mut Rows<E>,
) {
    let width = x.width;
    h.expect_shape(x.rows, width, "h");
    let mask = RowMask::new(batch, side, mask);
    let blocks = Blocks::of(x.rows, cpu.share);
    cpu.run(|| {
        h.data.par_chunks_mut(blocks.size * width).enumerate().for_each(|(block, h)| {
            let first = block * blocks.size;
            let rows = first..first + h.len() / width;
            match &mask {
                Some(mask) => h.copy_from_slice(&masked(cpu, mask, first, width, x.range(rows.clone()))),
                None => h.copy_from_slice(x.range(rows.clone())),
            }
            vectorised!(cpu, scale_rows(h, &r.values()[rows], gain, E::from_f64(scale)));
        });
    });
}

#[allow(clippy::too_many_arguments)] // an op's operands are its signature
pub(super) fn final_norm_backward<E: Element>(
    cpu: &Cpu<E>,
    batch: &Batch,
    side: Side,
    x: &Rows<E>,
    r: &Rows<E>,
    gain: Option<&Weight<E>>,
    scale: f64,
    mask: Mask<'_>,
    d_h: &Rows<E>,
    d_x: &mut Rows<E>,
) {
    let width = x.width;
    d_h.expect_shape(x.rows, width, "d_h");
    d_x.expect_shape(x.rows, width, "d_x");
    let mask = RowMask::new(batch, side, mask);
    let blocks = Blocks::of(x.rows, cpu.share);
    cpu.run(|| {
        d_x.data.par_chunks_mut(blocks.size * width).enumerate().for_each(|(block, d_x)| {
            let first = block * blocks.size;
            let rows = first..first + d_x.len() / width;
            let mut g = cpu.pool.take(d_x.len());
            match &mask {
                Some(mask) => g.copy_from_slice(&masked(cpu, mask, first, width, d_h.range(rows.clone()))),
                None => g.copy_from_slice(d_h.range(rows.clone())),
            }
            let (x, r) = (x.range(rows.clone()), &r.values()[rows]);
            d_x.fill(E::zero());
            vectorised!(cpu, {
                for g in g.chunks_exact_mut(width) {
                    if let Some(gain) = gain {
                        multiply(g, gain.values());
                    }
                    super::vector::scale(g, E::from_f64(scale));
                }
                norm_backward(&g, x, r, d_x);
            });
        });
    });
}

#[inline(always)]
fn scale_rows<E: Element>(h: &mut [E], r: &[E], gain: Option<&Weight<E>>, scale: E) {
    let width = h.len() / r.len().max(1);
    for (h, &r) in h.chunks_exact_mut(width).zip(r) {
        super::vector::scale(h, r * scale);
        if let Some(gain) = gain {
            multiply(h, gain.values());
        }
    }
}
