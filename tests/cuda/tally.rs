//! What a pass adds up of each run: `kernels/tally.cu`; and the optimizer's ring of reports after it.

use promptmix::Result;
use promptmix::backend::cpu::Cpu;
use promptmix::backend::{Backend, Device as _, MicroBatch, OptimizerOps, OptimizerStep, Scorer, StepReport};
use promptmix::cuda::Precision;
use promptmix::model::label_weights;
use promptmix::pretrained::Activation;
use promptmix::verify::{Tolerance, compare};

use crate::device::device;
use crate::model::config;
use crate::setting::{Case, Setting, examples};

/// Reports, and their numbers in one row.
type Reported = (Vec<Vec<StepReport>>, Vec<f64>);

/// Two steps of accumulated passes, and their reports in one row: losses, entropies and norms.
fn reports<B: Backend>(case: &Case<B>, steps: usize, micro: usize) -> Result<Reported> {
    let backend = &case.backend;
    let mut state = backend.state(&case.mixture.layout, &case.values, case.runs)?;
    let tokens: Vec<usize> = case.label_tokens().iter().map(|tokens| tokens * micro).collect();
    let batch = case.batch.clone().weighted(label_weights(&case.batch, &tokens))?;
    let mut graph_cache = B::GraphCache::default();
    let schedule = vec![OptimizerStep::new(0.01, 0.01); case.runs];
    let mut reports = Vec::new();
    for _ in 0..steps {
        for index in 0..micro {
            let last = (index + 1 == micro).then_some(schedule.as_slice());
            let micro = MicroBatch { batch: &batch, dropout: None, first: index == 0, last };
            case.model.train(backend, &case.mixture, &mut state, &mut graph_cache, &micro)?;
        }
        if backend.steps_ahead() == 1 {
            reports.extend(backend.reports(&mut state)?);
        }
    }
    reports.extend(backend.reports(&mut state)?);
    backend.synchronize()?;
    let numbers =
        |report: &StepReport| [report.statistics.loss, report.statistics.entropy, report.gradient_norm];
    let row = reports.iter().flatten().flat_map(numbers).collect();
    Ok((reports, row))
}

#[test]
fn losses_and_entropies_of_every_run_follow_the_cpu() -> Result<()> {
    let config = config(Activation::Relu, false);
    let lengths: Vec<(usize, usize)> = (0..9).map(|b| (1 + 7 * b % 13, 1 + b % 4)).collect();
    for (scorer, runs) in [
        (None, 1),
        (Some(Scorer::Bottleneck), 3),
        (Some(Scorer::Token), 2),
        (Some(Scorer::Uniform), 2),
        (Some(Scorer::Dot), 9),
    ] {
        let mut setting = Setting::new(config.clone(), examples(6, &config, &lengths));
        (setting.mixing.scorer, setting.runs) = (scorer, runs);
        for (number, example) in setting.examples.iter_mut().enumerate() {
            example.run = (number * runs / 9) as u32;
        }
        let (_, expected) = reports(&setting.build::<f64>(2), 2, 2)?;
        assert!(expected.iter().all(|value| value.is_finite()) && expected[0] > 0.0);
        let Some(device) = device(Precision::F32) else { return Ok(()) };
        let (told, found) = reports(&setting.build_on(device.cuda), 2, 2)?;
        assert!(told.iter().flatten().all(|report| report.applied));
        let comparison = compare(&found, &expected);
        // f32 passes of a small model: about 2,000 terms after one another, each off by half a place.
        assert!(comparison.passes(Tolerance::OfLargest(2e-5)), "{scorer:?} {runs}: {comparison:?}");
        let entropies: Vec<f64> = told.iter().flatten().map(|report| report.statistics.entropy).collect();
        assert_eq!(entropies.iter().all(|&entropy| entropy > 0.0), scorer.is_some(), "{entropies:?}");
    }
    Ok(())
}

/// A run whose loss or gradient is not finite stands still from that step on, the others go on; when it was told of, the
/// run goes on too.
fn halts<B: Backend>(backend: &B) -> Result<()> {
    let config = config(Activation::Relu, true);
    let setting = Setting::new(config.clone(), examples(1, &config, &[(3, 1)]));
    let layout = setting.build::<f64>(1).mixture.layout;
    let (length, runs) = (layout.len(), 3);
    let mut state = backend.state(&layout, &vec![0.5; runs * length], runs)?;
    let schedule = vec![OptimizerStep::new(0.1, 0.1); runs];
    let step = |state: &mut B::State, damage: Option<(usize, bool)>| {
        backend.begin_step(state)?;
        let mut gradient = vec![0.25; runs * length];
        let mut statistics = backend.read_statistics(state)?;
        assert!(
            statistics.iter().all(|sums| (sums.loss, sums.entropy) == (0.0, 0.0)),
            "a step begins at zero"
        );
        match damage {
            Some((run, true)) => statistics[run].loss = f64::INFINITY,
            Some((run, false)) => gradient[run * length + length / 2] = f64::NAN,
            None => {}
        }
        backend.write_gradient(state, &gradient)?;
        backend.write_statistics(state, &statistics)?;
        backend.optimizer_step(state, &schedule)
    };
    let mut states = Vec::new();
    for damage in [None, Some((0, true)), Some((2, false)), None] {
        step(&mut state, damage)?;
        states.push(backend.read_state(&state)?);
    }
    let told = backend.reports(&mut state)?;
    let applied = |told: &[Vec<StepReport>]| -> Vec<Vec<bool>> {
        told.iter().map(|runs| runs.iter().map(|report| report.applied).collect()).collect()
    };
    let expected = [[true; 3], [false, true, true], [false, true, false], [false, true, false]];
    assert_eq!(applied(&told), expected);
    assert!(told[1][0].statistics.loss.is_infinite() && told[2][2].gradient_norm.is_nan());
    assert_eq!(backend.updates(&state)?, [1, 4, 2]);
    for (run, last) in [(0, 0), (1, 3), (2, 1)] {
        for (part, now) in states[3].iter().enumerate() {
            let own = run * length..(run + 1) * length;
            assert_eq!(
                now[own.clone()],
                states[last][part][own.clone()],
                "run {run} is as after step {last}"
            );
            assert!(last == 0 || now[own.clone()] != states[0][part][own]);
        }
    }
    assert!(backend.reports(&mut state)?.is_empty(), "they were told of");
    step(&mut state, None)?;
    assert_eq!(applied(&backend.reports(&mut state)?), [[true; 3]]);
    assert_eq!(backend.updates(&state)?, [2, 5, 3]);
    Ok(())
}

#[test]
fn what_is_not_finite_halts_its_run_until_it_was_told_of() -> Result<()> {
    halts(&Cpu::<f32>::new(Some(1)).expect("threads"))?;
    let Some(device) = device(Precision::Bf16) else { return Ok(()) };
    halts(&device.cuda)?;
    device.cuda.synchronize()
}

/// More steps than the ring holds are an error, not other steps' reports.
#[test]
fn the_ring_does_not_overflow_unseen() -> Result<()> {
    let Some(device) = device(Precision::Bf16) else { return Ok(()) };
    let config = config(Activation::Relu, true);
    let setting = Setting::new(config.clone(), examples(1, &config, &[(3, 1)]));
    let layout = setting.build::<f64>(1).mixture.layout;
    let cuda = &device.cuda;
    let mut state = cuda.state(&layout, &vec![0.5; layout.len()], 1)?;
    for _ in 0..64 {
        cuda.optimizer_step(&mut state, &[OptimizerStep::new(0.1, 0.1)])?;
    }
    assert_eq!(cuda.reports(&mut state)?.len(), 64);
    for _ in 0..65 {
        cuda.optimizer_step(&mut state, &[OptimizerStep::new(0.1, 0.1)])?;
    }
    let said = cuda.reports(&mut state).expect_err("a step too many").to_string();
    assert!(said.contains("65"), "{said}");
    Ok(())
}
