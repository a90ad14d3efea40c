//! Prompts as NumPy saves an array, which is how Google's prompt-tuning code releases them. Read only.
//!
//! The format is a magic, a header that is a Python dictionary literal with three keys, and the elements. The crates that
//! read it bring a parser of all Python literals; three keys need less.

use std::path::Path;

use super::matrix::Matrix;
use crate::error::{Error, Result};
use crate::files::refuse_lfs_pointer;
use crate::pretrained::small_file;

const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes of an array at most: a prompt of 100,000 rows as wide as the largest T5, in double precision.
const MAX_BYTES: u64 = 1 << 30;
/// The longest header; NumPy's own has 128 bytes.
const HEADER_BYTES: usize = 1 << 16;

/// Reads an array of two dimensions; those of length 1 before them are dropped.
///
/// # Errors
/// [`Error::File`] if it cannot be read; [`Error::Format`] if it is no `.npy` file or one of other numbers or dimensions.
pub(super) fn read(path: &Path) -> Result<Matrix> {
    parse(path, &small_file(path, MAX_BYTES)?)
}

/// As [`read`], from bytes; `path` stands in errors.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Matrix> {
    refuse_lfs_pointer(path, bytes)?;
    let broken = |expected: &str, found: String| {
        let advice = "save the prompt with numpy.save(file, prompt.astype('float32'))";
        Error::format(path, None, expected, found, advice)
    };
    let damaged = |found: &str| broken("an array that numpy.save wrote", found.to_owned());
    let version = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("another kind of file"))?;
    let (length, rest) = match version {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        _ => return Err(damaged("a header of another version, or the end of the file")),
    };
    let (header, data) = rest
        .split_at_checked(length)
        .filter(|_| length <= HEADER_BYTES)
        .ok_or_else(|| damaged("a header longer than the file"))?;
    let header = std::str::from_utf8(header).map_err(|_| damaged("a header that is no text"))?;
    let value = |key: &str| {
        let (_, after) = header.split_once(&format!("'{key}':"))?;
        Some(after.trim_start())
    };
    let text = value("descr").and_then(|after| after.strip_prefix('\'')?.split('\'').next());
    let element = text.ok_or_else(|| broken("plain numbers", "an array of records".to_owned()))?;
    let columns_first = value("fortran_order").is_some_and(|after| after.starts_with("True"));
    let shape = value("shape").and_then(|after| after.strip_prefix('(')?.split(')').next());
    let shape: Vec<usize> = shape
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| size.parse().map_err(|_| damaged("a shape that is not numbers")))
        .collect::<Result<_>>()?;
    let unfit = || broken("two dimensions, length and width", format!("shape {shape:?}"));
    let (leading, &[rows, columns]) = shape.split_last_chunk::<2>().ok_or_else(unfit)?;
    if leading.iter().any(|&size| size != 1) {
        return Err(unfit());
    }
    let read: fn(&[u8]) -> f32 = match element {
        "<f4" => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        ">f4" => |b| f32::from_be_bytes([b[0], b[1], b[2], b[3]]),
        "<f2" => |b| half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
        ">f2" => |b| half::f16::from_be_bytes([b[0], b[1]]).to_f32(),
        "<f8" => |b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
        ">f8" => |b| f64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
        other => {
            let found =
                format!("elements of type {}", other.chars().take(20).collect::<String>().escape_debug());
            return Err(broken("floats of 2, 4 or 8 bytes", found));
        }
    };
    // The last character of those above is the width, a digit.
    let width = usize::from(element.as_bytes()[2] - b'0');
    let expected = rows.checked_mul(columns).and_then(|count| count.checked_mul(width));
    if expected != Some(data.len()) {
        return Err(damaged(&format!("{} bytes for {rows} x {columns} elements of {width}", data.len())));
    }
    let mut values: Vec<f32> = data.chunks_exact(width).map(read).collect();
    if columns_first {
        values = (0..rows * columns).map(|at| values[at % columns * rows + at / columns]).collect();
    }
    Ok(Matrix { values, rows, columns })
}
