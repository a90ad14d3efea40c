//! Self attention.

use super::{Buffer, Cuda, PositionBias, Rows, Weight, read, write};
use crate::backend::cuda::ops::attention::{
    self as launch, Attention, AttentionBackward, AttentionGradient, AttentionInput, Delta, InputGradient,
};
use crate::backend::cuda::ops::linear::{Product, TileShape};
use crate::backend::cuda::ops::self_attention_hopper::{OutputBackward, ProjectedForward};
use crate::backend::ops::check_bias;
use crate::backend::{
    Format, Heads, LinearOps, Matrix, Projection, Residual, Scope, SelfAttention, SelfAttentionBackward,
    SelfAttentionOps, SelfAttentionOutputBackward, Side,
};
use crate::error::Result;

/// Fails unless kernels have room for such heads.
pub(super) fn check_heads(heads: Heads) -> Result<()> {
    launch::check_heads(heads, "leave --device out to compute on the CPU")
}

impl Cuda {
    fn self_attention_of<'a>(&self, of: &SelfAttention<'a, Self>, scope: Scope) -> Result<Attention<'a>> {
        check_heads(of.heads)?;
        Ok(Attention {
            bias: Some((read(&of.bias.values), of.bias.max_distance)),
            causal: of.side == Side::Decoder,
            mask: self.mask(of.mask)?,
            ..Attention::of_itself(self.described(of.batch)?.scoped(of.side, scope), of.heads)
        })
    }

    /// Counts the operations of `products` over the pairs of a query and a key.
    pub(super) fn count_pairs(&self, of: &Attention<'_>, products: usize) {
        let batch = of.queries.batch().batch();
        let rows = |side, b| batch.range(side, b).len();
        let pairs = (0..batch.examples()).map(|b| rows(of.queries.side(), b) * rows(of.keys.side(), b));
        self.count(2 * products * of.heads.total() * pairs.sum::<usize>());
    }

    /// Counts the operations of a self attention's backward pass: scores, d_p, d_q, d_k and d_v, of which the gradients are those of
    /// the scope's rows. A query beyond them sends gradient to their keys and values alone.
    fn count_backward(&self, of: &Attention<'_>) {
        let batch = of.queries.batch().batch();
        let operations = (0..batch.examples()).map(|b| {
            let all = batch.range(of.queries.side(), b).len();
            let scoped = batch.scoped_range(of.queries.side(), of.queries.scope(), b).len();
            3 * scoped * all + 2 * scoped * scoped + 4 * (all - scoped) * scoped
        });
        self.count(2 * of.heads.total() * operations.sum::<usize>());
    }

    /// Room for delta, where backward needs it.
    pub(super) fn room_for_delta(&self, of: &Attention<'_>) -> Result<Option<Buffer<f32>>> {
        if !of.needs_delta(self.precision()) {
            return Ok(None);
        }
        self.allocate(of.queries.all() * of.heads.count).map(Some)
    }
}

impl SelfAttentionOps for Cuda {
    type PositionBias = PositionBias;

    fn position_bias(&self, per_head: Vec<Vec<f32>>, max_distance: usize) -> Result<PositionBias> {
        check_bias(&per_head, max_distance)?;
        let flat = per_head.concat();
        let mut values = self.allocate(flat.len())?;
        self.upload(&flat, &mut values)?;
        Ok(PositionBias { values, heads: per_head.len(), max_distance })
    }

    fn bias_heads(bias: &PositionBias) -> usize {
        bias.heads
    }

    fn self_attention(
        &self,
        of: &SelfAttention<'_, Self>,
        qkv: &Rows,
        o: &mut Rows,
        log_sum_exp: &mut Rows,
    ) -> Result<()> {
        of.check(qkv, o, log_sum_exp)?;
        let attention = self.self_attention_of(of, Scope::All)?;
        self.count_pairs(&attention, 2);
        let input = AttentionInput::Packed(qkv.operand()?);
        attention.forward(self.kernels(), input, o.operand_mut()?, log_sum_exp.float_mut()?)
    }

    fn self_attention_backward(
        &self,
        of: &SelfAttention<'_, Self>,
        from: SelfAttentionBackward<'_, Self>,
        d_qkv: &mut Rows,
    ) -> Result<()> {
        of.check_backward(&from, d_qkv)?;
        let attention = self.self_attention_of(of, from.scope)?;
        self.count_backward(&attention);
        let mut inner = self.allocate(attention.queries.count() * 2 * of.heads.count)?;
        d_qkv.inner = None;
        let known = from.d_o.inner.as_ref();
        let mut room = if known.is_some() { None } else { self.room_for_delta(&attention)? };
        let known = known.map(|delta| Delta::Known(read(delta)));
        let backward = AttentionBackward {
            input: AttentionInput::Packed(from.qkv.operand()?),
            o: from.o.operand()?,
            log_sum_exp: from.log_sum_exp.float()?,
            d_o: from.d_o.operand()?,
            delta: known.or(room.as_mut().map(|delta| Delta::Scratch(write(delta)))),
        };
        let of_input = InputGradient::Packed(d_qkv.operand_mut()?);
        let gradient = AttentionGradient { of_input, inner: Some(write(&mut inner)) };
        attention.backward(self.kernels(), backward, gradient)?;
        d_qkv.inner = Some(inner);
        Ok(())
    }

    fn self_attention_project(
        &self,
        of: &SelfAttention<'_, Self>,
        input: &Residual<Self>,
        weight: &Weight,
        qkv: &mut Rows,
        [o, log_sum_exp]: [&mut Rows; 2],
    ) -> Result<()> {
        of.check_projected(input, weight, [qkv, o, log_sum_exp])?;
        let (attention, [n, k]) = (self.self_attention_of(of, Scope::All)?, weight.shape());
        let joins = attention.joins_products(self.kernels(), self.precision())?;
        let parts = attention.parts_of_projection(self.info().multiprocessors, k).filter(|_| joins);
        let Some(parts) = parts else {
            self.project(Projection { batch: of.batch, side: of.side, input, weight }, qkv)?;
            return self.self_attention(of, qkv, o, log_sum_exp);
        };
        self.count(2 * attention.queries.real() * n * k);
        self.count_pairs(&attention, 2);
        let launched = ProjectedForward {
            x: input.x.operand()?,
            norm: self.norm(&input.r)?,
            weight: weight.operand(),
            qkv: qkv.operand_mut()?,
            o: o.operand_mut()?,
            log_sum_exp: log_sum_exp.float_mut()?,
        };
        attention.project_forward(self.kernels(), parts, k, launched)
    }

    fn self_attention_output_backward(
        &self,
        of: &SelfAttention<'_, Self>,
        from: SelfAttentionOutputBackward<'_, Self>,
        d_qkv: &mut Rows,
    ) -> Result<()> {
        from.check(of, d_qkv)?;
        let (attention, weight) = (self.self_attention_of(of, from.scope)?, from.weight);
        let rows = self.described(of.batch)?.rows(of.side);
        let a = from.d_x.operand()?;
        let product = Product { rows, a, weight: weight.operand(), shape: weight.shape(), backward: true };
        let joins = attention.joins_products(self.kernels(), self.precision())?;
        // The cut that the product alone would have: the same sums.
        let cut = self.cut(&product).config().filter(|cut| joins && cut.shape == TileShape::ThinHopper);
        let Some(cut) = cut else {
            let mut d_o = self.activation(rows.all(), of.heads.total(), Format::Operand)?;
            self.add_project_backward(from.projection(of), &mut d_o)?;
            return self.self_attention_backward(of, from.attention(&d_o), d_qkv);
        };
        let [n, k] = product.sizes();
        self.count(2 * rows.real() * n * k);
        self.count_backward(&attention);
        let mut masked = None;
        let d_x = self.masked_gradient(rows, from.d_x, from.mask, &mut masked)?;
        let mut inner = self.allocate(rows.count() * 2 * of.heads.count)?;
        d_qkv.inner = None;
        let launched = OutputBackward {
            d_x,
            weight: weight.operand(),
            qkv: from.qkv.operand()?,
            log_sum_exp: from.log_sum_exp.float()?,
            d_qkv: d_qkv.operand_mut()?,
            inner: write(&mut inner),
        };
        attention.output_backward(self.kernels(), cut, k, launched)?;
        d_qkv.inner = Some(inner);
        Ok(())
    }
}
