//! Decoding a token at a time: self attention of one new token an example against the tokens before it, and the tokens that
//! steps choose, which stay on the device.

use std::ops::Range;

use super::{Embedding, Heads, LmHead, Matrix, Residual, SelfAttentionOps, check_heads};
use crate::backend::{Batch, Side};
use crate::error::{Error, Result};

/// o = softmax(q k^T + bias) v of one new token an example, over the tokens of the cache before it and itself.
pub struct DecodeStep<'a, D: SelfAttentionOps> {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// Where the new token stands, from 0.
    pub position: usize,
    /// H and K.
    pub heads: Heads,
    /// What is added to the scores, by key - query.
    pub bias: &'a D::PositionBias,
}

impl<D: DecodeOps> DecodeStep<'_, D> {
    /// Checks shapes for `examples` examples.
    pub(crate) fn check(&self, examples: usize, qkv: &D::Rows, o: &D::Rows) -> Result<()> {
        check_heads("the position bias", self.heads, D::bias_heads(self.bias))?;
        qkv.check("qkv", examples, 3 * self.heads.total())?;
        o.check("o", examples, self.heads.total())
    }

    /// Fails unless a cache of so many layers, tokens and such heads has the step's.
    pub(crate) fn check_cache(&self, layers: usize, length: usize, heads: Heads) -> Result<()> {
        if self.layer >= layers || self.position >= length {
            let expected =
                format!("a layer below {layers} and a position below {length}, as the cache has them");
            let found = format!("layer {}, position {}", self.layer, self.position);
            return Err(Error::tensor("a decoding step", expected, found, ""));
        }
        if self.heads != heads {
            let [expected, found] = [heads, self.heads].map(|of| format!("{} of {}", of.count, of.width));
            return Err(Error::tensor("the heads of the cache", expected, found, ""));
        }
        Ok(())
    }
}

/// Fails unless the tokens of `steps` steps of `examples` examples have that step, and the batch so many decoder rows.
pub(crate) fn check_tokens(batch: &Batch, step: usize, steps: usize, examples: usize) -> Result<()> {
    let rows = batch.rows(Side::Decoder);
    if step < steps && rows == examples {
        return Ok(());
    }
    let expected = format!("a step below {steps} and {examples} decoder rows, as the tokens have them");
    Err(Error::tensor("the tokens of a step", expected, format!("step {step}, {rows} rows"), ""))
}

/// Decoding a token at a time.
pub trait DecodeOps: SelfAttentionOps {
    /// Keys and values of the tokens decoded so far.
    type Cache;
    /// The tokens that some steps chose, one an example and step.
    type Tokens;

    /// Steps that are issued before the host reads what they chose: 1 where reading waits for nothing.
    fn tokens_ahead(&self) -> usize {
        1
    }
    /// Room for the tokens of `steps` steps of `examples` examples.
    ///
    /// # Errors
    /// No memory for it.
    fn tokens(&self, examples: usize, steps: usize) -> Result<Self::Tokens>;
    /// Step `step` chooses the token of the highest logit (ties go to the lowest id) for each row of hidden \[B, D\].
    ///
    /// # Errors
    /// A shape that does not fit, a step that the tokens have no room for, and what the driver says.
    fn choose_tokens(
        &self,
        batch: &Batch,
        hidden: &Self::Rows,
        lm_head: &LmHead<'_, Self>,
        tokens: &mut Self::Tokens,
        step: usize,
    ) -> Result<()>;
    /// As [`EmbeddingOps::embed`](super::EmbeddingOps::embed) of the decoder's rows, of the tokens that step `step` chose in place of
    /// the batch's ids.
    ///
    /// # Errors
    /// A shape or side that does not fit, a step that the tokens have no room for, and what the driver says.
    fn embed_tokens(
        &self,
        of: Embedding<'_, Self>,
        tokens: &Self::Tokens,
        step: usize,
        output: &mut Residual<Self>,
    ) -> Result<()>;
    /// What the steps in `steps` chose, B tokens each.
    ///
    /// # Errors
    /// Steps that the tokens have no room for, and what went wrong on the device meanwhile.
    fn read_tokens(&self, tokens: &Self::Tokens, steps: Range<usize>) -> Result<Vec<Vec<u32>>>;

    /// An empty cache for `layers` decoder layers of `examples` examples, up to `length` tokens each.
    ///
    /// # Errors
    /// No memory for it.
    fn cache(&self, layers: usize, examples: usize, length: usize, heads: Heads) -> Result<Self::Cache>;
    /// Writes o \[B, H·K\] from qkv \[B, 3·H·K\]; the new token joins the cache. The last layer's call completes the token.
    ///
    /// # Errors
    /// A shape that does not fit, a layer or position that the cache does not have, and what the driver says.
    fn decode_self_attention(
        &self,
        of: &DecodeStep<'_, Self>,
        qkv: &Self::Rows,
        cache: &mut Self::Cache,
        o: &mut Self::Rows,
    ) -> Result<()>;
}
