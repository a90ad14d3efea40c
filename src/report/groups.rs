//! Runs that differ in their seeds alone, together.

use super::history::{History, json, text};
use crate::evaluate::Spread;
use crate::train::{RunManifest, differing_settings, name_of_repeats, repeats};

/// Runs that repeat one another; a run without repetitions is a group of its own.
pub(super) struct Group<'a> {
    pub(super) name: String,
    pub(super) runs: Vec<&'a History>,
}

impl Group<'_> {
    /// Mean and standard deviation of `value` over the runs that have it, and how many those are; `None` if none has.
    pub(super) fn spread(&self, value: impl Fn(&History) -> Option<f64>) -> Option<(Spread, usize)> {
        let values: Vec<f64> = self.runs.iter().filter_map(|run| value(run)).collect();
        (!values.is_empty()).then(|| (Spread::new("", &values), values.len()))
    }
}

/// The groups of `runs`, in the order of their first runs.
pub(super) fn groups(runs: &[History]) -> Vec<Group<'_>> {
    let saved: Vec<&RunManifest> = runs.iter().map(|run| &run.saved).collect();
    let mut groups: Vec<Group<'_>> =
        repeats(saved.iter().map(|saved| (&saved.config, &saved.model_hash[..])))
            .into_iter()
            .map(|places| {
                let runs: Vec<&History> = places.into_iter().map(|place| &runs[place]).collect();
                Group { name: name(&runs), runs }
            })
            .collect();
    // Names that say nothing of what a group has for itself are told apart by its settings.
    let firsts: Vec<&RunManifest> = groups.iter().map(|group| &group.runs[0].saved).collect();
    let differing = differing_settings(&firsts);
    let settings = |group: &Group<'_>| {
        let config = json(&group.runs[0].saved.config);
        let said = differing.iter().filter(|key| *key != "model");
        let said = said.map(|key| format!("{key} {}", text(&config[key.as_str()])));
        said.collect::<Vec<_>>().join(", ")
    };
    let is_twice = |name: &str| groups.iter().filter(|group| group.name == name).count() > 1;
    let names: Vec<String> = groups
        .iter()
        .map(|group| match is_twice(&group.name) {
            true => format!("{}: {}", group.name, settings(group)),
            false => group.name.clone(),
        })
        .collect();
    groups.iter_mut().zip(names).for_each(|(group, name)| group.name = name);
    groups
}

/// What the runs are called together.
pub(super) fn name(runs: &[&History]) -> String {
    name_of_repeats(&runs.iter().map(|run| run.name.clone()).collect::<Vec<_>>())
}
