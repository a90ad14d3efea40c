//! What the commands print.
//!
//! The macros here have the names of the standard ones and stand before every command, but do not panic where a line cannot be
//! written: on a full disk, or with a terminal that is gone. Work goes on without what it says on standard error; standard output
//! that could not be written is the program's error at its end, when what it computed is saved.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// What kept the first line from standard output.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

macro_rules! print {
    ($($part:tt)*) => { $crate::cli::output::write(format_args!($($part)*)) };
}

macro_rules! println {
    ($($part:tt)*) => { $crate::cli::output::write(format_args!("{}\n", format_args!($($part)*))) };
}

macro_rules! eprintln {
    ($($part:tt)*) => { $crate::cli::output::remark(format_args!("{}\n", format_args!($($part)*))) };
}

/// Writes to standard output, unless that has failed before: what follows a line that is lost would be misread.
pub(super) fn write(text: Arguments<'_>) {
    if FAILURE.get().is_none()
        && let Err(error) = io::stdout().lock().write_fmt(text)
    {
        // An error that another thread was first to keep says the same.
        let _ = FAILURE.set(error);
    }
}

/// Writes to standard error, if that can be written.
pub(super) fn remark(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Whether all that was printed is written.
///
/// # Errors
/// [`Error::File`] if standard output could not be written.
pub(super) fn finish() -> Result<()> {
    let failed = |error: &io::Error| {
        let again = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
        Error::file("write", Path::new("standard output"), again)
    };
    match FAILURE.get() {
        Some(error) => Err(failed(error)),
        None => io::stdout().lock().flush().map_err(|error| failed(&error)),
    }
}
