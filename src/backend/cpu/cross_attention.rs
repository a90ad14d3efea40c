//! Cross attention of T decoder rows over R encoder rows, in two ways that give the same numbers.
//!
//! Absorbed: q' = q W_k per head, scores = q' · h, mixed = p · h, o = mixed W_v^T. Work 2·t·H·n·D + 2·t·H·K·D an example.
//! Plain: k = h W_k^T, v = h W_v^T, then ordinary attention. Work 2·n·D·H·K + 2·t·n·H·K.
//! The cheaper one is taken, for the whole batch.

use std::ops::Range;

use rayon::prelude::*;

use super::element::Element;
use super::matrix::{View, ViewMut};
use super::pool::Buffer;
use super::rows::{Blocks, Rows, split_rows};
use super::vector::{dot, exponentials, maximum, multiply, scale, vectorised};
use super::{Cpu, Weight};
use crate::backend::{
    Batch, CrossAttention, CrossAttentionBackward, CrossAttentionOps, Device, Heads, Matrix, Side,
};
use crate::error::Result;

/// What cross attention's backward needs.
#[derive(Debug)]
pub struct CrossAttentionSaved<E: Element> {
    /// Probabilities before dropout: per example \[t·H, n\], example after example.
    p: Rows<E>,
    way: Way<E>,
}

#[derive(Debug)]
enum Way<E: Element> {
    /// q' \[T, H·D\].
    Absorbed { absorbed_q: Rows<E> },
    /// k and v side by side, \[R, 2·H·K\].
    Plain { kv: Rows<E> },
}

impl<E: Element> CrossAttentionSaved<E> {
    /// Fails unless it was saved of a batch and heads of those shapes.
    fn check(&self, of: &CrossAttention<'_, Cpu<E>>, ranges: &[Range<usize>]) -> Result<()> {
        let (batch, heads) = (of.batch, of.heads);
        self.p.check("the probabilities", 1, ranges.last().map_or(0, |range| range.end))?;
        match &self.way {
            Way::Absorbed { absorbed_q } => {
                absorbed_q.check("q W_k", batch.rows(Side::Decoder), heads.count * of.depth())
            }
            Way::Plain { kv } => kv.check("k and v", batch.rows(Side::Encoder), 2 * heads.total()),
        }
    }
}

/// Whether scoring against the encoder rows themselves costs less than projecting them to keys and values.
fn absorbs(batch: &Batch, heads: Heads, width: usize) -> bool {
    let mut absorbed = 0;
    let mut plain = 0;
    for b in 0..batch.examples() {
        let (n, t) = (batch.range(Side::Encoder, b).len(), batch.range(Side::Decoder, b).len());
        absorbed += 2 * t * heads.count * width * (n + heads.width);
        plain += 2 * n * heads.total() * (width + t);
    }
    absorbed <= plain
}

/// Rows of each example.
fn lengths(batch: &Batch, side: Side) -> impl Iterator<Item = usize> {
    (0..batch.examples()).map(move |b| batch.range(side, b).len())
}

/// Where each example's t·H × n probabilities lie.
fn probability_ranges(batch: &Batch, heads: usize) -> Vec<Range<usize>> {
    let mut end = 0;
    let length = |b| batch.range(Side::Decoder, b).len() * heads * batch.range(Side::Encoder, b).len();
    (0..batch.examples())
        .map(|b| {
            let start = end;
            end += length(b);
            start..end
        })
        .collect()
}

impl<E: Element> CrossAttentionOps for Cpu<E> {
    type CrossAttentionSaved = CrossAttentionSaved<E>;
    type SourceGradient = Rows<E>;

    fn cross_attention(
        &self,
        of: &CrossAttention<'_, Self>,
        q: &Rows<E>,
        h: &Rows<E>,
        o: &mut Rows<E>,
        keep: bool,
    ) -> Result<Option<CrossAttentionSaved<E>>> {
        of.check(q, h, o)?;
        let CrossAttention { batch, heads, .. } = *of;
        let (count, total, width) = (heads.count, heads.total(), of.depth());
        let way = if absorbs(batch, heads, width) {
            let mut absorbed_q = self.allocate(q.rows, count * width);
            per_head(self, q, of.w_k, count, false, &mut absorbed_q);
            Way::Absorbed { absorbed_q }
        } else {
            Way::Plain { kv: project_source(self, of, h) }
        };
        let ranges = probability_ranges(batch, count);
        let mut p = self.allocate(1, ranges.last().map_or(0, |range| range.end));
        let mut mixed = self.allocate(q.rows, if let Way::Absorbed { .. } = way { count * width } else { 0 });
        let p_examples = split_rows(&mut p.data, 1, ranges.iter().map(Range::len));
        let mixed_examples = split_rows(&mut mixed.data, mixed.width, lengths(batch, Side::Decoder));
        let o_examples = split_rows(&mut o.data, total, lengths(batch, Side::Decoder));
        self.run(|| {
            let outputs = p_examples.into_par_iter().zip(mixed_examples).zip(o_examples).with_max_len(1);
            outputs.enumerate().for_each(|(b, ((p, mixed), o))| {
                let (rows, source) = (batch.range(Side::Decoder, b), batch.range(Side::Encoder, b));
                let (t, n) = (rows.len(), source.len());
                match &way {
                    Way::Absorbed { absorbed_q } => {
                        let q = View::new(absorbed_q.range(rows.clone()), t * count, width, width);
                        let h = View::new(h.range(source.clone()), n, width, width);
                        self.multiply_by_transpose(ViewMut::new(p, t * count, n, n), q, h);
                    }
                    Way::Plain { kv } => {
                        for head in 0..count {
                            let column = head * heads.width;
                            let q = View::new(&q.range(rows.clone())[column..], t, heads.width, total);
                            let k = View::new(&kv.range(source.clone())[column..], n, heads.width, 2 * total);
                            let scores = ViewMut::new(&mut p[head * n..], t, n, count * n);
                            self.multiply_by_transpose(scores, q, k);
                        }
                    }
                }
                vectorised!(self, softmax(p, n));
                let mut dropped = self.pool.take(if of.mask.is_some() { p.len() } else { 0 });
                let p = if of.mask.is_some() {
                    vectorised!(self, {
                        fill_mask(of, b, n, &mut dropped);
                        multiply(&mut dropped, p);
                    });
                    &*dropped
                } else {
                    &*p
                };
                match &way {
                    Way::Absorbed { .. } => {
                        let h = View::new(h.range(source), n, width, width);
                        let destination = ViewMut::new(mixed, t * count, width, width);
                        self.multiply_alone(destination, false, View::new(p, t * count, n, n), h);
                    }
                    Way::Plain { kv } => {
                        for head in 0..count {
                            let column = head * heads.width;
                            let p = View::new(&p[head * n..], t, n, count * n);
                            let v = View::new(
                                &kv.range(source.clone())[total + column..],
                                n,
                                heads.width,
                                2 * total,
                            );
                            let destination = ViewMut::new(&mut o[column..], t, heads.width, total);
                            self.multiply_alone(destination, false, p, v);
                        }
                    }
                }
            });
        });
        if let Way::Absorbed { .. } = way {
            per_head(self, &mixed, of.w_v, count, true, o);
        }
        Ok(keep.then_some(CrossAttentionSaved { p, way }))
    }

    fn source_gradient(&self, batch: &Batch, width: usize) -> Result<Rows<E>> {
        self.zeros(batch.rows(Side::Encoder), width)
    }

    fn cross_attention_backward(
        &self,
        of: &CrossAttention<'_, Self>,
        from: CrossAttentionBackward<'_, Self>,
        d_q: Option<&mut Rows<E>>,
        d_h: &mut Rows<E>,
    ) -> Result<()> {
        of.check_backward(&from, d_q.as_deref())?;
        d_h.check("d_h", of.batch.rows(Side::Encoder), of.depth())?;
        from.saved.check(of, &probability_ranges(of.batch, of.heads.count))?;
        match &from.saved.way {
            Way::Absorbed { absorbed_q } => absorbed_backward(self, of, &from, absorbed_q, d_q, d_h),
            Way::Plain { kv } => plain_backward(self, of, &from, kv, d_q, d_h),
        }
        Ok(())
    }

    fn source_rows(&self, batch: &Batch, d_h: Rows<E>) -> Result<Rows<E>> {
        d_h.check("d_h", batch.rows(Side::Encoder), d_h.width)?;
        Ok(d_h)
    }
}

/// Keys and values side by side, \[R, 2·H·K\].
fn project_source<E: Element>(cpu: &Cpu<E>, of: &CrossAttention<'_, Cpu<E>>, h: &Rows<E>) -> Rows<E> {
    let (total, width) = (of.heads.total(), of.depth());
    let mut kv = cpu.allocate(h.rows, 2 * total);
    let blocks = Blocks::of(h.rows, cpu.share);
    cpu.run(|| {
        kv.data.par_chunks_mut(blocks.size * 2 * total).enumerate().for_each(|(block, kv)| {
            let rows = kv.len() / (2 * total);
            let first = block * blocks.size;
            let h = View::new(h.range(first..first + rows), rows, width, width);
            for (start, weight) in [(0, of.w_k), (total, of.w_v)] {
                let destination = ViewMut::new(&mut kv[start..], rows, total, 2 * total);
                cpu.multiply(destination, false, h, weight.view().transposed(), blocks);
            }
        });
    });
    kv
}

/// Backward of the absorbed way.
fn absorbed_backward<E: Element>(
    cpu: &Cpu<E>,
    of: &CrossAttention<'_, Cpu<E>>,
    from: &CrossAttentionBackward<'_, Cpu<E>>,
    absorbed_q: &Rows<E>,
    d_q: Option<&mut Rows<E>>,
    d_h: &mut Rows<E>,
) {
    let CrossAttentionBackward { saved, q, h, d_o, .. } = *from;
    let (batch, count, width) = (of.batch, of.heads.count, of.depth());
    let ranges = probability_ranges(batch, count);
    let mut d_mixed = cpu.allocate(q.rows, count * width);
    per_head(cpu, d_o, of.w_v, count, false, &mut d_mixed);
    let wanted = if d_q.is_some() { count * width } else { 0 };
    let mut d_absorbed_q = cpu.allocate(q.rows, wanted);
    let d_h_examples = split_rows(&mut d_h.data, width, lengths(batch, Side::Encoder));
    let d_absorbed_examples = split_rows(&mut d_absorbed_q.data, wanted, lengths(batch, Side::Decoder));
    cpu.run(|| {
        let outputs = d_h_examples.into_par_iter().zip(d_absorbed_examples).with_max_len(1);
        outputs.enumerate().for_each(|(b, (d_h, d_absorbed_q))| {
            let (rows, source) = (batch.range(Side::Decoder, b), batch.range(Side::Encoder, b));
            let (m, n) = (rows.len() * count, source.len());
            let h = View::new(h.range(source), n, width, width);
            let d_mixed = View::new(d_mixed.range(rows.clone()), m, width, width);
            let mut ds = cpu.pool.take(m * n);
            cpu.multiply_by_transpose(ViewMut::new(&mut ds, m, n, n), d_mixed, h);
            let p = &saved.p.data[ranges[b].clone()];
            let dropped = softmax_backward(cpu, of, b, n, p, &mut ds);
            let ds = View::new(&ds, m, n, n);
            if wanted > 0 {
                let destination = ViewMut::new(d_absorbed_q, m, width, width);
                cpu.multiply_alone(destination, false, ds, h);
            }
            let q = View::new(absorbed_q.range(rows), m, width, width);
            cpu.multiply_alone(ViewMut::new(d_h, n, width, width), true, ds.transposed(), q);
            let p = View::new(if dropped.is_empty() { p } else { &dropped }, m, n, n);
            cpu.multiply_alone(ViewMut::new(d_h, n, width, width), true, p.transposed(), d_mixed);
        });
    });
    if let Some(d_q) = d_q {
        per_head(cpu, &d_absorbed_q, of.w_k, count, true, d_q);
    }
}

/// Backward of the plain way.
fn plain_backward<E: Element>(
    cpu: &Cpu<E>,
    of: &CrossAttention<'_, Cpu<E>>,
    from: &CrossAttentionBackward<'_, Cpu<E>>,
    kv: &Rows<E>,
    mut d_q: Option<&mut Rows<E>>,
    d_h: &mut Rows<E>,
) {
    let CrossAttentionBackward { saved, q, h, d_o, .. } = *from;
    let (batch, heads) = (of.batch, of.heads);
    let (count, total, width) = (heads.count, heads.total(), of.depth());
    let ranges = probability_ranges(batch, count);
    let mut d_kv = cpu.allocate(h.rows, 2 * total);
    let d_kv_examples = split_rows(&mut d_kv.data, 2 * total, lengths(batch, Side::Encoder));
    let d_q_width = if d_q.is_some() { total } else { 0 };
    let d_q_data = d_q.as_mut().map_or(&mut [][..], |d_q| &mut d_q.data);
    let d_q_examples = split_rows(d_q_data, d_q_width, lengths(batch, Side::Decoder));
    cpu.run(|| {
        let outputs = d_kv_examples.into_par_iter().zip(d_q_examples).with_max_len(1);
        outputs.enumerate().for_each(|(b, (d_kv, d_q))| {
            let (rows, source) = (batch.range(Side::Decoder, b), batch.range(Side::Encoder, b));
            let (t, n) = (rows.len(), source.len());
            let (q, d_o, kv) = (q.range(rows.clone()), d_o.range(rows), kv.range(source));
            let mut ds = cpu.pool.take(t * count * n);
            for head in 0..count {
                let column = head * heads.width;
                let v = View::new(&kv[total + column..], n, heads.width, 2 * total);
                let destination = ViewMut::new(&mut ds[head * n..], t, n, count * n);
                let d_o = View::new(&d_o[column..], t, heads.width, total);
                cpu.multiply_by_transpose(destination, d_o, v);
            }
            let p = &saved.p.data[ranges[b].clone()];
            let dropped = softmax_backward(cpu, of, b, n, p, &mut ds);
            let p = if dropped.is_empty() { p } else { &dropped };
            for head in 0..count {
                let column = head * heads.width;
                let ds = View::new(&ds[head * n..], t, n, count * n);
                let p = View::new(&p[head * n..], t, n, count * n);
                let k = View::new(&kv[column..], n, heads.width, 2 * total);
                if d_q_width > 0 {
                    let d_q = ViewMut::new(&mut d_q[column..], t, heads.width, total);
                    cpu.multiply_alone(d_q, false, ds, k);
                }
                let d_k = ViewMut::new(&mut d_kv[column..], n, heads.width, 2 * total);
                cpu.multiply_alone(
                    d_k,
                    false,
                    ds.transposed(),
                    View::new(&q[column..], t, heads.width, total),
                );
                let d_v = ViewMut::new(&mut d_kv[total + column..], n, heads.width, 2 * total);
                cpu.multiply_alone(
                    d_v,
                    false,
                    p.transposed(),
                    View::new(&d_o[column..], t, heads.width, total),
                );
            }
        });
    });
    let blocks = Blocks::of(h.rows, cpu.share);
    cpu.run(|| {
        d_h.data.par_chunks_mut(blocks.size * width).enumerate().for_each(|(block, d_h)| {
            let rows = d_h.len() / width;
            let d_kv = d_kv.range(block * blocks.size..block * blocks.size + rows);
            for (start, weight) in [(0, of.w_k), (total, of.w_v)] {
                let d_kv = View::new(&d_kv[start..], rows, total, 2 * total);
                let destination = ViewMut::new(&mut *d_h, rows, width, width);
                cpu.multiply(destination, true, d_kv, weight.view(), blocks);
            }
        });
    });
}

/// The product of each head's columns with that head's K × D piece of `weight` \[H·K, D\]: narrow rows \[T, H·K\] become
/// wide ones \[T, H·D\], or with `narrowing` the other way round through the transpose.
fn per_head<E: Element>(
    cpu: &Cpu<E>,
    from: &Rows<E>,
    weight: &Weight<E>,
    heads: usize,
    narrowing: bool,
    to: &mut Rows<E>,
) {
    let (head_width, width) = (weight.out / heads, weight.input);
    let (from_step, to_step) = if narrowing { (width, head_width) } else { (head_width, width) };
    // By the rows alone: the GEMM crate sums small products in another order, so a cut by threads would show in the bytes.
    let size = from.rows.div_ceil(8).clamp(32, 128);
    cpu.run(|| {
        to.data.par_chunks_mut(size * heads * to_step).enumerate().for_each(|(block, to)| {
            let rows = to.len() / (heads * to_step);
            let from = from.range(block * size..block * size + rows);
            for head in 0..heads {
                let piece =
                    View::new(&weight.values()[head * head_width * width..], head_width, width, width);
                let from = View::new(&from[head * from_step..], rows, from_step, heads * from_step);
                let to = ViewMut::new(&mut to[head * to_step..], rows, to_step, heads * to_step);
                if narrowing {
                    cpu.multiply_by_transpose(to, from, piece);
                } else {
                    cpu.multiply_alone(to, false, from, piece);
                }
            }
        });
    });
}

#[inline(always)]
fn softmax<E: Element>(scores: &mut [E], n: usize) {
    for row in scores.chunks_exact_mut(n) {
        let most = maximum(row);
        let sum = exponentials(row, most);
        scale(row, E::one() / sum);
    }
}

/// `ds` turns from d_p to p·(d_p·mask - delta); returns the dropped probabilities, empty when nothing is dropped.
fn softmax_backward<E: Element>(
    cpu: &Cpu<E>,
    of: &CrossAttention<'_, Cpu<E>>,
    b: usize,
    n: usize,
    p: &[E],
    ds: &mut [E],
) -> Buffer<E> {
    let mut dropped = cpu.pool.take(if of.mask.is_some() { p.len() } else { 0 });
    vectorised!(cpu, {
        if of.mask.is_some() {
            fill_mask(of, b, n, &mut dropped);
            multiply(ds, &dropped);
            multiply(&mut dropped, p);
        }
        for (ds, p) in ds.chunks_exact_mut(n).zip(p.chunks_exact(n)) {
            let delta = dot(ds, p);
            for (ds, &p) in ds.iter_mut().zip(p) {
                *ds = p * (*ds - delta);
            }
        }
    });
    dropped
}

/// The mask of example `b`, \[t·H, n\]; rows of one target token lie together, one a head.
#[inline(always)]
fn fill_mask<E: Element>(of: &CrossAttention<'_, Cpu<E>>, b: usize, n: usize, multipliers: &mut [E]) {
    let Some((step, site)) = of.mask else { return };
    let heads = of.heads.count;
    for (row, multipliers) in multipliers.chunks_exact_mut(n).enumerate() {
        step.row(site.head(row % heads), of.batch.run(b), of.batch.example_index(b), row / heads).fill(
            E::from_f64(step.scale()),
            E::zero(),
            multipliers,
        );
    }
}
