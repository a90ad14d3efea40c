//! Rows that leave a stack: its final norm.

use rayon::prelude::*;

use super::element::Element;
use super::linear::{masked, norm_backward};
use super::rows::{Blocks, RowMask, Rows};
use super::vector::{multiply, vectorised};
use super::{Cpu, Weight};
use crate::backend::{FinalNorm, FinalNormBackward, NormOps, Residual};
use crate::error::Result;

impl<E: Element> NormOps for Cpu<E> {
    fn final_norm(&self, of: FinalNorm<'_, Self>, h: &mut Rows<E>) -> Result<()> {
        of.check(h)?;
        let Residual { x, r } = of.input;
        let width = x.width;
        let mask = RowMask::new(of.batch, of.side, of.mask);
        let blocks = Blocks::of(x.rows, self.share);
        self.run(|| {
            h.data.par_chunks_mut(blocks.size * width).enumerate().for_each(|(block, h)| {
                let first = block * blocks.size;
                let rows = first..first + h.len() / width;
                copy_masked(self, mask.as_ref(), first, width, x.range(rows.clone()), h);
                vectorised!(self, scale_rows(h, &r.values()[rows], of.norm_weight, E::from_f64(of.scale)));
            });
        });
        Ok(())
    }

    fn final_norm_backward(
        &self,
        of: FinalNorm<'_, Self>,
        from: FinalNormBackward<'_, Self>,
        d_x: &mut Rows<E>,
    ) -> Result<()> {
        of.check_backward(&from, d_x)?;
        let Residual { x, r } = of.input;
        let width = x.width;
        let mask = RowMask::new(of.batch, of.side, of.mask);
        let blocks = Blocks::of(x.rows, self.share);
        self.run(|| {
            d_x.data.par_chunks_mut(blocks.size * width).enumerate().for_each(|(block, d_x)| {
                let first = block * blocks.size;
                let rows = first..first + d_x.len() / width;
                let mut g = self.pool.take(d_x.len());
                copy_masked(self, mask.as_ref(), first, width, from.d_h.range(rows.clone()), &mut g);
                let (x, r) = (x.range(rows.clone()), &r.values()[rows]);
                d_x.fill(E::zero());
                vectorised!(self, {
                    for g in g.chunks_exact_mut(width) {
                        if let Some(norm_weight) = of.norm_weight {
                            multiply(g, norm_weight.values());
                        }
                        super::vector::scale(g, E::from_f64(of.scale));
                    }
                    norm_backward(&g, x, r, d_x);
                });
            });
        });
        Ok(())
    }
}

/// Copies rows of which `first` is the packed row of the first, dropped by the mask if there is one.
fn copy_masked<E: Element>(
    cpu: &Cpu<E>,
    mask: Option<&RowMask<'_>>,
    first: usize,
    width: usize,
    rows: &[E],
    copy: &mut [E],
) {
    match mask {
        Some(mask) => copy.copy_from_slice(&masked(cpu, mask, first, width, rows)),
        None => copy.copy_from_slice(rows),
    }
}

#[inline(always)]
fn scale_rows<E: Element>(h: &mut [E], r: &[E], norm_weight: Option<&Weight<E>>, scale: E) {
    let width = h.len() / r.len().max(1);
    for (h, &r) in h.chunks_exact_mut(width).zip(r) {
        super::vector::scale(h, r * scale);
        if let Some(norm_weight) = norm_weight {
            multiply(h, norm_weight.values());
        }
    }
}
