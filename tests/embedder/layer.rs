//! The layer of `examples/embed_layer`, forward and backward, beside the same sums in f64.
//!
//! What bf16 does to the gradient has two parts. Rounding of each stage is one: a relative 2^-8 a number at most. The gates of the ReLU
//! are the other: where z is nearer to 0 than its own rounding, the kernel may find the other sign, and then a whole number of d_a
//! comes or goes. A gate in a few hundred flips, and as errors add up by their squares, a fraction p of flips makes a relative error of
//! about sqrt(p) in dz: several per cent, at single numbers more. So the gradient is compared twice: with the kernel's own gates within
//! rounding, and gates with those of f64, of which only those may differ whose z is as small as rounding is.

use half::bf16;
use promptmix::backend::Heads;
use promptmix::cuda::Sequences;

use crate::launching::program;
use crate::layer_of_example::{EPSILON, Layer, Masks, Sizes, Weights};

const SIZES: Sizes = Sizes { width: 64, inner: 128, heads: Heads { count: 2, width: 16 }, max_distance: 8 };
const LENGTHS: [usize; 3] = [5, 70, 20];

/// \[rows, n\] of \[rows, k\] and a weight \[n, k\].
fn times(a: &[f64], weight: &[f64], k: usize) -> Vec<f64> {
    let row = |a: &[f64]| -> Vec<f64> {
        weight.chunks(k).map(|w| w.iter().zip(a).map(|(w, a)| w * a).sum()).collect()
    };
    a.chunks(k).flat_map(row).collect()
}

/// \[rows, k\] of \[rows, n\] and the same weight.
fn times_back(a: &[f64], weight: &[f64], k: usize) -> Vec<f64> {
    let n = weight.len() / k;
    let row = |a: &[f64]| -> Vec<f64> {
        (0..k).map(|c| a.iter().enumerate().map(|(i, a)| a * weight[i * k + c]).sum()).collect()
    };
    a.chunks(n).flat_map(row).collect()
}

fn scale_of(row: &[f64]) -> f64 {
    let squares: f64 = row.iter().map(|x| x * x).sum();
    (squares / row.len() as f64 + f64::from(EPSILON)).sqrt().recip()
}

fn norm(x: &[f64]) -> Vec<f64> {
    let row = |row: &[f64]| {
        let r = scale_of(row);
        row.iter().map(|x| x * r).collect::<Vec<f64>>()
    };
    x.chunks(SIZES.width).flat_map(row).collect()
}

/// d + the gradient of the norm's input.
fn norm_backward(d: &[f64], d_u: &[f64], x: &[f64]) -> Vec<f64> {
    let width = SIZES.width;
    let rows = d.chunks(width).zip(d_u.chunks(width)).zip(x.chunks(width));
    let row = |((d, d_u), x): ((&[f64], &[f64]), &[f64])| -> Vec<f64> {
        let (r, inner) = (scale_of(x), d_u.iter().zip(x).map(|(d, x)| d * x).sum::<f64>() / width as f64);
        (0..width).map(|c| d[c] + r * d_u[c] - r.powi(3) * inner * x[c]).collect()
    };
    rows.flat_map(row).collect()
}

struct Wide {
    qkv: Vec<f64>,
    o: Vec<f64>,
    w_in: Vec<f64>,
    w_out: Vec<f64>,
    bias: Vec<f64>,
}

/// o, and d_qkv if d_o is given.
fn attention(qkv: &[f64], bias: &[f64], d_o: Option<&[f64]>) -> (Vec<f64>, Vec<f64>) {
    let (Heads { count, width }, total) = (SIZES.heads, SIZES.heads.total());
    let (mut o, mut d_qkv) = (vec![0.0; qkv.len() / 3], vec![0.0; qkv.len()]);
    let at = |row: usize, part: usize, column: usize| (row * 3 + part) * total + column;
    let mut first = 0;
    for length in LENGTHS {
        for (head, query) in
            (0..count).flat_map(|head| (first..first + length).map(move |query| (head, query)))
        {
            let columns = head * width..(head + 1) * width;
            let keys = first..first + length;
            let reach = SIZES.max_distance as i64;
            let score = |key: usize| {
                let distance = (key as i64 - query as i64).clamp(-reach, reach) + reach;
                let product: f64 = columns.clone().map(|c| qkv[at(query, 0, c)] * qkv[at(key, 1, c)]).sum();
                (product + bias[head * (2 * SIZES.max_distance + 1) + distance as usize]).exp()
            };
            let scores: Vec<f64> = keys.clone().map(score).collect();
            let sum: f64 = scores.iter().sum();
            for (key, score) in keys.clone().zip(&scores) {
                for c in columns.clone() {
                    o[query * total + c] += score / sum * qkv[at(key, 2, c)];
                }
            }
            let Some(d_o) = d_o else { continue };
            let d = |c: usize| d_o[query * total + c];
            let delta: f64 = columns.clone().map(|c| d(c) * o[query * total + c]).sum();
            for (key, score) in keys.zip(&scores) {
                let p = score / sum;
                let d_p: f64 = columns.clone().map(|c| d(c) * qkv[at(key, 2, c)]).sum();
                let ds = p * (d_p - delta);
                for c in columns.clone() {
                    d_qkv[at(query, 0, c)] += ds * qkv[at(key, 1, c)];
                    d_qkv[at(key, 1, c)] += ds * qkv[at(query, 0, c)];
                    d_qkv[at(key, 2, c)] += p * d(c);
                }
            }
        }
        first += length;
    }
    (o, d_qkv)
}

/// z, the output, and the gradient of the input with those gates; with its own where none are given.
fn reference(x: &[f64], d: &[f64], of: &Wide, gates: Option<&[bool]>) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (width, total) = (SIZES.width, SIZES.heads.total());
    let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
    let qkv = times(&norm(x), &of.qkv, width);
    let (o, _) = attention(&qkv, &of.bias, None);
    let between = add(x, &times(&o, &of.o, total));
    let z = times(&norm(&between), &of.w_in, width);
    let own: Vec<bool> = z.iter().map(|&z| z > 0.0).collect();
    let gates = gates.unwrap_or(&own);
    let gated = |values: &[f64]| -> Vec<f64> {
        values.iter().zip(gates).map(|(value, open)| if *open { *value } else { 0.0 }).collect()
    };
    let output = add(&between, &times(&gated(&z), &of.w_out, SIZES.inner));
    let dz = gated(&times_back(d, &of.w_out, SIZES.inner));
    let d_between = norm_backward(d, &times_back(&dz, &of.w_in, width), &between);
    let (_, d_qkv) = attention(&qkv, &of.bias, Some(&times_back(&d_between, &of.o, total)));
    let d_x = norm_backward(&d_between, &times_back(&d_qkv, &of.qkv, width), x);
    (z, output, d_x)
}

/// How far off, by the root of the squares, and the farthest by the largest number.
#[track_caller]
fn off(found: &[f32], expected: &[f64]) -> (f64, f64) {
    assert_eq!(found.len(), expected.len());
    let (mut squares, mut all, mut farthest, mut largest) = (0.0, 0.0, 0.0_f64, 0.0_f64);
    for (&found, expected) in found.iter().zip(expected) {
        assert!(found.is_finite());
        let off = f64::from(found) - expected;
        (squares, all) = (squares + off * off, all + expected * expected);
        (farthest, largest) = (farthest.max(off.abs()), largest.max(expected.abs()));
    }
    assert!(all > 0.0);
    ((squares / all).sqrt(), farthest / largest)
}

#[test]
fn a_layer_of_public_ops_is_the_layer_in_f64() {
    let Some(program) = program() else { return };
    let (rows, width, total) = (LENGTHS.iter().sum::<usize>(), SIZES.width, SIZES.heads.total());
    let stream = &program.stream;
    let mut seed = 1_u64;
    let mut number = || {
        // The quotient of a linear congruential generator: a sequence without the lattice that i times a constant has.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    let mut matrix = |count: usize, columns: usize| {
        let values: Vec<bf16> =
            (0..count * columns).map(|_| bf16::from_f64(number() * (3.0 / columns as f64).sqrt())).collect();
        let slice = stream.clone_htod(&values).expect("an upload");
        (slice, values.into_iter().map(f64::from).collect::<Vec<f64>>())
    };
    let (qkv, o) = (matrix(3 * total, width), matrix(width, total));
    let (w_in, w_out) = (matrix(SIZES.inner, width), matrix(width, SIZES.inner));
    let mut floats = |count: usize| (0..count).map(|_| number() as f32).collect::<Vec<f32>>();
    let bias = floats(SIZES.heads.count * (2 * SIZES.max_distance + 1));
    let (x, d) = (floats(rows * width), floats(rows * width));
    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let reference_weights = Wide { qkv: qkv.1, o: o.1, w_in: w_in.1, w_out: w_out.1, bias: wide(&bias) };
    let bias = stream.clone_htod(&bias).expect("an upload");
    let weights = Weights { qkv: qkv.0, o: o.0, w_in: w_in.0, w_out: w_out.0, bias };

    let sequences = Sequences::new(stream, &LENGTHS).expect("sequences");
    let mut layer = Layer::new(&program.kernels, sequences.rows(), SIZES).expect("a layer");
    stream.memcpy_htod(&x, &mut layer.input.x).expect("an upload");
    let mut d_x = stream.clone_htod(&d).expect("an upload");
    layer.forward(&program.kernels, &weights, Masks::default()).expect("launches");
    layer.backward(&program.kernels, &weights, Masks::default(), &mut d_x).expect("launches");
    let (output, d_x) = (stream.clone_dtoh(&layer.output.x), stream.clone_dtoh(&d_x));
    let (output, d_x) = (output.expect("a download"), d_x.expect("a download"));
    let bytes = stream.clone_dtoh(&layer.gates).expect("a download");
    let gates: Vec<bool> =
        bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();

    let (x, d) = (wide(&x), wide(&d));
    let (z, expected, _) = reference(&x, &d, &reference_weights, None);
    let (_, _, d_expected) = reference(&x, &d, &reference_weights, Some(&gates));
    // Six matrices are rounded to bf16 on the way down (rows, qkv, probabilities, o, rows, a), five on the way up (d_x, dz, d_x, d_o,
    // d_qkv), which reads the six again: errors add up by their squares, each 2^-8 or less.
    let rounding = (17.0_f64).sqrt() / 256.0;
    let (by_squares, farthest) = off(&output, &expected);
    assert!(by_squares < rounding, "the output is {by_squares} off, at most {farthest}");
    let (by_squares, farthest) = off(&d_x, &d_expected);
    assert!(by_squares < rounding, "the gradient is {by_squares} off, at most {farthest}");
    // Gates that flipped are few, and their z is as small as what rounding did to it.
    let size = (z.iter().map(|z| z * z).sum::<f64>() / z.len() as f64).sqrt();
    let flipped: Vec<f64> =
        z.iter().zip(&gates).filter(|(z, open)| (**z > 0.0) != **open).map(|(z, _)| z.abs() / size).collect();
    assert!(flipped.iter().all(|&z| z < 2.0 * rounding), "{flipped:?}");
    assert!(flipped.len() * 50 < z.len(), "{} of {} gates", flipped.len(), z.len());
    println!("output and gradient within {rounding:.4}; {} of {} gates flipped", flipped.len(), z.len());
}
