//! AdamW over one run's trained state.

use criterion::Criterion;
use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element, State};
use promptmix::backend::{OptimizerOps, OptimizerStep};

use crate::mix::{layout, state};
use crate::operands::{Op, bench, numbers};

struct Update;

impl Op for Update {
    type Operands<E: Element> = State<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<State<E>> {
        let mut state = state(cpu)?;
        let gradient: Vec<f64> = numbers(2, layout().len(), 1e-3).into_iter().map(f64::from).collect();
        cpu.write_gradient(&mut state, &gradient)?;
        Ok(state)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, state: &mut State<E>) -> Result<()> {
        cpu.optimizer_step(state, &[OptimizerStep::new(1e-3, 1e-3)])?;
        cpu.reports(state)?;
        Ok(())
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, state: &State<E>) -> Result<Vec<f64>> {
        cpu.read_state(state).map(|[values, ..]| values)
    }

    /// The gradient twice, parameters and moments read and written.
    fn bytes(&self) -> u64 {
        (4 * 8 * layout().len()) as u64
    }
}

pub fn benches(criterion: &mut Criterion) {
    bench(criterion, "optimizer", "optimizer_step", &Update);
}
