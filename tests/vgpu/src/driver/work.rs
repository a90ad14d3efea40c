//! Carrying out work: launches, copies and fills.

use std::collections::HashMap;

use super::early;
use super::order::Clock;
use super::state::{Node, State, Work, running, state, this_thread};
use crate::check::Report;
use crate::codes::*;
use crate::memory::Stretch;

/// Keeps work for the graph that its stream captures, or carries it out.
pub fn submit(stream: usize, work: Work) -> u32 {
    let recorded = state().record(stream, work);
    match recorded {
        Err(code) => code,
        Ok(None) => SUCCESS,
        Ok(Some(work)) => {
            let mut state = state();
            state.calls().count(&work);
            let settled = match work {
                Work::Upload { from, bytes, .. } => state.reads(stream, from, bytes),
                // Into pageable memory, a copy is done when the call returns, and all before it on the stream with it.
                Work::Download { to, .. } if !state.is_pinned(to) => {
                    state.settle(|reading| reading.stream == stream)
                }
                _ => Ok(()),
            };
            let waits = matches!(work, Work::Download { to, .. } if !state.is_pinned(to));
            drop(state);
            let code = settled.err().unwrap_or_else(|| perform(&work, stream));
            if waits {
                super::state::state().wait_for(stream);
            }
            code
        }
    }
}

impl Work {
    /// What work of the driver's own touches, and what to call it.
    fn stretches(&self) -> Vec<(Stretch, &'static str)> {
        let stretch = |start: u64, bytes: usize, write: bool| Stretch { start, bytes, write };
        match self {
            Self::Launch { .. } | Self::Call { .. } | Self::Between { .. } => Vec::new(),
            Self::Fill { address, pattern, count } => {
                vec![(stretch(*address, pattern.len() * count, true), "a fill")]
            }
            Self::Upload { to, bytes, .. } => vec![(stretch(*to, *bytes, true), "a copy from the host")],
            Self::Download { from, bytes, .. } => vec![(stretch(*from, *bytes, false), "a copy to the host")],
            Self::Copy { to, from, bytes } => vec![
                (stretch(*from, *bytes, false), "a copy within the device"),
                (stretch(*to, *bytes, true), "a copy within the device"),
            ],
        }
    }
}

/// Notes that memory is freed in the order of a stream.
pub fn note_free(address: u64, stream: usize) {
    let mut state = state();
    let Some(bytes) = state.device.memory.find(address).map(|allocation| allocation.size) else { return };
    let clock = state.before(stream);
    let stretch = Stretch { start: address, bytes, write: true };
    note(&mut state, stream, &clock, stretch, "a free");
}

/// Notes a touch of work of the driver's own; `false` when it meets other work.
fn note(state: &mut State, stream: usize, clock: &Clock, stretch: Stretch, name: &str) -> bool {
    let checks = state.device.settings.checks;
    let allocation = state.device.memory.find(stretch.start).cloned();
    let report = state.order.touch(stream, clock, stretch, name, allocation.as_deref());
    match report.filter(|_| checks) {
        Some(report) => {
            publish(state, this_thread(), report);
            false
        }
        None => true,
    }
}

/// Keeps a report for the thread whose work it is of.
pub fn publish(state: &mut State, owner: usize, report: Report) {
    eprintln!("vgpu: {report}");
    state.reports.push((owner, report));
}

/// Carries out work of a stream.
pub fn perform(work: &Work, stream: usize) -> u32 {
    let _running = running();
    let mut ordered = true;
    if !matches!(work, Work::Launch { .. }) {
        let code = early::end_all();
        if code != SUCCESS {
            return code;
        }
        let mut state = state();
        let clock = state.before(stream);
        if matches!(work, Work::Call { .. }) {
            state.order.pass(stream);
        }
        for (stretch, name) in work.stretches() {
            ordered &= note(&mut state, stream, &clock, stretch, name);
        }
    }
    let code = carry_out(work, stream);
    state().has_moved(stream, work);
    if code == SUCCESS && !ordered { LAUNCH_FAILED } else { code }
}

fn carry_out(work: &Work, stream: usize) -> u32 {
    match work {
        Work::Launch { program, shape, arguments } => {
            // The state is free while the kernel runs, so that other threads may prepare their work.
            let (prepared, overtakes) = {
                let mut state = state();
                let clock = state.before(stream);
                let mut prepared = state.device.prepare(program, shape, arguments);
                let concurrent = state.order.concurrent(&clock);
                let unfinished = state.order.launch(stream, prepared.epoch(), &program.name, shape.dependent);
                prepared.order(state.order.bit(stream), concurrent, unfinished);
                (prepared, unfinished.is_some())
            };
            if prepared.keeps_early() {
                return early::keep(prepared, program, stream, overtakes);
            }
            let outcome = prepared.run();
            early::ended(&mut state(), stream, program, this_thread(), outcome)
        }
        Work::Fill { address, pattern, count } => {
            let state = state();
            let bytes = pattern.len() * count;
            let Some(allocation) = state.device.memory.find(*address) else { return INVALID_VALUE };
            if !allocation.contains(*address, bytes) {
                return INVALID_VALUE;
            }
            let chunk: Vec<u8> = pattern.iter().copied().cycle().take((1 << 16).min(bytes)).collect();
            let mut at = 0;
            while at < bytes {
                let size = chunk.len().min(bytes - at);
                allocation.write(address + at as u64, &chunk[..size]);
                at += size;
            }
            allocation.mark_written(*address, bytes);
            SUCCESS
        }
        Work::Upload { to, from, bytes } => {
            let state = state();
            let Some(allocation) = state.device.memory.find(*to) else { return INVALID_VALUE };
            let Some(pointer) = allocation.pointer(*to, *bytes) else { return INVALID_VALUE };
            // SAFETY: the device side was just checked; the host side is the caller's promise, as with a real driver.
            unsafe { std::ptr::copy(*from as *const u8, pointer, *bytes) };
            allocation.mark_written(*to, *bytes);
            SUCCESS
        }
        Work::Download { to, from, bytes } => {
            let state = state();
            let Some(allocation) = state.device.memory.find(*from) else { return INVALID_VALUE };
            let Some(pointer) = allocation.pointer(*from, *bytes) else { return INVALID_VALUE };
            // SAFETY: as for an upload.
            unsafe { std::ptr::copy(pointer, *to as *mut u8, *bytes) };
            SUCCESS
        }
        Work::Copy { to, from, bytes } => {
            let state = state();
            let memory = &state.device.memory;
            let (Some(source), Some(target)) = (memory.find(*from), memory.find(*to)) else {
                return INVALID_VALUE;
            };
            let (Some(read), Some(write)) = (source.pointer(*from, *bytes), target.pointer(*to, *bytes))
            else {
                return INVALID_VALUE;
            };
            // SAFETY: both sides were just checked; `copy` allows overlap.
            unsafe { std::ptr::copy(read, write, *bytes) };
            target.copy_marks(*to, source, *from, *bytes);
            SUCCESS
        }
        Work::Between { to, from, bytes } => {
            // SAFETY: both sides are the caller's promise, as with a real driver; `copy` allows overlap.
            unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
            SUCCESS
        }
        Work::Call { function, data } => {
            // SAFETY: the caller of cuLaunchHostFunc gave a function of this type.
            let function: extern "C" fn(usize) = unsafe { std::mem::transmute(*function) };
            function(*data);
            SUCCESS
        }
    }
}

/// Replays a graph on a stream. Each stream that was captured is one of its own again, behind what comes before the graph.
pub fn replay(nodes: &[Node], stream: usize) -> u32 {
    // Handles of streams are small multiples of 16: these are none of them.
    let branch = |captured: usize| stream << 32 | captured | 1;
    let (start, begins) = {
        let mut state = state();
        (state.before(stream), state.model_time.of(stream))
    };
    let mut begun: Vec<usize> = Vec::new();
    let mut events: HashMap<usize, (Clock, f64)> = HashMap::new();
    let mut code = SUCCESS;
    for node in nodes {
        let (Node::Work(captured, _) | Node::Record(captured, _) | Node::Wait(captured, _)) = node;
        let lane = branch(*captured);
        if !begun.contains(&lane) {
            begun.push(lane);
            let mut state = state();
            state.order.set(lane, start.clone());
            state.order.pass(lane);
            state.model_time.wait(lane, begins);
        }
        match node {
            Node::Work(_, work) => {
                code = perform(work, lane);
                if code != SUCCESS {
                    break;
                }
            }
            Node::Record(_, event) => {
                early::before_time();
                let mut state = state();
                let known = (state.before(lane), state.model_time.of(lane));
                events.insert(*event, known);
            }
            Node::Wait(_, event) => {
                if let Some((clock, done)) = events.get(event) {
                    let mut state = state();
                    state.order.learn(lane, clock);
                    state.model_time.wait(lane, *done);
                }
            }
        }
    }
    early::before_time();
    let mut state = state();
    for lane in begun {
        let clock = state.before(lane);
        state.order.learn(stream, &clock);
        let done = state.model_time.of(lane);
        state.model_time.wait(stream, done);
    }
    state.order.pass(stream);
    code
}
