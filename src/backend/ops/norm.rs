//! A stack's final norm; every other norm is a part of the projection that reads it.

use super::{Device, Mask, Matrix, Residual, check_mask};
use crate::backend::{Batch, Side};
use crate::error::Result;

/// h = mask(x · r · norm_weight · scale).
pub struct FinalNorm<'a, D: Device> {
    /// Whose rows.
    pub batch: &'a Batch,
    /// Which of its rows.
    pub side: Side,
    /// x and r, \[rows, D\].
    pub input: &'a Residual<D>,
    /// \[1, D\], for [`Readers::Lookup`](super::Readers::Lookup); none where the norm's weight is folded into the next weight.
    pub norm_weight: Option<&'a D::Weight>,
    /// What every number is multiplied by.
    pub scale: f64,
    /// Dropout of the result.
    pub mask: Mask<'a>,
}

/// What backward reads beside what forward read.
pub struct FinalNormBackward<'a, D: Device> {
    /// \[rows, D\].
    pub d_h: &'a D::Rows,
    /// As in [`ProjectionBackward`](super::ProjectionBackward).
    pub below: Option<&'a D::Rows>,
}

impl<D: Device> FinalNorm<'_, D> {
    pub(crate) fn check(&self, h: &D::Rows) -> Result<()> {
        self.check_output("h", h)
    }

    fn check_output(&self, what: &str, h: &D::Rows) -> Result<()> {
        check_mask(self.mask, self.batch)?;
        let (rows, width) = (self.batch.rows(self.side), self.input.width());
        self.input.check("x", rows, width)?;
        self.norm_weight.map_or(Ok(()), |norm_weight| norm_weight.check("the norm's weight", 1, width))?;
        h.check(what, rows, width)
    }

    pub(crate) fn check_backward(&self, from: &FinalNormBackward<'_, D>, d_x: &D::Rows) -> Result<()> {
        self.check_output("d_h", from.d_h)?;
        let (rows, width) = (self.batch.rows(self.side), self.input.width());
        from.below.map_or(Ok(()), |below| below.check("below", rows, width))?;
        d_x.check("d_x", rows, width)
    }
}

/// The final norm, forward and backward; its weight has no gradient.
pub trait NormOps: Device {
    /// Writes h \[rows, D\].
    ///
    /// # Errors
    /// A shape that does not fit, and what the driver says.
    fn final_norm(&self, of: FinalNorm<'_, Self>, h: &mut Self::Rows) -> Result<()>;
    /// Writes d_x \[rows, D\].
    ///
    /// # Errors
    /// As [`NormOps::final_norm`].
    fn final_norm_backward(
        &self,
        of: FinalNorm<'_, Self>,
        from: FinalNormBackward<'_, Self>,
        d_x: &mut Self::Rows,
    ) -> Result<()>;
}
