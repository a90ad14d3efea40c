//! Where a tensor lies in its file, and of what type its elements are.

use std::ops::Range;

/// The type of a stored element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// The upper half of a 32-bit float.
    Bf16,
    /// IEEE 16-bit float.
    F16,
    /// 64-bit float, which is rounded to 32 bits where it is read.
    F64,
    /// A type that weights are not stored in; kept for the message that refuses it.
    Other(&'static str),
}

/// The name of all that is shorter than f16, of which a file may have several kinds.
pub(super) const SMALL_FLOAT: &str = "a float of 8 bits or fewer";

impl ElementType {
    /// Whether weights that are stored in it were quantized.
    pub(super) fn is_of_quantized(self) -> bool {
        matches!(self, Self::Other("i8" | "u8" | SMALL_FLOAT))
    }

    /// The name as error messages give it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F64 => "f64",
            Self::Other(name) => name,
        }
    }

    /// Bytes of one element, where the type is readable.
    pub(super) fn bytes(self) -> Option<usize> {
        match self {
            Self::F64 => Some(8),
            Self::F32 => Some(4),
            Self::Bf16 | Self::F16 => Some(2),
            Self::Other(_) => None,
        }
    }
}

/// Where one tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) element: ElementType,
    pub(super) shape: Vec<usize>,
    /// Bytes that the tensor may touch. For a contiguous tensor exactly its elements.
    pub(super) bytes: Range<usize>,
    /// Elements from one index to the next along each dimension, where they do not simply follow one another.
    pub(super) strides: Option<Vec<usize>>,
}

/// What a file with these bytes seems to be, when it is not what it should be.
pub(super) fn instead(bytes: &[u8]) -> String {
    let text = bytes.trim_ascii_start();
    if bytes.is_empty() {
        "an empty file".to_owned()
    } else if text.starts_with(b"<!DOCTYPE") || text.starts_with(b"<html") {
        "a web page".to_owned()
    } else if bytes.starts_with(b"PK") {
        "a zip archive".to_owned()
    } else {
        format!("{} other bytes", bytes.len())
    }
}
