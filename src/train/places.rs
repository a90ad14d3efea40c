//! Where what a run's settings name lies now: a run's folder, its model and its data are moved and copied, together and apart.
//!
//! Settings hold paths as they were given: relative ones start where training ran. A thing is looked for there, then from
//! where the program runs now, then beside the run: from its folder and each one above.

use std::path::{Component, Path, PathBuf};

use super::RunManifest;
use crate::config::RunConfig;
use crate::data::moved_places;
use crate::error::{Error, Result};
use crate::pretrained::{Checkpoint, is_hub_id, locate};
use crate::prompts::Prompt;

impl RunManifest {
    /// The settings with the paths at which their data, sources, task files, start prompt and scorer are found now; what is
    /// found nowhere keeps its path, for the error that whoever reads it gives.
    pub fn located(&self, run: &Path) -> RunConfig {
        let mut config = self.config.clone();
        let find = |path: &Path| self.candidates(path, run, 2).into_iter().find(|place| place.exists());
        let moved = |path: &mut PathBuf| {
            if !path.as_os_str().is_empty()
                && let Some(place) = find(path)
            {
                *path = place;
            }
        };
        let tasks = config.task_names().count();
        config.data = moved_places(&config.data, tasks, |part| find(part).unwrap_or_else(|| part.to_owned()));
        for (index, path) in config.sources.iter_mut().enumerate() {
            // Of several files of that name the prompt that it was trained with, if it is one of them.
            let is_source = |place: &PathBuf| {
                let sha256 = self.sources_sha256.get(index);
                sha256
                    .is_some_and(|sha256| Prompt::load(place).is_ok_and(|prompt| prompt.sha256() == *sha256))
            };
            match self.candidates(path, run, 2).into_iter().find(is_source) {
                Some(place) => *path = place,
                None => moved(path),
            }
        }
        config.initial_prompt.iter_mut().for_each(moved);
        config.initial_scorer.iter_mut().for_each(moved);
        let tasks: Vec<String> = config
            .task_names()
            .map(|name| match find(Path::new(name)) {
                Some(place) if name.ends_with(".toml") => place.display().to_string(),
                _ => name.to_owned(),
            })
            .collect();
        config.task = tasks.join(",");
        config
    }

    /// The model that the run was trained with: at `given` if that names a place, else where the settings have it or
    /// beside the run, whatever has the recorded hash; else from the hub, if the settings may name one of the hub's.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the places if none holds the model; those of reading a checkpoint.
    pub fn model(&self, run: &Path, given: Option<&str>) -> Result<Checkpoint> {
        if let Some(given) = given {
            let checkpoint = Checkpoint::open(&locate(given)?)?;
            self.check_model(checkpoint.sha256()?, "--model")?;
            return Ok(checkpoint);
        }
        let recorded = &self.config.model;
        let mut failure = None;
        let places = self.candidates(Path::new(recorded), run, 1);
        for place in places.iter().filter(|place| place.is_dir()) {
            let opened = Checkpoint::open(place).and_then(|checkpoint| {
                self.check_model(checkpoint.sha256()?, "--run")?;
                Ok(checkpoint)
            });
            match opened {
                Ok(checkpoint) => return Ok(checkpoint),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let mut found = format!("no such folder where the run was trained nor beside {}", run.display());
        if self.model_is_folder != Some(true) && is_hub_id(recorded) {
            match locate(recorded).and_then(|folder| Checkpoint::open(&folder)) {
                Ok(checkpoint) => {
                    self.check_model(checkpoint.sha256()?, "--run")?;
                    return Ok(checkpoint);
                }
                Err(error) => found.push_str(&format!(", and from the hub: {error}")),
            }
        }
        Err(Error::setting(
            "--model",
            format!("the model `{recorded}` that the run was trained with, of SHA-256 {}", self.model_hash),
            found,
            "name the folder in which it lies now: --model FOLDER",
        ))
    }

    /// Where `path` may lie, the likeliest first, each place once. Its last parts are looked for beside the run, at least so many as
    /// `parts`.
    fn candidates(&self, path: &Path, run: &Path, parts: usize) -> Vec<PathBuf> {
        let mut places = Vec::new();
        let mut add = |place: PathBuf| {
            if !places.contains(&place) {
                places.push(place);
            }
        };
        let recorded =
            self.trained_in.as_ref().map(|folder| folder.join(path)).filter(|place| place.exists());
        // As it stands where that is the same place: messages then name what the user gave.
        match (recorded, path.canonicalize()) {
            (Some(place), Ok(here)) if place.canonicalize().ok().as_ref() == Some(&here) => {
                add(path.to_owned())
            }
            (Some(place), _) => {
                add(place);
                add(path.to_owned());
            }
            (None, _) => add(path.to_owned()),
        }
        let named: Vec<Component<'_>> = path.components().collect();
        let names = &named[named.iter().take_while(|part| !matches!(part, Component::Normal(_))).count()..];
        let tails = (0..(names.len() + 1).saturating_sub(parts)).map(|from| names[from..].iter().collect());
        let whole = (!path.is_absolute()).then(|| path.to_owned());
        let tails: Vec<PathBuf> = whole.into_iter().chain(tails).collect();
        let run = run.canonicalize().unwrap_or_else(|_| run.to_owned());
        for tail in &tails {
            run.ancestors().for_each(|folder| add(folder.join(tail)));
        }
        places
    }
}

/// The settings with each path to data, prompts and a scorer that is there in full: two ways to write one place are one.
pub(super) fn with_whole_paths(config: &RunConfig) -> RunConfig {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut config = config.clone();
    config.data = moved_places(&config.data, config.task_names().count(), whole);
    let prompts = config.sources.iter_mut().chain(&mut config.initial_prompt);
    prompts.chain(&mut config.initial_scorer).for_each(|path| *path = whole(path));
    config
}
