//! A study: methods x targets x learning rates x places, declared as settings, and its way through the engine.
//!
//! Source prompts are learnt first, then each target with each method. A method's learning rate is chosen by its mean validation
//! over the places; the chosen runs alone answer the test rows. What is done is not done again, at whatever moment a study was
//! interrupted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::comparison::{Comparison, RESULTS, TargetResults};
use super::grid::{Entry, Grid, Place, slug};
use super::progress::Progress;
use super::runner::{Runner, Training, train_all};
use crate::config::{Method, RunConfig};
use crate::error::{Error, Result};
use crate::evaluate::{first_best, mean};
use crate::files;
use crate::prompts::Prompt;

/// In the folder of a study: which prompts it began with.
const SOURCES: &str = "sources.json";

/// A study. Settings leave out what the study sets itself: the learning rate, and the sources.
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
    /// Settings of a source as it is, a place each.
    pub configs: Vec<RunConfig>,
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
    /// Its settings, a place each.
    pub configs: Vec<RunConfig>,
}

impl StudyMethod {
    /// A method without a pre-trained scorer.
    pub fn new(name: &str, sources: Sources, learning_rates: &[f64], configs: Vec<RunConfig>) -> Self {
        let (name, learning_rates) = (name.to_owned(), learning_rates.to_vec());
        Self { name, sources, has_pretrained_scorer: false, learning_rates, configs }
    }
}

/// Which sources a method takes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sources {
    /// None of the study's: those that its settings have, if any.
    None,
    /// All of the study's.
    All,
    /// The one that is best on the target's validation rows as it is.
    Best,
    /// Each alone: it chooses one on validation rows, as it does a learning rate.
    Each,
    /// These, by their places in the study.
    Of(Vec<usize>),
}

/// What a study is going to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Each stage: its name, trainings and their steps where they are given.
    pub stages: Vec<(String, usize, u64)>,
    /// Runs that are evaluated on test rows.
    pub evaluated: usize,
    /// Whether a training counts in epochs, whose steps are known only once its rows are read.
    pub has_epochs: bool,
}

impl Study {
    /// The stages of the study, without doing anything.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan { stages: Vec::new(), evaluated: 0, has_epochs: false };
        let mut stage = |name: &str, configs: Vec<(&RunConfig, usize)>| {
            plan.has_epochs |= configs.iter().any(|(config, _)| config.steps.is_none());
            let steps = configs.iter().map(|(config, times)| config.steps.unwrap_or(0) * *times as u64).sum();
            plan.stages.push((name.to_owned(), configs.iter().map(|(_, times)| times).sum(), steps));
        };
        let learnt = self.sources.iter().filter(|source| source.prompt.is_none());
        let learnt: Vec<_> = learnt.map(|source| (&source.config, 1)).collect();
        if !learnt.is_empty() {
            stage("source prompts", learnt);
        }
        if let Some(scorer) = &self.scorer {
            stage("scorer", vec![(scorer, 1)]);
        }
        for target in &self.targets {
            let candidates = |method: &StudyMethod| match method.sources {
                Sources::Each => method.learning_rates.len() * self.sources.len(),
                _ => method.learning_rates.len(),
            };
            let runs = |method| std::iter::repeat(candidates(method));
            stage(&target.name, target.methods.iter().flat_map(|m| m.configs.iter().zip(runs(m))).collect());
            plan.evaluated += target.methods.len() * self.places.len();
        }
        plan
    }

    /// Settings of a training like those of the study that needs nothing the study makes: prompt tuning on its first target.
    pub fn probe(&self) -> RunConfig {
        RunConfig {
            method: Method::PromptTuning,
            prompt_init: None,
            initial_prompt: None,
            initial_scorer: None,
            standardize_inputs: None,
            learn_temperature: false,
            scorer: RunConfig::default().scorer,
            ..self.targets[0].methods[0].configs[0].clone()
        }
    }

    /// Does all that the study's results in `out` lack, and writes `results.json`, `results.tsv` and `table.md` there.
    ///
    /// # Errors
    /// Those of training and evaluation; [`Error::Setting`] if `out` holds runs of other settings.
    pub fn run(&self, runner: &dyn Runner, out: &Path, progress: &mut dyn Progress) -> Result<Comparison> {
        std::fs::create_dir_all(out).map_err(|source| Error::file("create", out, source))?;
        let folder = |source: &Source| out.join("sources").join(slug(&source.name));
        let learnt = self.sources.iter().filter(|source| source.prompt.is_none());
        let training = |source: &Source| Training::new(&source.name, source.config.clone(), folder(source));
        let trainings: Vec<Training> = learnt.map(training).collect();
        if !trainings.is_empty() {
            train_all("source prompts", &trainings, 0, runner, progress)?;
        }
        let prompt = |source: &Source| {
            source.prompt.clone().unwrap_or_else(|| folder(source).join("prompt.safetensors"))
        };
        let sources: Vec<PathBuf> = self.sources.iter().map(prompt).collect();
        self.check_prompts(&sources, out)?;
        let scorer = self.scorer.as_ref().map(|_| out.join("scorer"));
        if let (Some(scorer), Some(config)) = (&scorer, &self.scorer) {
            let config = self.scorer_config(config, &sources);
            config.check()?;
            train_all("scorer", &[Training::new("scorer", config, scorer)], 0, runner, progress)?;
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
            let results = self.compare_on(target, &sources, scorer.as_deref(), runner, out, progress)?;
            comparison.targets.push(results);
            // After each target, so that a long study can be looked at.
            if comparison.targets.len() >= known {
                comparison.write(out)?;
            }
        }
        Ok(comparison)
    }

    /// Refuses prompts, a source each, that are others than those that the study in `out` began with: its numbers would come of both.
    fn check_prompts(&self, prompts: &[PathBuf], out: &Path) -> Result<()> {
        let file = out.join(SOURCES);
        let advice = "remove the file if no source prompt has changed since the study began";
        let known: Option<BTreeMap<String, String>> =
            files::read_json(&file, "the SHA-256 of each source prompt by its name", advice)?;
        let mut all = known.clone().unwrap_or_default();
        for (source, path) in self.sources.iter().zip(prompts) {
            let found = Prompt::load(path)?.sha256();
            let begun_with = all.entry(source.name.clone()).or_insert_with(|| found.clone());
            if *begun_with != found {
                return Err(Error::setting(
                    "--out",
                    format!(
                        "the prompt that the study began with for the source {}, of SHA-256 {begun_with}",
                        source.name
                    ),
                    format!("other numbers in {}, of SHA-256 {found}", path.display()),
                    "name another folder for a study of the new prompt, or put the old file back",
                ));
            }
        }
        if known.as_ref() == Some(&all) { Ok(()) } else { files::write_json(&file, &all) }
    }

    /// The settings of the scorer's pre-training on the tasks of the sources, whose prompts are `prompts`.
    fn scorer_config(&self, config: &RunConfig, prompts: &[PathBuf]) -> RunConfig {
        let of_sources = |text: &dyn Fn(&RunConfig) -> String| {
            self.sources.iter().map(|source| text(&source.config)).collect::<Vec<_>>().join(",")
        };
        RunConfig {
            method: Method::Attempt,
            sources: prompts.to_vec(),
            pretrain_scorer: true,
            task: of_sources(&|config| config.task.clone()),
            data: of_sources(&|config| config.data.display().to_string()).into(),
            ..config.clone()
        }
    }

    /// Compares the methods on `target`, with `sources` as the prompts of the study's, unless that is done.
    pub(crate) fn compare_on(
        &self,
        target: &Target,
        sources: &[PathBuf],
        scorer: Option<&Path>,
        runner: &dyn Runner,
        out: &Path,
        progress: &mut dyn Progress,
    ) -> Result<TargetResults> {
        if let Some(written) = self.finished(target, out) {
            return Ok(written);
        }
        let runs = out.join("runs").join(slug(&target.name));
        let mut of_sources: Vec<(String, f64)> = Vec::new();
        if target.methods.iter().any(|method| method.sources == Sources::Best) {
            let as_is = |(source, prompt): (&Source, &PathBuf)| {
                let spot = |config: &RunConfig| RunConfig {
                    method: Method::Spot,
                    sources: vec![prompt.clone()],
                    ..config.clone()
                };
                Entry::new(&source.name, &[], target.configs.iter().map(spot).collect())
            };
            let entries = self.sources.iter().zip(sources).map(as_is).collect();
            let mut grid = Grid::new(runner, &self.places);
            grid.train(&format!("{}: sources as they are", target.name), &runs, entries, progress)?;
            let validation = |source: &Source| mean(&grid.choose(&source.name).validation);
            of_sources =
                self.sources.iter().map(|source| (source.name.clone(), validation(source))).collect();
        }
        let best = first_best(&of_sources.iter().map(|(_, validation)| *validation).collect::<Vec<_>>());
        let entry = |method: &StudyMethod| {
            let with = |prompts: Option<&[PathBuf]>| -> Vec<RunConfig> {
                let config = |config: &RunConfig| RunConfig {
                    sources: prompts.map_or_else(|| config.sources.clone(), <[_]>::to_vec),
                    initial_scorer: scorer
                        .filter(|_| method.has_pretrained_scorer)
                        .map_or_else(|| config.initial_scorer.clone(), |scorer| Some(scorer.to_owned())),
                    ..config.clone()
                };
                method.configs.iter().map(config).collect()
            };
            let of = |places: &[usize]| -> Vec<RunConfig> {
                with(Some(&places.iter().map(|&place| sources[place].clone()).collect::<Vec<_>>()))
            };
            let configs = match &method.sources {
                Sources::None => with(None),
                Sources::All => with(Some(sources)),
                Sources::Best => of(&[best]),
                Sources::Of(places) => of(places),
                Sources::Each => {
                    let names = self.sources.iter().map(|source| &source.name[..]);
                    let alone = names.enumerate().map(|(place, name)| (name, of(&[place])));
                    return Entry::of_sources(&method.name, &method.learning_rates, alone);
                }
            };
            Entry::new(&method.name, &method.learning_rates, configs)
        };
        let mut grid = Grid::new(runner, &self.places);
        grid.train(&target.name, &runs, target.methods.iter().map(entry).collect(), progress)?;
        let names: Vec<String> = target.methods.iter().map(|method| method.name.clone()).collect();
        let mut methods = grid.test(&format!("{}: test rows", target.name), &names, progress)?;
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

/// The file of the results of `target` in the folder `out` of a study.
fn results_of(target: &Target, out: &Path) -> PathBuf {
    out.join("results").join(format!("{}.json", slug(&target.name)))
}
