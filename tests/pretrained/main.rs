//! Reading a T5: its configuration and its weights, good, broken and hostile.

mod broken;
mod checkpoint;
mod config;
mod hub;
mod saved_by_transformers;
#[cfg(feature = "hub")]
#[path = "../common/stand_in_hub.rs"]
mod stand_in_hub;
mod tiny_checkpoint;
mod torch;

use std::path::{Path, PathBuf};

/// A folder of the material beside the checkout, or `None` with a printed reason.
fn shared(folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(folder);
    if !path.exists() {
        eprintln!("skipped: {} is not beside the checkout", path.display());
        return None;
    }
    Some(path)
}
