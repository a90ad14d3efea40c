//! Cross attention.

use super::*;

/// What cross attention's backward needs.
#[derive(Debug)]
pub struct CrossKept;
impl CrossKept {
    pub(super) fn new(_cuda: &Cuda, _batch: &Batch, _cross: &CrossAttention<'_, Cuda>) -> Self {
        Self
    }
}

impl Cuda {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_cross_attention(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        q: &Rows,
        h: &Rows,
        o: &mut Rows,
        kept: &mut CrossKept,
    ) -> Result<()> {
        let _ = (batch, cross, q, h, o, kept);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_cross_attention_backward(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        kept: &CrossKept,
        q: &Rows,
        h: &Rows,
        d_o: &Rows,
        d_q: Option<&mut Rows>,
        d_h: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, cross, kept, q, h, d_o, d_q, d_h);
        Err(failure::absent())
    }
}
