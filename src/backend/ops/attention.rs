//! Self attention.

use super::{Device, Heads, Mask, Matrix, check_heads, check_length, check_mask, scoped_rows};
use crate::backend::{Batch, Scope, Side};
use crate::error::Result;

/// o = softmax(q k^T + bias) v per example and head, without 1 / sqrt(K). The decoder's side is causal.
pub struct SelfAttention<'a, D: SelfAttentionOps> {
    /// Whose rows.
    pub batch: &'a Batch,
    /// Which of its rows.
    pub side: Side,
    /// H and K.
    pub heads: Heads,
    /// What is added to the scores, by key - query.
    pub bias: &'a D::PositionBias,
    /// Dropout of the probabilities; one site a head.
    pub mask: Mask<'a>,
}

/// What backward reads.
pub struct SelfAttentionBackward<'a, D: Device> {
    /// Which rows the gradient is wanted of: under [`Scope::Prompt`] d_q of prompt queries, d_k and d_v of prompt keys, and d_qkv
    /// has B·M rows.
    pub scope: Scope,
    /// What forward read, \[rows, 3·H·K\].
    pub qkv: &'a D::Rows,
    /// What forward wrote, \[rows, H·K\].
    pub o: &'a D::Rows,
    /// What forward wrote, \[rows, H\].
    pub log_sum_exp: &'a D::Rows,
    /// \[rows, H·K\].
    pub d_o: &'a D::Rows,
}

impl<D: SelfAttentionOps> SelfAttention<'_, D> {
    pub(crate) fn check(&self, qkv: &D::Rows, o: &D::Rows, log_sum_exp: &D::Rows) -> Result<()> {
        check_mask(self.mask, self.batch)?;
        let (rows, total) = (self.batch.rows(self.side), self.heads.total());
        check_heads("the position bias", self.heads, D::bias_heads(self.bias))?;
        qkv.check("qkv", rows, 3 * total)?;
        o.check("o", rows, total)?;
        log_sum_exp.check("log_sum_exp", rows, self.heads.count)
    }

    pub(crate) fn check_backward(&self, from: &SelfAttentionBackward<'_, D>, d_qkv: &D::Rows) -> Result<()> {
        self.check(from.qkv, from.o, from.log_sum_exp)?;
        let (rows, total) = (self.batch.rows(self.side), self.heads.total());
        from.d_o.check("d_o", rows, total)?;
        d_qkv.check("d_qkv", scoped_rows(self.batch, self.side, from.scope)?, 3 * total)
    }
}

/// Fails unless every head's row of bias covers -`max_distance` to `max_distance`.
pub(crate) fn check_bias(per_head: &[Vec<f32>], max_distance: usize) -> Result<()> {
    let expected = max_distance.saturating_mul(2).saturating_add(1);
    per_head.iter().try_for_each(|row| check_length("a head's position bias", expected, row.len()))
}

/// Attention of each example's rows over themselves.
pub trait SelfAttentionOps: Device {
    /// One short row of bias a head, indexed by key - query.
    type PositionBias: Sync;

    /// One row of bias a head, `[H, 2·max_distance + 1]`, for key - query from -`max_distance` on; beyond its ends the end value holds.
    ///
    /// # Errors
    /// Rows of another length, and what the driver says.
    fn position_bias(&self, per_head: Vec<Vec<f32>>, max_distance: usize) -> Result<Self::PositionBias>;
    /// H.
    fn bias_heads(bias: &Self::PositionBias) -> usize;
    /// Writes o \[rows, H·K\] and log_sum_exp \[rows, H\] from qkv \[rows, 3·H·K\].
    ///
    /// # Errors
    /// A shape that does not fit, and what the driver says.
    fn self_attention(
        &self,
        of: &SelfAttention<'_, Self>,
        qkv: &Self::Rows,
        o: &mut Self::Rows,
        log_sum_exp: &mut Self::Rows,
    ) -> Result<()>;
    /// Writes d_qkv \[rows of the scope, 3·H·K\].
    ///
    /// # Errors
    /// As [`SelfAttentionOps::self_attention`].
    fn self_attention_backward(
        &self,
        of: &SelfAttention<'_, Self>,
        from: SelfAttentionBackward<'_, Self>,
        d_qkv: &mut Self::Rows,
    ) -> Result<()>;
}
