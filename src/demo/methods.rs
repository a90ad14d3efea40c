//! What is compared on the demonstration's targets, declared as studies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::settings::TargetSettings;
use super::sources::source_paths;
use super::table::ATTEMPT;
use crate::backend::Scorer;
use crate::config::{Method, RunConfig};
use crate::experiment::{Place, Source, Sources, Study, StudyMethod, Target};

pub(super) const PROMPT_TUNING: &str = "prompt tuning";
pub(super) const UNIFORM: &str = "control: equal weights";
pub(super) const CONSTANT: &str = "control: constant weights";
pub(super) const AS_IS: &str = "{} as it is";
pub(super) const SPOT: &str = "SPoT from {}";
pub(super) const SPOT_EACH: &str = "control: SPoT, best of six sources";
pub(super) const NOISE: &str = "control: ATTEMPT, random sources";

/// Each method with its sources. Where its weights are not attention's, they are 1/(S+1), or learnt ones that no input moves.
const METHODS: [(&str, Sources, Method, Scorer); 8] = [
    (PROMPT_TUNING, Sources::None, Method::PromptTuning, Scorer::Bottleneck),
    (AS_IS, Sources::Best, Method::Spot, Scorer::Bottleneck),
    (SPOT, Sources::Best, Method::Spot, Scorer::Bottleneck),
    (ATTEMPT, Sources::All, Method::Attempt, Scorer::Bottleneck),
    (NOISE, Sources::Random, Method::Attempt, Scorer::Bottleneck),
    (SPOT_EACH, Sources::Each, Method::Spot, Scorer::Bottleneck),
    (UNIFORM, Sources::All, Method::Attempt, Scorer::Uniform),
    (CONSTANT, Sources::All, Method::Attempt, Scorer::Constant),
];

/// The source prompts called `names`.
pub(super) fn sources(out: &Path, names: &[&str]) -> Vec<Source> {
    let source = |(name, prompt): (&&str, PathBuf)| Source {
        name: (*name).to_owned(),
        prompt: Some(prompt),
        config: RunConfig::default(),
    };
    names.iter().zip(source_paths(out, names)).map(source).collect()
}

/// The comparison on `target`, with the settings `shared` by its runs, of what `methods` names of [`METHODS`].
pub(super) fn study_on(
    target: &str,
    settings: &TargetSettings,
    shared: RunConfig,
    sources: Vec<Source>,
    methods: &[&str],
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
    let of_name = |name: &&str| METHODS.into_iter().find(|(of, ..)| of == name).map(declared);
    let methods = methods.iter().filter_map(of_name).collect();
    let place = |&seed: &u64| Place::new(format!("seed-{seed}"), seed as usize, seed);
    Study {
        sources,
        scorer: None,
        targets: vec![Target { name: target.into(), published: BTreeMap::new(), config, methods }],
        places: settings.seeds.iter().map(place).collect(),
        against: ATTEMPT.into(),
    }
}
