//! Decoding token by token against a cache: `kernels/decode.cu`.

use promptmix::Result;
use promptmix::backend::{DecodeStep, Embedding, Format, Heads, LmHead, Readers, Residual, Side};
use promptmix::cuda::decode::DecodeStep as RawStep;

use crate::device::{Bounds, Case, Place, Raw, Results, batch, follow, narrowed, numbers, roundings, sums};

#[derive(Debug)]
struct Tokens {
    examples: usize,
    heads: Heads,
    length: usize,
}

impl Case for Tokens {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { examples, heads, length } = *self;
        let total = heads.total();
        let max_distance = 9;
        let bias = (0..heads.count as u64)
            .map(|lm_head| narrowed(&numbers(90 + lm_head, 2 * max_distance + 1, 0.7)));
        let bias = backend.position_bias(bias.collect(), max_distance)?;
        let mut cache = backend.cache(2, examples, length, heads)?;
        let mut said = Vec::new();
        for position in 0..length {
            for layer in 0..2 {
                let spread = (heads.width as f64).powf(-0.25);
                let qkv = numbers((2 * position + layer) as u64, examples * 3 * total, spread);
                let qkv = backend.place(&qkv, 3 * total, Format::Operand)?;
                let mut o = backend.rows(examples, total, Format::Operand)?;
                let step = DecodeStep { layer, position, heads, bias: &bias };
                backend.decode_self_attention(&step, &qkv, &mut cache, &mut o)?;
                said.extend(backend.read(&o)?);
            }
        }
        Ok(vec![("o", said)])
    }
}

#[test]
fn tokens_beside_a_warp() {
    for (examples, heads, length) in [
        (1, Heads { count: 1, width: 8 }, 1),
        (3, Heads { count: 2, width: 24 }, 34),
        (2, Heads { count: 8, width: 64 }, 5),
        (2, Heads { count: 3, width: 128 }, 4),
    ] {
        // bf16: o alone is rounded; q, k and v hold exactly.
        let case = Tokens { examples, heads, length };
        follow(&case, Bounds { terms: heads.width + length, bf16: roundings(2.0) });
    }
}

/// Each of some steps chooses by a head and embeds what the step before chose.
#[derive(Debug)]
struct Chosen {
    examples: usize,
    width: usize,
}

impl Case for Chosen {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { examples, width } = *self;
        let (vocabulary, steps, epsilon) = (90, 3, 1e-6);
        let batch = batch(&vec![(2, 1); examples], 1, vocabulary).decoded(0, steps)?;
        let table = narrowed(&numbers(1, vocabulary * width, 1.0));
        let weight = backend.weight(table, vocabulary, width, Readers::Lookup)?;
        let mean = backend.weight(vec![0.0; width], 1, width, Readers::Lookup)?;
        let lm_head = LmHead { weight: &weight, mean: &mean };
        let mut tokens = backend.tokens(examples, steps)?;
        let mut results = Vec::new();
        for step in 0..steps {
            let hidden =
                backend.place(&numbers(10 + step as u64, examples * width, 1.0), width, Format::Operand)?;
            backend.choose_tokens(&batch, &hidden, &lm_head, &mut tokens, step)?;
            let mut x = Residual::new(backend, examples, width)?;
            let of = Embedding { table: &weight, batch: &batch, side: Side::Decoder, mask: None, epsilon };
            backend.embed_tokens(of, &tokens, step, &mut x)?;
            results.push(("x", backend.read(&x.x)?));
            results.push(("r", backend.read(&x.r)?));
        }
        let chosen = backend.read_tokens(&tokens, 0..steps)?;
        assert!(chosen.iter().any(|of| of != &chosen[0]), "steps chose different tokens");
        assert_eq!(backend.read_tokens(&tokens, 1..2)?, chosen[1..2]);
        assert!(backend.read_tokens(&tokens, 1..steps + 1).is_err(), "no such step");
        results.push(("chosen", chosen.concat().into_iter().map(f64::from).collect()));
        Ok(results)
    }
}

#[test]
fn tokens_that_steps_choose_stay_on_the_device() {
    // Steps' tokens begin on 16 bytes, however many examples there are.
    for (examples, width) in [(1, 40), (3, 8), (4, 64), (9, 72)] {
        // Nothing is rounded but the norm's sum, and another token would be a whole number off.
        follow(&Chosen { examples, width }, Bounds { terms: width, bf16: sums(width) });
    }
}

#[test]
fn a_decoding_step_on_buffers_of_ones_own() {
    let Some(raw) = Raw::new() else { return };
    let kernels = raw.kernels();
    let (examples, length, max_distance) = (3, 40, 5);
    for heads in [Heads { count: 1, width: 8 }, Heads { count: 3, width: 72 }] {
        let (total, spread) = (heads.total(), (heads.width as f64).powf(-0.25));
        for position in [0, 1, 31, 32, 39] {
            let (qkv, cache) =
                (numbers(1, examples * 3 * total, spread), numbers(2, examples * length * 2 * total, spread));
            let biases = numbers(3, heads.count * (2 * max_distance + 1), 0.7);
            // What lies after the position must not be read.
            let mut known = cache.clone();
            for (i, value) in known.iter_mut().enumerate() {
                if i / (2 * total) % length >= position {
                    *value = f64::NAN;
                }
            }
            let (qkv_device, bias) = (raw.halves(&qkv), raw.floats(&biases));
            let (mut cache_device, mut o) = (raw.halves(&known), raw.poisoned_halves(examples * total));
            let step = RawStep { examples, heads, length, position, bias: (&bias, max_distance) };
            step.forward(kernels, &qkv_device, &mut cache_device, &mut o).expect("a step");
            let mut expected = vec![0.0; examples * total];
            for (at, o) in expected.iter_mut().enumerate() {
                let (example, lm_head, column) = (at / total, at % total / heads.width, at % heads.width);
                let own = &qkv[example * 3 * total..(example + 1) * 3 * total];
                let of = |key: usize, part: usize, column: usize| {
                    let column = lm_head * heads.width + column;
                    if key == position {
                        own[(1 + part) * total + column]
                    } else {
                        cache[(example * length + key) * 2 * total + part * total + column]
                    }
                };
                let score = |key: usize| {
                    let q = &own[lm_head * heads.width..(lm_head + 1) * heads.width];
                    let product: f64 = q.iter().enumerate().map(|(column, q)| q * of(key, 0, column)).sum();
                    product
                        + biases[lm_head * (2 * max_distance + 1) + max_distance
                            - (position - key).min(max_distance)]
                };
                let weights: Vec<f64> = (0..=position).map(|key| score(key).exp()).collect();
                let sum: f64 = weights.iter().sum();
                *o = weights.iter().enumerate().map(|(key, weight)| weight / sum * of(key, 1, column)).sum();
            }
            raw.holds("o", &o, &expected, roundings(2.1));
            let after = raw.read(&cache_device);
            for example in 0..examples {
                let joined = &after[(example * length + position) * 2 * total..][..2 * total];
                assert_eq!(joined, &qkv[example * 3 * total + total..(example + 1) * 3 * total]);
            }
        }
    }
    let heads = Heads { count: 1, width: 8 };
    let bias = raw.floats(&[0.0; 3]);
    let step = RawStep { examples: 1, heads, length: 2, position: 2, bias: (&bias, 1) };
    let (qkv, mut cache, mut o) = (raw.halves(&[0.0; 24]), raw.poisoned_halves(32), raw.poisoned_halves(8));
    let refused = step.forward(kernels, &qkv, &mut cache, &mut o);
    assert!(refused.expect_err("a full cache").to_string().contains("below 2"));
}
