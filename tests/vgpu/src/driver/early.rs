//! Launches that are kept back, so that the next one of their stream may begin before them (`VGPU_EARLY`).
//!
//! Every launch waits for the call behind it. Where that is a dependent launch of the same stream, its blocks run up to
//! their `griddepcontrol.wait` first, then the launch before it, then the rest; of more than two in a row, one begins before
//! the grid two before it where all blocks of the grid between have let it. Any other call carries out what is kept back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::state::{State, running, state, this_thread};
use super::work::publish;
use crate::codes::*;
use crate::device::Prepared;
use crate::execute::{Begun, Outcome};
use crate::program::Program;

/// Most launches that are under way at a time.
const MAX_LAUNCHES: usize = 4;

/// Calls that neither give the device work nor tell of any, and those that give more launches.
const QUIET: &[&str] = &[
    "cuLaunchKernel",
    "cuLaunchCooperativeKernel",
    "cuLaunchKernelEx",
    "cuGraphLaunch",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxGetDevice",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuModuleGetFunction",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// Whether anything is kept back.
static ANY: AtomicBool = AtomicBool::new(false);

enum Progress {
    /// Nothing of it ran yet.
    Fresh(Box<Prepared>),
    /// It has begun, before the launches before it.
    Begun(Begun),
}

struct Kept {
    program: Arc<Program>,
    /// The thread that gave it.
    owner: usize,
    progress: Progress,
}

/// Launches of one stream that have not ended, in their order.
#[derive(Default)]
pub struct KeptBack {
    stream: usize,
    launches: VecDeque<Kept>,
}

/// Keeps a launch back, and begins it where it may begin early. Held while work runs, as for all work.
pub fn keep(prepared: Prepared, program: &Arc<Program>, stream: usize, dependent: bool) -> u32 {
    let follows = {
        let kept = &state().kept;
        dependent && !kept.launches.is_empty() && kept.stream == stream && prepared.may_begin_early()
    };
    let mut code = SUCCESS;
    loop {
        let must_end = {
            let kept = &state().kept.launches;
            match kept.back().map(|last| &last.progress) {
                None => false,
                Some(_) if !follows || kept.len() >= MAX_LAUNCHES => true,
                // Only a grid that lets it may be overtaken together with the one before it.
                Some(Progress::Begun(last)) => kept.len() > 1 && !last.triggered,
                Some(Progress::Fresh(_)) => kept.len() > 1,
            }
        };
        if !must_end || code != SUCCESS {
            break;
        }
        code = end_first();
    }
    if code != SUCCESS {
        return code;
    }
    let progress = match follows {
        true => match prepared.begin_early() {
            Ok(begun) => Progress::Begun(begun),
            Err(error) => {
                eprintln!("vgpu: VGPU_EARLY: no thread for a launch: {error}");
                return OUT_OF_MEMORY;
            }
        },
        false => Progress::Fresh(Box::new(prepared)),
    };
    let mut state = state();
    state.kept.stream = stream;
    state.kept.launches.push_back(Kept { program: program.clone(), owner: this_thread(), progress });
    ANY.store(true, Relaxed);
    SUCCESS
}

/// Runs the first launch that is kept back to its end. After one that failed as on a device, none behind it counts.
fn end_first() -> u32 {
    let (first, stream) = {
        let mut state = state();
        (state.kept.launches.pop_front(), state.kept.stream)
    };
    let Some(Kept { program, owner, progress }) = first else { return SUCCESS };
    let outcome = match progress {
        Progress::Fresh(prepared) if state().sticky == 0 => prepared.run(),
        Progress::Fresh(_) => return SUCCESS,
        Progress::Begun(begun) => match begun.finish() {
            Some(outcome) => outcome,
            None => return UNKNOWN,
        },
    };
    let mut state = state();
    if state.sticky != 0 {
        return state.sticky;
    }
    ended(&mut state, stream, &program, owner, outcome)
}

/// Counts a launch that has ended, and publishes what it found.
pub fn ended(
    state: &mut State,
    stream: usize,
    program: &Arc<Program>,
    owner: usize,
    outcome: Outcome,
) -> u32 {
    state.device.count(program, &outcome.counters);
    state.has_launched(stream, program, &outcome.counters);
    state.device.count_waits(program, &outcome.waits);
    let mut code = SUCCESS;
    if outcome.device_error != 0 {
        state.sticky = outcome.device_error;
        code = outcome.device_error;
    } else if !outcome.reports.is_empty() {
        code = LAUNCH_FAILED;
    }
    state.failed_launches += u64::from(code != SUCCESS);
    for report in outcome.reports {
        publish(state, owner, report);
    }
    code
}

/// Carries out all that is kept back; the caller holds what [`running`] gives. The first error is the answer.
pub fn end_all() -> u32 {
    let mut code = SUCCESS;
    while !state().kept.launches.is_empty() {
        let next = end_first();
        if code == SUCCESS {
            code = next;
        }
    }
    ANY.store(false, Relaxed);
    code
}

/// Where time is kept, what is kept back must have taken its own before anybody asks for it.
pub fn before_time() {
    if state().device.settings.timing {
        // An error stays, and the next call gives it.
        before_call("");
    }
}

/// Carries out all that is kept back before a call that is not quiet. The first error is the answer.
pub fn before_call(name: &str) -> u32 {
    if !ANY.load(Relaxed) || QUIET.contains(&name) {
        return SUCCESS;
    }
    let _running = running();
    end_all()
}
