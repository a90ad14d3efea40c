//! Where the CUDA compiler is.

use std::path::{Path, PathBuf};

/// The folder of the project.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A tool of the CUDA compiler, from `CUDA_HOME` or from where the project's script installs it.
pub fn cuda_tool(name: &str) -> Option<PathBuf> {
    let mut homes: Vec<PathBuf> = std::env::var_os("CUDA_HOME").map(PathBuf::from).into_iter().collect();
    if let Ok(entries) = std::fs::read_dir(root().join(".cuda/lib")) {
        homes.extend(entries.flatten().map(|entry| entry.path().join("site-packages/nvidia/cu13")));
    }
    homes.into_iter().map(|home| home.join("bin").join(name)).find(|path| path.is_file())
}
