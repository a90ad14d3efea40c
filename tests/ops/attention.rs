//! Self attention: o_i = sum_j mask_ij softmax_j(q_i · k_j + bias\[j - i\]) v_j, and its gradients.

use promptmix::Result;
use promptmix::backend::{
    Batch, Device, DropoutStep, Format, Heads, Mask, Scope, SelfAttention, SelfAttentionBackward,
    SelfAttentionOps, Side, Site, SiteKind,
};

use crate::operands::{
    add_scaled, batch, bound, close, cpu, dot, mask_of, mask_row, narrowed, numbers, rows, softmax,
};

/// The bias reaches less far than the longest example.
const MAX_DISTANCE: usize = 20;

struct Reference {
    o: Vec<f64>,
    log_sum_exp: Vec<f64>,
    d_qkv: Vec<f64>,
}

fn reference(
    batch: &Batch,
    side: Side,
    heads: Heads,
    bias: &[Vec<f64>],
    mask: Mask<'_>,
    qkv: &[f64],
    d_o: &[f64],
) -> Reference {
    let (count, width, total, rows) = (heads.count, heads.width, heads.total(), batch.rows(side));
    let mut result = Reference {
        o: vec![0.0; rows * total],
        log_sum_exp: vec![0.0; rows * count],
        d_qkv: vec![0.0; rows * 3 * total],
    };
    for b in 0..batch.examples() {
        let (first, n) = (batch.range(side, b).start, batch.range(side, b).len());
        for (head, bias) in bias.iter().enumerate() {
            let column = head * width;
            let at = |row: usize, part: usize| {
                let start = (first + row) * 3 * total + part * total + column;
                start..start + width
            };
            for i in 0..n {
                let keys = if side == Side::Decoder { i + 1 } else { n };
                let score = |j: usize| {
                    let offset =
                        (j as isize - i as isize).clamp(-(MAX_DISTANCE as isize), MAX_DISTANCE as isize);
                    dot(&qkv[at(i, 0)], &qkv[at(j, 1)]) + bias[(offset + MAX_DISTANCE as isize) as usize]
                };
                let mut p: Vec<f64> = (0..keys).map(score).collect();
                result.log_sum_exp[(first + i) * count + head] = softmax(&mut p);
                let multipliers = mask_row(mask, head, batch.example_index(b), i, n);
                let out = (first + i) * total + column;
                let d_o = &d_o[out..out + width];
                let d_p: Vec<f64> = (0..keys).map(|j| multipliers[j] * dot(d_o, &qkv[at(j, 2)])).collect();
                let mean = dot(&d_p, &p);
                for j in 0..keys {
                    let saved = p[j] * multipliers[j];
                    add_scaled(&mut result.o[out..out + width], saved, &qkv[at(j, 2)]);
                    add_scaled(&mut result.d_qkv[at(j, 2)], saved, d_o);
                    let d_score = p[j] * (d_p[j] - mean);
                    add_scaled(&mut result.d_qkv[at(i, 0)], d_score, &qkv[at(j, 1)]);
                    add_scaled(&mut result.d_qkv[at(j, 1)], d_score, &qkv[at(i, 0)]);
                }
            }
        }
    }
    result
}

fn check(
    lengths: &[(usize, usize)],
    prompt_length: usize,
    side: Side,
    heads: Heads,
    probability: f64,
) -> Result<()> {
    let cpu = cpu();
    let batch = batch(lengths, prompt_length);
    let (count, total) = (batch.rows(side), heads.total());
    let longest = (0..batch.examples()).map(|b| batch.range(side, b).len()).max().unwrap_or(0);
    let dropout = DropoutStep::new(probability, 2, &[7]);
    let mask = mask_of(&dropout, Site::new(side, SiteKind::SelfAttention, 1));
    // Scores of deviation about 1.
    let qkv = numbers(1, count * 3 * total, (heads.width as f64).powf(-0.25));
    let d_o = numbers(2, count * total, 1.0);
    let bias: Vec<Vec<f64>> =
        (0..heads.count).map(|head| numbers(3 + head as u64, 2 * MAX_DISTANCE + 1, 1.0)).collect();
    let expected = reference(&batch, side, heads, &bias, mask, &qkv, &d_o);

    let bias = cpu.position_bias(bias.iter().map(|row| narrowed(row)).collect(), MAX_DISTANCE)?;
    let (qkv, d_o) = (rows(&cpu, &qkv, 3 * total)?, rows(&cpu, &d_o, total)?);
    let (mut o, mut log_sum_exp) =
        (cpu.rows(count, total, Format::Float)?, cpu.rows(count, heads.count, Format::Float)?);
    let of = SelfAttention { batch: &batch, side, heads, bias: &bias, mask };
    cpu.self_attention(&of, &qkv, &mut o, &mut log_sum_exp)?;
    let what = format!("{lengths:?} {side:?} {heads:?} dropout {probability}");
    let bound = bound(longest + heads.width);
    close(&format!("o of {what}"), &cpu.read(&o)?, &expected.o, bound);
    close(&format!("log-sum-exp of {what}"), &cpu.read(&log_sum_exp)?, &expected.log_sum_exp, bound);

    let mut scopes = vec![Scope::All];
    if side == Side::Encoder {
        scopes.push(Scope::Prompt);
    }
    for scope in scopes {
        let scoped: Vec<_> = (0..batch.examples()).map(|b| batch.scoped_range(side, scope, b)).collect();
        let expected: Vec<f64> = scoped
            .iter()
            .flat_map(|range| expected.d_qkv[range.start * 3 * total..range.end * 3 * total].to_vec())
            .collect();
        let mut d_qkv = cpu.rows(expected.len() / (3 * total), 3 * total, Format::Float)?;
        let from = SelfAttentionBackward { scope, qkv: &qkv, o: &o, log_sum_exp: &log_sum_exp, d_o: &d_o };
        cpu.self_attention_backward(&of, from, &mut d_qkv)?;
        let actual = cpu.read(&d_qkv)?;
        // Each of d_q, d_k and d_v by its own largest entry; one more sum over the rows.
        for (part, name) in ["d_q", "d_k", "d_v"].iter().enumerate() {
            let take = |all: &[f64]| -> Vec<f64> {
                all.chunks_exact(3 * total)
                    .flat_map(|row| row[part * total..(part + 1) * total].to_vec())
                    .collect()
            };
            close(&format!("{name} of {what} {scope:?}"), &take(&actual), &take(&expected), 2.0 * bound);
        }
    }
    Ok(())
}

const AWKWARD: [(usize, usize); 8] = [(1, 1), (2, 7), (6, 8), (7, 9), (8, 63), (62, 65), (64, 129), (300, 2)];

#[test]
fn encoder_rows_see_both_ways() -> Result<()> {
    for heads in [Heads { count: 3, width: 5 }, Heads { count: 2, width: 64 }, Heads { count: 1, width: 1 }] {
        for (prompt_length, probability) in [(1, 0.0), (9, 0.2)] {
            check(&AWKWARD, prompt_length, Side::Encoder, heads, probability)?;
        }
    }
    Ok(())
}

#[test]
fn decoder_rows_see_those_before() -> Result<()> {
    for heads in [Heads { count: 3, width: 5 }, Heads { count: 2, width: 64 }, Heads { count: 1, width: 1 }] {
        for probability in [0.0, 0.2] {
            check(&AWKWARD, 1, Side::Decoder, heads, probability)?;
        }
    }
    Ok(())
}

#[test]
fn one_row_alone_attends_to_itself() -> Result<()> {
    for probability in [0.0, 0.5] {
        check(&[(1, 1)], 1, Side::Decoder, Heads { count: 2, width: 3 }, probability)?;
    }
    Ok(())
}

/// More prompt rows than a tile of queries holds, and a single token after them.
#[test]
fn a_prompt_longer_than_a_tile() -> Result<()> {
    check(&[(1, 1), (5, 1)], 130, Side::Encoder, Heads { count: 2, width: 8 }, 0.1)?;
    Ok(())
}
