//! Whether settings can be used.

use super::{Method, RunConfig};
use crate::backend::Scorer;
use crate::data::SplitSource;
use crate::error::{Error, Result};

impl RunConfig {
    /// Whether every setting can be used, alone and beside the others.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the flag.
    pub fn check(&self) -> Result<()> {
        let reject = |flag: &str, expected: &str, found: String, advice: &str| {
            Err(Error::setting(flag, expected, found, advice))
        };
        if let Some((setting, found)) = self.outside().next() {
            return reject(&format!("--{}", setting.key), &setting.values.describe(), found, "");
        }
        if self.class_balanced && self.few_shot.is_none() {
            return reject(
                "--class-balanced",
                "--few-shot beside it",
                "none".into(),
                "say how many rows a class",
            );
        }
        if self.splits == Some(SplitSource::Hub) && self.split_validation_test {
            return reject("--splits", "paper with --split-validation-test", "hub".into(), "leave one out");
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
                let found = format!("{} with {}", self.method.name(), self.scorer.name());
                return reject(flag, "attempt with a scorer that learns", found, "");
            }
        }
        let reads_input = self.method == Method::Attempt && self.scorer.reads_input();
        for (flag, is_set) in [
            ("--learn-temperature", self.learn_temperature),
            ("--standardize-inputs", self.standardize_inputs == Some(true)),
        ] {
            if is_set && !reads_input {
                let found = format!("{} with {}", self.method.name(), self.scorer.name());
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
}
