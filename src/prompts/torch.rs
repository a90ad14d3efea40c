//! Prompts as `torch.save` wrote them: the authors' `prefix_embeddings.pt`, or any dictionary with one matrix. Read only,
//! and without executing anything the file says.

use std::path::Path;

use super::Matrix;
use crate::error::{Error, Result};
use crate::pretrained::TensorFile;

/// Names under which programs keep a prompt among other tensors, the likeliest first.
const NAMES: [&str; 4] =
    ["prefix_shared", "prompt_embeddings", "prompt", "prompt_encoder.default.embedding.weight"];

/// The matrix of the file.
///
/// # Errors
/// Those of reading it; [`Error::Format`] if no tensor, or none of several, is known to be the prompt.
pub(super) fn read(path: &Path) -> Result<Matrix> {
    matrix(&TensorFile::open_torch(path)?)
}

/// The one matrix of a file, or the one with a prompt's name.
pub(super) fn matrix(file: &TensorFile) -> Result<Matrix> {
    let matrices: Vec<&str> =
        file.names().filter(|name| file.shape(name).is_ok_and(|shape| shape.len() == 2)).collect();
    let named = NAMES.into_iter().find(|name| matrices.contains(name));
    let name = match (named, matrices.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, others) => {
            let mut shown: Vec<String> = file.names().take(10).map(|name| format!("{name:?}")).collect();
            if shown.is_empty() {
                shown.push("nothing".to_owned());
            }
            return Err(Error::format(
                file.path(),
                None,
                format!("one matrix, or one of several named {}", NAMES.join(" or ")),
                format!("{} matrices among {}", others.len(), shown.join(", ")),
                "save the prompt alone: torch.save(prompt, 'prompt.pt')",
            ));
        }
    };
    named_matrix(file, name)
}

/// The matrix called `name`.
pub(super) fn named_matrix(file: &TensorFile, name: &str) -> Result<Matrix> {
    let shape = file.shape(name)?;
    let &[rows, columns] = shape else {
        return Err(Error::tensor(
            name,
            "two dimensions",
            format!("shape {shape:?} in {}", file.path().display()),
            "",
        ));
    };
    Ok(Matrix { values: file.tensor(name, &[rows, columns])?, rows, columns })
}
