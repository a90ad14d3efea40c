//! The shape of a T5: what `config.json` says, checked before anything is allocated by it.
//!
//! Not for the settings of a training run; those are elsewhere.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::small_file;
pub use crate::backend::Activation;
use crate::error::{Error, Result};

/// The largest `config.json` that is read; real ones are a few kilobytes.
pub(super) const CONFIG_BYTES: u64 = 16 << 20;
/// More layers than any T5 has had; bounds the list of tensors that a configuration can ask for.
const MAX_LAYERS: usize = 1024;

impl Activation {
    /// The value of `feed_forward_proj` that stands for it.
    pub fn feed_forward_proj(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::GatedGelu => "gated-gelu",
            Self::GatedSilu => "gated-silu",
        }
    }
}

/// The family that `model_type` names: it decides how many sentinels a bare `spiece.model` is given, and what the keys about
/// the decoder's output mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelType {
    /// T5 v1.0, v1.1, LM-adapted, Flan.
    T5,
    /// Multilingual T5, whose vocabulary file holds its sentinels already.
    Mt5,
}

/// The dimensions and constants of one T5, named as in `config.json`.
///
/// Read with [`T5Config::read`], or made in code with [`T5Config::new`] or a preset; fields may then be changed, and
/// [`T5Config::validate`] says whether the result can be used.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct T5Config {
    /// Rows of the embedding (V).
    pub vocab_size: usize,
    /// Width of the residual stream (D).
    pub d_model: usize,
    /// Width of one attention head (K); H·K need not be D.
    pub d_kv: usize,
    /// Width inside the feed-forward block (F).
    pub d_ff: usize,
    /// Encoder layers.
    pub num_layers: usize,
    /// Decoder layers; `num_layers` where the file does not say.
    pub num_decoder_layers: usize,
    /// Attention heads (H).
    pub num_heads: usize,
    /// Buckets of the relative position bias.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions share the last bucket.
    pub relative_attention_max_distance: usize,
    /// Probability with which dropout zeroes an element during training, in [0, 1).
    pub dropout_rate: f32,
    /// Added to the mean square in every norm.
    pub layer_norm_epsilon: f32,
    /// From `feed_forward_proj`.
    pub activation: Activation,
    /// Whether the decoder's output matrix is the embedding. Of an opened [`Checkpoint`](super::Checkpoint) this is what its
    /// tensors say: a stored `lm_head.weight` that differs from the embedding is the output matrix, whatever the key was.
    pub tie_word_embeddings: bool,
    /// Whether the output matrix's input is scaled by D^-0.5; `None`: exactly where `tie_word_embeddings` is set.
    pub scale_decoder_outputs: Option<bool>,
    /// Id of the padding piece.
    pub pad_token_id: u32,
    /// Id of the piece that ends a sequence.
    pub eos_token_id: u32,
    /// Id that the decoder is started with.
    pub decoder_start_token_id: u32,
    /// From `model_type`.
    pub model_type: ModelType,
}

/// `config.json` as it is written; absent keys take T5's published defaults.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Written {
    vocab_size: Option<usize>,
    d_model: Option<usize>,
    d_kv: Option<usize>,
    d_ff: Option<usize>,
    num_layers: Option<usize>,
    num_decoder_layers: Option<usize>,
    num_heads: Option<usize>,
    relative_attention_num_buckets: Option<usize>,
    relative_attention_max_distance: Option<usize>,
    dropout_rate: Option<f32>,
    layer_norm_epsilon: Option<f32>,
    feed_forward_proj: Option<String>,
    tie_word_embeddings: Option<bool>,
    scale_decoder_outputs: Option<bool>,
    pad_token_id: Option<u32>,
    eos_token_id: Option<Id>,
    decoder_start_token_id: Option<u32>,
    model_type: Option<String>,
    transformers_version: Option<String>,
}

/// An id, which newer files may write as a list of ids of which any will do.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    One(u32),
    List([u32; 1]),
}

impl Id {
    fn value(&self) -> u32 {
        match self {
            Self::One(id) | Self::List([id]) => *id,
        }
    }
}

impl Written {
    /// # Errors
    /// [`Error::Format`] with the line, and the key where one has a value that it cannot have.
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|error| {
            // The reader knows the line; which key it was is found by trying each alone.
            let keys: Map<String, Value> = serde_json::from_slice(bytes).unwrap_or_default();
            let wrong = keys.into_iter().find(|(key, value)| {
                let alone = Map::from_iter([(key.clone(), value.clone())]);
                serde_json::from_value::<Self>(Value::Object(alone)).is_err()
            });
            let (expected, found) = match wrong {
                Some((key, value)) => (of_key(&key), format!("{key} = {}", shortened(&value))),
                None => ("the configuration of a T5 as JSON", error.to_string()),
            };
            let advice = "take config.json from the folder of the checkpoint";
            Error::format(path, Some(error.line() as u64), expected, found, advice)
        })
    }

    /// The version of transformers that wrote the file: its major and minor number. Those of a development version count
    /// as those of the release to come.
    fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.transformers_version.as_deref()?.split('.');
        let major = parts.next()?.trim().parse().ok()?;
        Some((major, parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0)))
    }
}

/// What the value of a key must be.
fn of_key(key: &str) -> &'static str {
    match key {
        "eos_token_id" => "the one id that ends a sequence, or a list of just that",
        "pad_token_id" | "decoder_start_token_id" => "one id",
        "tie_word_embeddings" | "scale_decoder_outputs" => "true or false",
        "dropout_rate" | "layer_norm_epsilon" => "a number",
        "feed_forward_proj" | "model_type" | "transformers_version" => "a string",
        _ => "a whole number, 0 or more",
    }
}

/// A value as it is written, cut where it is long.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// What is to be known about a configuration beside its numbers: where two readings of the file exist, which was taken.
pub(super) type Remarks = Vec<String>;

impl T5Config {
    /// A v1.0 configuration (ReLU, tied) with T5's defaults for everything that is not given: 32 buckets up to distance
    /// 128, dropout 0.1, epsilon 1e-6, pad 0, eos 1, decoder start 0, as many decoder layers as encoder layers.
    ///
    /// It is not validated; the caller may change fields first.
    pub fn new(
        vocab_size: usize,
        d_model: usize,
        d_kv: usize,
        d_ff: usize,
        num_layers: usize,
        num_heads: usize,
    ) -> Self {
        Self {
            vocab_size,
            d_model,
            d_kv,
            d_ff,
            num_layers,
            num_decoder_layers: num_layers,
            num_heads,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            dropout_rate: 0.1,
            layer_norm_epsilon: 1e-6,
            activation: Activation::Relu,
            tie_word_embeddings: true,
            scale_decoder_outputs: None,
            pad_token_id: 0,
            eos_token_id: 1,
            decoder_start_token_id: 0,
            model_type: ModelType::T5,
        }
    }

    /// T5 v1.0 small: 60 million parameters.
    pub fn t5_small() -> Self {
        Self::new(32_128, 512, 64, 2_048, 6, 8)
    }

    /// T5 v1.0 base: 220 million parameters.
    pub fn t5_base() -> Self {
        Self::new(32_128, 768, 64, 3_072, 12, 12)
    }

    /// T5 v1.0 large: 770 million parameters.
    pub fn t5_large() -> Self {
        Self::new(32_128, 1_024, 64, 4_096, 24, 16)
    }

    /// T5 v1.0 3B: 2.8 billion parameters.
    pub fn t5_3b() -> Self {
        Self::new(32_128, 1_024, 128, 16_384, 24, 32)
    }

    /// T5 v1.1 small (also LM-adapted and Flan): gated GELU, untied output.
    pub fn t5_v1_1_small() -> Self {
        Self::new(32_128, 512, 64, 1_024, 8, 6).gated_and_untied()
    }

    /// T5 v1.1 base (also LM-adapted and Flan): gated GELU, untied output.
    pub fn t5_v1_1_base() -> Self {
        Self::new(32_128, 768, 64, 2_048, 12, 12).gated_and_untied()
    }

    /// T5 v1.1 large (also LM-adapted and Flan): gated GELU, untied output.
    pub fn t5_v1_1_large() -> Self {
        Self::new(32_128, 1_024, 64, 2_816, 24, 16).gated_and_untied()
    }

    /// mT5 small: v1.1 small with 250,112 pieces.
    pub fn mt5_small() -> Self {
        Self { vocab_size: 250_112, model_type: ModelType::Mt5, ..Self::t5_v1_1_small() }
    }

    fn gated_and_untied(self) -> Self {
        Self { activation: Activation::GatedGelu, tie_word_embeddings: false, ..self }
    }

    /// Reads and validates the file at `path`, a `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Format`] if it is not such a file, [`Error::Setting`] or
    /// [`Error::Unsupported`] if it describes a model that cannot be used.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = small_file(path, CONFIG_BYTES)?;
        Self::from_json(path, &bytes)
    }

    /// As [`T5Config::read`], from bytes that came from elsewhere; `path` only names them in errors.
    ///
    /// # Errors
    /// As there, but for [`Error::File`].
    pub fn from_json(path: &Path, bytes: &[u8]) -> Result<Self> {
        Ok(Self::with_remarks(path, bytes)?.0)
    }

    /// As [`T5Config::from_json`], and what a user of the model should hear about it.
    pub(super) fn with_remarks(path: &Path, bytes: &[u8]) -> Result<(Self, Remarks)> {
        let written = Written::parse(path, bytes)?;
        let needed = |key: &str, size: Option<usize>| {
            size.ok_or_else(|| {
                let found = format!("no {key}");
                let advice = "take config.json from the folder of the checkpoint";
                Error::format(path, Some(1), format!("the configuration of a T5 with {key}"), found, advice)
            })
        };
        let model_type = match written.model_type.as_deref() {
            None | Some("t5") => ModelType::T5,
            Some("mt5") => ModelType::Mt5,
            Some("umt5") => {
                return Err(Error::unsupported(
                    "the model type `umt5`",
                    format!(
                        "{} describes a model with a position bias in every layer, where a T5 shares the first layer's",
                        path.display()
                    ),
                    "choose an mT5 checkpoint, of type `mt5`, for the same languages",
                ));
            }
            Some(other) => {
                return Err(Error::unsupported(
                    format!("the model type `{other}`"),
                    format!("{} must describe a model of type `t5` or `mt5`", path.display()),
                    "choose a T5 v1.0, v1.1, LM-adapted, Flan-T5 or mT5 checkpoint",
                ));
            }
        };
        let activation = match written.feed_forward_proj.as_deref() {
            None | Some("relu") => Activation::Relu,
            Some("gated-gelu") => Activation::GatedGelu,
            Some("gated-silu") => Activation::GatedSilu,
            Some(other) => {
                return Err(Error::unsupported(
                    format!("the activation `{other}` (feed_forward_proj in {})", path.display()),
                    "only `relu`, `gated-gelu` and `gated-silu` exist here",
                    "choose a checkpoint with one of these",
                ));
            }
        };
        let plain = Self::new(
            needed("vocab_size", written.vocab_size)?,
            needed("d_model", written.d_model)?,
            needed("d_kv", written.d_kv)?,
            needed("d_ff", written.d_ff)?,
            needed("num_layers", written.num_layers)?,
            needed("num_heads", written.num_heads)?,
        );
        let (tied, scaled, remarks) = output(path, &written, model_type, activation);
        let pad_token_id = written.pad_token_id.unwrap_or(plain.pad_token_id);
        let config = Self {
            num_decoder_layers: written.num_decoder_layers.unwrap_or(plain.num_layers),
            relative_attention_num_buckets: written
                .relative_attention_num_buckets
                .unwrap_or(plain.relative_attention_num_buckets),
            relative_attention_max_distance: written
                .relative_attention_max_distance
                .unwrap_or(plain.relative_attention_max_distance),
            dropout_rate: written.dropout_rate.unwrap_or(plain.dropout_rate),
            layer_norm_epsilon: written.layer_norm_epsilon.unwrap_or(plain.layer_norm_epsilon),
            activation,
            tie_word_embeddings: tied,
            scale_decoder_outputs: (scaled != tied).then_some(scaled),
            pad_token_id,
            eos_token_id: written.eos_token_id.map_or(plain.eos_token_id, |id| id.value()),
            decoder_start_token_id: written.decoder_start_token_id.unwrap_or(pad_token_id),
            model_type,
            ..plain
        };
        config.validate()?;
        Ok((config, remarks))
    }

    /// Whether the output matrix's input is scaled by D^-0.5.
    pub fn scales_decoder_outputs(&self) -> bool {
        self.scale_decoder_outputs.unwrap_or(self.tie_word_embeddings)
    }

    /// Whether a model of this shape can exist: positive sizes, a usable bias, ids inside the vocabulary, and a parameter
    /// count that this machine can address.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the first key that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, expected: &str, found: String| {
            Err(Error::setting(key, expected, found, "check config.json against the checkpoint it came with"))
        };
        for (key, size) in [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_decoder_layers", self.num_decoder_layers),
            ("num_heads", self.num_heads),
        ] {
            if size == 0 {
                return refuse(key, "a positive size", "0".to_owned());
            }
        }
        for (key, layers) in
            [("num_layers", self.num_layers), ("num_decoder_layers", self.num_decoder_layers)]
        {
            if layers > MAX_LAYERS {
                return refuse(key, &format!("at most {MAX_LAYERS}"), layers.to_string());
            }
        }
        // The encoder halves the buckets by direction and spends half of each half on exact distances, so fewer than four
        // leave no exact one; and the logarithmic part needs room between the last exact distance and the largest.
        let buckets = self.relative_attention_num_buckets;
        if buckets < 4 {
            return refuse("relative_attention_num_buckets", "at least 4", buckets.to_string());
        }
        if self.relative_attention_max_distance <= buckets / 2 {
            return refuse(
                "relative_attention_max_distance",
                &format!("more than {} (half of relative_attention_num_buckets)", buckets / 2),
                self.relative_attention_max_distance.to_string(),
            );
        }
        if !(0.0..1.0).contains(&self.dropout_rate) {
            return refuse("dropout_rate", "at least 0 and below 1", self.dropout_rate.to_string());
        }
        if !(self.layer_norm_epsilon > 0.0 && self.layer_norm_epsilon < 1.0) {
            return refuse("layer_norm_epsilon", "above 0 and below 1", self.layer_norm_epsilon.to_string());
        }
        for (key, id) in [
            ("pad_token_id", self.pad_token_id),
            ("eos_token_id", self.eos_token_id),
            ("decoder_start_token_id", self.decoder_start_token_id),
        ] {
            if id as usize >= self.vocab_size {
                return refuse(key, &format!("an id below vocab_size = {}", self.vocab_size), id.to_string());
            }
        }
        if self.checked_parameters().is_none() {
            return Err(Error::setting(
                "d_model, d_kv, d_ff, num_heads, vocab_size",
                "sizes whose product can be addressed",
                format!(
                    "{}, {}, {}, {}, {}",
                    self.d_model, self.d_kv, self.d_ff, self.num_heads, self.vocab_size
                ),
                "check config.json against the checkpoint it came with",
            ));
        }
        Ok(())
    }

    /// H·K, the width of queries, keys and values of all heads together.
    pub fn attention_width(&self) -> usize {
        self.num_heads.saturating_mul(self.d_kv)
    }

    /// Numbers in the model, each stored tensor once; `None` where they are more than can be addressed as f32.
    fn checked_parameters(&self) -> Option<usize> {
        let attention = self.num_heads.checked_mul(self.d_kv)?.checked_mul(self.d_model)?.checked_mul(4)?;
        let matrices = if self.activation.is_gated() { 3 } else { 2 };
        let feed_forward = self.d_model.checked_mul(self.d_ff)?.checked_mul(matrices)?;
        let bias = self.relative_attention_num_buckets.checked_mul(self.num_heads)?.checked_mul(2)?;
        let norms = self.d_model.checked_mul(3)?;
        let encoder_layer = attention.checked_add(feed_forward)?.checked_add(norms)?;
        let decoder_layer = encoder_layer.checked_add(attention)?;
        let embeddings = self.vocab_size.checked_mul(self.d_model)?.checked_mul(2)?;
        let total = encoder_layer
            .checked_mul(self.num_layers)?
            .checked_add(decoder_layer.checked_mul(self.num_decoder_layers)?)?
            .checked_add(embeddings)?
            .checked_add(bias)?
            .checked_add(norms)?;
        isize::try_from(total.checked_mul(size_of::<f32>())?).ok()?;
        Some(total)
    }

    /// Every tensor of the model with its shape, in the order of computation: the embedding as `shared.weight`, encoder,
    /// decoder, and `lm_head.weight` where the output is not tied. Matrices are out x in.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, attention, f) = (self.d_model, self.attention_width(), self.d_ff);
        let mut tensors = vec![("shared.weight".to_owned(), vec![self.vocab_size, d])];
        for (stack, layers) in [("encoder", self.num_layers), ("decoder", self.num_decoder_layers)] {
            let attentions: &[&str] =
                if stack == "encoder" { &["SelfAttention"] } else { &["SelfAttention", "EncDecAttention"] };
            for block in 0..layers {
                for (index, name) in attentions.iter().enumerate() {
                    let layer = format!("{stack}.block.{block}.layer.{index}");
                    tensors.push((format!("{layer}.layer_norm.weight"), vec![d]));
                    for projection in ["q", "k", "v"] {
                        tensors.push((format!("{layer}.{name}.{projection}.weight"), vec![attention, d]));
                    }
                    tensors.push((format!("{layer}.{name}.o.weight"), vec![d, attention]));
                    if block == 0 && index == 0 {
                        tensors.push((
                            format!("{layer}.{name}.relative_attention_bias.weight"),
                            vec![self.relative_attention_num_buckets, self.num_heads],
                        ));
                    }
                }
                let layer = format!("{stack}.block.{block}.layer.{}", attentions.len());
                tensors.push((format!("{layer}.layer_norm.weight"), vec![d]));
                let inputs: &[&str] = if self.activation.is_gated() { &["wi_0", "wi_1"] } else { &["wi"] };
                for input in inputs {
                    tensors.push((format!("{layer}.DenseReluDense.{input}.weight"), vec![f, d]));
                }
                tensors.push((format!("{layer}.DenseReluDense.wo.weight"), vec![d, f]));
            }
            tensors.push((format!("{stack}.final_layer_norm.weight"), vec![d]));
        }
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, d]));
        }
        tensors
    }
}

/// Whether the output matrix is the embedding where none is stored, and whether its input is scaled.
///
/// Up to transformers 4 `tie_word_embeddings` decided both. Since 5 it is always written as true: the output matrix is
/// stored where it is another one, T5's scale stands in `scale_decoder_outputs`, and mT5 has none.
fn output(
    path: &Path,
    written: &Written,
    model_type: ModelType,
    activation: Activation,
) -> (bool, bool, Remarks) {
    let mut remarks = Remarks::new();
    let version = written.version();
    match model_type {
        ModelType::T5 => {
            let tied = written.tie_word_embeddings.unwrap_or(true);
            let scaled = written.scale_decoder_outputs.unwrap_or(tied);
            let defective = matches!(version, Some((5, 0 | 1)));
            if defective && activation.is_gated() && written.scale_decoder_outputs == Some(true) {
                remarks.push(format!(
                    "{}: scale_decoder_outputs is true, and the decoder's output is scaled by it; transformers 5.0 and 5.1 \
                     wrote that for every T5, while v1.1, LM-adapted and Flan models were trained without the scale: if this \
                     is one of them, set it to false",
                    path.display()
                ));
            }
            (tied, scaled, remarks)
        }
        ModelType::Mt5 => {
            let tied = written.tie_word_embeddings.unwrap_or(false);
            let scaled = tied && version.is_none_or(|(major, _)| major < 5);
            if tied && version.is_none() {
                remarks.push(format!(
                    "{}: tie_word_embeddings is true and there is no transformers_version: the decoder's output is scaled by \
                     D^-0.5, as transformers 4 does; if transformers 5 wrote the model, set transformers_version to \"5.0\"",
                    path.display()
                ));
            }
            (tied, scaled, remarks)
        }
    }
}
