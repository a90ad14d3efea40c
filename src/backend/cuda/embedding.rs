//! Embedding.

use super::*;

impl Cuda {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_embed(
        &self,
        table: &Weight,
        side: Side,
        batch: &Batch,
        mask: Mask<'_>,
        epsilon: f64,
        x: &mut Rows,
        r: &mut Rows,
    ) -> Result<()> {
        let _ = (table, side, batch, mask, epsilon, x, r);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_embed_backward(&self, batch: &Batch, mask: Mask<'_>, d_x: &mut Rows) -> Result<()> {
        let _ = (batch, mask, d_x);
        Err(failure::absent())
    }
}
