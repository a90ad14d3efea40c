//! One run: steps, validation, best and last, early stop.

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use super::initial::{self, Start};
use super::log::{Monitor, StepRecord, ValidationRecord};
use super::ranks::{Alone, Ranks};
use super::run_folder::{Checkpoint, ExampleRecord, LastState, RunFolder};
use super::schedule::factor;
use super::step::{self, RunPart, Shared, TakenPart};
use super::task;
use crate::backend::{Backend, Batch, DropoutStep, Example, Group, Mixing, OptimizerStep, StateLayout};
use crate::config::{Method, RunConfig};
use crate::data::{Batches, ExampleSettings, Examples, FewShot, Part, Split, Splits};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, Evaluator};
use crate::model::{Frozen, Mixture, Pass};
use crate::prompts::{Prompt, PromptMetadata};
use crate::tasks::{Purpose, Task};

/// Epsilon of the scorer's LayerNorm.
const LAYER_NORM_EPSILON: f64 = 1e-5;
/// Examples of a validation batch: forward alone keeps little, so it may be larger than a training batch.
const EVALUATION_BATCH: usize = 64;
/// Validation examples that are written down at the best step, and the tokens of each.
const EXAMPLE_RECORDS: usize = 64;
const EXAMPLE_RECORD_TOKENS: usize = 48;

/// A run that is ready to take steps.
pub struct Trainer<'a, B: Backend> {
    frozen: &'a Frozen<'a, B>,
    config: RunConfig,
    task: Task,
    training: Examples,
    validation: Examples,
    longest_target: usize,
    mixture: Mixture<B>,
    state: B::State,
    batches: Batches,
    steps: u64,
    warmup: u64,
    checkpoint: Checkpoint,
    best: Vec<f64>,
    best_examples: Vec<ExampleRecord>,
    recorder: B::Recorder,
    ranks: Rc<dyn Ranks>,
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
    /// Whether patience ended the run.
    pub stopped_early: bool,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// Reads data and prompts and sets up the state, by `config`. `monitor` hears how many rows were truncated and
    /// what else is worth knowing.
    ///
    /// # Errors
    /// Those of the settings, the data and the prompts.
    pub fn new(frozen: &'a Frozen<'a, B>, config: &RunConfig, monitor: &mut dyn Monitor) -> Result<Self> {
        config.check()?;
        let task = task(config)?;
        let tokenizer = &frozen.tokenizer;
        let encode = |text: &str| tokenizer.encode(text);
        let longest_target = match config.max_target_length {
            Some(length) => length,
            None => task.longest_target(encode)?,
        };
        let splits = Splits::open(&config.data, task.split, config.split_validation_test)?;
        let training_rows = match config.few_shot {
            Some(shots) => {
                let few = FewShot { shots, class_balanced: config.class_balanced, seed: config.data_seed() };
                few.draw(splits.get(Split::Train)?, &task)?
            }
            None => splits.get(Split::Train)?.clone(),
        };
        let load = |part: &Part, purpose, most: Option<usize>| {
            let mut settings = ExampleSettings::new(config.max_source_length, longest_target, purpose);
            settings.max_rows = most;
            Examples::load(part, &task, &encode, &settings)
        };
        let training = load(&training_rows, Purpose::Training, None)?;
        let validation = load(splits.get(Split::Validation)?, Purpose::Evaluation, config.validation_rows)?;
        monitor.note(&format!("training: {}", training.counts()));
        monitor.note(&format!("validation: {}", validation.counts()));

        let sources = load_sources(frozen, config)?;
        let mixture = mixture(frozen, config, &sources)?;
        let values = initial_values(frozen, config, &task, &mixture.layout, &sources)?;
        let state = frozen.backend.state(&mixture.layout, &values, 1);
        let batches = Batches::new(training.len(), config.batch_size * config.accumulate, config.seed)?;
        let steps = config.steps(batches.steps_per_epoch());
        let warmup = config.warmup(steps);
        if steps <= warmup {
            monitor.note(&format!(
                "the run's {steps} steps all lie within its warm-up of {warmup}: the learning rate never reaches its \
                 peak; give --warmup or more steps"
            ));
        }
        Ok(Self {
            frozen,
            config: config.clone(),
            task,
            training,
            validation,
            longest_target,
            mixture,
            state,
            batches,
            steps,
            warmup,
            checkpoint: Checkpoint::default(),
            best: values,
            best_examples: Vec::new(),
            recorder: B::Recorder::default(),
            ranks: Rc::new(Alone),
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
    /// If the checkpoint is malformed, damaged or of another state, or missing though the run has taken steps.
    pub fn resume(&mut self, folder: &Path) -> Result<()> {
        let Some(last) = RunFolder::load_last(folder, self.mixture.layout.len())? else { return Ok(()) };
        let [values, first, second] = &last.state;
        self.frozen.backend.write_state(&mut self.state, [values, first, second], &[last.checkpoint.updates]);
        self.batches.seek(last.checkpoint.step);
        self.best = last.best;
        self.checkpoint = last.checkpoint;
        Ok(())
    }

    /// The task.
    pub fn task(&self) -> &Task {
        &self.task
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
    pub fn parameters(&self) -> Vec<f64> {
        let [values, ..] = self.frozen.backend.read_state(&self.state);
        values
    }

    /// The parameters of the best validation so far.
    pub fn best_parameters(&self) -> &[f64] {
        &self.best
    }

    /// The best target prompt as one that other runs can use; `None` without a target.
    ///
    /// # Errors
    /// If its numbers cannot make a prompt.
    pub fn best_prompt(&self) -> Result<Option<Prompt>> {
        let Some(range) = self.mixture.layout.target_prompt(0, 0) else { return Ok(None) };
        let layout = &self.mixture.layout;
        let values = self.best[range].iter().map(|&value| value as f32).collect();
        let best = self.checkpoint.best;
        let metric = self.task.metrics.first();
        let metadata = PromptMetadata {
            task: Some(self.task.name.clone()),
            model_sha256: Some(self.frozen.model_hash.clone()),
            method: Some(method_name(self.config.method).into()),
            steps: best.map(|(_, step)| step),
            learning_rate: Some(self.config.learning_rate),
            seed: Some(self.config.seed),
            metric: metric.zip(best).map(|(metric, (value, _))| (metric.to_string(), value)),
            ..PromptMetadata::default()
        };
        let prompt = Prompt::new(&self.task.name, values, layout.prompt_length, layout.width, metadata)?;
        Ok(Some(prompt))
    }

    /// Takes all steps that are left, validating, logging and saving on the way.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with step and tensor if a loss or gradient is not finite; those of writing the folder.
    pub fn run(&mut self, mut folder: Option<&mut RunFolder>, monitor: &mut dyn Monitor) -> Result<Outcome> {
        self.begin(folder.as_deref_mut())?;
        while !self.is_done() {
            let record = self.step()?;
            self.finish_step(&record, folder.as_deref_mut(), monitor)?;
        }
        Ok(self.outcome())
    }

    /// Makes the folder hold what the run can go on from, before it goes on.
    pub(super) fn begin(&self, folder: Option<&mut RunFolder>) -> Result<()> {
        let Some(folder) = folder else { return Ok(()) };
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
        let every = self.config.validate_every.unwrap_or_else(|| self.batches.steps_per_epoch());
        step.is_multiple_of(every) || step == self.steps
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
            let Shared { step, dropout, pooled_width, .. } = trainer.shared();
            (step, dropout.to_bits(), pooled_width, trainer.config.sources.clone())
        };
        self.mixture.mixing == other.mixture.mixing
            && self.mixture.layout == other.mixture.layout
            && key(self) == key(other)
    }

    /// Parameters and moments, flat, and the updates they have had.
    pub(super) fn full_state(&self) -> ([Vec<f64>; 3], u64) {
        (self.frozen.backend.read_state(&self.state), self.checkpoint.updates)
    }

    /// Takes over what a stack's step made of this run's parameters and moments.
    pub(super) fn set_state(&mut self, [values, first, second]: [&[f64]; 3]) {
        let updates = [self.checkpoint.updates];
        self.frozen.backend.write_state(&mut self.state, [values, first, second], &updates);
    }

    pub(super) fn outcome(&self) -> Outcome {
        let (best, best_step) = self.checkpoint.best.unwrap_or((f64::NAN, 0));
        let stopped_early = self.checkpoint.step < self.steps && self.is_out_of_patience();
        Outcome { steps: self.checkpoint.step, best, best_step, trained: self.trained(), stopped_early }
    }

    fn save_best(&self, folder: &RunFolder) -> Result<()> {
        let step = self.checkpoint.best.map_or(0, |(_, step)| step);
        folder.save_best(&self.mixture.layout, &self.best, step)?;
        match self.best_prompt()? {
            Some(prompt) => prompt.save(&folder.path().join("prompt.safetensors")),
            None => Ok(()),
        }
    }

    fn save_last(&self, folder: &RunFolder) -> Result<()> {
        folder.save_last(&LastState {
            state: self.frozen.backend.read_state(&self.state),
            best: self.best.clone(),
            checkpoint: self.checkpoint.clone(),
        })
    }

    /// One optimizer step: all its micro-batches, then the update.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if the loss or the gradient is not finite; the state is then as before the step.
    pub fn step(&mut self) -> Result<StepRecord> {
        let started = Instant::now();
        let part = self.next_part(0)?;
        let shared = self.shared();
        let (state, recorder) = (&mut self.state, &mut self.recorder);
        let taken =
            step::take(self.frozen, &self.mixture, state, recorder, &shared, std::slice::from_ref(&part))?;
        if !taken.parts[0].applied() {
            return Err(self.not_finite(part.step + 1, &taken.batches, taken.dropout.as_ref()));
        }
        Ok(self.record(&part, &taken.parts[0], started.elapsed().as_secs_f64()))
    }

    /// What this run, as number `run` of a stack, gives to the next step.
    pub(super) fn next_part(&mut self, run: u32) -> Result<RunPart> {
        let Some(next) = self.batches.next() else {
            return Err(Error::setting("steps", "a run that goes on", "its end", ""));
        };
        let factor = factor(self.config.schedule, next.step, self.warmup, self.steps);
        let mut optimizer = OptimizerStep::new(
            self.config.learning_rate * factor,
            self.config.scorer_learning_rate() * factor,
        );
        optimizer.weight_decay = self.config.weight_decay();
        optimizer.clip_norm = if self.config.clip > 0.0 { self.config.clip } else { f64::INFINITY };
        let examples = next.indices.iter().enumerate().map(|(position, &index)| Example {
            source: self.training.source(index as usize),
            target: self.training.target(index as usize),
            index: position as u32,
            run,
            ..Example::default()
        });
        let examples = examples.collect();
        let batch_size = self.config.batch_size;
        Ok(RunPart { step: next.step, epoch: next.epoch, examples, batch_size, optimizer })
    }

    /// What all runs of a step have in common.
    pub(super) fn shared(&self) -> Shared {
        Shared {
            step: self.checkpoint.step,
            dropout: self.config.dropout.unwrap_or(f64::from(self.frozen.model.config().dropout_rate)),
            seeds: vec![self.config.seed],
            pooled_width: self.pooled_width(),
            ranks: self.ranks.clone(),
        }
    }

    /// Counts a step that was taken.
    pub(super) fn record(&mut self, part: &RunPart, taken: &TakenPart, seconds: f64) -> StepRecord {
        self.checkpoint.step = part.step + 1;
        self.checkpoint.updates += 1;
        StepRecord {
            step: part.step + 1,
            steps: self.steps,
            epoch: part.epoch + 1,
            loss: taken.loss,
            gradient_norm: taken.report.map_or(f64::NAN, |report| report.gradient_norm),
            learning_rate: part.optimizer.prompt_learning_rate,
            scorer_learning_rate: part.optimizer.scorer_learning_rate,
            milliseconds: seconds * 1e3,
            tokens_per_second: taken.tokens as f64 / seconds,
            attention_entropy: taken.attention_entropy,
        }
    }

    /// Answers the validation rows with the current state, and remembers it if it is the best so far.
    ///
    /// # Errors
    /// Those of evaluation.
    pub fn validate(&mut self, monitor: &mut dyn Monitor) -> Result<ValidationRecord> {
        let examples = self.validation.len();
        let evaluation = self.evaluator().evaluate(&self.state, &self.validation, &mut |done| {
            monitor.validating(done, examples);
        })?;
        let mean = evaluation.scores.mean().unwrap_or(f64::NAN);
        // The first validation counts even where its metric is not defined: there must be a best.
        let best = self.checkpoint.best.is_none_or(|(best, _)| mean > best || best.is_nan());
        if best {
            self.checkpoint.best = Some((mean, self.checkpoint.step));
            self.checkpoint.without_improvement = 0;
            self.best = self.parameters();
            self.best_examples = self.example_records(&evaluation)?;
        } else {
            self.checkpoint.without_improvement += 1;
        }
        let metrics = &evaluation.scores.values;
        Ok(ValidationRecord {
            step: self.checkpoint.step,
            metrics: metrics.iter().map(|(metric, value)| (metric.to_string(), *value)).collect(),
            mean,
            best,
            attention: evaluation.mean_attention(),
            invalid: evaluation.scores.invalid,
        })
    }

    /// What was said to the first validation examples.
    fn example_records(&self, evaluation: &Evaluation) -> Result<Vec<ExampleRecord>> {
        let answers = evaluation.answers.iter().zip(&evaluation.attention).take(EXAMPLE_RECORDS);
        answers
            .enumerate()
            .map(|(example, (prediction, attention))| {
                let mut ids = self.validation.source(example);
                ids.truncate(EXAMPLE_RECORD_TOKENS);
                Ok(ExampleRecord {
                    example,
                    source: self.frozen.tokenizer.decode(&ids)?,
                    prediction: prediction.clone(),
                    attention: attention.clone(),
                })
            })
            .collect()
    }

    /// Answers `split` of the run's data with the best parameters so far, or with `parameters`.
    ///
    /// # Errors
    /// Those of the data and of evaluation.
    pub fn evaluate(
        &self,
        split: Split,
        parameters: Option<&[f64]>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Evaluation> {
        let splits = Splits::open(&self.config.data, self.task.split, self.config.split_validation_test)?;
        let settings =
            ExampleSettings::new(self.config.max_source_length, self.longest_target, Purpose::Evaluation);
        let tokenizer = &self.frozen.tokenizer;
        let encode = |text: &str| tokenizer.encode(text);
        let examples = Examples::load(splits.get(split)?, &self.task, &encode, &settings)?;
        let values = parameters.unwrap_or(&self.best);
        let state = self.frozen.backend.state(&self.mixture.layout, values, 1);
        self.evaluator().evaluate(&state, &examples, progress)
    }

    /// Puts the trainer's settings to work on answers.
    pub fn evaluator(&self) -> Evaluator<'_, B> {
        Evaluator {
            frozen: self.frozen,
            mixture: &self.mixture,
            task: &self.task,
            decoding: self.config.decoding,
            batch_size: EVALUATION_BATCH,
            longest_target: self.longest_target,
            pooled_width: self.pooled_width(),
        }
    }

    fn pooled_width(&self) -> Option<usize> {
        self.config.pools_padding().then_some(self.config.max_source_length)
    }

    /// Runs the step's forward again, looking at every tensor, to name the first that is not finite.
    fn not_finite(&self, step: u64, batches: &[Batch], dropout: Option<&DropoutStep>) -> Error {
        let backend = self.frozen.backend;
        let values = self.parameters();
        let parameter = self
            .mixture
            .layout
            .segments()
            .iter()
            .find(|segment| values[segment.range.clone()].iter().any(|value| !value.is_finite()));
        let mut first = parameter.map(|segment| format!("the parameter {}", segment.name));
        for batch in batches {
            let mut observe = |name: &str, rows: &B::Rows| {
                if first.is_none() && !backend.is_finite(rows) {
                    first = Some(format!("the {name}"));
                }
            };
            let pass = Pass { dropout, keep: false, observe: Some(&mut observe) };
            let tokens = [batch.label_tokens(0)];
            let loss = self.frozen.model.loss(backend, &self.mixture, &self.state, batch, &tokens, pass);
            if first.is_none() && loss.per_run.iter().any(|loss| !loss.is_finite()) {
                first = Some("the loss".into());
            }
        }
        let gradient = backend.read_gradient(&self.state);
        let tensor = first.unwrap_or_else(|| {
            let segments = self.mixture.layout.segments().iter();
            let broken = segments
                .filter(|segment| gradient[segment.range.clone()].iter().any(|value| !value.is_finite()));
            let names: Vec<&str> = broken.map(|segment| segment.name).collect();
            format!("the gradient of {}", names.join(", "))
        });
        let advice = "lower --learning-rate, or set --clip; the last checkpoint is as it was";
        Error::NonFinite { step, tensor, advice: advice.into() }
    }
}

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Attempt => "attempt",
        Method::PromptTuning => "prompt-tuning",
        Method::Spot => "spot",
    }
}

/// The source prompts of `config`, which must fit the model and have its prompt length.
pub(super) fn load_sources<B: Backend>(frozen: &Frozen<'_, B>, config: &RunConfig) -> Result<Vec<Prompt>> {
    let width = frozen.model.config().d_model;
    let sources = if config.sources.is_empty() {
        Vec::new()
    } else {
        crate::prompts::load_sources(&config.sources, width)?
    };
    for (source, path) in sources.iter().zip(&config.sources) {
        source.check_fits(width, Some(&frozen.model_hash))?;
        if source.length() != config.prompt_length {
            return Err(Error::setting(
                "--prompt-length",
                format!("{}, the length of {}", source.length(), path.display()),
                config.prompt_length.to_string(),
                "sources and target prompt are mixed row by row and must be of one length",
            ));
        }
    }
    Ok(sources)
}

/// The mixture that `config` describes, its sources on the device.
pub(super) fn mixture<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    sources: &[Prompt],
) -> Result<Mixture<B>> {
    let width = frozen.model.config().d_model;
    let mixes = config.method == Method::Attempt;
    let mixing = Mixing {
        scorer: mixes.then_some(config.scorer),
        temperature: initial::temperature(config, width),
        without_target: mixes && config.without_target,
        layer_norm_epsilon: LAYER_NORM_EPSILON,
    };
    let layout = StateLayout::new(
        &mixing,
        1,
        config.prompt_length,
        width,
        config.rank,
        mixes && config.learn_temperature,
    )
    .freezing(|segment| {
        let norm = segment.name.starts_with("norm_") && !config.trains_layer_norm();
        norm || (config.freeze_scorer && segment.group == Group::Scorer)
    });
    let on_device = if mixes {
        let values: Vec<f32> = sources.iter().flat_map(|source| source.values()).copied().collect();
        Some(frozen.backend.sources(&values, sources.len(), config.prompt_length, width))
    } else {
        None
    };
    Ok(Mixture { mixing, sources: on_device, source_count: if mixes { sources.len() } else { 0 }, layout })
}

fn initial_values<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    task: &Task,
    layout: &StateLayout,
    sources: &[Prompt],
) -> Result<Vec<f64>> {
    let width = frozen.model.config().d_model;
    let initial_prompt = match &config.initial_prompt {
        Some(path) => {
            let prompt = Prompt::load(path)?;
            prompt.check_fits(width, Some(&frozen.model_hash))?;
            if prompt.length() != config.prompt_length {
                return Err(Error::setting(
                    "--initial-prompt",
                    format!("a prompt of {} rows", config.prompt_length),
                    format!("{} rows in {}", prompt.length(), path.display()),
                    "set --prompt-length to match",
                ));
            }
            Some(prompt)
        }
        None => None,
    };
    let mut label_ids = Vec::new();
    for label in task.labels().unwrap_or_default() {
        label_ids.extend(frozen.tokenizer.encode_without_eos(&label)?);
    }
    let start = Start {
        embedding: &|row| frozen.backend.weight_row(frozen.model.embedding(), row),
        vocabulary: frozen.model.config().vocab_size.min(frozen.tokenizer.vocabulary_size()),
        label_ids: &label_ids,
        sources,
        initial_prompt: initial_prompt.as_ref(),
    };
    initial::state(config, layout, &start)
}
