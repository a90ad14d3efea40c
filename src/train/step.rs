//! One optimizer step of one run, or of several in one pass through the frozen model.
//!
//! An example carries its run's number; loss, gradient, norm, clip and learning rates are each run's own.

use crate::backend::{Backend, Batch, DropoutStep, Example, OptimizerReport, OptimizerStep, Side};
use crate::error::Result;
use crate::model::{Frozen, Mixture, label_weights};

/// What one run gives to a step.
pub(super) struct RunPart {
    /// Steps before this one.
    pub(super) step: u64,
    /// Epochs before this one's.
    pub(super) epoch: u64,
    /// Its examples, numbered as in a step of its own; none for a run that has ended.
    pub(super) examples: Vec<Example>,
    /// Examples a micro-batch.
    pub(super) batch_size: usize,
    pub(super) optimizer: OptimizerStep,
}

/// What all runs of a step have in common, and the seed of each.
pub(super) struct Shared {
    pub(super) step: u64,
    pub(super) dropout: f64,
    pub(super) seeds: Vec<u64>,
    pub(super) pooled_width: Option<usize>,
}

/// What a step came to.
pub(super) struct Taken {
    /// Each run's part, in their order.
    pub(super) parts: Vec<TakenPart>,
    pub(super) batches: Vec<Batch>,
    pub(super) dropout: Option<DropoutStep>,
}

/// What a step came to for one run.
#[derive(Clone, Default)]
pub(super) struct TakenPart {
    /// Mean cross entropy over its label tokens.
    pub(super) loss: f64,
    /// Mean over its attention rows of -sum_j a_j ln a_j; `None` without a scorer.
    pub(super) attention_entropy: Option<f64>,
    /// Its source and target tokens.
    pub(super) tokens: usize,
    /// What the optimizer did; `None` if the loss of no run was finite, and nothing was done.
    pub(super) report: Option<OptimizerReport>,
}

impl TakenPart {
    /// Whether the run took the step: its loss and its gradient were finite.
    pub(super) fn applied(&self) -> bool {
        self.loss.is_finite() && self.report.is_some_and(|report| report.applied)
    }
}

/// Takes a step: all micro-batches, in each the next examples of every run, then every run's update.
///
/// # Errors
/// Those of packing a batch and of the device.
pub(super) fn take<B: Backend>(
    frozen: &Frozen<'_, B>,
    mixture: &Mixture<B>,
    state: &mut B::State,
    recorder: &mut B::Recorder,
    shared: &Shared,
    parts: &[RunPart],
) -> Result<Taken> {
    let backend = frozen.backend;
    let batches = pack(frozen, mixture, shared, parts)?;
    let label_tokens: Vec<usize> =
        (0..parts.len()).map(|run| batches.iter().map(|batch| batch.label_tokens(run)).sum()).collect();
    let dropout = DropoutStep::new(shared.dropout, shared.step, &shared.seeds);
    backend.zero_gradient(state);
    let mut taken = vec![TakenPart::default(); parts.len()];
    let mut entropies = vec![(0.0, 0_usize); parts.len()];
    let prompts = mixture.source_count + usize::from(!mixture.mixing.without_target);
    for batch in &batches {
        let batch = batch.weighted(label_weights(batch, &label_tokens));
        let issued = backend.record(recorder, &batch, dropout.as_ref(), |batch| {
            frozen.model.issue(backend, mixture, state, batch, dropout.as_ref()).0
        });
        let step = issued.read(backend, &batch, parts.len());
        for (taken, loss) in taken.iter_mut().zip(&step.per_run) {
            taken.loss += loss;
        }
        let per_example = step.attention.len() / batch.examples();
        for b in 0..batch.examples() {
            let run = batch.run(b);
            let (encoder, decoder) = (batch.range(Side::Encoder, b), batch.range(Side::Decoder, b));
            taken[run].tokens += encoder.len() - batch.prompt_length() + decoder.len();
            let weights = &step.attention[b * per_example..(b + 1) * per_example];
            let weights = weights.iter().filter(|&&weight| weight > 0.0);
            entropies[run].0 -= weights.map(|&weight| weight * weight.ln()).sum::<f64>();
            entropies[run].1 += per_example / prompts.max(1);
        }
    }
    for (taken, (sum, rows)) in taken.iter_mut().zip(entropies) {
        taken.attention_entropy = (rows > 0).then(|| sum / rows as f64);
    }
    if taken.iter().zip(parts).any(|(taken, part)| !part.examples.is_empty() && taken.loss.is_finite()) {
        let schedule: Vec<OptimizerStep> = parts.iter().map(|part| part.optimizer).collect();
        backend.schedule(state, &schedule);
        backend.optimizer_step(state);
        for (taken, report) in taken.iter_mut().zip(backend.optimizer_reports(state)) {
            taken.report = Some(report);
        }
    }
    backend.health()?;
    Ok(Taken { parts: taken, batches, dropout })
}

fn pack<B: Backend>(
    frozen: &Frozen<'_, B>,
    mixture: &Mixture<B>,
    shared: &Shared,
    parts: &[RunPart],
) -> Result<Vec<Batch>> {
    let config = frozen.model.config();
    let micro_batches = parts.iter().map(|part| part.examples.len().div_ceil(part.batch_size)).max();
    (0..micro_batches.unwrap_or(0))
        .map(|micro| {
            let examples: Vec<Example> = parts
                .iter()
                .filter_map(|part| part.examples.chunks(part.batch_size).nth(micro))
                .flatten()
                .cloned()
                .collect();
            let length = mixture.layout.prompt_length;
            let batch = Batch::pack(&examples, length, config.decoder_start_token_id, config.vocab_size)?;
            Ok(match shared.pooled_width {
                Some(width) => batch.pooling_padding(width, config.pad_token_id),
                None => batch,
            })
        })
        .collect()
}
