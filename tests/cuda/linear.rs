//! Products with frozen weights and what follows them: `kernels/gemm.cu`, `kernels/feed_forward.cu`.

use promptmix::backend::{Activation, FeedForward, Format, Readers, Side, SiteKind};
use promptmix::verify::Tolerance;

use crate::device::{Bounds, Case, Place, batch, dropout, follow, mask_of, matrix, numbers, roundings};

/// x_next = x + mask(y W^T) behind y = inner rows, then z = r·x_next W^T, and d_y of the first.
#[derive(Debug)]
struct Sublayer {
    lengths: Vec<(usize, usize)>,
    side: Side,
    inner: usize,
    width: usize,
    out: usize,
    dropped: f64,
}

impl Case for Sublayer {
    fn run<B: Place>(&self, backend: &B) -> Vec<(&'static str, Vec<f64>)> {
        let Self { side, inner, width, out, .. } = *self;
        let batch = batch(&self.lengths, 2, 50);
        let rows = batch.rows(side);
        let dropout = dropout(self.dropped);
        let mask = mask_of(&dropout, side, SiteKind::SelfAttentionOutput);
        let w_o = backend.weight(matrix(1, width, inner), width, inner, Readers::Many);
        let w_z = backend.weight(matrix(2, out, width), out, width, Readers::Many);
        let y = backend.place(&numbers(3, rows * inner, 1.0), inner, Format::Operand);
        let x = backend.place(&numbers(4, rows * width, 1.0), width, Format::Residual);
        let mut x_next = backend.rows(rows, width, Format::Residual);
        let mut r_next = backend.rows(rows, width, Format::Norm);
        backend.add_project(&batch, side, &y, &w_o, mask, 1e-6, &x, &mut x_next, &mut r_next);
        let mut z = backend.rows(rows, out, Format::Operand);
        backend.project(&batch, side, &x_next, &r_next, &w_z, &mut z);
        let d_x = backend.place(&numbers(5, rows * width, 1.0), width, Format::Residual);
        let mut d_y = backend.rows(rows, inner, Format::Operand);
        backend.add_project_backward(&batch, side, &d_x, &w_o, mask, &mut d_y);
        vec![
            ("x_next", backend.read(&x_next)),
            ("r_next", backend.read(&r_next)),
            ("z", backend.read(&z)),
            ("d_y", backend.read(&d_y)),
        ]
    }
}

fn sublayer(lengths: &[(usize, usize)], side: Side, [inner, width, out]: [usize; 3], dropped: f64) {
    let case = Sublayer { lengths: lengths.to_vec(), side, inner, width, out, dropped };
    // bf16: the copy of x_next that z reads, and z itself; sums of rounded terms stay below the largest.
    follow(&case, Bounds { terms: inner.max(width), bf16: roundings(3.0) });
}

#[test]
fn rows_beside_a_warp_and_a_tile() {
    // With two prompt rows an example: 3, 31, 33, 63, 65, 127 and 129 encoder rows.
    for rows in [1, 29, 31, 61, 63, 125, 127] {
        sublayer(&[(rows, 1)], Side::Encoder, [24, 40, 72], 0.1);
    }
    sublayer(&[(1, 1)], Side::Decoder, [8, 8, 8], 0.0);
    sublayer(&[(1, 1), (7, 3), (30, 2), (13, 11)], Side::Decoder, [136, 264, 72], 0.2);
}

#[test]
fn thin_products_in_parts() {
    // One row block and long sums: k is cut into parts that are summed in order.
    sublayer(&[(3, 1), (9, 4)], Side::Encoder, [2_056, 520, 264], 0.0);
    sublayer(&[(3, 1), (9, 4)], Side::Decoder, [3_072, 768, 64], 0.1);
}

#[test]
fn products_large_enough_for_the_large_tile() {
    sublayer(&[(60, 1), (63, 1)], Side::Encoder, [4_616, 72, 4_616], 0.1);
    sublayer(&[(125, 1)], Side::Encoder, [128, 128, 9_216], 0.0);
}

#[test]
fn widths_of_released_models() {
    // t5-small, t5-base and t5-3b: H·K to D, and D to three times H·K.
    sublayer(&[(37, 2), (1, 1)], Side::Encoder, [512, 512, 1_536], 0.1);
    sublayer(&[(37, 2), (1, 1)], Side::Encoder, [768, 768, 2_304], 0.0);
    sublayer(&[(17, 2)], Side::Encoder, [4_096, 1_024, 12_288], 0.0);
}

/// The whole feed-forward sublayer, forward and backward.
#[derive(Debug)]
struct Inner {
    lengths: Vec<(usize, usize)>,
    side: Side,
    activation: Activation,
    width: usize,
    inner: usize,
    dropped: f64,
}

impl Case for Inner {
    fn run<B: Place>(&self, backend: &B) -> Vec<(&'static str, Vec<f64>)> {
        let Self { side, activation, width, inner, .. } = *self;
        let batch = batch(&self.lengths, 2, 50);
        let rows = batch.rows(side);
        let dropout = dropout(self.dropped);
        let stacked = activation.projections() * inner;
        let w_in = backend.weight(matrix(1, stacked, width), stacked, width, Readers::Many);
        let w_out = backend.weight(matrix(2, width, inner), width, inner, Readers::Many);
        let feed_forward = FeedForward {
            w_in: &w_in,
            w_out: &w_out,
            activation,
            inner_mask: mask_of(&dropout, side, SiteKind::FeedForward),
            output_mask: mask_of(&dropout, side, SiteKind::FeedForwardOutput),
            epsilon: 1e-6,
        };
        // A first sublayer makes x and its norm as the model does.
        let before = backend.weight(matrix(3, width, width), width, width, Readers::Many);
        let y = backend.place(&numbers(4, rows * width, 1.0), width, Format::Operand);
        let start = backend.place(&numbers(5, rows * width, 1.0), width, Format::Residual);
        let mut x = backend.rows(rows, width, Format::Residual);
        let mut r = backend.rows(rows, width, Format::Norm);
        backend.add_project(&batch, side, &y, &before, None, 1e-6, &start, &mut x, &mut r);
        let mut x_next = backend.rows(rows, width, Format::Residual);
        let mut r_next = backend.rows(rows, width, Format::Norm);
        let kept = backend
            .feed_forward(&batch, side, &feed_forward, &x, &r, &mut x_next, &mut r_next, true)
            .expect("kept");
        let mut d_x = backend.place(&numbers(6, rows * width, 1.0), width, Format::Residual);
        backend.feed_forward_backward(&batch, side, &feed_forward, &kept, &x, &r, &x_next, &mut d_x);
        vec![
            ("x_next", backend.read(&x_next)),
            ("r_next", backend.read(&r_next)),
            ("d_x", backend.read(&d_x)),
        ]
    }
}

fn feed_forward(lengths: &[(usize, usize)], side: Side, [width, inner]: [usize; 2], dropped: f64) {
    for activation in [Activation::Relu, Activation::GatedGelu, Activation::GatedSilu] {
        let case = Inner { lengths: lengths.to_vec(), side, activation, width, inner, dropped };
        // bf16: x's copy, the activation, its gradient and dz, each rounded once. A ReLU within a rounding of zero (about one
        // in 300) may fall on the other side, which moves an entry by a whole term: then the direction is what counts.
        let bf16 = if activation == Activation::Relu { Tolerance::Cosine(1e-3) } else { roundings(6.0) };
        follow(&case, Bounds { terms: 2 * inner.max(width), bf16 });
    }
}

#[test]
fn feed_forwards() {
    feed_forward(&[(1, 1), (7, 2), (50, 3)], Side::Encoder, [40, 72], 0.0);
    feed_forward(&[(1, 1), (7, 2), (50, 3)], Side::Encoder, [40, 72], 0.2);
    feed_forward(&[(5, 1), (2, 13), (3, 33)], Side::Decoder, [136, 328], 0.1);
    feed_forward(&[(11, 3)], Side::Encoder, [512, 2_048], 0.1);
}
