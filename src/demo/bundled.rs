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

/// Whether the model in `folder` is this one, as far as it was written.
pub fn is_bundled_model(folder: &Path) -> bool {
    let is_other = |(name, bytes): &(&str, &[u8])| {
        let found = std::fs::read(folder.join(name));
        found.map_or_else(|error| error.kind() != std::io::ErrorKind::NotFound, |found| found != *bytes)
    };
    folder.is_dir() && !FILES.iter().any(is_other)
}
