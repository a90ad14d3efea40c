//! The final norm of a stack: `kernels/norm.cu`.

use cudarc::driver::DevicePtr;
use promptmix::Result;
use promptmix::backend::{
    Activation, FeedForward, FeedForwardBackward, FinalNorm, FinalNormBackward, Format, Readers, Residual,
    ResidualProjection, Side, Site, SiteKind,
};
use promptmix::cuda::norm::{FinalNorm as RawNorm, FinalNormGradient, NormedRows};
use promptmix::cuda::{DeviceDropout, DropoutMask, ReadOperand, Sequences};
use promptmix::verify::Tolerance;

use crate::device::{
    Bounds, Case, Place, Raw, Results, batch, dropout, follow, mask_of, matrix, narrowed, numbers,
    partial_squares, reciprocals, roundings, sums,
};

/// A final norm after a ReLU feed-forward, and back through both: the norm's backward finds the inner products that the
/// feed-forward's needs.
#[derive(Debug)]
struct Last {
    lengths: Vec<(usize, usize)>,
    side: Side,
    width: usize,
    norm_weight: bool,
    dropped: f64,
    /// Whether what is looked at is d_x after the feed-forward's backward, with the norm's finding the products or not.
    below: Option<bool>,
}

impl Case for Last {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { side, width, .. } = *self;
        let batch = &batch(&self.lengths, 2, 50);
        let (rows, inner, epsilon) = (batch.rows(side), 2 * width, 1e-6);
        let dropout = dropout(self.dropped);
        let weight = |seed, out, input| backend.weight(matrix(seed, out, input), out, input, Readers::Many);
        let (before, w_in, w_out) =
            (weight(1, width, width)?, weight(2, inner, width)?, weight(3, width, inner)?);
        let norm_weight = backend.weight(narrowed(&numbers(4, width, 1.0)), 1, width, Readers::Lookup)?;
        let norm_weight = self.norm_weight.then_some(&norm_weight);
        let y = backend.place(&numbers(5, rows * width, 1.0), width, Format::Operand)?;
        let start = backend.place(&numbers(6, rows * width, 1.0), width, Format::Residual)?;
        let mut below = Residual::new(backend, rows, width)?;
        let first =
            ResidualProjection { batch, side, y: &y, weight: &before, mask: None, epsilon, x: &start };
        backend.add_project(first, &mut below)?;
        let feed_forward = FeedForward {
            batch,
            side,
            w_in: &w_in,
            w_out: &w_out,
            activation: Activation::Relu,
            inner_mask: None,
            output_mask: None,
            epsilon,
        };
        let mut input = Residual::new(backend, rows, width)?;
        let saved = backend.feed_forward(&feed_forward, &below, &mut input, true)?.expect("kept");
        let mask = mask_of(&dropout, side, SiteKind::FinalNorm);
        let norm = || FinalNorm { batch, side, input: &input, norm_weight, scale: 0.125, mask };
        let mut h = backend.rows(rows, width, Format::Operand)?;
        backend.final_norm(norm(), &mut h)?;
        let d_h = backend.place(&numbers(7, rows * width, 1.0), width, Format::Float)?;
        let mut d_x = backend.rows(rows, width, Format::Residual)?;
        let known = self.below == Some(true);
        if known {
            backend.release_forward(&mut below.x);
        }
        let known = known.then_some(&below.x);
        backend.final_norm_backward(norm(), FinalNormBackward { d_h: &d_h, below: known }, &mut d_x)?;
        if self.below.is_some() {
            let from = FeedForwardBackward { saved: &saved, input: &below, x_next: &input.x };
            backend.feed_forward_backward(&feed_forward, from, &mut d_x)?;
            return Ok(vec![("d_x below", backend.read(&d_x)?)]);
        }
        Ok(vec![("h", backend.read(&h)?), ("d_x", backend.read(&d_x)?)])
    }
}

#[test]
fn a_final_norm_with_and_without_gain_mask_and_feed_forward_below() {
    let lengths = vec![(1, 1), (29, 2), (64, 31)];
    for (side, width) in [(Side::Encoder, 8), (Side::Decoder, 72), (Side::Encoder, 264)] {
        for (norm_weight, dropped) in [(false, 0.0), (true, 0.0), (false, 0.2), (true, 0.2)] {
            let mut case = Last { lengths: lengths.clone(), side, width, norm_weight, dropped, below: None };
            // bf16: the feed-forward's operands and activation, and h, are each rounded once.
            let terms = 6 * width;
            follow(&case, Bounds { terms, bf16: roundings(6.0) });
            for known in [false, true] {
                // A ReLU within a rounding of zero may fall on the other side: then the direction is what counts.
                case.below = Some(known);
                follow(&case, Bounds { terms, bf16: Tolerance::Cosine(1e-3) });
            }
        }
    }
}

#[test]
fn final_norms_on_buffers_of_ones_own() {
    let Some(raw) = Raw::new() else { return };
    let kernels = raw.kernels();
    let step = dropout(0.3).expect("dropout");
    let site = Site::new(Side::Decoder, SiteKind::FinalNorm, 1);
    let dropped = DeviceDropout::new(kernels.stream(), &step).expect("an upload");
    for (rows, width) in [(1, 8), (5, 72), (33, 520), (2, 4_096)] {
        let sequences = Sequences::new(kernels.stream(), &[rows]).expect("a sequence");
        let (x, d_h, norm_weights) =
            (numbers(1, rows * width, 1.0), numbers(2, rows * width, 1.0), numbers(3, width, 1.0));
        let (scale, epsilon) = (0.125, 1e-6);
        let r = reciprocals(&x, width, epsilon);
        let (x_device, d_device) = (raw.floats(&x), raw.floats(&d_h));
        let (partials, gain_device) = (raw.floats(&partial_squares(&x, width)), raw.floats(&norm_weights));
        let below = numbers(4, rows * width, 1.0);
        let (below_device, below_copy) = (raw.floats(&below), raw.halves(&below));
        let input = NormedRows { x: &x_device, partials: &partials };
        for (with_norm_weight, masked) in [(false, false), (true, false), (true, true)] {
            let norm_weight: Option<&dyn DevicePtr<f32>> =
                if with_norm_weight { Some(&gain_device) } else { None };
            let mask = if masked { dropped.mask(site) } else { DropoutMask::default() };
            let mut factors = vec![1.0; rows * width];
            if masked {
                let each = factors.chunks_exact_mut(width).enumerate();
                each.for_each(|(row, factors)| step.row(site, 0, 0, row).fill(step.scale(), 0.0, factors));
            }
            let rows_of = sequences.rows();
            let (narrow, times) = (epsilon as f32, scale as f32);
            let norm = RawNorm { rows: rows_of, width, epsilon: narrow, norm_weight, scale: times, mask };
            let factor =
                |i: usize| scale * factors[i] * if with_norm_weight { norm_weights[i % width] } else { 1.0 };
            let mut h = raw.poisoned_halves(rows * width);
            norm.forward(kernels, input, &mut h).expect("forward");
            let expected: Vec<f64> = (0..rows * width).map(|i| x[i] * r[i / width] * factor(i)).collect();
            raw.holds("h", &h, &expected, roundings(2.1));

            let (mut d_x, mut copy) = (raw.poisoned_floats(rows * width), raw.poisoned_halves(rows * width));
            let mut products = raw.poisoned_floats(rows);
            let below_device: &dyn ReadOperand = if masked { &below_copy } else { &below_device };
            let written = FinalNormGradient {
                d_x: &mut d_x,
                copy: Some(&mut copy),
                inner: Some((below_device, &mut products)),
            };
            norm.backward(kernels, input, &d_device, written).expect("backward");
            let inner: Vec<f64> = (0..rows)
                .map(|row| (row * width..(row + 1) * width).map(|i| d_h[i] * factor(i) * x[i]).sum())
                .collect();
            let expected: Vec<f64> = (0..rows * width)
                .map(|i| {
                    let (r, inner) = (r[i / width], inner[i / width]);
                    r * d_h[i] * factor(i) - r.powi(3) * inner / width as f64 * x[i]
                })
                .collect();
            raw.holds("d_x", &d_x, &expected, sums(width));
            raw.holds("its copy", &copy, &expected, roundings(2.1));
            let product = |i: usize| expected[i] * (x[i] - below[i]);
            let expected: Vec<f64> =
                (0..rows).map(|row| (row * width..(row + 1) * width).map(product).sum()).collect();
            raw.holds("its products with what was added", &products, &expected, sums(4 * width));
        }
    }
    let sequences = Sequences::new(kernels.stream(), &[1]).expect("a sequence");
    let (rows, mask) = (sequences.rows(), DropoutMask::default());
    let norm = RawNorm { rows, width: 4_104, epsilon: 1e-6, norm_weight: None, scale: 1.0, mask };
    let (x, partials) = (raw.floats(&vec![1.0; 4_104]), raw.floats(&[1.0; 65]));
    let (mut d_x, mut copy) = (raw.poisoned_floats(4_104), raw.poisoned_halves(4_104));
    let input = NormedRows { x: &x, partials: &partials };
    let written = FinalNormGradient { d_x: &mut d_x, copy: Some(&mut copy), inner: None };
    let refused = norm.backward(kernels, input, &x, written);
    assert!(refused.expect_err("wider than a block holds").to_string().contains("4096"));
}
