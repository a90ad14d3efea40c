//! Rows of a JSONL, CSV, TSV or Parquet file, one at a time; memory does not grow with the file.
//!
//! JSONL: one object a line; blank lines are skipped. CSV: a header line, RFC 4180 quotes. TSV: a header line, no quotes,
//! as GLUE ships it, where a quotation mark is a letter like any other. All are UTF-8; a byte order mark is skipped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::tasks::{Row, quote};

/// Bytes one row may have. A longer one is nearly always a file of another kind, or a quote that never closes.
pub const LINE_LIMIT: usize = 16 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A format of rows, told by the file's extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated, with a header line.
    Csv,
    /// Tab-separated, with a header line, without quoting.
    Tsv,
    /// Columns in pages; needs the feature `parquet`.
    Parquet,
}

impl Format {
    /// Every format, in the order in which a folder is searched.
    pub const ALL: [Self; 4] = [Self::Jsonl, Self::Csv, Self::Tsv, Self::Parquet];

    /// The extension, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Parquet => "parquet",
        }
    }

    /// The format of a file by its extension, in any case.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other extension.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        Self::ALL.into_iter().find(|format| extension.as_deref() == Some(format.extension())).ok_or_else(
            || {
                Error::unsupported(
                    format!("the data file {}", path.display()),
                    match extension {
                        Some(extension) => format!("it ends in .{extension}"),
                        None => "it has no extension".to_owned(),
                    },
                    "expected .jsonl, .csv, .tsv or .parquet",
                )
            },
        )
    }
}

/// An iterator over the rows of a file. After an error it ends; a file without rows is an error.
pub struct Reader {
    path: Arc<Path>,
    rows: Box<dyn Iterator<Item = Result<Row>> + Send>,
    seen: bool,
    ended: bool,
}

/// Opens the file at `path` by its extension.
///
/// # Errors
/// [`Error::File`] if it cannot be opened, [`Error::Unsupported`] for an unknown extension, [`Error::Format`] for a bad
/// header.
pub fn open(path: &Path) -> Result<Reader> {
    let format = Format::of(path)?;
    let file = File::open(path).map_err(|source| Error::file("open", path, source))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Error::setting("data file", "a file", format!("the folder {}", path.display()), ""));
    }
    if format == Format::Parquet {
        return Reader::parquet(file, path);
    }
    Reader::new(BufReader::with_capacity(1 << 16, file), format, path, LINE_LIMIT)
}

/// How many rows a file has. Reads all of it; JSONL lines are not parsed.
///
/// # Errors
/// As [`open`]; for CSV and TSV also those of its rows.
pub fn count_rows(path: &Path) -> Result<usize> {
    match Format::of(path)? {
        Format::Jsonl => super::index::count(path),
        #[cfg(feature = "parquet")]
        Format::Parquet => {
            let file = File::open(path).map_err(|source| Error::file("open", path, source))?;
            super::parquet::count(file, path)
        }
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
        let path: Arc<Path> = Arc::from(path);
        let rows: Box<dyn Iterator<Item = Result<Row>> + Send> = match format {
            Format::Jsonl => {
                Box::new(Lines { input, path: path.clone(), line: 0, limit, buffer: Vec::new() })
            }
            Format::Csv | Format::Tsv => Box::new(Records::new(input, format, path.clone(), limit)?),
            Format::Parquet => {
                return Err(Error::unsupported(
                    format!("reading {} as a stream", path.display()),
                    "the index of a Parquet file stands at its end",
                    "give a file",
                ));
            }
        };
        Ok(Self { path, rows, seen: false, ended: false })
    }

    #[cfg(feature = "parquet")]
    fn parquet(file: File, path: &Path) -> Result<Self> {
        let rows = Box::new(super::parquet::open(file, path)?);
        Ok(Self { path: Arc::from(path), rows, seen: false, ended: false })
    }

    #[cfg(not(feature = "parquet"))]
    fn parquet(_: File, path: &Path) -> Result<Self> {
        Err(Error::unsupported(
            format!("the data file {}", path.display()),
            "this build cannot read Parquet",
            "build with the feature `parquet`, or convert the file to .jsonl",
        ))
    }

    /// The file that is read.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Iterator for Reader {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.ended {
            return None;
        }
        let row = self.rows.next();
        self.ended = !matches!(row, Some(Ok(_)));
        if row.is_none() && !self.seen {
            return Some(Err(no_rows(&self.path)));
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

pub(super) fn no_rows(path: &Path) -> Error {
    Error::format(path, None, "at least one row", "none: the file is empty", "")
}

struct Lines<R> {
    input: R,
    path: Arc<Path>,
    line: u64,
    limit: usize,
    buffer: Vec<u8>,
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        loop {
            self.buffer.clear();
            // A buffer that one long row has grown is not kept for the rest of the file.
            self.buffer.shrink_to(1 << 16);
            self.line += 1;
            let read = (&mut self.input).take(self.limit as u64 + 2).read_until(b'\n', &mut self.buffer);
            match read {
                Err(source) => return Some(Err(Error::file("read", &self.path, source))),
                Ok(0) => return None,
                Ok(_) => {}
            }
            let line = trim_end(&self.buffer);
            if line.len() > self.limit {
                return Some(Err(too_long(&self.path, Some(self.line), self.limit)));
            }
            let line = if self.line == 1 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
            if !line.trim_ascii().is_empty() {
                return Some(parse_line(line, &self.path, self.line));
            }
        }
    }
}

/// One line of JSONL.
pub(super) fn parse_line(line: &[u8], path: &Arc<Path>, number: u64) -> Result<Row> {
    let text =
        std::str::from_utf8(line).map_err(|error| not_utf8(path, number, error.valid_up_to(), line))?;
    let unfit = |found: String, advice: &str| {
        Error::format(path, Some(number), "one JSON object", found, advice.to_owned())
    };
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(fields)) => Ok(Row::new(fields, path.clone(), number)),
        Ok(_) => {
            Err(unfit(quote(text), "each line is an object such as {\"sentence\": \"...\", \"label\": 0}"))
        }
        Err(error) => {
            // serde_json counts lines within the text it got, which is always one.
            let message = error.to_string();
            let reason = message.split(" at line ").next().unwrap_or_default();
            Err(unfit(quote(text), &format!("{reason} at column {}", error.column())))
        }
    }
}

pub(super) fn trim_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

pub(super) fn too_long(path: &Path, line: Option<u64>, limit: usize) -> Error {
    Error::format(
        path,
        line,
        format!("a row of at most {limit} bytes"),
        "a longer one",
        "is a line break or a closing quote missing?",
    )
}

fn not_utf8(path: &Path, line: u64, valid_up_to: usize, bytes: &[u8]) -> Error {
    let advice = match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "the file looks like UTF-16; convert it to UTF-8",
        _ => "convert the file to UTF-8",
    };
    let before = String::from_utf8_lossy(&bytes[..valid_up_to.min(bytes.len())]);
    let found = match bytes.get(valid_up_to) {
        Some(byte) => format!("byte 0x{byte:02x} after {}", quote(&before)),
        None => "other bytes".to_owned(),
    };
    Error::format(path, Some(line), "UTF-8 text", found, advice)
}

struct Records<R> {
    records: csv::Reader<Metered<R>>,
    record: csv::ByteRecord,
    names: Vec<String>,
    delimiter: char,
    path: Arc<Path>,
}

/// Stops where a record grows past the limit: the CSV reader itself would follow an open quote to the end of the file.
struct Metered<R> {
    input: std::io::Chain<R, &'static [u8]>,
    path: Arc<Path>,
    limit: usize,
    since_record: usize,
    ended: bool,
}

/// Put after the last byte of a file. Every record then ends with a line feed, and a quote that is still open swallows
/// the mark, where the CSV reader would take the end of the file for a closing quote.
const END_MARK: &[u8] = b"\n\0";

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // What was read ahead with the record before belongs to this one, hence the buffer's length of tolerance.
        if self.since_record > self.limit.saturating_add(buffer.len()) {
            return Err(std::io::Error::other(too_long(&self.path, None, self.limit)));
        }
        let read = self.input.read(buffer)?;
        self.since_record += read;
        self.ended = read == 0;
        Ok(read)
    }
}

impl<R: Read> Records<R> {
    fn new(input: R, format: Format, path: Arc<Path>, limit: usize) -> Result<Self> {
        let delimiter = if format == Format::Tsv { '\t' } else { ',' };
        let metered = Metered {
            input: input.chain(END_MARK),
            path: path.clone(),
            limit,
            since_record: 0,
            ended: false,
        };
        let records = csv::ReaderBuilder::new()
            .delimiter(delimiter as u8)
            .quoting(format == Format::Csv)
            // The carriage return of CRLF is taken off here, so that line numbers count line feeds only.
            .terminator(csv::Terminator::Any(b'\n'))
            .has_headers(false)
            .flexible(true)
            .from_reader(metered);
        let mut reader = Self { records, record: csv::ByteRecord::new(), names: vec![], delimiter, path };
        let Some(line) = reader.read()? else { return Err(no_rows(&reader.path)) };
        let names = reader.texts(line)?;
        let unfit = |found: String| {
            let expected = format!("a header line that names each column once, separated by {delimiter:?}");
            Err(Error::format(
                &reader.path,
                Some(line),
                expected,
                found,
                "write the field names into the first line",
            ))
        };
        for (position, name) in names.iter().enumerate() {
            if name.is_empty() && names.len() == 1 {
                return unfit("an empty line".to_owned());
            }
            if names[..position].contains(name) {
                return unfit(format!("{} twice", quote(name)));
            }
        }
        reader.names = names;
        Ok(reader)
    }

    /// Reads the next record that is no blank line, and says at which line it starts.
    fn read(&mut self) -> Result<Option<u64>> {
        loop {
            let start = self.records.position().line();
            match self.records.read_byte_record(&mut self.record) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => return Err(self.failure(error, start)),
            }
            let end = self.records.position().line();
            let metered = self.records.get_mut();
            metered.since_record = 0;
            // The reader asks for more before it ends a record without a line feed: only the mark's, or a swallowed one.
            let at_end = metered.ended;
            if at_end && self.record.as_slice() == &END_MARK[1..] {
                return Ok(None);
            }
            let breaks = memchr::memchr_iter(b'\n', self.record.as_slice()).count() as u64;
            if at_end {
                return Err(Error::format(
                    &self.path,
                    Some(end.saturating_sub(breaks).max(1)),
                    "a closing quote in the row that starts here",
                    "the end of the file",
                    "a quote inside quoted text is written twice",
                ));
            }
            let line = end.saturating_sub(breaks + 1).max(1);
            if self.record.as_slice().len() > self.records.get_ref().limit {
                return Err(too_long(&self.path, Some(line), self.records.get_ref().limit));
            }
            if !(self.record.len() <= 1 && self.record.as_slice().trim_ascii().is_empty()) {
                return Ok(Some(line));
            }
        }
    }

    fn failure(&self, error: csv::Error, line: u64) -> Error {
        match error.into_kind() {
            csv::ErrorKind::Io(source) if source.get_ref().is_some_and(|inner| inner.is::<Error>()) => {
                too_long(&self.path, Some(line), self.records.get_ref().limit)
            }
            csv::ErrorKind::Io(source) => Error::file("read", &self.path, source),
            other => Error::format(&self.path, Some(line), "a record", quote(&format!("{other:?}")), ""),
        }
    }

    fn texts(&self, line: u64) -> Result<Vec<String>> {
        let last = self.record.len().saturating_sub(1);
        self.record
            .iter()
            .enumerate()
            .map(|(position, bytes)| {
                let bytes = if position == last { bytes.strip_suffix(b"\r").unwrap_or(bytes) } else { bytes };
                std::str::from_utf8(bytes)
                    .map(str::to_owned)
                    .map_err(|error| not_utf8(&self.path, line, error.valid_up_to(), bytes))
            })
            .collect()
    }
}

impl<R: Read> Iterator for Records<R> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        let line = match self.read() {
            Ok(Some(line)) => line,
            Ok(None) => return None,
            Err(error) => return Some(Err(error)),
        };
        let texts = match self.texts(line) {
            Ok(texts) => texts,
            Err(error) => return Some(Err(error)),
        };
        if texts.len() != self.names.len() {
            let expected = format!("{} columns ({})", self.names.len(), self.names.join(", "));
            let found = format!("{} in {}", texts.len(), quote(&texts.join(&self.delimiter.to_string())));
            let advice = match self.delimiter {
                ',' => "put text with commas or line breaks in double quotes",
                _ => "take tabs and line breaks out of the text",
            };
            return Some(Err(Error::format(&self.path, Some(line), expected, found, advice)));
        }
        let fields: Map<String, Value> =
            self.names.iter().cloned().zip(texts.into_iter().map(Value::String)).collect();
        Some(Ok(Row::new(fields, self.path.clone(), line)))
    }
}
