//! What a study found, and the way there.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::grid::{Entry, Grid, Place, Tested, slug};
use super::progress::Progress;
use super::runner::{Runner, Training};
use super::statistics::{Paired, first_best, mean, standard_deviation};
use super::study::{Source, Sources, Study, StudyMethod, Target, at};
use crate::config::{Method, RunConfig};
use crate::error::{Error, Result};
use crate::files;
use crate::train::hexadecimal;

/// What a study found on one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TargetResults {
    /// The target.
    pub name: String,
    /// The mean validation of each source as it is, by its name, where a method asks for the best.
    pub sources: Vec<(String, f64)>,
    /// The methods.
    pub methods: Vec<MethodResults>,
    /// SHA-256 of all settings that these numbers came of.
    settings_sha256: String,
}

/// What a study found of one method on one target. Lists have an entry a place: a seed, or a seed and a draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MethodResults {
    /// The method.
    pub name: String,
    /// The rate that validation chose; none where nothing was trained.
    pub learning_rate: Option<f64>,
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
    /// The number that others published.
    pub published: Option<f64>,
}

/// What a study found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Comparison {
    /// The method that the others are compared with.
    pub against: String,
    /// The places' names.
    pub places: Vec<String>,
    /// The targets.
    pub targets: Vec<TargetResults>,
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
    ///
    /// # Errors
    /// As [`Study::read`].
    pub fn plan(&self) -> Result<Plan> {
        let mut plan = Plan { stages: Vec::new(), evaluated: 0, has_epochs: false };
        let mut stage = |name: String, configs: Vec<RunConfig>| {
            plan.has_epochs |= configs.iter().any(|config| config.steps.is_none());
            let steps = configs.iter().map(|config| config.steps.unwrap_or(0)).sum();
            plan.stages.push((name, configs.len(), steps));
        };
        let learnt = self.sources.iter().filter(|source| source.prompt.is_none());
        let learnt = learnt.map(|source| self.source_config(source)).collect::<Result<Vec<_>>>()?;
        if !learnt.is_empty() {
            stage("source prompts".into(), learnt);
        }
        if let Some(scorer) = &self.scorer {
            stage("scorer".into(), vec![self.scorer_config(scorer, &[])?]);
        }
        for target in &self.targets {
            let mut configs = Vec::new();
            for method in &self.methods {
                let config = self.shared_config(target, method, &[], None)?;
                let runs = method.learning_rates.len() * self.places.len();
                configs.extend(std::iter::repeat_n(config, runs));
            }
            stage(target.name.clone(), configs);
        }
        plan.evaluated = self.targets.len() * self.methods.len() * self.places.len();
        Ok(plan)
    }

    /// Settings of a training like those of the study that needs nothing the study makes: prompt tuning on its first target.
    ///
    /// # Errors
    /// As [`Study::read`].
    pub fn probe(&self) -> Result<RunConfig> {
        let config = self.shared_config(&self.targets[0], &self.methods[0], &[], None)?;
        let config = at(&config, &self.places[0], self.learning_rates[0]);
        let defaults = RunConfig::default();
        Ok(RunConfig {
            method: Method::PromptTuning,
            prompt_init: None,
            initial_prompt: None,
            initial_scorer: None,
            standardize_inputs: None,
            learn_temperature: false,
            scorer: defaults.scorer,
            ..config
        })
    }

    /// Does all that the study's results in `out` lack, and writes `results.json`, `results.tsv` and `table.md` there.
    ///
    /// # Errors
    /// Those of training and evaluation; [`Error::Setting`] if `out` holds runs of other settings.
    pub fn run(&self, runner: &dyn Runner, out: &Path, progress: &mut dyn Progress) -> Result<Comparison> {
        std::fs::create_dir_all(out).map_err(|source| Error::file("create", out, source))?;
        let sources = self.learn_sources(runner, out, progress)?;
        let scorer = self.train_scorer(runner, &sources, out, progress)?;
        let mut comparison = Comparison {
            against: self.against.clone(),
            places: self.places.iter().map(|place| place.name.clone()).collect(),
            targets: Vec::new(),
        };
        for target in &self.targets {
            let results = self.compare_on(target, runner, &sources, scorer.as_deref(), out, progress)?;
            comparison.targets.push(results);
            // After each target, so that a long study can be looked at.
            comparison.write(out)?;
        }
        Ok(comparison)
    }

    fn learn_sources(
        &self,
        runner: &dyn Runner,
        out: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Vec<PathBuf>> {
        let folder = |name: &str| out.join("sources").join(slug(name));
        let mut trainings = Vec::new();
        for source in self.sources.iter().filter(|source| source.prompt.is_none()) {
            trainings.push(Training::new(&source.name, self.source_config(source)?, folder(&source.name)));
        }
        train_all("source prompts", &trainings, runner, progress)?;
        let prompt = |source: &Source| {
            source.prompt.clone().unwrap_or_else(|| folder(&source.name).join("prompt.safetensors"))
        };
        Ok(self.sources.iter().map(prompt).collect())
    }

    fn train_scorer(
        &self,
        runner: &dyn Runner,
        sources: &[PathBuf],
        out: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Option<PathBuf>> {
        let Some(scorer) = &self.scorer else { return Ok(None) };
        let folder = out.join("scorer");
        let config = self.scorer_config(scorer, sources)?;
        config.check()?;
        train_all("scorer", &[Training::new("scorer", config, folder.clone())], runner, progress)?;
        Ok(Some(folder))
    }

    fn compare_on(
        &self,
        target: &Target,
        runner: &dyn Runner,
        sources: &[PathBuf],
        scorer: Option<&Path>,
        out: &Path,
        progress: &mut dyn Progress,
    ) -> Result<TargetResults> {
        let done = out.join("results").join(format!("{}.json", slug(&target.name)));
        let settings_sha256 = self.settings_sha256(target)?;
        let written = std::fs::read(&done).ok().and_then(|json| serde_json::from_slice(&json).ok());
        if let Some(results) =
            written.filter(|results: &TargetResults| results.settings_sha256 == settings_sha256)
        {
            return Ok(results);
        }
        let runs = out.join("runs").join(slug(&target.name));
        let mut of_sources = Vec::new();
        if self.methods.iter().any(|method| method.sources == Sources::Best) {
            let as_is = StudyMethod::as_it_is();
            let mut grid = Grid::new(runner, &self.places);
            let mut entries = Vec::new();
            for (source, prompt) in self.sources.iter().zip(sources) {
                let config = self.shared_config(target, &as_is, std::slice::from_ref(prompt), None)?;
                entries.push(Entry::new(&source.name, &[], move |place, rate| at(&config, place, rate)));
            }
            grid.train(&format!("{}: sources as they are", target.name), &runs, entries, progress)?;
            let validation = |source: &Source| (source.name.clone(), mean(&grid.validation(&source.name)));
            of_sources = self.sources.iter().map(validation).collect();
        }
        let best = first_best(&of_sources.iter().map(|(_, validation)| *validation).collect::<Vec<_>>());
        let mut grid = Grid::new(runner, &self.places);
        let mut entries = Vec::new();
        for method in &self.methods {
            let own: Vec<PathBuf> = match &method.sources {
                Sources::None => Vec::new(),
                Sources::All => sources.to_vec(),
                Sources::Best => vec![sources[best].clone()],
                Sources::Of(places) => places.iter().map(|&place| sources[place].clone()).collect(),
            };
            let config = self.shared_config(target, method, &own, scorer)?;
            let at = move |place: &Place, rate: f64| at(&config, place, rate);
            entries.push(Entry::new(&method.name, &method.learning_rates, at));
        }
        grid.train(&target.name, &runs, entries, progress)?;
        let names: Vec<String> = self.methods.iter().map(|method| method.name.clone()).collect();
        let tested = grid.test(&format!("{}: test rows", target.name), &names, progress)?;
        let methods = self.methods.iter().zip(&tested).map(|(method, tested)| {
            let runs = grid.cells(&tested.name).iter().filter_map(|cell| {
                let folder = cell.folder.as_ref()?;
                let folder = folder.strip_prefix(out).unwrap_or(folder).to_owned();
                Some((folder, cell.rate?, self.places[cell.place].name.clone(), cell.validation))
            });
            MethodResults {
                name: method.name.clone(),
                learning_rate: tested.rate,
                trained_numbers: tested.trained,
                validation: tested.validation.clone(),
                test: tested.test.clone(),
                metrics: metrics(tested),
                attention: attention(tested),
                runs: runs.collect(),
                published: target.published.get(&method.name).copied(),
            }
        });
        let results = TargetResults {
            name: target.name.clone(),
            sources: of_sources,
            methods: methods.collect(),
            settings_sha256,
        };
        write_json(&done, &results)?;
        Ok(results)
    }

    /// A hash of every run's settings on a target.
    fn settings_sha256(&self, target: &Target) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut feed = |text: String| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        feed(format!("{:?} {:?} {:?}", self.scorer, self.places, target.published));
        for source in &self.sources {
            feed(format!("{} {:?}", source.name, source.prompt));
            feed(self.source_config(source)?.to_toml()?);
        }
        for method in &self.methods {
            let config = self.shared_config(target, method, &[], None)?;
            feed(format!(
                "{} {:?} {} {:?}",
                method.name, method.sources, method.is_untrained, method.learning_rates
            ));
            feed(config.to_toml()?);
        }
        Ok(hexadecimal(hasher))
    }
}

fn train_all(
    what: &str,
    trainings: &[Training],
    runner: &dyn Runner,
    progress: &mut dyn Progress,
) -> Result<()> {
    if trainings.is_empty() {
        return Ok(());
    }
    progress.begin(what, trainings.iter().map(|training| training.config.steps.unwrap_or(0)).sum());
    runner.train(trainings, progress)?.into_iter().try_for_each(|outcome| outcome.map(drop))
}

/// Each test metric, an entry a place.
fn metrics(tested: &Tested) -> Vec<(String, Vec<Option<f64>>)> {
    let Some(first) = tested.evaluations.first() else { return Vec::new() };
    let mut metrics = Vec::new();
    for (task, (name, evaluation)) in first.iter().enumerate() {
        for (index, (metric, _)) in evaluation.scores.values.iter().enumerate() {
            let of = if first.len() > 1 { format!("{name} {metric}") } else { metric.to_string() };
            let values = tested.evaluations.iter().map(|tasks| tasks[task].1.scores.values[index].1);
            metrics.push((of, values.collect()));
        }
    }
    metrics
}

/// The mean mixture over places and tasks.
fn attention(tested: &Tested) -> Vec<f64> {
    let means: Vec<&Vec<f64>> =
        tested.evaluations.iter().flatten().map(|(_, evaluation)| &evaluation.spread.mean).collect();
    let prompts = means.iter().map(|mean| mean.len()).min().unwrap_or(0);
    (0..prompts)
        .map(|prompt| means.iter().map(|mean| mean[prompt]).sum::<f64>() / means.len() as f64)
        .collect()
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|source| Error::file("create", folder, source))?;
    let json = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::unsupported(path.display().to_string(), error.to_string(), ""))?;
    files::replace(path, |file| file.write_all(&json))
}

impl Comparison {
    fn write(&self, out: &Path) -> Result<()> {
        write_json(&out.join("results.json"), self)?;
        files::replace(&out.join("results.tsv"), |file| file.write_all(self.runs().as_bytes()))?;
        files::replace(&out.join("table.md"), |file| file.write_all(self.to_string().as_bytes()))
    }

    /// What the compared method is ahead of `other` by on the test rows of `target`, place by place.
    pub fn ahead_of(&self, target: &TargetResults, other: &MethodResults) -> Option<Paired> {
        let ours = target.methods.iter().find(|method| method.name == self.against)?;
        (ours.name != other.name).then(|| Paired::new(&ours.test, &other.test))
    }

    /// Every run as tab-separated values.
    fn runs(&self) -> String {
        let mut table = String::from("target\tmethod\tlearning rate\tplace\tvalidation\ttest\tfolder\n");
        for target in &self.targets {
            for method in &target.methods {
                for (folder, rate, place, validation) in &method.runs {
                    let place_of = self.places.iter().position(|other| other == place);
                    let test = place_of
                        .filter(|_| Some(*rate) == method.learning_rate)
                        .map_or_else(String::new, |index| format!("{:.6}", method.test[index]));
                    // Writing to a string cannot fail.
                    let _ = writeln!(
                        table,
                        "{}\t{}\t{rate}\t{place}\t{validation:.6}\t{test}\t{}",
                        target.name,
                        method.name,
                        folder.display()
                    );
                }
            }
        }
        table
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(first) = self.targets.first() else { return Ok(()) };
        let names: Vec<&str> = first.methods.iter().map(|method| &method.name[..]).collect();
        let has_sources = self.targets.iter().any(|target| !target.sources.is_empty());
        writeln!(
            formatter,
            "Test rows: mean ± standard deviation over {} runs; learning rates chosen on validation rows.\n",
            self.places.len()
        )?;
        let best = if has_sources { " best source |" } else { "" };
        writeln!(formatter, "| target | metric |{best} {} |", names.join(" | "))?;
        writeln!(
            formatter,
            "|---|---|{}{}",
            if has_sources { "---|" } else { "" },
            "---|".repeat(names.len())
        )?;
        for target in &self.targets {
            let measured: Vec<&str> =
                target.methods[0].metrics.iter().map(|(metric, _)| &metric[..]).collect();
            write!(formatter, "| {} | {} |", target.name, measured.join(", "))?;
            if has_sources {
                let validation: Vec<f64> = target.sources.iter().map(|(_, validation)| *validation).collect();
                let name = target.sources.get(first_best(&validation)).map_or("", |(name, _)| name);
                write!(formatter, " {name} |")?;
            }
            for method in &target.methods {
                write!(formatter, " {:.3} ± {:.3}", mean(&method.test), standard_deviation(&method.test))?;
                if let Some(published) = method.published {
                    write!(formatter, " (published {published})")?;
                }
                write!(formatter, " |")?;
            }
            writeln!(formatter)?;
        }
        writeln!(
            formatter,
            "\n{} is ahead by, on test rows: mean and 95 % interval of paired differences.\n",
            self.against
        )?;
        let others: Vec<&str> = names.iter().copied().filter(|name| *name != self.against).collect();
        writeln!(formatter, "| target | {} |", others.join(" | "))?;
        writeln!(formatter, "|---|{}", "---|".repeat(others.len()))?;
        for target in &self.targets {
            write!(formatter, "| {} |", target.name)?;
            for ahead in target.methods.iter().filter_map(|method| self.ahead_of(target, method)) {
                let [low, high] = ahead.interval;
                write!(formatter, " {:+.3} ({low:+.3} to {high:+.3}) |", ahead.mean)?;
            }
            writeln!(formatter)?;
        }
        writeln!(formatter, "\nChosen learning rate, and numbers that trained.\n")?;
        writeln!(formatter, "| target | {} |", names.join(" | "))?;
        writeln!(formatter, "|---|{}", "---|".repeat(names.len()))?;
        for target in &self.targets {
            write!(formatter, "| {} |", target.name)?;
            for method in &target.methods {
                match method.learning_rate {
                    Some(rate) => write!(formatter, " {rate}; {} |", method.trained_numbers)?,
                    None => write!(formatter, " untrained |")?,
                }
            }
            writeln!(formatter)?;
        }
        Ok(())
    }
}
