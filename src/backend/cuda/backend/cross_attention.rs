//! Cross attention of T decoder rows over R encoder rows: absorbed into the encoder's rows where targets are short, through
//! projected keys and values where they are long.

use std::sync::Arc;

use super::attention::check_heads;
use super::{Buffer, Cuda, Operand, Rows, Weight, read, write};
use crate::backend::cuda::ops::attention::{
    Attention, AttentionBackward, AttentionGradient, AttentionInput, Columns, ColumnsMut, Delta,
    InputGradient, MAX_SHORT_ROWS,
};
use crate::backend::cuda::ops::cross_attention::{
    AbsorbedBackward, AbsorbedCrossAttention, AbsorbedForward, AbsorbedGradient, AbsorbedPart,
    AbsorbedProjection, AbsorbedShape, QueryGradient, Wide,
};
use crate::backend::cuda::ops::linear::Epilogue;
use crate::backend::{
    Batch, CrossAttention, CrossAttentionBackward, CrossAttentionOps, Device, Format, Heads, LinearOps, Mask,
    Matrix, Projection, Residual, ResidualProjectionBackward, Side,
};
use crate::error::Result;

/// What cross attention's backward needs beside q, h and o.
#[derive(Debug)]
pub struct CrossAttentionSaved(Way);

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one a layer, and moved once
enum Way {
    Absorbed(Absorbed),
    Plain(Plain),
}

/// What absorbed cross attention saves for backward.
#[derive(Debug)]
struct Absorbed {
    /// q' \[T, H·D\], which the gradient of the encoder's rows holds beyond the layer's backward pass.
    absorbed_q: Arc<Rows>,
    /// The scores of each example's t·H × n pairs; in f32 their softmax.
    scores: Buffer<f32>,
    /// Each row's and tile's maximum and sum of exponentials; none in f32.
    sums: Buffer<f32>,
}

/// What cross attention through keys and values saves for backward.
#[derive(Debug)]
struct Plain {
    /// \[R, H·K\].
    k: Rows,
    /// \[R, H·K\].
    v: Rows,
    /// \[T, H\].
    log_sum_exp: Rows,
}

impl CrossAttentionSaved {
    /// Whether the encoder's rows themselves are scored.
    pub fn is_absorbed(&self) -> bool {
        matches!(self.0, Way::Absorbed(_))
    }
}

/// The most targets of an example that are absorbed: what is saved of a target, H·D numbers, grows with them, and from here on
/// keys and values are fewer.
const MAX_TARGETS: usize = 8;

/// Target rows of an example that a shape bucket has room for: few buckets. Up to some, cross attention is absorbed and self
/// attention short.
pub(super) fn target_room(longest: usize, decoder_rows: usize) -> usize {
    [MAX_TARGETS / 2, MAX_TARGETS, MAX_SHORT_ROWS]
        .into_iter()
        .find(|&room| longest <= room)
        .unwrap_or(decoder_rows.max(longest))
}

/// Whether scoring against the encoder's rows themselves costs less than projecting them to keys and values, by the room
/// that the batch has alone: one captured graph serves all batches of that room.
fn absorbs(batch: &Batch, heads: Heads, depth: usize) -> bool {
    let (sources, targets, longest) =
        (batch.rows(Side::Encoder), batch.rows(Side::Decoder), batch.longest_target());
    let absorbed = heads.count * depth * (longest * sources + targets * heads.width);
    let plain = sources * heads.total() * (depth + longest);
    longest <= MAX_TARGETS && absorbed <= plain
}

/// The gradient of the encoder's rows: what each absorbed layer's part is made of, until all are summed at once, and the sum of the
/// parts of layers that are not absorbed.
#[derive(Debug)]
pub struct SourceGradient {
    /// R and D.
    shape: [usize; 2],
    parts: Vec<Part>,
    sum: Option<Rows>,
}

impl Matrix for SourceGradient {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }
}

/// An absorbed layer's part: ds^T q' + (p·mask)^T d_mixed.
#[derive(Debug)]
struct Part {
    heads: Heads,
    absorbed_q: Arc<Rows>,
    d_mixed: Arc<Rows>,
    ds: Operand,
    p: Operand,
}

/// Rows of H·D columns, which the product before may have made, and which the gradient of the encoder's rows holds.
#[allow(clippy::large_enum_variant)] // lives for one launch
enum WideRows {
    Known(Arc<Rows>),
    New(Rows),
}

impl WideRows {
    /// Those of `narrow`, or room for them.
    fn of(cuda: &Cuda, narrow: &Rows, shape: &AbsorbedShape<'_>) -> Result<Self> {
        match &narrow.widened {
            Some(known) => Ok(Self::Known(known.clone())),
            None => cuda.wide_rows(narrow.rows(), shape).map(Self::New),
        }
    }

    fn is_new(&self) -> bool {
        matches!(self, Self::New(_))
    }

    fn operand(&mut self) -> Result<Wide<'_>> {
        Ok(match self {
            Self::Known(rows) => Wide::Known(rows.operand()?),
            Self::New(rows) => Wide::Made(rows.operand_mut()?),
        })
    }

    fn shared(self) -> Arc<Rows> {
        match self {
            Self::Known(rows) => rows,
            Self::New(rows) => Arc::new(rows),
        }
    }
}

/// H·K columns that are all of a matrix's.
fn all(rows: &Rows) -> Result<Columns<'_>> {
    Ok(Columns { matrix: rows.operand()?, first: 0, stride: rows.width() })
}

fn all_mut(rows: &mut Rows) -> Result<ColumnsMut<'_>> {
    let stride = rows.width();
    Ok(ColumnsMut { matrix: rows.operand_mut()?, first: 0, stride })
}

impl Cuda {
    fn absorbed_shape<'a>(&self, batch: &'a Batch, heads: Heads, depth: usize) -> Result<AbsorbedShape<'a>> {
        check_heads(heads)?;
        Ok(AbsorbedShape { batch: self.described(batch)?, heads, depth })
    }

    fn absorbed<'a>(&self, of: &CrossAttention<'a, Self>) -> Result<AbsorbedCrossAttention<'a>> {
        Ok(AbsorbedCrossAttention {
            shape: self.absorbed_shape(of.batch, of.heads, of.depth())?,
            w_k: of.w_k.operand(),
            w_v: of.w_v.operand(),
            mask: self.mask(of.mask)?,
        })
    }

    fn plain<'a>(&self, of: &CrossAttention<'a, Self>) -> Result<Attention<'a>> {
        check_heads(of.heads)?;
        let (batch, mask) = (self.described(of.batch)?, self.mask(of.mask)?);
        let (queries, keys) = (batch.rows(Side::Decoder), batch.rows(Side::Encoder));
        Ok(Attention { mask, ..Attention::new(queries, keys, of.heads) })
    }

    /// Room for `rows` rows of H·D columns.
    fn wide_rows(&self, rows: usize, shape: &AbsorbedShape<'_>) -> Result<Rows> {
        self.activation(rows, shape.heads.count * shape.depth, Format::Operand)
    }

    /// Counts the operations of `heads` products of heads and `pairs` products over the pairs.
    fn count_absorbed(&self, shape: &AbsorbedShape<'_>, heads: usize, pairs: usize) {
        let batch = shape.batch.batch();
        let rows = |side, b| batch.range(side, b).len();
        let of_heads = batch.real_rows(Side::Decoder) * shape.heads.total() * shape.depth;
        let of_pairs = (0..batch.examples()).map(|b| rows(Side::Decoder, b) * rows(Side::Encoder, b));
        let of_pairs = of_pairs.sum::<usize>() * shape.heads.count * shape.depth;
        self.count(2 * (heads * of_heads + pairs * of_pairs));
    }

    fn attend_absorbed(
        &self,
        of: &CrossAttention<'_, Self>,
        q: &Rows,
        h: &Rows,
        o: &mut Rows,
    ) -> Result<Absorbed> {
        let attention = self.absorbed(of)?;
        let (shape, lengths) = (attention.shape, attention.lengths()?);
        let mut absorbed_q = WideRows::of(self, q, &shape)?;
        let (mut scores, mut sums) = (self.allocate(lengths.pairs)?, self.allocate(lengths.sums)?);
        let mut mixed = self.wide_rows(q.rows(), &shape)?;
        let mut dropped = self.operand(lengths.dropped)?;
        self.count_absorbed(&shape, 1 + usize::from(absorbed_q.is_new()), 2);
        let forward = AbsorbedForward {
            q: q.operand()?,
            h: h.operand()?,
            absorbed_q: absorbed_q.operand()?,
            scores: write(&mut scores),
            sums: write(&mut sums),
            dropped: dropped.as_write(),
            mixed: mixed.operand_mut()?,
            o: o.operand_mut()?,
        };
        attention.forward(self.kernels(), forward)?;
        Ok(Absorbed { absorbed_q: absorbed_q.shared(), scores, sums })
    }

    fn attend_absorbed_backward(
        &self,
        of: &CrossAttention<'_, Self>,
        from: &CrossAttentionBackward<'_, Self>,
        saved: &Absorbed,
        mut d_q: Option<&mut Rows>,
    ) -> Result<Part> {
        let attention = self.absorbed(of)?;
        let (shape, lengths) = (attention.shape, attention.lengths()?);
        let mut inner = self.room_for_inner(d_q.as_deref_mut(), lengths.inner)?;
        let mut d_mixed = WideRows::of(self, from.d_o, &shape)?;
        let mut d_absorbed_q = self.wide_rows(if d_q.is_some() { from.q.rows() } else { 0 }, &shape)?;
        let (mut p, mut ds) = (self.operand(lengths.pairs)?, self.operand(lengths.pairs)?);
        let with_d_q = usize::from(d_q.is_some());
        self.count_absorbed(&shape, usize::from(d_mixed.is_new()) + with_d_q, 1 + with_d_q);
        let backward = AbsorbedBackward {
            h: from.h.operand()?,
            absorbed_q: saved.absorbed_q.operand()?,
            scores: read(&saved.scores),
            sums: read(&saved.sums),
            o: from.o.operand()?,
            d_o: from.d_o.operand()?,
            d_mixed: d_mixed.operand()?,
        };
        let of_q = match (&mut d_q, &mut inner) {
            (Some(d_q), Some(inner)) => Some(QueryGradient {
                d_absorbed_q: d_absorbed_q.operand_mut()?,
                d_q: d_q.operand_mut()?,
                inner: Some((from.q.operand()?, write(inner))),
            }),
            _ => None,
        };
        let gradient = AbsorbedGradient { ds: ds.as_write(), p: p.as_write(), d_q: of_q, d_h: None };
        attention.backward(self.kernels(), backward, gradient)?;
        if let Some(d_q) = d_q {
            d_q.inner = inner;
        }
        let (absorbed_q, d_mixed) = (saved.absorbed_q.clone(), d_mixed.shared());
        Ok(Part { heads: of.heads, absorbed_q, d_mixed, ds, p })
    }

    /// Room for the parts of <d_q, q> of each row, where d_q is wanted, in place of those that it has.
    fn room_for_inner(&self, d_q: Option<&mut Rows>, length: usize) -> Result<Option<Buffer<f32>>> {
        let Some(d_q) = d_q else { return Ok(None) };
        let inner = self.allocate(length)?;
        d_q.inner = None;
        Ok(Some(inner))
    }

    fn attend_plain(&self, of: &CrossAttention<'_, Self>, q: &Rows, h: &Rows, o: &mut Rows) -> Result<Plain> {
        let attention = self.plain(of)?;
        let (rows, total) = (attention.keys, of.heads.total());
        let mut k = self.activation(h.rows(), total, Format::Operand)?;
        let mut v = self.activation(h.rows(), total, Format::Operand)?;
        let mut log_sum_exp = self.activation(q.rows(), of.heads.count, Format::Float)?;
        self.product(rows, h.operand()?, of.w_k, Epilogue::Plain { z: k.operand_mut()? })?;
        self.product(rows, h.operand()?, of.w_v, Epilogue::Plain { z: v.operand_mut()? })?;
        self.count_pairs(&attention, 2);
        let input = AttentionInput::Apart { q: all(q)?, k: all(&k)?, v: all(&v)? };
        attention.forward(self.kernels(), input, o.operand_mut()?, log_sum_exp.float_mut()?)?;
        Ok(Plain { k, v, log_sum_exp })
    }

    fn attend_plain_backward(
        &self,
        of: &CrossAttention<'_, Self>,
        from: &CrossAttentionBackward<'_, Self>,
        saved: &Plain,
        mut d_q: Option<&mut Rows>,
        d_h: &mut SourceGradient,
    ) -> Result<()> {
        let (attention, total) = (self.plain(of)?, of.heads.total());
        let mut inner = self.room_for_inner(d_q.as_deref_mut(), from.q.rows() * of.heads.count)?;
        let mut d_k = self.activation(from.h.rows(), total, Format::Operand)?;
        let mut d_v = self.activation(from.h.rows(), total, Format::Operand)?;
        self.count_pairs(&attention, 3 + usize::from(d_q.is_some()));
        let mut delta = self.room_for_delta(&attention)?;
        let backward = AttentionBackward {
            input: AttentionInput::Apart { q: all(from.q)?, k: all(&saved.k)?, v: all(&saved.v)? },
            o: from.o.operand()?,
            log_sum_exp: saved.log_sum_exp.float()?,
            d_o: from.d_o.operand()?,
            delta: delta.as_mut().map(|delta| Delta::Scratch(write(delta))),
        };
        let of_q = match &mut d_q {
            Some(d_q) => Some(all_mut(d_q)?),
            None => None,
        };
        let of_input = InputGradient::Apart { d_q: of_q, d_k: all_mut(&mut d_k)?, d_v: all_mut(&mut d_v)? };
        let gradient = AttentionGradient { of_input, inner: inner.as_mut().map(write) };
        attention.backward(self.kernels(), backward, gradient)?;
        drop(delta);
        if let Some(d_q) = d_q {
            d_q.inner = inner;
        }
        let sum = match &mut d_h.sum {
            Some(sum) => sum,
            None => d_h.sum.insert(self.zeros(from.h.rows(), of.depth())?),
        };
        for (gradient, weight) in [(&d_k, of.w_k), (&d_v, of.w_v)] {
            let epilogue = Epilogue::Accumulate { d_h: sum.float_mut()? };
            self.product_backward(attention.keys, gradient.operand()?, weight, epilogue)?;
        }
        Ok(())
    }

    /// Whether q and d_o are made with what cross attention makes of them first.
    fn projects(&self, of: &CrossAttention<'_, Self>, shape: &AbsorbedShape<'_>) -> bool {
        shape.projects(self.precision()) && absorbs(of.batch, of.heads, of.depth())
    }

    /// d_h of all layers.
    fn sum_parts(&self, batch: &Batch, parts: &[Part], d_h: &mut Rows, adds: bool) -> Result<()> {
        let Some(first) = parts.first() else { return Ok(()) };
        let shape = self.absorbed_shape(batch, first.heads, d_h.width())?;
        let mut layers = Vec::new();
        for part in parts {
            layers.push(AbsorbedPart {
                ds: part.ds.as_read(),
                p: part.p.as_read(),
                absorbed_q: part.absorbed_q.operand()?,
                d_mixed: part.d_mixed.operand()?,
            });
            self.count_absorbed(&shape, 0, 2);
        }
        shape.sum_sources(self.kernels(), &layers, d_h.float_mut()?, adds)
    }
}

impl CrossAttentionOps for Cuda {
    type CrossAttentionSaved = CrossAttentionSaved;
    type SourceGradient = SourceGradient;

    fn cross_attention(
        &self,
        of: &CrossAttention<'_, Self>,
        q: &Rows,
        h: &Rows,
        o: &mut Rows,
        keep: bool,
    ) -> Result<Option<CrossAttentionSaved>> {
        of.check(q, h, o)?;
        let way = if absorbs(of.batch, of.heads, of.depth()) {
            Way::Absorbed(self.attend_absorbed(of, q, h, o)?)
        } else {
            Way::Plain(self.attend_plain(of, q, h, o)?)
        };
        Ok(keep.then_some(CrossAttentionSaved(way)))
    }

    fn cross_project(
        &self,
        of: &CrossAttention<'_, Self>,
        input: &Residual<Self>,
        weight: &Weight,
        q: &mut Rows,
    ) -> Result<()> {
        let projection = Projection { batch: of.batch, side: Side::Decoder, input, weight };
        let attention = self.absorbed(of)?;
        if !self.projects(of, &attention.shape) {
            q.widened = None;
            return self.project(projection, q);
        }
        projection.check(q)?;
        weight.check("w_q", of.heads.total(), of.depth())?;
        let mut wide = self.wide_rows(q.rows(), &attention.shape)?;
        self.count_absorbed(&attention.shape, 2, 0);
        let projection = AbsorbedProjection {
            a: input.x.operand()?,
            norm: Some(self.norm(&input.r)?),
            weight: weight.operand(),
            to: q.operand_mut()?,
            wide: wide.operand_mut()?,
        };
        attention.project(self.kernels(), projection)?;
        q.widened = Some(Arc::new(wide));
        Ok(())
    }

    fn cross_project_backward(
        &self,
        of: &CrossAttention<'_, Self>,
        d_x: &Rows,
        weight: &Weight,
        mask: Mask<'_>,
        d_o: &mut Rows,
    ) -> Result<()> {
        let projection =
            ResidualProjectionBackward { batch: of.batch, side: Side::Decoder, d_x, weight, mask, y: None };
        let attention = self.absorbed(of)?;
        if !self.projects(of, &attention.shape) {
            d_o.widened = None;
            return self.add_project_backward(projection, d_o);
        }
        projection.check(d_o)?;
        weight.check("w_o", of.depth(), of.heads.total())?;
        let rows = attention.shape.batch.rows(Side::Decoder);
        let mut masked = None;
        let a = self.masked_gradient(rows, d_x, mask, &mut masked)?;
        let mut wide = self.wide_rows(d_o.rows(), &attention.shape)?;
        self.count_absorbed(&attention.shape, 2, 0);
        let projection = AbsorbedProjection {
            a,
            norm: None,
            weight: weight.operand(),
            to: d_o.operand_mut()?,
            wide: wide.operand_mut()?,
        };
        attention.project(self.kernels(), projection)?;
        d_o.widened = Some(Arc::new(wide));
        Ok(())
    }

    fn source_gradient(&self, batch: &Batch, width: usize) -> Result<SourceGradient> {
        let shape = [batch.rows(Side::Encoder), width];
        Ok(SourceGradient { shape, parts: Vec::new(), sum: None })
    }

    fn cross_attention_backward(
        &self,
        of: &CrossAttention<'_, Self>,
        from: CrossAttentionBackward<'_, Self>,
        d_q: Option<&mut Rows>,
        d_h: &mut SourceGradient,
    ) -> Result<()> {
        of.check_backward(&from, d_q.as_deref())?;
        d_h.check("d_h", of.batch.rows(Side::Encoder), of.depth())?;
        match &from.saved.0 {
            Way::Absorbed(saved) => d_h.parts.push(self.attend_absorbed_backward(of, &from, saved, d_q)?),
            Way::Plain(saved) => self.attend_plain_backward(of, &from, saved, d_q, d_h)?,
        }
        Ok(())
    }

    fn source_rows(&self, batch: &Batch, d_h: SourceGradient) -> Result<Rows> {
        let (rows, [_, width]) = (batch.rows(Side::Encoder), d_h.shape);
        d_h.check("d_h", rows, width)?;
        let SourceGradient { parts, sum, .. } = d_h;
        let adds = sum.is_some();
        let mut rows = match sum {
            Some(sum) => sum,
            None if parts.is_empty() => self.zeros(rows, width)?,
            None => self.activation(rows, width, Format::Float)?,
        };
        self.sum_parts(batch, &parts, &mut rows, adds)?;
        Ok(rows)
    }
}
