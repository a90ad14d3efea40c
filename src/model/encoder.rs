//! The encoder, from the mixture of prompts to the rows that cross attention reads.

use std::ops::Range;

use super::layer::{Attended, FeedForwardSaved, Layer, SelfAttentionSaved, mask};
use super::{Mixture, Pass, T5};
use crate::backend::{
    Backend, Batch, DropoutStep, Embedding, FinalNorm, FinalNormBackward, Format, Mask, PromptRows, Residual,
    Scope, Side, SiteKind,
};
use crate::error::Result;

/// The encoder's output for a batch.
pub struct Encoding<B: Backend> {
    /// h \[R, D\]: normalised, without the final norm's weight.
    pub(super) h: B::Rows,
    mix: B::MixSaved,
    /// Of each part of the batch, in order.
    tapes: Option<Vec<Tape<B>>>,
}

struct Tape<B: Backend> {
    /// Where the part's examples stand in the batch.
    examples: Range<usize>,
    /// The part.
    batch: Batch,
    layers: Vec<LayerTape<B>>,
    output: Residual<B>,
}

struct LayerTape<B: Backend> {
    attention: SelfAttentionSaved<B>,
    feed_forward: FeedForwardSaved<B>,
}

impl<B: Backend> Encoding<B> {
    /// Normalised rows \[R, D\], without the final norm's weight.
    pub fn rows(&self) -> &B::Rows {
        &self.h
    }

    /// What the mixture saved: [`MixOps::attention`](crate::backend::MixOps::attention) reads its weights.
    pub fn mix(&self) -> &B::MixSaved {
        &self.mix
    }
}

impl<B: Backend> T5<B> {
    /// Mixes prompts, embeds the source tokens after them, and runs the encoder over both.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if an example names a run or a target prompt that `state` does not have; what
    /// the device or the pass's observer fails with.
    pub fn encode(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &B::State,
        batch: &Batch,
        pass: &mut Pass<'_, B>,
    ) -> Result<Encoding<B>> {
        let (rows, width) = (batch.rows(Side::Encoder), self.config.d_model);
        let dropout = pass.dropout;
        let mut residual = Residual::new(backend, rows, width)?;
        let (mask, epsilon) = (embedding_mask(dropout), self.epsilon());
        let prompts = PromptRows { input: &mut residual, mask, epsilon };
        let mix = backend.mix(&mixture.of(batch), &self.embedding, state, prompts)?;
        let embedding = Embedding { table: &self.embedding, batch, side: Side::Encoder, mask, epsilon };
        backend.embed(embedding, &mut residual)?;
        pass.observe(|| "encoder input".into(), &residual.x)?;
        // An observer sees whole activations.
        let (h, tapes) = if pass.observe.is_some() {
            let (h, tape) =
                self.encoder_stack(backend, batch.clone(), 0..batch.examples(), residual, pass)?;
            (h, tape.map(|tape| vec![tape]))
        } else {
            let parts = backend.parts(batch);
            let x = backend.cut(batch, &parts, residual.x)?;
            let r = backend.cut(batch, &parts, residual.r)?;
            let parts = parts.into_iter().zip(x.into_iter().zip(r));
            let keep = pass.keep;
            let stacks = backend.side_by_side(parts.collect(), |backend, (examples, (x, r))| {
                let mut pass = Pass { dropout, keep, observe: None };
                let part = batch.part(examples.clone());
                self.encoder_stack(backend, part, examples, Residual { x, r }, &mut pass)
            })?;
            let (h, tapes): (Vec<_>, Vec<_>) = stacks.into_iter().unzip();
            (backend.join(h)?, tapes.into_iter().collect())
        };
        pass.observe(|| "encoder output".into(), &h)?;
        Ok(Encoding { h, mix, tapes })
    }

    /// All layers and the final norm over a part of a batch.
    fn encoder_stack(
        &self,
        backend: &B,
        batch: Batch,
        examples: Range<usize>,
        mut residual: Residual<B>,
        pass: &mut Pass<'_, B>,
    ) -> Result<(B::Rows, Option<Tape<B>>)> {
        let mut layers = Vec::new();
        for layer in self.encoder_layers(&batch, pass.dropout) {
            let attend = |of: Attended<'_, B>| layer.attend(backend, of);
            let (middle, attention) = layer.self_attention(backend, residual, pass, attend)?;
            let (next, feed_forward) = layer.feed_forward(backend, middle, pass)?;
            let saved = attention.zip(feed_forward);
            layers.extend(saved.map(|(attention, feed_forward)| LayerTape { attention, feed_forward }));
            residual = next;
        }
        let mut h = backend.rows(batch.rows(Side::Encoder), self.config.d_model, Format::Operand)?;
        backend.final_norm(encoder_norm(&batch, &residual, pass.dropout), &mut h)?;
        Ok((h, pass.keep.then_some(Tape { examples, batch, layers, output: residual })))
    }

    fn encoder_layers<'a>(
        &'a self,
        batch: &'a Batch,
        dropout: Option<&'a DropoutStep>,
    ) -> impl DoubleEndedIterator<Item = Layer<'a, B>> + ExactSizeIterator {
        let side = Side::Encoder;
        let layer = move |(index, weights)| Layer { model: self, weights, side, index, batch, dropout };
        self.encoder.iter().enumerate().map(layer)
    }

    /// From d_h \[R, D\] down to the encoder's input: its prompt rows hold the gradient, its token rows nothing of use.
    /// No gradient if the pass saved nothing. Hands back what the mixture saved.
    pub(super) fn encoder_backward(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: Encoding<B>,
        d_h: Option<B::Rows>,
        dropout: Option<&DropoutStep>,
    ) -> Result<(Option<B::Rows>, B::MixSaved)> {
        let Some((tapes, d_h)) = encoding.tapes.zip(d_h) else { return Ok((None, encoding.mix)) };
        drop(encoding.h);
        let parts: Vec<_> = tapes.iter().map(|tape| tape.examples.clone()).collect();
        let d_h = backend.cut(batch, &parts, d_h)?;
        let parts = tapes.into_iter().zip(d_h).collect();
        let d_x = backend.side_by_side(parts, |backend, (tape, d_h)| {
            self.encoder_stack_backward(backend, tape, d_h, dropout)
        })?;
        let mut d_x = backend.join(d_x)?;
        backend.embed_backward(batch, embedding_mask(dropout), &mut d_x)?;
        Ok((Some(d_x), encoding.mix))
    }

    /// From a part's d_h down to the gradient of its encoder rows.
    fn encoder_stack_backward(
        &self,
        backend: &B,
        tape: Tape<B>,
        d_h: B::Rows,
        dropout: Option<&DropoutStep>,
    ) -> Result<B::Rows> {
        let batch = &tape.batch;
        let mut d_x = backend.rows(batch.rows(Side::Encoder), self.config.d_model, Format::Residual)?;
        let mut layers = self.encoder_layers(batch, dropout).zip(tape.layers).rev().peekable();
        let below = layers.peek().and_then(|(_, tape)| self.below(&tape.feed_forward.input));
        let norm = encoder_norm(batch, &tape.output, dropout);
        backend.final_norm_backward(norm, FinalNormBackward { d_h: &d_h, below }, &mut d_x)?;
        drop(d_h);
        // What the layer at hand passed on: the input of the one above it.
        let mut above = tape.output;
        while let Some((layer, tape)) = layers.next() {
            layer.feed_forward_backward(backend, &tape.feed_forward, &above.x, &mut d_x)?;
            drop(tape.feed_forward);
            // Below the first layer only the prompt rows lead to a trained number.
            let scope = if layer.index == 0 { Scope::Prompt } else { Scope::All };
            let below = layers.peek().and_then(|(_, tape)| self.below(&tape.feed_forward.input));
            layer.self_attention_backward(backend, &tape.attention, scope, below, &mut d_x)?;
            above = tape.attention.input;
        }
        Ok(d_x)
    }
}

/// The final norm without its weight, which is folded into cross attention.
fn encoder_norm<'a, B: Backend>(
    batch: &'a Batch,
    input: &'a Residual<B>,
    dropout: Option<&'a DropoutStep>,
) -> FinalNorm<'a, B> {
    let mask = mask(dropout, Side::Encoder, SiteKind::FinalNorm, 0);
    FinalNorm { batch, side: Side::Encoder, input, norm_weight: None, scale: 1.0, mask }
}

fn embedding_mask(dropout: Option<&DropoutStep>) -> Mask<'_> {
    mask(dropout, Side::Encoder, SiteKind::Embedding, 0)
}
