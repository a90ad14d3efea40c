//! Cross attention of few and of many targets: `kernels/cross_attention.cu` and `kernels/attention.cu`.

use promptmix::Result;
use promptmix::backend::{
    CrossAttention, CrossAttentionBackward, CrossAttentionOps, Device, Format, Heads, LinearOps, Readers,
    Residual, ResidualProjection, Side, SiteKind,
};
use promptmix::cuda::Precision;

use crate::device::{
    Bounds, Case, Place, Results, batch, device, dropout, follow, mask_of, matrix, numbers, roundings,
};

#[derive(Debug)]
struct Cross {
    lengths: Vec<(usize, usize)>,
    heads: Heads,
    width: usize,
    dropped: f64,
    layers: usize,
}

impl Case for Cross {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { heads, width, .. } = *self;
        let batch = batch(&self.lengths, 2, 50);
        let (targets, sources, total) = (batch.rows(Side::Decoder), batch.rows(Side::Encoder), heads.total());
        let dropout = dropout(self.dropped);
        let weight = |seed| backend.weight(matrix(seed, total, width), total, width, Readers::Many);
        let (w_k, w_v) = (weight(1)?, weight(2)?);
        let mask = mask_of(&dropout, Side::Decoder, SiteKind::CrossAttention);
        let cross = CrossAttention { batch: &batch, heads, w_k: &w_k, w_v: &w_v, mask };
        let q = numbers(3, targets * total, (heads.width as f64).powf(-0.5));
        let q = backend.place(&q, total, Format::Operand)?;
        let h = backend.place(&numbers(4, sources * width, 1.0), width, Format::Operand)?;
        let mut o = backend.rows(targets, total, Format::Operand)?;
        let saved = backend.cross_attention(&cross, &q, &h, &mut o, true)?.expect("kept");
        let d_o = backend.place(&numbers(5, targets * total, 1.0), total, Format::Operand)?;
        let mut d_q = backend.rows(targets, total, Format::ProjectionGradient)?;
        let mut d_h = backend.source_gradient(&batch, width)?;
        let from = |d_o| CrossAttentionBackward { saved: &saved, q: &q, h: &h, o: &o, d_o };
        backend.cross_attention_backward(&cross, from(&d_o), Some(&mut d_q), &mut d_h)?;
        // More layers than one launch sums, of which the last differs; the first decoder layer wants no d_q; a pass that is not
        // learnt from keeps nothing.
        let mut of_layers = backend.source_gradient(&batch, width)?;
        let other = backend.place(&numbers(7, targets * total, 1.0), total, Format::Operand)?;
        for _ in 0..self.layers - 1 {
            backend.cross_attention_backward(&cross, from(&d_o), None, &mut of_layers)?;
        }
        backend.cross_attention_backward(&cross, from(&other), None, &mut of_layers)?;
        let mut again = backend.rows(targets, total, Format::Operand)?;
        assert!(backend.cross_attention(&cross, &q, &h, &mut again, false)?.is_none());
        assert!(backend.read(&o)? == backend.read(&again)?, "keeping changes nothing");
        Ok(vec![
            ("o", backend.read(&o)?),
            ("d_q", backend.read(&d_q)?),
            ("d_h", backend.read(&backend.source_rows(&batch, d_h)?)?),
            ("d_h of some layers", backend.read(&backend.source_rows(&batch, of_layers)?)?),
        ])
    }
}

fn cross(lengths: &[(usize, usize)], heads: Heads, width: usize, dropped: f64) {
    cross_of_layers(lengths, heads, width, dropped, 2);
}

fn cross_of_layers(lengths: &[(usize, usize)], heads: Heads, width: usize, dropped: f64, layers: usize) {
    let case = Cross { lengths: lengths.to_vec(), heads, width, dropped, layers };
    let longest = lengths.iter().map(|(n, t)| n + t + 2).max().unwrap_or(0);
    // bf16: k, v (absorbed: q', mixed, d_mixed and d_q'), the probabilities, o, d_scores, d_k and d_v are each rounded once.
    follow(&case, Bounds { terms: 2 * (longest + width + heads.total()), bf16: roundings(12.0) });
}

#[test]
fn short_targets() {
    for dropped in [0.0, 0.2] {
        cross(&[(1, 1), (29, 2), (62, 1), (63, 3), (130, 1)], Heads { count: 3, width: 8 }, 40, dropped);
        cross(&[(5, 1)], Heads { count: 1, width: 8 }, 8, dropped);
    }
}

/// Rows of an example beside 16 and 64, columns beside a slice of 128, heads beside 64.
#[test]
fn short_targets_beside_a_tile() {
    cross(&[(70, 8), (5, 1), (127, 3)], Heads { count: 12, width: 8 }, 136, 0.1);
    cross(&[(62, 5), (1, 2)], Heads { count: 3, width: 72 }, 264, 0.1);
    cross(&[(126, 2), (63, 1)], Heads { count: 65, width: 8 }, 128, 0.0);
}

/// Cross attention after the product that makes q, and backward from the gradient after its output product.
#[derive(Debug)]
struct Projected {
    lengths: Vec<(usize, usize)>,
    heads: Heads,
    width: usize,
    dropped: f64,
}

impl Case for Projected {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { heads, width, .. } = *self;
        let batch = batch(&self.lengths, 2, 50);
        let (targets, sources, total) = (batch.rows(Side::Decoder), batch.rows(Side::Encoder), heads.total());
        let dropout = dropout(self.dropped);
        let mut w_q = matrix(1, total, width);
        w_q.iter_mut().for_each(|q| *q *= (heads.width as f32).powf(-0.5));
        let w_q = backend.weight(w_q, total, width, Readers::Few)?;
        let weight = |seed| backend.weight(matrix(seed, total, width), total, width, Readers::Few);
        let (w_k, w_v) = (weight(2)?, weight(3)?);
        let w_o = backend.weight(matrix(4, width, total), width, total, Readers::Few)?;
        let mask = mask_of(&dropout, Side::Decoder, SiteKind::CrossAttention);
        let batch = &batch;
        let cross = CrossAttention { batch, heads, w_k: &w_k, w_v: &w_v, mask };
        // A first sublayer makes x and its norm as the model does.
        let before = backend.weight(matrix(5, width, width), width, width, Readers::Few)?;
        let y = backend.place(&numbers(6, targets * width, 1.0), width, Format::Operand)?;
        let start = backend.place(&numbers(7, targets * width, 1.0), width, Format::Residual)?;
        let mut input = Residual::new(backend, targets, width)?;
        let (side, weight) = (Side::Decoder, &before);
        let first = ResidualProjection { batch, side, y: &y, weight, mask: None, epsilon: 1e-6, x: &start };
        backend.add_project(first, &mut input)?;
        let mut q = backend.rows(targets, total, Format::Operand)?;
        backend.cross_project(&cross, &input, &w_q, &mut q)?;
        let h = backend.place(&numbers(8, sources * width, 1.0), width, Format::Operand)?;
        let mut o = backend.rows(targets, total, Format::Operand)?;
        let saved = backend.cross_attention(&cross, &q, &h, &mut o, true)?.expect("kept");
        let d_x = backend.place(&numbers(9, targets * width, 1.0), width, Format::Residual)?;
        let output_mask = mask_of(&dropout, Side::Decoder, SiteKind::CrossAttentionOutput);
        let mut d_o = backend.rows(targets, total, Format::Operand)?;
        backend.cross_project_backward(&cross, &d_x, &w_o, output_mask, &mut d_o)?;
        let mut d_q = backend.rows(targets, total, Format::ProjectionGradient)?;
        let mut d_h = backend.source_gradient(batch, width)?;
        let from = CrossAttentionBackward { saved: &saved, q: &q, h: &h, o: &o, d_o: &d_o };
        backend.cross_attention_backward(&cross, from, Some(&mut d_q), &mut d_h)?;
        Ok(vec![
            ("q", backend.read(&q)?),
            ("o", backend.read(&o)?),
            ("d_o", backend.read(&d_o)?),
            ("d_q", backend.read(&d_q)?),
            ("d_h", backend.read(&backend.source_rows(batch, d_h)?)?),
        ])
    }
}

/// Rows beside a tile of 64, heads up to those that are made together and wider, and a target too long to be absorbed.
#[test]
fn after_the_product_that_makes_its_queries() {
    let rows_of_two = |count: usize| vec![(5, 2); count];
    for (lengths, heads, width, dropped) in [
        (vec![(1, 1)], Heads { count: 1, width: 8 }, 8, 0.0),
        (vec![(29, 2), (62, 1), (63, 3)], Heads { count: 3, width: 24 }, 136, 0.2),
        (rows_of_two(32), Heads { count: 2, width: 64 }, 72, 0.0),
        (rows_of_two(33), Heads { count: 2, width: 64 }, 264, 0.1),
        (vec![(29, 2), (7, 1)], Heads { count: 3, width: 24 }, 328, 0.1),
        (vec![(9, 2), (7, 1)], Heads { count: 12, width: 64 }, 768, 0.0),
        // The widest row of sources that clusters take.
        (vec![(9, 2)], Heads { count: 1, width: 64 }, 2_048, 0.0),
        (vec![(29, 2), (62, 1)], Heads { count: 2, width: 72 }, 40, 0.1),
        (vec![(29, 9), (62, 1)], Heads { count: 2, width: 64 }, 40, 0.1),
    ] {
        let case = Projected { lengths, heads, width, dropped };
        // As cross attention alone, after x's copy, q and d_o.
        follow(&case, Bounds { terms: 4 * (70 + width + heads.total()), bf16: roundings(16.0) });
    }
}

/// One launch sums what up to 24 layers bring.
#[test]
fn layers_beside_those_of_a_launch() {
    for layers in [1, 24, 25] {
        cross_of_layers(&[(70, 2), (5, 1)], Heads { count: 3, width: 8 }, 40, 0.1, layers);
    }
}

/// Eight targets are absorbed, nine are not.
#[test]
fn targets_beside_the_most_that_are_absorbed() -> Result<()> {
    for target in [8, 9] {
        cross(&[(30, 1), (20, target)], Heads { count: 2, width: 64 }, 64, 0.1);
        for precision in [Precision::Bf16, Precision::F32] {
            let Some(device) = device(precision) else { return Ok(()) };
            let (cuda, heads) = (&device.cuda, Heads { count: 2, width: 64 });
            let batch = batch(&[(30, 1), (20, target)], 2, 50);
            let w_k = cuda.weight(matrix(1, 128, 64), 128, 64, Readers::Many)?;
            let cross = CrossAttention { batch: &batch, heads, w_k: &w_k, w_v: &w_k, mask: None };
            let q = cuda.place(&numbers(3, (1 + target) * 128, 0.1), 128, Format::Operand)?;
            let h = cuda.place(&numbers(4, 54 * 64, 1.0), 64, Format::Operand)?;
            let mut o = cuda.rows(1 + target, 128, Format::Operand)?;
            let before = cuda.kernels().launches();
            let saved = cuda.cross_attention(&cross, &q, &h, &mut o, true)?.expect("kept");
            assert_eq!(saved.is_absorbed(), target <= 8);
            // Four products, or two projections and attention.
            assert_eq!(cuda.kernels().launches() - before, if target <= 8 { 4 } else { 3 });
            cuda.synchronize()?;
        }
    }
    Ok(())
}

#[test]
fn long_targets() {
    for width in [24, 64, 128] {
        cross(&[(1, 63), (66, 65), (9, 130), (70, 1)], Heads { count: 2, width }, 40, 0.1);
    }
}

/// What lies after a batch's rows, where activations have room for more, changes nothing: here it is no number.
#[test]
fn rows_after_the_batch_change_nothing() -> Result<()> {
    for (lengths, heads, width) in [
        (vec![(70, 2), (29, 3)], Heads { count: 3, width: 24 }, 264),
        (vec![(5, 1), (318, 2)], Heads { count: 12, width: 8 }, 768),
        (vec![(190, 1)], Heads { count: 2, width: 64 }, 1_024),
    ] {
        let Some(device) = device(Precision::Bf16) else { return Ok(()) };
        let (cuda, total) = (&device.cuda, heads.total());
        let exact = batch(&lengths, 2, 50);
        let (sources, targets) = (exact.rows(Side::Encoder), exact.rows(Side::Decoder));
        let roomy = exact.clone().with_capacity(sources + 40, targets + 9, exact.longest_target() + 1);
        let weight = |seed| cuda.weight(matrix(seed, total, width), total, width, Readers::Many);
        let (w_k, w_v) = (weight(1)?, weight(2)?);
        let mut left = Vec::new();
        for batch in [&exact, &roomy] {
            let (all_sources, all_targets) = (batch.rows(Side::Encoder), batch.rows(Side::Decoder));
            let padded = |seed, [rows, all, width]: [usize; 3], format| {
                let mut values = numbers(seed, rows * width, 0.2);
                values.resize(all * width, f64::NAN);
                cuda.place(&values, width, format)
            };
            let cross = CrossAttention { batch, heads, w_k: &w_k, w_v: &w_v, mask: None };
            let q = padded(3, [targets, all_targets, total], Format::Operand)?;
            let h = padded(4, [sources, all_sources, width], Format::Operand)?;
            let d_o = padded(5, [targets, all_targets, total], Format::Operand)?;
            let mut o = cuda.rows(all_targets, total, Format::Operand)?;
            let saved = cuda.cross_attention(&cross, &q, &h, &mut o, true)?.expect("kept");
            let mut d_q = cuda.rows(all_targets, total, Format::ProjectionGradient)?;
            let mut d_h = cuda.source_gradient(batch, width)?;
            let from = CrossAttentionBackward { saved: &saved, q: &q, h: &h, o: &o, d_o: &d_o };
            cuda.cross_attention_backward(&cross, from, Some(&mut d_q), &mut d_h)?;
            let d_h = cuda.source_rows(batch, d_h)?;
            let real = |rows, count: usize| Ok::<_, promptmix::Error>(cuda.read(rows)?[..count].to_vec());
            left.push([
                real(&o, targets * total)?,
                real(&d_q, targets * total)?,
                real(&d_h, sources * width)?,
            ]);
        }
        for (exact, roomy) in left[0].iter().zip(&left[1]) {
            assert!(exact.iter().all(|value| value.is_finite()) && exact.iter().any(|&value| value != 0.0));
            assert!(exact == roomy, "{heads:?} {width}");
        }
    }
    Ok(())
}

/// Nobody wrote the norms of rows after a batch's, and no projection reads them.
#[test]
fn a_projection_of_fewer_rows_than_there_is_room_for() -> Result<()> {
    let Some(device) = device(Precision::Bf16) else { return Ok(()) };
    let (cuda, heads, width) = (&device.cuda, Heads { count: 3, width: 24 }, 264);
    let total = heads.total();
    let exact = batch(&[(70, 2), (29, 3)], 2, 50);
    let targets = exact.rows(Side::Decoder);
    let room = exact.clone().with_capacity(exact.rows(Side::Encoder), targets + 9, exact.longest_target());
    let weight = |seed, out, input| cuda.weight(matrix(seed, out, input), out, input, Readers::Few);
    let (before, w_q, w_k, w_v) = (
        weight(1, width, width)?,
        weight(2, total, width)?,
        weight(3, total, width)?,
        weight(4, total, width)?,
    );
    let mut left = Vec::new();
    for batch in [&exact, &room] {
        let all = batch.rows(Side::Decoder);
        let placed = |seed, format| {
            let mut values = numbers(seed, targets * width, 1.0);
            values.resize(all * width, f64::NAN);
            cuda.place(&values, width, format)
        };
        let (y, start) = (placed(5, Format::Operand)?, placed(6, Format::Residual)?);
        let mut input = Residual::new(cuda, all, width)?;
        let (side, weight) = (Side::Decoder, &before);
        let first = ResidualProjection { batch, side, y: &y, weight, mask: None, epsilon: 1e-6, x: &start };
        cuda.add_project(first, &mut input)?;
        let mut q = cuda.rows(all, total, Format::Operand)?;
        let cross = CrossAttention { batch, heads, w_k: &w_k, w_v: &w_v, mask: None };
        cuda.cross_project(&cross, &input, &w_q, &mut q)?;
        left.push(cuda.read(&q)?[..targets * total].to_vec());
    }
    assert!(left[0].iter().all(|value| value.is_finite()) && left[0].iter().any(|&value| value != 0.0));
    assert!(left[0] == left[1]);
    Ok(())
}

/// More sources than clusters have room for at once, and more target rows than a block has.
#[test]
fn sources_beside_the_most_at_once() {
    cross(&[(318, 2), (319, 1), (20, 6)], Heads { count: 12, width: 8 }, 768, 0.1);
    cross(&[(190, 1), (200, 3)], Heads { count: 2, width: 64 }, 1_024, 0.0);
    cross(&[(700, 2), (1, 1)], Heads { count: 3, width: 8 }, 520, 0.1);
    cross(&[(260, 1)], Heads { count: 1, width: 8 }, 1_800, 0.0);
}

#[test]
fn heads_of_released_models() {
    cross(&[(37, 2), (90, 3)], Heads { count: 8, width: 64 }, 512, 0.1);
    cross(&[(37, 2), (70, 3)], Heads { count: 12, width: 64 }, 768, 0.0);
    cross(&[(37, 2)], Heads { count: 32, width: 128 }, 1_024, 0.0);
}
