//! What a comparison costs: seeds, rows, steps and rates of each of its parts.

use super::generate::Rows;
use super::sources::SourceSettings;
use crate::error::{Error, Result};

/// What a comparison costs and how sure it is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// How the source prompts are learnt.
    pub sources: SourceSettings,
    /// The few-shot target, one question.
    pub target: TargetSettings,
    /// Target rows a class that a training on it learns from.
    pub shots: usize,
    /// The target of several questions.
    pub questions: TargetSettings,
    /// Two controls more: the sum of the prompts with equal weights, which nothing scores, and with learnt weights that are
    /// the same for every input.
    pub fixed_mixtures: bool,
}

/// How methods are compared on one target.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TargetSettings {
    /// Seeds of initialisation, order and dropout, and of the target's few rows: one training of each method and rate a seed.
    pub seeds: Vec<u64>,
    /// Rows of the target.
    pub rows: Rows,
    /// Steps of a training, whatever the method.
    pub steps: u64,
    /// Steps between two validations.
    pub validate_every: u64,
    /// Learning rates of the prompt that every method tries.
    pub learning_rates: Vec<f64>,
}

impl Settings {
    /// Three seeds of the first target, two of the second.
    pub fn short() -> Self {
        Self {
            sources: SourceSettings::default(),
            target: TargetSettings {
                seeds: vec![1, 2, 3],
                rows: Rows { train: 200, validation: 64, test: 400 },
                steps: 45,
                validate_every: 15,
                learning_rates: vec![0.3, 1.0],
            },
            shots: 16,
            questions: TargetSettings {
                seeds: vec![1, 2],
                rows: Rows { train: 360, validation: 120, test: 360 },
                steps: 200,
                validate_every: 50,
                learning_rates: vec![0.3],
            },
            fixed_mixtures: false,
        }
    }

    /// Five seeds of both, two rates of the second, and more controls.
    pub fn long() -> Self {
        let mut settings = Self::short();
        settings.target.seeds = vec![1, 2, 3, 4, 5];
        settings.questions.seeds = vec![1, 2, 3, 4, 5];
        settings.questions.learning_rates = vec![0.3, 1.0];
        settings.fixed_mixtures = true;
        settings
    }

    pub(super) fn check(&self) -> Result<()> {
        for (target, settings) in [("the target's", &self.target), ("the questions'", &self.questions)] {
            for (setting, empty) in
                [("seeds", settings.seeds.is_empty()), ("learning rates", settings.learning_rates.is_empty())]
            {
                if empty {
                    return Err(Error::setting(format!("{target} {setting}"), "at least one", "none", ""));
                }
            }
        }
        Ok(())
    }
}
