//! The weights of one T5, from whichever files a checkpoint folder holds.
//!
//! Not for folding or laying them out: this gives each tensor as it was trained, checked for shape, type and finiteness.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::config::CONFIG_BYTES;
use super::tensor_file::DEQUANTIZE;
use super::{T5Config, TensorFile, small_file};
use crate::error::{Error, Result};

/// The weights of all formats in the order in which they are looked for.
const WEIGHT_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// The names under which the embedding may be stored; the first that exists is read.
const EMBEDDING_NAMES: [&str; 3] =
    ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
const OUTPUT_NAME: &str = "lm_head.weight";
/// A tensor that every T5 has once.
const LAST_NORM: &str = "encoder.final_layer_norm.weight";
/// The largest shard index that is read; the largest T5's is below 200 kB.
const INDEX_BYTES: u64 = 64 << 20;
/// A table that the first T5 checkpoints hold and that no version of the model reads.
const OLD_BIAS: &str = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
/// How many missing tensors an error lists.
const LISTED: usize = 10;
/// How many tensors that are passed over a warning lists.
const FEW: usize = 4;

/// A T5 checkpoint: its configuration and its tensors, mapped into memory until this is dropped.
///
/// Every tensor that the configuration implies is known to be there with the right shape; values are checked as they
/// are read. Reading one tensor leaves none of the file's pages resident, so a model can be read straight into its
/// final place without being held twice.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: T5Config,
    files: Vec<TensorFile>,
    /// Which of `files` holds a name.
    holder: BTreeMap<String, usize>,
    embedding: &'static str,
    /// What its user should hear: where its files allow two readings, which was taken.
    warnings: Vec<String>,
    sha256: OnceLock<String>,
}

/// A shard index: which file beside it holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder`: `config.json` and the first that exists of `model.safetensors`,
    /// `model.safetensors.index.json`, `pytorch_model.bin`, `pytorch_model.bin.index.json`.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Format`] if a file is missing, broken or lacks tensors (up to ten are named),
    /// [`Error::Tensor`] if one has another shape or type than the configuration implies, and whatever
    /// [`T5Config::read`] refuses.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::setting(
                "model",
                "a folder with config.json and the weights of a T5",
                format!("{}, which is not a folder", folder.display()),
                "give the checkpoint's folder or its hub id",
            ));
        }
        let path = folder.join("config.json");
        let json = small_file(&path, CONFIG_BYTES)?;
        let (config, mut warnings) = T5Config::with_remarks(&path, &json)?;
        let Some(weights) = WEIGHT_FILES.into_iter().find(|name| folder.join(name).exists()) else {
            return Err(Error::format(
                folder,
                None,
                format!("one of {}", WEIGHT_FILES.join(", ")),
                "none of them",
                "fetch the weights into this folder; TensorFlow and Flax files are not read",
            ));
        };
        let path = folder.join(weights);
        let (mut files, mut holder) = if weights.ends_with(".index.json") {
            open_shards(folder, &path)?
        } else {
            let file = open_weights(&path)?;
            let holder = file.names().map(|name| (name.to_owned(), 0)).collect();
            (vec![file], holder)
        };
        if let Some(prefix) = prefix(&holder) {
            let names = std::mem::take(&mut holder).into_iter();
            holder = names
                .map(|(name, file)| (name.strip_prefix(&prefix).map_or(name.clone(), str::to_owned), file))
                .collect();
            files.iter_mut().for_each(|file| file.strip(&prefix));
            warnings.push(format!(
                "{}: the names of its tensors begin with `{prefix}`, as of a model that was saved inside another; they are \
                 read without it",
                path.display()
            ));
        }
        let embedding = EMBEDDING_NAMES.into_iter().find(|name| holder.contains_key(*name));
        let mut checkpoint = Self {
            folder: folder.to_owned(),
            config,
            files,
            holder,
            embedding: embedding.unwrap_or(EMBEDDING_NAMES[0]),
            warnings,
            sha256: OnceLock::new(),
        };
        checkpoint.find_output(&path).map_err(|error| match (quantized_by(&json), &error) {
            // Whatever was found first, it comes of this.
            (Some(method), Error::Tensor { .. } | Error::Format { .. }) => {
                let found = format!("weights that {method} quantized, by its quantization_config");
                let expected = "weights in f32, bf16 or f16";
                Error::format(folder.join("config.json"), None, expected, found, DEQUANTIZE)
            }
            _ => error,
        })?;
        checkpoint.warn_of_unused(&path);
        Ok(checkpoint)
    }

    /// Says which tensors have no place in the model: it may be another one than those that wrote them meant.
    fn warn_of_unused(&mut self, path: &Path) {
        let used: BTreeSet<String> = self.stored_tensors().into_iter().map(|(name, _)| name).collect();
        let is_unused = |name: &&str| {
            !used.contains(*name)
                && *name != OUTPUT_NAME
                && *name != OLD_BIAS
                && !EMBEDDING_NAMES.contains(name)
        };
        let unused: Vec<&str> = self.holder.keys().map(String::as_str).filter(is_unused).collect();
        if unused.is_empty() {
            return;
        }
        let mut names = unused.iter().take(FEW).copied().collect::<Vec<_>>().join(", ");
        if unused.len() > FEW {
            names.push_str(&format!(" and {} more", unused.len() - FEW));
        }
        let warning = format!(
            "{}: {} of its tensors are not read, as the T5 that config.json describes has none of these names: {names}; if it was \
             trained with them, its answers here are not those that it should give",
            path.display(),
            unused.len()
        );
        self.warnings.push(warning);
    }

    /// Checks the tensors and sets the configuration to the output matrix that is there: `lm_head.weight` if it is stored
    /// and another one, else the embedding.
    fn find_output(&mut self, weights: &Path) -> Result<()> {
        let scaled = self.config.scales_decoder_outputs();
        let stored = self.contains(OUTPUT_NAME);
        if !stored && !self.config.tie_word_embeddings {
            self.warnings.push(format!(
                "{}: tie_word_embeddings is false but no {OUTPUT_NAME} is stored: the embedding is taken as the output \
                 matrix, unscaled, as transformers 5 does",
                self.folder.join("config.json").display()
            ));
        }
        self.config.tie_word_embeddings = !stored;
        self.check_tensors(weights)?;
        let tied = !stored || self.are_equal(self.embedding, OUTPUT_NAME)?;
        self.config.tie_word_embeddings = tied;
        self.config.scale_decoder_outputs = (scaled != tied).then_some(scaled);
        Ok(())
    }

    /// Names every absent tensor at once, then checks the shape and type of each.
    fn check_tensors(&self, path: &Path) -> Result<()> {
        let tensors = self.stored_tensors();
        let missing: Vec<&str> =
            tensors.iter().map(|(name, _)| name.as_str()).filter(|name| !self.contains(name)).collect();
        if !missing.is_empty() {
            let mut names = missing.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
            if missing.len() > LISTED {
                names.push_str(&format!(" and {} more", missing.len() - LISTED));
            }
            let advice =
                "check that config.json and the weights belong together and that every shard is there";
            return Err(Error::format(
                path,
                None,
                format!("{} tensors of a T5", tensors.len()),
                format!("{} of them missing: {names}", missing.len()),
                advice,
            ));
        }
        for (name, shape) in &tensors {
            self.file(name)?.checked_entry(name, shape)?;
        }
        Ok(())
    }

    /// The model's tensors under the names they have here.
    fn stored_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = self.config.tensors();
        if let Some((name, _)) = tensors.first_mut() {
            *name = self.embedding.to_owned();
        }
        tensors
    }

    /// The folder it was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The model's dimensions and constants.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Whether a tensor of this name is stored.
    pub fn contains(&self, name: &str) -> bool {
        self.holder.contains_key(name)
    }

    /// Reads a tensor in row-major order; matrices are out x in.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is absent, has another shape, a type other than f32, bf16, f16 or f64, or holds a value that
    /// is not finite; the first such index is named.
    pub fn tensor(&self, name: &str, expected_shape: &[usize]) -> Result<Vec<f32>> {
        self.file(name)?.tensor(name, expected_shape)
    }

    /// As [`Checkpoint::tensor`], into `values` without an allocation of the tensor's size. After an error the content
    /// of `values` is unspecified.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and [`Error::Tensor`] if `values` has another length than the tensor.
    pub fn read_into(&self, name: &str, expected_shape: &[usize], values: &mut [f32]) -> Result<()> {
        self.file(name)?.read_into(name, expected_shape, values)
    }

    /// The embedding E, V x D, under whichever of its names it is stored.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and [`Error::Tensor`] if it is stored under two names with different values.
    pub fn embedding(&self) -> Result<Vec<f32>> {
        self.check_embeddings_agree()?;
        self.tensor(self.embedding, &self.embedding_shape())
    }

    /// As [`Checkpoint::embedding`], into `values` of length V·D.
    ///
    /// # Errors
    /// As [`Checkpoint::embedding`], and [`Error::Tensor`] if `values` has another length.
    pub fn embedding_into(&self, values: &mut [f32]) -> Result<()> {
        self.check_embeddings_agree()?;
        self.read_into(self.embedding, &self.embedding_shape(), values)
    }

    /// Shows `visit` the embedding in order, some whole rows of D numbers at a time, without holding it as a whole.
    ///
    /// # Errors
    /// As [`Checkpoint::embedding`], and the first of `visit`.
    pub fn visit_embedding(&self, visit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        self.check_embeddings_agree()?;
        self.file(self.embedding)?.visit_rows(self.embedding, self.embedding_shape(), visit)
    }

    /// Whether the decoder's output matrix is the embedding: there is no `lm_head.weight`, or it holds the same values.
    /// [`T5Config::scales_decoder_outputs`] says whether its input is scaled.
    pub fn output_is_tied(&self) -> bool {
        self.config.tie_word_embeddings
    }

    /// What the user of this model should hear: where its files allow two readings, which was taken.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Hexadecimal SHA-256 over the names, shapes, types and bytes of the model's tensors, in the order of
    /// [`T5Config::tensors`] and under the names given there, so that it does not depend on sharding, on the file
    /// format, or on second copies of the embedding. An unscaled output's matrix counts even where it is the embedding,
    /// and a scale does where the matrix is another one: so equal models have one hash, whichever version of transformers
    /// saved them. Computed at the first call: it reads the whole model once.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a tensor's data lies outside its file.
    pub fn sha256(&self) -> Result<&str> {
        if let Some(hash) = self.sha256.get() {
            return Ok(hash);
        }
        let mut hasher = Sha256::new();
        let (tied, scaled) = (self.config.tie_word_embeddings, self.config.scales_decoder_outputs());
        let mut tensors = self.stored_tensors();
        let mut names: Vec<String> = self.config.tensors().into_iter().map(|(name, _)| name).collect();
        if tied && !scaled {
            let stored = if self.contains(OUTPUT_NAME) { OUTPUT_NAME } else { self.embedding };
            tensors.push((stored.to_owned(), self.embedding_shape().to_vec()));
            names.push(OUTPUT_NAME.to_owned());
        }
        for ((stored, shape), name) in tensors.iter().zip(names) {
            let file = self.file(stored)?;
            let entry = file.checked_entry(stored, shape)?;
            // Lengths and separators make the hashed sequence unambiguous.
            hasher.update(format!("{name}\n{shape:?}\n{}\n", entry.element.name()));
            file.visit(stored, entry, |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
        }
        if scaled && !tied {
            hasher.update("scale_decoder_outputs\n");
        }
        let hash = format!("{:x}", hasher.finalize());
        Ok(self.sha256.get_or_init(|| hash))
    }

    fn embedding_shape(&self) -> [usize; 2] {
        [self.config.vocab_size, self.config.d_model]
    }

    fn file(&self, name: &str) -> Result<&TensorFile> {
        self.holder.get(name).and_then(|&index| self.files.get(index)).ok_or_else(|| {
            Error::tensor(name, format!("a tensor of this name in {}", self.folder.display()), "none", "")
        })
    }

    fn check_embeddings_agree(&self) -> Result<()> {
        for other in EMBEDDING_NAMES {
            if other != self.embedding && self.contains(other) && !self.are_equal(self.embedding, other)? {
                return Err(Error::tensor(
                    other,
                    format!("the values of {}: a T5 has one embedding", self.embedding),
                    "other values",
                    "this checkpoint is not a T5 as published; use one whose embeddings are shared",
                ));
            }
        }
        Ok(())
    }

    /// Whether two tensors of the embedding's shape hold equal values: as stored, or where the types differ as f32.
    fn are_equal(&self, left: &str, right: &str) -> Result<bool> {
        let shape = self.embedding_shape();
        let (left_file, right_file) = (self.file(left)?, self.file(right)?);
        let left_entry = left_file.checked_entry(left, &shape)?;
        let right_entry = right_file.checked_entry(right, &shape)?;
        if std::ptr::eq(left_file, right_file) && left_entry == right_entry {
            return Ok(true);
        }
        let equal = if left_entry.element == right_entry.element {
            left_file.data(left, left_entry)? == right_file.data(right, right_entry)?
        } else {
            left_file.tensor(left, &shape)? == right_file.tensor(right, &shape)?
        };
        left_file.release(left_entry);
        right_file.release(right_entry);
        Ok(equal)
    }
}

/// What quantized the weights, if the configuration says that something did.
fn quantized_by(json: &[u8]) -> Option<String> {
    let config: serde_json::Value = serde_json::from_slice(json).ok()?;
    let settings = config.get("quantization_config").filter(|settings| !settings.is_null())?;
    let method = settings.get("quant_method").and_then(serde_json::Value::as_str);
    Some(method.unwrap_or("something").chars().take(40).flat_map(char::escape_debug).collect())
}

/// What stands before the names of a whole T5 that was saved inside something else: `module.` by data-parallel training,
/// `_orig_mod.` by a compiled model, `model.` by a training library's wrapper.
fn prefix(holder: &BTreeMap<String, usize>) -> Option<String> {
    if holder.contains_key(LAST_NORM) {
        return None;
    }
    let mut prefixes = holder.keys().filter_map(|name| name.strip_suffix(LAST_NORM));
    // Two of them would be two models.
    prefixes.next().filter(|prefix| prefix.ends_with('.') && prefixes.next().is_none()).map(str::to_owned)
}

fn open_weights(path: &Path) -> Result<TensorFile> {
    match path.extension() {
        Some(extension) if extension == "safetensors" => TensorFile::open_safetensors(path),
        _ => TensorFile::open_torch(path),
    }
}

/// The files that an index names, and which of them holds what. A name that its shard lacks is an error.
fn open_shards(folder: &Path, index: &Path) -> Result<(Vec<TensorFile>, BTreeMap<String, usize>)> {
    let broken = |found: String, line: Option<u64>| {
        Error::format(
            index,
            line,
            "an index that maps tensor names to files beside it",
            found,
            "fetch the checkpoint again",
        )
    };
    let parsed: Index = serde_json::from_slice(&small_file(index, INDEX_BYTES)?)
        .map_err(|error| broken(error.to_string(), Some(error.line() as u64)))?;
    let names: BTreeSet<&str> = parsed.weight_map.values().map(String::as_str).collect();
    let mut files = Vec::new();
    let mut number = BTreeMap::new();
    for name in names {
        // A shard lies beside its index; anything else would let an index reach other files of this machine.
        let mut components = Path::new(name).components();
        let beside = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !beside {
            return Err(broken(format!("the file name `{}`", name.escape_debug()), None));
        }
        number.insert(name, files.len());
        files.push(open_weights(&folder.join(name))?);
    }
    let mut holder = BTreeMap::new();
    for (tensor, name) in &parsed.weight_map {
        let held = number
            .get(name.as_str())
            .and_then(|&number| Some((number, files.get(number)?)))
            .filter(|(_, file)| file.contains(tensor));
        let Some((number, _)) = held else {
            return Err(broken(format!("{tensor} mapped to {name}, which lacks it"), None));
        };
        holder.insert(tensor.clone(), number);
    }
    Ok((files, holder))
}
