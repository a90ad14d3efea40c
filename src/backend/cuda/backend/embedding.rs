//! Token embedding.

use cudarc::driver::DevicePtr;

use super::{Cuda, Rows};
use crate::backend::cuda::ops::embedding as launch;
use crate::backend::ops::check_embedding_gradient;
use crate::backend::{Batch, Embedding, EmbeddingOps, Mask, Matrix, Residual, Side};
use crate::error::Result;

impl Cuda {
    /// Embeds the batch's ids, or `ids` in their place.
    pub(super) fn embed_rows(
        &self,
        of: Embedding<'_, Self>,
        ids: Option<&dyn DevicePtr<u32>>,
        output: &mut Residual<Self>,
    ) -> Result<()> {
        output.r.epsilon = of.epsilon as f32;
        let rows = self.described(of.batch)?.rows(of.side);
        let embedding = launch::Embedding { rows, width: of.table.shape()[1], mask: self.mask(of.mask)? };
        let (x, copy) = output.x.residual_mut()?;
        let written = launch::EmbeddedRows { x, copy, partials: output.r.float_mut()? };
        let (kernels, table) = (self.kernels(), of.table.float()?);
        match ids {
            Some(ids) => embedding.forward_of(kernels, table, ids, written),
            None => embedding.forward(kernels, table, written),
        }
    }
}

impl EmbeddingOps for Cuda {
    fn embed(&self, of: Embedding<'_, Self>, output: &mut Residual<Self>) -> Result<()> {
        of.check(output)?;
        self.embed_rows(of, None, output)
    }

    fn embed_backward(&self, batch: &Batch, mask: Mask<'_>, d_x: &mut Rows) -> Result<()> {
        check_embedding_gradient(batch, mask, d_x)?;
        let rows = self.described(batch)?.rows(Side::Encoder);
        let embedding = launch::Embedding { rows, width: d_x.width, mask: self.mask(mask)? };
        embedding.backward(self.kernels(), d_x.float_mut()?)
    }
}
