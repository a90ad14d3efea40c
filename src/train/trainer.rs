//! One run: steps, validation, best and last, early stop.

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::log::{Monitor, StepRecord, TaskRecord, ValidationRecord};
use super::ranks::{Alone, Ranks};
use super::run_folder::{Checkpoint, ExampleRecord, LastState, RunFolder, hexadecimal};
use super::schedule::factor;
use super::setup::{initial_values, load_sources, mixture, prompt_names};
use super::step::{self, Issued, RunPart, Shared, Taken};
use super::task_data::{TaskData, split_examples};
use super::tasks;
use crate::backend::{Backend, Batch, DropoutStep, Example, MicroBatch, Objective, OptimizerStep, Scorer};
use crate::config::RunConfig;
use crate::data::{Batches, Examples, Split, data_of_tasks};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, Evaluator};
use crate::model::{self, Frozen, Mixture, Pass};
use crate::tasks::Task;

/// Examples of a validation batch: forward alone keeps little, so it may be larger than a training batch.
const EVALUATION_BATCH: usize = 64;

/// A run that is ready to take steps.
pub struct Trainer<'a, B: Backend> {
    pub(super) frozen: &'a Frozen<'a, B>,
    pub(super) config: RunConfig,
    /// One or more; the index of each is that of its target prompt.
    pub(super) tasks: Vec<TaskData>,
    pub(super) mixture: Mixture<B>,
    state: B::State,
    batches: Batches,
    steps: u64,
    warmup: u64,
    pub(super) checkpoint: Checkpoint,
    pub(super) best: Vec<f64>,
    best_examples: Vec<ExampleRecord>,
    recorder: B::Recorder,
    ranks: Rc<dyn Ranks>,
    /// What the mixture's weights belong to.
    prompts: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Steps taken.
    pub steps: u64,
    /// The best validation's mean metric.
    pub best: f64,
    /// The step it came behind.
    pub best_step: u64,
    /// Numbers that trained.
    pub trained: usize,
    /// Rows it learnt from, of each task.
    pub rows: Vec<usize>,
    /// Whether patience ended the run.
    pub stopped_early: bool,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// Reads data and prompts and sets up the state, by `config`. `monitor` hears how many rows were truncated and
    /// what else is worth knowing.
    ///
    /// # Errors
    /// Those of the settings, the data, the prompts and the device.
    pub fn new(frozen: &'a Frozen<'a, B>, config: &RunConfig, monitor: &mut dyn Monitor) -> Result<Self> {
        config.check()?;
        let described = tasks(config)?;
        let sources = load_sources(frozen, config)?;
        let mixture = mixture(frozen, config, &sources, described.len())?;
        let names: Vec<&str> = described.iter().map(|task| &task.name[..]).collect();
        let places = data_of_tasks(&config.data.to_string_lossy(), &names)?;
        let load = |(task, place)| TaskData::load(frozen, config, task, place, monitor);
        let tasks = described.into_iter().zip(places).map(load).collect::<Result<Vec<_>>>()?;
        let values = initial_values(frozen, config, &tasks, &mixture.layout, &sources)?;
        let mut state = frozen.backend.state(&mixture.layout, &values, 1)?;
        foresee(frozen, config, &tasks, &mixture, &mut state)?;
        let sizes: Vec<usize> = tasks.iter().map(|data| data.training.len()).collect();
        let batch_size = config.batch_size * config.gradient_accumulation_steps;
        let batches = Batches::mixed(&sizes, &config.shares(&sizes), batch_size, config.seed)?;
        let mut hasher = Sha256::new();
        tasks.iter().for_each(|data| data.feed(&mut hasher));
        let checkpoint = Checkpoint { data_sha256: Some(hexadecimal(hasher)), ..Checkpoint::default() };
        let prompts = prompt_names(config, &mixture);
        let steps = config.steps(batches.steps_per_epoch());
        let warmup = config.warmup_steps(steps);
        if steps <= warmup {
            monitor.note(&format!(
                "the run's {steps} steps all lie within its warm-up of {warmup}: the learning rate never reaches its \
                 peak; give --warmup-steps or more steps"
            ));
        }
        Ok(Self {
            frozen,
            config: config.clone(),
            tasks,
            mixture,
            state,
            batches,
            steps,
            warmup,
            checkpoint,
            best: values,
            best_examples: Vec::new(),
            recorder: B::Recorder::default(),
            ranks: Rc::new(Alone),
            prompts,
        })
    }

    /// Shares every step's rows out among `ranks`; each of them makes a trainer of equal settings.
    #[must_use]
    pub fn on_ranks(mut self, ranks: Rc<dyn Ranks>) -> Self {
        self.ranks = ranks;
        self
    }

    /// Goes on from the last checkpoint in `folder`, as if the run had never stopped; from the start if it was broken off
    /// before the first one.
    ///
    /// # Errors
    /// If the checkpoint is malformed, damaged, of another state or of other training rows, or missing though the run has
    /// taken steps; those of the device.
    pub fn resume(&mut self, folder: &Path) -> Result<()> {
        let Some(last) = RunFolder::load_last(folder, &self.mixture.layout)? else { return Ok(()) };
        if last.checkpoint.data_sha256.is_some() && last.checkpoint.data_sha256 != self.checkpoint.data_sha256
        {
            return Err(Error::setting(
                "--resume",
                "the training rows that the run began with",
                "others: the data changed, or its tokenizer",
                "put them back; or train anew on these, with --initial-prompt if the prompt is to go on",
            ));
        }
        let [values, first, second] = &last.state;
        self.frozen.backend.write_state(
            &mut self.state,
            [values, first, second],
            &[last.checkpoint.updates],
        )?;
        self.batches.seek(last.checkpoint.step);
        self.best = last.best;
        self.checkpoint = last.checkpoint;
        Ok(())
    }

    /// The tasks, in the order of their target prompts.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.iter().map(|data| &data.task)
    }

    /// SHA-256 of the frozen model.
    pub fn model_hash(&self) -> &str {
        &self.frozen.model_hash
    }

    /// Training examples of each task.
    pub fn training_rows(&self) -> Vec<usize> {
        self.tasks.iter().map(|data| data.training.len()).collect()
    }

    /// The mixture.
    pub fn mixture(&self) -> &Mixture<B> {
        &self.mixture
    }

    /// Numbers that train.
    pub fn trained(&self) -> usize {
        self.mixture.layout.trained()
    }

    /// Steps taken so far.
    pub fn step_count(&self) -> u64 {
        self.checkpoint.step
    }

    /// Steps still to take, unless patience ends the run before.
    pub fn steps_left(&self) -> u64 {
        self.steps.saturating_sub(self.checkpoint.step)
    }

    /// The current parameters, flat, by the mixture's layout.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn parameters(&self) -> Result<Vec<f64>> {
        self.frozen.backend.read_state(&self.state).map(|[values, ..]| values)
    }

    /// The parameters of the best validation so far.
    pub fn best_parameters(&self) -> &[f64] {
        &self.best
    }

    /// Takes all steps that are left, validating, logging and saving on the way.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with step and tensor if a loss or gradient is not finite; [`Error::Interrupted`] after a step
    /// behind which `monitor` says that the run ends; those of the device and of writing the folder.
    pub fn run(&mut self, mut folder: Option<&mut RunFolder>, monitor: &mut dyn Monitor) -> Result<Outcome> {
        self.begin(folder.as_deref_mut())?;
        while !self.is_done() {
            let (records, failure) = self.stretch(self.frozen.backend.steps_ahead())?;
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
    pub(super) fn interrupted(&self, next: &str) -> Error {
        let after = format!("step {} of {}", self.checkpoint.step, self.steps);
        Error::Interrupted { after, next: next.into() }
    }

    /// Makes the folder hold what the run can go on from, before it goes on.
    pub(super) fn begin(&self, folder: Option<&mut RunFolder>) -> Result<()> {
        let Some(folder) = folder else { return Ok(()) };
        folder.record(self.trained(), &self.config, &self.effective())?;
        if self.checkpoint.best.is_some() {
            // A kill may have come between the best's files and the checkpoint.
            self.save_best(folder)?;
        }
        self.save_last(folder)
    }

    /// Whether all steps are taken, or patience is at its end.
    pub(super) fn is_done(&self) -> bool {
        self.checkpoint.step >= self.steps || self.is_out_of_patience()
    }

    fn is_out_of_patience(&self) -> bool {
        self.config.patience.is_some_and(|patience| self.checkpoint.without_improvement >= patience)
    }

    /// Logs a step, and validates and saves where it is time to.
    pub(super) fn finish_step(
        &mut self,
        record: &StepRecord,
        mut folder: Option<&mut RunFolder>,
        monitor: &mut dyn Monitor,
    ) -> Result<()> {
        monitor.step(record);
        if let Some(folder) = folder.as_deref_mut() {
            folder.step(record)?;
        }
        let validates = self.validates_behind(record.step);
        if validates {
            let record = self.validate(monitor)?;
            monitor.validated(&record);
            let reads_input = self.mixture.mixing.scorer.is_some_and(Scorer::reads_input);
            if self.is_done() && reads_input && record.spread().is_constant() {
                monitor.note(&format!("warning: {}", record.spread().constant_warning()));
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
            Some(folder) if validates || self.saves_behind(record.step) => self.save_last(folder),
            _ => Ok(()),
        }
    }

    fn validates_behind(&self, step: u64) -> bool {
        step.is_multiple_of(self.validation_interval()) || step == self.steps
    }

    fn saves_behind(&self, step: u64) -> bool {
        self.config.save_every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// Whether the state is looked at behind `step`.
    pub(super) fn looks_behind(&self, step: u64) -> bool {
        self.validates_behind(step) || self.saves_behind(step)
    }

    /// Whether this run and `other` can take their next step in one batch: equal in all that is not stacked.
    pub(super) fn stacks_with(&self, other: &Self) -> bool {
        let key = |trainer: &Self| {
            let Shared { step, dropout, pooled_width, objective, .. } =
                trainer.shared(trainer.checkpoint.step);
            (step, dropout.to_bits(), pooled_width, objective, trainer.config.sources.clone())
        };
        self.mixture.mixing == other.mixture.mixing
            && self.mixture.layout == other.mixture.layout
            && key(self) == key(other)
    }

    /// Bytes that steps need on `examples` of this run's longest examples, shared by `runs` runs, and validation beside them.
    pub(super) fn needed_bytes(&self, state: &mut B::State, examples: usize, runs: usize) -> Result<usize> {
        needed_bytes(self.frozen, &self.config, &self.tasks, &self.mixture, state, examples, runs)
    }

    /// Parameters and moments, flat, and the updates they have had.
    pub(super) fn full_state(&self) -> Result<([Vec<f64>; 3], u64)> {
        Ok((self.frozen.backend.read_state(&self.state)?, self.checkpoint.updates))
    }

    /// Takes over what a stack's step made of this run's parameters and moments.
    pub(super) fn set_state(&mut self, [values, first, second]: [&[f64]; 3]) -> Result<()> {
        let updates = [self.checkpoint.updates];
        self.frozen.backend.write_state(&mut self.state, [values, first, second], &updates)
    }

    pub(super) fn outcome(&self) -> Outcome {
        let (best, best_step) = self.checkpoint.best.unwrap_or((f64::NAN, 0));
        let stopped_early = self.checkpoint.step < self.steps && self.is_out_of_patience();
        Outcome {
            steps: self.checkpoint.step,
            best,
            best_step,
            trained: self.trained(),
            rows: self.training_rows(),
            stopped_early,
        }
    }

    pub(super) fn save_last(&self, folder: &RunFolder) -> Result<()> {
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
        let (mut records, failure) = self.stretch(1)?;
        let nothing = || Error::setting("steps", "a run that goes on", "its end", "");
        records.pop().ok_or_else(|| failure.unwrap_or_else(nothing))
    }

    /// Issues at most `most` steps, up to the next behind which the state is looked at, and then waits for what they came
    /// to. If one was not finite, the state is as before it, and the error comes with the records of those before.
    fn stretch(&mut self, most: usize) -> Result<(Vec<StepRecord>, Option<Error>)> {
        let started = Instant::now();
        // Ranks meet in every step.
        let most = if self.ranks.count() > 1 { 1 } else { most };
        let (mut parts, mut issued) = (Vec::new(), Vec::new());
        while issued.len() < most {
            let part = self.next_part(0)?;
            let shared = self.shared(part.step);
            let (state, recorder) = (&mut self.state, &mut self.recorder);
            let own = std::slice::from_ref(&part);
            issued.push(step::issue(self.frozen, &self.mixture, state, recorder, &shared, own)?);
            let behind = part.step + 1;
            parts.push(part);
            if self.looks_behind(behind) {
                break;
            }
        }
        let taken = step::drain(self.frozen.backend, &mut self.state, &issued)?;
        let pace = Pace::of(started, taken.len(), taken.iter().map(|runs| runs[0].tokens).sum());
        let mut records = Vec::with_capacity(taken.len());
        for ((part, taken), issued) in parts.iter().zip(&taken).zip(&issued) {
            if !taken[0].applied {
                self.batches.seek(part.step);
                let failure = self.not_finite(part.step + 1, issued).unwrap_or_else(|failed| failed);
                return Ok((records, Some(failure)));
            }
            records.push(self.record(part, &taken[0], pace));
        }
        Ok((records, None))
    }

    /// What this run, as number `run` of a stack, gives to the next step.
    pub(super) fn next_part(&mut self, run: u32) -> Result<RunPart> {
        let Some(next) = self.batches.next() else {
            return Err(Error::setting("steps", "a run that goes on", "its end", ""));
        };
        let factor = factor(self.config.lr_scheduler, next.step, self.warmup, self.steps);
        let mut optimizer = OptimizerStep::new(
            self.config.learning_rate * factor,
            self.config.scorer_learning_rate() * factor,
        );
        optimizer.weight_decay = self.config.weight_decay();
        optimizer.clip_norm =
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

    /// What all runs of the step behind `step` others have in common.
    pub(super) fn shared(&self, step: u64) -> Shared {
        Shared {
            step,
            dropout: self.dropout(),
            seeds: vec![self.config.seed],
            pooled_width: self.pooled_width(),
            objective: Objective { label_smoothing: self.config.label_smoothing, z_loss: self.config.z_loss },
            ranks: self.ranks.clone(),
        }
    }

    fn dropout(&self) -> f64 {
        self.config.dropout.unwrap_or(f64::from(self.frozen.model.config().dropout_rate))
    }

    /// The settings as they work: what was left out has the value that holds for it.
    pub fn effective(&self) -> RunConfig {
        let config = &self.config;
        let mixes = self.mixture.mixing.scorer.is_some();
        let width = self.mixture.layout.width;
        RunConfig {
            steps: Some(self.steps),
            epochs: None,
            validate_every: Some(self.validation_interval()),
            warmup_steps: Some(self.warmup),
            weight_decay: Some(config.weight_decay()),
            scorer_learning_rate: mixes.then(|| config.scorer_learning_rate()),
            temperature: mixes.then(|| super::temperature(config, width)),
            standardize_inputs: mixes.then(|| config.standardizes_inputs()),
            dropout: Some(self.dropout()),
            prompt_init: Some(config.prompt_init()),
            data_seed: Some(config.data_seed()),
            splits: Some(config.split_source()),
            max_target_length: self.tasks.iter().map(|task| task.longest_target).max(),
            ..config.clone()
        }
    }

    fn validation_interval(&self) -> u64 {
        self.config.validate_every.unwrap_or_else(|| self.batches.steps_per_epoch())
    }

    /// Counts a step that was taken.
    pub(super) fn record(&mut self, part: &RunPart, taken: &Taken, pace: Pace) -> StepRecord {
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

    /// Answers the validation rows of every task with the current state, and remembers it if it is the best so far: the
    /// one whose mean over the tasks of the mean over their metrics is the highest.
    ///
    /// # Errors
    /// Those of evaluation.
    pub fn validate(&mut self, monitor: &mut dyn Monitor) -> Result<ValidationRecord> {
        let examples = self.tasks.iter().map(|data| data.validation.len()).sum();
        let mut evaluations = Vec::with_capacity(self.tasks.len());
        let mut before = 0;
        for (index, data) in self.tasks.iter().enumerate() {
            evaluations.push(self.evaluator(index).evaluate(&self.state, &data.validation, &mut |done| {
                monitor.validating(before + done, examples);
            })?);
            before += data.validation.len();
        }
        let records: Vec<TaskRecord> = self.tasks().zip(&evaluations).map(TaskRecord::new).collect();
        let mean = records.iter().map(|record| record.mean).sum::<f64>() / records.len() as f64;
        // The first validation counts even where its metric is not defined: there must be a best.
        let best = self.checkpoint.best.is_none_or(|(best, _)| mean > best || best.is_nan());
        if best {
            self.checkpoint.best = Some((mean, self.checkpoint.step));
            self.checkpoint.best_of_tasks = records.iter().map(|record| record.mean).collect();
            self.checkpoint.without_improvement = 0;
            self.best = self.parameters()?;
            self.best_examples.clear();
            for (index, evaluation) in evaluations.iter().enumerate() {
                let records = self.example_records(index, evaluation)?;
                self.best_examples.extend(records);
            }
        } else {
            self.checkpoint.without_improvement += 1;
        }
        Ok(ValidationRecord::new(self.checkpoint.step, mean, best, self.prompts.clone(), records))
    }

    /// Answers `split` of the first task's data with the best parameters so far, or with `parameters`; of the validation rows
    /// those that training validates on.
    ///
    /// # Errors
    /// Those of the data and of evaluation.
    pub fn evaluate(
        &self,
        split: Split,
        parameters: Option<&[f64]>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Evaluation> {
        self.evaluate_task(0, split, parameters, progress)
    }

    /// As [`evaluate`](Self::evaluate), of the task with this index.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn evaluate_task(
        &self,
        task: usize,
        split: Split,
        parameters: Option<&[f64]>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Evaluation> {
        let data = &self.tasks[task];
        let values = parameters.unwrap_or(&self.best);
        let state = self.frozen.backend.state(&self.mixture.layout, values, 1)?;
        if split == Split::Validation {
            return self.evaluator(task).evaluate(&state, &data.validation, progress);
        }
        let examples =
            split_examples(self.frozen, &self.config, &data.task, &data.place, split, data.longest_target)?;
        self.evaluator(task).evaluate(&state, &examples, progress)
    }

    /// Puts the trainer's settings to work on answers of the task with this index.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn evaluator(&self, task: usize) -> Evaluator<'_, B> {
        let data = &self.tasks[task];
        Evaluator {
            frozen: self.frozen,
            mixture: &self.mixture,
            task: &data.task,
            target_prompt: task as u32,
            decoding: self.config.decoding,
            batch_size: EVALUATION_BATCH,
            longest_target: data.longest_target,
            pooled_width: self.pooled_width(),
        }
    }

    fn pooled_width(&self) -> Option<usize> {
        self.config.pools_padding().then_some(self.config.max_source_length)
    }

    /// Runs the step again, looking at every tensor, to name the first that is not finite. The state is as before it.
    fn not_finite(&mut self, step: u64, issued: &Issued) -> Result<Error> {
        let (backend, model) = (self.frozen.backend, &self.frozen.model);
        let Issued { batches, dropout, .. } = issued;
        let dropout: Option<&DropoutStep> = dropout.as_ref();
        let values = self.parameters()?;
        let parameter = self
            .mixture
            .layout
            .segments()
            .iter()
            .find(|segment| values[segment.range.clone()].iter().any(|value| !value.is_finite()));
        let mut first = parameter.map(|segment| format!("the parameter {}", segment.name));
        for batch in batches {
            let mut observe = |name: &str, rows: &B::Rows| {
                if first.is_none() && !backend.is_finite(rows)? {
                    first = Some(format!("the {name}"));
                }
                Ok(())
            };
            let pass = Pass { dropout, keep: false, observe: Some(&mut observe) };
            let tokens = [batch.label_tokens(0)];
            let loss = model.loss(backend, &self.mixture, &self.state, batch, &tokens, pass)?;
            if first.is_none() && loss.per_run.iter().any(|loss| !loss.is_finite()) {
                first = Some("the loss".into());
            }
        }
        let tensor = match first {
            Some(first) => first,
            None => self.broken_gradient(batches, dropout)?,
        };
        let advice = "lower --learning-rate, or set --max-grad-norm; the last checkpoint is as it was";
        Ok(Error::NonFinite { step, tensor, advice: advice.into() })
    }

    /// The parts of the gradient that are not finite.
    fn broken_gradient(&mut self, batches: &[Batch], dropout: Option<&DropoutStep>) -> Result<String> {
        let (backend, model) = (self.frozen.backend, &self.frozen.model);
        backend.begin_step(&mut self.state)?;
        for batch in batches {
            model.issue(backend, &self.mixture, &mut self.state, batch, dropout)?;
        }
        let gradient = backend.read_gradient(&self.state)?;
        let segments = self.mixture.layout.segments().iter();
        let broken =
            segments.filter(|segment| gradient[segment.range.clone()].iter().any(|value| !value.is_finite()));
        let names: Vec<&str> = broken.map(|segment| segment.name).collect();
        Ok(if names.is_empty() {
            "the gradient".into()
        } else {
            format!("the gradient of {}", names.join(", "))
        })
    }
}

/// How fast a stretch of steps was, which are timed as one: the device works on while the host is ahead of it.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    milliseconds: f64,
    tokens_per_second: f64,
}

impl Pace {
    /// Of `steps` steps with so many tokens, begun at `started`.
    pub(super) fn of(started: Instant, steps: usize, tokens: usize) -> Self {
        let seconds = started.elapsed().as_secs_f64();
        Self { milliseconds: seconds * 1e3 / steps as f64, tokens_per_second: tokens as f64 / seconds }
    }
}

/// Fails if training on batches of the longest examples, and validation beside it, will not fit into the device's free
/// memory.
fn foresee<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    tasks: &[TaskData],
    mixture: &Mixture<B>,
    state: &mut B::State,
) -> Result<()> {
    let Some(free) = frozen.backend.free_bytes() else { return Ok(()) };
    model::foresee(free, config.batch_size, |examples| {
        needed_bytes(frozen, config, tasks, mixture, state, examples, 1)
    })
}

/// Bytes that steps on `examples` of the longest examples need, shared by `runs` runs, and validation beside them.
fn needed_bytes<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    tasks: &[TaskData],
    mixture: &Mixture<B>,
    state: &mut B::State,
    examples: usize,
    runs: usize,
) -> Result<usize> {
    let (backend, model) = (frozen.backend, &frozen.model);
    type Length = fn(&Examples, usize) -> usize;
    let longest = |of: &dyn Fn(&TaskData) -> &Examples, length: Length| {
        let of_task = |data| (0..of(data).len()).map(|row| length(of(data), row)).max();
        tasks.iter().filter_map(of_task).max().unwrap_or(1)
    };
    let batch = |examples, of: &dyn Fn(&TaskData) -> &Examples| {
        let (source, target) = (longest(of, Examples::source_length), longest(of, Examples::target_length));
        model::batch_of_lengths(examples, mixture.layout.prompt_length, source, target)
    };
    // Unrecorded work may hold a quarter more than it uses.
    let validation = batch(EVALUATION_BATCH, &|data| &data.validation)?;
    let validation = model.evaluation_bytes(backend, mixture, state, &validation)? / 4 * 5;
    let rate = config.dropout.unwrap_or(f64::from(model.config().dropout_rate));
    let dropout = DropoutStep::new(rate, 0, &vec![config.seed; runs]);
    let schedule = vec![OptimizerStep::new(0.0, 0.0); runs];
    let batch = batch(examples, &|data| &data.training)?;
    let micro = MicroBatch { batch: &batch, dropout: dropout.as_ref(), first: true, last: Some(&schedule) };
    let bytes = model.step_bytes(backend, mixture, state, &micro)? + validation;
    // A recorded shape is rounded up, and what it is told of is small.
    Ok(bytes + bytes / 64)
}
