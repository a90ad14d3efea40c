//! From stored tensors to frozen weights on a device, with the norms' weights folded in.

use super::layer::LayerWeights;
use super::position;
use super::{DecoderLayer, T5};
use crate::backend::{Backend, Heads, Readers};
use crate::error::Result;
use crate::pretrained::{Checkpoint, T5Config};

/// Where a model's tensors come from: a checkpoint, or made-up numbers for a benchmark.
pub trait Tensors {
    /// Dimensions and constants.
    fn config(&self) -> &T5Config;
    /// Fills `values` with the tensor of that name, whose shape must be `shape`.
    ///
    /// # Errors
    /// If the tensor is missing, of another shape or type, or not finite.
    fn read_into(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<()>;
    /// Fills `values` with the embedding, \[V, D\].
    ///
    /// # Errors
    /// As [`Tensors::read_into`].
    fn embedding_into(&self, values: &mut [f32]) -> Result<()> {
        let shape = [self.config().vocab_size, self.config().d_model];
        self.read_into("shared.weight", &shape, values)
    }
    /// Whether `lm_head` is the embedding; else it is read as `lm_head.weight`.
    ///
    /// # Errors
    /// If that cannot be known.
    fn output_is_tied(&self) -> Result<bool> {
        Ok(self.config().tie_word_embeddings)
    }
}

impl Tensors for Checkpoint {
    fn config(&self) -> &T5Config {
        self.config()
    }

    fn read_into(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<()> {
        self.read_into(name, shape, values)
    }

    fn embedding_into(&self, values: &mut [f32]) -> Result<()> {
        self.embedding_into(values)
    }
}

impl<B: Backend> T5<B> {
    /// Reads every tensor once, folds each norm's weight into the weights that read the norm, and copies them to the
    /// device.
    ///
    /// Folded: encoder self q, k, v and wi; decoder self q, k, v, cross q and wi; and the encoder's final norm into cross
    /// k and v of every decoder layer. The decoder's final norm stays as it is, and the embedding is never altered.
    ///
    /// # Errors
    /// Those of `tensors` and of the device.
    pub fn load(backend: &B, tensors: &impl Tensors) -> Result<Self> {
        let config = tensors.config().clone();
        let loader = Loader { backend, tensors, config: &config };
        let d = config.d_model;
        let total = config.attention_width();
        let mut embedding = vec![0.0; config.vocab_size * d];
        tensors.embedding_into(&mut embedding)?;
        let tied = tensors.output_is_tied()?;
        let mut lm_head_mean = mean_row(&embedding, d);
        let embedding = backend.weight(embedding, config.vocab_size, d, Readers::Lookup)?;

        let encoder_norm_weight = loader.vector("encoder.final_layer_norm.weight")?;
        let encoder = (0..config.num_layers)
            .map(|layer| loader.layer([0, 1].map(|part| format!("encoder.block.{layer}.layer.{part}"))))
            .collect::<Result<Vec<_>>>()?;
        let mut decoder = Vec::with_capacity(config.num_decoder_layers);
        for layer in 0..config.num_decoder_layers {
            let [attention, cross, feed_forward] =
                [0, 1, 2].map(|part| format!("decoder.block.{layer}.layer.{part}"));
            let of_encoder =
                |name: &str| loader.with_norm_weight(&cross, &[name], total, &encoder_norm_weight);
            decoder.push(DecoderLayer {
                common: loader.layer([attention, feed_forward])?,
                cross_q: loader.folded(&cross, &["EncDecAttention.q"], total)?,
                cross_k: of_encoder("EncDecAttention.k")?,
                cross_v: of_encoder("EncDecAttention.v")?,
                cross_o: loader.plain(&cross, "EncDecAttention.o", d, total)?,
            });
        }
        let decoder_norm_weight =
            backend.weight(loader.vector("decoder.final_layer_norm.weight")?, 1, d, Readers::Lookup)?;
        let lm_head = if tied {
            None
        } else {
            let mut lm_head = vec![0.0; config.vocab_size * d];
            tensors.read_into("lm_head.weight", &[config.vocab_size, d], &mut lm_head)?;
            lm_head_mean = mean_row(&lm_head, d);
            Some(backend.weight(lm_head, config.vocab_size, d, Readers::Few)?)
        };
        let lm_head_mean = backend.weight(lm_head_mean, 1, d, Readers::Lookup)?;
        Ok(Self {
            heads: Heads { count: config.num_heads, width: config.d_kv },
            activation: config.activation,
            lm_head_scale: if config.scales_decoder_outputs() { (d as f64).powf(-0.5) } else { 1.0 },
            embedding,
            encoder,
            encoder_norm_weight,
            encoder_bias: loader.bias("encoder", true)?,
            decoder,
            decoder_norm_weight,
            decoder_bias: loader.bias("decoder", false)?,
            lm_head,
            lm_head_mean,
            config,
        })
    }
}

/// The mean of rows of `width` numbers.
fn mean_row(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f64; width];
    for row in rows.chunks_exact(width) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value);
        }
    }
    let count = (rows.len() / width) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

fn readers(block: &str) -> Readers {
    if block.starts_with("encoder") { Readers::Many } else { Readers::Few }
}

struct Loader<'a, B, T> {
    backend: &'a B,
    tensors: &'a T,
    config: &'a T5Config,
}

impl<B: Backend, T: Tensors> Loader<'_, B, T> {
    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.config.d_model];
        self.tensors.read_into(name, &[self.config.d_model], &mut values)?;
        Ok(values)
    }

    /// The weights of a layer's self attention and feed-forward, the blocks of these names.
    fn layer(&self, [attention, feed_forward]: [String; 2]) -> Result<LayerWeights<B>> {
        let (d, f, total) = (self.config.d_model, self.config.d_ff, self.config.attention_width());
        let heads = ["SelfAttention.q", "SelfAttention.k", "SelfAttention.v"];
        let gated = ["DenseReluDense.wi_0", "DenseReluDense.wi_1"];
        let inputs = if self.config.activation.is_gated() { &gated[..] } else { &["DenseReluDense.wi"] };
        Ok(LayerWeights {
            qkv: self.folded(&attention, &heads, total)?,
            o: self.plain(&attention, "SelfAttention.o", d, total)?,
            w_in: self.folded(&feed_forward, inputs, f)?,
            w_out: self.plain(&feed_forward, "DenseReluDense.wo", d, f)?,
        })
    }

    fn plain(&self, block: &str, name: &str, out: usize, input: usize) -> Result<B::Weight> {
        let mut values = vec![0.0; out * input];
        self.tensors.read_into(&format!("{block}.{name}.weight"), &[out, input], &mut values)?;
        self.backend.weight(values, out, input, readers(block))
    }

    /// The named \[out, D\] matrices stacked, with the weight of the block's own norm folded in.
    fn folded(&self, block: &str, names: &[&str], out: usize) -> Result<B::Weight> {
        let norm_weight = self.vector(&format!("{block}.layer_norm.weight"))?;
        self.with_norm_weight(block, names, out, &norm_weight)
    }

    fn with_norm_weight(
        &self,
        block: &str,
        names: &[&str],
        out: usize,
        norm_weight: &[f32],
    ) -> Result<B::Weight> {
        let d = self.config.d_model;
        let mut values = vec![0.0; names.len() * out * d];
        for (name, values) in names.iter().zip(values.chunks_exact_mut(out * d)) {
            self.tensors.read_into(&format!("{block}.{name}.weight"), &[out, d], values)?;
        }
        for row in values.chunks_exact_mut(d) {
            for (value, norm_weight) in row.iter_mut().zip(norm_weight) {
                *value *= norm_weight;
            }
        }
        self.backend.weight(values, names.len() * out, d, readers(block))
    }

    fn bias(&self, stack: &str, bidirectional: bool) -> Result<B::PositionBias> {
        let shape = [self.config.relative_attention_num_buckets, self.config.num_heads];
        let mut table = vec![0.0; shape[0] * shape[1]];
        let name = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        self.tensors.read_into(&name, &shape, &mut table)?;
        let (rows, max_distance) = position::bias_rows(self.config, &table, bidirectional);
        self.backend.position_bias(rows, max_distance)
    }
}
