//! Embedding: `kernels/embedding.cu`.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::packing::{DropoutMask, PackedRows};
use super::{EmbedArguments, EmbedBackwardArguments, NORM_COLUMNS, check_width, launch_rows, side_number};
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::WriteOperand;
use crate::error::Result;

/// An embedding of packed token rows, and what its dropout does to the gradient.
///
/// x\[row\] = mask(table\[id of the row\]) on token rows. The encoder's prompt rows, which stand before each example's tokens, have
/// no id and stay as they are: [`PromptMix`](super::mix::PromptMix) writes them.
///
/// Each token gets its row of the table:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use promptmix::backend::{Batch, Example, Side};
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::embedding::{EmbeddedRows, Embedding};
/// use promptmix::cuda::{DropoutMask, Kernels, Packed};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let example = Example { source: vec![2, 1], target: vec![1], ..Example::default() };
/// let packed = Packed::new(stream, Batch::pack(&[example], 0, 0, 3)?)?;
/// // Every number of the table's row i is i.
/// let table = stream.clone_htod(&(0..3 * 8).map(|n| (n / 8) as f32).collect::<Vec<_>>())?;
/// let mut x = stream.clone_htod(&[f32::NAN; 2 * 8])?;
/// let mut partials = stream.clone_htod(&[f32::NAN; 2])?;
/// let embedding = Embedding { rows: packed.rows(Side::Encoder), width: 8, mask: DropoutMask::default() };
/// let written = EmbeddedRows { x: &mut x, copy: None, partials: &mut partials };
/// embedding.forward(&kernels, &table, written)?;
/// assert_eq!(stream.clone_dtoh(&x)?, [[2.0; 8], [1.0; 8]].concat());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Embedding<'a> {
    /// The rows, with their token ids.
    pub rows: PackedRows<'a>,
    /// D, a multiple of 8.
    pub width: usize,
    /// Dropout of the rows.
    pub mask: DropoutMask<'a>,
}

/// What an embedding writes.
pub struct EmbeddedRows<'a> {
    /// \[rows, D\] in f32.
    pub x: &'a mut dyn DevicePtrMut<f32>,
    /// The same in bf16, which products read.
    pub copy: Option<&'a mut dyn WriteOperand>,
    /// \[rows, ceil(D / 64)\]: the sums of squares of 64 columns each, by which the next product norms the row.
    pub partials: &'a mut dyn DevicePtrMut<f32>,
}

impl Embedding<'_> {
    /// Launches it, from `table` \[V, D\] in f32.
    ///
    /// Costs D multiply-adds a row; moves 4·D bytes in and 6·D + D / 16 out.
    ///
    /// # Errors
    /// A length or width that does not fit, a table of fewer rows than the batch's vocabulary, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        table: &dyn DevicePtr<f32>,
        written: EmbeddedRows<'_>,
    ) -> Result<()> {
        self.launch(kernels, table, None, written)
    }

    /// As [`Embedding::forward`], of `ids` \[rows\] in place of the batch's: token ids that an earlier launch may have written. One that
    /// the table does not have is taken for its last.
    ///
    /// # Errors
    /// As there.
    pub fn forward_of(
        &self,
        kernels: &Kernels,
        table: &dyn DevicePtr<f32>,
        ids: &dyn DevicePtr<u32>,
        written: EmbeddedRows<'_>,
    ) -> Result<()> {
        self.launch(kernels, table, Some(ids), written)
    }

    fn launch(
        &self,
        kernels: &Kernels,
        table: &dyn DevicePtr<f32>,
        ids: Option<&dyn DevicePtr<u32>>,
        written: EmbeddedRows<'_>,
    ) -> Result<()> {
        check_width(self.width)?;
        let vocabulary = self.rows.batch().batch().vocabulary();
        super::check_rows("table", vocabulary, self.width, table.len())?;
        let (rows, mut operands) = (self.rows.count(), kernels.operands());
        let numbers = rows * self.width;
        let arguments = EmbedArguments {
            batch: self.rows.read(&mut operands)?,
            table: operands.read("table", table, table.len())?,
            x: operands.write("x", written.x, numbers)?,
            copy: super::copy_of(&mut operands, written.copy, numbers)?,
            partials: operands.write(
                "partials",
                written.partials,
                rows * self.width.div_ceil(NORM_COLUMNS),
            )?,
            mask: self.mask.read(&mut operands)?,
            ids: operands.read_if("ids", ids, rows)?,
            side: side_number(self.rows.side()),
            width: self.width as i32,
            vocabulary: vocabulary as i32,
            ..EmbedArguments::default()
        };
        // SAFETY: lengths were checked, the batch's ids are below its vocabulary and the kernel keeps others there, and rows
        // beyond the batch's exit.
        unsafe {
            launch_rows(kernels, Kernel { file: "embedding", name: "embed" }, rows, &arguments, &operands)
        }
    }

    /// Launches the backward pass: the mask on the prompt rows of `d_x` \[rows, D\] in f32; nothing without a mask. The rows must be
    /// the encoder's.
    ///
    /// # Errors
    /// As [`Embedding::forward`].
    pub fn backward(&self, kernels: &Kernels, d_x: &mut dyn DevicePtrMut<f32>) -> Result<()> {
        if !self.mask.is_some() {
            return Ok(());
        }
        check_width(self.width)?;
        let batch = self.rows.batch().batch();
        let mut operands = kernels.operands();
        let arguments = EmbedBackwardArguments {
            batch: self.rows.read(&mut operands)?,
            d_x: operands.write("d_x", d_x, self.rows.all() * self.width)?,
            mask: self.mask.read(&mut operands)?,
            width: self.width as i32,
            ..EmbedBackwardArguments::default()
        };
        let rows = batch.examples() * batch.prompt_length();
        let kernel = Kernel { file: "embedding", name: "embed_backward" };
        // SAFETY: prompt rows lie within the encoder's rows, which d_x has.
        unsafe { launch_rows(kernels, kernel, rows, &arguments, &operands) }
    }
}
