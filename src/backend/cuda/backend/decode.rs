//! Self attention of one new token an example against a cache, and the tokens that steps choose.

use std::ops::Range;

use super::{Buffer, Cuda, Operand, Rows, read};
use crate::backend::cuda::ops::decode as launch;
use crate::backend::ops::check_tokens;
use crate::backend::{Batch, DecodeOps, DecodeStep, Embedding, Heads, LmHead, Residual};
use crate::error::{Error, Result};

/// Keys and values decoded so far, per layer \[B, length, 2·H·K\] in the operand format.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<Operand>,
    examples: usize,
    length: usize,
    heads: Heads,
}

/// What steps chose: \[steps, stride\], B of each.
#[derive(Debug)]
pub struct Tokens {
    ids: Buffer<u32>,
    examples: usize,
    steps: usize,
    /// B, rounded up so that every step's begin on 16 bytes.
    stride: usize,
}

impl Tokens {
    /// Where those of a step lie, which `check_tokens` let through.
    fn of_step(&self, step: usize) -> Range<usize> {
        step * self.stride..step * self.stride + self.examples
    }

    fn check_steps(&self, steps: Range<usize>) -> Result<()> {
        if steps.start <= steps.end && steps.end <= self.steps {
            return Ok(());
        }
        let expected = format!("steps below {}", self.steps);
        Err(Error::tensor("the tokens of a step", expected, format!("{steps:?}"), ""))
    }
}

/// Steps that are issued at a time: class labels are shorter, and of longer answers what is decoded after the last end mark
/// is little.
const TOKENS_AHEAD: usize = 8;

impl DecodeOps for Cuda {
    type Cache = Cache;
    type Tokens = Tokens;

    fn tokens_ahead(&self) -> usize {
        TOKENS_AHEAD
    }

    fn tokens(&self, examples: usize, steps: usize) -> Result<Tokens> {
        let stride = examples.next_multiple_of(4);
        Ok(Tokens { ids: self.allocate(steps * stride)?, examples, steps, stride })
    }

    fn choose_tokens(
        &self,
        batch: &Batch,
        hidden: &Rows,
        lm_head: &LmHead<'_, Self>,
        tokens: &mut Tokens,
        step: usize,
    ) -> Result<()> {
        check_tokens(batch, step, tokens.steps, tokens.examples)?;
        let of_step = tokens.of_step(step);
        let mut ids = tokens.ids.view_mut()?;
        let mut chosen = ids.slice_mut(of_step);
        self.cross_entropy(batch, hidden, lm_head, None, &mut chosen).map(drop)
    }

    fn embed_tokens(
        &self,
        of: Embedding<'_, Self>,
        tokens: &Tokens,
        step: usize,
        output: &mut Residual<Self>,
    ) -> Result<()> {
        of.check(output)?;
        of.check_decoder()?;
        check_tokens(of.batch, step, tokens.steps, tokens.examples)?;
        let (of_step, ids) = (tokens.of_step(step), tokens.ids.view()?);
        self.embed_rows(of, Some(&ids.slice(of_step)), output)
    }

    fn read_tokens(&self, tokens: &Tokens, steps: Range<usize>) -> Result<Vec<Vec<u32>>> {
        tokens.check_steps(steps.clone())?;
        let ids = self.download_part(&tokens.ids, steps.start * tokens.stride..steps.end * tokens.stride)?;
        // No examples have no stride.
        let chosen = ids.chunks(tokens.stride.max(1)).map(|ids| ids[..tokens.examples].to_vec());
        Ok(chosen.collect())
    }

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
