//! Launches that begin before the grids before them: every block runs up to `griddepcontrol.wait` and stands still there
//! until it is told that they have ended.
//!
//! A device may take this order of execution for a launch by programmatic stream serialization. What such a kernel reads
//! or writes before its wait then comes before what the earlier grids do, and its numbers show it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::block::Block;
use super::warp::Hold;
use super::{Launch, Merged, Order, Outcome};
use crate::check::Check;

/// Turns that a block gets before the earlier grids: one that waits for blocks which stand still would never come to its
/// own wait.
const MAX_TURNS: usize = 64;

/// Where a launch that began early stands still.
pub struct Early {
    /// Most clusters that begin early: those that fit on the device.
    most: u64,
    holds: AtomicBool,
    stage: Mutex<Stage>,
    changed: Condvar,
}

#[derive(Default)]
struct Stage {
    /// Workers that come, once that is known, and those that stand still.
    workers: Option<usize>,
    still: usize,
    /// Whether some block has neither ended nor let dependent launches begin.
    untriggered: bool,
    go: bool,
}

impl Early {
    pub(super) fn new(most: u64) -> Self {
        Self { most, holds: AtomicBool::new(true), stage: Mutex::default(), changed: Condvar::new() }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `griddepcontrol.wait` waits.
    pub(super) fn holds(&self) -> bool {
        self.holds.load(Relaxed)
    }

    /// Clusters that begin early, of so many.
    pub(super) fn begins(&self, clusters: u64) -> u64 {
        self.most.min(clusters)
    }

    /// Says how many workers there are.
    pub(super) fn expect(&self, workers: usize) {
        self.stage().workers = Some(workers);
        self.changed.notify_all();
    }

    /// A worker has done what it can before the earlier grids.
    fn arrive(&self, untriggered: bool) {
        let mut stage = self.stage();
        stage.still += 1;
        stage.untriggered |= untriggered;
        self.changed.notify_all();
    }

    fn wait_to_go(&self) {
        let mut stage = self.stage();
        while !stage.go {
            stage = self.changed.wait(stage).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all workers stand still; whether all blocks have ended or let dependent launches begin.
    fn wait_until_still(&self) -> bool {
        let mut stage = self.stage();
        while stage.workers.is_none_or(|workers| stage.still < workers) {
            stage = self.changed.wait(stage).unwrap_or_else(PoisonError::into_inner);
        }
        !stage.untriggered
    }

    fn go(&self) {
        self.holds.store(false, Relaxed);
        self.stage().go = true;
        self.changed.notify_all();
    }
}

/// A launch that has begun and stands still.
pub struct Begun {
    early: Arc<Early>,
    thread: JoinHandle<Outcome>,
    /// Whether launches that depend on it may begin before the grids before it have ended.
    pub triggered: bool,
}

impl Begun {
    /// Begins a launch with at most so many clusters, and comes back when they stand still.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn new(most: u64, run: impl FnOnce(&Early) -> Outcome + Send + 'static) -> std::io::Result<Self> {
        let early = Arc::new(Early::new(most));
        let own = early.clone();
        let thread = std::thread::Builder::new().name("early launch".to_string()).spawn(move || run(&own))?;
        let triggered = early.wait_until_still();
        Ok(Self { early, thread, triggered })
    }

    /// The grids before it have ended: runs it to its end. None when a worker panicked.
    pub fn finish(self) -> Option<Outcome> {
        self.early.go();
        self.thread.join().ok()
    }
}

/// A worker that has yet to arrive, so that one which panics keeps nobody waiting.
struct Arrival<'a>(Option<&'a Early>);

impl Arrival<'_> {
    fn come(mut self, untriggered: bool) {
        if let Some(early) = self.0.take() {
            early.arrive(untriggered);
        }
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        if let Some(early) = self.0.take() {
            early.arrive(true);
        }
    }
}

/// Runs a worker's share of the blocks that begin early: up to their wait, and to their end when the earlier grids have ended.
pub(super) fn run_share(
    launch: &Launch<'_>,
    early: &Early,
    order: &Order,
    worker: usize,
    workers: usize,
) -> Merged {
    let arrival = Arrival(Some(early));
    let mut blocks: Vec<(Block<'_>, bool)> = Vec::new();
    for turn in (worker as u64..early.begins(order.count)).step_by(workers) {
        let mut block = Block::new(launch);
        block.begin(order.block(turn));
        blocks.push((block, false));
    }
    let mut untriggered = false;
    for _ in 0..MAX_TURNS {
        let mut moved = false;
        for (block, done) in blocks.iter_mut().filter(|(block, done)| !done && !block.stands_still()) {
            if launch.stopped() {
                break;
            }
            moved = true;
            *done = block.advance();
        }
        if !moved {
            break;
        }
    }
    untriggered |= blocks.iter().any(|(block, done)| !done && !block.has_triggered());
    arrival.come(untriggered);
    early.wait_to_go();
    launch.set_deadline(Instant::now() + launch.settings.timeout);
    let mut merged = Merged::default();
    for (mut block, mut done) in blocks {
        block.wake(Hold::Grids);
        while !done && !launch.stopped() {
            done = block.advance();
            if launch.late() && !done {
                block.give_up(Check::Timeout, "the launch did not end in time");
                launch.stop();
            }
        }
        merged.add(block.finish());
    }
    merged
}
