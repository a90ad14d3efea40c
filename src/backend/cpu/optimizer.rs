//! AdamW (Loshchilov and Hutter, 2019) over the flat trained state of each run.
//!
//! p = p·(1 - lr·decay) - lr / (1 - beta1^t) · m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)

use super::Cpu;
use super::element::Element;
use super::vector::vectorised;
use crate::backend::{Group, OptimizerStep, StateLayout, StepReport, Tally};

/// The trained state of some runs, on the host in the backend's format.
#[derive(Debug)]
pub struct State<E> {
    pub(super) layout: StateLayout,
    pub(super) values: Vec<E>,
    pub(super) gradient: Vec<E>,
    pub(super) first_moment: Vec<E>,
    pub(super) second_moment: Vec<E>,
    /// Updates applied, per run.
    pub(super) updates: Vec<u64>,
    pub(super) tallies: Vec<Tally>,
    /// Whether a run stands still since a step that nobody was told of.
    halted: Vec<bool>,
    /// Of every step since they were last asked for, one a run.
    pub(super) reports: Vec<Vec<StepReport>>,
}

impl<E: Element> State<E> {
    pub(super) fn new(layout: &StateLayout, values: &[f64], runs: usize) -> Self {
        assert_eq!(values.len(), runs * layout.len(), "state of {runs} runs");
        let zeros = || vec![E::zero(); values.len()];
        Self {
            layout: layout.clone(),
            values: values.iter().map(|&value| E::from_f64(value)).collect(),
            gradient: zeros(),
            first_moment: zeros(),
            second_moment: zeros(),
            updates: vec![0; runs],
            tallies: vec![Tally::default(); runs],
            halted: vec![false; runs],
            reports: Vec::new(),
        }
    }

    /// The parameter called `name` of `run`.
    pub(super) fn value(&self, name: &str, run: usize) -> Option<&[E]> {
        self.layout.range(name, run).map(|range| &self.values[range])
    }

    /// The gradient of the parameter called `name` of `run`.
    pub(super) fn d_value(&mut self, name: &str, run: usize) -> Option<&mut [E]> {
        self.layout.range(name, run).map(|range| &mut self.gradient[range])
    }
}

impl<E> State<E> {
    pub(super) fn begin_step(&mut self)
    where
        E: Element,
    {
        self.gradient.fill(E::zero());
        self.tallies.fill(Tally::default());
    }

    /// What every step since the last call did; runs that stood still go on.
    pub(super) fn take_reports(&mut self) -> Vec<Vec<StepReport>> {
        self.halted.fill(false);
        std::mem::take(&mut self.reports)
    }
}

pub(super) fn step<E: Element>(cpu: &Cpu<E>, state: &mut State<E>, steps: &[OptimizerStep]) {
    assert_eq!(steps.len(), state.updates.len(), "one scheduled step a run");
    let reports = steps.iter().enumerate().map(|(run, step)| step_run(cpu, state, run, step)).collect();
    state.reports.push(reports);
}

fn step_run<E: Element>(cpu: &Cpu<E>, state: &mut State<E>, run: usize, step: &OptimizerStep) -> StepReport {
    let offset = run * state.layout.len();
    let trained = || state.layout.segments().iter().filter(|segment| segment.trained);
    // Squares are summed in f64: the sum is long, and its order is fixed.
    let squares: f64 = trained()
        .flat_map(|segment| &state.gradient[offset + segment.range.start..offset + segment.range.end])
        .map(|&g| g.widen() * g.widen())
        .sum();
    let (tally, gradient_norm) = (state.tallies[run], squares.sqrt());
    if state.halted[run] || !tally.loss.is_finite() || !gradient_norm.is_finite() {
        state.halted[run] = true;
        return StepReport { tally, gradient_norm, applied: false };
    }
    // The small term keeps a vanishing norm from dividing by zero, as clip_grad_norm_ has it.
    let clip = (step.clip_norm / (gradient_norm + 1e-6)).min(1.0);
    state.updates[run] += 1;
    let updates = state.updates[run] as f64;
    let correction1 = 1.0 - step.beta1.powf(updates);
    let correction2 = (1.0 - step.beta2.powf(updates)).sqrt();
    for segment in state.layout.segments().iter().filter(|segment| segment.trained) {
        let range = offset + segment.range.start..offset + segment.range.end;
        let (learning_rate, weight_decay) = match segment.group {
            Group::Prompt => (step.prompt_learning_rate, step.weight_decay),
            Group::Scorer => (step.scorer_learning_rate, step.weight_decay),
            Group::Temperature => (step.scorer_learning_rate, 0.0),
        };
        let update = Update {
            clip: E::from_f64(clip),
            beta1: E::from_f64(step.beta1),
            beta2: E::from_f64(step.beta2),
            rest1: E::from_f64(1.0 - step.beta1),
            rest2: E::from_f64(1.0 - step.beta2),
            keep: E::from_f64(1.0 - learning_rate * weight_decay),
            rate: E::from_f64(learning_rate / correction1),
            correction2: E::from_f64(correction2),
            epsilon: E::from_f64(step.epsilon),
        };
        let values = &mut state.values[range.clone()];
        let gradient = &state.gradient[range.clone()];
        let first_moment = &mut state.first_moment[range.clone()];
        let second_moment = &mut state.second_moment[range];
        vectorised!(cpu, update.apply(values, gradient, first_moment, second_moment));
    }
    StepReport { tally, gradient_norm, applied: true }
}

struct Update<E> {
    clip: E,
    beta1: E,
    beta2: E,
    /// 1 - beta, rounded once: in f32 the difference itself would be off by one part in 80,000.
    rest1: E,
    rest2: E,
    keep: E,
    rate: E,
    correction2: E,
    epsilon: E,
}

impl<E: Element> Update<E> {
    #[inline(always)]
    fn apply(&self, values: &mut [E], gradient: &[E], first_moment: &mut [E], second_moment: &mut [E]) {
        let moments = first_moment.iter_mut().zip(second_moment);
        for ((value, &g), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
            let g = g * self.clip;
            *m = self.beta1 * *m + self.rest1 * g;
            *v = self.beta2 * *v + self.rest2 * g * g;
            *value = self.keep * *value - self.rate * *m / (v.sqrt() / self.correction2 + self.epsilon);
        }
    }
}
