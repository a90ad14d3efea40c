//! What a row's answer looks like as text to be generated, and how generated text is read back.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::row::{Field, Row, nearest, quote};
use super::text::{Filter, value_text};
use crate::error::{Error, Result};
use crate::metrics::Kind;

/// One class of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// The text that is generated for it.
    pub label: String,
    /// How data files write it; the label itself is accepted too.
    #[serde(default)]
    pub values: Vec<String>,
    /// What it stands for, where the label does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
}

impl Class {
    /// A class written as `value` in data files and generated as `label`.
    pub fn new(label: impl Into<String>, value: impl Into<String>) -> Self {
        Self { label: label.into(), values: vec![value.into()], meaning: None }
    }
}

/// The kind of answer a task has, and the field that holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Target {
    /// One of a fixed set of labels.
    Classes {
        /// Where the class is written.
        field: Field,
        /// The classes in index order.
        classes: Vec<Class>,
        /// Values that mean "no gold label"; such rows are left out and counted.
        #[serde(default)]
        unlabelled: Vec<String>,
    },
    /// A number, generated with one decimal.
    Number {
        /// Where the number is written.
        field: Field,
        /// Smallest number.
        minimum: f64,
        /// Largest number.
        maximum: f64,
        /// Generated numbers are multiples of this; halves go to the even multiple.
        step: f64,
    },
    /// Free text: a string, a list of accepted strings, or an object that holds one under `text` or `spans`.
    Text {
        /// Where the answers are written.
        field: Field,
        /// Changes to each answer, as target and as reference.
        #[serde(default)]
        filters: Vec<Filter>,
        /// Train on one example an accepted answer, instead of on the first.
        #[serde(default)]
        every_answer: bool,
        /// The target of a row without answers; without it such a row is an error.
        #[serde(default)]
        unanswered: Option<String>,
    },
}

/// The right answer of one example, as its metrics need it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Reference {
    /// Index of the class.
    Class(u32),
    /// The number as the data file has it, not rounded.
    Number(f64),
    /// Every accepted answer.
    Texts(Vec<String>),
}

/// What a generated text means to a task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Prediction {
    /// Index of the class; `None`: none of the labels.
    Class(Option<u32>),
    /// The number; `None`: not a number.
    Number(Option<f64>),
    /// The text.
    Text(String),
}

/// Whose rows are read, and so what it means that one of them has no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A benchmark's, to be judged by: its test file hides the labels, about which this is to be done.
    Benchmark(&'static str),
    /// Of a known task, to learn from: its values are given.
    Known,
    /// A user's own: the value may be a label that was not listed.
    Own,
}

impl Origin {
    /// What to do about a row whose label is `written` so, by [`without_label`].
    fn advice(self, written: &str) -> String {
        match (self, written) {
            (Self::Benchmark(advice), _) => format!("{written} stands for a hidden label: {advice}"),
            (Self::Own, "-1") => "if -1 is a label, give each label the value that the rows have for it, as in \
                                  `--labels -1=negative,1=positive` or by `labels` in the task's file; if it means that a \
                                  row has none, leave such rows out"
                .to_owned(),
            _ => "the row has none: label it, or leave such rows out".to_owned(),
        }
    }
}

impl Target {
    /// Which metrics can evaluate it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Classes { .. } => Kind::Classes,
            Self::Number { .. } => Kind::Numbers,
            Self::Text { .. } => Kind::Texts,
        }
    }

    /// The field that holds the answer.
    pub fn field(&self) -> &Field {
        match self {
            Self::Classes { field, .. } | Self::Number { field, .. } | Self::Text { field, .. } => field,
        }
    }

    /// Every string that can be a target, in index order; `None` for free text.
    pub fn labels(&self) -> Option<Vec<String>> {
        match self {
            Self::Classes { classes, .. } => Some(classes.iter().map(|class| class.label.clone()).collect()),
            Self::Number { minimum, maximum, step, .. } => {
                let (first, last) = ((minimum / step).round_ties_even(), (maximum / step).round_ties_even());
                let count = (last - first).clamp(0.0, 10_000.0) as u32;
                Some((0..=count).map(|index| number_text((first + f64::from(index)) * step)).collect())
            }
            Self::Text { .. } => None,
        }
    }

    /// The targets to train on and the reference to be evaluated by; `None` for a row to leave out. `origin` says what to
    /// do about a row that has no label.
    ///
    /// # Errors
    /// [`Error::Format`] with file, line and field where the answer is missing or outside the set.
    pub(crate) fn read(
        &self,
        row: &Row,
        origin: impl Fn() -> Origin,
    ) -> Result<Option<(Vec<String>, Reference)>> {
        let is_null = |name: &str| row.fields().get(name).is_some_and(Value::is_null);
        if row.find(self.field()).is_none() && self.field().alternatives().any(is_null) {
            return Err(row.error(
                format!("a label or answer in field {}", self.field()),
                "null",
                "the row has none: leave such rows out, or choose a split whose rows have theirs",
            ));
        }
        match self {
            Self::Classes { field, classes, unlabelled } => {
                let value = row.get(field)?;
                let written = written_forms(value);
                if written.iter().any(|form| unlabelled.contains(form)) {
                    return Ok(None);
                }
                let index = find_class(classes, value, &written)
                    .ok_or_else(|| outside(classes, field, value, row, origin()))?;
                Ok(Some((vec![classes[index].label.clone()], Reference::Class(index as u32))))
            }
            Self::Number { field, minimum, maximum, step } => {
                let value = row.get(field)?;
                let number = match value {
                    Value::Number(number) => number.as_f64(),
                    Value::String(text) => text.trim().parse().ok(),
                    _ => None,
                }
                .filter(|number| (*minimum..=*maximum).contains(number))
                .ok_or_else(|| {
                    // No list of labels could make -1 one of them.
                    let origin = || if origin() == Origin::Own { Origin::Known } else { origin() };
                    let advice = without_label(value).map(|written| origin().advice(written));
                    let advice = advice.or_else(|| missing_value(value));
                    row.error(
                        format!("a number from {minimum} to {maximum} in field {field}"),
                        quote(&value.to_string()),
                        advice.unwrap_or_default(),
                    )
                })?;
                // Multiplying by the steps in one unit, where that is a whole number, keeps 3.8 / 0.2 at 19.
                let steps = (1.0 / step).round();
                let rounded = if (steps * step - 1.0).abs() < 1e-9 {
                    (number * steps).round_ties_even() / steps
                } else {
                    (number / step).round_ties_even() * step
                };
                Ok(Some((vec![number_text(rounded)], Reference::Number(number))))
            }
            Self::Text { field, filters, every_answer, unanswered } => {
                let mut answers = Vec::new();
                collect_answers(row.get(field)?, field, row, &mut answers)?;
                for answer in &mut answers {
                    for filter in filters {
                        *answer = filter.apply(std::mem::take(answer), row)?;
                    }
                }
                let targets = match (answers.first(), unanswered) {
                    (Some(_), _) if *every_answer => answers.clone(),
                    (Some(first), _) => vec![first.clone()],
                    (None, Some(text)) => vec![text.clone()],
                    (None, None) => {
                        return Err(row.error(
                            format!("at least one answer in field {field}"),
                            "none",
                            "leave out rows that have no answer",
                        ));
                    }
                };
                if answers.is_empty() {
                    answers = targets.clone();
                }
                Ok(Some((targets, Reference::Texts(answers))))
            }
        }
    }

    /// What generated text means. White space around it does not count.
    pub fn prediction(&self, generated: &str) -> Prediction {
        let generated = generated.trim();
        match self {
            Self::Classes { classes, .. } => {
                let index = classes.iter().position(|class| class.label.trim() == generated);
                Prediction::Class(index.map(|index| index as u32))
            }
            Self::Number { .. } => {
                Prediction::Number(generated.parse().ok().filter(|number: &f64| number.is_finite()))
            }
            Self::Text { .. } => Prediction::Text(generated.to_owned()),
        }
    }
}

/// One decimal, and never "-0.0".
fn number_text(number: f64) -> String {
    format!("{:.1}", number + 0.0)
}

/// The ways a data file may write one label: 1, 1.0, "1" and " 1" are the same class.
fn written_forms(value: &Value) -> Vec<String> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    };
    let mut forms = vec![text];
    let whole = forms[0].parse::<f64>().ok().filter(|number| number.fract() == 0.0 && number.abs() < 1e15);
    if let Some(number) = whole {
        forms.push(format!("{number:.0}"));
    }
    if let Some(truth) = truth(value) {
        forms.push(u8::from(truth).to_string());
    }
    forms
}

/// A truth value, as JSON has it or as data frames and spreadsheets write it into text: True, TRUE.
fn truth(value: &Value) -> Option<bool> {
    let text = value.as_str().map(str::trim);
    let is = |word: &str| text.is_some_and(|text| text.eq_ignore_ascii_case(word));
    value.as_bool().or_else(|| is("true").then_some(true)).or_else(|| is("false").then_some(false))
}

/// The file's own values first; a label word only where no value fits. Of a truth value the word comes before the number 0 or 1
/// that it stands for, so that a class called `true` is never taken for another by its place.
fn find_class(classes: &[Class], value: &Value, written: &[String]) -> Option<usize> {
    if let Some(truth) = truth(value) {
        let word = truth.to_string();
        let is_word = |text: &String| text.trim().eq_ignore_ascii_case(&word);
        let class = classes.iter().position(|class| class.values.contains(&written[0]));
        let class = class.or_else(|| classes.iter().position(|class| class.values.iter().any(is_word)));
        let class = class.or_else(|| classes.iter().position(|class| is_word(&class.label)));
        if class.is_some() {
            return class;
        }
    }
    written
        .iter()
        .find_map(|form| classes.iter().position(|class| class.values.contains(form)))
        .or_else(|| written.iter().find_map(|form| classes.iter().position(|class| class.label == *form)))
}

/// How files write that a row has no label, or that a benchmark hides it, if the value is that: -1, or an empty text.
fn without_label(value: &Value) -> Option<&'static str> {
    if value.as_str().is_some_and(|text| text.trim().is_empty()) {
        return Some("an empty text");
    }
    written_forms(value).iter().any(|form| form == "-1").then_some("-1")
}

/// Texts that programs write for a missing value: Python's `str` of NaN and None, R, and pandas for its own NA.
const MISSING: [&str; 6] = ["nan", "none", "null", "na", "n/a", "<na>"];

/// What to do about a row whose label is such a text.
fn missing_value(value: &Value) -> Option<String> {
    let text = value.as_str()?.trim();
    let is_missing = MISSING.iter().any(|missing| text.eq_ignore_ascii_case(missing));
    is_missing.then(|| {
        format!("{text:?} is what programs write for a missing value: label the row, or leave such rows out")
    })
}

fn outside(classes: &[Class], field: &Field, value: &Value, row: &Row, origin: Origin) -> Error {
    let known: Vec<String> = classes
        .iter()
        .map(|class| match class.values.as_slice() {
            [value] if *value == class.label => value.clone(),
            [] => class.label.clone(),
            values => format!("{} ({})", values.join(" or "), class.label),
        })
        .collect();
    let written = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let advice = if let Some(written) = without_label(value) {
        origin.advice(written)
    } else if let Some(advice) = missing_value(value) {
        match origin {
            // A label of one's own may be called that.
            Origin::Own => format!("{advice}; if it is a label, name it among those of `--labels`"),
            _ => advice,
        }
    } else {
        let names: Vec<&str> = classes
            .iter()
            .flat_map(|class| class.values.iter().chain([&class.label]))
            .map(String::as_str)
            .collect();
        match nearest(&written, &names) {
            Some(near) => format!("did you mean {near:?}? `--labels` sets the labels"),
            None => "`--labels` sets the labels, as in `--labels 0=negative,1=positive`".to_owned(),
        }
    };
    row.error(format!("field {field} to be one of {}", known.join(", ")), quote(&written), advice)
}

fn collect_answers(value: &Value, field: &Field, row: &Row, answers: &mut Vec<String>) -> Result<()> {
    match value {
        Value::String(text) => match embedded(text) {
            // A CSV cell can hold a list or an object only as JSON text.
            Some(inner) => collect_answers(&inner, field, row, answers)?,
            None => answers.push(text.clone()),
        },
        Value::Array(items) => {
            for item in items {
                answers.push(value_text(item, false, field, row)?);
            }
        }
        Value::Object(inside) => match inside.get("text").or_else(|| inside.get("spans")) {
            Some(inner @ (Value::Array(_) | Value::String(_))) => {
                collect_answers(inner, field, row, answers)?
            }
            _ => {
                return Err(row.error(
                    format!("answers under `text` or `spans` in field {field}"),
                    quote(&value.to_string()),
                    "",
                ));
            }
        },
        other => answers.push(value_text(other, false, field, row)?),
    }
    Ok(())
}

/// The list of strings, or object with answers, that a string holds as JSON.
fn embedded(text: &str) -> Option<Value> {
    let start = text.trim_start();
    if !(start.starts_with("[\"") || start.starts_with("{\"")) {
        return None;
    }
    serde_json::from_str(text).ok().filter(|value: &Value| match value {
        Value::Array(items) => items.iter().all(Value::is_string),
        Value::Object(inside) => inside.contains_key("text") || inside.contains_key("spans"),
        _ => false,
    })
}
