//! The JSON objects of a file: one a line, or the entries of one array.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::array::Elements;
use super::json;
use super::lines::{BYTE_ORDER_MARK, Lines, not_utf8};
use crate::error::{Error, Result};
use crate::tasks::{Row, quote};

/// Rows of JSON: one object a line, or one array of objects.
pub(super) struct Objects<R> {
    lines: Lines<R>,
    buffer: Vec<u8>,
    /// Set where the file is an array.
    elements: Option<Elements>,
    keeps_text: bool,
    /// Set where the next object could not be found: there is none after it.
    broken: bool,
}

impl<R: BufRead> Objects<R> {
    pub(super) fn new(lines: Lines<R>) -> Self {
        Self { lines, buffer: Vec::new(), elements: None, keeps_text: false, broken: false }
    }

    /// Rows that keep their text.
    pub(super) fn keeping_text(mut self) -> Self {
        self.keeps_text = true;
        self
    }

    /// Moves on to the next object; gives back its line, or `None` at the end.
    fn advance(&mut self) -> Result<Option<u64>> {
        if self.lines.line == 0 && self.elements.is_none() {
            let failed = |source| Error::file("read", &self.lines.path, source);
            let start = self.lines.input.fill_buf().map_err(failed)?;
            let text = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start).trim_ascii_start();
            if text.first() == Some(&b'[') {
                let before = start.len() - text.len() + 1;
                self.lines.line = 1 + memchr::memchr_iter(b'\n', &start[..before]).count() as u64;
                self.lines.input.consume(before);
                self.elements = Some(Elements::default());
            }
        }
        if let Some(elements) = &mut self.elements {
            return elements.next(&mut self.lines, &mut self.buffer);
        }
        while self.lines.next(&mut self.buffer)? {
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(Some(self.lines.line));
            }
        }
        Ok(None)
    }

    /// How many objects there are; none of them is parsed.
    pub(super) fn count(mut self) -> Result<usize> {
        let mut count = 0;
        while self.advance()?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}

impl<R: BufRead> Iterator for Objects<R> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.broken {
            return None;
        }
        let line = match self.advance() {
            Ok(line) => line?,
            Err(error) => {
                self.broken = self.elements.is_some() || !self.lines.overlong;
                return Some(Err(error));
            }
        };
        let text = if self.elements.is_some() { &self.buffer } else { self.lines.trim(&self.buffer) };
        let row = parse_object(text, &self.lines.path, line);
        let kept = if self.keeps_text { std::str::from_utf8(text).ok() } else { None };
        Some(row.map(|row| match kept {
            Some(text) => row.with_text(text),
            None => row,
        }))
    }
}

/// One object of JSON.
pub(super) fn parse_object(line: &[u8], path: &Arc<Path>, number: u64) -> Result<Row> {
    let text =
        std::str::from_utf8(line).map_err(|error| not_utf8(path, number, error.valid_up_to(), line))?;
    let unfit = |found: String, advice: &str| {
        Error::format(path, Some(number), "one JSON object", found, advice.to_owned())
    };
    match json::parse(text) {
        Ok(Value::Object(fields)) if number == 1 && is_data_frame(&fields) => Err(unfit(
            "all rows as one object, as pandas' to_json writes them".to_owned(),
            "save them with to_json(orient=\"records\", lines=True)",
        )),
        Ok(Value::Object(fields)) => Ok(Row::new(fields, path.clone(), number)),
        Ok(_) => {
            Err(unfit(quote(text), "each row is an object such as {\"sentence\": \"...\", \"label\": 0}"))
        }
        Err(error) => {
            // The file's first line tells what it is.
            let other = if number == 1 { instead(text) } else { None };
            Err(unfit(quote(text), other.unwrap_or(&json::advice(text, &error))))
        }
    }
}

/// Whether `fields` are no row but a table: pandas' to_json without `orient` makes an object of each column, whose keys are the
/// numbers of the rows, and with `split` or `index` similar ones.
fn is_data_frame(fields: &Map<String, Value>) -> bool {
    let is_numbered = |value: &Value| match value {
        Value::Object(rows) => !rows.is_empty() && rows.keys().all(|key| key.parse::<u64>().is_ok()),
        _ => false,
    };
    let is_split =
        fields.len() == 3 && ["columns", "index", "data"].iter().all(|key| fields.contains_key(*key));
    let is_by_row =
        fields.keys().all(|key| key.parse::<u64>().is_ok()) && fields.values().all(Value::is_object);
    !fields.is_empty() && (is_split || is_by_row || fields.values().all(is_numbered))
}

/// What to do about a file that begins with this line and so holds no JSON lines, if it is plain what it holds.
fn instead(line: &str) -> Option<&'static str> {
    if line.trim_start().starts_with(['{', '[', '"']) {
        return None;
    }
    if line.contains('\t') {
        return Some(
            "this is no JSON line, but like a header of columns between tabs: such a file's name ends in .tsv",
        );
    }
    line.contains([',', ';', '|'])
        .then_some("this is no JSON line, but like the header of a CSV: such a file's name ends in .csv")
}
