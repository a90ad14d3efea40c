//! Embedding rows and the norms that frame a stack: `kernels/embedding.cu`, `kernels/norm.cu`.

use promptmix::backend::{Format, Readers, Side, SiteKind};
use promptmix::cuda::embedding::Embedding;
use promptmix::cuda::norm::FinalNorm;
use promptmix::cuda::{Packed, Sequences};

use crate::device::{
    Bounds, Case, Place, Raw, batch, dropout, follow, mask_of, narrowed, numbers, partial_squares,
    reciprocals, roundings, sums, view,
};

/// Rows of a table among prompt rows, dropped; then a final norm over them, and back through both.
#[derive(Debug)]
struct Stack {
    lengths: Vec<(usize, usize)>,
    side: Side,
    width: usize,
    gain: bool,
    dropped: f64,
}

impl Case for Stack {
    fn run<B: Place>(&self, backend: &B) -> Vec<(&'static str, Vec<f64>)> {
        let Self { side, width, .. } = *self;
        let vocabulary = 50;
        let batch = batch(&self.lengths, 2, vocabulary);
        let rows = batch.rows(side);
        let dropout = dropout(self.dropped);
        let table = narrowed(&numbers(1, vocabulary * width, 1.0));
        let table = backend.weight(table, vocabulary, width, Readers::Lookup);
        let gain = backend.weight(narrowed(&numbers(2, width, 1.0)), 1, width, Readers::Lookup);
        let gain = self.gain.then_some(&gain);
        let mut x = backend.place(&numbers(3, rows * width, 1.0), width, Format::Residual);
        let mut r = backend.rows(rows, width, Format::Norm);
        let mask = mask_of(&dropout, side, SiteKind::Embedding);
        backend.embed(&table, side, &batch, mask, 1e-6, &mut x, &mut r);
        let mut h = backend.rows(rows, width, Format::Operand);
        let last = mask_of(&dropout, side, SiteKind::FinalNorm);
        backend.final_norm(&batch, side, &x, &r, gain, 0.125, last, &mut h);
        let d_h = backend.place(&numbers(4, rows * width, 1.0), width, Format::Float);
        let mut d_x = backend.rows(rows, width, Format::Residual);
        backend.final_norm_backward(&batch, side, &x, &r, gain, 0.125, last, &d_h, None, &mut d_x);
        let mut results = vec![
            ("x", backend.read(&x)),
            ("r", backend.read(&r)),
            ("h", backend.read(&h)),
            ("d_x", backend.read(&d_x)),
        ];
        if side == Side::Encoder {
            backend.embed_backward(&batch, mask, &mut d_x);
            let d_x = backend.read(&d_x);
            let prompt = (0..batch.examples()).flat_map(|b| {
                let first = batch.range(side, b).start;
                d_x[first * width..(first + batch.prompt_length()) * width].to_vec()
            });
            results.push(("d_x of prompt rows", prompt.collect()));
        }
        results
    }
}

fn stack(lengths: &[(usize, usize)], side: Side, width: usize, gain: bool, dropped: f64) {
    let case = Stack { lengths: lengths.to_vec(), side, width, gain, dropped };
    // bf16: h alone is rounded.
    follow(&case, Bounds { terms: width, bf16: roundings(2.0) });
}

#[test]
fn rows_and_norms() {
    for (width, dropped) in [(8, 0.0), (40, 0.2), (64, 0.1), (72, 0.1), (264, 0.2), (512, 0.1), (1_024, 0.0)]
    {
        stack(&[(1, 1), (29, 2), (64, 31), (7, 3)], Side::Encoder, width, false, dropped);
        stack(&[(1, 1), (29, 2), (64, 31), (7, 3)], Side::Decoder, width, true, dropped);
    }
    stack(&[(1, 1)], Side::Encoder, 40, false, 0.0);
    stack(&[(1, 1)], Side::Decoder, 40, true, 0.0);
}

#[test]
fn embedding_on_buffers_of_ones_own() {
    let Some(raw) = Raw::new() else { return };
    let (kernels, vocabulary) = (raw.kernels(), 50);
    for (width, side) in [(8, Side::Encoder), (72, Side::Encoder), (264, Side::Decoder)] {
        let batch = batch(&[(1, 1), (29, 2), (7, 31)], 3, vocabulary);
        let packed = Packed::new(kernels.stream(), batch).expect("a batch");
        let (batch, rows) = (packed.batch(), packed.batch().rows(side));
        let table = numbers(1, vocabulary * width, 1.0);
        // Prompt rows are there already; token rows are poisoned.
        let mut expected = numbers(2, rows * width, 1.0);
        let mut x = expected.clone();
        for b in 0..batch.examples() {
            let range = batch.range(side, b);
            let (first, ids) = match side {
                Side::Encoder => (range.start + 3, batch.source(b)),
                Side::Decoder => (range.start, &batch.decoder_ids()[range]),
            };
            for (row, &id) in ids.iter().enumerate() {
                let to = (first + row) * width..(first + row + 1) * width;
                x[to.clone()].fill(f64::NAN);
                expected[to].copy_from_slice(&table[id as usize * width..(id as usize + 1) * width]);
            }
        }
        let (mut x, mut copy) = (raw.floats(&x), raw.poisoned_halves(rows * width));
        let mut partials = raw.poisoned_floats(rows * width.div_ceil(64));
        let table = raw.floats(&table);
        let embedding = Embedding { batch: &packed, side, width };
        let (to, second, third) =
            (&mut x.as_view_mut(), &mut copy.as_view_mut(), &mut partials.as_view_mut());
        embedding.forward(kernels, &table.as_view(), to, second, third).expect("forward");
        assert_eq!(raw.read(&x), expected, "numbers that bf16 holds are copied as they are");
        assert_eq!(raw.read(&copy), expected);
        raw.holds("partials", &partials, &partial_squares(&expected, width), sums(64));

        let few = table.slice(0..width * 10);
        let (to, second, third) =
            (&mut x.as_view_mut(), &mut copy.as_view_mut(), &mut partials.as_view_mut());
        let refused = embedding.forward(kernels, &few, to, second, third);
        assert!(refused.expect_err("ten rows").to_string().contains("table: expected rows"));
    }
}

#[test]
fn final_norms_on_buffers_of_ones_own() {
    let Some(raw) = Raw::new() else { return };
    let kernels = raw.kernels();
    for (rows, width) in [(1, 8), (5, 72), (33, 520), (2, 4_096)] {
        let sequences = Sequences::new(kernels.stream(), &[rows]).expect("a sequence");
        let (x, d_h, gains) =
            (numbers(1, rows * width, 1.0), numbers(2, rows * width, 1.0), numbers(3, width, 1.0));
        let (scale, epsilon) = (0.125, 1e-6);
        let r = reciprocals(&x, width, epsilon);
        let (x_device, d_device) = (raw.floats(&x), raw.floats(&d_h));
        let (partials, gain_device) = (raw.floats(&partial_squares(&x, width)), raw.floats(&gains));
        view!(x_device, d_device, partials, gain_device);
        for gain in [None, Some(gain_device)] {
            let norm = FinalNorm {
                sequences: &sequences,
                width,
                epsilon: epsilon as f32,
                gain,
                scale: scale as f32,
            };
            let factor = |i: usize| scale * if gain.is_some() { gains[i % width] } else { 1.0 };
            let mut h = raw.poisoned_halves(rows * width);
            norm.forward(kernels, x_device, partials, &mut h.as_view_mut()).expect("forward");
            let expected: Vec<f64> = (0..rows * width).map(|i| x[i] * r[i / width] * factor(i)).collect();
            raw.holds("h", &h, &expected, roundings(2.1));

            let (mut d_x, mut copy) = (raw.poisoned_floats(rows * width), raw.poisoned_halves(rows * width));
            let (to, second) = (&mut d_x.as_view_mut(), &mut copy.as_view_mut());
            norm.backward(kernels, x_device, partials, d_device, to, second).expect("backward");
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
        }
    }
    let sequences = Sequences::new(kernels.stream(), &[1]).expect("a sequence");
    let norm = FinalNorm { sequences: &sequences, width: 4_104, epsilon: 1e-6, gain: None, scale: 1.0 };
    let (x, partials) = (raw.floats(&vec![1.0; 4_104]), raw.floats(&[1.0; 65]));
    let (mut d_x, mut copy) = (raw.poisoned_floats(4_104), raw.poisoned_halves(4_104));
    let (to, second) = (&mut d_x.as_view_mut(), &mut copy.as_view_mut());
    let refused = norm.backward(kernels, &x.as_view(), &partials.as_view(), &x.as_view(), to, second);
    assert!(refused.expect_err("wider than a block holds").to_string().contains("4096"));
}
