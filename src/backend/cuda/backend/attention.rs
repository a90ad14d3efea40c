//! Self attention.

use super::{Buffer, Cuda, PositionBias, Rows, read, write};
use crate::backend::cuda::ops::attention::{
    self as launch, Attention, AttentionBackward, AttentionGradient, AttentionInput, Delta, InputGradient,
};
use crate::backend::ops::check_bias;
use crate::backend::{Heads, Scope, SelfAttention, SelfAttentionBackward, SelfAttentionOps, Side};
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
}
