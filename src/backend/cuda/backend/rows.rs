//! Activations and frozen matrices on the device.

use std::sync::Arc;

use half::bf16;

use super::Cuda;
use crate::backend::cuda::ops::{NORM_COLUMNS, WIDTH_MULTIPLE};
use crate::backend::cuda::runtime::memory::Buffer;
use crate::backend::cuda::runtime::operands::{Precision, ReadOperand, WriteOperand};
use crate::backend::ops::{check_row, check_weight};
use crate::backend::{Format, Matrix};
use crate::error::{Error, Result};

/// Numbers in the format of matrix operands.
#[derive(Debug)]
pub enum Operand {
    /// The working format.
    Bf16(Buffer<bf16>),
    /// The format of verification.
    F32(Buffer<f32>),
}

impl Operand {
    /// To read it in a launch.
    pub(super) fn as_read(&self) -> &dyn ReadOperand {
        match self {
            Self::Bf16(buffer) => buffer,
            Self::F32(buffer) => buffer,
        }
    }

    /// To write it in a launch.
    pub(super) fn as_write(&mut self) -> &mut dyn WriteOperand {
        match self {
            Self::Bf16(buffer) => buffer,
            Self::F32(buffer) => buffer,
        }
    }

    fn upload(&mut self, cuda: &Cuda, values: &[f32]) -> Result<()> {
        match self {
            Self::Bf16(buffer) => {
                let narrowed: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
                cuda.upload(&narrowed, buffer)
            }
            Self::F32(buffer) => cuda.upload(values, buffer),
        }
    }

    /// The numbers in `range`.
    fn download(&self, cuda: &Cuda, range: std::ops::Range<usize>) -> Result<Vec<f32>> {
        match self {
            Self::Bf16(buffer) => Ok(cuda.download_part(buffer, range)?.into_iter().map(f32::from).collect()),
            Self::F32(buffer) => cuda.download_part(buffer, range),
        }
    }
}

/// A row-major matrix of activations; which parts it has follows from its format.
///
/// | format | `float` | `operand` | `inner` |
/// |---|---|---|---|
/// | `Residual` | \[rows, width\]; in bf16 only until forward has read it for the last time | \[rows, width\] in bf16; in f32 the float part serves | of a gradient: \[rows, parts\] where the op that wrote it found them |
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

impl Matrix for Rows {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.width]
    }
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

    /// The f32 part: residual rows, a norm's partial sums, plain f32.
    pub(super) fn float(&self) -> Result<&Buffer<f32>> {
        self.float.as_ref().ok_or_else(|| lacks(self.format, "an f32 part"))
    }

    /// The f32 part, to write.
    pub(super) fn float_mut(&mut self) -> Result<&mut Buffer<f32>> {
        self.float.as_mut().ok_or_else(|| lacks(self.format, "an f32 part"))
    }

    /// What products read: the operand part, or in f32 the residual rows themselves.
    pub(super) fn operand(&self) -> Result<&dyn ReadOperand> {
        match (&self.operand, &self.float) {
            (Some(operand), _) => Ok(operand.as_read()),
            (None, Some(float)) if self.format == Format::Residual => Ok(float),
            _ => Err(lacks(self.format, "an operand part")),
        }
    }

    /// The operand part, to write.
    pub(super) fn operand_mut(&mut self) -> Result<&mut dyn WriteOperand> {
        let format = self.format;
        self.operand.as_mut().map(Operand::as_write).ok_or_else(|| lacks(format, "an operand part"))
    }

    /// Residual rows, to write: the f32 part, and its operand copy, which there is none of in f32.
    pub(super) fn residual_mut(&mut self) -> Result<(&mut Buffer<f32>, Option<&mut dyn WriteOperand>)> {
        let float = self.float.as_mut().ok_or_else(|| lacks(self.format, "an f32 part"))?;
        Ok((float, self.operand.as_mut().map(Operand::as_write)))
    }
}

fn lacks(format: Format, part: &str) -> Error {
    Error::tensor("an activation", part, format!("the format {format:?}"), "")
}

/// A frozen matrix `[out, in]`.
#[derive(Debug)]
pub struct Weight {
    out: usize,
    input: usize,
    operand: Operand,
    /// The same in f32, where single rows are read by index.
    float: Option<Buffer<f32>>,
}

impl Matrix for Weight {
    fn shape(&self) -> [usize; 2] {
        [self.out, self.input]
    }
}

impl Weight {
    /// What products read.
    pub(super) fn operand(&self) -> &dyn ReadOperand {
        self.operand.as_read()
    }

    /// Its f32 copy, which only a weight that is looked up has.
    pub(super) fn float(&self) -> Result<&Buffer<f32>> {
        let missing = || Error::tensor("a weight", "an f32 copy, for looking up rows", "none", "");
        self.float.as_ref().ok_or_else(missing)
    }

    /// Its numbers as products read them, \[out, in\]: they never change.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn read(&self, cuda: &Cuda) -> Result<Vec<f32>> {
        self.operand.download(cuda, 0..self.out * self.input)
    }
}

/// One short row of bias a head: \[H, 2·max_distance + 1\] f32.
#[derive(Debug)]
pub struct PositionBias {
    pub(super) values: Buffer<f32>,
    pub(super) heads: usize,
    pub(super) max_distance: usize,
}

impl Cuda {
    /// `length` numbers in the operand format, content unspecified.
    pub(super) fn operand(&self, length: usize) -> Result<Operand> {
        Ok(match self.precision {
            Precision::Bf16 => Operand::Bf16(self.allocate(length)?),
            Precision::F32 => Operand::F32(self.allocate(length)?),
        })
    }

    /// An activation of `rows` × `width`, content unspecified.
    ///
    /// # Errors
    /// No memory for it.
    pub fn activation(&self, rows: usize, width: usize, format: Format) -> Result<Rows> {
        let numbers = rows * width;
        let (mut float, mut operand) = (None, None);
        match format {
            Format::Residual => {
                float = Some(self.allocate(numbers)?);
                if self.precision == Precision::Bf16 {
                    operand = Some(self.operand(numbers)?);
                }
            }
            Format::Operand | Format::ProjectionGradient => operand = Some(self.operand(numbers)?),
            Format::Float => float = Some(self.allocate(numbers)?),
            Format::Norm => float = Some(self.allocate(rows * width.div_ceil(NORM_COLUMNS))?),
        }
        Ok(Rows { rows, width, format, float, operand, inner: None, widened: None, epsilon: 0.0 })
    }

    /// An activation that holds `values`, \[rows, width\]; not for a norm.
    ///
    /// # Errors
    /// Another number of values, no memory for it, and what the driver says.
    pub fn activation_of(&self, values: &[f32], width: usize, format: Format) -> Result<Rows> {
        let mut rows = self.activation(values.len() / width.max(1), width, format)?;
        if let Some(float) = &mut rows.float {
            self.upload(values, float)?;
        }
        if let Some(operand) = &mut rows.operand {
            operand.upload(self, values)?;
        }
        Ok(rows)
    }

    /// A frozen matrix on the device, in the operand format and, for `lookup`, also in f32.
    pub(super) fn frozen(&self, values: &[f32], out: usize, input: usize, lookup: bool) -> Result<Weight> {
        check_weight(values.len(), out, input)?;
        if !input.is_multiple_of(WIDTH_MULTIPLE) {
            let expected = format!("a width that is a multiple of {WIDTH_MULTIPLE}, as the GPU kernels need");
            let advice = "leave --device out to compute on the CPU";
            return Err(Error::tensor("a weight", expected, input.to_string(), advice));
        }
        let mut operand = self.operand(values.len())?;
        operand.upload(self, values)?;
        let mut float = None;
        if lookup {
            self.upload(values, float.insert(self.allocate(values.len())?))?;
        }
        Ok(Weight { out, input, operand, float })
    }

    /// Row `row` of a frozen matrix, from its f32 copy where it has one.
    pub(super) fn download_weight_row(&self, weight: &Weight, row: usize) -> Result<Vec<f32>> {
        check_row(row, weight.out)?;
        let range = row * weight.input..(row + 1) * weight.input;
        match &weight.float {
            Some(float) => self.download_part(float, range),
            None => weight.operand.download(self, range),
        }
    }

    /// Reads an activation back as f64; of a norm, the reciprocal root mean squares.
    pub(super) fn download_rows(&self, rows: &Rows) -> Result<Vec<f64>> {
        let numbers = rows.rows * rows.width;
        let values = match (&rows.float, &rows.operand) {
            (Some(float), _) if rows.format == Format::Norm => {
                let parts = rows.width.div_ceil(NORM_COLUMNS);
                let partials = self.download(float, rows.rows * parts)?;
                let reciprocal = |sums: &[f32]| {
                    let mean = f64::from(sums.iter().sum::<f32>()) / rows.width as f64;
                    (mean + f64::from(rows.epsilon)).sqrt().recip()
                };
                return Ok(partials.chunks_exact(parts.max(1)).map(reciprocal).collect());
            }
            (Some(float), _) => self.download(float, numbers)?,
            (None, Some(operand)) => operand.download(self, 0..numbers)?,
            (None, None) => return Err(lacks(rows.format, "numbers")),
        };
        Ok(values.into_iter().map(f64::from).collect())
    }
}
