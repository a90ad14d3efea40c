//! What a file of rows is, by its name and by its first bytes.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::files::{POINTER_BYTES, refuse_lfs_pointer, refuse_stream};

/// Bytes read at a time.
const BLOCK: usize = 1 << 16;
const GZIP: &[u8] = &[0x1f, 0x8b];

/// What is accepted, for messages.
pub(super) const EXTENSIONS: &str = ".jsonl, .json, .csv, .tsv or .parquet";

/// A format of rows, told by the file's extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// One JSON object a line, or one array of objects: `.jsonl`, `.ndjson`, `.json`.
    Jsonl,
    /// Separated by commas, semicolons, bars or tabs, with a header line.
    Csv,
    /// Separated by tabs, with a header line.
    Tsv,
    /// Columns in pages; needs the feature `parquet`.
    Parquet,
}

impl Format {
    /// Every format, in the order in which a folder is searched.
    pub const ALL: [Self; 4] = [Self::Jsonl, Self::Csv, Self::Tsv, Self::Parquet];

    /// The extension, without the dot.
    pub fn extension(self) -> &'static str {
        self.extensions()[0]
    }

    /// Every extension, without the dot; that of [`extension`](Self::extension) first.
    pub fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Jsonl => &["jsonl", "ndjson", "json"],
            Self::Csv => &["csv"],
            Self::Tsv => &["tsv"],
            Self::Parquet => &["parquet"],
        }
    }

    /// The format of a file by its extension, in any case; a `.gz` after it does not count.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other extension, and for a compressed Parquet file, which has to be read from its end;
    /// [`Error::Setting`] for a folder.
    pub fn of(path: &Path) -> Result<Self> {
        let (_, extension, compressed) = parts(path);
        let format = Self::ALL.into_iter().find(|format| format.extensions().contains(&extension.as_str()));
        let unfit = |reason: String, advice: String| {
            Err(Error::unsupported(format!("the data file {}", path.display()), reason, advice))
        };
        match format {
            Some(Self::Parquet) if compressed => unfit(
                "the index of a Parquet file stands at its end".to_owned(),
                "decompress it first: its columns are compressed already".to_owned(),
            ),
            Some(format) => Ok(format),
            None if ["zip", "zst", "bz2", "xz", "7z", "tar", "tgz", "rar"].contains(&extension.as_str()) => {
                unfit(
                    format!("it ends in .{extension}"),
                    format!("decompress it first: expected {EXTENSIONS}"),
                )
            }
            None if path.is_dir() => Err(folder(path)),
            None if extension.is_empty() => {
                unfit("it has no extension".to_owned(), format!("expected {EXTENSIONS}"))
            }
            None => unfit(format!("it ends in .{extension}"), format!("expected {EXTENSIONS}")),
        }
    }
}

/// A file's name without its extensions, its extension without the dot and in lower case, and whether `.gz` follows it.
pub(super) fn parts(path: &Path) -> (String, String, bool) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_gz = |name: &str| {
        name.len() > 3
            && name.is_char_boundary(name.len() - 3)
            && name[name.len() - 3..].eq_ignore_ascii_case(".gz")
    };
    let compressed = is_gz(&name);
    let name = if compressed { &name[..name.len() - 3] } else { &name };
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => {
            (stem.to_owned(), extension.to_lowercase(), compressed)
        }
        _ => (name.to_owned(), String::new(), compressed),
    }
}

/// What is said where the data file is a folder.
fn folder(path: &Path) -> Error {
    Error::setting("data file", "a file", format!("the folder {}", path.display()), "")
}

/// The bytes of a file of text: as they stand, or decompressed.
pub(super) enum Input {
    Plain(BufReader<File>),
    Gzip(Box<BufReader<MultiGzDecoder<BufReader<File>>>>),
}

impl Input {
    /// Opens the file at `path`, whichever way its name says it is compressed.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Setting`] if it is a folder, [`Error::Format`] for a pointer of Git LFS.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::with_capacity(BLOCK, path)
    }

    /// As [`open`](Self::open), reading `block` bytes at a time.
    ///
    /// # Errors
    /// As there.
    pub(super) fn with_capacity(block: usize, path: &Path) -> Result<Self> {
        let mut file = BufReader::with_capacity(block, open_file(path)?);
        let start = file.fill_buf().map_err(|source| Error::file("read", path, source))?;
        if start.starts_with(GZIP) {
            let plain = BufReader::with_capacity(block, MultiGzDecoder::new(file));
            return Ok(Self::Gzip(Box::new(plain)));
        }
        Ok(Self::Plain(file))
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(input) => input.read(buffer),
        }
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        match self {
            Self::Plain(input) => input.fill_buf(),
            Self::Gzip(input) => input.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        match self {
            Self::Plain(input) => input.consume(amount),
            Self::Gzip(input) => input.consume(amount),
        }
    }
}

/// Opens a file of any format, at its start.
///
/// # Errors
/// As [`Input::open`].
pub(super) fn open_file(path: &Path) -> Result<File> {
    let fail = |source| Error::file("read", path, source);
    refuse_stream(path)?;
    let mut file = File::open(path).map_err(|source| Error::file("open", path, source))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(folder(path));
    }
    let mut start = Vec::with_capacity(POINTER_BYTES);
    file.by_ref().take(POINTER_BYTES as u64).read_to_end(&mut start).map_err(fail)?;
    refuse_lfs_pointer(path, &start)?;
    file.seek(SeekFrom::Start(0)).map_err(fail)?;
    Ok(file)
}

/// The first bytes of `input` at most, and all of it again.
pub(super) fn look_ahead<R: Read>(mut input: R, most: usize) -> std::io::Result<(Vec<u8>, impl Read)> {
    let mut start = Vec::new();
    input.by_ref().take(most as u64).read_to_end(&mut start)?;
    Ok((start.clone(), Cursor::new(start).chain(input)))
}

/// What bytes that are no UTF-8 are, as far as their start tells, and what to do about it.
pub(super) fn advice_for(start: &[u8]) -> &'static str {
    match start {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "the file looks like UTF-16; convert it to UTF-8",
        [0x1f, 0x8b, ..] => "the bytes look compressed with gzip; decompress them first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "the file looks compressed with zstd; decompress it first",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "the file looks compressed with xz; decompress it first",
        [b'P', b'K', 3, 4, ..] => "the file looks like a zip archive or a spreadsheet; save it as UTF-8 text",
        [b'P', b'A', b'R', b'1', ..] => "the file looks like Parquet; let its name end in .parquet",
        _ => "convert the file to UTF-8",
    }
}
