//! Rows that enter a stack, x = mask(E\[id\]) with r = 1 / rms(x), rows that leave it, h = mask(x·r·gain·scale), and their
//! gradients.

use promptmix::Result;
use promptmix::backend::{
    Batch, Device, DropoutStep, Embedding, EmbeddingOps, Example, FinalNorm, FinalNormBackward, Format,
    NormOps, Readers, Residual, Scope, Side, Site, SiteKind,
};

use crate::operands::{batch, bound, close, cpu, dot, mask_of, masks, narrowed, numbers, rows};
use crate::random::Random;

const EPSILON: f64 = 1e-6;

fn reciprocal_rms(x: &[f64], width: usize) -> Vec<f64> {
    x.chunks_exact(width).map(|x| (dot(x, x) / width as f64 + EPSILON).powf(-0.5)).collect()
}

fn check_embed(lengths: &[(usize, usize)], width: usize, probability: f64) -> Result<()> {
    let (cpu, vocabulary, prompt_length) = (cpu(), 37, 4);
    let mut random = Random::new(3);
    let mut ids =
        |count: usize| -> Vec<u32> { (0..count).map(|_| random.below(vocabulary) as u32).collect() };
    let examples: Vec<Example> = (0..)
        .zip(lengths)
        .map(|(index, &(n, t))| Example { source: ids(n), target: ids(t), index, ..Example::default() })
        .collect();
    let batch = Batch::pack(&examples, prompt_length, 5, vocabulary).expect("a batch");
    let dropout = DropoutStep::new(probability, 1, &[9]);
    let table = numbers(1, vocabulary * width, 1.0);
    let of = |id: u32| table[id as usize * width..(id as usize + 1) * width].to_vec();
    for side in [Side::Encoder, Side::Decoder] {
        let what = format!("{side:?} rows of {lengths:?}, D {width}, dropout {probability}");
        let mask = mask_of(&dropout, Site::new(side, SiteKind::Embedding, 0));
        let count = batch.rows(side);
        let multipliers = masks(&batch, side, mask, width);
        // What stands in the prompt rows stays; token rows are overwritten.
        let before = numbers(2, count * width, 1.0);
        let mut expected = before.clone();
        let mut norms = vec![77.0; count];
        let unwritten = rows(&cpu, &norms, 1)?;
        for (b, example) in examples.iter().enumerate() {
            let first = batch.range(side, b).start;
            let (skip, ids) = match side {
                Side::Encoder => (prompt_length, example.source.clone()),
                // Shifted right: a decoder starts with its start token.
                Side::Decoder => (0, [&[5][..], &example.target[..example.target.len() - 1]].concat()),
            };
            for (token, id) in ids.into_iter().enumerate() {
                let row = first + skip + token;
                let columns = row * width..(row + 1) * width;
                let x: Vec<f64> =
                    of(id).iter().zip(&multipliers[columns.clone()]).map(|(x, mask)| x * mask).collect();
                norms[row] = reciprocal_rms(&x, width)[0];
                expected[columns].copy_from_slice(&x);
            }
        }
        let on_device = cpu.weight(narrowed(&table), vocabulary, width, Readers::Lookup)?;
        let mut output = Residual { x: rows(&cpu, &before, width)?, r: unwritten };
        let of = Embedding { table: &on_device, batch: &batch, side, mask, epsilon: EPSILON };
        cpu.embed(of, &mut output)?;
        close(&format!("x of {what}"), &cpu.read(&output.x)?, &expected, bound(1));
        close(&format!("r of {what}"), &cpu.read(&output.r)?, &norms, bound(width));
    }

    let mask = mask_of(&dropout, Site::new(Side::Encoder, SiteKind::Embedding, 0));
    let multipliers = masks(&batch, Side::Encoder, mask, width);
    let d_x = numbers(4, batch.rows(Side::Encoder) * width, 1.0);
    let mut d_rows = rows(&cpu, &d_x, width)?;
    cpu.embed_backward(&batch, mask, &mut d_rows)?;
    let actual = cpu.read(&d_rows)?;
    for b in 0..batch.examples() {
        let prompt = batch.scoped_range(Side::Encoder, Scope::Prompt, b);
        let span = prompt.start * width..prompt.end * width;
        let expected: Vec<f64> =
            d_x[span.clone()].iter().zip(&multipliers[span.clone()]).map(|(d, mask)| d * mask).collect();
        close(
            &format!("d_x of the prompt of {b}, dropout {probability}"),
            &actual[span],
            &expected,
            bound(1),
        );
    }
    Ok(())
}

#[test]
fn rows_that_enter() -> Result<()> {
    for (width, probability) in [(1, 0.0), (7, 0.5), (33, 0.1), (130, 0.0)] {
        check_embed(&[(1, 1)], width, probability)?;
        check_embed(&[(9, 2), (1, 5), (200, 1), (30, 230)], width, probability)?;
    }
    Ok(())
}

fn check_final_norm(
    lengths: &[(usize, usize)],
    side: Side,
    width: usize,
    with_norm_weight: bool,
    scale: f64,
    probability: f64,
) -> Result<()> {
    let (cpu, batch) = (cpu(), batch(lengths, 2));
    let count = batch.rows(side);
    let dropout = DropoutStep::new(probability, 6, &[2]);
    let mask = mask_of(&dropout, Site::new(side, SiteKind::FinalNorm, 0));
    let multipliers = masks(&batch, side, mask, width);
    let what =
        format!("{side:?} rows of {lengths:?}, D {width}, gain {with_norm_weight}, dropout {probability}");
    let x = numbers(1, count * width, 2.0);
    let r: Vec<f64> = reciprocal_rms(&x, width).iter().map(|&r| f64::from(r as f32)).collect();
    let norm_weight = if with_norm_weight { numbers(2, width, 1.0) } else { vec![1.0; width] };
    let factor = |element: usize| norm_weight[element % width] * scale * multipliers[element];
    let expected: Vec<f64> = (0..x.len()).map(|i| x[i] * r[i / width] * factor(i)).collect();
    let d_h = numbers(3, count * width, 1.0);
    let g: Vec<f64> = (0..x.len()).map(|i| d_h[i] * factor(i)).collect();
    let d_x: Vec<f64> = (0..x.len())
        .map(|i| {
            let row = i / width;
            let span = row * width..(row + 1) * width;
            let mean = dot(&g[span.clone()], &x[span]) / width as f64;
            r[row] * g[i] - r[row].powi(3) * mean * x[i]
        })
        .collect();

    let norm_weight = with_norm_weight
        .then(|| cpu.weight(narrowed(&norm_weight), 1, width, Readers::Lookup))
        .transpose()?;
    let input = &Residual { x: rows(&cpu, &x, width)?, r: rows(&cpu, &r, 1)? };
    let of = || FinalNorm { batch: &batch, side, input, norm_weight: norm_weight.as_ref(), scale, mask };
    let mut h = cpu.rows(count, width, Format::Operand)?;
    cpu.final_norm(of(), &mut h)?;
    close(&format!("h of {what}"), &cpu.read(&h)?, &expected, bound(1));
    let mut d_rows = cpu.rows(count, width, Format::Residual)?;
    let d_h = rows(&cpu, &d_h, width)?;
    cpu.final_norm_backward(of(), FinalNormBackward { d_h: &d_h, below: None }, &mut d_rows)?;
    close(&format!("d_x of {what}"), &cpu.read(&d_rows)?, &d_x, bound(width));
    Ok(())
}

/// Widths from 3 on: of a row of 1 a norm leaves nothing but the sign, and its gradient is all cancellation.
#[test]
fn rows_that_leave() -> Result<()> {
    for lengths in [&[(1, 1)][..], &[(9, 2), (1, 5)], &[(120, 210), (90, 1)]] {
        for side in [Side::Encoder, Side::Decoder] {
            for (width, with_norm_weight, scale, probability) in
                [(3, false, 1.0, 0.0), (7, true, 0.125, 0.5), (33, false, 1.0, 0.1), (513, true, 0.044, 0.0)]
            {
                check_final_norm(lengths, side, width, with_norm_weight, scale, probability)?;
            }
        }
    }
    Ok(())
}
