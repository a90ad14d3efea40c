//! Self attention.

use super::*;

impl Cuda {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_self_attention(
        &self,
        batch: &Batch,
        side: Side,
        heads: Heads,
        bias: &PositionBias,
        mask: Mask<'_>,
        qkv: &Rows,
        o: &mut Rows,
        log_sum_exp: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, side, heads, bias, mask, qkv, o, log_sum_exp);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_self_attention_backward(
        &self,
        batch: &Batch,
        side: Side,
        scope: Scope,
        heads: Heads,
        bias: &PositionBias,
        mask: Mask<'_>,
        qkv: &Rows,
        o: &Rows,
        log_sum_exp: &Rows,
        d_o: &Rows,
        d_qkv: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, side, scope, heads, bias, mask, qkv, o, log_sum_exp, d_o, d_qkv);
        Err(failure::absent())
    }
}
