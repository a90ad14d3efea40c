//! The ops as typed launchers on cudarc's slices and views: the one place where kernels are launched.
//!
//! Each op is a small struct with what it is over (packed rows, shapes, dropout) and methods that take its operands. A method
//! checks every operand's length, context, alignment and number format, launches on the stream of the [`Kernels`] that it is given,
//! and holds cudarc's guards meanwhile. The backend goes through the same methods as any other program.

pub mod attention;
pub mod cross_attention;
mod cross_attention_hopper;
pub(crate) mod cut;
pub mod decode;
pub(crate) mod descriptor;
pub mod embedding;
pub mod feed_forward;
pub mod linear;
pub mod loss;
pub mod mix;
pub mod norm;
pub mod optimizer;
pub mod packing;
pub mod peak;
pub(crate) mod self_attention_hopper;
pub mod sequences;
pub mod tally;
pub mod tile_search;
mod tiles;

use super::runtime::arguments::attention::AttentionArguments;
use super::runtime::arguments::cross_attention::{CrossArguments, ProjectedArguments, SourceArguments};
use super::runtime::arguments::cross_attention_hopper::{
    CrossAttentionHopperArguments, CrossProjectHopperArguments,
};
use super::runtime::arguments::decode::DecodeArguments;
use super::runtime::arguments::dropout::Mask;
use super::runtime::arguments::embedding::{EmbedArguments, EmbedBackwardArguments};
use super::runtime::arguments::feed_forward::{GateArguments, RowArguments};
use super::runtime::arguments::gemm::GemmArguments;
use super::runtime::arguments::loss::LossArguments;
use super::runtime::arguments::mix::MixArguments;
use super::runtime::arguments::norm::{FinalNormArguments, FinalNormBackwardArguments};
use super::runtime::arguments::optimizer::OptimizerArguments;
use super::runtime::arguments::self_attention_hopper::SelfAttentionHopperArguments;
use super::runtime::arguments::tally::TallyArguments;
use super::runtime::arguments::{batch, side_number};
use super::runtime::kernels::{Arguments, Kernel, Kernels};
use super::runtime::operands::{Operands, Precision, WriteOperand};
use crate::error::{Error, Result};

/// Rows of an attention tile.
pub const ATTENTION_TILE: usize = batch::ATTENTION_TILE;
/// Columns of a residual row that one partial sum of squares covers.
pub const NORM_COLUMNS: usize = super::runtime::arguments::number::NORM_COLUMNS;
/// Widths are multiples of this, so that every row begins on 16 bytes.
pub(crate) const WIDTH_MULTIPLE: usize = 8;

/// Rows that a block of 128 threads works on, a warp each.
const ROWS_OF_BLOCK: usize = 4;

/// A kernel with a warp a row.
///
/// # Safety
/// As for [`Kernels::launch`], for `rows` rows.
unsafe fn launch_rows<A: Arguments>(
    kernels: &Kernels,
    kernel: Kernel,
    rows: usize,
    arguments: &A,
    operands: &Operands<'_>,
) -> Result<()> {
    let grid = [rows.div_ceil(ROWS_OF_BLOCK) as u32, 1, 1];
    // SAFETY: the caller's promise.
    unsafe { kernels.launch(kernel, grid, 128, 0, arguments, operands) }
}

/// Adds the bf16 copy of f32 rows to a launch; 0 for none, in f32.
fn copy_of<'a>(
    operands: &mut Operands<'a>,
    copy: Option<&'a mut (dyn WriteOperand + '_)>,
    length: usize,
) -> Result<u64> {
    match copy {
        Some(copy) => operands.matrix_mut("copy", copy, Precision::Bf16, length),
        None => Ok(0),
    }
}

/// Fails unless rows of `width` begin on 16 bytes in either format.
fn check_width(width: usize) -> Result<()> {
    if width > 0 && width.is_multiple_of(WIDTH_MULTIPLE) {
        return Ok(());
    }
    Err(Error::tensor("width", format!("a multiple of {WIDTH_MULTIPLE}"), width.to_string(), ""))
}

/// Fails unless `found` numbers are whole rows of `width`, at least `rows`.
fn check_rows(what: &str, rows: usize, width: usize, found: usize) -> Result<()> {
    if found.is_multiple_of(width) && found >= rows * width {
        return Ok(());
    }
    Err(Error::tensor(what, format!("at least {rows} rows of {width}"), format!("{found} numbers"), ""))
}
