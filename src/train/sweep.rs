//! Several runs in one batch: their examples go through the frozen model together, their states lie in one stack.

use std::time::Instant;

use super::log::Monitor;
use super::run_folder::RunFolder;
use super::step::{self, RunPart};
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
/// members' order. `monitor` hears of each run by its place ([`Monitor::of_run`]).
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
        run_stack(frozen, members, &group, &mut failures, monitor)?;
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

/// Runs one stack to its end.
fn run_stack<B: Backend>(
    frozen: &Frozen<'_, B>,
    members: &mut [Member<'_, B>],
    group: &[usize],
    failures: &mut [Option<Error>],
    monitor: &mut dyn Monitor,
) -> Result<()> {
    let backend = frozen.backend;
    let mut stacked: [Vec<f64>; 3] = Default::default();
    let mut updates = Vec::with_capacity(group.len());
    for &run in group {
        let (state, count) = members[run].trainer.full_state()?;
        for (stacked, values) in stacked.iter_mut().zip(state) {
            stacked.extend(values);
        }
        updates.push(count);
    }
    let length = members[group[0]].trainer.mixture().layout.len();
    let mut state = backend.state(&members[group[0]].trainer.mixture().layout, &stacked[0], group.len())?;
    backend.write_state(&mut state, [&stacked[0], &stacked[1], &stacked[2]], &updates)?;
    let mut graph_cache = B::GraphCache::default();
    let mut active: Vec<bool> = vec![true; group.len()];
    while active.contains(&true) {
        let started = Instant::now();
        let begun = members[group[first(&active)]].trainer.step_count();
        let (mut parts, mut issued, mut looked_at) = (Vec::new(), Vec::new(), false);
        while issued.len() < backend.steps_ahead() && !looked_at {
            let step = begun + issued.len() as u64;
            let mut shared = members[group[first(&active)]].trainer.shared(step);
            shared.seeds = group.iter().flat_map(|&run| members[run].trainer.shared(step).seeds).collect();
            let mut of_step = Vec::with_capacity(group.len());
            for (place, &run) in group.iter().enumerate() {
                of_step.push(match active[place] {
                    true => members[run].trainer.next_part(place as u32)?,
                    false => ended(),
                });
            }
            let mixture = members[group[0]].trainer.mixture();
            issued.push(step::issue(frozen, mixture, &mut state, &mut graph_cache, &shared, &of_step)?);
            parts.push(of_step);
            looked_at = group
                .iter()
                .zip(&active)
                .any(|(&run, &active)| active && members[run].trainer.looks_behind(step + 1));
        }
        let taken = step::drain(backend, &mut state, &issued)?;
        let tokens = |place: usize| taken.iter().map(|runs| runs[place].tokens).sum();
        let paces: Vec<Pace> =
            (0..group.len()).map(|place| Pace::of(started, taken.len(), tokens(place))).collect();
        let whole = if looked_at { Some(backend.read_state(&state)?) } else { None };
        for (index, (parts, taken)) in parts.iter().zip(&taken).enumerate() {
            for (place, &run) in group.iter().enumerate().filter(|(place, _)| active[*place]) {
                if failures[run].is_some() {
                    continue;
                }
                let member = &mut members[run];
                let (part, own) = (&parts[place], &taken[place]);
                if !own.applied {
                    failures[run] = Some(not_finite(member, part.step + 1, own.loss));
                    continue;
                }
                let record = member.trainer.record(part, own, paces[place]);
                if let Some(whole) = whole.as_ref().filter(|_| index + 1 == issued.len()) {
                    let own = place * length..(place + 1) * length;
                    member.trainer.set_state([0, 1, 2].map(|part| &whole[part][own.clone()]))?;
                }
                monitor.of_run(Some(run));
                failures[run] = member.trainer.finish_step(&record, member.folder.as_mut(), monitor).err();
            }
            monitor.of_run(None);
        }
        for (place, &run) in group.iter().enumerate() {
            active[place] &= failures[run].is_none() && !members[run].trainer.is_done();
        }
        if active.contains(&true) && monitor.ends() {
            let whole = backend.read_state(&state)?;
            for (place, &run) in group.iter().enumerate().filter(|(place, _)| active[*place]) {
                let own = place * length..(place + 1) * length;
                let Member { trainer, folder, .. } = &mut members[run];
                trainer.set_state([0, 1, 2].map(|part| &whole[part][own.clone()]))?;
                if let Some(folder) = folder {
                    trainer.save_last(folder)?;
                }
            }
            let trainer = &members[group[first(&active)]].trainer;
            return Err(trainer.interrupted("the same command goes on from there"));
        }
    }
    Ok(())
}

fn first(active: &[bool]) -> usize {
    active.iter().position(|&active| active).unwrap_or_default()
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

fn not_finite<B: Backend>(member: &Member<'_, B>, step: u64, loss: f64) -> Error {
    let tensor = if loss.is_finite() { "the gradient" } else { "the loss" };
    let advice = format!("{}; alone the run says more", member.trainer.advice_on_not_finite());
    Error::NonFinite { step, tensor: format!("{tensor} of run {}", member.name), advice }
}
