//! One record of a data file: named JSON values and the place they came from.
//!
//! Not for reading files; a reader makes rows, a task looks fields up in them.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A record, its file and its line.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    fields: Map<String, Value>,
    path: Arc<Path>,
    line: u64,
    text: Option<Box<str>>,
    left_out: Vec<String>,
}

impl Row {
    /// A row of `path` that starts at `line`, counted from 1.
    pub fn new(fields: Map<String, Value>, path: Arc<Path>, line: u64) -> Self {
        Self { fields, path, line, text: None, left_out: Vec::new() }
    }

    /// The row with the JSON that it was read from.
    #[must_use]
    pub fn with_text(mut self, text: &str) -> Self {
        self.text = Some(text.into());
        self
    }

    /// The row with the names of fields that the file has and that cannot be values here: bytes that are no text.
    #[must_use]
    pub fn with_left_out(mut self, names: Vec<String>) -> Self {
        self.left_out = names;
        self
    }

    /// The JSON object that the row was read from, where its reader keeps it: numbers in it have all their digits.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Fields of the file that are not among [`fields`](Self::fields), as they hold bytes that are no text.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The values by field name.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line the row starts at, counted from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The value of the first of `field`'s alternatives that exists and is not null.
    ///
    /// # Errors
    /// [`Error::Format`] with file and line if there is none; names the fields there are and the nearest one.
    pub fn get(&self, field: &Field) -> Result<&Value> {
        self.find(field).ok_or_else(|| {
            let names: Vec<&str> = self.fields.keys().map(String::as_str).collect();
            let found = match names.as_slice() {
                [] => "no field at all".to_owned(),
                names => format!("fields {}", shorten(&names.join(", "))),
            };
            let wanted = field.alternatives().next().unwrap_or_default();
            let of = |name: &str| name == wanted || wanted.split('.').next() == Some(name);
            if let Some(name) = self.left_out.iter().find(|name| of(name)) {
                let found = format!("bytes that are no text in `{name}`");
                return self.error(format!("text in field {field}"), found, "name another field");
            }
            let found = if field.alternatives().any(|name| matches!(self.fields.get(name), Some(Value::Null)))
            {
                format!("null there; {found}")
            } else {
                found
            };
            let advice = nearest(wanted, &names)
                .filter(|near| *near != wanted)
                .map(|near| format!("did you mean {near:?}?"))
                .unwrap_or_default();
            self.error(format!("a field {field}"), found, advice)
        })
    }

    /// As [`get`](Self::get), or `None`.
    pub fn find(&self, field: &Field) -> Option<&Value> {
        field.alternatives().find_map(|name| self.lookup(name)).filter(|value| !value.is_null())
    }

    /// A [`Error::Format`] at this row.
    pub fn error(
        &self,
        expected: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Error {
        Error::format(&self.path, Some(self.line), expected, found, advice)
    }

    /// A field of that very name, else the value a dotted path leads to: `idx.question`, `choices.text.0`.
    fn lookup(&self, name: &str) -> Option<&Value> {
        if let Some(value) = self.fields.get(name) {
            return (!value.is_null()).then_some(value);
        }
        let mut steps = name.split('.');
        let first = self.fields.get(steps.next()?)?;
        steps.try_fold(first, |value, step| match value {
            Value::Object(fields) => fields.get(step),
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        })
    }
}

/// The name of a field, or several separated by ` or `, of which the first that exists counts.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Field(String);

impl Field {
    /// A field by name, dotted path, or `name or other name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The names to try, in order.
    pub fn alternatives(&self) -> impl Iterator<Item = &str> {
        self.0.split(" or ").map(str::trim)
    }

    /// The columns that it can be in: each of its names, and what the name begins with if it is a path.
    pub fn columns(&self) -> Vec<String> {
        let first = |name: &str| name.split('.').next().unwrap_or(name).to_owned();
        self.alternatives().flat_map(|name| [name.to_owned(), first(name)]).collect()
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Field {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, name) in self.alternatives().enumerate() {
            let or = if position == 0 { "" } else { " or " };
            write!(formatter, "{or}`{name}`")?;
        }
        Ok(())
    }
}

/// The first 80 characters of `text`, quoted, for an error message.
pub fn quote(text: &str) -> String {
    format!("{:?}", shorten(text))
}

/// The first 80 characters of `text`, with an ellipsis where more was there.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The name most like `wanted`, if any is like it at all.
pub(crate) fn nearest<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    names
        .iter()
        .map(|name| (strsim::jaro_winkler(wanted, name), *name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
