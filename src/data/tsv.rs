//! Rows separated by tabs.
//!
//! Two kinds of such files are in use, and nothing in them says which it is. GLUE's have no quoting: a quotation mark is a letter
//! like any other. Programs that take the format for CSV with another separator (pandas, datasets) put a field in quotes where it
//! holds a quote, a tab or a line break, and double the quotes in it. So a field counts as quoted only if it could not be
//! plain text by accident: it begins and ends with a quote, and every quote between is doubled, of which there is one at
//! least. A line with too few fields is joined with those after it if a quote is open in it and the fields then come out right.

use std::collections::VecDeque;
use std::io::BufRead;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::lines::{Lines, no_rows, not_utf8, too_long};
use super::records::{check_names, trim_empty, unequal};
use crate::error::Result;
use crate::tasks::Row;

/// The rows of a file.
pub(super) struct Tsv<R> {
    lines: Lines<R>,
    /// Lines that were read ahead, their ends included.
    ahead: VecDeque<Line>,
    /// A line's memory, for the next one.
    spare: Vec<u8>,
    names: Vec<String>,
    /// Whether the writer put everything in quotes: it did so with the header.
    all_quoted: bool,
}

/// A line, its end included.
struct Line {
    number: u64,
    bytes: Vec<u8>,
}

impl<R: BufRead> Tsv<R> {
    /// Reads the header.
    pub(super) fn new(lines: Lines<R>) -> Result<Self> {
        let mut tsv = Self { lines, ahead: VecDeque::new(), spare: vec![], names: vec![], all_quoted: false };
        let Some(line) = tsv.next_line()? else { return Err(no_rows(&tsv.lines.path)) };
        let texts: Vec<&str> = tsv.text(&line)?.split('\t').collect();
        let names: Option<Vec<String>> = texts.iter().map(|name| unquoted(name)).collect();
        tsv.all_quoted = names.is_some();
        let names = names.unwrap_or_else(|| texts.iter().map(|&name| name.to_owned()).collect());
        tsv.names = check_names(names, line.number, '\t', &tsv.lines.path)?;
        Ok(tsv)
    }

    /// The next line that is not blank.
    fn next_line(&mut self) -> Result<Option<Line>> {
        loop {
            match self.any_line()? {
                Some(line) if line.is_blank() => self.spare = line.bytes,
                line => return Ok(line),
            }
        }
    }

    fn any_line(&mut self) -> Result<Option<Line>> {
        if let Some(line) = self.ahead.pop_front() {
            return Ok(Some(line));
        }
        let mut bytes = std::mem::take(&mut self.spare);
        Ok(self.lines.next(&mut bytes)?.then_some(Line { number: self.lines.line, bytes }))
    }

    /// The next line that is not blank, which stays.
    fn look_ahead(&mut self) -> Result<Option<&Line>> {
        let mut at = 0;
        while self.ahead.get(at).is_none_or(Line::is_blank) {
            if at == self.ahead.len() {
                let mut bytes = Vec::new();
                if !self.lines.next(&mut bytes)? {
                    return Ok(None);
                }
                self.ahead.push_back(Line { number: self.lines.line, bytes });
            } else {
                at += 1;
            }
        }
        Ok(self.ahead.get(at))
    }

    fn text<'a>(&self, line: &'a Line) -> Result<&'a str> {
        let bytes = self.lines.trim(&line.bytes);
        std::str::from_utf8(bytes)
            .map_err(|error| not_utf8(&self.lines.path, line.number, error.valid_up_to(), bytes))
    }

    /// The fields of the next row and its line; `None` at the end.
    fn fields(&mut self) -> Result<Option<(Vec<String>, u64)>> {
        let Some(line) = self.next_line()? else { return Ok(None) };
        let text = self.text(&line)?;
        let mut fields: Vec<&str> = text.split('\t').collect();
        let whole = trim_empty(&mut fields, self.names.len());
        let opens = |field: &&str| {
            field.starts_with('"') && memchr::memchr_iter(b'"', field.as_bytes()).count() % 2 == 1
        };
        if whole && !fields.last().is_some_and(opens) {
            let fields = fields.into_iter().map(|field| self.plain(field)).collect();
            let number = line.number;
            self.spare = line.bytes;
            return Ok(Some((fields, number)));
        }
        let begins = fields.iter().any(|field| field.starts_with('"'));
        let as_it_is = fields.into_iter().map(str::to_owned).collect::<Vec<_>>();
        if whole && !self.all_quoted {
            // The quote may be a letter: then the next line is a row of its own.
            let width = self.names.len();
            let next = self.look_ahead()?;
            let Some((number, bytes)) = next.map(|next| (next.number, next.bytes.clone())) else {
                return Ok(Some((as_it_is, line.number)));
            };
            let next = Line { number, bytes };
            let mut fields: Vec<&str> = self.text(&next)?.split('\t').collect();
            if trim_empty(&mut fields, width) {
                return Ok(Some((as_it_is, line.number)));
            }
            let unfit = unequal(&self.names, &fields, '\t', next.number, &self.lines.path);
            return self.join(line)?.ok_or(unfit).map(Some);
        }
        let fields: Vec<&str> = as_it_is.iter().map(String::as_str).collect();
        let unfit = unequal(&self.names, &fields, '\t', line.number, &self.lines.path);
        if begins { self.join(line)?.ok_or(unfit).map(Some) } else { Err(unfit) }
    }

    /// The row that begins on `line` and whose quoted fields may go on after it; `None` if there is no such row.
    fn join(&mut self, line: Line) -> Result<Option<(Vec<String>, u64)>> {
        let number = line.number;
        let mut row = line;
        loop {
            // Quotes are doubled, so that a row whose quotes are uneven is not at its end.
            if memchr::memchr_iter(b'"', &row.bytes).count().is_multiple_of(2) {
                let mut fields = split_quoted(self.text(&row)?);
                let whole = fields.as_mut().is_some_and(|fields| trim_empty(fields, self.names.len()));
                return Ok(fields.filter(|_| whole).map(|fields| (fields, number)));
            }
            // Each turn counts the quotes of what was added alone.
            let mut added = Vec::new();
            loop {
                let Some(next) = self.any_line()? else { return Ok(None) };
                let uneven = memchr::memchr_iter(b'"', &next.bytes).count() % 2 == 1;
                added.extend_from_slice(&next.bytes);
                if row.bytes.len() + added.len() > self.lines.limit {
                    return Err(too_long(&self.lines.path, Some(number), self.lines.limit));
                }
                if uneven {
                    break;
                }
            }
            row.bytes.extend_from_slice(&added);
        }
    }

    /// A field of a row that stands on one line.
    fn plain(&self, field: &str) -> String {
        let doubled = |field: &str| {
            field.len() > 3 && memchr::memmem::find(&field.as_bytes()[1..field.len() - 1], b"\"\"").is_some()
        };
        match field.starts_with('"') && (self.all_quoted || doubled(field)) {
            true => unquoted(field).unwrap_or_else(|| field.to_owned()),
            false => field.to_owned(),
        }
    }
}

impl Line {
    /// A line of white space is no row; one of tabs is a row of empty fields.
    fn is_blank(&self) -> bool {
        self.bytes.trim_ascii().is_empty() && !self.bytes.contains(&b'\t')
    }
}

impl<R: BufRead> Iterator for Tsv<R> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        let (fields, line) = match self.fields() {
            Ok(row) => row?,
            Err(error) => return Some(Err(error)),
        };
        let fields: Map<String, Value> =
            self.names.iter().cloned().zip(fields.into_iter().map(Value::String)).collect();
        Some(Ok(Row::new(fields, Arc::clone(&self.lines.path), line)))
    }
}

/// What is in the quotes of a field that is all in quotes, those between doubled; else `None`.
fn unquoted(field: &str) -> Option<String> {
    let inner = field.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('"') {
        text.push_str(&rest[..=at]);
        rest = rest[at + 1..].strip_prefix('"')?;
    }
    text.push_str(rest);
    Some(text)
}

/// The fields of a row, some of them in quotes; `None` if a quote stands where none can.
fn split_quoted(row: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = row;
    loop {
        // The field ends at the first tab that is not inside its quotes.
        let (mut end, mut inside) = (rest.len(), false);
        for (at, byte) in rest.bytes().enumerate() {
            match byte {
                b'"' if inside || rest.starts_with('"') => inside = !inside,
                b'"' => return None,
                b'\t' if !inside => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        let field = &rest[..end];
        fields.push(if field.starts_with('"') { unquoted(field)? } else { field.to_owned() });
        match rest.get(end + 1..) {
            Some(more) => rest = more,
            None => return Some(fields),
        }
    }
}
