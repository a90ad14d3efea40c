//! Cross attention over the encoder's rows.

use super::{Heads, LinearOps, Mask, Matrix, Projection, Residual, ResidualProjectionBackward, check_mask};
use crate::backend::{Batch, Side};
use crate::error::Result;

/// The frozen parts and mask of a cross attention: o = softmax(q W_k · h) h W_v^T by heads, over the encoder's rows h \[R, D\].
/// No position bias.
pub struct CrossAttention<'a, D: LinearOps> {
    /// Whose rows.
    pub batch: &'a Batch,
    /// Head count and width.
    pub heads: Heads,
    /// \[H·K, D\], the weight of the encoder's final norm folded in.
    pub w_k: &'a D::Weight,
    /// \[H·K, D\], the weight of the encoder's final norm folded in.
    pub w_v: &'a D::Weight,
    /// Dropout of the probabilities; one site a head.
    pub mask: Mask<'a>,
}

/// What backward reads.
pub struct CrossAttentionBackward<'a, D: CrossAttentionOps> {
    /// What forward saved.
    pub saved: &'a D::CrossAttentionSaved,
    /// What forward read, \[T, H·K\].
    pub q: &'a D::Rows,
    /// What forward read, \[R, D\].
    pub h: &'a D::Rows,
    /// What forward wrote, \[T, H·K\].
    pub o: &'a D::Rows,
    /// \[T, H·K\].
    pub d_o: &'a D::Rows,
}

impl<D: CrossAttentionOps> CrossAttention<'_, D> {
    /// D.
    pub(crate) fn depth(&self) -> usize {
        self.w_k.shape()[1]
    }

    pub(crate) fn check(&self, q: &D::Rows, h: &D::Rows, o: &D::Rows) -> Result<()> {
        check_mask(self.mask, self.batch)?;
        let (total, depth) = (self.heads.total(), self.depth());
        self.w_k.check("w_k", total, depth)?;
        self.w_v.check("w_v", total, depth)?;
        let targets = self.batch.rows(Side::Decoder);
        q.check("q", targets, total)?;
        o.check("o", targets, total)?;
        h.check("h", self.batch.rows(Side::Encoder), depth)
    }

    pub(crate) fn check_backward(
        &self,
        from: &CrossAttentionBackward<'_, D>,
        d_q: Option<&D::Rows>,
    ) -> Result<()> {
        self.check(from.q, from.h, from.o)?;
        let (targets, total) = (self.batch.rows(Side::Decoder), self.heads.total());
        from.d_o.check("d_o", targets, total)?;
        d_q.map_or(Ok(()), |d_q| d_q.check("d_q", targets, total))
    }
}

/// Attention of an example's decoder rows over its encoder rows. Absorbed where targets are short (scores q W_k · h, no keys and
/// values), else through projected keys and values.
pub trait CrossAttentionOps: LinearOps {
    /// What backward needs.
    type CrossAttentionSaved;
    /// The gradient of the encoder's rows while the decoder's layers add their parts of it: a device may store the parts and sum
    /// them at once.
    type SourceGradient;

    /// Writes o \[T, H·K\] from q \[T, H·K\] and h \[R, D\].
    ///
    /// # Errors
    /// A shape that does not fit, and what the driver says.
    fn cross_attention(
        &self,
        of: &CrossAttention<'_, Self>,
        q: &Self::Rows,
        h: &Self::Rows,
        o: &mut Self::Rows,
        keep: bool,
    ) -> Result<Option<Self::CrossAttentionSaved>>;
    /// Writes q \[T, H·K\] = r · x W^T for the [`CrossAttentionOps::cross_attention`] that comes next: a device may begin it here.
    ///
    /// # Errors
    /// As [`CrossAttentionOps::cross_attention`].
    fn cross_project(
        &self,
        of: &CrossAttention<'_, Self>,
        input: &Residual<Self>,
        weight: &Self::Weight,
        q: &mut Self::Rows,
    ) -> Result<()> {
        self.project(Projection { batch: of.batch, side: Side::Decoder, input, weight }, q)
    }
    /// Writes d_o \[T, H·K\] = mask(d_x) W for the [`CrossAttentionOps::cross_attention_backward`] that comes next.
    ///
    /// # Errors
    /// As [`CrossAttentionOps::cross_attention`].
    fn cross_project_backward(
        &self,
        of: &CrossAttention<'_, Self>,
        d_x: &Self::Rows,
        weight: &Self::Weight,
        mask: Mask<'_>,
        d_o: &mut Self::Rows,
    ) -> Result<()> {
        let (batch, side) = (of.batch, Side::Decoder);
        self.add_project_backward(ResidualProjectionBackward { batch, side, d_x, weight, mask, y: None }, d_o)
    }
    /// The gradient of the encoder's rows, \[R, D\], to which no layer has brought its part yet.
    ///
    /// # Errors
    /// No memory for it.
    fn source_gradient(&self, batch: &Batch, width: usize) -> Result<Self::SourceGradient>;
    /// Writes d_q \[T, H·K\], where it is wanted, and adds this layer's part of d_h.
    ///
    /// # Errors
    /// As [`CrossAttentionOps::cross_attention`].
    fn cross_attention_backward(
        &self,
        of: &CrossAttention<'_, Self>,
        from: CrossAttentionBackward<'_, Self>,
        d_q: Option<&mut Self::Rows>,
        d_h: &mut Self::SourceGradient,
    ) -> Result<()>;
    /// d_h \[R, D\]: the sum of all layers' parts, in the order in which they came.
    ///
    /// # Errors
    /// As [`CrossAttentionOps::cross_attention`].
    fn source_rows(&self, batch: &Batch, d_h: Self::SourceGradient) -> Result<Self::Rows>;
}
