//! A file of many runs: shared settings, and axes along which they differ.

use std::collections::HashMap;
use std::path::Path;

use toml::{Table, Value};

use super::RunConfig;
use super::file::{parse, read, with_keys_of_now};
use crate::error::{Error, Result};

/// Runs of one file at most: more is nearly always a mistake.
const MAX_RUNS: usize = 10_000;

/// Reads the runs of the file at `path`: settings as [`RunConfig::from_toml`] reads them, and a table `sweep` of lists.
/// There is a run for every combination of the lists' entries. An entry is a value of the setting that its list is named
/// after, or a table of settings that change together. Each run comes with a name that is unique and can name a folder.
///
/// # Errors
/// Those of [`RunConfig::from_toml`]; [`Error::Format`] if there is no table `sweep`, an axis is no list or empty, or there
/// are too many runs.
pub fn read_sweep(path: &Path) -> Result<Vec<(String, RunConfig)>> {
    let text = read(path)?;
    let mut shared = parse(path, &text)?;
    let refuse = |expected: &str, found: String| {
        let advice = "as in: [sweep] seed = [1, 2, 3] and task = [{ task = \"rte\", data = \"data/rte\" }]";
        Err(Error::format(path, None, expected, found, advice))
    };
    if shared.contains_key("study") && !shared.contains_key("sweep") {
        let advice = format!("it is a comparison's file: promptmix compare {}", path.display());
        return Err(Error::format(path, None, "a table `sweep` of lists", "a table `study`", advice));
    }
    let Some(Value::Table(axes)) = shared.remove("sweep") else {
        return refuse("a table `sweep` of lists", "none".into());
    };
    let settings = with_keys_of_now(path, shared)?;
    let mut runs = vec![Run { name: String::new(), by_keys: String::new(), settings }];
    // Which list sets a setting: of two the later would win, in runs named after both.
    let mut set_by: HashMap<String, &str> = HashMap::new();
    let axes = with_keys_of_now(path, axes)?;
    for (axis, entries) in &axes {
        let Value::Array(entries) = entries else {
            return refuse(&format!("a list as sweep.{axis}"), entries.type_str().into());
        };
        for entry in entries {
            let keys = match entry {
                Value::Table(together) => {
                    with_keys_of_now(path, together.clone())?.into_iter().map(|(key, _)| key).collect()
                }
                _ => vec![axis.clone()],
            };
            for key in keys {
                let other = *set_by.entry(key.clone()).or_insert(axis);
                if other != axis {
                    return refuse(
                        "each setting in one list",
                        format!("`{key}` in sweep.{other} and in sweep.{axis}"),
                    );
                }
            }
        }
        if entries.is_empty() || runs.len() * entries.len() > MAX_RUNS {
            let expected = format!("1 to {MAX_RUNS} runs");
            return refuse(&expected, format!("{} with sweep.{axis}", runs.len() * entries.len()));
        }
        let mut longer = Vec::with_capacity(runs.len() * entries.len());
        for run in &runs {
            for entry in entries {
                longer.push(along(path, run, axis, entry)?);
            }
        }
        runs = longer;
    }
    // A short name where it is the only one, else one by all keys of the entries.
    let mut times: HashMap<&str, usize> = HashMap::new();
    let mut times_by_keys: HashMap<&str, usize> = HashMap::new();
    for run in &runs {
        *times.entry(&run.name).or_default() += 1;
        *times_by_keys.entry(&run.by_keys).or_default() += 1;
    }
    let mut by_settings: HashMap<String, String> = HashMap::new();
    let mut named: Vec<(String, RunConfig)> = Vec::with_capacity(runs.len());
    for run in &runs {
        let name = if times[&run.name[..]] == 1 { run.name.clone() } else { run.by_keys.clone() };
        if times_by_keys[&run.by_keys[..]] > 1 {
            return refuse("entries that differ", format!("`{name}` twice"));
        }
        let name = if name.is_empty() { "run".to_owned() } else { name };
        let config = RunConfig::from_table(path, &text, run.settings.clone())?;
        // As 1 and 1.0 are: the same run twice would look like two that agree.
        if let Some(other) = by_settings.insert(format!("{config:?}"), name.clone()) {
            return refuse("entries that differ", format!("`{other}` and `{name}`, which are the same run"));
        }
        named.push((name, config));
    }
    Ok(named)
}

/// A run of a sweep, as far as it is put together.
struct Run {
    /// The entries' own names for it.
    name: String,
    /// Every key of every entry with its value.
    by_keys: String,
    settings: Table,
}

/// `run` with an entry of `axis`.
fn along(path: &Path, run: &Run, axis: &str, entry: &Value) -> Result<Run> {
    let mut settings = run.settings.clone();
    let keyed = |key: &str, value: &Value| format!("{key}-{}", plain(value));
    let (name, by_keys) = match entry {
        Value::Table(together) => {
            let together = with_keys_of_now(path, together.clone())?;
            // The entry's own name for it: the setting that the axis is named after, else its first text.
            let own = together.get(axis).or_else(|| together.values().find(|value| value.is_str()));
            let name = own.or(together.values().next()).map(plain).unwrap_or_default();
            let keys: Vec<String> = together.iter().map(|(key, value)| keyed(key, value)).collect();
            settings.extend(together);
            (name, keys.join("-"))
        }
        value => {
            settings.insert(axis.to_owned(), value.clone());
            let by_keys = keyed(axis, value);
            (if value.is_str() { plain(value) } else { by_keys.clone() }, by_keys)
        }
    };
    let join = |before: &str, part: String| if before.is_empty() { part } else { format!("{before}-{part}") };
    Ok(Run { name: join(&run.name, name), by_keys: join(&run.by_keys, by_keys), settings })
}

/// A value as a part of a folder's name.
fn plain(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let kept = text.chars().map(|c| if c.is_alphanumeric() || ".-_+".contains(c) { c } else { '_' });
    kept.take(60).collect()
}
