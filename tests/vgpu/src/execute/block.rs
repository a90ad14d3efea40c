//! One block: its warps, its barriers, and who runs next.

use std::collections::HashMap;

use super::order::Knowledge;
use super::shared::{Clocks, Shared};
use super::warp::{Path, Pause, Warp};
use super::{Launch, mix};
use crate::check::{Check, Log, Report};
use crate::counters::Counters;
use crate::program::{FULL, LANES, Special};

/// Instructions of a warp before another gets its turn.
const TURN: u64 = 20_000;

/// A barrier and who has come to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rendezvous {
    /// Lanes that came, by warp.
    pub arrived: Vec<u32>,
    /// Warps that wait (the others only arrived).
    pub waiting: Vec<bool>,
    /// Threads that are expected; 0 for all of the block.
    pub expected: u32,
    /// What those who came know.
    pub pool: Vec<u16>,
    /// Predicates of `bar.red`: of how many lanes, and of how many it held.
    pub votes: (u32, u32),
}

/// An `mbarrier` object.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate {
    pub expected: u32,
    pub left: i64,
    pub bytes: i64,
    pub phase: u64,
    /// What those who arrived in this phase know, and in the one before.
    pub pool: Vec<u16>,
    pub opened: Vec<u16>,
    /// Copies that land when somebody asks.
    pub landing: Vec<Landing>,
}

/// A bulk copy under way into shared memory.
#[derive(Clone, Debug)]
pub(super) struct Landing {
    pub to: usize,
    pub data: Vec<u8>,
    pub warp: usize,
    pub lane: usize,
}

/// Everything of a block but its warps, which run on it one at a time.
pub(super) struct Room<'a> {
    pub launch: &'a Launch<'a>,
    pub index: [u32; 3],
    pub linear: u32,
    pub shared: Shared,
    pub clocks: Clocks,
    pub barriers: Vec<Rendezvous>,
    pub gates: HashMap<u64, Gate>,
    pub knowledge: Knowledge,
    pub log: Log,
    pub counters: Counters,
    /// Allocation that an instruction met last.
    pub sites: Vec<usize>,
    pub live_lanes: Vec<u32>,
}

/// A block.
pub(super) struct Block<'a> {
    room: Room<'a>,
    warps: Vec<Warp>,
    order: Vec<usize>,
}

impl<'a> Block<'a> {
    /// Room for blocks of a launch; used for one after the other.
    pub fn new(launch: &'a Launch<'a>) -> Self {
        let warps = launch.shape.threads().div_ceil(LANES as u32) as usize;
        let bytes = launch.program.static_shared + launch.shape.dynamic_shared as usize;
        let checks = launch.settings.checks;
        let room = Room {
            launch,
            index: [0; 3],
            linear: 0,
            shared: Shared::new(bytes, warps, checks),
            clocks: Clocks::new(warps),
            barriers: vec![Rendezvous::default(); 16],
            gates: HashMap::new(),
            knowledge: Knowledge::default(),
            log: Log::default(),
            counters: Counters::default(),
            sites: vec![usize::MAX; launch.program.code.len()],
            live_lanes: vec![0; warps],
        };
        let warps = (0..warps).map(|_| Warp::new(launch.program, checks)).collect();
        let mut block = Self { room, warps, order: Vec::new() };
        block.fix_constants();
        block
    }

    /// Constants and those special registers that are the same in every block.
    fn fix_constants(&mut self) {
        let launch = self.room.launch;
        let [width, height, _] = launch.shape.block;
        let count = self.warps.len() as u32;
        for (index, warp) in self.warps.iter_mut().enumerate() {
            warp.set_constants(launch.program);
            for (slot, special) in &launch.program.specials {
                let first = index as u32 * LANES as u32;
                warp.registers.words[*slot as usize].0 = std::array::from_fn(|lane| {
                    let thread = first + lane as u32;
                    let lane = lane as u32;
                    match special {
                        Special::Thread(0) => thread % width,
                        Special::Thread(1) => thread / width % height,
                        Special::Thread(_) => thread / width / height,
                        Special::Threads(axis) => launch.shape.block[*axis],
                        Special::Blocks(axis) => launch.shape.grid[*axis],
                        Special::Block(_) => 0,
                        Special::LaneId => lane,
                        Special::WarpId => index as u32,
                        Special::Warps => count,
                        Special::Multiprocessor => 0,
                        Special::Multiprocessors => launch.settings.multiprocessors,
                        Special::LaneMask(0) => 1 << lane,
                        Special::LaneMask(1) => (1 << lane) - 1,
                        Special::LaneMask(2) => (1 << lane) | ((1 << lane) - 1),
                        Special::LaneMask(3) => !((1 << lane) | ((1 << lane) - 1)),
                        Special::LaneMask(_) => !((1 << lane) - 1),
                        Special::DynamicShared => launch.shape.dynamic_shared,
                        Special::TotalShared => {
                            launch.shape.dynamic_shared + launch.program.static_shared as u32
                        }
                        Special::Fixed(value) => *value,
                    }
                });
            }
        }
    }

    /// Starts the block with a linear index.
    pub fn begin(&mut self, linear: u64) {
        let room = &mut self.room;
        let [x, y, _] = room.launch.shape.grid.map(u64::from);
        room.index = [(linear % x) as u32, (linear / x % y) as u32, (linear / x / y) as u32];
        room.linear = linear as u32;
        room.shared.reset();
        room.clocks.reset();
        room.barriers.iter_mut().for_each(|barrier| *barrier = Rendezvous::default());
        room.gates.clear();
        room.knowledge = Knowledge::default();
        let threads = room.launch.shape.threads();
        for (index, warp) in self.warps.iter_mut().enumerate() {
            let left = threads - index as u32 * LANES as u32;
            let lanes = if left >= LANES as u32 { FULL } else { (1 << left) - 1 };
            warp.begin(room.launch.program, lanes);
            room.live_lanes[index] = lanes;
            for (slot, special) in &room.launch.program.specials {
                let value = match special {
                    Special::Block(axis) => room.index[*axis],
                    Special::Multiprocessor => room.linear % room.launch.settings.multiprocessors.max(1),
                    _ => continue,
                };
                warp.registers.words[*slot as usize].0 = [value; LANES];
            }
        }
        self.order = (0..self.warps.len()).collect();
        let seed = room.launch.settings.seed;
        if seed != 0 {
            self.order.sort_by_key(|&warp| mix(seed ^ linear << 8 ^ (warp as u64 + 1)));
        }
    }

    /// Gives every warp a turn; `true` when the block is done.
    pub fn advance(&mut self) -> bool {
        let mut moved = false;
        let mut alive = false;
        for position in 0..self.order.len() {
            let index = self.order[position];
            if self.room.live_lanes[index] == 0 || !self.warps[index].has_ready() {
                continue;
            }
            moved = true;
            let pause = self.warps[index].run(&mut self.room, index, TURN);
            if pause == Pause::Fault {
                self.room.launch.stop();
                return true;
            }
            self.settle();
        }
        for lanes in &self.room.live_lanes {
            alive |= *lanes != 0;
        }
        if alive && !moved {
            let room = &mut self.room;
            let mut warps = self.warps.iter().enumerate();
            if !warps.any(|(index, warp)| room.live_lanes[index] != 0 && warp.report_waiting(room, index)) {
                self.give_up(Check::Deadlock, "threads wait at a barrier that the others will never reach");
            }
            self.room.launch.stop();
            return true;
        }
        !alive
    }

    /// Opens the barriers that everybody has come to.
    fn settle(&mut self) {
        for number in 0..self.room.barriers.len() {
            let room = &mut self.room;
            let barrier = &room.barriers[number];
            if barrier.arrived.is_empty() {
                continue;
            }
            let mut came = 0;
            let mut whole = true;
            let mut missing = false;
            for (warp, &lanes) in barrier.arrived.iter().enumerate() {
                let live = room.live_lanes[warp];
                if lanes != 0 {
                    // A barrier counts warps by 32 threads.
                    came += LANES as u32;
                    whole &= live & !lanes == 0;
                } else {
                    missing |= live != 0;
                }
            }
            let complete = if barrier.expected == 0 { !missing } else { came >= barrier.expected };
            if !(whole && complete) {
                continue;
            }
            let done = std::mem::take(&mut room.barriers[number]);
            for (warp, waits) in done.waiting.iter().enumerate() {
                if *waits {
                    room.clocks.take(warp, &done.pool);
                    self.warps[warp].release(number, done.votes);
                }
            }
        }
    }

    /// Reports that the block cannot go on, and where its first waiting warp stands.
    pub fn give_up(&mut self, check: Check, why: &str) {
        for (index, warp) in self.warps.iter().enumerate() {
            if self.room.live_lanes[index] == 0 {
                continue;
            }
            let Some(&Path { at, lanes, .. }) = warp.paths.first() else { continue };
            let waiting = self.room.live_lanes.iter().filter(|&&lanes| lanes != 0).count();
            let detail = format!("{why}; {waiting} of {} warps have not ended", self.warps.len());
            let at = at.min(self.room.launch.program.code.len() - 1);
            self.room.report(check, at, index, lanes.trailing_zeros() as usize, || detail);
            return;
        }
    }

    /// What was found and counted.
    pub fn finish(self) -> (Log, Counters) {
        (self.room.log, self.room.counters)
    }
}

impl Room<'_> {
    /// Reports a failed check at an instruction.
    pub fn report(
        &mut self,
        check: Check,
        at: usize,
        warp: usize,
        lane: usize,
        detail: impl FnOnce() -> String,
    ) {
        // A launch before may have left out the blocks that would have written it, or that would have counted.
        let of_other_blocks = matches!(check, Check::UninitializedGlobal | Check::GlobalRaceBetweenBlocks);
        if of_other_blocks && self.launch.settings.sample_blocks.is_some() {
            return;
        }
        let program = self.launch.program;
        let index = self.index;
        self.log.add(check, at, || {
            let note = &program.notes[at];
            Report {
                check,
                kernel: program.name.clone(),
                file: program.file(note.location.file).to_string(),
                line: note.location.line,
                opcode: note.opcode.to_string(),
                ptx_line: note.line,
                block: index,
                warp: warp as u32,
                lane: (lane & 31) as u32,
                detail: detail(),
                count: 1,
            }
        });
    }
}
