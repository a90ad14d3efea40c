//! Final norms.

use super::*;

impl Cuda {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_final_norm(
        &self,
        batch: &Batch,
        side: Side,
        x: &Rows,
        r: &Rows,
        gain: Option<&Weight>,
        scale: f64,
        mask: Mask<'_>,
        h: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, side, x, r, gain, scale, mask, h);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_final_norm_backward(
        &self,
        batch: &Batch,
        side: Side,
        x: &Rows,
        r: &Rows,
        gain: Option<&Weight>,
        scale: f64,
        mask: Mask<'_>,
        d_h: &Rows,
        d_x: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, side, x, r, gain, scale, mask, d_h, d_x);
        Err(failure::absent())
    }
}
