//! Cross attention of few and of many targets: `kernels/cross_attention.cu` and `kernels/attention.cu`.

use promptmix::backend::{Backend, CrossAttention, Format, Heads, Readers, Side, SiteKind};
use promptmix::cuda::Precision;

use crate::device::{
    Bounds, Case, Place, batch, device, dropout, follow, mask_of, matrix, numbers, roundings,
};

#[derive(Debug)]
struct Cross {
    lengths: Vec<(usize, usize)>,
    heads: Heads,
    width: usize,
    dropped: f64,
}

impl Case for Cross {
    fn run<B: Place>(&self, backend: &B) -> Vec<(&'static str, Vec<f64>)> {
        let Self { heads, width, .. } = *self;
        let batch = batch(&self.lengths, 2, 50);
        let (targets, sources, total) = (batch.rows(Side::Decoder), batch.rows(Side::Encoder), heads.total());
        let dropout = dropout(self.dropped);
        let [w_k, w_v] =
            [1, 2].map(|seed| backend.weight(matrix(seed, total, width), total, width, Readers::Many));
        let mask = mask_of(&dropout, Side::Decoder, SiteKind::CrossAttention);
        let cross = CrossAttention { heads, w_k: &w_k, w_v: &w_v, mask };
        let q = numbers(3, targets * total, (heads.width as f64).powf(-0.5));
        let q = backend.place(&q, total, Format::Operand);
        let h = backend.place(&numbers(4, sources * width, 1.0), width, Format::Operand);
        let mut o = backend.rows(targets, total, Format::Operand);
        let kept = backend.cross_attention(&batch, &cross, &q, &h, &mut o, true).expect("kept");
        let d_o = backend.place(&numbers(5, targets * total, 1.0), total, Format::Operand);
        let mut d_q = backend.rows(targets, total, Format::ProjectionGradient);
        let mut d_h = backend.place(&numbers(6, sources * width, 1.0), width, Format::Float);
        backend.cross_attention_backward(&batch, &cross, &kept, &q, &h, &o, &d_o, Some(&mut d_q), &mut d_h);
        // The first decoder layer wants no d_q; a pass that is not learnt from keeps nothing.
        let mut without = backend.place(&numbers(6, sources * width, 1.0), width, Format::Float);
        backend.cross_attention_backward(&batch, &cross, &kept, &q, &h, &o, &d_o, None, &mut without);
        let mut again = backend.rows(targets, total, Format::Operand);
        assert!(backend.cross_attention(&batch, &cross, &q, &h, &mut again, false).is_none());
        assert!(backend.read(&o) == backend.read(&again), "keeping changes nothing");
        vec![
            ("o", backend.read(&o)),
            ("d_q", backend.read(&d_q)),
            ("d_h", backend.read(&d_h)),
            ("d_h without d_q", backend.read(&without)),
        ]
    }
}

fn cross(lengths: &[(usize, usize)], heads: Heads, width: usize, dropped: f64) {
    let case = Cross { lengths: lengths.to_vec(), heads, width, dropped };
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

/// Eight targets are absorbed, nine are not.
#[test]
fn targets_beside_the_most_that_are_absorbed() {
    for target in [8, 9] {
        cross(&[(30, 1), (20, target)], Heads { count: 2, width: 64 }, 64, 0.1);
        for precision in [Precision::Bf16, Precision::F32] {
            let Some(device) = device(precision) else { return };
            let batch = batch(&[(30, 1), (20, target)], 2, 50);
            let w_k = device.cuda.weight(matrix(1, 128, 64), 128, 64, Readers::Many);
            let cross =
                CrossAttention { heads: Heads { count: 2, width: 64 }, w_k: &w_k, w_v: &w_k, mask: None };
            let q = device.cuda.place(&numbers(3, (1 + target) * 128, 0.1), 128, Format::Operand);
            let h = device.cuda.place(&numbers(4, 54 * 64, 1.0), 64, Format::Operand);
            let mut o = device.cuda.rows(1 + target, 128, Format::Operand);
            let before = device.cuda.kernels().launches();
            let kept = device.cuda.cross_attention(&batch, &cross, &q, &h, &mut o, true).expect("kept");
            assert_eq!(kept.is_absorbed(), target <= 8);
            // Four products, or two projections and attention.
            assert_eq!(device.cuda.kernels().launches() - before, if target <= 8 { 4 } else { 3 });
            device.cuda.health().expect("a healthy device");
        }
    }
}

#[test]
fn long_targets() {
    for width in [24, 64, 128] {
        cross(&[(1, 63), (66, 65), (9, 130), (70, 1)], Heads { count: 2, width }, 40, 0.1);
    }
}

#[test]
fn heads_of_released_models() {
    cross(&[(37, 2), (90, 3)], Heads { count: 8, width: 64 }, 512, 0.1);
    cross(&[(37, 2), (70, 3)], Heads { count: 12, width: 64 }, 768, 0.0);
    cross(&[(37, 2)], Heads { count: 32, width: 128 }, 1_024, 0.0);
}
