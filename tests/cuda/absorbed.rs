//! Cross attention absorbed into the encoder's rows, launched alone: `kernels/cross_attention.cu`.

use half::bf16;
use promptmix::backend::{Device as _, Heads};
use promptmix::cuda::cross_attention::{
    AbsorbedBackward, AbsorbedCrossAttention, AbsorbedForward, AbsorbedGradient, AbsorbedShape,
    QueryGradient, Wide,
};
use promptmix::cuda::{DropoutMask, PairedSequences, Precision};
use promptmix::verify::compare;

use crate::device::{Device, device, numbers, roundings};

/// Operands in f64 that bf16 holds exactly.
struct Operands {
    /// Targets and sources of each example.
    lengths: Vec<(usize, usize)>,
    heads: Heads,
    /// D.
    depth: usize,
    q: Vec<f64>,
    h: Vec<f64>,
    w_k: Vec<f64>,
    w_v: Vec<f64>,
    d_o: Vec<f64>,
}

fn rounded(value: f64) -> f64 {
    bf16::from_f64(value).to_f64()
}

impl Operands {
    /// `outliers` is what every 97th column of h is larger by, as some columns of a trained encoder are.
    fn new(lengths: &[(usize, usize)], heads: Heads, depth: usize, outliers: f64) -> Self {
        let (targets, sources) = lengths.iter().fold((0, 0), |(t, n), pair| (t + pair.0, n + pair.1));
        let total = heads.total();
        let fan_in = (depth as f64).powf(-0.5);
        let mut h = numbers(4, sources * depth, 1.0);
        for row in h.chunks_exact_mut(depth) {
            row.iter_mut().skip(5).step_by(97).for_each(|value| *value = rounded(*value * outliers));
        }
        Self {
            lengths: lengths.to_vec(),
            heads,
            depth,
            q: numbers(3, targets * total, (heads.width as f64).powf(-0.5)),
            h,
            w_k: numbers(1, total * depth, fan_in),
            w_v: numbers(2, total * depth, fan_in),
            d_o: numbers(5, targets * total, 1.0),
        }
    }

    fn sources(&self) -> usize {
        self.h.len() / self.depth
    }

    /// h W^T, \[R, H·K\].
    fn projected(&self, weight: &[f64]) -> Vec<f64> {
        let rows = self.h.chunks_exact(self.depth);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        rows.flat_map(|h| weight.chunks_exact(self.depth).map(move |w| dot(h, w))).collect()
    }

    /// The scores of each example's pairs, q · k for given keys, \[t·H, n\] example after example.
    fn scores(&self, k: &[f64]) -> Vec<f64> {
        let (width, total) = (self.heads.width, self.heads.total());
        let (mut scores, mut target, mut source) = (Vec::new(), 0, 0);
        for &(t, n) in &self.lengths {
            for row in target * self.heads.count..(target + t) * self.heads.count {
                let head = row % self.heads.count;
                let q = &self.q[row * width..(row + 1) * width];
                scores.extend((source..source + n).map(|key| {
                    let k = &k[key * total + head * width..][..width];
                    q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
                }));
            }
            (target, source) = (target + t, source + n);
        }
        scores
    }
}

/// What the launches give.
struct Given {
    scores: Vec<f64>,
    o: Vec<f64>,
    d_q: Vec<f64>,
    d_h: Vec<f64>,
}

fn launch(device: &Device, operands: &Operands) -> Given {
    let kernels = device.cuda.kernels();
    let stream = kernels.stream();
    let up = |values: &[f64]| {
        let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f64(value)).collect();
        stream.clone_htod(&values).expect("an upload")
    };
    let poison = |count: usize| up(&vec![f64::NAN; count]);
    let floats = |count: usize| stream.clone_htod(&vec![f32::NAN; count]).expect("an upload");
    let sequences = PairedSequences::new(stream, &operands.lengths).expect("examples");
    let (w_k, w_v) = (up(&operands.w_k), up(&operands.w_v));
    let (batch, heads, depth) = (sequences.described(), operands.heads, operands.depth);
    let shape = AbsorbedShape { batch, heads, depth };
    let attention = AbsorbedCrossAttention { shape, w_k: &w_k, w_v: &w_v, mask: DropoutMask::default() };
    let lengths = attention.lengths().expect("weights that fit");
    let (q, h, d_o) = (up(&operands.q), up(&operands.h), up(&operands.d_o));
    let (mut absorbed_q, mut mixed) = (poison(lengths.wide), poison(lengths.wide));
    let (mut scores, mut sums) = (floats(lengths.pairs), floats(lengths.sums));
    let (mut o, mut d_q) = (poison(operands.q.len()), poison(operands.q.len()));
    let mut d_h = stream.clone_htod(&vec![0.0_f32; operands.h.len()]).expect("an upload");
    let [mut d_mixed, mut d_absorbed_q] = [(); 2].map(|()| poison(lengths.wide));
    let [mut ds, mut p] = [(); 2].map(|()| poison(lengths.pairs));
    // Nothing is dropped in bf16 by itself: no numbers.
    assert_eq!(lengths.dropped, 0);
    let mut nothing = poison(8);
    let before = kernels.launches();
    let forward = AbsorbedForward {
        q: &q,
        h: &h,
        absorbed_q: Wide::Made(&mut absorbed_q),
        scores: &mut scores,
        sums: &mut sums,
        dropped: &mut nothing.slice_mut(0..0),
        mixed: &mut mixed,
        o: &mut o,
    };
    attention.forward(kernels, forward).expect("forward");
    assert_eq!(kernels.launches() - before, 4);
    let refused = AbsorbedForward {
        q: &q.slice(1..),
        h: &h,
        absorbed_q: Wide::Made(&mut absorbed_q),
        scores: &mut scores,
        sums: &mut sums,
        dropped: &mut nothing.slice_mut(0..0),
        mixed: &mut mixed,
        o: &mut d_q,
    };
    let said = attention.forward(kernels, refused).expect_err("a query too short").to_string();
    assert!(said.contains(&format!("q: expected {} numbers", operands.q.len())), "{said}");
    let from = AbsorbedBackward {
        h: &h,
        absorbed_q: &absorbed_q,
        scores: &scores,
        sums: &sums,
        o: &o,
        d_o: &d_o,
        d_mixed: Wide::Made(&mut d_mixed),
    };
    let of_q = QueryGradient { d_absorbed_q: &mut d_absorbed_q, d_q: &mut d_q, inner: None };
    let gradient = AbsorbedGradient { ds: &mut ds, p: &mut p, d_q: Some(of_q), d_h: Some(&mut d_h) };
    attention.backward(kernels, from, gradient).expect("backward");
    assert_eq!(kernels.launches() - before, 9);
    let whole = stream.clone_dtoh(&scores).expect("scores");
    let down = |values: Vec<bf16>| values.into_iter().map(|value| value.to_f64()).collect();
    let given = Given {
        scores: pairs_of(operands, &whole),
        o: down(stream.clone_dtoh(&o).expect("o")),
        d_q: down(stream.clone_dtoh(&d_q).expect("d_q")),
        d_h: stream.clone_dtoh(&d_h).expect("d_h").into_iter().map(f64::from).collect(),
    };
    device.cuda.synchronize().expect("a healthy device");
    given
}

/// The pairs out of the buffer that they lie in.
fn pairs_of(operands: &Operands, buffer: &[f32]) -> Vec<f64> {
    let heads = operands.heads.count;
    let most = operands.lengths.iter().map(|&(t, _)| t).max().unwrap_or(0) * heads;
    let (mut pairs, mut source) = (Vec::new(), 0_usize);
    for (example, &(t, n)) in operands.lengths.iter().enumerate() {
        let start = (source.next_multiple_of(8) + 8 * example) * most;
        for row in 0..t * heads {
            let at = start + row * n.next_multiple_of(8);
            pairs.extend(buffer[at..at + n].iter().map(|&value| f64::from(value)));
        }
        source += n;
    }
    pairs
}

fn root_mean_square(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let error = (squares / expected.len() as f64).sqrt();
    assert!(error.is_finite() && error > 0.0, "an error of {error}");
    error
}

/// In bf16 the absorbed way rounds q' where the plain way rounds k. The scores' error against exact ones, of the same bf16
/// operands, may be twice the plain way's at most.
#[test]
fn absorbed_scores_are_as_close_as_plain_ones() {
    let released = [(8, 64, 512), (12, 64, 768), (32, 128, 1_024)];
    for (count, width, depth) in released {
        for outliers in [1.0, 30.0] {
            let Some(device) = device(Precision::Bf16) else { return };
            let heads = Heads { count, width };
            let operands = Operands::new(&[(2, 41), (1, 70)], heads, depth, outliers);
            let exact_keys = operands.projected(&operands.w_k);
            let exact = operands.scores(&exact_keys);
            let keys: Vec<f64> = exact_keys.iter().map(|&k| rounded(k)).collect();
            let plain = root_mean_square(&operands.scores(&keys), &exact);
            let absorbed = root_mean_square(&launch(&device, &operands).scores, &exact);
            eprintln!(
                "{heads:?} D {depth}, outliers {outliers}: absorbed {absorbed:.2e}, plain {plain:.2e}, ratio {:.2}",
                absorbed / plain
            );
            assert!(absorbed <= 2.0 * plain, "{heads:?}: {absorbed:e} against {plain:e}");
        }
    }
}

/// o, d_q and d_h against plain attention through exact keys and values.
#[test]
fn launched_alone_it_follows_plain_attention() {
    for (lengths, heads, depth) in [
        (vec![(1, 5), (8, 65), (2, 130)], Heads { count: 3, width: 16 }, 136),
        (vec![(2, 64), (1, 1)], Heads { count: 9, width: 72 }, 40),
    ] {
        let Some(device) = device(Precision::Bf16) else { return };
        let operands = Operands::new(&lengths, heads, depth, 1.0);
        let given = launch(&device, &operands);
        let (k, v) = (operands.projected(&operands.w_k), operands.projected(&operands.w_v));
        let scores = operands.scores(&k);
        let (width, total) = (heads.width, heads.total());
        let mut expected = Given {
            scores: scores.clone(),
            o: vec![0.0; operands.q.len()],
            d_q: vec![0.0; operands.q.len()],
            d_h: vec![0.0; operands.h.len()],
        };
        let (mut d_k, mut d_v) = (vec![0.0; k.len()], vec![0.0; k.len()]);
        let (mut target, mut source, mut pair) = (0, 0, 0);
        for &(t, n) in &lengths {
            for row in target * heads.count..(target + t) * heads.count {
                let at = |key: usize| (source + key) * total + row % heads.count * width;
                let of_row = &scores[pair..pair + n];
                pair += n;
                let most = of_row.iter().fold(f64::NEG_INFINITY, |most, &score| most.max(score));
                let sum: f64 = of_row.iter().map(|score| (score - most).exp()).sum();
                let p: Vec<f64> = of_row.iter().map(|score| (score - most).exp() / sum).collect();
                let columns = row * width..(row + 1) * width;
                let (q, d_o) = (&operands.q[columns.clone()], &operands.d_o[columns.clone()]);
                let d_p: Vec<f64> =
                    (0..n).map(|key| (0..width).map(|c| d_o[c] * v[at(key) + c]).sum()).collect();
                let delta: f64 = p.iter().zip(&d_p).map(|(p, d_p)| p * d_p).sum();
                for (key, (p, d_p)) in p.iter().zip(&d_p).enumerate() {
                    let ds = p * (d_p - delta);
                    for c in 0..width {
                        expected.o[columns.start + c] += p * v[at(key) + c];
                        expected.d_q[columns.start + c] += ds * k[at(key) + c];
                        d_k[at(key) + c] += ds * q[c];
                        d_v[at(key) + c] += p * d_o[c];
                    }
                }
            }
            (target, source) = (target + t, source + n);
        }
        for row in 0..operands.sources() {
            for column in 0..total {
                let (of_k, of_v) = (d_k[row * total + column], d_v[row * total + column]);
                for c in 0..depth {
                    expected.d_h[row * depth + c] +=
                        of_k * operands.w_k[column * depth + c] + of_v * operands.w_v[column * depth + c];
                }
            }
        }
        // q', the probabilities, mixed, o, d_mixed, ds and d_q' are each rounded once.
        for (what, found, expected) in [
            ("scores", &given.scores, &expected.scores),
            ("o", &given.o, &expected.o),
            ("d_q", &given.d_q, &expected.d_q),
            ("d_h", &given.d_h, &expected.d_h),
        ] {
            let comparison = compare(found, expected);
            assert!(comparison.passes(roundings(12.0)), "{what} of {lengths:?} {heads:?}: {comparison:?}");
        }
    }
    let Some(device) = device(Precision::Bf16) else { return };
    let stream = device.cuda.kernels().stream();
    assert!(PairedSequences::new(stream, &[(1, 0)]).is_err() && PairedSequences::new(stream, &[]).is_err());
}
