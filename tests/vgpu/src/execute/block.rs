//! One block, or the blocks of a cluster: their warps, their barriers, and who runs next.

use std::collections::BTreeMap;

use super::clocks::Clocks;
use super::cluster::{Cluster, inside};
use super::dependent::Dependency;
use super::factor::Places;
use super::gate::Gate;
use super::order::Knowledge;
use super::proxy::Proxies;
use super::shared::Shared;
use super::timing::{Times, behind_barrier};
use super::warp::{Hold, Path, Pause, Warp};
use super::wgmma::Warpgroup;
use super::{Launch, mix};
use crate::check::{Check, Log, Report};
use crate::counters::Counters;
use crate::program::{FULL, LANES, Proxy, Special};

/// Instructions of a warp before another gets its turn.
const TURN: u64 = 20_000;
/// Barriers of a block.
pub(super) const BARRIERS: usize = 16;

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
    /// When the last of them came.
    pub time: u64,
}

/// Everything of the blocks of a cluster but their warps, which run on it one at a time.
pub(super) struct Room<'a> {
    pub launch: &'a Launch<'a>,
    /// The block whose warp runs.
    pub index: [u32; 3],
    pub linear: u32,
    pub cluster: Cluster,
    pub shared: Shared,
    pub clocks: Clocks,
    /// By block of the cluster and number.
    pub barriers: Vec<Rendezvous>,
    /// By place in the shared memory of all blocks.
    pub gates: BTreeMap<usize, Gate>,
    /// Gates whose phase ended while a warp ran.
    pub turned: Vec<usize>,
    /// Warpgroups of which a warp committed products while it ran.
    pub committed: Vec<usize>,
    /// Whether a warp gave up registers while it ran.
    pub registers_freed: bool,
    /// Moves at everything that may let others go on.
    pub progress: u64,
    /// The progress when all waited last.
    stalled_at: Option<u64>,
    /// What stores and asynchronous accesses know of each other; none where the kernel has none of the latter.
    pub proxies: Option<Proxies>,
    pub warpgroups: BTreeMap<usize, Warpgroup>,
    pub places: Places,
    /// Whether a load of shared memory has just met bytes that nobody wrote.
    pub unwritten: bool,
    /// Buffers of bulk copies that have landed.
    pub spare: Vec<Vec<u8>>,
    pub dependency: Option<Dependency>,
    /// Whether accesses to global memory may meet other launches.
    pub watched: bool,
    /// Times, where they are kept.
    pub times: Option<Times>,
    pub knowledge: Knowledge,
    pub log: Log,
    pub counters: Counters,
    /// Allocation that an instruction met last.
    pub sites: Vec<usize>,
    pub live_lanes: Vec<u32>,
}

/// The blocks of a cluster, which is one block where there are no clusters.
pub(super) struct Block<'a> {
    room: Room<'a>,
    warps: Vec<Warp>,
    order: Vec<usize>,
    /// Whether all that it can do before the grids before this one have ended is done.
    still: bool,
}

impl<'a> Block<'a> {
    /// Room for blocks of a launch; used for one cluster after the other.
    pub fn new(launch: &'a Launch<'a>) -> Self {
        let warps = launch.shape.threads().div_ceil(LANES as u32) as usize;
        let bytes = launch.program.static_shared + launch.shape.dynamic_shared as usize;
        let checks = launch.settings.checks;
        let cluster = Cluster::new(launch.shape.cluster_blocks().max(1) as usize, warps, bytes);
        let (warps, bytes) = (cluster.all_warps(), cluster.stride * cluster.size);
        let (timed, cluster_size) = (checks && launch.settings.timing, cluster.size);
        let proxies = (checks && launch.program.uses.async_proxy).then(|| Proxies::new(bytes, warps));
        // Products of a warpgroup read as warps of their own.
        let readers = if launch.program.uses.fragments.is_empty() { 0 } else { warps };
        let room = Room {
            launch,
            index: [0; 3],
            linear: 0,
            shared: Shared::new(bytes, warps + readers, checks),
            clocks: Clocks::new(warps + readers),
            barriers: vec![Rendezvous::default(); BARRIERS * cluster.size],
            cluster,
            gates: BTreeMap::new(),
            turned: Vec::new(),
            committed: Vec::new(),
            registers_freed: false,
            progress: 0,
            stalled_at: None,
            proxies,
            warpgroups: BTreeMap::new(),
            places: Places::new(),
            unwritten: false,
            spare: Vec::new(),
            dependency: if checks { Dependency::of(launch.memory) } else { None },
            watched: checks && (launch.memory.unfinished.is_some() || !launch.memory.concurrent.is_empty()),
            times: timed.then(|| Times::new(launch.program, cluster_size)),
            knowledge: Knowledge::default(),
            log: Log::default(),
            counters: Counters::default(),
            sites: vec![usize::MAX; launch.program.code.len()],
            live_lanes: vec![0; warps],
        };
        let warps = (0..warps).map(|_| Warp::new(launch.program, checks, timed)).collect();
        let mut block = Self { room, warps, order: Vec::new(), still: false };
        block.fix_constants();
        block
    }

    /// Constants and those special registers that are the same in every cluster.
    fn fix_constants(&mut self) {
        let launch = self.room.launch;
        let [width, height, _] = launch.shape.block;
        let cluster = &self.room.cluster;
        for (index, warp) in self.warps.iter_mut().enumerate() {
            let (rank, own) = (cluster.block_of(index), index % cluster.warps);
            let place = inside(rank, launch.shape.cluster);
            warp.set_constants(launch.program);
            for (slot, special) in &launch.program.specials {
                let first = own as u32 * LANES as u32;
                warp.registers.words[*slot as usize].0 = std::array::from_fn(|lane| {
                    let thread = first + lane as u32;
                    let lane = lane as u32;
                    match special {
                        Special::Thread(0) => thread % width,
                        Special::Thread(1) => thread / width % height,
                        Special::Thread(_) => thread / width / height,
                        Special::Threads(axis) => launch.shape.block[*axis],
                        Special::Blocks(axis) => launch.shape.grid[*axis],
                        Special::Block(_) | Special::Cluster(_) => 0,
                        Special::Clusters(axis) => launch.shape.grid[*axis] / launch.shape.cluster[*axis],
                        Special::BlockInCluster(axis) => place[*axis],
                        Special::BlocksOfCluster(axis) => launch.shape.cluster[*axis],
                        Special::ClusterRank => rank as u32,
                        Special::ClusterSize => cluster.size as u32,
                        Special::LaneId => lane,
                        Special::WarpId => own as u32,
                        Special::Warps => cluster.warps as u32,
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
                        Special::Workspace(upper) => {
                            (launch.shape.workspace >> if *upper { 32 } else { 0 }) as u32
                        }
                        Special::Fixed(value) => *value,
                    }
                });
            }
        }
    }

    /// Starts the cluster with a linear index.
    pub fn begin(&mut self, linear: u64) {
        let room = &mut self.room;
        let shape = room.launch.shape;
        room.knowledge = Knowledge::default();
        room.cluster.begin(linear, shape.grid, shape.cluster);
        room.shared.reset();
        room.clocks.reset();
        room.barriers.iter_mut().for_each(|barrier| *barrier = Rendezvous::default());
        room.gates.clear();
        room.turned.clear();
        room.committed.clear();
        room.registers_freed = false;
        room.stalled_at = None;
        if let Some(proxies) = &mut room.proxies {
            proxies.reset();
        }
        room.warpgroups.clear();
        if let Some(dependency) = &mut room.dependency {
            dependency.reset();
        }
        let threads = shape.threads();
        for (index, warp) in self.warps.iter_mut().enumerate() {
            room.enter(index);
            let left = threads - (index % room.cluster.warps) as u32 * LANES as u32;
            let lanes = if left >= LANES as u32 { FULL } else { (1 << left) - 1 };
            warp.begin(room.launch.registers, lanes);
            room.live_lanes[index] = lanes;
            for (slot, special) in &room.launch.program.specials {
                let value = match special {
                    Special::Block(axis) => room.index[*axis],
                    Special::Cluster(axis) => room.index[*axis] / shape.cluster[*axis],
                    Special::Multiprocessor => room.linear % room.launch.settings.multiprocessors.max(1),
                    _ => continue,
                };
                warp.registers.words[*slot as usize].0 = [value; LANES];
            }
        }
        room.enter(0);
        self.still = false;
        room.start_time();
        self.order = (0..self.warps.len()).collect();
        let seed = room.launch.settings.seed;
        if seed != 0 {
            self.order.sort_by_key(|&warp| mix(seed ^ linear << 8 ^ (warp as u64 + 1)));
        }
    }

    /// Gives every warp a turn; `true` when the cluster is done.
    pub fn advance(&mut self) -> bool {
        let mut moved = false;
        let mut alive = false;
        for position in 0..self.order.len() {
            let index = self.order[position];
            if self.room.live_lanes[index] == 0 || !self.warps[index].has_ready() {
                continue;
            }
            moved = true;
            self.room.enter(index);
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
            return self.stall();
        }
        if !alive && self.room.launch.settings.checks {
            self.room.judge_warpgroups();
        }
        if !alive {
            self.room.end_time(&self.warps);
        }
        !alive
    }

    /// When all wait: lets those go on that a device would not suspend for ever, or reports that nobody will; `true` when
    /// the cluster is done.
    fn stall(&mut self) -> bool {
        if self.room.launch.holds() && self.warps.iter().any(|warp| warp.waits_for(Hold::Grids)) {
            self.still = true;
            return false;
        }
        let room = &mut self.room;
        let again = room.stalled_at == Some(room.progress);
        room.stalled_at = Some(room.progress);
        if !again {
            let mut any = false;
            for warp in &mut self.warps {
                any |= warp.expire();
            }
            if any {
                return false;
            }
        }
        let room = &mut self.room;
        let mut warps = self.warps.iter().enumerate();
        let waits_for_lanes = warps.any(|(index, warp)| {
            room.enter(index);
            room.live_lanes[index] != 0 && warp.report_waiting(room, index)
        });
        if !waits_for_lanes {
            self.explain();
        }
        self.room.launch.stop();
        true
    }

    /// Reports why all wait, where that is known.
    fn explain(&mut self) {
        for (index, warp) in self.warps.iter().enumerate() {
            for path in &warp.paths {
                let found = match path.hold {
                    Some(Hold::Gate(place)) => self
                        .room
                        .gates
                        .get(&place)
                        .and_then(Gate::miscount)
                        .map(|why| (Check::Transactions, why)),
                    Some(Hold::Registers) => Some((
                        Check::Deadlock,
                        "setmaxnreg.inc waits for registers that no warp of the block gives up".to_string(),
                    )),
                    Some(Hold::Warpgroup(first)) => {
                        Some((Check::MemberMask, self.room.missing_of_warpgroup(first)))
                    }
                    Some(Hold::Cluster) => Some((
                        Check::Cluster,
                        "waits at the barrier of the cluster, to which others never come".to_string(),
                    )),
                    _ => None,
                };
                if let Some((check, why)) = found {
                    self.room.enter(index);
                    let lane = path.lanes.trailing_zeros() as usize;
                    self.room.report(check, path.at, index, lane, || why);
                    return;
                }
            }
        }
        self.give_up(Check::Deadlock, "threads wait at a barrier that the others will never reach");
    }

    /// Opens the barriers that everybody has come to, and wakes who waits for what has come.
    fn settle(&mut self) {
        let warps = self.room.cluster.warps;
        for number in 0..self.room.barriers.len() {
            let room = &mut self.room;
            let barrier = &room.barriers[number];
            if barrier.arrived.is_empty() {
                continue;
            }
            let first = number / BARRIERS * warps;
            let mut came = 0;
            let mut whole = true;
            let mut missing = false;
            for warp in first..first + warps {
                let (lanes, live) = (barrier.arrived[warp], room.live_lanes[warp]);
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
            room.progress += 1;
            for (warp, waits) in done.waiting.iter().enumerate() {
                if *waits {
                    room.clocks.take(warp, &done.pool);
                    if let Some(timing) = &mut self.warps[warp].timing {
                        timing.wait(behind_barrier(done.time));
                    }
                    self.warps[warp].release(number, done.votes);
                }
            }
        }
        for place in std::mem::take(&mut self.room.turned) {
            self.wake(Hold::Gate(place));
        }
        for first in std::mem::take(&mut self.room.committed) {
            self.wake(Hold::Warpgroup(first));
        }
        if std::mem::take(&mut self.room.registers_freed) {
            self.wake(Hold::Registers);
        }
        if self.room.gather() {
            self.room.progress += 1;
            self.wake(Hold::Cluster);
        }
    }

    /// Whether it does no more until the grids before this one have ended.
    pub fn stands_still(&self) -> bool {
        self.still
    }

    /// Whether its blocks have ended or let dependent launches begin.
    pub fn has_triggered(&self) -> bool {
        let cluster = &self.room.cluster;
        let lives = |block: usize| {
            let own = block * cluster.warps..(block + 1) * cluster.warps;
            self.room.live_lanes[own].iter().any(|&lanes| lanes != 0)
        };
        (0..).zip(&cluster.members).all(|(block, member)| member.triggered || !lives(block))
    }

    /// Lets those go on that wait for something.
    pub fn wake(&mut self, hold: Hold) {
        for warp in &mut self.warps {
            warp.wake(hold);
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
            self.room.enter(index);
            self.room.report(check, at, index, lanes.trailing_zeros() as usize, || detail);
            return;
        }
    }

    /// What was found and counted.
    pub fn finish(self) -> (Log, Counters, Vec<u64>) {
        self.room.shared.leave();
        let waits = self.room.times.map_or_else(Vec::new, |times| times.waits);
        // Half cycles become cycles.
        (self.room.log, self.room.counters, waits.into_iter().map(|wait| wait / 2).collect())
    }
}

impl Room<'_> {
    /// A fence of memory proxies by a warp.
    pub fn fence_proxy(&mut self, warp: usize, proxy: Proxy) {
        if proxy == Proxy::Other {
            return;
        }
        self.fence_gates(warp);
        if proxy == Proxy::Async
            && let Some(proxies) = &mut self.proxies
        {
            proxies.fence(warp, &mut self.clocks);
        }
    }

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
        if self.log.knows(check, at) {
            return;
        }
        let report = self.describe(check, at, warp, lane, detail);
        self.log.add(check, at, || report);
    }

    /// A report of a failed check at an instruction.
    pub fn describe(
        &self,
        check: Check,
        at: usize,
        warp: usize,
        lane: usize,
        detail: impl FnOnce() -> String,
    ) -> Report {
        let program = self.launch.program;
        let note = &program.notes[at];
        Report {
            check,
            kernel: program.name.clone(),
            file: program.file(note.location.file).to_string(),
            line: note.location.line,
            opcode: note.opcode.to_string(),
            ptx_line: note.line,
            block: self.cluster.members[self.cluster.block_of(warp)].index,
            warp: (warp % self.cluster.warps.max(1)) as u32,
            lane: (lane & 31) as u32,
            detail: detail(),
            count: 1,
        }
    }
}

impl Warp {
    pub(super) fn proxy_fence(&mut self, room: &mut Room<'_>, me: usize, proxy: Proxy) {
        room.fence_proxy(me, proxy);
    }
}
