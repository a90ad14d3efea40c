//! Feed-forwards, and what stands between their products: `kernels/feed_forward.cu`.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::arguments::feed_forward::{GateArguments, RowArguments};
use super::arguments::gemm::{Epilogue, GemmArguments};
use super::arguments::side_number;
use super::embedding::{check_width, launch_rows};
use super::kernels::{Arguments, Kernel, Kernels};
use super::memory::{Buffer, address, address_mut, check_length};
use super::rows::{Operand, Rows};
use super::sequences::Sequences;
use super::{Cuda, failure};
use crate::backend::{Activation, Batch, FeedForward, Format, Mask, Scope, Side};
use crate::error::{Error, Result};

/// The kernels between products.
const FEED_FORWARD: &str = "feed_forward";

/// What a feed-forward's backward needs.
#[derive(Debug)]
pub struct FeedForwardKept {
    /// ReLU: one bit an element, positive and kept, \[rows, F / 8\] bytes.
    bits: Option<Buffer<u8>>,
    /// Gated: both pre-activations, \[rows, 2·F\].
    z: Option<Rows>,
}

impl FeedForwardKept {
    pub(super) fn new(cuda: &Cuda, batch: &Batch, side: Side, feed_forward: &FeedForward<'_, Cuda>) -> Self {
        let (rows, out) = (batch.rows(side), feed_forward.w_in.out);
        if feed_forward.activation == Activation::Relu {
            Self { bits: Some(cuda.allocate(rows * out / 8)), z: None }
        } else {
            Self { bits: None, z: Some(cuda.activation(rows, out, Format::Operand)) }
        }
    }
}

impl Cuda {
    /// What a dX product reads of d_x: its operand copy, or with dropout a masked one, which is then kept in `masked`.
    pub(super) fn masked_gradient(
        &self,
        batch: &Batch,
        side: Side,
        d_x: &Rows,
        mask: Mask<'_>,
        masked: &mut Option<Operand>,
    ) -> Result<u64> {
        if mask.is_none() {
            return d_x.operand_address(self);
        }
        let rows = batch.rows(side);
        let copy = masked.insert(self.operand(rows * d_x.width));
        let arguments = RowArguments {
            batch: self.describe(batch)?.address(self)?,
            d_x: d_x.float_address(self)?,
            x: 0,
            x_next: 0,
            inner: 0,
            copy: copy.address(self)?,
            mask: self.mask(mask)?,
            side: side_number(side),
            width: d_x.width as i32,
        };
        self.row_kernel(self.named("mask_copy_bf16", "mask_copy_f32"), rows, &arguments)?;
        copy.address(self)
    }

    fn row_kernel<A: Arguments>(&self, name: &'static str, rows: usize, arguments: &A) -> Result<()> {
        // SAFETY: the callers checked the shapes of every operand; rows beyond the batch's exit.
        unsafe { launch_rows(self.kernels(), Kernel { file: FEED_FORWARD, name }, rows, arguments) }
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_feed_forward(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        x: &Rows,
        r: &Rows,
        x_next: &mut Rows,
        r_next: &mut Rows,
        kept: &mut FeedForwardKept,
    ) -> Result<()> {
        let FeedForward { w_in, w_out, inner_mask, output_mask, epsilon, .. } = *feed_forward;
        let (rows, width) = (batch.rows(side), w_out.input);
        x.check("x", rows, w_in.input)?;
        r.check("r", rows, w_in.input)?;
        let a = self.activation(rows, width, Format::Operand);
        let norm = GemmArguments {
            partials: r.float_address(self)?,
            epsilon: r.epsilon,
            ..GemmArguments::default()
        };
        match (&kept.bits, &mut kept.z) {
            (Some(bits), _) => {
                let arguments = GemmArguments {
                    out: a.operand_address(self)?,
                    bits: self.address_of(bits)?,
                    mask: self.mask(inner_mask)?,
                    ..norm
                };
                self.product(&self.forward(batch, side, x, w_in, Epilogue::Relu)?, arguments)?;
            }
            (None, Some(z)) => {
                let arguments = GemmArguments { out: z.operand_address(self)?, ..norm };
                self.product(&self.forward(batch, side, x, w_in, Epilogue::Project)?, arguments)?;
                let arguments = self.gate(batch, side, feed_forward, z, &a)?;
                self.row_kernel(self.named("gate_bf16", "gate_f32"), rows, &arguments)?;
            }
            (None, None) => return Err(failure::absent()),
        }
        self.launch_add_project(batch, side, &a, w_out, output_mask, epsilon, x, x_next, r_next)?;
        Ok(())
    }

    fn gate(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        z: &Rows,
        a: &Rows,
    ) -> Result<GateArguments> {
        Ok(GateArguments {
            batch: self.describe(batch)?.address(self)?,
            z: z.operand_address(self)?,
            a: a.operand_address(self)?,
            dz: 0,
            inner: 0,
            mask: self.mask(feed_forward.inner_mask)?,
            side: side_number(side),
            width: a.width as i32,
            silu: i32::from(feed_forward.activation == Activation::GatedSilu),
            padding: 0,
        })
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_feed_forward_backward(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        kept: &FeedForwardKept,
        x: &Rows,
        r: &Rows,
        x_next: &Rows,
        d_x: &mut Rows,
    ) -> Result<()> {
        let FeedForward { w_in, w_out, inner_mask, output_mask, .. } = *feed_forward;
        let (rows, width) = (batch.rows(side), w_out.input);
        for (what, residual) in [("x", x), ("x_next", x_next), ("d_x", &*d_x)] {
            residual.check(what, rows, w_in.input)?;
        }
        // Whoever wrote d_x may have found the inner products already.
        let parts = d_x.inner_parts();
        let known = d_x.inner.take().filter(|_| kept.bits.is_some());
        let inner = known.unwrap_or_else(|| self.allocate(rows));
        let mut masked = None;
        let a = self.masked_gradient(batch, side, d_x, output_mask, &mut masked)?;
        let d_a = self.activation(rows, width, Format::Operand);
        let out = GemmArguments { out: d_a.operand_address(self)?, ..GemmArguments::default() };
        let inner_part = (self.address_of(&inner)?, inner.len() / rows.max(1));
        match (&kept.bits, &kept.z) {
            (Some(bits), _) => {
                if parts == 0 {
                    let arguments = RowArguments {
                        batch: self.describe(batch)?.address(self)?,
                        d_x: d_x.float_address(self)?,
                        x: x.float_address(self)?,
                        x_next: x_next.float_address(self)?,
                        inner: inner_part.0,
                        copy: 0,
                        mask: Default::default(),
                        side: side_number(side),
                        width: w_in.input as i32,
                    };
                    self.row_kernel("row_inner", rows, &arguments)?;
                }
                let arguments =
                    GemmArguments { bits: self.address_of(bits)?, mask: self.mask(inner_mask)?, ..out };
                let product = self.backward(batch, side, Scope::All, a, w_out, Epilogue::ReluBackward)?;
                self.product(&product, arguments)?;
                let dz = d_a.operand_address(self)?;
                self.norm_backward(batch, side, Scope::All, dz, inner_part, w_in, x, r, None, d_x)?;
            }
            (None, Some(z)) => {
                let product = self.backward(batch, side, Scope::All, a, w_out, Epilogue::Plain)?;
                self.product(&product, out)?;
                let dz = self.activation(rows, 2 * width, Format::Operand);
                let mut arguments = self.gate(batch, side, feed_forward, z, &d_a)?;
                arguments.dz = dz.operand_address(self)?;
                arguments.inner = inner_part.0;
                self.row_kernel(self.named("gate_backward_bf16", "gate_backward_f32"), rows, &arguments)?;
                let dz = dz.operand_address(self)?;
                self.norm_backward(batch, side, Scope::All, dz, inner_part, w_in, x, r, None, d_x)?;
            }
            (None, None) => return Err(failure::absent()),
        }
        Ok(())
    }
}

/// The gate between the two products of a gated feed-forward, for launches on cudarc's own buffers: a = act(z0) · z1.
///
/// z = \[z0, z1\] are pre-activations, \[rows, 2·F\] in bf16. Without dropout.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// The rows; how they are cut up does not matter.
    pub sequences: &'a Sequences,
    /// F, a multiple of 8.
    pub width: usize,
    /// Gelu (its tanh form) or silu.
    pub activation: Activation,
}

impl Gate<'_> {
    fn arguments(&self, kernels: &Kernels, z: &CudaView<'_, bf16>) -> Result<GateArguments> {
        check_width(self.width)?;
        if self.activation.projections() != 2 {
            let found = format!("{:?}", self.activation);
            return Err(Error::tensor("a gate", "a gated activation", found, "see Linear::project_relu"));
        }
        check_length("z", self.sequences.rows() * 2 * self.width, z.len())?;
        Ok(GateArguments {
            batch: self.sequences.address(kernels),
            z: address(z, kernels.stream()),
            a: 0,
            dz: 0,
            inner: 0,
            mask: Default::default(),
            side: side_number(Side::Decoder),
            width: self.width as i32,
            silu: i32::from(self.activation == Activation::GatedSilu),
            padding: 0,
        })
    }

    /// Launches the forward pass: `a` \[rows, F\] in bf16. Moves 4·F bytes a row in and 2·F out; an activation and a
    /// multiplication an element.
    ///
    /// # Errors
    /// A length, width or activation that does not fit, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        z: &CudaView<'_, bf16>,
        a: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        let rows = self.sequences.rows();
        check_length("a", rows * self.width, a.len())?;
        let arguments = GateArguments { a: address_mut(a, kernels.stream()), ..self.arguments(kernels, z)? };
        // SAFETY: every length was checked; rows beyond the last exit.
        unsafe { launch_rows(kernels, Kernel { file: FEED_FORWARD, name: "gate_bf16" }, rows, &arguments) }
    }

    /// Launches the backward pass: `dz` \[rows, 2·F\] in bf16 from `d_a` \[rows, F\] in bf16, and `inner` \[rows\], <dz, z> of
    /// each row, as [`Linear::backward_norm`](super::linear::Linear::backward_norm) wants it. Moves 6·F bytes a row in and 4·F out.
    ///
    /// # Errors
    /// As [`Gate::forward`].
    pub fn backward(
        &self,
        kernels: &Kernels,
        z: &CudaView<'_, bf16>,
        d_a: &CudaView<'_, bf16>,
        dz: &mut CudaViewMut<'_, bf16>,
        inner: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let (rows, stream) = (self.sequences.rows(), kernels.stream());
        check_length("d_a", rows * self.width, d_a.len())?;
        check_length("dz", rows * 2 * self.width, dz.len())?;
        check_length("inner", rows, inner.len())?;
        let arguments = GateArguments {
            a: address(d_a, stream),
            dz: address_mut(dz, stream),
            inner: address_mut(inner, stream),
            ..self.arguments(kernels, z)?
        };
        let kernel = Kernel { file: FEED_FORWARD, name: "gate_backward_bf16" };
        // SAFETY: every length was checked; rows beyond the last exit.
        unsafe { launch_rows(kernels, kernel, rows, &arguments) }
    }
}

/// `inner` \[rows\] = <d_x, x_next - x> of each row of `width` numbers, all in f32: what [`Linear::backward_norm`](super::linear::Linear::backward_norm) wants behind a
/// ReLU, which is positively homogeneous, so that this is <dz, z>. Moves 12 bytes a number.
///
/// # Errors
/// A length that does not fit, and what the driver says.
pub fn row_inner(
    kernels: &Kernels,
    sequences: &Sequences,
    width: usize,
    [d_x, x, x_next]: [&CudaView<'_, f32>; 3],
    inner: &mut CudaViewMut<'_, f32>,
) -> Result<()> {
    let (rows, stream) = (sequences.rows(), kernels.stream());
    check_width(width)?;
    for (what, of) in [("d_x", d_x), ("x", x), ("x_next", x_next)] {
        check_length(what, rows * width, of.len())?;
    }
    check_length("inner", rows, inner.len())?;
    let arguments = RowArguments {
        batch: sequences.address(kernels),
        d_x: address(d_x, stream),
        x: address(x, stream),
        x_next: address(x_next, stream),
        inner: address_mut(inner, stream),
        copy: 0,
        mask: Default::default(),
        side: side_number(Side::Decoder),
        width: width as i32,
    };
    // SAFETY: every length was checked; rows beyond the last exit.
    unsafe { launch_rows(kernels, Kernel { file: FEED_FORWARD, name: "row_inner" }, rows, &arguments) }
}
