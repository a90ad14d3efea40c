//! Targets whose rows ask different questions: what a row is about says which, and nothing else does.
//!
//! All rows of such a target are sentences of one form, whose sentiment and tense are drawn apart from their subject. A row
//! about a show is asked one question, a row about travel another, so no fixed mixture of the sources fits every row: it is
//! here that attention which depends on the input can be of use, and its absence shows. No sentence occurs in a source's
//! rows, whose subjects are others.

use std::collections::HashSet;
use std::path::Path;

use super::generate::{
    Draw, FRUITLESS_DRAWS, Rows, Said, exhausted, sentence_of_one, sentence_of_two, write_rows,
};
use super::words::{SHOW, SPORT, TRAVEL};
use crate::error::Result;

/// A kind of row.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Kind {
    /// A name, for tables; the field `kind` of the row.
    pub name: &'static str,
    /// What is asked of the sentence, for people.
    pub question: &'static str,
    /// The source tasks that ask the same of sentences on other subjects.
    pub related: &'static [&'static str],
    /// What its rows are about.
    things: &'static [&'static str],
    answer: fn(Said) -> usize,
}

impl Kind {
    /// The related sources that are among `sources`.
    pub(super) fn related_among(&self, sources: &[&'static str]) -> Vec<&'static str> {
        self.related.iter().copied().filter(|name| sources.contains(name)).collect()
    }
}

/// A target of several kinds of row.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct QuestionsTask {
    /// The folder's and the task's name.
    pub name: &'static str,
    /// The words for label 0 and label 1, whatever is asked.
    pub labels: [&'static str; 2],
    /// The source tasks that a mixture for it is offered, related and not.
    pub sources: &'static [&'static str],
    /// The kinds of row, which take turns.
    pub kinds: &'static [Kind],
    sentence: fn(&mut Draw, &[&'static str], Said) -> String,
}

/// Whether a row's subject tells its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// It does.
    OfKind,
    /// It is drawn from the subjects of all kinds, as if subjects had been shuffled between rows: nothing in a row tells what
    /// is asked.
    Shuffled,
}

const OUTLOOK: Kind = Kind {
    name: "outlook",
    question: "is it yet to come",
    related: &["outlook", "time"],
    things: TRAVEL,
    answer: |said| usize::from(said.later),
};

/// One remark; of shows it is asked whether it is good, of travel whether it is yet to come.
pub const TWO_QUESTIONS: QuestionsTask = QuestionsTask {
    name: "two-questions",
    labels: ["negative", "positive"],
    sources: &["film", "outlook", "contrast", "opinion"],
    kinds: &[
        Kind {
            name: "sentiment",
            question: "is the remark good",
            related: &["film", "contrast"],
            things: SHOW,
            answer: |said| usize::from(said.good[0]),
        },
        OUTLOOK,
    ],
    sentence: sentence_of_one,
};

/// Two remarks in a sentence; of shows it is asked whether the second is good, of sport whether the two agree, of travel
/// whether they are yet to come.
pub const THREE_QUESTIONS: QuestionsTask = QuestionsTask {
    name: "three-questions",
    labels: ["negative", "positive"],
    sources: &["film", "outlook", "contrast", "agreement", "opinion"],
    kinds: &[
        Kind {
            name: "sentiment",
            question: "is the second remark good",
            related: &["film", "contrast"],
            things: SHOW,
            answer: |said| usize::from(said.good[1]),
        },
        OUTLOOK,
        Kind {
            name: "agreement",
            question: "do the two remarks agree",
            related: &["agreement"],
            things: SPORT,
            answer: |said| usize::from(said.good[0] == said.good[1]),
        },
    ],
    sentence: sentence_of_two,
};

/// A row of such a target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuestionsRow {
    /// The sentence.
    pub text: String,
    /// The label.
    pub label: usize,
    /// The index of its kind.
    pub kind: usize,
}

impl QuestionsTask {
    /// What the weights of a mixture of its sources belong to, in their order.
    pub(super) fn prompts(&self) -> Vec<String> {
        self.sources.iter().copied().chain(["target"]).map(str::to_owned).collect()
    }

    /// The rows of `seed`, the same on every machine: train, validation, test. Kinds take turns, and so do labels within a
    /// kind; no text occurs twice.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) if the words do not make that many different sentences.
    pub fn generate(&self, rows: Rows, seed: u64, subject: Subject) -> Result<[Vec<QuestionsRow>; 3]> {
        let mut draw = Draw::new(self.name, seed);
        let mut seen = HashSet::new();
        let count = rows.train + rows.validation + rows.test;
        let mut drawn = Vec::with_capacity(count);
        for index in 0..count {
            let (kind, label) = (index % self.kinds.len(), index / self.kinds.len() % 2);
            let text = (0..FRUITLESS_DRAWS)
                .map(|_| self.draw(&mut draw, kind, label, subject))
                .find(|text| seen.insert(text.clone()));
            let text = text.ok_or_else(|| exhausted(self.name, count))?;
            drawn.push(QuestionsRow { text, label, kind });
        }
        let test = drawn.split_off(rows.train + rows.validation);
        let validation = drawn.split_off(rows.train);
        Ok([drawn, validation, test])
    }

    fn draw(&self, draw: &mut Draw, kind: usize, label: usize, subject: Subject) -> String {
        let said = loop {
            let said = Said { good: [draw.coin(), draw.coin()], later: draw.coin() };
            if (self.kinds[kind].answer)(said) == label {
                break said;
            }
        };
        let about = match subject {
            Subject::OfKind => kind,
            Subject::Shuffled => draw.below(self.kinds.len()),
        };
        (self.sentence)(draw, self.kinds[about].things, said)
    }

    /// Writes the rows of `seed` into `folder` as `train.jsonl`, `validation.jsonl` and `test.jsonl`, with the fields `text`,
    /// `label` and `kind`, which no method reads.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and if a file cannot be written.
    pub fn write(&self, folder: &Path, rows: Rows, seed: u64, subject: Subject) -> Result<()> {
        self.write_rows(folder, self.generate(rows, seed, subject)?)
    }

    /// As [`write`](Self::write), the rows of one kind alone.
    pub(super) fn write_kind(&self, folder: &Path, rows: Rows, seed: u64, kind: usize) -> Result<()> {
        let splits = self.generate(rows, seed, Subject::OfKind)?;
        self.write_rows(folder, splits.map(|rows| rows.into_iter().filter(|row| row.kind == kind).collect()))
    }

    fn write_rows(&self, folder: &Path, splits: [Vec<QuestionsRow>; 3]) -> Result<()> {
        let json = splits.map(|rows| {
            let row = |row: &QuestionsRow| {
                serde_json::json!({ "text": row.text, "label": row.label, "kind": self.kinds[row.kind].name })
            };
            rows.iter().map(row).collect::<Vec<_>>()
        });
        write_rows(folder, &json)
    }
}
