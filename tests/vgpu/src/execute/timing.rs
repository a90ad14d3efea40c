//! When the instructions of a warp could be issued: a time by which each register is ready, and what barriers, copies and tensor
//! cores add. Warps of a block do not take issue slots from each other here: what throughput costs is for the predictions.

use super::block::Room;
use super::warp::Warp;
use crate::model::Assumed;
use crate::program::{InstructionClass, Op, Program};

/// Times are in half cycles.
const CYCLE: u64 = 2;
/// A result of the arithmetic units: 4.5 cycles.
const ARITHMETIC: u64 = 9;
const SPECIAL: u64 = 20 * CYCLE;
const DOUBLE: u64 = 16 * CYCLE;
const BRANCH: u64 = 5 * CYCLE;
const SHARED: u64 = 30 * CYCLE;
const TENSOR: u64 = 33 * CYCLE;
const SHUFFLE: u64 = 25 * CYCLE;
const BARRIER: u64 = 30 * CYCLE;
/// Between what the level-2 cache (700) and memory (900) take.
const GLOBAL: u64 = 800 * CYCLE;
/// A bulk copy: as long as memory takes, and 39 bytes a cycle.
const BULK: u64 = 900 * CYCLE;
const BULK_BYTES: u64 = 39;
const GATE: u64 = 20 * CYCLE;
const CLUSTER: u64 = 250 * CYCLE;

/// A latency in cycles, of half cycles.
const fn latency(name: &'static str, halves: u64, range: [f64; 2], source: &'static str) -> Assumed {
    Assumed { name, value: halves as f64 / CYCLE as f64, range, source }
}

const AMPERE: &str = "arxiv.org/abs/2208.11174, instruction by instruction on an A100";
const HOPPER: &str = "arxiv.org/abs/2402.13499, on an H800";
const CHOSEN: &str =
    "no public figure is known to us; chosen, and scaled with the rest of the path by the fit";

/// Cycles until a result is ready. Nobody measured them here: the fit scales all of them by one factor.
pub const LATENCIES: [Assumed; 11] = [
    latency("cycles of arithmetic", ARITHMETIC, [4.0, 6.0], AMPERE),
    latency("cycles of special functions", SPECIAL, [17.0, 40.0], AMPERE),
    latency("cycles of f64", DOUBLE, [4.0, 48.0], AMPERE),
    latency("cycles of a branch", BRANCH, [2.0, 15.0], CHOSEN),
    latency("cycles of shared memory and ldmatrix", SHARED, [23.0, 33.0], HOPPER),
    latency("cycles of mma.sync m16n8k16", TENSOR, [17.0, 35.0], HOPPER),
    latency("cycles of a shuffle", SHUFFLE, [22.0, 32.0], AMPERE),
    latency("cycles of a barrier of a block", BARRIER, [20.0, 50.0], CHOSEN),
    latency(
        "cycles of global memory",
        GLOBAL,
        [260.0, 1000.0],
        "arxiv.org/abs/2402.13499: 260 (level-2 cache) to 480 (memory) with nobody else there; longer under load",
    ),
    latency("cycles of a bulk copy's first bytes", BULK, [600.0, 1200.0], CHOSEN),
    latency("cycles of a wait at an mbarrier", GATE, [10.0, 40.0], CHOSEN),
];

/// The time of a warp.
#[derive(Default)]
pub(super) struct Timing {
    ready: Vec<u64>,
    pub now: u64,
    /// When the copies of each committed group have landed, and those of the group to come.
    groups: Vec<u64>,
    copies: u64,
    /// When its products of a warpgroup are done.
    products: u64,
}

/// The times of a cluster, and where its warps waited.
#[derive(Default)]
pub(super) struct Times {
    /// By instruction.
    pub waits: Vec<u64>,
    executed: Vec<bool>,
    /// When the tensor cores of each block are free for `wgmma`.
    tensor: Vec<u64>,
    /// Stores and atomics when the cluster began.
    stored: u64,
}

impl Timing {
    pub fn new(program: &Program) -> Self {
        let count = program.registers.iter().map(|&count| count as usize).sum();
        Self { ready: vec![0; count], ..Self::default() }
    }

    pub fn reset(&mut self) {
        self.ready.fill(0);
        self.groups.clear();
        (self.now, self.copies, self.products) = (0, 0, 0);
    }

    /// Goes on no earlier than this.
    pub fn wait(&mut self, until: u64) {
        self.now = self.now.max(until);
    }
}

/// What a barrier adds to the time of the last to come.
pub(super) fn behind_barrier(time: u64) -> u64 {
    time + BARRIER
}

/// What a phase of an `mbarrier` adds.
pub(super) fn behind_gate(time: u64) -> u64 {
    time + GATE
}

/// What the barrier of a cluster adds.
pub(super) fn behind_cluster(time: u64) -> u64 {
    time + CLUSTER
}

impl Times {
    pub fn new(program: &Program, blocks: usize) -> Self {
        let count = program.code.len();
        Self { waits: vec![0; count], executed: vec![false; count], tensor: vec![0; blocks], stored: 0 }
    }
}

impl Warp {
    /// The time, where it is kept.
    pub(super) fn now(&self) -> u64 {
        self.timing.as_ref().map_or(0, |timing| timing.now)
    }

    /// When a bulk copy that is issued now has landed.
    pub(super) fn landing_time(&self, bytes: usize) -> u64 {
        self.timing.as_ref().map_or(0, |timing| timing.now + BULK + bytes as u64 * CYCLE / BULK_BYTES)
    }

    /// Issues an instruction.
    #[cold]
    pub(super) fn time(&mut self, room: &mut Room<'_>, at: usize) {
        let (Some(timing), Some(times)) = (&mut self.timing, &mut room.times) else { return };
        let program = room.launch.program;
        let (decoded, note) = (&program.code[at], &program.notes[at]);
        let earliest = timing.now + CYCLE;
        let mut issue = earliest;
        for &id in &note.uses {
            issue = issue.max(timing.ready[id as usize]);
        }
        match &decoded.op {
            Op::AsyncWait(leave, uncommitted) => {
                let due = timing.groups.len().saturating_sub(*leave as usize);
                for &landed in &timing.groups[..due] {
                    issue = issue.max(landed);
                }
                if *uncommitted {
                    issue = issue.max(timing.copies);
                }
            }
            Op::WgmmaWait(_) => issue = issue.max(timing.products),
            _ => {}
        }
        times.waits[at] += issue - earliest;
        times.executed[at] = true;
        timing.now = issue;
        let latency = match decoded.class {
            InstructionClass::Special => SPECIAL,
            InstructionClass::Double => DOUBLE,
            InstructionClass::LoadGlobal | InstructionClass::Atomic => GLOBAL,
            InstructionClass::Shared | InstructionClass::Local | InstructionClass::Matrix => SHARED,
            InstructionClass::Tensor => TENSOR,
            InstructionClass::Synchronize => SHUFFLE,
            _ => ARITHMETIC,
        };
        for &id in &note.defines {
            timing.ready[id as usize] = issue + latency;
        }
        match &decoded.op {
            Op::Branch(_) | Op::BranchTable(..) => timing.now += BRANCH,
            Op::AsyncCopy(_) => timing.copies = timing.copies.max(issue + GLOBAL),
            Op::AsyncCommit => {
                let last = timing.groups.last().copied().unwrap_or(0);
                timing.groups.push(last.max(std::mem::take(&mut timing.copies)));
            }
            Op::Wgmma(op) => {
                // Two columns a cycle of all four warps, of which this is one.
                let unit = &mut times.tensor[room.cluster.current];
                *unit = (*unit).max(issue) + op.columns as u64 / 8 * CYCLE;
                timing.products = *unit + TENSOR;
            }
            _ => {}
        }
    }
}

impl Room<'_> {
    /// Starts the clock of a cluster.
    pub fn start_time(&mut self) {
        let stored = self.counters.stores.requests + self.counters.global_atomics;
        if let Some(times) = &mut self.times {
            times.executed.fill(false);
            times.tensor.fill(0);
            times.stored = stored;
        }
    }

    /// Adds up what a cluster took, if it did anything.
    pub fn end_time(&mut self, warps: &[Warp]) {
        let stored = self.counters.stores.requests + self.counters.global_atomics;
        let Some(times) = &self.times else { return };
        if stored == times.stored {
            return;
        }
        let blocks = self.cluster.size as u64;
        let distinct = times.executed.iter().filter(|&&executed| executed).count() as u64;
        self.counters.working_blocks += blocks;
        self.counters.distinct_instructions += blocks * distinct;
        for block in warps.chunks(self.cluster.warps.max(1)) {
            let path = block.iter().map(Warp::now).max().unwrap_or(0) / CYCLE;
            self.counters.path_cycles += path;
            self.counters.longest_path = self.counters.longest_path.max(path);
        }
    }
}
