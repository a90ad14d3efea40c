//! Whole passes: loss, loss with gradient, and the likelihood of given targets.

use super::{Decoding, Encoding, Mixture, Pass, T5};
use crate::backend::{Backend, Batch, DropoutStep, Side};
use crate::error::Result;

/// The loss of a pass.
#[derive(Clone, Debug, PartialEq)]
pub struct StepLoss {
    /// Each run's part of the mean cross entropy over its label tokens; over all micro-batches these add up to it.
    pub per_run: Vec<f64>,
    /// a \[B, S + 1\] (\[B, M, S + 1\] for the token scorer), the target prompt last; empty without a scorer.
    pub attention: Vec<f64>,
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
    pub fn loss(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &B::State,
        batch: &Batch,
        label_tokens: &[usize],
        mut pass: Pass<'_, B>,
    ) -> StepLoss {
        let encoding = self.encode(backend, mixture, state, batch, &mut pass);
        let decoding = self.decode(backend, batch, &encoding, &mut pass);
        let weights = label_weights(batch, label_tokens);
        let loss = backend.loss(&decoding.hidden, self.head(), batch.labels(), &weights, None);
        summarise(
            batch,
            &weights,
            &loss.negative_log_likelihood,
            backend.attention(encoding.mix()),
            label_tokens,
        )
    }

    /// The loss, and its gradient added to `state`'s.
    pub fn loss_and_gradient(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &mut B::State,
        batch: &Batch,
        label_tokens: &[usize],
        dropout: Option<&DropoutStep>,
    ) -> StepLoss {
        self.loss_and_encoder_gradient(backend, mixture, state, batch, label_tokens, dropout).0
    }

    /// As [`T5::loss_and_gradient`], also returning the gradient of the encoder's input \[R, D\], of which the prompt
    /// rows are computed and the token rows hold nothing of use.
    pub fn loss_and_encoder_gradient(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &mut B::State,
        batch: &Batch,
        label_tokens: &[usize],
        dropout: Option<&DropoutStep>,
    ) -> (StepLoss, Option<B::Rows>) {
        let mut pass = Pass { dropout, keep: true, observe: None };
        let encoding = self.encode(backend, mixture, state, batch, &mut pass);
        let decoding = self.decode(backend, batch, &encoding, &mut pass);
        let weights = label_weights(batch, label_tokens);
        let mut d_hidden = backend.rows(batch.rows(Side::Decoder), self.config.d_model);
        let loss =
            backend.loss(decoding.hidden(), self.head(), batch.labels(), &weights, Some(&mut d_hidden));
        let attention = backend.attention(encoding.mix());
        let summary = summarise(batch, &weights, &loss.negative_log_likelihood, attention, label_tokens);
        let d_input = self
            .decoder_backward(backend, batch, &encoding, decoding, d_hidden, dropout)
            .and_then(|d_h| self.encoder_backward(backend, batch, encoding, d_h, dropout))
            .map(|(d_x, mix)| {
                let sources = mixture.sources.as_ref();
                backend.mix_backward(&mixture.mixing, sources, batch, &mix, &d_x, state);
                d_x
            });
        (summary, d_input)
    }

    /// log p(candidate) of each candidate for each example, all behind one encoding: \[B\]\[candidates\].
    ///
    /// # Errors
    /// If a candidate has no token.
    pub fn score(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: &Encoding<B>,
        candidates: &[Vec<u32>],
    ) -> Result<Vec<Vec<f64>>> {
        let mut scores = vec![Vec::with_capacity(candidates.len()); batch.examples()];
        for candidate in candidates {
            let start = self.config.decoder_start_token_id;
            let shifted: Vec<u32> =
                std::iter::once(start).chain(candidate.iter().copied()).take(candidate.len()).collect();
            let examples = batch.examples();
            let of_candidate =
                batch.with_decoder(&vec![shifted; examples], &vec![candidate.clone(); examples])?;
            let decoding = self.decode(backend, &of_candidate, encoding, &mut Pass::evaluation());
            let weights = vec![0.0; of_candidate.labels().len()];
            let loss = backend.loss(decoding.hidden(), self.head(), of_candidate.labels(), &weights, None);
            let rows = loss.negative_log_likelihood.chunks_exact(candidate.len());
            for (scores, rows) in scores.iter_mut().zip(rows) {
                scores.push(-rows.iter().sum::<f64>());
            }
        }
        Ok(scores)
    }

    /// All logits of a decoding, \[T, V\].
    pub fn logits(&self, backend: &B, decoding: &Decoding<B>) -> B::Rows {
        backend.logits(decoding.hidden(), self.head())
    }
}

fn summarise(
    batch: &Batch,
    weights: &[f64],
    negative_log_likelihood: &[f64],
    attention: Vec<f64>,
    label_tokens: &[usize],
) -> StepLoss {
    let mut per_run = vec![0.0; label_tokens.len()];
    for b in 0..batch.examples() {
        for row in batch.range(Side::Decoder, b) {
            per_run[batch.run(b)] += weights[row] * negative_log_likelihood[row];
        }
    }
    StepLoss { per_run, attention }
}
