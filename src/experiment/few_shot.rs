//! Few-shot runs: the same settings on several draws of rows, and what they come to together.
//!
//! One draw says little: with 16 rows a class the draw moves the result more than most settings do.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::progress::Progress;
use super::runner::{EvaluationJob, Runner, Training, metrics};
use super::statistics::{mean, standard_deviation};
use crate::config::RunConfig;
use crate::data::Split;
use crate::error::{Error, Result};
use crate::files;
use crate::train::{RunFolder, RunManifest};

/// The file in the folder of few-shot runs.
const SUMMARY: &str = "few_shot.json";

/// `few_shot.json`: what the runs of all draws came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct FewShotRuns {
    /// The settings of every run but for the data seed.
    pub config: RunConfig,
    /// The runs that are done, in order of their data seeds.
    pub draws: Vec<Draw>,
    /// Mean and deviation over the draws: `validation`, and `test` metrics where there are test rows.
    pub summary: Vec<Spread>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Draw {
    /// The seed its rows were drawn by.
    pub data_seed: u64,
    /// Its folder, beside the summary.
    pub folder: PathBuf,
    /// Rows it learnt from, of each task.
    pub rows: Vec<usize>,
    /// Its sources.
    pub sources: Vec<PathBuf>,
    /// The prompt's peak learning rate.
    pub learning_rate: f64,
    /// The scorer's.
    pub scorer_learning_rate: f64,
    /// Steps taken.
    pub steps: u64,
    /// Steps behind which the best validation came.
    pub best_step: u64,
    /// The mean metric of the best validation.
    pub validation: f64,
    /// Each test metric of the best state; with several tasks their names stand before.
    pub test: Vec<(String, Option<f64>)>,
}

/// A number over several draws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Spread {
    /// What it is.
    pub name: String,
    /// The mean.
    pub mean: f64,
    /// The standard deviation, of a sample: over one less than there are draws; 0 of one.
    pub deviation: f64,
}

impl Spread {
    /// The spread of `values`.
    pub fn new(name: impl Into<String>, values: &[f64]) -> Self {
        Self { name: name.into(), mean: mean(values), deviation: standard_deviation(values) }
    }
}

/// The folder of a draw's run.
fn folder_of(data_seed: u64) -> PathBuf {
    format!("draw-{data_seed}").into()
}

impl FewShotRuns {
    /// The settings of few-shot runs that were begun in `folder`; `None` if it holds none.
    ///
    /// # Errors
    /// If `few_shot.json` cannot be read.
    pub fn saved(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(SUMMARY);
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::file("read", path, source)),
        };
        let read = serde_json::from_slice(&json).map_err(|error| {
            let line = u64::try_from(error.line()).ok();
            Error::format(&path, line, "the summary of few-shot runs", error.to_string(), "start them anew")
        })?;
        Ok(Some(read))
    }

    /// Whether few-shot runs could be written to `out`, asked before there are any: nothing is left there.
    ///
    /// # Errors
    /// If the folder exists and is not empty, or cannot be written.
    pub fn check_new(out: &Path) -> Result<()> {
        if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
            let found = format!("{}, which holds files", out.display());
            let advice = "name another folder, or go on with interrupted runs by --resume";
            return Err(Error::setting("--out", "a new or empty folder", found, advice));
        }
        files::check_folder(out)
    }

    /// What the first of the runs below `out` that has begun recorded, with the settings of them all.
    pub fn first_begun(&self, out: &Path) -> Option<RunManifest> {
        let folders = self.config.draw_seeds().into_iter().map(|data_seed| out.join(folder_of(data_seed)));
        let saved = folders.into_iter().find_map(|folder| RunFolder::saved(&folder).ok())?;
        Some(RunManifest { config: self.config.clone(), ..saved })
    }

    /// Trains a run for each draw into folders below `out`, and evaluates it on the test rows if there are any. Goes on
    /// with what is there if `resume`.
    ///
    /// # Errors
    /// Those of training and of writing.
    pub fn run(
        runner: &dyn Runner,
        config: &RunConfig,
        out: &Path,
        resume: bool,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        if !resume {
            Self::check_new(out)?;
        }
        std::fs::create_dir_all(out).map_err(|source| Error::file("create", out, source))?;
        let mut runs = Self { config: config.clone(), draws: Vec::new(), summary: Vec::new() };
        runs.write(out)?;
        let (mut trainings, mut jobs) = (Vec::new(), Vec::new());
        for data_seed in config.draw_seeds() {
            let (folder, config) =
                (out.join(folder_of(data_seed)), RunConfig { data_seed: Some(data_seed), ..config.clone() });
            jobs.push(EvaluationJob::new(config.clone(), Some(folder.clone()), Split::Test));
            let name = format!("data seed {data_seed}");
            trainings.push(Training { is_compared: !resume, ..Training::new(name, config, folder) });
        }
        progress.begin("draws", trainings.iter().map(|training| training.config.steps.unwrap_or(0)).sum());
        let outcomes = runner.train(&trainings, progress)?.into_iter().collect::<Result<Vec<_>>>()?;
        progress.begin("test rows", jobs.len() as u64);
        let evaluated = runner.evaluate(&jobs, progress)?;
        for ((outcome, Training { config, .. }), evaluated) in
            outcomes.into_iter().zip(trainings).zip(evaluated)
        {
            let test = metrics(evaluated?, progress);
            runs.draws.push(Draw {
                data_seed: config.data_seed(),
                folder: folder_of(config.data_seed()),
                rows: outcome.rows,
                sources: config.sources.clone(),
                learning_rate: config.learning_rate,
                scorer_learning_rate: config.scorer_learning_rate(),
                steps: outcome.steps,
                best_step: outcome.best_step,
                validation: outcome.best,
                test,
            });
        }
        runs.summarise();
        runs.write(out)?;
        Ok(runs)
    }

    fn summarise(&mut self) {
        let validation: Vec<f64> = self.draws.iter().map(|draw| draw.validation).collect();
        self.summary = vec![Spread::new("validation", &validation)];
        let Some(first) = self.draws.first() else { return };
        for (name, _) in &first.test {
            let of =
                |draw: &Draw| draw.test.iter().find(|(other, _)| other == name).and_then(|(_, value)| *value);
            let values: Vec<f64> = self.draws.iter().filter_map(of).collect();
            if values.len() == self.draws.len() {
                self.summary.push(Spread::new(format!("test {name}"), &values));
            }
        }
    }

    fn write(&self, out: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::unsupported(SUMMARY, error.to_string(), ""))?;
        files::replace(&out.join(SUMMARY), |file| file.write_all(&json))
    }
}
