//! Cross attention of T decoder rows over R encoder rows, through projected keys and values: `kernels/attention.cu`.

use super::Cuda;
use super::attention::{AttentionArguments, Shape};
use super::rows::Rows;
use crate::backend::{Batch, CrossAttention, Format, Scope, Side};
use crate::error::Result;

/// What cross attention's backward needs.
#[derive(Debug)]
pub struct CrossKept {
    /// \[R, H·K\] each.
    k: Rows,
    v: Rows,
    o: Rows,
    log_sum_exp: Rows,
}

impl CrossKept {
    pub(super) fn new(cuda: &Cuda, batch: &Batch, cross: &CrossAttention<'_, Cuda>) -> Self {
        let (sources, targets, total) =
            (batch.rows(Side::Encoder), batch.rows(Side::Decoder), cross.heads.total());
        Self {
            k: cuda.activation(sources, total, Format::Operand),
            v: cuda.activation(sources, total, Format::Operand),
            o: cuda.activation(targets, total, Format::Operand),
            log_sum_exp: cuda.activation(targets, cross.heads.count, Format::Float),
        }
    }
}

fn shape(cross: &CrossAttention<'_, Cuda>) -> Shape {
    Shape {
        query_side: Side::Decoder,
        key_side: Side::Encoder,
        scope: Scope::All,
        heads: cross.heads,
        q_stride: cross.heads.total(),
        kv_stride: cross.heads.total(),
        reach: 0,
    }
}

impl Cuda {
    pub(super) fn launch_cross_attention(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        q: &Rows,
        h: &Rows,
        o: &mut Rows,
        kept: &mut CrossKept,
    ) -> Result<()> {
        let (targets, total) = (batch.rows(Side::Decoder), cross.heads.total());
        q.expect("q", targets, total)?;
        o.expect("o", targets, total)?;
        self.launch_product(batch, Side::Encoder, h, cross.w_k, &mut kept.k)?;
        self.launch_product(batch, Side::Encoder, h, cross.w_v, &mut kept.v)?;
        let addresses = AttentionArguments {
            q: q.operand_address(self)?,
            k: kept.k.operand_address(self)?,
            v: kept.v.operand_address(self)?,
            o: o.operand_address(self)?,
            log_sum_exp: kept.log_sum_exp.float_address(self)?,
            ..AttentionArguments::default()
        };
        self.attend(batch, &shape(cross), cross.mask, addresses)?;
        self.copy_operand(o, &mut kept.o)
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
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
        let (sources, targets, total) =
            (batch.rows(Side::Encoder), batch.rows(Side::Decoder), cross.heads.total());
        q.expect("q", targets, total)?;
        d_o.expect("d_o", targets, total)?;
        d_h.expect("d_h", sources, h.width)?;
        let d_k = self.activation(sources, total, Format::Operand);
        let d_v = self.activation(sources, total, Format::Operand);
        let (mut d_q_address, mut inner_address) = (0, 0);
        if let Some(d_q) = d_q {
            d_q.expect("d_q", targets, total)?;
            d_q_address = d_q.operand_address(self)?;
            let inner = self.allocate(targets * cross.heads.count);
            inner_address = self.address_of(&inner)?;
            d_q.inner = Some(inner);
        }
        let addresses = AttentionArguments {
            q: q.operand_address(self)?,
            k: kept.k.operand_address(self)?,
            v: kept.v.operand_address(self)?,
            o: kept.o.operand_address(self)?,
            log_sum_exp: kept.log_sum_exp.float_address(self)?,
            d_o: d_o.operand_address(self)?,
            d_q: d_q_address,
            d_k: d_k.operand_address(self)?,
            d_v: d_v.operand_address(self)?,
            inner: inner_address,
            inner_parts: 1,
            ..AttentionArguments::default()
        };
        self.attend_backward(batch, &shape(cross), cross.mask, addresses)?;
        self.launch_accumulate(batch, Side::Encoder, &d_k, cross.w_k, d_h)?;
        self.launch_accumulate(batch, Side::Encoder, &d_v, cross.w_v, d_h)
    }
}
