//! The folder a run leaves: its settings, its log, its best and its last state.
//!
//! `run.json` settings and origin · `log.jsonl` and `log.txt` a line a step · `best.safetensors` the best parameters by
//! name · `last.safetensors` parameters, moments and counters, to resume from · `prompt.safetensors` the best target
//! prompt, which serves as a source for other runs.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use super::log::{StepRecord, ValidationRecord};
use crate::backend::StateLayout;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::files;
use crate::pretrained::TensorFile;

/// The version of the folder's format.
const FORMAT: u32 = 1;

/// `run.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Saved {
    /// The version of the folder's format.
    pub format: u32,
    /// The program's version.
    pub promptmix: String,
    /// SHA-256 of the frozen model.
    pub model_hash: String,
    /// The settings.
    pub config: RunConfig,
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
    /// Validations since.
    pub without_improvement: u64,
}

/// An open run folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    lines: File,
    text: File,
}

impl RunFolder {
    /// Makes a new folder and writes `run.json`.
    ///
    /// # Errors
    /// If the folder exists and is not empty, or cannot be written.
    pub fn create(path: &Path, config: &RunConfig, model_hash: &str) -> Result<Self> {
        let occupied = match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::file("read", path, error)),
        };
        if occupied {
            return Err(Error::setting(
                "--out",
                "a new or empty folder",
                format!("{}, which holds files", path.display()),
                "name another folder, or go on with an interrupted run by --resume",
            ));
        }
        std::fs::create_dir_all(path).map_err(|source| Error::file("create", path, source))?;
        let saved = Saved {
            format: FORMAT,
            promptmix: env!("CARGO_PKG_VERSION").into(),
            model_hash: model_hash.into(),
            config: config.clone(),
        };
        let json = serde_json::to_vec_pretty(&saved)
            .map_err(|error| Error::unsupported("run.json", error.to_string(), ""))?;
        files::replace(&path.join("run.json"), |file| file.write_all(&json))?;
        Self::open(path)
    }

    /// Opens an existing folder to go on with.
    ///
    /// # Errors
    /// If the logs cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        let append = |name: &str| {
            let path = path.join(name);
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.map_err(|source| Error::file("open", path, source))
        };
        Ok(Self { path: path.to_owned(), lines: append("log.jsonl")?, text: append("log.txt")? })
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The settings that a run was started with.
    ///
    /// # Errors
    /// If `run.json` is missing, malformed or of another version.
    pub fn saved(path: &Path) -> Result<Saved> {
        let file = path.join("run.json");
        let json = std::fs::read(&file).map_err(|source| Error::file("read", &file, source))?;
        let advice = "name a folder that promptmix train wrote";
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
            let found = version.get("format").map_or("none".to_owned(), ToString::to_string);
            return Err(Error::format(&file, None, format!("format {FORMAT}"), found, advice));
        }
        serde_json::from_value(version).map_err(malformed)
    }

    /// Drops log lines of steps after `step`, which a resumed run takes again.
    ///
    /// # Errors
    /// If the logs cannot be read or replaced.
    pub fn rewind(&mut self, step: u64) -> Result<()> {
        let path = self.path.join("log.jsonl");
        let log = std::fs::read_to_string(&path).map_err(|source| Error::file("read", &path, source))?;
        let kept: Vec<&str> = log
            .lines()
            .filter(|line| {
                let line: std::result::Result<serde_json::Value, _> = serde_json::from_str(line);
                line.is_ok_and(|line| line.get("step").and_then(serde_json::Value::as_u64) <= Some(step))
            })
            .collect();
        files::replace(&path, |file| kept.iter().try_for_each(|line| writeln!(file, "{line}")))?;
        *self = Self::open(&self.path)?;
        self.note(&format!("resumed behind step {step}"))
    }

    /// Appends a step to both logs.
    ///
    /// # Errors
    /// If a log cannot be written.
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.line(record)?;
        self.note(&record.to_string())
    }

    /// Appends a validation to both logs.
    ///
    /// # Errors
    /// If a log cannot be written.
    pub fn validation(&mut self, record: &ValidationRecord) -> Result<()> {
        self.line(record)?;
        self.note(&record.to_string())
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
        let path = self.path.join("log.txt");
        writeln!(self.text, "{text}").map_err(|source| Error::file("append to", path, source))
    }

    /// Writes `last.safetensors`: parameters and both moments, flat, and the counters.
    ///
    /// # Errors
    /// If the file cannot be written; the old one then still stands.
    pub fn save_last(&self, state: &[Vec<f64>; 3], checkpoint: &Checkpoint) -> Result<()> {
        let [values, first_moment, second_moment] = state;
        let tensors: Vec<(String, Vec<usize>, &[f64])> =
            [("parameters", values), ("first_moment", first_moment), ("second_moment", second_moment)]
                .map(|(name, values)| (name.to_owned(), vec![values.len()], &values[..]))
                .into();
        let counters = serde_json::to_string(checkpoint)
            .map_err(|error| Error::unsupported("a checkpoint", error.to_string(), ""))?;
        save(&self.path.join("last.safetensors"), &tensors, HashMap::from([("checkpoint".into(), counters)]))
    }

    /// Reads `last.safetensors` of a state of `length` numbers.
    ///
    /// # Errors
    /// If it is missing, malformed or of another length.
    pub fn load_last(path: &Path, length: usize) -> Result<([Vec<f64>; 3], Checkpoint)> {
        let path = path.join("last.safetensors");
        let file = TensorFile::open_safetensors(&path)?;
        let read = |name: &str| {
            Ok::<_, Error>(file.tensor(name, &[length])?.into_iter().map(f64::from).collect::<Vec<f64>>())
        };
        let counters = file.metadata().get("checkpoint").map(String::as_str).unwrap_or_default();
        let checkpoint = serde_json::from_str(counters).map_err(|error| {
            Error::format(
                &path,
                None,
                "the counters of a checkpoint",
                error.to_string(),
                "start the run anew",
            )
        })?;
        Ok(([read("parameters")?, read("first_moment")?, read("second_moment")?], checkpoint))
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
        let metadata = HashMap::from([("step".into(), step.to_string())]);
        save(&self.path.join("best.safetensors"), &tensors, metadata)
    }

    /// Reads `best.safetensors` as a flat state of `layout`.
    ///
    /// # Errors
    /// If it is missing, malformed or does not fit the layout.
    pub fn load_best(path: &Path, layout: &StateLayout) -> Result<Vec<f64>> {
        let file = TensorFile::open_safetensors(&path.join("best.safetensors"))?;
        let mut values = Vec::with_capacity(layout.len());
        for segment in layout.segments() {
            values.extend(file.tensor(segment.name, &segment.shape)?.into_iter().map(f64::from));
        }
        Ok(values)
    }
}

/// Writes tensors as f32.
fn save(
    path: &Path,
    tensors: &[(String, Vec<usize>, &[f64])],
    metadata: HashMap<String, String>,
) -> Result<()> {
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
    let file = safetensors::serialize(views, Some(metadata)).map_err(refused)?;
    files::replace(path, |writer| writer.write_all(&file))
}
