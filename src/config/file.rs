//! Settings as a TOML file whose keys are the flags' names.

use std::path::Path;

use serde::Deserialize;
use toml::Table;

use super::RunConfig;
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
    Error::format(path, line, "settings as in `learning-rate = 0.3`", error.message().to_owned(), "")
}

fn check_keys<'a>(path: &Path, text: &str, mut keys: impl Iterator<Item = &'a String>) -> Result<()> {
    let known = known_keys()?;
    let Some(unknown) = keys.find(|key| !known.contains(key)) else { return Ok(()) };
    let nearest = known
        .iter()
        .map(|key| (strsim::jaro_winkler(unknown, key), key))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > LIKENESS);
    let advice = match nearest {
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

/// Every key, set or not.
fn known_keys() -> Result<Vec<String>> {
    match serde_json::to_value(RunConfig::default()) {
        Ok(serde_json::Value::Object(fields)) => Ok(fields.into_iter().map(|(key, _)| key).collect()),
        _ => Err(Error::unsupported("the list of settings", "they could not be written as JSON", "")),
    }
}
