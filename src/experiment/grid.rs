//! Entries x rates x places, each a run folder.

use std::path::{Path, PathBuf};

use super::progress::Progress;
use super::runner::{EvaluationJob, Runner, Training, complete, mean_metric};
use super::statistics::{first_best, mean};
use crate::config::RunConfig;
use crate::data::Split;
use crate::error::Result;
use crate::evaluate::Evaluation;

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
}

/// Makes the settings of a training in a place at a rate.
pub type Configure<'a> = Box<dyn Fn(&Place, f64) -> RunConfig + 'a>;

/// One way to learn a target.
pub struct Entry<'a> {
    /// What it is called; unique, and in lower case a part of its runs' folders.
    pub name: String,
    /// The learning rates that it may choose from; none for one that is evaluated as it starts.
    pub rates: Vec<f64>,
    /// The settings of a training in a place at a rate.
    pub config: Configure<'a>,
}

impl<'a> Entry<'a> {
    /// An entry that tries each of `rates`.
    pub fn new(
        name: impl Into<String>,
        rates: &[f64],
        config: impl Fn(&Place, f64) -> RunConfig + 'a,
    ) -> Self {
        Self { name: name.into(), rates: rates.to_vec(), config: Box::new(config) }
    }
}

/// A training that was done.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Cell {
    /// The learning rate; `None` if nothing was trained.
    pub rate: Option<f64>,
    /// The number of its place.
    pub place: usize,
    /// The mean metric of its best validation.
    pub validation: f64,
    /// Numbers that trained.
    pub trained: usize,
    /// Its run folder, where something was trained.
    pub folder: Option<PathBuf>,
}

/// What an entry's chosen runs came to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tested {
    /// The entry's name.
    pub name: String,
    /// The learning rate that validation chose; `None` if nothing was trained.
    pub rate: Option<f64>,
    /// Numbers that trained.
    pub trained: usize,
    /// The mean metric of the best validation, a place each.
    pub validation: Vec<f64>,
    /// The mean metric on the test rows, a place each.
    pub test: Vec<f64>,
    /// What the runs answered to the test rows: a place each, a task each.
    pub evaluations: Vec<Vec<(String, Evaluation)>>,
}

impl Tested {
    /// The mixture of each test row of the first task in each place, the target prompt last; empty rows without a mixture.
    pub fn attention(&self) -> Vec<&[Vec<f64>]> {
        self.evaluations.iter().map(|tasks| &tasks[0].1.attention[..]).collect()
    }
}

/// Trained entries.
pub struct Grid<'a> {
    runner: &'a dyn Runner,
    places: &'a [Place],
    entries: Vec<(Entry<'a>, Vec<Cell>)>,
}

impl<'a> Grid<'a> {
    /// An empty grid over `places`.
    pub fn new(runner: &'a dyn Runner, places: &'a [Place]) -> Self {
        Self { runner, places, entries: Vec::new() }
    }

    /// Trains `entries` at all their rates in all places, in run folders below `folder`, and goes on with those that are there.
    ///
    /// # Errors
    /// Those of training; [`Error::Setting`](crate::Error::Setting) if a run folder is there that has other settings.
    pub fn train(
        &mut self,
        what: &str,
        folder: &Path,
        entries: Vec<Entry<'a>>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let (mut trainings, mut untrained) = (Vec::new(), Vec::new());
        let mut own: Vec<Vec<Cell>> = Vec::with_capacity(entries.len());
        for entry in &entries {
            let mut cells = Vec::new();
            let rates: Vec<Option<f64>> = match entry.rates.is_empty() {
                true => vec![None],
                false => entry.rates.iter().map(|&rate| Some(rate)).collect(),
            };
            for rate in rates {
                for (number, place) in self.places.iter().enumerate() {
                    let config = (entry.config)(place, rate.unwrap_or(0.0));
                    let mut cell =
                        Cell { rate, place: number, validation: f64::NAN, trained: 0, folder: None };
                    if let Some(rate) = rate {
                        let name = format!("{}-rate-{rate}-{}", slug(&entry.name), place.name);
                        let folder = folder.join(&name);
                        cell.folder = Some(folder.clone());
                        trainings.push(Training::new(name, config, folder));
                    } else {
                        untrained.push(EvaluationJob::new(config, None, Split::Validation));
                    }
                    cells.push(cell);
                }
            }
            own.push(cells);
        }
        let steps: u64 = trainings.iter().map(|training| training.config.steps.unwrap_or(0)).sum();
        // An untrained one ticks once.
        progress.begin(what, steps + untrained.len() as u64);
        let mut outcomes = self.runner.train(&trainings, progress)?.into_iter();
        let mut evaluated = self.runner.evaluate(&untrained, progress)?.into_iter();
        for cell in own.iter_mut().flatten() {
            match cell.rate {
                Some(_) => {
                    if let Some(outcome) = outcomes.next().transpose()? {
                        (cell.validation, cell.trained) = (outcome.best, outcome.trained);
                    }
                }
                None => {
                    if let Some(evaluated) = evaluated.next() {
                        cell.validation = mean_metric(&complete(evaluated)?);
                    }
                }
            }
        }
        self.entries.extend(entries.into_iter().zip(own));
        Ok(())
    }

    /// The cells of the entry called `name` at the rate whose mean validation over the places is the best, the first of
    /// equals; in the places' order.
    ///
    /// # Panics
    /// If no entry of that name was trained.
    pub fn choose(&self, name: &str) -> Vec<&Cell> {
        let (entry, cells) = self.entry(name);
        let at =
            |rate: Option<f64>| -> Vec<&Cell> { cells.iter().filter(|cell| cell.rate == rate).collect() };
        let of_rates: Vec<Vec<&Cell>> = match entry.rates.is_empty() {
            true => vec![at(None)],
            false => entry.rates.iter().map(|&rate| at(Some(rate))).collect(),
        };
        let means: Vec<f64> = of_rates
            .iter()
            .map(|cells| mean(&cells.iter().map(|cell| cell.validation).collect::<Vec<_>>()))
            .collect();
        of_rates.into_iter().nth(first_best(&means)).unwrap_or_default()
    }

    /// Every training of the entry called `name`.
    ///
    /// # Panics
    /// If no entry of that name was trained.
    pub fn cells(&self, name: &str) -> &[Cell] {
        &self.entry(name).1
    }

    /// The best validation of the entry called `name`, as [`choose`](Self::choose) does, a place each.
    ///
    /// # Panics
    /// As there.
    pub fn validation(&self, name: &str) -> Vec<f64> {
        self.choose(name).iter().map(|cell| cell.validation).collect()
    }

    /// Evaluates the chosen runs of the entries called `names` on the test rows.
    ///
    /// # Errors
    /// Those of the data and of evaluation.
    ///
    /// # Panics
    /// As [`choose`](Self::choose).
    pub fn test(&self, what: &str, names: &[String], progress: &mut dyn Progress) -> Result<Vec<Tested>> {
        let mut runs = Vec::new();
        for name in names {
            let (entry, _) = self.entry(name);
            for cell in self.choose(name) {
                let config = (entry.config)(&self.places[cell.place], cell.rate.unwrap_or(0.0));
                runs.push(EvaluationJob::new(config, cell.folder.clone(), Split::Test));
            }
        }
        progress.begin(what, runs.len() as u64);
        let mut evaluated = self.runner.evaluate(&runs, progress)?.into_iter();
        let tested = names.iter().map(|name| {
            let cells = self.choose(name);
            let evaluations =
                evaluated.by_ref().take(cells.len()).map(complete).collect::<Result<Vec<_>>>()?;
            Ok(Tested {
                name: name.clone(),
                rate: cells.first().and_then(|cell| cell.rate),
                trained: cells.first().map_or(0, |cell| cell.trained),
                validation: cells.iter().map(|cell| cell.validation).collect(),
                test: evaluations.iter().map(|tasks| mean_metric(tasks)).collect(),
                evaluations,
            })
        });
        tested.collect()
    }

    #[expect(clippy::panic, reason = "its callers say that they panic, and no user names an entry")]
    fn entry(&self, name: &str) -> &(Entry<'a>, Vec<Cell>) {
        let found = self.entries.iter().find(|(entry, _)| entry.name == name);
        found.unwrap_or_else(|| panic!("no entry is called {name}"))
    }
}

/// `name` as a part of a folder's.
pub(crate) fn slug(name: &str) -> String {
    let letters = name.to_lowercase();
    let words = letters.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}
