//! A whole training step is one graph launch, and gives, bit for bit, what launches one by one give.

use promptmix::backend::{
    Batch, Device as _, DropoutStep, MicroBatch, Objective, OptimizerOps, OptimizerStep, Scorer, StepReport,
};
use promptmix::cuda::{Cuda, GraphCache, Precision};
use promptmix::model::label_weights;
use promptmix::pretrained::Activation;

use crate::device::{Device, device};
use crate::model::config;
use crate::random::Random;
use crate::setting::{Case, Setting, example, examples};

/// Source lengths of a step's examples are drawn from such a range, target lengths up to 3.
type Lengths = std::ops::Range<usize>;

/// A step of four examples a micro-batch, shared out evenly among the runs, each of other lengths and other tokens.
fn micro_batches(random: &mut Random, setting: &Setting, count: usize, lengths: &Lengths) -> Vec<Batch> {
    let batches: Vec<Batch> = (0..count)
        .map(|micro| {
            let examples: Vec<_> = (0..4)
                .map(|b| {
                    let source = lengths.start + random.below(lengths.len());
                    let index = 4 * micro + b;
                    let target = 1 + random.below(3);
                    let mut example = example(random, setting.config(), source, target, index as u32);
                    example.run = (b * setting.runs / 4) as u32;
                    example
                })
                .collect();
            setting.pack(&examples)
        })
        .collect();
    let tokens = |run| batches.iter().map(|batch| batch.label_tokens(run)).sum();
    let tokens: Vec<usize> = (0..setting.runs).map(tokens).collect();
    batches
        .into_iter()
        .map(|batch| {
            let weights = label_weights(&batch, &tokens);
            batch.weighted(weights).expect("a weight a row")
        })
        .collect()
}

/// What some steps came to.
#[derive(Debug, PartialEq)]
struct Steps {
    reports: Vec<Vec<StepReport>>,
    /// Parameters and moments after the last.
    state: [Vec<f64>; 3],
    operations: u64,
}

/// Takes a step of every range of lengths, in `micro` micro-batches each, and reads nothing back before the last.
fn steps(case: &Case<Cuda>, setting: &Setting, micro: usize, lengths: &[Lengths]) -> (Steps, GraphCache) {
    let cuda = &case.backend;
    let mut state = cuda.state(&case.mixture.layout, &case.values, setting.runs).expect("a state");
    let mut graph_cache = GraphCache::default();
    let mut random = Random::new(77);
    let seeds: Vec<u64> = (0..setting.runs as u64).map(|run| 9 + run).collect();
    for (step, lengths) in lengths.iter().enumerate() {
        let batches = micro_batches(&mut random, setting, micro, lengths);
        let dropout = DropoutStep::new(setting.dropout.0, step as u64, &seeds);
        let rate = 0.05 / (1.0 + step as f64);
        let schedule: Vec<OptimizerStep> =
            (0..setting.runs).map(|run| OptimizerStep::new(rate, rate / (2.0 + run as f64))).collect();
        for (index, batch) in batches.iter().enumerate() {
            let last = (index + 1 == micro).then_some(schedule.as_slice());
            let micro = MicroBatch { batch, dropout: dropout.as_ref(), first: index == 0, last };
            case.model.train(cuda, &case.mixture, &mut state, &mut graph_cache, &micro).expect("a step");
        }
    }
    let reports = cuda.reports(&mut state).expect("reports");
    cuda.synchronize().expect("a healthy device");
    assert_eq!(reports.len(), lengths.len());
    assert!(reports.iter().flatten().all(|report| report.applied && report.statistics.loss > 0.0));
    let values = cuda.read_state(&state).expect("a state");
    (Steps { reports, state: values, operations: cuda.operations() }, graph_cache)
}

fn setting(activation: Activation, dropout: f64, runs: usize) -> Setting {
    let config = config(activation, true);
    let start = [(5, 2), (4, 1), (9, 3), (6, 1)];
    let mut setting = Setting::new(config.clone(), examples(5, &config, &start));
    setting.mixing.scorer = Some(Scorer::Bottleneck);
    (setting.dropout, setting.runs) = ((dropout, 0), runs);
    setting
}

fn built(setting: &Setting, graphs: bool) -> Option<(Case<Cuda>, vgpu::Gpu)> {
    let Device { cuda, gpu } = device(Precision::Bf16)?;
    cuda.set_graphs(graphs);
    Some((setting.build_on(cuda), gpu))
}

#[test]
fn a_graph_gives_what_launches_give_bit_for_bit() {
    for (activation, dropout, runs, micro, count) in [
        (Activation::Relu, 0.1, 1, 1, 20),
        (Activation::GatedGelu, 0.0, 1, 1, 4),
        (Activation::Relu, 0.1, 2, 1, 4),
        (Activation::Relu, 0.1, 2, 3, 2),
    ] {
        let setting = setting(activation, dropout, runs);
        let Some((eager, _gpu)) = built(&setting, false) else { return };
        let lengths = vec![4..10; count];
        let (expected, graph_cache) = steps(&eager, &setting, micro, &lengths);
        assert_eq!((graph_cache.replays(), graph_cache.captures()), (0, 0));
        let Some((captured, _gpu)) = built(&setting, true) else { return };
        let (found, graph_cache) = steps(&captured, &setting, micro, &lengths);
        // The first micro-batch of a step, those between, and the last do not the same.
        let buckets = micro;
        assert_eq!(graph_cache.buckets(), buckets, "{micro} micro-batches of one shape");
        assert_eq!((graph_cache.replays(), graph_cache.captures()), ((count * micro) as u64, buckets as u64));
        assert!(expected.reports.windows(2).all(|pair| pair[0] != pair[1]), "every batch has another loss");
        assert_eq!(found, expected, "{activation:?}, {runs} runs, {micro} micro-batches");
    }
}

/// A larger shape moves the memory of all shapes: what was captured before is captured again, and the numbers stay.
#[test]
fn shapes_that_grow_and_shrink_give_the_same_bits() {
    let setting = setting(Activation::Relu, 0.1, 1);
    let lengths = [4..10, 20..24, 4..10, 60..66, 4..10, 20..24, 60..66, 4..10];
    let Some((eager, _gpu)) = built(&setting, false) else { return };
    let (expected, _) = steps(&eager, &setting, 1, &lengths);
    let Some((captured, _gpu)) = built(&setting, true) else { return };
    let (found, graph_cache) = steps(&captured, &setting, 1, &lengths);
    assert_eq!(found, expected);
    assert_eq!((graph_cache.buckets(), graph_cache.replays()), (3, 8));
    // Three shapes, the first again after the second, and both of them again after the third.
    assert_eq!(graph_cache.captures(), 6);
}

/// The driver counts: after the first step of a shape, a step is one copy and one launch, and nothing is waited for.
#[test]
fn a_step_is_one_copy_and_one_launch() {
    let setting = setting(Activation::GatedGelu, 0.1, 2);
    let Some((case, gpu)) = built(&setting, true) else { return };
    let (cuda, mut random) = (&case.backend, Random::new(3));
    let mut state = cuda.state(&case.mixture.layout, &case.values, 2).expect("a state");
    let mut graph_cache = GraphCache::default();
    let mut before = None;
    for step in 0..5 {
        if step == 1 {
            before = gpu.calls();
        }
        let batches = micro_batches(&mut random, &setting, 1, &(4..10));
        let dropout = DropoutStep::new(0.1, step, &[1, 2]);
        let schedule = [OptimizerStep::new(0.01 * step as f64, 0.01); 2];
        let micro =
            MicroBatch { batch: &batches[0], dropout: dropout.as_ref(), first: true, last: Some(&schedule) };
        case.model.train(cuda, &case.mixture, &mut state, &mut graph_cache, &micro).expect("a step");
    }
    if let (Some(before), Some(after)) = (before, gpu.calls()) {
        let expected = vgpu::Calls { graphs: before.graphs + 4, uploads: before.uploads + 4, ..before };
        assert_eq!(after, expected);
    }
    assert_eq!(cuda.reports(&mut state).expect("reports").len(), 5);
    cuda.synchronize().expect("a healthy device");
}

/// What label rows learn from is told to kernels when they are captured: each objective has a graph of its own.
#[test]
fn every_objective_has_its_own_graph() {
    let setting = setting(Activation::Relu, 0.0, 1);
    let objectives = [(0.0, 0.0), (0.2, 0.0), (0.0, 0.1), (0.2, 0.0), (0.0, 0.0)];
    let losses = |graphs: bool| {
        let (case, _gpu) = built(&setting, graphs)?;
        let cuda = &case.backend;
        let mut state = cuda.state(&case.mixture.layout, &case.values, 1).expect("a state");
        let (mut graph_cache, mut random) = (GraphCache::default(), Random::new(5));
        let batches = micro_batches(&mut random, &setting, 1, &(4..10));
        for (label_smoothing, z_loss) in objectives {
            let batch = batches[0].clone().with_objective(Objective { label_smoothing, z_loss });
            let still = [OptimizerStep::new(0.0, 0.0)];
            let micro = MicroBatch { batch: &batch, dropout: None, first: true, last: Some(&still) };
            case.model.train(cuda, &case.mixture, &mut state, &mut graph_cache, &micro).expect("a step");
        }
        let reports = cuda.reports(&mut state).expect("reports");
        cuda.synchronize().expect("a healthy device");
        Some((
            reports.iter().map(|report| report[0].statistics.loss).collect::<Vec<f64>>(),
            graph_cache.buckets(),
        ))
    };
    let (Some((eager, _)), Some((found, buckets))) = (losses(false), losses(true)) else { return };
    assert_eq!(found, eager);
    assert_eq!(buckets, 3);
    assert!(eager[0] == eager[4] && eager[1] == eager[3] && eager[0] != eager[1] && eager[0] != eager[2]);
}

/// Floating-point operations are those of the algorithm on the batch's own rows, on either device, whatever a captured graph has
/// room for.
#[test]
fn operations_are_counted_as_the_cpu_counts_them() {
    let scorers =
        [None, Some(Scorer::Bottleneck), Some(Scorer::Linear), Some(Scorer::Token), Some(Scorer::Constant)];
    for (scorer, activation, longest) in scorers
        .into_iter()
        .map(|scorer| (scorer, Activation::Relu, 3))
        // Long targets are not absorbed.
        .chain([(Some(Scorer::Bottleneck), Activation::GatedGelu, 40)])
    {
        let mut setting = setting(activation, 0.0, 1);
        setting.mixing.scorer = scorer;
        let config = config(activation, true);
        let batch = setting.pack(&examples(3, &config, &[(5, longest), (19, 1), (8, 2)]));
        let weights = vec![1.0; batch.labels().len()];
        let batch = batch.weighted(weights).expect("a weight a row");
        let cpu = setting.build::<f32>(1);
        let mut state = cpu.backend.state(&cpu.mixture.layout, &cpu.values, 1).expect("a state");
        let before = cpu.backend.operations();
        cpu.model.issue(&cpu.backend, &cpu.mixture, &mut state, &batch, None).expect("a pass");
        let expected = cpu.backend.operations() - before;
        let Some((case, _gpu)) = built(&setting, true) else { return };
        let mut state = case.backend.state(&case.mixture.layout, &case.values, 1).expect("a state");
        let micro = MicroBatch { batch: &batch, dropout: None, first: true, last: None };
        let found = case.model.step_operations(&case.backend, &case.mixture, &mut state, &micro);
        assert_eq!(found.expect("a count"), Some(expected), "{scorer:?}, {activation:?}");
    }
}
