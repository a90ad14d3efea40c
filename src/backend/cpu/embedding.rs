//! Rows that enter a stack: token embedding, and dropout over tokens and prompts.

use std::ops::Range;

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::linear::masked;
use super::rows::{RowMask, Rows, split_rows};
use super::vector::{reciprocal_rms, vectorised};
use crate::backend::ops::check_embedding_gradient;
use crate::backend::{Batch, Embedding, EmbeddingOps, Mask, Residual, Scope, Side};
use crate::error::Result;

impl<E: Element> EmbeddingOps for Cpu<E> {
    fn embed(&self, of: Embedding<'_, Self>, output: &mut Residual<Self>) -> Result<()> {
        of.check(output)?;
        let Embedding { table, batch, side, .. } = of;
        let x = &mut output.x;
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
        let rows = |b| match side {
            Side::Decoder => batch.range(side, b),
            Side::Encoder => batch.range(side, b).start + batch.prompt_length()..batch.range(side, b).end,
        };
        enter(self, batch, side, (of.mask, of.epsilon), rows, output);
        Ok(())
    }

    fn embed_backward(&self, batch: &Batch, mask: Mask<'_>, d_x: &mut Rows<E>) -> Result<()> {
        check_embedding_gradient(batch, mask, d_x)?;
        let Some(mask) = RowMask::new(batch, Side::Encoder, mask) else { return Ok(()) };
        let width = d_x.width;
        for b in 0..batch.examples() {
            let rows = batch.scoped_range(Side::Encoder, Scope::Prompt, b);
            let d_x = &mut d_x.data[rows.start * width..rows.end * width];
            let dropped = masked(self, &mask, rows.start, width, d_x);
            d_x.copy_from_slice(&dropped);
        }
        Ok(())
    }
}

/// Drops `rows` of each example by a mask, and writes their norms of an epsilon: how rows enter a stack.
pub(super) fn enter<E: Element>(
    cpu: &Cpu<E>,
    batch: &Batch,
    side: Side,
    (mask, epsilon): (Mask<'_>, f64),
    rows: impl Fn(usize) -> Range<usize> + Sync,
    output: &mut Residual<Cpu<E>>,
) {
    let Residual { x, r } = output;
    let (mask, width) = (RowMask::new(batch, side, mask), x.width);
    let lengths = || (0..batch.examples()).map(|b| batch.range(side, b).len());
    let examples =
        split_rows(&mut x.data, width, lengths()).into_iter().zip(split_rows(&mut r.data, 1, lengths()));
    let examples: Vec<_> = examples.enumerate().collect();
    cpu.run(|| {
        examples.into_par_iter().for_each(|(b, (x, r))| {
            let (rows, start) = (rows(b), batch.range(side, b).start);
            let x = &mut x[(rows.start - start) * width..(rows.end - start) * width];
            if let Some(mask) = &mask {
                let dropped = masked(cpu, mask, rows.start, width, x);
                x.copy_from_slice(&dropped);
            }
            vectorised!(cpu, {
                for (x, r) in x.chunks_exact(width).zip(&mut r[rows.start - start..rows.end - start]) {
                    *r = reciprocal_rms(x, E::from_f64(epsilon));
                }
            });
        });
    });
}
