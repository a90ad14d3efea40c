//! The final norm of a stack: `kernels/norm.cu`.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::packing::{DropoutMask, PackedRows};
use super::{
    FinalNormArguments, FinalNormBackwardArguments, NORM_COLUMNS, check_width, copy_of, launch_rows,
    side_number,
};
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::{Precision, ReadOperand, WriteOperand};
use crate::error::{Error, Result};

/// Columns that a block of the backward kernel holds in registers.
const WIDEST: usize = 4096;

/// A norm that nothing is folded into: h = mask(x / rms(x) · norm_weight · scale).
///
/// A row of equal numbers becomes ones, times the scale:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::norm::{FinalNorm, NormedRows};
/// use promptmix::cuda::{DropoutMask, Kernels, Sequences};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let sequences = Sequences::new(stream, &[1])?;
/// let x = stream.clone_htod(&[3.0_f32; 8])?;
/// // The sum of the row's squares.
/// let partials = stream.clone_htod(&[8.0_f32 * 9.0])?;
/// let mut h = stream.clone_htod(&[bf16::NAN; 8])?;
/// let norm = FinalNorm {
///     rows: sequences.rows(),
///     width: 8,
///     epsilon: 1e-6,
///     norm_weight: None,
///     scale: 0.5,
///     mask: DropoutMask::default(),
/// };
/// norm.forward(&kernels, NormedRows { x: &x, partials: &partials }, &mut h)?;
/// assert_eq!(stream.clone_dtoh(&h)?[0].to_f32(), 0.5);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct FinalNorm<'a> {
    /// The rows; how they are cut up matters to dropout alone.
    pub rows: PackedRows<'a>,
    /// D, a multiple of 8; backward takes up to 4,096.
    pub width: usize,
    /// Added to the mean square.
    pub epsilon: f32,
    /// \[D\] in f32; none for a weight of 1.
    pub norm_weight: Option<&'a dyn DevicePtr<f32>>,
    /// What every number is multiplied by.
    pub scale: f32,
    /// Dropout of the result.
    pub mask: DropoutMask<'a>,
}

/// What both passes read.
#[derive(Clone, Copy)]
pub struct NormedRows<'a> {
    /// \[rows, D\] in f32.
    pub x: &'a dyn DevicePtr<f32>,
    /// \[rows, ceil(D / 64)\]: the sums of squares of 64 columns each, which the op before left.
    pub partials: &'a dyn DevicePtr<f32>,
}

/// What backward writes.
pub struct FinalNormGradient<'a> {
    /// \[rows, D\] in f32.
    pub d_x: &'a mut dyn DevicePtrMut<f32>,
    /// The same in bf16, which products read.
    pub copy: Option<&'a mut dyn WriteOperand>,
    /// `below` \[rows, D\] in f32 or bf16 and `inner` \[rows\], which gets <d_x, x - below> of each row, where the feed-forward that
    /// made x of below wants it.
    pub inner: Option<(&'a dyn ReadOperand, &'a mut dyn DevicePtrMut<f32>)>,
}

impl FinalNorm<'_> {
    /// Launches the forward pass: `h` \[rows, D\] in bf16, or to verify in f32.
    ///
    /// Costs 2·D multiplications a row; moves 4·D bytes in and 2·D out.
    ///
    /// # Errors
    /// A length or width that does not fit, and what the driver says.
    pub fn forward(&self, kernels: &Kernels, input: NormedRows<'_>, h: &mut dyn WriteOperand) -> Result<()> {
        check_width(self.width)?;
        let (rows, precision, mut operands) = (self.rows.count(), h.precision(), kernels.operands());
        let numbers = rows * self.width;
        let arguments = FinalNormArguments {
            batch: self.rows.read(&mut operands)?,
            x: operands.read("x", input.x, numbers)?,
            partials: operands.read("partials", input.partials, rows * self.width.div_ceil(NORM_COLUMNS))?,
            norm_weight: operands.read_if("norm_weight", self.norm_weight, self.width)?,
            h: operands.matrix_mut("h", h, precision, numbers)?,
            mask: self.mask.read(&mut operands)?,
            side: side_number(self.rows.side()),
            width: self.width as i32,
            epsilon: self.epsilon,
            scale: self.scale,
        };
        let kernel = Kernel { file: "norm", name: precision.named("final_norm_bf16", "final_norm_f32") };
        // SAFETY: every length was checked; rows beyond the batch's exit.
        unsafe { launch_rows(kernels, kernel, rows, &arguments, &operands) }
    }

    /// Launches the backward pass from `d_h` \[rows, D\] in f32. The norm's weight has no gradient.
    ///
    /// Costs 5·D multiply-adds a row; moves 8·D bytes in and 6·D out.
    ///
    /// # Errors
    /// As [`FinalNorm::forward`].
    pub fn backward(
        &self,
        kernels: &Kernels,
        input: NormedRows<'_>,
        d_h: &dyn DevicePtr<f32>,
        written: FinalNormGradient<'_>,
    ) -> Result<()> {
        check_width(self.width)?;
        if self.width > WIDEST {
            return Err(Error::tensor("x", format!("at most {WIDEST} columns"), self.width.to_string(), ""));
        }
        let (rows, mut operands) = (self.rows.count(), kernels.operands());
        let numbers = rows * self.width;
        let ([mut below, mut below_copy], mut inner) = ([0; 2], 0);
        if let Some((from, to)) = written.inner {
            let address = from.read(&mut operands, "below", numbers)?;
            *if from.precision() == Precision::Bf16 { &mut below_copy } else { &mut below } = address;
            inner = operands.write("inner", to, rows)?;
        }
        let arguments = FinalNormBackwardArguments {
            batch: self.rows.read(&mut operands)?,
            x: operands.read("x", input.x, numbers)?,
            partials: operands.read("partials", input.partials, rows * self.width.div_ceil(NORM_COLUMNS))?,
            norm_weight: operands.read_if("norm_weight", self.norm_weight, self.width)?,
            d_h: operands.read("d_h", d_h, numbers)?,
            d_x: operands.write("d_x", written.d_x, numbers)?,
            copy: copy_of(&mut operands, written.copy, numbers)?,
            below,
            below_copy,
            inner,
            mask: self.mask.read(&mut operands)?,
            side: side_number(self.rows.side()),
            width: self.width as i32,
            epsilon: self.epsilon,
            scale: self.scale,
        };
        let kernel = Kernel { file: "norm", name: "final_norm_backward" };
        // SAFETY: every length was checked, a block holds a row of that width, and rows beyond the batch's exit.
        unsafe { kernels.launch(kernel, [rows as u32, 1, 1], 128, 0, &arguments, &operands) }
    }
}
