//! The encoder, from the mixture of prompts to the rows that cross attention reads.

use std::ops::Range;

use super::{EncoderLayer, Mixture, Pass, Residual, SelfAttentionKept, T5};
use crate::backend::{Backend, Batch, DropoutStep, FeedForward, Format, Mask, Scope, Side, Site, SiteKind};

/// The encoder's output for a batch.
pub struct Encoding<B: Backend> {
    /// h \[R, D\]: normalised, without the final norm's gain.
    pub(super) h: B::Rows,
    mix: B::MixKept,
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
    attention: SelfAttentionKept<B>,
    feed_forward_input: Residual<B>,
    feed_forward: B::FeedForwardKept,
}

impl<B: Backend> Encoding<B> {
    /// Normalised rows \[R, D\], without the final norm's gain.
    pub fn rows(&self) -> &B::Rows {
        &self.h
    }

    /// What the mixture kept: [`Backend::attention`] reads its weights.
    pub fn mix(&self) -> &B::MixKept {
        &self.mix
    }
}

fn mask(dropout: Option<&DropoutStep>, kind: SiteKind, layer: usize) -> Mask<'_> {
    dropout.map(|step| (step, Site::new(Side::Encoder, kind, layer)))
}

impl<B: Backend> T5<B> {
    /// Mixes prompts, embeds the source tokens behind them, and runs the encoder over both.
    ///
    /// # Panics
    /// If an example names a target prompt that the mixture does not have.
    pub fn encode(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &B::State,
        batch: &Batch,
        pass: &mut Pass<'_, B>,
    ) -> Encoding<B> {
        let (rows, width) = (batch.rows(Side::Encoder), self.config.d_model);
        let targets = mixture.layout.targets;
        let known = (0..batch.examples()).all(|b| batch.target_prompt(b) < targets);
        assert!(known, "every example's target prompt is one of {targets}");
        let dropout = pass.dropout;
        let mut residual = Residual::new(backend, rows, width);
        let sources = mixture.sources.as_ref();
        let mix = backend.mix(&mixture.mixing, &self.embedding, sources, state, batch, &mut residual.x);
        let embedding_mask = mask(dropout, SiteKind::Embedding, 0);
        backend.embed(
            &self.embedding,
            Side::Encoder,
            batch,
            embedding_mask,
            self.epsilon(),
            &mut residual.x,
            &mut residual.r,
        );
        pass.observe(|| "encoder input".into(), &residual.x);
        // An observer is told of whole activations.
        let (h, tapes) = if pass.observe.is_some() {
            let (h, tape) = self.encoder_stack(backend, batch.clone(), 0..batch.examples(), residual, pass);
            (h, tape.map(|tape| vec![tape]))
        } else {
            let parts = backend.parts(batch);
            let x = backend.cut(batch, &parts, residual.x);
            let r = backend.cut(batch, &parts, residual.r);
            let parts = parts.into_iter().zip(x.into_iter().zip(r));
            let keep = pass.keep;
            let stacks = backend.side_by_side(parts.collect(), |backend, (examples, (x, r))| {
                let mut pass = Pass { dropout, keep, observe: None };
                self.encoder_stack(
                    backend,
                    batch.part(examples.clone()),
                    examples,
                    Residual { x, r },
                    &mut pass,
                )
            });
            let (h, tapes): (Vec<_>, Vec<_>) = stacks.into_iter().unzip();
            (backend.join(h), tapes.into_iter().collect())
        };
        pass.observe(|| "encoder output".into(), &h);
        Encoding { h, mix, tapes }
    }

    /// All layers and the final norm over a part of a batch.
    fn encoder_stack(
        &self,
        backend: &B,
        batch: Batch,
        examples: Range<usize>,
        mut residual: Residual<B>,
        pass: &mut Pass<'_, B>,
    ) -> (B::Rows, Option<Tape<B>>) {
        let mut layers = Vec::new();
        for (index, layer) in self.encoder.iter().enumerate() {
            let (next, tape) = self.encoder_layer(backend, &batch, index, layer, residual, pass);
            layers.extend(tape);
            residual = next;
        }
        let mut h = backend.rows(batch.rows(Side::Encoder), self.config.d_model, Format::Operand);
        let mask = mask(pass.dropout, SiteKind::FinalNorm, 0);
        backend.final_norm(&batch, Side::Encoder, &residual.x, &residual.r, None, 1.0, mask, &mut h);
        (h, pass.keep.then_some(Tape { examples, batch, layers, output: residual }))
    }

    fn encoder_layer(
        &self,
        backend: &B,
        batch: &Batch,
        index: usize,
        layer: &EncoderLayer<B>,
        input: Residual<B>,
        pass: &mut Pass<'_, B>,
    ) -> (Residual<B>, Option<LayerTape<B>>) {
        let rows = batch.rows(Side::Encoder);
        let dropout = pass.dropout;
        let mut qkv = backend.rows(rows, 3 * self.heads.total(), Format::Operand);
        backend.project(batch, Side::Encoder, &input.x, &input.r, &layer.qkv, &mut qkv);
        let mut o = backend.rows(rows, self.heads.total(), Format::Operand);
        let mut log_sum_exp = backend.rows(rows, self.heads.count, Format::Float);
        backend.self_attention(
            batch,
            Side::Encoder,
            self.heads,
            &self.encoder_bias,
            mask(dropout, SiteKind::SelfAttention, index),
            &qkv,
            &mut o,
            &mut log_sum_exp,
        );
        let mut middle = Residual::new(backend, rows, self.config.d_model);
        backend.add_project(
            batch,
            Side::Encoder,
            &o,
            &layer.o,
            mask(dropout, SiteKind::SelfAttentionOutput, index),
            self.epsilon(),
            &input.x,
            &mut middle.x,
            &mut middle.r,
        );
        pass.observe(|| format!("encoder layer {index} self attention"), &middle.x);
        let attention = pass.keep.then_some(SelfAttentionKept { input, qkv, o, log_sum_exp });
        let mut output = Residual::new(backend, rows, self.config.d_model);
        let feed_forward = backend.feed_forward(
            batch,
            Side::Encoder,
            &self.encoder_feed_forward(layer, index, dropout),
            &middle.x,
            &middle.r,
            &mut output.x,
            &mut output.r,
            pass.keep,
        );
        pass.observe(|| format!("encoder layer {index} feed-forward"), &output.x);
        let tape = attention.zip(feed_forward).map(|(attention, feed_forward)| LayerTape {
            attention,
            feed_forward_input: middle,
            feed_forward,
        });
        (output, tape)
    }

    fn encoder_feed_forward<'a>(
        &self,
        layer: &'a EncoderLayer<B>,
        index: usize,
        dropout: Option<&'a DropoutStep>,
    ) -> FeedForward<'a, B> {
        FeedForward {
            w_in: &layer.w_in,
            w_out: &layer.w_out,
            activation: self.activation,
            inner_mask: mask(dropout, SiteKind::FeedForward, index),
            output_mask: mask(dropout, SiteKind::FeedForwardOutput, index),
            epsilon: self.epsilon(),
        }
    }

    /// From d_h \[R, D\] down to the encoder's input: its prompt rows hold the gradient, its token rows nothing of use.
    /// No gradient if the pass kept nothing. Hands back what the mixture kept.
    pub(super) fn encoder_backward(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: Encoding<B>,
        d_h: Option<B::Rows>,
        dropout: Option<&DropoutStep>,
    ) -> (Option<B::Rows>, B::MixKept) {
        let Some((tapes, d_h)) = encoding.tapes.zip(d_h) else { return (None, encoding.mix) };
        drop(encoding.h);
        let parts: Vec<_> = tapes.iter().map(|tape| tape.examples.clone()).collect();
        let d_h = backend.cut(batch, &parts, d_h);
        let parts = tapes.into_iter().zip(d_h).collect();
        let d_x = backend.side_by_side(parts, |backend, (tape, d_h)| {
            self.encoder_stack_backward(backend, tape, d_h, dropout)
        });
        let mut d_x = backend.join(d_x);
        backend.embed_backward(batch, mask(dropout, SiteKind::Embedding, 0), &mut d_x);
        (Some(d_x), encoding.mix)
    }

    /// From a part's d_h down to the gradient of its encoder rows.
    fn encoder_stack_backward(
        &self,
        backend: &B,
        tape: Tape<B>,
        d_h: B::Rows,
        dropout: Option<&DropoutStep>,
    ) -> B::Rows {
        let batch = &tape.batch;
        let (rows, width) = (batch.rows(Side::Encoder), self.config.d_model);
        let mut d_x = backend.rows(rows, width, Format::Residual);
        let mut layers = self.encoder.iter().zip(tape.layers).enumerate().rev().peekable();
        backend.final_norm_backward(
            batch,
            Side::Encoder,
            &tape.output.x,
            &tape.output.r,
            None,
            1.0,
            mask(dropout, SiteKind::FinalNorm, 0),
            &d_h,
            layers.peek().and_then(|(_, (_, tape))| self.below(&tape.feed_forward_input)),
            &mut d_x,
        );
        drop(d_h);
        // What the layer at hand passed on: the input of the one above it.
        let mut above = tape.output;
        while let Some((index, (layer, tape))) = layers.next() {
            backend.feed_forward_backward(
                batch,
                Side::Encoder,
                &self.encoder_feed_forward(layer, index, dropout),
                &tape.feed_forward,
                &tape.feed_forward_input.x,
                &tape.feed_forward_input.r,
                &above.x,
                &mut d_x,
            );
            drop((tape.feed_forward, tape.feed_forward_input));
            let kept = tape.attention;
            let mut d_o = backend.rows(rows, self.heads.total(), Format::Operand);
            let output_mask = mask(dropout, SiteKind::SelfAttentionOutput, index);
            let o = Some((&kept.o, self.heads));
            backend.add_project_backward(batch, Side::Encoder, &d_x, &layer.o, output_mask, o, &mut d_o);
            // Below the first layer only the prompt rows lead to a trained number.
            let scope = if index == 0 { Scope::Prompt } else { Scope::All };
            let scoped = if index == 0 { batch.examples() * batch.prompt_length() } else { rows };
            let mut d_qkv = backend.rows(scoped, 3 * self.heads.total(), Format::ProjectionGradient);
            backend.self_attention_backward(
                batch,
                Side::Encoder,
                scope,
                self.heads,
                &self.encoder_bias,
                mask(dropout, SiteKind::SelfAttention, index),
                &kept.qkv,
                &kept.o,
                &kept.log_sum_exp,
                &d_o,
                &mut d_qkv,
            );
            backend.project_backward(
                batch,
                Side::Encoder,
                scope,
                &d_qkv,
                &layer.qkv,
                &kept.input.x,
                &kept.input.r,
                layers.peek().and_then(|(_, (_, tape))| self.below(&tape.feed_forward_input)),
                &mut d_x,
            );
            above = kept.input;
        }
        d_x
    }
}
