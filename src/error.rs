//! The one error type of the crate: every message says what was expected, what came, and what to do next.

use std::path::{Path, PathBuf};

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, by what the user must look at to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read, write or create something.
    #[error("could not {action} {}: {source}{}", path.display(), then(remedy(source)))]
    File {
        /// What was tried, as an infinitive: `read`, `create`, `rename into place`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A file was read but its content is not what its format promises.
    #[error("{}{}: expected {expected}, found {found}{}", path.display(), at_line(*line), then(advice))]
    Format {
        /// The file.
        path: PathBuf,
        /// One-based line, where the format has lines.
        line: Option<u64>,
        /// What should have been there.
        expected: String,
        /// What was there.
        found: String,
        /// What to do next; may be empty.
        advice: String,
    },

    /// A tensor has another shape or element type than the configuration implies.
    #[error("{}: expected {expected}, found {found}{}", named(tensor), then(advice))]
    Tensor {
        /// The tensor's name; empty for one that is a whole file.
        tensor: String,
        /// The shape or type that was expected.
        expected: String,
        /// The shape or type that came.
        found: String,
        /// What to do next; may be empty.
        advice: String,
    },

    /// A setting, flag or argument has a value that cannot be used.
    #[error("{setting}: expected {expected}, found {found}{}", then(advice))]
    Setting {
        /// The flag or key, as the user writes it.
        setting: String,
        /// What is accepted.
        expected: String,
        /// What was given.
        found: String,
        /// What to do next; may be empty.
        advice: String,
    },

    /// A number that must be finite is not.
    #[error("step {step}: {tensor} holds a value that is not finite{}", then(advice))]
    NonFinite {
        /// Optimiser step, counted from 1; 0 before training.
        step: u64,
        /// The first tensor in the order of computation that is not finite.
        tensor: String,
        /// What to do next; may be empty.
        advice: String,
    },

    /// A GPU or its driver failed.
    #[error("the GPU could not {action}: {found}{}", then(advice))]
    Device {
        /// What was tried, as an infinitive.
        action: String,
        /// What the driver said.
        found: String,
        /// What to do next; may be empty.
        advice: String,
    },

    /// Whoever listens to a run, or to several, asked for an early end; checkpoints are written.
    #[error("ended on request after {after}, with a checkpoint: {next}")]
    Interrupted {
        /// How far it came.
        after: String,
        /// How to go on.
        next: String,
    },

    /// Whoever listens to a run asked for an end before its first step.
    #[error("ended on request while {during}: no step was taken, and nothing was written")]
    NotBegun {
        /// What was being done.
        during: String,
    },

    /// Something is known but cannot be done by this build or on this machine.
    #[error("{what} is not supported: {reason}{}", then(advice))]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not.
        reason: String,
        /// What to do next; may be empty.
        advice: String,
    },
}

impl Error {
    /// An end on request with another way to go on; what else went wrong stays as it is.
    #[cfg(feature = "training")]
    pub(crate) fn going_on_by(self, next: &str) -> Self {
        match self {
            Self::Interrupted { after, .. } => Self::Interrupted { after, next: next.into() },
            other => other,
        }
    }

    /// An I/O failure on `path` while trying to `action` it.
    pub fn file(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::File { action, path: path.as_ref().to_owned(), source }
    }

    /// Malformed content of the file at `path`; `line` counts from 1.
    pub fn format(
        path: impl AsRef<Path>,
        line: Option<u64>,
        expected: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::Format {
            path: path.as_ref().to_owned(),
            line,
            expected: expected.into(),
            found: found.into(),
            advice: advice.into(),
        }
    }

    /// A GPU or its driver that failed at `action`.
    pub fn device(action: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Device { action: action.into(), found: found.into(), advice: advice.into() }
    }

    /// A tensor of an unexpected shape or type.
    pub fn tensor(
        tensor: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::Tensor {
            tensor: tensor.into(),
            expected: expected.into(),
            found: found.into(),
            advice: advice.into(),
        }
    }

    /// A setting that cannot be used.
    pub fn setting(
        setting: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::Setting {
            setting: setting.into(),
            expected: expected.into(),
            found: found.into(),
            advice: advice.into(),
        }
    }

    /// Something this build or machine cannot do.
    pub fn unsupported(
        what: impl Into<String>,
        reason: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::Unsupported { what: what.into(), reason: reason.into(), advice: advice.into() }
    }
}

fn at_line(line: Option<u64>) -> String {
    line.map(|line| format!(", line {line}")).unwrap_or_default()
}

fn named(tensor: &str) -> String {
    if tensor.is_empty() { "the tensor".to_owned() } else { format!("tensor {tensor}") }
}

/// What to do about a refusal of the system that is none of the file's own.
fn remedy(refusal: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    /// On the systems that have it: the process has as many files open as it may.
    const EMFILE: i32 = 24;
    match refusal.kind() {
        StorageFull | QuotaExceeded => "free space there; what was written before is whole",
        FileTooLarge => "raise the limit of file sizes: ulimit -f; what was written before is whole",
        ReadOnlyFilesystem => "name a place that can be written to",
        _ if cfg!(unix) && refusal.raw_os_error() == Some(EMFILE) => {
            "raise the limit of open files: ulimit -n"
        }
        _ => "",
    }
}

fn then(advice: &str) -> String {
    if advice.is_empty() { String::new() } else { format!(" ({advice})") }
}
