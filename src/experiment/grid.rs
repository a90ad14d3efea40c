//! Entries x rates x places, each a run folder.

use std::path::{Path, PathBuf};

use super::statistics::mean;
use super::workers::{Progress, Ticks, Workers};
use crate::backend::Backend;
use crate::config::RunConfig;
use crate::data::Split;
use crate::error::{Error, Result};
use crate::model::Frozen;
use crate::train::{RunFolder, Trainer, resume};

/// Where an entry is trained and judged: a data set and a seed.
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
pub type Configure<'a> = Box<dyn Fn(&Place, f64) -> RunConfig + Sync + 'a>;

/// One way to learn a target.
pub struct Entry<'a> {
    /// What it is called; unique, and in lower case a part of its runs' folders.
    pub name: String,
    /// The learning rates that it may choose from; none for one that is judged as it starts.
    pub rates: Vec<f64>,
    /// The settings of a training in a place at a rate.
    pub config: Configure<'a>,
}

impl<'a> Entry<'a> {
    /// An entry that tries each of `rates`.
    pub fn new(
        name: impl Into<String>,
        rates: &[f64],
        config: impl Fn(&Place, f64) -> RunConfig + Sync + 'a,
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
    pub folder: PathBuf,
}

/// What an entry's chosen runs came to.
#[derive(Clone, Debug, PartialEq)]
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
    /// The answers to the test rows of each place.
    pub answers: Vec<Vec<String>>,
    /// The mixture of each test row of each place, the target prompt last; empty rows without a mixture.
    pub attention: Vec<Vec<Vec<f64>>>,
}

/// Trained entries.
pub struct Grid<'a> {
    workers: Workers<'a>,
    places: &'a [Place],
    entries: Vec<(Entry<'a>, Vec<Cell>)>,
}

impl<'a> Grid<'a> {
    /// An empty grid over `places`.
    pub fn new(workers: Workers<'a>, places: &'a [Place]) -> Self {
        Self { workers, places, entries: Vec::new() }
    }

    /// Trains `entries` at all their rates in all places, in run folders below `folder`, and goes on with those that are there.
    ///
    /// # Errors
    /// Those of training; [`Error::Setting`] if a run folder is there that has other settings.
    pub fn train(
        &mut self,
        what: &'static str,
        folder: &Path,
        entries: Vec<Entry<'a>>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut jobs: Vec<(usize, usize, Option<f64>, RunConfig)> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let rates: Vec<Option<f64>> = match entry.rates.is_empty() {
                true => vec![None],
                false => entry.rates.iter().map(|&rate| Some(rate)).collect(),
            };
            for rate in rates {
                jobs.extend(self.places.iter().enumerate().map(|(number, place)| {
                    (index, number, rate, (entry.config)(place, rate.unwrap_or(0.0)))
                }));
            }
        }
        // An untrained one ticks once.
        let steps = |(_, _, rate, config): &(usize, usize, Option<f64>, RunConfig)| {
            rate.map_or(1, |_| config.steps.unwrap_or(0))
        };
        progress.begin(what, jobs.iter().map(steps).sum());
        let cells = self.workers.run(&jobs, progress, |frozen, (index, number, rate, config), ticks| {
            let place = &self.places[*number];
            let name = match rate {
                Some(rate) => format!("{}-rate-{rate}-{}", slug(&entries[*index].name), place.name),
                None => String::new(),
            };
            let folder = folder.join(name);
            let mut trainer = Trainer::new(frozen, config, ticks)?;
            let (validation, trained) = match rate {
                Some(_) => (finish(&mut trainer, config, &folder, ticks)?, trainer.trained()),
                None => {
                    let validation = trainer.validate(ticks)?.mean;
                    ticks.done();
                    (validation, 0)
                }
            };
            Ok(Cell { rate: *rate, place: *number, validation, trained, folder })
        })?;
        let mut own: Vec<Vec<Cell>> = entries.iter().map(|_| Vec::new()).collect();
        for ((index, ..), cell) in jobs.iter().zip(cells) {
            own[*index].push(cell);
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

    /// The best validation of the entry called `name`, as [`choose`](Self::choose) does, a place each.
    ///
    /// # Panics
    /// As there.
    pub fn validation(&self, name: &str) -> Vec<f64> {
        self.choose(name).iter().map(|cell| cell.validation).collect()
    }

    /// Judges the chosen runs of the entries called `names` on the test rows.
    ///
    /// # Errors
    /// Those of the data and of evaluation.
    ///
    /// # Panics
    /// As [`choose`](Self::choose).
    pub fn test(
        &self,
        what: &'static str,
        names: &[String],
        progress: &mut dyn Progress,
    ) -> Result<Vec<Tested>> {
        let jobs: Vec<(&Entry<'a>, &Cell)> = names
            .iter()
            .flat_map(|name| self.choose(name).into_iter().map(|cell| (&self.entry(name).0, cell)))
            .collect();
        progress.begin(what, jobs.len() as u64);
        let evaluations = self.workers.run(&jobs, progress, |frozen, (entry, cell), ticks| {
            let config = (entry.config)(&self.places[cell.place], cell.rate.unwrap_or(0.0));
            let trainer = Trainer::new(frozen, &config, ticks)?;
            let parameters = match cell.rate {
                Some(_) => RunFolder::load_best(&cell.folder, &trainer.mixture().layout)?,
                None => trainer.parameters(),
            };
            let evaluation = trainer.evaluate(Split::Test, Some(&parameters), &mut |_| {})?;
            ticks.done();
            Ok(evaluation)
        })?;
        let mut evaluations = evaluations.into_iter();
        let tested = names.iter().map(|name| {
            let cells = self.choose(name);
            let mut tested = Tested {
                name: name.clone(),
                rate: cells.first().and_then(|cell| cell.rate),
                trained: cells.first().map_or(0, |cell| cell.trained),
                validation: cells.iter().map(|cell| cell.validation).collect(),
                test: Vec::new(),
                answers: Vec::new(),
                attention: Vec::new(),
            };
            for evaluation in evaluations.by_ref().take(cells.len()) {
                tested.test.push(evaluation.scores.mean().unwrap_or(f64::NAN));
                tested.answers.push(evaluation.answers);
                tested.attention.push(evaluation.attention);
            }
            tested
        });
        Ok(tested.collect())
    }

    fn entry(&self, name: &str) -> &(Entry<'a>, Vec<Cell>) {
        let found = self.entries.iter().find(|(entry, _)| entry.name == name);
        found.unwrap_or_else(|| panic!("no entry is called {name}"))
    }
}

/// Takes the steps that the run in `folder` has left; gives back its best validation.
fn finish<B: Backend>(
    trainer: &mut Trainer<'_, B>,
    config: &RunConfig,
    folder: &Path,
    ticks: &mut Ticks,
) -> Result<f64> {
    let mut run = if folder.join("run.json").is_file() {
        if RunFolder::saved(folder)?.config != *config {
            let found = format!("a run of other settings in {}", folder.display());
            let advice = "name another folder, or remove this one";
            return Err(Error::setting("the comparison's folder", "runs of its own settings", found, advice));
        }
        resume(trainer, folder)?
    } else {
        RunFolder::create(folder, config, trainer.model_hash())?
    };
    (0..trainer.step_count()).for_each(|_| ticks.done());
    Ok(trainer.run(Some(&mut run), ticks)?.best)
}

/// The index of the largest, the first of equals; numbers that are none lose.
pub(crate) fn first_best(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, other| {
        if values[other] > values[best] || values[best].is_nan() { other } else { best }
    })
}

fn slug(name: &str) -> String {
    let letters = name.to_lowercase();
    let words = letters.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// Trains one run in `folder`, or goes on with it there; gives back its best validation.
///
/// # Errors
/// As [`Grid::train`].
pub fn train_one<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    folder: &Path,
    ticks: &mut Ticks,
) -> Result<f64> {
    finish(&mut Trainer::new(frozen, config, ticks)?, config, folder, ticks)
}
