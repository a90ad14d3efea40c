//! The settings of a run: one struct, from flags and files alike; every default is here and nowhere else.

pub mod file;
mod sweep;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use sweep::read_sweep;

use crate::backend::Scorer;
use crate::error::{Error, Result};

/// What stands before each example and what of it is learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Method {
    /// A target prompt in an attentional mixture with frozen source prompts (Asai et al., 2022).
    #[default]
    Attempt,
    /// One prompt, learnt (Lester et al., 2021): how source prompts are made.
    PromptTuning,
    /// Prompt tuning that starts from source prompts (Vu et al., 2022).
    Spot,
}

impl Method {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attempt => "attempt",
            Self::PromptTuning => "prompt-tuning",
            Self::Spot => "spot",
        }
    }
}

/// A set of defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Preset {
    /// The paper's method with pooled inputs that are standardized and a scorer rate at which attention follows the input.
    #[default]
    Tuned,
    /// The method as the paper has it. At its scorer rate the mixture soon is the same for every input.
    Paper,
    /// What the authors' released code does.
    Reference,
}

/// How a target prompt starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Initialisation {
    /// Distinct rows of the embedding among the first 5,000, sentinels and specials left out.
    Vocabulary,
    /// A saved prompt, or with SPoT several weighted by similarity.
    Prompt,
    /// The embedding rows of the task's label words, then vocabulary rows.
    Labels,
    /// N(0, 1).
    Normal,
    /// Uniform from -0.5 to 0.5.
    Uniform,
}

/// How the learning rate moves after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Schedule {
    /// Down to 0 along a line.
    #[default]
    Linear,
    /// Stays.
    Constant,
    /// Down to 0 along half a cosine.
    Cosine,
}

/// How an answer is got from the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Decoding {
    /// The most likely token after token, as the paper evaluates.
    #[default]
    Greedy,
    /// The label string that the model finds most likely; an invalid answer cannot occur.
    Labels,
}

/// How often each of several tasks is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Sampling {
    /// By its number of rows: every row once an epoch.
    #[default]
    Proportional,
    /// By its number of rows to the power of one over the temperature.
    Temperature,
    /// As often as any other.
    Equal,
}

/// The settings of a run. Fields that are `None` take the preset's value, by the accessor of the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RunConfig {
    /// Folder or hub id of the frozen T5.
    pub model: String,
    /// Name of a known task or a task's TOML file, or several of them with commas between; a free name if `template` is
    /// set.
    pub task: String,
    /// Source text with `{field}` slots, for a task of one's own.
    pub template: Option<String>,
    /// Label strings, `negative,positive` or `0=negative,1=positive`.
    pub labels: Option<String>,
    /// The field that holds the label of a task of one's own.
    pub label_field: String,
    /// Lower-case the source text.
    pub lowercase: bool,
    /// Folder with `train`, `validation` and maybe `test`, as JSON, CSV, TSV or Parquet; with several tasks a folder of
    /// such folders by the tasks' names.
    pub data: PathBuf,
    /// Take test rows from the labelled files by the task's split rule.
    pub split_validation_test: bool,

    /// What is learnt.
    pub method: Method,
    /// A set of defaults.
    pub preset: Preset,
    /// Frozen source prompts.
    pub sources: Vec<PathBuf>,
    /// How the target prompt starts.
    pub initialisation: Option<Initialisation>,
    /// The prompt to start from, or for SPoT with several sources the prompt that their similarity is taken to.
    pub initial_prompt: Option<PathBuf>,
    /// M.
    pub prompt_length: usize,
    /// Q.
    pub rank: usize,
    /// How the mixture's weights are scored.
    pub scorer: Scorer,
    /// What scores are divided by; D·e if not given.
    pub temperature: Option<f64>,
    /// Learn the logarithm of the temperature.
    pub learn_temperature: bool,
    /// Standardize every pooled input by its mean and standard deviation over the training rows, a column each, so that the
    /// scorer sees how inputs differ.
    #[serde(alias = "center-inputs")]
    pub standardize_inputs: Option<bool>,
    /// Leave the scorer as it starts.
    pub freeze_scorer: bool,
    /// Neither mix nor add the target prompt.
    pub without_target: bool,
    /// The trained scorer to start from: a file, a run's folder, or the folder of a run of the authors' code.
    pub initial_scorer: Option<PathBuf>,
    /// Train the scorer alone, on the sources' own tasks, for other runs to start from.
    pub pretrain_scorer: bool,
    /// How often each of several tasks is drawn.
    pub sampling: Sampling,
    /// What the tasks' sizes are taken to the inverse power of, with [`Sampling::Temperature`].
    pub sampling_temperature: f64,
    /// Learn from at most so many rows of each task, drawn by the data seed.
    pub training_rows: Option<usize>,

    /// Passes over the training rows; not with `steps`.
    pub epochs: Option<u64>,
    /// Optimizer steps; not with `epochs`.
    pub steps: Option<u64>,
    /// Examples a micro-batch.
    pub batch_size: usize,
    /// Micro-batches an optimizer step.
    pub accumulate: usize,
    /// Learning rate of the prompt.
    pub learning_rate: f64,
    /// Learning rate of the scorer.
    pub scorer_learning_rate: Option<f64>,
    /// AdamW's decoupled decay.
    pub weight_decay: Option<f64>,
    /// Steps of warm-up.
    pub warmup: Option<u64>,
    /// How the learning rate moves after warm-up.
    pub schedule: Schedule,
    /// The gradient's norm is scaled down to this; 0 for no clip.
    pub clip: f64,
    /// Dropout of the frozen T5 in training; the model's own if not given.
    pub dropout: Option<f64>,
    /// The part of a training target that is spread over the vocabulary. Evaluation is without.
    pub label_smoothing: f64,
    /// What the squared log-sum-exp of the logits adds to the training loss. Evaluation is without.
    pub z_loss: f64,
    /// Seed of initialisation, order and dropout.
    pub seed: u64,
    /// Tokens of a source, end mark included.
    pub max_source_length: usize,
    /// Tokens of a target, end mark included; the longest label's if not given.
    pub max_target_length: Option<usize>,
    /// Learn from this many rows.
    pub few_shot: Option<usize>,
    /// Draw that many rows of each class.
    pub class_balanced: bool,
    /// Seed of the draw of few-shot rows; if not given, `seed` in a single run.
    pub data_seed: Option<u64>,
    /// Few-shot runs, each on another draw of rows, unless `data_seed` names one.
    pub draws: usize,

    /// Validate every so many steps instead of after each epoch.
    pub validate_every: Option<u64>,
    /// Save a checkpoint every so many steps, beside the one behind each validation.
    pub save_every: Option<u64>,
    /// Validate on at most so many rows.
    pub validation_rows: Option<usize>,
    /// Stop after so many validations without a better one.
    pub patience: Option<u64>,
    /// How answers are got in validation.
    pub decoding: Decoding,
    /// Threads of the CPU; one a core if not given.
    pub threads: Option<usize>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            task: String::new(),
            template: None,
            labels: None,
            label_field: "label".into(),
            lowercase: false,
            data: PathBuf::new(),
            split_validation_test: false,
            method: Method::default(),
            preset: Preset::default(),
            sources: Vec::new(),
            initialisation: None,
            initial_prompt: None,
            prompt_length: 100,
            rank: 100,
            scorer: Scorer::Bottleneck,
            temperature: None,
            learn_temperature: false,
            standardize_inputs: None,
            freeze_scorer: false,
            without_target: false,
            initial_scorer: None,
            pretrain_scorer: false,
            sampling: Sampling::default(),
            // The best of those that Raffel et al. (2020) tried.
            sampling_temperature: 2.0,
            training_rows: None,
            epochs: None,
            steps: None,
            batch_size: 32,
            accumulate: 1,
            learning_rate: 0.3,
            scorer_learning_rate: None,
            weight_decay: None,
            warmup: None,
            schedule: Schedule::default(),
            clip: 1.0,
            dropout: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
            seed: 42,
            max_source_length: 256,
            max_target_length: None,
            few_shot: None,
            class_balanced: false,
            data_seed: None,
            draws: 5,
            validate_every: None,
            save_every: None,
            validation_rows: None,
            patience: None,
            decoding: Decoding::default(),
            threads: None,
        }
    }
}

/// Passes over the training rows when neither epochs nor steps are given.
const EPOCHS: u64 = 20;
/// The scorer's learning rate in the `tuned` preset.
const TUNED_SCORER_LEARNING_RATE: f64 = 0.01;
/// The scorer's learning rate in the `paper` preset, and of a constant scorer's logits in the `tuned` one: an update moves a
/// logit by the rate itself, and not by a sum over the input's columns.
const SCORER_LEARNING_RATE: f64 = 0.1;
/// Weight decay of prompt tuning; the other methods have none.
const PROMPT_TUNING_DECAY: f64 = 1e-5;
/// Most steps of warm-up.
const WARMUP: u64 = 500;
/// The part of a run that warm-up takes at most, but in the `reference` preset.
const WARMUP_SHARE: f64 = 0.06;

impl RunConfig {
    /// Whether every setting can be used, alone and beside the others.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the flag.
    pub fn check(&self) -> Result<()> {
        let reject = |flag: &str, expected: &str, found: String, advice: &str| {
            Err(Error::setting(flag, expected, found, advice))
        };
        for (flag, value, most) in [
            ("--prompt-length", self.prompt_length, 100_000),
            ("--rank", self.rank, 100_000),
            ("--batch-size", self.batch_size, 1_000_000),
            ("--accumulate", self.accumulate, 1_000_000),
            ("--max-source-length", self.max_source_length, 1_000_000),
            ("--max-target-length", self.max_target_length.unwrap_or(1), 1_000_000),
            ("--few-shot", self.few_shot.unwrap_or(1), usize::MAX),
            ("--validation-rows", self.validation_rows.unwrap_or(1), usize::MAX),
            ("--draws", self.draws, 10_000),
            ("--training-rows", self.training_rows.unwrap_or(1), usize::MAX),
        ] {
            if value == 0 || value > most {
                return reject(flag, &format!("1 to {most}"), value.to_string(), "");
            }
        }
        for (flag, value) in [
            ("--epochs", self.epochs),
            ("--steps", self.steps),
            ("--validate-every", self.validate_every),
            ("--save-every", self.save_every),
            ("--patience", self.patience),
        ] {
            if value.is_some_and(|value| value == 0 || value > u64::from(u32::MAX)) {
                return reject(flag, "1 to 4294967295", value.unwrap_or(0).to_string(), "");
            }
        }
        for (flag, value, most) in [
            ("--learning-rate", self.learning_rate, 1e6),
            ("--scorer-learning-rate", self.scorer_learning_rate(), 1e6),
            ("--weight-decay", self.weight_decay(), 1.0),
            ("--clip", self.clip, f64::MAX),
            ("--z-loss", self.z_loss, 1e6),
        ] {
            if !(value >= 0.0 && value <= most) {
                return reject(flag, &format!("0 to {most:e}"), value.to_string(), "");
            }
        }
        if !self.dropout.is_none_or(|rate| (0.0..1.0).contains(&rate)) {
            return reject("--dropout", "0 up to below 1", self.dropout.unwrap_or(0.0).to_string(), "");
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return reject("--label-smoothing", "0 up to below 1", self.label_smoothing.to_string(), "");
        }
        if !self.temperature.is_none_or(|temperature| temperature > 0.0 && temperature.is_finite()) {
            return reject("--temperature", "above 0", self.temperature.unwrap_or(0.0).to_string(), "");
        }
        if self.class_balanced && self.few_shot.is_none() {
            return reject(
                "--class-balanced",
                "--few-shot beside it",
                "none".into(),
                "say how many rows a class",
            );
        }
        for (flag, seed) in [("--seed", self.seed), ("--data-seed", self.data_seed())] {
            if i64::try_from(seed).is_err() {
                return reject(flag, &format!("0 to {}", i64::MAX), seed.to_string(), "");
            }
        }
        if !(self.sampling_temperature > 0.0 && self.sampling_temperature <= 1e6) {
            let found = self.sampling_temperature.to_string();
            return reject("--sampling-temperature", "above 0, up to 1e6", found, "");
        }
        if self.is_multi_task() && (self.template.is_some() || self.labels.is_some()) {
            let advice = "write each such task into a TOML file and give the files to --task";
            return reject("--task", "one task with --template or --labels", self.task.clone(), advice);
        }
        let scores = matches!(self.scorer, Scorer::Bottleneck | Scorer::Linear | Scorer::Token);
        for (flag, is_set) in
            [("--initial-scorer", self.initial_scorer.is_some()), ("--pretrain-scorer", self.pretrain_scorer)]
        {
            if is_set && !(self.method == Method::Attempt && scores) {
                let found = format!("{} with {:?}", self.method.name(), self.scorer).to_lowercase();
                return reject(flag, "attempt with a scorer that learns", found, "");
            }
        }
        let reads_input = self.method == Method::Attempt && self.scorer.reads_input();
        for (flag, is_set) in [
            ("--learn-temperature", self.learn_temperature),
            ("--standardize-inputs", self.standardize_inputs == Some(true)),
        ] {
            if is_set && !reads_input {
                let found = format!("{} with {:?}", self.method.name(), self.scorer).to_lowercase();
                return reject(
                    flag,
                    "attempt with a scorer that reads the input",
                    found,
                    "leave the flag out",
                );
            }
        }
        if self.pretrain_scorer && self.freeze_scorer {
            return reject("--pretrain-scorer", "a scorer that learns", "--freeze-scorer".into(), "");
        }
        if self.epochs.is_some() && self.steps.is_some() {
            return reject("--steps", "--epochs or --steps", "both".into(), "leave one out");
        }
        match self.method {
            Method::PromptTuning if !self.sources.is_empty() => reject(
                "--sources",
                "none with prompt-tuning",
                format!("{}", self.sources.len()),
                "use --method attempt or spot, or --initial-prompt to start from one",
            ),
            Method::Spot if self.sources.is_empty() => reject(
                "--sources",
                "at least one prompt with spot",
                "none".into(),
                "train source prompts first: promptmix train --method prompt-tuning",
            ),
            Method::Attempt if self.sources.is_empty() => reject(
                "--sources",
                "at least one prompt with attempt",
                "none".into(),
                "train source prompts first: promptmix train --method prompt-tuning",
            ),
            Method::Attempt
                if self.without_target()
                    && !self.learn_temperature
                    && (self.freeze_scorer || matches!(self.scorer, Scorer::Dot | Scorer::Uniform)) =>
            {
                reject(
                    "--without-target",
                    "something that learns",
                    "a frozen scorer and no target prompt".into(),
                    "use the bottleneck scorer, or keep the target",
                )
            }
            _ => Ok(()),
        }
    }

    /// The names of the tasks; one, maybe empty, where the task is described by a template.
    pub fn task_names(&self) -> impl Iterator<Item = &str> {
        self.task.split(',').map(str::trim)
    }

    /// Whether there are several tasks.
    pub fn is_multi_task(&self) -> bool {
        self.task.contains(',')
    }

    /// The folder with the data of the task called `name`.
    pub fn data_folder(&self, name: &str) -> PathBuf {
        if self.is_multi_task() { self.data.join(name) } else { self.data.clone() }
    }

    /// How often each task is drawn against the others, when they have `sizes` training examples.
    pub fn shares(&self, sizes: &[usize]) -> Vec<f64> {
        let share = |&size: &usize| match self.sampling {
            Sampling::Proportional => size as f64,
            Sampling::Temperature => (size as f64).powf(1.0 / self.sampling_temperature),
            Sampling::Equal => 1.0,
        };
        sizes.iter().map(share).collect()
    }

    /// Whether the target prompt is left out; a scorer is pre-trained on the sources alone.
    pub fn without_target(&self) -> bool {
        self.without_target || self.pretrain_scorer
    }

    /// The scorer's learning rate.
    pub fn scorer_learning_rate(&self) -> f64 {
        self.scorer_learning_rate.unwrap_or(match self.preset {
            Preset::Tuned if self.scorer != Scorer::Constant => TUNED_SCORER_LEARNING_RATE,
            Preset::Tuned | Preset::Paper => SCORER_LEARNING_RATE,
            // The released code means to apply another rate and never does.
            Preset::Reference => self.learning_rate,
        })
    }

    /// AdamW's decay.
    pub fn weight_decay(&self) -> f64 {
        let default = if self.method == Method::PromptTuning { PROMPT_TUNING_DECAY } else { 0.0 };
        self.weight_decay.unwrap_or(default)
    }

    /// Optimizer steps of the run, when an epoch has `steps_per_epoch`.
    pub fn steps(&self, steps_per_epoch: u64) -> u64 {
        self.steps.unwrap_or_else(|| self.epochs.unwrap_or(EPOCHS).saturating_mul(steps_per_epoch))
    }

    /// Steps of warm-up in a run of `steps`.
    pub fn warmup(&self, steps: u64) -> u64 {
        self.warmup.unwrap_or(match self.preset {
            Preset::Tuned | Preset::Paper => WARMUP.min((steps as f64 * WARMUP_SHARE) as u64),
            Preset::Reference => WARMUP,
        })
    }

    /// How the target prompt starts.
    pub fn initialisation(&self) -> Initialisation {
        let default = match (self.preset, self.method) {
            _ if self.initial_prompt.is_some() && self.method != Method::Spot => Initialisation::Prompt,
            (_, Method::Spot) => Initialisation::Prompt,
            (Preset::Reference, Method::Attempt) => Initialisation::Prompt,
            (Preset::Reference, Method::PromptTuning) => Initialisation::Normal,
            _ => Initialisation::Vocabulary,
        };
        self.initialisation.unwrap_or(default)
    }

    /// Whether the scorer's LayerNorm learns.
    pub fn trains_layer_norm(&self) -> bool {
        self.preset != Preset::Reference
    }

    /// Whether every pooled input is standardized by the training rows' mean and standard deviation.
    pub fn standardizes_inputs(&self) -> bool {
        let mixes = self.method == Method::Attempt && self.scorer.reads_input();
        mixes && self.standardize_inputs.unwrap_or(self.preset == Preset::Tuned)
    }

    /// Whether padding up to the longest source joins the pool.
    pub fn pools_padding(&self) -> bool {
        self.preset == Preset::Reference
    }

    /// The data seeds of few-shot runs: the run's seed and those after it. None where a single run is asked for.
    pub fn draw_seeds(&self) -> Vec<u64> {
        match (self.few_shot, self.data_seed) {
            (Some(_), None) => (0..self.draws as u64).map(|draw| self.seed.wrapping_add(draw)).collect(),
            _ => Vec::new(),
        }
    }

    /// Seed of the draw of few-shot rows.
    pub fn data_seed(&self) -> u64 {
        self.data_seed.unwrap_or(self.seed)
    }
}
