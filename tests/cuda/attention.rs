//! Self attention after its projection, and back through both: `kernels/attention.cu`.

use promptmix::Result;
use promptmix::backend::{
    Activation, FeedForward, FeedForwardBackward, Format, Heads, Projection, ProjectionBackward, Readers,
    Residual, ResidualProjection, ResidualProjectionBackward, Scope, SelfAttention, SelfAttentionBackward,
    Side, SiteKind,
};
use promptmix::verify::Tolerance;

use crate::device::{
    Bounds, Case, Place, Results, batch, dropout, follow, mask_of, matrix, narrowed, numbers, roundings,
};

#[derive(Debug)]
struct Layer {
    lengths: Vec<(usize, usize)>,
    side: Side,
    scope: Scope,
    heads: Heads,
    width: usize,
    dropped: f64,
    /// Whether what is looked at is d_x after the backward pass of the feed-forward below, whose inner products the one before
    /// found on its way.
    below: bool,
}

/// Prompt rows before each example.
const PROMPT: usize = 3;
/// Largest |key - query| with a bias of its own.
const MAX_DISTANCE: usize = 9;

impl Case for Layer {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { side, scope, heads, width, .. } = *self;
        let batch = batch(&self.lengths, PROMPT, 50);
        let (rows, total) = (batch.rows(side), heads.total());
        let dropout = dropout(self.dropped);
        let mask = mask_of(&dropout, side, SiteKind::SelfAttention);
        let mut projection = matrix(1, 3 * total, width);
        // T5 does not scale its scores: the spread of q does.
        let shrink = (heads.width as f32).powf(-0.5);
        projection[..total * width].iter_mut().for_each(|q| *q *= shrink);
        let w_qkv = backend.weight(projection, 3 * total, width, Readers::Many)?;
        let before = backend.weight(matrix(2, width, width), width, width, Readers::Many)?;
        let bias =
            (0..heads.count as u64).map(|head| narrowed(&numbers(90 + head, 2 * MAX_DISTANCE + 1, 0.7)));
        let bias = backend.position_bias(bias.collect(), MAX_DISTANCE)?;
        let y = backend.place(&numbers(3, rows * width, 1.0), width, Format::Operand)?;
        let start = backend.place(&numbers(4, rows * width, 1.0), width, Format::Residual)?;
        let mut below = Residual::new(backend, rows, width)?;
        let (batch, epsilon) = (&batch, 1e-6);
        let first =
            ResidualProjection { batch, side, y: &y, weight: &before, mask: None, epsilon, x: &start };
        backend.add_project(first, &mut below)?;
        let w_in = backend.weight(matrix(7, 2 * width, width), 2 * width, width, Readers::Many)?;
        let w_out = backend.weight(matrix(8, width, 2 * width), width, 2 * width, Readers::Many)?;
        let feed_forward = FeedForward {
            batch,
            side,
            w_in: &w_in,
            w_out: &w_out,
            activation: Activation::Relu,
            inner_mask: None,
            output_mask: mask_of(&dropout, side, SiteKind::FeedForwardOutput),
            epsilon,
        };
        let mut input = Residual::new(backend, rows, width)?;
        let saved = backend.feed_forward(&feed_forward, &below, &mut input, true)?.expect("kept");
        let mut qkv = backend.rows(rows, 3 * total, Format::Operand)?;
        backend.project(Projection { batch, side, input: &input, weight: &w_qkv }, &mut qkv)?;
        let mut o = backend.rows(rows, total, Format::Operand)?;
        let mut log_sum_exp = backend.rows(rows, heads.count, Format::Float)?;
        let attention = SelfAttention { batch, side, heads, bias: &bias, mask };
        backend.self_attention(&attention, &qkv, &mut o, &mut log_sum_exp)?;

        let scoped = match scope {
            Scope::All => rows,
            Scope::Prompt => batch.examples() * PROMPT,
        };
        let w_o = backend.weight(matrix(9, width, total), width, total, Readers::Many)?;
        let d_out = backend.place(&numbers(5, rows * width, 1.0), width, Format::Residual)?;
        let mut d_o = backend.rows(rows, total, Format::Operand)?;
        let y = Some((&o, heads));
        let output = ResidualProjectionBackward { batch, side, d_x: &d_out, weight: &w_o, mask: None, y };
        backend.add_project_backward(output, &mut d_o)?;
        let mut d_qkv = backend.rows(scoped, 3 * total, Format::ProjectionGradient)?;
        let from = SelfAttentionBackward { scope, qkv: &qkv, o: &o, log_sum_exp: &log_sum_exp, d_o: &d_o };
        backend.self_attention_backward(&attention, from, &mut d_qkv)?;
        let mut d_x = backend.place(&numbers(6, rows * width, 1.0), width, Format::Residual)?;
        // Of the prompt's rows alone nothing below is learnt from.
        let known = (scope == Scope::All).then_some(&below.x);
        let projected = ProjectionBackward {
            batch,
            side,
            scope,
            dz: &d_qkv,
            weight: &w_qkv,
            input: &input,
            below: known,
        };
        backend.project_backward(projected, &mut d_x)?;
        let d_x_after = backend.read(&d_x)?;
        if self.below {
            let from = FeedForwardBackward { saved: &saved, input: &below, x_next: &input.x };
            backend.feed_forward_backward(&feed_forward, from, &mut d_x)?;
            return Ok(vec![("d_x below", backend.read(&d_x)?)]);
        }
        Ok(vec![
            ("o", backend.read(&o)?),
            ("log_sum_exp", backend.read(&log_sum_exp)?),
            ("d_qkv", backend.read(&d_qkv)?),
            ("d_x", d_x_after),
        ])
    }
}

fn attention(lengths: &[(usize, usize)], side: Side, scope: Scope, heads: Heads, width: usize, dropped: f64) {
    let mut case = Layer { lengths: lengths.to_vec(), side, scope, heads, width, dropped, below: false };
    let longest = lengths.iter().map(|(n, t)| n + t + PROMPT).max().unwrap_or(0);
    // bf16: q, k, v, the probabilities, o, d_scores and d_qkv are each rounded once, and scores of size s move a
    // probability by s roundings.
    let terms = 2 * (longest + width + heads.total());
    follow(&case, Bounds { terms, bf16: roundings(16.0) });
    if scope == Scope::All && lengths.len() <= 2 {
        // A ReLU within a rounding of zero may fall on the other side: as in a feed-forward alone, the direction is what counts.
        case.below = true;
        follow(&case, Bounds { terms, bf16: Tolerance::Cosine(1e-3) });
    }
}

/// Lengths that with three prompt rows lie beside a warp and a tile.
const BESIDE: [(usize, usize); 8] =
    [(1, 1), (28, 31), (29, 32), (30, 33), (60, 63), (61, 64), (62, 65), (67, 70)];

#[test]
fn lengths_beside_a_warp_and_a_tile() {
    for (side, scope) in
        [(Side::Encoder, Scope::All), (Side::Encoder, Scope::Prompt), (Side::Decoder, Scope::All)]
    {
        for dropped in [0.0, 0.2] {
            attention(&BESIDE, side, scope, Heads { count: 3, width: 8 }, 40, dropped);
        }
    }
}

#[test]
fn heads_of_every_width() {
    for width in [16, 24, 40, 64, 72, 96, 128] {
        attention(&[(1, 1), (66, 5), (9, 70)], Side::Encoder, Scope::All, Heads { count: 2, width }, 40, 0.1);
        attention(&[(1, 1), (3, 5), (9, 70)], Side::Decoder, Scope::All, Heads { count: 2, width }, 40, 0.1);
    }
}

/// Rows of a decoder beside those that a warp holds and those that lanes by eights take, heads that fill no whole block.
#[test]
fn short_examples() {
    for dropped in [0.0, 0.2] {
        for lengths in [
            [(3, 1), (9, 16), (1, 2), (2, 15)],
            [(3, 17), (9, 1), (1, 16), (2, 2)],
            [(3, 4), (9, 5), (1, 3), (2, 1)],
        ] {
            for heads in [Heads { count: 3, width: 64 }, Heads { count: 2, width: 104 }] {
                attention(&lengths, Side::Decoder, Scope::All, heads, 40, dropped);
            }
        }
    }
}

/// Biases near and far: key - query beside the reach, in tiles that lie beside each other and tiles that do not.
#[test]
fn far_tiles() {
    attention(&[(150, 1), (270, 1)], Side::Encoder, Scope::All, Heads { count: 2, width: 64 }, 40, 0.0);
    attention(&[(1, 200)], Side::Decoder, Scope::All, Heads { count: 2, width: 64 }, 40, 0.1);
}

#[test]
fn a_single_token() {
    attention(&[(1, 1)], Side::Encoder, Scope::All, Heads { count: 1, width: 8 }, 8, 0.0);
    attention(&[(1, 2)], Side::Decoder, Scope::All, Heads { count: 1, width: 8 }, 8, 0.0);
}

#[test]
fn heads_of_released_models() {
    // t5-small, t5-base and t5-3b.
    attention(&[(37, 2), (90, 3)], Side::Encoder, Scope::All, Heads { count: 8, width: 64 }, 512, 0.1);
    attention(&[(37, 2), (70, 3)], Side::Encoder, Scope::Prompt, Heads { count: 12, width: 64 }, 768, 0.0);
    attention(&[(37, 2)], Side::Encoder, Scope::All, Heads { count: 32, width: 128 }, 1_024, 0.0);
}
