//! Cross attention: o_i = sum_j mask_ij softmax_j(q_i · W_k h_j) W_v h_j per head, and its gradients.

use promptmix::Result;
use promptmix::backend::{
    CrossAttention, CrossAttentionBackward, CrossAttentionOps, Device, DropoutStep, Format, Heads, Readers,
    Side, Site, SiteKind,
};

use crate::operands::{
    add_scaled, batch, bound, close, cpu, dot, mask_of, mask_row, narrowed, numbers, rows, softmax,
};

fn check(lengths: &[(usize, usize)], heads: Heads, width: usize, probability: f64) -> Result<()> {
    let cpu = cpu();
    let batch = batch(lengths, 1);
    let (targets, sources) = (batch.rows(Side::Decoder), batch.rows(Side::Encoder));
    let (total, head_width) = (heads.total(), heads.width);
    let dropout = DropoutStep::new(probability, 2, &[7]);
    let mask = mask_of(&dropout, Site::new(Side::Decoder, SiteKind::CrossAttention, 1));
    let q = numbers(1, targets * total, (head_width as f64).powf(-0.5));
    let h = numbers(2, sources * width, 1.0);
    let d_o = numbers(3, targets * total, 1.0);
    let fan_in = (width as f64).powf(-0.5);
    let [w_k, w_v] = [4, 5].map(|seed| numbers(seed, total * width, fan_in));
    let d_h_before = numbers(6, sources * width, 1.0);

    let mut o = vec![0.0; targets * total];
    let (mut d_q, mut d_h) = (vec![0.0; targets * total], vec![0.0; sources * width]);
    for b in 0..batch.examples() {
        let (queries, keys) = (batch.range(Side::Decoder, b), batch.range(Side::Encoder, b));
        for head in 0..heads.count {
            let of_head = |row: usize| head * head_width + row;
            let project = |weight: &[f64], j: usize| -> Vec<f64> {
                let h = &h[j * width..(j + 1) * width];
                (0..head_width)
                    .map(|row| dot(&weight[of_head(row) * width..(of_head(row) + 1) * width], h))
                    .collect()
            };
            let k: Vec<Vec<f64>> = keys.clone().map(|j| project(&w_k, j)).collect();
            let v: Vec<Vec<f64>> = keys.clone().map(|j| project(&w_v, j)).collect();
            for i in queries.clone() {
                let span = i * total + of_head(0)..i * total + of_head(head_width);
                let mut p: Vec<f64> = k.iter().map(|k| dot(&q[span.clone()], k)).collect();
                softmax(&mut p);
                let multipliers = mask_row(mask, head, batch.example_index(b), i - queries.start, keys.len());
                let d_p: Vec<f64> =
                    v.iter().zip(&multipliers).map(|(v, m)| m * dot(&d_o[span.clone()], v)).collect();
                let mean = dot(&d_p, &p);
                for (j, row) in keys.clone().enumerate() {
                    let (dropped, d_score) = (p[j] * multipliers[j], p[j] * (d_p[j] - mean));
                    add_scaled(&mut o[span.clone()], dropped, &v[j]);
                    add_scaled(&mut d_q[span.clone()], d_score, &k[j]);
                    let d_h = &mut d_h[row * width..(row + 1) * width];
                    for inner in 0..head_width {
                        let weights = of_head(inner) * width..(of_head(inner) + 1) * width;
                        add_scaled(d_h, d_score * q[span.start + inner], &w_k[weights.clone()]);
                        add_scaled(d_h, dropped * d_o[span.start + inner], &w_v[weights]);
                    }
                }
            }
        }
    }

    let weight = |values: &[f64]| cpu.weight(narrowed(values), total, width, Readers::Many);
    let (w_k, w_v) = (weight(&w_k)?, weight(&w_v)?);
    let cross = CrossAttention { batch: &batch, heads, w_k: &w_k, w_v: &w_v, mask };
    let (q, h, d_o_rows) = (rows(&cpu, &q, total)?, rows(&cpu, &h, width)?, rows(&cpu, &d_o, total)?);
    let mut o_rows = cpu.rows(targets, total, Format::Float)?;
    let saved = cpu.cross_attention(&cross, &q, &h, &mut o_rows, true)?.expect("kept");
    let what = format!("{lengths:?} {heads:?} D {width} dropout {probability}");
    let longest = lengths.iter().map(|(n, t)| n + t).max().unwrap_or(0);
    let bound = bound(longest + total + width);
    close(&format!("o of {what}"), &cpu.read(&o_rows)?, &o, bound);
    for with_queries in [true, false] {
        let d_q_rows = with_queries.then(|| cpu.rows(targets, total, Format::Float));
        let mut d_q_rows = d_q_rows.transpose()?;
        let mut d_h_rows = rows(&cpu, &d_h_before, width)?;
        let from = CrossAttentionBackward { saved: &saved, q: &q, h: &h, o: &o_rows, d_o: &d_o_rows };
        cpu.cross_attention_backward(&cross, from, d_q_rows.as_mut(), &mut d_h_rows)?;
        if let Some(d_q_rows) = d_q_rows {
            close(&format!("d_q of {what}"), &cpu.read(&d_q_rows)?, &d_q, 2.0 * bound);
        }
        let added: Vec<f64> = d_h.iter().zip(&d_h_before).map(|(d_h, before)| d_h + before).collect();
        close(&format!("d_h of {what}"), &cpu.read(&d_h_rows)?, &added, 2.0 * bound);
    }
    let mut again = cpu.rows(targets, total, Format::Float)?;
    assert!(cpu.cross_attention(&cross, &q, &h, &mut again, false)?.is_none());
    assert_eq!(cpu.read(&again)?, cpu.read(&o_rows)?, "keeping changes nothing");
    Ok(())
}

/// Few targets: absorbed.
#[test]
fn short_targets() -> Result<()> {
    for (heads, width) in [(Heads { count: 3, width: 5 }, 13), (Heads { count: 2, width: 64 }, 65)] {
        for probability in [0.0, 0.2] {
            check(&[(1, 1), (6, 1), (7, 2), (8, 1), (62, 1), (64, 2), (128, 3)], heads, width, probability)?;
            check(&[(1, 1)], heads, width, probability)?;
        }
    }
    Ok(())
}

/// Many targets: through keys and values.
#[test]
fn long_targets() -> Result<()> {
    for (heads, width) in [(Heads { count: 3, width: 5 }, 13), (Heads { count: 2, width: 64 }, 65)] {
        for probability in [0.0, 0.2] {
            check(&[(1, 7), (6, 129), (7, 9), (8, 63), (62, 1), (64, 65)], heads, width, probability)?;
        }
    }
    Ok(())
}

#[test]
fn one_head_of_one_column() -> Result<()> {
    check(&[(9, 1), (1, 7)], Heads { count: 1, width: 1 }, 1, 0.0)?;
    Ok(())
}
