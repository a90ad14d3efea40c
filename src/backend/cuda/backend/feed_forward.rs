//! The feed-forward sublayer: products, with ReLU in the first one's epilogue or a gate between them.

use super::linear::Gradient;
use super::{Buffer, Cuda, Rows, read, write};
use crate::backend::cuda::ops::feed_forward::{EachRow, Gate};
use crate::backend::cuda::ops::linear::Epilogue;
use crate::backend::{
    Activation, FeedForward, FeedForwardBackward, FeedForwardOps, Format, LinearOps, Matrix, Residual,
    ResidualProjection,
};
use crate::error::Result;

/// What a feed-forward's backward needs.
#[derive(Debug)]
pub enum FeedForwardSaved {
    /// ReLU: one bit an element, set where it is positive and not dropped, \[rows, F / 8\] bytes.
    Bits(Buffer<u8>),
    /// Gated: both pre-activations, \[rows, 2·F\].
    PreActivations(Rows),
}

impl FeedForwardOps for Cuda {
    type FeedForwardSaved = FeedForwardSaved;

    fn feed_forward(
        &self,
        of: &FeedForward<'_, Self>,
        input: &Residual<Self>,
        next: &mut Residual<Self>,
        keep: bool,
    ) -> Result<Option<FeedForwardSaved>> {
        of.check(input, next)?;
        let rows = self.described(of.batch)?.rows(of.side);
        let ([out, _], [_, width]) = (of.w_in.shape(), of.w_out.shape());
        let mut a = self.activation(rows.count(), width, Format::Operand)?;
        let (x, norm) = (input.x.operand()?, self.norm(&input.r)?);
        let saved = if of.activation == Activation::Relu {
            let mut bits = self.allocate(rows.count() * out / 8)?;
            let epilogue = Epilogue::Relu {
                norm,
                mask: self.mask(of.inner_mask)?,
                z: a.operand_mut()?,
                bits: write(&mut bits),
            };
            self.product(rows, x, of.w_in, epilogue)?;
            FeedForwardSaved::Bits(bits)
        } else {
            let mut z = self.activation(rows.count(), out, Format::Operand)?;
            self.product(rows, x, of.w_in, Epilogue::Project { norm, z: z.operand_mut()? })?;
            let gate = Gate { rows, width, activation: of.activation, mask: self.mask(of.inner_mask)? };
            gate.forward(self.kernels(), z.operand()?, a.operand_mut()?)?;
            FeedForwardSaved::PreActivations(z)
        };
        self.add_project(
            ResidualProjection {
                batch: of.batch,
                side: of.side,
                y: &a,
                weight: of.w_out,
                mask: of.output_mask,
                epsilon: of.epsilon,
                x: &input.x,
            },
            next,
        )?;
        Ok(keep.then_some(saved))
    }

    fn feed_forward_backward(
        &self,
        of: &FeedForward<'_, Self>,
        from: FeedForwardBackward<'_, Self>,
        d_x: &mut Rows,
    ) -> Result<()> {
        of.check_backward(&from, d_x)?;
        let rows = self.described(of.batch)?.rows(of.side);
        let [model_width, width] = of.w_out.shape();
        // Whoever wrote d_x may have found the inner products already.
        let known = d_x.inner.take().filter(|_| matches!(from.saved, FeedForwardSaved::Bits(_)));
        let is_known = known.is_some();
        let mut inner = match known {
            Some(inner) => inner,
            None => self.allocate(rows.count())?,
        };
        let mut masked = None;
        let a = self.masked_gradient(rows, d_x, of.output_mask, &mut masked)?;
        let mut d_a = self.activation(rows.count(), width, Format::Operand)?;
        let dz = match from.saved {
            FeedForwardSaved::Bits(bits) => {
                if !is_known {
                    let each = EachRow { rows, width: model_width };
                    let of_rows =
                        [read(d_x.float()?), read(from.input.x.float()?), read(from.x_next.float()?)];
                    each.inner(self.kernels(), of_rows, write(&mut inner))?;
                }
                let mask = self.mask(of.inner_mask)?;
                let epilogue = Epilogue::ReluBackward { mask, bits: read(bits), dz: d_a.operand_mut()? };
                self.product_backward(rows, a, of.w_out, epilogue)?;
                d_a
            }
            FeedForwardSaved::PreActivations(z) => {
                self.product_backward(rows, a, of.w_out, Epilogue::Plain { z: d_a.operand_mut()? })?;
                let mut dz = self.activation(rows.count(), 2 * width, Format::Operand)?;
                let gate = Gate { rows, width, activation: of.activation, mask: self.mask(of.inner_mask)? };
                let d_a = d_a.operand()?;
                gate.backward(self.kernels(), z.operand()?, d_a, dz.operand_mut()?, write(&mut inner))?;
                dz
            }
        };
        let gradient = Gradient { input: from.input, inner: &inner, below: None };
        self.norm_backward(rows, dz.operand()?, of.w_in, &gradient, d_x)
    }
}
