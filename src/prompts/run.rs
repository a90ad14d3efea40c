//! The prompt of a run's folder, which stands for it wherever a prompt is named.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::stem;
use crate::error::{Error, Result};
use crate::files;

/// The prompt of a run on a single task.
const PROMPT: &str = "prompt.safetensors";
/// The folder of the prompts of a run on several.
const PROMPTS: &str = "prompts";

/// The file of the prompt at `path`: of a run's folder its `prompt.safetensors`, else the path itself.
///
/// # Errors
/// [`Error::Format`] for a folder that is no run's, or whose run has no prompt, or one a task.
pub fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let file = path.join(PROMPT);
    if file.is_file() {
        return Ok(file);
    }
    let expected = "the prompt of a run on one task";
    let of_tasks = of_tasks(path);
    if !of_tasks.is_empty() {
        let found = format!("those of {} tasks: {}", of_tasks.len(), of_tasks.join(", "));
        return Err(Error::format(path, None, expected, found, "name the file of one of them"));
    }
    let (found, advice) = if pretrains_scorer(path) {
        ("a run that learnt a scorer alone", "give it as --initial-scorer; sources are prompts")
    } else if declared(path, "without-target") == Some(true) {
        ("a run without a target prompt, as --without-target says", "give its sources themselves")
    } else if path.join("best.safetensors").is_file() && is_run(path) {
        ("a run without its prompt.safetensors", "promptmix train --resume writes it again")
    } else if is_run(path) {
        (
            "a run without a prompt yet",
            "wait for its first validation, or go on with it: promptmix train --resume",
        )
    } else {
        let advice = "name a run's folder or a prompt's file; promptmix prompts list FOLDER finds them";
        ("a folder without prompt.safetensors", advice)
    };
    Err(Error::format(path, None, expected, found, advice))
}

/// Whether the run in `folder` trained the scorer alone, by its settings or, where they are gone, by the scorer that is there.
fn pretrains_scorer(folder: &Path) -> bool {
    declared(folder, "pretrain-scorer").unwrap_or_else(|| folder.join("scorer.safetensors").is_file())
}

/// A switch in the settings of the run in `folder`.
fn declared(folder: &Path, key: &str) -> Option<bool> {
    let settings: Option<Value> = files::read_json(&folder.join("run.json"), "", "").unwrap_or_default();
    settings?["config"][key].as_bool()
}

/// Whether `folder` is one that training wrote.
pub(super) fn is_run(folder: &Path) -> bool {
    folder.join("run.json").is_file() || folder.join(PROMPT).is_file()
}

/// What to call the prompt at `path` where people read it: by the folder for a run's folder and for the `prompt.safetensors` in
/// it, else by the file's stem.
pub fn name_of(path: &Path) -> String {
    let is_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"));
    // The name of a folder may have a dot in it: `rate-0.3`.
    if !is_file && path.is_dir() {
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        return whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
    }
    match path.parent().and_then(Path::file_name) {
        Some(folder) if stem(path) == "prompt" => folder.to_string_lossy().into_owned(),
        _ => stem(path),
    }
}

/// The files of the prompts of a run on several tasks, in order.
fn of_tasks(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder.join(PROMPTS)) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    files.iter().map(|file| file.display().to_string()).collect()
}
