//! Decoding token by token against a cache: `kernels/decode.cu`.

use promptmix::backend::{Format, Heads};

use crate::device::{Bounds, Case, Place, follow, narrowed, numbers, roundings};

#[derive(Debug)]
struct Tokens {
    examples: usize,
    heads: Heads,
    length: usize,
}

impl Case for Tokens {
    fn run<B: Place>(&self, backend: &B) -> Vec<(&'static str, Vec<f64>)> {
        let Self { examples, heads, length } = *self;
        let total = heads.total();
        let reach = 9;
        let bias = (0..heads.count as u64).map(|head| narrowed(&numbers(90 + head, 2 * reach + 1, 0.7)));
        let bias = backend.position_bias(bias.collect(), reach);
        let mut cache = backend.cache(2, examples, length, heads);
        let mut said = Vec::new();
        for position in 0..length {
            for layer in 0..2 {
                let spread = (heads.width as f64).powf(-0.25);
                let qkv = numbers((2 * position + layer) as u64, examples * 3 * total, spread);
                let qkv = backend.place(&qkv, 3 * total, Format::Operand);
                let mut o = backend.rows(examples, total, Format::Operand);
                backend.decode_self_attention(layer, position, heads, &bias, &qkv, &mut cache, &mut o);
                said.extend(backend.read(&o));
            }
        }
        vec![("o", said)]
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
