//! Files as a whole: written so that a crash or a full disk never leaves half of one (temporary file, sync, rename), and
//! refused where another program has left a stand-in for them.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Names of files that are still being written, and of what a kill left of them.
const TEMPORARY: &str = ".promptmix-";

/// Whether a file of this name is one that is still being written, or what a kill left of one.
#[cfg(feature = "training")]
pub(crate) fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(TEMPORARY)
}

/// Writes `path` through `write`, atomically: readers see the old content or the new, never a part. A link stays one, and what it
/// points to is replaced; a file keeps who may read it. A device or a pipe is written to as it is.
///
/// # Errors
/// [`Error::File`] if the folder cannot be written, the disk is full or the rename fails; the old file is then
/// untouched and the temporary one removed.
pub fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>) -> Result<()> {
    let fail = |source| Error::file("write", path, source);
    let before = path.metadata().ok();
    if before.as_ref().is_some_and(is_stream) {
        let stream = File::options().write(true).open(path).map_err(fail)?;
        let mut buffered = BufWriter::new(&stream);
        return write(&mut buffered).and_then(|()| buffered.flush()).map_err(fail);
    }
    let whole = if path.is_symlink() { path.canonicalize().ok() } else { None };
    let target = whole.as_deref().unwrap_or(path);
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    // Temporary files are private by default; what comes of this one is to be as readable as any other file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder
        .tempfile_in(folder)
        .map_err(|source| Error::file("create a temporary file in", folder, source))?;
    let _listed = Unfinished::list(temporary.path());
    if let Some(before) = before {
        temporary.as_file().set_permissions(before.permissions()).map_err(fail)?;
    }
    let mut buffered = BufWriter::new(temporary.as_file());
    write(&mut buffered).and_then(|()| buffered.flush()).map_err(fail)?;
    drop(buffered);
    temporary.as_file().sync_all().map_err(fail)?;
    temporary.persist(target).map_err(|error| Error::file("rename into place", path, error.error))?;
    // The rename itself must survive a power cut; folders that cannot be synced (some network mounts) are let be.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// The temporary files of [`replace`] that have not been given their names yet.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A file in that list.
struct Unfinished(PathBuf);

impl Unfinished {
    fn list(path: &Path) -> Self {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Removes the temporary files of [`replace`], for a process that is about to end while it writes some. None can be begun from then on.
#[cfg(feature = "cli")]
pub(crate) fn remove_unfinished() {
    let unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for path in unfinished.iter() {
        let _ = std::fs::remove_file(path);
    }
    // Whoever waits for the list must not go on.
    std::mem::forget(unfinished);
}

/// Whether what is there is neither a file nor a folder, but a device or a pipe.
fn is_stream(there: &Metadata) -> bool {
    !there.is_file() && !there.is_dir()
}

/// Refuses a pipe, a device or a socket where a file belongs, before it is opened: to open a pipe would wait for its other end.
///
/// # Errors
/// [`Error::Format`] that names it.
pub fn refuse_stream(path: &Path) -> Result<()> {
    if !path.metadata().is_ok_and(|there| is_stream(&there)) {
        return Ok(());
    }
    let advice = "put the file itself in its place, or remove it";
    Err(Error::format(path, None, "a file", "a pipe, a device or a socket", advice))
}

/// All bytes of the file at `path`; `None` if there is none.
///
/// # Errors
/// [`Error::File`] if it cannot be read, and that of [`refuse_stream`].
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    refuse_stream(path)?;
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|source| Error::file("read", path, source)),
    }
}

/// Writes `value` to `path` as JSON, as [`replace`] does.
///
/// # Errors
/// Those of [`replace`], and [`Error::Unsupported`] for what JSON cannot hold.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::unsupported(path.display().to_string(), error.to_string(), ""))?;
    replace(path, |file| file.write_all(&json))
}

/// The JSON in `path`; `None` if there is no such file. `expected` and `advice` are for one that cannot be read.
///
/// # Errors
/// Those of [`read`], and [`Error::Format`] with the line if it holds something else.
pub fn read_json<T: DeserializeOwned>(path: &Path, expected: &str, advice: &str) -> Result<Option<T>> {
    let Some(json) = read(path)? else { return Ok(None) };
    let malformed = |error: serde_json::Error| {
        let line = u64::try_from(error.line()).ok();
        Error::format(path, line, expected, error.to_string(), advice)
    };
    serde_json::from_slice(&json).map(Some).map_err(malformed)
}

/// How the few lines begin that Git LFS leaves in the place of a large file.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Refuses a file of which Git fetched the pointer alone; `start` are its first bytes, [`POINTER_BYTES`] or more unless it is
/// shorter. For every reader of model, data and prompt files, before it says what its own format lacks.
///
/// # Errors
/// [`Error::Format`] if the file is such a pointer.
pub fn refuse_lfs_pointer(path: &Path, start: &[u8]) -> Result<()> {
    if !start.starts_with(LFS_POINTER) {
        return Ok(());
    }
    let advice = "run `git lfs pull` where it was cloned, or download the file itself";
    Err(Error::format(path, None, "the file itself", "a pointer of Git LFS that stands for it", advice))
}

/// How many first bytes [`refuse_lfs_pointer`] needs to see.
pub const POINTER_BYTES: usize = LFS_POINTER.len();

/// Whether a file could be written as `path`: asked before the work whose result goes there. Nothing is left behind.
///
/// # Errors
/// [`Error::File`] if its folder cannot be written, [`Error::Setting`] if that is missing or if `path` is a folder itself.
pub fn check_file(path: &Path) -> Result<()> {
    if path.is_dir() {
        let found = format!("the folder {}", path.display());
        return Err(Error::setting("--out", "a file to write", found, "name a file in it"));
    }
    if path == Path::new("-") {
        let advice = "leave --out out where a command prints without it; a file of that name is ./-";
        return Err(Error::setting("--out", "a file to write", "-", advice));
    }
    if path.metadata().is_ok_and(|there| is_stream(&there)) {
        return Ok(());
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    refuse_file(folder)?;
    if !folder.exists() {
        let found = format!("{}, and no folder {}", path.display(), folder.display());
        return Err(Error::setting(
            "--out",
            "a file in a folder that is there",
            found,
            "make the folder first",
        ));
    }
    try_in(folder).map_err(|source| Error::file("write", path, source))
}

/// As [`check_file`], of a command that reads `inputs`, none of which is written over.
///
/// # Errors
/// As there, and [`Error::Setting`] if `path` is one of them, by whatever name.
pub fn check_output<'a>(path: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    check_file(path)?;
    let Ok(whole) = path.canonicalize() else { return Ok(()) };
    if inputs.into_iter().any(|input| input.canonicalize().is_ok_and(|input| input == whole)) {
        let found = format!("{}, which is read", path.display());
        let advice = "write another file; it can take this one's place afterwards";
        return Err(Error::setting("--out", "another file than those that are read", found, advice));
    }
    Ok(())
}

/// Refuses a path to a folder where it, or what is named above it, is a file.
///
/// # Errors
/// [`Error::Setting`] that names the file.
pub fn refuse_file(path: &Path) -> Result<()> {
    let Some(nearest) = path.ancestors().find(|place| place.exists()) else { return Ok(()) };
    if nearest.is_dir() {
        return Ok(());
    }
    let found = format!("{}, a file", nearest.display());
    Err(Error::setting("--out", "a folder", found, "name another place"))
}

/// Whether `path` is a folder that can be written to, or could be made one. Nothing is left behind.
///
/// # Errors
/// [`Error::File`] if it or the nearest folder above it that exists cannot be written to, and those of [`refuse_file`].
pub fn check_folder(path: &Path) -> Result<()> {
    refuse_file(path)?;
    if path.is_symlink() && !path.exists() {
        let advice = "remove the link, or make the folder that it names";
        return Err(Error::setting(
            "--out",
            "a folder",
            format!("{}, a link to nothing", path.display()),
            advice,
        ));
    }
    let nearest = path.ancestors().find(|folder| folder.as_os_str().is_empty() || folder.exists());
    let nearest = nearest.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let action = if nearest == path { "write to" } else { "create" };
    try_in(nearest).map_err(|source| Error::file(action, path, source))
}

/// Makes a file in `folder` that is gone again.
fn try_in(folder: &Path) -> std::io::Result<()> {
    tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder).map(drop)
}

/// `name` as the name of a folder: its letters and digits in lower case, with dashes between words.
#[cfg(feature = "training")]
pub(crate) fn folder_name(name: &str) -> String {
    let letters = name.to_lowercase();
    let words = letters.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}
