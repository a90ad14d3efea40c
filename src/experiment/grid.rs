//! The engine of every comparison: entries, what each chooses from, and places, a run folder each.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::progress::Progress;
use super::runner::{EvaluationJob, Runner, Training, train_all};
use crate::config::RunConfig;
use crate::data::Split;
use crate::error::Result;
use crate::evaluate::{Evaluation, first_best, mean};
use crate::files::folder_name;
use crate::train::{complete, mean_attention, mean_metric, metrics_of_runs};

/// Where an entry is trained and evaluated: a data set and a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// A name that is unique and can be a part of a folder's.
    pub name: String,
    /// The number of the data set.
    pub data: usize,
    /// The seed of initialisation, order and dropout.
    pub seed: u64,
}

impl Place {
    /// The place called `name`.
    pub fn new(name: impl Into<String>, data: usize, seed: u64) -> Self {
        Self { name: name.into(), data, seed }
    }

    /// The settings `config` in this place: with its seed, and few-shot rows drawn by its data set's number unless they have a seed.
    pub(super) fn apply(&self, config: &RunConfig) -> RunConfig {
        let drawn = config.few_shot.map(|_| self.data as u64);
        RunConfig { seed: self.seed, data_seed: config.data_seed.or(drawn), ..config.clone() }
    }
}

/// One way to learn a target.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// What it is called; unique, and in lower case a part of its runs' folders.
    pub name: String,
    /// What it chooses from by the mean validation over the places.
    pub candidates: Vec<Candidate>,
}

/// What an entry may choose: a learning rate, and a source where it tries several.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Candidate {
    /// The learning rate; `None` if nothing is trained.
    pub rate: Option<f64>,
    /// The source that it starts from, where others start from others.
    pub source: Option<String>,
    /// Its settings, a place each.
    pub configs: Vec<RunConfig>,
    /// Its run folders, a place each, where something is trained; known once it is.
    pub folders: Vec<PathBuf>,
    /// The mean metric of the best validation, a place each; known once it is trained.
    pub validation: Vec<f64>,
    /// Numbers that train; known once it is trained.
    pub trained: usize,
}

impl Entry {
    /// An entry that tries each of `rates` from each source; without rates it is evaluated as it starts. Sources are given by their
    /// names, each with the settings of its runs, a place each: one without a name where the runs do not try several.
    pub fn new(
        name: impl Into<String>,
        rates: &[f64],
        sources: impl IntoIterator<Item = (Option<String>, Vec<RunConfig>)>,
    ) -> Self {
        let untrained = rates.is_empty().then_some(None);
        let rates: Vec<Option<f64>> = rates.iter().copied().map(Some).chain(untrained).collect();
        let mut candidates = Vec::new();
        for (source, configs) in sources {
            for &rate in &rates {
                let at_rate = |config: &RunConfig| RunConfig {
                    learning_rate: rate.unwrap_or(config.learning_rate),
                    ..config.clone()
                };
                let (source, configs) = (source.clone(), configs.iter().map(at_rate).collect());
                candidates.push(Candidate { rate, source, configs, ..Candidate::default() });
            }
        }
        Self { name: name.into(), candidates }
    }

    /// What it chose, once it is trained: the best mean validation over the places, the first of equals.
    ///
    /// # Panics
    /// Without candidates.
    pub fn choose(&self) -> &Candidate {
        let means: Vec<f64> = self.candidates.iter().map(|candidate| mean(&candidate.validation)).collect();
        &self.candidates[first_best(&means)]
    }
}

impl Candidate {
    fn jobs(&self, split: Split) -> impl Iterator<Item = EvaluationJob> {
        let run = move |(place, config): (usize, &RunConfig)| EvaluationJob {
            config: config.clone(),
            folder: self.folders.get(place).cloned(),
            split,
        };
        self.configs.iter().enumerate().map(run)
    }
}

/// What was found of one entry on one target. Lists have an entry a place: a seed, or a seed and a draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MethodResults {
    /// The method.
    pub name: String,
    /// The rate that validation chose; none where nothing was trained.
    pub learning_rate: Option<f64>,
    /// The source that validation chose, where the method tries each alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Numbers that trained.
    pub trained_numbers: usize,
    /// The best validation's mean metric.
    pub validation: Vec<f64>,
    /// The mean metric on the test rows.
    pub test: Vec<f64>,
    /// Each metric on the test rows; with several tasks their names stand before.
    pub metrics: Vec<(String, Vec<Option<f64>>)>,
    /// The mean weight of each prompt of the mixture over test rows and places, the target's last; none without a mixture.
    pub attention: Vec<f64>,
    /// Every run: its folder, rate, place, and best validation's mean metric.
    pub runs: Vec<(PathBuf, f64, String, f64)>,
    /// The folders of the runs that validation chose, a place each; none where nothing was trained.
    pub chosen: Vec<PathBuf>,
    /// The number that others published.
    pub published: Option<f64>,
    /// The mixture of each test row of the first task, the target prompt last; empty rows without a mixture. Not kept in files.
    #[serde(skip)]
    pub mixtures: Vec<Vec<Vec<f64>>>,
}

/// Where entries are trained, and by whom.
pub struct Grid<'a> {
    /// Who takes the trainings.
    pub runner: &'a dyn Runner,
    /// The places of each entry.
    pub places: &'a [Place],
}

impl Grid<'_> {
    /// Trains `entries` in all places, in run folders below `folder`, and goes on with those that are there. Candidates of equal
    /// settings share a run.
    ///
    /// # Errors
    /// Those of training; [`Error::Setting`](crate::Error::Setting) if a run folder is there that has other settings.
    pub fn train(
        &self,
        what: &str,
        folder: &Path,
        mut entries: Vec<Entry>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Entry>> {
        let (mut trainings, mut untrained): (Vec<Training>, Vec<EvaluationJob>) = Default::default();
        for Entry { name, candidates } in &mut entries {
            for candidate in candidates {
                let Some(rate) = candidate.rate else {
                    untrained.extend(candidate.jobs(Split::Validation));
                    continue;
                };
                let stem =
                    folder_name(&format!("{name} {}", candidate.source.as_deref().unwrap_or_default()));
                for (place, config) in self.places.iter().zip(&candidate.configs) {
                    let twin = trainings.iter().position(|training| training.config == *config);
                    let index = twin.unwrap_or(trainings.len());
                    if index == trainings.len() {
                        let run = format!("{stem}-rate-{rate}-{}", place.name);
                        let name = format!("{what}: {run}");
                        trainings.push(Training::new(name, config.clone(), folder.join(run)));
                    }
                    candidate.folders.push(trainings[index].folder.clone());
                }
            }
        }
        // An untrained one ticks once.
        let outcomes = train_all(what, &trainings, untrained.len(), self.runner, progress)?;
        let mut evaluated = self.runner.evaluate(&untrained, progress)?.into_iter();
        for candidate in entries.iter_mut().flat_map(|entry| &mut entry.candidates) {
            for folder in &candidate.folders {
                let of = trainings.iter().zip(&outcomes).find(|(training, _)| training.folder == *folder);
                candidate.validation.extend(of.map(|(_, outcome)| outcome.best));
                candidate.trained = of.map_or(0, |(_, outcome)| outcome.trained);
            }
            if candidate.rate.is_none() {
                let own = evaluated.by_ref().take(self.places.len());
                let own = own.map(|evaluated| Ok(mean_metric(&complete(evaluated)?)));
                candidate.validation = own.collect::<Result<_>>()?;
            }
        }
        Ok(entries)
    }

    /// Evaluates what trained `entries` chose on the test rows.
    ///
    /// # Errors
    /// Those of the data and of evaluation.
    pub fn test(
        &self,
        what: &str,
        entries: &[Entry],
        progress: &mut dyn Progress,
    ) -> Result<Vec<MethodResults>> {
        let jobs: Vec<EvaluationJob> =
            entries.iter().flat_map(|entry| entry.choose().jobs(Split::Test)).collect();
        progress.begin(what, jobs.len() as u64);
        let mut evaluated = self.runner.evaluate(&jobs, progress)?.into_iter();
        let results = |entry: &Entry| {
            let own = evaluated.by_ref().take(self.places.len());
            Ok(self.results(entry, own.map(complete).collect::<Result<Vec<_>>>()?))
        };
        entries.iter().map(results).collect()
    }

    /// What came of an entry whose chosen runs answered the test rows so: a place each, a task each.
    fn results(&self, entry: &Entry, evaluations: Vec<Vec<(String, Evaluation)>>) -> MethodResults {
        let chosen = entry.choose();
        let mut runs = Vec::new();
        for candidate in &entry.candidates {
            let found = candidate.folders.iter().zip(self.places).zip(&candidate.validation);
            let rates = candidate.rate.into_iter().cycle();
            runs.extend(found.zip(rates).map(|(((folder, place), &validation), rate)| {
                (folder.clone(), rate, place.name.clone(), validation)
            }));
        }
        MethodResults {
            name: entry.name.clone(),
            learning_rate: chosen.rate,
            source: chosen.source.clone(),
            trained_numbers: chosen.trained,
            validation: chosen.validation.clone(),
            test: evaluations.iter().map(|tasks| mean_metric(tasks)).collect(),
            metrics: metrics_of_runs(&evaluations),
            attention: mean_attention(&evaluations),
            runs,
            chosen: chosen.folders.clone(),
            published: None,
            mixtures: evaluations.into_iter().map(|mut tasks| tasks.swap_remove(0).1.attention).collect(),
        }
    }
}
