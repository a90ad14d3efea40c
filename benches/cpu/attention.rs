//! Self attention over the encoder's rows, forward and backward.

use criterion::Criterion;
use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element, PositionBias, Rows};
use promptmix::backend::{
    Batch, Device, DropoutStep, Format, Scope, SelfAttention, SelfAttentionBackward, SelfAttentionOps, Side,
    Site, SiteKind,
};

use crate::operands::{HEADS, Op, activation, batch, bench, numbers};

struct Attention {
    dropout: Option<DropoutStep>,
    backward: bool,
}

struct Operands<E: Element> {
    batch: Batch,
    bias: PositionBias<E>,
    qkv: Rows<E>,
    o: Rows<E>,
    log_sum_exp: Rows<E>,
    d_o: Rows<E>,
    d_qkv: Rows<E>,
}

impl Attention {
    fn of<'a, E: Element>(
        &'a self,
        batch: &'a Batch,
        bias: &'a PositionBias<E>,
    ) -> SelfAttention<'a, Cpu<E>> {
        let site = Site::new(Side::Encoder, SiteKind::SelfAttention, 0);
        let mask = self.dropout.as_ref().map(|dropout| (dropout, site));
        SelfAttention { batch, side: Side::Encoder, heads: HEADS, bias, mask }
    }

    fn forward<E: Element>(&self, cpu: &Cpu<E>, x: &mut Operands<E>) -> Result<()> {
        let of = self.of(&x.batch, &x.bias);
        cpu.self_attention(&of, &x.qkv, &mut x.o, &mut x.log_sum_exp)
    }
}

impl Op for Attention {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        let (batch, max_distance) = (batch(), 128);
        let rows = batch.rows(Side::Encoder);
        let bias = (0..HEADS.count as u64).map(|head| numbers(head, 2 * max_distance + 1, 1.0)).collect();
        // Scores of deviation 1: q and k of K^-1/4.
        let scale = (HEADS.width as f64).powf(-0.25);
        let values: Vec<f64> =
            numbers(1, rows * 3 * HEADS.total(), scale).into_iter().map(f64::from).collect();
        let mut operands = Operands {
            bias: cpu.position_bias(bias, max_distance)?,
            qkv: cpu.activation_of(&values, 3 * HEADS.total()),
            o: cpu.rows(rows, HEADS.total(), Format::Operand)?,
            log_sum_exp: cpu.rows(rows, HEADS.count, Format::Float)?,
            d_o: activation(cpu, 2, rows, HEADS.total()),
            d_qkv: cpu.rows(rows, 3 * HEADS.total(), Format::ProjectionGradient)?,
            batch,
        };
        self.forward(cpu, &mut operands)?;
        Ok(operands)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, x: &mut Operands<E>) -> Result<()> {
        if !self.backward {
            return self.forward(cpu, x);
        }
        let from = SelfAttentionBackward {
            scope: Scope::All,
            qkv: &x.qkv,
            o: &x.o,
            log_sum_exp: &x.log_sum_exp,
            d_o: &x.d_o,
        };
        cpu.self_attention_backward(&self.of(&x.batch, &x.bias), from, &mut x.d_qkv)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, x: &Operands<E>) -> Result<Vec<f64>> {
        cpu.read(if self.backward { &x.d_qkv } else { &x.o })
    }
}

pub fn benches(criterion: &mut Criterion) {
    for probability in [0.0, 0.1] {
        for (backward, name) in [(false, "self_attention"), (true, "self_attention_backward")] {
            let dropout = DropoutStep::new(probability, 1, &[7]);
            let name = format!("{name}, dropout {probability}");
            bench(criterion, "attention", &name, &Attention { dropout, backward });
        }
    }
}
