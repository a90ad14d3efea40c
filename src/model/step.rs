//! Whole passes: loss, loss with gradient, and the likelihood of given targets.

use super::{Decoding, Encoding, Mixture, Pass, T5};
use crate::backend::{Backend, Batch, DropoutStep, Format, Loss, MicroBatch, Side};
use crate::error::Result;

/// The loss of a pass.
#[derive(Clone, Debug, PartialEq)]
pub struct StepLoss {
    /// Each run's part of the mean, over its label tokens, of the batch's objective, by default cross entropy; over all micro-batches these add up to it.
    pub per_run: Vec<f64>,
    /// a \[B, S + 1\] (\[B, M, S + 1\] for the token scorer), the target prompt last; empty without a scorer.
    pub attention: Vec<f64>,
}

/// What a pass leaves on the device to be read.
pub struct Issued<B: Backend> {
    loss: B::DeviceLoss,
    mix: B::MixSaved,
}

impl<B: Backend> Issued<B> {
    /// Reads back what the pass over `batch`, of `runs` runs, came to.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn read(&self, backend: &B, batch: &Batch, runs: usize) -> Result<StepLoss> {
        Ok(summarise(batch, &backend.read_loss(&self.loss)?, backend.attention(&self.mix)?, runs))
    }
}

/// What each label row counts for: one over its run's label tokens of the whole step. `label_tokens` has the count of
/// each run, over all ranks and micro-batches.
pub fn label_weights(batch: &Batch, label_tokens: &[usize]) -> Vec<f64> {
    (0..batch.examples())
        .flat_map(|b| {
            let weight = 1.0 / label_tokens[batch.run(b)].max(1) as f64;
            batch.range(Side::Decoder, b).map(move |_| weight)
        })
        .collect()
}

impl<B: Backend> T5<B> {
    /// The loss without a gradient.
    ///
    /// # Errors
    /// Those of [`T5::encode`], [`T5::decode`] and the device.
    pub fn loss(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &B::State,
        batch: &Batch,
        label_tokens: &[usize],
        mut pass: Pass<'_, B>,
    ) -> Result<StepLoss> {
        let batch = &batch.clone().weighted(label_weights(batch, label_tokens))?;
        let encoding = self.encode(backend, mixture, state, batch, &mut pass)?;
        let decoding = self.decode(backend, batch, &encoding, &mut pass)?;
        let loss = backend.read_loss(&backend.loss(batch, &decoding.hidden, &self.lm_head(), None)?)?;
        Ok(summarise(batch, &loss, backend.attention(encoding.mix())?, label_tokens.len()))
    }

    /// The loss, its gradient added to `state`'s, and the gradient of the encoder's input \[R, D\], of which the prompt
    /// rows are computed and the token rows hold nothing of use.
    ///
    /// # Errors
    /// As [`T5::loss`].
    pub fn loss_and_gradient(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &mut B::State,
        batch: &Batch,
        label_tokens: &[usize],
        dropout: Option<&DropoutStep>,
    ) -> Result<(StepLoss, Option<B::Rows>)> {
        let batch = &batch.clone().weighted(label_weights(batch, label_tokens))?;
        let (issued, d_input) = self.issue(backend, mixture, state, batch, dropout)?;
        Ok((issued.read(backend, batch, label_tokens.len())?, d_input))
    }

    /// Issues the passes of [`T5::loss_and_gradient`] on a batch that has its row weights, and reads nothing back.
    ///
    /// # Errors
    /// As [`T5::loss`].
    pub fn issue(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &mut B::State,
        batch: &Batch,
        dropout: Option<&DropoutStep>,
    ) -> Result<(Issued<B>, Option<B::Rows>)> {
        let mut pass = Pass { dropout, keep: true, observe: None };
        let encoding = self.encode(backend, mixture, state, batch, &mut pass)?;
        let decoding = self.decode(backend, batch, &encoding, &mut pass)?;
        let mut d_hidden = backend.rows(batch.rows(Side::Decoder), self.config.d_model, Format::Float)?;
        let loss = backend.loss(batch, decoding.hidden(), &self.lm_head(), Some(&mut d_hidden))?;
        let d_h = self.decoder_backward(backend, batch, &encoding, decoding, d_hidden, dropout)?;
        let (d_input, mix) = self.encoder_backward(backend, batch, encoding, d_h, dropout)?;
        if let Some(d_input) = &d_input {
            backend.mix_backward(&mixture.of(batch), &mix, d_input, state)?;
        }
        Ok((Issued { loss, mix }, d_input))
    }

    /// A micro-batch of a training step, its rows weighted: passes, statistics, and where it is the last, the update. Nothing is
    /// waited for; [`OptimizerOps::reports`](crate::backend::OptimizerOps::reports) returns what the step came to.
    ///
    /// # Errors
    /// As [`T5::loss`].
    pub fn train(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &mut B::State,
        graph_cache: &mut B::GraphCache,
        micro: &MicroBatch<'_>,
    ) -> Result<()> {
        backend.capture(graph_cache, micro, |batch| self.train_on(backend, mixture, state, micro, batch))
    }

    pub(super) fn train_on(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &mut B::State,
        micro: &MicroBatch<'_>,
        batch: &Batch,
    ) -> Result<()> {
        if micro.first {
            backend.begin_step(state)?;
        }
        let (Issued { loss, mix }, _) = self.issue(backend, mixture, state, batch, micro.dropout)?;
        backend.add_statistics(batch, &loss, &mix, state)?;
        micro.last.map_or(Ok(()), |steps| backend.optimizer_step(state, steps))
    }

    /// log p(candidate) of each example's own candidates, all after one encoding: \[B\]\[its candidates\].
    ///
    /// # Errors
    /// If there are not B lists, a candidate has no token, or the device failed.
    pub fn score(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: &Encoding<B>,
        candidates: &[&[Vec<u32>]],
    ) -> Result<Vec<Vec<f64>>> {
        let start = self.config.decoder_start_token_id;
        // An example whose candidates are all scored says its end mark meanwhile.
        let idle = vec![self.config.eos_token_id];
        let mut scores: Vec<Vec<f64>> =
            candidates.iter().map(|candidates| Vec::with_capacity(candidates.len())).collect();
        let most = candidates.iter().map(|candidates| candidates.len()).max().unwrap_or(0);
        for place in 0..most {
            let labels: Vec<Vec<u32>> =
                candidates.iter().map(|own| own.get(place).unwrap_or(&idle).clone()).collect();
            let shifted: Vec<Vec<u32>> = labels
                .iter()
                .map(|label| std::iter::once(start).chain(label.iter().copied()).take(label.len()).collect())
                .collect();
            let of_place = batch.with_decoder(&shifted, &labels)?;
            let decoding = self.decode(backend, &of_place, encoding, &mut Pass::evaluation())?;
            let loss = backend.loss(&of_place, decoding.hidden(), &self.lm_head(), None)?;
            let loss = backend.read_loss(&loss)?;
            for (b, scores) in scores.iter_mut().enumerate().filter(|(b, _)| place < candidates[*b].len()) {
                let rows = &loss.negative_log_likelihood[of_place.range(Side::Decoder, b)];
                scores.push(-rows.iter().sum::<f64>());
            }
        }
        Ok(scores)
    }

    /// All logits of a decoding of `batch`, \[T, V\].
    ///
    /// # Errors
    /// What the device fails with.
    pub fn logits(&self, backend: &B, batch: &Batch, decoding: &Decoding<B>) -> Result<B::Rows> {
        backend.logits(batch, decoding.hidden(), self.lm_head().weight)
    }
}

fn summarise(batch: &Batch, loss: &Loss, attention: Vec<f64>, runs: usize) -> StepLoss {
    let mut per_run = vec![0.0; runs];
    for b in 0..batch.examples() {
        for row in batch.range(Side::Decoder, b) {
            per_run[batch.run(b)] += batch.row_weights()[row] * loss.objective[row];
        }
    }
    StepLoss { per_run, attention }
}
