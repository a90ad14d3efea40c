//! Which rows of which file train, validate and test.
//!
//! A folder holds `train`, `validation` and `test` in files of their own, or in shards. Many datasets ship a test file without
//! labels; their [`SplitRule`] takes test rows from the labelled files instead. Its permutation is that of
//! `torch.randperm` seeded with 42, as in the ATTEMPT release, so that the very same rows validate; it has nothing to do
//! with a run's seed.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand_mt::Mt;

use super::folder::{expected, find, listing, refuse_saved_to_disk};
use super::format::EXTENSIONS;
use super::reader::{Reader, count_rows, open_columns};
use crate::choice::choices;
use crate::error::{Error, Result};
use crate::tasks::{Condition, Row, SplitRule, Task};

const SPLIT_SEED: u32 = 42;

/// A role of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Learnt from.
    Train,
    /// Chosen by.
    Validation,
    /// Reported.
    Test,
}

impl Split {
    /// The name, which is also the file's stem.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Train, Self::Validation, Self::Test]
            .into_iter()
            .find(|split| split.name() == name)
            .ok_or_else(|| Error::setting("split", "train, validation or test", format!("{name:?}"), ""))
    }
}

choices! {
    /// Who says which file is which split.
    pub enum SplitSource {
        /// The task's split rule: test rows come from files with labels, as in the paper.
        Paper = "paper",
        /// The files by their names: each split is its own file, as the hub has them. A benchmark's test file often hides its labels.
        Hub = "hub",
    }
}

impl SplitSource {
    /// Who says it of the rows of `task` at `place`, a folder or a data set of the hub: what was `given`, if anything; else the task's
    /// rule for its own data set on the hub, whose test file often hides its labels, and the files' names for any other data.
    pub fn of(given: Option<Self>, task: &Task, place: &Path) -> Self {
        given.unwrap_or(Self::from(task.owns(place)))
    }
}

/// Of `--split-validation-test`: set, the task's rule applies.
impl From<bool> for SplitSource {
    fn from(split_validation_test: bool) -> Self {
        if split_validation_test { Self::Paper } else { Self::Hub }
    }
}

impl fmt::Display for SplitSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// The rows of a file, or of its shards, that belong to one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// At least one.
    paths: Vec<PathBuf>,
    /// Rows that do not meet it are as if the files did not have them.
    condition: Option<Condition>,
    rows: Option<Vec<u32>>,
}

impl Part {
    /// All rows of a file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { paths: vec![path.into()], condition: None, rows: None }
    }

    /// Some rows of a file, by number from 0 in file order.
    pub fn some(path: impl Into<PathBuf>, rows: Vec<u32>) -> Self {
        Self::file(path).choosing(rows)
    }

    /// Some rows of the same files, by number from 0 in the order of the files.
    #[must_use]
    pub fn choosing(&self, mut rows: Vec<u32>) -> Self {
        rows.sort_unstable();
        rows.dedup();
        Self { paths: self.paths.clone(), condition: self.condition.clone(), rows: Some(rows) }
    }

    /// The file, or the first of its shards.
    pub fn path(&self) -> &Path {
        &self.paths[0]
    }

    /// The file's path, or the first shard's and how many more there are.
    pub fn origin(&self) -> String {
        match self.paths.len() - 1 {
            0 => self.path().display().to_string(),
            more => format!("{} and {more} more", self.path().display()),
        }
    }

    /// The chosen rows in ascending order; `None`: all.
    pub fn chosen(&self) -> Option<&[u32]> {
        self.rows.as_deref()
    }

    /// How many rows it has; counts those of the file where all belong to it.
    ///
    /// # Errors
    /// As [`count_rows`].
    pub fn row_count(&self) -> Result<usize> {
        match (&self.rows, &self.condition) {
            (Some(rows), _) => Ok(rows.len()),
            (None, None) => self.paths.iter().map(|path| count_rows(path)).sum(),
            (None, Some(condition)) => {
                let mut count = 0;
                for row in self.rows_with(vec![condition.columns()])? {
                    row?;
                    count += 1;
                }
                Ok(count)
            }
        }
    }

    /// Its rows, streamed in file order.
    ///
    /// # Errors
    /// As `open` of this module's readers; those of single rows come from the iterator.
    pub fn rows(&self) -> Result<Rows<'_>> {
        self.rows_with(vec![])
    }

    /// As [`rows`](Self::rows), for `task`: columns of a Parquet file that it does not read may be missing.
    ///
    /// # Errors
    /// As there.
    pub fn rows_for(&self, task: &Task) -> Result<Rows<'_>> {
        self.rows_with(task.columns())
    }

    fn rows_with(&self, columns: Vec<Vec<String>>) -> Result<Rows<'_>> {
        let (mut reader, rest) = (open_columns(self.path(), &columns)?, &self.paths[1..]);
        let (condition, left_out) = (self.condition.as_ref(), BTreeSet::new());
        let first = condition.and_then(|_| reader.next());
        let of_condition = match (condition, &first) {
            (Some(condition), Some(Ok(row))) => condition.remark(row),
            _ => None,
        };
        let remarks: Vec<String> =
            reader.remark().map(str::to_owned).into_iter().chain(of_condition).collect();
        let remark = (!remarks.is_empty()).then(|| remarks.join("\n"));
        let chosen = self.rows.as_deref();
        Ok(Rows { reader, first, remark, rest, columns, condition, left_out, chosen, position: 0 })
    }
}

/// The rows of a [`Part`], in file order.
#[derive(Debug)]
pub struct Rows<'a> {
    reader: Reader,
    /// The first row, where it was read before it was asked for.
    first: Option<Result<Row>>,
    remark: Option<String>,
    /// Shards that are still to be opened.
    rest: &'a [PathBuf],
    columns: Vec<Vec<String>>,
    condition: Option<&'a Condition>,
    /// Some of the values that rows have that do not meet it.
    left_out: BTreeSet<String>,
    chosen: Option<&'a [u32]>,
    position: u32,
}

/// Values that an error names.
const NAMED_VALUES: usize = 8;

impl Rows<'_> {
    /// What the user should know about how the first file is read, and of which of its rows are a task's.
    pub fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    /// No row comes after this.
    fn end(&mut self) {
        self.rest = &[];
        self.chosen = Some(&[]);
    }

    /// Whether the row is one of the part's.
    fn admits(&mut self, row: &Row) -> Result<bool> {
        let Some(condition) = self.condition else { return Ok(true) };
        let holds = condition.holds(row)?;
        if !holds && self.left_out.len() < NAMED_VALUES {
            self.left_out.extend(condition.value_of(row));
        }
        Ok(holds)
    }

    /// That files have rows and none of them is the task's.
    fn none_met(&self) -> Option<Error> {
        let condition = self.condition.filter(|_| self.position == 0 && !self.left_out.is_empty())?;
        let values: Vec<&str> = self.left_out.iter().map(String::as_str).collect();
        Some(Error::format(
            self.reader.path(),
            None,
            format!("rows with {condition}"),
            format!("{} there", values.join(", ")),
            "give the task's own data, another `where` in a task file, or --split-validation-test if only the test file lacks them",
        ))
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        loop {
            if self.chosen.is_some_and(<[u32]>::is_empty) {
                return None;
            }
            let row = match (self.first.take().or_else(|| self.reader.next()), self.chosen) {
                (Some(row), _) => row,
                (None, _) if !self.rest.is_empty() => match open_columns(&self.rest[0], &self.columns) {
                    Ok(reader) => {
                        (self.reader, self.rest) = (reader, &self.rest[1..]);
                        continue;
                    }
                    Err(error) => {
                        self.end();
                        return Some(Err(error));
                    }
                },
                (None, None) => {
                    let error = self.none_met()?;
                    self.end();
                    return Some(Err(error));
                }
                (None, Some(missing)) => {
                    let expected = format!("{} more rows", missing.len());
                    let advice = "the file has changed since its rows were counted; start again";
                    self.chosen = Some(&[]);
                    return Some(Err(Error::format(self.reader.path(), None, expected, "the end", advice)));
                }
            };
            let admitted = row.and_then(|row| Ok(self.admits(&row)?.then_some(row)));
            let position = self.position;
            let row = match admitted {
                Ok(Some(row)) => Ok(row),
                Ok(None) => continue,
                // A bad row ends the file, whichever split it belongs to.
                Err(error) => {
                    self.end();
                    return Some(Err(error));
                }
            };
            self.position = self.position.saturating_add(1);
            match &mut self.chosen {
                Some(chosen) if chosen.first() == Some(&position) => *chosen = &chosen[1..],
                Some(_) => continue,
                None => {}
            }
            return Some(row);
        }
    }
}

/// The splits of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    folder: PathBuf,
    rule: SplitRule,
    train: Option<Part>,
    validation: Option<Part>,
    test: Option<Part>,
}

impl Splits {
    /// Finds the files of `folder` and makes splits of them as `source` says: by `rule`, or each its own file. `true` and `false`
    /// stand for the two.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be read, [`Error::Format`] if it holds no split or one twice, [`Error::Setting`]
    /// if it is a file or a file that the rule needs is missing or too small, and those of reading it.
    pub fn open(folder: &Path, rule: SplitRule, source: impl Into<SplitSource>) -> Result<Self> {
        Self::open_where(folder, rule, None, source.into())
    }

    /// As [`open`](Self::open), by the task's rule and with the rows alone that are the task's.
    ///
    /// # Errors
    /// As there.
    pub fn of_task(folder: &Path, task: &Task, source: impl Into<SplitSource>) -> Result<Self> {
        Self::open_where(folder, task.split, task.condition.as_ref(), source.into())
    }

    fn open_where(
        folder: &Path,
        rule: SplitRule,
        condition: Option<&Condition>,
        source: SplitSource,
    ) -> Result<Self> {
        if folder.is_file() {
            return Err(Error::setting(
                "data folder",
                format!("a folder with train, validation or test as {EXTENSIONS}"),
                format!("the file {}", folder.display()),
                "give the folder that it is in, and name the file after its split",
            ));
        }
        std::fs::read_dir(folder).map_err(|source| Error::file("open the folder", folder, source))?;
        let part = |stem: &str| {
            let paths = find(folder, stem)?;
            Ok::<_, Error>(paths.map(|paths| Part { paths, condition: condition.cloned(), rows: None }))
        };
        let mut splits = Self {
            folder: folder.to_owned(),
            rule,
            train: part("train")?,
            validation: part("validation")?,
            test: part("test")?,
        };
        if rule == SplitRule::MatchedAndMismatched {
            let matched = part("validation_matched")?;
            splits.validation = part("validation_mismatched")?.or(splits.validation);
            splits.test = match source {
                SplitSource::Paper => matched.or(splits.test),
                // A validation file tests only where no file is there to test.
                SplitSource::Hub => splits.test.or(part("test_matched")?).or(matched),
            };
        } else if source == SplitSource::Paper || splits.lacks_validation_alone()? {
            splits.apply(rule)?;
        }
        if splits.train.is_none() && splits.validation.is_none() && splits.test.is_none() {
            refuse_saved_to_disk(folder)?;
            return Err(Error::format(
                folder,
                None,
                format!("train, validation or test as {EXTENSIONS}"),
                format!("none of them, {}", listing(folder)),
                "name the files so, or give another folder",
            ));
        }
        Ok(splits)
    }

    /// Whether the files train and test, and the rule holds rows to validate on out of those that train.
    fn lacks_validation_alone(&self) -> Result<bool> {
        Ok(match (self.rule, &self.train, &self.validation, &self.test) {
            (SplitRule::HoldOutTraining { rows }, Some(train), None, Some(_)) => {
                train.row_count()? > rows as usize
            }
            _ => false,
        })
    }

    /// The rows of a split.
    ///
    /// # Errors
    /// [`Error::Setting`] if the folder has no such file.
    pub fn get(&self, split: Split) -> Result<&Part> {
        let part = match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        };
        part.as_ref().ok_or_else(|| self.missing(split.name()))
    }

    fn missing(&self, stem: &str) -> Error {
        let advice = match (self.rule, stem) {
            (SplitRule::HoldOutTraining { rows }, "validation") if self.train.is_some() => {
                format!("name the file so; of more than {rows} rows beside a test file, {rows} validate")
            }
            (SplitRule::HoldOutTraining { .. } | SplitRule::HalveValidation, "test")
                if self.validation.is_some() =>
            {
                "--split-validation-test takes test rows from the validation file".to_owned()
            }
            _ => "name the file so, or choose another split".to_owned(),
        };
        Error::setting(
            format!("split {stem}"),
            expected(stem),
            format!("none in {}, {}", self.folder.display(), listing(&self.folder)),
            advice,
        )
    }

    fn apply(&mut self, rule: SplitRule) -> Result<()> {
        match rule {
            SplitRule::Files | SplitRule::MatchedAndMismatched => {}
            SplitRule::HalveValidation => {
                let all = self.get(Split::Validation)?.clone();
                let mut first = torch_permutation(countable(&all)?, SPLIT_SEED);
                if first.len() < 2 {
                    return Err(too_small(all.path(), 2, first.len()));
                }
                let second = first.split_off(first.len() / 2);
                self.validation = Some(all.choosing(first));
                self.test = Some(all.choosing(second));
            }
            SplitRule::HoldOutTraining { rows } => {
                let all = self.get(Split::Train)?.clone();
                let mut held_out = torch_permutation(countable(&all)?, SPLIT_SEED);
                if held_out.len() <= rows as usize {
                    return Err(too_small(all.path(), rows as usize + 1, held_out.len()));
                }
                let rest = held_out.split_off(rows as usize);
                // Without a validation file the data's own test file has labels: it tests.
                self.test = self.validation.take().or(self.test.take());
                self.train = Some(all.choosing(rest));
                self.validation = Some(all.choosing(held_out));
            }
        }
        Ok(())
    }
}

fn countable(part: &Part) -> Result<u32> {
    let rows = part.row_count()?;
    u32::try_from(rows).map_err(|_| {
        Error::format(part.path(), None, "at most 4294967295 rows", rows.to_string(), "split the file")
    })
}

fn too_small(path: &Path, least: usize, rows: usize) -> Error {
    Error::setting(
        "split rule",
        format!("at least {least} rows in {}", path.display()),
        rows.to_string(),
        "the paper's rule takes validation or test rows from it: without `--splits paper` and `--split-validation-test` each split is its own \
         file",
    )
}

/// `torch.randperm(rows)` from a generator seeded with `seed`: Mersenne Twister, Fisher and Yates from the front, the
/// remainder of one 32-bit word a step. The slight bias of the remainder is part of being the same permutation.
fn torch_permutation(rows: u32, seed: u32) -> Vec<u32> {
    let mut generator = Mt::new(seed);
    let mut order: Vec<u32> = (0..rows).collect();
    for position in 0..rows.saturating_sub(1) {
        let other = position + generator.next_u32() % (rows - position);
        order.swap(position as usize, other as usize);
    }
    order
}
