//! The decoder over its encoder rows, up to the rows that `lm_head` reads; and greedy decoding.

use std::ops::Range;

use super::layer::{Attended, FeedForwardSaved, Layer, SelfAttentionSaved, mask};
use super::{DecoderLayer, Encoding, Mixture, Pass, T5};
use crate::backend::{
    Backend, Batch, CrossAttention, CrossAttentionBackward, DecodeStep, DropoutStep, Embedding, FinalNorm,
    FinalNormBackward, Format, Projection, ProjectionBackward, Residual, Scope, Side, SiteKind,
};
use crate::error::{Error, Result};

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
    cross: CrossSaved<B>,
    feed_forward: FeedForwardSaved<B>,
}

/// What backward needs of a cross attention sublayer.
struct CrossSaved<B: Backend> {
    input: Residual<B>,
    q: B::Rows,
    o: B::Rows,
    inside: B::CrossAttentionSaved,
}

impl<B: Backend> Decoding<B> {
    /// \[T, D\]: what `lm_head` multiplies.
    pub fn hidden(&self) -> &B::Rows {
        &self.hidden
    }
}

/// A layer's cross attention and what it works on.
struct Cross<'a, B: Backend> {
    layer: Layer<'a, B>,
    weights: &'a DecoderLayer<B>,
    encoding: &'a Encoding<B>,
}

/// How the decoder's self attention sees the tokens before.
enum Past<'a, B: Backend> {
    /// All of an example's tokens are in the batch.
    InBatch,
    /// One token an example is; the rest lie in the cache. After the first it is what the step before chose.
    Cached { steps: &'a mut Steps<B>, position: usize },
}

/// An answer that is decoded token by token.
pub(super) struct Answer<B: Backend> {
    pub(super) encoding: Encoding<B>,
    pub(super) steps: Steps<B>,
}

/// What decoding steps leave to those after them.
pub(super) struct Steps<B: Backend> {
    cache: B::Cache,
    tokens: B::Tokens,
    longest: usize,
}

impl<B: Backend> Steps<B> {
    /// The positions of chunk `number`: as many as are decoded before the host hears of them.
    fn chunk(&self, backend: &B, number: usize) -> Range<usize> {
        let ahead = backend.tokens_ahead().max(1);
        let start = number.saturating_mul(ahead).min(self.longest);
        start..start.saturating_add(ahead).min(self.longest)
    }
}

/// What examples said, as far as the host has heard.
struct Said {
    tokens: Vec<Vec<u32>>,
    /// The end-of-sequence token, after which nothing counts.
    end: u32,
    /// Steps.
    heard: usize,
}

impl Said {
    /// Reads what chunk `number` chose.
    fn hear<B: Backend>(&mut self, backend: &B, steps: &Steps<B>, number: usize) -> Result<()> {
        for chosen in backend.read_tokens(&steps.tokens, steps.chunk(backend, number))? {
            for (said, id) in self.tokens.iter_mut().zip(chosen) {
                if said.last() != Some(&self.end) {
                    said.push(id);
                }
            }
            self.heard += 1;
        }
        Ok(())
    }

    /// Whether an example has more to say, of `longest` tokens at most.
    fn goes_on(&self, longest: usize) -> bool {
        self.heard < longest && self.tokens.iter().any(|said| said.last() != Some(&self.end))
    }
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

    /// Encodes a batch that is [`Batch::decoded`] and answers each example with the most likely next token, again and again, until
    /// every example has said `eos_token_id` or as many tokens as the batch is decoded for. What an example says after its
    /// end-of-sequence token is not returned; that token is, where it came. `encoded` is called once, with the encoding and the
    /// batch that it is of.
    ///
    /// On a device that captures work, as [`Backend::capture_chunks`] says, the encoder and
    /// [`DecodeOps::tokens_ahead`](crate::backend::DecodeOps::tokens_ahead) tokens are one launch and one read. `graph_cache` is
    /// of this model, mixture and state alone.
    ///
    /// # Errors
    /// Another batch, those of [`T5::encode`] and of `encoded`, and what the device fails with.
    pub fn answer(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &B::State,
        graph_cache: &mut B::GraphCache,
        batch: &Batch,
        mut encoded: impl FnMut(&Batch, &Encoding<B>) -> Result<()>,
    ) -> Result<Vec<Vec<u32>>> {
        let longest = batch.decoding().ok_or_else(|| {
            Error::tensor("a batch to answer", "one that is decoded", "one with decoder rows of its own", "")
        })?;
        let mut said = self.said(batch.examples());
        let begin = |batch: &Batch| self.begin_answer(backend, mixture, state, batch);
        let chunk = |batch: &Batch, answer: &mut Answer<B>, number: usize| {
            self.say(backend, batch, &answer.encoding, &mut answer.steps, number)
        };
        let mut chunks = 0;
        backend.capture_chunks(graph_cache, batch, begin, chunk, |batch, answer| {
            if chunks == 0 {
                encoded(batch, &answer.encoding)?;
            }
            said.hear(backend, &answer.steps, chunks)?;
            chunks += 1;
            Ok(said.goes_on(longest))
        })?;
        Ok(said.tokens)
    }

    /// As [`T5::answer`], of an encoding of `batch` that is there already, up to `longest` tokens.
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
        let batch = batch.decoded(self.config.decoder_start_token_id, longest)?;
        let (mut said, mut steps) = (self.said(batch.examples()), self.steps(backend, &batch)?);
        for number in 0.. {
            if !said.goes_on(longest) {
                break;
            }
            self.say(backend, &batch, encoding, &mut steps, number)?;
            said.hear(backend, &steps, number)?;
        }
        Ok(said.tokens)
    }

    /// What an answer to a batch that is [`Batch::decoded`] begins with.
    pub(super) fn begin_answer(
        &self,
        backend: &B,
        mixture: &Mixture<B>,
        state: &B::State,
        batch: &Batch,
    ) -> Result<Answer<B>> {
        let encoding = self.encode(backend, mixture, state, batch, &mut Pass::evaluation())?;
        Ok(Answer { encoding, steps: self.steps(backend, batch)? })
    }

    fn steps(&self, backend: &B, batch: &Batch) -> Result<Steps<B>> {
        let (examples, longest) = (batch.examples(), batch.decoding().unwrap_or(1));
        let cache = backend.cache(self.decoder.len(), examples, longest.max(1), self.heads)?;
        Ok(Steps { cache, tokens: backend.tokens(examples, longest)?, longest })
    }

    fn said(&self, examples: usize) -> Said {
        Said { tokens: vec![Vec::new(); examples], end: self.config.eos_token_id, heard: 0 }
    }

    /// Decodes the tokens of chunk `number`.
    pub(super) fn say(
        &self,
        backend: &B,
        batch: &Batch,
        encoding: &Encoding<B>,
        steps: &mut Steps<B>,
        number: usize,
    ) -> Result<()> {
        for position in steps.chunk(backend, number) {
            let past = Past::Cached { steps: &mut *steps, position };
            let decoding = self.decode_past(backend, batch, encoding, &mut Pass::evaluation(), past)?;
            backend.choose_tokens(batch, &decoding.hidden, &self.lm_head(), &mut steps.tokens, position)?;
        }
        Ok(())
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
            mask: mask(pass.dropout, Side::Decoder, SiteKind::Embedding, 0),
            epsilon: self.epsilon(),
        };
        match &past {
            Past::Cached { steps, position: position @ 1.. } => {
                backend.embed_tokens(embedding, &steps.tokens, position - 1, &mut residual)?;
            }
            _ => backend.embed(embedding, &mut residual)?,
        }
        let mut layers = Vec::new();
        for cross in self.decoder_layers(batch, encoding, pass.dropout) {
            let layer = &cross.layer;
            let attend = |of: Attended<'_, B>| past.attend(backend, layer, of);
            let (middle, attention) = layer.self_attention(backend, residual, pass, attend)?;
            let (middle, cross) = cross.forward(backend, middle, pass)?;
            let (next, feed_forward) = layer.feed_forward(backend, middle, pass)?;
            let saved = attention.zip(cross).zip(feed_forward);
            layers.extend(saved.map(|((attention, cross), feed_forward)| LayerTape {
                attention,
                cross,
                feed_forward,
            }));
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
    ) -> impl DoubleEndedIterator<Item = Cross<'a, B>> + ExactSizeIterator {
        let side = Side::Decoder;
        let layer = move |index, weights: &'a DecoderLayer<B>| {
            let layer = Layer { model: self, weights: &weights.common, side, index, batch, dropout };
            Cross { layer, weights, encoding }
        };
        self.decoder.iter().enumerate().map(move |(index, weights)| layer(index, weights))
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
            mask: mask(dropout, Side::Decoder, SiteKind::FinalNorm, 0),
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
        let (rows, width) = (batch.rows(Side::Decoder), self.config.d_model);
        let mut d_h = backend.source_gradient(batch, width)?;
        let mut layers = self.decoder_layers(batch, encoding, dropout).zip(tape.layers).rev().peekable();
        let mut d_x = backend.rows(rows, width, Format::Residual)?;
        let below = layers.peek().and_then(|(_, tape)| self.below(&tape.feed_forward.input));
        let norm = self.decoder_norm(batch, &tape.output, dropout);
        backend.final_norm_backward(norm, FinalNormBackward { d_h: &d_hidden, below }, &mut d_x)?;
        // What the layer at hand passed on: the input of the one above it.
        let mut above = tape.output;
        while let Some((cross, tape)) = layers.next() {
            let layer = &cross.layer;
            layer.feed_forward_backward(backend, &tape.feed_forward, &above.x, &mut d_x)?;
            cross.backward(backend, &tape.cross, &mut d_x, &mut d_h)?;
            // Nothing before the first layer's cross attention depends on a trained number.
            if layer.index == 0 {
                break;
            }
            let below = layers.peek().and_then(|(_, tape)| self.below(&tape.feed_forward.input));
            layer.self_attention_backward(backend, &tape.attention, Scope::All, below, &mut d_x)?;
            above = tape.attention.input;
        }
        backend.source_rows(batch, d_h).map(Some)
    }
}

impl<B: Backend> Past<'_, B> {
    fn attend(&mut self, backend: &B, layer: &Layer<'_, B>, of: Attended<'_, B>) -> Result<()> {
        match self {
            Self::InBatch => layer.attend(backend, of),
            Self::Cached { steps, position } => {
                let bias = layer.model.bias(Side::Decoder);
                let (heads, position) = (layer.model.heads, *position);
                let (batch, side, weight) = (layer.batch, layer.side, &layer.weights.qkv);
                backend.project(Projection { batch, side, input: of.input, weight }, of.qkv)?;
                let step = DecodeStep { layer: layer.index, position, heads, bias };
                backend.decode_self_attention(&step, of.qkv, &mut steps.cache, of.o)
            }
        }
    }
}

impl<'a, B: Backend> Cross<'a, B> {
    fn attention(&self) -> CrossAttention<'a, B> {
        CrossAttention {
            batch: self.layer.batch,
            heads: self.layer.model.heads,
            w_k: &self.weights.cross_k,
            w_v: &self.weights.cross_v,
            mask: self.layer.mask(SiteKind::CrossAttention),
        }
    }

    fn forward(
        &self,
        backend: &B,
        mut input: Residual<B>,
        pass: &mut Pass<'_, B>,
    ) -> Result<(Residual<B>, Option<CrossSaved<B>>)> {
        let Self { layer, weights, encoding } = self;
        let (rows, total) = (layer.batch.rows(Side::Decoder), layer.model.heads.total());
        let attention = self.attention();
        let mut q = backend.rows(rows, total, Format::Operand)?;
        backend.cross_project(&attention, &input, &weights.cross_q, &mut q)?;
        let mut o = backend.rows(rows, total, Format::Operand)?;
        let inside = backend.cross_attention(&attention, &q, &encoding.h, &mut o, pass.keep)?;
        let mut next = Residual::new(backend, rows, layer.model.config.d_model)?;
        let output = layer.output(&o, &weights.cross_o, SiteKind::CrossAttentionOutput, &input.x);
        backend.add_project(output, &mut next)?;
        backend.release_forward(&mut input.x);
        pass.observe(|| format!("{} cross attention", layer.name()), &next.x)?;
        Ok((next, inside.map(|inside| CrossSaved { input, q, o, inside })))
    }

    /// Adds to `d_h`, and turns `d_x` into the gradient of the sublayer's input, but in the first layer, below which nothing is
    /// trained.
    fn backward(
        &self,
        backend: &B,
        saved: &CrossSaved<B>,
        d_x: &mut B::Rows,
        d_h: &mut B::SourceGradient,
    ) -> Result<()> {
        let Self { layer, weights, encoding } = self;
        let (batch, side) = (layer.batch, Side::Decoder);
        let (rows, total) = (batch.rows(side), layer.model.heads.total());
        let attention = self.attention();
        let mut d_o = backend.rows(rows, total, Format::Operand)?;
        let mask = layer.mask(SiteKind::CrossAttentionOutput);
        backend.cross_project_backward(&attention, d_x, &weights.cross_o, mask, &mut d_o)?;
        let d_q = (layer.index > 0).then(|| backend.rows(rows, total, Format::ProjectionGradient));
        let mut d_q = d_q.transpose()?;
        let (q, h, o) = (&saved.q, &encoding.h, &saved.o);
        let from = CrossAttentionBackward { saved: &saved.inside, q, h, o, d_o: &d_o };
        backend.cross_attention_backward(&attention, from, d_q.as_mut(), d_h)?;
        let Some(d_q) = d_q else { return Ok(()) };
        let (scope, weight, input) = (Scope::All, &weights.cross_q, &saved.input);
        let below = None;
        backend
            .project_backward(ProjectionBackward { batch, side, scope, dz: &d_q, weight, input, below }, d_x)
    }
}
