//! The head and its cross entropy, with and without a gradient.

use criterion::Criterion;
use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element, Rows, Weight};
use promptmix::backend::{Batch, Device, LmHead, Loss, LossOps, Readers};
use promptmix::model::label_weights;

use crate::operands::{Op, VOCABULARY, WIDTH, activation, batch, bench, weight};

struct CrossEntropy {
    with_gradient: bool,
}

struct Operands<E: Element> {
    batch: Batch,
    lm_head: Weight<E>,
    mean: Weight<E>,
    hidden: Rows<E>,
    d_hidden: Rows<E>,
    loss: Option<Loss>,
}

impl Op for CrossEntropy {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        let batch = batch();
        let count = batch.labels().len();
        let weights = label_weights(&batch, &[count]);
        Ok(Operands {
            batch: batch.weighted(weights)?,
            lm_head: weight(cpu, 1, VOCABULARY, WIDTH, Readers::Lookup)?,
            mean: weight(cpu, 3, 1, WIDTH, Readers::Lookup)?,
            hidden: activation(cpu, 2, count, WIDTH),
            d_hidden: cpu.zeros(count, WIDTH)?,
            loss: None,
        })
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) -> Result<()> {
        let d_hidden = self.with_gradient.then_some(&mut o.d_hidden);
        let lm_head = LmHead { weight: &o.lm_head, mean: &o.mean };
        o.loss = Some(cpu.read_loss(&cpu.loss(&o.batch, &o.hidden, &lm_head, d_hidden)?)?);
        Ok(())
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Result<Vec<f64>> {
        if self.with_gradient {
            return cpu.read(&o.d_hidden);
        }
        Ok(o.loss.as_ref().expect("run before").negative_log_likelihood.clone())
    }
}

pub fn benches(criterion: &mut Criterion) {
    bench(criterion, "loss", "loss", &CrossEntropy { with_gradient: false });
    bench(criterion, "loss", "loss and gradient", &CrossEntropy { with_gradient: true });
}
