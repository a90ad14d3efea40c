//! AdamW over the flat state: `kernels/optimizer.cu`.

use promptmix::Result;
use promptmix::backend::{Mixing, OptimizerOps, OptimizerStep, Scorer, StateLayout};
use promptmix::cuda::Precision;
use promptmix::cuda::optimizer::{AdamW, StepOperands};

use crate::device::{Bounds, Case, Place, Raw, Results, device, follow, numbers, roundings, sums};

#[derive(Debug)]
struct Steps {
    scorer: Option<Scorer>,
    runs: usize,
    length: usize,
    width: usize,
    learnt_temperature: bool,
}

impl Steps {
    fn layout(&self) -> StateLayout {
        let mixing = Mixing { scorer: self.scorer, temperature: 4.0, ..Mixing::plain() };
        let layout = StateLayout::new(&mixing, 2, self.length, self.width, 7, self.learnt_temperature);
        layout.freezing(|segment| segment.name == "norm_bias")
    }
}

impl Case for Steps {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let layout = self.layout();
        let count = self.runs * layout.len();
        let mut state = backend.state(&layout, &numbers(1, count, 1.0), self.runs)?;
        let mut norms = Vec::new();
        for step in 0..4 {
            // The second step's gradient is large enough to be clipped.
            let deviation = [0.01, 3.0, 0.1, 0.02][step as usize];
            backend.write_gradient(&mut state, &numbers(2 + step, count, deviation))?;
            let steps: Vec<OptimizerStep> = (0..self.runs)
                .map(|run| {
                    let mut settings = OptimizerStep::new(0.3 / (1.0 + run as f64), 0.1);
                    (settings.weight_decay, settings.max_grad_norm) = (0.01, 1.0 + run as f64);
                    settings
                })
                .collect();
            backend.optimizer_step(&mut state, &steps)?;
            norms.extend(backend.reports(&mut state)?[0].iter().map(|report| {
                assert!(report.applied);
                report.gradient_norm
            }));
        }
        assert_eq!(backend.updates(&state)?, vec![4; self.runs]);
        let [values, first, second] = backend.read_state(&state)?;
        Ok(vec![("values", values), ("first moments", first), ("second moments", second), ("norms", norms)])
    }
}

#[test]
fn four_steps_of_every_layout() {
    for scorer in [None, Some(Scorer::Bottleneck), Some(Scorer::Linear), Some(Scorer::Dot)] {
        for (runs, length, width) in [(1, 1, 8), (3, 5, 40), (1, 100, 72)] {
            let learnt_temperature = scorer.is_some();
            let case = Steps { scorer, runs, length, width, learnt_temperature };
            // f32 in both precisions: a few roundings a step, of numbers up to a few times the largest change.
            let steps = Bounds { terms: 32, bf16: roundings(32.0 * 2.0_f64.powi(-13)) };
            follow(&case, steps);
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_of_its_run() -> Result<()> {
    let Some(device) = device(Precision::Bf16) else { return Ok(()) };
    let cuda = &device.cuda;
    let case =
        Steps { scorer: Some(Scorer::Bottleneck), runs: 3, length: 5, width: 40, learnt_temperature: false };
    let layout = case.layout();
    let length = layout.len();
    let before = numbers(1, 3 * length, 1.0);
    let mut state = cuda.state(&layout, &before, 3)?;
    let mut gradient = numbers(2, 3 * length, 0.1);
    gradient[length + 17] = f64::NAN;
    gradient[2 * length + 3] = f64::INFINITY;
    cuda.write_gradient(&mut state, &gradient)?;
    cuda.optimizer_step(&mut state, &[OptimizerStep::new(0.3, 0.1); 3])?;
    let applied: Vec<bool> = cuda.reports(&mut state)?[0].iter().map(|report| report.applied).collect();
    assert_eq!(applied, [true, false, false]);
    assert_eq!(cuda.updates(&state)?, [1, 0, 0]);
    let [values, first, second] = cuda.read_state(&state)?;
    assert_eq!(values[length..], before[length..]);
    assert!(values[..length] != before[..length]);
    assert!(first[length..].iter().chain(&second[length..]).all(|&moment| moment == 0.0));
    Ok(())
}

#[test]
fn adamw_on_buffers_of_ones_own() {
    let Some(raw) = Raw::new() else { return };
    let (kernels, runs) = (raw.kernels(), 2);
    // Two segments of which one rests, over more than a block of numbers.
    let mixing = Mixing { scorer: Some(Scorer::Linear), ..Mixing::plain() };
    let layout =
        StateLayout::new(&mixing, 1, 5, 40, 1, false).freezing(|segment| segment.name == "norm_weight");
    let (length, segments) = (layout.len(), layout.segments());
    assert!(length < 2_048 && StateLayout::new(&mixing, 1, 60, 40, 1, false).len() > 2_048);
    for layout in [layout.clone(), StateLayout::new(&mixing, 1, 60, 40, 1, false)] {
        let (length, segments) = (layout.len(), layout.segments());
        let mut steps = vec![OptimizerStep::new(0.3, 0.1), OptimizerStep::new(0.2, 0.05)];
        (steps[0].weight_decay, steps[0].max_grad_norm) = (0.01, 0.5);
        let mut optimizer = AdamW::new(kernels, segments, runs).expect("segments");
        optimizer.schedule(kernels, &steps).expect("a step a run");
        let mut values = numbers(1, runs * length, 1.0);
        let (mut first, mut second) = (vec![0.0; runs * length], vec![0.0; runs * length]);
        let mut device = [&values, &first, &second].map(|values| raw.floats(values));
        for update in 1..=3 {
            let mut gradient = numbers(1 + update, runs * length, 0.1);
            let broken = update == 2;
            if broken {
                // The second run's gradient is not finite: that run is left as it is.
                gradient[length + 7] = f64::INFINITY;
            }
            let on_device = raw.floats(&gradient);
            let [values_device, first_device, second_device] = &mut device;
            let of = StepOperands {
                values: values_device,
                gradient: &on_device,
                first_moment: first_device,
                second_moment: second_device,
            };
            optimizer.step(kernels, of).expect("a step");
            let reports = optimizer.reports(kernels).expect("reports");
            assert_eq!(reports.len(), 1, "of the step since the last call");
            for (run, (report, step)) in reports[0].iter().zip(&steps).enumerate() {
                let trained = || segments.iter().filter(|segment| segment.trained);
                let of_run = |i: usize| run * length + i;
                let norm: f64 =
                    trained().flat_map(|s| s.range.clone()).map(|i| gradient[of_run(i)].powi(2)).sum();
                assert_eq!(report.applied, !(broken && run == 1));
                if !report.applied {
                    continue;
                }
                let norm = norm.sqrt();
                assert!((report.gradient_norm - norm).abs() <= 1e-6 * norm);
                // The second run has missed an update.
                let count = (update - u64::from(run == 1 && update == 3)) as i32;
                for segment in trained() {
                    let prompt = segment.name == "target_prompts";
                    let rate = if prompt { step.prompt_learning_rate } else { step.scorer_learning_rate };
                    for i in segment.range.clone().map(of_run) {
                        let g = gradient[i] * (step.max_grad_norm / (norm + 1e-6)).min(1.0);
                        first[i] = step.beta1 * first[i] + (1.0 - step.beta1) * g;
                        second[i] = step.beta2 * second[i] + (1.0 - step.beta2) * g * g;
                        let (m, v) = (
                            first[i] / (1.0 - step.beta1.powi(count)),
                            second[i] / (1.0 - step.beta2.powi(count)),
                        );
                        values[i] -= rate * (step.weight_decay * values[i] + m / (v.sqrt() + step.epsilon));
                    }
                }
            }
        }
        for (what, found, expected) in [
            ("values", &device[0], &values),
            ("first moments", &device[1], &first),
            ("second moments", &device[2], &second),
        ] {
            raw.holds(what, found, expected, sums(16));
        }
    }
    let gap = [segments[0].clone(), segments[2].clone()];
    assert!(AdamW::new(kernels, &gap, 1).expect_err("a gap").to_string().contains("segments"));
    let mut optimizer = AdamW::new(kernels, segments, 1).expect("segments");
    let short = optimizer.schedule(kernels, &[]);
    assert!(short.is_err() && length > 0);
}
