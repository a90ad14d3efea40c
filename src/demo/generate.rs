//! Six source tasks and a few-shot target, written by a seeded generator.
//!
//! They ask different questions of sentences that look alike, and all but one answer with the same two words, so that
//! only the prompt can say what is asked: the source text is the sentence and nothing more. The answers are words that
//! the bundled model was trained to say; negative and positive stand for no and yes where the question is not of
//! sentiment. `time` (has what a report tells happened already, or will it) and `outlook` (the same of remarks) are related
//! to the target, which asks it of judged events in words of their own; the other four are not.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::words::{
    ACT, AGENT, BEFORE, DEGREE, EVENT_ACT, EVENT_AGENT, EVENT_BEFORE, EVENT_LATER, EVENT_OBJECT, FILM, FOOD,
    LATER, NEGATIVE, OBJECT, PLACE, POSITIVE, STAY,
};
use crate::error::{Error, Result};
use crate::files;

/// Draws without a new sentence after which a task's words must be taken for exhausted.
pub(super) const FRUITLESS_DRAWS: usize = 10_000;

/// What a sentence says, whatever it is about: drawn evenly and independently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// Whether each opinion is good; the second is not said in a sentence of one remark.
    pub(super) good: [bool; 2],
    /// Whether it is yet to come.
    pub(super) later: bool,
}

/// A task that the generator can write.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct GeneratedTask {
    /// The folder's and the task's name.
    pub name: &'static str,
    /// What is asked of the sentence, for people.
    pub question: &'static str,
    /// The words for label 0 and label 1.
    pub labels: [&'static str; 2],
    sentence: fn(&mut Draw, usize) -> String,
}

/// The tasks that source prompts are learnt on.
pub const SOURCES: [GeneratedTask; 6] = [
    GeneratedTask {
        name: "film",
        question: "is the remark on a film negative or positive",
        labels: ["negative", "positive"],
        sentence: |draw, label| remark(draw, FILM, label),
    },
    GeneratedTask {
        name: "contrast",
        question: "of two remarks on food, is the second negative or positive",
        labels: ["negative", "positive"],
        sentence: |draw, label| contrast(draw, FOOD, label),
    },
    GeneratedTask {
        name: "opinion",
        question: "does the sentence report or judge",
        labels: ["objective", "subjective"],
        sentence: |draw, label| if label == 1 { any_remark(draw) } else { any_report(draw) },
    },
    GeneratedTask {
        name: "agreement",
        question: "do two remarks on one subject agree",
        labels: ["negative", "positive"],
        sentence: agreement,
    },
    GeneratedTask {
        name: "time",
        question: "is what the report tells yet to come",
        labels: ["negative", "positive"],
        sentence: report,
    },
    GeneratedTask {
        name: "outlook",
        question: "is the remark on something yet to come",
        labels: ["negative", "positive"],
        sentence: outlook,
    },
];

/// The few-shot target.
pub const TARGET: GeneratedTask = GeneratedTask {
    name: "event",
    question: "is the event yet to come, whatever it is said to be like",
    labels: ["negative", "positive"],
    sentence: event,
};

/// Rows of each split, of both classes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// To learn from.
    pub train: usize,
    /// To choose by.
    pub validation: usize,
    /// To report.
    pub test: usize,
}

/// The splits of a task as (text, label) rows: classes alternate and no text occurs twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// To learn from.
    pub train: Vec<(String, usize)>,
    /// To choose by.
    pub validation: Vec<(String, usize)>,
    /// To report.
    pub test: Vec<(String, usize)>,
}

impl GeneratedTask {
    /// The rows of `seed`, the same on every machine.
    ///
    /// # Errors
    /// [`Error::Setting`] if the words do not make that many different sentences.
    pub fn generate(&self, rows: Rows, seed: u64) -> Result<Generated> {
        let mut draw = Draw::new(self.name, seed);
        let mut seen = HashSet::new();
        let count = rows.train + rows.validation + rows.test;
        let mut drawn = Vec::with_capacity(count);
        for index in 0..count {
            let label = index % 2;
            let text = (0..FRUITLESS_DRAWS)
                .map(|_| (self.sentence)(&mut draw, label))
                .find(|text| seen.insert(text.clone()));
            drawn.push((text.ok_or_else(|| exhausted(self.name, count))?, label));
        }
        let test = drawn.split_off(rows.train + rows.validation);
        let validation = drawn.split_off(rows.train);
        Ok(Generated { train: drawn, validation, test })
    }

    /// Writes the rows of `seed` into `folder` as `train.jsonl`, `validation.jsonl` and `test.jsonl`, with the fields
    /// `text` and `label`.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and if a file cannot be written.
    pub fn write(&self, folder: &Path, rows: Rows, seed: u64) -> Result<()> {
        let generated = self.generate(rows, seed)?;
        let json = [generated.train, generated.validation, generated.test].map(|rows| {
            let row = |(text, label): &(String, usize)| serde_json::json!({ "text": text, "label": label });
            rows.iter().map(row).collect::<Vec<_>>()
        });
        write_rows(folder, &json)
    }
}

/// Writes train, validation and test rows into `folder`, a file each.
pub(super) fn write_rows(folder: &Path, splits: &[Vec<serde_json::Value>; 3]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::file("create", folder, source))?;
    for (name, rows) in ["train.jsonl", "validation.jsonl", "test.jsonl"].into_iter().zip(splits) {
        files::replace(&folder.join(name), |file| rows.iter().try_for_each(|row| writeln!(file, "{row}")))?;
    }
    Ok(())
}

/// The words of a task make fewer than `count` sentences.
pub(super) fn exhausted(task: &str, count: usize) -> Error {
    let expected = format!("as many as the words of {task} make");
    Error::setting("rows", expected, count.to_string(), "ask for fewer")
}

/// A task's own stream of choices.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    pub(super) fn new(task: &str, seed: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        for (byte, letter) in key[8..].iter_mut().zip(task.bytes()) {
            *byte = letter;
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Evenly from 0 to `count` - 1; lists are short beside 2^64, so the remainder's bias is nothing.
    pub(super) fn below(&mut self, count: usize) -> usize {
        (self.0.next_u64() % count.max(1) as u64) as usize
    }

    pub(super) fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn opinion(&mut self, label: usize) -> &'static str {
        self.pick([NEGATIVE, POSITIVE][label])
    }
}

/// A remark on one thing.
fn remark(draw: &mut Draw, things: &[&'static str], label: usize) -> String {
    let (thing, opinion) = (draw.pick(things), draw.opinion(label));
    let degree = draw.pick(DEGREE);
    match draw.below(6) {
        0 => format!("the {thing} is {opinion} ."),
        1 => format!("the {thing} was {degree} {opinion} ."),
        2 => format!("i thought the {thing} was {opinion} ."),
        3 => format!("{} {thing} .", with_article(opinion)),
        4 => format!("we found the {thing} {degree} {opinion} ."),
        _ => format!("it had a {degree} {opinion} {thing} ."),
    }
}

/// Remarks of opposite sentiment on two things; `label` is the second's.
fn contrast(draw: &mut Draw, things: &[&'static str], label: usize) -> String {
    let first = draw.pick(things);
    let mut second = draw.pick(things);
    while second == first {
        second = draw.pick(things);
    }
    let (before, after) = (draw.opinion(1 - label), draw.opinion(label));
    let degree = draw.pick(DEGREE);
    match draw.below(4) {
        0 => format!("the {first} was {before} , but the {second} was {after} ."),
        1 => format!("{} {first} , but a {degree} {after} {second} .", with_article(before)),
        2 => format!("we thought the {first} {before} , but the {second} was {degree} {after} ."),
        _ => format!("the {first} is {before} ; still , it has {} {second} .", with_article(after)),
    }
}

/// "a good", "an awful".
fn with_article(word: &str) -> String {
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {word}")
}

/// Two remarks of opposite (0) or equal (1) sentiment.
fn agreement(draw: &mut Draw, label: usize) -> String {
    let things = draw.pick(&[FILM, FOOD, STAY]);
    let first = draw.pick(things);
    let mut second = draw.pick(things);
    while second == first {
        second = draw.pick(things);
    }
    let sentiment = draw.below(2);
    let before = draw.opinion(sentiment);
    let after = draw.opinion(if label == 1 { sentiment } else { 1 - sentiment });
    let (join, degree) = (["but", "and"][label], draw.pick(DEGREE));
    match draw.below(3) {
        0 => format!("the {first} was {before} , {join} the {second} was {after} ."),
        1 => format!("we thought the {first} {before} , {join} the {second} was {degree} {after} ."),
        _ => format!("{} {first} , {join} a {degree} {after} {second} .", with_article(before)),
    }
}

/// A report of what was (0) or will be (1).
fn report(draw: &mut Draw, label: usize) -> String {
    let (agent, object) = (draw.pick(AGENT), draw.pick(OBJECT));
    let place = draw.pick(PLACE);
    let (act, time) = act(draw, ACT, [BEFORE, LATER], label);
    match draw.below(3) {
        0 => format!("{time} the {agent} {act} the {object} ."),
        1 => format!("the {agent} {act} the {object} {place} {time} ."),
        _ => format!("the {agent} {act} the {object} {time} ."),
    }
}

/// A remark on what was (0) or will be (1).
fn outlook(draw: &mut Draw, label: usize) -> String {
    let things = draw.pick(&[FILM, FOOD, STAY]);
    let sentiment = draw.below(2);
    let (thing, opinion, degree) = (draw.pick(things), draw.opinion(sentiment), draw.pick(DEGREE));
    let (is, has) = [("was", "had"), ("will be", "will have")][label];
    match draw.below(4) {
        0 => format!("the {thing} {is} {opinion} ."),
        1 => format!("i think the {thing} {is} {degree} {opinion} ."),
        2 => format!("it {has} a {degree} {opinion} {thing} ."),
        _ => format!("we hope the {thing} {is} {opinion} ."),
    }
}

/// One remark of what `said` has it say.
pub(super) fn sentence_of_one(draw: &mut Draw, things: &[&'static str], said: Said) -> String {
    let (thing, degree) = (draw.pick(things), draw.pick(DEGREE));
    let opinion = draw.opinion(said.good[0].into());
    let (is, has) = tense(said);
    match draw.below(4) {
        0 => format!("the {thing} {is} {degree} {opinion} ."),
        1 => format!("i think the {thing} {is} {degree} {opinion} ."),
        2 => format!("it {has} {} {opinion} {thing} .", with_article(degree)),
        _ => format!("we found that the {thing} {is} {degree} {opinion} ."),
    }
}

/// Two remarks of what `said` has them say.
pub(super) fn sentence_of_two(draw: &mut Draw, things: &[&'static str], said: Said) -> String {
    let first = draw.pick(things);
    let mut second = draw.pick(things);
    while second == first {
        second = draw.pick(things);
    }
    let [before, after] = said.good.map(|good| draw.opinion(good.into()));
    let (join, degree) = (if said.good[0] == said.good[1] { "and" } else { "but" }, draw.pick(DEGREE));
    let (is, has) = tense(said);
    match draw.below(3) {
        0 => format!("the {first} {is} {before} , {join} the {second} {is} {degree} {after} ."),
        1 => format!("i think the {first} {is} {degree} {before} , {join} the {second} {is} {after} ."),
        _ => format!(
            "it {has} {} {first} , {join} {} {after} {second} .",
            with_article(before),
            with_article(degree)
        ),
    }
}

fn tense(said: Said) -> (&'static str, &'static str) {
    if said.later { ("will be", "will have") } else { ("was", "had") }
}

/// A judged event that was (0) or will be (1).
fn event(draw: &mut Draw, label: usize) -> String {
    let sentiment = draw.below(2);
    let (agent, object, opinion) = (draw.pick(EVENT_AGENT), draw.pick(EVENT_OBJECT), draw.opinion(sentiment));
    let (act, time) = act(draw, EVENT_ACT, [EVENT_BEFORE, EVENT_LATER], label);
    let evaluated = with_article(opinion);
    match draw.below(3) {
        0 => format!("{time} the {agent} {act} {evaluated} {object} ."),
        1 => format!("the {agent} {act} {evaluated} {object} {time} ."),
        _ => format!("{evaluated} {agent} {act} the {object} {time} ."),
    }
}

/// What is done before now (0) or later (1), and when.
fn act(
    draw: &mut Draw,
    acts: &[(&'static str, &'static str)],
    times: [&[&'static str]; 2],
    label: usize,
) -> (String, &'static str) {
    let (past, future) = draw.pick(acts);
    let act = if label == 0 { past.to_owned() } else { format!("will {future}") };
    (act, draw.pick(times[label]))
}

fn any_remark(draw: &mut Draw) -> String {
    let things = draw.pick(&[FILM, FOOD, STAY]);
    let label = draw.below(2);
    if draw.below(2) == 0 { remark(draw, things, label) } else { contrast(draw, things, label) }
}

fn any_report(draw: &mut Draw) -> String {
    let label = draw.below(2);
    report(draw, label)
}
