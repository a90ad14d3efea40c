//! The folder a run leaves: its settings, its log, its best and its last state.
//!
//! `run.json` settings and origin · `config.toml` the settings alone, for `--config` · `log.jsonl` and `log.txt` a line a
//! step · `events.out.tfevents.*` the same for TensorBoard · `examples.jsonl` answers and attention of some validation
//! rows at the best step · `evaluation.json` what `promptmix evaluate` found · `best.safetensors` the best parameters by name · `last.safetensors` parameters, moments, best
//! parameters and counters, to resume from · `prompt.safetensors` the best target prompt, which serves as a source for
//! other runs.
//!
//! Every file but the logs is replaced as a whole, and `last.safetensors` alone decides where a run goes on; so it may
//! be killed between any two writes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::events::Events;
use super::log::{StepRecord, ValidationRecord};
use super::manifest::{Beginning, FORMAT, RunManifest};
use crate::backend::StateLayout;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::files;
use crate::pretrained::TensorFile;

/// The file without which a folder is no run's.
const RUN: &str = "run.json";
/// The text log, which is never replaced: whoever has it locked may write to the folder.
const LOG: &str = "log.txt";
/// What a run and its evaluation write besides events, which are new files each time: files, and the folder of several tasks'
/// prompts.
const WRITTEN: [&str; 11] = [
    RUN,
    LOG,
    "config.toml",
    "log.jsonl",
    "examples.jsonl",
    "last.safetensors",
    "best.safetensors",
    "prompt.safetensors",
    "scorer.safetensors",
    "prompts",
    EVALUATIONS,
];
/// What the run's best state came to on splits of its own data.
pub(super) const EVALUATIONS: &str = "evaluation.json";
/// In the folder of few-shot runs: their settings, but for the data seed.
pub(crate) const FEW_SHOT_SETTINGS: &str = "few_shot_settings.toml";
/// How the folders of few-shot runs begin, before the data seed.
pub(crate) const DRAW: &str = "draw-";
/// Files of a run that has taken no step.
const UNBEGUN: [&str; 5] = [RUN, "config.toml", "log.jsonl", LOG, "last.safetensors"];

/// All that training goes on from.
#[derive(Clone, Debug, PartialEq)]
pub struct LastState {
    /// Parameters, first and second moments, flat.
    pub state: [Vec<f64>; 3],
    /// The parameters of the best validation so far; those of the start before the first.
    pub best: Vec<f64>,
    /// The counters.
    pub checkpoint: Checkpoint,
}

/// What a validation example was answered, and what its mixture was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExampleRecord {
    /// Its index among the validation examples.
    pub example: usize,
    /// The beginning of its source text.
    pub source: String,
    /// What the run said.
    pub prediction: String,
    /// What it should have said. Not in folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its mixture, the target prompt last.
    pub attention: Vec<f64>,
}

/// The one piece of metadata of a state file: what is known beside the tensors, and their checksum.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    content: T,
    /// SHA-256 over the tensors' bytes, one tensor after the other in order of names.
    sha256: String,
}

/// How far a run has come, beside its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Steps taken.
    pub step: u64,
    /// Updates applied: steps less those that were skipped.
    pub updates: u64,
    /// The best validation so far, and its step.
    pub best: Option<(f64, u64)>,
    /// The mean metric of each task at the best validation.
    #[serde(default)]
    pub best_of_tasks: Vec<f64>,
    /// Metrics that were not defined at the best validation, as its record names them, and count as 0 in its mean. Not in checkpoints
    /// of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub best_undefined: Vec<String>,
    /// Validations since.
    pub without_improvement: u64,
    /// SHA-256 over the token ids of the training examples.
    #[serde(default)]
    pub data_sha256: Option<String>,
    /// The same of the validation examples, by which the best was chosen. Not in checkpoints of older versions.
    #[serde(default)]
    pub validation_sha256: Option<String>,
}

/// An open run folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    lines: File,
    /// [`LOG`], locked.
    text: File,
    events: Option<Events>,
    /// Whether a prompt trains, and whether a scorer does.
    trains: [bool; 2],
}

impl RunFolder {
    /// Makes a new folder and writes `run.json`. A run that has taken no step is no obstacle: its files make way.
    ///
    /// # Errors
    /// If the folder exists and holds other files, or cannot be written.
    pub fn create(path: &Path, config: &RunConfig, model_hash: &str) -> Result<Self> {
        Self::create_as(path, &RunManifest::new(config, model_hash))
    }

    /// As [`RunFolder::create`], with all of `run.json` as it is to be.
    pub(super) fn create_as(path: &Path, saved: &RunManifest) -> Result<Self> {
        check_free(path)?;
        std::fs::create_dir_all(path).map_err(|source| Error::file("create", path, source))?;
        let toml = saved.config.to_toml()?;
        let text = lock(path)?;
        // Another process may have begun a run there, and ended it, since the folder was free.
        if occupied(path)? {
            return Err(not_free(path));
        }
        remove_unbegun(path)?;
        text.set_len(0).map_err(|source| Error::file("empty", path.join(LOG), source))?;
        files::replace(&path.join("config.toml"), |file| file.write_all(toml.as_bytes()))?;
        save_settings(path, saved)?;
        Self::of(path, text)
    }

    /// Empties `path` of what a run left that has taken no step, or few-shot runs. A folder with more in it stays as it is.
    ///
    /// # Errors
    /// If something trains in it, or it cannot be read or changed.
    pub(crate) fn take_back(path: &Path) -> Result<()> {
        if !path.is_dir() || occupied(path)? {
            return Ok(());
        }
        let _lock = if path.join(LOG).is_file() { Some(lock(path)?) } else { None };
        remove_unbegun(path)?;
        // Last, as it is what holds the lock.
        ["config.toml", RUN, LOG].into_iter().try_for_each(|name| remove(&path.join(name)))
    }

    /// Whether `path` holds more than what a run leaves that was killed, or failed, before its first step.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(super) fn has_begun(path: &Path) -> Result<bool> {
        occupied(path)
    }

    /// Writes into `run.json` what is known when training begins, unless it says so, and how long the run is now to be: as `config` has it.
    pub(super) fn record(&self, beginning: Beginning, config: &RunConfig) -> Result<()> {
        let before = Self::saved(&self.path)?;
        let mut saved = before.clone();
        saved.begin(beginning);
        (saved.config.steps, saved.config.epochs) = (config.steps, config.epochs);
        if saved == before {
            return Ok(());
        }
        if saved.config != before.config {
            let toml = saved.config.to_toml()?;
            files::replace(&self.path.join("config.toml"), |file| file.write_all(toml.as_bytes()))?;
        }
        save_settings(&self.path, &saved)
    }

    /// How many numbers the run in `path`, whose settings are `saved`, trains: as recorded, or else counted in
    /// `best.safetensors`; `None` if it is of an older version and has no best state yet.
    ///
    /// # Errors
    /// If `best.safetensors` is malformed.
    pub fn trained_numbers(path: &Path, saved: &RunManifest) -> Result<Option<usize>> {
        let best = path.join("best.safetensors");
        if saved.trained_numbers.is_some() || !best.exists() {
            return Ok(saved.trained_numbers);
        }
        let file = TensorFile::open_safetensors(&best)?;
        let shapes = file.names().filter(|name| saved.trains(name)).map(|name| file.shape(name));
        let sizes = shapes.map(|shape| Ok(shape?.iter().product::<usize>()));
        sizes.sum::<Result<usize>>().map(Some)
    }

    /// Whether a run could be made in `path`, asked before there is one: nothing is left there.
    ///
    /// # Errors
    /// As [`RunFolder::create`].
    pub fn check_new(path: &Path) -> Result<()> {
        files::refuse_file(path)?;
        check_free(path)?;
        files::check_folder(path)
    }

    /// Opens an existing folder to go on with; half-written temporary files that a kill left are removed.
    ///
    /// # Errors
    /// If something else has it open, in this process or another, or the logs cannot be written; as [`RunFolder::saved`].
    pub fn open(path: &Path) -> Result<Self> {
        let run = path.join(RUN);
        run.metadata().map_err(|source| Error::file("open", &run, source))?;
        // All that the run writes, so that none keeps it waiting at its end; a folder has its files one level further down.
        for name in WRITTEN {
            let written = path.join(name);
            files::refuse_stream(&written)?;
            for entry in std::fs::read_dir(&written).into_iter().flatten().flatten() {
                files::refuse_stream(&entry.path())?;
            }
        }
        Self::of(path, lock(path)?)
    }

    /// Refuses a file to write that the run beside it writes: they go together, and another's in the place of one would not be the
    /// run's.
    ///
    /// # Errors
    /// [`Error::Setting`] if `file` is one.
    #[cfg(feature = "cli")]
    pub(crate) fn refuse_own(file: &Path) -> Result<()> {
        if !WRITTEN.iter().any(|name| file.ends_with(name)) || !file.with_file_name(RUN).is_file() {
            return Ok(());
        }
        let found = format!("{}, a file of a run", file.display());
        Err(Error::setting("--out", "a file of its own", found, "name another file"))
    }

    /// The folder in `path`, whose text log is `text`, without what a kill left half-written.
    fn of(path: &Path, text: File) -> Result<Self> {
        for entry in std::fs::read_dir(path).map_err(|source| Error::file("read", path, source))?.flatten() {
            if files::is_temporary(&entry.file_name()) {
                std::fs::remove_file(entry.path())
                    .map_err(|source| Error::file("remove", entry.path(), source))?;
            }
        }
        let saved = Self::saved(path)?;
        let trains = [saved.trains_prompt(), saved.trains_scorer()];
        Ok(Self { path: path.to_owned(), lines: append(path, "log.jsonl")?, text, events: None, trains })
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The settings that a run was started with.
    ///
    /// # Errors
    /// If `run.json` is missing, malformed or of another version.
    pub fn saved(path: &Path) -> Result<RunManifest> {
        let file = path.join(RUN);
        let advice = "name a folder that promptmix train wrote";
        let Some(json) = files::read(&file)? else {
            let found = format!("none in {}", path.display());
            return Err(Error::setting("the run folder", "a folder with run.json", found, advice));
        };
        let malformed = |error: serde_json::Error| {
            Error::format(
                &file,
                Some(error.line() as u64),
                "the settings of a run",
                error.to_string(),
                advice,
            )
        };
        let version: serde_json::Value = serde_json::from_slice(&json).map_err(malformed)?;
        if version.get("format").and_then(serde_json::Value::as_u64) != Some(u64::from(FORMAT)) {
            let by = version.get("promptmix").and_then(serde_json::Value::as_str).unwrap_or("unknown");
            let Some(found) = version.get("format") else {
                return Err(Error::format(&file, None, format!("format {FORMAT}"), "none", advice));
            };
            return Err(Error::format(
                &file,
                None,
                format!("a run folder of format {FORMAT}"),
                format!("format {found}, written by promptmix {by}"),
                "nothing in it was changed: open it with that version; its prompt.safetensors serves as a source or as \
                 --initial-prompt here",
            ));
        }
        let saved: RunManifest = serde_json::from_value(version).map_err(malformed)?;
        // Before its first step a run of now has no effective settings either.
        let is_known = saved.effective.is_some() || Self::has_begun(path)?;
        Ok(if is_known { saved.with_splits_of_then() } else { saved })
    }

    /// Drops log lines of steps after `step`, which a resumed run takes again.
    ///
    /// # Errors
    /// If the logs cannot be read or replaced.
    pub fn rewind(&mut self, step: u64) -> Result<()> {
        let path = self.path.join("log.jsonl");
        // A kill may have cut the last line within a letter.
        let log = std::fs::read(&path).map_err(|source| Error::file("read", &path, source))?;
        let log = String::from_utf8_lossy(&log);
        let kept: Vec<&str> = log
            .lines()
            .filter(|line| {
                let line: std::result::Result<serde_json::Value, _> = serde_json::from_str(line);
                line.is_ok_and(|line| line.get("step").and_then(serde_json::Value::as_u64) <= Some(step))
            })
            .collect();
        files::replace(&path, |file| kept.iter().try_for_each(|line| writeln!(file, "{line}")))?;
        self.lines = append(&self.path, "log.jsonl")?;
        self.note(&format!("resumed after step {step}"))
    }

    /// Appends a step to both logs.
    ///
    /// # Errors
    /// If a log cannot be written.
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.line(record)?;
        self.scalars(record.step, record.scalars())?;
        let [prompt, scorer] = self.trains;
        self.note(&record.line(prompt, scorer))
    }

    /// Appends a validation to both logs.
    ///
    /// # Errors
    /// If a log cannot be written.
    pub fn validation(&mut self, record: &ValidationRecord) -> Result<()> {
        self.line(record)?;
        self.scalars(record.step, record.scalars())?;
        self.note(&record.to_string())
    }

    fn scalars(&mut self, step: u64, values: Vec<(String, f64)>) -> Result<()> {
        let events = match &mut self.events {
            Some(events) => events,
            none => none.insert(Events::create(&self.path, step)?),
        };
        events.scalars(step, values.into_iter())
    }

    fn line(&mut self, record: &impl Serialize) -> Result<()> {
        let mut json = serde_json::to_vec(record)
            .map_err(|error| Error::unsupported("a log record", error.to_string(), ""))?;
        json.push(b'\n');
        let path = self.path.join("log.jsonl");
        self.lines.write_all(&json).map_err(|source| Error::file("append to", path, source))
    }

    /// Appends a line to the text log.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note(&mut self, text: &str) -> Result<()> {
        let path = self.path.join(LOG);
        // One write a line: a kill cuts no line in two.
        self.text
            .write_all(format!("{text}\n").as_bytes())
            .map_err(|source| Error::file("append to", path, source))
    }

    /// Writes `last.safetensors`.
    ///
    /// # Errors
    /// If the file cannot be written; the old one then still stands.
    pub fn save_last(&self, last: &LastState) -> Result<()> {
        let [parameters, first_moment, second_moment] = &last.state;
        let tensors: Vec<(String, Vec<usize>, &[f64])> = [
            ("best", &last.best),
            ("first_moment", first_moment),
            ("parameters", parameters),
            ("second_moment", second_moment),
        ]
        .map(|(name, values)| (name.to_owned(), vec![values.len()], &values[..]))
        .into();
        save(&self.path.join("last.safetensors"), &tensors, &last.checkpoint)
    }

    /// Reads `last.safetensors` of a state of `layout`; `None` if the run in `path` was broken off before it wrote one.
    ///
    /// # Errors
    /// If it is malformed, damaged or of another length, or missing though steps were logged.
    pub fn load_last(path: &Path, layout: &StateLayout) -> Result<Option<LastState>> {
        let folder = path;
        let [log, path] = ["log.jsonl", "last.safetensors"].map(|name| folder.join(name));
        let took_steps = log.metadata().is_ok_and(|log| log.len() > 0);
        if !path.exists() && (took_steps || lacks_checkpoint(folder)) {
            let (found, advice) = if took_steps {
                (
                    "none, though the run has taken steps",
                    "put it back; best.safetensors and prompt.safetensors are as they were",
                )
            } else {
                (
                    "none: what is in the folder was trained in another",
                    "train into a new folder; --initial-prompt and --initial-scorer take what this one has",
                )
            };
            let expected = format!("the checkpoint {}", path.display());
            return Err(Error::setting("--resume", expected, found, advice));
        }
        if !path.exists() {
            return Ok(None);
        }
        let (file, checkpoint) = open(&path)?;
        // Runs that centered inputs and did not scale them end before the scale, which is then one.
        let scale = layout.segments().last().filter(|segment| segment.name == "input_scale");
        let unscaled =
            scale.filter(|scale| file.shape("parameters").is_ok_and(|shape| shape == [scale.range.start]));
        let length = unscaled.map_or(layout.len(), |scale| scale.range.start);
        let read = |name: &str, scale: f64| {
            let mut values: Vec<f64> = file.tensor(name, &[length])?.into_iter().map(f64::from).collect();
            values.resize(layout.len(), scale);
            Ok::<_, Error>(values)
        };
        let state = [read("parameters", 1.0)?, read("first_moment", 0.0)?, read("second_moment", 0.0)?];
        Ok(Some(LastState { state, best: read("best", 1.0)?, checkpoint }))
    }

    /// Writes `best.safetensors`: each segment by its name.
    ///
    /// # Errors
    /// If the file cannot be written; the old one then still stands.
    pub fn save_best(&self, layout: &StateLayout, values: &[f64], step: u64) -> Result<()> {
        let tensors: Vec<(String, Vec<usize>, &[f64])> = layout
            .segments()
            .iter()
            .map(|segment| (segment.name.to_owned(), segment.shape.clone(), &values[segment.range.clone()]))
            .collect();
        save(&self.path.join("best.safetensors"), &tensors, &step)
    }

    /// Reads `best.safetensors` as a flat state of `layout`.
    ///
    /// # Errors
    /// If it is missing, malformed, damaged or does not fit the layout.
    pub fn load_best(path: &Path, layout: &StateLayout) -> Result<Vec<f64>> {
        Self::load_best_of_step(path, layout).map(|(values, _)| values)
    }

    /// As [`RunFolder::load_best`], with the number of steps before that state.
    pub(super) fn load_best_of_step(path: &Path, layout: &StateLayout) -> Result<(Vec<f64>, u64)> {
        let best = path.join("best.safetensors");
        if !best.exists() && !path.join("prompt.safetensors").exists() {
            let advice = "wait for its first validation, or go on with it: promptmix train --resume";
            let found = "a run that has learnt nothing yet";
            return Err(Error::format(path, None, "a run with a best.safetensors", found, advice));
        }
        let (file, step) = open::<u64>(&best)?;
        let mut values = Vec::with_capacity(layout.len());
        for segment in layout.segments() {
            if segment.name == "input_scale" && !file.contains(segment.name) {
                values.resize(segment.range.end, 1.0);
                continue;
            }
            values.extend(file.tensor(segment.name, &segment.shape)?.into_iter().map(f64::from));
        }
        Ok((values, step))
    }

    /// Writes `examples.jsonl`.
    ///
    /// # Errors
    /// If the file cannot be written; the old one then still stands.
    pub fn save_examples(&self, examples: &[ExampleRecord]) -> Result<()> {
        files::replace(&self.path.join("examples.jsonl"), |file| {
            examples.iter().try_for_each(|example| {
                serde_json::to_writer(&mut *file, example)?;
                file.write_all(b"\n")
            })
        })
    }
}

/// Writes `run.json`.
fn save_settings(path: &Path, saved: &RunManifest) -> Result<()> {
    files::write_json(&path.join(RUN), saved)
}

/// Opens one of the folder's logs to append to.
fn append(folder: &Path, name: &str) -> Result<File> {
    let path = folder.join(name);
    files::refuse_stream(&path)?;
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.map_err(|source| Error::file("open", path, source))
}

/// Opens the text log of the run in `folder` and locks it against all others, until the file is dropped or the process ends,
/// however it ends.
fn lock(folder: &Path) -> Result<File> {
    let file = append(folder, LOG)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::setting(
            "--out",
            "a run that nothing else writes to",
            format!("{}, which a promptmix is training in", folder.display()),
            "wait for its end or end it; predict and evaluate may read the folder meanwhile",
        )),
        // A file system without locks leaves it to the user.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

fn check_free(path: &Path) -> Result<()> {
    if !occupied(path)? {
        // A run before its first step may be under way.
        return if path.join(LOG).is_file() { lock(path).map(drop) } else { Ok(()) };
    }
    Err(not_free(path))
}

fn not_free(path: &Path) -> Error {
    let advice = match lacks_checkpoint(path) {
        true => "name another folder",
        false => "name another folder, or go on with an interrupted run by --resume",
    };
    Error::setting("--out", "a new or empty folder", format!("{}, which holds files", path.display()), advice)
}

/// Whether `path` is a folder with more in it than what a run leaves that was killed, or failed, before its first step.
fn occupied(path: &Path) -> Result<bool> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::file("read", path, error)),
    };
    // Without it there was no run: but for what comes before it, the rest is somebody else's.
    let is_run = path.join(RUN).is_file();
    let is_empty = |name: &str| path.join(name).metadata().is_ok_and(|file| file.len() == 0);
    let is_own = |name: &OsStr| match is_run {
        true => UNBEGUN.iter().any(|own| name == *own),
        false if name.to_string_lossy().starts_with(DRAW) => occupied(&path.join(name)).is_ok_and(|is| !is),
        false if name == FEW_SHOT_SETTINGS => true,
        // The log comes first: settings alone are somebody's own.
        false => is_empty(LOG) && (name == "config.toml" || name == LOG),
    };
    let mut names = entries.flatten().map(|entry| entry.file_name());
    Ok(has_steps(path) || names.any(|name| !files::is_temporary(&name) && !is_own(&name)))
}

/// Whether `path` has what a run learns and no checkpoint, which comes before: it was trained in another folder.
fn lacks_checkpoint(path: &Path) -> bool {
    let is_there = |name: &str| path.join(name).exists();
    !is_there("last.safetensors") && (is_there("best.safetensors") || is_there("prompt.safetensors"))
}

/// Whether the run in `path` has taken a step: one is logged before anything else is made of it, but a log may be gone. A checkpoint
/// that cannot be read may be of some.
fn has_steps(path: &Path) -> bool {
    let last = path.join("last.safetensors");
    path.join("log.jsonl").metadata().is_ok_and(|log| log.len() > 0)
        || last.exists() && open::<Checkpoint>(&last).map_or(true, |(_, checkpoint)| checkpoint.step > 0)
}

/// Removes what a run left in `folder` that has taken no step, but for its settings and its text log; and few-shot runs.
fn remove_unbegun(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|source| Error::file("read", folder, source))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(DRAW) {
            RunFolder::take_back(&entry.path())?;
            // What somebody else laid into it stays.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
    ["log.jsonl", "last.safetensors", FEW_SHOT_SETTINGS]
        .into_iter()
        .try_for_each(|name| remove(&folder.join(name)))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path, error)),
        _ => Ok(()),
    }
}

/// Writes tensors as f32, under a seal.
fn save(path: &Path, tensors: &[(String, Vec<usize>, &[f64])], content: &impl Serialize) -> Result<()> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect())
        .collect();
    let refused = |error: safetensors::SafeTensorError| {
        Error::unsupported(format!("writing {}", path.display()), error.to_string(), "")
    };
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(refused)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut named: Vec<(&str, &[u8])> =
        tensors.iter().map(|(name, ..)| name.as_str()).zip(bytes.iter().map(Vec::as_slice)).collect();
    named.sort_unstable();
    let sealed = Sealed { content, sha256: checksum(named.into_iter().map(|(_, bytes)| bytes)) };
    let sealed = serde_json::to_string(&sealed)
        .map_err(|error| Error::unsupported("a checkpoint", error.to_string(), ""))?;
    // One entry alone: several would come in another order in every process.
    let metadata = HashMap::from([(METADATA.to_owned(), sealed)]);
    let file = safetensors::serialize(views, Some(metadata)).map_err(refused)?;
    files::replace(path, |writer| writer.write_all(&file))
}

/// The key of a state file's metadata.
const METADATA: &str = "promptmix";

/// Opens what [`save`] wrote, if its seal is unbroken.
fn open<T: DeserializeOwned>(path: &Path) -> Result<(TensorFile, T)> {
    let advice = "the file was damaged or edited: put back a copy, or start the run anew; its other files are as they were";
    let file = TensorFile::open_safetensors(path)?;
    let sealed = file.metadata().get(METADATA).map(String::as_str).unwrap_or_default();
    let sealed: Sealed<T> = serde_json::from_str(sealed).map_err(|error| {
        Error::format(path, None, "the counters and checksum of a checkpoint", error.to_string(), advice)
    })?;
    let mut tensors = Vec::new();
    for name in file.names() {
        let values = file.tensor(name, file.shape(name)?)?;
        tensors.push(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    let found = checksum(tensors.iter().map(Vec::as_slice));
    if found != sealed.sha256 {
        let expected = format!("tensors of SHA-256 {}", sealed.sha256);
        return Err(Error::format(path, None, expected, found, advice));
    }
    Ok((file, sealed.content))
}

fn checksum<'a>(tensors: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    tensors.for_each(|bytes| hasher.update(bytes));
    format!("{:x}", hasher.finalize())
}
