//! One optimizer step of one run, or of several in one pass through the frozen model.
//!
//! An example carries its run's number; loss, gradient, norm, clip and learning rates are each run's own.

use std::rc::Rc;

use super::ranks::Ranks;
use crate::backend::{Backend, Batch, DropoutStep, Example, Objective, OptimizerReport, OptimizerStep, Side};
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
    pub(super) objective: Objective,
    pub(super) ranks: Rc<dyn Ranks>,
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
    /// Mean over its label tokens of the objective, which is cross entropy unless it is smoothed.
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
    let own_tokens = |run| batches.iter().map(|batch| batch.label_tokens(run)).sum::<usize>();
    // Whole numbers below 2^53, which f64 adds up exactly.
    let mut label_tokens: Vec<f64> = (0..parts.len()).map(|run| own_tokens(run) as f64).collect();
    shared.ranks.sum(&mut label_tokens)?;
    let label_tokens: Vec<usize> = label_tokens.into_iter().map(|tokens| tokens as usize).collect();
    let dropout = DropoutStep::new(shared.dropout, shared.step, &shared.seeds);
    backend.zero_gradient(state);
    let mut taken = vec![TakenPart::default(); parts.len()];
    let mut entropies = vec![(0.0, 0_usize); parts.len()];
    let prompts = mixture.source_count + usize::from(!mixture.mixing.without_target);
    for batch in &batches {
        let batch = batch.weighted(label_weights(batch, &label_tokens)).with_objective(shared.objective);
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
    add_up_ranks(backend, state, shared.ranks.as_ref(), &mut taken, &mut entropies)?;
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

/// Adds up over all ranks the gradient and what is told of the step, in one call.
fn add_up_ranks<B: Backend>(
    backend: &B,
    state: &mut B::State,
    ranks: &dyn Ranks,
    taken: &mut [TakenPart],
    entropies: &mut [(f64, usize)],
) -> Result<()> {
    if ranks.count() == 1 {
        return Ok(());
    }
    let mut values = backend.read_gradient(state);
    let gradient = values.len();
    for (taken, (entropy, rows)) in taken.iter().zip(&*entropies) {
        values.extend([taken.loss, taken.tokens as f64, *entropy, *rows as f64]);
    }
    ranks.sum(&mut values)?;
    backend.write_gradient(state, &values[..gradient]);
    let told = values[gradient..].chunks_exact(4);
    for ((taken, (entropy, rows)), told) in taken.iter_mut().zip(entropies).zip(told) {
        (taken.loss, taken.tokens) = (told[0], told[1] as usize);
        (*entropy, *rows) = (told[2], told[3] as usize);
    }
    Ok(())
}

/// This rank's micro-batches: every so-manyth example of each run.
fn pack<B: Backend>(
    frozen: &Frozen<'_, B>,
    mixture: &Mixture<B>,
    shared: &Shared,
    parts: &[RunPart],
) -> Result<Vec<Batch>> {
    let config = frozen.model.config();
    let ranks = shared.ranks.as_ref();
    let own: Vec<Vec<&Example>> = parts
        .iter()
        .map(|part| part.examples.iter().skip(ranks.rank()).step_by(ranks.count()).collect())
        .collect();
    let micro_batches = own.iter().zip(parts).map(|(own, part)| own.len().div_ceil(part.batch_size)).max();
    (0..micro_batches.unwrap_or(0))
        .map(|micro| {
            let chunks =
                own.iter().zip(parts).filter_map(|(own, part)| own.chunks(part.batch_size).nth(micro));
            let examples: Vec<Example> = chunks.flatten().copied().cloned().collect();
            let length = mixture.layout.prompt_length;
            let batch = Batch::pack(&examples, length, config.decoder_start_token_id, config.vocab_size)?;
            Ok(match shared.pooled_width {
                Some(width) => batch.pooling_padding(width, config.pad_token_id),
                None => batch,
            })
        })
        .collect()
}
