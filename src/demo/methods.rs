//! What is compared on the demonstration's targets, declared as studies.

use std::collections::BTreeMap;

use super::settings::TargetSettings;
use super::table::ATTEMPT;
use crate::backend::Scorer;
use crate::config::{Method, RunConfig};
use crate::experiment::{Place, Source, Sources, Study, StudyMethod, Target};

pub(super) const PROMPT_TUNING: &str = "prompt tuning";
pub(super) const UNIFORM: &str = "control: equal weights";
pub(super) const CONSTANT: &str = "control: constant weights";
pub(super) const SPOT_EACH: &str = "control: SPoT, best of six sources";
pub(super) const NOISE: &str = "control: ATTEMPT, random sources";
const AS_IS: &str = "{} as it is";

/// Each method with its sources, in the order of a table. Where its weights are not attention's, they are 1/(S+1), or learnt
/// ones that no input moves.
const METHODS: [(&str, Sources, Method, Scorer); 8] = [
    (PROMPT_TUNING, Sources::None, Method::PromptTuning, Scorer::Bottleneck),
    (AS_IS, Sources::Best, Method::Spot, Scorer::Bottleneck),
    ("SPoT from {}", Sources::Best, Method::Spot, Scorer::Bottleneck),
    (ATTEMPT, Sources::All, Method::Attempt, Scorer::Bottleneck),
    (NOISE, Sources::Random, Method::Attempt, Scorer::Bottleneck),
    (SPOT_EACH, Sources::Each, Method::Spot, Scorer::Bottleneck),
    (CONSTANT, Sources::All, Method::Attempt, Scorer::Constant),
    (UNIFORM, Sources::All, Method::Attempt, Scorer::Uniform),
];

/// The comparison on `target`, with the settings `shared` by its runs, of all [`METHODS`] but those called `left_out`.
pub(super) fn study_on(
    target: &str,
    settings: &TargetSettings,
    shared: RunConfig,
    sources: Vec<Source>,
    left_out: &[&str],
) -> Study {
    let (steps, validate_every) = (Some(settings.steps), Some(settings.validate_every));
    let config = RunConfig { steps, validate_every, ..shared };
    let declared = |(name, sources, method, scorer): (&str, Sources, Method, Scorer)| StudyMethod {
        name: name.to_owned(),
        sources,
        has_pretrained_scorer: false,
        learning_rates: if name == AS_IS { Vec::new() } else { settings.learning_rates.clone() },
        config: RunConfig { method, scorer, ..config.clone() },
    };
    let methods = METHODS.into_iter().filter(|(name, ..)| !left_out.contains(name)).map(declared).collect();
    let place = |&seed: &u64| Place::new(format!("seed-{seed}"), seed as usize, seed);
    Study {
        sources,
        scorer: None,
        targets: vec![Target { name: target.into(), published: BTreeMap::new(), config, methods }],
        places: settings.seeds.iter().map(place).collect(),
        against: ATTEMPT.into(),
    }
}
