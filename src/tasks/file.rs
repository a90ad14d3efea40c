//! A task as a TOML file: a row of the table that needs no Rust.

use std::path::Path;

use serde::Deserialize;

use super::{Condition, Field, HubData, SplitRule, Target, Task, Template};
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::{Kind, Metric};

/// What a file may say; it is a task but for what can be left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TaskFile {
    name: Option<String>,
    source: Template,
    /// `labels = "negative,positive"` with `label-field`, for what needs no more.
    labels: Option<String>,
    label_field: Option<Field>,
    target: Option<Target>,
    metrics: Option<Vec<Metric>>,
    #[serde(default)]
    split: SplitRule,
    group: Option<Template>,
    hub: Option<HubData>,
    #[serde(rename = "where")]
    condition: Option<Condition>,
    #[serde(default)]
    lowercase: bool,
}

impl Task {
    /// A task by name, or of a TOML file if `name` ends in `.toml`.
    ///
    /// # Errors
    /// As [`Task::named`] and [`Task::from_toml`].
    pub fn find(name: &str) -> Result<Self> {
        let path = Path::new(name);
        let is_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
        if is_file { Self::from_toml(path) } else { Self::named(name) }
    }

    /// The task in the TOML file at `path`. Its name is the file's stem if it says none; it is evaluated by accuracy, by
    /// Pearson and Spearman, or by exact match and F1, as its answers are, if it says no metrics.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read; [`Error::Format`] with the line if a key is unknown, missing or has a wrong
    /// value; [`Error::Setting`] if its parts do not fit each other.
    pub fn from_toml(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
        files::refuse_lfs_pointer(path, text.as_bytes())?;
        Self::parse_toml(path, &text)
    }

    /// As [`from_toml`](Self::from_toml), of a file's content.
    ///
    /// # Errors
    /// As there.
    pub fn parse_toml(path: &Path, text: &str) -> Result<Self> {
        let unfit = |line: Option<u64>, found: &str| {
            let expected = "a task: name, source, and labels with label-field or a [target]";
            Error::format(path, line, expected, found, "promptmix tasks --help shows a file")
        };
        let file: TaskFile = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map(|before| before.matches('\n').count() as u64 + 1);
            unfit(line, error.message())
        })?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = file.name.unwrap_or_else(|| stem.into_owned());
        if name.is_empty() || name.contains([',', '/', '\\']) || name.starts_with('.') {
            return Err(unfit(None, &format!("the name {}", super::quote(&name))));
        }
        let field = file.label_field.unwrap_or_else(|| Field::new("label"));
        let target = match (file.target, &file.labels) {
            (Some(target), None) => target,
            (None, labels) => {
                Self::generic(&name, file.source.as_str(), labels.as_deref(), field.as_str())?.target
            }
            (Some(_), Some(_)) => return Err(unfit(None, "both labels and a [target]")),
        };
        let metrics = file.metrics.filter(|metrics| !metrics.is_empty()).unwrap_or(match target.kind() {
            Kind::Classes => vec![Metric::Accuracy],
            Kind::Numbers => vec![Metric::Pearson, Metric::Spearman],
            Kind::Texts => vec![Metric::ExactMatch, Metric::AnswerF1],
        });
        let task = Self {
            name,
            source: file.source,
            target,
            metrics,
            split: file.split,
            group: file.group,
            hub: file.hub,
            condition: file.condition,
            lowercase: file.lowercase,
        };
        task.check()?;
        Ok(task)
    }
}
