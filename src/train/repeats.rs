//! Which runs repeat one another: equal in every setting but their seeds, so that their mean and spread mean something.

use serde_json::{Map, Value};

use super::RunManifest;
use crate::config::RunConfig;

/// Settings that a repetition changes.
const SEEDS: [&str; 2] = ["seed", "data-seed"];

/// Groups of runs, each given by its settings and its model's hash, on one model and with settings that differ in `seed` and
/// `data-seed` alone, by their places in `runs`: groups in the order of their first runs, the runs of each in theirs.
pub fn repeats<'a>(runs: impl IntoIterator<Item = (&'a RunConfig, &'a str)>) -> Vec<Vec<usize>> {
    let mut groups: Vec<(Map<String, Value>, Vec<usize>)> = Vec::new();
    for (place, (config, model)) in runs.into_iter().enumerate() {
        let settings = settings(config, model);
        match groups.iter_mut().find(|(other, _)| *other == settings) {
            Some((_, places)) => places.push(place),
            None => groups.push((settings, vec![place])),
        }
    }
    groups.into_iter().map(|(_, places)| places).collect()
}

/// The settings, by their names in files, that are not the same for all `runs`, seeds left out; `model` where the files
/// differ.
pub fn differing_settings(runs: &[&RunManifest]) -> Vec<String> {
    let all: Vec<_> = runs.iter().map(|saved| settings(&saved.config, &saved.model_hash)).collect();
    let Some(first) = all.first() else { return Vec::new() };
    let differs = |key: &&String| all.iter().any(|other| other.get(*key) != first.get(*key));
    first.keys().filter(differs).cloned().collect()
}

/// All that a run has in common with its repetitions.
fn settings(config: &RunConfig, model: &str) -> Map<String, Value> {
    let Ok(Value::Object(mut settings)) = serde_json::to_value(config) else { return Map::new() };
    settings.retain(|key, _| !SEEDS.contains(&key.as_str()));
    // One model may lie in several places.
    settings.insert("model".into(), Value::from(model));
    settings
}
