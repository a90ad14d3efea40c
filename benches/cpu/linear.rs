//! Projections, ends of sublayers and feed-forwards, forward and backward, for encoder and decoder rows.

use criterion::Criterion;
use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element, FeedForwardSaved, Rows, Weight};
use promptmix::backend::{
    Activation, Batch, Device, FeedForward, FeedForwardBackward, FeedForwardOps, LinearOps, Projection,
    ProjectionBackward, Readers, Residual, ResidualProjection, ResidualProjectionBackward, Scope, Side,
};

use crate::operands::{EPSILON, HIDDEN, Op, WIDTH, activation, batch, bench, residual, weight};

struct Project(Side);
struct ProjectBackward(Side);
struct AddProject(Side);
struct AddProjectBackward(Side);
struct FeedForwards(Side);
struct FeedForwardsBackward(Side);

/// What a projection reads, a weight, and where the result goes; other rows as wide as the result.
struct Operands<E: Element> {
    batch: Batch,
    input: Residual<Cpu<E>>,
    other: Residual<Cpu<E>>,
    weight: Weight<E>,
    result: Residual<Cpu<E>>,
}

impl<E: Element> Operands<E> {
    fn new(cpu: &Cpu<E>, side: Side, out: usize, input: usize, backward: bool) -> Result<Self> {
        let (batch, readers) = (batch(), readers(side));
        let rows = batch.rows(side);
        let (from, to) = if backward { (out, input) } else { (input, out) };
        let result = Residual { x: cpu.zeros(rows, to)?, ..Residual::new(cpu, rows, to)? };
        Ok(Self {
            input: residual(cpu, 1, rows, from),
            other: residual(cpu, 2, rows, to),
            weight: weight(cpu, 3, out, input, readers)?,
            result,
            batch,
        })
    }
}

fn readers(side: Side) -> Readers {
    if side == Side::Encoder { Readers::Many } else { Readers::Few }
}

impl Op for Project {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        Operands::new(cpu, self.0, 3 * WIDTH, WIDTH, false)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) -> Result<()> {
        let (batch, side, input, weight) = (&o.batch, self.0, &o.input, &o.weight);
        cpu.project(Projection { batch, side, input, weight }, &mut o.result.x)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Result<Vec<f64>> {
        cpu.read(&o.result.x)
    }
}

impl Op for ProjectBackward {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        Operands::new(cpu, self.0, 3 * WIDTH, WIDTH, true)
    }

    /// Adds to its result each time, which takes no longer.
    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) -> Result<()> {
        let of = ProjectionBackward {
            batch: &o.batch,
            side: self.0,
            scope: Scope::All,
            dz: &o.input.x,
            weight: &o.weight,
            input: &o.other,
            below: None,
        };
        cpu.project_backward(of, &mut o.result.x)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Result<Vec<f64>> {
        cpu.read(&o.result.x)
    }
}

impl Op for AddProject {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        Operands::new(cpu, self.0, WIDTH, WIDTH, false)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) -> Result<()> {
        let of = ResidualProjection {
            batch: &o.batch,
            side: self.0,
            y: &o.input.x,
            weight: &o.weight,
            mask: None,
            epsilon: EPSILON,
            x: &o.other.x,
        };
        cpu.add_project(of, &mut o.result)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Result<Vec<f64>> {
        cpu.read(&o.result.x)
    }
}

impl Op for AddProjectBackward {
    type Operands<E: Element> = Operands<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Operands<E>> {
        Operands::new(cpu, self.0, WIDTH, WIDTH, true)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, o: &mut Operands<E>) -> Result<()> {
        let (batch, side, d_x, weight) = (&o.batch, self.0, &o.input.x, &o.weight);
        let of = ResidualProjectionBackward { batch, side, d_x, weight, mask: None, y: None };
        cpu.add_project_backward(of, &mut o.result.x)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, o: &Operands<E>) -> Result<Vec<f64>> {
        cpu.read(&o.result.x)
    }
}

/// A feed-forward's operands and results.
struct Layer<E: Element> {
    batch: Batch,
    w_in: Weight<E>,
    w_out: Weight<E>,
    input: Residual<Cpu<E>>,
    next: Residual<Cpu<E>>,
    saved: Option<FeedForwardSaved<E>>,
}

impl<E: Element> Layer<E> {
    fn new(cpu: &Cpu<E>, side: Side) -> Result<Self> {
        let batch = batch();
        let rows = batch.rows(side);
        Ok(Self {
            w_in: weight(cpu, 1, HIDDEN, WIDTH, readers(side))?,
            w_out: weight(cpu, 2, WIDTH, HIDDEN, readers(side))?,
            input: residual(cpu, 3, rows, WIDTH),
            next: Residual::new(cpu, rows, WIDTH)?,
            saved: None,
            batch,
        })
    }

    fn frozen(&self, side: Side) -> FeedForward<'_, Cpu<E>> {
        FeedForward {
            batch: &self.batch,
            side,
            w_in: &self.w_in,
            w_out: &self.w_out,
            activation: Activation::Relu,
            inner_mask: None,
            output_mask: None,
            epsilon: EPSILON,
        }
    }

    fn forward(&mut self, cpu: &Cpu<E>, side: Side) -> Result<()> {
        let mut next = Residual::new(cpu, self.batch.rows(side), WIDTH)?;
        self.saved = cpu.feed_forward(&self.frozen(side), &self.input, &mut next, true)?;
        self.next = next;
        Ok(())
    }
}

impl Op for FeedForwards {
    type Operands<E: Element> = Layer<E>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Layer<E>> {
        Layer::new(cpu, self.0)
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, layer: &mut Layer<E>) -> Result<()> {
        layer.forward(cpu, self.0)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, layer: &Layer<E>) -> Result<Vec<f64>> {
        cpu.read(&layer.next.x)
    }
}

impl Op for FeedForwardsBackward {
    type Operands<E: Element> = (Layer<E>, Rows<E>);

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Self::Operands<E>> {
        let mut layer = Layer::new(cpu, self.0)?;
        layer.forward(cpu, self.0)?;
        let d_x = activation(cpu, 4, layer.batch.rows(self.0), WIDTH);
        Ok((layer, d_x))
    }

    fn prepare<E: Element>(&self, cpu: &Cpu<E>, (layer, d_x): &mut Self::Operands<E>) -> Result<()> {
        *d_x = activation(cpu, 4, layer.batch.rows(self.0), WIDTH);
        Ok(())
    }

    fn run<E: Element>(&self, cpu: &Cpu<E>, (layer, d_x): &mut Self::Operands<E>) -> Result<()> {
        let saved = layer.saved.as_ref().expect("kept by forward");
        let from = FeedForwardBackward { saved, input: &layer.input, x_next: &layer.next.x };
        cpu.feed_forward_backward(&layer.frozen(self.0), from, d_x)
    }

    fn results<E: Element>(&self, cpu: &Cpu<E>, (_, d_x): &Self::Operands<E>) -> Result<Vec<f64>> {
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
