//! Lines of a file of text, and the JSON objects on them.
//!
//! A line ends with a line feed, maybe behind a carriage return. A file whose first line ends with a carriage return alone, as
//! some spreadsheets write it, has lines that all do.

use std::io::{BufRead, Read as _};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::array::Elements;
use super::format::advice_for;
use super::json;
use crate::error::{Error, Result};
use crate::tasks::{Row, quote};

pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Lines, with their numbers.
pub(super) struct Lines<R> {
    pub(super) input: R,
    pub(super) path: Arc<Path>,
    pub(super) limit: usize,
    /// The number of the line that was read last.
    pub(super) line: u64,
    /// What ends a line; known once the first has ended.
    end: Option<u8>,
    /// Carriage returns that stand before a line feed: one, or two in files that were written through a text mode twice.
    returns: usize,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R, path: Arc<Path>, limit: usize) -> Self {
        Self { input, path, limit, line: 0, end: None, returns: 1 }
    }

    /// Reads the next line into `buffer`, its end included; `false` at the end of the file.
    pub(super) fn next(&mut self, buffer: &mut Vec<u8>) -> Result<bool> {
        buffer.clear();
        // A buffer that one long row has grown is not kept for the rest of the file.
        buffer.shrink_to(1 << 16);
        self.line += 1;
        let most = self.limit as u64 + 2;
        let failed = |source| Error::file("read", &self.path, source);
        match self.end {
            Some(end) => {
                (&mut self.input).take(most).read_until(end, buffer).map_err(failed)?;
            }
            None => self.first(buffer)?,
        }
        if self.line == 1 && buffer.starts_with(BYTE_ORDER_MARK) {
            buffer.drain(..BYTE_ORDER_MARK.len());
            if buffer.is_empty() {
                return Ok(false);
            }
        }
        if self.trim(buffer).len() > self.limit {
            return Err(too_long(&self.path, Some(self.line), self.limit));
        }
        Ok(!buffer.is_empty())
    }

    /// The first line, which says how lines end.
    fn first(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        let failed = |source| Error::file("read", &self.path, source);
        while buffer.len() <= self.limit + 1 {
            let block = self.input.fill_buf().map_err(failed)?;
            if block.is_empty() {
                return Ok(());
            }
            let Some(at) = memchr::memchr2(b'\n', b'\r', block) else {
                buffer.extend_from_slice(block);
                let length = block.len();
                self.input.consume(length);
                continue;
            };
            let end = block[at];
            buffer.extend_from_slice(&block[..=at]);
            self.input.consume(at + 1);
            if end == b'\n' {
                self.end = Some(end);
                let before = buffer.iter().rev().skip(1).take_while(|byte| **byte == b'\r').count();
                self.returns = before.max(1);
                return Ok(());
            }
            if stands_alone(self.input.fill_buf().map_err(failed)?) {
                self.end = Some(b'\r');
                return Ok(());
            }
        }
        self.end = Some(b'\n');
        Ok(())
    }

    /// The line without its end.
    pub(super) fn trim<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        trim_end(line, self.end.unwrap_or(b'\n'), self.returns)
    }
}

/// Whether a carriage return ends a line by itself, before these bytes: no line feed follows it or more of them.
pub(super) fn stands_alone(after: &[u8]) -> bool {
    after.iter().find(|byte| **byte != b'\r') != Some(&b'\n')
}

/// `line` without the byte that ends lines, and without `returns` carriage returns before a line feed at most.
pub(super) fn trim_end(line: &[u8], end: u8, returns: usize) -> &[u8] {
    let line = line.strip_suffix(&[end]).unwrap_or(line);
    if end == b'\n' { trim_returns(line, returns) } else { line }
}

/// `line` without `returns` carriage returns at its end at most.
pub(super) fn trim_returns(mut line: &[u8], returns: usize) -> &[u8] {
    for _ in 0..returns {
        line = line.strip_suffix(b"\r").unwrap_or(line);
    }
    line
}

/// Rows of JSON: one object a line, or one array of objects.
pub(super) struct Objects<R> {
    lines: Lines<R>,
    buffer: Vec<u8>,
    /// Set where the file is an array.
    elements: Option<Elements>,
    keeps_text: bool,
    /// Set where the next object could not be found: there is none behind it.
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
                self.broken = true;
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
        Ok(Value::Object(fields)) => Ok(Row::new(fields, path.clone(), number)),
        Ok(_) => {
            Err(unfit(quote(text), "each row is an object such as {\"sentence\": \"...\", \"label\": 0}"))
        }
        Err(error) => Err(unfit(quote(text), &json::advice(text, &error))),
    }
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

pub(super) fn not_utf8(path: &Path, line: u64, valid_up_to: usize, bytes: &[u8]) -> Error {
    let before = String::from_utf8_lossy(&bytes[..valid_up_to.min(bytes.len())]);
    let found = match bytes.get(valid_up_to) {
        Some(byte) => format!("byte 0x{byte:02x} after {}", quote(&before)),
        None => "other bytes".to_owned(),
    };
    Error::format(path, Some(line), "UTF-8 text", found, advice_for(bytes))
}

pub(super) fn no_rows(path: &Path) -> Error {
    Error::format(path, None, "at least one row", "none: the file is empty", "")
}
