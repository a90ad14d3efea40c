//! The mixture of six sources and the target prompt, forward and backward.

use criterion::Criterion;
use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element, MixSaved, Rows, Sources, State, Weight};
use promptmix::backend::{
    Batch, Device, Mix, MixOps, Mixing, OptimizerOps, PromptRows, Readers, Residual, Scorer, StateLayout,
};

use crate::operands::{
    Op, PROMPT, VOCABULARY, WIDTH, activation, batch, bench, encoder_rows, numbers, weight,
};

const SOURCES: usize = 6;

pub fn mixing() -> Mixing {
    let temperature = WIDTH as f64 * std::f64::consts::E;
    Mixing { scorer: Some(Scorer::Bottleneck), temperature, without_target: false, layer_norm_epsilon: 1e-5 }
}

pub fn layout() -> StateLayout {
    StateLayout::new(&mixing(), 1, PROMPT, WIDTH, 100, false)
}

pub fn state<E: Element>(cpu: &Cpu<E>) -> Result<State<E>> {
    let values: Vec<f64> = numbers(1, layout().len(), 0.1).into_iter().map(f64::from).collect();
    cpu.state(&layout(), &values, 1)
}

pub fn sources<E: Element>(cpu: &Cpu<E>) -> Result<(Sources<E>, usize)> {
    let sources = cpu.sources(&numbers(2, SOURCES * PROMPT * WIDTH, 1.0), SOURCES, PROMPT, WIDTH)?;
    Ok((sources, SOURCES))
}

struct Mixture {
    backward: bool,
}

struct Operands<E: Element> {
    mixing: Mixing,
    batch: Batch,
    table: Weight<E>,
    sources: Sources<E>,
    state: State<E>,
    input: Residual<Cpu<E>>,
    saved: MixSaved<E>,
    d_x: Rows<E>,
}

impl Op for Mixture {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        let (mixing, batch) = (mixing(), batch());
        let table = weight(cpu, 3, VOCABULARY, WIDTH, Readers::Lookup)?;
        let ((sources, _), state, mut input) =
            (sources(cpu)?, state(cpu)?, Residual::new(cpu, encoder_rows(), WIDTH)?);
        let of = Mix { mixing: &mixing, sources: Some(&sources), batch: &batch };
        let saved =
            cpu.mix(&of, &table, &state, PromptRows { input: &mut input, mask: None, epsilon: 1e-6 })?;
        let d_x = activation(cpu, 4, encoder_rows(), WIDTH);
        Ok(Operands { mixing, batch, table, sources, state, input, saved, d_x })
    }

    /// Backward adds to the gradient each time, which takes no longer.
    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) -> Result<()> {
        let of = Mix { mixing: &o.mixing, sources: Some(&o.sources), batch: &o.batch };
        if self.backward {
            return cpu.mix_backward(&of, &o.saved, &o.d_x, &mut o.state);
        }
        let output = PromptRows { input: &mut o.input, mask: None, epsilon: 1e-6 };
        o.saved = cpu.mix(&of, &o.table, &o.state, output)?;
        Ok(())
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Result<Vec<f64>> {
        if self.backward { cpu.read_gradient(&o.state) } else { cpu.read(&o.input.x) }
    }
}

pub fn benches(criterion: &mut Criterion) {
    bench(criterion, "mix", "mix", &Mixture { backward: false });
    bench(criterion, "mix", "mix_backward", &Mixture { backward: true });
}
