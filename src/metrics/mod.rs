//! What a task is evaluated by: each metric as a function of predictions and references, in `f64`.
//!
//! Scores are fractions, higher is better; multiply by 100 for the percentages of published tables. A generation that
//! is none of the task's answers is *invalid*: a class of its own, never counted as the opposite label. Not for
//! turning generated text into predictions: a task does that.

pub mod answers;
pub mod classification;
pub mod correlation;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A metric by name. Every one is better when higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Metric {
    /// Share of predictions equal to their reference.
    Accuracy,
    /// F1 of class 1 of two.
    F1,
    /// Mean of the F1 of every class of the task, classes that never occur included with 0.
    MacroF1,
    /// Matthews correlation over all classes.
    Matthews,
    /// Pearson's correlation.
    Pearson,
    /// Spearman's rank correlation, ties sharing their mean rank.
    Spearman,
    /// SQuAD's exact match after normalisation, best over the references.
    ExactMatch,
    /// SQuAD's F1 over words after normalisation, best over the references.
    AnswerF1,
    /// MultiRC's F1 of class 1 over all answers.
    AllAnswersF1,
    /// MultiRC's exact match: share of questions with every answer right.
    QuestionExactMatch,
}

/// Every metric, in the order of the documentation.
pub const ALL: [Metric; 10] = [
    Metric::Accuracy,
    Metric::F1,
    Metric::MacroF1,
    Metric::Matthews,
    Metric::Pearson,
    Metric::Spearman,
    Metric::ExactMatch,
    Metric::AnswerF1,
    Metric::AllAnswersF1,
    Metric::QuestionExactMatch,
];

/// The kind of answer a metric evaluates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// One of a fixed set of labels.
    Classes,
    /// A number.
    Numbers,
    /// Free text.
    Texts,
}

impl Metric {
    /// The name in logs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::MacroF1 => "macro-f1",
            Self::Matthews => "matthews",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
            Self::ExactMatch => "exact-match",
            Self::AnswerF1 => "answer-f1",
            Self::AllAnswersF1 => "all-answers-f1",
            Self::QuestionExactMatch => "question-exact-match",
        }
    }

    /// Smallest and largest value: -1 to 1 for correlations, 0 to 1 for the rest.
    pub fn range(self) -> (f64, f64) {
        match self {
            Self::Matthews | Self::Pearson | Self::Spearman => (-1.0, 1.0),
            _ => (0.0, 1.0),
        }
    }

    /// What it evaluates.
    pub fn kind(self) -> Kind {
        match self {
            Self::Pearson | Self::Spearman => Kind::Numbers,
            Self::ExactMatch | Self::AnswerF1 => Kind::Texts,
            _ => Kind::Classes,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        ALL.into_iter().find(|metric| metric.name() == name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|metric| metric.name()).collect();
            Error::setting("metric", format!("one of {}", names.join(", ")), format!("{name:?}"), "")
        })
    }
}

/// What a model answered, one entry an example.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Predictions {
    /// Class indices; `None` where the generation is no label of the task.
    Classes(Vec<Option<u32>>),
    /// Numbers; `None` where the generation is not a number.
    Numbers(Vec<Option<f64>>),
    /// Text as generated.
    Texts(Vec<String>),
}

impl Predictions {
    /// Number of predictions.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(values) => values.len(),
            Self::Numbers(values) => values.len(),
            Self::Texts(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many generations were invalid. Free text is never invalid.
    pub fn invalid(&self) -> usize {
        match self {
            Self::Classes(values) => values.iter().filter(|value| value.is_none()).count(),
            Self::Numbers(values) => values.iter().filter(|value| value.is_none()).count(),
            Self::Texts(_) => 0,
        }
    }
}

/// The right answers, one entry an example.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum References {
    /// Class indices below `classes`; `groups` gives the question an answer belongs to, where the task has such groups.
    Classes {
        /// The right class of each example.
        labels: Vec<u32>,
        /// Number of classes of the task.
        classes: u32,
        /// Group of each example, any numbering; empty where the task has no groups.
        groups: Vec<u32>,
    },
    /// Numbers.
    Numbers(Vec<f64>),
    /// For each example every accepted answer.
    Texts(Vec<Vec<String>>),
}

impl References {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes { labels, .. } => labels.len(),
            Self::Numbers(values) => values.len(),
            Self::Texts(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The value of `metric`, a fraction; `None` where it is not defined: no examples, or a correlation with a constant.
///
/// # Errors
/// [`Error::Setting`] if the lengths differ, the kinds of predictions, references and metric do not fit each other, or
/// a label is outside its classes.
pub fn evaluate(metric: Metric, predictions: &Predictions, references: &References) -> Result<Option<f64>> {
    if predictions.len() != references.len() {
        return Err(Error::setting(
            format!("predictions for {metric}"),
            format!("{} (one a reference)", references.len()),
            predictions.len().to_string(),
            "",
        ));
    }
    let unfit = || {
        let expected = match metric.kind() {
            Kind::Classes => "class indices as predictions and references",
            Kind::Numbers => "numbers as predictions and references",
            Kind::Texts => "text as predictions and references",
        };
        Error::setting(
            format!("metric {metric}"),
            expected,
            "answers of another kind",
            "choose a metric that fits the task",
        )
    };
    match (metric.kind(), predictions, references) {
        (
            Kind::Classes,
            Predictions::Classes(predictions),
            References::Classes { labels, classes, groups },
        ) => classes_of(metric, predictions, labels, *classes, groups),
        (Kind::Numbers, Predictions::Numbers(predictions), References::Numbers(references)) => {
            let predictions: Vec<f64> =
                predictions.iter().map(|value| value.unwrap_or(correlation::INVALID)).collect();
            Ok(match metric {
                Metric::Spearman => correlation::spearman(&predictions, references),
                _ => correlation::pearson(&predictions, references),
            })
        }
        (Kind::Texts, Predictions::Texts(predictions), References::Texts(references)) => Ok(match metric {
            Metric::ExactMatch => answers::exact_match(predictions, references),
            _ => answers::f1(predictions, references),
        }),
        _ => Err(unfit()),
    }
}

fn classes_of(
    metric: Metric,
    predictions: &[Option<u32>],
    labels: &[u32],
    classes: u32,
    groups: &[u32],
) -> Result<Option<f64>> {
    if let Some(outside) = labels.iter().chain(predictions.iter().flatten()).find(|label| **label >= classes)
    {
        return Err(Error::setting(
            format!("class index for {metric}"),
            format!("below {classes}"),
            outside.to_string(),
            "",
        ));
    }
    Ok(match metric {
        Metric::F1 | Metric::AllAnswersF1 if classes != 2 => {
            return Err(Error::setting(
                format!("metric {metric}"),
                "two classes",
                format!("{classes}"),
                "macro-f1 takes any number of classes",
            ));
        }
        Metric::F1 | Metric::AllAnswersF1 => classification::f1(predictions, labels, 1),
        Metric::MacroF1 => classification::macro_f1(predictions, labels, classes),
        Metric::Matthews => classification::matthews(predictions, labels),
        Metric::QuestionExactMatch if groups.len() != labels.len() => {
            return Err(Error::setting(
                format!("groups for {metric}"),
                format!("{} (one an answer)", labels.len()),
                groups.len().to_string(),
                "name the field of the question in the task's `group`",
            ));
        }
        Metric::QuestionExactMatch => classification::group_exact_match(predictions, labels, groups),
        _ => classification::accuracy(predictions, labels),
    })
}

/// Every metric of a task over one set of examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Metric and value, in the task's order; `None` where not defined.
    pub values: Vec<(Metric, Option<f64>)>,
    /// Invalid generations among the examples.
    pub invalid: usize,
    /// Examples evaluated.
    pub examples: usize,
}

impl Scores {
    /// Evaluates `metrics` in order.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn new(metrics: &[Metric], predictions: &Predictions, references: &References) -> Result<Self> {
        let values = metrics
            .iter()
            .map(|metric| Ok((*metric, evaluate(*metric, predictions, references)?)))
            .collect::<Result<_>>()?;
        Ok(Self { values, invalid: predictions.invalid(), examples: references.len() })
    }

    /// The number that chooses the best checkpoint: the mean over the metrics, one that is not defined counting as 0.
    /// `None` without examples or metrics.
    pub fn mean(&self) -> Option<f64> {
        if self.examples == 0 || self.values.is_empty() {
            return None;
        }
        let sum: f64 = self.values.iter().map(|(_, value)| value.unwrap_or(0.0)).sum();
        Some(sum / self.values.len() as f64)
    }
}
