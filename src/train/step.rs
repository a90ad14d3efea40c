//! One optimizer step of one run, or of several in one pass through the frozen model.
//!
//! An example carries its run's number; loss, gradient, norm, clip and learning rates are each run's own.

use std::rc::Rc;

use super::ranks::Ranks;
use crate::backend::{
    Backend, Batch, DropoutStep, Example, MicroBatch, Objective, OptimizerStep, Side, StepReport,
    StepStatistics,
};
use crate::error::{Error, Result};
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

/// What the device is given for a step.
pub(super) struct Prepared {
    /// Its micro-batches, their rows weighted.
    pub(super) batches: Vec<Batch>,
    pub(super) dropout: Option<DropoutStep>,
}

/// A step that was issued to the device and not heard of yet.
pub(super) struct Issued {
    pub(super) of: Prepared,
    /// What each run gave.
    runs: Vec<Given>,
    /// Runs that gave examples.
    sharing_runs: usize,
}

#[derive(Clone, Copy, Default)]
struct Given {
    tokens: usize,
    attention_rows: usize,
}

/// What a step came to for one run.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    /// Mean over its label tokens of the objective, which is cross entropy unless it is smoothed.
    pub(super) loss: f64,
    /// Mean over its attention rows of -sum_j a_j ln a_j; `None` without a scorer.
    pub(super) attention_entropy: Option<f64>,
    /// Its source and target tokens.
    pub(super) tokens: usize,
    pub(super) gradient_norm: f64,
    /// Runs that had examples in the step, this one among them.
    pub(super) sharing_runs: usize,
    /// Whether the run took the step: its loss and its gradient were finite, and those of every step before it.
    pub(super) applied: bool,
}

/// Packs a step: all micro-batches, in each the next examples of every run.
///
/// # Errors
/// Those of packing a batch and of the ranks.
pub(super) fn prepare<B: Backend>(
    frozen: &Frozen<'_, B>,
    mixture: &Mixture<B>,
    shared: &Shared,
    parts: &[RunPart],
) -> Result<Prepared> {
    let ranks = shared.ranks.as_ref();
    let batches = pack(frozen, mixture, shared, parts)?;
    let own_tokens = |run| batches.iter().map(|batch| batch.label_tokens(run)).sum::<usize>();
    // Whole numbers below 2^53, which f64 adds up exactly.
    let mut label_tokens: Vec<f64> = (0..parts.len()).map(|run| own_tokens(run) as f64).collect();
    ranks.sum(&mut label_tokens)?;
    let label_tokens: Vec<usize> = label_tokens.into_iter().map(|tokens| tokens as usize).collect();
    let weighted = |batch: Batch| {
        let weights = label_weights(&batch, &label_tokens);
        batch.weighted(weights).map(|batch| batch.with_objective(shared.objective))
    };
    let batches = batches.into_iter().map(weighted).collect::<Result<Vec<Batch>>>()?;
    Ok(Prepared { batches, dropout: DropoutStep::new(shared.dropout, shared.step, &shared.seeds) })
}

/// Issues a step: its micro-batches, then every run's update. With one rank nothing is waited for.
///
/// # Errors
/// Those of [`prepare`] and of the device.
pub(super) fn issue<B: Backend>(
    frozen: &Frozen<'_, B>,
    mixture: &Mixture<B>,
    state: &mut B::State,
    graph_cache: &mut B::GraphCache,
    shared: &Shared,
    parts: &[RunPart],
) -> Result<Issued> {
    let (backend, ranks) = (frozen.backend, shared.ranks.as_ref());
    let of = prepare(frozen, mixture, shared, parts)?;
    let Prepared { batches, dropout } = &of;
    let schedule: Vec<OptimizerStep> = parts.iter().map(|part| part.optimizer).collect();
    let is_alone = ranks.count() == 1;
    let mut runs = vec![Given::default(); parts.len()];
    for (index, batch) in batches.iter().enumerate() {
        let is_last = is_alone && index + 1 == batches.len();
        let last = is_last.then_some(schedule.as_slice());
        let micro = MicroBatch { batch, dropout: dropout.as_ref(), first: index == 0, last };
        frozen.model.train(backend, mixture, state, graph_cache, &micro)?;
        for b in 0..batch.examples() {
            let given = &mut runs[batch.run(b)];
            given.tokens += batch.source(b).len() + batch.range(Side::Decoder, b).len();
            given.attention_rows += mixture.mixing.attention_rows(batch.prompt_length());
        }
    }
    if batches.is_empty() {
        backend.begin_step(state)?;
    }
    if !is_alone {
        add_up_ranks(backend, state, ranks, &mut runs)?;
    }
    if !is_alone || batches.is_empty() {
        backend.optimizer_step(state, &schedule)?;
    }
    let sharing_runs = parts.iter().filter(|part| !part.examples.is_empty()).count();
    Ok(Issued { of, runs, sharing_runs })
}

/// Waits for the steps that were issued since the last call: what each of them came to, a run a place.
///
/// # Errors
/// Those of the device.
pub(super) fn drain<B: Backend>(
    backend: &B,
    state: &mut B::State,
    issued: &[Issued],
) -> Result<Vec<Vec<Taken>>> {
    let reports = backend.reports(state)?;
    if reports.len() != issued.len() {
        let found = format!("{} of {} steps", reports.len(), issued.len());
        return Err(Error::device("report its steps", found, "this is a defect of promptmix: report it"));
    }
    let taken = |report: &StepReport, given: &Given, sharing_runs| {
        let rows = given.attention_rows;
        Taken {
            loss: report.statistics.loss,
            attention_entropy: (rows > 0).then(|| report.statistics.entropy / rows as f64),
            tokens: given.tokens,
            gradient_norm: report.gradient_norm,
            sharing_runs,
            applied: report.applied,
        }
    };
    let of_step = |(reports, issued): (&Vec<StepReport>, &Issued)| {
        let runs = reports.iter().zip(&issued.runs);
        runs.map(|(report, given)| taken(report, given, issued.sharing_runs)).collect()
    };
    Ok(reports.iter().zip(issued).map(of_step).collect())
}

/// Adds up over all ranks the gradient and what is told of the step, in one call.
fn add_up_ranks<B: Backend>(
    backend: &B,
    state: &mut B::State,
    ranks: &dyn Ranks,
    runs: &mut [Given],
) -> Result<()> {
    let mut values = backend.read_gradient(state)?;
    let gradient = values.len();
    for (sums, given) in backend.read_statistics(state)?.iter().zip(&*runs) {
        values.extend([sums.loss, given.tokens as f64, sums.entropy, given.attention_rows as f64]);
    }
    ranks.sum(&mut values)?;
    backend.write_gradient(state, &values[..gradient])?;
    let mut statistics = Vec::with_capacity(runs.len());
    for (given, told) in runs.iter_mut().zip(values[gradient..].chunks_exact(4)) {
        *given = Given { tokens: told[1] as usize, attention_rows: told[3] as usize };
        statistics.push(StepStatistics { loss: told[0], entropy: told[2] });
    }
    backend.write_statistics(state, &statistics)
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
