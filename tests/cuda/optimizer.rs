//! AdamW over the flat state: `kernels/optimizer.cu`.

use promptmix::backend::{Backend, Mixing, OptimizerStep, Scorer, StateLayout};
use promptmix::cuda::Precision;

use crate::device::{Bounds, Case, Place, device, follow, numbers, roundings};

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
    fn run<B: Place>(&self, backend: &B) -> Vec<(&'static str, Vec<f64>)> {
        let layout = self.layout();
        let count = self.runs * layout.len();
        let mut state = backend.state(&layout, &numbers(1, count, 1.0), self.runs);
        let mut norms = Vec::new();
        for step in 0..4 {
            // The second step's gradient is large enough to be clipped.
            backend
                .write_gradient(&mut state, &numbers(2 + step, count, [0.01, 3.0, 0.1, 0.02][step as usize]));
            let steps: Vec<OptimizerStep> = (0..self.runs)
                .map(|run| {
                    let mut settings = OptimizerStep::new(0.3 / (1.0 + run as f64), 0.1);
                    (settings.weight_decay, settings.clip_norm) = (0.01, 1.0 + run as f64);
                    settings
                })
                .collect();
            backend.optimizer_step(&mut state, &steps);
            norms.extend(backend.reports(&mut state)[0].iter().map(|report| {
                assert!(report.applied);
                report.gradient_norm
            }));
        }
        assert_eq!(backend.updates(&state), vec![4; self.runs]);
        let [values, first, second] = backend.read_state(&state);
        vec![("values", values), ("first moments", first), ("second moments", second), ("norms", norms)]
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
fn a_gradient_that_is_not_finite_changes_nothing_of_its_run() {
    let Some(device) = device(Precision::Bf16) else { return };
    let cuda = &device.cuda;
    let case =
        Steps { scorer: Some(Scorer::Bottleneck), runs: 3, length: 5, width: 40, learnt_temperature: false };
    let layout = case.layout();
    let length = layout.len();
    let before = numbers(1, 3 * length, 1.0);
    let mut state = cuda.state(&layout, &before, 3);
    let mut gradient = numbers(2, 3 * length, 0.1);
    gradient[length + 17] = f64::NAN;
    gradient[2 * length + 3] = f64::INFINITY;
    cuda.write_gradient(&mut state, &gradient);
    cuda.optimizer_step(&mut state, &[OptimizerStep::new(0.3, 0.1); 3]);
    let applied: Vec<bool> = cuda.reports(&mut state)[0].iter().map(|report| report.applied).collect();
    assert_eq!(applied, [true, false, false]);
    assert_eq!(cuda.updates(&state), [1, 0, 0]);
    let [values, first, second] = cuda.read_state(&state);
    assert_eq!(values[length..], before[length..]);
    assert!(values[..length] != before[..length]);
    assert!(first[length..].iter().chain(&second[length..]).all(|&moment| moment == 0.0));
}
