//! Rows that enter a stack: token embedding, and dropout over tokens and prompts.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::linear::masked;
use super::rows::{Blocks, RowMask, Rows};
use super::vector::{reciprocal_rms, vectorised};
use crate::backend::ops::check_embedding_gradient;
use crate::backend::{Batch, Embedding, EmbeddingOps, Mask, Residual, Scope, Side};
use crate::error::Result;

impl<E: Element> EmbeddingOps for Cpu<E> {
    fn embed(&self, of: Embedding<'_, Self>, output: &mut Residual<Self>) -> Result<()> {
        of.check(output)?;
        let Embedding { table, batch, side, .. } = of;
        let Residual { x, r } = output;
        let width = table.input;
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
        let mask = RowMask::new(batch, side, of.mask);
        let blocks = Blocks::of(x.rows, self.share);
        self.run(|| {
            let rows = x.data.par_chunks_mut(blocks.size * width).zip(r.data.par_chunks_mut(blocks.size));
            rows.enumerate().for_each(|(block, (x, r))| {
                if let Some(mask) = &mask {
                    let dropped = masked(self, mask, block * blocks.size, width, x);
                    x.copy_from_slice(&dropped);
                }
                vectorised!(self, {
                    for (x, r) in x.chunks_exact(width).zip(r) {
                        *r = reciprocal_rms(x, E::from_f64(of.epsilon));
                    }
                });
            });
        });
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
