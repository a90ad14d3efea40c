//! One decoding step's self attention, against the keys and values of the tokens before it; and the tokens that steps choose.

use std::ops::Range;

use super::Cpu;
use super::element::Element;
use super::embedding::enter;
use super::pool::check_room;
use super::rows::Rows;
use super::vector::{add_scaled, dot, exponentials, maximum, scale, vectorised};
use crate::backend::ops::{check_row, check_tokens};
use crate::backend::{
    Batch, DecodeOps, DecodeStep, Embedding, Heads, LmHead, LossOps, Matrix, Residual, Side,
};
use crate::error::{Error, Result};

/// Keys and values decoded so far, per layer \[B, length, 2·H·K\].
#[derive(Debug)]
pub struct Cache<E> {
    layers: Vec<Vec<E>>,
    examples: usize,
    length: usize,
    heads: Heads,
}

/// What steps chose, of those that did.
#[derive(Debug)]
pub struct Tokens {
    chosen: Vec<Option<Vec<u32>>>,
    examples: usize,
}

impl Tokens {
    fn of_step(&self, step: usize) -> Result<&[u32]> {
        let chosen = self.chosen.get(step).and_then(Option::as_deref);
        chosen.ok_or_else(|| Error::tensor("the tokens of a step", "a step that chose", step.to_string(), ""))
    }
}

impl<E: Element> DecodeOps for Cpu<E> {
    type Cache = Cache<E>;
    type Tokens = Tokens;

    fn tokens(&self, examples: usize, steps: usize) -> Result<Tokens> {
        check_room::<u32>("the tokens", &[steps, examples])?;
        Ok(Tokens { chosen: vec![None; steps], examples })
    }

    fn choose_tokens(
        &self,
        batch: &Batch,
        hidden: &Rows<E>,
        lm_head: &LmHead<'_, Self>,
        tokens: &mut Tokens,
        step: usize,
    ) -> Result<()> {
        check_tokens(batch, step, tokens.chosen.len(), tokens.examples)?;
        tokens.chosen[step] = Some(self.loss(batch, hidden, lm_head, None)?.greedy);
        Ok(())
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
        check_tokens(of.batch, step, tokens.chosen.len(), tokens.examples)?;
        let (ids, vocabulary) = (tokens.of_step(step)?, of.table.shape()[0]);
        for (row, &id) in ids.iter().enumerate() {
            check_row(id as usize, vocabulary)?;
            output.x.row_mut(row).copy_from_slice(of.table.row(id as usize));
        }
        let rows = |b| of.batch.range(Side::Decoder, b);
        enter(self, of.batch, Side::Decoder, (of.mask, of.epsilon), rows, output);
        Ok(())
    }

    fn read_tokens(&self, tokens: &Tokens, steps: Range<usize>) -> Result<Vec<Vec<u32>>> {
        steps.map(|step| tokens.of_step(step).map(<[u32]>::to_vec)).collect()
    }

    fn cache(&self, layers: usize, examples: usize, length: usize, heads: Heads) -> Result<Cache<E>> {
        check_room::<E>("the cache", &[layers, examples, length, 2, heads.count, heads.width])?;
        let layer = vec![E::zero(); examples * length * 2 * heads.total()];
        Ok(Cache { layers: vec![layer; layers], examples, length, heads })
    }

    fn decode_self_attention(
        &self,
        of: &DecodeStep<'_, Self>,
        qkv: &Rows<E>,
        cache: &mut Cache<E>,
        o: &mut Rows<E>,
    ) -> Result<()> {
        of.check(cache.examples, qkv, o)?;
        of.check_cache(cache.layers.len(), cache.length, cache.heads)?;
        let DecodeStep { layer, position, heads, bias } = *of;
        let total = heads.total();
        let biases: Vec<Vec<E>> = (0..heads.count).map(|head| bias.before(head, position)).collect();
        let example = cache.length * 2 * total;
        for (b, kv) in cache.layers[layer].chunks_exact_mut(example).enumerate() {
            let row = qkv.row(b);
            kv[position * 2 * total..(position + 1) * 2 * total].copy_from_slice(&row[total..]);
            let o = o.row_mut(b);
            vectorised!(self, attend(heads, &biases, &row[..total], &kv[..(position + 1) * 2 * total], o));
        }
        Ok(())
    }
}

#[inline(always)]
fn attend<E: Element>(heads: Heads, biases: &[Vec<E>], q: &[E], kv: &[E], o: &mut [E]) {
    let total = heads.total();
    o.fill(E::zero());
    for (head, bias) in biases.iter().enumerate() {
        let columns = head * heads.width..(head + 1) * heads.width;
        let mut p: Vec<E> = kv
            .chunks_exact(2 * total)
            .zip(bias)
            .map(|(token, &bias)| dot(&q[columns.clone()], &token[columns.clone()]) + bias)
            .collect();
        let most = maximum(&p);
        let sum = exponentials(&mut p, most);
        scale(&mut p, E::one() / sum);
        for (token, &p) in kv.chunks_exact(2 * total).zip(&p) {
            add_scaled(&mut o[columns.clone()], p, &token[total..][columns.clone()]);
        }
    }
}
