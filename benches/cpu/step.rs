//! The whole of t5-small: forward alone, and a training step.

use criterion::Criterion;
use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element, State};
use promptmix::backend::{Batch, DropoutStep, OptimizerOps, OptimizerStep};
use promptmix::model::{Mixture, Pass, T5, Tensors};
use promptmix::pretrained::T5Config;

use crate::mix::{layout, mixing, sources, state};
use crate::operands::{Op, batch, bench, numbers};

/// Weights that keep activations of ordinary size; gains are 1.
struct MadeUp(T5Config);

impl Tensors for MadeUp {
    fn config(&self) -> &T5Config {
        &self.0
    }

    fn read_into(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<()> {
        let inputs = if name == "shared.weight" { 1 } else { *shape.last().expect("a shape") };
        let seed =
            name.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        match shape.len() {
            1 => values.fill(1.0),
            _ => values.copy_from_slice(&numbers(seed, values.len(), (inputs as f64).powf(-0.5))),
        }
        Ok(())
    }

    fn output_is_tied(&self) -> Result<bool> {
        Ok(self.0.tie_word_embeddings)
    }
}

struct Whole {
    probability: f64,
    backward: bool,
}

struct Operands<E: Element> {
    batch: Batch,
    model: T5<Cpu<E>>,
    mixture: Mixture<Cpu<E>>,
    state: State<E>,
    loss: f64,
}

impl Op for Whole {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        let model = T5::load(cpu, &MadeUp(T5Config::t5_small()))?;
        let (sources, source_count) = sources(cpu)?;
        let mixture = Mixture { mixing: mixing(), sources: Some(sources), source_count, layout: layout() };
        Ok(Operands { batch: batch(), model, mixture, state: state(cpu)?, loss: f64::NAN })
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) -> Result<()> {
        let dropout = DropoutStep::new(self.probability, 1, &[7]);
        let tokens = [o.batch.label_tokens(0)];
        if !self.backward {
            let pass = Pass { dropout: dropout.as_ref(), keep: false, observe: None };
            o.loss = o.model.loss(cpu, &o.mixture, &o.state, &o.batch, &tokens, pass)?.per_run[0];
            return Ok(());
        }
        cpu.begin_step(&mut o.state)?;
        let (model, mixture, batch) = (&o.model, &o.mixture, &o.batch);
        let (loss, _) =
            model.loss_and_gradient(cpu, mixture, &mut o.state, batch, &tokens, dropout.as_ref())?;
        o.loss = loss.per_run[0];
        cpu.optimizer_step(&mut o.state, &[OptimizerStep::new(1e-3, 1e-3)])?;
        cpu.reports(&mut o.state)?;
        Ok(())
    }

    fn results<E: Element>(&self, _cpu: &Cpu<E>, o: &Operands<E>) -> Result<Vec<f64>> {
        Ok(vec![o.loss])
    }
}

pub fn benches(criterion: &mut Criterion) {
    for probability in [0.0, 0.1] {
        for (backward, name) in [(false, "forward"), (true, "step")] {
            let name = format!("{name}, dropout {probability}");
            bench(criterion, "step", &name, &Whole { probability, backward });
        }
    }
}
