//! Other people's prompts: which format a file is in, and what is made of it.

use std::path::Path;

use super::matrix::Matrix;
use super::{Prompt, PromptMetadata, numpy, peft, run, stem, torch};
use crate::error::{Error, Result};
use crate::pretrained::{ElementType, TensorFile};

/// The authors' file of a prompt, in the folder of a run of theirs.
const RELEASED: &str = "prefix_embeddings.pt";

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

/// What of a file is the prompt, where the file does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportSettings {
    /// Rows of the prompt, the first of the file's; `None`: all, or as many as an adapter's configuration says.
    pub length: Option<usize>,
    /// Whose prompt of an adapter of several tasks is meant, counted from 0.
    pub adapter_task: Option<usize>,
}

/// Reads a prompt in any known format: this program's own, an array that NumPy saved (`.npy`), what `torch.save` wrote
/// (`.pt`, `.pth`, `.bin`), a PEFT adapter's folder, or the folder of a run of this program or of the authors' code.
///
/// # Errors
/// [`Error::Unsupported`] for another format; those of reading the file.
pub fn import(path: &Path) -> Result<Imported> {
    import_with(path, &ImportSettings::default())
}

/// As [`import`], of a file that does not say all.
///
/// # Errors
/// As there, and [`Error::Setting`] if the file has fewer rows or no such task.
pub fn import_with(path: &Path, settings: &ImportSettings) -> Result<Imported> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    let parent = path.parent().unwrap_or(Path::new("."));
    let of_adapter = stem(path) == "adapter_model" && peft::is_adapter(parent);
    let (matrix, format, model, note) = if path.is_dir() || of_adapter {
        let folder = if of_adapter { parent } else { path };
        if let Some(folder) = peft::find(folder)? {
            let adapter = peft::read(&folder, settings.adapter_task)?;
            (adapter.matrix, "a PEFT adapter", adapter.model, adapter.note)
        } else if folder.join(RELEASED).is_file() {
            (torch::read(&folder.join(RELEASED))?, "a file of PyTorch", None, None)
        } else if run::is_run(folder) {
            return own(folder, settings);
        } else {
            return Err(Error::unsupported(
                format!("the folder {}", path.display()),
                format!(
                    "neither it nor a folder in it holds adapter_config.json, nor it {RELEASED} or run.json"
                ),
                "give the folder of a PEFT adapter or of a run, or the prompt's own file",
            ));
        }
    } else {
        match extension.as_deref() {
            Some("npy") => (numpy::read(path)?, "an array of NumPy", None, None),
            Some("pt" | "pth" | "bin" | "ckpt") => {
                let (matrix, note) = of_tensors(&TensorFile::open_torch(path)?, settings)?;
                (matrix, "a file of PyTorch", None, note)
            }
            Some("safetensors") => {
                let file = TensorFile::open_safetensors(path)?;
                // A file of someone else's may call its matrix so too.
                let is_ours = file.contains(super::TENSOR)
                    && file.element_type(super::TENSOR)? == ElementType::F32
                    && file.shape(super::TENSOR)?.len() == 2;
                if is_ours {
                    return own(path, settings);
                }
                let (matrix, note) = of_tensors(&file, settings)?;
                (matrix, "a file of safetensors", None, note)
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
    let (matrix, note) = shortened(matrix, note, settings.length)?;
    let origin = format!("{format}, {}", path.file_name().unwrap_or_default().to_string_lossy());
    let metadata = PromptMetadata { origin: Some(origin), ..PromptMetadata::default() };
    let prompt = Prompt::new(stem(path), matrix.values, matrix.rows, matrix.columns, metadata)?;
    Ok(Imported { prompt, model, note })
}

/// A prompt of this program's, in a file or a run's folder, or its first rows, with all that is recorded of it.
fn own(path: &Path, settings: &ImportSettings) -> Result<Imported> {
    let prompt = Prompt::load(path)?;
    refuse_task(path, settings)?;
    let (name, metadata) = (prompt.name().to_owned(), prompt.metadata().clone());
    let (rows, columns) = (prompt.length(), prompt.width());
    let whole = Matrix { values: prompt.into_values(), rows, columns };
    let (matrix, note) = shortened(whole, None, settings.length)?;
    let prompt = Prompt::new(name, matrix.values, matrix.rows, matrix.columns, metadata)?;
    Ok(Imported { prompt, model: None, note })
}

/// Refuses the task of an adapter for what is none.
fn refuse_task(path: &Path, settings: &ImportSettings) -> Result<()> {
    if settings.adapter_task.is_none() {
        return Ok(());
    }
    let found = path.display().to_string();
    Err(Error::setting("--adapter-task", "an adapter of several tasks", found, "leave it out"))
}

/// The prompt among the tensors of a file, and what the user should know about it.
fn of_tensors(file: &TensorFile, settings: &ImportSettings) -> Result<(Matrix, Option<String>)> {
    let (mut matrix, name) = torch::matrix(file)?;
    if peft::is_multitask(file) {
        peft::of_task(&mut matrix, file, settings.adapter_task)?;
    } else {
        refuse_task(file.path(), settings)?;
    }
    // Without its configuration nothing tells where an adapter's prompt ends.
    let doubtful = torch::is_peft(name) && matrix.rows.is_multiple_of(2) && settings.length.is_none();
    let note = doubtful.then(|| {
        format!(
            "warning: all {} rows of `{name}` are taken for the prompt, but PEFT keeps as many rows again for the decoder, which \
             never uses them, unless num_transformer_submodules is 1: give the folder with adapter_config.json, or \
             --length with num_virtual_tokens",
            matrix.rows
        )
    });
    Ok((matrix, note))
}

/// The first `length` rows, if it is given.
fn shortened(
    mut matrix: Matrix,
    note: Option<String>,
    length: Option<usize>,
) -> Result<(Matrix, Option<String>)> {
    let Some(length) = length else { return Ok((matrix, note)) };
    if length == 0 || length > matrix.rows {
        let expected = format!("1 to {} rows, as the file has", matrix.rows);
        return Err(Error::setting("--length", expected, length.to_string(), ""));
    }
    if length == matrix.rows {
        return Ok((matrix, note));
    }
    let note = format!("the first {length} of {} rows are its prompt, as --length says", matrix.rows);
    matrix.values.truncate(length * matrix.columns);
    matrix.rows = length;
    Ok((matrix, Some(note)))
}
