//! Rows that enter and leave a stack.

use criterion::Criterion;
use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element, Rows, Weight};
use promptmix::backend::{
    Batch, Device, Embedding, EmbeddingOps, FinalNorm, FinalNormBackward, Format, NormOps, Readers, Residual,
    Side,
};

use crate::operands::{
    EPSILON, Op, VOCABULARY, WIDTH, activation, batch, bench, encoder_rows, residual, weight,
};

struct Embed;
struct Norm {
    backward: bool,
}

struct Entering<E: Element> {
    batch: Batch,
    table: Weight<E>,
    output: Residual<Cpu<E>>,
}

impl Op for Embed {
    type Operands<E: Element> = Entering<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Entering<E>> {
        let (x, r) =
            (activation(cpu, 2, encoder_rows(), WIDTH), cpu.rows(encoder_rows(), WIDTH, Format::Norm)?);
        Ok(Entering {
            table: weight(cpu, 1, VOCABULARY, WIDTH, Readers::Lookup)?,
            output: Residual { x, r },
            batch: batch(),
        })
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Entering<E>) -> Result<()> {
        let (table, batch, side) = (&o.table, &o.batch, Side::Encoder);
        cpu.embed(Embedding { table, batch, side, mask: None, epsilon: EPSILON }, &mut o.output)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Entering<E>) -> Result<Vec<f64>> {
        cpu.read(&o.output.r)
    }

    /// Token rows read and written, then all rows read.
    fn bytes(&self) -> u64 {
        (4 * WIDTH * (2 * 8 * 128 + encoder_rows())) as u64
    }
}

struct Leaving<E: Element> {
    batch: Batch,
    input: Residual<Cpu<E>>,
    d_h: Rows<E>,
    result: Rows<E>,
}

impl Op for Norm {
    type Operands<E: Element> = Leaving<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Leaving<E>> {
        let rows = encoder_rows();
        Ok(Leaving {
            batch: batch(),
            input: residual(cpu, 1, rows, WIDTH),
            d_h: activation(cpu, 2, rows, WIDTH),
            result: cpu.rows(rows, WIDTH, Format::Residual)?,
        })
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Leaving<E>) -> Result<()> {
        let (batch, side, input) = (&o.batch, Side::Encoder, &o.input);
        let of = FinalNorm { batch, side, input, norm_weight: None, scale: 1.0, mask: None };
        if self.backward {
            let from = FinalNormBackward { d_h: &o.d_h, below: None };
            return cpu.final_norm_backward(of, from, &mut o.result);
        }
        cpu.final_norm(of, &mut o.result)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Leaving<E>) -> Result<Vec<f64>> {
        cpu.read(&o.result)
    }

    fn bytes(&self) -> u64 {
        (4 * WIDTH * encoder_rows() * if self.backward { 3 } else { 2 }) as u64
    }
}

pub fn benches(criterion: &mut Criterion) {
    bench(criterion, "norm", "embed", &Embed);
    bench(criterion, "norm", "final_norm", &Norm { backward: false });
    bench(criterion, "norm", "final_norm_backward", &Norm { backward: true });
}
