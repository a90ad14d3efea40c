//! Rows that enter and leave a stack.

use criterion::Criterion;
use promptmix::backend::cpu::{Cpu, Element, Rows, Weight};
use promptmix::backend::{Backend, Batch, Format, Readers, Side};

use crate::operands::{EPSILON, Op, VOCABULARY, WIDTH, activation, batch, bench, encoder_rows, norm, weight};

struct Embed;
struct FinalNorm {
    backward: bool,
}

struct Entering<E: Element> {
    batch: Batch,
    table: Weight<E>,
    x: Rows<E>,
    r: Rows<E>,
}

impl Op for Embed {
    type Operands<E: Element> = Entering<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Entering<E> {
        Entering {
            table: weight(cpu, 1, VOCABULARY, WIDTH, Readers::Lookup),
            x: activation(cpu, 2, encoder_rows(), WIDTH),
            r: cpu.rows(encoder_rows(), WIDTH, Format::Norm),
            batch: batch(),
        }
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Entering<E>) {
        cpu.embed(&o.table, Side::Encoder, &o.batch, None, EPSILON, &mut o.x, &mut o.r);
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Entering<E>) -> Vec<f64> {
        cpu.read(&o.r)
    }

    /// Token rows read and written, then all rows read.
    fn bytes(&self) -> u64 {
        (4 * WIDTH * (2 * 8 * 128 + encoder_rows())) as u64
    }
}

struct Leaving<E: Element> {
    batch: Batch,
    x: Rows<E>,
    r: Rows<E>,
    d_h: Rows<E>,
    result: Rows<E>,
}

impl Op for FinalNorm {
    type Operands<E: Element> = Leaving<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Leaving<E> {
        let rows = encoder_rows();
        Leaving {
            batch: batch(),
            x: activation(cpu, 1, rows, WIDTH),
            r: norm(cpu, rows),
            d_h: activation(cpu, 2, rows, WIDTH),
            result: cpu.rows(rows, WIDTH, Format::Residual),
        }
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Leaving<E>) {
        let (batch, side, result) = (&o.batch, Side::Encoder, &mut o.result);
        if self.backward {
            cpu.final_norm_backward(batch, side, &o.x, &o.r, None, 1.0, None, &o.d_h, None, result);
        } else {
            cpu.final_norm(batch, side, &o.x, &o.r, None, 1.0, None, result);
        }
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Leaving<E>) -> Vec<f64> {
        cpu.read(&o.result)
    }

    fn bytes(&self) -> u64 {
        (4 * WIDTH * encoder_rows() * if self.backward { 3 } else { 2 }) as u64
    }
}

pub fn benches(criterion: &mut Criterion) {
    bench(criterion, "norm", "embed", &Embed);
    bench(criterion, "norm", "final_norm", &FinalNorm { backward: false });
    bench(criterion, "norm", "final_norm_backward", &FinalNorm { backward: true });
}
