//! The mixture of prompts: pool each input, score the prompts' keys, softmax, interpolate; and back.
//!
//! x_b = max of the example's embedding rows, less the run's mean input if it has one; h by the scorer; a = softmax(p_j · h / temperature);
//! Z_b = P_tgt + sum_j a_j P_j. The gradient reaches P_tgt by the value, the residual add, and its key p_tgt.

use std::ops::Range;

use rayon::prelude::*;

use super::element::Element;
use super::embedding::enter;
use super::matrix::{View, ViewMut};
use super::optimizer::State;
use super::rows::{Blocks, Rows, split_rows};
use super::vector::{add_scaled, dot, exponentials, maximum, maximum_or_nan_into, scale, vectorised};
use super::{Cpu, Weight, widened};
use crate::backend::ops::check_sources;
use crate::backend::{Batch, Mix, MixOps, Mixing, PromptRows, Scope, Scorer, Side};
use crate::error::{Error, Result};

/// Frozen source prompts and their pooled keys.
#[derive(Debug)]
pub struct Sources<E> {
    /// \[S, M, D\].
    values: Vec<E>,
    /// \[S, D\]: the max over each prompt's rows.
    keys: Vec<E>,
    shape: [usize; 3],
}

/// The max over a prompt's rows and, for each column, the lowest row that has it.
fn pool_key<E: Element>(prompt: &[E], width: usize) -> (Vec<E>, Vec<u32>) {
    let mut key = prompt[..width].to_vec();
    let mut rows = vec![0; width];
    for (row, values) in prompt.chunks_exact(width).enumerate().skip(1) {
        for ((key, saved), &value) in key.iter_mut().zip(&mut rows).zip(values) {
            if value > *key {
                (*key, *saved) = (value, row as u32);
            }
        }
    }
    (key, rows)
}

/// What the mixture's backward needs.
#[derive(Debug)]
pub struct MixSaved<E> {
    /// The sizes of what it was saved of.
    sizes: Sizes,
    /// a, \[B, S + 1\] or \[B, M, S + 1\]; empty for a plain prompt.
    pub(super) attention: Vec<E>,
    /// p_j · h / temperature, shaped as `attention`.
    scores: Vec<E>,
    /// x_b, \[B, D\].
    pooled: Vec<E>,
    /// W_down x_b, \[B, Q\].
    down: Vec<E>,
    /// The LayerNorm's standardised input \[B, D\] and reciprocal deviation \[B\].
    standardised: Vec<E>,
    reciprocal_deviation: Vec<E>,
    /// h, \[B, D\].
    h: Vec<E>,
    /// Each target prompt's key \[D\] and the row each column came from, for all runs.
    target_keys: Vec<(Vec<E>, Vec<u32>)>,
}

impl<E> MixSaved<E> {
    /// Fails unless it was saved of as many examples as the batch has.
    pub(super) fn check_examples(&self, batch: &Batch) -> Result<()> {
        if self.sizes.examples == batch.examples() {
            return Ok(());
        }
        let (expected, found) = (batch.examples().to_string(), self.sizes.examples.to_string());
        Err(Error::tensor("the examples of a mixture", expected, found, ""))
    }
}

/// The sizes that every step of the mixture shares.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sizes {
    scorer: Option<Scorer>,
    /// B.
    examples: usize,
    /// S.
    sources: usize,
    /// Prompts in the mixture: S + 1, or S without the target.
    prompts: usize,
    /// M.
    length: usize,
    /// D.
    width: usize,
    /// Q.
    bottleneck_dim: usize,
    /// Target prompts of all runs.
    targets: usize,
    /// Rows of attention an example: 1, or M for the token scorer.
    attention_rows: usize,
}

impl Sizes {
    fn of_example(self, b: usize) -> Range<usize> {
        let length = self.attention_rows * self.prompts;
        b * length..(b + 1) * length
    }

    fn prompt(self) -> usize {
        self.length * self.width
    }
}

impl<E: Element> MixOps for Cpu<E> {
    type Sources = Sources<E>;
    type MixSaved = MixSaved<E>;

    fn sources(
        &self,
        values: &[f32],
        count: usize,
        prompt_length: usize,
        width: usize,
    ) -> Result<Sources<E>> {
        let shape = [count, prompt_length, width];
        check_sources(values.len(), shape)?;
        let values: Vec<E> = values.iter().map(|&value| E::from_f32(value)).collect();
        let prompts = values.chunks_exact(prompt_length * width);
        let keys = prompts.flat_map(|prompt| pool_key(prompt, width).0).collect();
        Ok(Sources { values, keys, shape })
    }

    fn mix(
        &self,
        of: &Mix<'_, Self>,
        table: &Weight<E>,
        state: &State<E>,
        output: PromptRows<'_, Self>,
    ) -> Result<MixSaved<E>> {
        of.check(&state.layout, state.updates.len(), of.sources.map(|sources| sources.shape), &output)?;
        of.check_table(table, state.layout.width)?;
        let PromptRows { input, mask, epsilon } = output;
        let saved = Mixture::new(self, of, state).forward(table, state, &mut input.x);
        let rows = |b| of.batch.scoped_range(Side::Encoder, Scope::Prompt, b);
        enter(self, of.batch, Side::Encoder, (mask, epsilon), rows, input);
        Ok(saved)
    }

    fn mix_backward(
        &self,
        of: &Mix<'_, Self>,
        saved: &MixSaved<E>,
        d_x: &Rows<E>,
        state: &mut State<E>,
    ) -> Result<()> {
        of.check_gradient(&state.layout, state.updates.len(), of.sources.map(|sources| sources.shape), d_x)?;
        let mixture = Mixture::new(self, of, state);
        if saved.sizes != mixture.sizes {
            let expected = "what forward kept of the same scorer, batch and state";
            let advice = "give the backward what its forward returned";
            return Err(Error::tensor("a mixture's backward", expected, "another's", advice));
        }
        mixture.backward(saved, d_x, state);
        Ok(())
    }

    fn attention(&self, saved: &MixSaved<E>) -> Result<Vec<f64>> {
        Ok(widened(&saved.attention))
    }
}

/// A mixture whose operands fit each other.
struct Mixture<'a, E: Element> {
    cpu: &'a Cpu<E>,
    mixing: &'a Mixing,
    sources: Option<&'a Sources<E>>,
    batch: &'a Batch,
    sizes: Sizes,
}

impl<'a, E: Element> Mixture<'a, E> {
    /// Of operands that were checked.
    fn new(cpu: &'a Cpu<E>, of: &Mix<'a, Cpu<E>>, state: &State<E>) -> Self {
        let (layout, runs) = (&state.layout, state.updates.len());
        let Mix { mixing, sources, batch } = *of;
        let count = sources.map_or(0, |sources| sources.shape[0]);
        let sizes = Sizes {
            scorer: mixing.scorer,
            examples: batch.examples(),
            sources: count,
            prompts: count + usize::from(!mixing.without_target),
            length: layout.prompt_length,
            width: layout.width,
            bottleneck_dim: layout.bottleneck_dim,
            targets: runs * layout.targets,
            attention_rows: if mixing.scorer == Some(Scorer::Token) { layout.prompt_length } else { 1 },
        };
        Self { cpu, mixing, sources, batch, sizes }
    }

    fn forward(&self, table: &Weight<E>, state: &State<E>, x: &mut Rows<E>) -> MixSaved<E> {
        let Self { cpu, mixing, sources, batch, sizes } = *self;
        let mut saved = MixSaved {
            sizes,
            attention: Vec::new(),
            scores: Vec::new(),
            pooled: Vec::new(),
            down: Vec::new(),
            standardised: Vec::new(),
            reciprocal_deviation: Vec::new(),
            h: Vec::new(),
            target_keys: Vec::new(),
        };
        let frozen = sources.map_or(&[][..], |sources| &sources.values);
        if let Some(scorer) = mixing.scorer {
            if scorer == Scorer::Uniform {
                let share = E::one() / E::from_f64(sizes.prompts as f64);
                saved.attention = vec![share; batch.examples() * sizes.prompts];
            } else if scorer == Scorer::Constant {
                self.constant(state, &mut saved.attention);
            } else {
                self.pool_inputs(table, state, &mut saved.pooled);
                self.query(state, &mut saved);
                self.target_keys(state, &mut saved.target_keys);
                self.score(state, &mut saved);
            }
        }

        // The frozen part of all examples in one product where an example has one row of weights.
        let examples = batch.examples();
        let together = mixing.scorer.is_some() && sizes.attention_rows == 1 && sizes.sources > 0;
        let mut frozen_part = cpu.pool.take(if together { examples * sizes.prompt() } else { 0 });
        if together {
            let a = View::new(&saved.attention, examples, sizes.sources, sizes.prompts);
            let p = View::new(frozen, sizes.sources, sizes.prompt(), sizes.prompt());
            let destination = ViewMut::new(&mut frozen_part, examples, sizes.prompt(), sizes.prompt());
            let blocks = Blocks { size: examples, inner_threads: cpu.threads() };
            cpu.run(|| cpu.multiply(destination, false, a, p, blocks));
        }
        let pieces =
            split_rows(&mut x.data, sizes.width, (0..examples).map(|b| batch.range(Side::Encoder, b).len()));
        cpu.run(|| {
            pieces.into_par_iter().enumerate().for_each(|(b, rows)| {
                let z = &mut rows[..sizes.prompt()];
                let target = state.layout.target_prompt(batch.run(b), batch.target_prompt(b));
                let target = target.map(|range| &state.values[range]);
                let attention = saved.attention.get(sizes.of_example(b)).unwrap_or(&[]);
                vectorised!(cpu, {
                    if together {
                        z.copy_from_slice(&frozen_part[b * sizes.prompt()..(b + 1) * sizes.prompt()]);
                    } else {
                        z.fill(E::zero());
                    }
                    for (m, z) in z.chunks_exact_mut(sizes.width).enumerate() {
                        let columns = m * sizes.width..(m + 1) * sizes.width;
                        let weights = match attention.len() {
                            0 => attention,
                            _ => attention
                                .chunks_exact(sizes.prompts)
                                .nth(m % sizes.attention_rows)
                                .unwrap_or(&[]),
                        };
                        if !together {
                            for (prompt, &a) in frozen.chunks_exact(sizes.prompt()).zip(weights) {
                                add_scaled(z, a, &prompt[columns.clone()]);
                            }
                        }
                        if let Some(target) = target {
                            let own = weights.get(sizes.sources).copied().unwrap_or(E::zero());
                            add_scaled(z, E::one() + own, &target[columns]);
                        }
                    }
                });
            });
        });
        saved
    }

    fn backward(&self, saved: &MixSaved<E>, d_x: &Rows<E>, state: &mut State<E>) {
        let Self { cpu, mixing, batch, sizes, .. } = *self;
        let examples = batch.examples();
        let d_z = |b: usize| d_x.range(batch.scoped_range(Side::Encoder, Scope::Prompt, b));
        // By value and by the residual add.
        for b in 0..examples {
            if let Some(range) = state.layout.target_prompt(batch.run(b), batch.target_prompt(b)) {
                let attention = saved.attention.get(sizes.of_example(b)).unwrap_or(&[]);
                let d_target = &mut state.gradient[range];
                vectorised!(cpu, {
                    let rows = d_target.chunks_exact_mut(sizes.width).zip(d_z(b).chunks_exact(sizes.width));
                    for (m, (d_target, d_z)) in rows.enumerate() {
                        let own = if attention.is_empty() {
                            E::zero()
                        } else {
                            attention[m % sizes.attention_rows * sizes.prompts + sizes.sources]
                        };
                        add_scaled(d_target, E::one() + own, d_z);
                    }
                });
            }
        }
        if mixing.scorer.is_none_or(|scorer| scorer == Scorer::Uniform) {
            return;
        }

        let mut d_scores = self.attention_gradient(saved, d_x, state);
        let rows = d_scores.chunks_exact_mut(sizes.prompts).zip(saved.attention.chunks_exact(sizes.prompts));
        for (d_scores, attention) in rows {
            let mean = dot(d_scores, attention);
            for (d_score, &a) in d_scores.iter_mut().zip(attention) {
                *d_score = a * (*d_score - mean);
            }
        }
        if mixing.scorer == Some(Scorer::Constant) {
            for (run, range) in batch.runs() {
                let Some(d_logits) = state.d_value("logits", run) else { continue };
                for b in range {
                    add_scaled(d_logits, E::one(), &d_scores[sizes.of_example(b)]);
                }
            }
            return;
        }
        for (run, range) in batch.runs() {
            if let Some(d_log_temperature) = state.d_value("log_temperature", run) {
                let span = sizes.of_example(range.start).start..sizes.of_example(range.end).start;
                d_log_temperature[0] =
                    d_log_temperature[0] - dot(&d_scores[span.clone()], &saved.scores[span]);
            }
        }

        let d_h = self.score_backward(saved, &d_scores, state);
        self.query_backward(saved, d_h, state);
    }

    /// The softmax of each run's logits, for every example of it.
    fn constant(&self, state: &State<E>, attention: &mut Vec<E>) {
        for (run, range) in self.batch.runs() {
            let logits = state.value("logits", run).unwrap_or_default();
            let mut weights = logits.to_vec();
            softmax(&mut weights);
            range.for_each(|_| attention.extend_from_slice(&weights));
        }
    }

    /// x_b: the max over the embedding rows of each example's real tokens, standardized if the run's state says by what.
    fn pool_inputs(&self, table: &Weight<E>, state: &State<E>, pooled: &mut Vec<E>) {
        let Self { cpu, batch, .. } = *self;
        pooled.resize(batch.examples() * table.input, E::zero());
        cpu.run(|| {
            pooled.par_chunks_mut(table.input).enumerate().for_each(|(b, pooled)| {
                let statistic = |name| state.value(name, batch.run(b));
                let standardized = statistic("input_mean").zip(statistic("input_scale"));
                vectorised!(cpu, {
                    pooled.fill(E::neg_infinity());
                    for &id in batch.source(b).iter().chain(&batch.pooled_padding(b)) {
                        maximum_or_nan_into(pooled, table.row(id as usize));
                    }
                    if let Some((mean, scale)) = standardized {
                        for ((x, &mean), &scale) in pooled.iter_mut().zip(mean).zip(scale) {
                            *x = (*x - mean) * scale;
                        }
                    }
                });
            });
        });
    }

    /// h of every example, by the scorer.
    fn query(&self, state: &State<E>, saved: &mut MixSaved<E>) {
        let Self { cpu, mixing, batch, sizes: Sizes { width, bottleneck_dim, .. }, .. } = *self;
        saved.h = saved.pooled.clone();
        for (run, range) in batch.runs() {
            let rows = range.len();
            let pooled = View::new(&saved.pooled[range.start * width..], rows, width, width);
            let h = &mut saved.h[range.start * width..range.end * width];
            if let Some(weight) = state.value("weight", run) {
                let weight = View::new(weight, width, width, width).transposed();
                cpu.multiply_alone(ViewMut::new(h, rows, width, width), false, pooled, weight);
            }
            if let (Some(w_down), Some(w_up)) = (state.value("w_down", run), state.value("w_up", run)) {
                let mut down = vec![E::zero(); rows * bottleneck_dim];
                let w_down = View::new(w_down, bottleneck_dim, width, width).transposed();
                cpu.multiply_alone(
                    ViewMut::new(&mut down, rows, bottleneck_dim, bottleneck_dim),
                    false,
                    pooled,
                    w_down,
                );
                let activated: Vec<E> = down.iter().map(|&u| u * sigmoid(u)).collect();
                let w_up = View::new(w_up, width, bottleneck_dim, bottleneck_dim).transposed();
                let activated = View::new(&activated, rows, bottleneck_dim, bottleneck_dim);
                cpu.multiply_alone(ViewMut::new(h, rows, width, width), false, activated, w_up);
                saved.down.extend(down);
            }
            if !mixing.scorer.is_some_and(Scorer::has_layer_norm) {
                continue;
            }
            let (norm_weight, shift) = (state.value("norm_weight", run), state.value("norm_bias", run));
            let (Some(norm_weight), Some(shift)) = (norm_weight, shift) else { continue };
            for h in h.chunks_exact_mut(width) {
                let count = E::from_f64(width as f64);
                let mean = h.iter().fold(E::zero(), |sum, &v| sum + v) / count;
                let variance = h.iter().fold(E::zero(), |sum, &v| sum + (v - mean) * (v - mean)) / count;
                let reciprocal = E::one() / (variance + E::from_f64(mixing.layer_norm_epsilon)).sqrt();
                saved.reciprocal_deviation.push(reciprocal);
                for ((h, &norm_weight), &shift) in h.iter_mut().zip(norm_weight).zip(shift) {
                    let standard = (*h - mean) * reciprocal;
                    saved.standardised.push(standard);
                    *h = standard * norm_weight + shift;
                }
            }
        }
    }

    /// The pooled key of each target prompt, all runs.
    fn target_keys(&self, state: &State<E>, keys: &mut Vec<(Vec<E>, Vec<u32>)>) {
        if self.mixing.without_target {
            return;
        }
        for run in 0..state.updates.len() {
            let prompts =
                (0..state.layout.targets).filter_map(|target| state.layout.target_prompt(run, target));
            keys.extend(prompts.map(|range| pool_key(&state.values[range], state.layout.width)));
        }
    }

    fn temperature(&self, state: &State<E>, run: usize) -> E {
        match state.value("log_temperature", run) {
            Some(logarithm) => logarithm[0].exp(),
            None => E::from_f64(self.mixing.temperature),
        }
    }

    /// Scores and their softmax, of every example.
    fn score(&self, state: &State<E>, saved: &mut MixSaved<E>) {
        let Self { cpu, batch, sizes, .. } = *self;
        let mut scores = vec![E::zero(); sizes.of_example(batch.examples()).start];
        let (h, target_keys) = (&saved.h, &saved.target_keys);
        let work: Vec<&mut [E]> = scores.chunks_exact_mut(sizes.of_example(0).len()).collect();
        cpu.run(|| {
            work.into_par_iter().enumerate().for_each(|(b, scores)| {
                let run = batch.run(b);
                let h = &h[b * sizes.width..(b + 1) * sizes.width];
                let inverse = E::one() / self.temperature(state, run);
                vectorised!(cpu, {
                    for (m, scores) in scores.chunks_exact_mut(sizes.prompts).enumerate() {
                        for (j, score) in scores.iter_mut().enumerate() {
                            *score = inverse * dot(h, self.key(state, target_keys, [b, m, j]));
                        }
                    }
                });
            });
        });
        saved.attention = scores.clone();
        for row in saved.attention.chunks_exact_mut(sizes.prompts) {
            softmax(row);
        }
        saved.scores = scores;
    }

    /// What example `b`'s h is scored against for prompt `j`: its pooled key, or for the token scorer its row `m`.
    #[inline(always)]
    fn key<'s>(
        &'s self,
        state: &'s State<E>,
        target_keys: &'s [(Vec<E>, Vec<u32>)],
        [b, m, j]: [usize; 3],
    ) -> &'s [E] {
        let Self { sources, batch, sizes, .. } = *self;
        let (run, target) = (batch.run(b), batch.target_prompt(b));
        let row = m * sizes.width..(m + 1) * sizes.width;
        match (sources.filter(|_| j < sizes.sources), sizes.attention_rows) {
            (Some(sources), 1) => &sources.keys[j * sizes.width..(j + 1) * sizes.width],
            (Some(sources), _) => &sources.values[j * sizes.prompt()..(j + 1) * sizes.prompt()][row],
            (None, 1) => &target_keys[run * state.layout.targets + target].0,
            (None, _) => {
                let range = state.layout.target_prompt(run, target).unwrap_or(0..0);
                &state.values[range][row]
            }
        }
    }

    /// d_a, shaped as the attention: <d_z, P_j>, per example or per row.
    fn attention_gradient(&self, saved: &MixSaved<E>, d_x: &Rows<E>, state: &State<E>) -> Vec<E> {
        let Self { cpu, sources, batch, sizes, .. } = *self;
        let mut d_attention = vec![E::zero(); saved.attention.len()];
        let frozen = sources.map_or(&[][..], |sources| &sources.values);
        let work: Vec<&mut [E]> = d_attention.chunks_exact_mut(sizes.of_example(0).len()).collect();
        // One dot for an example, or one a row.
        let span = sizes.prompt() / sizes.attention_rows;
        cpu.run(|| {
            work.into_par_iter().enumerate().for_each(|(b, d_attention)| {
                let d_z = d_x.range(batch.scoped_range(Side::Encoder, Scope::Prompt, b));
                let target = state.layout.target_prompt(batch.run(b), batch.target_prompt(b));
                let target = target.map(|range| &state.values[range]);
                let prompts = || frozen.chunks_exact(sizes.prompt()).chain(target);
                vectorised!(cpu, {
                    for (m, d_attention) in d_attention.chunks_exact_mut(sizes.prompts).enumerate() {
                        for (d_a, prompt) in d_attention.iter_mut().zip(prompts()) {
                            let columns = m * span..(m + 1) * span;
                            *d_a = dot(&d_z[columns.clone()], &prompt[columns]);
                        }
                    }
                });
            });
        });
        d_attention
    }

    /// d_h of every example; adds the gradient of the target prompts through their keys.
    fn score_backward(&self, saved: &MixSaved<E>, d_scores: &[E], state: &mut State<E>) -> Vec<E> {
        let Self { cpu, batch, sizes, .. } = *self;
        let mut d_h = vec![E::zero(); saved.h.len()];
        for (b, d_h) in d_h.chunks_exact_mut(sizes.width).enumerate() {
            let run = batch.run(b);
            let inverse = E::one() / self.temperature(state, run);
            let h = &saved.h[b * sizes.width..(b + 1) * sizes.width];
            let d_scores = &d_scores[sizes.of_example(b)];
            for (m, d_scores) in d_scores.chunks_exact(sizes.prompts).enumerate() {
                for (j, &d_score) in d_scores.iter().enumerate() {
                    let key = self.key(state, &saved.target_keys, [b, m, j]);
                    vectorised!(cpu, add_scaled(d_h, d_score * inverse, key));
                }
                let target = state.layout.target_prompt(run, batch.target_prompt(b));
                let (Some(range), Some(&d_score)) = (target, d_scores.get(sizes.sources)) else { continue };
                let d_target = &mut state.gradient[range];
                if sizes.attention_rows == 1 {
                    let rows = &saved.target_keys[run * state.layout.targets + batch.target_prompt(b)].1;
                    for (column, (&row, &h)) in rows.iter().zip(h).enumerate() {
                        let d_key = &mut d_target[row as usize * sizes.width + column];
                        *d_key = *d_key + d_score * inverse * h;
                    }
                } else {
                    add_scaled(&mut d_target[m * sizes.width..(m + 1) * sizes.width], d_score * inverse, h);
                }
            }
        }
        d_h
    }

    /// Adds the scorer's gradients, from d_h \[B, D\].
    fn query_backward(&self, saved: &MixSaved<E>, mut d_h: Vec<E>, state: &mut State<E>) {
        let Self { cpu, mixing, batch, sizes: Sizes { width, bottleneck_dim, .. }, .. } = *self;
        for (run, range) in batch.runs() {
            let rows = range.len();
            let d_v = &mut d_h[range.start * width..range.end * width];
            if mixing.scorer.is_some_and(Scorer::has_layer_norm) {
                layer_norm_backward(run, range.start, saved, d_v, state);
            }
            let pooled = View::new(&saved.pooled[range.start * width..], rows, width, width);
            let d_v = View::new(d_v, rows, width, width);
            if let Some(d_weight) = state.d_value("weight", run) {
                cpu.multiply_alone(
                    ViewMut::new(d_weight, width, width, width),
                    true,
                    d_v.transposed(),
                    pooled,
                );
            }
            if mixing.scorer.is_some_and(Scorer::is_bottleneck) {
                let down = &saved.down[range.start * bottleneck_dim..range.end * bottleneck_dim];
                let activated: Vec<E> = down.iter().map(|&u| u * sigmoid(u)).collect();
                let activated = View::new(&activated, rows, bottleneck_dim, bottleneck_dim);
                let mut d_down = vec![E::zero(); rows * bottleneck_dim];
                if let Some(w_up) = state.value("w_up", run) {
                    let w_up = View::new(w_up, width, bottleneck_dim, bottleneck_dim);
                    cpu.multiply_alone(
                        ViewMut::new(&mut d_down, rows, bottleneck_dim, bottleneck_dim),
                        false,
                        d_v,
                        w_up,
                    );
                }
                for (d_down, &u) in d_down.iter_mut().zip(down) {
                    let s = sigmoid(u);
                    *d_down = *d_down * (s + u * s * (E::one() - s));
                }
                if let Some(d_w_up) = state.d_value("w_up", run) {
                    cpu.multiply_alone(
                        ViewMut::new(d_w_up, width, bottleneck_dim, bottleneck_dim),
                        true,
                        d_v.transposed(),
                        activated,
                    );
                }
                if let Some(d_w_down) = state.d_value("w_down", run) {
                    let d_down = View::new(&d_down, rows, bottleneck_dim, bottleneck_dim).transposed();
                    cpu.multiply_alone(
                        ViewMut::new(d_w_down, bottleneck_dim, width, width),
                        true,
                        d_down,
                        pooled,
                    );
                }
            }
        }
    }
}

fn softmax<E: Element>(row: &mut [E]) {
    let most = maximum(row);
    let sum = exponentials(row, most);
    scale(row, E::one() / sum);
}

fn sigmoid<E: Element>(u: E) -> E {
    E::one() / (E::one() + (-u).exp())
}

/// d_h becomes the gradient of the LayerNorm's input; `first` is the batch's index of the first row.
fn layer_norm_backward<E: Element>(
    run: usize,
    first: usize,
    saved: &MixSaved<E>,
    d_h: &mut [E],
    state: &mut State<E>,
) {
    let width = state.layout.width;
    let count = E::from_f64(width as f64);
    for (row, d_h) in d_h.chunks_exact_mut(width).enumerate() {
        let row = first + row;
        let standardised = &saved.standardised[row * width..(row + 1) * width];
        if let Some(d_norm_weight) = state.d_value("norm_weight", run) {
            for ((d_norm_weight, &d_h), &standard) in d_norm_weight.iter_mut().zip(&*d_h).zip(standardised) {
                *d_norm_weight = *d_norm_weight + d_h * standard;
            }
        }
        if let Some(d_shift) = state.d_value("norm_bias", run) {
            add_scaled(d_shift, E::one(), d_h);
        }
        if let Some(norm_weight) = state.value("norm_weight", run) {
            super::vector::multiply(d_h, norm_weight);
        }
        let mean = d_h.iter().fold(E::zero(), |sum, &d| sum + d) / count;
        let along = dot(d_h, standardised) / count;
        for (d, &standard) in d_h.iter_mut().zip(standardised) {
            *d = saved.reciprocal_deviation[row] * (*d - mean - standard * along);
        }
    }
}
