//! The memory that a step needs, before anything is allocated for it.

use super::{Mixture, Pass, T5};
use crate::backend::{Backend, Batch, Example, MicroBatch};
use crate::error::{Error, Result};

/// A batch of `examples` examples of these lengths, for what depends on lengths alone.
///
/// # Errors
/// Those of [`Batch::pack`].
pub fn batch_of_lengths(
    examples: usize,
    prompt_length: usize,
    source_length: usize,
    target_length: usize,
) -> Result<Batch> {
    let example =
        Example { source: vec![0; source_length], target: vec![0; target_length], ..Example::default() };
    Batch::pack(&vec![example; examples], prompt_length, 0, 1)
}

impl<B: Backend> T5<B> {
    /// Bytes of device memory in which every training step runs whose batches are no larger than `micro`'s. Weights, sources
    /// and state are not in it, nor are the few kilobytes that a batch is described by. 0 where memory is no thing to run out
    /// of by itself.
    ///
    /// # Errors
    /// Those of [`T5::train`].
    pub fn step_bytes(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &mut B::State,
        micro: &MicroBatch<'_>,
    ) -> Result<usize> {
        backend.foreseen_bytes(micro, |batch| self.train_on(backend, mixture, state, micro, batch))
    }

    /// Floating-point operations of the matrix products of a training step of `micro`, of its own rows, where the device counts
    /// captured steps by their shape; `None` where [`Device::operations`](crate::backend::Device::operations) says it.
    ///
    /// # Errors
    /// Those of [`T5::train`].
    pub fn step_operations(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &mut B::State,
        micro: &MicroBatch<'_>,
    ) -> Result<Option<u64>> {
        backend.counted_operations(micro, |batch| self.train_on(backend, mixture, state, micro, batch))
    }

    /// Bytes of device memory that forward alone holds at its fullest on batches no larger than `batch`, and that their answers of up
    /// to `longest` tokens take where they are decoded token by token; as [`T5::step_bytes`].
    ///
    /// # Errors
    /// Those of [`T5::loss`] and of [`T5::answer`].
    pub fn evaluation_bytes(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &B::State,
        batch: &Batch,
        longest: Option<usize>,
    ) -> Result<usize> {
        if let Some(longest) = longest {
            let batch = &batch.decoded(0, longest)?;
            let micro = MicroBatch { batch, dropout: None, first: false, last: None };
            return backend.foreseen_bytes(&micro, |batch| {
                let mut answer = self.begin_answer(backend, mixture, state, batch)?;
                self.say(backend, batch, &answer.encoding, &mut answer.steps, 0)
            });
        }
        let micro = MicroBatch { batch, dropout: None, first: false, last: None };
        backend.foreseen_bytes(&micro, |batch| {
            let encoding = self.encode(backend, mixture, state, batch, &mut Pass::evaluation())?;
            let decoding = self.decode(backend, batch, &encoding, &mut Pass::evaluation())?;
            backend.loss(batch, decoding.hidden(), &self.lm_head(), None).map(drop)
        })
    }
}

/// The largest count, `most` or below, that needs no more than `free` bytes, and what `most` needs; `bytes` says what a count
/// needs, more never less.
///
/// # Errors
/// Those of `bytes`.
pub fn largest_that_fits(
    free: usize,
    most: usize,
    mut bytes: impl FnMut(usize) -> Result<usize>,
) -> Result<(usize, usize)> {
    let needed = bytes(most)?;
    if needed <= free {
        return Ok((most, needed));
    }
    let (mut fits, mut too_many) = (0, most);
    while fits + 1 < too_many {
        let middle = fits.midpoint(too_many);
        *(if bytes(middle)? <= free { &mut fits } else { &mut too_many }) = middle;
    }
    Ok((fits, needed))
}

/// Fails if training in batches of `examples` does not fit into `free` bytes; `bytes` says what a count of examples needs.
///
/// # Errors
/// [`Error::Setting`] that names the batch size that fits; those of `bytes`.
pub fn foresee(free: usize, examples: usize, bytes: impl FnMut(usize) -> Result<usize>) -> Result<()> {
    let (fits, needed) = largest_that_fits(free, examples, bytes)?;
    if fits == examples {
        return Ok(());
    }
    let mebibytes = |bytes: usize| bytes.div_ceil(1 << 20);
    let advice = match fits {
        0 => "take a smaller model, or lower --max-source-length".to_owned(),
        fits => {
            format!("--batch-size {fits} fits; with --gradient-accumulation-steps the step stays as it is")
        }
    };
    let expected = format!("training that fits into the {} MiB of free device memory", mebibytes(free));
    let found = format!("{examples}, which needs up to {} MiB", mebibytes(needed));
    Err(Error::setting("--batch-size", expected, found, advice))
}
