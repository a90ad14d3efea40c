//! The demonstration: tasks that a generator writes, and prompt tuning, SPoT and ATTEMPT compared on them with a small T5
//! that comes with the program.
//!
//! Every method takes the same steps at the same learning rates on the same rows; rates are chosen by validation rows, and test
//! rows are read once everything is chosen. There are two targets: one of few rows that all ask the same question
//! ([`TARGET`]), and one whose rows ask three, told apart by what a row is about ([`THREE_QUESTIONS`]). [`study`] is the longer
//! comparison, of two questions.
//!
//! # What it shows, and what it does not
//!
//! On the target of one question a mixture of learnt sources is ahead of prompt tuning and of a mixture of random sources, so
//! the gain is in what the sources have learnt, not in more trained numbers; SPoT from the closest source does as well, as there
//! is nothing to choose from one input to the next. On the target of three questions no fixed mixture fits all rows, and ATTEMPT
//! is ahead of constant weights, SPoT and prompt tuning.
//!
//! Which small tasks this frozen model can learn from a prompt at all decided the set of tasks, before any comparison: it
//! could not be brought to tell topics or word order, nor to say words that it was not trained to answer with. The second
//! target's questions are those that a source prompt answers on its sentences as it is: `film` the sentiment of the last remark,
//! `agreement` whether two agree, `outlook` whether they are yet to come.

#[cfg(feature = "cli")]
mod bundled;
mod compare;
mod generate;
mod methods;
mod questions;
mod report;
mod settings;
mod sources;
mod study;
mod table;
pub mod words;

#[cfg(feature = "cli")]
pub use bundled::{is_bundled_model, write_model};
pub use compare::compare;
pub use generate::{Generated, GeneratedTask, Rows, SOURCES, TARGET};
pub use questions::{Kind, QuestionsRow, QuestionsTask, Subject, THREE_QUESTIONS, TWO_QUESTIONS};
pub use report::Report;
pub use settings::{Settings, TargetSettings};

pub use crate::experiment::Progress;
pub use sources::SourceSettings;
pub use study::{Routing, StudyReport, StudySettings, study};
pub use table::{AttentionByKind, Row, Table};
