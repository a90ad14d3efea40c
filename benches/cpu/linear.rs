//! Projections, ends of sublayers and feed-forwards, forward and backward, for encoder and decoder rows.

use criterion::Criterion;
use promptmix::backend::cpu::{Cpu, Element, FeedForwardKept, Rows, Weight};
use promptmix::backend::{Activation, Backend, Batch, FeedForward, Format, Readers, Scope, Side};

use crate::operands::{EPSILON, HIDDEN, Op, WIDTH, activation, batch, bench, norm, weight};

struct Project(Side);
struct ProjectBackward(Side);
struct AddProject(Side);
struct AddProjectBackward(Side);
struct FeedForwards(Side);
struct FeedForwardsBackward(Side);

/// x or y, r, a weight, and where the result goes.
struct Operands<E: Element> {
    batch: Batch,
    input: Rows<E>,
    r: Rows<E>,
    other: Rows<E>,
    weight: Weight<E>,
    result: Rows<E>,
    r_result: Rows<E>,
}

impl<E: Element> Operands<E> {
    fn new(cpu: &Cpu<E>, side: Side, out: usize, input: usize, backward: bool) -> Self {
        let (batch, readers) = (batch(), readers(side));
        let rows = batch.rows(side);
        let (from, to) = if backward { (out, input) } else { (input, out) };
        Self {
            input: activation(cpu, 1, rows, from),
            r: norm(cpu, rows),
            other: activation(cpu, 2, rows, to),
            weight: weight(cpu, 3, out, input, readers),
            result: cpu.zeros(rows, to),
            r_result: cpu.rows(rows, to, Format::Norm),
            batch,
        }
    }
}

fn readers(side: Side) -> Readers {
    if side == Side::Encoder { Readers::Many } else { Readers::Few }
}

impl Op for Project {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Operands<E> {
        Operands::new(cpu, self.0, 3 * WIDTH, WIDTH, false)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) {
        cpu.project(&o.batch, self.0, &o.input, &o.r, &o.weight, &mut o.result);
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Vec<f64> {
        cpu.read(&o.result)
    }
}

impl Op for ProjectBackward {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Operands<E> {
        Operands::new(cpu, self.0, 3 * WIDTH, WIDTH, true)
    }

    /// Adds to its result each time, which takes no longer.
    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) {
        cpu.project_backward(
            &o.batch,
            self.0,
            Scope::All,
            &o.input,
            &o.weight,
            &o.other,
            &o.r,
            None,
            &mut o.result,
        );
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Vec<f64> {
        cpu.read(&o.result)
    }
}

impl Op for AddProject {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Operands<E> {
        Operands::new(cpu, self.0, WIDTH, WIDTH, false)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) {
        let (result, r) = (&mut o.result, &mut o.r_result);
        cpu.add_project(&o.batch, self.0, &o.input, &o.weight, None, EPSILON, &o.other, result, r);
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Vec<f64> {
        cpu.read(&o.result)
    }
}

impl Op for AddProjectBackward {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Operands<E> {
        Operands::new(cpu, self.0, WIDTH, WIDTH, true)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) {
        cpu.add_project_backward(&o.batch, self.0, &o.input, &o.weight, None, None, &mut o.result);
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Vec<f64> {
        cpu.read(&o.result)
    }
}

/// A feed-forward's operands and results.
struct Layer<E: Element> {
    batch: Batch,
    w_in: Weight<E>,
    w_out: Weight<E>,
    x: Rows<E>,
    r: Rows<E>,
    x_next: Rows<E>,
    r_next: Rows<E>,
    kept: Option<FeedForwardKept<E>>,
}

impl<E: Element> Layer<E> {
    fn new(cpu: &Cpu<E>, side: Side) -> Self {
        let batch = batch();
        let rows = batch.rows(side);
        Self {
            w_in: weight(cpu, 1, HIDDEN, WIDTH, readers(side)),
            w_out: weight(cpu, 2, WIDTH, HIDDEN, readers(side)),
            x: activation(cpu, 3, rows, WIDTH),
            r: norm(cpu, rows),
            x_next: cpu.rows(rows, WIDTH, Format::Residual),
            r_next: cpu.rows(rows, WIDTH, Format::Norm),
            kept: None,
            batch,
        }
    }

    fn frozen(&self) -> FeedForward<'_, Cpu<E>> {
        FeedForward {
            w_in: &self.w_in,
            w_out: &self.w_out,
            activation: Activation::Relu,
            inner_mask: None,
            output_mask: None,
            epsilon: EPSILON,
        }
    }

    fn forward(&mut self, cpu: &Cpu<E>, side: Side) {
        let [mut x_next, mut r_next] = [(WIDTH, Format::Residual), (WIDTH, Format::Norm)]
            .map(|(width, format)| cpu.rows(self.batch.rows(side), width, format));
        let (batch, x, r) = (&self.batch, &self.x, &self.r);
        self.kept = cpu.feed_forward(batch, side, &self.frozen(), x, r, &mut x_next, &mut r_next, true);
        (self.x_next, self.r_next) = (x_next, r_next);
    }
}

impl Op for FeedForwards {
    type Operands<E: Element> = Layer<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Layer<E> {
        Layer::new(cpu, self.0)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, layer: &mut Layer<E>) {
        layer.forward(cpu, self.0);
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, layer: &Layer<E>) -> Vec<f64> {
        cpu.read(&layer.x_next)
    }
}

impl Op for FeedForwardsBackward {
    type Operands<E: Element> = (Layer<E>, Rows<E>);

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Self::Operands<E> {
        let mut layer = Layer::new(cpu, self.0);
        layer.forward(cpu, self.0);
        let d_x = activation(cpu, 4, layer.batch.rows(self.0), WIDTH);
        (layer, d_x)
    }

    fn prepare<E: Element>(&self, cpu: &Cpu<E>, (layer, d_x): &mut Self::Operands<E>) {
        *d_x = activation(cpu, 4, layer.batch.rows(self.0), WIDTH);
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, (layer, d_x): &mut Self::Operands<E>) {
        let kept = layer.kept.as_ref().expect("kept by forward");
        let (x, r, x_next) = (&layer.x, &layer.r, &layer.x_next);
        cpu.feed_forward_backward(&layer.batch, self.0, &layer.frozen(), kept, x, r, x_next, d_x);
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, (_, d_x): &Self::Operands<E>) -> Vec<f64> {
        cpu.read(d_x)
    }

    /// Of millions of pre-activations a few lie so close to zero that ReLU cuts them in one format alone: one term of F.
    fn bound(&self) -> f64 {
        0.02
    }
}

pub fn benches(criterion: &mut Criterion) {
    for (side, rows) in [(Side::Encoder, "encoder rows"), (Side::Decoder, "decoder rows")] {
        bench(criterion, "linear", &format!("project, {rows}"), &Project(side));
        bench(criterion, "linear", &format!("project_backward, {rows}"), &ProjectBackward(side));
        bench(criterion, "linear", &format!("add_project, {rows}"), &AddProject(side));
        bench(criterion, "linear", &format!("add_project_backward, {rows}"), &AddProjectBackward(side));
        bench(criterion, "linear", &format!("feed_forward, {rows}"), &FeedForwards(side));
        bench(criterion, "linear", &format!("feed_forward_backward, {rows}"), &FeedForwardsBackward(side));
    }
}
