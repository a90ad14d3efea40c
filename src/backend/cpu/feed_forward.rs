//! The feed-forward sublayer. The hidden rows of a block live only while the block does.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::linear::{add_norm_backward, finish_sublayer, multiply_masked, multiply_weight, scale_rows};
use super::matrix::{View, ViewMut};
use super::rows::{Blocks, RowMask, Rows};
use super::vector::{multiply, vectorised};
use crate::backend::ops::check_length;
use crate::backend::{Activation, FeedForward, FeedForwardBackward, FeedForwardOps, Matrix, Residual};
use crate::error::{Error, Result};

/// What a feed-forward's backward needs.
#[derive(Debug)]
pub struct FeedForwardSaved<E: Element> {
    /// ReLU: one bit an element, set where it is positive and not dropped; rows of ceil(F / 8) bytes.
    positive: Vec<u8>,
    /// Gated: both pre-activations, \[rows, 2F\].
    pre_activations: Option<Rows<E>>,
}

impl<E: Element> FeedForwardSaved<E> {
    /// Fails unless it was saved of so many rows and hidden values, before that activation.
    fn check(&self, activation: Activation, rows: usize, hidden: usize) -> Result<()> {
        let gated = activation != Activation::Relu;
        match &self.pre_activations {
            Some(pre_activations) if gated => pre_activations.check("the pre-activations", rows, 2 * hidden),
            None if !gated => {
                let bytes = rows * hidden.div_ceil(8);
                check_length("the bits of a ReLU", bytes, self.positive.len())
            }
            _ => {
                let expected = format!("what forward keeps for {activation:?}");
                Err(Error::tensor("a feed-forward's backward", expected, "another activation's", ""))
            }
        }
    }
}

impl<E: Element> FeedForwardOps for Cpu<E> {
    type FeedForwardSaved = FeedForwardSaved<E>;

    fn feed_forward(
        &self,
        of: &FeedForward<'_, Self>,
        input: &Residual<Self>,
        next: &mut Residual<Self>,
        keep: bool,
    ) -> Result<Option<FeedForwardSaved<E>>> {
        of.check(input, next)?;
        let Residual { x, r } = input;
        let (width, hidden) = (of.w_out.out, of.w_out.input);
        let gated = of.activation != Activation::Relu;
        let pre_width = of.w_in.out;
        let inner = RowMask::new(of.batch, of.side, of.inner_mask);
        let output = RowMask::new(of.batch, of.side, of.output_mask);
        let blocks = Blocks::of(x.rows, self.share);
        let row_bytes = hidden.div_ceil(8);
        let mut positive = vec![0u8; if keep && !gated { x.rows * row_bytes } else { 0 }];
        let mut pre_activations = (keep && gated).then(|| self.allocate(x.rows, pre_width));
        let block_count = x.rows.div_ceil(blocks.size);
        let mut positive_blocks = optional_chunks(&mut positive, blocks.size * row_bytes, block_count);
        let saved = pre_activations.as_mut().map_or(&mut [][..], |rows| &mut rows.data);
        let mut kept_blocks = optional_chunks(saved, blocks.size * pre_width, block_count);
        self.run(|| {
            let x_next = next.x.data.par_chunks_mut(blocks.size * width);
            let outputs = x_next.zip(next.r.data.par_chunks_mut(blocks.size));
            let saved = positive_blocks.par_iter_mut().zip(kept_blocks.par_iter_mut());
            outputs.zip(saved).enumerate().for_each(|(block, ((x_next, r_next), (positive, saved)))| {
                let first = block * blocks.size;
                let rows = r_next.len();
                let mut z = self.pool.take(rows * pre_width);
                let x = x.range(first..first + rows);
                multiply_weight(self, View::new(x, rows, width, width), of.w_in, &mut z, blocks);
                let r = &r.values()[first..first + rows];
                let mut multipliers = self.pool.take(if inner.is_some() { rows * hidden } else { 0 });
                vectorised!(self, {
                    if let Some(inner) = &inner {
                        inner.fill(first, hidden, &mut multipliers);
                    }
                    if gated {
                        scale_rows(&mut z, pre_width, r);
                    }
                });
                if let Some(saved) = saved {
                    saved.copy_from_slice(&z);
                }
                let positive = positive.as_deref_mut();
                if gated {
                    vectorised!(self, gate(of.activation, hidden, &mut z, &multipliers));
                } else {
                    vectorised!(self, relu(hidden, &mut z, r, &multipliers, positive));
                }
                // A gated row's product stands in the first half of its pre-activations.
                let h = View::new(&z, rows, hidden, pre_width);
                multiply_weight(self, h, of.w_out, x_next, blocks);
                finish_sublayer(self, output.as_ref(), first, of.epsilon, x, x_next, r_next);
            });
        });
        Ok(keep.then_some(FeedForwardSaved { positive, pre_activations }))
    }

    fn feed_forward_backward(
        &self,
        of: &FeedForward<'_, Self>,
        from: FeedForwardBackward<'_, Self>,
        d_x: &mut Rows<E>,
    ) -> Result<()> {
        of.check_backward(&from, d_x)?;
        let (saved, Residual { x, r }) = (from.saved, from.input);
        let (width, hidden) = (of.w_out.out, of.w_out.input);
        saved.check(of.activation, x.rows, hidden)?;
        let pre_width = of.w_in.out;
        let inner = RowMask::new(of.batch, of.side, of.inner_mask);
        let output = RowMask::new(of.batch, of.side, of.output_mask);
        let blocks = Blocks::of(x.rows, self.share);
        let row_bytes = hidden.div_ceil(8);
        self.run(|| {
            d_x.data.par_chunks_mut(blocks.size * width).enumerate().for_each(|(block, d_x)| {
                let first = block * blocks.size;
                let rows = d_x.len() / width;
                let range = first..first + rows;
                let mut dz = self.pool.take(rows * pre_width);
                // The gradient of a gated row's product goes to the first half; its gate's joins in the second.
                let destination = ViewMut::new(&mut dz, rows, hidden, pre_width);
                multiply_masked(self, destination, output.as_ref(), first, d_x, of.w_out, blocks);
                match &saved.pre_activations {
                    None => {
                        let scale = of.inner_mask.map_or(1.0, |(step, _)| step.scale());
                        let positive = &saved.positive[first * row_bytes..(first + rows) * row_bytes];
                        vectorised!(self, relu_backward(hidden, &mut dz, positive, E::from_f64(scale)));
                    }
                    Some(pre_activations) => {
                        let mut multipliers = self.pool.take(if inner.is_some() { rows * hidden } else { 0 });
                        let z = pre_activations.range(range.clone());
                        vectorised!(self, {
                            if let Some(inner) = &inner {
                                inner.fill(first, hidden, &mut multipliers);
                            }
                            gated_backward(of.activation, hidden, &mut dz, z, &multipliers);
                        });
                    }
                }
                let dz = View::new(&dz, rows, pre_width, pre_width);
                let (x, r) = (x.range(range.clone()), &r.values()[range]);
                add_norm_backward(self, dz, of.w_in, x, r, d_x, blocks);
            });
        });
        Ok(())
    }
}

/// As many chunks as there are blocks, each present only if `data` is.
fn optional_chunks<T>(data: &mut [T], size: usize, count: usize) -> Vec<Option<&mut [T]>> {
    if data.is_empty() {
        return (0..count).map(|_| None).collect();
    }
    data.chunks_mut(size).map(Some).collect()
}

/// z = max(0, r·z), times `multipliers` if there are any; `positive` takes a bit an element, in one pass over each row.
#[inline(always)]
fn relu<E: Element>(hidden: usize, z: &mut [E], r: &[E], multipliers: &[E], positive: Option<&mut [u8]>) {
    let row_bytes = hidden.div_ceil(8);
    let mut bits = positive.map(|positive| positive.chunks_exact_mut(row_bytes));
    for (row, (z, &r)) in z.chunks_exact_mut(hidden).zip(r).enumerate() {
        for z in z.iter_mut() {
            let scaled = *z * r;
            *z = if scaled < E::zero() { E::zero() } else { scaled };
        }
        if !multipliers.is_empty() {
            multiply(z, &multipliers[row * hidden..(row + 1) * hidden]);
        }
        if let Some(bytes) = bits.as_mut().and_then(Iterator::next) {
            let (groups, rest) = z.as_chunks::<8>();
            for (group, byte) in groups.iter().zip(&mut *bytes) {
                *byte = positive_bits(group);
            }
            if let Some(byte) = bytes.get_mut(groups.len()) {
                *byte = rest.iter().rev().fold(0, |bits, &z| bits << 1 | u8::from(z > E::zero()));
            }
        }
    }
}

/// One bit an element, set where it is above zero; a tree of ors, which vectorises where a chain of shifts does not.
#[inline(always)]
fn positive_bits<E: Element>(group: &[E; 8]) -> u8 {
    let mut bits = [0_u32; 8];
    for (bit, (bits, &z)) in bits.iter_mut().zip(group).enumerate() {
        *bits = u32::from(z > E::zero()) << bit;
    }
    let quarters = [bits[0] | bits[4], bits[1] | bits[5], bits[2] | bits[6], bits[3] | bits[7]];
    (quarters[0] | quarters[2] | quarters[1] | quarters[3]) as u8
}

/// Both pre-activations become hidden values in the first half of each row, times `multipliers` if there are any.
#[inline(always)]
fn gate<E: Element>(activation: Activation, hidden: usize, z: &mut [E], multipliers: &[E]) {
    for (row, z) in z.chunks_exact_mut(2 * hidden).enumerate() {
        let (gate, linear) = z.split_at_mut(hidden);
        for (gate, &linear) in gate.iter_mut().zip(&*linear) {
            *gate = gate_value(activation, *gate).0 * linear;
        }
        if !multipliers.is_empty() {
            multiply(gate, &multipliers[row * hidden..(row + 1) * hidden]);
        }
    }
}

#[inline(always)]
fn relu_backward<E: Element>(hidden: usize, dz: &mut [E], positive: &[u8], scale: E) {
    for (dz, bytes) in dz.chunks_exact_mut(hidden).zip(positive.chunks_exact(hidden.div_ceil(8))) {
        let (groups, rest) = dz.as_chunks_mut::<8>();
        for (group, &byte) in groups.iter_mut().zip(bytes) {
            select_positive(group, byte, scale);
        }
        if let Some(&byte) = bytes.get(groups.len()) {
            select_positive(rest, byte, scale);
        }
    }
}

/// dz·scale where an element's bit is set, zero elsewhere; of a whole group the count is known, so that it is one vector.
#[inline(always)]
fn select_positive<E: Element>(group: &mut [E], byte: u8, scale: E) {
    for (bit, dz) in group.iter_mut().enumerate() {
        *dz = if u32::from(byte) & (1 << bit) != 0 { *dz * scale } else { E::zero() };
    }
}

/// `dz` holds the gradient of each row's product in its first half; both halves become those of the pre-activations.
#[inline(always)]
fn gated_backward<E: Element>(
    activation: Activation,
    hidden: usize,
    dz: &mut [E],
    z: &[E],
    multipliers: &[E],
) {
    for (row, (dz, z)) in dz.chunks_exact_mut(2 * hidden).zip(z.chunks_exact(2 * hidden)).enumerate() {
        let (d_gate, d_linear) = dz.split_at_mut(hidden);
        let (gate, linear) = z.split_at(hidden);
        if !multipliers.is_empty() {
            multiply(d_gate, &multipliers[row * hidden..(row + 1) * hidden]);
        }
        for i in 0..hidden {
            let (value, slope) = gate_value(activation, gate[i]);
            d_linear[i] = d_gate[i] * value;
            d_gate[i] = d_gate[i] * linear[i] * slope;
        }
    }
}

/// The gate's activation and its derivative: gelu in its tanh form, or silu.
#[inline(always)]
fn gate_value<E: Element>(activation: Activation, z: E) -> (E, E) {
    let one = E::one();
    match activation {
        Activation::GatedSilu => {
            let sigmoid = one / (one + (-z).exponential());
            (z * sigmoid, sigmoid * (one + z * (one - sigmoid)))
        }
        _ => {
            // 0.5·(1 + tanh(u)) = sigmoid(2u) with 2u = sqrt(8/pi)·(z + 0.044715·z³).
            let root = E::from_f64((8.0 / std::f64::consts::PI).sqrt());
            let cubic = E::from_f64(0.044_715);
            let sigmoid = one / (one + (-(root * (z + cubic * z * z * z))).exponential());
            let slope = root * (one + E::from_f64(3.0) * cubic * z * z);
            (z * sigmoid, sigmoid + z * sigmoid * (one - sigmoid) * slope)
        }
    }
}
