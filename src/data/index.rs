//! Where each row of a JSONL file starts, so that rows are read in any order without holding the file: eight bytes a row.

use std::fs::File;
use std::io::{BufRead, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use super::format::{Format, Input};
use super::lines::{BYTE_ORDER_MARK, LINE_LIMIT, Lines, no_rows, stands_alone, too_long, trim_end};
use super::objects::{Objects, parse_object};
use crate::error::{Error, Result};
use crate::tasks::Row;

const BLOCK: usize = 1 << 20;
/// Offsets in one allocation. A single growing vector would for a moment hold its content three times over.
const CHUNK: usize = 1 << 16;

/// The offsets of the rows of one JSONL file. Blank lines are no rows.
#[derive(Debug)]
pub struct RowIndex {
    path: Arc<Path>,
    file: File,
    chunks: Vec<Box<[u64]>>,
    last: Vec<u64>,
    end: u64,
    /// What ends a line.
    mark: u8,
}

impl RowIndex {
    /// Scans the file at `path` once for line breaks; nothing is parsed.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Unsupported`] if it is not JSONL, [`Error::Format`] if it has no
    /// rows or one is too long.
    pub fn build(path: &Path) -> Result<Self> {
        let unfit = |reason: &str, advice: &str| {
            Err(Error::unsupported(format!("an index of {}", path.display()), reason, advice))
        };
        if Format::of(path)? != Format::Jsonl {
            return unfit("only lines of JSONL are rows by themselves", "convert the file to .jsonl");
        }
        let Input::Plain(mut input) = Input::with_capacity(BLOCK, path)? else {
            return unfit("rows are found by their place in the file", "decompress it first");
        };
        let Some(mark) = line_end(input.fill_buf().map_err(|source| Error::file("read", path, source))?)
        else {
            return unfit("it is one array, whose entries are no lines", "write one object a line");
        };
        let mut chunks = Vec::new();
        let mut last = Vec::with_capacity(CHUNK);
        let end = scan(path, &mut input, mark, |start| {
            last.push(start);
            if last.len() == CHUNK {
                chunks.push(std::mem::replace(&mut last, Vec::with_capacity(CHUNK)).into_boxed_slice());
            }
        })?;
        Ok(Self { path: Arc::from(path), file: input.into_inner(), chunks, last, end, mark })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.chunks.len() * CHUNK + self.last.len()
    }

    /// Never true: a file without rows is an error.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads row `index`, counted from 0. The line in errors counts rows, so blank lines before it are left out.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Format`] if it is no JSON object, [`Error::Setting`] if there is no
    /// such row.
    pub fn row(&mut self, index: usize) -> Result<Row> {
        let start = self
            .offset(index)
            .ok_or_else(|| Error::setting("row", format!("below {}", self.len()), index.to_string(), ""))?;
        let end = self.offset(index + 1).unwrap_or(self.end);
        let mut line = vec![0; end.saturating_sub(start) as usize];
        self.file
            .seek(SeekFrom::Start(start))
            .and_then(|_| self.file.read_exact(&mut line))
            .map_err(|source| Error::file("read", &*self.path, source))?;
        // Blank lines after the row lie before the next row's offset.
        let line = line.split(|byte| *byte == self.mark).next().unwrap_or_default();
        let line = trim_end(line, self.mark, 1);
        let line = if start == 0 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
        parse_object(line, &self.path, index as u64 + 1)
    }

    fn offset(&self, index: usize) -> Option<u64> {
        match self.chunks.get(index / CHUNK) {
            Some(chunk) => chunk.get(index % CHUNK).copied(),
            None => self.last.get(index.checked_sub(self.chunks.len() * CHUNK)?).copied(),
        }
    }
}

/// Number of rows of the JSON file at `path`, none of them parsed.
pub(super) fn count(path: &Path) -> Result<usize> {
    let mut input = Input::with_capacity(BLOCK, path)?;
    let start = input.fill_buf().map_err(|source| Error::file("read", path, source))?;
    let mut rows = 0;
    match line_end(start) {
        Some(mark) => {
            scan(path, &mut input, mark, |_| rows += 1)?;
        }
        None => rows = Objects::new(Lines::new(input, Arc::from(path), LINE_LIMIT)).count()?,
    }
    if rows == 0 { Err(no_rows(path)) } else { Ok(rows) }
}

/// What ends the lines of a file that begins so; `None` if it is an array.
fn line_end(start: &[u8]) -> Option<u8> {
    let text = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start);
    if text.trim_ascii_start().first() == Some(&b'[') {
        return None;
    }
    let end = memchr::memchr2(b'\n', b'\r', text);
    let alone = end.is_some_and(|at| text[at] == b'\r' && stands_alone(&text[at + 1..]));
    Some(if alone { b'\r' } else { b'\n' })
}

/// Calls `row` with the offset of every line that is not blank; gives back the length of the file. Lines end with `mark`.
fn scan(path: &Path, input: &mut impl BufRead, mark: u8, mut row: impl FnMut(u64)) -> Result<u64> {
    let fail = |source| Error::file("read", path, source);
    let (mut position, mut start, mut line) = (0_u64, 0_u64, 1_u64);
    let (mut blank, mut rows) = (true, 0_u64);
    loop {
        let block = input.fill_buf().map_err(fail)?;
        // A byte order mark is no text.
        let mut from = if position == 0 && block.starts_with(BYTE_ORDER_MARK) { 3 } else { 0 };
        // The end of a block is no end of a line, but for the last, which is empty.
        let ends = memchr::memchr_iter(mark, block).chain([block.len()]);
        for end in ends {
            blank = blank && block[from..end].trim_ascii().is_empty();
            if position + end as u64 - start > LINE_LIMIT as u64 + 1 {
                return Err(too_long(path, Some(line), LINE_LIMIT));
            }
            if end < block.len() || block.is_empty() {
                if !blank {
                    row(start);
                    rows += 1;
                }
                from = end + 1;
                start = position + from as u64;
                (blank, line) = (true, line + 1);
            }
        }
        let length = block.len();
        if length == 0 {
            break;
        }
        position += length as u64;
        input.consume(length);
    }
    if rows == 0 {
        return Err(no_rows(path));
    }
    Ok(position)
}
