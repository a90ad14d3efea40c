//! A study's file: settings of every run as a run's file has them, and a table of what is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::grid::Place;
use super::study::{Source, Sources, Study, StudyMethod, Target};
use crate::config::file::{parse, read, with_key, with_keys_of_now};
use crate::config::{Method, RunConfig};
use crate::data::moved_places;
use crate::error::{Error, Result};
use crate::files::folder_name;

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
    source: Vec<DeclaredSource>,
    scorer: Option<Table>,
    target: Vec<DeclaredTarget>,
    method: Vec<DeclaredMethod>,
}

#[derive(Deserialize)]
struct DeclaredSource {
    name: String,
    prompt: Option<PathBuf>,
    #[serde(flatten)]
    settings: Table,
}

#[derive(Deserialize)]
struct DeclaredTarget {
    name: String,
    #[serde(default)]
    published: BTreeMap<String, f64>,
    #[serde(flatten)]
    settings: Table,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct DeclaredMethod {
    name: String,
    #[serde(default)]
    untrained: bool,
    #[serde(default)]
    pretrained_scorer: bool,
    learning_rates: Option<Vec<f64>>,
    sources: Option<Value>,
    #[serde(flatten)]
    settings: Table,
}

/// A study's file as it is read.
struct File<'a> {
    path: &'a Path,
    text: String,
    /// Settings of every run.
    shared: Table,
    /// The model in place of the file's.
    model: Option<&'a str>,
    /// Where relative paths of data start.
    data_root: &'a Path,
}

impl File<'_> {
    fn refuse(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        let advice = "docs/studies.md describes a study's file";
        Error::format(self.path, None, expected, found, advice)
    }

    /// Refuses a list, study.`key`, of nothing, or of entries whose runs would lie in one folder, or in none.
    fn check_list(&self, key: &str, entries: impl IntoIterator<Item = impl ToString>) -> Result<()> {
        let mut folders = BTreeSet::from([String::new()]);
        for entry in entries {
            let entry = entry.to_string();
            if !folders.insert(folder_name(&entry)) {
                // The same run twice would look like two that agree.
                let expected = format!("entries of study.{key} that name different folders");
                return Err(self.refuse(expected, format!("`{entry}`")));
            }
        }
        let is_empty = folders.len() == 1;
        if is_empty { Err(self.refuse(format!("at least one entry of study.{key}"), "none")) } else { Ok(()) }
    }

    /// Refuses settings of `of` that the study has keys of its own for.
    fn check_settings(&self, of: &str, settings: &Table) -> Result<()> {
        let instead = [
            ("learning-rate", "study.learning-rates"),
            ("seed", "study.seeds"),
            ("draws", "study.draws"),
            ("sources", "study.source"),
        ];
        let found = instead.iter().find(|(key, _)| settings.contains_key(*key));
        found.map_or(Ok(()), |(key, instead)| {
            Err(self.refuse(format!("`{instead}` in place of `{key}`"), format!("`{key}` of {of}")))
        })
    }

    /// The settings of every run with those of `layers`, each over the one before.
    fn config(&self, layers: &[&Table]) -> Result<RunConfig> {
        let mut table = Table::new();
        for layer in [&self.shared].iter().chain(layers) {
            table.extend(with_keys_of_now(self.path, (*layer).clone())?);
        }
        let mut config = RunConfig::from_table(self.path, &self.text, table)?;
        config.model = self.model.map_or(config.model, str::to_owned);
        let tasks = config.task_names().count();
        config.data = moved_places(&config.data, tasks, |part| self.data_root.join(part));
        Ok(config)
    }
}

impl Study {
    /// Reads the study in the file at `path`: settings of every run, as [`RunConfig::from_toml`] reads them, and a table `study`.
    /// `model`, a folder or a hub id, stands in for the file's, and relative paths of data start from `data_root`, which may be
    /// empty. Every run's settings are checked.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Format`] for what cannot be read, names that are not unique or not known, and a study without
    /// runs; [`Error::Setting`] for settings of a run that cannot be used.
    pub fn read(path: &Path, model: Option<&str>, data_root: &Path) -> Result<Self> {
        let text = read(path)?;
        let mut shared = parse(path, &text)?;
        let declared = shared.remove("study");
        let file = File { path, text, shared, model, data_root };
        let declared = declared.ok_or_else(|| file.refuse("a table `study`", "none"))?;
        let declared = Declared::deserialize(declared)
            .map_err(|error| file.refuse("a table `study` of the keys there are", with_key(&error)))?;
        let draws = declared.draws.as_deref();
        file.check_list("seeds", &declared.seeds)?;
        draws.map_or(Ok(()), |draws| file.check_list("draws", draws))?;
        file.check_list("learning-rates", &declared.learning_rates)?;
        if !declared.source.is_empty() {
            file.check_list("source", declared.source.iter().map(|source| &source.name))?;
        }
        file.check_list("target", declared.target.iter().map(|target| &target.name))?;
        file.check_list("method", declared.method.iter().map(|method| &method.name))?;
        file.check_settings("every run", &file.shared)?;
        let mut places = Vec::new();
        for &seed in &declared.seeds {
            for &draw in draws.unwrap_or(&[seed]) {
                let of_draw = draws.map_or(String::new(), |_| format!("-draw-{draw}"));
                places.push(Place::new(format!("seed-{seed}{of_draw}"), draw as usize, seed));
            }
        }

        // What is trained before the targets' runs has the first of their seeds, if it names none.
        let first_seed = Table::from_iter([("seed".to_owned(), Value::Integer(places[0].seed as i64))]);
        let mut sources: Vec<Source> = Vec::new();
        for DeclaredSource { name, prompt, settings } in declared.source {
            let config = file.config(&[&first_seed, &declared.source_settings, &settings])?;
            let config = RunConfig { method: Method::PromptTuning, sources: Vec::new(), ..config };
            sources.push(Source { name, prompt, config });
        }
        let scorer = declared.scorer.map(|settings| file.config(&[&first_seed, &settings])).transpose()?;
        let lacks = |config: &RunConfig| {
            config.task.is_empty() || config.template.is_some() || config.data.as_os_str().is_empty()
        };
        if let Some(source) = sources.iter().find(|source| scorer.is_some() && lacks(&source.config)) {
            let expected = "task and data of each source, its own task as a TOML file, for study.scorer";
            return Err(file.refuse(expected, format!("source {} without both", source.name)));
        }
        let mut targets: Vec<(Target, Table)> = Vec::new();
        for DeclaredTarget { name, published, settings } in declared.target {
            file.check_settings(&name, &settings)?;
            let config = RunConfig { method: Method::Spot, ..file.config(&[&settings])? };
            let draws = draws.map_or(0, <[_]>::len);
            if draws > 1 && (config.few_shot.is_none() || config.data_seed.is_some()) {
                // Its rows are the same for every draw, and so are its runs, which would be counted once a draw.
                let expected = format!("`few-shot` and no `data-seed`, or a study without its {draws} draws");
                return Err(
                    file.refuse(expected, format!("target {name}, of which every draw has the same rows"))
                );
            }
            targets.push((Target { name, published, config, methods: Vec::new() }, settings));
        }
        for method in declared.method {
            let (name, settings) = (&method.name, &method.settings);
            file.check_settings(name, settings)?;
            let kind = settings.get("method").or(file.shared.get("method")).and_then(Value::as_str);
            let taken = match &method.sources {
                None if kind == Some(Method::PromptTuning.name()) => Sources::None,
                None => Sources::All,
                Some(taken) => sources_of(taken, &sources).ok_or_else(|| {
                    let expected = "\"all\", \"best\", \"each\", \"random\" or names of sources as `sources`";
                    file.refuse(expected, taken.to_string())
                })?,
            };
            if method.pretrained_scorer && scorer.is_none() {
                return Err(file.refuse("a table study.scorer, for `pretrained-scorer`", "none"));
            }
            if taken != Sources::None && sources.is_empty() {
                return Err(file.refuse(format!("sources for {name}, as [[study.source]]"), "none"));
            }
            let own = method.learning_rates.as_ref();
            own.map_or(Ok(()), |own| file.check_list("method.learning-rates", own))?;
            if method.untrained && own.is_some() {
                return Err(file.refuse("no `learning-rates` beside `untrained`", format!("them for {name}")));
            }
            let rates = own.unwrap_or(&declared.learning_rates);
            for (target, of_target) in &mut targets {
                target.methods.push(StudyMethod {
                    name: name.clone(),
                    sources: taken.clone(),
                    has_pretrained_scorer: method.pretrained_scorer,
                    learning_rates: if method.untrained { Vec::new() } else { rates.clone() },
                    config: file.config(&[of_target, settings])?,
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
        study.check()?;
        Ok(study)
    }

    /// Refuses runs that could not be begun.
    fn check(&self) -> Result<()> {
        let learnt = self.learnt_sources();
        let learnt = learnt.map(|source| (source.name.clone(), &source.config, &Sources::None, &[][..]));
        for (_, config, sources, rates) in learnt.chain(self.targets.iter().flat_map(Target::runs)) {
            let mut config = config.clone();
            if *sources != Sources::None {
                config.sources = vec!["prompt.safetensors".into()];
            }
            for learning_rate in [&[config.learning_rate], rates].concat() {
                RunConfig { learning_rate, ..config.clone() }.check()?;
            }
            let model = self.model();
            if config.model != model || model.is_empty() {
                let found = format!("`{}` and `{model}`", config.model);
                return Err(Error::setting("model", "one model for all runs of a study", found, ""));
            }
        }
        Ok(())
    }

    /// Id or folder of the model.
    pub fn model(&self) -> &str {
        &self.targets[0].config.model
    }
}

/// The sources that `taken` means.
fn sources_of(taken: &Value, sources: &[Source]) -> Option<Sources> {
    if let Value::Array(names) = taken {
        let place = |name: &Value| sources.iter().position(|source| Some(&source.name[..]) == name.as_str());
        return names.iter().map(place).collect::<Option<_>>().map(Sources::Of);
    }
    Sources::deserialize(taken.clone()).ok()
}
