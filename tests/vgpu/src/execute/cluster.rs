//! Clusters of blocks, which run as one: whose shared memory an address names, and the barrier of a cluster.
//!
//! The blocks of a cluster lie one after the other in one shared memory, and their warps are numbered through. A block
//! alone is a cluster of one. An address of shared memory is an offset in the warp's own block, or, as `mapa` makes it,
//! one more than a rank in its upper byte and an offset in that block.

use super::block::Room;
use super::order::Knowledge;
use super::timing::behind_cluster;
use super::warp::{Hold, Next, Warp};
use crate::check::Check;
use crate::program::ClusterBarrier;

/// Most blocks of a cluster.
pub const MAX_BLOCKS: u32 = 16;

/// One block of a cluster.
#[derive(Default)]
pub(super) struct Member {
    pub index: [u32; 3],
    pub linear: u32,
    pub knowledge: Knowledge,
    /// By warp of the cluster: the warp's clock when it last touched this block's shared memory from another block, with
    /// the instruction and the lane; 0 for never.
    touched: Vec<(u16, usize, usize)>,
    ended: bool,
    /// Whether it has let dependent launches begin.
    pub triggered: bool,
    /// Registers of the block that no warp has, in units of a warp's.
    pub free_registers: u32,
}

/// A cluster of blocks.
pub(super) struct Cluster {
    pub size: usize,
    /// Warps of a block.
    pub warps: usize,
    /// Bytes of shared memory of a block.
    pub bytes: usize,
    /// Bytes from one block's shared memory to the next one's.
    pub stride: usize,
    /// The block whose warp runs.
    pub current: usize,
    pub members: Vec<Member>,
    /// By warp: the phases of the cluster's barrier that it has waited for.
    pub met: Vec<u64>,
    barrier: Gathering,
}

/// The barrier of a cluster.
#[derive(Default)]
struct Gathering {
    phase: u64,
    /// Lanes that came, by warp.
    came: Vec<u32>,
    pool: Vec<u16>,
    opened: Vec<u16>,
    releases: bool,
    /// When the last came in this phase, and in the one before.
    time: u64,
    opened_time: u64,
}

impl Cluster {
    pub fn new(size: usize, warps: usize, bytes: usize) -> Self {
        let stride = if size == 1 { bytes } else { bytes.next_multiple_of(1024) };
        let members = (0..size).map(|_| Member::default()).collect();
        Self {
            size,
            warps,
            bytes,
            stride,
            current: 0,
            members,
            met: Vec::new(),
            barrier: Gathering::default(),
        }
    }

    /// Warps of all blocks.
    pub fn all_warps(&self) -> usize {
        self.size * self.warps
    }

    /// Starts the cluster with a linear index.
    pub fn begin(&mut self, linear: u64, grid: [u32; 3], shape: [u32; 3]) {
        let clusters = [0, 1, 2].map(|axis| u64::from(grid[axis] / shape[axis]));
        let first = [
            linear % clusters[0] * u64::from(shape[0]),
            linear / clusters[0] % clusters[1] * u64::from(shape[1]),
            linear / clusters[0] / clusters[1] * u64::from(shape[2]),
        ];
        let warps = self.all_warps();
        for (rank, member) in self.members.iter_mut().enumerate() {
            let inner = inside(rank, shape);
            member.index = [0, 1, 2].map(|axis| first[axis] as u32 + inner[axis]);
            let [x, y, z] = member.index.map(u64::from);
            member.linear = (x + u64::from(grid[0]) * (y + u64::from(grid[1]) * z)) as u32;
            member.knowledge = Knowledge::default();
            member.touched.clear();
            member.touched.resize(if self.size > 1 { warps } else { 0 }, (0, 0, 0));
            member.ended = false;
            member.triggered = false;
            member.free_registers = 0;
        }
        self.current = 0;
        self.met.clear();
        self.met.resize(warps, 0);
        self.barrier =
            Gathering { came: vec![0; if self.size > 1 { warps } else { 0 }], ..Gathering::default() };
    }

    /// The phase of the barrier of the cluster.
    pub fn phase(&self) -> u64 {
        self.barrier.phase
    }

    /// The block of a warp.
    pub fn block_of(&self, warp: usize) -> usize {
        warp / self.warps.max(1)
    }

    /// Where an address of the running warp lies: the block, the offset in it.
    pub fn split(&self, address: u64) -> (usize, u64) {
        match (address >> 24) as usize {
            0 => (self.current, address),
            rank => (rank - 1, address & 0xff_ffff),
        }
    }

    /// Words for a place of the shared memory of all blocks.
    pub fn name(&self, place: usize) -> String {
        if self.size == 1 {
            return format!("shared offset {place}");
        }
        let stride = self.stride.max(1);
        format!("shared offset {} of block {} of the cluster", place % stride, place / stride)
    }
}

/// The place of a block in its cluster.
pub(super) fn inside(rank: usize, shape: [u32; 3]) -> [u32; 3] {
    let rank = rank as u32;
    [rank % shape[0], rank / shape[0] % shape[1], rank / shape[0] / shape[1]]
}

impl Room<'_> {
    /// Makes a warp the one that runs: its block's index and knowledge become the room's.
    pub fn enter(&mut self, warp: usize) {
        let block = self.cluster.block_of(warp);
        if self.cluster.size > 1 {
            let before = self.cluster.current;
            std::mem::swap(&mut self.knowledge, &mut self.cluster.members[before].knowledge);
            std::mem::swap(&mut self.knowledge, &mut self.cluster.members[block].knowledge);
        }
        self.cluster.current = block;
        self.index = self.cluster.members[block].index;
        self.linear = self.cluster.members[block].linear;
    }

    /// Where bytes of an address lie in the shared memory of all blocks, or a report.
    pub fn locate_shared(
        &mut self,
        me: usize,
        at: usize,
        lane: usize,
        address: u64,
        bytes: usize,
    ) -> Option<usize> {
        let (block, offset) = self.cluster.split(address);
        let size = self.cluster.bytes as u64;
        if block >= self.cluster.size {
            let blocks = self.cluster.size;
            self.report(Check::OutOfBounds, at, me, lane, || {
                format!("shared memory of block {block} of a cluster of {blocks}")
            });
            return None;
        }
        if offset > size || bytes as u64 > size - offset {
            self.report(Check::OutOfBounds, at, me, lane, || {
                format!("{bytes} bytes at offset {offset} of {size} bytes of shared memory")
            });
            return None;
        }
        if block != self.cluster.current && !self.visit(me, at, lane, block) {
            return None;
        }
        Some(block * self.cluster.stride + offset as usize)
    }

    /// Notes that a warp touches another block's shared memory; `false`, and a report, where that block may not have begun
    /// or has ended.
    pub fn visit(&mut self, me: usize, at: usize, lane: usize, block: usize) -> bool {
        if !self.launch.settings.checks {
            return true;
        }
        let warps = self.cluster.warps;
        // Whoever has met a warp of the other block at a barrier since the start knows of its first clock.
        let met = self.cluster.met.get(me).is_some_and(|&met| met > 0);
        let begun = met || (block * warps..(block + 1) * warps).any(|warp| self.clocks.knows(me, warp, 1));
        let clock = self.clocks.now(me);
        let member = &mut self.cluster.members[block];
        let ended = member.ended;
        if let Some(touched) = member.touched.get_mut(me) {
            *touched = (clock, at, lane);
        }
        if ended || !begun {
            self.report(Check::Cluster, at, me, lane, || {
                let why = if ended {
                    "has ended"
                } else {
                    "may not have begun: no barrier of the cluster lies between"
                };
                format!("shared memory of block {block} of the cluster, which {why}")
            });
        }
        begun && !ended
    }

    /// When the last warp of a block ends: reports who touched its shared memory from outside and may do so only now.
    pub fn leave(&mut self) {
        let block = self.cluster.current;
        let own = block * self.cluster.warps..(block + 1) * self.cluster.warps;
        if self.cluster.size == 1 || own.clone().any(|warp| self.live_lanes[warp] != 0) {
            return;
        }
        self.cluster.members[block].ended = true;
        if !self.launch.settings.checks {
            return;
        }
        let touched = std::mem::take(&mut self.cluster.members[block].touched);
        for (other, (clock, at, lane)) in touched.into_iter().enumerate() {
            if clock == 0 || own.clone().any(|warp| self.clocks.knows(warp, other, clock)) {
                continue;
            }
            self.report(Check::Cluster, at, other, lane, || {
                format!(
                    "shared memory of block {block} of the cluster, which may have ended: it waits for nobody at its end"
                )
            });
        }
    }

    /// Opens the barrier of the cluster when all that live have come; `true` when it opened.
    pub fn gather(&mut self) -> bool {
        let barrier = &mut self.cluster.barrier;
        let any = barrier.came.iter().any(|&came| came != 0);
        let all = barrier.came.iter().zip(&self.live_lanes).all(|(came, live)| live & !came == 0);
        if !any || !all {
            return false;
        }
        barrier.phase += 1;
        barrier.came.fill(0);
        barrier.opened = std::mem::take(&mut barrier.pool);
        barrier.opened_time = std::mem::take(&mut barrier.time);
        if std::mem::take(&mut barrier.releases) {
            self.release_blocks();
        }
        true
    }

    /// What the blocks of the cluster did so far to global memory came before what they do now.
    fn release_blocks(&mut self) {
        let current = self.cluster.current;
        std::mem::swap(&mut self.knowledge, &mut self.cluster.members[current].knowledge);
        let clocks: Vec<(u32, u8)> = self
            .cluster
            .members
            .iter_mut()
            .map(|member| {
                member.knowledge.fence();
                (member.linear, member.knowledge.clock())
            })
            .collect();
        for member in &mut self.cluster.members {
            member.knowledge.learn(&clocks);
        }
        std::mem::swap(&mut self.knowledge, &mut self.cluster.members[current].knowledge);
    }
}

impl Warp {
    pub(super) fn cluster_barrier(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: ClusterBarrier,
        mask: u32,
    ) -> Next {
        if room.cluster.size == 1 && room.cluster.barrier.came.is_empty() {
            room.cluster.barrier.came = vec![0; room.cluster.all_warps()];
        }
        if !op.waits {
            let barrier = &mut room.cluster.barrier;
            if barrier.came[me] & mask != 0 {
                let lane = (barrier.came[me] & mask).trailing_zeros() as usize;
                room.report(Check::Cluster, at, me, lane, || {
                    "arrives at the barrier of the cluster again before it has waited".to_string()
                });
                return Next::Fault;
            }
            barrier.came[me] |= mask;
            self.cluster_phase = barrier.phase;
            barrier.releases |= op.orders;
            barrier.time = barrier.time.max(self.now());
            if op.orders {
                room.clocks.give(me, &mut barrier.pool);
            }
            room.progress += 1;
            return Next::Continue;
        }
        let barrier = &room.cluster.barrier;
        if barrier.phase > self.cluster_phase {
            // Who comes this far knows that all have begun, even where the arrivals release nothing.
            if let Some(met) = room.cluster.met.get_mut(me) {
                *met = barrier.phase;
            }
            let barrier = &room.cluster.barrier;
            if op.orders {
                room.clocks.take(me, &barrier.opened);
            }
            if let Some(timing) = &mut self.timing {
                timing.wait(behind_cluster(barrier.opened_time));
            }
            return Next::Continue;
        }
        if barrier.came[me] & mask != mask {
            let lane = (mask & !barrier.came[me]).trailing_zeros() as usize;
            room.report(Check::Cluster, at, me, lane, || {
                "waits at the barrier of the cluster without having arrived".to_string()
            });
            return Next::Fault;
        }
        Next::Park(Hold::Cluster)
    }
}
