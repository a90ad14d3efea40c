//! A study: methods x targets x learning rates x places, declared as settings, and its way through the engine.
//!
//! Source prompts are learnt first, then each target with each method. A method's learning rate is chosen by its mean validation
//! over the places; the chosen runs alone answer the test rows. What is done is not done again, at whatever moment a study was
//! interrupted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::comparison::{Comparison, RESULTS, TargetResults};
use super::grid::{Candidate, Entry, Grid, Place};
use super::progress::Progress;
use super::runner::{Runner, Training, train_all};
use crate::config::{Method, RunConfig};
use crate::error::{Error, Result};
use crate::evaluate::{first_best, mean};
use crate::files::{self, folder_name};
use crate::prompts::Prompt;
use crate::train::write_random_like;

/// In the folder of a study: which prompts it began with.
const SOURCES: &str = "sources.json";
/// In the folder of a study: the run that trained the scorer alone.
const SCORER: &str = "scorer";

/// A study. Settings leave out what the study sets itself: the learning rate, the sources, and the seeds of its places.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Study {
    /// The source prompts.
    pub sources: Vec<Source>,
    /// Settings of the scorer's pre-training on the tasks of the sources.
    pub scorer: Option<RunConfig>,
    /// The targets.
    pub targets: Vec<Target>,
    /// Where each method is trained at each rate: seeds, and draws of few-shot rows.
    pub places: Vec<Place>,
    /// The method that the others are compared with.
    pub against: String,
}

/// A source prompt of a study.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Source {
    /// What it is called.
    pub name: String,
    /// A prompt that is there already; learnt first where there is none.
    pub prompt: Option<PathBuf>,
    /// Settings to learn it by.
    pub config: RunConfig,
}

/// A target of a study.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Target {
    /// What it is called.
    pub name: String,
    /// Numbers that others published, by the methods' names.
    pub published: BTreeMap<String, f64>,
    /// Settings of a source as it is.
    pub config: RunConfig,
    /// The methods.
    pub methods: Vec<StudyMethod>,
}

/// A method of a study, on one target.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StudyMethod {
    /// What it is called.
    pub name: String,
    /// Which sources it takes.
    pub sources: Sources,
    /// Whether its scorer starts from the one that was trained on the sources' tasks.
    pub has_pretrained_scorer: bool,
    /// The rates that it chooses from; without any it is evaluated as it starts.
    pub learning_rates: Vec<f64>,
    /// Its settings.
    pub config: RunConfig,
}

/// Which sources a method takes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Sources {
    /// None of the study's: those that its settings have, if any.
    #[serde(skip)]
    None,
    /// All of the study's.
    All,
    /// The one that is best on the target's validation rows as it is.
    Best,
    /// Each alone: it chooses one on validation rows, as it does a learning rate.
    Each,
    /// Random prompts in place of all of them, each row of the norm of the source's row; others for each seed.
    Random,
    /// These, by their places in the study.
    #[serde(skip)]
    Of(Vec<usize>),
}

impl Target {
    /// Whether a method takes the source that is best as it is.
    pub(super) fn needs_best_source(&self) -> bool {
        self.methods.iter().any(|method| method.sources == Sources::Best)
    }

    /// Each kind of run on it: what it is called, its settings, its sources, and its rates where it is trained.
    pub(super) fn runs(&self) -> impl Iterator<Item = (String, &RunConfig, &Sources, &[f64])> {
        let as_is = (self.name.clone(), &self.config, &Sources::All, &[][..]);
        let methods = self.methods.iter().map(|method| {
            let name = format!("{} on {}", method.name, self.name);
            (name, &method.config, &method.sources, &method.learning_rates[..])
        });
        self.needs_best_source().then_some(as_is).into_iter().chain(methods)
    }
}

impl Study {
    /// The sources whose prompts are learnt first.
    pub(crate) fn learnt_sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().filter(|source| source.prompt.is_none())
    }

    /// Does all that the study's results in `out` lack, and writes `results.json`, `results.tsv` and `table.md` there.
    ///
    /// # Errors
    /// Those of training and evaluation; [`Error::Setting`] if `out` holds runs of other settings.
    pub fn run(&self, runner: &dyn Runner, out: &Path, progress: &mut dyn Progress) -> Result<Comparison> {
        std::fs::create_dir_all(out).map_err(|source| Error::file("create", out, source))?;
        let training =
            |source: &Source| Training::new(&source.name, source.config.clone(), folder_of(source, out));
        let trainings: Vec<Training> = self.learnt_sources().map(training).collect();
        if !trainings.is_empty() {
            train_all("source prompts", &trainings, 0, runner, progress)?;
        }
        self.check_prompts(out)?;
        if let Some(config) = &self.scorer {
            let config = self.scorer_config(config, out);
            config.check()?;
            train_all("scorer", &[Training::new("scorer", config, out.join(SCORER))], 0, runner, progress)?;
        }
        let mut comparison = Comparison {
            against: self.against.clone(),
            places: self.places.iter().map(|place| place.name.clone()).collect(),
            targets: Vec::new(),
        };
        // Tables that are there stay until these have as many targets, also where one fails now.
        let written: Option<Comparison> = files::read_json(&out.join(RESULTS), "", "").unwrap_or_default();
        let known = written.map_or(0, |written| written.targets.len()).min(self.targets.len());
        for target in &self.targets {
            comparison.targets.push(match self.finished(target, out) {
                Some(results) => results,
                None => self.compare_on(target, runner, out, progress)?,
            });
            // After each target, so that a long study can be looked at.
            if comparison.targets.len() >= known {
                comparison.write(out)?;
            }
        }
        Ok(comparison)
    }

    /// The prompt of each source, for the study in `out`.
    fn prompts(&self, out: &Path) -> Vec<PathBuf> {
        let learnt = |source| folder_of(source, out).join("prompt.safetensors");
        self.sources.iter().map(|source| source.prompt.clone().unwrap_or_else(|| learnt(source))).collect()
    }

    /// Refuses prompts that are others than those that the study in `out` began with: its numbers would come of both.
    fn check_prompts(&self, out: &Path) -> Result<()> {
        let file = out.join(SOURCES);
        let advice = "remove the file if no source prompt has changed since the study began";
        let known: Option<BTreeMap<String, String>> =
            files::read_json(&file, "the SHA-256 of each source prompt by its name", advice)?;
        let mut all = known.clone().unwrap_or_default();
        for (source, path) in self.sources.iter().zip(self.prompts(out)) {
            let found = Prompt::load(&path)?.sha256();
            let begun_with = all.entry(source.name.clone()).or_insert_with(|| found.clone());
            if *begun_with != found {
                let expected = format!("the source {} as the study began with it, {begun_with}", source.name);
                let found = format!("other numbers in {}, {found}", path.display());
                let advice = "name another folder for a study of the new prompt, or put the old file back";
                return Err(Error::setting("--out", expected, found, advice));
            }
        }
        if known.as_ref() == Some(&all) { Ok(()) } else { files::write_json(&file, &all) }
    }

    /// The settings of the scorer's pre-training on the tasks of the sources, for the study in `out`.
    fn scorer_config(&self, config: &RunConfig, out: &Path) -> RunConfig {
        let of_sources = |text: &dyn Fn(&RunConfig) -> String| {
            self.sources.iter().map(|source| text(&source.config)).collect::<Vec<_>>().join(",")
        };
        RunConfig {
            method: Method::Attempt,
            sources: self.prompts(out),
            pretrain_scorer: true,
            task: of_sources(&|config| config.task.clone()),
            data: of_sources(&|config| config.data.display().to_string()).into(),
            ..config.clone()
        }
    }

    /// Compares the methods on `target`, with the sources' prompts that are there; runs that are there go on.
    pub(crate) fn compare_on(
        &self,
        target: &Target,
        runner: &dyn Runner,
        out: &Path,
        progress: &mut dyn Progress,
    ) -> Result<TargetResults> {
        let runs = out.join("runs").join(folder_name(&target.name));
        let sources = self.prompts(out);
        let names = || self.sources.iter().map(|source| folder_name(&source.name));
        let entry = |name: &str, rates: &[f64], config: &RunConfig, taken: &Sources, best: usize| {
            let at_places = |taken: &Sources| {
                let at = |place: &Place| {
                    let random = out.join("random").join(place.seed.to_string());
                    let sources = match taken {
                        Sources::None => config.sources.clone(),
                        Sources::Of(chosen) => chosen.iter().map(|&source| sources[source].clone()).collect(),
                        Sources::Random => write_random_like(names().zip(&sources), &random, place.seed)?,
                        Sources::Best => vec![sources[best].clone()],
                        Sources::All | Sources::Each => sources.clone(),
                    };
                    Ok(RunConfig { sources, ..place.apply(config) })
                };
                self.places.iter().map(at).collect::<Result<Vec<_>>>()
            };
            let alone = |(index, source): (usize, &Source)| {
                Ok((Some(source.name.clone()), at_places(&Sources::Of(vec![index]))?))
            };
            let tried = match taken {
                Sources::Each => self.sources.iter().enumerate().map(alone).collect::<Result<_>>()?,
                _ => vec![(None, at_places(taken)?)],
            };
            Ok::<_, Error>(Entry::new(name, rates, tried))
        };
        let grid = Grid { runner, places: &self.places };
        let mut of_sources: Vec<(String, f64)> = Vec::new();
        if target.needs_best_source() {
            let config = RunConfig { method: Method::Spot, ..target.config.clone() };
            let what = format!("{}: sources as they are", target.name);
            let entries = vec![entry(&what, &[], &config, &Sources::Each, 0)?];
            let entries = grid.train(&what, &runs, entries, progress)?;
            let as_is = |of: &Candidate| (of.source.clone().unwrap_or_default(), mean(&of.validation));
            of_sources = entries.iter().flat_map(|entry| &entry.candidates).map(as_is).collect();
        }
        let best = first_best(&of_sources.iter().map(|(_, validation)| *validation).collect::<Vec<_>>());
        let of_method = |method: &StudyMethod| {
            let mut config = method.config.clone();
            if method.has_pretrained_scorer {
                config.initial_scorer = Some(out.join(SCORER));
            }
            entry(&method.name, &method.learning_rates, &config, &method.sources, best)
        };
        let entries = target.methods.iter().map(of_method).collect::<Result<_>>()?;
        let entries = grid.train(&target.name, &runs, entries, progress)?;
        let mut methods = grid.test(&format!("{}: test rows", target.name), &entries, progress)?;
        for method in &mut methods {
            method.published = target.published.get(&method.name).copied();
            for folder in method.runs.iter_mut().map(|(folder, ..)| folder).chain(&mut method.chosen) {
                *folder = folder.strip_prefix(out).unwrap_or(folder).to_owned();
            }
        }
        let settings_sha256 = self.settings_sha256(target);
        let results =
            TargetResults { name: target.name.clone(), sources: of_sources, methods, settings_sha256 };
        let folder = out.join("results");
        std::fs::create_dir_all(&folder).map_err(|source| Error::file("create", folder, source))?;
        files::write_json(&results_of(target, out), &results)?;
        Ok(results)
    }

    /// The results of `target` in `out`, if they are there and came of the settings of now.
    pub(super) fn finished(&self, target: &Target, out: &Path) -> Option<TargetResults> {
        // What cannot be read is made anew.
        let written = files::read_json(&results_of(target, out), "", "").unwrap_or_default();
        written.filter(|done: &TargetResults| done.settings_sha256 == self.settings_sha256(target))
    }

    /// SHA-256 of all that the numbers of `target` come of.
    fn settings_sha256(&self, target: &Target) -> String {
        let settings = format!("{:?}", (&self.sources, &self.scorer, &self.places, target));
        format!("{:x}", Sha256::digest(settings))
    }
}

/// The run folder of `source` in the folder `out` of a study.
fn folder_of(source: &Source, out: &Path) -> PathBuf {
    out.join("sources").join(folder_name(&source.name))
}

/// The file of the results of `target` in the folder `out` of a study.
fn results_of(target: &Target, out: &Path) -> PathBuf {
    out.join("results").join(format!("{}.json", folder_name(&target.name)))
}
