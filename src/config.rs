//! The settings of a run, from flags and files alike. Each is declared once, in `declared.rs`: its key, which is its flag too,
//! its type, default, range and meaning.

mod check;
mod declared;
mod effect;
pub mod file;
mod page;
mod setting;
mod sweep;

pub use declared::{RunConfig, SETTINGS};
pub use file::Difference;
pub use page::reference_page;
pub use setting::{Setting, Values};
pub use sweep::read_sweep;

use crate::backend::Scorer;
use crate::choice::choices;
use crate::data::SplitSource;

choices! {
    /// What stands before each example and what of it is learnt.
    pub enum Method = Attempt {
        /// A target prompt in an attentional mixture with frozen source prompts (Asai et al., 2022).
        Attempt = "attempt",
        /// One prompt, learnt (Lester et al., 2021): how source prompts are made.
        PromptTuning = "prompt-tuning",
        /// Prompt tuning that starts from source prompts (Vu et al., 2022).
        Spot = "spot",
    }
}

choices! {
    /// A set of defaults.
    pub enum Preset = Tuned {
        /// The paper's method with pooled inputs that are standardized and a scorer rate at which attention follows the input.
        Tuned = "tuned",
        /// The method as the paper has it. At its scorer rate the mixture soon is the same for every input.
        Paper = "paper",
        /// What the authors' released code does.
        Reference = "reference",
    }
}

choices! {
    /// How a target prompt starts.
    pub enum PromptInit {
        /// Distinct rows of the embedding among the first 5,000, sentinels and specials left out.
        Vocabulary = "vocabulary",
        /// A saved prompt, or with SPoT several weighted by similarity.
        Prompt = "prompt",
        /// The embedding rows of the task's label words, then vocabulary rows.
        Labels = "labels",
        /// N(0, 1).
        Normal = "normal",
        /// Uniform from -0.5 to 0.5.
        Uniform = "uniform",
    }
}

choices! {
    /// How the learning rate moves after warm-up.
    pub enum LrScheduler = Linear {
        /// Down to 0 along a line.
        Linear = "linear",
        /// Stays.
        Constant = "constant",
        /// Down to 0 along half a cosine.
        Cosine = "cosine",
    }
}

choices! {
    /// How an answer is got from the model.
    pub enum Decoding = Greedy {
        /// The most likely token after token, as the paper evaluates.
        Greedy = "greedy",
        /// The label string that the model finds most likely; an invalid answer cannot occur.
        Labels = "labels",
    }
}

choices! {
    /// How often each of several tasks is drawn.
    pub enum Sampling = Proportional {
        /// By its number of rows: every row once an epoch.
        Proportional = "proportional",
        /// By its number of rows to the power of one over the temperature.
        Temperature = "temperature",
        /// As often as any other.
        Equal = "equal",
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
    /// The names of the tasks; one, maybe empty, where the task is described by a template.
    pub fn task_names(&self) -> impl Iterator<Item = &str> {
        self.task.split(',').map(str::trim)
    }

    /// Whether there are several tasks.
    pub fn is_multi_task(&self) -> bool {
        self.task.contains(',')
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

    /// Who says which file is which split, where the settings say it; else it hangs on the data ([`SplitSource::of`]).
    pub fn split_source(&self) -> Option<SplitSource> {
        self.splits.or(self.split_validation_test.then_some(SplitSource::Paper))
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
    pub fn warmup_steps(&self, steps: u64) -> u64 {
        self.warmup_steps.unwrap_or(match self.preset {
            Preset::Tuned | Preset::Paper => WARMUP.min((steps as f64 * WARMUP_SHARE) as u64),
            Preset::Reference => WARMUP,
        })
    }

    /// How the target prompt starts.
    pub fn prompt_init(&self) -> PromptInit {
        let default = match (self.preset, self.method) {
            _ if self.initial_prompt.is_some() && self.method != Method::Spot => PromptInit::Prompt,
            (_, Method::Spot) => PromptInit::Prompt,
            (Preset::Reference, Method::Attempt) => PromptInit::Prompt,
            (Preset::Reference, Method::PromptTuning) => PromptInit::Normal,
            _ => PromptInit::Vocabulary,
        };
        self.prompt_init.unwrap_or(default)
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
