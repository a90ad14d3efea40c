//! Runs a kernel: blocks over threads, warps of a block in turn, 32 lanes at a time.

mod access;
mod atomic;
mod banks;
mod block;
mod bulk;
mod chunk;
mod clocks;
mod cluster;
mod copies;
mod dependent;
mod descriptor;
mod early;
mod factor;
mod flight;
mod gate;
mod global;
mod group;
mod heap;
mod hollow;
mod meeting;
mod order;
mod pool;
mod print;
mod product;
mod proxy;
mod registers;
mod shared;
mod shared_access;
mod shared_runs;
mod tensor;
mod timing;
mod warp;
mod wgmma;
mod wide_mma;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::check::{Check, Log, Report};
use crate::counters::Counters;
use crate::memory::View;
use crate::program::Program;
use block::Block;
use order::Releases;

pub use cluster::MAX_BLOCKS;
pub use early::{Begun, Early};
pub use heap::allocates;
pub use product::multiply_add_tile;
pub use timing::LATENCIES;

/// How a kernel is launched.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Threads of a block in each direction.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub dynamic_shared: u32,
    /// Whether all blocks must make progress together.
    pub cooperative: bool,
    /// Blocks of a cluster in each direction, which divide the grid; ones for none.
    pub cluster: [u32; 3],
    /// Whether it may begin before the grids before it have ended (programmatic stream serialization).
    pub dependent: bool,
    /// Where a cooperative grid keeps its barrier, which the device sets; 0 for nowhere.
    pub workspace: u64,
    /// Where `malloc` takes memory from, which the device sets, and its bytes.
    pub heap: (u64, usize),
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            grid: [1; 3],
            block: [1; 3],
            dynamic_shared: 0,
            cooperative: false,
            cluster: [1; 3],
            dependent: false,
            workspace: 0,
            heap: (0, 0),
        }
    }
}

impl Shape {
    /// All blocks.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }

    /// Blocks of a cluster.
    pub fn cluster_blocks(&self) -> u32 {
        self.cluster.iter().product()
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }
}

/// How a kernel is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether checks and memory counters are on.
    pub checks: bool,
    /// Seed of the order of blocks and warps; 0 is the natural order.
    pub seed: u64,
    /// Threads to run blocks on.
    pub workers: usize,
    /// Run at most so many blocks, and scale the counters.
    pub sample_blocks: Option<u64>,
    /// Longest time a launch may take.
    pub timeout: Duration,
    /// Multiprocessors, for `%nsmid`.
    pub multiprocessors: u32,
    /// Whether the time of warps is kept, for predictions and for where they wait; it needs checks.
    pub timing: bool,
    /// Whether launches that may begin before the grids before them do so.
    pub early: bool,
    /// Where kernels may write, as address and size; none for anywhere.
    pub outputs: Option<Vec<(u64, u64)>>,
}

/// What came of a launch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Failed checks.
    pub reports: Vec<Report>,
    /// What was counted.
    pub counters: Counters,
    /// What a device would answer: a `CUDA_ERROR_*` number, 0 for success.
    pub device_error: u32,
    /// By instruction, cycles that warps waited for it; empty where time is not kept.
    pub waits: Vec<u64>,
}

/// What all workers of a launch share.
pub(crate) struct Launch<'a> {
    pub program: &'a Program,
    pub shape: &'a Shape,
    pub settings: &'a Settings,
    pub arguments: &'a [u8],
    pub memory: &'a View,
    pub releases: Releases,
    /// Whether the kernel has fences or ordered accesses at all.
    pub synchronizes: bool,
    /// Registers of a thread when a block begins.
    pub registers: u32,
    /// Where it stands still, if it began before the grids before it have ended.
    pub early: Option<&'a Early>,
    stop: AtomicBool,
    deadline: Mutex<Instant>,
}

impl Launch<'_> {
    pub fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    pub fn late(&self) -> bool {
        Instant::now() > *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_deadline(&self, deadline: Instant) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    /// Whether `griddepcontrol.wait` waits.
    pub fn holds(&self) -> bool {
        self.early.is_some_and(Early::holds)
    }
}

/// Runs a launch to its end. The arguments are laid out as the kernel's parameters.
pub fn run(
    program: &Program,
    shape: &Shape,
    arguments: &[u8],
    memory: &View,
    settings: &Settings,
) -> Outcome {
    run_from(program, shape, arguments, memory, settings, None)
}

/// Runs a launch to its end, which may stand still on its way.
pub fn run_from(
    program: &Program,
    shape: &Shape,
    arguments: &[u8],
    memory: &View,
    settings: &Settings,
    early: Option<&Early>,
) -> Outcome {
    let blocks = shape.blocks();
    // Clusters run as blocks do.
    let size = u64::from(shape.cluster_blocks().max(1));
    let clusters = blocks / size;
    let sample = settings.sample_blocks.map_or(clusters, |most| (most / size).clamp(1, clusters));
    let launch = Launch {
        program,
        shape,
        settings,
        arguments,
        memory,
        releases: Releases::default(),
        synchronizes: order::synchronizes(program),
        registers: pool::at_entry(program, shape),
        early,
        stop: AtomicBool::new(false),
        deadline: Mutex::new(Instant::now() + settings.timeout),
    };
    let order = Order::new(clusters, sample, settings.seed);
    let next = AtomicU64::new(early.map_or(0, |early| early.begins(sample)));
    let queue = Queue { order: &order, next: &next, natural: Mutex::new(None) };
    let merged: Mutex<Merged> = Mutex::default();
    // Blocks that wait for each other must all be under way; they are dealt out to the workers.
    let workers = settings.workers.clamp(1, 64).min(usize::try_from(sample).unwrap_or(usize::MAX));
    if let Some(early) = early {
        early.expect(workers);
    }
    let work = |worker: usize| {
        let mut found = Merged::default();
        if let Some(early) = early {
            found = early::run_share(&launch, early, &order, worker, workers);
        }
        found.add(if shape.cooperative {
            together(&launch, &order, worker, workers)
        } else {
            one_by_one(&launch, &queue)
        });
        if let Ok(mut merged) = merged.lock() {
            merged.add((found.log, found.counters, found.waits));
        }
    };
    if workers == 1 {
        work(0);
    } else {
        std::thread::scope(|scope| {
            for worker in 1..workers {
                let work = &work;
                scope.spawn(move || work(worker));
            }
            work(0);
        });
    }
    let Merged { mut log, mut counters, waits } = merged.into_inner().unwrap_or_default();
    counters.kernel.clone_from(&program.name);
    counters.launches = 1;
    counters.dependent_launches = memory.unfinished.is_some().into();
    counters.blocks = blocks;
    counters.block_threads = shape.threads();
    counters.dynamic_shared = shape.dynamic_shared;
    counters.static_shared = program.static_shared as u32;
    if sample < clusters {
        counters.scale(clusters as f64 / sample as f64);
    }
    counters.blocks_run = sample * size;
    log.judge_boxes();
    if settings.checks {
        dependent::judge(program, shape, memory, &mut log, counters.dependency_waits);
    }
    let device_error = log.reports.iter().find_map(|report| report.check.device_error()).unwrap_or(0);
    Outcome { reports: log.reports, counters, device_error, waits }
}

/// What several blocks or workers found and counted.
#[derive(Default)]
struct Merged {
    log: Log,
    counters: Counters,
    waits: Vec<u64>,
}

impl Merged {
    fn add(&mut self, (log, counters, waits): (Log, Counters, Vec<u64>)) {
        self.log.merge(log);
        self.counters.add(&counters);
        // By instruction.
        self.waits.resize(self.waits.len().max(waits.len()), 0);
        for (into, from) in self.waits.iter_mut().zip(&waits) {
            *into += from;
        }
    }
}

/// Turns of a block that may wait for others, at which another is begun beside it.
const PATIENCE: u32 = 20;

/// Blocks of a launch that are still to begin.
struct Queue<'a> {
    order: &'a Order,
    next: &'a AtomicU64,
    /// Once a block was found to wait for others: those that had not begun then, the first at the end.
    natural: Mutex<Option<Vec<u64>>>,
}

impl Queue<'_> {
    fn take(&self) -> Option<u64> {
        let turn = self.next.fetch_add(1, Relaxed);
        if turn < self.order.count {
            return Some(self.order.block(turn));
        }
        let mut natural = self.natural.lock().unwrap_or_else(PoisonError::into_inner);
        natural.as_mut().and_then(Vec::pop)
    }

    /// From now on the lowest goes first. Devices begin blocks in this order, and programs that wait for blocks before
    /// theirs go by that.
    fn be_natural(&self) {
        let mut natural = self.natural.lock().unwrap_or_else(PoisonError::into_inner);
        if natural.is_some() {
            return;
        }
        let begun = self.next.swap(self.order.count, Relaxed).min(self.order.count);
        let mut left: Vec<u64> = (begun..self.order.count).map(|turn| self.order.block(turn)).collect();
        left.sort_unstable_by(|a, b| b.cmp(a));
        *natural = Some(left);
    }
}

fn one_by_one(launch: &Launch<'_>, queue: &Queue<'_>) -> (Log, Counters, Vec<u64>) {
    let mut block = Block::new(launch);
    let may_wait = order::may_wait(launch.program);
    while let Some(linear) = queue.take() {
        if launch.stopped() {
            break;
        }
        block.begin(linear);
        let mut turns = 0;
        while !block.advance() {
            if launch.stopped() {
                break;
            }
            turns += 1;
            if may_wait && turns == PATIENCE {
                return beside(launch, queue, block);
            }
            if launch.late() {
                block.give_up(Check::Timeout, "the launch did not end in time");
                launch.stop();
            }
        }
    }
    block.finish()
}

/// Runs a block that may wait for others, and those that are left beside it: one more whenever none has ended for a while.
fn beside<'a>(launch: &'a Launch<'a>, queue: &Queue<'_>, first: Block<'a>) -> (Log, Counters, Vec<u64>) {
    queue.be_natural();
    let (mut running, mut spare, mut merged) = (vec![first], Vec::new(), Merged::default());
    let mut turns = PATIENCE;
    while !launch.stopped() {
        if turns >= PATIENCE || running.is_empty() {
            turns = 0;
            match queue.take() {
                Some(linear) => {
                    let mut block = spare.pop().unwrap_or_else(|| Block::new(launch));
                    block.begin(linear);
                    running.push(block);
                }
                None if running.is_empty() => break,
                None => {}
            }
        }
        turns += 1;
        for index in (0..running.len()).rev() {
            if running[index].advance() {
                spare.push(running.swap_remove(index));
                // The next takes its place.
                turns = PATIENCE;
            }
        }
        if launch.late() {
            if let Some(block) = running.first_mut() {
                block.give_up(Check::Timeout, "the launch did not end in time");
            }
            launch.stop();
        }
    }
    for block in running.into_iter().chain(spare) {
        merged.add(block.finish());
    }
    (merged.log, merged.counters, merged.waits)
}

fn together(launch: &Launch<'_>, order: &Order, worker: usize, workers: usize) -> (Log, Counters, Vec<u64>) {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for turn in (worker as u64..order.count).step_by(workers) {
        let mut block = Block::new(launch);
        block.begin(order.block(turn));
        blocks.push(block);
    }
    let mut done = vec![false; blocks.len()];
    while !launch.stopped() && done.contains(&false) {
        for (block, done) in blocks.iter_mut().zip(&mut done) {
            *done = *done || block.advance();
        }
        if launch.late() {
            if let Some(index) = done.iter().position(|done| !done) {
                blocks[index].give_up(Check::Timeout, "the launch did not end in time");
            }
            launch.stop();
        }
    }
    let mut merged = Merged::default();
    for block in blocks {
        merged.add(block.finish());
    }
    (merged.log, merged.counters, merged.waits)
}

/// The order in which blocks run: a permutation by seed, without a table of it; and which of them.
struct Order {
    blocks: u64,
    count: u64,
    seed: u64,
    half_bits: u32,
}

impl Order {
    fn new(blocks: u64, count: u64, seed: u64) -> Self {
        let bits = 64 - blocks.saturating_sub(1).leading_zeros();
        Self { blocks, count, seed, half_bits: bits.div_ceil(2).max(1) }
    }

    /// The block that is run at a turn.
    fn block(&self, turn: u64) -> u64 {
        let turn = self.permute(turn, self.count);
        // A sample is spread evenly over the grid.
        (u128::from(turn) * u128::from(self.blocks) / u128::from(self.count)) as u64
    }

    fn permute(&self, turn: u64, count: u64) -> u64 {
        if self.seed == 0 || count < 2 {
            return turn;
        }
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = turn;
        loop {
            // A Feistel network over the next power of four, walked until it lands inside.
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for round in 0..4u64 {
                let mixed = mix(right ^ self.seed.rotate_left(round as u32 * 16) ^ round << 60) & mask;
                (left, right) = (right, left ^ mixed);
            }
            value = left << self.half_bits | right;
            if value < count {
                return value;
            }
        }
    }
}

/// A bijective scrambling of 64 bits.
pub(crate) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
