//! The feed-forward sublayer.

use super::{Device, Mask, Matrix, Residual, check_mask};
use crate::backend::{Batch, Side};
use crate::error::Result;

/// The feed-forward's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// max(0, z), of one input projection: T5 v1.0.
    Relu,
    /// gelu(z_0) · z_1 with the tanh form of gelu; the two input projections are stacked: v1.1, LM-adapted, Flan, mT5.
    GatedGelu,
    /// silu(z_0) · z_1; the two input projections are stacked.
    GatedSilu,
}

impl Activation {
    /// Whether it takes two input projections.
    pub fn is_gated(self) -> bool {
        self != Self::Relu
    }

    /// Input projections stacked in the feed-forward's first weight: 1, or 2 when gated.
    pub fn projections(self) -> usize {
        if self.is_gated() { 2 } else { 1 }
    }
}

/// x_next = x + output_mask(inner_mask(act(r·x W_in^T)) W_out^T): the frozen parts and masks of a feed-forward sublayer.
pub struct FeedForward<'a, D: Device> {
    /// Whose rows.
    pub batch: &'a Batch,
    /// Which of its rows.
    pub side: Side,
    /// \[F, D\], or \[2F, D\] when gated, the norm's weight folded in.
    pub w_in: &'a D::Weight,
    /// \[D, F\].
    pub w_out: &'a D::Weight,
    /// What stands between.
    pub activation: Activation,
    /// Dropout after the activation.
    pub inner_mask: Mask<'a>,
    /// Dropout of the sublayer's output.
    pub output_mask: Mask<'a>,
    /// Epsilon of the norm that reads x_next.
    pub epsilon: f64,
}

/// What backward reads beside the gradient.
pub struct FeedForwardBackward<'a, D: FeedForwardOps> {
    /// What forward saved.
    pub saved: &'a D::FeedForwardSaved,
    /// x and r, which forward read.
    pub input: &'a Residual<D>,
    /// What forward wrote: ReLU is positively homogeneous, so that the inner product that its norm's gradient needs is
    /// <d_x_next, x_next - x>.
    pub x_next: &'a D::Rows,
}

impl<D: FeedForwardOps> FeedForward<'_, D> {
    fn check_weights(&self) -> Result<()> {
        check_mask(self.inner_mask, self.batch)?;
        check_mask(self.output_mask, self.batch)?;
        let [width, inner] = self.w_out.shape();
        self.w_in.check("w_in", self.activation.projections() * inner, width)
    }

    pub(crate) fn check(&self, input: &Residual<D>, next: &Residual<D>) -> Result<()> {
        self.check_weights()?;
        let (rows, [width, _]) = (self.batch.rows(self.side), self.w_out.shape());
        input.check("x", rows, width)?;
        next.check("x_next", rows, width)
    }

    pub(crate) fn check_backward(&self, from: &FeedForwardBackward<'_, D>, d_x: &D::Rows) -> Result<()> {
        self.check_weights()?;
        let (rows, [width, _]) = (self.batch.rows(self.side), self.w_out.shape());
        from.input.check("x", rows, width)?;
        from.x_next.check("x_next", rows, width)?;
        d_x.check("d_x", rows, width)
    }
}

/// The feed-forward sublayer as a whole.
pub trait FeedForwardOps: Device {
    /// What backward needs: one bit an element for ReLU, the pre-activations when gated.
    type FeedForwardSaved: Send;

    /// Writes x_next \[rows, D\] and its norm. Saves what backward needs if `keep`.
    ///
    /// # Errors
    /// A shape that does not fit, and what the driver says.
    fn feed_forward(
        &self,
        of: &FeedForward<'_, Self>,
        input: &Residual<Self>,
        next: &mut Residual<Self>,
        keep: bool,
    ) -> Result<Option<Self::FeedForwardSaved>>;
    /// Turns the gradient of x_next, in `d_x` \[rows, D\], into that of x.
    ///
    /// # Errors
    /// As [`FeedForwardOps::feed_forward`].
    fn feed_forward_backward(
        &self,
        of: &FeedForward<'_, Self>,
        from: FeedForwardBackward<'_, Self>,
        d_x: &mut Self::Rows,
    ) -> Result<()>;
}
