//! The frozen `lm_head` and cross entropy, chunk by chunk over the vocabulary: attention with K = V = E.
//!
//! log_sum_exp = log sum_v e^(h·E_v), and in the same pass sum_v p_v E_v, from which
//! d_hidden = weight·(sum_v p_v E_v - E_label). The logits of a chunk live only while it does. Label smoothing takes the mean
//! of all logits, which is h times the mean of E's rows.

use rayon::prelude::*;

use super::element::Element;
use super::matrix::{View, ViewMut};
use super::pool::Buffer;
use super::rows::Rows;
use super::vector::{add_scaled, dot, vectorised};
use super::{Cpu, Weight};
use crate::backend::ops::check_logits;
use crate::backend::{Batch, LmHead, Loss, LossOps, Objective};
use crate::error::Result;

/// Vocabulary rows of a chunk. Fixed, so that sums run in the same order for any thread count.
const CHUNK: usize = 1024;
/// Words of a chunk whose terms are added up before they join the chunk's sum: a short sum rounds less than a long one.
const WORDS: usize = 64;
/// Label rows that share one pass over the vocabulary: bounds the chunks' partial sums.
const ROWS: usize = 256;

/// One chunk's part of each row's softmax.
struct Partial<E: Element> {
    most: Vec<E>,
    sum: Vec<E>,
    label: Vec<Option<E>>,
    greedy: Vec<u32>,
    weighted: Buffer<E>,
}

impl<E: Element> LossOps for Cpu<E> {
    type DeviceLoss = Loss;

    fn loss(
        &self,
        batch: &Batch,
        hidden: &Rows<E>,
        lm_head: &LmHead<'_, Self>,
        mut d_hidden: Option<&mut Rows<E>>,
    ) -> Result<Loss> {
        lm_head.check(batch, hidden, d_hidden.as_deref())?;
        let (labels, row_weights) = (batch.labels(), batch.row_weights());
        let Objective { label_smoothing, z_loss } = batch.objective();
        let (smoothing, z_loss) = (E::from_f64(label_smoothing), E::from_f64(z_loss));
        let (lm_head, mean) = (lm_head.weight, lm_head.mean.row(0));
        let mut loss =
            Loss { negative_log_likelihood: Vec::new(), objective: Vec::new(), greedy: Vec::new() };
        for first in (0..labels.len()).step_by(ROWS) {
            let rows = first..(first + ROWS).min(labels.len());
            let labels = &labels[rows.clone()];
            let with_gradient = d_hidden.is_some();
            let hidden_rows = View::new(hidden.range(rows.clone()), rows.len(), lm_head.input, lm_head.input);
            let hidden_transposed = self.transposed(hidden_rows);
            let partials: Vec<Partial<E>> = self.run(|| {
                let chunks = (0..lm_head.out.div_ceil(CHUNK)).into_par_iter().with_max_len(1);
                chunks
                    .map(|chunk| partial(self, &hidden_transposed, lm_head, labels, chunk, with_gradient))
                    .collect()
            });
            for (row, &label) in labels.iter().enumerate() {
                // Ties go to the lowest id, and so to the first chunk.
                let largest = (1..partials.len()).fold(0, |best, chunk| {
                    if partials[chunk].most[row] > partials[best].most[row] { chunk } else { best }
                });
                let most = partials[largest].most[row];
                let factors: Vec<E> = partials.iter().map(|chunk| (chunk.most[row] - most).exp()).collect();
                let sum = partials
                    .iter()
                    .zip(&factors)
                    .fold(E::zero(), |sum, (chunk, &f)| sum + chunk.sum[row] * f);
                let log_sum_exp = most + sum.ln();
                let of_label = partials.iter().find_map(|chunk| chunk.label[row]).unwrap_or_else(E::nan);
                let negative = log_sum_exp - of_label;
                loss.negative_log_likelihood.push(negative.widen());
                let mut objective = negative + z_loss * log_sum_exp * log_sum_exp;
                if label_smoothing > 0.0 {
                    let of_mean =
                        vectorised!(self, dot(hidden.range(rows.start + row..rows.start + row + 1), mean));
                    objective = objective + smoothing * (of_label - of_mean);
                }
                loss.objective.push(objective.widen());
                loss.greedy.push(partials[largest].greedy[row]);
                if let Some(d_hidden) = &mut d_hidden {
                    let d_row = d_hidden.row_mut(rows.start + row);
                    let weight = E::from_f64(row_weights[rows.start + row]);
                    let of_words = weight * (E::one() + (z_loss + z_loss) * log_sum_exp) / sum;
                    vectorised!(self, {
                        d_row.fill(E::zero());
                        for (chunk, &factor) in partials.iter().zip(&factors) {
                            let weighted = &chunk.weighted[row * lm_head.input..(row + 1) * lm_head.input];
                            add_scaled(d_row, of_words * factor, weighted);
                        }
                        add_scaled(d_row, -weight * (E::one() - smoothing), lm_head.row(label as usize));
                        if label_smoothing > 0.0 {
                            add_scaled(d_row, -weight * smoothing, mean);
                        }
                    });
                }
            }
        }
        Ok(loss)
    }

    fn read_loss(&self, saved: &Loss) -> Result<Loss> {
        Ok(saved.clone())
    }

    fn logits(&self, batch: &Batch, hidden: &Rows<E>, lm_head: &Weight<E>) -> Result<Rows<E>> {
        check_logits::<Self>(batch, hidden, lm_head)?;
        let mut logits = self.allocate(hidden.rows, lm_head.out);
        let blocks = super::rows::Blocks { size: hidden.rows, inner_threads: self.threads() };
        let destination = ViewMut::new(&mut logits.data, hidden.rows, lm_head.out, lm_head.out);
        let hidden = View::new(hidden.values(), hidden.rows, lm_head.input, lm_head.input);
        self.run(|| self.multiply(destination, false, hidden, lm_head.view().transposed(), blocks));
        Ok(logits)
    }
}

fn partial<E: Element>(
    cpu: &Cpu<E>,
    hidden_transposed: &[E],
    lm_head: &Weight<E>,
    labels: &[u32],
    chunk: usize,
    with_gradient: bool,
) -> Partial<E> {
    let (rows, width) = (labels.len(), lm_head.input);
    let vocabulary = chunk * CHUNK..((chunk + 1) * CHUNK).min(lm_head.out);
    let n = vocabulary.len();
    let embedding = View::new(&lm_head.values()[vocabulary.start * width..], n, width, width);
    // Transposed, \[words, rows\]: the rows of `lm_head`, and those of hidden^T, then lie as the GEMM crate reads them.
    let mut logits = cpu.pool.take(n * rows);
    let hidden = View::new(hidden_transposed, width, rows, rows);
    cpu.multiply_alone(ViewMut::new(&mut logits, n, rows, rows), false, embedding, hidden);
    let label_logit = |(row, &label): (usize, &u32)| {
        let label = (label as usize).checked_sub(vocabulary.start).filter(|&label| label < n);
        label.map(|label| logits[label * rows + row])
    };
    let mut partial = Partial {
        most: vec![E::neg_infinity(); rows],
        sum: vec![E::zero(); rows],
        label: labels.iter().enumerate().map(label_logit).collect(),
        greedy: vec![vocabulary.start as u32; rows],
        weighted: cpu.pool.take(if with_gradient { rows * width } else { 0 }),
    };
    vectorised!(cpu, {
        for (word, logits) in (vocabulary.start as u32..).zip(logits.chunks_exact(rows)) {
            raise(&mut partial.most, &mut partial.greedy, word, logits);
        }
        let mut sums = cpu.pool.take(rows);
        for words in logits.chunks_mut(WORDS * rows) {
            sums.fill(E::zero());
            for logits in words.chunks_exact_mut(rows) {
                exponentials_into(&mut sums, logits, &partial.most);
            }
            add_scaled(&mut partial.sum, E::one(), &sums);
        }
    });
    if with_gradient {
        let destination = ViewMut::new(&mut partial.weighted, rows, width, width);
        cpu.multiply_alone(destination, false, View::new(&logits, n, rows, rows).transposed(), embedding);
    }
    partial
}

/// Where a row's logit for `word` is above its largest so far, it is the largest and the word the greedy one: ties stay
/// with the lowest word, and a NaN is passed over.
#[inline(always)]
fn raise<E: Element>(most: &mut [E], greedy: &mut [u32], word: u32, logits: &[E]) {
    for ((most, greedy), &logit) in most.iter_mut().zip(greedy).zip(logits) {
        let above = logit > *most;
        *most = if above { logit } else { *most };
        *greedy = if above { word } else { *greedy };
    }
}

/// logits = e^(logits - most), row by row; adds them to `sums`.
#[inline(always)]
fn exponentials_into<E: Element>(sums: &mut [E], logits: &mut [E], most: &[E]) {
    for ((sum, logit), &most) in sums.iter_mut().zip(logits).zip(most) {
        *logit = (*logit - most).exponential();
        *sum = *sum + *logit;
    }
}
