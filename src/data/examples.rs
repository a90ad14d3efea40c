//! Tokenised examples, stored end to end.

use std::collections::HashMap;
use std::sync::OnceLock;

use rayon::prelude::*;
use serde_json::Value;

use super::splits::Part;
use crate::count::counted;
use crate::error::{Error, Result};
use crate::tasks::{Example, Purpose, Reference, References, Row, Target, Task, quote};

/// Rows formatted and tokenised at a time: what is in memory beside the result.
const CHUNK_ROWS: usize = 4096;
/// A chunk of long rows ends sooner, at this many bytes of text.
const CHUNK_BYTES: usize = 32 << 20;

/// A tokenizer, reduced to what is needed here: text to ids, the end mark included.
pub type Encode<'a> = dyn Fn(&str) -> Result<Vec<u32>> + Sync + 'a;

/// Limits of examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExampleSettings {
    /// Tokens of a source, end mark included; a longer one loses its last words and keeps the end mark.
    pub max_source_length: usize,
    /// Tokens of a target, end mark included; likewise.
    pub max_target_length: usize,
    /// What the examples are for.
    pub purpose: Purpose,
    /// Most rows to read, from the front; `None`: all.
    pub max_rows: Option<usize>,
}

impl ExampleSettings {
    /// Sources of at most `max_source_length` tokens, targets of at most `max_target_length`, all rows.
    pub fn new(max_source_length: usize, max_target_length: usize, purpose: Purpose) -> Self {
        Self { max_source_length, max_target_length, purpose, max_rows: None }
    }
}

/// What happened to the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Rows read.
    pub rows: usize,
    /// Examples made of them.
    pub examples: usize,
    /// Rows without a gold label, left out.
    pub unlabelled: usize,
    /// Sources that were longer than the limit.
    pub truncated_sources: usize,
    /// Targets that were longer than the limit.
    pub truncated_targets: usize,
    /// Tokens of the longest source before the limit.
    pub longest_source: usize,
    /// Tokens of the longest target before the limit.
    pub longest_target: usize,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} from {}", counted(self.examples, "example"), counted(self.rows, "row"))?;
        if self.unlabelled > 0 {
            write!(formatter, ", {} without a label left out", counted(self.unlabelled, "row"))?;
        }
        if self.truncated_sources > 0 {
            let (count, longest) = (self.truncated_sources, self.longest_source);
            write!(formatter, ", {} truncated (the longest had {longest} tokens)", counted(count, "source"))?;
        }
        if self.truncated_targets > 0 {
            let (count, longest) = (self.truncated_targets, self.longest_target);
            write!(formatter, ", {} truncated (the longest had {longest} tokens)", counted(count, "target"))?;
        }
        Ok(())
    }
}

/// Tokenised examples of one task, in file order.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    sources: Ragged,
    targets: Ragged,
    references: References,
    counts: Counts,
}

impl Examples {
    /// Reads, formats and tokenises the rows of `part`, in parallel; the result does not depend on the threads.
    ///
    /// # Errors
    /// Those of reading, of the task ([`Error::Format`] with file, line and field) and of `encode`; [`Error::Setting`] if
    /// a limit is 0, [`Error::Format`] if no example is left.
    pub fn load(part: &Part, task: &Task, encode: &Encode<'_>, settings: &ExampleSettings) -> Result<Self> {
        Self::of_rows(part.rows_for(task)?, &part.origin(), task, encode, settings)
    }

    /// As [`load`](Self::load), of any rows; `origin` names them in errors.
    ///
    /// # Errors
    /// As there.
    pub fn of_rows(
        rows: impl Iterator<Item = Result<Row>>,
        origin: &str,
        task: &Task,
        encode: &Encode<'_>,
        settings: &ExampleSettings,
    ) -> Result<Self> {
        for (setting, length) in [
            ("max-source-length", settings.max_source_length),
            ("max-target-length", settings.max_target_length),
        ] {
            if length == 0 {
                return Err(Error::setting(setting, "at least 1 token", "0", ""));
            }
        }
        let mut building = Building {
            examples: Self {
                sources: Ragged::new(),
                targets: Ragged::new(),
                references: task.no_references(),
                counts: Counts::default(),
            },
            group_numbers: HashMap::new(),
        };
        let mut rows = rows.take(settings.max_rows.unwrap_or(usize::MAX));
        let mut chunk = Vec::with_capacity(CHUNK_ROWS);
        loop {
            let mut bytes = 0;
            chunk.clear();
            while chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
                let Some(row) = rows.next().transpose()? else { break };
                bytes += row.fields().values().map(text_bytes).sum::<usize>();
                chunk.push(row);
            }
            if chunk.is_empty() {
                break;
            }
            let tokenise = |row: &Row| tokenise_row(row, task, encode, settings);
            let tokenised: Vec<Result<Vec<Tokenised>>> = match has_threads() {
                true => chunk.par_iter().map(tokenise).collect(),
                false => chunk.iter().map(tokenise).collect(),
            };
            // In file order, so that of several bad rows the first is named.
            for row in tokenised {
                building.row(row?);
            }
        }
        let examples = building.examples;
        if examples.is_empty() {
            let counts = examples.counts;
            return Err(Error::format(
                origin,
                None,
                "at least one row with a label",
                format!("{}, {} of them without a label", counted(counts.rows, "row"), counts.unlabelled),
                "give a file with labelled rows",
            ));
        }
        if let (Target::Text { unanswered: Some(text), .. }, References::Texts(texts)) =
            (&task.target, &examples.references)
            && !texts.is_empty()
            && texts.iter().all(|answers| answers == std::slice::from_ref(text))
        {
            return Err(Error::format(
                origin,
                None,
                "at least one row with an answer",
                format!("{}, none of them with one", counted(examples.counts.rows, "row")),
                format!("the answers of a test file may be hidden: {}", task.split.advice_on_hidden_labels()),
            ));
        }
        Ok(examples)
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Never true of loaded examples: having none is an error.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Source ids of an example, end mark included.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn source(&self, index: usize) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.source_length(index));
        self.append_source(index, &mut ids);
        ids
    }

    /// Target ids of an example, end mark included; none where the examples were made for prediction.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn target(&self, index: usize) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.target_length(index));
        self.append_target(index, &mut ids);
        ids
    }

    /// Appends the source ids of an example: how a ragged batch is packed.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn append_source(&self, index: usize, ids: &mut Vec<u32>) {
        self.sources.append(index, ids);
    }

    /// Appends the target ids of an example.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn append_target(&self, index: usize, ids: &mut Vec<u32>) {
        self.targets.append(index, ids);
    }

    /// Source tokens of an example, n_b.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn source_length(&self, index: usize) -> usize {
        self.sources.length(index)
    }

    /// Target tokens of an example, t_b.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn target_length(&self, index: usize) -> usize {
        self.targets.length(index)
    }

    /// The right answers, in order; empty where the examples were made for prediction.
    pub fn references(&self) -> &References {
        &self.references
    }

    /// What happened to the rows.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes of ids and offsets.
    pub fn token_bytes(&self) -> usize {
        self.sources.bytes() + self.targets.bytes()
    }
}

struct Tokenised {
    source: Vec<u32>,
    target: Vec<u32>,
    reference: Option<Reference>,
    group: Option<String>,
    full_source: usize,
    full_target: usize,
}

/// Whether rows can be shared out: on the caller's threads, or on the process's, which are started unless the system refuses.
fn has_threads() -> bool {
    static STARTED: OnceLock<bool> = OnceLock::new();
    let start = || match rayon::ThreadPoolBuilder::new().build_global() {
        Ok(()) => true,
        // Only what the system says has a cause; else they were started before.
        Err(error) => std::error::Error::source(&error).is_none(),
    };
    rayon::current_thread_index().is_some() || *STARTED.get_or_init(start)
}

fn tokenise_row(
    row: &Row,
    task: &Task,
    encode: &Encode<'_>,
    settings: &ExampleSettings,
) -> Result<Vec<Tokenised>> {
    if settings.purpose == Purpose::Prediction {
        let (source, full_source) = tokenise(&task.source_text(row)?, encode, settings.max_source_length)?;
        return Ok(vec![Tokenised {
            source,
            target: vec![],
            reference: None,
            group: None,
            full_source,
            full_target: 0,
        }]);
    }
    let examples = task.examples(row, settings.purpose)?;
    examples
        .into_iter()
        .map(|Example { source, target, reference, group }| {
            let (source, full_source) = tokenise(&source, encode, settings.max_source_length)?;
            let (target, full_target) = tokenise(&target, encode, settings.max_target_length)?;
            Ok(Tokenised { source, target, reference: Some(reference), group, full_source, full_target })
        })
        .collect()
}

/// The ids of `text`, at most `limit` of them with the end mark kept, and how many there were before.
pub(crate) fn tokenise(text: &str, encode: &Encode<'_>, limit: usize) -> Result<(Vec<u32>, usize)> {
    let mut ids = encode(text)?;
    let full = ids.len();
    let Some(end) = ids.last().copied() else {
        return Err(Error::setting(
            "tokenizer",
            "at least the end mark for every text",
            "no token",
            quote(text),
        ));
    };
    if full > limit {
        ids.truncate(limit - 1);
        ids.push(end);
    }
    Ok((ids, full))
}

struct Building {
    examples: Examples,
    group_numbers: HashMap<String, u32>,
}

impl Building {
    fn row(&mut self, tokenised: Vec<Tokenised>) {
        let Examples { sources, targets, references, counts } = &mut self.examples;
        counts.rows += 1;
        counts.unlabelled += usize::from(tokenised.is_empty());
        for example in tokenised {
            counts.examples += 1;
            counts.truncated_sources += usize::from(example.full_source > example.source.len());
            counts.truncated_targets += usize::from(example.full_target > example.target.len());
            counts.longest_source = counts.longest_source.max(example.full_source);
            counts.longest_target = counts.longest_target.max(example.full_target);
            sources.push(&example.source);
            targets.push(&example.target);
            match (&mut *references, example.reference) {
                (References::Classes { labels, groups, .. }, Some(Reference::Class(class))) => {
                    labels.push(class);
                    if let Some(group) = example.group {
                        let next = self.group_numbers.len() as u32;
                        groups.push(*self.group_numbers.entry(group).or_insert(next));
                    }
                }
                (References::Numbers(numbers), Some(Reference::Number(number))) => numbers.push(number),
                (References::Texts(texts), Some(Reference::Texts(answers))) => texts.push(answers),
                // Made for prediction; a task gives references of its own kind only.
                _ => {}
            }
        }
    }
}

/// Lists of token ids, end to end. Ids take two bytes each until one needs more.
#[derive(Debug, Clone, PartialEq)]
struct Ragged {
    ids: Ids,
    /// Where each list starts, and where the last ends.
    offsets: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq)]
enum Ids {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl Ragged {
    fn new() -> Self {
        Self { ids: Ids::Narrow(vec![]), offsets: vec![0] }
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn push(&mut self, list: &[u32]) {
        if let Ids::Narrow(ids) = &self.ids
            && list.iter().any(|id| *id > u32::from(u16::MAX))
        {
            self.ids = Ids::Wide(ids.iter().map(|id| u32::from(*id)).collect());
        }
        match &mut self.ids {
            // Nothing is cut: the check above has seen every id.
            Ids::Narrow(ids) => ids.extend(list.iter().map(|id| *id as u16)),
            Ids::Wide(ids) => ids.extend_from_slice(list),
        }
        let end = self.offsets.last().copied().unwrap_or_default() + list.len() as u64;
        self.offsets.push(end);
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        self.offsets[index] as usize..self.offsets[index + 1] as usize
    }

    fn length(&self, index: usize) -> usize {
        self.range(index).len()
    }

    fn append(&self, index: usize, list: &mut Vec<u32>) {
        match &self.ids {
            Ids::Narrow(ids) => list.extend(ids[self.range(index)].iter().map(|id| u32::from(*id))),
            Ids::Wide(ids) => list.extend_from_slice(&ids[self.range(index)]),
        }
    }

    fn bytes(&self) -> usize {
        let ids = match &self.ids {
            Ids::Narrow(ids) => size_of_val(ids.as_slice()),
            Ids::Wide(ids) => size_of_val(ids.as_slice()),
        };
        ids + size_of_val(self.offsets.as_slice())
    }
}

/// About how much memory the text of a value takes.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        _ => 8,
    }
}
