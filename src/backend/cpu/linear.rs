//! Projections through frozen weights, with what stands before and after them.
//!
//! Rows are cut into blocks; within one, the product and the loop that follows it run back to back on cached data. A
//! row's result does not depend on the cut: each is summed in the same order whatever block it falls in.

use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::element::Element;
use super::matrix::{self, View, ViewMut, transpose_into};
use super::rows::{Blocks, RowMask, Rows};
use super::vector::{add_scaled, dot, multiply, reciprocal_rms, scale, vectorised};
use super::{Cpu, Weight};
use crate::backend::{Activation, Batch, FeedForward, Mask, Scope, Side};

/// z = r · x W^T.
pub(super) fn project<E: Element>(
    cpu: &Cpu<E>,
    x: &Rows<E>,
    r: &Rows<E>,
    weight: &Weight<E>,
    z: &mut Rows<E>,
) {
    x.expect_shape(x.rows, weight.input, "x");
    r.expect_shape(x.rows, 1, "r");
    z.expect_shape(x.rows, weight.out, "z");
    let blocks = Blocks::of(x.rows, cpu.share);
    let width = x.width;
    cpu.run(|| {
        z.data.par_chunks_mut(blocks.size * weight.out).enumerate().for_each(|(block, z)| {
            let rows = z.len() / weight.out;
            let first = block * blocks.size;
            let mut scaled = cpu.pool.take(rows * width);
            vectorised!(cpu, {
                scaled.copy_from_slice(x.range(first..first + rows));
                scale_rows(&mut scaled, width, &r.values()[first..first + rows]);
            });
            let x = View::new(&scaled, rows, width, width);
            multiply_weight(cpu, x, weight, z, blocks);
        });
    });
}

/// z = x W^T.
///
/// The GEMM crate packs a weight anew for every product unless its rows lie as in W^T. Where W^T is not kept, few rows read
/// the weight: packing it would cost as much as the product, so z^T = W x^T is computed, and x and z, which are small, are
/// transposed.
fn multiply_weight<E: Element>(
    cpu: &Cpu<E>,
    x: View<'_, E>,
    weight: &Weight<E>,
    z: &mut [E],
    blocks: Blocks,
) {
    /// Rows are rounded up to whole vectors, the widest of which holds sixteen numbers.
    const VECTOR: usize = 16;
    /// Outputs of a piece of the product.
    const OUTPUTS: usize = 128;
    let (out, input, rows) = (weight.out, weight.input, x.rows());
    if let Some(transposed) = weight.transposed() {
        return cpu.multiply(ViewMut::new(z, rows, out, out), false, x, transposed, blocks);
    }
    let padded = rows.next_multiple_of(VECTOR);
    let mut x_transposed = cpu.pool.take(input * padded);
    vectorised!(cpu, {
        for x in x_transposed.chunks_exact_mut(padded) {
            x[rows..].fill(E::zero());
        }
        transpose_into(x, ViewMut::new(&mut x_transposed, input, rows, padded));
    });
    let x = View::new(&x_transposed, input, padded, padded);
    let mut z_transposed = cpu.pool.take(out * padded);
    z_transposed.par_chunks_mut(OUTPUTS * padded).enumerate().for_each(|(piece, z)| {
        let outputs = z.len() / padded;
        let weight = &weight.values()[piece * OUTPUTS * input..];
        let weight = View::new(weight, outputs, input, input);
        matrix::multiply(ViewMut::new(z, outputs, padded, padded), false, weight, x, 1);
    });
    // Not the rows that fill up a vector.
    cpu.operations.fetch_add(2 * (rows * out * input) as u64, Ordering::Relaxed);
    z.par_chunks_mut(VECTOR * out).enumerate().for_each(|(piece, z)| {
        let rows = z.len() / out;
        let z_transposed = View::new(&z_transposed[piece * VECTOR..], out, rows, padded);
        vectorised!(cpu, transpose_into(z_transposed, ViewMut::new(z, rows, out, out)));
    });
}

/// d_x += r·G - r²·(<G, x·r> / D)·x with G = dz W, on the rows of `scope`.
#[allow(clippy::too_many_arguments)] // an op's operands are its signature
pub(super) fn project_backward<E: Element>(
    cpu: &Cpu<E>,
    batch: &Batch,
    scope: Scope,
    dz: &Rows<E>,
    weight: &Weight<E>,
    x: &Rows<E>,
    r: &Rows<E>,
    d_x: &mut Rows<E>,
) {
    let width = weight.input;
    d_x.expect_shape(x.rows, width, "d_x");
    match scope {
        Scope::All => {
            dz.expect_shape(x.rows, weight.out, "dz");
            let blocks = Blocks::of(x.rows, cpu.share);
            cpu.run(|| {
                d_x.data.par_chunks_mut(blocks.size * width).enumerate().for_each(|(block, d_x)| {
                    let first = block * blocks.size;
                    let rows = first..first + d_x.len() / width;
                    let dz = View::new(dz.range(rows.clone()), rows.len(), weight.out, weight.out);
                    add_norm_backward(cpu, dz, weight, x.range(rows.clone()), &r.values()[rows], d_x, blocks);
                });
            });
        }
        Scope::Prompt => {
            let length = batch.prompt_length();
            dz.expect_shape(batch.examples() * length, weight.out, "dz of the prompt rows");
            let examples = (0..batch.examples()).map(|b| batch.range(Side::Encoder, b).len());
            let pieces = super::rows::split_rows(&mut d_x.data, width, examples);
            let blocks = Blocks { size: length, inner_threads: 1 };
            cpu.run(|| {
                pieces.into_par_iter().enumerate().for_each(|(b, d_x)| {
                    let rows = batch.scoped_range(Side::Encoder, scope, b);
                    let dz =
                        View::new(dz.range(b * length..(b + 1) * length), length, weight.out, weight.out);
                    let d_x = &mut d_x[..length * width];
                    add_norm_backward(cpu, dz, weight, x.range(rows.clone()), &r.values()[rows], d_x, blocks);
                });
            });
        }
    }
}

/// x_next = x + mask(y W^T), and r_next.
#[allow(clippy::too_many_arguments)] // an op's operands are its signature
pub(super) fn add_project<E: Element>(
    cpu: &Cpu<E>,
    batch: &Batch,
    side: Side,
    y: &Rows<E>,
    weight: &Weight<E>,
    mask: Mask<'_>,
    epsilon: f64,
    x: &Rows<E>,
    x_next: &mut Rows<E>,
    r_next: &mut Rows<E>,
) {
    y.expect_shape(x.rows, weight.input, "y");
    x_next.expect_shape(x.rows, weight.out, "x_next");
    r_next.expect_shape(x.rows, 1, "r_next");
    let mask = RowMask::new(batch, side, mask);
    let blocks = Blocks::of(x.rows, cpu.share);
    let width = weight.out;
    cpu.run(|| {
        let outputs =
            x_next.data.par_chunks_mut(blocks.size * width).zip(r_next.data.par_chunks_mut(blocks.size));
        outputs.enumerate().for_each(|(block, (x_next, r_next))| {
            let first = block * blocks.size;
            let rows = first..first + r_next.len();
            let y = View::new(y.range(rows.clone()), rows.len(), y.width, y.width);
            multiply_weight(cpu, y, weight, x_next, blocks);
            finish_sublayer(cpu, mask.as_ref(), first, epsilon, x.range(rows), x_next, r_next);
        });
    });
}

/// d_y = mask(d_x) W.
pub(super) fn add_project_backward<E: Element>(
    cpu: &Cpu<E>,
    batch: &Batch,
    side: Side,
    d_x: &Rows<E>,
    weight: &Weight<E>,
    mask: Mask<'_>,
    d_y: &mut Rows<E>,
) {
    d_x.expect_shape(d_x.rows, weight.out, "d_x");
    d_y.expect_shape(d_x.rows, weight.input, "d_y");
    let mask = RowMask::new(batch, side, mask);
    let blocks = Blocks::of(d_x.rows, cpu.share);
    cpu.run(|| {
        d_y.data.par_chunks_mut(blocks.size * weight.input).enumerate().for_each(|(block, d_y)| {
            let first = block * blocks.size;
            let rows = d_y.len() / weight.input;
            let d_x = d_x.range(first..first + rows);
            let destination = ViewMut::new(d_y, rows, weight.input, weight.input);
            match &mask {
                None => {
                    let d_x = View::new(d_x, rows, weight.out, weight.out);
                    cpu.multiply(destination, false, d_x, weight.view(), blocks);
                }
                Some(mask) => {
                    let dropped = masked(cpu, mask, first, weight.out, d_x);
                    let d_x = View::new(&dropped, rows, weight.out, weight.out);
                    cpu.multiply(destination, false, d_x, weight.view(), blocks);
                }
            }
        });
    });
}

/// What a feed-forward's backward needs.
#[derive(Debug)]
pub struct FeedForwardKept<E: Element> {
    /// ReLU: one bit an element, set where it is positive and kept by dropout; rows of ceil(F / 8) bytes.
    positive: Vec<u8>,
    /// Gated: both pre-activations, \[rows, 2F\].
    pre_activations: Option<Rows<E>>,
}

/// The feed-forward sublayer. The hidden rows of a block live only while the block does.
#[allow(clippy::too_many_arguments)] // an op's operands are its signature
pub(super) fn feed_forward<E: Element>(
    cpu: &Cpu<E>,
    batch: &Batch,
    side: Side,
    layer: &FeedForward<'_, Cpu<E>>,
    x: &Rows<E>,
    r: &Rows<E>,
    x_next: &mut Rows<E>,
    r_next: &mut Rows<E>,
    keep: bool,
) -> Option<FeedForwardKept<E>> {
    let (width, hidden) = (layer.w_out.out, layer.w_out.input);
    let gated = layer.activation != Activation::Relu;
    let pre_width = hidden * layer.activation.projections();
    assert_eq!((layer.w_in.out, layer.w_in.input), (pre_width, width), "shape of w_in");
    x_next.expect_shape(x.rows, width, "x_next");
    let inner = RowMask::new(batch, side, layer.inner_mask);
    let output = RowMask::new(batch, side, layer.output_mask);
    let blocks = Blocks::of(x.rows, cpu.share);
    let row_bytes = hidden.div_ceil(8);
    let mut positive = vec![0u8; if keep && !gated { x.rows * row_bytes } else { 0 }];
    let mut pre_activations = (keep && gated).then(|| cpu.allocate(x.rows, pre_width));
    let block_count = x.rows.div_ceil(blocks.size);
    let mut positive_blocks = optional_chunks(&mut positive, blocks.size * row_bytes, block_count);
    let kept = pre_activations.as_mut().map_or(&mut [][..], |rows| &mut rows.data);
    let mut kept_blocks = optional_chunks(kept, blocks.size * pre_width, block_count);
    cpu.run(|| {
        let outputs =
            x_next.data.par_chunks_mut(blocks.size * width).zip(r_next.data.par_chunks_mut(blocks.size));
        let kept = positive_blocks.par_iter_mut().zip(kept_blocks.par_iter_mut());
        outputs.zip(kept).enumerate().for_each(|(block, ((x_next, r_next), (positive, kept)))| {
            let first = block * blocks.size;
            let rows = r_next.len();
            let mut z = cpu.pool.take(rows * pre_width);
            let x = x.range(first..first + rows);
            multiply_weight(cpu, View::new(x, rows, width, width), layer.w_in, &mut z, blocks);
            let r = &r.values()[first..first + rows];
            let mut multipliers = cpu.pool.take(if inner.is_some() { rows * hidden } else { 0 });
            vectorised!(cpu, {
                if let Some(inner) = &inner {
                    inner.fill(first, hidden, &mut multipliers);
                }
                if gated {
                    scale_rows(&mut z, pre_width, r);
                }
            });
            if let Some(kept) = kept {
                kept.copy_from_slice(&z);
            }
            let positive = positive.as_deref_mut();
            if gated {
                vectorised!(cpu, gate(layer.activation, hidden, &mut z, &multipliers));
            } else {
                vectorised!(cpu, relu(hidden, &mut z, r, &multipliers, positive));
            }
            // A gated row's product stands in the first half of its pre-activations.
            let h = View::new(&z, rows, hidden, pre_width);
            multiply_weight(cpu, h, layer.w_out, x_next, blocks);
            finish_sublayer(cpu, output.as_ref(), first, layer.epsilon, x, x_next, r_next);
        });
    });
    keep.then_some(FeedForwardKept { positive, pre_activations })
}

/// Turns the gradient of x_next, in `d_x`, into that of x.
#[allow(clippy::too_many_arguments)] // an op's operands are its signature
pub(super) fn feed_forward_backward<E: Element>(
    cpu: &Cpu<E>,
    batch: &Batch,
    side: Side,
    layer: &FeedForward<'_, Cpu<E>>,
    kept: &FeedForwardKept<E>,
    x: &Rows<E>,
    r: &Rows<E>,
    d_x: &mut Rows<E>,
) {
    let (width, hidden) = (layer.w_out.out, layer.w_out.input);
    let pre_width = hidden * layer.activation.projections();
    d_x.expect_shape(x.rows, width, "d_x");
    let inner = RowMask::new(batch, side, layer.inner_mask);
    let output = RowMask::new(batch, side, layer.output_mask);
    let blocks = Blocks::of(x.rows, cpu.share);
    let row_bytes = hidden.div_ceil(8);
    cpu.run(|| {
        d_x.data.par_chunks_mut(blocks.size * width).enumerate().for_each(|(block, d_x)| {
            let first = block * blocks.size;
            let rows = d_x.len() / width;
            let range = first..first + rows;
            let mut dz = cpu.pool.take(rows * pre_width);
            // The gradient of a gated row's product goes to the first half; its gate's joins in the second.
            let destination = ViewMut::new(&mut dz, rows, hidden, pre_width);
            match &output {
                None => {
                    let d_y = View::new(d_x, rows, width, width);
                    cpu.multiply(destination, false, d_y, layer.w_out.view(), blocks);
                }
                Some(mask) => {
                    let dropped = masked(cpu, mask, first, width, d_x);
                    let d_y = View::new(&dropped, rows, width, width);
                    cpu.multiply(destination, false, d_y, layer.w_out.view(), blocks);
                }
            }
            match &kept.pre_activations {
                None => {
                    let scale = layer.inner_mask.map_or(1.0, |(step, _)| step.scale());
                    let positive = &kept.positive[first * row_bytes..(first + rows) * row_bytes];
                    vectorised!(cpu, relu_backward(hidden, &mut dz, positive, E::from_f64(scale)));
                }
                Some(pre_activations) => {
                    let mut multipliers = cpu.pool.take(if inner.is_some() { rows * hidden } else { 0 });
                    let z = pre_activations.range(range.clone());
                    vectorised!(cpu, {
                        if let Some(inner) = &inner {
                            inner.fill(first, hidden, &mut multipliers);
                        }
                        gated_backward(layer.activation, hidden, &mut dz, z, &multipliers);
                    });
                }
            }
            let dz = View::new(&dz, rows, pre_width, pre_width);
            add_norm_backward(cpu, dz, layer.w_in, x.range(range.clone()), &r.values()[range], d_x, blocks);
        });
    });
}

/// As many chunks as there are blocks, each present only if `data` is.
fn optional_chunks<T>(data: &mut [T], size: usize, count: usize) -> Vec<Option<&mut [T]>> {
    if data.is_empty() {
        return (0..count).map(|_| None).collect();
    }
    data.chunks_mut(size).map(Some).collect()
}

/// The epilogue that every sublayer ends with: `x_next` holds the sublayer's output on entry.
fn finish_sublayer<E: Element>(
    cpu: &Cpu<E>,
    mask: Option<&RowMask<'_>>,
    first: usize,
    epsilon: f64,
    x: &[E],
    x_next: &mut [E],
    r_next: &mut [E],
) {
    let width = x_next.len() / r_next.len();
    let mut multipliers = cpu.pool.take(if mask.is_some() { x_next.len() } else { 0 });
    vectorised!(cpu, {
        if let Some(mask) = mask {
            mask.fill(first, width, &mut multipliers);
            multiply(x_next, &multipliers);
        }
        add_residual(x, x_next, r_next, E::from_f64(epsilon));
    });
}

#[inline(always)]
fn add_residual<E: Element>(x: &[E], x_next: &mut [E], r_next: &mut [E], epsilon: E) {
    let width = x_next.len() / r_next.len();
    for ((x, x_next), r) in x.chunks_exact(width).zip(x_next.chunks_exact_mut(width)).zip(r_next) {
        add_scaled(x_next, E::one(), x);
        *r = reciprocal_rms(x_next, epsilon);
    }
}

/// d_x += r·G - r²·(<G, x·r> / D)·x with G = dz W.
fn add_norm_backward<E: Element>(
    cpu: &Cpu<E>,
    dz: View<'_, E>,
    weight: &Weight<E>,
    x: &[E],
    r: &[E],
    d_x: &mut [E],
    blocks: Blocks,
) {
    let width = weight.input;
    let mut g = cpu.pool.take(r.len() * width);
    cpu.multiply(ViewMut::new(&mut g, r.len(), width, width), false, dz, weight.view(), blocks);
    vectorised!(cpu, norm_backward(&g, x, r, d_x));
}

/// d_x += r·g - r³·(<g, x> / D)·x, row by row.
#[inline(always)]
pub(super) fn norm_backward<E: Element>(g: &[E], x: &[E], r: &[E], d_x: &mut [E]) {
    let width = x.len() / r.len().max(1);
    let rows = g.chunks_exact(width).zip(x.chunks_exact(width)).zip(d_x.chunks_exact_mut(width));
    for (((g, x), d_x), &r) in rows.zip(r) {
        let pull = r * r * r * dot(g, x) / E::from_f64(width as f64);
        for ((d_x, &g), &x) in d_x.iter_mut().zip(g).zip(x) {
            *d_x = *d_x + r * g - pull * x;
        }
    }
}

/// A copy of `rows` with the mask applied.
pub(super) fn masked<E: Element>(
    cpu: &Cpu<E>,
    mask: &RowMask<'_>,
    first: usize,
    width: usize,
    rows: &[E],
) -> super::pool::Buffer<E> {
    let mut dropped = cpu.pool.take(rows.len());
    vectorised!(cpu, {
        mask.fill(first, width, &mut dropped);
        multiply(&mut dropped, rows);
    });
    dropped
}

#[inline(always)]
fn scale_rows<E: Element>(rows: &mut [E], width: usize, factors: &[E]) {
    for (row, &factor) in rows.chunks_exact_mut(width).zip(factors) {
        scale(row, factor);
    }
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
