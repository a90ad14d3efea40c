//! Streams, events, capture and graphs.

use std::collections::HashMap;
use std::ffi::c_int;
use std::time::Instant;

use super::order::Clock;
use super::state::{Capture, Event, Node, Work, state, this_thread};
use super::work::{replay, submit};
use super::{check, exported, give};
use crate::codes::*;

fn create(to: *mut usize, flags: u32) -> Result<(), u32> {
    let mut state = state();
    let stream = state.handle();
    state.streams.insert(stream, flags);
    give(to, stream)
}

fn record(event: usize, stream: usize) -> Result<(), u32> {
    let mut state = state();
    if !state.has_stream(stream) {
        return Err(INVALID_HANDLE);
    }
    let capture = state.capturing.get(&stream).copied();
    if let Some(id) = capture {
        if let Some(capture) = state.captures.get(&id)
            && capture.broken
        {
            return Err(CAPTURE_INVALIDATED);
        }
    } else {
        check(state.sticky)?;
    }
    let copies = state.copies;
    let clock = if capture.is_none() { state.before(stream) } else { Clock::new() };
    let done = state.model_time.of(stream);
    if let Some(capture) = capture.and_then(|id| state.captures.get_mut(&id)) {
        capture.work.push(Node::Record(stream, event));
    }
    let event = state.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
    match capture {
        Some(id) => event.captured = Some((id, stream)),
        None => {
            event.captured = None;
            event.recorded = Some(Instant::now());
            event.behind = Some((stream, copies));
            event.clock = clock;
            event.done = done;
        }
    }
    Ok(())
}

fn begin(stream: usize, mode: c_int) -> Result<(), u32> {
    let mut state = state();
    if !state.has_stream(stream) {
        return Err(INVALID_HANDLE);
    }
    // The legacy null stream cannot be captured.
    if stream <= 1 {
        return Err(CAPTURE_UNSUPPORTED);
    }
    if state.capturing.contains_key(&stream) {
        return Err(ILLEGAL_STATE);
    }
    let id = state.handle();
    let capture = Capture {
        origin: stream,
        thread: this_thread(),
        relaxed: mode == 2,
        work: Vec::new(),
        broken: false,
        joined: HashMap::new(),
    };
    state.captures.insert(id, capture);
    state.capturing.insert(stream, id);
    Ok(())
}

fn end(stream: usize, to: *mut usize) -> Result<(), u32> {
    let mut state = state();
    let id = *state.capturing.get(&stream).ok_or(ILLEGAL_STATE)?;
    let capture = state.captures.get(&id).ok_or(ILLEGAL_STATE)?;
    if capture.origin != stream {
        return Err(CAPTURE_UNMATCHED);
    }
    if capture.thread != this_thread() && !capture.relaxed {
        return Err(CAPTURE_WRONG_THREAD);
    }
    let Some(capture) = state.captures.remove(&id) else { return Err(ILLEGAL_STATE) };
    state.capturing.retain(|_, known| *known != id);
    for event in state.events.values_mut() {
        if event.captured.is_some_and(|(known, _)| known == id) {
            event.captured = None;
        }
    }
    if capture.broken {
        give(to, 0)?;
        return Err(CAPTURE_INVALIDATED);
    }
    if capture.joined.values().any(|&dirty| dirty) {
        give(to, 0)?;
        return Err(CAPTURE_UNJOINED);
    }
    let graph = state.handle();
    state.graphs.insert(graph, capture.work);
    give(to, graph)
}

fn instantiate(to: *mut usize, graph: usize) -> Result<(), u32> {
    let mut state = state();
    let work = state.graphs.get(&graph).cloned().ok_or(INVALID_VALUE)?;
    let executable = state.handle();
    state.executables.insert(executable, work);
    give(to, executable)
}

/// What `cuStreamAddCallback` was given.
struct Notice {
    stream: usize,
    function: usize,
    data: usize,
}

/// Calls a function of the host as `cuStreamAddCallback` promises: with the stream, no error, and its data.
extern "C" fn notify(notice: usize) {
    // SAFETY: made by `cuStreamAddCallback`, and given here once.
    let notice = unsafe { Box::from_raw(notice as *mut Notice) };
    // SAFETY: the caller of cuStreamAddCallback gave a function of this type.
    let function: extern "C" fn(usize, u32, usize) = unsafe { std::mem::transmute(notice.function) };
    function(notice.stream, SUCCESS, notice.data);
}

fn capture_info(stream: usize, status: *mut c_int, id: *mut u64) -> Result<(), u32> {
    let state = state();
    if !state.has_stream(stream) {
        return Err(INVALID_HANDLE);
    }
    let found = state.capturing.get(&stream).copied();
    let broken = found.and_then(|id| state.captures.get(&id)).is_some_and(|capture| capture.broken);
    give(status, if broken { 2 } else { c_int::from(found.is_some()) })?;
    if id.is_null() { Ok(()) } else { give(id, found.unwrap_or(0) as u64) }
}

/// Graphs under capture have no nodes that a program could reach.
fn nothing_of_graph(graph: *mut usize, nodes: *mut *const usize, count: *mut usize) -> Result<(), u32> {
    if !graph.is_null() {
        give(graph, 0)?;
    }
    if !nodes.is_null() {
        give(nodes, std::ptr::null())?;
    }
    if count.is_null() { Ok(()) } else { give(count, 0) }
}

exported! {
    fn cuStreamCreate(to: *mut usize, flags: u32) {
        create(to, flags)
    }
    fn cuStreamCreateWithPriority(to: *mut usize, flags: u32, _priority: c_int) {
        create(to, flags)
    }
    fn cuStreamDestroy_v2(stream: usize) {
        let mut state = state();
        if let Some(id) = state.capturing.remove(&stream) {
            state.captures.remove(&id);
        }
        state.streams.remove(&stream).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuStreamSynchronize(stream: usize) {
        let mut state = state();
        if !state.has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        state.calls().waits += 1;
        state.not_while_capturing(CAPTURE_UNSUPPORTED)?;
        state.wait_for(stream);
        state.settle(|reading| reading.stream == stream)
    }
    fn cuStreamQuery(stream: usize) {
        let mut state = state();
        if !state.has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        state.not_while_capturing(CAPTURE_UNSUPPORTED)?;
        // The answer is that all is done, and the caller goes by it.
        state.wait_for(stream);
        check(state.sticky)
    }
    fn cuStreamWaitEvent(stream: usize, handle: usize, _flags: u32) {
        let mut state = state();
        if !state.has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        let event = state.events.get(&handle).cloned().ok_or(INVALID_HANDLE)?;
        let own = state.capturing.get(&stream).copied();
        match (own, event.captured) {
            (None, None) => {
                state.order.learn(stream, &event.clock);
                state.model_time.wait(stream, event.done);
                check(state.sticky)
            }
            // A wait for work inside a capture brings the stream into it.
            (None, Some((id, _))) => {
                state.capturing.insert(stream, id);
                let capture = state.captures.get_mut(&id).ok_or(ILLEGAL_STATE)?;
                capture.joined.insert(stream, true);
                capture.work.push(Node::Wait(stream, handle));
                Ok(())
            }
            (Some(id), Some((other, from))) if id == other => {
                let capture = state.captures.get_mut(&id).ok_or(ILLEGAL_STATE)?;
                if let Some(dirty) = capture.joined.get_mut(&from) {
                    *dirty = false;
                }
                capture.work.push(Node::Wait(stream, handle));
                Ok(())
            }
            (Some(id), _) if event.recorded.is_some() || event.captured.is_some() => {
                if let Some(capture) = state.captures.get_mut(&id) {
                    capture.broken = true;
                }
                Err(CAPTURE_ISOLATION)
            }
            (Some(_), _) => Ok(()),
        }
    }
    fn cuStreamGetFlags(stream: usize, to: *mut u32) {
        let state = state();
        if !state.has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        give(to, state.streams.get(&stream).copied().unwrap_or(0))
    }
    fn cuStreamGetPriority(stream: usize, to: *mut c_int) {
        if !state().has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        give(to, 0)
    }
    fn cuStreamGetCtx(stream: usize, to: *mut usize) {
        if !state().has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        give(to, super::CURRENT.get())
    }
    fn cuStreamGetDevice(stream: usize, to: *mut c_int) {
        let state = state();
        if !state.has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        give(to, state.ordinal)
    }
    fn cuStreamGetId(stream: usize, to: *mut u64) {
        if !state().has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        give(to, stream as u64)
    }
    fn cuStreamAddCallback(stream: usize, function: usize, data: usize, _flags: u32) {
        if function == 0 || !state().has_stream(stream) {
            return Err(INVALID_VALUE);
        }
        let notice = Box::new(Notice { stream, function, data });
        let work = Work::Call { function: notify as *const () as usize, data: Box::into_raw(notice) as usize };
        check(submit(stream, work))
    }
    fn cuStreamGetCaptureInfo_v2(
        stream: usize,
        status: *mut c_int,
        id: *mut u64,
        graph: *mut usize,
        nodes: *mut *const usize,
        count: *mut usize,
    ) {
        capture_info(stream, status, id)?;
        nothing_of_graph(graph, nodes, count)
    }
    fn cuStreamGetCaptureInfo_v3(
        stream: usize,
        status: *mut c_int,
        id: *mut u64,
        graph: *mut usize,
        nodes: *mut *const usize,
        _edges: *mut *const u8,
        count: *mut usize,
    ) {
        capture_info(stream, status, id)?;
        nothing_of_graph(graph, nodes, count)
    }
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int) {
        // The mode that a capture begins in is the one that counts.
        if mode.is_null() { Err(INVALID_VALUE) } else { Ok(()) }
    }
    fn cuStreamCopyAttributes(_to: usize, _from: usize) {
        Ok(())
    }
    fn cuStreamSetAttribute(stream: usize, _attribute: u32, _value: *const u8) {
        // What attributes say is where data stay and how the host waits.
        if state().has_stream(stream) { Ok(()) } else { Err(INVALID_HANDLE) }
    }
    fn cuEventRecordWithFlags(event: usize, stream: usize, _flags: u32) {
        record(event, stream)
    }
    fn cuGraphInstantiateWithParams(to: *mut usize, graph: usize, _parameters: *mut u8) {
        instantiate(to, graph)
    }
    fn cuStreamBeginCapture_v2(stream: usize, mode: c_int) {
        begin(stream, mode)
    }
    fn cuStreamEndCapture(stream: usize, to: *mut usize) {
        end(stream, to)
    }
    fn cuStreamIsCapturing(stream: usize, to: *mut c_int) {
        let state = state();
        let status = match state.capturing.get(&stream).and_then(|id| state.captures.get(id)) {
            None => 0,
            Some(capture) if capture.broken => 2,
            Some(_) => 1,
        };
        give(to, status)
    }
    fn cuGraphInstantiateWithFlags(to: *mut usize, graph: usize, _flags: u64) {
        instantiate(to, graph)
    }
    fn cuGraphInstantiate_v2(to: *mut usize, graph: usize, _node: *mut usize, _log: *mut u8, _size: usize) {
        instantiate(to, graph)
    }
    fn cuGraphGetNodes(graph: usize, _nodes: *mut usize, count: *mut usize) {
        let state = state();
        let work = state.graphs.get(&graph).ok_or(INVALID_VALUE)?;
        give(count, work.iter().filter(|node| matches!(node, Node::Work(..))).count())
    }
    fn cuGraphLaunch(executable: usize, stream: usize) {
        let mut state = state();
        if !state.has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        check(state.sticky)?;
        let work = state.executables.get(&executable).cloned().ok_or(INVALID_VALUE)?;
        if let Some(&id) = state.capturing.get(&stream) {
            // A graph inside a capture becomes part of it.
            let capture = state.captures.get_mut(&id).ok_or(ILLEGAL_STATE)?;
            capture.work.extend(work);
            return Ok(());
        }
        state.calls().graphs += 1;
        drop(state);
        check(replay(&work, stream))
    }
    fn cuGraphUpload(executable: usize, _stream: usize) {
        if state().executables.contains_key(&executable) { Ok(()) } else { Err(INVALID_VALUE) }
    }
    fn cuGraphDestroy(graph: usize) {
        state().graphs.remove(&graph).map(|_| ()).ok_or(INVALID_VALUE)
    }
    fn cuGraphExecDestroy(executable: usize) {
        state().executables.remove(&executable).map(|_| ()).ok_or(INVALID_VALUE)
    }
    fn cuEventCreate(to: *mut usize, flags: u32) {
        let mut state = state();
        let event = state.handle();
        state.events.insert(event, Event { timed: flags & 2 == 0, ..Event::default() });
        give(to, event)
    }
    fn cuEventDestroy_v2(event: usize) {
        state().events.remove(&event).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuEventRecord(event: usize, stream: usize) {
        record(event, stream)
    }
    fn cuEventQuery(event: usize) {
        let mut state = state();
        let Event { captured, clock, .. } = state.events.get(&event).cloned().ok_or(INVALID_HANDLE)?;
        if captured.is_some() {
            return Err(CAPTURED_EVENT);
        }
        state.order.wait(&clock);
        check(state.sticky)
    }
    fn cuEventSynchronize(event: usize) {
        let mut state = state();
        let Event { behind, captured, clock, .. } = state.events.get(&event).cloned().ok_or(INVALID_HANDLE)?;
        if captured.is_some() {
            return Err(CAPTURED_EVENT);
        }
        state.not_while_capturing(CAPTURE_UNSUPPORTED)?;
        state.order.wait(&clock);
        state.settle(|reading| behind.is_some_and(|(stream, copies)| reading.stream == stream && reading.order < copies))
    }
    fn cuEventElapsedTime(to: *mut f32, start: usize, end: usize) {
        elapsed(to, start, end)
    }
    fn cuEventElapsedTime_v2(to: *mut f32, start: usize, end: usize) {
        elapsed(to, start, end)
    }
}

/// The time between two events, in milliseconds: the model's where time is kept, else the host's, which says nothing of a device.
fn elapsed(to: *mut f32, start: usize, end: usize) -> Result<(), u32> {
    let state = state();
    let (start, end) =
        (state.events.get(&start).ok_or(INVALID_HANDLE)?, state.events.get(&end).ok_or(INVALID_HANDLE)?);
    if !start.timed || !end.timed {
        return Err(INVALID_HANDLE);
    }
    let (Some(from), Some(until)) = (start.recorded, end.recorded) else { return Err(INVALID_HANDLE) };
    if state.device.settings.timing {
        return give(to, ((end.done - start.done) * 1e3) as f32);
    }
    give(to, until.saturating_duration_since(from).as_secs_f32() * 1e3)
}
