//! Prompts as `torch.save` wrote them: the authors' `prefix_embeddings.pt`, or any dictionary with one matrix. Read only,
//! and without executing anything the file says.

use std::path::Path;

use super::matrix::Matrix;
use crate::error::{Error, Result};
use crate::pretrained::TensorFile;

/// Names under which programs keep a prompt among other tensors, the likeliest first.
const NAMES: [&str; 4] = ["prefix_shared", "prompt_embeddings", "prompt", ENCODER];
/// How PEFT names it within its model, the adapter's name in the middle.
const ENCODER: &str = "prompt_encoder.default.embedding.weight";
/// Parts of names of the network that makes a P-tuning prompt of its embedding.
const HEADS: [&str; 2] = ["mlp_head.", "lstm_head."];

/// The matrix of the file.
///
/// # Errors
/// Those of reading it; [`Error::Format`] if no tensor, or none of several, is known to be the prompt.
pub(super) fn read(path: &Path) -> Result<Matrix> {
    Ok(matrix(&TensorFile::open_torch(path)?)?.0)
}

/// Whether a tensor of this name is PEFT's, which may keep a second prompt after the first.
pub(super) fn is_peft(name: &str) -> bool {
    name == NAMES[1] || is_encoder(name)
}

/// Whether this is the embedding of an adapter of any name.
fn is_encoder(name: &str) -> bool {
    let inner = name.strip_prefix("prompt_encoder.").and_then(|rest| rest.strip_suffix(".embedding.weight"));
    inner.is_some_and(|adapter| !adapter.is_empty() && !adapter.contains('.'))
}

/// The one matrix of a file, or the one with a prompt's name; and its name.
pub(super) fn matrix(file: &TensorFile) -> Result<(Matrix, &str)> {
    if let Some(head) = file.names().find(|name| HEADS.iter().any(|head| name.contains(head))) {
        return Err(Error::unsupported(
            format!("the prompt {}", file.path().display()),
            format!(
                "it is P-tuning's encoder (`{}`), and the prompt is what that gives",
                head.escape_debug()
            ),
            "save the adapter with PEFT's save_pretrained, which writes the prompt itself",
        ));
    }
    let of = |is_matrix: fn(&[usize]) -> bool| -> Vec<&str> {
        file.names().filter(|name| file.shape(name).is_ok_and(is_matrix)).collect()
    };
    let mut matrices = of(|shape| shape.len() == 2);
    if matrices.is_empty() {
        matrices = of(|shape| as_matrix(shape).is_some());
    }
    let named = NAMES.into_iter().find_map(|name| matrices.iter().find(|matrix| **matrix == name));
    let mut encoders = matrices.iter().filter(|name| is_encoder(name));
    let named = named.or_else(|| encoders.next().filter(|_| encoders.next().is_none())).copied();
    let name = match (named, matrices.as_slice()) {
        (Some(name), _) => name,
        (None, &[only]) => only,
        (None, others) => {
            let shown = |name: &str| match (name, file.shape(name).unwrap_or_default()) {
                ("", shape) => format!("one tensor of shape {shape:?}"),
                (name, shape) => format!("{name:?} of shape {shape:?}"),
            };
            let shown: Vec<String> = file.names().take(10).map(shown).collect();
            let found = match (others.len(), &shown[..]) {
                (_, []) => "no tensor".to_owned(),
                (0, shown) => format!("no matrix: {}", shown.join(", ")),
                (count, shown) => format!("{count} matrices among {}", shown.join(", ")),
            };
            return Err(Error::format(
                file.path(),
                None,
                format!("one matrix of length x width, or one of several named {}", NAMES.join(" or ")),
                found,
                "save the prompt alone: torch.save(prompt, 'prompt.pt')",
            ));
        }
    };
    Ok((named_matrix(file, name)?, name))
}

/// Rows and columns of a tensor that is a matrix; dimensions of length 1 before them do not count.
fn as_matrix(shape: &[usize]) -> Option<(usize, usize)> {
    let (leading, &[rows, columns]) = shape.split_last_chunk::<2>()?;
    leading.iter().all(|&size| size == 1).then_some((rows, columns))
}

/// The matrix called `name`.
pub(super) fn named_matrix(file: &TensorFile, name: &str) -> Result<Matrix> {
    let shape = file.shape(name)?;
    let Some((rows, columns)) = as_matrix(shape) else {
        return Err(Error::tensor(
            name,
            "two dimensions, length and width",
            format!("shape {shape:?} in {}", file.path().display()),
            "",
        ));
    };
    Ok(Matrix { values: file.tensor(name, shape)?, rows, columns })
}
