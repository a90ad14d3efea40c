//! The final norm of a stack: `kernels/norm.cu`.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::Cuda;
use super::arguments::norm::{FinalNormArguments, FinalNormBackwardArguments, STRETCHES};
use super::arguments::rows::FLOAT_COLUMNS;
use super::arguments::side_number;
use super::embedding::{check_width, launch_rows};
use super::kernels::{Kernel, Kernels};
use super::memory::{address, address_mut, check_length};
use super::rows::{NORM_COLUMNS, Rows, Weight};
use super::sequences::Sequences;
use crate::backend::{Batch, Mask, Side};
use crate::error::{Error, Result};

/// Columns that a block of the backward kernel, of 128 threads, holds in registers.
const WIDEST: usize = STRETCHES * 128 * FLOAT_COLUMNS;

impl Cuda {
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
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
        let (rows, width) = (batch.rows(side), x.width);
        x.check("x", rows, width)?;
        r.check("r", rows, width)?;
        h.check("h", rows, width)?;
        let arguments = FinalNormArguments {
            batch: self.describe(batch)?.address(self)?,
            x: x.float_address(self)?,
            partials: r.float_address(self)?,
            gain: gain.map_or(Ok(0), |gain| gain.float_address(self))?,
            h: h.operand_address(self)?,
            mask: self.mask(mask)?,
            side: side_number(side),
            width: width as i32,
            epsilon: r.epsilon,
            scale: scale as f32,
        };
        let kernel = Kernel { file: "norm", name: self.named("final_norm_bf16", "final_norm_f32") };
        // SAFETY: shapes were checked; rows beyond the batch's exit.
        unsafe { launch_rows(self.kernels(), kernel, rows, &arguments) }
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
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
        below: Option<&Rows>,
        d_x: &mut Rows,
    ) -> Result<()> {
        let (rows, width) = (batch.rows(side), x.width);
        check_widest(width)?;
        x.check("x", rows, width)?;
        r.check("r", rows, width)?;
        d_h.check("d_h", rows, width)?;
        d_x.check("d_x", rows, width)?;
        let (below, inner) = self.inner_of(below, rows, width, 1, d_x)?;
        let arguments = FinalNormBackwardArguments {
            batch: self.describe(batch)?.address(self)?,
            x: x.float_address(self)?,
            partials: r.float_address(self)?,
            gain: gain.map_or(Ok(0), |gain| gain.float_address(self))?,
            d_h: d_h.float_address(self)?,
            d_x: d_x.float_address(self)?,
            copy: d_x.copy_address(self)?,
            below,
            inner,
            mask: self.mask(mask)?,
            side: side_number(side),
            width: width as i32,
            epsilon: r.epsilon,
            scale: scale as f32,
        };
        // SAFETY: shapes were checked, a block holds a row of that width, and rows beyond the batch's exit.
        unsafe { self.kernels().launch(BACKWARD, [rows as u32, 1, 1], 128, 0, &arguments) }
    }
}

const BACKWARD: Kernel = Kernel { file: "norm", name: "final_norm_backward" };

/// Fails unless a block of the backward kernel holds a row.
fn check_widest(width: usize) -> Result<()> {
    if width <= WIDEST {
        return Ok(());
    }
    Err(Error::tensor("x", format!("at most {WIDEST} columns"), width.to_string(), ""))
}

/// A norm that nothing is folded into, for launches on cudarc's own buffers: h = x / rms(x) · gain · scale.
///
/// The mean square comes from `partials` \[rows, ceil(D / 64)\], the sums of squares of 64 columns each that the op before leaves.
/// Without dropout.
#[derive(Clone, Copy)]
pub struct FinalNorm<'a> {
    /// The rows; how they are cut up does not matter.
    pub sequences: &'a Sequences,
    /// D, a multiple of 8; backward takes up to 4,096.
    pub width: usize,
    /// Added to the mean square.
    pub epsilon: f32,
    /// \[D\]; none for a gain of 1.
    pub gain: Option<&'a CudaView<'a, f32>>,
    /// What every number is multiplied by.
    pub scale: f32,
}

impl FinalNorm<'_> {
    /// Checks what both passes read, and gives addresses of partials and gain.
    fn check(
        &self,
        kernels: &Kernels,
        x: &CudaView<'_, f32>,
        partials: &CudaView<'_, f32>,
    ) -> Result<(u64, u64)> {
        let rows = self.sequences.rows();
        check_width(self.width)?;
        check_length("x", rows * self.width, x.len())?;
        check_length("partials", rows * self.width.div_ceil(NORM_COLUMNS), partials.len())?;
        if let Some(gain) = self.gain {
            check_length("gain", self.width, gain.len())?;
        }
        let gain = self.gain.map_or(0, |gain| address(gain, kernels.stream()));
        Ok((address(partials, kernels.stream()), gain))
    }

    /// Launches the forward pass: `h` \[rows, D\] in bf16 from `x` \[rows, D\] in f32.
    ///
    /// Costs 2·D multiplications a row; moves 4·D bytes in and 2·D out.
    ///
    /// # Errors
    /// A length or width that does not fit, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        x: &CudaView<'_, f32>,
        partials: &CudaView<'_, f32>,
        h: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        let (partials, gain) = self.check(kernels, x, partials)?;
        let rows = self.sequences.rows();
        check_length("h", rows * self.width, h.len())?;
        let arguments = FinalNormArguments {
            batch: self.sequences.address(kernels),
            x: address(x, kernels.stream()),
            partials,
            gain,
            h: address_mut(h, kernels.stream()),
            mask: Default::default(),
            side: side_number(Side::Decoder),
            width: self.width as i32,
            epsilon: self.epsilon,
            scale: self.scale,
        };
        let kernel = Kernel { file: "norm", name: "final_norm_bf16" };
        // SAFETY: every length was checked; rows beyond the last exit.
        unsafe { launch_rows(kernels, kernel, rows, &arguments) }
    }

    /// Launches the backward pass: `d_x` \[rows, D\] in f32 and its bf16 `copy`, from `d_h` \[rows, D\] in f32 and what
    /// forward read. The gain has no gradient.
    ///
    /// Costs 5·D multiply-adds a row; moves 8·D bytes in and 6·D out.
    ///
    /// # Errors
    /// As [`FinalNorm::forward`].
    pub fn backward(
        &self,
        kernels: &Kernels,
        x: &CudaView<'_, f32>,
        partials: &CudaView<'_, f32>,
        d_h: &CudaView<'_, f32>,
        d_x: &mut CudaViewMut<'_, f32>,
        copy: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        check_widest(self.width)?;
        let (partials, gain) = self.check(kernels, x, partials)?;
        let (rows, stream) = (self.sequences.rows(), kernels.stream());
        check_length("d_h", rows * self.width, d_h.len())?;
        check_length("d_x", rows * self.width, d_x.len())?;
        check_length("copy", rows * self.width, copy.len())?;
        let arguments = FinalNormBackwardArguments {
            batch: self.sequences.address(kernels),
            x: address(x, stream),
            partials,
            gain,
            d_h: address(d_h, stream),
            d_x: address_mut(d_x, stream),
            copy: address_mut(copy, stream),
            below: 0,
            inner: 0,
            mask: Default::default(),
            side: side_number(Side::Decoder),
            width: self.width as i32,
            epsilon: self.epsilon,
            scale: self.scale,
        };
        // SAFETY: every length was checked, a block holds a row of that width, and rows beyond the last exit.
        unsafe { kernels.launch(BACKWARD, [rows as u32, 1, 1], 128, 0, &arguments) }
    }
}
