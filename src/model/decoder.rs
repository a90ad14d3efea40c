//! The decoder over its encoder rows, up to the rows that the head reads; and greedy decoding.

use super::{DecoderLayer, Encoding, Pass, Residual, SelfAttentionKept, T5};
use crate::backend::{
    Backend, Batch, CrossAttention, DropoutStep, FeedForward, Format, Mask, Scope, Side, Site, SiteKind,
};
use crate::error::Result;

/// The decoder's output for a batch.
pub struct Decoding<B: Backend> {
    /// \[T, D\]: what the head multiplies, final gain and D^-0.5 (when tied) included.
    pub(super) hidden: B::Rows,
    tape: Option<Tape<B>>,
}

struct Tape<B: Backend> {
    layers: Vec<LayerTape<B>>,
    output: Residual<B>,
}

struct LayerTape<B: Backend> {
    attention: SelfAttentionKept<B>,
    cross_input: Residual<B>,
    cross_q: B::Rows,
    cross_o: B::Rows,
    cross: B::CrossKept,
    feed_forward_input: Residual<B>,
    feed_forward: B::FeedForwardKept,
}

impl<B: Backend> Decoding<B> {
    /// \[T, D\]: what the head multiplies.
    pub fn hidden(&self) -> &B::Rows {
        &self.hidden
    }
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
    pub fn decode(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: &Encoding<B>,
        pass: &mut Pass<'_, B>,
    ) -> Decoding<B> {
        self.decode_past(backend, batch, encoding, pass, Past::InBatch)
    }

    /// The most likely next token, again and again, until every example has said `eos_token_id` or `longest` tokens.
    /// What an example says after its end-of-sequence token is not returned; that token is, where it came.
    ///
    /// # Errors
    /// Those of packing a batch; none for an encoding of this batch.
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
        let mut cache = backend.cache(self.decoder.len(), examples, longest.max(1), self.heads);
        let finished = |said: &[u32]| said.last() == Some(&self.config.eos_token_id);
        for position in 0..longest {
            let ids: Vec<Vec<u32>> = last.iter().map(|&id| vec![id]).collect();
            let step = batch.with_decoder(&ids, &ids)?;
            let past = Past::Cached { cache: &mut cache, position };
            let decoding = self.decode_past(backend, &step, encoding, &mut Pass::evaluation(), past);
            last = backend.read_loss(&backend.loss(&step, &decoding.hidden, &self.head(), None)).greedy;
            backend.health()?;
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
    ) -> Decoding<B> {
        let (rows, width) = (batch.rows(Side::Decoder), self.config.d_model);
        let mut residual = Residual::new(backend, rows, width);
        backend.embed(
            &self.embedding,
            Side::Decoder,
            batch,
            mask(pass.dropout, SiteKind::Embedding, 0),
            self.epsilon(),
            &mut residual.x,
            &mut residual.r,
        );
        let mut layers = Vec::new();
        for (index, layer) in self.decoder.iter().enumerate() {
            let (next, tape) =
                self.decoder_layer(backend, batch, index, layer, encoding, residual, pass, &mut past);
            layers.extend(tape);
            residual = next;
        }
        let mut hidden = backend.rows(rows, width, Format::Operand);
        backend.final_norm(
            batch,
            Side::Decoder,
            &residual.x,
            &residual.r,
            Some(&self.decoder_gain),
            self.head_scale,
            mask(pass.dropout, SiteKind::FinalNorm, 0),
            &mut hidden,
        );
        pass.observe(|| "decoder output".into(), &hidden);
        Decoding { hidden, tape: pass.keep.then_some(Tape { layers, output: residual }) }
    }

    #[allow(clippy::too_many_arguments)] // a layer's surroundings
    fn decoder_layer(
        &self,
        backend: &B,
        batch: &Batch,
        index: usize,
        layer: &DecoderLayer<B>,
        encoding: &Encoding<B>,
        input: Residual<B>,
        pass: &mut Pass<'_, B>,
        past: &mut Past<'_, B>,
    ) -> (Residual<B>, Option<LayerTape<B>>) {
        let (rows, total, width) = (batch.rows(Side::Decoder), self.heads.total(), self.config.d_model);
        let dropout = pass.dropout;
        let mut qkv = backend.rows(rows, 3 * total, Format::Operand);
        backend.project(batch, Side::Decoder, &input.x, &input.r, &layer.qkv, &mut qkv);
        let mut o = backend.rows(rows, total, Format::Operand);
        let mut log_sum_exp = backend.rows(rows, self.heads.count, Format::Float);
        match past {
            Past::InBatch => backend.self_attention(
                batch,
                Side::Decoder,
                self.heads,
                &self.decoder_bias,
                mask(dropout, SiteKind::SelfAttention, index),
                &qkv,
                &mut o,
                &mut log_sum_exp,
            ),
            Past::Cached { cache, position } => backend.decode_self_attention(
                index,
                *position,
                self.heads,
                &self.decoder_bias,
                &qkv,
                cache,
                &mut o,
            ),
        }
        let mut after_attention = Residual::new(backend, rows, width);
        backend.add_project(
            batch,
            Side::Decoder,
            &o,
            &layer.o,
            mask(dropout, SiteKind::SelfAttentionOutput, index),
            self.epsilon(),
            &input.x,
            &mut after_attention.x,
            &mut after_attention.r,
        );
        pass.observe(|| format!("decoder layer {index} self attention"), &after_attention.x);
        let attention = pass.keep.then_some(SelfAttentionKept { input, qkv, o, log_sum_exp });

        let mut cross_q = backend.rows(rows, total, Format::Operand);
        let input_of_q = &after_attention;
        let of_layer = self.cross(layer, index, dropout);
        backend.cross_project(batch, &of_layer, &input_of_q.x, &input_of_q.r, &layer.cross_q, &mut cross_q);
        let mut cross_o = backend.rows(rows, total, Format::Operand);
        let cross = backend.cross_attention(batch, &of_layer, &cross_q, &encoding.h, &mut cross_o, pass.keep);
        let mut after_cross = Residual::new(backend, rows, width);
        backend.add_project(
            batch,
            Side::Decoder,
            &cross_o,
            &layer.cross_o,
            mask(dropout, SiteKind::CrossAttentionOutput, index),
            self.epsilon(),
            &after_attention.x,
            &mut after_cross.x,
            &mut after_cross.r,
        );
        pass.observe(|| format!("decoder layer {index} cross attention"), &after_cross.x);

        let mut output = Residual::new(backend, rows, width);
        let feed_forward = backend.feed_forward(
            batch,
            Side::Decoder,
            &self.decoder_feed_forward(layer, index, dropout),
            &after_cross.x,
            &after_cross.r,
            &mut output.x,
            &mut output.r,
            pass.keep,
        );
        pass.observe(|| format!("decoder layer {index} feed-forward"), &output.x);
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
        (output, tape)
    }

    fn cross<'a>(
        &self,
        layer: &'a DecoderLayer<B>,
        index: usize,
        dropout: Option<&'a DropoutStep>,
    ) -> CrossAttention<'a, B> {
        CrossAttention {
            heads: self.heads,
            w_k: &layer.cross_k,
            w_v: &layer.cross_v,
            mask: mask(dropout, SiteKind::CrossAttention, index),
        }
    }

    fn decoder_feed_forward<'a>(
        &self,
        layer: &'a DecoderLayer<B>,
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

    /// From d_hidden \[T, D\] to d_h \[R, D\], the gradient of the encoder's rows. `None` if the pass kept nothing.
    pub(super) fn decoder_backward(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: &Encoding<B>,
        decoding: Decoding<B>,
        d_hidden: B::Rows,
        dropout: Option<&DropoutStep>,
    ) -> Option<B::Rows> {
        let tape = decoding.tape?;
        let (rows, total, width) = (batch.rows(Side::Decoder), self.heads.total(), self.config.d_model);
        let mut d_h = backend.source_gradient(batch, width);
        let mut layers = self.decoder.iter().zip(tape.layers).enumerate().rev().peekable();
        let mut d_x = backend.rows(rows, width, Format::Residual);
        backend.final_norm_backward(
            batch,
            Side::Decoder,
            &tape.output.x,
            &tape.output.r,
            Some(&self.decoder_gain),
            self.head_scale,
            mask(dropout, SiteKind::FinalNorm, 0),
            &d_hidden,
            layers.peek().and_then(|(_, (_, tape))| self.below(&tape.feed_forward_input)),
            &mut d_x,
        );
        // What the layer at hand passed on: the input of the one above it.
        let mut above = tape.output;
        while let Some((index, (layer, tape))) = layers.next() {
            backend.feed_forward_backward(
                batch,
                Side::Decoder,
                &self.decoder_feed_forward(layer, index, dropout),
                &tape.feed_forward,
                &tape.feed_forward_input.x,
                &tape.feed_forward_input.r,
                &above.x,
                &mut d_x,
            );
            let mut d_o = backend.rows(rows, total, Format::Operand);
            let output_mask = mask(dropout, SiteKind::CrossAttentionOutput, index);
            let cross = self.cross(layer, index, dropout);
            backend.cross_project_backward(batch, &cross, &d_x, &layer.cross_o, output_mask, &mut d_o);
            // Nothing before the first layer's cross attention depends on a trained number.
            let mut d_q = (index > 0).then(|| backend.rows(rows, total, Format::ProjectionGradient));
            backend.cross_attention_backward(
                batch,
                &cross,
                &tape.cross,
                &tape.cross_q,
                &encoding.h,
                &tape.cross_o,
                &d_o,
                d_q.as_mut(),
                &mut d_h,
            );
            let Some(d_q) = d_q else { break };
            let input = &tape.cross_input;
            backend.project_backward(
                batch,
                Side::Decoder,
                Scope::All,
                &d_q,
                &layer.cross_q,
                &input.x,
                &input.r,
                None,
                &mut d_x,
            );

            let kept = &tape.attention;
            let output_mask = mask(dropout, SiteKind::SelfAttentionOutput, index);
            let o = Some((&kept.o, self.heads));
            let mut d_o = backend.rows(rows, total, Format::Operand);
            backend.add_project_backward(batch, Side::Decoder, &d_x, &layer.o, output_mask, o, &mut d_o);
            let mut d_qkv = backend.rows(rows, 3 * total, Format::ProjectionGradient);
            backend.self_attention_backward(
                batch,
                Side::Decoder,
                Scope::All,
                self.heads,
                &self.decoder_bias,
                mask(dropout, SiteKind::SelfAttention, index),
                &kept.qkv,
                &kept.o,
                &kept.log_sum_exp,
                &d_o,
                &mut d_qkv,
            );
            let input = &kept.input;
            backend.project_backward(
                batch,
                Side::Decoder,
                Scope::All,
                &d_qkv,
                &layer.qkv,
                &input.x,
                &input.r,
                layers.peek().and_then(|(_, (_, tape))| self.below(&tape.feed_forward_input)),
                &mut d_x,
            );
            above = tape.attention.input;
        }
        Some(backend.source_rows(batch, d_h))
    }
}
