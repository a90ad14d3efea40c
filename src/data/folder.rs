//! Which files of a folder are which split.
//!
//! First come the names of the hub: `train.jsonl`, and shards `train-00000-of-00002.parquet`, maybe in a folder `data`. Where a
//! split has none of them, the other names in use count: `dev`, `valid`, `val`, `eval`, capitals, `.gz`, shards with a hash after
//! their number, and a folder of the split's name whose files are its rows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::format::{EXTENSIONS, Format, parts};
use crate::error::{Error, Result};

/// The names that a split goes by, its own first.
const NAMES: [&[&str]; 3] =
    [&["train", "training"], &["validation", "valid", "val", "dev", "eval"], &["test", "testing"]];
/// What may stand after the name of a split that comes in two parts.
const PARTS: [&str; 3] = ["", "_matched", "_mismatched"];
/// File names that a message lists.
const LISTED: usize = 8;

/// The one file of that stem, or its shards in order; two of one split are an error, as no one could tell which was meant.
///
/// # Errors
/// [`Error::Format`] for two, and for shards that are not complete.
pub(super) fn find(folder: &Path, stem: &str) -> Result<Option<Vec<PathBuf>>> {
    let mut found = by_hub_names(folder, stem)?;
    if found.is_empty() {
        found = by_other_names(folder, stem)?;
    }
    if found.len() > 1 {
        let below = |path: &Path| path.strip_prefix(folder).unwrap_or(path).display().to_string();
        let names: Vec<_> = found.iter().map(|paths| below(&paths[0])).collect();
        let expected = format!("one file of the split {stem}");
        return Err(Error::format(folder, None, expected, names.join(" and "), "keep the one that is meant"));
    }
    Ok(found.pop())
}

/// What a folder holds, for a message: the first few names.
pub(super) fn listing(folder: &Path) -> String {
    let mut names: Vec<String> = entries(folder)
        .into_iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() { inside(&path, &name) } else { name }
        })
        .collect();
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    match (names.is_empty(), more) {
        (true, _) => "which is empty".to_owned(),
        (false, 0) => format!("which holds {}", names.join(", ")),
        (false, more) => format!("which holds {} and {more} more", names.join(", ")),
    }
}

/// Refuses a folder that `save_to_disk` of Hugging Face's datasets wrote: Arrow files, and JSON about them that looks like rows.
///
/// # Errors
/// [`Error::Format`] if it is one.
pub(super) fn refuse_saved_to_disk(folder: &Path) -> Result<()> {
    let is_arrow = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "arrow");
    let describes = ["state.json", "dataset_info.json"].iter().all(|name| folder.join(name).is_file());
    if !describes && !entries(folder).iter().any(is_arrow) {
        return Ok(());
    }
    // The folder of one split, beside which its file goes, or a data set without splits.
    let is_split =
        NAMES.iter().any(|names| folder.file_name().is_some_and(|name| names.iter().any(|own| name == *own)));
    let file = if is_split { folder.with_extension("jsonl") } else { folder.join("train.jsonl") };
    let advice = format!(
        "write each split as a file, in Python: datasets.load_from_disk({:?}).to_json({:?}), or to_parquet",
        folder.display().to_string(),
        file.display().to_string()
    );
    let found = "Arrow files, as save_to_disk of datasets writes them";
    Err(Error::format(folder, None, format!("rows as {EXTENSIONS}"), found, advice))
}

/// A folder by its name and the first file in it.
fn inside(folder: &Path, name: &str) -> String {
    match entries(folder).first().and_then(|path| path.file_name()) {
        Some(first) => format!("{name}/{}", first.to_string_lossy()),
        None => format!("{name}/"),
    }
}

/// Whether a file of this path below a data set's folder is one that `find` would look at.
pub fn is_split_file(path: &str) -> bool {
    let steps: Vec<&str> = path.split('/').collect();
    let Some((file, folders)) = steps.split_last() else { return false };
    let folders = folders.strip_prefix(&["data"]).unwrap_or(folders);
    let names = || {
        NAMES.iter().flat_map(|names| names.iter()).flat_map(|name| PARTS.map(|part| format!("{name}{part}")))
    };
    let is_name = |name: &str| names().any(|known| known.eq_ignore_ascii_case(name));
    if Format::of(Path::new(file)).is_err() || file.starts_with(['.', '_']) {
        return false;
    }
    let (stem, ..) = parts(Path::new(file));
    match folders {
        [] => is_name(&stem) || Shard::of(&stem).is_some_and(|shard| is_name(&shard.stem)),
        [folder] => is_name(folder),
        _ => false,
    }
}

/// Every name of the split whose own name is `stem`, in lower case.
fn other_names(stem: &str) -> Vec<String> {
    let part = PARTS.iter().rev().find(|part| stem.ends_with(**part)).copied().unwrap_or_default();
    let name = &stem[..stem.len() - part.len()];
    let names = NAMES.iter().find(|names| names[0] == name).copied().unwrap_or_default();
    names.iter().map(|name| format!("{name}{part}")).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// One of several files of a split: `train-00000-of-00002`, maybe with a hash after.
struct Shard {
    stem: String,
    number: usize,
    count: usize,
    /// Whether nothing stands after the count.
    plain: bool,
}

impl Shard {
    fn of(name: &str) -> Option<Self> {
        let (before, after) = name.rsplit_once("-of-")?;
        let (stem, number) = before.rsplit_once('-')?;
        let (count, hash) = after.split_once('-').map_or((after, None), |(count, hash)| (count, Some(hash)));
        if hash.is_some_and(|hash| hash.is_empty() || !hash.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        {
            return None;
        }
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        Some(Self { stem: stem.to_owned(), number, count, plain: hash.is_none() })
    }
}

/// Files in order, by the numbers in their names where those are shards; a shard that is missing would silently be training rows fewer.
fn in_order(stem: &str, mut shards: Vec<(Shard, PathBuf)>) -> Result<Vec<PathBuf>> {
    shards.sort_by(|(a, a_path), (b, b_path)| (a.number, a_path).cmp(&(b.number, b_path)));
    let count = shards.first().map_or(0, |(shard, _)| shard.count);
    let in_place = |(at, (shard, _)): (usize, &(Shard, PathBuf))| shard.number == at && shard.count == count;
    if shards.len() != count || !shards.iter().enumerate().all(in_place) {
        let first = &shards[0].1;
        let name = first.file_name().unwrap_or_default().to_string_lossy();
        return Err(Error::format(
            first.parent().unwrap_or(first),
            None,
            format!("shards 0 to {} of {count} of the split {stem}", count.saturating_sub(1)),
            format!("{} that begin with {name}", shards.len()),
            "fetch those that are missing, and keep one set of shards in a folder",
        ));
    }
    Ok(shards.into_iter().map(|(_, path)| path).collect())
}

fn by_hub_names(folder: &Path, stem: &str) -> Result<Vec<Vec<PathBuf>>> {
    let mut found = Vec::new();
    for format in Format::ALL {
        let whole = folder.join(format!("{stem}.{}", format.extension()));
        if whole.is_file() {
            found.push(vec![whole]);
        }
    }
    for folder in [folder.to_owned(), folder.join("data")] {
        let shards: Vec<_> = entries(&folder)
            .into_iter()
            .filter(|path| Format::of(path).is_ok() && path.is_file())
            .filter_map(|path| Some((Shard::of(path.file_stem()?.to_str()?)?, path)))
            .filter(|(shard, _)| shard.stem == stem && shard.plain)
            .collect();
        if !shards.is_empty() {
            found.push(in_order(stem, shards)?);
        }
    }
    Ok(found)
}

fn by_other_names(folder: &Path, stem: &str) -> Result<Vec<Vec<PathBuf>>> {
    let names = other_names(stem);
    let is_name = |name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    let mut found = Vec::new();
    for folder in [folder.to_owned(), folder.join("data")] {
        let mut shards: BTreeMap<String, Vec<(Shard, PathBuf)>> = BTreeMap::new();
        for path in entries(&folder) {
            if path.is_dir() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let files = if is_name(&name) { all_files(&path, stem)? } else { vec![] };
                if !files.is_empty() {
                    found.push(files);
                }
                continue;
            }
            if Format::of(&path).is_err() {
                continue;
            }
            let (name, ..) = parts(&path);
            if is_name(&name) {
                found.push(vec![path]);
            } else if let Some(shard) = Shard::of(&name).filter(|shard| is_name(&shard.stem)) {
                shards.entry(shard.stem.clone()).or_default().push((shard, path));
            }
        }
        for shards in shards.into_values() {
            found.push(in_order(stem, shards)?);
        }
    }
    Ok(found)
}

/// The data files of a split's folder, in order: all of them are its rows.
fn all_files(folder: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    refuse_saved_to_disk(folder)?;
    let hidden =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(['.', '_']));
    let mut files: Vec<PathBuf> = entries(folder)
        .into_iter()
        .filter(|path| path.is_file() && !hidden(path) && Format::of(path).is_ok())
        .collect();
    let name = |path: &PathBuf| parts(path).0;
    let numbers: Option<Vec<usize>> = files.iter().map(|path| name(path).parse().ok()).collect();
    let shards: Option<Vec<Shard>> = files.iter().map(|path| Shard::of(&name(path))).collect();
    let mut formats: Vec<Format> = files.iter().filter_map(|path| Format::of(path).ok()).collect();
    formats.dedup();
    if formats.len() > 1 {
        return Err(Error::format(
            folder,
            None,
            format!("files of one format for the split {stem}"),
            listing(folder),
            "keep those that are meant",
        ));
    }
    match (shards, numbers) {
        (Some(shards), _) if !files.is_empty() => {
            files = in_order(stem, shards.into_iter().zip(files).collect())?;
        }
        (_, Some(numbers)) if files.len() > 1 => {
            let mut numbered: Vec<_> = numbers.into_iter().zip(files).collect();
            numbered.sort();
            if let Some((at, (_, path))) = numbered.iter().enumerate().find(|(at, (number, _))| at != number)
            {
                return Err(Error::format(
                    folder,
                    None,
                    format!("files of the split {stem} that are numbered from 0, and number {at}"),
                    path.file_name().unwrap_or_default().to_string_lossy(),
                    "fetch those that are missing",
                ));
            }
            files = numbered.into_iter().map(|(_, path)| path).collect();
        }
        _ => {}
    }
    Ok(files)
}

/// What a folder must hold, for messages.
pub(super) fn expected(stem: &str) -> String {
    let names = other_names(stem);
    match names.split_first() {
        Some((own, others)) if !others.is_empty() => {
            format!("a file {own}{EXTENSIONS} (or named {})", others.join(", "))
        }
        _ => format!("a file {stem}{EXTENSIONS}"),
    }
}
