//! Few-shot runs: a sweep over draws of rows, the settings otherwise the same, and what they come to together.
//!
//! One draw says little: with 16 rows a class the draw moves the result more than most settings do.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::progress::Progress;
use super::runner::{Runner, Training};
use super::sweep::{Sweep, SweptRun, spread};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::evaluate::Spread;
use crate::files;
use crate::train::{DRAW, FEW_SHOT_SETTINGS, Outcome, RunFolder, RunManifest};

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
    /// Its sources.
    pub sources: Vec<PathBuf>,
    /// The prompt's peak learning rate.
    pub learning_rate: f64,
    /// The scorer's.
    pub scorer_learning_rate: f64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Each test metric of the best state; with several tasks their names stand before.
    pub test: Vec<(String, Option<f64>)>,
}

/// The folder of a draw's run.
fn folder_of(data_seed: u64) -> PathBuf {
    format!("{DRAW}{data_seed}").into()
}

impl FewShotRuns {
    /// What few-shot runs in `folder` came to; `None` if it holds none that are done.
    ///
    /// # Errors
    /// If `few_shot.json` cannot be read.
    pub fn saved(folder: &Path) -> Result<Option<Self>> {
        files::read_json(&folder.join(SUMMARY), "the summary of few-shot runs", "start them anew")
    }

    /// The settings of few-shot runs that were begun in `out`, and what the first of them that has begun recorded, with the settings of
    /// them all; `None` if none were begun there.
    ///
    /// # Errors
    /// If the settings cannot be read.
    pub fn begun(out: &Path) -> Result<Option<(RunConfig, Option<RunManifest>)>> {
        let settings = out.join(FEW_SHOT_SETTINGS);
        let config = match Self::saved(out)? {
            _ if settings.is_file() => RunConfig::from_toml(&settings)?,
            Some(runs) => runs.config,
            None => return Ok(None),
        };
        let saved = |seed| RunFolder::saved(&out.join(folder_of(seed))).ok();
        let saved = config.draw_seeds().into_iter().find_map(saved);
        let begun = saved.map(|saved| RunManifest { config: config.clone(), ..saved });
        Ok(Some((config, begun)))
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
        if resume {
            return Self::train(runner, config, out, false, progress);
        }
        RunFolder::check_new(out)?;
        let is_new = !out.exists();
        RunFolder::take_back(out)?;
        let done = Self::train(runner, config, out, true, progress);
        if done.is_err() {
            // If nothing was learnt, the folder is to be free for the command that is put right.
            RunFolder::take_back(out)?;
            if is_new {
                // It stays if anything is in it.
                let _ = std::fs::remove_dir(out);
            }
        }
        let is_there = out.join(FEW_SHOT_SETTINGS).is_file();
        let next = if is_there { "--resume goes on from there" } else { "the same command begins anew" };
        done.map_err(|error| error.going_on_by(next))
    }

    /// Trains every draw's run; the settings of one that is there are compared with its draw's if `is_compared`.
    fn train(
        runner: &dyn Runner,
        config: &RunConfig,
        out: &Path,
        is_compared: bool,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        std::fs::create_dir_all(out).map_err(|source| Error::file("create", out, source))?;
        let toml = config.to_toml()?;
        files::replace(&out.join(FEW_SHOT_SETTINGS), |file| file.write_all(toml.as_bytes()))?;
        let training = |data_seed| {
            let config = RunConfig { data_seed: Some(data_seed), ..config.clone() };
            let (name, folder) = (format!("data seed {data_seed}"), out.join(folder_of(data_seed)));
            Training { is_compared, ..Training::new(name, config, folder) }
        };
        let trainings: Vec<Training> = config.draw_seeds().into_iter().map(training).collect();
        let sweep = Sweep::run(runner, "draws", &trainings, progress)?;
        let all: Vec<&SweptRun> = sweep.runs.iter().collect();
        let has_every = |measure: &&String| all.iter().all(|run| run.measure(measure).is_some());
        let measures = sweep.measures();
        let summary = measures.iter().filter(has_every).filter_map(|of| spread(&all, of)).collect();
        let draw = |SweptRun { config, outcome, test, .. }| {
            Ok(Draw {
                data_seed: config.data_seed(),
                folder: folder_of(config.data_seed()),
                learning_rate: config.learning_rate,
                scorer_learning_rate: config.scorer_learning_rate(),
                sources: config.sources,
                outcome: outcome?,
                test,
            })
        };
        let draws = sweep.runs.into_iter().map(draw).collect::<Result<_>>()?;
        let runs = Self { config: config.clone(), draws, summary };
        // What earlier runs came to stayed until all of these were done.
        files::write_json(&out.join(SUMMARY), &runs)?;
        Ok(runs)
    }
}
