//! Embedding: `kernels/embedding.cu`.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::Cuda;
use super::arguments::embedding::{EmbedArguments, EmbedBackwardArguments};
use super::arguments::rows::ROW_WARPS;
use super::arguments::side_number;
use super::kernels::{Arguments, Kernel, Kernels};
use super::memory::{address, address_mut, check_length};
use super::rows::{NORM_COLUMNS, Rows, WIDTH_MULTIPLE, Weight};
use super::sequences::Packed;
use crate::backend::{Batch, Mask, Side};
use crate::error::{Error, Result};

/// A kernel of the file with a warp a row.
///
/// # Safety
/// As for [`Kernels::launch`], for `rows` rows.
pub(super) unsafe fn launch_rows<A: Arguments>(
    kernels: &Kernels,
    kernel: Kernel,
    rows: usize,
    arguments: &A,
) -> Result<()> {
    let grid = [rows.div_ceil(ROW_WARPS) as u32, 1, 1];
    // SAFETY: the caller's promise.
    unsafe { kernels.launch(kernel, grid, 128, 0, arguments) }
}

/// Fails unless rows of `width` begin on 16 bytes in either format.
pub(super) fn check_width(width: usize) -> Result<()> {
    if width > 0 && width.is_multiple_of(WIDTH_MULTIPLE) {
        return Ok(());
    }
    Err(Error::tensor("width", format!("a multiple of {WIDTH_MULTIPLE}"), width.to_string(), ""))
}

/// An embedding of packed token rows, for launches on cudarc's own buffers.
///
/// x\[row\] = table\[id of the row\] on token rows. The encoder's prompt rows, which stand before each example's tokens, have
/// no id: what x holds there is kept. Without dropout, of which backward is nothing.
#[derive(Clone, Copy, Debug)]
pub struct Embedding<'a> {
    /// Whose rows and token ids.
    pub batch: &'a Packed,
    /// The encoder's rows, or the decoder's.
    pub side: Side,
    /// D, a multiple of 8.
    pub width: usize,
}

impl Embedding<'_> {
    /// Launches it: from `table` \[V, D\] in f32 to `x` \[rows, D\] in f32, its bf16 `copy` and `partials`
    /// \[rows, ceil(D / 64)\], the sums of squares of 64 columns each, by which the next product norms the row.
    ///
    /// Costs D multiply-adds a row; moves 4·D bytes in and 6·D + D / 16 out.
    ///
    /// # Errors
    /// A length or width that does not fit, a token id outside the table, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        table: &CudaView<'_, f32>,
        x: &mut CudaViewMut<'_, f32>,
        copy: &mut CudaViewMut<'_, bf16>,
        partials: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let (batch, stream) = (self.batch.batch(), kernels.stream());
        let rows = batch.rows(self.side);
        check_width(self.width)?;
        check_length("x", rows * self.width, x.len())?;
        check_length("copy", rows * self.width, copy.len())?;
        check_length("partials", rows * self.width.div_ceil(NORM_COLUMNS), partials.len())?;
        let largest = match self.side {
            Side::Encoder => (0..batch.examples()).flat_map(|b| batch.source(b)).max(),
            Side::Decoder => batch.decoder_ids().iter().max(),
        };
        let vocabulary = table.len() / self.width;
        if largest.is_none_or(|&id| id as usize >= vocabulary) || table.len() % self.width != 0 {
            let expected = format!("rows of {} for token ids up to {}", self.width, largest.unwrap_or(&0));
            return Err(Error::tensor("table", expected, format!("{} numbers", table.len()), ""));
        }
        let arguments = EmbedArguments {
            batch: self.batch.address(kernels),
            table: address(table, stream),
            x: address_mut(x, stream),
            copy: address_mut(copy, stream),
            partials: address_mut(partials, stream),
            mask: Default::default(),
            side: side_number(self.side),
            width: self.width as i32,
        };
        // SAFETY: lengths and ids were checked; rows beyond the batch's exit.
        unsafe { launch_rows(kernels, EMBED, rows, &arguments) }
    }
}

const EMBED: Kernel = Kernel { file: "embedding", name: "embed" };

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
        x.check("x", rows, table.input)?;
        r.check("r", rows, table.input)?;
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
        // SAFETY: shapes were checked, the batch's ids lie within the table, and rows beyond the batch's exit.
        unsafe { launch_rows(self.kernels(), EMBED, rows, &arguments) }
    }

    pub(super) fn launch_embed_backward(&self, batch: &Batch, mask: Mask<'_>, d_x: &mut Rows) -> Result<()> {
        if mask.is_none() {
            return Ok(());
        }
        d_x.check("d_x", batch.rows(Side::Encoder), d_x.width)?;
        let arguments = EmbedBackwardArguments {
            batch: self.describe(batch)?.address(self)?,
            d_x: d_x.float_address(self)?,
            mask: self.mask(mask)?,
            width: d_x.width as i32,
            padding: 0,
        };
        let rows = batch.examples() * batch.prompt_length();
        let kernel = Kernel { file: "embedding", name: "embed_backward" };
        // SAFETY: prompt rows lie within the encoder's rows, which d_x has.
        unsafe { launch_rows(self.kernels(), kernel, rows, &arguments) }
    }
}
