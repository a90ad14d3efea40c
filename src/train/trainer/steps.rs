//! The loop: steps taken, logged and saved, up to the last or to the end of patience.

use std::time::Instant;

use super::{Outcome, Trainer};
use crate::backend::{Backend, Example, OptimizerStep, Scorer};
use crate::error::{Error, Result};
use crate::prompts::Prompt;
use crate::train::log::{Monitor, StepRecord};
use crate::train::manifest::{Beginning, texts_sha256};
use crate::train::run_folder::{LastState, RunFolder};
use crate::train::schedule::factor;
use crate::train::step::{self, RunPart, Taken};
use crate::train::trained_on::TrainedOn;

impl<B: Backend> Trainer<'_, B> {
    /// Takes all steps that are left, validating, logging and saving on the way.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with step and tensor if a loss or gradient is not finite; [`Error::Interrupted`] after a step
    /// after which `monitor` says that the run ends; those of the device and of writing the folder.
    pub fn run(&mut self, mut folder: Option<&mut RunFolder>, monitor: &mut dyn Monitor) -> Result<Outcome> {
        self.begin(folder.as_deref_mut())?;
        while !self.is_done() {
            let (records, failure) = self.run_ahead(self.frozen.backend.steps_ahead())?;
            for record in &records {
                self.finish_step(record, folder.as_deref_mut(), monitor)?;
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
            if !self.is_done() && monitor.ends() {
                if let Some(folder) = folder.as_deref() {
                    self.save_last(folder)?;
                }
                return Err(self.interrupted("--resume goes on from there"));
            }
        }
        Ok(self.outcome())
    }

    /// The end that was asked for; `next` says how to go on.
    pub(in crate::train) fn interrupted(&self, next: &str) -> Error {
        let after = format!("step {} of {}", self.checkpoint.step, self.steps);
        Error::Interrupted { after, next: next.into() }
    }

    /// Makes the folder hold what the run can go on from, before it goes on.
    pub(in crate::train) fn begin(&self, folder: Option<&mut RunFolder>) -> Result<()> {
        let Some(folder) = folder else { return Ok(()) };
        let beginning = Beginning {
            trained_numbers: self.trained(),
            effective: self.effective(),
            trained_on: (!self.is_done()).then(|| TrainedOn::of(self.frozen.backend)),
            sources_sha256: self.sources_sha256(),
            tasks_sha256: self.tasks().map(texts_sha256).collect(),
        };
        folder.record(beginning, &self.config)?;
        if self.checkpoint.best.is_some() {
            // A kill may have come between the best's files and the checkpoint.
            self.save_best(folder)?;
        }
        self.save_last(folder)
    }

    /// SHA-256 of each source prompt's numbers.
    pub(in crate::train) fn sources_sha256(&self) -> Vec<String> {
        self.sources.iter().map(Prompt::sha256).collect()
    }

    /// Whether all steps are taken, or patience is at its end.
    pub(in crate::train) fn is_done(&self) -> bool {
        self.checkpoint.step >= self.steps || self.is_out_of_patience()
    }

    /// Whether so many validations brought no better one that `patience` ends the run. Such a run takes no further step, however
    /// long it is made.
    pub fn is_out_of_patience(&self) -> bool {
        self.config.patience.is_some_and(|patience| self.checkpoint.without_improvement >= patience)
    }

    /// Logs a step, and validates and saves where it is time to.
    pub(in crate::train) fn finish_step(
        &mut self,
        record: &StepRecord,
        mut folder: Option<&mut RunFolder>,
        monitor: &mut dyn Monitor,
    ) -> Result<()> {
        monitor.step(record);
        if let Some(folder) = folder.as_deref_mut() {
            folder.step(record)?;
        }
        let validates = self.validates_after(record.step);
        if validates {
            let record = self.validate(monitor)?;
            monitor.validated(&record);
            let reads_input = self.mixture.mixing.scorer.is_some_and(Scorer::reads_input);
            if self.is_done() && reads_input && record.spread.is_constant() {
                monitor.note(&format!("warning: {}", record.spread.constant_warning(&self.config)));
            }
            if let Some(folder) = folder.as_deref_mut() {
                folder.validation(&record)?;
                if record.best {
                    self.save_best(folder)?;
                    folder.save_examples(&self.best_examples)?;
                }
            }
        }
        match folder {
            Some(folder) if validates || self.saves_after(record.step) => self.save_last(folder),
            _ => Ok(()),
        }
    }

    fn validates_after(&self, step: u64) -> bool {
        step.is_multiple_of(self.validation_interval()) || step == self.steps
    }

    fn saves_after(&self, step: u64) -> bool {
        self.config.save_every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// Whether the state is looked at after `step`.
    pub(in crate::train) fn reads_state_after(&self, step: u64) -> bool {
        self.validates_after(step) || self.saves_after(step)
    }

    pub(in crate::train) fn outcome(&self) -> Outcome {
        let (best, best_step) = self.checkpoint.best.unwrap_or((f64::NAN, 0));
        let stopped_early = self.checkpoint.step < self.steps && self.is_out_of_patience();
        Outcome {
            steps: self.checkpoint.step,
            best,
            undefined: self.checkpoint.best_undefined.clone(),
            best_step,
            trained: self.trained(),
            rows: self.training_rows(),
            stopped_early,
        }
    }

    pub(in crate::train) fn save_last(&self, folder: &RunFolder) -> Result<()> {
        folder.save_last(&LastState {
            state: self.frozen.backend.read_state(&self.state)?,
            best: self.best.clone(),
            checkpoint: self.checkpoint.clone(),
        })
    }

    /// One optimizer step: all its micro-batches, then the update.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if the loss or the gradient is not finite; the state is then as before the step. Those of the
    /// device.
    pub fn step(&mut self) -> Result<StepRecord> {
        let (mut records, failure) = self.run_ahead(1)?;
        let nothing = || Error::setting("steps", "a run that goes on", "its end", "");
        records.pop().ok_or_else(|| failure.unwrap_or_else(nothing))
    }

    /// Issues at most `most` steps, up to the next after which the state is looked at, and then waits for what they came
    /// to. If one was not finite, the state is as before it, and the error comes with the records of those before.
    fn run_ahead(&mut self, most: usize) -> Result<(Vec<StepRecord>, Option<Error>)> {
        let started = Instant::now();
        // Ranks meet in every step.
        let most = if self.ranks.count() > 1 { 1 } else { most };
        let (mut parts, mut issued) = (Vec::new(), Vec::new());
        while issued.len() < most {
            let part = self.next_part(0)?;
            let shared = self.shared(part.step);
            let (state, graph_cache) = (&mut self.state, &mut self.graph_cache);
            let own = std::slice::from_ref(&part);
            issued.push(step::issue(self.frozen, &self.mixture, state, graph_cache, &shared, own)?);
            let step = part.step + 1;
            parts.push(part);
            if self.reads_state_after(step) {
                break;
            }
        }
        let taken = step::drain(self.frozen.backend, &mut self.state, &issued)?;
        let pace = Pace::of(started, taken.len(), taken.iter().map(|runs| runs[0].tokens).sum());
        let mut records = Vec::with_capacity(taken.len());
        for ((part, taken), issued) in parts.iter().zip(&taken).zip(&issued) {
            if !taken[0].applied {
                self.batches.seek(part.step);
                let failure = self.not_finite(part.step + 1, &issued.of).unwrap_or_else(|failed| failed);
                return Ok((records, Some(failure)));
            }
            records.push(self.record(part, &taken[0], pace));
        }
        Ok((records, None))
    }

    /// What this run, as number `run` of a stack, gives to the next step.
    pub(in crate::train) fn next_part(&mut self, run: u32) -> Result<RunPart> {
        let Some(next) = self.batches.next() else {
            return Err(Error::setting("steps", "a run that goes on", "its end", ""));
        };
        let factor = factor(self.config.lr_scheduler, next.step, self.warmup, self.steps);
        let mut optimizer = OptimizerStep::new(
            self.config.learning_rate * factor,
            self.config.scorer_learning_rate() * factor,
        );
        optimizer.weight_decay = self.config.weight_decay();
        optimizer.max_grad_norm =
            if self.config.max_grad_norm > 0.0 { self.config.max_grad_norm } else { f64::INFINITY };
        let examples = next.indices.iter().enumerate().map(|(position, &index)| {
            let (task, row) = self.batches.locate(index);
            let training = &self.tasks[task].training;
            Example {
                source: training.source(row),
                target: training.target(row),
                index: position as u32,
                run,
                target_prompt: task as u32,
            }
        });
        let examples = examples.collect();
        let batch_size = self.config.batch_size;
        Ok(RunPart { step: next.step, epoch: next.epoch, examples, batch_size, optimizer })
    }

    /// Counts a step that was taken.
    pub(in crate::train) fn record(&mut self, part: &RunPart, taken: &Taken, pace: Pace) -> StepRecord {
        self.checkpoint.step = part.step + 1;
        self.checkpoint.updates += 1;
        StepRecord {
            step: part.step + 1,
            steps: self.steps,
            epoch: part.epoch + 1,
            loss: taken.loss,
            gradient_norm: taken.gradient_norm,
            learning_rate: part.optimizer.prompt_learning_rate,
            scorer_learning_rate: part.optimizer.scorer_learning_rate,
            milliseconds: pace.milliseconds,
            sharing_runs: taken.sharing_runs,
            tokens_per_second: pace.tokens_per_second,
            attention_entropy: taken.attention_entropy,
        }
    }
}

/// How fast steps were that are timed as one: the device works on while the host is ahead of it.
#[derive(Clone, Copy)]
pub(in crate::train) struct Pace {
    milliseconds: f64,
    tokens_per_second: f64,
}

impl Pace {
    /// Of `steps` steps with so many tokens, begun at `started`.
    pub(in crate::train) fn of(started: Instant, steps: usize, tokens: usize) -> Self {
        let seconds = started.elapsed().as_secs_f64();
        Self { milliseconds: seconds * 1e3 / steps as f64, tokens_per_second: tokens as f64 / seconds }
    }
}
