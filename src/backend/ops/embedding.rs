//! Token embedding.

use super::{Device, Mask, Matrix, Residual, check_columns, check_mask};
use crate::backend::{Batch, Side};
use crate::error::{Error, Result};

/// x\[row\] = mask(table\[id of the row\]) on token rows. The encoder's prompt rows, which stand before each example's tokens, are
/// the mixture's.
pub struct Embedding<'a, D: Device> {
    /// \[V, D\], for [`Readers::Lookup`](super::Readers::Lookup).
    pub table: &'a D::Weight,
    /// Whose rows; all decoder rows are token rows.
    pub batch: &'a Batch,
    /// Which of its rows.
    pub side: Side,
    /// Dropout of the rows.
    pub mask: Mask<'a>,
    /// Epsilon of the norm of x.
    pub epsilon: f64,
}

impl<D: Device> Embedding<'_, D> {
    pub(crate) fn check(&self, output: &Residual<D>) -> Result<()> {
        let [vocabulary, width] = self.table.shape();
        check_mask(self.mask, self.batch)?;
        check_vocabulary(self.batch.vocabulary(), vocabulary)?;
        output.check("x", self.batch.rows(self.side), width)
    }

    /// Fails unless the rows are the decoder's.
    pub(crate) fn check_decoder(&self) -> Result<()> {
        if self.side == Side::Decoder {
            return Ok(());
        }
        Err(Error::tensor("chosen tokens", "rows of the decoder", "those of the encoder", ""))
    }
}

/// Fails if an embedding table of `found` rows lacks one of the first `needed`.
pub(crate) fn check_vocabulary(needed: usize, found: usize) -> Result<()> {
    if needed <= found {
        return Ok(());
    }
    let expected = format!("at least {needed} rows");
    Err(Error::tensor("the embedding table", expected, found.to_string(), ""))
}

/// Fails unless `d_x` has the batch's encoder rows, of at least one column.
pub(crate) fn check_embedding_gradient<M: Matrix>(batch: &Batch, mask: Mask<'_>, d_x: &M) -> Result<()> {
    check_mask(mask, batch)?;
    let [_, width] = d_x.shape();
    check_columns("d_x", width)?;
    d_x.check("d_x", batch.rows(Side::Encoder), width)
}

/// The embedding, and what its dropout does to the gradient.
pub trait EmbeddingOps: Device {
    /// Writes the token rows of x \[rows, D\], dropped by the mask, and their norms; prompt rows are left alone.
    ///
    /// # Errors
    /// A shape that does not fit, and what the driver says.
    fn embed(&self, of: Embedding<'_, Self>, output: &mut Residual<Self>) -> Result<()>;
    /// Drops the prompt rows of d_x \[R, D\] by the embedding's mask.
    ///
    /// # Errors
    /// As [`EmbeddingOps::embed`].
    fn embed_backward(&self, batch: &Batch, mask: Mask<'_>, d_x: &mut Self::Rows) -> Result<()>;
}
