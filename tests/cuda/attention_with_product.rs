//! Short self attention with the product beside it as one op, `kernels/self_attention_hopper.cu` where the device has it, against the two
//! ops one after the other: the same bits.

use std::path::Path;

use promptmix::Result;
use promptmix::backend::{
    Batch, Device as _, Format, Heads, LinearOps as _, Projection, ProjectionBackward, Readers, Residual,
    ResidualProjection, ResidualProjectionBackward, Scope, SelfAttention, SelfAttentionBackward,
    SelfAttentionOps as _, SelfAttentionOutputBackward, Side, SiteKind,
};
use promptmix::cuda::linear::{TileShape, TileTable};
use promptmix::cuda::{Cuda, Precision};
use promptmix::verify::compare;

use crate::device::{Place as _, batch, device, dropout, mask_of, matrix, narrowed, numbers, roundings};

#[derive(Clone, Copy, Debug)]
struct Shape<'a> {
    /// Targets of each example, and rows after them that nobody writes.
    lengths: &'a [usize],
    after: usize,
    heads: usize,
    width: usize,
    dropped: f64,
    /// Parts that the products are cut into where they are by themselves.
    parts: usize,
    /// Whether the projection by itself can be cut so: another cut's sums are in another order.
    alike: bool,
    /// Whether the device's kernels of both at once are for it.
    joined: bool,
}

/// What an op gives, by name, and launches; and the qkv that the projection alone gives.
type Given = (Vec<(&'static str, Vec<f64>)>, u64, Vec<f64>);

impl Shape<'_> {
    fn batch(&self) -> Batch {
        let lengths: Vec<(usize, usize)> = self.lengths.iter().map(|&target| (1, target)).collect();
        let batch = batch(&lengths, 0, 50);
        let (rows, longest) = (batch.rows(Side::Decoder), batch.longest_target());
        batch.with_capacity(0, rows + self.after, longest)
    }

    /// Has both products cut so, however many blocks that makes.
    fn cut(&self, cuda: &mut Cuda) {
        let (total, rows) = (self.heads * 64, self.batch().rows(Side::Decoder));
        let name = &cuda.info().name;
        let line = |way: &str, n: usize, k: usize| {
            let tile = TileShape::ThinHopper.name();
            format!("{name},2026-11-30,{way},{rows},{n},{k},{tile},{},1.0\n", self.parts)
        };
        let (forward, backward) =
            (line("forward", 3 * total, self.width), line("backward", total, self.width));
        let text = format!("{}\n{forward}{backward}", TileTable::HEADER);
        cuda.set_tiles(TileTable::parse(Path::new("test"), &text).expect("a table"));
    }

    /// Both ways, the op of two or the two.
    fn run(&self, cuda: &Cuda, joined: bool) -> Result<Given> {
        let (batch, side, epsilon) = (&self.batch(), Side::Decoder, 1e-6);
        let (heads, width) = (Heads { count: self.heads, width: 64 }, self.width);
        let (rows, total) = (batch.rows(side), heads.total());
        let dropout = dropout(self.dropped);
        let mask = |kind| mask_of(&dropout, side, kind);
        let mut projection = matrix(1, 3 * total, width);
        projection[..total * width].iter_mut().for_each(|q| *q *= 0.125);
        let w_qkv = &cuda.weight(projection, 3 * total, width, Readers::Few)?;
        let w_o = &cuda.weight(matrix(2, width, total), width, total, Readers::Few)?;
        let bias = (0..heads.count as u64).map(|head| narrowed(&numbers(90 + head, 19, 0.7)));
        let bias = &cuda.position_bias(bias.collect(), 9)?;
        // A product before it writes x and its norm, of the rows that there are.
        let before = cuda.weight(matrix(3, width, 64), width, 64, Readers::Few)?;
        let y = cuda.place(&numbers(4, rows * 64, 1.0), 64, Format::Operand)?;
        let start = cuda.place(&numbers(5, rows * width, 1.0), width, Format::Residual)?;
        let mut input = Residual::new(cuda, rows, width)?;
        let first =
            ResidualProjection { batch, side, y: &y, weight: &before, mask: None, epsilon, x: &start };
        cuda.add_project(first, &mut input)?;
        let of = &SelfAttention { batch, side, heads, bias, mask: mask(SiteKind::SelfAttention) };
        let mut qkv = cuda.rows(rows, 3 * total, Format::Operand)?;
        let mut o = cuda.rows(rows, total, Format::Operand)?;
        let mut log_sum_exp = cuda.rows(rows, heads.count, Format::Float)?;
        let mut launches = cuda.kernels().launches();
        let mut launched = || {
            let now = cuda.kernels().launches();
            now - std::mem::replace(&mut launches, now)
        };
        launched();
        if joined {
            cuda.self_attention_project(of, &input, w_qkv, &mut qkv, [&mut o, &mut log_sum_exp])?;
        } else {
            cuda.project(Projection { batch, side, input: &input, weight: w_qkv }, &mut qkv)?;
        }
        let (mut count, alone) = (launched(), cuda.read(&qkv)?);
        if !joined {
            if !self.alike {
                cuda.self_attention_project(of, &input, w_qkv, &mut qkv, [&mut o, &mut log_sum_exp])?;
                launched();
            }
            cuda.self_attention(of, &qkv, &mut o, &mut log_sum_exp)?;
            count += launched();
        }

        let scope = Scope::All;
        // What lies after the batch's rows is not to be multiplied with anything.
        let mut d_out = numbers(6, rows * width, 1.0);
        d_out[batch.real_rows(side) * width..].fill(f64::NAN);
        let d_out = cuda.place(&d_out, width, Format::Residual)?;
        let mut d_qkv = cuda.rows(rows, 3 * total, Format::ProjectionGradient)?;
        let mask = mask(SiteKind::SelfAttentionOutput);
        launched();
        let (q, o_of, sums) = (&qkv, &o, &log_sum_exp);
        if joined {
            let from = SelfAttentionOutputBackward {
                scope,
                qkv: q,
                o: o_of,
                log_sum_exp: sums,
                d_x: &d_out,
                weight: w_o,
                mask,
            };
            cuda.self_attention_output_backward(of, from, &mut d_qkv)?;
        } else {
            let mut d_o = cuda.rows(rows, total, Format::Operand)?;
            let (d_x, y) = (&d_out, Some((o_of, heads)));
            let output = ResidualProjectionBackward { batch, side, d_x, weight: w_o, mask, y };
            cuda.add_project_backward(output, &mut d_o)?;
            let from = SelfAttentionBackward { scope, qkv: q, o: o_of, log_sum_exp: sums, d_o: &d_o };
            cuda.self_attention_backward(of, from, &mut d_qkv)?;
        }
        count += launched();
        // The inner products of each row are what this reads beside d_qkv.
        let mut d_x = cuda.place(&numbers(7, rows * width, 1.0), width, Format::Residual)?;
        let (dz, weight, input) = (&d_qkv, w_qkv, &input);
        let projected = ProjectionBackward { batch, side, scope, dz, weight, input, below: None };
        cuda.project_backward(projected, &mut d_x)?;
        let given = vec![
            ("qkv", cuda.read(&qkv)?),
            ("o", cuda.read(&o)?),
            ("log_sum_exp", cuda.read(&log_sum_exp)?),
            ("d_qkv", cuda.read(&d_qkv)?),
            ("d_x", cuda.read(&d_x)?),
        ];
        cuda.synchronize()?;
        Ok((given, count, alone))
    }
}

/// Numbers by their bits: poison too must stay as it is.
fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| if value.is_nan() { u64::MAX } else { value.to_bits() }).collect()
}

fn follow(shape: Shape<'_>) {
    let Some(mut device) = device(Precision::Bf16) else { return };
    let is_hopper = device.cuda.info().compute_capability == (9, 0);
    if is_hopper {
        shape.cut(&mut device.cuda);
    }
    let run = |joined, seed| {
        device.gpu.change(&vgpu::Change { seed: Some(seed), ..Default::default() });
        let given = shape.run(&device.cuda, joined);
        given.unwrap_or_else(|error| panic!("{shape:?}: {error}\n{:#?}", device.gpu.take_reports().first()))
    };
    let (expected, apart, alone) = run(false, 1);
    let real: usize = shape.lengths.iter().sum();
    let of_rows = |values: &[f64]| values[..values.len() / (real + shape.after) * real].to_vec();
    for seed in [1, 1234] {
        let (found, launches, qkv) = run(true, seed);
        // Each is a bf16 number on either side of its sum.
        let comparison = compare(&of_rows(&qkv), &of_rows(&alone));
        assert!(comparison.passes(roundings(2.1)), "qkv of {shape:?}: {comparison:?}");
        let saved = if is_hopper && shape.joined { 2 } else { 0 };
        assert_eq!(launches + saved, apart, "launches of {shape:?}");
        for ((name, expected), (_, found)) in expected.iter().zip(&found) {
            assert!(bits(expected) == bits(found), "{name} of {shape:?}");
            if *name == "d_x" {
                continue;
            }
            let width = found.len() / (real + shape.after);
            let (there, after) = found.split_at(real * width);
            assert!(there.iter().all(|value| value.is_finite()), "{name} of {shape:?}");
            assert!(after.iter().all(|value| value.is_nan()), "{name} after the rows of {shape:?}");
        }
    }
}

/// Ragged examples, rows beside those that lanes by eights take and those of a tile of the tensor cores, fewer and more examples than
/// warps, depths that are no whole k-blocks.
#[test]
fn ragged_examples() {
    let of = Shape {
        lengths: &[],
        after: 0,
        heads: 3,
        width: 520,
        dropped: 0.0,
        parts: 8,
        alike: true,
        joined: true,
    };
    follow(Shape { lengths: &[1], ..of });
    follow(Shape { lengths: &[16, 1, 5, 4, 2, 3, 15, 6], after: 12, ..of });
    follow(Shape { lengths: &[4, 16, 1, 12], heads: 1, after: 3, width: 264, parts: 4, ..of });
    follow(Shape { lengths: &[1; 64], heads: 1, width: 776, parts: 8, ..of });
    // More than a warp of four blocks: the second has other rows than the first.
    let many: Vec<usize> = (0..27).map(|i| [1, 2, 5, 3, 1][i % 5]).collect();
    follow(Shape { lengths: &many, heads: 1, width: 256, parts: 4, ..of });
}

#[test]
fn dropped_probabilities() {
    let of = Shape {
        lengths: &[],
        after: 5,
        heads: 2,
        width: 512,
        dropped: 0.2,
        parts: 8,
        alike: true,
        joined: true,
    };
    follow(Shape { lengths: &[3, 16, 1, 4, 5], ..of });
    follow(Shape { lengths: &[2; 21], ..of });
}

/// Heads of t5-small, t5-base and t5-large.
#[test]
fn heads_of_released_models() {
    let of = Shape {
        lengths: &[2; 32],
        after: 0,
        heads: 12,
        width: 768,
        dropped: 0.0,
        parts: 8,
        alike: true,
        joined: true,
    };
    follow(Shape { alike: false, ..of });
    follow(Shape { lengths: &[2, 1, 3], after: 10, heads: 8, width: 512, ..of });
    follow(Shape { lengths: &[7, 2], heads: 16, width: 1_024, alike: false, ..of });
}

/// A tile that examples would lie across, an example that no warp holds, a depth that leaves a block without work.
#[test]
fn what_one_cluster_cannot_have_are_two_launches() {
    let of = Shape {
        lengths: &[2],
        after: 63,
        heads: 2,
        width: 512,
        dropped: 0.0,
        parts: 8,
        alike: true,
        joined: false,
    };
    follow(of);
    follow(Shape { lengths: &[17, 1], after: 0, ..of });
}
