//! Products with frozen weights and what follows them: `kernels/gemm.cu`, `kernels/feed_forward.cu`.

use promptmix::Result;
use promptmix::backend::{
    Activation, FeedForward, FeedForwardBackward, FinalNorm, FinalNormBackward, Format, Projection, Readers,
    Residual, ResidualProjection, ResidualProjectionBackward, Side, SiteKind,
};
use promptmix::cuda::feed_forward::{EachRow, Gate};
use promptmix::cuda::linear::{Epilogue, Linear, Norm, NormBackward};
use promptmix::cuda::{DropoutMask, ReadOperand, Sequences};
use promptmix::verify::Tolerance;

use crate::device::{
    Bounds, Case, Place, Raw, Results, batch, dropout, follow, mask_of, matrix, numbers, partial_squares,
    reciprocals, roundings, sums,
};

/// x_next = x + mask(y W^T) after y = inner rows, then z = r·x_next W^T, and d_y of the first.
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
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { side, inner, width, out, .. } = *self;
        let batch = batch(&self.lengths, 2, 50);
        let rows = batch.rows(side);
        let dropout = dropout(self.dropped);
        let mask = mask_of(&dropout, side, SiteKind::SelfAttentionOutput);
        let w_o = backend.weight(matrix(1, width, inner), width, inner, Readers::Many)?;
        let w_z = backend.weight(matrix(2, out, width), out, width, Readers::Many)?;
        let y = backend.place(&numbers(3, rows * inner, 1.0), inner, Format::Operand)?;
        let x = backend.place(&numbers(4, rows * width, 1.0), width, Format::Residual)?;
        let mut next = Residual::new(backend, rows, width)?;
        let (batch, weight) = (&batch, &w_o);
        let added = ResidualProjection { batch, side, y: &y, weight, mask, epsilon: 1e-6, x: &x };
        backend.add_project(added, &mut next)?;
        let mut z = backend.rows(rows, out, Format::Operand)?;
        backend.project(Projection { batch, side, input: &next, weight: &w_z }, &mut z)?;
        let d_x = backend.place(&numbers(5, rows * width, 1.0), width, Format::Residual)?;
        let mut d_y = backend.rows(rows, inner, Format::Operand)?;
        let of = ResidualProjectionBackward { batch, side, d_x: &d_x, weight, mask, y: None };
        backend.add_project_backward(of, &mut d_y)?;
        Ok(vec![
            ("x_next", backend.read(&next.x)?),
            ("r_next", backend.read(&next.r)?),
            ("z", backend.read(&z)?),
            ("d_y", backend.read(&d_y)?),
        ])
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
fn products_for_the_medium_tile() {
    // On 108 multiprocessors: one row of tiles with k in six parts, then two rows of 37 tiles, the second not full.
    sublayer(&[(73, 1)], Side::Encoder, [2_048, 1_792, 64], 0.1);
    sublayer(&[(60, 1), (63, 1)], Side::Encoder, [4_616, 72, 4_616], 0.1);
}

#[test]
fn products_large_enough_for_the_large_tile() {
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
    /// Whether d_x comes from a final norm above.
    after_norm: bool,
}

impl Case for Inner {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { side, activation, width, inner, .. } = *self;
        let batch = batch(&self.lengths, 2, 50);
        let rows = batch.rows(side);
        let dropout = dropout(self.dropped);
        let stacked = activation.projections() * inner;
        let w_in = backend.weight(matrix(1, stacked, width), stacked, width, Readers::Many)?;
        let w_out = backend.weight(matrix(2, width, inner), width, inner, Readers::Many)?;
        let (batch, epsilon) = (&batch, 1e-6);
        let feed_forward = FeedForward {
            batch,
            side,
            w_in: &w_in,
            w_out: &w_out,
            activation,
            inner_mask: mask_of(&dropout, side, SiteKind::FeedForward),
            output_mask: mask_of(&dropout, side, SiteKind::FeedForwardOutput),
            epsilon,
        };
        // A first sublayer makes x and its norm as the model does.
        let before = backend.weight(matrix(3, width, width), width, width, Readers::Many)?;
        let y = backend.place(&numbers(4, rows * width, 1.0), width, Format::Operand)?;
        let start = backend.place(&numbers(5, rows * width, 1.0), width, Format::Residual)?;
        let mut input = Residual::new(backend, rows, width)?;
        let first =
            ResidualProjection { batch, side, y: &y, weight: &before, mask: None, epsilon, x: &start };
        backend.add_project(first, &mut input)?;
        let mut next = Residual::new(backend, rows, width)?;
        let saved = backend.feed_forward(&feed_forward, &input, &mut next, true)?.expect("kept");
        let mut d_x = backend.place(&numbers(6, rows * width, 1.0), width, Format::Residual)?;
        if self.after_norm {
            // Whoever writes d_x finds its inner product with what the feed-forward added.
            let d_h = backend.place(&numbers(7, rows * width, 1.0), width, Format::Float)?;
            let norm = FinalNorm { batch, side, input: &next, norm_weight: None, scale: 1.0, mask: None };
            let from = FinalNormBackward { d_h: &d_h, below: Some(&input.x) };
            backend.final_norm_backward(norm, from, &mut d_x)?;
        }
        let from = FeedForwardBackward { saved: &saved, input: &input, x_next: &next.x };
        backend.feed_forward_backward(&feed_forward, from, &mut d_x)?;
        Ok(vec![
            ("x_next", backend.read(&next.x)?),
            ("r_next", backend.read(&next.r)?),
            ("d_x", backend.read(&d_x)?),
        ])
    }
}

fn feed_forward(lengths: &[(usize, usize)], side: Side, [width, inner]: [usize; 2], dropped: f64) {
    for activation in [Activation::Relu, Activation::GatedGelu, Activation::GatedSilu] {
        let after_norm = dropped > 0.0;
        let case = Inner { lengths: lengths.to_vec(), side, activation, width, inner, dropped, after_norm };
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

/// a W^T, or with `backward` a W: `a` [rows, k], `weight` [out, input].
fn product(a: &[f64], weight: &[f64], out: usize, input: usize, backward: bool) -> Vec<f64> {
    let (n, k) = if backward { (input, out) } else { (out, input) };
    let at =
        |column: usize, depth: usize| weight[if backward { depth * n + column } else { column * k + depth }];
    let row = |row: &[f64]| -> Vec<f64> {
        (0..n).map(|column| row.iter().enumerate().map(|(depth, a)| a * at(column, depth)).sum()).collect()
    };
    a.chunks_exact(k).flat_map(row).collect()
}

fn each(a: &[f64], b: &[f64], of: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| of(a, b)).collect()
}

/// Every product of one weight, launched alone, against sums in f64.
fn raw_products(lengths: &[usize], out: usize, input: usize) {
    let Some(raw) = Raw::new() else { return };
    let (kernels, stream) = (raw.kernels(), raw.kernels().stream());
    let sequences = Sequences::new(stream, lengths).expect("sequences");
    let rows = sequences.count();
    let mut linear = Linear::new(kernels, sequences.rows(), out, input).expect("widths that fit");
    let weight: Vec<f64> = matrix(1, out, input).into_iter().map(f64::from).collect();
    let (x, dz) = (numbers(2, rows * input, 1.0), numbers(3, rows * out, 1.0));
    let (residual, before) = (numbers(4, rows * out, 1.0), numbers(5, rows * input, 1.0));
    let epsilon = 1e-6;
    let r = reciprocals(&x, input, epsilon);
    let scaled = |values: &[f64], width: usize| -> Vec<f64> {
        values.iter().enumerate().map(|(i, value)| r[i / width] * value).collect()
    };
    let (z, d_a) = (product(&x, &weight, out, input, false), product(&dz, &weight, out, input, true));
    // A rounding is off by up to 2^-8 of a number just above a power of two.
    let (one, exact) = (roundings(2.1), sums(input.max(out)));

    let (w, x_copy, x_float) = (raw.halves(&weight), raw.halves(&x), raw.floats(&x));
    let (partials, dz_copy) = (raw.floats(&partial_squares(&x, input)), raw.halves(&dz));
    let norm = Norm { partials: &partials, epsilon: epsilon as f32 };
    let mut result = raw.poisoned_halves(rows * out);
    linear.forward(kernels, &x_copy, &w, Epilogue::Plain { z: &mut result }).expect("forward");
    raw.holds("forward", &result, &z, one);
    let mut result = raw.poisoned_floats(rows * out);
    linear.forward(kernels, &x_copy, &w, Epilogue::Float { z: &mut result }).expect("forward in f32");
    raw.holds("forward in f32", &result, &z, exact);
    let mut result = raw.poisoned_halves(rows * out);
    linear.forward(kernels, &x_copy, &w, Epilogue::Project { norm, z: &mut result }).expect("project");
    let projected = scaled(&z, out);
    raw.holds("project", &result, &projected, one);

    let mut result = raw.poisoned_halves(rows * out);
    let mut bits = stream.clone_htod(&vec![0xAA_u8; rows * out / 8]).expect("an upload");
    let mask = DropoutMask::default();
    let relu = Epilogue::Relu { norm, mask, z: &mut result, bits: &mut bits };
    linear.forward(kernels, &x_copy, &w, relu).expect("relu");
    let positive: Vec<f64> = projected.iter().map(|&z| z.max(0.0)).collect();
    raw.holds("relu", &result, &positive, one);
    let saved = stream.clone_dtoh(&bits).expect("a download");
    for (i, &z) in projected.iter().enumerate() {
        // Next to zero the sign is that of a rounding.
        assert!(z.abs() < 1e-3 || (saved[i / 8] >> (i % 8) & 1 == 1) == (z > 0.0), "bit {i} of {z}");
    }

    let base = raw.floats(&residual);
    let (mut x_next, mut copy) = (raw.poisoned_floats(rows * out), raw.poisoned_halves(rows * out));
    let mut next = raw.poisoned_floats(rows * out.div_ceil(64));
    let add = Epilogue::Add {
        mask,
        x: &base,
        x_next: &mut x_next,
        copy: Some(&mut copy),
        partials_next: &mut next,
    };
    linear.forward(kernels, &x_copy, &w, add).expect("add");
    let sum = each(&residual, &z, |x, z| x + z);
    raw.holds("x_next", &x_next, &sum, exact);
    raw.holds("its copy", &copy, &sum, one);
    raw.holds("its squares", &next, &partial_squares(&sum, out), sums(input + 64));

    let mut result = raw.poisoned_halves(rows * input);
    linear.backward(kernels, &dz_copy, &w, Epilogue::Plain { z: &mut result }).expect("backward");
    raw.holds("backward", &result, &d_a, one);
    let pattern: Vec<u8> = (0..rows * input / 8).map(|i| (i * 37 % 256) as u8).collect();
    let bits = stream.clone_htod(&pattern).expect("an upload");
    let mut result = raw.poisoned_halves(rows * input);
    let relu = Epilogue::ReluBackward { mask, bits: &bits, dz: &mut result };
    linear.backward(kernels, &dz_copy, &w, relu).expect("backward");
    let masked: Vec<f64> = d_a
        .iter()
        .enumerate()
        .map(|(i, &d)| if pattern[i / 8] >> (i % 8) & 1 == 1 { d } else { 0.0 })
        .collect();
    raw.holds("backward of relu", &result, &masked, one);

    // The inner product in two parts a row, as attention leaves it.
    let inner = each(&dz, &projected, |d, z| d * z);
    let halves: Vec<f64> = inner
        .chunks_exact(out)
        .flat_map(|row| [row[..out / 2].iter().sum::<f64>(), row[out / 2..].iter().sum()])
        .collect();
    let parts = raw.floats(&halves);
    let expected: Vec<f64> = (0..rows * input)
        .map(|i| {
            let row = i / input;
            let along = r[row] * r[row] * (halves[2 * row] + halves[2 * row + 1]) / input as f64;
            before[i] + r[row] * d_a[i] - along * x[i]
        })
        .collect();
    let formats: [&dyn ReadOperand; 2] = [&x_float, &x_copy];
    for x in formats {
        let (mut d_x, mut copy) = (raw.floats(&before), raw.poisoned_halves(rows * input));
        let of_norm =
            NormBackward { x, norm, inner: &parts, d_x: &mut d_x, copy: Some(&mut copy), inner_next: None };
        linear.backward(kernels, &dz_copy, &w, Epilogue::NormBackward(of_norm)).expect("backward");
        raw.holds("d_x", &d_x, &expected, exact);
        raw.holds("its copy", &copy, &expected, one);
    }
    let mut d_x = raw.floats(&before);
    let of_norm = NormBackward {
        x: &x_copy,
        norm,
        inner: &parts,
        d_x: &mut d_x,
        copy: None,
        inner_next: Some((&x_float, &mut raw.poisoned_floats(rows * input.div_ceil(64)))),
    };
    let refused = linear.backward(kernels, &dz_copy, &w, Epilogue::NormBackward(of_norm));
    let refused = refused.expect_err("two formats").to_string();
    assert!(refused.contains("below: expected bf16"), "{refused}");

    let mut short = raw.poisoned_floats(1);
    let short = linear.forward(kernels, &x_copy, &w, Epilogue::Float { z: &mut short });
    let expected = format!("z: expected {} numbers", rows * out);
    assert!(short.expect_err("one number").to_string().contains(&expected));
}

#[test]
fn products_on_buffers_of_ones_own() {
    raw_products(&[1], 8, 8);
    raw_products(&[31, 2], 72, 40);
    raw_products(&[64, 65], 136, 264);
    // Cut along the depth, in either direction; then the large tile.
    raw_products(&[5], 264, 2_056);
    raw_products(&[130], 4_616, 24);
    let Some(raw) = Raw::new() else { return };
    let sequences = Sequences::new(raw.kernels().stream(), &[3]).expect("a sequence");
    assert!(
        Linear::new(raw.kernels(), sequences.rows(), 12, 8)
            .expect_err("12 columns")
            .to_string()
            .contains("width")
    );
}

fn act(z: f64, silu: bool) -> f64 {
    if silu {
        return z / (1.0 + (-z).exp());
    }
    0.5 * z * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (z + 0.044_715 * z.powi(3))).tanh())
}

#[test]
fn gates_and_inner_products_on_buffers_of_ones_own() {
    let Some(raw) = Raw::new() else { return };
    let kernels = raw.kernels();
    for (rows, width) in [(1, 8), (33, 72), (7, 264)] {
        let sequences = Sequences::new(kernels.stream(), &[rows]).expect("a sequence");
        for activation in [Activation::GatedGelu, Activation::GatedSilu] {
            let silu = activation == Activation::GatedSilu;
            let (z, d) = (numbers(1, rows * 2 * width, 1.5), numbers(2, rows * width, 1.0));
            let halves =
                |i: usize| (z[i / width * 2 * width + i % width], z[(i / width * 2 + 1) * width + i % width]);
            let gate = Gate { rows: sequences.rows(), width, activation, mask: DropoutMask::default() };
            let (z_bf16, d_bf16) = (raw.halves(&z), raw.halves(&d));
            let mut a = raw.poisoned_halves(rows * width);
            gate.forward(kernels, &z_bf16, &mut a).expect("forward");
            let expected: Vec<f64> =
                (0..rows * width).map(|i| act(halves(i).0, silu) * halves(i).1).collect();
            raw.holds("a", &a, &expected, roundings(2.1));

            let (mut dz, mut inner) = (raw.poisoned_halves(rows * 2 * width), raw.poisoned_floats(rows));
            gate.backward(kernels, &z_bf16, &d_bf16, &mut dz, &mut inner).expect("backward");
            let mut expected = vec![0.0; rows * 2 * width];
            for (i, d) in d.iter().enumerate() {
                let ((z0, z1), at) = (halves(i), i / width * 2 * width + i % width);
                let step = 1e-5;
                let slope = (act(z0 + step, silu) - act(z0 - step, silu)) / (2.0 * step);
                expected[at] = d * z1 * slope;
                expected[at + width] = d * act(z0, silu);
            }
            raw.holds("dz", &dz, &expected, roundings(2.1));
            let products = each(&expected, &z, |d, z| d * z);
            let expected: Vec<f64> = products.chunks_exact(2 * width).map(|row| row.iter().sum()).collect();
            raw.holds("inner", &inner, &expected, sums(2 * width));
        }
        let of = |seed| numbers(seed, rows * width, 1.0);
        let (d_x, x, next) = (of(3), of(4), of(5));
        let products: Vec<f64> = (0..rows * width).map(|i| d_x[i] * (next[i] - x[i])).collect();
        let expected: Vec<f64> = products.chunks_exact(width).map(|row| row.iter().sum()).collect();
        let (d_x, x, next) = (raw.floats(&d_x), raw.floats(&x), raw.floats(&next));
        let mut inner = raw.poisoned_floats(rows);
        let each = EachRow { rows: sequences.rows(), width };
        each.inner(kernels, [&d_x, &x, &next], &mut inner).expect("a launch");
        raw.holds("row inner", &inner, &expected, sums(width));
        let (activation, mask) = (Activation::Relu, DropoutMask::default());
        let gate = Gate { rows: sequences.rows(), width, activation, mask };
        let mut a = raw.poisoned_halves(rows * width);
        let z = raw.halves(&vec![0.0; rows * 2 * width]);
        assert!(gate.forward(kernels, &z, &mut a).is_err(), "ReLU is no gate");
    }
}
