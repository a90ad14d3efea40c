//! Which runs repeat one another: equal in every setting but their seeds, so that their mean and spread mean something.

use serde_json::{Map, Value};

use super::RunManifest;
use crate::config::RunConfig;

/// Settings that a repetition changes.
const SEEDS: [&str; 2] = ["seed", "data-seed"];

/// Where names of runs may be cut.
pub(crate) const NAME_BREAKS: &str = "/-_ :";

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

/// What runs called `names` are called together: what the names have in common, with a star for what differs; without anything in
/// common, the first's and how many more there are.
pub(crate) fn name_of_repeats(names: &[String]) -> String {
    let [first, rest @ ..] = names else { return String::new() };
    if rest.is_empty() {
        return first.clone();
    }
    match common_ends(names, NAME_BREAKS) {
        (0, 0) => format!("{first} and {} more", rest.len()),
        (head, tail) => format!("{}*{}", &first[..head], &first[first.len() - tail..]),
    }
}

/// Bytes that all names have in common at their beginnings and, of the rest, at their ends, up to the last of `breaks`;
/// none of a single name.
pub(crate) fn common_ends(names: &[String], breaks: &str) -> (usize, usize) {
    let Some(first) = names.first() else { return (0, 0) };
    if names.iter().all(|name| name == first) {
        return (0, 0);
    }
    let heads = first.char_indices().map(|(at, c)| (at + c.len_utf8(), c));
    let head = heads
        .take_while(|(end, _)| names.iter().all(|name| name.starts_with(&first[..*end])))
        .filter(|(end, c)| breaks.contains(*c) && names.iter().all(|name| name.len() > *end))
        .last()
        .map_or(0, |(end, _)| end);
    let tails = first[head..].char_indices().rev().map(|(at, c)| (first.len() - head - at, c));
    let tail = tails
        .take_while(|(length, _)| {
            let end = &first[first.len() - length..];
            names.iter().all(|name| name.len() > head + length && name.ends_with(end))
        })
        .filter(|(_, c)| breaks.contains(*c))
        .last()
        .map_or(0, |(length, _)| length);
    (head, tail)
}
