//! The ops of a device: a trait a family, its operands as structs, and the shapes that every device checks.
//!
//! A device implements each family in its file of that name. An op begins with its operands' `check`, so that a mismatch is
//! the same error everywhere and nothing is computed.

mod attention;
mod cross_attention;
mod decode;
mod embedding;
mod feed_forward;
mod linear;
mod loss;
mod mix;
mod norm;
mod optimizer;
mod tally;

pub(crate) use attention::check_bias;
pub use attention::{SelfAttention, SelfAttentionBackward, SelfAttentionOps, SelfAttentionOutputBackward};
pub use cross_attention::{CrossAttention, CrossAttentionBackward, CrossAttentionOps};
pub(crate) use decode::check_tokens;
pub use decode::{DecodeOps, DecodeStep};
pub(crate) use embedding::check_embedding_gradient;
pub use embedding::{Embedding, EmbeddingOps};
pub use feed_forward::{Activation, FeedForward, FeedForwardBackward, FeedForwardOps};
pub use linear::{LinearOps, Projection, ProjectionBackward, ResidualProjection, ResidualProjectionBackward};
pub(crate) use loss::check_logits;
pub use loss::{LmHead, Loss, LossOps};
pub use mix::{Mix, MixOps, PromptRows};
#[cfg(feature = "cuda")]
pub(crate) use mix::{check_mixture, pooled_vocabulary};
pub(crate) use mix::{check_runs, check_sources};
pub use norm::{FinalNorm, FinalNormBackward, NormOps};
pub use optimizer::OptimizerOps;
pub(crate) use optimizer::{check_length, check_one_a_run, check_state};
pub use tally::StatisticsOps;

use super::{Batch, DropoutStep, Scope, Side, Site};
use crate::error::{Error, Result};

/// A mask of one site, or none when nothing is dropped.
pub type Mask<'a> = Option<(&'a DropoutStep, Site)>;

/// How many heads an attention has and how wide each is; H·K need not be D.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// H.
    pub count: usize,
    /// K.
    pub width: usize,
}

impl Heads {
    /// H·K.
    pub fn total(self) -> usize {
        self.count * self.width
    }
}

/// How many rows read a weight at a time: a device may lay it out by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// All encoder rows, hundreds or thousands.
    Many,
    /// Decoder rows.
    Few,
    /// Decoder rows, and single rows by index, which are wanted in f32: the embedding, a norm's weight.
    Lookup,
}

/// What an activation is for: a device may choose its number format by that. On the CPU all of them are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The residual stream or its gradient, in f32, and what products read of it.
    Residual,
    /// What products read and write.
    Operand,
    /// The gradient of a projection's output, which carries each row's inner product with that output.
    ProjectionGradient,
    /// f32.
    Float,
    /// The reciprocal root mean square of a row of the given width: one number a row.
    Norm,
}

/// Something of so many rows and columns.
pub trait Matrix {
    /// Rows and columns; of a norm 1 column, or those of the rows that it is of.
    fn shape(&self) -> [usize; 2];

    /// Whether it may be the norm of `rows` rows of `width`.
    fn is_norm_of(&self, rows: usize, width: usize) -> bool {
        let [found, columns] = self.shape();
        found == rows && [1, width].contains(&columns)
    }

    /// Fails unless it has that shape.
    ///
    /// # Errors
    /// [`Error::Tensor`] that names `what`.
    fn check(&self, what: &str, rows: usize, columns: usize) -> Result<()> {
        if self.shape() == [rows, columns] {
            return Ok(());
        }
        let [found_rows, found_columns] = self.shape();
        let found = format!("[{found_rows}, {found_columns}]");
        Err(Error::tensor(what, format!("[{rows}, {columns}]"), found, ""))
    }
}

/// A device: its memory, and what the ops of all families have in common.
pub trait Device: Sized + 'static {
    /// A frozen matrix `[out, in]`.
    type Weight: Matrix + Sync;
    /// An activation: a matrix of rows, in a number format that the device chooses by [`Format`].
    type Rows: Matrix + Send;

    /// The device and the number format of its matrix operands, as `--device` and `--precision` name them: `cpu` and `f32`, `cuda` and
    /// `bf16`.
    fn computes_on(&self) -> (&'static str, &'static str);
    /// How far rounding to the format of matrix operands may move a number, relative to it: 2^-24 for f32, 2^-9 for bf16.
    fn operand_rounding(&self) -> f64;
    /// Copies a row-major `[out, in]` matrix to the device.
    ///
    /// # Errors
    /// Another number of values, no memory for them, and what the driver says.
    fn weight(&self, values: Vec<f32>, out: usize, input: usize, readers: Readers) -> Result<Self::Weight>;
    /// Reads one row of a weight back.
    ///
    /// # Errors
    /// No such row, and what the driver says.
    fn weight_row(&self, weight: &Self::Weight, row: usize) -> Result<Vec<f32>>;
    /// Bytes of device memory that are free, where that is a thing to run out of by itself: not on the CPU.
    fn free_bytes(&self) -> Option<usize> {
        None
    }
    /// Waits for all ops issued so far.
    ///
    /// # Errors
    /// What went wrong in one of them.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    /// An activation of `rows` × `width`, its content unspecified; for [`Format::Norm`], `width` is the width of the
    /// rows that it is of.
    ///
    /// # Errors
    /// No memory for it.
    fn rows(&self, rows: usize, width: usize, format: Format) -> Result<Self::Rows>;
    /// An activation of `rows` × `width` zeros, in [`Format::Float`].
    ///
    /// # Errors
    /// No memory for it.
    fn zeros(&self, rows: usize, width: usize) -> Result<Self::Rows>;
    /// Gives back what of the rows of a residual stream forward alone reads, once it has: on a device where products read a copy in
    /// another format, backward reads that too. [`FeedForwardBackward`] needs more of its rows where the op before it did not find
    /// the inner products.
    fn release_forward(&self, _: &mut Self::Rows) {}
    /// Reads an activation back, row-major.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    fn read(&self, rows: &Self::Rows) -> Result<Vec<f64>>;
    /// Whether all of `rows` is finite.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn is_finite(&self, rows: &Self::Rows) -> Result<bool> {
        Ok(self.read(rows)?.iter().all(|value| value.is_finite()))
    }
    /// Floating-point operations of all matrix products so far (a multiply-add is two).
    fn operations(&self) -> u64;
}

/// Rows of the residual stream with their norm.
pub struct Residual<D: Device> {
    /// x \[rows, D\].
    pub x: D::Rows,
    /// r = 1 / rms(x), one number a row.
    pub r: D::Rows,
}

impl<D: Device> Residual<D> {
    /// Room for `rows` rows of `width` numbers.
    ///
    /// # Errors
    /// No memory for them.
    pub fn new(device: &D, rows: usize, width: usize) -> Result<Self> {
        Ok(Self {
            x: device.rows(rows, width, Format::Residual)?,
            r: device.rows(rows, width, Format::Norm)?,
        })
    }

    /// D.
    pub fn width(&self) -> usize {
        self.x.shape()[1]
    }

    /// Fails unless it has that shape, with at least one column.
    pub(crate) fn check(&self, what: &str, rows: usize, width: usize) -> Result<()> {
        check_columns(what, width)?;
        self.x.check(what, rows, width)?;
        if self.r.is_norm_of(rows, width) {
            return Ok(());
        }
        // Devices keep another number of columns of it.
        let found = format!("{} rows", self.r.shape()[0]);
        Err(Error::tensor(format!("the norm of {what}"), format!("{rows} rows of width {width}"), found, ""))
    }
}

/// Fails unless a step's dropout has a seed for every run of the batch.
pub(crate) fn check_mask(mask: Mask<'_>, batch: &Batch) -> Result<()> {
    let Some((step, _)) = mask else { return Ok(()) };
    let runs = (0..batch.examples()).map(|b| batch.run(b) + 1).max().unwrap_or(0);
    if runs <= step.seeds().len() {
        return Ok(());
    }
    let (expected, found) = (format!("a seed for each of {runs} runs"), step.seeds().len().to_string());
    Err(Error::tensor("the dropout", expected, found, ""))
}

/// Fails unless `found` numbers make a weight `[out, in]`, of at least one row and column.
pub(crate) fn check_weight(found: usize, out: usize, input: usize) -> Result<()> {
    if out == 0 || input == 0 {
        let found = format!("[{out}, {input}]");
        return Err(Error::tensor("a weight", "at least one row and column", found, ""));
    }
    check_length("a weight", out.saturating_mul(input), found)
}

/// Fails unless a weight of `rows` rows has that one.
pub(crate) fn check_row(row: usize, rows: usize) -> Result<()> {
    if row < rows {
        return Ok(());
    }
    Err(Error::tensor("a weight", format!("a row below {rows}"), row.to_string(), ""))
}

/// Rows that `scope` selects of a side: all, or the encoder's B·M prompt rows.
///
/// # Errors
/// The decoder's prompt rows: it has none.
pub(crate) fn scoped_rows(batch: &Batch, side: Side, scope: Scope) -> Result<usize> {
    match (scope, side) {
        (Scope::All, _) => Ok(batch.rows(side)),
        (Scope::Prompt, Side::Encoder) => Ok(batch.examples() * batch.prompt_length()),
        (Scope::Prompt, Side::Decoder) => Err(Error::tensor(
            "the rows of a scope",
            "all, or the encoder's prompt rows",
            "the decoder's",
            "",
        )),
    }
}

/// Fails if `what` has no column.
pub(crate) fn check_columns(what: &str, columns: usize) -> Result<()> {
    if columns > 0 {
        return Ok(());
    }
    Err(Error::tensor(what, "at least one column", "none", ""))
}

/// Fails unless `found` is the number of heads that `what` is for, and there is one, of at least one column.
pub(crate) fn check_heads(what: &str, heads: Heads, found: usize) -> Result<()> {
    check_columns("the heads", heads.total())?;
    if heads.count == found {
        return Ok(());
    }
    Err(Error::tensor(what, format!("{} heads", heads.count), found.to_string(), ""))
}
