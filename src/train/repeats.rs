//! Which runs repeat one another: equal in every setting but their seeds, so that their mean and spread mean something.

use serde_json::{Map, Value};

use super::Saved;

/// Settings that a repetition changes.
const SEEDS: [&str; 2] = ["seed", "data-seed"];

/// Groups of runs on one model whose settings differ in `seed` and `data-seed` alone, by their places in `runs`: groups in
/// the order of their first runs, the runs of each in theirs.
pub fn repeats(runs: &[&Saved]) -> Vec<Vec<usize>> {
    let mut groups: Vec<(Map<String, Value>, Vec<usize>)> = Vec::new();
    for (place, saved) in runs.iter().enumerate() {
        let settings = settings(saved);
        match groups.iter_mut().find(|(other, _)| *other == settings) {
            Some((_, places)) => places.push(place),
            None => groups.push((settings, vec![place])),
        }
    }
    groups.into_iter().map(|(_, places)| places).collect()
}

/// The settings, by their names in files, that are not the same for all `runs`, seeds left out; `model` where the files
/// differ.
pub fn differing_settings(runs: &[&Saved]) -> Vec<String> {
    let all: Vec<_> = runs.iter().map(|saved| settings(saved)).collect();
    let Some(first) = all.first() else { return Vec::new() };
    let differs = |key: &&String| all.iter().any(|other| other.get(*key) != first.get(*key));
    first.keys().filter(differs).cloned().collect()
}

/// All that a run has in common with its repetitions.
fn settings(saved: &Saved) -> Map<String, Value> {
    let Ok(Value::Object(mut settings)) = serde_json::to_value(&saved.config) else { return Map::new() };
    settings.retain(|key, _| !SEEDS.contains(&key.as_str()));
    // One model may lie in several places.
    settings.insert("model".into(), Value::from(saved.model_hash.clone()));
    settings
}
