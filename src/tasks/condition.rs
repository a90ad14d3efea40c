//! Which rows of a file are a task's: `subset == NewsQA`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::row::{Field, Row, quote};
use crate::error::{Error, Result};

/// A field and the values of it that a task's rows have: `subset == NewsQA`, `stars == 1 or 5`. After a field's `?` rows that
/// lack it are the task's too: `subset? == NewsQA`.
///
/// ```
/// use promptmix::tasks::Condition;
///
/// let condition: Condition = "stars == 1 or 5".parse()?;
/// assert_eq!(condition.to_string(), "stars == 1 or 5");
/// # Ok::<(), promptmix::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Condition {
    field: Field,
    optional: bool,
    values: Vec<String>,
}

impl Condition {
    /// The columns that the field can be in.
    pub fn columns(&self) -> Vec<String> {
        self.field.columns()
    }

    /// The value of the row's field as text; `None` if the row lacks it.
    pub fn value_of(&self, row: &Row) -> Option<String> {
        row.find(&self.field).map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    }

    /// What the user should know of rows that are the task's because they, like `row`, lack the field; `None` if it has it.
    #[cfg(feature = "data")]
    pub(crate) fn remark(&self, row: &Row) -> Option<String> {
        (self.optional && row.find(&self.field).is_none()).then(|| {
            format!(
                "{}: its first row has no {}; every row without it counts as the task's",
                row.path().display(),
                self.field
            )
        })
    }

    /// Whether the row is the task's.
    ///
    /// # Errors
    /// [`Error::Format`] if it lacks the field, which has no `?`.
    pub fn holds(&self, row: &Row) -> Result<bool> {
        if !self.optional {
            row.get(&self.field)?;
        }
        Ok(self.value_of(row).is_none_or(|value| self.values.contains(&value)))
    }
}

impl FromStr for Condition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unfit = || {
            let advice = "several values have ` or ` between them: stars == 1 or 5";
            Error::setting("where", "a field, == and a value", quote(text), advice)
        };
        let (field, values) = text.split_once("==").ok_or_else(unfit)?;
        let (field, optional) = match field.trim().strip_suffix('?') {
            Some(field) => (field.trim_end(), true),
            None => (field.trim(), false),
        };
        let unquoted = |value: &str| {
            let value = value.trim();
            let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            inner.unwrap_or(value).to_owned()
        };
        let values: Vec<String> = values.split(" or ").map(unquoted).collect();
        if field.is_empty() || values.iter().any(String::is_empty) {
            return Err(unfit());
        }
        Ok(Self { field: Field::new(field), optional, values })
    }
}

impl TryFrom<String> for Condition {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Condition> for String {
    fn from(condition: Condition) -> Self {
        condition.to_string()
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional = if self.optional { "?" } else { "" };
        write!(formatter, "{}{optional} == {}", self.field.as_str(), self.values.join(" or "))
    }
}
