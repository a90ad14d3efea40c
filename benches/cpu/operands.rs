//! Operands of t5-small, and the check before the clock.

use std::time::Instant;

use criterion::{Criterion, Throughput};
use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element, Rows, Weight};
use promptmix::backend::{Batch, Device, Example, Heads, Readers, Residual, Side};
use promptmix::verify::{Tolerance, compare};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

pub const WIDTH: usize = 512;
pub const HIDDEN: usize = 2_048;
pub const VOCABULARY: usize = 32_128;
pub const PROMPT: usize = 100;
pub const HEADS: Heads = Heads { count: 8, width: 64 };
pub const EPSILON: f64 = 1e-6;

/// An op with its operands on a device of either format.
pub trait Op {
    /// Operands and results.
    type Operands<E: Element>;

    fn operands<E: Element>(&self, cpu: &Cpu<E>) -> Result<Self::Operands<E>>;
    /// Puts back what a run overwrites, if that matters; not timed.
    fn prepare<E: Element>(&self, _cpu: &Cpu<E>, _operands: &mut Self::Operands<E>) -> Result<()> {
        Ok(())
    }
    /// What is timed.
    fn run<E: Element>(&self, cpu: &Cpu<E>, operands: &mut Self::Operands<E>) -> Result<()>;
    /// What of its results is checked.
    fn results<E: Element>(&self, cpu: &Cpu<E>, operands: &Self::Operands<E>) -> Result<Vec<f64>>;
    /// Bytes read and written, for an op without products.
    fn bytes(&self) -> u64 {
        0
    }
    /// How far f32 may be from f64, of the largest result. The longest sum has F terms: each may be off by half a unit in
    /// the last place (2^-24) of a partial sum, and partial sums reach a few times the result.
    fn bound(&self) -> f64 {
        4.0 * HIDDEN as f64 * 2.0_f64.powi(-24)
    }
}

/// Checks an op, then times it.
///
/// # Panics
/// If its results in f32 are not those in f64 to rounding, or it fails.
pub fn bench(criterion: &mut Criterion, group: &str, name: &str, op: &impl Op) {
    let wide = Cpu::<f64>::new(None).expect("threads");
    let mut expected = op.operands(&wide).expect("operands");
    op.run(&wide, &mut expected).expect("a run");
    let expected = op.results(&wide, &expected).expect("results");
    let cpu = Cpu::<f32>::new(None).expect("threads");
    let mut operands = op.operands(&cpu).expect("operands");
    let before = cpu.operations();
    op.run(&cpu, &mut operands).expect("a run");
    let operations = cpu.operations() - before;
    let comparison = compare(&op.results(&cpu, &operands).expect("results"), &expected);
    let bound = op.bound();
    assert!(
        comparison.passes(Tolerance::OfLargest(bound)),
        "{group} {name}: bound {bound:.1e}, {comparison:?}"
    );

    let mut group = criterion.benchmark_group(group);
    group.throughput(match operations {
        0 => Throughput::Bytes(op.bytes()),
        operations => Throughput::Elements(operations),
    });
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|repeats| {
            let timed = |_| {
                op.prepare(&cpu, &mut operands).expect("operands");
                let started = Instant::now();
                op.run(&cpu, &mut operands).expect("a run");
                started.elapsed()
            };
            (0..repeats).map(timed).sum()
        });
    });
    group.finish();
}

/// Numbers of the given deviation that f32 holds exactly, uniform around zero.
pub fn numbers(seed: u64, count: usize, deviation: f64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let half_width = deviation as f32 * 3.0_f32.sqrt();
    (0..count).map(|_| (random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0) * half_width).collect()
}

pub fn weight<E: Element>(
    cpu: &Cpu<E>,
    seed: u64,
    out: usize,
    input: usize,
    readers: Readers,
) -> Result<Weight<E>> {
    cpu.weight(numbers(seed, out * input, (input as f64).powf(-0.5)), out, input, readers)
}

pub fn activation<E: Element>(cpu: &Cpu<E>, seed: u64, rows: usize, width: usize) -> Rows<E> {
    let values: Vec<f64> = numbers(seed, rows * width, 1.0).into_iter().map(f64::from).collect();
    cpu.activation_of(&values, width)
}

/// Rows of ordinary size: the reciprocal root mean square of each is 1.
pub fn residual<E: Element>(cpu: &Cpu<E>, seed: u64, rows: usize, width: usize) -> Residual<Cpu<E>> {
    let (x, r) = (activation(cpu, seed, rows, width), cpu.activation_of(&vec![1.0; rows], 1));
    Residual { x, r }
}

pub fn batch() -> Batch {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut ids =
        |count: usize| (0..count).map(|_| random.next_u32() % VOCABULARY as u32).collect::<Vec<u32>>();
    let examples: Vec<Example> = (0..8)
        .map(|index| Example { source: ids(128), target: ids(8), index, ..Example::default() })
        .collect();
    Batch::pack(&examples, PROMPT, 0, VOCABULARY).expect("a batch")
}

pub fn encoder_rows() -> usize {
    batch().rows(Side::Encoder)
}
