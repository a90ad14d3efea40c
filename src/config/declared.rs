//! Every setting, declared once: its key and flag, type, default, what it may be, and what it means.

use std::path::PathBuf;

use super::setting::{Setting, Value, Values, choice, kebab, settings};
use super::{Decoding, LrScheduler, Method, Preset, PromptInit, Sampling};
use crate::backend::{MAX_THREADS, Scorer};
use crate::data::SplitSource;

/// A count of steps or passes.
const COUNT: Values = Values::Whole(1, u32::MAX as u64);
/// A count of rows.
const ROWS: Values = Values::Whole(1, u64::MAX);
/// A seed, as TOML can hold one.
const SEED: Values = Values::Whole(0, i64::MAX as u64);
const RATE: Values = Values::Real(0.0, 1e6);

settings! {
    /// The settings of a run. Fields that are `None` take the preset's value, by the method of the same name.
    pub struct RunConfig;

    "Model and data" {
        /// Folder or hub id of the frozen T5.
        model: String = String::new(), Values::Text, else "none: it must be given";
        /// A known task (`promptmix tasks` lists them) or a task's TOML file; several of them with commas between share one
        /// scorer. A free name with `template`.
        task: String = String::new(), Values::Text, else "none";
        /// Source text of a task of your own, with `{field}` slots.
        template: Option<String> = None, Values::Text, else "none";
        /// Label strings of a task of your own: `negative,positive` or `0=negative,1=positive`.
        labels: Option<String> = None, Values::Text, else "the task's";
        /// The field that holds the label of a task of your own.
        label_field: String = "label".into(), Values::Text;
        /// Lower-case the source text.
        lowercase: bool = false, Values::Switch;
        /// Folder with train, validation and maybe test, as .jsonl, .json, .csv, .tsv or .parquet; `hub:` for the task's own data set on
        /// the hub, or `hub:owner/name/folder@revision`. With several tasks a folder of such folders by the tasks' names, or a list
        /// with commas of an entry a task.
        data: PathBuf = PathBuf::new(), Values::Path, else "none: it must be given";
        /// Who says which rows validate and test.
        splits: Option<SplitSource> = None, choice::<SplitSource>(), else "paper for a task's own data set on the hub, and with split-validation-test; else hub";
        /// The same as `splits` paper.
        split_validation_test: bool = false, Values::Switch;
        /// Tokens of a source at most, end mark included.
        max_source_length: usize = 256, Values::Whole(1, 1_000_000);
        /// Tokens of a target at most, end mark included.
        max_target_length: Option<usize> = None, Values::Whole(1, 1_000_000), else "the longest label's";
        /// Learn from at most so many rows of each task, drawn by the data seed.
        training_rows: Option<usize> = None, ROWS, else "all";
        /// Validate on at most so many rows.
        validation_rows: Option<usize> = None, ROWS, else "all";
    }

    "Method" {
        /// What is learnt.
        method: Method = Method::default(), choice::<Method>();
        /// A set of defaults.
        preset: Preset = Preset::default(), choice::<Preset>();
        /// Frozen source prompts, files or the folders of their runs; with commas between them on the command line.
        sources: Vec<PathBuf> = Vec::new(), Values::Paths, else "none";
        /// How the target prompt starts.
        prompt_init: Option<PromptInit> = None, choice::<PromptInit>(), else "vocabulary; with spot, or with initial-prompt: prompt",
            was "initialisation";
        /// The prompt to start from; with spot and several sources, what their similarity is taken to.
        initial_prompt: Option<PathBuf> = None, Values::Path, else "none";
        /// Rows of the prompt: M.
        prompt_length: usize = 100, Values::Whole(1, 100_000);
        /// Neither mix nor add the target prompt.
        without_target: bool = false, Values::Switch;
    }

    "Scorer of the mixture" {
        /// How the mixture's weights are scored.
        scorer: Scorer = Scorer::Bottleneck, choice::<Scorer>();
        /// Width of the scorer's bottleneck: W_down has so many rows.
        bottleneck_dim: usize = 100, Values::Whole(1, 100_000), was "rank";
        /// What scores are divided by.
        temperature: Option<f64> = None, Values::Positive(f64::MAX), else "width times e";
        /// Learn the logarithm of the temperature.
        learn_temperature: bool = false, Values::Switch;
        /// Standardize every pooled input by the training rows' mean and standard deviation, a column each, so that the scorer
        /// sees how inputs differ.
        standardize_inputs: Option<bool> = None, Values::Switch, else "true; false with preset paper and reference",
            was "center-inputs";
        /// Leave the scorer as it starts.
        freeze_scorer: bool = false, Values::Switch;
        /// The trained scorer to start from: scorer.safetensors, a run's folder, or the folder of a run of the authors' code.
        initial_scorer: Option<PathBuf> = None, Values::Path, else "none";
        /// Train the scorer alone, on the sources' own tasks, for `initial-scorer` of other runs.
        pretrain_scorer: bool = false, Values::Switch;
    }

    "Several tasks" {
        /// How often each of several tasks is drawn.
        sampling: Sampling = Sampling::default(), choice::<Sampling>();
        /// With `sampling` temperature: rows to the power of one over this. The default is the best of those that Raffel et al.
        /// (2020) tried.
        sampling_temperature: f64 = 2.0, Values::Positive(1e6);
    }

    "Optimization" {
        /// Passes over the training rows; not beside `steps`.
        epochs: Option<u64> = None, COUNT, else "20";
        /// Optimizer steps; not beside `epochs`.
        steps: Option<u64> = None, COUNT, else "those of the epochs";
        /// Examples a batch.
        batch_size: usize = 32, Values::Whole(1, 1_000_000);
        /// Batches an optimizer step: the numbers of a batch that many times as large.
        gradient_accumulation_steps: usize = 1, Values::Whole(1, 1_000_000), was "accumulate";
        /// Learning rate of the prompt.
        learning_rate: f64 = 0.3, RATE;
        /// Learning rate of the scorer.
        scorer_learning_rate: Option<f64> = None, RATE,
            else "0.01; 0.1 with preset paper and for the constant scorer; the prompt's with preset reference";
        /// AdamW's decoupled weight decay.
        weight_decay: Option<f64> = None, Values::Real(0.0, 1.0), else "0; with prompt-tuning 1e-5";
        /// Steps of warm-up.
        warmup_steps: Option<u64> = None, Values::Whole(0, u64::MAX), else "500, or 6 % of the run if that is less; 500 with preset reference",
            was "warmup";
        /// How the learning rate moves after warm-up.
        lr_scheduler: LrScheduler = LrScheduler::default(), choice::<LrScheduler>(), was "schedule";
        /// Largest L2 norm of the gradient, to which a larger one is scaled down; 0 for no limit.
        max_grad_norm: f64 = 1.0, Values::Real(0.0, f64::MAX), was "clip";
        /// Dropout of the frozen T5 in training.
        dropout: Option<f64> = None, Values::Portion, else "the model's own";
        /// Part of a training target that is spread over the vocabulary. Evaluation is without.
        label_smoothing: f64 = 0.0, Values::Portion;
        /// What the squared log-sum-exp of the logits adds to the training loss. Evaluation is without.
        z_loss: f64 = 0.0, RATE;
        /// Seed of initialization, order and dropout.
        seed: u64 = 42, SEED;
    }

    "Few-shot runs" {
        /// Learn from this many rows, in runs on several draws of them.
        few_shot: Option<usize> = None, ROWS, else "all rows, in one run";
        /// Draw that many rows of each class.
        class_balanced: bool = false, Values::Switch;
        /// Seed of the one draw of rows, instead of `draws`.
        data_seed: Option<u64> = None, SEED, else "the run's seed";
        /// Draws of few-shot rows, by data seeds from `seed` on; mean and standard deviation go to few_shot.json.
        draws: usize = 5, Values::Whole(1, 10_000);
    }

    "Validation and checkpoints" {
        /// Validate every so many steps instead of after each epoch.
        validate_every: Option<u64> = None, COUNT, else "an epoch's";
        /// Save a checkpoint every so many steps, beside the one after each validation.
        save_every: Option<u64> = None, COUNT, else "none but those";
        /// Stop after so many validations without a better one.
        patience: Option<u64> = None, COUNT, else "never";
        /// How answers are got in validation.
        decoding: Decoding = Decoding::default(), choice::<Decoding>();
    }

    "Machine" {
        /// Threads of the CPU.
        threads: Option<usize> = None, Values::Whole(1, MAX_THREADS as u64), else "one a core";
    }
}
