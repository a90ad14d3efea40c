//! T5 and the mixture before it, written once over [`Backend`]: forward and backward side by side.
//!
//! Everything is frozen but the prompts' state, so backward carries gradients of activations alone, and in the first
//! layers only where they lead to a trained number.

mod decoder;
mod encoder;
mod frozen;
mod layer;
mod load;
mod plan;
pub mod position;
mod step;

pub use decoder::Decoding;
pub use encoder::Encoding;
pub use frozen::Frozen;
pub use load::Tensors;
pub use plan::{batch_of_lengths, foresee, largest_that_fits};
pub use step::{Issued, StepLoss, label_weights};

use crate::backend::{
    Activation, Backend, Batch, Device, DropoutStep, Heads, LmHead, Mix, Mixing, Residual, Side, StateLayout,
};
use crate::error::Result;
use crate::pretrained::T5Config;
use layer::LayerWeights;

/// A frozen T5 on a device.
pub struct T5<B: Backend> {
    config: T5Config,
    heads: Heads,
    activation: Activation,
    embedding: B::Weight,
    encoder: Vec<LayerWeights<B>>,
    /// The weight of the encoder's final norm: folded into cross attention, stored to show the encoder's output.
    encoder_norm_weight: Vec<f32>,
    encoder_bias: B::PositionBias,
    decoder: Vec<DecoderLayer<B>>,
    decoder_norm_weight: B::Weight,
    decoder_bias: B::PositionBias,
    /// `None` when `lm_head` is the embedding.
    lm_head: Option<B::Weight>,
    /// The mean of the rows of `lm_head`.
    lm_head_mean: B::Weight,
    /// D^-0.5 exactly when `lm_head` is the embedding.
    lm_head_scale: f64,
}

/// Weights of a decoder layer, norm weights folded in.
struct DecoderLayer<B: Backend> {
    common: LayerWeights<B>,
    cross_q: B::Weight,
    cross_k: B::Weight,
    cross_v: B::Weight,
    cross_o: B::Weight,
}

impl<B: Backend> T5<B> {
    /// Dimensions and constants.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// The weight of the encoder's final norm, \[D\]: [`Encoding::rows`] come without it.
    pub fn encoder_norm_weight(&self) -> &[f32] {
        &self.encoder_norm_weight
    }

    /// The embedding table, \[V, D\].
    pub fn embedding(&self) -> &B::Weight {
        &self.embedding
    }

    /// Every frozen matrix, encoder before decoder, layer by layer.
    pub fn weights(&self) -> Vec<&B::Weight> {
        let encoder = self.encoder.iter().flat_map(|layer| [&layer.qkv, &layer.o, &layer.w_in, &layer.w_out]);
        let decoder = self.decoder.iter().flat_map(|layer| {
            let cross = [&layer.cross_q, &layer.cross_k, &layer.cross_v, &layer.cross_o];
            let LayerWeights { qkv, o, w_in, w_out } = &layer.common;
            [qkv, o].into_iter().chain(cross).chain([w_in, w_out])
        });
        let ends =
            [&self.embedding, &self.decoder_norm_weight, &self.lm_head_mean].into_iter().chain(&self.lm_head);
        encoder.chain(decoder).chain(ends).collect()
    }

    fn lm_head(&self) -> LmHead<'_, B> {
        LmHead { weight: self.lm_head.as_ref().unwrap_or(&self.embedding), mean: &self.lm_head_mean }
    }

    fn bias(&self, side: Side) -> &B::PositionBias {
        if side == Side::Encoder { &self.encoder_bias } else { &self.decoder_bias }
    }

    /// What a feed-forward began with, where its backward asks for <d_x_next, x_next - x>.
    fn below<'a>(&self, input: &'a Residual<B>) -> Option<&'a B::Rows> {
        (self.activation == Activation::Relu).then_some(&input.x)
    }

    fn epsilon(&self) -> f64 {
        f64::from(self.config.layer_norm_epsilon)
    }
}

/// What stands before each example: the frozen sources and how they are mixed with the target prompt.
pub struct Mixture<B: Backend> {
    /// How prompts are weighted.
    pub mixing: Mixing,
    /// Frozen source prompts.
    pub sources: Option<B::Sources>,
    /// S.
    pub source_count: usize,
    /// The segments of the trained state.
    pub layout: StateLayout,
}

impl<B: Backend> Mixture<B> {
    /// What mixes the prompts of `batch`.
    fn of<'a>(&'a self, batch: &'a Batch) -> Mix<'a, B> {
        Mix { mixing: &self.mixing, sources: self.sources.as_ref(), batch }
    }
}

/// Called with every activation and its name; what it fails with ends the pass.
pub type Observer<'a, B> = dyn FnMut(&str, &<B as Device>::Rows) -> Result<()> + 'a;

/// How a pass is run.
pub struct Pass<'a, B: Backend> {
    /// The step's dropout; `None` in evaluation.
    pub dropout: Option<&'a DropoutStep>,
    /// Keep what backward needs.
    pub keep: bool,
    /// Called with every activation and its name, in the order of computation.
    pub observe: Option<&'a mut Observer<'a, B>>,
}

impl<B: Backend> Pass<'_, B> {
    /// A pass without dropout that saves nothing.
    pub fn evaluation() -> Self {
        Self { dropout: None, keep: false, observe: None }
    }

    fn observe(&mut self, name: impl FnOnce() -> String, rows: &B::Rows) -> Result<()> {
        self.observe.as_mut().map_or(Ok(()), |observe| observe(&name(), rows))
    }
}
