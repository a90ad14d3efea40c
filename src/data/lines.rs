//! Lines of a file of text.
//!
//! A line ends with a line feed, maybe after a carriage return. A file whose first line ends with a carriage return alone, as
//! some spreadsheets write it, has lines that all do.

use std::io::{BufRead, Read as _};
use std::path::Path;
use std::sync::Arc;

use super::format::advice_for;
use crate::error::{Error, Result};
use crate::tasks::quote;

/// Bytes one row may have. A longer one is nearly always a file of another kind, or a quote that never closes.
pub const LINE_LIMIT: usize = 16 << 20;

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
    /// Whether the line that was read last is longer than the limit; others may follow it.
    pub(super) overlong: bool,
    /// Whether the rest of it is still to come.
    rest: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R, path: Arc<Path>, limit: usize) -> Self {
        Self { input, path, limit, line: 0, end: None, returns: 1, overlong: false, rest: false }
    }

    /// Reads the next line into `buffer`, its end included; `false` at the end of the file.
    pub(super) fn next(&mut self, buffer: &mut Vec<u8>) -> Result<bool> {
        buffer.clear();
        // A buffer that one long row has grown is not kept for the rest of the file.
        buffer.shrink_to(1 << 16);
        self.line += 1;
        let most = self.limit as u64 + 2;
        let failed = |source| Error::file("read", &self.path, source);
        if std::mem::take(&mut self.rest) {
            self.input.skip_until(self.end.unwrap_or(b'\n')).map_err(failed)?;
        }
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
        self.overlong = self.trim(buffer).len() > self.limit;
        if self.overlong {
            self.rest = self.end.is_some() && buffer.last() != self.end.as_ref();
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

/// As [`no_rows`], of a file that says what its columns are.
pub(super) fn columns_alone(path: &Path, columns: &str) -> Error {
    let advice = "is the rest of it missing?";
    Error::format(path, None, "at least one row", format!("none: {columns} and nothing after it"), advice)
}
