//! The memory that a step needs, before anything is allocated for it.

use super::T5;
use crate::backend::{Activation, Backend, Format};
use crate::error::{Error, Result};

/// How large a batch is, as far as memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// B.
    pub examples: usize,
    /// R: prompt and source rows of all examples.
    pub encoder_rows: usize,
    /// T: target rows of all examples.
    pub decoder_rows: usize,
}

impl StepShape {
    /// `examples` of the given lengths behind prompts of `prompt_length`.
    pub fn of(examples: usize, prompt_length: usize, source_length: usize, target_length: usize) -> Self {
        Self {
            examples,
            encoder_rows: examples * (prompt_length + source_length),
            decoder_rows: examples * target_length,
        }
    }
}

impl<B: Backend> T5<B> {
    /// Bytes that a training step on a batch of `shape` holds at its fullest: what forward keeps of every layer, and what
    /// stands beside it where backward begins. Weights, sources and state are not in it, and neither is what is small beside
    /// it: descriptors, the mixture, and the parts of thin products.
    pub fn step_bytes(&self, backend: &B, shape: StepShape) -> usize {
        let StepShape { examples, encoder_rows, decoder_rows } = shape;
        let (width, total, heads) = (self.config.d_model, self.heads.total(), self.heads.count);
        let row = |width: usize, format: Format| backend.row_bytes(width, format);
        let residual = row(width, Format::Residual) + row(width, Format::Norm);
        let operand = |width: usize| row(width, Format::Operand);
        let sums = row(heads, Format::Float);
        let inner = self.config.d_ff;
        let gated = self.activation != Activation::Relu;
        let feed_forward = if gated { operand(2 * inner) } else { inner / 8 };
        let attention = operand(3 * total) + operand(total) + sums;

        let encoder_kept =
            self.encoder.len() * (2 * residual + attention + feed_forward) + residual + operand(width);
        // Short targets keep, of the encoder's rows, their scores; longer ones keys and values.
        let target = decoder_rows.div_ceil(examples.max(1));
        let absorbed = heads * width * (target * encoder_rows + decoder_rows * self.heads.width);
        let absorbs = target <= 8 && absorbed <= encoder_rows * total * (width + target);
        let scores = target * row(heads, Format::Float);
        let cross_of_encoder = self.decoder.len() * if absorbs { scores } else { 2 * operand(total) };
        let cross_of_decoder = if absorbs { operand(heads * width) } else { sums };
        // d_h, d_x, what a feed-forward's backward makes of its inner rows beside the activation, d_o and d_qkv; keys' and
        // values' gradients of cross attention are of d_o's size.
        let encoder_backward = row(width, Format::Float)
            + row(width, Format::Residual)
            + if gated { 2 * operand(inner) + operand(2 * inner) } else { operand(inner) }
            + 2 * operand(total)
            + operand(3 * total);
        let cross = 2 * operand(total) + cross_of_decoder;
        let decoder_kept = self.decoder.len() * (3 * residual + attention + cross + feed_forward) + residual;
        // The loss' weighted sums of at most so many rows and ranges of the vocabulary.
        let ranges = self.config.vocab_size.div_ceil(16) * decoder_rows;
        let head = ranges.min(256 * 32 + decoder_rows) * row(width, Format::Float);
        let wide = if absorbs { 3 * operand(heads * width) } else { 0 };
        let decoder_backward = 3 * operand(width) + 3 * operand(inner) + wide;
        encoder_rows * (encoder_kept + cross_of_encoder + encoder_backward)
            + decoder_rows * (decoder_kept + decoder_backward)
            + head
    }

    /// Fails if the step of a batch of `examples`, of `shape` each count, does not fit into `free` bytes.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the batch size that fits.
    pub fn foresee(
        &self,
        backend: &B,
        free: usize,
        examples: usize,
        shape: impl Fn(usize) -> StepShape,
    ) -> Result<()> {
        // An eighth for what the plan leaves out.
        let bytes = |examples| self.step_bytes(backend, shape(examples)) / 8 * 9;
        if bytes(examples) <= free {
            return Ok(());
        }
        let fits = (1..examples).rev().find(|&fewer| bytes(fewer) <= free);
        let mebibytes = |bytes: usize| bytes.div_ceil(1 << 20);
        let advice = match fits {
            None => "take a smaller model, or lower --max-source-length".to_owned(),
            Some(fits) => format!("--batch-size {fits} fits; with --accumulate the step stays as it is"),
        };
        let expected = format!("a step that fits into the {} MiB of free device memory", mebibytes(free));
        let found = format!("{examples}, whose step needs up to {} MiB", mebibytes(bytes(examples)));
        Err(Error::setting("--batch-size", expected, found, advice))
    }
}
