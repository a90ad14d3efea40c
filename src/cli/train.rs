//! `promptmix train`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use clap::ValueEnum;
use serde_json::Value;

use super::device::{Device, on_device};
use super::progress::Shown;
use super::ranks;
use crate::backend::{Backend, Scorer};
use crate::config::{Decoding, Initialisation, Method, Preset, RunConfig, Sampling, Schedule};
use crate::error::{Error, Result};
use crate::model::Frozen;
use crate::pretrained;
use crate::train::{self, FewShotRuns, Monitor, Ranks, RunFolder, Saved, Silent, Trainer};

/// Flags of `promptmix train`; what is left out takes the default of the settings.
#[derive(Debug, clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  promptmix train --model t5-small --task sst2 --data data/sst2 --method prompt-tuning --out runs/sst2
  promptmix train --model t5-small --task mrpc --data data/mrpc --method attempt \\
      --sources runs/sst2/prompt.safetensors,runs/mnli/prompt.safetensors --out runs/mrpc
  promptmix train --model t5-small --template 'review: {text}' --labels bad,good --label-field stars \\
      --data reviews --method prompt-tuning --out runs/reviews
  promptmix train --model t5-small --task mrpc,rte,cola --data glue --sampling equal \\
      --sources mnli.safetensors,qnli.safetensors --out runs/glue
  promptmix train --model t5-small --task cb --data data/cb --few-shot 16 --class-balanced \\
      --sources mnli.safetensors --initial-scorer runs/glue --out runs/cb-16
  promptmix train --config mrpc.toml --learning-rate 0.1 --out runs/mrpc
  promptmix train --resume --out runs/mrpc
  mpirun -n 4 promptmix train --config mrpc.toml --out runs/mrpc

A file for --config has the flags as keys (`learning-rate = 0.3`); a run's config.toml is one."
)]
pub(super) struct Arguments {
    /// A TOML file of settings; flags win over it
    #[arg(long)]
    config: Option<PathBuf>,
    /// Folder or hub id of the frozen T5
    #[arg(long, required_unless_present_any = ["resume", "config"])]
    model: Option<String>,
    /// A known task (see `promptmix tasks`) or a task's .toml file; several with commas between share one scorer. A free
    /// name with --template
    #[arg(long)]
    task: Option<String>,
    /// Source text of a task of your own, with {field} slots
    #[arg(long)]
    template: Option<String>,
    /// Label strings: negative,positive or 0=negative,1=positive
    #[arg(long)]
    labels: Option<String>,
    /// The field that holds the label of a task of your own [default: label]
    #[arg(long)]
    label_field: Option<String>,
    /// Lower-case the source text
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    lowercase: Option<bool>,
    /// Folder with train, validation and maybe test, as .jsonl, .json, .csv, .tsv or .parquet; with several tasks a folder of such
    /// folders by the tasks' names. hub:owner/name/folder is a data set of the hub's
    #[arg(long, required_unless_present_any = ["resume", "config"])]
    data: Option<PathBuf>,
    /// Take test rows from the labelled files, by the task's split rule
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    split_validation_test: Option<bool>,
    /// The run folder to write
    #[arg(long)]
    out: PathBuf,
    /// Go on with the interrupted run in --out, by its own settings; --model and --data say where those lie now if they moved
    #[arg(long, conflicts_with = "config")]
    resume: bool,

    /// What is learnt [default: attempt]
    #[arg(long, value_enum)]
    method: Option<MethodName>,
    /// A set of defaults [default: tuned]
    #[arg(long, value_enum)]
    preset: Option<PresetName>,
    /// Frozen source prompts
    #[arg(long, value_delimiter = ',')]
    sources: Vec<PathBuf>,
    /// How the target prompt starts [default: vocabulary; with spot: prompt]
    #[arg(long, value_enum)]
    initialisation: Option<InitialisationName>,
    /// The prompt to start from; with spot and several sources, what their similarity is taken to
    #[arg(long)]
    initial_prompt: Option<PathBuf>,
    /// Rows of the prompt [default: 100]
    #[arg(long)]
    prompt_length: Option<usize>,
    /// Rank of the scorer [default: 100]
    #[arg(long)]
    rank: Option<usize>,
    /// How the mixture's weights are scored [default: bottleneck]
    #[arg(long, value_enum)]
    scorer: Option<ScorerName>,
    /// What scores are divided by [default: width times e]
    #[arg(long)]
    temperature: Option<f64>,
    /// Learn the temperature
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    learn_temperature: Option<bool>,
    /// Standardize every pooled input by the training rows' mean and deviation [default: true; false with --preset paper and reference]
    #[arg(long, alias = "center-inputs", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    standardize_inputs: Option<bool>,
    /// Leave the scorer as it starts
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    freeze_scorer: Option<bool>,
    /// Neither mix nor add the target prompt
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    without_target: Option<bool>,
    /// The trained scorer to start from: scorer.safetensors, a run's folder, or a folder of the authors' code
    #[arg(long)]
    initial_scorer: Option<PathBuf>,
    /// Train the scorer alone, on the sources' own tasks, for --initial-scorer of other runs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pretrain_scorer: Option<bool>,
    /// How often each of several tasks is drawn [default: proportional]
    #[arg(long, value_enum)]
    sampling: Option<SamplingName>,
    /// With --sampling temperature: rows to the power of one over this [default: 2]
    #[arg(long)]
    sampling_temperature: Option<f64>,

    /// Passes over the training rows [default: 20]
    #[arg(long)]
    epochs: Option<u64>,
    /// Optimizer steps, instead of --epochs
    #[arg(long)]
    steps: Option<u64>,
    /// Examples a batch [default: 32]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Batches an optimizer step: the numbers of a batch that many times as large [default: 1]
    #[arg(long)]
    accumulate: Option<usize>,
    /// Learning rate of the prompt [default: 0.3]
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Learning rate of the scorer [default: 0.01; with --preset paper and for the constant scorer 0.1]
    #[arg(long)]
    scorer_learning_rate: Option<f64>,
    /// AdamW's decay [default: 0; with prompt-tuning 1e-5]
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Steps of warm-up [default: 500, or 6 % of the run if that is less]
    #[arg(long)]
    warmup: Option<u64>,
    /// How the learning rate moves after warm-up [default: linear]
    #[arg(long, value_enum)]
    schedule: Option<ScheduleName>,
    /// Largest norm of the gradient; 0 for no clip [default: 1]
    #[arg(long)]
    clip: Option<f64>,
    /// Dropout of the frozen T5 in training [default: the model's own]
    #[arg(long)]
    dropout: Option<f64>,
    /// Part of a training target that is spread over the vocabulary [default: 0]
    #[arg(long)]
    label_smoothing: Option<f64>,
    /// What the squared log-sum-exp of the logits adds to the training loss [default: 0]
    #[arg(long)]
    z_loss: Option<f64>,
    /// Seed of initialisation, order and dropout [default: 42]
    #[arg(long)]
    seed: Option<u64>,
    /// Tokens of a source at most [default: 256]
    #[arg(long)]
    max_source_length: Option<usize>,
    /// Tokens of a target at most [default: the longest label's]
    #[arg(long)]
    max_target_length: Option<usize>,
    /// Learn from at most so many rows of each task
    #[arg(long)]
    training_rows: Option<usize>,
    /// Learn from this many rows, in runs on five draws of them
    #[arg(long)]
    few_shot: Option<usize>,
    /// Draw that many rows of each class
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    class_balanced: Option<bool>,
    /// Seed of the one draw of few-shot rows, instead of --draws
    #[arg(long)]
    data_seed: Option<u64>,
    /// Draws of few-shot rows, by data seeds from --seed on; mean and deviation go to few_shot.json [default: 5]
    #[arg(long)]
    draws: Option<usize>,

    /// Validate every so many steps instead of after each epoch
    #[arg(long)]
    validate_every: Option<u64>,
    /// Save a checkpoint every so many steps, beside the one behind each validation
    #[arg(long)]
    save_every: Option<u64>,
    /// Validate on at most so many rows
    #[arg(long)]
    validation_rows: Option<usize>,
    /// Stop after so many validations without a better one
    #[arg(long)]
    patience: Option<u64>,
    /// How answers are got in validation [default: greedy]
    #[arg(long, value_enum)]
    decoding: Option<DecodingName>,

    #[command(flatten)]
    device: Device,
}

/// Mirrors a settings enum as flag values.
macro_rules! flag_values {
    ($name:ident for $target:ident { $($variant:ident),+ $(,)? }) => {
        #[derive(Clone, Copy, Debug, ValueEnum)]
        pub(super) enum $name { $($variant),+ }

        impl From<$name> for $target {
            fn from(name: $name) -> Self {
                match name { $($name::$variant => Self::$variant),+ }
            }
        }
    };
}

flag_values!(MethodName for Method { Attempt, PromptTuning, Spot });
flag_values!(PresetName for Preset { Tuned, Paper, Reference });
flag_values!(InitialisationName for Initialisation { Vocabulary, Prompt, Labels, Normal, Uniform });
flag_values!(ScorerName for Scorer { Bottleneck, Linear, Dot, Token, Uniform, Constant });
flag_values!(ScheduleName for Schedule { Linear, Constant, Cosine });
flag_values!(SamplingName for Sampling { Proportional, Temperature, Equal });
flag_values!(DecodingName for Decoding { Greedy, Labels });

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let ranks = ranks::join()?;
        let done = self.run_rank(&ranks);
        if let (Err(error), true) = (&done, ranks.count() > 1) {
            eprintln!("error on rank {}: {error}", ranks.rank());
            ranks.abort();
        }
        done
    }

    fn run_rank(mut self, ranks: &Rc<dyn Ranks>) -> Result<ExitCode> {
        let (config, begun) = if self.resume { self.begun()? } else { (self.config()?, None) };
        for (flag, is_missing) in
            [("--model", config.model.is_empty()), ("--data", config.data.as_os_str().is_empty())]
        {
            if is_missing {
                return Err(Error::setting(flag, "a value", "none", "give the flag, or its key in --config"));
            }
        }
        config.check()?;
        self.device.threads = self.device.threads.or(config.threads);
        if ranks.count() > 1 && self.device.threads.is_none() {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            self.device.threads = Some((cores / ranks::local_count()).max(1));
        }
        let device = self.device.open()?;
        if !self.resume && ranks.rank() == 0 {
            match config.draw_seeds().as_slice() {
                [] => RunFolder::check_new(&self.out)?,
                _ => FewShotRuns::check_new(&self.out)?,
            }
        }
        let mut monitor: Box<dyn Monitor> = match (ranks.rank(), ranks.count()) {
            (0, 1) => Box::new(Shown::new().ending_on_signals()?),
            // Ranks would end after different steps, and the last wait for the others.
            (0, _) => Box::new(Shown::new()),
            _ => Box::new(Silent),
        };
        on_device!(device, backend => self.run_on(backend, &config, begun.as_ref(), ranks, monitor.as_mut()))
    }

    fn run_on<B: Backend>(
        &self,
        backend: &B,
        config: &RunConfig,
        begun: Option<&Saved>,
        ranks: &Rc<dyn Ranks>,
        monitor: &mut dyn Monitor,
    ) -> Result<ExitCode> {
        let frozen = match begun {
            Some(begun) => {
                let checkpoint = begun.model(&self.out, self.model.as_deref())?;
                if ranks.rank() == 0 {
                    super::say_moved(begun, &self.out, checkpoint.folder());
                }
                Frozen::of_checkpoint(backend, &checkpoint)?
            }
            None => Frozen::load(backend, &pretrained::locate(&config.model)?)?,
        };
        frozen.warnings.iter().for_each(|warning| monitor.note(&format!("warning: {warning}")));
        if !config.draw_seeds().is_empty() {
            if ranks.count() > 1 {
                let reason = "each is small, and they run one after the other";
                return Err(Error::unsupported("several draws on several ranks", reason, "leave mpirun out"));
            }
            return self.run_draws(&frozen, config, monitor);
        }
        let mut trainer = Trainer::new(&frozen, config, monitor)?.on_ranks(ranks.clone());
        // All ranks hold the same state; one of them writes it down.
        let mut folder = match (ranks.rank(), self.resume) {
            (0, false) => Some(RunFolder::create(&self.out, config, &frozen.model_hash)?),
            (0, true) => Some(train::resume(&mut trainer, &self.out)?),
            (_, false) => None,
            (_, true) => {
                RunFolder::saved(&self.out)?.check_model(&frozen.model_hash, "--resume")?;
                trainer.resume(&self.out)?;
                None
            }
        };
        monitor.note(&format!("{} numbers train; the model and its sources never change", trainer.trained()));
        let outcome = trainer.run(folder.as_mut(), monitor)?;
        let why = if outcome.stopped_early { ", stopped by --patience" } else { "" };
        let metrics: Vec<String> =
            trainer.tasks().flat_map(|task| &task.metrics).map(ToString::to_string).collect();
        let of = match &metrics[..] {
            [] | [_] => String::new(),
            several if trainer.tasks().count() == 1 => format!(" (mean of {})", several.join(" and ")),
            _ => " (mean over the tasks)".to_owned(),
        };
        if ranks.rank() == 0 {
            println!(
                "{} steps{why}; best validation {:.4}{of} behind step {}; written to {}",
                outcome.steps,
                outcome.best,
                outcome.best_step,
                self.out.display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn run_draws<B: Backend>(
        &self,
        frozen: &Frozen<'_, B>,
        config: &RunConfig,
        monitor: &mut dyn Monitor,
    ) -> Result<ExitCode> {
        let runs = FewShotRuns::run(frozen, config, &self.out, self.resume, monitor)?;
        for draw in &runs.draws {
            let folder = self.out.join(&draw.folder);
            println!(
                "data seed {}: best validation {:.4} behind step {} of {}; {}",
                draw.data_seed,
                draw.validation,
                draw.best_step,
                draw.steps,
                folder.display()
            );
        }
        for spread in &runs.summary {
            println!(
                "{}: {:.4} on average over {} draws, deviation {:.4}",
                spread.name,
                spread.mean,
                runs.draws.len(),
                spread.deviation
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The settings of the run in --out to go on with, their paths where they are found now, and what it recorded.
    fn begun(&self) -> Result<(RunConfig, Option<Saved>)> {
        let (saved, begun) = match FewShotRuns::saved(&self.out)? {
            Some(runs) => {
                let begun = runs.first_begun(&self.out);
                (runs.config, begun)
            }
            None => {
                let saved = RunFolder::saved(&self.out)?;
                (saved.config.clone(), Some(saved))
            }
        };
        self.refuse_other_settings(&saved)?;
        let mut config = begun.as_ref().map_or(saved, |begun| begun.located(&self.out));
        if begun.is_none() {
            config.model = self.model.clone().unwrap_or(config.model);
        }
        config.data = self.data.clone().unwrap_or(config.data);
        Ok((config, begun))
    }

    /// A run goes on as it began: a flag that would change a setting of it is an error, not ignored.
    fn refuse_other_settings(&self, saved: &RunConfig) -> Result<()> {
        let (epochs, steps) = (self.epochs.or(saved.epochs), self.steps.or(saved.steps));
        let given = self.over(saved.clone(), epochs, steps);
        let (given, saved) = (serde_json::to_value(given), serde_json::to_value(saved));
        let (Ok(Value::Object(given)), Ok(Value::Object(saved))) = (given, saved) else {
            return Err(Error::unsupported("the list of settings", "they could not be written as JSON", ""));
        };
        // Where things lie and how many threads there are may differ from one machine to the next.
        let may_differ = |key: &str| ["model", "data", "threads"].contains(&key);
        let shown = |value: Option<&Value>| match value {
            None | Some(Value::Null) => "none".to_owned(),
            Some(value) => value.to_string(),
        };
        let (mut flags, mut values) = (Vec::new(), Vec::new());
        for (key, value) in
            given.iter().filter(|(key, value)| !may_differ(key) && saved.get(*key) != Some(value))
        {
            flags.push(format!("--{key}"));
            values.push(format!("{} where the run has {}", shown(Some(value)), shown(saved.get(key))));
        }
        if flags.is_empty() {
            return Ok(());
        }
        Err(Error::setting(
            flags.join(", "),
            "the run's own settings with --resume",
            values.join(", "),
            "leave the flags out, or train a new run with them, from this one's prompt by --initial-prompt",
        ))
    }

    /// The settings of the file and the flags; a flag wins.
    fn config(&self) -> Result<RunConfig> {
        let base = match &self.config {
            Some(path) => RunConfig::from_toml(path)?,
            None => RunConfig::default(),
        };
        // One of the two as a flag puts the other one of the file out of force.
        let (epochs, steps) = match (self.epochs, self.steps) {
            (None, None) => (base.epochs, base.steps),
            given => given,
        };
        Ok(self.over(base, epochs, steps))
    }

    fn over(&self, base: RunConfig, epochs: Option<u64>, steps: Option<u64>) -> RunConfig {
        RunConfig {
            model: self.model.clone().unwrap_or(base.model),
            task: self.task.clone().unwrap_or(base.task),
            template: self.template.clone().or(base.template),
            labels: self.labels.clone().or(base.labels),
            label_field: self.label_field.clone().unwrap_or(base.label_field),
            lowercase: self.lowercase.unwrap_or(base.lowercase),
            data: self.data.clone().unwrap_or(base.data),
            split_validation_test: self.split_validation_test.unwrap_or(base.split_validation_test),
            method: self.method.map_or(base.method, Into::into),
            preset: self.preset.map_or(base.preset, Into::into),
            sources: if self.sources.is_empty() { base.sources } else { self.sources.clone() },
            initialisation: self.initialisation.map(Into::into).or(base.initialisation),
            initial_prompt: self.initial_prompt.clone().or(base.initial_prompt),
            prompt_length: self.prompt_length.unwrap_or(base.prompt_length),
            rank: self.rank.unwrap_or(base.rank),
            scorer: self.scorer.map_or(base.scorer, Into::into),
            temperature: self.temperature.or(base.temperature),
            learn_temperature: self.learn_temperature.unwrap_or(base.learn_temperature),
            standardize_inputs: self.standardize_inputs.or(base.standardize_inputs),
            freeze_scorer: self.freeze_scorer.unwrap_or(base.freeze_scorer),
            without_target: self.without_target.unwrap_or(base.without_target),
            initial_scorer: self.initial_scorer.clone().or(base.initial_scorer),
            pretrain_scorer: self.pretrain_scorer.unwrap_or(base.pretrain_scorer),
            sampling: self.sampling.map_or(base.sampling, Into::into),
            sampling_temperature: self.sampling_temperature.unwrap_or(base.sampling_temperature),
            training_rows: self.training_rows.or(base.training_rows),
            epochs,
            steps,
            batch_size: self.batch_size.unwrap_or(base.batch_size),
            accumulate: self.accumulate.unwrap_or(base.accumulate),
            learning_rate: self.learning_rate.unwrap_or(base.learning_rate),
            scorer_learning_rate: self.scorer_learning_rate.or(base.scorer_learning_rate),
            weight_decay: self.weight_decay.or(base.weight_decay),
            warmup: self.warmup.or(base.warmup),
            schedule: self.schedule.map_or(base.schedule, Into::into),
            clip: self.clip.unwrap_or(base.clip),
            dropout: self.dropout.or(base.dropout),
            label_smoothing: self.label_smoothing.unwrap_or(base.label_smoothing),
            z_loss: self.z_loss.unwrap_or(base.z_loss),
            seed: self.seed.unwrap_or(base.seed),
            max_source_length: self.max_source_length.unwrap_or(base.max_source_length),
            max_target_length: self.max_target_length.or(base.max_target_length),
            few_shot: self.few_shot.or(base.few_shot),
            class_balanced: self.class_balanced.unwrap_or(base.class_balanced),
            data_seed: self.data_seed.or(base.data_seed),
            draws: self.draws.unwrap_or(base.draws),
            validate_every: self.validate_every.or(base.validate_every),
            save_every: self.save_every.or(base.save_every),
            validation_rows: self.validation_rows.or(base.validation_rows),
            patience: self.patience.or(base.patience),
            decoding: self.decoding.map_or(base.decoding, Into::into),
            threads: self.device.threads.or(base.threads),
        }
    }
}
