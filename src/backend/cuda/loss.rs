//! The head and its cross entropy: `kernels/loss.cu` between two products.
//!
//! The logits of a batch's few label rows live in a buffer of the step, \[T, V\] in f32, and their gradient in another.

use super::Cuda;
use super::kernels::{Arguments, Kernel};
use super::memory::Buffer;
use super::rows::{Rows, WIDTH_MULTIPLE, Weight};
use crate::backend::{Batch, Format, Loss, Side};
use crate::error::Result;

#[derive(Clone, Copy)]
#[repr(C)]
struct LossArguments {
    batch: u64,
    logits: u64,
    negative_log_likelihood: u64,
    greedy: u64,
    d_logits: u64,
    vocabulary: i32,
    stride: i32,
}
const _: () = assert!(size_of::<LossArguments>() == 48);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for LossArguments {}

/// The loss of a pass, on the device until it is read.
#[derive(Debug)]
pub struct LossKept {
    negative_log_likelihood: Buffer<f32>,
    greedy: Buffer<u32>,
    rows: usize,
}

impl LossKept {
    pub(super) fn new(cuda: &Cuda, batch: &Batch) -> Self {
        let rows = batch.rows(Side::Decoder);
        Self { negative_log_likelihood: cuda.allocate(rows), greedy: cuda.allocate(rows), rows }
    }

    /// \[T\]
    pub(super) fn negative_log_likelihood(&self) -> &Buffer<f32> {
        &self.negative_log_likelihood
    }

    pub(super) fn read(&self, cuda: &Cuda) -> Loss {
        let negative = cuda.download(&self.negative_log_likelihood, self.rows);
        Loss {
            negative_log_likelihood: negative.into_iter().map(f64::from).collect(),
            greedy: cuda.download(&self.greedy, self.rows),
        }
    }
}

impl Cuda {
    pub(super) fn launch_loss(
        &self,
        batch: &Batch,
        hidden: &Rows,
        head: &Weight,
        d_hidden: Option<&mut Rows>,
        kept: &mut LossKept,
    ) -> Result<()> {
        let rows = batch.rows(Side::Decoder);
        let mut logits = self.activation(rows, head.out, Format::Float);
        self.launch_logits(batch, hidden, head, &mut logits)?;
        let stride = head.out.next_multiple_of(WIDTH_MULTIPLE);
        let d_logits = d_hidden.is_some().then(|| self.operand(rows * stride));
        let arguments = LossArguments {
            batch: self.describe(batch)?.address(self)?,
            logits: logits.float_address(self)?,
            negative_log_likelihood: self.address_of(&kept.negative_log_likelihood)?,
            greedy: self.address_of(&kept.greedy)?,
            d_logits: d_logits.as_ref().map_or(Ok(0), |operand| operand.address(self))?,
            vocabulary: head.out as i32,
            stride: stride as i32,
        };
        let kernel = Kernel { file: "loss", name: self.named("loss_bf16", "loss_f32") };
        // SAFETY: every buffer was made for these rows, and labels lie within the vocabulary.
        unsafe { self.kernels().launch(kernel, [rows as u32, 1, 1], 256, 0, &arguments)? };
        match d_hidden {
            Some(d_hidden) => self.launch_head_backward(batch, arguments.d_logits, stride, head, d_hidden),
            None => Ok(()),
        }
    }
}
