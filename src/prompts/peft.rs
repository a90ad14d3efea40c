//! Prompts as adapters of the PEFT library: a folder with `adapter_config.json` and `adapter_model.safetensors` or `.bin`.
//!
//! What is written has one submodule: PEFT would otherwise keep a second prompt, for the decoder, that T5 does not use.
//! Only plain prompt tuning can be said in PEFT; the mixture of an ATTEMPT run cannot.

use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::torch::{matrix, named_matrix};
use super::{Matrix, Prompt};
use crate::error::{Error, Result};
use crate::files;
use crate::pretrained::{T5Config, TensorFile, small_file};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const OLD_WEIGHTS: &str = "adapter_model.bin";
const TENSOR: &str = "prompt_embeddings";
const CONFIG_BYTES: u64 = 1 << 20;

/// What is read of `adapter_config.json`.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    num_virtual_tokens: Option<usize>,
    #[serde(default)]
    num_transformer_submodules: Option<usize>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
}

/// Whether a folder holds an adapter.
pub(super) fn is_adapter(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
}

/// An adapter's prompt, the model that it names, and what of it was left out, if anything.
pub(super) struct Adapter {
    pub(super) matrix: Matrix,
    pub(super) model: Option<String>,
    pub(super) note: Option<String>,
}

/// Reads the adapter in `folder`.
///
/// # Errors
/// [`Error::Unsupported`] for an adapter that is no plain prompt; those of reading the files.
pub(super) fn read(folder: &Path) -> Result<Adapter> {
    let path = folder.join(CONFIG);
    let config: Config = serde_json::from_slice(&small_file(&path, CONFIG_BYTES)?).map_err(|error| {
        let line = u64::try_from(error.line()).ok();
        Error::format(&path, line, "the configuration of an adapter", error.to_string(), "export it again")
    })?;
    if config.peft_type != "PROMPT_TUNING" {
        return Err(Error::unsupported(
            format!("the adapter {}", folder.display()),
            format!("its peft_type is {}", config.peft_type.chars().take(40).collect::<String>()),
            "only PROMPT_TUNING adapters are one soft prompt",
        ));
    }
    if config.task_type.as_deref().is_some_and(|task| task != "SEQ_2_SEQ_LM") {
        return Err(Error::unsupported(
            format!("the adapter {}", folder.display()),
            format!("its task_type is {}", config.task_type.unwrap_or_default()),
            "only SEQ_2_SEQ_LM adapters stand before the inputs of a T5",
        ));
    }
    let (weights, old) = (folder.join(WEIGHTS), folder.join(OLD_WEIGHTS));
    let file = if weights.is_file() || !old.is_file() {
        TensorFile::open_safetensors(&weights)?
    } else {
        TensorFile::open_torch(&old)?
    };
    let matrix = if file.contains(TENSOR) { named_matrix(&file, TENSOR)? } else { matrix(&file)? };
    let mut adapter = Adapter { matrix, model: config.base_model_name_or_path, note: None };
    let rows = adapter.matrix.rows;
    let length = config.num_virtual_tokens.unwrap_or(rows);
    let submodules = config.num_transformer_submodules.unwrap_or(2).max(1);
    if rows != length {
        if length == 0 || length.checked_mul(submodules) != Some(rows) {
            return Err(Error::format(
                &path,
                None,
                format!("num_virtual_tokens that fits a prompt of {rows} rows"),
                format!("{length} for {submodules} submodules"),
                "the configuration and the weights belong to different adapters",
            ));
        }
        adapter.matrix.values.truncate(length * adapter.matrix.columns);
        adapter.matrix.rows = length;
        adapter.note = Some(format!(
            "the adapter's first {length} rows are its prompt; PEFT keeps {} more for the decoder and never uses them",
            rows - length
        ));
    }
    Ok(adapter)
}

/// Writes `prompt` into `folder` as an adapter of the model called `base_model`, which has these dimensions.
///
/// # Errors
/// [`Error::Setting`] if the prompt is of another width or the folder holds an adapter already; [`Error::File`] if it
/// cannot be written.
pub fn export(prompt: &Prompt, config: &T5Config, base_model: &str, folder: &Path) -> Result<()> {
    prompt.check_fits(config.d_model, None)?;
    if is_adapter(folder) {
        return Err(Error::setting(
            "--out",
            "a new folder",
            format!("{}, which holds an adapter", folder.display()),
            "name another folder",
        ));
    }
    std::fs::create_dir_all(folder).map_err(|source| Error::file("create", folder, source))?;
    let adapter = json!({
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": true,
        "num_virtual_tokens": prompt.length(),
        "token_dim": prompt.width(),
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": null,
        "tokenizer_name_or_path": null,
    });
    let text = serde_json::to_vec_pretty(&adapter)
        .map_err(|error| Error::unsupported(CONFIG, error.to_string(), ""))?;
    prompt.save_named(&folder.join(WEIGHTS), TENSOR)?;
    // Last: a folder with a configuration is a whole adapter.
    files::replace(&folder.join(CONFIG), |file| file.write_all(&text))
}
