//! Few-shot runs: a sweep over draws of rows, the settings otherwise the same, and what they come to together.
//!
//! One draw says little: with 16 rows a class the draw moves the result more than most settings do.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::progress::Progress;
use super::runner::{Runner, Training};
use super::sweep::{Sweep, SweptRun, spread};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::evaluate::Spread;
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

/// How the folders of the draws' runs begin, before the data seed.
const DRAW: &str = "draw-";

/// The folder of a draw's run.
fn folder_of(data_seed: u64) -> PathBuf {
    format!("{DRAW}{data_seed}").into()
}

/// What lies in `out`, if it is a folder.
fn entries(out: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(out) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::file("read", out, source)),
    }
}

/// Whether `path` is named as the folder of a draw's run is.
fn is_draw(path: &Path) -> bool {
    path.is_dir() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DRAW))
}

/// Whether there is more in `out` than the summary and runs that have taken no step.
fn has_begun(out: &Path) -> Result<bool> {
    let entries = entries(out)?;
    if !entries.iter().any(|entry| entry.ends_with(SUMMARY)) {
        return RunFolder::has_begun(out);
    }
    for entry in entries {
        let is_of_nothing = match entry.ends_with(SUMMARY) {
            // One that lists runs is a result, even where their folders are gone.
            true => FewShotRuns::saved(out).is_ok_and(|runs| runs.is_some_and(|runs| runs.draws.is_empty())),
            false => is_draw(&entry) && !RunFolder::has_begun(&entry)?,
        };
        if !is_of_nothing {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Empties `out` of what runs left none of which has taken a step.
fn take_back(out: &Path) -> Result<()> {
    for draw in entries(out)?.iter().filter(|entry| is_draw(entry)) {
        RunFolder::take_back(draw)?;
        // What somebody else laid into it stays.
        let _ = std::fs::remove_dir(draw);
    }
    let summary = out.join(SUMMARY);
    if summary.is_file() {
        std::fs::remove_file(&summary).map_err(|source| Error::file("remove", &summary, source))?;
    }
    RunFolder::take_back(out)
}

impl FewShotRuns {
    /// The settings of few-shot runs that were begun in `folder`; `None` if it holds none.
    ///
    /// # Errors
    /// If `few_shot.json` cannot be read.
    pub fn saved(folder: &Path) -> Result<Option<Self>> {
        files::read_json(&folder.join(SUMMARY), "the summary of few-shot runs", "start them anew")
    }

    /// Whether few-shot runs could be written to `out`, asked before there are any: nothing is left there.
    ///
    /// # Errors
    /// If the folder exists and holds more than runs that have taken no step, or cannot be written.
    pub fn check_new(out: &Path) -> Result<()> {
        files::refuse_file(out)?;
        if has_begun(out)? {
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
        let runs = Self { config: config.clone(), draws: Vec::new(), summary: Vec::new() };
        if resume {
            return runs.train(runner, out, false, progress);
        }
        Self::check_new(out)?;
        let is_new = !out.exists();
        take_back(out)?;
        let done = runs.train(runner, out, true, progress);
        if done.is_err() && !has_begun(out)? {
            // Nothing was learnt: the folder is to be free for the command that is put right.
            take_back(out)?;
            if is_new {
                let _ = std::fs::remove_dir(out);
            }
        }
        done.map_err(|error| error.going_on_by("--resume goes on from there"))
    }

    /// Trains every draw's run; the settings of one that is there are compared with its draw's if `is_compared`.
    fn train(
        mut self,
        runner: &dyn Runner,
        out: &Path,
        is_compared: bool,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        std::fs::create_dir_all(out).map_err(|source| Error::file("create", out, source))?;
        // What earlier runs came to stays until all of these are done.
        let before = Self::saved(out)?;
        let begun = Self { config: self.config.clone(), ..before.clone().unwrap_or_else(|| self.clone()) };
        if before.as_ref() != Some(&begun) {
            files::write_json(&out.join(SUMMARY), &begun)?;
        }
        let training = |data_seed| {
            let config = RunConfig { data_seed: Some(data_seed), ..self.config.clone() };
            let (name, folder) = (format!("data seed {data_seed}"), out.join(folder_of(data_seed)));
            Training { is_compared, ..Training::new(name, config, folder) }
        };
        let trainings: Vec<Training> = self.config.draw_seeds().into_iter().map(training).collect();
        let sweep = Sweep::run(runner, "draws", &trainings, progress)?;
        let all: Vec<&SweptRun> = sweep.runs.iter().collect();
        let has_every = |measure: &&String| all.iter().all(|run| run.measure(measure).is_some());
        let measures = sweep.measures();
        self.summary =
            measures.iter().filter(has_every).filter_map(|measure| spread(&all, measure)).collect();
        for SweptRun { config, outcome, test, .. } in sweep.runs {
            let outcome = outcome?;
            self.draws.push(Draw {
                data_seed: config.data_seed(),
                folder: folder_of(config.data_seed()),
                rows: outcome.rows,
                learning_rate: config.learning_rate,
                scorer_learning_rate: config.scorer_learning_rate(),
                sources: config.sources,
                steps: outcome.steps,
                best_step: outcome.best_step,
                validation: outcome.best,
                test,
            });
        }
        files::write_json(&out.join(SUMMARY), &self)?;
        Ok(self)
    }
}
