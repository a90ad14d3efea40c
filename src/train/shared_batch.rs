//! Several runs in one batch: their examples go through the frozen model together, their states lie in one stack.

use std::time::Instant;

use super::log::Monitor;
use super::run_folder::RunFolder;
use super::step::{self, Issued, RunPart};
use super::trainer::{Outcome, Pace, Trainer};
use crate::backend::{Backend, OptimizerStep};
use crate::error::{Error, Result};
use crate::model::{Frozen, largest_that_fits};

/// A run of a sweep.
pub struct Member<'a, B: Backend> {
    /// What it is called.
    pub name: String,
    /// The run.
    pub trainer: Trainer<'a, B>,
    /// Where it is written.
    pub folder: Option<RunFolder>,
}

/// Takes all steps that the runs have left, as many runs at a time in one batch as can share one, at most `together` and no
/// more than the device's memory holds. Each run gets the numbers that it would get alone; a run that fails does not hold up the others. The outcomes are in the
/// members' order. `monitor` hears of each run by its name ([`Monitor::of_run`]).
///
/// # Errors
/// Those of the device; a run's own are in its outcome.
pub fn run_together<B: Backend>(
    frozen: &Frozen<'_, B>,
    members: &mut [Member<'_, B>],
    together: usize,
    monitor: &mut dyn Monitor,
) -> Result<Vec<Result<Outcome>>> {
    let mut failures: Vec<Option<Error>> = members.iter().map(|_| None).collect();
    let mut left: Vec<usize> = (0..members.len()).collect();
    for (member, failure) in members.iter_mut().zip(&mut failures) {
        *failure = member.trainer.begin(member.folder.as_mut()).err();
    }
    left.retain(|&run| failures[run].is_none() && !members[run].trainer.is_done());
    while let Some(&first) = left.first() {
        let fits = |run: &usize| members[*run].trainer.stacks_with(&members[first].trainer);
        let mut group: Vec<usize> = left.iter().copied().filter(fits).take(together.max(1)).collect();
        let fitting = fitting(frozen, members, &group)?;
        if fitting < group.len() {
            let asked = group.len();
            monitor
                .note(&format!("{fitting} of {asked} runs share a batch: the device's memory holds no more"));
            group.truncate(fitting);
        }
        left.retain(|run| !group.contains(run));
        let sharing = members.iter_mut().enumerate().filter(|(number, _)| group.contains(number));
        let runs = sharing.map(|(number, member)| Sharing { number, member, failure: None }).collect();
        let mut stack = Stack::new(frozen, runs)?;
        stack.run(monitor)?;
        for Sharing { number, failure, .. } in stack.runs {
            failures[number] = failure;
        }
    }
    Ok(members
        .iter()
        .zip(failures)
        .map(|(member, failure)| failure.map_or_else(|| Ok(member.trainer.outcome()), Err))
        .collect())
}

/// How many of the group's first runs the device's free memory holds in one batch; each was found to fit alone.
fn fitting<B: Backend>(frozen: &Frozen<'_, B>, members: &[Member<'_, B>], group: &[usize]) -> Result<usize> {
    let Some(free) = frozen.backend.free_bytes() else { return Ok(group.len()) };
    let (fits, _) = largest_that_fits(free, group.len(), |count| {
        let trainers = || group[..count].iter().map(|&run| &members[run].trainer);
        let layout = &members[group[0]].trainer.mixture().layout;
        let mut state = frozen.backend.state(layout, &vec![0.0; count * layout.len()], count)?;
        let examples = trainers().map(|trainer| trainer.config.batch_size).sum();
        // As if all examples were as long as the longest of any run.
        let needed = trainers().map(|trainer| trainer.needed_bytes(&mut state, examples, count));
        needed.collect::<Result<Vec<_>>>().map(|needed| needed.into_iter().max().unwrap_or_default())
    })?;
    Ok(fits.max(1))
}

/// A run that shares a batch.
struct Sharing<'s, 'a, B: Backend> {
    /// Its place among all members.
    number: usize,
    member: &'s mut Member<'a, B>,
    failure: Option<Error>,
}

impl<B: Backend> Sharing<'_, '_, B> {
    fn is_active(&self) -> bool {
        self.failure.is_none() && !self.member.trainer.is_done()
    }

    /// Takes over what became of its own part of `stacked`, the `place`-th.
    fn take_over(&mut self, place: usize, stacked: &[Vec<f64>; 3]) -> Result<()> {
        let length = self.member.trainer.mixture().layout.len();
        let own = place * length..(place + 1) * length;
        self.member.trainer.set_state(stacked.each_ref().map(|values| &values[own.clone()]))
    }
}

/// Runs whose states lie one after the other on the device.
struct Stack<'s, 'a, B: Backend> {
    frozen: &'s Frozen<'s, B>,
    runs: Vec<Sharing<'s, 'a, B>>,
    state: B::State,
    graph_cache: B::GraphCache,
}

impl<'s, 'a, B: Backend> Stack<'s, 'a, B> {
    fn new(frozen: &'s Frozen<'s, B>, runs: Vec<Sharing<'s, 'a, B>>) -> Result<Self> {
        let backend = frozen.backend;
        let mut stacked: [Vec<f64>; 3] = Default::default();
        let mut updates = Vec::with_capacity(runs.len());
        for run in &runs {
            let (state, count) = run.member.trainer.full_state()?;
            for (stacked, values) in stacked.iter_mut().zip(state) {
                stacked.extend(values);
            }
            updates.push(count);
        }
        let layout = &runs[0].member.trainer.mixture().layout;
        let mut state = backend.state(layout, &stacked[0], runs.len())?;
        backend.write_state(&mut state, stacked.each_ref().map(Vec::as_slice), &updates)?;
        Ok(Self { frozen, runs, state, graph_cache: B::GraphCache::default() })
    }

    /// Takes all steps that the runs have left.
    fn run(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        let active = |stack: &Self| stack.runs.iter().position(Sharing::is_active);
        while active(self).is_some() {
            self.run_ahead(monitor)?;
            if let Some(active) = active(self).filter(|_| monitor.ends()) {
                self.save()?;
                let trainer = &self.runs[active].member.trainer;
                return Err(trainer.interrupted("the same command goes on from there"));
            }
        }
        Ok(())
    }

    /// Issues steps up to the next after which the state of a run is looked at, waits for what they came to, and hands it to
    /// the runs.
    fn run_ahead(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        let backend = self.frozen.backend;
        let started = Instant::now();
        let (mut parts, mut issued, mut looked_at) = (Vec::new(), Vec::new(), false);
        while issued.len() < backend.steps_ahead() && !looked_at {
            let next = |(place, run): (usize, &mut Sharing<'_, '_, B>)| match run.is_active() {
                true => run.member.trainer.next_part(place as u32),
                false => Ok(ended()),
            };
            let of_step = self.runs.iter_mut().enumerate().map(next).collect::<Result<Vec<_>>>()?;
            issued.push(self.issue(&of_step)?);
            let looks = |(run, part): (&Sharing<'_, '_, B>, &RunPart)| {
                run.is_active() && run.member.trainer.reads_state_after(part.step + 1)
            };
            looked_at = self.runs.iter().zip(&of_step).any(looks);
            parts.push(of_step);
        }
        let taken = step::drain(backend, &mut self.state, &issued)?;
        let tokens = |place: usize| taken.iter().map(|runs| runs[place].tokens).sum();
        let places = 0..self.runs.len();
        let paces: Vec<Pace> = places.map(|place| Pace::of(started, taken.len(), tokens(place))).collect();
        let stacked = if looked_at { Some(backend.read_state(&self.state)?) } else { None };
        for (index, (parts, taken)) in parts.iter().zip(&taken).enumerate() {
            let stacked = stacked.as_ref().filter(|_| index + 1 == issued.len());
            for (place, run) in self.runs.iter_mut().enumerate().filter(|(_, run)| run.is_active()) {
                let (part, own) = (&parts[place], &taken[place]);
                if !own.applied {
                    // Its part of the state is as it was before this step.
                    run.take_over(place, &backend.read_state(&self.state)?)?;
                    run.failure = Some(not_finite(run.member, part));
                    continue;
                }
                let record = run.member.trainer.record(part, own, paces[place]);
                if let Some(stacked) = stacked {
                    run.take_over(place, stacked)?;
                }
                let Member { name, trainer, folder } = &mut *run.member;
                monitor.of_run(Some(name));
                run.failure = trainer.finish_step(&record, folder.as_mut(), monitor).err();
            }
            monitor.of_run(None);
        }
        Ok(())
    }

    /// Issues a step of what each run gives to it; at least one is active.
    fn issue(&mut self, parts: &[RunPart]) -> Result<Issued> {
        let active = self.runs.iter().position(Sharing::is_active).unwrap_or_default();
        let trainer = &self.runs[active].member.trainer;
        let mut shared = trainer.shared(parts[active].step);
        shared.seeds = self.runs.iter().map(|run| run.member.trainer.config.seed).collect();
        // Always the first run's, as a captured graph has its addresses.
        let mixture = self.runs[0].member.trainer.mixture();
        step::issue(self.frozen, mixture, &mut self.state, &mut self.graph_cache, &shared, parts)
    }

    /// Saves the active runs.
    fn save(&mut self) -> Result<()> {
        let stacked = self.frozen.backend.read_state(&self.state)?;
        for (place, run) in self.runs.iter_mut().enumerate().filter(|(_, run)| run.is_active()) {
            run.take_over(place, &stacked)?;
            let Member { trainer, folder, .. } = &mut *run.member;
            folder.as_ref().map_or(Ok(()), |folder| trainer.save_last(folder))?;
        }
        Ok(())
    }
}

/// The part of a run that takes no more steps: without examples and with rates of 0 its numbers stay.
fn ended() -> RunPart {
    RunPart {
        step: 0,
        epoch: 0,
        examples: Vec::new(),
        batch_size: 1,
        optimizer: OptimizerStep::new(0.0, 0.0),
    }
}

/// What was not finite of the `part` that a run gave to a step, with the run's name.
fn not_finite<B: Backend>(member: &mut Member<'_, B>, part: &RunPart) -> Error {
    match member.trainer.not_finite_alone(part) {
        Ok(Error::NonFinite { step, tensor, advice }) => {
            Error::NonFinite { step, tensor: format!("{tensor} of run {}", member.name), advice }
        }
        Ok(error) | Err(error) => error,
    }
}
