//! Rows of CSV: RFC 4180 quotes, a header line, separated by whatever separates the header.
//!
//! The separator is a comma unless the header and the rows after it come out even with a semicolon, a tab or a bar and not with a
//! comma, or a first line `sep=;` names it, as spreadsheets write them.

use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::format::look_ahead;
use super::lines::{BYTE_ORDER_MARK, no_rows, not_utf8, stands_alone, too_long, trim_returns};
use crate::error::{Error, Result};
use crate::tasks::{Row, quote};

/// How much of a file is looked at for its separator and line ends.
const SAMPLE: usize = 1 << 16;
/// Rows that are looked at.
const SAMPLE_ROWS: usize = 50;
/// Separators, the likeliest first.
const DELIMITERS: [u8; 4] = *b",;\t|";

/// The rows of a file.
pub(super) struct Records {
    records: csv::Reader<Metered>,
    record: csv::ByteRecord,
    names: Vec<String>,
    delimiter: char,
    /// Line feeds and carriage returns have changed places.
    swapped: bool,
    /// Carriage returns before a line feed.
    returns: usize,
    path: Arc<Path>,
}

/// Stops where a record grows past the limit: the CSV reader itself would follow an open quote to the end of the file.
struct Metered {
    input: Box<dyn Read + Send>,
    path: Arc<Path>,
    limit: usize,
    since_record: usize,
    ended: bool,
}

/// Put after the last byte of a file. Every record then ends with a line feed, and a quote that is still open swallows
/// the mark, where the CSV reader would take the end of the file for a closing quote.
const END_MARK: &[u8] = b"\n\0";

impl Read for Metered {
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

/// A file whose lines end with carriage returns, read as one whose lines end with line feeds: the CSV reader counts lines by
/// those. Line feeds in it become carriage returns, and are put back in each field.
struct Swapped<R>(R);

impl<R: Read> Read for Swapped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(buffer)?;
        swap(&mut buffer[..read]);
        Ok(read)
    }
}

fn swap(bytes: &mut [u8]) {
    for byte in bytes {
        *byte = match *byte {
            b'\n' => b'\r',
            b'\r' => b'\n',
            other => other,
        };
    }
}

/// What is found out about a file before it is read.
struct Dialect {
    delimiter: u8,
    swapped: bool,
    /// Carriage returns that stand before a line feed.
    returns: usize,
    /// The first line names the delimiter and is no header.
    named: bool,
}

impl Dialect {
    fn of(sample: &[u8]) -> Self {
        let sample = sample.strip_prefix(BYTE_ORDER_MARK).unwrap_or(sample);
        let swapped = ends_with_returns(sample);
        let mut sample = sample.to_vec();
        if swapped {
            swap(&mut sample);
        }
        let first = sample.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let returns = first.iter().rev().take_while(|byte| **byte == b'\r').count().max(1);
        let first: Vec<u8> = first.iter().filter(|byte| !matches!(byte, b'"' | b'\r')).copied().collect();
        if let [s, e, p, b'=', delimiter] = first[..]
            && [s, e, p].eq_ignore_ascii_case(b"sep")
        {
            return Self { delimiter, swapped, returns, named: true };
        }
        let counts = DELIMITERS.map(|delimiter| widths(&sample, delimiter));
        // All rows as wide as the header; or, where some are broken, one at least.
        let even = |rows: &[usize]| rows[0] > 1 && rows.iter().all(|&row| row == rows[0]);
        let once = |rows: &[usize]| rows[0] > 1 && rows[1..].contains(&rows[0]);
        let found = counts.iter().position(|rows| !rows.is_empty() && even(rows));
        let found =
            found.or_else(|| counts.iter().position(|rows| !rows.is_empty() && once(rows))).unwrap_or(0);
        Self { delimiter: DELIMITERS[found], swapped, returns, named: false }
    }
}

/// Whether the first line, quoted text aside, ends with a carriage return and no line feed.
fn ends_with_returns(sample: &[u8]) -> bool {
    let mut quoted = false;
    for (at, byte) in sample.iter().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => return false,
            b'\r' if !quoted => return stands_alone(&sample[at + 1..]),
            _ => {}
        }
    }
    false
}

/// How many columns the header and the rows after it have.
fn widths(sample: &[u8], delimiter: u8) -> Vec<usize> {
    let reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .terminator(csv::Terminator::Any(b'\n'))
        .has_headers(false)
        .flexible(true)
        .from_reader(sample);
    let mut rows: Vec<usize> = reader
        .into_byte_records()
        .take(SAMPLE_ROWS)
        .flatten()
        .filter(|record| !record.as_slice().trim_ascii().is_empty() || record.len() > 1)
        .map(|record| record.len())
        .collect();
    // The last row may be cut where the sample ends.
    if sample.len() >= SAMPLE && rows.len() > 1 && rows.len() < SAMPLE_ROWS {
        rows.pop();
    }
    rows
}

impl Records {
    /// Reads the header.
    pub(super) fn new(input: impl BufRead + Send + 'static, path: Arc<Path>, limit: usize) -> Result<Self> {
        let (sample, input) =
            look_ahead(input, SAMPLE).map_err(|source| Error::file("read", &path, source))?;
        let Dialect { delimiter, swapped, returns, named } = Dialect::of(&sample);
        let input: Box<dyn Read + Send> = match swapped {
            true => Box::new(Swapped(input).chain(END_MARK)),
            false => Box::new(input.chain(END_MARK)),
        };
        let metered = Metered { input, path: path.clone(), limit, since_record: 0, ended: false };
        let records = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            // The carriage return of CRLF is taken off here, so that line numbers count line feeds only.
            .terminator(csv::Terminator::Any(b'\n'))
            .has_headers(false)
            .flexible(true)
            .from_reader(metered);
        let delimiter = char::from(delimiter);
        let record = csv::ByteRecord::new();
        let mut reader = Self { records, record, names: vec![], delimiter, swapped, returns, path };
        if named {
            reader.read()?;
        }
        let Some(line) = reader.read()? else { return Err(no_rows(&reader.path)) };
        let names = reader.texts(line)?;
        reader.names = check_names(names, line, delimiter, &reader.path)?;
        Ok(reader)
    }

    /// What was found out about the file, where that is not what CSV stands for.
    pub(super) fn remark(&self) -> Option<String> {
        let mut remarks = Vec::new();
        if self.delimiter != ',' {
            remarks.push(format!("columns are separated by {:?}", self.delimiter));
        }
        if self.swapped {
            remarks.push("lines end with a carriage return alone".to_owned());
        }
        (!remarks.is_empty()).then(|| format!("{}: {}", self.path.display(), remarks.join(", ")))
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
                let ends = position == last && !self.swapped;
                let mut owned = if ends { trim_returns(bytes, self.returns) } else { bytes }.to_vec();
                if self.swapped {
                    swap(&mut owned);
                }
                String::from_utf8(owned).map_err(|error| {
                    not_utf8(&self.path, line, error.utf8_error().valid_up_to(), error.as_bytes())
                })
            })
            .collect()
    }
}

impl Iterator for Records {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        let line = match self.read() {
            Ok(Some(line)) => line,
            Ok(None) => return None,
            Err(error) => return Some(Err(error)),
        };
        let mut texts = match self.texts(line) {
            Ok(texts) => texts,
            Err(error) => return Some(Err(error)),
        };
        if !trim_empty(&mut texts, self.names.len()) {
            return Some(Err(unequal(&self.names, &texts, self.delimiter, line, &self.path)));
        }
        let fields: Map<String, Value> =
            self.names.iter().cloned().zip(texts.into_iter().map(Value::String)).collect();
        Some(Ok(Row::new(fields, self.path.clone(), line)))
    }
}

/// The names of a header, empty ones at its end left out: spreadsheets write them for columns that were cleared.
pub(super) fn check_names(
    mut names: Vec<String>,
    line: u64,
    delimiter: char,
    path: &Path,
) -> Result<Vec<String>> {
    let unfit = |found: String, advice: &str| {
        let expected = format!("a header line that names each column once, separated by {delimiter:?}");
        Err(Error::format(path, Some(line), expected, found, advice))
    };
    let begins = names.first().map_or("", |name| name.trim_start());
    if begins.starts_with("{\"") || begins.starts_with("[{") {
        return unfit("JSON".to_owned(), "let the file's name end in .jsonl: it holds JSON lines");
    }
    while names.len() > 1 && names.last().is_some_and(String::is_empty) {
        names.pop();
    }
    for (position, name) in names.iter().enumerate() {
        if name.is_empty() && names.len() == 1 {
            return unfit("an empty line".to_owned(), "write the field names into the first line");
        }
        if names[..position].contains(name) {
            let found = match name.as_str() {
                "" => "two columns without a name".to_owned(),
                name => format!("{} twice", quote(name)),
            };
            return unfit(found, "write the field names into the first line");
        }
    }
    Ok(names)
}

/// Leaves out empty fields after the last column; whether there are as many fields as columns then.
pub(super) fn trim_empty<T: AsRef<str>>(fields: &mut Vec<T>, columns: usize) -> bool {
    while fields.len() > columns && fields.last().is_some_and(|field| field.as_ref().is_empty()) {
        fields.pop();
    }
    fields.len() == columns
}

/// The error of a row that has not as many fields as there are columns.
pub(super) fn unequal<T: AsRef<str>>(
    names: &[String],
    fields: &[T],
    delimiter: char,
    line: u64,
    path: &Path,
) -> Error {
    let texts: Vec<&str> = fields.iter().map(AsRef::as_ref).collect();
    let row = texts.join(&delimiter.to_string());
    let expected = format!("{} columns ({})", names.len(), names.join(", "));
    let found = format!("{} in {}", fields.len(), quote(&row));
    let advice = if row.contains('\r') || row.contains('\n') {
        "are the line endings mixed? Let every line end alike, with a line feed or with a carriage return"
            .to_owned()
    } else if delimiter == '\t' {
        "take tabs and line breaks out of the text, or put it in double quotes, those in it doubled"
            .to_owned()
    } else {
        format!("columns are separated by {delimiter:?}: put text with that or line breaks in double quotes")
    };
    Error::format(path, Some(line), expected, found, advice)
}
