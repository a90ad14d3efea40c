//! Cross attention of the target rows, forward and backward.

use criterion::Criterion;
use promptmix::Result;
use promptmix::backend::cpu::{Cpu, CrossAttentionSaved, Element, Rows, Weight};
use promptmix::backend::{
    Batch, CrossAttention, CrossAttentionBackward, CrossAttentionOps, Device, Readers, Side,
};

use crate::operands::{HEADS, Op, WIDTH, activation, batch, bench, weight};

struct Cross {
    backward: bool,
}

struct Operands<E: Element> {
    batch: Batch,
    w_k: Weight<E>,
    w_v: Weight<E>,
    q: Rows<E>,
    h: Rows<E>,
    o: Rows<E>,
    saved: Option<CrossAttentionSaved<E>>,
    d_o: Rows<E>,
    d_q: Rows<E>,
    d_h: Rows<E>,
}

impl<E: Element> Operands<E> {
    fn forward(&mut self, cpu: &Cpu<E>) -> Result<()> {
        let (batch, w_k, w_v) = (&self.batch, &self.w_k, &self.w_v);
        let of = CrossAttention { batch, heads: HEADS, w_k, w_v, mask: None };
        self.saved = cpu.cross_attention(&of, &self.q, &self.h, &mut self.o, true)?;
        Ok(())
    }
}

impl Op for Cross {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        let batch = batch();
        let (targets, sources, total) = (batch.rows(Side::Decoder), batch.rows(Side::Encoder), HEADS.total());
        // Scores of deviation 1: the deviation of q is K^-1/2.
        let mut q = activation(cpu, 1, targets, total);
        let small: Vec<f64> = cpu.read(&q)?.iter().map(|q| q * (HEADS.width as f64).powf(-0.5)).collect();
        q = cpu.activation_of(&small, total);
        let mut operands = Operands {
            w_k: weight(cpu, 2, total, WIDTH, Readers::Few)?,
            w_v: weight(cpu, 3, total, WIDTH, Readers::Few)?,
            q,
            h: activation(cpu, 4, sources, WIDTH),
            o: cpu.zeros(targets, total)?,
            saved: None,
            d_o: activation(cpu, 5, targets, total),
            d_q: cpu.zeros(targets, total)?,
            d_h: cpu.zeros(sources, WIDTH)?,
            batch,
        };
        operands.forward(cpu)?;
        Ok(operands)
    }

    /// Backward adds to d_h each time, which takes no longer.
    fn run<E: Element>(&self, cpu: &Cpu<E>, x: &mut Operands<E>) -> Result<()> {
        if !self.backward {
            return x.forward(cpu);
        }
        let (batch, w_k, w_v) = (&x.batch, &x.w_k, &x.w_v);
        let of = CrossAttention { batch, heads: HEADS, w_k, w_v, mask: None };
        let saved = x.saved.as_ref().expect("kept by forward");
        let from = CrossAttentionBackward { saved, q: &x.q, h: &x.h, o: &x.o, d_o: &x.d_o };
        cpu.cross_attention_backward(&of, from, Some(&mut x.d_q), &mut x.d_h)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, x: &Operands<E>) -> Result<Vec<f64>> {
        cpu.read(if self.backward { &x.d_h } else { &x.o })
    }
}

pub fn benches(criterion: &mut Criterion) {
    bench(criterion, "cross_attention", "cross_attention", &Cross { backward: false });
    bench(criterion, "cross_attention", "cross_attention_backward", &Cross { backward: true });
}
