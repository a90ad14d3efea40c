//! A study's file: settings of every run as a run's file has them, and a table of what is compared.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::grid::{Place, slug};
use super::study::{Source, Sources, Study, StudyMethod, Target};
use crate::config::file::{parse, read, with_key, with_keys_of_now};
use crate::config::{Method, RunConfig};
use crate::error::{Error, Result};

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

/// A study's file as it is read.
struct File<'a> {
    path: &'a Path,
    text: String,
    /// Settings of every run.
    shared: Table,
}

impl File<'_> {
    fn refuse(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        let advice = "docs/studies.md describes a study's file";
        Error::format(self.path, None, expected, found, advice)
    }

    /// Takes what stands under `key` out of `table`, if something does.
    fn take<T: DeserializeOwned>(&self, table: &mut Table, key: &str, expected: &str) -> Result<Option<T>> {
        let Some(value) = table.remove(key) else { return Ok(None) };
        let shown = value.to_string();
        T::deserialize(value).map(Some).map_err(|error| {
            self.refuse(format!("{expected} as `{key}`"), format!("{shown}: {}", error.message()))
        })
    }

    /// Names and tables of a list of the study.
    fn entries(&self, of: &str, tables: Vec<Table>) -> Result<Vec<(String, Table)>> {
        let (mut entries, mut slugs): (Vec<_>, Vec<String>) = Default::default();
        for mut table in tables {
            let name = match table.remove("name") {
                Some(Value::String(name)) if !name.trim().is_empty() => name,
                found => {
                    let found = found.map_or("none".into(), |found| found.to_string());
                    return Err(self.refuse(format!("a `name` for each study.{of}"), found));
                }
            };
            // A name of signs alone would name no folder.
            if slug(&name).is_empty() || slugs.contains(&slug(&name)) {
                let expected = format!("names of study.{of} that name different folders");
                return Err(self.refuse(expected, format!("`{name}`")));
            }
            slugs.push(slug(&name));
            entries.push((name, table));
        }
        Ok(entries)
    }

    /// The settings of every run with those of `layers`, each over the one before.
    fn config(&self, layers: &[&Table]) -> Result<RunConfig> {
        let mut table = self.shared.clone();
        layers.iter().for_each(|layer| table.extend((*layer).clone()));
        RunConfig::from_table(self.path, &self.text, table)
    }

    /// Refuses settings of `of` that the study has keys of its own for, and gives the others the names of now.
    fn settings(&self, of: &str, settings: Table) -> Result<Table> {
        let of_study = [
            ("learning-rate", "study.learning-rates"),
            ("seed", "study.seeds"),
            ("draws", "study.draws"),
            ("sources", "study.source"),
        ];
        match of_study.iter().find(|(key, _)| settings.contains_key(*key)) {
            Some((key, instead)) => {
                Err(self.refuse(format!("`{instead}` in place of `{key}`"), format!("`{key}` of {of}")))
            }
            None => with_keys_of_now(self.path, settings),
        }
    }
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
        let shared = parse(path, &text)?;
        let mut file = File { path, text, shared };
        let declared = file.shared.remove("study").ok_or_else(|| file.refuse("a table `study`", "none"))?;
        let declared = Declared::deserialize(declared)
            .map_err(|error| file.refuse("a table `study` of the keys there are", with_key(&error)))?;
        let draws = declared.draws.as_deref();
        let lengths = [
            ("seeds", declared.seeds.len()),
            ("learning-rates", declared.learning_rates.len()),
            ("draws", draws.map_or(1, <[_]>::len)),
            ("target", declared.target.len()),
            ("method", declared.method.len()),
        ];
        if let Some((key, _)) = lengths.iter().find(|(_, length)| *length == 0) {
            return Err(file.refuse(format!("at least one entry of study.{key}"), "none"));
        }
        for (key, seeds) in [("seeds", &declared.seeds[..]), ("draws", draws.unwrap_or_default())] {
            if let Some(index) = (1..seeds.len()).find(|&index| seeds[..index].contains(&seeds[index])) {
                // The same run twice would look like two that agree.
                let found = format!("{} twice", seeds[index]);
                return Err(file.refuse(format!("each of study.{key} once"), found));
            }
        }
        file.shared = file.settings("every run", file.shared.clone())?;
        let place = |seed: u64, draw: Option<&u64>| match draw {
            None => Place::new(format!("seed-{seed}"), seed as usize, seed),
            Some(draw) => Place::new(format!("seed-{seed}-draw-{draw}"), *draw as usize, seed),
        };
        let of_seed = |&seed: &u64| match draws {
            None => vec![place(seed, None)],
            Some(draws) => draws.iter().map(|draw| place(seed, Some(draw))).collect(),
        };
        let places: Vec<Place> = declared.seeds.iter().flat_map(of_seed).collect();
        let at_places = |config: &RunConfig| -> Vec<RunConfig> {
            let at = |place: &Place| {
                let drawn = config.few_shot.map(|_| place.data as u64);
                RunConfig { seed: place.seed, data_seed: config.data_seed.or(drawn), ..config.clone() }
            };
            places.iter().map(at).collect()
        };

        // What is trained before the targets' runs has the first of their seeds, if it names none.
        let first_seed = Table::from_iter([("seed".to_owned(), Value::Integer(places[0].seed as i64))]);
        let of_sources = with_keys_of_now(path, declared.source_settings)?;
        let mut sources: Vec<Source> = Vec::new();
        for (name, mut settings) in file.entries("source", declared.source)? {
            let prompt = file.take(&mut settings, "prompt", &format!("a path for {name}"))?;
            let config = file.config(&[&first_seed, &of_sources, &with_keys_of_now(path, settings)?])?;
            let config = RunConfig { method: Method::PromptTuning, sources: Vec::new(), ..config };
            sources.push(Source { name, prompt, config });
        }
        let scorer =
            declared.scorer.map(|settings| file.config(&[&first_seed, &with_keys_of_now(path, settings)?]));
        let scorer = scorer.transpose()?;
        let lacks = |config: &RunConfig| {
            config.task.is_empty() || config.template.is_some() || config.data.as_os_str().is_empty()
        };
        if let Some(source) = sources.iter().find(|source| scorer.is_some() && lacks(&source.config)) {
            let (expected, found) = ("task and data of each source, for study.scorer", &source.name);
            let advice = "a task of one's own is a task's TOML file here";
            return Err(Error::format(path, None, expected, format!("source {found} without both"), advice));
        }
        let spot = Table::from_iter([("method".to_owned(), Method::Spot.name().into())]);
        let mut targets: Vec<(Target, Table)> = Vec::new();
        for (name, mut settings) in file.entries("target", declared.target)? {
            let published =
                file.take(&mut settings, "published", &format!("numbers for {name} by the methods' names"))?;
            let settings = file.settings(&name, settings)?;
            let config = file.config(&[&settings, &spot])?;
            let draws = declared.draws.as_ref().map_or(0, Vec::len);
            if draws > 1 && (config.few_shot.is_none() || config.data_seed.is_some()) {
                // Its rows are the same for every draw, and so are its runs, which would be counted once a draw.
                return Err(Error::format(
                    path,
                    None,
                    format!("`few-shot` and no `data-seed` for each target, beside {draws} of study.draws"),
                    format!("target {name}, of which every draw has the same rows"),
                    "give it `few-shot`, or compare on it in a study of its own, without study.draws",
                ));
            }
            let configs = at_places(&config);
            let published: BTreeMap<String, f64> = published.unwrap_or_default();
            targets.push((Target { name, published, configs, methods: Vec::new() }, settings));
        }
        for (name, mut settings) in file.entries("method", declared.method)? {
            let switch = &format!("true or false for {name}");
            let is_untrained = file.take(&mut settings, "untrained", switch)?.unwrap_or(false);
            let has_pretrained_scorer =
                file.take(&mut settings, "pretrained-scorer", switch)?.unwrap_or(false);
            let rates = file.take(&mut settings, "learning-rates", &format!("numbers for {name}"))?;
            let rates: Vec<f64> = rates.unwrap_or_else(|| declared.learning_rates.clone());
            let taken = settings.remove("sources");
            let settings = file.settings(&name, settings)?;
            let kind = settings.get("method").or(file.shared.get("method")).and_then(Value::as_str);
            let all = if kind == Some(Method::PromptTuning.name()) { Sources::None } else { Sources::All };
            let method_sources = sources_of(taken.as_ref(), all, &sources).ok_or_else(|| {
                let found = taken.map_or_else(String::new, |taken| taken.to_string());
                file.refuse("\"all\", \"best\", \"each\" or names of sources as `sources`", found)
            })?;
            if has_pretrained_scorer && scorer.is_none() {
                return Err(file.refuse("a table study.scorer, for `pretrained-scorer`", "none"));
            }
            if method_sources != Sources::None && sources.is_empty() {
                let advice = "list source prompts as [[study.source]]";
                return Err(Error::format(path, None, format!("sources for {name}"), "none", advice));
            }
            for (target, of_target) in &mut targets {
                target.methods.push(StudyMethod {
                    name: name.clone(),
                    sources: method_sources.clone(),
                    has_pretrained_scorer,
                    learning_rates: if is_untrained { Vec::new() } else { rates.clone() },
                    configs: at_places(&file.config(&[of_target, &settings])?),
                });
            }
        }
        let targets: Vec<Target> = targets.into_iter().map(|(target, _)| target).collect();
        let methods = &targets[0].methods;
        let against = declared.against.unwrap_or_else(|| methods[methods.len() - 1].name.clone());
        let known = |name: &str| methods.iter().any(|method| method.name == name);
        let published = targets.iter().flat_map(|target| target.published.keys());
        if let Some(unknown) = published.chain([&against]).find(|name| !known(name)) {
            return Err(file.refuse("the name of a study.method", format!("`{unknown}`")));
        }
        let study = Self { sources, scorer, targets, places, against };
        study.check(&file.config(&[])?.model)?;
        Ok(study)
    }

    /// Whether every run can be begun, on `model`.
    fn check(&self, model: &str) -> Result<()> {
        let learnt = self.sources.iter().filter(|source| source.prompt.is_none());
        let mut runs: Vec<(&RunConfig, &Sources, Option<&f64>)> =
            learnt.map(|source| (&source.config, &Sources::None, None)).collect();
        for Target { configs, methods, .. } in &self.targets {
            if methods.iter().any(|method| method.sources == Sources::Best) {
                runs.push((&configs[0], &Sources::All, None));
            }
            runs.extend(methods.iter().map(|m| (&m.configs[0], &m.sources, m.learning_rates.first())));
        }
        for (config, sources, rate) in runs {
            let mut config =
                RunConfig { learning_rate: *rate.unwrap_or(&config.learning_rate), ..config.clone() };
            if *sources != Sources::None {
                config.sources = vec!["prompt.safetensors".into()];
            }
            config.check()?;
            if config.model != model || model.is_empty() {
                let found = format!("`{}` and `{model}`", config.model);
                return Err(Error::setting("model", "one model for all runs of a study", found, ""));
            }
        }
        Ok(())
    }

    fn configs(&mut self) -> impl Iterator<Item = &mut RunConfig> {
        let of_targets = self.targets.iter_mut().flat_map(|target| {
            target.configs.iter_mut().chain(target.methods.iter_mut().flat_map(|method| &mut method.configs))
        });
        self.sources.iter_mut().map(|source| &mut source.config).chain(&mut self.scorer).chain(of_targets)
    }

    /// The study on another model: a folder or a hub id.
    #[must_use]
    pub fn on_model(mut self, model: &str) -> Self {
        self.configs().for_each(|config| config.model = model.to_owned());
        self
    }

    /// The study with relative paths of data starting from `root`.
    #[must_use]
    pub fn with_data_root(mut self, root: &Path) -> Self {
        let is_local = |config: &&mut RunConfig| !config.data.to_string_lossy().starts_with("hub:");
        self.configs().filter(is_local).for_each(|config| config.data = root.join(&config.data));
        self
    }

    /// Id or folder of the model.
    pub fn model(&self) -> &str {
        &self.targets[0].configs[0].model
    }
}

/// The sources that `taken` means.
fn sources_of(taken: Option<&Value>, otherwise: Sources, sources: &[Source]) -> Option<Sources> {
    match taken {
        None => Some(otherwise),
        Some(Value::String(word)) if word == "all" => Some(Sources::All),
        Some(Value::String(word)) if word == "best" => Some(Sources::Best),
        Some(Value::String(word)) if word == "each" => Some(Sources::Each),
        Some(Value::Array(names)) => {
            let place =
                |name: &Value| sources.iter().position(|source| Some(&source.name[..]) == name.as_str());
            names.iter().map(place).collect::<Option<Vec<_>>>().map(Sources::Of)
        }
        Some(_) => None,
    }
}
