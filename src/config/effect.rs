//! Settings that nothing reads beside the others.

use super::{Method, Preset, PromptInit, RunConfig, Sampling};
use crate::backend::Scorer;

impl RunConfig {
    /// The keys of settings that are not at their defaults and that nothing reads beside the others, each with the reason.
    /// What [`check`](Self::check) refuses is not among them.
    pub fn without_effect(&self) -> Vec<(&'static str, String)> {
        let default = Self::default();
        let (method, scorer) = (self.method.name(), self.scorer.name());
        let mixes = self.method == Method::Attempt;
        let no_mixture = (!mixes).then(|| format!("{method} has no mixture"));
        // Of a setting of the mixture: why nothing reads it, given what the scorer must have for it.
        let in_mixture = |has: bool, what: &str| {
            no_mixture.clone().or_else(|| (!has).then(|| format!("the scorer {scorer} has no {what}")))
        };
        let no_target = (mixes && self.without_target()).then(|| "no target prompt is learnt".to_owned());
        let learns = !matches!(self.scorer, Scorer::Dot | Scorer::Uniform);
        let frozen_scorer = (mixes && self.freeze_scorer && !self.learn_temperature)
            .then(|| "the scorer is frozen".to_owned());
        // The `reference` preset takes the prompt's rate for the scorer too.
        let is_rate_of_scorer = self.preset == Preset::Reference && self.scorer_learning_rate.is_none();
        let starts_elsewhere = || {
            let starts_from_prompt = self.prompt_init() == PromptInit::Prompt;
            let is_copy = self.method == Method::Spot && self.sources.len() == 1;
            let start = format!("the prompt starts by prompt-init {}", self.prompt_init().name());
            let copied = || "a copy of one source needs no similarity".to_owned();
            if starts_from_prompt { is_copy.then(copied) } else { Some(start) }
        };
        let one_task = (!self.is_multi_task()).then(|| "there is one task".to_owned());
        let reason = |holds: bool, text: &str| holds.then(|| text.to_owned());
        let settings = [
            ("scorer", self.scorer != default.scorer, no_mixture.clone()),
            (
                "bottleneck-dim",
                self.bottleneck_dim != default.bottleneck_dim,
                in_mixture(self.scorer.is_bottleneck(), "bottleneck"),
            ),
            ("temperature", self.temperature.is_some(), in_mixture(self.scorer.reads_input(), "temperature")),
            ("freeze-scorer", self.freeze_scorer, in_mixture(learns, "numbers that learn")),
            (
                "scorer-learning-rate",
                self.scorer_learning_rate.is_some(),
                in_mixture(learns || self.learn_temperature, "numbers that learn").or(frozen_scorer),
            ),
            ("without-target", self.without_target, no_mixture.clone()),
            ("prompt-init", self.prompt_init.is_some(), no_target.clone()),
            ("initial-prompt", self.initial_prompt.is_some(), no_target.clone().or_else(starts_elsewhere)),
            (
                "learning-rate",
                self.learning_rate != default.learning_rate && !is_rate_of_scorer,
                no_target.clone(),
            ),
            (
                "sources",
                self.method == Method::Spot && self.prompt_init() != PromptInit::Prompt,
                Some(format!("the prompt starts by prompt-init {}", self.prompt_init().name())),
            ),
            ("sampling", self.sampling != default.sampling, one_task.clone()),
            (
                "sampling-temperature",
                self.sampling_temperature != default.sampling_temperature,
                one_task.or_else(|| {
                    reason(self.sampling != Sampling::Temperature, "it belongs to sampling temperature")
                }),
            ),
            (
                "label-field",
                self.label_field != default.label_field,
                reason(self.template.is_none(), "the task says where its labels are"),
            ),
            (
                "training-rows",
                self.training_rows.is_some(),
                reason(self.few_shot.is_some(), "few-shot says how many rows are drawn"),
            ),
            (
                "draws",
                self.draws != default.draws,
                reason(self.few_shot.is_none(), "it belongs to few-shot")
                    .or_else(|| reason(self.data_seed.is_some(), "data-seed asks for one draw")),
            ),
            (
                "data-seed",
                self.data_seed.is_some(),
                reason(self.few_shot.is_none() && self.training_rows.is_none(), "no rows are drawn"),
            ),
        ];
        settings
            .into_iter()
            .filter_map(|(key, is_given, reason)| Some((key, reason.filter(|_| is_given)?)))
            .collect()
    }
}
