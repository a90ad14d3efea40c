//! The mixture of prompts, forward and backward, for every scorer: `kernels/mix.cu`.

use promptmix::backend::{Batch, Example, Format, Mixing, Readers, Scorer, Side, StateLayout};

use crate::device::{Bounds, Case, Place, follow, narrowed, numbers, roundings};
use crate::random::Random;

#[derive(Clone, Debug)]
struct Mixture {
    scorer: Option<Scorer>,
    without_target: bool,
    learnt_temperature: bool,
    sources: usize,
    length: usize,
    width: usize,
    rank: usize,
    runs: usize,
    targets: usize,
    /// Source tokens of each example.
    lengths: Vec<usize>,
    /// Width up to which the padding token joins the pool.
    padded: Option<usize>,
}

impl Mixture {
    fn of(scorer: Option<Scorer>) -> Self {
        Self {
            scorer,
            without_target: false,
            learnt_temperature: false,
            sources: 3,
            length: 5,
            width: 40,
            rank: 7,
            runs: 1,
            targets: 1,
            lengths: vec![1, 7, 2, 40],
            padded: None,
        }
    }
}

impl Case for Mixture {
    fn run<B: Place>(&self, backend: &B) -> Vec<(&'static str, Vec<f64>)> {
        let Self { scorer, without_target, sources, length, width, rank, runs, targets, .. } = *self;
        let vocabulary = 60;
        let mixing = Mixing { scorer, temperature: 3.0, without_target, layer_norm_epsilon: 1e-5 };
        let layout = StateLayout::new(&mixing, targets, length, width, rank, self.learnt_temperature);
        let mut random = Random::new(5);
        let lengths = self.lengths.iter().enumerate();
        let examples: Vec<Example> = lengths
            .map(|(index, &n)| Example {
                source: (0..n).map(|_| random.below(vocabulary) as u32).collect(),
                target: vec![1],
                index: index as u32,
                run: (index * runs / self.lengths.len()) as u32,
                target_prompt: (index % targets) as u32,
            })
            .collect();
        let mut batch = Batch::pack(&examples, length, 0, vocabulary).expect("a batch");
        if let Some(padded) = self.padded {
            batch = batch.pooling_padding(padded, 0);
        }
        let rows = batch.rows(Side::Encoder);
        let table = narrowed(&numbers(1, vocabulary * width, 1.0));
        let table = backend.weight(table, vocabulary, width, Readers::Lookup);
        let frozen = narrowed(&numbers(2, sources * length * width, 1.0));
        let frozen = scorer.map(|_| backend.sources(&frozen, sources, length, width));
        let values = numbers(3, runs * layout.len(), (width as f64).powf(-0.5));
        let mut state = backend.state(&layout, &values, runs);
        let mut x = backend.place(&vec![77.0; rows * width], width, Format::Residual);
        let kept = backend.mix(&mixing, &table, frozen.as_ref(), &state, &batch, &mut x);
        let d_x = backend.place(&numbers(4, rows * width, 1.0), width, Format::Residual);
        let before = numbers(6, runs * layout.len(), 1.0);
        backend.write_gradient(&mut state, &before);
        backend.mix_backward(&mixing, frozen.as_ref(), &batch, &kept, &d_x, &mut state);
        let mut results = vec![("x", backend.read(&x))];
        if scorer.is_some() {
            results.push(("attention", backend.attention(&kept)));
        }
        if !layout.is_empty() {
            results.push(("gradient", backend.read_gradient(&state)));
        }
        results
    }
}

fn mixture(case: &Mixture) {
    // Everything is f32 in both precisions. Pooled products of D terms enter a softmax, whose weights then move by the
    // error of the scores; gradients sum over examples, rows and columns.
    let terms = 4 * (case.width + case.rank + case.sources + case.lengths.len() * case.length);
    let bound = 4.0 * terms as f64 * 2.0_f64.powi(-24);
    follow(case, Bounds { terms, bf16: roundings(bound * 512.0) });
}

const SCORERS: [Scorer; 5] =
    [Scorer::Bottleneck, Scorer::Linear, Scorer::Dot, Scorer::Token, Scorer::Uniform];

#[test]
fn every_scorer() {
    mixture(&Mixture::of(None));
    for scorer in SCORERS {
        mixture(&Mixture::of(Some(scorer)));
        mixture(&Mixture { without_target: true, ..Mixture::of(Some(scorer)) });
        mixture(&Mixture { padded: Some(20), learnt_temperature: true, ..Mixture::of(Some(scorer)) });
        mixture(&Mixture { runs: 2, targets: 2, lengths: vec![3; 19], ..Mixture::of(Some(scorer)) });
    }
}

#[test]
fn one_source_and_a_thousand() {
    for scorer in SCORERS {
        mixture(&Mixture { sources: 1, length: 1, lengths: vec![1], ..Mixture::of(Some(scorer)) });
        mixture(&Mixture { sources: 1_024, length: 2, lengths: vec![2, 9], ..Mixture::of(Some(scorer)) });
    }
}

#[test]
fn widths_of_released_models() {
    for (width, length) in [(512, 20), (768, 100), (1_024, 3)] {
        let lengths = vec![7, 19, 1];
        mixture(&Mixture { width, length, rank: 100, lengths, ..Mixture::of(Some(Scorer::Bottleneck)) });
    }
}
