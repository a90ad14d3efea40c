//! AdamW (Loshchilov and Hutter, 2019) over the flat trained state of each run.
//!
//! p = p·(1 - lr·decay) - lr / (1 - beta1^t) · m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)

use super::element::Element;
use super::vector::vectorised;
use super::{Cpu, copy_narrowed, widened};
use crate::backend::ops::{check_one_a_run, check_state};
use crate::backend::{Group, OptimizerOps, OptimizerStep, StateLayout, StepReport, StepStatistics};
use crate::error::Result;

/// The trained state of some runs, on the host in the backend's format.
#[derive(Debug)]
pub struct State<E> {
    pub(super) layout: StateLayout,
    pub(super) values: Vec<E>,
    pub(super) gradient: Vec<E>,
    first_moment: Vec<E>,
    second_moment: Vec<E>,
    /// Updates applied, per run.
    pub(super) updates: Vec<u64>,
    pub(super) statistics: Vec<StepStatistics>,
    /// Whether a run stands still since a step that was not reported yet.
    halted: Vec<bool>,
    /// Of every step since they were last asked for, one a run.
    reports: Vec<Vec<StepReport>>,
}

impl<E: Element> State<E> {
    /// The parameter called `name` of `run`.
    pub(super) fn value(&self, name: &str, run: usize) -> Option<&[E]> {
        self.layout.range(name, run).map(|range| &self.values[range])
    }

    /// The gradient of the parameter called `name` of `run`.
    pub(super) fn d_value(&mut self, name: &str, run: usize) -> Option<&mut [E]> {
        self.layout.range(name, run).map(|range| &mut self.gradient[range])
    }
}

impl<E: Element> OptimizerOps for Cpu<E> {
    type State = State<E>;

    fn state(&self, layout: &StateLayout, values: &[f64], runs: usize) -> Result<State<E>> {
        check_state("the state", layout, runs, values.len())?;
        let zeros = || vec![E::zero(); values.len()];
        Ok(State {
            layout: layout.clone(),
            values: values.iter().map(|&value| E::from_f64(value)).collect(),
            gradient: zeros(),
            first_moment: zeros(),
            second_moment: zeros(),
            updates: vec![0; runs],
            statistics: vec![StepStatistics::default(); runs],
            halted: vec![false; runs],
            reports: Vec::new(),
        })
    }

    fn read_state(&self, state: &State<E>) -> Result<[Vec<f64>; 3]> {
        Ok([&state.values, &state.first_moment, &state.second_moment].map(|values| widened(values)))
    }

    fn write_state(&self, state: &mut State<E>, values: [&[f64]; 3], updates: &[u64]) -> Result<()> {
        let runs = state.updates.len();
        for (what, values) in ["the state", "the first moments", "the second moments"].into_iter().zip(values)
        {
            check_state(what, &state.layout, runs, values.len())?;
        }
        check_one_a_run("the updates", runs, updates.len())?;
        copy_narrowed(&mut state.values, values[0]);
        copy_narrowed(&mut state.first_moment, values[1]);
        copy_narrowed(&mut state.second_moment, values[2]);
        state.updates.copy_from_slice(updates);
        Ok(())
    }

    fn updates(&self, state: &State<E>) -> Result<Vec<u64>> {
        Ok(state.updates.clone())
    }

    fn read_gradient(&self, state: &State<E>) -> Result<Vec<f64>> {
        Ok(widened(&state.gradient))
    }

    fn write_gradient(&self, state: &mut State<E>, values: &[f64]) -> Result<()> {
        check_state("the gradient", &state.layout, state.updates.len(), values.len())?;
        copy_narrowed(&mut state.gradient, values);
        Ok(())
    }

    fn begin_step(&self, state: &mut State<E>) -> Result<()> {
        state.gradient.fill(E::zero());
        state.statistics.fill(StepStatistics::default());
        Ok(())
    }

    fn read_statistics(&self, state: &State<E>) -> Result<Vec<StepStatistics>> {
        Ok(state.statistics.clone())
    }

    fn write_statistics(&self, state: &mut State<E>, statistics: &[StepStatistics]) -> Result<()> {
        check_one_a_run("the tallies", state.statistics.len(), statistics.len())?;
        state.statistics.copy_from_slice(statistics);
        Ok(())
    }

    fn optimizer_step(&self, state: &mut State<E>, steps: &[OptimizerStep]) -> Result<()> {
        check_one_a_run("the optimizer's steps", state.updates.len(), steps.len())?;
        let reports = steps.iter().enumerate().map(|(run, step)| step_run(self, state, run, step)).collect();
        state.reports.push(reports);
        Ok(())
    }

    fn reports(&self, state: &mut State<E>) -> Result<Vec<Vec<StepReport>>> {
        state.halted.fill(false);
        Ok(std::mem::take(&mut state.reports))
    }
}

fn step_run<E: Element>(cpu: &Cpu<E>, state: &mut State<E>, run: usize, step: &OptimizerStep) -> StepReport {
    let offset = run * state.layout.len();
    let trained = || state.layout.segments().iter().filter(|segment| segment.trained);
    // Squares are summed in f64: the sum is long, and its order is fixed.
    let squares: f64 = trained()
        .flat_map(|segment| &state.gradient[offset + segment.range.start..offset + segment.range.end])
        .map(|&g| g.widen() * g.widen())
        .sum();
    let (statistics, gradient_norm) = (state.statistics[run], squares.sqrt());
    if state.halted[run] || !statistics.loss.is_finite() || !gradient_norm.is_finite() {
        state.halted[run] = true;
        return StepReport { statistics, gradient_norm, applied: false };
    }
    // The small term keeps a vanishing norm from dividing by zero, as clip_grad_norm_ has it.
    let clip = (step.max_grad_norm / (gradient_norm + 1e-6)).min(1.0);
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
    StepReport { statistics, gradient_norm, applied: true }
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
