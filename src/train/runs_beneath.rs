//! Run folders beneath a folder: those of few-shot draws, of a sweep, or of any study.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::run_folder::RunFolder;
use super::trained_on::TrainedOn;
use crate::error::{Error, Result};

/// How many folders lie one in another at most, down to a run's.
const DEPTH: usize = 3;

/// A run folder that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRun {
    /// What to call it: the path from the folder that was searched, with `/` between the parts; of a run folder itself its own
    /// name.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
}

/// The run in `folder`, or where that is no run folder all runs at most three levels beneath it, each once, in the order of
/// their names: numbers in names by their value.
///
/// # Errors
/// [`Error::Setting`] if there is no such folder or no run in it; if a folder cannot be read.
pub fn runs_beneath(folder: &Path) -> Result<Vec<FoundRun>> {
    if is_run(folder) {
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(vec![FoundRun { name, path: folder.to_owned() }]);
    }
    let refused = |found: String| {
        let expected = "a folder with run.json, or one with such folders at most three levels beneath it";
        Error::setting("the run folder", expected, found, "name a folder that promptmix train or sweep wrote")
    };
    if !folder.is_dir() {
        return Err(refused(format!("no folder {}", folder.display())));
    }
    let mut runs = Vec::new();
    let mut seen: HashSet<PathBuf> = folder.canonicalize().into_iter().collect();
    search(folder, "", DEPTH, &mut seen, &mut runs)?;
    if runs.is_empty() {
        return Err(refused(format!("none in {}", folder.display())));
    }
    runs.sort_by_cached_key(|run| sort_key(&run.name));
    Ok(runs)
}

/// On what the runs in `folder` or beneath it have taken steps: one run for each device and number format, in the order of their
/// names. Nothing where there are none.
///
/// # Errors
/// If a folder cannot be read. A run whose `run.json` cannot be read is left to whoever opens it.
pub fn trained_on(folder: &Path) -> Result<Vec<(PathBuf, TrainedOn)>> {
    let runs = match runs_beneath(folder) {
        Err(Error::Setting { .. }) => return Ok(Vec::new()),
        runs => runs?,
    };
    let mut found: Vec<(PathBuf, TrainedOn)> = Vec::new();
    for run in runs {
        let Ok(saved) = RunFolder::saved(&run.path) else { continue };
        let has_begun = || run.path.join("log.jsonl").metadata().is_ok_and(|log| log.len() > 0);
        let on = saved.trained_on.or_else(|| has_begun().then(TrainedOn::unrecorded));
        if let Some(on) = on
            && found.iter().all(|(_, other)| *other != on)
        {
            found.push((run.path, on));
        }
    }
    Ok(found)
}

fn is_run(folder: &Path) -> bool {
    folder.join("run.json").is_file()
}

fn search(
    folder: &Path,
    name: &str,
    depth: usize,
    seen: &mut HashSet<PathBuf>,
    runs: &mut Vec<FoundRun>,
) -> Result<()> {
    let failed = |source| Error::file("read", folder, source);
    let mut entries = std::fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(failed)?;
    entries.sort();
    for path in entries.into_iter().filter(|path| path.is_dir()) {
        // A link may lead back up, or to a run that is there already.
        if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
            continue;
        }
        let part = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = if name.is_empty() { part } else { format!("{name}/{part}") };
        if is_run(&path) {
            runs.push(FoundRun { name, path });
        } else if depth > 1 {
            search(&path, &name, depth - 1, seen, runs)?;
        }
    }
    Ok(())
}

/// What names are ordered by, numbers in them by their value. Parts of a name: what is no digit as it stands, digits by how
/// long their number is and then by the number.
pub(crate) fn sort_key(name: &str) -> Vec<(String, usize, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, after) = rest.split_at(digits);
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(end);
        let number = number.trim_start_matches('0');
        key.push((text.to_owned(), number.len(), number.to_owned()));
        rest = after;
    }
    key
}
