//! Self attention of one decoding step, for 32 examples at the eighth token.

use criterion::Criterion;
use promptmix::Result;
use promptmix::backend::cpu::{Cache, Cpu, Element, PositionBias, Rows};
use promptmix::backend::{DecodeOps, DecodeStep, Device, SelfAttentionOps};

use crate::operands::{HEADS, Op, activation, bench, numbers};

const EXAMPLES: usize = 32;
const POSITION: usize = 7;

struct DecodeSelfAttention;

struct Operands<E: Element> {
    bias: PositionBias<E>,
    qkv: Rows<E>,
    cache: Cache<E>,
    o: Rows<E>,
}

impl Op for DecodeSelfAttention {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        let bias = (0..HEADS.count as u64).map(|head| numbers(head, 257, 1.0)).collect();
        let mut operands = Operands {
            bias: cpu.position_bias(bias, 128)?,
            qkv: activation(cpu, 1, EXAMPLES, 3 * HEADS.total()),
            cache: cpu.cache(1, EXAMPLES, POSITION + 1, HEADS)?,
            o: cpu.zeros(EXAMPLES, HEADS.total())?,
        };
        for position in 0..POSITION {
            let qkv = activation(cpu, 2 + position as u64, EXAMPLES, 3 * HEADS.total());
            let step = DecodeStep { layer: 0, position, heads: HEADS, bias: &operands.bias };
            cpu.decode_self_attention(&step, &qkv, &mut operands.cache, &mut operands.o)?;
        }
        Ok(operands)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, x: &mut Operands<E>) -> Result<()> {
        let step = DecodeStep { layer: 0, position: POSITION, heads: HEADS, bias: &x.bias };
        cpu.decode_self_attention(&step, &x.qkv, &mut x.cache, &mut x.o)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, x: &Operands<E>) -> Result<Vec<f64>> {
        cpu.read(&x.o)
    }

    /// Keys and values so far, q, k and v of the new token, and o.
    fn bytes(&self) -> u64 {
        (4 * EXAMPLES * HEADS.total() * (2 * (POSITION + 1) + 4)) as u64
    }
}

pub fn benches(criterion: &mut Criterion) {
    bench(criterion, "decode", "decode_self_attention", &DecodeSelfAttention);
}
