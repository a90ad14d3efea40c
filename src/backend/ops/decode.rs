//! Self attention of one new token an example against the tokens before it.

use super::{Heads, Matrix, SelfAttentionOps, check_heads};
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

/// Decoding a token at a time.
pub trait DecodeOps: SelfAttentionOps {
    /// Keys and values of the tokens decoded so far.
    type Cache;

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
