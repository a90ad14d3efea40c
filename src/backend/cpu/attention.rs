//! Self attention: tiles of queries through the GEMM crate, one softmax pass a tile row, no H × n × n tensor stored.
//!
//! o_i = sum_j softmax_j(q_i · k_j + bias\[j - i\]) v_j. Backward recomputes the probabilities from q, k and the row's
//! log-sum-exp, and needs no gradient of the bias: it is frozen.

use std::ops::Range;

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::matrix::{View, ViewMut};
use super::pool::Buffer;
use super::rows::{Rows, split_rows};
use super::vector::{
    LANES, add_and_maximum, dot, exponentials_of_vectors, multiply, scale, vectorised, vectors, vectors_mut,
};
use crate::backend::ops::check_bias;
use crate::backend::{Batch, Heads, Mask, SelfAttention, SelfAttentionBackward, SelfAttentionOps, Side};
use crate::error::Result;

/// Queries of a tile: its scores stay in the second-level cache for a few hundred keys.
const TILE: usize = 256;

/// One short row of bias a head, for key - query from -max_distance to max_distance; beyond, the end values hold.
#[derive(Debug)]
pub struct PositionBias<E> {
    per_head: Vec<Vec<E>>,
    max_distance: usize,
}

impl<E: Element> PositionBias<E> {
    /// The bias of every key - query from -(length - 1) to length - 1, and on for as much as fills up a row of scores.
    fn stretched(&self, head: usize, length: usize) -> Vec<E> {
        let row = &self.per_head[head];
        let last = length.saturating_sub(1) as isize;
        (-last..last + LANES as isize).map(|offset| row[self.slot(offset)]).collect()
    }

    /// The bias of keys 0..=query for the query at `query`.
    pub(super) fn before(&self, head: usize, query: usize) -> Vec<E> {
        let offsets = (0..=query).map(|key| key as isize - query as isize);
        offsets.map(|offset| self.per_head[head][self.slot(offset)]).collect()
    }

    fn slot(&self, offset: isize) -> usize {
        (offset + self.max_distance as isize).clamp(0, 2 * self.max_distance as isize) as usize
    }
}

/// The bias rows of all heads, long enough for the longest example of a batch.
struct BiasTable<E> {
    per_head: Vec<Vec<E>>,
    longest: usize,
}

impl<E: Element> BiasTable<E> {
    fn new(bias: &PositionBias<E>, heads: Heads, longest: usize) -> Self {
        Self { per_head: (0..heads.count).map(|head| bias.stretched(head, longest)).collect(), longest }
    }

    /// The bias of the `length` keys from `first` on as seen from `query`.
    #[inline(always)]
    fn row(&self, head: usize, query: usize, first: usize, length: usize) -> &[E] {
        let start = self.longest - 1 + first - query;
        &self.per_head[head][start..start + length]
    }
}

fn longest(batch: &Batch, side: Side) -> usize {
    (0..batch.examples()).map(|b| batch.range(side, b).len()).max().unwrap_or(0)
}

/// Cuts `rows` into equal tiles of at most [`TILE`].
fn tiles(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + Clone {
    let count = rows.len().div_ceil(TILE).max(1);
    let size = rows.len().div_ceil(count).max(1);
    (rows.start..rows.end).step_by(size).map(move |start| start..(start + size).min(rows.end))
}

/// The columns of one head in packed q | k | v rows.
struct HeadColumns {
    q: usize,
    k: usize,
    v: usize,
    stride: usize,
}

impl HeadColumns {
    fn new(heads: Heads, head: usize) -> Self {
        let (total, start) = (heads.total(), head * heads.width);
        Self { q: start, k: total + start, v: 2 * total + start, stride: 3 * total }
    }
}

impl<E: Element> SelfAttentionOps for Cpu<E> {
    type PositionBias = PositionBias<E>;

    fn position_bias(&self, per_head: Vec<Vec<f32>>, max_distance: usize) -> Result<PositionBias<E>> {
        check_bias(&per_head, max_distance)?;
        let per_head = per_head.into_iter().map(E::from_f32_vec).collect();
        Ok(PositionBias { per_head, max_distance })
    }

    fn bias_heads(bias: &PositionBias<E>) -> usize {
        bias.per_head.len()
    }

    fn self_attention(
        &self,
        of: &SelfAttention<'_, Self>,
        qkv: &Rows<E>,
        o: &mut Rows<E>,
        log_sum_exp: &mut Rows<E>,
    ) -> Result<()> {
        of.check(qkv, o, log_sum_exp)?;
        let SelfAttention { batch, side, heads, .. } = *of;
        let bias = BiasTable::new(of.bias, heads, longest(batch, side));
        let work: Vec<(usize, Range<usize>)> = (0..batch.examples())
            .flat_map(|b| tiles(0..batch.range(side, b).len()).map(move |queries| (b, queries)))
            .collect();
        let lengths = || work.iter().map(|(_, queries)| queries.len());
        let o_tiles = split_rows(&mut o.data, heads.total(), lengths());
        let log_sum_exp_tiles = split_rows(&mut log_sum_exp.data, heads.count, lengths());
        self.run(|| {
            let outputs = o_tiles.into_par_iter().zip(log_sum_exp_tiles).with_max_len(1);
            outputs.zip(&work).for_each(|((o, log_sum_exp), (b, queries))| {
                let qkv = qkv.range(batch.range(side, *b));
                let tile = Tile::new(of, &bias, *b, queries.clone());
                let keys = transposed_heads(self, heads, qkv, heads.total());
                let mut scores = self.pool.take(queries.len() * tile.stride());
                let mut multipliers = self.pool.take(if of.mask.is_some() { scores.len() } else { 0 });
                let mut sums = self.pool.take(queries.len());
                for head in 0..heads.count {
                    let columns = HeadColumns::new(heads, head);
                    tile.scores(self, head, qkv, &keys, &mut scores);
                    let log_sum_exp = log_sum_exp.iter_mut().skip(head).step_by(heads.count);
                    vectorised!(self, tile.softmax(head, &mut scores, log_sum_exp, &mut sums));
                    vectorised!(self, tile.drop(head, &mut scores, &mut multipliers));
                    let (m, n) = (queries.len(), tile.keys.len());
                    let v = &qkv[tile.keys.start * columns.stride + columns.v..];
                    let o = &mut o[head * heads.width..];
                    let destination = ViewMut::new(o, m, heads.width, heads.total());
                    let v = View::new(v, n, heads.width, columns.stride);
                    self.multiply_alone(destination, false, View::new(&scores, m, n, tile.stride()), v);
                    // The softmax's division is left for here: a head's rows are narrower than its keys are many.
                    vectorised!(self, {
                        for (o, &sum) in o.chunks_mut(heads.total()).zip(&*sums) {
                            scale(&mut o[..heads.width], E::one() / sum);
                        }
                    });
                }
            });
        });
        Ok(())
    }

    fn self_attention_backward(
        &self,
        of: &SelfAttention<'_, Self>,
        from: SelfAttentionBackward<'_, Self>,
        d_qkv: &mut Rows<E>,
    ) -> Result<()> {
        of.check_backward(&from, d_qkv)?;
        let SelfAttention { batch, side, heads, .. } = *of;
        let SelfAttentionBackward { scope, qkv, o, log_sum_exp, d_o } = from;
        let lengths = (0..batch.examples()).map(|b| batch.scoped_range(side, scope, b).len());
        let bias = BiasTable::new(of.bias, heads, longest(batch, side));
        let examples = split_rows(&mut d_qkv.data, 3 * heads.total(), lengths);
        self.run(|| {
            examples.into_par_iter().with_max_len(1).enumerate().for_each(|(b, d_qkv)| {
                let range = batch.range(side, b);
                let qkv = qkv.range(range.clone());
                let scoped = batch.scoped_range(side, scope, b).len();
                let example = Saved {
                    qkv,
                    keys: transposed_heads(self, heads, qkv, heads.total()),
                    values: transposed_heads(self, heads, qkv, 2 * heads.total()),
                    log_sum_exp: log_sum_exp.range(range.clone()),
                    delta: deltas(self, heads, o.range(range.clone()), d_o.range(range.clone())),
                    d_o: d_o.range(range.clone()),
                    scoped,
                };
                for head in 0..heads.count {
                    // Queries beyond the scope still send gradient to its keys and values.
                    for queries in tiles(0..scoped).chain(tiles(scoped..range.len())) {
                        let mut tile = Tile::new(of, &bias, b, queries);
                        if tile.queries.start >= scoped {
                            tile.keys = 0..scoped;
                        }
                        backward_tile(self, head, &tile, &example, d_qkv);
                    }
                }
            });
        });
        Ok(())
    }
}

/// The keys or values of an example from column `first` of its packed rows, \[heads · width, rows\]: of all heads at once,
/// so that rows are read in one piece, and transposed in vectors where the GEMM crate would gather number by number.
fn transposed_heads<E: Element>(cpu: &Cpu<E>, heads: Heads, qkv: &[E], first: usize) -> Buffer<E> {
    let (total, stride) = (heads.total(), 3 * heads.total());
    let rows = qkv.len() / stride;
    cpu.transposed(View::new(qkv.get(first..).unwrap_or_default(), rows, total, stride))
}

/// <d_o, o> of an example's rows and heads, \[rows, heads\]: of all heads at once, so that rows are read in one piece.
fn deltas<E: Element>(cpu: &Cpu<E>, heads: Heads, o: &[E], d_o: &[E]) -> Buffer<E> {
    let mut deltas = cpu.pool.take(o.len() / heads.width);
    vectorised!(cpu, {
        let heads = o.chunks_exact(heads.width).zip(d_o.chunks_exact(heads.width));
        for (delta, (o, d_o)) in deltas.iter_mut().zip(heads) {
            *delta = dot(d_o, o);
        }
    });
    deltas
}

/// One example's part of what forward saved, and the gradient of its output.
struct Saved<'a, E: Element> {
    qkv: &'a [E],
    /// Of all heads, as [`transposed_heads`] has them.
    keys: Buffer<E>,
    values: Buffer<E>,
    log_sum_exp: &'a [E],
    /// As [`deltas`] gave them.
    delta: Buffer<E>,
    d_o: &'a [E],
    /// Its first rows, of which the gradient is wanted.
    scoped: usize,
}

/// d_k and d_v of the scope's keys, and d_q of the tile's queries if they are in the scope; the example's first tile writes
/// d_k and d_v, later ones add.
fn backward_tile<E: Element>(
    cpu: &Cpu<E>,
    head: usize,
    tile: &Tile<'_, E>,
    example: &Saved<'_, E>,
    d_qkv: &mut [E],
) {
    let (heads, first) = (tile.heads, tile.queries.start == 0);
    let columns = HeadColumns::new(heads, head);
    let (m, n, width, stride) = (tile.queries.len(), tile.keys.len(), heads.width, columns.stride);
    if m == 0 || n == 0 {
        return;
    }
    let column = head * width;
    let d_o = &example.d_o[tile.queries.start * heads.total() + column..];
    let of_rows = tile.queries.start * heads.count..tile.queries.end * heads.count;
    let of_rows = example.log_sum_exp[of_rows.clone()]
        .iter()
        .zip(&example.delta[of_rows])
        .skip(head)
        .step_by(heads.count);
    let at = |row: usize, column: usize| &example.qkv[row * stride + column..];

    let row_stride = tile.stride();
    let mut p = cpu.pool.take(m * row_stride);
    let mut ds = cpu.pool.take(m * row_stride);
    let mut multipliers = cpu.pool.take(if tile.mask.is_some() { p.len() } else { 0 });
    tile.scores(cpu, head, example.qkv, &example.keys, &mut p);
    let d_o_view = View::new(d_o, m, width, heads.total());
    let v_transposed = tile.of_head(head, &example.values);
    cpu.multiply_alone(ViewMut::new(&mut ds, m, n, row_stride), false, d_o_view, v_transposed);
    vectorised!(cpu, {
        tile.fill_mask(head, &mut multipliers);
        for (row, (&log_sum_exp, &delta)) in of_rows.enumerate() {
            let span = row * row_stride..(row + 1) * row_stride;
            let multipliers = if multipliers.is_empty() { None } else { Some(&multipliers[span.clone()]) };
            let (p, ds) = (&mut p[span.clone()], &mut ds[span]);
            tile.softmax_backward(head, row, (log_sum_exp, delta), multipliers, p, ds);
        }
    });
    let ds = View::new(&ds, m, n, row_stride);
    if tile.queries.start < example.scoped {
        let d_q = &mut d_qkv[tile.queries.start * stride + columns.q..];
        let k = View::new(at(tile.keys.start, columns.k), n, width, stride);
        cpu.multiply_alone(ViewMut::new(d_q, m, width, stride), false, ds, k);
    }
    // Key and value gradients of the scope alone.
    let keys = example.scoped.min(n);
    let (ds, p) = (ds.transposed(), View::new(&p, m, n, row_stride).transposed());
    let q = View::new(at(tile.queries.start, columns.q), m, width, stride);
    let d_k = ViewMut::new(&mut d_qkv[columns.k..], keys, width, stride);
    cpu.multiply_alone(d_k, !first, ds.first_rows(keys), q);
    let d_v = ViewMut::new(&mut d_qkv[columns.v..], keys, width, stride);
    cpu.multiply_alone(d_v, !first, p.first_rows(keys), d_o_view);
}

/// Some queries of one example against some of its keys.
struct Tile<'a, E> {
    heads: Heads,
    queries: Range<usize>,
    keys: Range<usize>,
    causal: bool,
    bias: &'a BiasTable<E>,
    mask: Mask<'a>,
    run: usize,
    index: u32,
}

impl<'a, E: Element> Tile<'a, E> {
    /// These queries of example `b` against all of its keys.
    fn new(of: &SelfAttention<'a, Cpu<E>>, bias: &'a BiasTable<E>, b: usize, queries: Range<usize>) -> Self {
        Self {
            heads: of.heads,
            queries,
            keys: 0..of.batch.range(of.side, b).len(),
            causal: of.side == Side::Decoder,
            bias,
            mask: of.mask,
            run: of.batch.run(b),
            index: of.batch.example_index(b),
        }
    }

    /// How far apart the rows of a tile's scores lie: whole vectors, of which what lies beyond the last key is never read.
    fn stride(&self) -> usize {
        self.keys.len().next_multiple_of(LANES)
    }

    /// q k^T, \[queries, keys\], with the keys of all heads transposed: the bias joins in the pass that follows.
    fn scores(&self, cpu: &Cpu<E>, head: usize, qkv: &[E], keys: &[E], scores: &mut [E]) {
        let (m, n, columns) = (self.queries.len(), self.keys.len(), HeadColumns::new(self.heads, head));
        let q = &qkv[self.queries.start * columns.stride + columns.q..];
        let q = View::new(q, m, self.heads.width, columns.stride);
        let scores = ViewMut::new(scores, m, n, self.stride());
        cpu.multiply_alone(scores, false, q, self.of_head(head, keys));
    }

    /// The tile's keys of one head, \[width, keys\], in what [`transposed_heads`] gave.
    fn of_head<'t>(&self, head: usize, transposed: &'t [E]) -> View<'t, E> {
        let length = transposed.len() / self.heads.total();
        let start = head * self.heads.width * length + self.keys.start;
        View::new(&transposed[start..], self.heads.width, self.keys.len(), length)
    }

    /// How many of the tile's keys the query of `row` may see.
    #[inline(always)]
    fn visible(&self, row: usize) -> usize {
        if self.causal { (self.queries.start + row + 1).min(self.keys.len()) } else { self.keys.len() }
    }

    /// Scores become e^(score + bias - most) of their row; each row's sum and log-sum-exp go out.
    #[inline(always)]
    fn softmax<'b>(
        &self,
        head: usize,
        scores: &mut [E],
        log_sum_exp: impl Iterator<Item = &'b mut E>,
        sums: &mut [E],
    ) {
        let (n, stride) = (self.keys.len(), self.stride());
        let rows = scores.chunks_exact_mut(stride).zip(log_sum_exp).zip(sums);
        for (row, ((scores, log_sum_exp), sum)) in rows.enumerate() {
            let visible = self.visible(row);
            scores[visible..].fill(E::neg_infinity());
            let bias = self.bias.row(head, self.queries.start + row, self.keys.start, stride);
            let most = add_and_maximum(vectors_mut(scores), vectors(bias));
            // What is not visible adds less than the largest term, 1, can show.
            *sum = exponentials_of_vectors(vectors_mut(scores), most);
            scores[visible..n].fill(E::zero());
            *log_sum_exp = most + sum.ln();
        }
    }

    /// Scores become probabilities times the mask in `p`; `ds` turns from d_p to p·(d_p·mask - delta).
    #[inline(always)]
    fn softmax_backward(
        &self,
        head: usize,
        row: usize,
        (log_sum_exp, delta): (E, E),
        mask: Option<&[E]>,
        p: &mut [E],
        ds: &mut [E],
    ) {
        let (n, visible) = (self.keys.len(), self.visible(row));
        let bias = vectors(self.bias.row(head, self.queries.start + row, self.keys.start, p.len()));
        let rows = vectors_mut(ds).iter_mut().zip(vectors_mut(p)).zip(bias);
        match mask {
            None => {
                for ((ds, p), bias) in rows {
                    for lane in 0..LANES {
                        p[lane] = (p[lane] + bias[lane] - log_sum_exp).exponential();
                        ds[lane] = p[lane] * (ds[lane] - delta);
                    }
                }
            }
            Some(mask) => {
                for (((ds, p), bias), multiplier) in rows.zip(vectors(mask)) {
                    for lane in 0..LANES {
                        p[lane] = (p[lane] + bias[lane] - log_sum_exp).exponential();
                        ds[lane] = p[lane] * (ds[lane] * multiplier[lane] - delta);
                        p[lane] = p[lane] * multiplier[lane];
                    }
                }
            }
        }
        p[visible..n].fill(E::zero());
        ds[visible..n].fill(E::zero());
    }

    #[inline(always)]
    fn drop(&self, head: usize, scores: &mut [E], multipliers: &mut [E]) {
        self.fill_mask(head, multipliers);
        if !multipliers.is_empty() {
            multiply(scores, multipliers);
        }
    }

    /// The mask of the tile. A mask row starts at key 0, as does every tile.
    #[inline(always)]
    fn fill_mask(&self, head: usize, multipliers: &mut [E]) {
        if let Some((step, site)) = self.mask {
            let saved = E::from_f64(step.scale());
            for (query, row) in self.queries.clone().zip(multipliers.chunks_exact_mut(self.stride())) {
                let row = &mut row[..self.keys.len()];
                step.row(site.head(head), self.run, self.index, query).fill(saved, E::zero(), row);
            }
        }
    }
}
