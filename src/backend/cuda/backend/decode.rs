//! Self attention of one new token an example against a cache.

use super::{Cuda, Operand, Rows, read};
use crate::backend::cuda::ops::decode as launch;
use crate::backend::{DecodeOps, DecodeStep, Heads};
use crate::error::Result;

/// Keys and values decoded so far, per layer \[B, length, 2·H·K\] in the operand format.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<Operand>,
    examples: usize,
    length: usize,
    heads: Heads,
}

impl DecodeOps for Cuda {
    type Cache = Cache;

    fn cache(&self, layers: usize, examples: usize, length: usize, heads: Heads) -> Result<Cache> {
        let layer = |_| self.operand(examples * length * 2 * heads.total());
        let layers = (0..layers).map(layer).collect::<Result<Vec<_>>>()?;
        Ok(Cache { layers, examples, length, heads })
    }

    fn decode_self_attention(
        &self,
        of: &DecodeStep<'_, Self>,
        qkv: &Rows,
        cache: &mut Cache,
        o: &mut Rows,
    ) -> Result<()> {
        of.check(cache.examples, qkv, o)?;
        of.check_cache(cache.layers.len(), cache.length, cache.heads)?;
        let DecodeStep { layer, position, heads, bias } = *of;
        let step = launch::DecodeStep {
            examples: cache.examples,
            heads,
            length: cache.length,
            position,
            bias: (read(&bias.values), bias.max_distance),
        };
        step.forward(self.kernels(), qkv.operand()?, cache.layers[layer].as_write(), o.operand_mut()?)
    }
}
