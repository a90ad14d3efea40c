//! The mixture of prompts, forward and backward, for every scorer: `kernels/mix.cu`.

use half::bf16;
use promptmix::Result;
use promptmix::backend::cpu::Cpu;
use promptmix::backend::{
    Batch, Example, Format, Mix, Mixing, PromptRows, Readers, Residual, Scorer, Side, SiteKind, StateLayout,
};
use promptmix::cuda::mix::{FrozenSources, MixBackward, MixForward, PromptMix, pooled_keys};
use promptmix::cuda::{DropoutMask, Packed};

use crate::device::{
    Bounds, Case, Place, Raw, Results, dropout, follow, mask_of, narrowed, numbers, partial_squares,
    roundings, sums,
};
use crate::random::Random;
use crate::setting::SCORERS;

#[derive(Clone, Debug)]
struct Mixture {
    scorer: Option<Scorer>,
    without_target: bool,
    learnt_temperature: bool,
    /// Whether a mean is taken from every pooled input.
    standardized: bool,
    sources: usize,
    length: usize,
    width: usize,
    bottleneck_dim: usize,
    runs: usize,
    targets: usize,
    /// Source tokens of each example.
    lengths: Vec<usize>,
    /// Width up to which the padding token joins the pool.
    padded: Option<usize>,
    /// The share of numbers that dropout takes.
    dropped: f64,
}

impl Mixture {
    fn of(scorer: Option<Scorer>) -> Self {
        Self {
            scorer,
            without_target: false,
            learnt_temperature: false,
            standardized: false,
            sources: 3,
            length: 5,
            width: 40,
            bottleneck_dim: 7,
            runs: 1,
            targets: 1,
            lengths: vec![1, 7, 2, 40],
            padded: None,
            dropped: 0.0,
        }
    }
}

const VOCABULARY: usize = 60;

impl Mixture {
    fn parts(&self) -> (Mixing, StateLayout, Batch) {
        let Self { scorer, without_target, length, width, bottleneck_dim, runs, targets, .. } = *self;
        let mixing = Mixing { scorer, temperature: 3.0, without_target, layer_norm_epsilon: 1e-5 };
        let layout =
            StateLayout::new(&mixing, targets, length, width, bottleneck_dim, self.learnt_temperature);
        let layout = match scorer {
            Some(Scorer::Constant) => layout.with_logits(self.sources + usize::from(!without_target)),
            _ => layout,
        };
        let layout = if self.standardized { layout.with_standardized_inputs() } else { layout };
        let mut random = Random::new(5);
        let lengths = self.lengths.iter().enumerate();
        let examples: Vec<Example> = lengths
            .map(|(index, &n)| Example {
                source: (0..n).map(|_| random.below(VOCABULARY) as u32).collect(),
                target: vec![1],
                index: index as u32,
                run: (index * runs / self.lengths.len()) as u32,
                target_prompt: (index % targets) as u32,
            })
            .collect();
        let mut batch = Batch::pack(&examples, length, 0, VOCABULARY).expect("a batch");
        if let Some(padded) = self.padded {
            batch = batch.pooling_padding(padded, 0);
        }
        (mixing, layout, batch)
    }

    /// So many terms a sum may have. Everything is f32 in both precisions. Pooled products of D terms enter a softmax,
    /// whose weights then move by the error of the scores; gradients sum over examples, rows and columns.
    fn terms(&self) -> usize {
        4 * (self.width + self.bottleneck_dim + self.sources + self.lengths.len() * self.length)
    }
}

impl Case for Mixture {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { scorer, sources, length, width, runs, .. } = *self;
        let (mixing, layout, batch) = self.parts();
        let vocabulary = VOCABULARY;
        let rows = batch.rows(Side::Encoder);
        let table = narrowed(&numbers(1, vocabulary * width, 1.0));
        let table = backend.weight(table, vocabulary, width, Readers::Lookup)?;
        let frozen = narrowed(&numbers(2, sources * length * width, 1.0));
        let frozen = match scorer {
            Some(_) => Some(backend.sources(&frozen, sources, length, width)?),
            None => None,
        };
        let values = numbers(3, runs * layout.len(), (width as f64).powf(-0.5));
        let mut state = backend.state(&layout, &values, runs)?;
        let x = backend.place(&vec![77.0; rows * width], width, Format::Residual)?;
        let mut input = Residual { x, r: backend.rows(rows, width, Format::Norm)? };
        let mix = Mix { mixing: &mixing, sources: frozen.as_ref(), batch: &batch };
        let dropout = dropout(self.dropped);
        let mask = mask_of(&dropout, Side::Encoder, SiteKind::Embedding);
        let saved =
            backend.mix(&mix, &table, &state, PromptRows { input: &mut input, mask, epsilon: 1e-6 })?;
        let d_x = backend.place(&numbers(4, rows * width, 1.0), width, Format::Residual)?;
        let before = numbers(6, runs * layout.len(), 1.0);
        backend.write_gradient(&mut state, &before)?;
        backend.mix_backward(&mix, &saved, &d_x, &mut state)?;
        let mut results = vec![("x", backend.read(&input.x)?)];
        results.push(("r", prompt_rows(&batch, backend.read(&input.r)?, 1)));
        if scorer.is_some() {
            results.push(("attention", backend.attention(&saved)?));
        }
        if !layout.is_empty() {
            results.push(("gradient", backend.read_gradient(&state)?));
        }
        Ok(results)
    }
}

/// The prompt rows of \[R, width\].
fn prompt_rows(batch: &Batch, rows: Vec<f64>, width: usize) -> Vec<f64> {
    let of_example = |b: usize| {
        let first = batch.range(Side::Encoder, b).start;
        rows[first * width..(first + batch.prompt_length()) * width].to_vec()
    };
    (0..batch.examples()).flat_map(of_example).collect()
}

fn mixture(case: &Mixture) {
    let terms = case.terms();
    let bound = 4.0 * terms as f64 * 2.0_f64.powi(-24);
    follow(case, Bounds { terms, bf16: roundings(bound * 512.0) });
}

#[test]
fn every_scorer() {
    mixture(&Mixture::of(None));
    for scorer in SCORERS {
        mixture(&Mixture::of(Some(scorer)));
        mixture(&Mixture { without_target: true, ..Mixture::of(Some(scorer)) });
        mixture(&Mixture { dropped: 0.2, ..Mixture::of(Some(scorer)) });
        mixture(&Mixture { padded: Some(20), learnt_temperature: true, ..Mixture::of(Some(scorer)) });
        mixture(&Mixture { runs: 2, targets: 2, lengths: vec![3; 19], ..Mixture::of(Some(scorer)) });
        if scorer.reads_input() {
            mixture(&Mixture { standardized: true, runs: 2, padded: Some(20), ..Mixture::of(Some(scorer)) });
        }
    }
}

/// Logits that are not one a prompt.
#[test]
fn a_constant_mixture_of_another_count_of_prompts_is_refused() {
    let (mixing, layout, batch) = Mixture::of(Some(Scorer::Constant)).parts();
    let Some(raw) = Raw::new() else { return };
    let packed = Packed::new(raw.kernels().stream(), batch).expect("a batch");
    let refused = PromptMix::new(raw.kernels(), packed.described(), &mixing, &layout, 7, 1);
    assert!(refused.expect_err("four logits for eight prompts").to_string().contains("8 logits"));
}

#[test]
fn one_source_and_a_thousand() {
    for scorer in SCORERS {
        mixture(&Mixture { sources: 1, length: 1, lengths: vec![1], ..Mixture::of(Some(scorer)) });
        mixture(&Mixture { sources: 1_024, length: 2, lengths: vec![2, 9], ..Mixture::of(Some(scorer)) });
    }
}

/// A block looks for its run's examples 256 at a time; the third run has some on either side of that.
#[test]
fn more_examples_than_a_block_has_threads() {
    mixture(&Mixture { runs: 3, lengths: vec![1; 300], ..Mixture::of(Some(Scorer::Bottleneck)) });
}

#[test]
fn widths_of_released_models() {
    for (width, length) in [(512, 20), (768, 100), (1_024, 3)] {
        let lengths = vec![7, 19, 1];
        mixture(&Mixture {
            width,
            length,
            bottleneck_dim: 100,
            lengths,
            ..Mixture::of(Some(Scorer::Bottleneck))
        });
    }
}

/// The same operands through raw launches, against the CPU in f64.
fn raw_mixture(case: &Mixture) {
    let Some(raw) = Raw::new() else { return };
    let expected = case.run(&Cpu::<f64>::poisoning(Some(1)).expect("threads")).expect("results of the CPU");
    let (mixing, layout, batch) = case.parts();
    let Mixture { sources, length, width, runs, .. } = *case;
    let (kernels, sources) = (raw.kernels(), if case.scorer.is_some() { sources } else { 0 });
    let packed = Packed::new(kernels.stream(), batch).expect("a batch");
    let (described, rows) = (packed.described(), packed.rows(Side::Encoder).count());
    let frozen = numbers(2, sources * length * width, 1.0);
    let keys: Vec<f64> = pooled_keys(&narrowed(&frozen), length, width).into_iter().map(f64::from).collect();
    // A slice of no numbers cannot be made.
    let some = |values: &[f64]| raw.floats(if values.is_empty() { &[f64::NAN] } else { values });
    let table = raw.floats(&numbers(1, VOCABULARY * width, 1.0));
    let (frozen, keys) = (some(&frozen), some(&keys));
    let (frozen, keys) = (frozen.slice(0..sources * length * width), keys.slice(0..sources * width));
    let values = some(&numbers(3, runs * layout.len(), (width as f64).powf(-0.5)));
    let values = values.slice(0..runs * layout.len());
    let mut x = raw.floats(&vec![77.0; rows * width]);
    let mut mix =
        PromptMix::new(kernels, packed.described(), &mixing, &layout, sources, runs).expect("a shape");
    let frozen = (sources > 0).then_some(FrozenSources { prompts: &frozen, keys: &keys });
    let parts = width.div_ceil(64);
    let (mut copied, mut summed) =
        (raw.halves(&vec![77.0; rows * width]), raw.floats(&vec![77.0; rows * parts]));
    let mask = DropoutMask::default();
    let forward = MixForward {
        table: &table,
        sources: frozen,
        values: &values,
        x: &mut x,
        copy: Some(&mut copied),
        partials: Some(&mut summed),
        mask,
    };
    mix.forward(kernels, forward).expect("forward");
    let d_x = raw.floats(&numbers(4, rows * width, 1.0));
    let mut gradient = raw.floats(&numbers(6, runs * layout.len(), 1.0));
    let backward = MixBackward { sources: frozen, values: &values, d_x: &d_x, gradient: &mut gradient };
    mix.backward(kernels, backward).expect("backward");
    for (what, expected) in expected {
        match what {
            "attention" => {
                let attention = kernels.stream().clone_dtoh(&mix.attention()).expect("a download");
                let attention = kernels.stream().clone_htod(&attention).expect("an upload");
                raw.holds(what, &attention, &expected, sums(case.terms()));
            }
            "gradient" => raw.holds(what, &gradient, &expected, sums(case.terms())),
            "x" => {
                raw.holds(what, &x, &expected, sums(case.terms()));
                let found = raw.read(&x);
                // 77, which token rows keep, is a number of bf16.
                let rounded: Vec<f64> = found.iter().map(|&x| bf16::from_f64(x).to_f64()).collect();
                assert_eq!(raw.read(&copied), rounded);
                let squares = partial_squares(&prompt_rows(described.batch(), found, width), width);
                let all = raw.read(&summed);
                let of_tokens = all.iter().filter(|&&sum| sum == 77.0).count();
                assert_eq!(of_tokens, all.len() - squares.len(), "token rows are left alone");
                let summed = raw.floats(&prompt_rows(described.batch(), all, parts));
                raw.holds("partials", &summed, &squares, sums(64));
            }
            _ => {}
        }
    }
    let table = raw.floats(&vec![0.0; width]);
    let (copy, partials) = (None, None);
    let forward =
        MixForward { table: &table, sources: frozen, values: &values, x: &mut x, copy, partials, mask };
    let refused = mix.forward(kernels, forward).expect_err("a table of one row").to_string();
    assert!(refused.contains("table: expected at least 60 rows"), "{refused}");
}

#[test]
fn mixtures_on_buffers_of_ones_own() {
    raw_mixture(&Mixture::of(None));
    for scorer in SCORERS {
        let standardized = scorer.reads_input();
        raw_mixture(&Mixture {
            padded: Some(20),
            learnt_temperature: true,
            standardized,
            ..Mixture::of(Some(scorer))
        });
        raw_mixture(&Mixture { runs: 2, targets: 2, lengths: vec![3; 19], ..Mixture::of(Some(scorer)) });
    }
    raw_mixture(&Mixture { without_target: true, sources: 1, ..Mixture::of(Some(Scorer::Bottleneck)) });
    let case = Mixture { runs: 2, ..Mixture::of(Some(Scorer::Dot)) };
    let (mixing, layout, batch) = case.parts();
    let Some(raw) = Raw::new() else { return };
    let packed = Packed::new(raw.kernels().stream(), batch).expect("a batch");
    let refused = PromptMix::new(raw.kernels(), packed.described(), &mixing, &layout, 3, 1);
    assert!(refused.expect_err("a run too many").to_string().contains("1 runs"));
    assert!(PromptMix::new(raw.kernels(), packed.described(), &mixing, &layout, 1_025, 2).is_err());
}
