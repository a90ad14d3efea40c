//! What a launch may meet in global memory of other launches.
//!
//! A launch by programmatic stream serialization may begin before the grids before it have ended. What it does before
//! `griddepcontrol.wait` must need nothing of theirs and leave nothing for others. Work on other streams that nothing
//! orders may happen at any time.

use super::Shape;
use super::block::Room;
use super::warp::{Hold, Next, Warp};
use crate::check::{Check, Log, Report};
use crate::memory::{Allocation, Stretch, View};
use crate::program::Program;

/// What a cluster of a dependent grid knows of its wait.
#[derive(Default)]
pub(super) struct Dependency {
    /// The launches from here on may still be under way.
    pub since: u16,
    /// Warps that have waited, with their clocks.
    waits: Vec<(usize, u16)>,
}

impl Dependency {
    pub fn of(memory: &View) -> Option<Self> {
        memory.unfinished.map(|since| Self { since, waits: Vec::new() })
    }

    pub fn reset(&mut self) {
        self.waits.clear();
    }
}

impl Warp {
    /// `griddepcontrol.wait`.
    pub(super) fn wait_for_grids(&mut self, room: &mut Room<'_>, me: usize) -> Next {
        if room.launch.holds() {
            return Next::Park(Hold::Grids);
        }
        room.counters.dependency_waits += 1;
        self.waited.set(true);
        let now = room.clocks.now(me);
        if let Some(dependency) = &mut room.dependency {
            dependency.waits.push((me, now));
            room.clocks.advance(me);
        }
        Next::Continue
    }

    /// Reports an access to global memory that needs grids which may not have ended, or meets work on other streams.
    #[inline(always)]
    pub(super) fn before_wait(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        allocation: &Allocation,
        address: u64,
        bytes: usize,
        write: bool,
    ) {
        if room.watched {
            if room.dependency.is_some() && !self.waited.get() {
                self.judge_early(room, me, at, lane, allocation, address, bytes, write);
            }
            if allocation.is_shared(room.launch.memory.stream) {
                self.judge_streams(room, me, at, lane, allocation, address, bytes, write);
            }
        }
    }

    /// Reports an access that meets work on other streams.
    #[cold]
    fn judge_streams(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        allocation: &Allocation,
        address: u64,
        bytes: usize,
        write: bool,
    ) {
        let concurrent = &room.launch.memory.concurrent;
        let stretch = Stretch { start: address, bytes, write };
        let found = concurrent.meets(&stretch).or_else(|| allocation.meets(stretch, concurrent));
        if let Some(other) = found {
            let offset = address - allocation.base;
            room.report(Check::StreamRace, at, me, lane, || {
                format!(
                    "{} {bytes} bytes at offset {offset} of an allocation of {} bytes that {other} touches too, and no event, wait or default-stream rule orders the two",
                    if write { "writes" } else { "reads" },
                    allocation.size
                )
            });
        }
    }

    #[cold]
    fn judge_early(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        allocation: &Allocation,
        address: u64,
        bytes: usize,
        write: bool,
    ) {
        let Some(dependency) = &room.dependency else { return };
        // Whoever has met a warp that waited comes after its wait.
        if dependency.waits.iter().any(|&(warp, clock)| room.clocks.knows(me, warp, clock)) {
            self.waited.set(true);
            return;
        }
        let needs =
            write || allocation.written_since(address, bytes, dependency.since, room.launch.memory.epoch);
        if needs {
            let offset = address - allocation.base;
            room.report(Check::DependentTooEarly, at, me, lane, || {
                let what = if write { "writes" } else { "reads what an earlier grid wrote to" };
                format!("{what} {bytes} bytes at offset {offset} of an allocation of {} bytes before griddepcontrol.wait", allocation.size)
            });
        }
    }
}

/// Reports a dependent grid of which nobody waited: whatever is launched behind it may begin before the grids before it end.
pub(super) fn judge(program: &Program, shape: &Shape, memory: &View, log: &mut Log, waits: u64) {
    if !shape.dependent || memory.unfinished.is_none() || waits > 0 {
        return;
    }
    let note = &program.notes[0];
    let detail = if program.uses.dependency_wait {
        "no block of this dependent grid came to griddepcontrol.wait: what depends on it may begin before the grids before it have ended"
    } else {
        "launched with programmatic stream serialization, and the kernel has no griddepcontrol.wait"
    };
    log.add(Check::DependentTooEarly, 0, || Report {
        check: Check::DependentTooEarly,
        kernel: program.name.clone(),
        file: program.file(note.location.file).to_string(),
        line: note.location.line,
        opcode: note.opcode.to_string(),
        ptx_line: note.line,
        block: [0; 3],
        warp: 0,
        lane: 0,
        detail: detail.to_string(),
        count: 1,
    });
}
