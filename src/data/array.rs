//! The entries of a JSON array, one at a time: the array itself is never held.

use std::io::BufRead;

use super::lines::{Lines, too_long};
use crate::error::{Error, Result};

/// Where in the array the reader is.
#[derive(Debug, Default)]
pub(super) struct Elements {
    /// After the first entry.
    begun: bool,
    ended: bool,
}

impl Elements {
    /// Reads the next entry into `buffer`, as it is written; gives back the line that it starts at, or `None` after the last.
    /// The entry's own JSON is not checked. `lines` stand after the opening bracket or after an entry.
    pub(super) fn next<R: BufRead>(
        &mut self,
        lines: &mut Lines<R>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<u64>> {
        buffer.clear();
        buffer.shrink_to(1 << 16);
        if self.ended {
            return Ok(None);
        }
        match (peek(lines)?, self.begun) {
            (Some(b']'), _) => return self.end(lines),
            (Some(b','), true) => lines.input.consume(1),
            (_, false) => {}
            (found, true) => {
                return Err(unfit(lines, "a comma or the closing bracket after an entry", found));
            }
        }
        self.begun = true;
        let first = peek(lines)?;
        if matches!(first, None | Some(b',' | b']')) {
            return Err(unfit(lines, "an entry of the array", first));
        }
        let start = lines.line;
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        loop {
            let block = lines.input.fill_buf().map_err(|source| Error::file("read", &lines.path, source))?;
            if block.is_empty() && depth == 0 && !in_string {
                // The entry is whole, though its array is not: that is said where the next is asked for.
                buffer.truncate(buffer.trim_ascii_end().len());
                return Ok(Some(start));
            }
            if block.is_empty() {
                lines.line = start;
                return Err(unfit(lines, "the end of the entry that starts here", None));
            }
            let mut end = None;
            for (at, &byte) in block.iter().enumerate() {
                lines.line += u64::from(byte == b'\n');
                if in_string {
                    // A backslash that is itself escaped escapes nothing.
                    (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 0 => depth -= 1,
                    b',' | b']' if depth == 0 => {
                        end = Some(at);
                        break;
                    }
                    _ => {}
                }
            }
            let taken = end.unwrap_or(block.len());
            buffer.extend_from_slice(&block[..taken]);
            lines.input.consume(taken);
            if buffer.len() > lines.limit {
                return Err(too_long(&lines.path, Some(start), lines.limit));
            }
            if end.is_some() {
                buffer.truncate(buffer.trim_ascii_end().len());
                return Ok(Some(start));
            }
        }
    }

    /// After the closing bracket nothing may follow.
    fn end<R: BufRead>(&mut self, lines: &mut Lines<R>) -> Result<Option<u64>> {
        lines.input.consume(1);
        self.ended = true;
        match peek(lines)? {
            None => Ok(None),
            found => Err(unfit(lines, "nothing after the array", found)),
        }
    }
}

/// The next byte that is no white space, which stays; `None` at the end of the file.
fn peek<R: BufRead>(lines: &mut Lines<R>) -> Result<Option<u8>> {
    loop {
        let block = lines.input.fill_buf().map_err(|source| Error::file("read", &lines.path, source))?;
        let at = block.iter().position(|byte| !byte.is_ascii_whitespace());
        let blank = at.unwrap_or(block.len());
        lines.line += memchr::memchr_iter(b'\n', &block[..blank]).count() as u64;
        let found = at.map(|at| block[at]);
        let ended = block.is_empty();
        lines.input.consume(blank);
        if found.is_some() || ended {
            return Ok(found);
        }
    }
}

fn unfit<R>(lines: &Lines<R>, expected: &str, found: Option<u8>) -> Error {
    let found = match found {
        Some(byte) if byte.is_ascii_graphic() => format!("`{}`", char::from(byte)),
        Some(byte) => format!("byte 0x{byte:02x}"),
        None => "the end of the file".to_owned(),
    };
    let advice = "one array of objects is read, or one object a line; was the file cut off, or put together from several?";
    Error::format(&lines.path, Some(lines.line), expected, found, advice)
}
