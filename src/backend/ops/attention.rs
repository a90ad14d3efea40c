//! Self attention.

use super::{
    Device, Format, Heads, LinearOps, Mask, Matrix, Projection, Residual, ResidualProjectionBackward,
    check_heads, check_length, check_mask, scoped_rows,
};
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

/// What backward through the output projection and the attention before it reads.
pub struct SelfAttentionOutputBackward<'a, D: Device> {
    /// As in [`SelfAttentionBackward`].
    pub scope: Scope,
    /// What forward read, \[rows, 3·H·K\].
    pub qkv: &'a D::Rows,
    /// What forward wrote, \[rows, H·K\].
    pub o: &'a D::Rows,
    /// What forward wrote, \[rows, H\].
    pub log_sum_exp: &'a D::Rows,
    /// \[rows, D\].
    pub d_x: &'a D::Rows,
    /// W_o \[D, H·K\].
    pub weight: &'a D::Weight,
    /// Dropout of the projection.
    pub mask: Mask<'a>,
}

impl<'a, D: SelfAttentionOps> SelfAttentionOutputBackward<'a, D> {
    pub(crate) fn check(&self, of: &SelfAttention<'_, D>, d_qkv: &D::Rows) -> Result<()> {
        of.check(self.qkv, self.o, self.log_sum_exp)?;
        check_mask(self.mask, of.batch)?;
        let [width, _] = self.weight.shape();
        self.d_x.check("d_x", of.batch.rows(of.side), width)?;
        self.weight.check("w_o", width, of.heads.total())?;
        d_qkv.check("d_qkv", scoped_rows(of.batch, of.side, self.scope)?, 3 * of.heads.total())
    }

    /// The first of the two by itself.
    pub(crate) fn projection(&self, of: &SelfAttention<'a, D>) -> ResidualProjectionBackward<'a, D> {
        let Self { d_x, weight, mask, .. } = *self;
        let y = Some((self.o, of.heads));
        ResidualProjectionBackward { batch: of.batch, side: of.side, d_x, weight, mask, y }
    }

    /// The second.
    pub(crate) fn attention<'b>(&self, d_o: &'b D::Rows) -> SelfAttentionBackward<'b, D>
    where
        'a: 'b,
    {
        let Self { scope, qkv, o, log_sum_exp, .. } = *self;
        SelfAttentionBackward { scope, qkv, o, log_sum_exp, d_o }
    }
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

    /// Of qkv as a projection of `input` writes it.
    pub(crate) fn check_projected(
        &self,
        input: &Residual<D>,
        weight: &D::Weight,
        [qkv, o, log_sum_exp]: [&D::Rows; 3],
    ) -> Result<()> {
        self.check(qkv, o, log_sum_exp)?;
        let [_, width] = weight.shape();
        input.check("x", self.batch.rows(self.side), width)?;
        weight.check("w_qkv", 3 * self.heads.total(), width)
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
pub trait SelfAttentionOps: LinearOps {
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
    /// Writes qkv \[rows, 3·H·K\] = r · x W^T, which is [`LinearOps::project`], and of it o and log_sum_exp, as
    /// [`SelfAttentionOps::self_attention`]. A device may do both at once.
    ///
    /// # Errors
    /// As [`SelfAttentionOps::self_attention`].
    fn self_attention_project(
        &self,
        of: &SelfAttention<'_, Self>,
        input: &Residual<Self>,
        weight: &Self::Weight,
        qkv: &mut Self::Rows,
        [o, log_sum_exp]: [&mut Self::Rows; 2],
    ) -> Result<()> {
        of.check_projected(input, weight, [qkv, o, log_sum_exp])?;
        self.project(Projection { batch: of.batch, side: of.side, input, weight }, qkv)?;
        self.self_attention(of, qkv, o, log_sum_exp)
    }
    /// Writes d_qkv from the gradient after the output projection: [`LinearOps::add_project_backward`], which gives d_o, and
    /// [`SelfAttentionOps::self_attention_backward`]. A device may do both at once.
    ///
    /// # Errors
    /// As [`SelfAttentionOps::self_attention`].
    fn self_attention_output_backward(
        &self,
        of: &SelfAttention<'_, Self>,
        from: SelfAttentionOutputBackward<'_, Self>,
        d_qkv: &mut Self::Rows,
    ) -> Result<()> {
        from.check(of, d_qkv)?;
        let mut d_o = self.rows(of.batch.rows(of.side), of.heads.total(), Format::Operand)?;
        self.add_project_backward(from.projection(of), &mut d_o)?;
        self.self_attention_backward(of, from.attention(&d_o), d_qkv)
    }
}
