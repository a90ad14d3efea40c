//! What stands between a feed-forward's products: `kernels/feed_forward.cu`.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::packing::{DropoutMask, PackedRows};
use super::{GateArguments, NORM_COLUMNS, RowArguments, check_width, copy_of, launch_rows, side_number};
use crate::backend::Activation;
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::{Operands, ReadOperand, WriteOperand};
use crate::error::{Error, Result};

const FILE: &str = "feed_forward";

/// The gate between the two products of a gated feed-forward: a = mask(act(z0) · z1), with z = \[z0, z1\] the pre-activations,
/// \[rows, 2·F\] in bf16, or to verify in f32.
///
/// Silu is 0 at 0, and far above 0 the identity:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::backend::Activation;
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::feed_forward::Gate;
/// use promptmix::cuda::{DropoutMask, Kernels, Sequences};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let sequences = Sequences::new(stream, &[1])?;
/// let z = [[0.0, 32.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.5; 8]].concat();
/// let z = stream.clone_htod(&z.into_iter().map(bf16::from_f32).collect::<Vec<_>>())?;
/// let mut a = stream.clone_htod(&[bf16::NAN; 8])?;
/// let gate = Gate {
///     rows: sequences.rows(),
///     width: 8,
///     activation: Activation::GatedSilu,
///     mask: DropoutMask::default(),
/// };
/// gate.forward(&kernels, &z, &mut a)?;
/// assert_eq!(stream.clone_dtoh(&a)?[..2], [0.0, 32.0 * 0.5].map(bf16::from_f32));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// The rows; how they are cut up matters to dropout alone.
    pub rows: PackedRows<'a>,
    /// F, a multiple of 8.
    pub width: usize,
    /// Gelu (its tanh form) or silu.
    pub activation: Activation,
    /// Dropout of a.
    pub mask: DropoutMask<'a>,
}

impl<'g> Gate<'g> {
    fn arguments<'a>(&self, operands: &mut Operands<'a>, z: &'a dyn ReadOperand) -> Result<GateArguments>
    where
        'g: 'a,
    {
        check_width(self.width)?;
        if self.activation.projections() != 2 {
            let found = format!("{:?}", self.activation);
            let advice = "a ReLU is an epilogue of the product before it: Epilogue::Relu";
            return Err(Error::tensor("a gate", "a gated activation", found, advice));
        }
        Ok(GateArguments {
            batch: self.rows.read(operands)?,
            z: operands.matrix("z", z, z.precision(), self.rows.count() * 2 * self.width)?,
            mask: self.mask.read(operands)?,
            side: side_number(self.rows.side()),
            width: self.width as i32,
            silu: i32::from(self.activation == Activation::GatedSilu),
            ..GateArguments::default()
        })
    }

    fn launch(
        &self,
        kernels: &Kernels,
        name: &'static str,
        arguments: &GateArguments,
        operands: &Operands<'_>,
    ) -> Result<()> {
        // SAFETY: the callers checked every length; rows beyond the batch's exit.
        unsafe { launch_rows(kernels, Kernel { file: FILE, name }, self.rows.count(), arguments, operands) }
    }

    /// Launches the forward pass: `a` \[rows, F\]. Moves 4·F bytes a row in and 2·F out; an activation and a multiplication an
    /// element.
    ///
    /// # Errors
    /// A length, width or activation that does not fit, and what the driver says.
    pub fn forward(&self, kernels: &Kernels, z: &dyn ReadOperand, a: &mut dyn WriteOperand) -> Result<()> {
        let (mut operands, precision) = (kernels.operands(), z.precision());
        let mut arguments = self.arguments(&mut operands, z)?;
        arguments.a = operands.matrix_mut("a", a, precision, self.rows.count() * self.width)?;
        self.launch(kernels, precision.named("gate_bf16", "gate_f32"), &arguments, &operands)
    }

    /// Launches the backward pass: `dz` \[rows, 2·F\] from `d_a` \[rows, F\], and `inner` \[rows\] in f32, <dz, z> of each row, as
    /// [`Epilogue::NormBackward`](super::linear::Epilogue::NormBackward) wants it. Moves 6·F bytes a row in and 4·F out.
    ///
    /// # Errors
    /// As [`Gate::forward`].
    pub fn backward(
        &self,
        kernels: &Kernels,
        z: &dyn ReadOperand,
        d_a: &dyn ReadOperand,
        dz: &mut dyn WriteOperand,
        inner: &mut dyn DevicePtrMut<f32>,
    ) -> Result<()> {
        let (mut operands, precision, rows) = (kernels.operands(), z.precision(), self.rows.count());
        let mut arguments = self.arguments(&mut operands, z)?;
        arguments.a = operands.matrix("d_a", d_a, precision, rows * self.width)?;
        arguments.dz = operands.matrix_mut("dz", dz, precision, rows * 2 * self.width)?;
        arguments.inner = operands.write("inner", inner, rows)?;
        self.launch(
            kernels,
            precision.named("gate_backward_bf16", "gate_backward_f32"),
            &arguments,
            &operands,
        )
    }
}

/// Work on each row of `width` f32 numbers by itself.
///
/// Of eight columns with d_x = 1 and x_next - x = 2:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::feed_forward::EachRow;
/// use promptmix::cuda::{Kernels, Sequences};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let sequences = Sequences::new(stream, &[1])?;
/// let d_x = stream.clone_htod(&[1.0_f32; 8])?;
/// let (x, x_next) = (stream.clone_htod(&[3.0_f32; 8])?, stream.clone_htod(&[5.0_f32; 8])?);
/// let mut inner = stream.clone_htod(&[f32::NAN])?;
/// EachRow { rows: sequences.rows(), width: 8 }.inner(&kernels, [&d_x, &x, &x_next], &mut inner)?;
/// assert_eq!(stream.clone_dtoh(&inner)?, [8.0 * 2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct EachRow<'a> {
    /// The rows; how they are cut up matters to dropout alone.
    pub rows: PackedRows<'a>,
    /// A multiple of 8.
    pub width: usize,
}

impl EachRow<'_> {
    /// `inner` \[rows\] = <d_x, x_next - x> of each row, all in f32: what
    /// [`Epilogue::NormBackward`](super::linear::Epilogue::NormBackward) wants after a ReLU, which is positively homogeneous, so
    /// that this is <dz, z>. Moves 12 bytes a number.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub fn inner(
        &self,
        kernels: &Kernels,
        [d_x, x, x_next]: [&dyn DevicePtr<f32>; 3],
        inner: &mut dyn DevicePtrMut<f32>,
    ) -> Result<()> {
        check_width(self.width)?;
        let (mut operands, rows) = (kernels.operands(), self.rows.count());
        let numbers = rows * self.width;
        let arguments = RowArguments {
            d_x: operands.read("d_x", d_x, numbers)?,
            x: operands.read("x", x, numbers)?,
            x_next: operands.read("x_next", x_next, numbers)?,
            inner: operands.write("inner", inner, rows)?,
            ..RowArguments::default()
        };
        self.launch(kernels, "row_inner", operands, arguments)
    }

    /// `partials` \[rows, ceil(width / 64)\] in f32, the sums of squares of 64 columns each, and `copy` \[rows, width\], the rows in bf16:
    /// what a product with a [`Norm`](super::linear::Norm) reads of rows that no op of these has made. Moves 4 bytes a number in and 2
    /// out.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub fn squares(
        &self,
        kernels: &Kernels,
        x: &dyn DevicePtr<f32>,
        copy: Option<&mut dyn WriteOperand>,
        partials: &mut dyn DevicePtrMut<f32>,
    ) -> Result<()> {
        check_width(self.width)?;
        let (mut operands, rows) = (kernels.operands(), self.rows.count());
        let numbers = rows * self.width;
        let arguments = RowArguments {
            x: operands.read("x", x, numbers)?,
            inner: operands.write("partials", partials, rows * self.width.div_ceil(NORM_COLUMNS))?,
            copy: copy_of(&mut operands, copy, numbers)?,
            ..RowArguments::default()
        };
        self.launch(kernels, "row_squares", operands, arguments)
    }

    /// `copy` \[rows, width\] in bf16, or to verify in f32: `d_x` with `mask` on it, as the product of a masked sublayer reads its
    /// gradient. Moves 4 bytes a number in and 2 out.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub fn masked_copy(
        &self,
        kernels: &Kernels,
        mask: DropoutMask<'_>,
        d_x: &dyn DevicePtr<f32>,
        copy: &mut dyn WriteOperand,
    ) -> Result<()> {
        check_width(self.width)?;
        let (mut operands, precision) = (kernels.operands(), copy.precision());
        let numbers = self.rows.count() * self.width;
        let arguments = RowArguments {
            d_x: operands.read("d_x", d_x, numbers)?,
            copy: operands.matrix_mut("copy", copy, precision, numbers)?,
            mask: mask.read(&mut operands)?,
            ..RowArguments::default()
        };
        self.launch(kernels, precision.named("mask_copy_bf16", "mask_copy_f32"), operands, arguments)
    }

    /// Launches `name` with its own `arguments`, all of which belong to `operands`.
    fn launch<'a>(
        &'a self,
        kernels: &Kernels,
        name: &'static str,
        mut operands: Operands<'a>,
        arguments: RowArguments,
    ) -> Result<()> {
        let arguments = RowArguments {
            batch: self.rows.read(&mut operands)?,
            side: side_number(self.rows.side()),
            width: self.width as i32,
            ..arguments
        };
        // SAFETY: each op checked the lengths of its operands against rows and width; rows beyond the batch's exit.
        unsafe { launch_rows(kernels, Kernel { file: FILE, name }, self.rows.count(), &arguments, &operands) }
    }
}
