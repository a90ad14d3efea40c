//! Soft prompts as files: one safetensors file a prompt, with what is needed to know where it came from and whether it
//! fits a model.
//!
//! [`import()`] reads the formats of other programs and [`export`] writes PEFT's; [`SavedScorer`] is the attention that mixes
//! prompts. Not for training them.

mod import;
mod matrix;
mod merge;
mod nearest;
mod numpy;
mod peft;
mod run;
mod scorer;
mod torch;

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::count::counted;
use crate::error::{Error, Result};
use crate::files;
use crate::pretrained::{ElementType, TensorFile};

pub use import::{ImportSettings, Imported, import, import_with};
pub use merge::{merge, similarity, weights_by_similarity};
pub use nearest::{Neighbor, nearest};
pub use peft::export;
pub use run::{file_of, name_of};
pub use scorer::SavedScorer;

/// The name of the one tensor in the file.
const TENSOR: &str = "prompt";
/// The version that is written; older ones are read, newer ones refused.
const FORMAT_VERSION: u32 = 1;

/// Where a prompt came from. Everything may be unknown, as it is for a bare tensor that another program saved.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct PromptMetadata {
    /// The task it was trained on.
    pub task: Option<String>,
    /// [`crate::pretrained::Checkpoint::sha256`] of the model it was trained with.
    pub model_sha256: Option<String>,
    /// The method that trained it: `prompt-tuning`, `spot`, `attempt`.
    pub method: Option<String>,
    /// Optimiser steps it was trained for.
    pub steps: Option<u64>,
    /// The prompt's peak learning rate.
    pub learning_rate: Option<f64>,
    /// The run's seed.
    pub seed: Option<u64>,
    /// The name and value of the validation metric by which it was chosen.
    pub metric: Option<(String, f64)>,
    /// Where it came from if it was not trained here: the file that was imported, the prompts that were merged.
    pub origin: Option<String>,
    /// What it is the weighted mean of, if it was merged.
    pub merged_from: Vec<MergedPart>,
    /// The version of this crate that wrote the file; filled in when it is saved.
    pub promptmix_version: Option<String>,
}

/// A prompt that was merged into another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergedPart {
    /// What it was called.
    pub name: String,
    /// Its weight; those of all parts sum to 1.
    pub weight: f64,
    /// The task it was trained on, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Where it came from itself, if it was not trained by this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

/// A soft prompt: M rows of width D, all finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    name: String,
    values: Vec<f32>,
    length: usize,
    width: usize,
    metadata: PromptMetadata,
}

impl Prompt {
    /// A prompt of `length` rows (M) of `width` columns (D), row-major in `values`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a size is zero, `values` has another length than M·D, or one of them is not finite.
    pub fn new(
        name: impl Into<String>,
        values: Vec<f32>,
        length: usize,
        width: usize,
        metadata: PromptMetadata,
    ) -> Result<Self> {
        let name = name.into();
        let refuse = |expected: String, found: String| Err(Error::tensor(&name, expected, found, ""));
        if length == 0 || width == 0 {
            return refuse("at least one row and one column".to_owned(), format!("[{length}, {width}]"));
        }
        if length.checked_mul(width) != Some(values.len()) {
            return refuse(format!("{length} x {width} values"), values.len().to_string());
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return refuse("finite values".to_owned(), format!("{} at index {index}", values[index]));
        }
        Ok(Self { name, values, length, width, metadata })
    }

    /// Reads the prompt that [`Prompt::save`] wrote at `path`, or any safetensors file with a tensor `prompt`, M x D of
    /// f32. Its name is the file's stem. The folder of a run stands for the prompt in it, by the folder's name.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Format`] if the file is missing, broken or contradicts itself, or the folder holds no or
    /// several prompts, [`Error::Tensor`] if the tensor is absent, of another type or rank, or not finite,
    /// [`Error::Unsupported`] if a newer version wrote it.
    pub fn load(path: &Path) -> Result<Self> {
        let file = file_of(path)?;
        let mut prompt = Self::from_file(TensorFile::open_safetensors(&file)?)?;
        if file != path {
            prompt.name = name_of(path);
        }
        Ok(prompt)
    }

    /// As [`Prompt::load`], from bytes that came from elsewhere; `path` names the prompt and appears in errors.
    ///
    /// # Errors
    /// As there, but for [`Error::File`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::from_file(TensorFile::safetensors_from_bytes(path, bytes)?)
    }

    fn from_file(file: TensorFile) -> Result<Self> {
        let path = file.path();
        let (metadata, length, width) = read_metadata(path, file.metadata())?;
        let shape = file.shape(TENSOR)?;
        let element = file.element_type(TENSOR)?;
        let &[rows, columns] = shape else {
            return Err(Error::tensor(
                TENSOR,
                "two dimensions, length and width",
                format!("shape {shape:?} in {}", path.display()),
                "save one prompt as rows x columns",
            ));
        };
        if element != ElementType::F32 {
            return Err(Error::tensor(
                TENSOR,
                "elements of type f32",
                format!("{} in {}", element.name(), path.display()),
                "promptmix prompts import makes an f32 prompt of it",
            ));
        }
        if length.is_some_and(|length| length != rows) || width.is_some_and(|width| width != columns) {
            return Err(Error::format(
                path,
                None,
                format!("a prompt of {rows} x {columns}, as the tensor is"),
                format!("metadata that says {} x {}", shown(length), shown(width)),
                "the file was edited or damaged; train the prompt again",
            ));
        }
        let values = file.tensor(TENSOR, &[rows, columns])?;
        Self::new(stem(path), values, rows, columns, metadata)
    }

    /// Writes the prompt to `path`: the whole file or, on any failure, none of it. Equal prompts give equal bytes.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.save_named(path, TENSOR)
    }

    /// As [`Prompt::save`], with another name for the tensor.
    fn save_named(&self, path: &Path, tensor: &str) -> Result<()> {
        let metadata = &self.metadata;
        let mut written = BTreeMap::from([
            ("format_version", FORMAT_VERSION.to_string()),
            ("length", self.length.to_string()),
            ("promptmix_version", env!("CARGO_PKG_VERSION").to_owned()),
            ("width", self.width.to_string()),
        ]);
        let (metric, metric_value) = metadata.metric.clone().unzip();
        let optional = [
            ("task", metadata.task.clone()),
            ("model_sha256", metadata.model_sha256.clone()),
            ("method", metadata.method.clone()),
            ("steps", metadata.steps.map(|steps| steps.to_string())),
            ("learning_rate", metadata.learning_rate.map(|rate| rate.to_string())),
            ("seed", metadata.seed.map(|seed| seed.to_string())),
            ("metric", metric),
            ("metric_value", metric_value.map(|value| value.to_string())),
            ("origin", metadata.origin.clone()),
            (
                "merged_from",
                (!metadata.merged_from.is_empty())
                    .then(|| serde_json::json!(metadata.merged_from).to_string()),
            ),
        ];
        written.extend(optional.into_iter().filter_map(|(key, value)| Some((key, value?))));
        save_tensors(path, &written, &[(tensor, &[self.length, self.width], &self.values)])
    }

    /// The same prompt by another name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same prompt with other metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: PromptMetadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Whether the prompt can stand before the inputs of a model of this width and, where both are known, was trained
    /// with this very model. A caller who wants it on another model of equal width passes no hash.
    ///
    /// # Errors
    /// [`Error::Setting`] that says which of the two does not fit.
    pub fn check_fits(&self, width: usize, model_sha256: Option<&str>) -> Result<()> {
        if self.width != width {
            return Err(Error::setting(
                format!("prompt {}", self.name),
                format!("width {width}, the model's d_model"),
                format!("width {}", self.width),
                "use a prompt that was trained with a model of this size",
            ));
        }
        match (self.metadata.model_sha256.as_deref(), model_sha256) {
            (Some(trained), Some(model)) if trained != model => Err(Error::setting(
                format!("prompt {}", self.name),
                format!("one trained with this model (sha256 {})", short(model)),
                format!("one trained with another of the same width (sha256 {})", short(trained)),
                "a soft prompt has no meaning to other weights: train it again with this model",
            )),
            _ => Ok(()),
        }
    }

    /// The file's stem, or what [`Prompt::new`] was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All values, M x D, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Gives the values away, M x D, row-major.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// Rows (M).
    pub fn length(&self) -> usize {
        self.length
    }

    /// Columns (D).
    pub fn width(&self) -> usize {
        self.width
    }

    /// Where it came from.
    pub fn metadata(&self) -> &PromptMetadata {
        &self.metadata
    }

    /// SHA-256 of its numbers and of nothing else: of the name and the metadata a mixture does not depend.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update((self.width as u64).to_le_bytes());
        self.values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
        format!("{:x}", hasher.finalize())
    }
}

/// Loads the prompts to be mixed, in the order given: files, or folders of runs. Each must have width `d_model`, and all one
/// length. Two files of equal stem are told apart by their folders: `sst2/best` and `mnli/best`.
///
/// # Errors
/// Whatever [`Prompt::load`] returns, and [`Error::Setting`] if a width or length differs or a file is given twice.
pub fn load_sources(paths: &[PathBuf], d_model: usize) -> Result<Vec<Prompt>> {
    let files = paths.iter().map(|path| file_of(path)).collect::<Result<Vec<PathBuf>>>()?;
    let mut prompts: Vec<Prompt> = Vec::new();
    for (path, name) in files.iter().zip(&source_names(&files)) {
        let mut prompt = Prompt::load(path)?;
        prompt.check_fits(d_model, None)?;
        if let Some(first) = prompts.first()
            && first.length != prompt.length
        {
            return Err(Error::setting(
                "sources",
                format!("prompts of one length; {} has {}", first.name, counted(first.length, "row")),
                format!("{} in {}", counted(prompt.length, "row"), path.display()),
                "train all source prompts with the same --prompt-length",
            ));
        }
        prompt.name.clone_from(name);
        if let Some(same) = prompts.iter().find(|other| other.name == prompt.name) {
            return Err(Error::setting(
                "sources",
                "each source once, under a name of its own",
                format!("{} twice", same.name),
                "give each once; rename a file where two different ones share their name and their folder's",
            ));
        }
        prompts.push(prompt);
    }
    Ok(prompts)
}

/// The names by which sources are told apart: the stem of each file, with its folder where two stems are equal.
fn source_names(paths: &[PathBuf]) -> Vec<String> {
    let name = |path: &PathBuf| {
        let stem_of_path = stem(path);
        let alike = paths.iter().filter(|&other| stem(other) == stem_of_path).count();
        let folder = path.canonicalize().ok();
        match folder.as_deref().and_then(Path::parent).and_then(Path::file_name) {
            Some(folder) if alike > 1 => format!("{}/{stem_of_path}", folder.to_string_lossy()),
            _ => stem_of_path,
        }
    };
    paths.iter().map(name).collect()
}

/// The metadata, and the length and width it claims.
fn read_metadata(
    path: &Path,
    written: &HashMap<String, String>,
) -> Result<(PromptMetadata, Option<usize>, Option<usize>)> {
    fn number<T: std::str::FromStr>(
        path: &Path,
        written: &HashMap<String, String>,
        key: &str,
    ) -> Result<Option<T>> {
        let Some(text) = written.get(key) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            let found =
                format!("`{}`", text.chars().take(40).flat_map(char::escape_debug).collect::<String>());
            Error::format(path, None, format!("a number as {key} in the metadata"), found, "")
        })
    }
    let version: Option<u32> = number(path, written, "format_version")?;
    if version.is_some_and(|version| version > FORMAT_VERSION) {
        let by = written.get("promptmix_version").map_or("a newer version", String::as_str);
        return Err(Error::unsupported(
            format!("version {} of the prompt format", shown(version)),
            format!(
                "{} was written by promptmix {by}; this one reads up to {FORMAT_VERSION}",
                path.display()
            ),
            "update promptmix",
        ));
    }
    let text = |key: &str| written.get(key).cloned();
    let merged_from = match written.get("merged_from") {
        Some(json) => serde_json::from_str(json).map_err(|error| {
            let expected = "a list of names and weights as merged_from in the metadata";
            Error::format(path, None, expected, error.to_string(), "merge the prompts again")
        })?,
        None => Vec::new(),
    };
    let metric = text("metric").zip(number(path, written, "metric_value")?);
    let metadata = PromptMetadata {
        task: text("task"),
        model_sha256: text("model_sha256"),
        method: text("method"),
        steps: number(path, written, "steps")?,
        learning_rate: number(path, written, "learning_rate")?,
        seed: number(path, written, "seed")?,
        metric,
        origin: text("origin"),
        merged_from,
        promptmix_version: text("promptmix_version"),
    };
    Ok((metadata, number(path, written, "length")?, number(path, written, "width")?))
}

/// Writes f32 tensors as safetensors, atomically; equal contents give equal bytes. The header is written here because the
/// format's crate takes metadata as a hash map and orders it differently in every process. It is padded so that the data
/// starts at a multiple of eight bytes.
fn save_tensors(
    path: &Path,
    metadata: &BTreeMap<&str, String>,
    tensors: &[(&str, &[usize], &[f32])],
) -> Result<()> {
    let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), serde_json::json!(metadata))]);
    let mut start = 0;
    for (name, shape, values) in tensors {
        let end = start + size_of_val(*values);
        let about = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert((*name).to_owned(), about);
        start = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    files::replace(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let values = tensors.iter().flat_map(|(_, _, values)| values.iter());
        values.into_iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
    })
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn shown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

/// Enough of a hash to tell two apart in a message.
fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}
