//! Activations and frozen matrices on the device.

use std::sync::Arc;

use half::bf16;

use super::memory::{Buffer, address};
use super::{Cuda, Precision, failure};
use crate::backend::Format;
use crate::error::{Error, Result};

/// Columns of a residual row that one partial sum of squares covers.
pub const NORM_COLUMNS: usize = super::arguments::number::NORM_COLUMNS;

/// Numbers in the format of matrix operands.
#[derive(Debug)]
pub enum Operand {
    /// The working format.
    Bf16(Buffer<bf16>),
    /// The format of verification.
    F32(Buffer<f32>),
}

impl Operand {
    /// Numbers in it.
    pub fn len(&self) -> usize {
        match self {
            Self::Bf16(buffer) => buffer.len(),
            Self::F32(buffer) => buffer.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A row-major matrix of activations; which parts it has follows from its format.
///
/// | format | `float` | `operand` | `inner` |
/// |---|---|---|---|
/// | `Residual` | \[rows, width\] | \[rows, width\] in bf16; in f32 the float part serves | of a gradient: \[rows, parts\] where the op that wrote it found them |
/// | `Operand` | | \[rows, width\] | of a gradient: as above |
/// | `ProjectionGradient` | | \[rows, width\] | \[rows, parts\], made by the op that writes it |
/// | `Float` | \[rows, width\] | | |
/// | `Norm` | \[rows, ceil(width / 64)\] partial sums of squares | | |
#[derive(Debug)]
pub struct Rows {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) format: Format,
    pub(super) float: Option<Buffer<f32>>,
    pub(super) operand: Option<Operand>,
    /// Partial inner products of each row: of a projection's gradient with its output, of the residual gradient with what the
    /// feed-forward below added, of attention's d_o with o, head by head. Summed in order by who reads them.
    pub(super) inner: Option<Buffer<f32>>,
    /// Of a cross attention's q: q'; of its d_o: d_mixed; where they were made together.
    pub(super) widened: Option<Arc<Rows>>,
    /// Of a norm: what was added to the mean square by the op that wrote it.
    pub(super) epsilon: f32,
}

impl Rows {
    /// Number of rows, or the most that there may be where a batch has a capacity.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Partial inner products a row; 0 if none were made.
    pub fn inner_parts(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.len() / self.rows.max(1))
    }
}

impl Operand {
    /// Where it lies, for a kernel's argument.
    pub(super) fn address(&self, cuda: &Cuda) -> Result<u64> {
        match self {
            Self::Bf16(buffer) => cuda.address_of(buffer),
            Self::F32(buffer) => cuda.address_of(buffer),
        }
    }
}

impl Rows {
    /// Where the f32 part lies: residual rows, a norm's partial sums, plain f32.
    pub(super) fn float_address(&self, cuda: &Cuda) -> Result<u64> {
        cuda.address_of(self.float.as_ref().ok_or_else(|| self.lacks("an f32 part"))?)
    }

    /// Where what products read lies: the operand part, or in f32 the residual rows themselves.
    pub(super) fn operand_address(&self, cuda: &Cuda) -> Result<u64> {
        match (&self.operand, &self.float) {
            (Some(operand), _) => operand.address(cuda),
            (None, Some(float)) if cuda.precision == Precision::F32 => cuda.address_of(float),
            _ => Err(self.lacks("an operand part")),
        }
    }

    /// Where the operand copy beside the f32 part lies; 0 where there is none, in f32.
    pub(super) fn copy_address(&self, cuda: &Cuda) -> Result<u64> {
        self.operand.as_ref().map_or(Ok(0), |operand| operand.address(cuda))
    }

    fn lacks(&self, part: &str) -> Error {
        Error::tensor("an activation", part, format!("the format {:?}", self.format), "")
    }

    /// Fails unless it has that shape.
    pub(super) fn check(&self, what: &str, rows: usize, width: usize) -> Result<()> {
        if (self.rows, self.width) == (rows, width) {
            return Ok(());
        }
        Err(Error::tensor(what, format!("[{rows}, {width}]"), format!("[{}, {}]", self.rows, self.width), ""))
    }
}

/// A frozen matrix `[out, in]`.
#[derive(Debug)]
pub struct Weight {
    pub(super) out: usize,
    pub(super) input: usize,
    pub(super) operand: Option<Operand>,
    /// The same in f32, where single rows are read by index.
    pub(super) float: Option<Buffer<f32>>,
}

/// One short row of bias a head: \[H, 2·reach + 1\] f32.
#[derive(Debug)]
pub struct PositionBias {
    pub(super) values: Buffer<f32>,
    pub(super) heads: usize,
    pub(super) reach: usize,
}

impl Weight {
    /// Where the operand format of it lies.
    pub(super) fn operand_address(&self, cuda: &Cuda) -> Result<u64> {
        self.operand.as_ref().ok_or_else(failure::absent)?.address(cuda)
    }

    /// Its numbers as products read them, \[out, in\]: they never change.
    pub fn read(&self, cuda: &Cuda) -> Vec<f32> {
        match &self.operand {
            Some(Operand::Bf16(operand)) => {
                cuda.download(operand, operand.len()).into_iter().map(f32::from).collect()
            }
            Some(Operand::F32(operand)) => cuda.download(operand, operand.len()),
            None => vec![f32::NAN; self.out * self.input],
        }
    }

    /// Where its f32 copy lies, which only a weight that is looked up has.
    pub(super) fn float_address(&self, cuda: &Cuda) -> Result<u64> {
        let missing = || Error::tensor("a weight", "an f32 copy, for looking up rows", "none", "");
        cuda.address_of(self.float.as_ref().ok_or_else(missing)?)
    }
}

/// Widths are multiples of this, so that every row begins on 16 bytes.
pub(super) const WIDTH_MULTIPLE: usize = 8;

impl Cuda {
    /// Where a buffer lies, for a kernel's argument.
    pub(super) fn address_of<T>(&self, buffer: &Buffer<T>) -> Result<u64> {
        Ok(address(&buffer.view()?, self.kernels.stream()))
    }

    /// The suffix of kernels in this precision.
    pub(super) fn named(&self, bf16: &'static str, f32: &'static str) -> &'static str {
        match self.precision {
            Precision::Bf16 => bf16,
            Precision::F32 => f32,
        }
    }

    /// `length` numbers in the operand format, content unspecified.
    pub(super) fn operand(&self, length: usize) -> Operand {
        match self.precision {
            Precision::Bf16 => Operand::Bf16(self.allocate(length)),
            Precision::F32 => Operand::F32(self.allocate(length)),
        }
    }

    /// An activation of `rows` × `width`, content unspecified.
    pub fn activation(&self, rows: usize, width: usize, format: Format) -> Rows {
        let numbers = rows * width;
        let (mut float, mut operand) = (None, None);
        match format {
            Format::Residual => {
                float = Some(self.allocate(numbers));
                operand = (self.precision == Precision::Bf16).then(|| self.operand(numbers));
            }
            Format::Operand | Format::ProjectionGradient => operand = Some(self.operand(numbers)),
            Format::Float => float = Some(self.allocate(numbers)),
            Format::Norm => float = Some(self.allocate(rows * width.div_ceil(NORM_COLUMNS))),
        }
        Rows { rows, width, format, float, operand, inner: None, widened: None, epsilon: 0.0 }
    }

    /// An activation that holds `values`, \[rows, width\]; not for a norm.
    pub fn activation_of(&self, values: &[f32], width: usize, format: Format) -> Rows {
        let mut rows = self.activation(values.len() / width.max(1), width, format);
        if let Some(float) = &mut rows.float {
            self.attempt(|| self.upload(values, float));
        }
        match &mut rows.operand {
            Some(Operand::Bf16(operand)) => self.attempt(|| self.upload(&narrowed(values), operand)),
            Some(Operand::F32(operand)) => self.attempt(|| self.upload(values, operand)),
            None => {}
        }
        rows
    }

    /// A frozen matrix on the device, in the operand format and, for `lookup`, also in f32.
    pub(super) fn frozen(&self, values: &[f32], out: usize, input: usize, lookup: bool) -> Weight {
        assert_eq!(values.len(), out * input, "weight [out, in]");
        let mut weight = Weight { out, input, operand: None, float: None };
        self.attempt(|| {
            if input.is_multiple_of(WIDTH_MULTIPLE) {
                return Ok(());
            }
            let expected = format!("a width that is a multiple of {WIDTH_MULTIPLE}, as the GPU kernels need");
            Err(Error::tensor(
                "a weight",
                expected,
                input.to_string(),
                "leave --device out to compute on the CPU",
            ))
        });
        let mut operand = self.operand(values.len());
        match &mut operand {
            Operand::Bf16(buffer) => self.attempt(|| self.upload(&narrowed(values), buffer)),
            Operand::F32(buffer) => self.attempt(|| self.upload(values, buffer)),
        }
        weight.operand = Some(operand);
        if lookup {
            let mut float = self.allocate(values.len());
            self.attempt(|| self.upload(values, &mut float));
            weight.float = Some(float);
        }
        weight
    }

    /// Row `row` of a frozen matrix, from its f32 copy where it has one.
    pub(super) fn download_weight_row(&self, weight: &Weight, row: usize) -> Vec<f32> {
        let range = row * weight.input..(row + 1) * weight.input;
        match (&weight.float, &weight.operand) {
            (Some(float), _) | (None, Some(Operand::F32(float))) => self.download_part(float, range),
            (None, Some(Operand::Bf16(operand))) => {
                self.download_part(operand, range).into_iter().map(f32::from).collect()
            }
            (None, None) => vec![f32::NAN; weight.input],
        }
    }

    pub(super) fn bias(&self, per_head: &[Vec<f32>], reach: usize) -> PositionBias {
        assert!(per_head.iter().all(|row| row.len() == 2 * reach + 1), "bias from -reach to reach");
        let flat = per_head.concat();
        let mut values = self.allocate(flat.len());
        self.attempt(|| self.upload(&flat, &mut values));
        PositionBias { values, heads: per_head.len(), reach }
    }

    /// Reads an activation back as f64; of a norm, the reciprocal root mean squares.
    pub(super) fn download_rows(&self, rows: &Rows) -> Vec<f64> {
        let parts = rows.width.div_ceil(NORM_COLUMNS);
        match (&rows.float, &rows.operand) {
            (Some(float), _) if rows.format == Format::Norm => {
                let partials = self.download(float, rows.rows * parts);
                let reciprocal = |sums: &[f32]| {
                    let mean = f64::from(sums.iter().sum::<f32>()) / rows.width as f64;
                    (mean + f64::from(rows.epsilon)).sqrt().recip()
                };
                partials.chunks_exact(parts.max(1)).map(reciprocal).collect()
            }
            (Some(float), _) => widened(&self.download(float, rows.rows * rows.width)),
            (None, Some(Operand::F32(operand))) => widened(&self.download(operand, rows.rows * rows.width)),
            (None, Some(Operand::Bf16(operand))) => {
                self.download(operand, rows.rows * rows.width).into_iter().map(f64::from).collect()
            }
            (None, None) => vec![f64::NAN; rows.rows * rows.width],
        }
    }
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn narrowed(values: &[f32]) -> Vec<bf16> {
    values.iter().copied().map(bf16::from_f32).collect()
}
