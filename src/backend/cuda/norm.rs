//! The final norm of a stack: `kernels/norm.cu`.

use super::Cuda;
use super::dropout::MaskArgument;
use super::embedding::{ROWS_OF_BLOCK, side_number};
use super::kernels::{Arguments, Kernel};
use super::rows::{Rows, Weight};
use crate::backend::{Batch, Mask, Side};
use crate::error::{Error, Result};

/// Columns that a block of the backward kernel holds in registers.
const WIDEST: usize = 4096;

#[derive(Clone, Copy)]
#[repr(C)]
struct FinalNormArguments {
    batch: u64,
    x: u64,
    partials: u64,
    gain: u64,
    h: u64,
    mask: MaskArgument,
    side: i32,
    width: i32,
    epsilon: f32,
    scale: f32,
}
const _: () = assert!(size_of::<FinalNormArguments>() == 72);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for FinalNormArguments {}

#[derive(Clone, Copy)]
#[repr(C)]
struct FinalNormBackwardArguments {
    batch: u64,
    x: u64,
    partials: u64,
    gain: u64,
    d_h: u64,
    d_x: u64,
    copy: u64,
    mask: MaskArgument,
    side: i32,
    width: i32,
    epsilon: f32,
    scale: f32,
}
const _: () = assert!(size_of::<FinalNormBackwardArguments>() == 88);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for FinalNormBackwardArguments {}

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
        x.expect("x", rows, width)?;
        r.expect("r", rows, width)?;
        h.expect("h", rows, width)?;
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
        let grid = [rows.div_ceil(ROWS_OF_BLOCK) as u32, 1, 1];
        let kernel = Kernel { file: "norm", name: self.named("final_norm_bf16", "final_norm_f32") };
        // SAFETY: shapes were checked; rows beyond the batch's exit.
        unsafe { self.kernels().launch(kernel, grid, 128, 0, &arguments) }
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
        d_x: &mut Rows,
    ) -> Result<()> {
        let (rows, width) = (batch.rows(side), x.width);
        if width > WIDEST {
            return Err(Error::tensor("x", format!("at most {WIDEST} columns"), width.to_string(), ""));
        }
        x.expect("x", rows, width)?;
        r.expect("r", rows, width)?;
        d_h.expect("d_h", rows, width)?;
        d_x.expect("d_x", rows, width)?;
        let arguments = FinalNormBackwardArguments {
            batch: self.describe(batch)?.address(self)?,
            x: x.float_address(self)?,
            partials: r.float_address(self)?,
            gain: gain.map_or(Ok(0), |gain| gain.float_address(self))?,
            d_h: d_h.float_address(self)?,
            d_x: d_x.float_address(self)?,
            copy: d_x.copy_address(self)?,
            mask: self.mask(mask)?,
            side: side_number(side),
            width: width as i32,
            epsilon: r.epsilon,
            scale: scale as f32,
        };
        let kernel = Kernel { file: "norm", name: "final_norm_backward" };
        // SAFETY: shapes were checked, a block holds a row of that width, and rows beyond the batch's exit.
        unsafe { self.kernels().launch(kernel, [rows as u32, 1, 1], 128, 0, &arguments) }
    }
}
