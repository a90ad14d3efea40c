//! The small T5 that comes with the program.
//!
//! It is part of the binary rather than found beside the manifest, so that an installed program has it too.

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files;

const FILES: [(&str, &[u8]); 3] = [
    ("config.json", include_bytes!("../../demo/config.json")),
    ("tokenizer.json", include_bytes!("../../demo/tokenizer.json")),
    ("model.safetensors", include_bytes!("../../demo/model.safetensors")),
];

/// Writes the model into `folder`, as any other model on disk.
///
/// # Errors
/// If the folder cannot be written.
pub fn write_model(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::file("create", folder, source))?;
    for (name, bytes) in FILES {
        files::replace(&folder.join(name), |file| file.write_all(bytes))?;
    }
    Ok(())
}

/// Whether the model in `folder` is this one, as far as it was written: an end came before its first file where `folder` is empty and
/// nothing lies beside it.
pub fn is_bundled_model(folder: &Path) -> bool {
    let mut is_begun = false;
    for (name, bytes) in FILES {
        match std::fs::read(folder.join(name)) {
            Ok(found) if found == bytes => is_begun = true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            _ => return false,
        }
    }
    // What was half-written has a name of its own.
    let entries = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter(|entry| !files::is_temporary(&entry.file_name())).count()
    };
    let is_alone = || entries(folder) == 0 && folder.parent().is_some_and(|parent| entries(parent) == 1);
    folder.is_dir() && (is_begun || is_alone())
}
