//! The mixture of six sources and the target prompt, forward and backward.

use criterion::Criterion;
use promptmix::backend::cpu::{Cpu, Element, MixKept, Rows, Sources, State, Weight};
use promptmix::backend::{Backend, Batch, Mixing, Readers, Scorer, StateLayout};

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

pub fn state<E: Element>(cpu: &Cpu<E>) -> State<E> {
    let values: Vec<f64> = numbers(1, layout().len(), 0.1).into_iter().map(f64::from).collect();
    cpu.state(&layout(), &values, 1)
}

pub fn sources<E: Element>(cpu: &Cpu<E>) -> (Sources<E>, usize) {
    (cpu.sources(&numbers(2, SOURCES * PROMPT * WIDTH, 1.0), SOURCES, PROMPT, WIDTH), SOURCES)
}

struct Mix {
    backward: bool,
}

struct Operands<E: Element> {
    batch: Batch,
    table: Weight<E>,
    sources: Sources<E>,
    state: State<E>,
    x: Rows<E>,
    kept: MixKept<E>,
    d_x: Rows<E>,
}

impl Op for Mix {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Operands<E> {
        let (batch, table) = (batch(), weight(cpu, 3, VOCABULARY, WIDTH, Readers::Lookup));
        let ((sources, _), state, mut x) = (sources(cpu), state(cpu), cpu.zeros(encoder_rows(), WIDTH));
        let kept = cpu.mix(&mixing(), &table, Some(&sources), &state, &batch, &mut x);
        let d_x = activation(cpu, 4, encoder_rows(), WIDTH);
        Operands { batch, table, sources, state, x, kept, d_x }
    }

    /// Backward adds to the gradient each time, which takes no longer.
    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) {
        let (mixing, sources) = (mixing(), Some(&o.sources));
        if self.backward {
            cpu.mix_backward(&mixing, sources, &o.batch, &o.kept, &o.d_x, &mut o.state);
        } else {
            o.kept = cpu.mix(&mixing, &o.table, sources, &o.state, &o.batch, &mut o.x);
        }
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Vec<f64> {
        if self.backward { cpu.read_gradient(&o.state) } else { cpu.read(&o.x) }
    }
}

pub fn benches(criterion: &mut Criterion) {
    bench(criterion, "mix", "mix", &Mix { backward: false });
    bench(criterion, "mix", "mix_backward", &Mix { backward: true });
}
