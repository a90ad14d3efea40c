//! Embedding: `kernels/embedding.cu`.

use super::Cuda;
use super::dropout::MaskArgument;
use super::kernels::{Arguments, Kernel};
use super::rows::{Rows, Weight};
use crate::backend::{Batch, Mask, Side};
use crate::error::Result;

/// Rows that a block of 128 threads works on, a warp each.
pub(super) const ROWS_OF_BLOCK: usize = 4;

#[derive(Clone, Copy)]
#[repr(C)]
struct EmbedArguments {
    batch: u64,
    table: u64,
    x: u64,
    copy: u64,
    partials: u64,
    mask: MaskArgument,
    side: i32,
    width: i32,
}
const _: () = assert!(size_of::<EmbedArguments>() == 64);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for EmbedArguments {}

#[derive(Clone, Copy)]
#[repr(C)]
struct EmbedBackwardArguments {
    batch: u64,
    d_x: u64,
    mask: MaskArgument,
    width: i32,
    padding: i32,
}
const _: () = assert!(size_of::<EmbedBackwardArguments>() == 40);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for EmbedBackwardArguments {}

/// `kernels/batch.cuh`'s number of a side.
pub(super) fn side_number(side: Side) -> i32 {
    match side {
        Side::Encoder => 0,
        Side::Decoder => 1,
    }
}

impl Cuda {
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
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
        let rows = batch.rows(side);
        x.expect("x", rows, table.input)?;
        r.expect("r", rows, table.input)?;
        r.epsilon = epsilon as f32;
        let arguments = EmbedArguments {
            batch: self.describe(batch)?.address(self)?,
            table: table.float_address(self)?,
            x: x.float_address(self)?,
            copy: x.copy_address(self)?,
            partials: r.float_address(self)?,
            mask: self.mask(mask)?,
            side: side_number(side),
            width: table.input as i32,
        };
        let grid = [rows.div_ceil(ROWS_OF_BLOCK) as u32, 1, 1];
        let kernel = Kernel { file: "embedding", name: "embed" };
        // SAFETY: shapes were checked, the batch's ids lie within the table, and rows beyond the batch's exit.
        unsafe { self.kernels().launch(kernel, grid, 128, 0, &arguments) }
    }

    pub(super) fn launch_embed_backward(&self, batch: &Batch, mask: Mask<'_>, d_x: &mut Rows) -> Result<()> {
        if mask.is_none() {
            return Ok(());
        }
        d_x.expect("d_x", batch.rows(Side::Encoder), d_x.width)?;
        let arguments = EmbedBackwardArguments {
            batch: self.describe(batch)?.address(self)?,
            d_x: d_x.float_address(self)?,
            mask: self.mask(mask)?,
            width: d_x.width as i32,
            padding: 0,
        };
        let rows = batch.examples() * batch.prompt_length();
        let grid = [rows.div_ceil(ROWS_OF_BLOCK) as u32, 1, 1];
        let kernel = Kernel { file: "embedding", name: "embed_backward" };
        // SAFETY: prompt rows lie within the encoder's rows, which d_x has.
        unsafe { self.kernels().launch(kernel, grid, 128, 0, &arguments) }
    }
}
