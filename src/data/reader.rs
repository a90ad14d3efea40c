//! Rows of a JSONL, CSV, TSV or Parquet file, one at a time; memory does not grow with the file.
//!
//! Text is UTF-8; a byte order mark is skipped; what gzip compressed is decompressed.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use super::format::{Format, Input};
use super::lines::{LINE_LIMIT, Lines, columns_alone, no_rows};
use super::objects::Objects;
use super::records::Records;
use super::tsv::Tsv;
use crate::error::{Error, Result};
use crate::tasks::Row;

/// What names the columns of a file of text.
const HEADER: &str = "a header";

/// An iterator over the rows of a file. After an error it ends; a file without rows is an error.
pub struct Reader {
    path: Arc<Path>,
    rows: Box<dyn Iterator<Item = Result<Row>> + Send>,
    remark: Option<String>,
    /// What of the file says which columns there are, if anything does.
    columns: Option<&'static str>,
    seen: bool,
    /// Whether rows that are bad in themselves are passed.
    passes: bool,
    ended: bool,
}

/// Opens the file at `path` by its extension.
///
/// # Errors
/// [`Error::File`] if it cannot be opened, [`Error::Unsupported`] for an unknown extension, [`Error::Format`] for a bad
/// header.
pub fn open(path: &Path) -> Result<Reader> {
    open_columns(path, &[])
}

/// As [`open`], for a reader who needs some columns alone: of each entry of `columns` one of the names it lists. Other columns of a
/// Parquet file are then not read, if it has all that are needed; the rows of other formats have every field all the same. No
/// entry stands for all columns.
///
/// # Errors
/// As [`open`].
pub fn open_columns(path: &Path, columns: &[Vec<String>]) -> Result<Reader> {
    match Format::of(path)? {
        Format::Parquet => Reader::parquet(path, columns),
        format => Reader::new(Input::open(path)?, format, path, LINE_LIMIT),
    }
}

/// As [`open`], with rows of JSON that keep their text ([`Row::text`]).
///
/// # Errors
/// As [`open`].
pub fn open_with_text(path: &Path) -> Result<Reader> {
    match Format::of(path)? {
        Format::Jsonl => Ok(Reader::with_text(Input::open(path)?, path, LINE_LIMIT)),
        _ => open(path),
    }
}

/// How many rows a file has. Reads all of it; JSON is not parsed.
///
/// # Errors
/// As [`open`]; for CSV and TSV also those of its rows.
pub fn count_rows(path: &Path) -> Result<usize> {
    match Format::of(path)? {
        Format::Jsonl => super::index::count(path),
        #[cfg(feature = "parquet")]
        Format::Parquet => super::parquet::count(super::format::open_file(path)?, path),
        _ => {
            let mut count = 0;
            for row in open(path)? {
                row?;
                count += 1;
            }
            Ok(count)
        }
    }
}

impl Reader {
    /// Rows of any stream; `path` stands in errors only. No row may have more than `limit` bytes.
    ///
    /// # Errors
    /// [`Error::Format`] for a bad CSV or TSV header; [`Error::Unsupported`] for Parquet, which is no stream.
    pub fn new(
        input: impl BufRead + Send + 'static,
        format: Format,
        path: &Path,
        limit: usize,
    ) -> Result<Self> {
        let owned: Arc<Path> = Arc::from(path);
        match format {
            Format::Jsonl => Ok(Self::of(path, Objects::new(Lines::new(input, owned, limit)))),
            Format::Csv => {
                let records = Records::new(input, owned, limit)?;
                let remark = records.remark();
                Ok(Self { remark, columns: Some(HEADER), ..Self::of(path, records) })
            }
            Format::Tsv => {
                let rows = Tsv::new(Lines::new(input, owned, limit))?;
                Ok(Self { columns: Some(HEADER), ..Self::of(path, rows) })
            }
            Format::Parquet => Err(Error::unsupported(
                format!("reading {} as a stream", path.display()),
                "the index of a Parquet file stands at its end",
                "give a file",
            )),
        }
    }

    /// As [`new`](Self::new), of JSON, with rows that keep their text ([`Row::text`]).
    pub fn with_text(input: impl BufRead + Send + 'static, path: &Path, limit: usize) -> Self {
        Self::of(path, Objects::new(Lines::new(input, Arc::from(path), limit)).keeping_text())
    }

    fn of(path: &Path, rows: impl Iterator<Item = Result<Row>> + Send + 'static) -> Self {
        Self {
            path: Arc::from(path),
            rows: Box::new(rows),
            remark: None,
            columns: None,
            seen: false,
            passes: false,
            ended: false,
        }
    }

    #[cfg(feature = "parquet")]
    fn parquet(path: &Path, columns: &[Vec<String>]) -> Result<Self> {
        let file = super::format::open_file(path)?;
        let rows = super::parquet::open(file, path, columns)?;
        Ok(Self { columns: Some("its columns' names"), ..Self::of(path, rows) })
    }

    #[cfg(not(feature = "parquet"))]
    fn parquet(path: &Path, _: &[Vec<String>]) -> Result<Self> {
        Err(Error::unsupported(
            format!("the data file {}", path.display()),
            "this build cannot read Parquet",
            "build with the feature `parquet`, or convert the file to .jsonl",
        ))
    }

    /// The reader going on after a row of JSON that is bad in itself, whose error stands in its place.
    #[must_use]
    pub fn past_bad_rows(mut self) -> Self {
        self.passes = true;
        self
    }

    /// The file that is read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the user should know about how the file is read: the separator of a CSV that is no comma.
    pub fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }
}

impl Iterator for Reader {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.ended {
            return None;
        }
        let row = self.rows.next();
        self.ended = match row {
            Some(Ok(_)) => false,
            Some(Err(_)) => !self.passes,
            None => true,
        };
        if row.is_none() && !self.seen {
            return Some(Err(match self.columns {
                Some(columns) => columns_alone(&self.path, columns),
                None => no_rows(&self.path),
            }));
        }
        self.seen = true;
        row
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reader").field("path", &self.path).finish_non_exhaustive()
    }
}
