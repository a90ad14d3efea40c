//! Prompts as adapters of the PEFT library: a folder with `adapter_config.json` and `adapter_model.safetensors` or `.bin`.
//!
//! Read are the kinds that come down to one soft prompt: PROMPT_TUNING; P_TUNING, which PEFT saves as what its encoder gives; and
//! MULTITASK_PROMPT_TUNING, where a task's prompt is the shared one times a low-rank matrix of the task's own.
//!
//! What is written has one submodule: PEFT would otherwise keep a second prompt, for the decoder, that T5 does not use.
//! Only plain prompt tuning can be said in PEFT; the mixture of an ATTEMPT run cannot.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::Prompt;
use super::matrix::Matrix;
use super::torch::{matrix, named_matrix};
use crate::error::{Error, Result};
use crate::files;
use crate::pretrained::{T5Config, TensorFile, small_file};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const OLD_WEIGHTS: &str = "adapter_model.bin";
const TENSOR: &str = "prompt_embeddings";
/// The two factors of a task's matrix: tasks x rows x rank and tasks x rank x width.
const TASK_COLUMNS: &str = "prefix_task_cols";
const TASK_ROWS: &str = "prefix_task_rows";
const KINDS: [&str; 3] = ["PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"];
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

/// The adapter's folder that `folder` is or holds: PEFT saves an adapter of another name than `default` into a folder of that
/// name.
///
/// # Errors
/// [`Error::Setting`] if it holds several.
pub(super) fn find(folder: &Path) -> Result<Option<PathBuf>> {
    if is_adapter(folder) {
        return Ok(Some(folder.to_owned()));
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    let mut adapters: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_adapter(path)).collect();
    adapters.sort();
    if adapters.len() > 1 {
        let names: Vec<_> = adapters.iter().take(10).map(|path| path.display().to_string()).collect();
        let found = format!("{} in {}: {}", adapters.len(), folder.display(), names.join(", "));
        return Err(Error::setting("adapter", "the folder of one", found, "give the one that is meant"));
    }
    Ok(adapters.pop())
}

/// An adapter's prompt, the model that it names, and what of it was left out, if anything.
pub(super) struct Adapter {
    pub(super) matrix: Matrix,
    pub(super) model: Option<String>,
    pub(super) note: Option<String>,
}

/// Reads the adapter in `folder`; `task` says whose prompt of an adapter of several tasks is meant.
///
/// # Errors
/// [`Error::Unsupported`] for an adapter that is no plain prompt; those of reading the files.
pub(super) fn read(folder: &Path, task: Option<usize>) -> Result<Adapter> {
    let path = folder.join(CONFIG);
    let config: Config = serde_json::from_slice(&small_file(&path, CONFIG_BYTES)?).map_err(|error| {
        let line = u64::try_from(error.line()).ok();
        Error::format(&path, line, "the configuration of an adapter", error.to_string(), "export it again")
    })?;
    if !KINDS.contains(&config.peft_type.as_str()) {
        return Err(Error::unsupported(
            format!("the adapter {}", folder.display()),
            format!("its peft_type is {}", config.peft_type.chars().take(40).collect::<String>()),
            format!("only {} adapters are one soft prompt", KINDS.join(", ")),
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
    let mut matrix = if file.contains(TENSOR) { named_matrix(&file, TENSOR)? } else { matrix(&file)?.0 };
    if config.peft_type == "MULTITASK_PROMPT_TUNING" || is_multitask(&file) {
        of_task(&mut matrix, &file, task)?;
    } else if let Some(task) = task {
        let found = format!("{task} for an adapter of kind {}", config.peft_type);
        return Err(Error::setting("--adapter-task", "an adapter of several tasks", found, "leave it out"));
    }
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
        let use_of_rest = match config.peft_type.as_str() {
            "MULTITASK_PROMPT_TUNING" => {
                "puts them before the decoder where it computes a loss, not where it generates: here they are left out"
            }
            _ => "never uses them",
        };
        adapter.note = Some(format!(
            "the adapter's first {length} rows are its prompt; PEFT keeps {} more for the decoder and {use_of_rest}",
            rows - length
        ));
    }
    Ok(adapter)
}

/// Whether a file holds what makes a task's prompt of a shared one.
pub(super) fn is_multitask(file: &TensorFile) -> bool {
    file.contains(TASK_COLUMNS) && file.contains(TASK_ROWS)
}

/// Makes the shared prompt `matrix` that of one of the tasks in `file`: each number times that of the task's matrix.
///
/// # Errors
/// [`Error::Tensor`] if the shapes do not fit, [`Error::Setting`] if there is no such task, or several and none is chosen.
pub(super) fn of_task(matrix: &mut Matrix, file: &TensorFile, task: Option<usize>) -> Result<()> {
    let (columns, rows) = (file.shape(TASK_COLUMNS)?, file.shape(TASK_ROWS)?);
    let unfit = || {
        let expected = format!("tasks x {} x rank, beside tasks x rank x {}", matrix.rows, matrix.columns);
        Error::tensor(TASK_COLUMNS, expected, format!("{columns:?} and {rows:?}"), "")
    };
    let (&[tasks, length, rank], &[row_tasks, row_rank, width]) = (columns, rows) else {
        return Err(unfit());
    };
    if (tasks, rank, length, width) != (row_tasks, row_rank, matrix.rows, matrix.columns) {
        return Err(unfit());
    }
    let task = match task {
        None if tasks == 1 => 0,
        Some(task) if task < tasks => task,
        chosen => {
            let found = chosen.map_or("none".to_owned(), |task| task.to_string());
            let expected =
                format!("the number of one of the adapter's tasks, 0 to {}", tasks.saturating_sub(1));
            let advice = "say whose prompt is meant: promptmix prompts import --adapter-task N";
            return Err(Error::setting("--adapter-task", expected, found, advice));
        }
    };
    let columns = file.tensor(TASK_COLUMNS, &[tasks, length, rank])?;
    let rows = file.tensor(TASK_ROWS, &[tasks, rank, width])?;
    let columns = &columns[task * length * rank..][..length * rank];
    let rows = &rows[task * rank * width..][..rank * width];
    for (at, value) in matrix.values.iter_mut().enumerate() {
        let (row, column) = (at / width, at % width);
        let factor: f32 = (0..rank).map(|r| columns[row * rank + r] * rows[r * width + column]).sum();
        *value *= factor;
    }
    Ok(())
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
