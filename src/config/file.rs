//! Settings as a TOML file whose keys are the flags' names.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::{RunConfig, SETTINGS, Setting};
use crate::error::{Error, Result};
use crate::files;

/// How alike two keys must be for one to be offered for the other.
const LIKENESS: f64 = 0.7;

impl RunConfig {
    /// Reads the TOML file at `path`; what it leaves out takes its default. Paths in it are taken as flags are: from the
    /// folder that the program runs in.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read; [`Error::Format`] with the line if it is no TOML, a value has the wrong type,
    /// or a key is unknown, with the nearest one there is.
    pub fn from_toml(path: &Path) -> Result<Self> {
        let text = read(path)?;
        let table = parse(path, &text)?;
        check_keys(path, &text, table.keys())?;
        toml::from_str(&text).map_err(|error| malformed(path, &text, &error))
    }

    /// The settings of `table`, which came from the file at `path` whose content is `text`.
    ///
    /// # Errors
    /// As [`RunConfig::from_toml`], without lines for values.
    pub fn from_table(path: &Path, text: &str, table: Table) -> Result<Self> {
        check_keys(path, text, table.keys())?;
        Self::deserialize(table).map_err(|error| malformed(path, text, &error))
    }

    /// These settings with those of `changes`, by their keys, instead; `steps` there puts `epochs` here out of force, and the
    /// other way round.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unknown key or a value of another type.
    pub fn with(&self, changes: &Table) -> Result<Self> {
        let refuse = |error: String| Error::setting("settings", "values of the settings' types", error, "");
        let mut table = Table::try_from(self).map_err(|error| refuse(error.to_string()))?;
        for (one, other) in [("epochs", "steps"), ("steps", "epochs")] {
            if changes.contains_key(one) && !changes.contains_key(other) {
                table.remove(other);
            }
        }
        table.extend(changes.clone());
        Self::deserialize(table).map_err(|error| refuse(error.message().to_owned()))
    }

    /// The settings in which a run by `other` would differ from a run by these: all that differ but threads.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let [one, other] = [self, other].map(|config| Table::try_from(config).unwrap_or_default());
        SETTINGS
            .iter()
            .map(|setting| setting.key)
            .filter(|key| *key != "threads" && one.get(*key) != other.get(*key))
            .map(|key| Difference { key, one: one.get(key).cloned(), other: other.get(key).cloned() })
            .collect()
    }

    /// The settings as [`RunConfig::from_toml`] reads them, one a line; those that are not set are left out.
    ///
    /// # Errors
    /// [`Error::Setting`] for a number that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| {
            Error::setting("settings", "numbers below 2^63, as TOML has them", error.to_string(), "")
        })
    }
}

/// A setting whose value differs between two runs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Difference {
    /// The setting's key.
    pub key: &'static str,
    /// What the one has; `None` for none.
    pub one: Option<Value>,
    /// What the other has.
    pub other: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<Value>| value.as_ref().map_or("none".into(), Value::to_string);
        write!(formatter, "{} {} where the run has {}", self.key, shown(&self.other), shown(&self.one))
    }
}

/// The content of the file at `path`.
///
/// # Errors
/// [`Error::File`] if it cannot be read as text.
pub fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    files::refuse_lfs_pointer(path, text.as_bytes())?;
    Ok(text)
}

/// `text`, the content of the file at `path`, as a table.
///
/// # Errors
/// [`Error::Format`] with the line if it is no TOML.
pub fn parse(path: &Path, text: &str) -> Result<Table> {
    text.parse().map_err(|error| malformed(path, text, &error))
}

fn malformed(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() as u64 + 1);
    let found = if line.is_some() { error.message().to_owned() } else { with_key(error) };
    Error::format(path, line, "settings as in `learning-rate = 0.3`", found, "")
}

/// What is wrong with a value, and under which key, for a table that came without its lines.
pub fn with_key(error: &toml::de::Error) -> String {
    // Shown whole, an error without a place in a text ends with a line that names the key.
    error.to_string().trim().lines().collect::<Vec<_>>().join(", ")
}

fn check_keys<'a>(path: &Path, text: &str, mut keys: impl Iterator<Item = &'a String>) -> Result<()> {
    let known = |key: &&String| key_of(key).is_some();
    let Some(unknown) = keys.find(|key| !known(key)) else { return Ok(()) };
    let nearest = SETTINGS
        .iter()
        .map(|setting| (strsim::jaro_winkler(unknown, setting.key), setting.key))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > LIKENESS);
    let advice = match nearest {
        _ if ["device", "precision"].contains(&unknown.as_str()) => {
            format!(
                "a run's settings do not say where it is computed: leave it out, and give --{unknown} to the command"
            )
        }
        _ if unknown == "sweep" => {
            format!(
                "a file with a table `sweep` is one of many runs: promptmix sweep {} --out FOLDER",
                path.display()
            )
        }
        _ if unknown == "study" => {
            format!("a file with a table `study` is a comparison's: promptmix compare {}", path.display())
        }
        Some((_, key)) => format!("did you mean `{key}`?"),
        None => "promptmix train --help lists the settings".to_owned(),
    };
    let names_it = |line: &str| {
        let name = line.split(['=', ']']).next().unwrap_or_default();
        name.trim().trim_matches(['[', '"', '\'']) == unknown
    };
    let line = text.lines().position(names_it).map(|line| line as u64 + 1);
    Err(Error::format(path, line, "a setting", format!("`{unknown}`"), advice))
}

/// The key that `key` means: itself, or what a key of older versions is called now; `None` if it is none.
pub fn key_of(key: &str) -> Option<&'static str> {
    let means = |setting: &&Setting| setting.key == key || setting.aliases.contains(&key);
    SETTINGS.iter().find(means).map(|setting| setting.key)
}

/// `table` with every setting under the key that it has now.
///
/// # Errors
/// [`Error::Format`] where the old and the new key of a setting are both given.
pub fn with_keys_of_now(path: &Path, table: Table) -> Result<Table> {
    let mut renamed = Table::new();
    for (key, value) in table {
        let now = key_of(&key).map_or_else(|| key.clone(), str::to_owned);
        if renamed.insert(now.clone(), value).is_some() {
            let found = format!("`{now}` and a key of older versions for it");
            return Err(Error::format(path, None, "each setting once", found, "leave one out"));
        }
    }
    Ok(renamed)
}
