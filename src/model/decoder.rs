//! The decoder over its encoder rows, up to the rows that `lm_head` reads; and greedy decoding.

use super::{DecoderLayer, Encoding, Pass, SelfAttentionSaved, T5};
use crate::backend::{
    Backend, Batch, CrossAttention, CrossAttentionBackward, DecodeStep, DropoutStep, Embedding, FeedForward,
    FeedForwardBackward, FinalNorm, FinalNormBackward, Format, Mask, Projection, ProjectionBackward,
    Residual, ResidualProjection, ResidualProjectionBackward, Scope, SelfAttention, SelfAttentionBackward,
    Side, Site, SiteKind,
};
use crate::error::Result;

/// The decoder's output for a batch.
pub struct Decoding<B: Backend> {
    /// \[T, D\]: what `lm_head` multiplies, the final norm's weight and D^-0.5 (when tied) included.
    pub(super) hidden: B::Rows,
    tape: Option<Tape<B>>,
}

struct Tape<B: Backend> {
    layers: Vec<LayerTape<B>>,
    output: Residual<B>,
}

struct LayerTape<B: Backend> {
    attention: SelfAttentionSaved<B>,
    cross_input: Residual<B>,
    cross_q: B::Rows,
    cross_o: B::Rows,
    cross: B::CrossAttentionSaved,
    feed_forward_input: Residual<B>,
    feed_forward: B::FeedForwardSaved,
}

impl<B: Backend> Decoding<B> {
    /// \[T, D\]: what `lm_head` multiplies.
    pub fn hidden(&self) -> &B::Rows {
        &self.hidden
    }
}

/// A layer and what it works on.
struct Layer<'a, B: Backend> {
    model: &'a T5<B>,
    weights: &'a DecoderLayer<B>,
    index: usize,
    batch: &'a Batch,
    encoding: &'a Encoding<B>,
    dropout: Option<&'a DropoutStep>,
}

fn mask(dropout: Option<&DropoutStep>, kind: SiteKind, layer: usize) -> Mask<'_> {
    dropout.map(|step| (step, Site::new(Side::Decoder, kind, layer)))
}

/// How the decoder's self attention sees the tokens before.
enum Past<'a, B: Backend> {
    /// All of an example's tokens are in the batch.
    InBatch,
    /// One token an example is; the rest lie in the cache.
    Cached { cache: &'a mut B::Cache, position: usize },
}

impl<B: Backend> T5<B> {
    /// Runs the decoder over the batch's decoder ids and the encoder's rows.
    ///
    /// # Errors
    /// What the device or the pass's observer fails with.
    pub fn decode(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: &Encoding<B>,
        pass: &mut Pass<'_, B>,
    ) -> Result<Decoding<B>> {
        self.decode_past(backend, batch, encoding, pass, Past::InBatch)
    }

    /// The most likely next token, again and again, until every example has said `eos_token_id` or `longest` tokens.
    /// What an example says after its end-of-sequence token is not returned; that token is, where it came.
    ///
    /// # Errors
    /// What the device fails with; none of packing a batch for an encoding of this batch.
    pub fn greedy(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: &Encoding<B>,
        longest: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let examples = batch.examples();
        let mut said: Vec<Vec<u32>> = vec![Vec::new(); examples];
        let mut last = vec![self.config.decoder_start_token_id; examples];
        let mut cache = backend.cache(self.decoder.len(), examples, longest.max(1), self.heads)?;
        let finished = |said: &[u32]| said.last() == Some(&self.config.eos_token_id);
        for position in 0..longest {
            let ids: Vec<Vec<u32>> = last.iter().map(|&id| vec![id]).collect();
            let step = batch.with_decoder(&ids, &ids)?;
            let past = Past::Cached { cache: &mut cache, position };
            let decoding = self.decode_past(backend, &step, encoding, &mut Pass::evaluation(), past)?;
            last = backend.read_loss(&backend.loss(&step, &decoding.hidden, &self.lm_head(), None)?)?.greedy;
            for (said, &id) in said.iter_mut().zip(&last) {
                if !finished(said) {
                    said.push(id);
                }
            }
            if said.iter().all(|said| finished(said)) {
                break;
            }
        }
        Ok(said)
    }

    fn decode_past(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: &Encoding<B>,
        pass: &mut Pass<'_, B>,
        mut past: Past<'_, B>,
    ) -> Result<Decoding<B>> {
        let (rows, width) = (batch.rows(Side::Decoder), self.config.d_model);
        let mut residual = Residual::new(backend, rows, width)?;
        let embedding = Embedding {
            table: &self.embedding,
            batch,
            side: Side::Decoder,
            mask: mask(pass.dropout, SiteKind::Embedding, 0),
            epsilon: self.epsilon(),
        };
        backend.embed(embedding, &mut residual)?;
        let mut layers = Vec::new();
        for layer in self.decoder_layers(batch, encoding, pass.dropout) {
            let (next, tape) = layer.forward(backend, residual, pass, &mut past)?;
            layers.extend(tape);
            residual = next;
        }
        let mut hidden = backend.rows(rows, width, Format::Operand)?;
        backend.final_norm(self.decoder_norm(batch, &residual, pass.dropout), &mut hidden)?;
        pass.observe(|| "decoder output".into(), &hidden)?;
        Ok(Decoding { hidden, tape: pass.keep.then_some(Tape { layers, output: residual }) })
    }

    fn decoder_layers<'a>(
        &'a self,
        batch: &'a Batch,
        encoding: &'a Encoding<B>,
        dropout: Option<&'a DropoutStep>,
    ) -> impl DoubleEndedIterator<Item = Layer<'a, B>> + ExactSizeIterator {
        let layer = move |(index, weights)| Layer { model: self, weights, index, batch, encoding, dropout };
        self.decoder.iter().enumerate().map(layer)
    }

    fn decoder_norm<'a>(
        &'a self,
        batch: &'a Batch,
        input: &'a Residual<B>,
        dropout: Option<&'a DropoutStep>,
    ) -> FinalNorm<'a, B> {
        FinalNorm {
            batch,
            side: Side::Decoder,
            input,
            norm_weight: Some(&self.decoder_norm_weight),
            scale: self.lm_head_scale,
            mask: mask(dropout, SiteKind::FinalNorm, 0),
        }
    }

    /// From d_hidden \[T, D\] to d_h \[R, D\], the gradient of the encoder's rows. `None` if the pass saved nothing.
    pub(super) fn decoder_backward(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: &Encoding<B>,
        decoding: Decoding<B>,
        d_hidden: B::Rows,
        dropout: Option<&DropoutStep>,
    ) -> Result<Option<B::Rows>> {
        let Some(tape) = decoding.tape else { return Ok(None) };
        let (side, scope) = (Side::Decoder, Scope::All);
        let (rows, total, width) = (batch.rows(side), self.heads.total(), self.config.d_model);
        let mut d_h = backend.source_gradient(batch, width)?;
        let mut layers = self.decoder_layers(batch, encoding, dropout).zip(tape.layers).rev().peekable();
        let mut d_x = backend.rows(rows, width, Format::Residual)?;
        let below = layers.peek().and_then(|(_, tape)| self.below(&tape.feed_forward_input));
        let norm = self.decoder_norm(batch, &tape.output, dropout);
        backend.final_norm_backward(norm, FinalNormBackward { d_h: &d_hidden, below }, &mut d_x)?;
        // What the layer at hand passed on: the input of the one above it.
        let mut above = tape.output;
        while let Some((layer, tape)) = layers.next() {
            let from = FeedForwardBackward {
                saved: &tape.feed_forward,
                input: &tape.feed_forward_input,
                x_next: &above.x,
            };
            backend.feed_forward_backward(&layer.feed_forward(), from, &mut d_x)?;
            let mut d_o = backend.rows(rows, total, Format::Operand)?;
            let mask = layer.mask(SiteKind::CrossAttentionOutput);
            let cross = layer.cross_attention();
            backend.cross_project_backward(&cross, &d_x, &layer.weights.cross_o, mask, &mut d_o)?;
            // Nothing before the first layer's cross attention depends on a trained number.
            let d_q = (layer.index > 0).then(|| backend.rows(rows, total, Format::ProjectionGradient));
            let mut d_q = d_q.transpose()?;
            let from = CrossAttentionBackward {
                saved: &tape.cross,
                q: &tape.cross_q,
                h: &encoding.h,
                o: &tape.cross_o,
                d_o: &d_o,
            };
            backend.cross_attention_backward(&cross, from, d_q.as_mut(), &mut d_h)?;
            let Some(d_q) = d_q else { break };
            let projection = ProjectionBackward {
                batch,
                side,
                scope,
                dz: &d_q,
                weight: &layer.weights.cross_q,
                input: &tape.cross_input,
                below: None,
            };
            backend.project_backward(projection, &mut d_x)?;

            let saved = &tape.attention;
            let mut d_o = backend.rows(rows, total, Format::Operand)?;
            let output = ResidualProjectionBackward {
                batch,
                side,
                d_x: &d_x,
                weight: &layer.weights.o,
                mask: layer.mask(SiteKind::SelfAttentionOutput),
                y: Some((&saved.o, self.heads)),
            };
            backend.add_project_backward(output, &mut d_o)?;
            let mut d_qkv = backend.rows(rows, 3 * total, Format::ProjectionGradient)?;
            let from = SelfAttentionBackward {
                scope,
                qkv: &saved.qkv,
                o: &saved.o,
                log_sum_exp: &saved.log_sum_exp,
                d_o: &d_o,
            };
            backend.self_attention_backward(&layer.self_attention(), from, &mut d_qkv)?;
            let projection = ProjectionBackward {
                batch,
                side,
                scope,
                dz: &d_qkv,
                weight: &layer.weights.qkv,
                input: &saved.input,
                below: layers.peek().and_then(|(_, tape)| self.below(&tape.feed_forward_input)),
            };
            backend.project_backward(projection, &mut d_x)?;
            above = tape.attention.input;
        }
        backend.source_rows(batch, d_h).map(Some)
    }
}

impl<'a, B: Backend> Layer<'a, B> {
    fn mask(&self, kind: SiteKind) -> Mask<'a> {
        mask(self.dropout, kind, self.index)
    }

    fn self_attention(&self) -> SelfAttention<'a, B> {
        SelfAttention {
            batch: self.batch,
            side: Side::Decoder,
            heads: self.model.heads,
            bias: &self.model.decoder_bias,
            mask: self.mask(SiteKind::SelfAttention),
        }
    }

    fn cross_attention(&self) -> CrossAttention<'a, B> {
        CrossAttention {
            batch: self.batch,
            heads: self.model.heads,
            w_k: &self.weights.cross_k,
            w_v: &self.weights.cross_v,
            mask: self.mask(SiteKind::CrossAttention),
        }
    }

    fn feed_forward(&self) -> FeedForward<'a, B> {
        FeedForward {
            batch: self.batch,
            side: Side::Decoder,
            w_in: &self.weights.w_in,
            w_out: &self.weights.w_out,
            activation: self.model.activation,
            inner_mask: self.mask(SiteKind::FeedForward),
            output_mask: self.mask(SiteKind::FeedForwardOutput),
            epsilon: self.model.epsilon(),
        }
    }

    /// The end of an attention sublayer that began with `x` and gave `y`.
    fn output<'b>(
        &'b self,
        y: &'b B::Rows,
        weight: &'b B::Weight,
        kind: SiteKind,
        x: &'b B::Rows,
    ) -> ResidualProjection<'b, B> {
        let (batch, epsilon) = (self.batch, self.model.epsilon());
        ResidualProjection { batch, side: Side::Decoder, y, weight, mask: self.mask(kind), epsilon, x }
    }

    fn forward(
        &self,
        backend: &B,
        input: Residual<B>,
        pass: &mut Pass<'_, B>,
        past: &mut Past<'_, B>,
    ) -> Result<(Residual<B>, Option<LayerTape<B>>)> {
        let Self { model, weights, index, batch, .. } = self;
        let (rows, side) = (batch.rows(Side::Decoder), Side::Decoder);
        let (total, width) = (model.heads.total(), model.config.d_model);
        let mut qkv = backend.rows(rows, 3 * total, Format::Operand)?;
        backend.project(Projection { batch, side, input: &input, weight: &weights.qkv }, &mut qkv)?;
        let mut o = backend.rows(rows, total, Format::Operand)?;
        let mut log_sum_exp = backend.rows(rows, model.heads.count, Format::Float)?;
        match past {
            Past::InBatch => {
                backend.self_attention(&self.self_attention(), &qkv, &mut o, &mut log_sum_exp)?;
            }
            Past::Cached { cache, position } => {
                let (layer, position) = (self.index, *position);
                let step = DecodeStep { layer, position, heads: model.heads, bias: &model.decoder_bias };
                backend.decode_self_attention(&step, &qkv, cache, &mut o)?;
            }
        }
        let mut after_attention = Residual::new(backend, rows, width)?;
        let output = self.output(&o, &weights.o, SiteKind::SelfAttentionOutput, &input.x);
        backend.add_project(output, &mut after_attention)?;
        pass.observe(|| format!("decoder layer {index} self attention"), &after_attention.x)?;
        let attention = pass.keep.then_some(SelfAttentionSaved { input, qkv, o, log_sum_exp });

        let mut cross_q = backend.rows(rows, total, Format::Operand)?;
        let cross_attention = self.cross_attention();
        backend.cross_project(&cross_attention, &after_attention, &weights.cross_q, &mut cross_q)?;
        let mut cross_o = backend.rows(rows, total, Format::Operand)?;
        let h = &self.encoding.h;
        let cross = backend.cross_attention(&cross_attention, &cross_q, h, &mut cross_o, pass.keep)?;
        let mut after_cross = Residual::new(backend, rows, width)?;
        let kind = SiteKind::CrossAttentionOutput;
        let output = self.output(&cross_o, &weights.cross_o, kind, &after_attention.x);
        backend.add_project(output, &mut after_cross)?;
        pass.observe(|| format!("decoder layer {index} cross attention"), &after_cross.x)?;

        let mut output = Residual::new(backend, rows, width)?;
        let feed_forward =
            backend.feed_forward(&self.feed_forward(), &after_cross, &mut output, pass.keep)?;
        pass.observe(|| format!("decoder layer {index} feed-forward"), &output.x)?;
        let tape =
            attention.zip(cross).zip(feed_forward).map(|((attention, cross), feed_forward)| LayerTape {
                attention,
                cross_input: after_attention,
                cross_q,
                cross_o,
                cross,
                feed_forward_input: after_cross,
                feed_forward,
            });
        Ok((output, tape))
    }
}
