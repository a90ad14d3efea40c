//! Tasks: how a row of data becomes text to read and text to generate, and how the generated text is evaluated.
//!
//! [`Task::named`] knows the datasets of ATTEMPT (Asai et al. 2022), in the source format of the authors' release.
//! Where that release has a defect the text differs on purpose: winogrande shows both options, piqa and social_i_qa the
//! whole choices, STS-B is rounded to steps of 0.2, amazon_polarity reads its own data, and an invalid generation is
//! never the opposite label. [`Task::generic`] makes a task of any other
//! data, [`Task::from_toml`] reads one. Not for reading files or tokenising.

mod condition;
mod file;
mod hub;
mod row;
mod table;
mod target;
mod template;
mod text;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::target::Origin;
use crate::error::{Error, Result};
use crate::metrics::{Kind, Metric, Predictions};

pub use crate::metrics::References;
pub use condition::Condition;
pub use hub::HubData;
pub use row::{Field, Row, quote};
pub use table::names;
pub use target::{Class, Prediction, Reference, Target};
pub use template::Template;
pub use text::Filter;

/// Longest target, in tokens, of a task with free answers.
pub const LONGEST_FREE_TARGET: usize = 128;

/// One task: a row of the table, or a user's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The name in logs and run folders.
    pub name: String,
    /// The text the encoder reads.
    pub source: Template,
    /// The text the decoder is to generate.
    pub target: Target,
    /// What it is evaluated by, most important first.
    pub metrics: Vec<Metric>,
    /// Where validation and test rows come from when the data has no labelled test file.
    #[serde(default)]
    pub split: SplitRule,
    /// What answers of one question have in common, for metrics over questions.
    #[serde(default)]
    pub group: Option<Template>,
    /// Its data set on the hub, which `hub:` alone stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubData>,
    /// Which rows of the files are the task's; all for `None`.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// Whether the source text is lower-cased.
    #[serde(default)]
    pub lowercase: bool,
}

/// How the labelled rows of a dataset become training, validation and test rows when its own test file has no labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SplitRule {
    /// Each split is its own file.
    #[default]
    Files,
    /// The validation file is permuted; its first half validates, the rest tests.
    HalveValidation,
    /// The first `rows` of the permuted training file validate; the validation file tests, or where there is none the test
    /// file, which then has labels.
    HoldOutTraining {
        /// Rows to hold out.
        rows: u32,
    },
    /// Two validation files: mismatched validates, matched tests.
    MatchedAndMismatched,
}

impl SplitRule {
    /// What to do about rows whose labels are hidden, as those of a benchmark's test file are.
    pub(crate) fn advice_on_hidden_labels(self) -> &'static str {
        match self {
            Self::HalveValidation | Self::HoldOutTraining { .. } => {
                "--split-validation-test takes test rows from the validation file, which has labels"
            }
            Self::MatchedAndMismatched => {
                "--split-validation-test tests on validation_matched, which has labels"
            }
            Self::Files => "evaluate on a split that has labels",
        }
    }
}

/// What examples are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// Learning: a row may give several examples, one a target.
    Training,
    /// Judging: a row gives one example, with every accepted answer.
    Evaluation,
    /// Answering: labels are not looked at.
    Prediction,
}

/// A row as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// What the encoder reads.
    pub source: String,
    /// What the decoder is to generate.
    pub target: String,
    /// The right answer, for the metrics.
    pub reference: Reference,
    /// The group the example is evaluated in, if the task has groups.
    pub group: Option<String>,
}

impl Task {
    /// A task of the table, by name.
    ///
    /// # Errors
    /// [`Error::Setting`] with the known names.
    pub fn named(name: &str) -> Result<Self> {
        table::find(name)
    }

    /// A task of the user's own: `template` as in [`Template`], the answer in `label_field`. With `labels`
    /// (`negative,positive` for 0 and 1, or `0=negative,1=positive`) it is a classification evaluated by accuracy; without,
    /// the field is free text, evaluated by exact match and F1. `name` stands in logs only.
    ///
    /// # Errors
    /// [`Error::Setting`] if the template or the labels do not parse.
    pub fn generic(name: &str, template: &str, labels: Option<&str>, label_field: &str) -> Result<Self> {
        let field = Field::new(label_field);
        let (target, metrics) = match labels {
            Some(labels) => {
                let words = parse_labels(labels)?;
                check_words_by_place(&words)?;
                let classes = words
                    .into_iter()
                    .enumerate()
                    .map(|(index, (value, label))| {
                        Class::new(label, value.unwrap_or_else(|| index.to_string()))
                    })
                    .collect();
                (Target::Classes { field, classes, unlabelled: vec![] }, vec![Metric::Accuracy])
            }
            None => (
                Target::Text { field, filters: vec![], every_answer: false, unanswered: None },
                vec![Metric::ExactMatch, Metric::AnswerF1],
            ),
        };
        let task = Self {
            name: name.to_owned(),
            source: template.parse()?,
            target,
            metrics,
            split: SplitRule::Files,
            group: None,
            hub: None,
            condition: None,
            lowercase: false,
        };
        task.check()?;
        Ok(task)
    }

    /// The task with other label words, in the order of its classes or by value: `negative,positive`, or
    /// `0=negative,1=positive`. Data files keep their values.
    ///
    /// # Errors
    /// [`Error::Setting`] if their number is not that of the classes, a value is unknown, or two words are equal.
    pub fn with_labels(mut self, labels: &str) -> Result<Self> {
        let words = parse_labels(labels)?;
        let Target::Classes { classes, .. } = &mut self.target else {
            return Err(Error::setting(
                "labels",
                "a task with a fixed set of labels",
                format!("task {}", self.name),
                "leave the flag out",
            ));
        };
        if words.len() != classes.len() {
            return Err(Error::setting(
                "labels",
                format!("{} words, one a class of {}", classes.len(), self.name),
                words.len().to_string(),
                "",
            ));
        }
        let known = classes.clone();
        let mut named = vec![false; known.len()];
        for (position, (value, word)) in words.into_iter().enumerate() {
            let index = match &value {
                None => position,
                Some(value) => known
                    .iter()
                    .position(|class| class.values.contains(value) || class.label == *value)
                    .ok_or_else(|| {
                        let values: Vec<_> = known.iter().flat_map(|class| class.values.clone()).collect();
                        let expected = format!("values among {}", values.join(", "));
                        Error::setting("labels", expected, quote(value), "")
                    })?,
            };
            if std::mem::replace(&mut named[index], true) {
                let found = format!("{} for a class that has one", quote(&value.unwrap_or_default()));
                return Err(Error::setting("labels", "one word for each class", found, ""));
            }
            classes[index].label = word;
        }
        self.check()?;
        Ok(self)
    }

    /// The task with its source text lower-cased, or not.
    pub fn with_lowercase(mut self, lowercase: bool) -> Self {
        self.lowercase = lowercase;
        self
    }

    /// The task evaluated by other metrics.
    ///
    /// # Errors
    /// [`Error::Setting`] if one does not fit the task's kind of answer.
    pub fn with_metrics(mut self, metrics: Vec<Metric>) -> Result<Self> {
        self.metrics = metrics;
        self.check()?;
        Ok(self)
    }

    /// Whether the parts fit each other; for a task that was read from a file.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the part.
    pub fn check(&self) -> Result<()> {
        if let Target::Classes { classes, .. } = &self.target {
            if classes.len() < 2 || classes.len() > 10_000 {
                return Err(Error::setting("labels", "2 to 10000 labels", classes.len().to_string(), ""));
            }
            let mut labels: Vec<&str> = classes.iter().map(|class| class.label.trim()).collect();
            let mut values: Vec<&str> =
                classes.iter().flat_map(|class| &class.values).map(String::as_str).collect();
            if labels.contains(&"") {
                return Err(Error::setting("labels", "words", "an empty label", ""));
            }
            for (what, words) in [("label", &mut labels), ("value", &mut values)] {
                words.sort_unstable();
                if let Some(pair) = words.windows(2).find(|pair| pair[0] == pair[1]) {
                    return Err(Error::setting(
                        "labels",
                        format!("each {what} once"),
                        format!("{} twice", quote(pair[0])),
                        "",
                    ));
                }
            }
        }
        if self.split == (SplitRule::HoldOutTraining { rows: 0 }) {
            return Err(Error::setting("hold-out-training", "at least 1 row", "0", ""));
        }
        if let Target::Number { minimum, maximum, step, .. } = &self.target {
            let steps = (maximum - minimum) / step;
            // Numbers are generated with one decimal.
            let tenths = ((step * 10.0).round() - step * 10.0).abs() < 1e-9;
            if !(minimum.is_finite() && *step > 0.05 && tenths && steps > 0.0 && steps <= 10_000.0) {
                return Err(Error::setting(
                    "target",
                    "minimum < maximum, and a step that is a multiple of 0.1 and divides the range into at most 10000",
                    format!("{minimum}, {maximum}, {step}"),
                    "",
                ));
            }
        }
        for (index, metric) in self.metrics.iter().enumerate() {
            if self.metrics[..index].contains(metric) {
                let (of, found) = (format!("metrics of {}", self.name), format!("{metric} twice"));
                return Err(Error::setting(
                    of,
                    "each metric once",
                    found,
                    "the best step is chosen by their mean",
                ));
            }
            let two_classes =
                !matches!(metric, Metric::F1 | Metric::AllAnswersF1) || self.class_count() == Some(2);
            let grouped = *metric != Metric::QuestionExactMatch || self.group.is_some();
            if metric.kind() != self.target.kind() || !two_classes || !grouped {
                let kind = match self.target.kind() {
                    Kind::Classes if !grouped => "metrics of answers without `group`".to_owned(),
                    Kind::Classes => format!("metrics of {} classes", self.class_count().unwrap_or_default()),
                    Kind::Numbers => "pearson or spearman".to_owned(),
                    Kind::Texts => "exact-match or answer-f1".to_owned(),
                };
                return Err(Error::setting(
                    format!("metrics of {}", self.name),
                    kind,
                    metric.to_string(),
                    "",
                ));
            }
        }
        Ok(())
    }

    /// Where the task's data lies when `data` is given for it: `hub:` alone is the task's own data set on the hub.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is that and the task has none.
    pub fn place(&self, data: &Path) -> Result<PathBuf> {
        if !data.to_str().is_some_and(HubData::is_own) {
            return Ok(data.to_owned());
        }
        let own = self.hub.as_ref().map(|hub| PathBuf::from(hub.address()));
        own.ok_or_else(|| {
            Error::setting(
                "data",
                format!("hub:owner/name, as {} has no data set of its own on the hub", self.name),
                "hub: alone",
                "name the data set, give a folder, or write hub = \"owner/name\" into the task's file",
            )
        })
    }

    /// Whether the data at `place`, a folder or a data set of the hub as `--data` takes it, is the task's own data set on the hub, of
    /// whichever revision.
    pub fn owns(&self, place: &Path) -> bool {
        let (Some(own), Some(written)) = (&self.hub, place.to_str()) else { return false };
        let is_own = |at: HubData| (&at.id, &at.configuration) == (&own.id, &own.configuration);
        HubData::is_own(written) || HubData::at(written).is_some_and(is_own)
    }

    /// How many classes it has, if it has classes.
    pub fn class_count(&self) -> Option<u32> {
        match &self.target {
            Target::Classes { classes, .. } => Some(classes.len() as u32),
            _ => None,
        }
    }

    /// Every string that can be a target, in index order; `None` for free answers.
    pub fn labels(&self) -> Option<Vec<String>> {
        self.target.labels()
    }

    /// Tokens of the longest target, end mark included: that of the longest label, or [`LONGEST_FREE_TARGET`].
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn longest_target(&self, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<usize> {
        let Some(labels) = self.labels() else { return Ok(LONGEST_FREE_TARGET) };
        labels.iter().try_fold(0, |longest, label| Ok(longest.max(encode(label)?.len())))
    }

    /// The columns that it reads, each by the names that it may have.
    pub fn columns(&self) -> Vec<Vec<String>> {
        let group = self.group.iter().flat_map(Template::fields);
        let fields = self.source.fields().chain(group).chain([self.target.field()]);
        let mut columns: Vec<Vec<String>> = fields.map(Field::columns).collect();
        if self.source.filters().any(|filter| filter == Filter::MarkSpans) {
            columns.extend(Filter::SPANS.map(|name| vec![name.to_owned()]));
        }
        columns.extend(self.condition.as_ref().map(Condition::columns));
        columns
    }

    /// The source text of a row; needs no label.
    ///
    /// # Errors
    /// [`Error::Format`] with file, line and field.
    pub fn source_text(&self, row: &Row) -> Result<String> {
        let text = self.source.fill(row)?;
        Ok(if self.lowercase { text.to_lowercase() } else { text })
    }

    /// The examples of a labelled row: none where it has no gold label and the task says to leave such rows out.
    ///
    /// # Errors
    /// [`Error::Format`] with file, line and field.
    pub fn examples(&self, row: &Row, purpose: Purpose) -> Result<Vec<Example>> {
        let Some((mut targets, reference)) = self.target.read(row, || self.origin(purpose))? else {
            return Ok(vec![]);
        };
        let source = self.source_text(row)?;
        let group = match (&self.group, purpose) {
            (Some(group), Purpose::Evaluation) => Some(group.fill(row)?),
            _ => None,
        };
        if purpose != Purpose::Training {
            targets.truncate(1);
        }
        Ok(targets
            .into_iter()
            .map(|target| Example {
                source: source.clone(),
                target,
                reference: reference.clone(),
                group: group.clone(),
            })
            .collect())
    }

    /// Whose the rows are that are read for `purpose`.
    fn origin(&self, purpose: Purpose) -> Origin {
        // A task of one's own may go by the name of a known one.
        let is_known = Self::named(&self.name).is_ok_and(|known| known.source == self.source);
        let is_benchmark = is_known || self.hub.is_some() || self.split != SplitRule::Files;
        match purpose {
            Purpose::Evaluation if is_benchmark => Origin::Benchmark(self.split.advice_on_hidden_labels()),
            _ if is_known => Origin::Known,
            _ => Origin::Own,
        }
    }

    /// The class of a training row without formatting its text; `None` where it has no gold label or the task no classes.
    ///
    /// # Errors
    /// [`Error::Format`] with file, line and field.
    pub fn class_of(&self, row: &Row) -> Result<Option<u32>> {
        Ok(match self.target.read(row, || self.origin(Purpose::Training))? {
            Some((_, Reference::Class(class))) => Some(class),
            _ => None,
        })
    }

    /// What generated texts mean, for [`metrics::evaluate`](crate::metrics::evaluate).
    pub fn predictions<S: AsRef<str>>(&self, generated: &[S]) -> Predictions {
        let read = generated.iter().map(|text| self.target.prediction(text.as_ref()));
        match self.target.kind() {
            Kind::Classes => Predictions::Classes(
                read.map(|prediction| match prediction {
                    Prediction::Class(class) => class,
                    _ => None,
                })
                .collect(),
            ),
            Kind::Numbers => Predictions::Numbers(
                read.map(|prediction| match prediction {
                    Prediction::Number(number) => number,
                    _ => None,
                })
                .collect(),
            ),
            Kind::Texts => {
                Predictions::Texts(generated.iter().map(|text| text.as_ref().trim().to_owned()).collect())
            }
        }
    }

    /// References of the task's kind, none yet.
    pub fn no_references(&self) -> References {
        match self.target.kind() {
            Kind::Classes => References::Classes {
                labels: vec![],
                classes: self.class_count().unwrap_or_default(),
                groups: vec![],
            },
            Kind::Numbers => References::Numbers(vec![]),
            Kind::Texts => References::Texts(vec![]),
        }
    }
}

/// Refuses words without values of which one is the place of another: rows with `1` to `5` and labels `1,2,3,4,5` may mean the words or,
/// as a data set of stars does, count from 0.
fn check_words_by_place(words: &[(Option<String>, String)]) -> Result<()> {
    let place = |word: &str| word.parse::<f64>().ok().filter(|number| number.fract() == 0.0);
    let is_other = |(index, (value, word)): (usize, &(Option<String>, String))| {
        let other = |place: f64| place != index as f64 && (0.0..words.len() as f64).contains(&place);
        value.is_none() && place(word).is_some_and(other)
    };
    let Some((_, word)) = words.iter().enumerate().find(|&entry| is_other(entry)).map(|(_, found)| found)
    else {
        return Ok(());
    };
    let written = |of: &dyn Fn(usize, &str) -> String| {
        let pairs = words.iter().enumerate().map(|(index, (_, word))| of(index, word));
        pairs.collect::<Vec<_>>().join(",")
    };
    let itself = written(&|_, word| format!("{word}={word}"));
    let by_place = written(&|index, word| format!("{index}={word}"));
    Err(Error::setting(
        "labels",
        "words that are not the place of another label, counted from 0; or a value for each",
        format!("{} at another place than {word}", quote(word)),
        format!("where rows hold these words give {itself}, and where they count from 0 give {by_place}"),
    ))
}

/// `negative,positive` or `0=negative,1=positive`: value, where given, and word.
fn parse_labels(labels: &str) -> Result<Vec<(Option<String>, String)>> {
    let pairs: Vec<_> = labels
        .split(',')
        .map(|part| match part.split_once('=') {
            Some((value, word)) => (Some(value.trim().to_owned()), word.trim().to_owned()),
            None => (None, part.trim().to_owned()),
        })
        .collect();
    let with_value = pairs.iter().filter(|(value, _)| value.is_some()).count();
    let unfit = |found: &str, advice: &str| {
        Error::setting("labels", "words as in negative,positive or 0=negative,1=positive", found, advice)
    };
    if pairs.iter().any(|(value, word)| word.is_empty() || value.as_deref() == Some("")) {
        return Err(unfit(&quote(labels), "every label needs a word"));
    }
    if with_value != 0 && with_value != pairs.len() {
        return Err(unfit(&quote(labels), "give a value for every label or for none"));
    }
    Ok(pairs)
}
