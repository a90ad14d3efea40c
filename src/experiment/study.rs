//! A study: methods x targets x learning rates x seeds, as one file declares them.
//!
//! Source prompts are learnt first, then each target with each method. A method's learning rate is chosen by its mean validation
//! over the seeds; the chosen runs alone answer the test rows. What is done is not done again, at whatever moment a study was
//! interrupted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::grid::Place;
use crate::config::file::{parse, read, with_keys_of_now};
use crate::config::{Method, RunConfig};
use crate::error::{Error, Result};

/// A study as its file declares it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Study {
    /// Settings of every run, as the file has them.
    pub(super) shared: Table,
    /// Settings of the sources' trainings, over those.
    pub(super) source_settings: Table,
    /// The source prompts.
    pub sources: Vec<Source>,
    /// Settings of the scorer's pre-training, over those of every run.
    pub(super) scorer: Option<Table>,
    /// The targets.
    pub targets: Vec<Target>,
    /// The methods.
    pub methods: Vec<StudyMethod>,
    /// Where each method is trained at each rate: seeds, and draws of few-shot rows.
    pub places: Vec<Place>,
    /// The rates that a method chooses from, where it names none of its own.
    pub learning_rates: Vec<f64>,
    /// The method that the others are compared with.
    pub against: String,
    /// What relative paths of data start from, if not from the folder that the program runs in.
    data_root: Option<PathBuf>,
    path: PathBuf,
    text: String,
}

/// A source prompt of a study.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Source {
    /// What it is called.
    pub name: String,
    /// A prompt that is there already; learnt first where there is none.
    pub prompt: Option<PathBuf>,
    pub(super) settings: Table,
}

/// A target of a study.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Target {
    /// What it is called.
    pub name: String,
    /// Numbers that others published, by the methods' names.
    pub published: BTreeMap<String, f64>,
    pub(super) settings: Table,
}

/// A method of a study.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StudyMethod {
    /// What it is called.
    pub name: String,
    /// Which sources it takes.
    pub sources: Sources,
    /// Whether it is evaluated as it starts.
    pub is_untrained: bool,
    /// Whether its scorer starts from the one that was trained on the sources' tasks.
    pub has_pretrained_scorer: bool,
    /// The rates that it chooses from.
    pub learning_rates: Vec<f64>,
    pub(super) settings: Table,
}

impl StudyMethod {
    /// A source prompt as it is.
    pub(super) fn as_it_is() -> Self {
        Self {
            name: String::new(),
            sources: Sources::Best,
            is_untrained: true,
            has_pretrained_scorer: false,
            learning_rates: Vec::new(),
            settings: Table::from_iter([("method".to_owned(), Method::Spot.name().into())]),
        }
    }
}

/// Which sources a method takes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sources {
    /// None: prompt tuning.
    None,
    /// All of the study's.
    All,
    /// The one that is best on the target's validation rows as it is.
    Best,
    /// These, by their places in the study.
    Of(Vec<usize>),
}

/// The table `study` of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Declared {
    seeds: Vec<u64>,
    draws: Option<Vec<u64>>,
    learning_rates: Vec<f64>,
    against: Option<String>,
    #[serde(default)]
    source_settings: Table,
    #[serde(default)]
    source: Vec<Table>,
    scorer: Option<Table>,
    target: Vec<Table>,
    method: Vec<Table>,
}

impl Study {
    /// Reads the study in the file at `path`: settings of every run, as [`RunConfig::from_toml`] reads them, and a table `study`.
    /// Every run's settings are checked.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Format`] for what cannot be read, names that are not unique or not known, and a study without
    /// runs; [`Error::Setting`] for settings of a run that cannot be used.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read(path)?;
        let mut shared = parse(path, &text)?;
        let refuse = |expected: &str, found: String| {
            let advice = "docs/studies.md describes a study's file";
            Error::format(path, None, expected, found, advice)
        };
        let declared = shared.remove("study").ok_or_else(|| refuse("a table `study`", "none".into()))?;
        let declared = Declared::deserialize(declared)
            .map_err(|error| refuse("a table `study`", error.message().trim().to_owned()))?;
        for (key, is_empty) in [
            ("seeds", declared.seeds.is_empty()),
            ("learning-rates", declared.learning_rates.is_empty()),
            ("draws", declared.draws.as_ref().is_some_and(Vec::is_empty)),
            ("target", declared.target.is_empty()),
            ("method", declared.method.is_empty()),
        ] {
            if is_empty {
                return Err(refuse(&format!("at least one entry of study.{key}"), "none".into()));
            }
        }
        let entry = |of: &str, mut table: Table| -> Result<(String, Table)> {
            match table.remove("name") {
                Some(Value::String(name)) if !name.trim().is_empty() => Ok((name, table)),
                found => {
                    let found = found.map_or("none".into(), |found| found.to_string());
                    Err(refuse(&format!("a `name` for each study.{of}"), found))
                }
            }
        };
        let take = |table: &mut Table, key: &str, of: &str| -> Result<Option<bool>> {
            match table.remove(key) {
                None => Ok(None),
                Some(Value::Boolean(value)) => Ok(Some(value)),
                Some(found) => Err(refuse(&format!("true or false as {of}'s `{key}`"), found.to_string())),
            }
        };
        let mut sources: Vec<Source> = Vec::new();
        for table in declared.source {
            let (name, mut settings) = entry("source", table)?;
            let prompt = match settings.remove("prompt") {
                None => None,
                Some(Value::String(path)) => Some(PathBuf::from(path)),
                Some(found) => return Err(refuse("a path as a source's `prompt`", found.to_string())),
            };
            sources.push(Source { name, prompt, settings: with_keys_of_now(path, settings)? });
        }
        let mut targets: Vec<Target> = Vec::new();
        for table in declared.target {
            let (name, mut settings) = entry("target", table)?;
            let published = settings.remove("published").unwrap_or(Value::Table(Table::new()));
            let published = BTreeMap::deserialize(published).map_err(|error| {
                refuse("numbers by the methods' names as `published`", error.message().to_owned())
            })?;
            targets.push(Target { name, published, settings: with_keys_of_now(path, settings)? });
        }
        let mut methods: Vec<StudyMethod> = Vec::new();
        for table in declared.method {
            let (name, mut settings) = entry("method", table)?;
            let is_untrained = take(&mut settings, "untrained", &name)?.unwrap_or(false);
            let has_pretrained_scorer = take(&mut settings, "pretrained-scorer", &name)?.unwrap_or(false);
            let learning_rates = match settings.remove("learning-rates") {
                None => declared.learning_rates.clone(),
                Some(rates) => Vec::<f64>::deserialize(rates)
                    .map_err(|error| refuse("numbers as `learning-rates`", error.message().to_owned()))?,
            };
            let taken = settings.remove("sources");
            let settings = with_keys_of_now(path, settings)?;
            let kind = settings.get("method").or(shared.get("method")).and_then(Value::as_str);
            let all = if kind == Some(Method::PromptTuning.name()) { Sources::None } else { Sources::All };
            let sources = sources_of(taken.as_ref(), all, &sources).ok_or_else(|| {
                refuse("\"all\", \"best\" or names of sources as `sources`", format!("{taken:?}"))
            })?;
            if has_pretrained_scorer && declared.scorer.is_none() {
                return Err(refuse("a table study.scorer, for `pretrained-scorer`", "none".into()));
            }
            methods.push(StudyMethod {
                name,
                sources,
                is_untrained,
                has_pretrained_scorer,
                learning_rates: if is_untrained { Vec::new() } else { learning_rates },
                settings,
            });
        }
        let unique = |of: &str, names: Vec<&str>| {
            let slugs: Vec<String> = names.iter().map(|name| super::grid::slug(name)).collect();
            // A name of signs alone would name no folder.
            let twice = (0..slugs.len())
                .find(|&index| slugs[index].is_empty() || slugs[..index].contains(&slugs[index]));
            twice.map_or(Ok(()), |index| {
                Err(refuse(
                    &format!("names of study.{of} that name different folders"),
                    format!("`{}`", names[index]),
                ))
            })
        };
        unique("source", sources.iter().map(|source| &source.name[..]).collect())?;
        unique("target", targets.iter().map(|target| &target.name[..]).collect())?;
        unique("method", methods.iter().map(|method| &method.name[..]).collect())?;
        let against = declared.against.unwrap_or_else(|| methods[methods.len() - 1].name.clone());
        let known = |name: &str| methods.iter().any(|method| method.name == name);
        let published = targets.iter().flat_map(|target| target.published.keys());
        if let Some(unknown) = published.chain([&against]).find(|name| !known(name)) {
            return Err(refuse("the name of a study.method", format!("`{unknown}`")));
        }
        let mut places = Vec::new();
        for &seed in &declared.seeds {
            match &declared.draws {
                None => places.push(Place::new(format!("seed-{seed}"), seed as usize, seed)),
                Some(draws) => places.extend(
                    draws
                        .iter()
                        .map(|&draw| Place::new(format!("seed-{seed}-draw-{draw}"), draw as usize, seed)),
                ),
            }
        }
        let study_sets = |of: &str, settings: &Table| {
            let set = [
                ("learning-rate", "study.learning-rates"),
                ("seed", "study.seeds"),
                ("sources", "study.source"),
            ];
            set.iter().find(|(key, _)| settings.contains_key(*key)).map_or(Ok(()), |(key, instead)| {
                Err(refuse(&format!("`{instead}` in place of `{key}`"), format!("`{key}` of {of}")))
            })
        };
        study_sets("every run", &shared)?;
        targets.iter().try_for_each(|target| study_sets(&target.name, &target.settings))?;
        methods.iter().try_for_each(|method| study_sets(&method.name, &method.settings))?;
        let study = Self {
            shared: with_keys_of_now(path, shared)?,
            source_settings: with_keys_of_now(path, declared.source_settings)?,
            sources,
            scorer: declared.scorer.map(|scorer| with_keys_of_now(path, scorer)).transpose()?,
            targets,
            methods,
            places,
            learning_rates: declared.learning_rates,
            against,
            data_root: None,
            path: path.to_owned(),
            text,
        };
        study.check()?;
        Ok(study)
    }

    /// The study on another model: a folder or a hub id.
    #[must_use]
    pub fn on_model(mut self, model: &str) -> Self {
        self.shared.insert("model".into(), model.into());
        self
    }

    /// The study with relative paths of data starting from `root`.
    #[must_use]
    pub fn with_data_root(mut self, root: &Path) -> Self {
        self.data_root = Some(root.to_owned());
        self
    }

    /// Whether every run can be begun.
    fn check(&self) -> Result<()> {
        let model = self.config(&[])?.model;
        let mut configs = Vec::new();
        for source in self.sources.iter().filter(|source| source.prompt.is_none()) {
            configs.push(self.source_config(source)?);
        }
        let placeholder = vec![PathBuf::from("prompt.safetensors")];
        let as_is = StudyMethod::as_it_is();
        let asks_for_best = self.methods.iter().any(|method| method.sources == Sources::Best);
        for target in &self.targets {
            for method in self.methods.iter().chain(asks_for_best.then_some(&as_is)) {
                let sources = if method.sources == Sources::None { &[][..] } else { &placeholder };
                if method.sources != Sources::None && self.sources.is_empty() {
                    let found = "none".to_owned();
                    let advice = "list source prompts as [[study.source]]";
                    return Err(Error::format(
                        &self.path,
                        None,
                        format!("sources for {}", method.name),
                        found,
                        advice,
                    ));
                }
                let config = self.shared_config(target, method, sources, None)?;
                configs.push(at(&config, &self.places[0], self.learning_rates[0]));
            }
        }
        for config in configs {
            config.check()?;
            if config.model != model || model.is_empty() {
                let found = format!("`{}` and `{model}`", config.model);
                return Err(Error::setting("model", "one model for all runs of a study", found, ""));
            }
        }
        Ok(())
    }

    /// The settings of every run with those of `layers`, each over the one before.
    fn config(&self, layers: &[&Table]) -> Result<RunConfig> {
        let mut table = self.shared.clone();
        for layer in layers {
            table.extend((*layer).clone());
        }
        let mut config = RunConfig::from_table(&self.path, &self.text, table)?;
        let from_hub = config.data.to_string_lossy().starts_with("hub:");
        if let Some(root) = self.data_root.as_ref().filter(|_| !from_hub) {
            config.data = root.join(config.data);
        }
        Ok(config)
    }

    /// Id or folder of the model.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn model(&self) -> Result<String> {
        Ok(self.config(&[])?.model)
    }

    /// The settings of a source's training.
    pub(super) fn source_config(&self, source: &Source) -> Result<RunConfig> {
        let config = self.config(&[&self.source_settings, &source.settings])?;
        let seed = [&self.source_settings, &source.settings].iter().any(|layer| layer.contains_key("seed"));
        Ok(RunConfig {
            method: Method::PromptTuning,
            sources: Vec::new(),
            seed: if seed { config.seed } else { self.places[0].seed },
            ..config
        })
    }

    /// The settings of the scorer's pre-training on the tasks of the sources in `prompts`.
    pub(super) fn scorer_config(&self, scorer: &Table, prompts: &[PathBuf]) -> Result<RunConfig> {
        let of_sources = self.sources.iter().map(|source| {
            let config = self.config(&[&self.source_settings, &source.settings])?;
            if config.task.is_empty() || config.template.is_some() || config.data.as_os_str().is_empty() {
                let found = format!("source {} without both", source.name);
                let advice = "a task of one's own is a task's TOML file here";
                return Err(Error::format(
                    &self.path,
                    None,
                    "task and data of each source, for study.scorer",
                    found,
                    advice,
                ));
            }
            Ok((config.task, config.data.display().to_string()))
        });
        let (tasks, data): (Vec<String>, Vec<String>) =
            of_sources.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let config = self.config(&[scorer])?;
        Ok(RunConfig {
            method: Method::Attempt,
            sources: prompts.to_vec(),
            pretrain_scorer: true,
            task: tasks.join(","),
            data: data.join(",").into(),
            seed: if scorer.contains_key("seed") { config.seed } else { self.places[0].seed },
            ..config
        })
    }

    /// What the runs of a method on a target share.
    pub(super) fn shared_config(
        &self,
        target: &Target,
        method: &StudyMethod,
        sources: &[PathBuf],
        scorer: Option<&Path>,
    ) -> Result<RunConfig> {
        let config = self.config(&[&target.settings, &method.settings])?;
        let scorer = scorer.filter(|_| method.has_pretrained_scorer).map(Path::to_owned);
        Ok(RunConfig {
            sources: sources.to_vec(),
            initial_scorer: scorer.or(config.initial_scorer),
            ..config
        })
    }
}

/// The run by `config` in a place at a rate.
pub(super) fn at(config: &RunConfig, place: &Place, rate: f64) -> RunConfig {
    let drawn = config.few_shot.map(|_| place.data as u64);
    RunConfig {
        learning_rate: rate,
        seed: place.seed,
        data_seed: config.data_seed.or(drawn),
        ..config.clone()
    }
}

/// The sources that `taken` means.
fn sources_of(taken: Option<&Value>, otherwise: Sources, sources: &[Source]) -> Option<Sources> {
    match taken {
        None => Some(otherwise),
        Some(Value::String(word)) if word == "all" => Some(Sources::All),
        Some(Value::String(word)) if word == "best" => Some(Sources::Best),
        Some(Value::Array(names)) => {
            let place =
                |name: &Value| sources.iter().position(|source| Some(&source.name[..]) == name.as_str());
            names.iter().map(place).collect::<Option<Vec<_>>>().map(Sources::Of)
        }
        Some(_) => None,
    }
}
