//! Other people's prompts: which format a file is in, and what is made of it.

use std::path::Path;

use super::{Prompt, PromptMetadata, numpy, peft, stem, torch};
use crate::error::{Error, Result};
use crate::pretrained::TensorFile;

/// The authors' file of a prompt, in the folder of a run of theirs.
const RELEASED: &str = "prefix_embeddings.pt";

/// A matrix of numbers, row-major.
pub(super) struct Matrix {
    pub(super) values: Vec<f32>,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// A prompt from elsewhere.
#[derive(Debug)]
#[non_exhaustive]
pub struct Imported {
    /// The prompt; its metadata says where it came from, and nothing that the file does not.
    pub prompt: Prompt,
    /// The model that the file names.
    pub model: Option<String>,
    /// What the user should know.
    pub note: Option<String>,
}

/// Reads a prompt in any known format: this program's own, an array that NumPy saved (`.npy`), what `torch.save` wrote
/// (`.pt`, `.pth`, `.bin`), a PEFT adapter's folder, or the folder of a run of the authors' code.
///
/// # Errors
/// [`Error::Unsupported`] for another format; those of reading the file.
pub fn import(path: &Path) -> Result<Imported> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    let parent = path.parent().unwrap_or(Path::new("."));
    let of_adapter = stem(path) == "adapter_model" && peft::is_adapter(parent);
    let (matrix, format, model, note) = if path.is_dir() || of_adapter {
        let folder = if of_adapter { parent } else { path };
        if peft::is_adapter(folder) {
            let adapter = peft::read(folder)?;
            (adapter.matrix, "a PEFT adapter", adapter.model, adapter.note)
        } else if folder.join(RELEASED).is_file() {
            (torch::read(&folder.join(RELEASED))?, "a file of PyTorch", None, None)
        } else {
            return Err(Error::unsupported(
                format!("the folder {}", path.display()),
                format!("it holds neither adapter_config.json nor {RELEASED}"),
                "give the folder of a PEFT adapter, or the prompt's own file",
            ));
        }
    } else {
        match extension.as_deref() {
            Some("npy") => (numpy::read(path)?, "an array of NumPy", None, None),
            Some("pt" | "pth" | "bin" | "ckpt") => (torch::read(path)?, "a file of PyTorch", None, None),
            Some("safetensors") => {
                let file = TensorFile::open_safetensors(path)?;
                if file.contains(super::TENSOR) {
                    return Ok(Imported { prompt: Prompt::load(path)?, model: None, note: None });
                }
                (torch::matrix(&file)?, "a file of safetensors", None, None)
            }
            _ => {
                return Err(Error::unsupported(
                    format!("the prompt {}", path.display()),
                    match &extension {
                        Some(extension) => format!("it ends in .{extension}"),
                        None => "it has no extension and is no folder".to_owned(),
                    },
                    "expected .npy, .pt, .bin, .safetensors or the folder of a PEFT adapter",
                ));
            }
        }
    };
    let origin = format!("{format}, {}", path.file_name().unwrap_or_default().to_string_lossy());
    let metadata = PromptMetadata { origin: Some(origin), ..PromptMetadata::default() };
    let prompt = Prompt::new(stem(path), matrix.values, matrix.rows, matrix.columns, metadata)?;
    Ok(Imported { prompt, model, note })
}
