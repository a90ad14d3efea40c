//! The mixture: Z_b = P_tgt + sum_j a_j P_j with a = softmax(p_j · h / temperature), for every scorer.

use promptmix::Result;
use promptmix::backend::{
    Batch, Device, Example, Mix, MixOps, Mixing, OptimizerOps, PromptRows, Readers, Residual, Scorer, Side,
    StateLayout,
};

use crate::operands::{add_scaled, bound, close, cpu, dot, narrowed, numbers, rows, softmax};
use crate::random::Random;

#[derive(Clone, Copy, Debug)]
struct Sizes {
    sources: usize,
    length: usize,
    width: usize,
    bottleneck_dim: usize,
}

fn maximum<'a>(rows: impl Iterator<Item = &'a [f64]>, width: usize) -> Vec<f64> {
    rows.fold(vec![f64::NEG_INFINITY; width], |most, row| {
        most.iter().zip(row).map(|(a, b)| a.max(*b)).collect()
    })
}

fn check(scorer: Option<Scorer>, without_target: bool, standardized: bool, sizes: Sizes) -> Result<()> {
    let (cpu, temperature, vocabulary) = (cpu(), 3.0, 50);
    let Sizes { sources, length, width, bottleneck_dim } = sizes;
    let mixing = Mixing { scorer, temperature, without_target, layer_norm_epsilon: 1e-5 };
    let layout = StateLayout::new(&mixing, 1, length, width, bottleneck_dim, false);
    let layout = match scorer {
        Some(Scorer::Constant) => layout.with_logits(sources + usize::from(!without_target)),
        _ => layout,
    };
    let layout = if standardized { layout.with_standardized_inputs() } else { layout };
    let mut random = Random::new(5);
    let lengths = [1, 7, 2, 40];
    let examples: Vec<Example> = lengths
        .iter()
        .map(|&n| Example {
            source: (0..n).map(|_| random.below(vocabulary) as u32).collect(),
            target: vec![1],
            ..Example::default()
        })
        .collect();
    let batch = Batch::pack(&examples, length, 0, vocabulary).expect("a batch");
    let table = numbers(1, vocabulary * width, 1.0);
    let frozen = numbers(2, sources * length * width, 1.0);
    let values = numbers(3, layout.len(), (width as f64).powf(-0.5));
    let value = |name: &str| layout.range(name, 0).map(|range| &values[range]).unwrap_or(&[]);
    let target = value("target_prompts");
    let prompts: Vec<&[f64]> =
        frozen.chunks_exact(length * width).chain((!without_target).then_some(target)).collect();

    let (mut expected_a, mut expected_z) = (Vec::new(), Vec::new());
    for example in &examples {
        let mut x = maximum(example.source.iter().map(|&id| &table[id as usize * width..][..width]), width);
        add_scaled(&mut x, -1.0, value("input_mean"));
        x.iter_mut().zip(value("input_scale")).for_each(|(x, scale)| *x *= scale);
        let times = |weight: &[f64], x: &[f64]| -> Vec<f64> {
            weight.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
        };
        let v = match scorer {
            Some(Scorer::Bottleneck | Scorer::Token) => {
                let down: Vec<f64> =
                    times(value("w_down"), &x).iter().map(|u| u / (1.0 + (-u).exp())).collect();
                times(value("w_up"), &down)
            }
            Some(Scorer::Linear) => times(value("weight"), &x),
            _ => x,
        };
        let h = if value("norm_weight").is_empty() {
            v
        } else {
            let mean = v.iter().sum::<f64>() / width as f64;
            let variance = v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
            let scale = (variance + 1e-5).sqrt();
            let affine = value("norm_weight").iter().zip(value("norm_bias"));
            v.iter()
                .zip(affine)
                .map(|(v, (norm_weight, shift))| (v - mean) / scale * norm_weight + shift)
                .collect()
        };
        let mut z = if without_target { vec![0.0; length * width] } else { target.to_vec() };
        for m in 0..length {
            let row = m * width..(m + 1) * width;
            let a: Vec<f64> = match scorer {
                None => continue,
                Some(Scorer::Uniform) => vec![1.0 / prompts.len() as f64; prompts.len()],
                Some(Scorer::Constant) => {
                    let mut a = value("logits").to_vec();
                    softmax(&mut a);
                    a
                }
                Some(Scorer::Token) => {
                    let mut a: Vec<f64> =
                        prompts.iter().map(|p| dot(&p[row.clone()], &h) / temperature).collect();
                    softmax(&mut a);
                    a
                }
                Some(_) => {
                    let key = |prompt: &[f64]| maximum(prompt.chunks_exact(width), width);
                    let mut a: Vec<f64> = prompts.iter().map(|p| dot(&key(p), &h) / temperature).collect();
                    softmax(&mut a);
                    a
                }
            };
            for (prompt, a) in prompts.iter().zip(&a) {
                add_scaled(&mut z[row.clone()], *a, &prompt[row.clone()]);
            }
            if scorer == Some(Scorer::Token) || m == 0 {
                expected_a.extend(a);
            }
        }
        expected_z.extend(z);
    }

    let table = cpu.weight(narrowed(&table), vocabulary, width, Readers::Many)?;
    let frozen = scorer.map(|_| cpu.sources(&narrowed(&frozen), sources, length, width)).transpose()?;
    let state = cpu.state(&layout, &values, 1)?;
    let untouched = 77.0;
    let count = batch.rows(Side::Encoder);
    let x = rows(&cpu, &vec![untouched; count * width], width)?;
    let mut input = Residual { x, r: rows(&cpu, &vec![untouched; count], 1)? };
    let of = Mix { mixing: &mixing, sources: frozen.as_ref(), batch: &batch };
    let saved = cpu.mix(&of, &table, &state, PromptRows { input: &mut input, mask: None, epsilon: 1e-6 })?;
    let (x, r) = (cpu.read(&input.x)?, cpu.read(&input.r)?);
    let (mut norms, mut expected_norms) = (Vec::new(), Vec::new());
    let (mut z, mut rest) = (Vec::new(), Vec::new());
    for b in 0..batch.examples() {
        let range = batch.range(Side::Encoder, b);
        let end = range.start + length;
        z.extend_from_slice(&x[range.start * width..end * width]);
        rest.extend_from_slice(&x[end * width..range.end * width]);
        norms.extend_from_slice(&r[range.start..end]);
        rest.extend_from_slice(&r[end..range.end]);
    }
    let what = format!("{scorer:?}, without target {without_target}, {sizes:?}");
    let bound = bound(width + bottleneck_dim + sources);
    close(
        &format!("a of {what}"),
        &cpu.attention(&saved)?,
        &expected_a,
        if scorer.is_some() { bound } else { 0.0 },
    );
    close(&format!("Z of {what}"), &z, &expected_z, bound);
    for z in z.chunks_exact(width) {
        expected_norms.push((z.iter().map(|z| z * z).sum::<f64>() / width as f64 + 1e-6).sqrt().recip());
    }
    close(&format!("norms of {what}"), &norms, &expected_norms, self::bound(width));
    assert!(rest.iter().all(|&value| value == untouched), "{what}: token rows are left alone");
    Ok(())
}

#[test]
fn every_scorer_on_awkward_sizes() -> Result<()> {
    let scorers =
        [Scorer::Bottleneck, Scorer::Linear, Scorer::Dot, Scorer::Token, Scorer::Uniform, Scorer::Constant];
    for scorer in scorers {
        for without_target in [false, true] {
            for (sources, length, width, bottleneck_dim) in
                [(1, 1, 7, 1), (40, 7, 9, 8), (3, 9, 65, 7), (40, 1, 129, 65)]
            {
                for standardized in [false, scorer.reads_input()] {
                    check(
                        Some(scorer),
                        without_target,
                        standardized,
                        Sizes { sources, length, width, bottleneck_dim },
                    )?;
                }
            }
        }
    }
    Ok(())
}

/// Z is then the target prompt, bit by bit.
#[test]
fn a_plain_prompt_is_written_as_it_is() -> Result<()> {
    let cpu = cpu();
    let layout = StateLayout::new(&Mixing::plain(), 1, 9, 7, 1, false);
    let values = numbers(3, layout.len(), 1.0);
    let example = Example { source: vec![1], target: vec![1], ..Example::default() };
    let batch = Batch::pack(&[example], 9, 0, 2).expect("a batch");
    let table = cpu.weight(vec![0.5; 14], 2, 7, Readers::Many)?;
    let mut input = Residual::new(&cpu, 10, 7)?;
    let of = Mix { mixing: &Mixing::plain(), sources: None, batch: &batch };
    let output = PromptRows { input: &mut input, mask: None, epsilon: 1e-6 };
    let saved = cpu.mix(&of, &table, &cpu.state(&layout, &values, 1)?, output)?;
    assert_eq!(cpu.read(&input.x)?[..63], values);
    assert!(cpu.attention(&saved)?.is_empty());
    check(None, false, false, Sizes { sources: 0, length: 9, width: 7, bottleneck_dim: 1 })?;
    Ok(())
}

/// Rows 1 and 3 of the target prompt share the largest value of column 0: by its key the gradient reaches row 1 alone.
#[test]
fn a_tie_in_the_key_goes_to_the_lowest_row() -> Result<()> {
    let (cpu, length, width) = (cpu(), 4, 2);
    let mixing = Mixing {
        scorer: Some(Scorer::Dot),
        temperature: 1.0,
        without_target: false,
        layer_norm_epsilon: 1e-5,
    };
    let layout = StateLayout::new(&mixing, 1, length, width, 1, false);
    let values = [0.0, 0.1, 2.0, 0.2, -1.0, 0.9, 2.0, 0.3];
    let example = Example { source: vec![0], target: vec![1], ..Example::default() };
    let batch = Batch::pack(&[example], length, 0, 2).expect("a batch");
    let table = cpu.weight(vec![1.0, 0.5, 0.0, 0.0], 2, width, Readers::Many)?;
    let sources = cpu.sources(&[0.3; 8], 1, length, width)?;
    let mut state = cpu.state(&layout, &values, 1)?;
    let mut input = Residual::new(&cpu, 5, width)?;
    let of = Mix { mixing: &mixing, sources: Some(&sources), batch: &batch };
    let output = PromptRows { input: &mut input, mask: None, epsilon: 1e-6 };
    let saved = cpu.mix(&of, &table, &state, output)?;
    let a = cpu.attention(&saved)?;
    // Only row 2 of Z has a gradient: what arrives in other rows came by the key.
    let d_x = rows(&cpu, &[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], width)?;
    cpu.mix_backward(&of, &saved, &d_x, &mut state)?;
    // <d_z, P_j> is 0.3 for the source and -1 for the target; h = (1, 0.5).
    let d_score = a[1] * (-1.0 - (0.3 * a[0] - a[1]));
    let expected = [0.0, 0.0, d_score, 0.0, 1.0 + a[1], 0.5 * d_score, 0.0, 0.0];
    let gradient = cpu.read_gradient(&state)?;
    close("d_target", &gradient, &expected, bound(4));
    assert_eq!(gradient[6], 0.0, "the higher of the tied rows");
    assert!(d_score.abs() > 0.1);
    Ok(())
}
