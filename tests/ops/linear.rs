//! Projections after a norm, sublayers' ends and the feed-forward: z = r·x W^T, x + mask(y W^T),
//! x + mask(mask(act(r·x W_in^T)) W_out^T), and their gradients.

use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Weight};
use promptmix::backend::{
    Activation, Batch, Device, DropoutStep, FeedForward, FeedForwardBackward, FeedForwardOps, Format,
    LinearOps, Projection, ProjectionBackward, Readers, Residual, ResidualProjection,
    ResidualProjectionBackward, Scope, Side, Site, SiteKind,
};

use crate::operands::{batch, bound, close, cpu, dot, mask_of, masks, narrowed, numbers, rows};

const EPSILON: f64 = 1e-6;

/// One row block, several, and rows on both sides of a vector's sixteen.
const LENGTHS: [&[(usize, usize)]; 4] =
    [&[(1, 1)], &[(5, 3), (1, 12), (40, 1)], &[(9, 17)], &[(99, 130), (1, 1), (130, 90)]];
const PROMPT_LENGTH: usize = 3;

/// x W^T, row by row.
fn times_transposed(x: &[f64], weight: &[f64], input: usize) -> Vec<f64> {
    let row = |x: &[f64]| weight.chunks_exact(input).map(|weight| dot(x, weight)).collect::<Vec<f64>>();
    x.chunks_exact(input).flat_map(row).collect()
}

/// dz W, row by row.
fn times(dz: &[f64], weight: &[f64], out: usize, input: usize) -> Vec<f64> {
    let row = |dz: &[f64]| -> Vec<f64> {
        (0..input).map(|column| (0..out).map(|o| dz[o] * weight[o * input + column]).sum()).collect()
    };
    dz.chunks_exact(out).flat_map(row).collect()
}

fn reciprocal_rms(x: &[f64], width: usize) -> Vec<f64> {
    x.chunks_exact(width).map(|x| (dot(x, x) / width as f64 + EPSILON).powf(-0.5)).collect()
}

/// r·x, row by row.
fn normalised(x: &[f64], r: &[f64], width: usize) -> Vec<f64> {
    x.chunks_exact(width).zip(r).flat_map(|(x, r)| x.iter().map(move |x| x * r)).collect()
}

/// r·g - r³·(<g, x> / D)·x: what `g`, the gradient of r·x, is as one of x.
fn through_norm(g: &[f64], x: &[f64], r: &[f64], width: usize) -> Vec<f64> {
    let rows = g.chunks_exact(width).zip(x.chunks_exact(width)).zip(r);
    rows.flat_map(|((g, x), &r)| {
        let pull = r.powi(3) * dot(g, x) / width as f64;
        g.iter().zip(x).map(move |(g, x)| r * g - pull * x)
    })
    .collect()
}

fn product(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn weight(cpu: &Cpu<f32>, values: &[f64], out: usize, input: usize, readers: Readers) -> Result<Weight<f32>> {
    cpu.weight(narrowed(values), out, input, readers)
}

/// r of `x` in the op's own format, so that what is compared is the op alone.
fn norm(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value as f32)).collect()
}

/// The packed rows of a scope: all, or each example's prompt.
fn scoped(batch: &Batch, side: Side, scope: Scope) -> Vec<usize> {
    (0..batch.examples()).flat_map(|b| batch.scoped_range(side, scope, b)).collect()
}

fn check_project(
    lengths: &[(usize, usize)],
    side: Side,
    out: usize,
    input: usize,
    readers: Readers,
) -> Result<()> {
    let (cpu, batch) = (cpu(), batch(lengths, PROMPT_LENGTH));
    let count = batch.rows(side);
    let what = format!("{side:?} rows of {lengths:?}, {out} x {input}, {readers:?}");
    let x = numbers(1, count * input, 1.0);
    let r = norm(&reciprocal_rms(&x, input));
    let w = numbers(2, out * input, (input as f64).powf(-0.5));
    let on_device = weight(&cpu, &w, out, input, readers)?;
    let residual = Residual { x: rows(&cpu, &x, input)?, r: rows(&cpu, &r, 1)? };
    let mut z = cpu.rows(count, out, Format::Operand)?;
    cpu.project(Projection { batch: &batch, side, input: &residual, weight: &on_device }, &mut z)?;
    let expected = times_transposed(&normalised(&x, &r, input), &w, input);
    close(&format!("z of {what}"), &cpu.read(&z)?, &expected, bound(input));

    let scopes: &[Scope] = if side == Side::Encoder { &[Scope::All, Scope::Prompt] } else { &[Scope::All] };
    for &scope in scopes {
        let scoped = scoped(&batch, side, scope);
        let dz = numbers(3, scoped.len() * out, 1.0);
        let before = numbers(4, count * input, 1.0);
        let g = times(&dz, &w, out, input);
        let of_scope = |values: &[f64], width: usize| -> Vec<f64> {
            scoped.iter().flat_map(|row| values[row * width..(row + 1) * width].to_vec()).collect()
        };
        let gradient = through_norm(&g, &of_scope(&x, input), &of_scope(&r, 1), input);
        let mut expected = before.clone();
        for (row, gradient) in scoped.iter().zip(gradient.chunks_exact(input)) {
            let expected = &mut expected[row * input..(row + 1) * input];
            expected.iter_mut().zip(gradient).for_each(|(expected, gradient)| *expected += gradient);
        }
        let mut d_x = rows(&cpu, &before, input)?;
        let dz = rows(&cpu, &dz, out)?;
        let of = ProjectionBackward {
            batch: &batch,
            side,
            scope,
            dz: &dz,
            weight: &on_device,
            input: &residual,
            below: None,
        };
        cpu.project_backward(of, &mut d_x)?;
        close(&format!("d_x of {what}, {scope:?}"), &cpu.read(&d_x)?, &expected, bound(out + input));
    }
    Ok(())
}

/// Widths from 3 on: of a row of 1 a norm leaves nothing but the sign, and its gradient is all cancellation.
#[test]
fn projections() -> Result<()> {
    for lengths in LENGTHS {
        for (side, readers) in [(Side::Encoder, Readers::Many), (Side::Decoder, Readers::Few)] {
            for (out, input) in [(1, 5), (13, 3), (129, 17), (70, 33), (15, 515)] {
                check_project(lengths, side, out, input, readers)?;
            }
        }
    }
    Ok(())
}

fn check_add_project(
    lengths: &[(usize, usize)],
    side: Side,
    out: usize,
    input: usize,
    probability: f64,
) -> Result<()> {
    let (cpu, batch) = (cpu(), batch(lengths, PROMPT_LENGTH));
    let count = batch.rows(side);
    let dropout = DropoutStep::new(probability, 5, &[11]);
    let mask = mask_of(&dropout, Site::new(side, SiteKind::SelfAttentionOutput, 2));
    let readers = if side == Side::Encoder { Readers::Many } else { Readers::Few };
    let what = format!("{side:?} rows of {lengths:?}, {out} x {input}, dropout {probability}");
    let (y, x) = (numbers(1, count * input, 1.0), numbers(2, count * out, 1.0));
    let w = numbers(3, out * input, (input as f64).powf(-0.5));
    let on_device = weight(&cpu, &w, out, input, readers)?;
    let multipliers = masks(&batch, side, mask, out);
    let expected = sum(&x, &product(&multipliers, &times_transposed(&y, &w, input)));
    let mut next = Residual::new(&cpu, count, out)?;
    let (y, x) = (rows(&cpu, &y, input)?, rows(&cpu, &x, out)?);
    let of =
        ResidualProjection { batch: &batch, side, y: &y, weight: &on_device, mask, epsilon: EPSILON, x: &x };
    cpu.add_project(of, &mut next)?;
    close(&format!("x_next of {what}"), &cpu.read(&next.x)?, &expected, bound(input));
    let r = reciprocal_rms(&expected, out);
    close(&format!("r_next of {what}"), &cpu.read(&next.r)?, &r, bound(input + out));

    let d_x = numbers(4, count * out, 1.0);
    let expected = times(&product(&multipliers, &d_x), &w, out, input);
    let mut d_y = cpu.rows(count, input, Format::Operand)?;
    let d_x = &rows(&cpu, &d_x, out)?;
    let of = ResidualProjectionBackward { batch: &batch, side, d_x, weight: &on_device, mask, y: None };
    cpu.add_project_backward(of, &mut d_y)?;
    close(&format!("d_y of {what}"), &cpu.read(&d_y)?, &expected, bound(out));
    Ok(())
}

#[test]
fn ends_of_sublayers() -> Result<()> {
    for lengths in LENGTHS {
        for side in [Side::Encoder, Side::Decoder] {
            for (out, input, probability) in [(7, 3, 0.0), (33, 70, 0.3), (129, 15, 0.1), (17, 520, 0.0)] {
                check_add_project(lengths, side, out, input, probability)?;
            }
        }
    }
    Ok(())
}

/// The activation of both pre-activations and its derivatives by them; ReLU has one.
fn activate(activation: Activation, z: [f64; 2]) -> (f64, [f64; 2]) {
    let (value, slope) = match activation {
        Activation::Relu => return (z[0].max(0.0), [f64::from(u8::from(z[0] > 0.0)), 0.0]),
        Activation::GatedSilu => {
            let sigmoid = 1.0 / (1.0 + (-z[0]).exp());
            (z[0] * sigmoid, sigmoid + z[0] * sigmoid * (1.0 - sigmoid))
        }
        _ => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (root * (z[0] + 0.044_715 * z[0].powi(3))).tanh();
            let inner = root * (1.0 + 3.0 * 0.044_715 * z[0].powi(2));
            (0.5 * z[0] * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * z[0] * (1.0 - tanh * tanh) * inner)
        }
    };
    (value * z[1], [slope * z[1], value])
}

fn check_feed_forward(
    lengths: &[(usize, usize)],
    side: Side,
    activation: Activation,
    width: usize,
    hidden: usize,
    probability: f64,
) -> Result<()> {
    let (cpu, batch) = (cpu(), batch(lengths, PROMPT_LENGTH));
    let count = batch.rows(side);
    let dropout = DropoutStep::new(probability, 4, &[3]);
    let [inner_mask, output_mask] = [SiteKind::FeedForward, SiteKind::FeedForwardOutput]
        .map(|kind| mask_of(&dropout, Site::new(side, kind, 1)));
    let readers = if side == Side::Encoder { Readers::Many } else { Readers::Few };
    let what =
        format!("{activation:?}, {side:?} rows of {lengths:?}, D {width}, F {hidden}, dropout {probability}");
    let projections = activation.projections();
    let pre_width = projections * hidden;
    let x = numbers(1, count * width, 1.0);
    let r = norm(&reciprocal_rms(&x, width));
    let w_in = numbers(2, pre_width * width, (width as f64).powf(-0.5));
    let w_out = numbers(3, width * hidden, (hidden as f64).powf(-0.5));
    let (inner, outer) = (masks(&batch, side, inner_mask, hidden), masks(&batch, side, output_mask, width));

    let z = times_transposed(&normalised(&x, &r, width), &w_in, width);
    let activated: Vec<(f64, [f64; 2])> = z
        .chunks_exact(pre_width)
        .flat_map(|z| (0..hidden).map(|f| activate(activation, [z[f], z[pre_width - hidden + f]])))
        .collect();
    let values: Vec<f64> = activated.iter().zip(&inner).map(|((value, _), mask)| value * mask).collect();
    let x_next = sum(&x, &product(&outer, &times_transposed(&values, &w_out, hidden)));

    let d_next = numbers(4, count * width, 1.0);
    let d_values = product(&inner, &times(&product(&outer, &d_next), &w_out, width, hidden));
    let mut dz = vec![0.0; count * pre_width];
    for (element, ((_, slopes), d_value)) in activated.iter().zip(&d_values).enumerate() {
        let (row, f) = (element / hidden, element % hidden);
        for (projection, slope) in slopes.iter().enumerate().take(projections) {
            dz[row * pre_width + projection * hidden + f] = d_value * slope;
        }
    }
    let d_x = sum(&d_next, &through_norm(&times(&dz, &w_in, pre_width, width), &x, &r, width));

    let w_in = weight(&cpu, &w_in, pre_width, width, readers)?;
    let w_out = weight(&cpu, &w_out, width, hidden, readers)?;
    let layer = FeedForward {
        batch: &batch,
        side,
        w_in: &w_in,
        w_out: &w_out,
        activation,
        inner_mask,
        output_mask,
        epsilon: EPSILON,
    };
    let input = Residual { x: rows(&cpu, &x, width)?, r: rows(&cpu, &r, 1)? };
    let (mut next, mut unsaved) = (Residual::new(&cpu, count, width)?, Residual::new(&cpu, count, width)?);
    let saved = cpu.feed_forward(&layer, &input, &mut next, true)?;
    let bound = bound(2 * width + 2 * hidden);
    close(&format!("x_next of {what}"), &cpu.read(&next.x)?, &x_next, bound);
    close(&format!("r_next of {what}"), &cpu.read(&next.r)?, &reciprocal_rms(&x_next, width), bound);
    let nothing = cpu.feed_forward(&layer, &input, &mut unsaved, false)?;
    assert!(nothing.is_none(), "{what}: nothing kept that was not asked for");
    assert_eq!(cpu.read(&unsaved.x)?, cpu.read(&next.x)?, "{what}: the same numbers with nothing kept");

    let mut d_rows = rows(&cpu, &d_next, width)?;
    let saved = saved.expect("kept");
    let from = FeedForwardBackward { saved: &saved, input: &input, x_next: &next.x };
    cpu.feed_forward_backward(&layer, from, &mut d_rows)?;
    close(&format!("d_x of {what}"), &cpu.read(&d_rows)?, &d_x, bound);
    Ok(())
}

#[test]
fn feed_forwards() -> Result<()> {
    for lengths in LENGTHS {
        for side in [Side::Encoder, Side::Decoder] {
            for activation in [Activation::Relu, Activation::GatedGelu, Activation::GatedSilu] {
                for (width, hidden, probability) in
                    [(5, 1, 0.0), (17, 65, 0.25), (9, 515, 0.0), (70, 12, 0.1)]
                {
                    check_feed_forward(lengths, side, activation, width, hidden, probability)?;
                }
            }
        }
    }
    Ok(())
}

/// A row's numbers are the same bytes whether it comes alone or among many, whatever the cut of rows.
#[test]
fn a_row_does_not_depend_on_the_others() -> Result<()> {
    let (cpu, width, out) = (cpu(), 600, 70);
    for readers in [Readers::Many, Readers::Few] {
        let w = numbers(2, out * width, (width as f64).powf(-0.5));
        let on_device = weight(&cpu, &w, out, width, readers)?;
        let values = numbers(1, 400 * width, 1.0);
        let of_first = |count: usize| -> Result<Vec<f64>> {
            let batch = &batch(&[(1, count)], 1);
            let x = rows(&cpu, &values[..count * width], width)?;
            let input = &Residual { x, r: rows(&cpu, &vec![1.0; count], 1)? };
            let mut z = cpu.rows(count, out, Format::Operand)?;
            cpu.project(Projection { batch, side: Side::Decoder, input, weight: &on_device }, &mut z)?;
            Ok(cpu.read(&z)?[..2 * out].to_vec())
        };
        let expected = of_first(400)?;
        for count in [2, 3, 16, 17, 64, 65, 192, 193, 300] {
            assert_eq!(of_first(count)?, expected, "{readers:?}: {count} rows");
        }
    }
    Ok(())
}
