//! A trained scorer by itself: the attention that mixes prompts, kept to start other runs from.
//!
//! It does not depend on how many sources are mixed, so it goes with any. Also read: the files of the authors' release.

use std::collections::BTreeMap;
use std::path::Path;

use super::save_tensors;
use crate::error::{Error, Result};
use crate::pretrained::TensorFile;

/// The authors' file of each segment.
const RELEASED: [(&str, &str); 5] = [
    ("w_down", "attn_W_down.pt"),
    ("w_up", "attn_W_up.pt"),
    ("norm_weight", "layer_norm_weight.pt"),
    ("norm_bias", "layer_norm_bias.pt"),
    ("weight", "attn_Wa_weights.pt"),
];
const FORMAT: &str = "promptmix scorer 1";
/// The segments that a scorer may have; others in a file are not its.
const SEGMENTS: [&str; 8] =
    ["w_down", "w_up", "weight", "norm_weight", "norm_bias", "log_temperature", "input_mean", "input_scale"];

/// A scorer's numbers by segment, as the trained state names them.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SavedScorer {
    /// Shape and values of each segment.
    pub segments: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// The model that it was trained with, if known.
    pub model_sha256: Option<String>,
    /// What scores were divided by when it was trained, if known and not a segment of its own.
    pub temperature: Option<f64>,
}

impl SavedScorer {
    /// A scorer of these segments.
    pub fn new(
        segments: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
        model_sha256: Option<String>,
        temperature: Option<f64>,
    ) -> Self {
        Self { segments, model_sha256, temperature }
    }

    /// Reads what [`save`](Self::save) wrote at `path`, or `scorer.safetensors` in the folder of a run, or the files of
    /// the authors' release in a folder.
    ///
    /// # Errors
    /// Those of reading the files; [`Error::Format`] if there is no scorer in them.
    pub fn load(path: &Path) -> Result<Self> {
        let released = |name: &str| path.join(name).is_file();
        if path.is_dir() && RELEASED.iter().any(|(_, name)| released(name)) {
            return Self::released(path);
        }
        let in_folder = path.join("scorer.safetensors");
        if path.is_dir() && !in_folder.exists() {
            let advice = "name a run of --method attempt whose scorer has weights of its own, or a folder of the authors' release";
            return Err(Error::format(
                path,
                None,
                "a trained scorer",
                "a folder without scorer.safetensors",
                advice,
            ));
        }
        let path = if path.is_dir() { in_folder } else { path.to_owned() };
        let file = TensorFile::open_safetensors(&path)?;
        let mut scorer =
            Self { model_sha256: file.metadata().get("model_sha256").cloned(), ..Self::default() };
        scorer.temperature = file.metadata().get("temperature").and_then(|text| text.parse().ok());
        for name in SEGMENTS.into_iter().filter(|name| file.contains(name)) {
            let shape = file.shape(name)?.to_vec();
            let values = file.tensor(name, &shape)?;
            scorer.segments.insert(name.to_owned(), (shape, values));
        }
        scorer.check(&path)
    }

    fn released(folder: &Path) -> Result<Self> {
        let mut scorer = Self::default();
        let bottleneck = folder.join("attn_W_down.pt").is_file();
        for (segment, name) in RELEASED {
            let path = folder.join(name);
            // The release saves the linear scorer's weight of every run, learnt or not.
            if !path.is_file() || (bottleneck && segment == "weight") {
                continue;
            }
            let file = TensorFile::open_torch(&path)?;
            let tensor = file.names().next().unwrap_or_default().to_owned();
            let shape = file.shape(&tensor)?.to_vec();
            scorer.segments.insert(segment.to_owned(), (shape.clone(), file.tensor(&tensor, &shape)?));
        }
        scorer.check(folder)
    }

    fn check(self, path: &Path) -> Result<Self> {
        if self.segments.contains_key("w_down") || self.segments.contains_key("weight") {
            return Ok(self);
        }
        let found: Vec<&str> = self.segments.keys().map(String::as_str).collect();
        let found =
            if found.is_empty() { "neither".to_owned() } else { format!("only {}", found.join(", ")) };
        let advice = "give scorer.safetensors of a run, or the folder of the authors' release";
        Err(Error::format(path, None, "a scorer's w_down and w_up, or weight", found, advice))
    }

    /// Writes the scorer to `path`: the whole file or, on any failure, none of it.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut metadata = BTreeMap::from([("format", FORMAT.to_owned())]);
        if let Some(hash) = &self.model_sha256 {
            metadata.insert("model_sha256", hash.clone());
        }
        if let Some(temperature) = self.temperature {
            metadata.insert("temperature", temperature.to_string());
        }
        let tensors: Vec<(&str, &[usize], &[f32])> = self
            .segments
            .iter()
            .map(|(name, (shape, values))| (name.as_str(), &shape[..], &values[..]))
            .collect();
        save_tensors(path, &metadata, &tensors)
    }

    /// The values of the segment `name`, which must have this shape; `None` if the scorer has no such segment.
    ///
    /// # Errors
    /// [`Error::Tensor`] if its shape is another.
    pub fn segment(&self, name: &str, shape: &[usize]) -> Result<Option<&[f32]>> {
        let Some((found, values)) = self.segments.get(name) else { return Ok(None) };
        if found != shape {
            let advice = "give the --bottleneck-dim and the --scorer that it was trained with, on a model of its width";
            return Err(Error::tensor(name, format!("shape {shape:?}"), format!("shape {found:?}"), advice));
        }
        Ok(Some(values))
    }
}
