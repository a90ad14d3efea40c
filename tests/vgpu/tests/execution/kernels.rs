//! Kernels of the kinds that a transformer needs, right to their number format, with no check failing.

use crate::bench::{Bench, Draw, bf16};
use crate::compare::{close, wide};
use vgpu::device::Arguments;

/// Half a place of bf16, relative: its significand has 8 bits.
const BF16_ROUNDING: f64 = 1.0 / 256.0;
/// What an f32 sum of `length` products of values up to 1 may lose.
fn sum_error(length: usize) -> f64 {
    length as f64 * f64::from(f32::EPSILON)
}

#[test]
fn gemm_agrees_with_f64_on_awkward_shapes() {
    for (m, n, k) in [(128, 128, 64), (130, 136, 200), (1, 8, 8), (77, 129, 40)] {
        let Some(mut bench) = Bench::new("gemm", &[]) else { return };
        let mut draw = Draw(m as u64);
        let (a, b, bias) = (draw.brains(m * k), draw.brains(n * k), draw.floats(n));
        let (pa, pb, pbias) = (bench.upload(&a), bench.upload(&b), bench.upload(&bias));
        let pc = bench.empty(m * n * 2);
        let arguments = Arguments::new()
            .pointer(pa)
            .pointer(pb)
            .pointer(pc)
            .pointer(pbias)
            .int(m as i32)
            .int(n as i32)
            .int(k as i32);
        let grid = [n.div_ceil(128) as u32, m.div_ceil(128) as u32, 1];
        let outcome = bench.clean("gemm", grid, [256, 1, 1], 65_536, &arguments);
        assert_eq!(outcome.counters.shared_conflicts(), 0, "the swizzle leaves no conflicts");
        let actual: Vec<f32> = bench.download::<u16>(pc, m * n).into_iter().map(wide).collect();
        let expected: Vec<f64> = (0..m * n)
            .map(|at| {
                let (row, column) = (at / n, at % n);
                let product: f64 = (0..k)
                    .map(|i| f64::from(wide(a[row * k + i])) * f64::from(wide(b[column * k + i])))
                    .sum();
                product + f64::from(bias[column])
            })
            .collect();
        close("C", &actual, &expected, |value| value.abs() * BF16_ROUNDING + sum_error(k));
    }
}

fn widened(values: &[u16]) -> Vec<f32> {
    values.iter().map(|&bits| wide(bits)).collect()
}

#[test]
fn attention_agrees_with_f64() {
    let (heads, n, keys, width) = (2usize, 131usize, 117usize, 64usize);
    let Some(mut bench) = Bench::new("attention", &[]) else { return };
    let mut draw = Draw(11);
    let count = heads * n * width;
    let scaled =
        |values: Vec<f32>| -> Vec<u16> { values.into_iter().map(|value| bf16(value * 0.5)).collect() };
    let (q, k, v) = (scaled(draw.floats(count)), scaled(draw.floats(count)), draw.brains(count));
    let bias = draw.floats(heads * (2 * n - 1));
    let (pq, pk, pv, pbias) = (bench.upload(&q), bench.upload(&k), bench.upload(&v), bench.upload(&bias));
    let (po, plse) = (bench.empty(count * 2), bench.empty(heads * n * 4));
    let arguments =
        Arguments::new().pointer(pq).pointer(pk).pointer(pv).pointer(pbias).pointer(po).pointer(plse);
    let arguments = arguments.int(n as i32).int(keys as i32);
    let grid = [n.div_ceil(64) as u32, heads as u32, 1];
    let outcome = bench.clean("attention", grid, [128, 1, 1], 0, &arguments);
    assert_eq!(outcome.counters.shared_conflicts(), 0);
    let (q, k, v) = (widened(&q), widened(&k), widened(&v));
    let (mut expected, mut expected_lse) = (Vec::new(), Vec::new());
    for head in 0..heads {
        for query in 0..n {
            let row =
                |from: &[f32], at: usize| from[(head * n + at) * width..(head * n + at + 1) * width].to_vec();
            let own = row(&q, query);
            let scores: Vec<f64> = (0..keys)
                .map(|key| {
                    let dot: f64 =
                        own.iter().zip(row(&k, key)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum();
                    dot + f64::from(bias[head * (2 * n - 1) + key + n - 1 - query])
                })
                .collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
            expected_lse.push(most + sum.ln());
            for column in 0..width {
                let value: f64 = (0..keys)
                    .map(|key| {
                        (scores[key] - most).exp() / sum * f64::from(v[(head * n + key) * width + column])
                    })
                    .sum();
                expected.push(value);
            }
        }
    }
    // Probabilities are rounded to bf16 before they meet V, whose entries are at most 1; then O is rounded.
    close("O", &widened(&bench.download::<u16>(po, count)), &expected, |v| (v.abs() + 1.0) * BF16_ROUNDING);
    // Sums of 64 products of f32, and __expf and __logf within a few units of 2^-22.
    close("log-sum-exp", &bench.download::<f32>(plse, heads * n), &expected_lse, |v| {
        v.abs() * 2e-6 + sum_error(64)
    });
}

#[test]
fn rms_norm_and_its_backward_agree_with_f64() {
    for (rows, d) in [(1usize, 8usize), (5, 264), (9, 512)] {
        let Some(mut bench) = Bench::new("rows", &[]) else { return };
        let mut draw = Draw(d as u64);
        let (x, gain) = (draw.brains(rows * d), draw.brains(d));
        let (px, pgain) = (bench.upload(&x), bench.upload(&gain));
        let (py, pr) = (bench.empty(rows * d * 2), bench.empty(rows * 4));
        let arguments = Arguments::new().pointer(px).pointer(pgain).pointer(py).pointer(pr);
        let arguments = arguments.int(rows as i32).int(d as i32).float(1e-6);
        bench.clean("rms_norm", [rows.div_ceil(4) as u32, 1, 1], [128, 1, 1], 0, &arguments);
        let (x, gain) = (widened(&x), widened(&gain));
        let r: Vec<f64> = x
            .chunks(d)
            .map(|row| {
                1.0 / (row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / d as f64 + 1e-6).sqrt()
            })
            .collect();
        let expected: Vec<f64> =
            (0..rows * d).map(|at| f64::from(x[at]) * r[at / d] * f64::from(gain[at % d])).collect();
        close("y", &widened(&bench.download::<u16>(py, rows * d)), &expected, |v| v.abs() * BF16_ROUNDING);
        close("r", &bench.download::<f32>(pr, rows), &r, |v| v * (sum_error(d) + 1e-6));
        let dy = draw.floats(rows * d);
        let (px, pdy, pdx) = (bench.upload(&x), bench.upload(&dy), bench.empty(rows * d * 4));
        let arguments = Arguments::new().pointer(px).pointer(pdy).pointer(pr).pointer(pdx).int(d as i32);
        bench.clean("rms_norm_backward", [rows as u32, 1, 1], [96, 1, 1], 0, &arguments);
        let expected: Vec<f64> = (0..rows * d)
            .map(|at| {
                let (row, scale) = (at / d, r[at / d]);
                let dot: f64 = (row * d..(row + 1) * d).map(|i| f64::from(x[i]) * f64::from(dy[i])).sum();
                scale * f64::from(dy[at]) - scale.powi(3) * dot / d as f64 * f64::from(x[at])
            })
            .collect();
        // Both terms carry r's error; r is at most about 4 here.
        close("dx", &bench.download::<f32>(pdx, rows * d), &expected, |v| (v.abs() + 4.0) * sum_error(d));
    }
}

#[test]
fn cross_entropy_agrees_with_f64() {
    let (rows, vocabulary) = (5usize, 1003usize);
    let Some(mut bench) = Bench::new("rows", &[]) else { return };
    let mut draw = Draw(3);
    let logits: Vec<u16> =
        draw.floats(rows * vocabulary).into_iter().map(|value| bf16(value * 4.0)).collect();
    let labels: Vec<i64> = vec![0, 1002, -100, 7, 500];
    let (plogits, plabels) = (bench.upload(&logits), bench.upload(&labels));
    let (pd, ploss) = (bench.empty(rows * vocabulary * 4), bench.empty(rows * 4));
    let arguments = Arguments::new().pointer(plogits).pointer(plabels).pointer(pd).pointer(ploss);
    bench.clean("cross_entropy", [rows as u32, 1, 1], [256, 1, 1], 0, &arguments.int(vocabulary as i32));
    let logits = widened(&logits);
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (row, &label) in logits.chunks(vocabulary).zip(&labels) {
        let log_sum_exp = row.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
        losses.push(if label < 0 { 0.0 } else { log_sum_exp - f64::from(row[label as usize]) });
        for (at, &value) in row.iter().enumerate() {
            let p = (f64::from(value) - log_sum_exp).exp();
            gradients.push(if label < 0 { 0.0 } else { p - f64::from(u8::from(at as i64 == label)) });
        }
    }
    close("loss", &bench.download::<f32>(ploss, rows), &losses, |v| v.abs() * 2e-6 + 1e-6);
    close("d_logits", &bench.download::<f32>(pd, rows * vocabulary), &gradients, |v| v.abs() * 1e-5 + 1e-7);
}

#[test]
fn ragged_embedding_leaves_prompt_rows_alone() {
    let (prompt, pieces) = (3usize, 5usize);
    let Some(mut bench) = Bench::new("rows", &[]) else { return };
    let offsets = [0i32, 1, 8, 8 + 4];
    let ids: Vec<i32> = (0..12).map(|at| (at * 7) % 10).collect();
    let table: Vec<u32> = (0..10 * pieces as u32 * 4).collect();
    let rows = 12 + 3 * prompt;
    let (pids, poffsets, ptable) = (bench.upload(&ids), bench.upload(&offsets), bench.upload(&table));
    let pout = bench.upload(&vec![u32::MAX; rows * pieces * 4]);
    let arguments = Arguments::new().pointer(pids).pointer(poffsets).pointer(ptable).pointer(pout);
    bench.clean("embed_ragged", [7, 3, 1], [32, 1, 1], 0, &arguments.int(prompt as i32).int(pieces as i32));
    let out = bench.download::<u32>(pout, rows * pieces * 4);
    let mut expected = vec![u32::MAX; rows * pieces * 4];
    for example in 0..3 {
        for token in offsets[example]..offsets[example + 1] {
            let to = (token as usize + (example + 1) * prompt) * pieces * 4;
            let from = ids[token as usize] as usize * pieces * 4;
            expected[to..to + pieces * 4].copy_from_slice(&table[from..from + pieces * 4]);
        }
    }
    assert_eq!(out, expected);
}

/// Philox4x32-10, straight from its definition.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (a, b) = (u64::from(counter[0]) * 0xd251_1f53, u64::from(counter[2]) * 0xcd9e_8d57);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[test]
fn dropout_draws_what_philox_defines() {
    // The first known-answer vector of the generator's authors.
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let n = 1003usize;
    let Some(mut bench) = Bench::new("rows", &[]) else { return };
    let x = Draw(1).floats(n);
    let (px, py) = (bench.upload(&x), bench.empty(n * 4));
    let arguments =
        Arguments::new().pointer(px).pointer(py).int(n as i32).int(77).int(99).int(6554).float(1.0 / 0.9);
    bench.clean("dropout", [1, 1, 1], [128, 1, 1], 0, &arguments);
    let y = bench.download::<f32>(py, n);
    for (at, &value) in y.iter().enumerate() {
        let word = philox([at as u32 / 8, 0, 0, 0], [77, 99])[at % 8 / 2] >> (16 * (at % 2)) & 0xffff;
        assert_eq!(value, if word >= 6554 { x[at] * (1.0 / 0.9) } else { 0.0 }, "{at}");
    }
}

#[test]
fn prompt_mix_agrees_with_f64_for_one_and_many_sources() {
    for sources in [1usize, 7, 300] {
        let (examples, m, d) = (3usize, 4usize, 72usize);
        let Some(mut bench) = Bench::new("rows", &[]) else { return };
        let mut draw = Draw(sources as u64);
        let (scores, prompts, target) =
            (draw.floats(examples * sources), draw.floats(sources * m * d), draw.floats(m * d));
        let (ps, pp, pt) = (bench.upload(&scores), bench.upload(&prompts), bench.upload(&target));
        let (pa, pz) = (bench.empty(examples * sources * 4), bench.empty(examples * m * d * 4));
        let arguments = Arguments::new().pointer(ps).pointer(pp).pointer(pt).pointer(pa).pointer(pz);
        let arguments = arguments.int(sources as i32).int(m as i32).int(d as i32);
        bench.clean("prompt_mix", [m as u32, examples as u32, 1], [64, 1, 1], sources as u32 * 4, &arguments);
        let mut weights = Vec::new();
        for row in scores.chunks(sources) {
            let sum: f64 = row.iter().map(|&score| f64::from(score).exp()).sum();
            weights.extend(row.iter().map(|&score| f64::from(score).exp() / sum));
        }
        let z: Vec<f64> = (0..examples * m * d)
            .map(|at| {
                let (example, inner) = (at / (m * d), at % (m * d));
                let mixed: f64 = (0..sources)
                    .map(|j| weights[example * sources + j] * f64::from(prompts[j * m * d + inner]))
                    .sum();
                f64::from(target[inner]) + mixed
            })
            .collect();
        close("a", &bench.download::<f32>(pa, examples * sources), &weights, |v| {
            v * (sum_error(sources) + 1e-6)
        });
        close("Z", &bench.download::<f32>(pz, examples * m * d), &z, |_| 2.0 * sum_error(sources + 8));
    }
}

#[test]
fn the_optimizer_clips_steps_and_refuses_bad_gradients() {
    let n = 5000usize;
    let Some(mut bench) = Bench::new("rows", &[]) else { return };
    let mut draw = Draw(8);
    let (p, gradient) = (draw.floats(n), draw.floats(n));
    let (pp, pg) = (bench.upload(&p), bench.upload(&gradient));
    let (pm, pv) = (bench.upload(&vec![0f32; n]), bench.upload(&vec![0f32; n]));
    let (psums, pbad, prate) = (bench.empty(8 * 4), bench.upload(&[0i32]), bench.upload(&[0.1f32, 1.0]));
    let norm = Arguments::new().pointer(pg).pointer(psums).pointer(pbad).int(n as i32);
    bench.clean("gradient_norm", [8, 1, 1], [128, 1, 1], 0, &norm);
    let step =
        Arguments::new().pointer(pp).pointer(pm).pointer(pv).pointer(pg).pointer(psums).int(8).pointer(pbad);
    let step = step.pointer(prate).float(1.0).float(0.01).int(n as i32);
    bench.clean("adamw", [4, 1, 1], [256, 1, 1], 0, &step);
    let total = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    let expected: Vec<f64> = p
        .iter()
        .zip(&gradient)
        .map(|(&p, &g)| {
            let g = f64::from(g) / total.max(1.0);
            // At the first step both moments are fixed up to g and g^2.
            f64::from(p) * (1.0 - 0.1 * 0.01) - 0.1 * g / (g.abs() + 1e-8)
        })
        .collect();
    // 1 - 0.999 is known to one part in 10^4 of f32's places, and its root is divided by.
    close("p", &bench.download::<f32>(pp, n), &expected, |_| 1e-4);
    // One bad number, and nothing moves.
    let mut bad = gradient.clone();
    bad[4321] = f32::NAN;
    let pg = bench.upload(&bad);
    let before = bench.download::<u32>(pp, n);
    let norm = Arguments::new().pointer(pg).pointer(psums).pointer(pbad).int(n as i32);
    bench.clean("gradient_norm", [8, 1, 1], [128, 1, 1], 0, &norm);
    assert_eq!(bench.download::<i32>(pbad, 1), [1]);
    bench.clean("adamw", [4, 1, 1], [256, 1, 1], 0, &step);
    assert_eq!(bench.download::<u32>(pp, n), before);
}

#[test]
fn the_highest_logit_is_picked_and_ties_go_low() {
    let Some(mut bench) = Bench::new("rows", &[]) else { return };
    let mut logits = Draw(2).floats(1000);
    logits[700] = 2.0;
    logits[300] = 2.0;
    let (plogits, pbest) = (bench.upload(&logits), bench.upload(&[0u64]));
    let arguments = Arguments::new().pointer(plogits).pointer(pbest).int(1000);
    bench.clean("pick_highest", [3, 1, 1], [64, 1, 1], 0, &arguments);
    assert_eq!(u32::MAX - bench.download::<u64>(pbest, 1)[0] as u32, 300);
}
