//! What orders the accesses of blocks to global memory: releases by fences and atomics, and who has seen them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::block::Room;
use crate::program::{Op, Program};
use crate::shadow::Toucher;

/// Whether a kernel has anything by which blocks could order their accesses.
pub(super) fn synchronizes(program: &Program) -> bool {
    program.code.iter().any(|decoded| match &decoded.op {
        Op::Fence(wide) => *wide,
        Op::Atomic(atomic) => atomic.ordered,
        Op::Load(access) | Op::Store(access) => access.ordered,
        _ => false,
    })
}

/// Whether a kernel reads what other blocks may write meanwhile, so that its blocks may wait for each other.
pub(super) fn may_wait(program: &Program) -> bool {
    program.code.iter().any(|decoded| match &decoded.op {
        Op::Atomic(atomic) => !atomic.destinations.is_empty(),
        Op::Load(access) => access.strong,
        _ => false,
    })
}

/// By address: the blocks that released there, each with its clock, in order.
#[derive(Default)]
pub(crate) struct Releases {
    by_address: Mutex<HashMap<u64, Vec<(u32, u8)>>>,
    any: AtomicBool,
}

/// What a block knows of others: how much of which addresses' releases it has seen.
#[derive(Default)]
pub(super) struct Knowledge {
    clock: u8,
    seen: Vec<(u64, usize)>,
    /// Blocks of the same cluster, and the clocks below which this block knows of them by the cluster's barrier.
    peers: Vec<(u32, u8)>,
}

impl Knowledge {
    /// What the block did so far becomes part of its next release.
    pub fn fence(&mut self) {
        // A block that fences more often than can be told apart releases everything at once.
        self.clock = self.clock.saturating_add(1);
    }

    /// How often it has fenced.
    pub fn clock(&self) -> u8 {
        self.clock
    }

    /// Learns by a barrier of the cluster what its blocks have done.
    pub fn learn(&mut self, clocks: &[(u32, u8)]) {
        self.peers.clear();
        self.peers.extend(clocks);
    }

    pub fn toucher(&self, room: &Room<'_>) -> Toucher {
        Toucher { epoch: room.launch.memory.epoch, block: room.linear, clock: self.clock }
    }

    /// Does `act` on an address through which blocks order themselves. No other block comes between the act and what
    /// this one releases and learns there, else the last to count might not know of the one before.
    pub fn meet<T>(
        &mut self,
        releases: &Releases,
        address: u64,
        block: u32,
        releasing: bool,
        act: impl FnOnce() -> T,
    ) -> T {
        if !releasing && !releases.any.load(Relaxed) {
            return act();
        }
        let mut map = releases.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let list = map.entry(address).or_default();
        if releasing && self.clock > 0 {
            releases.any.store(true, Relaxed);
            match list.last_mut() {
                Some(last) if last.0 == block => last.1 = self.clock,
                _ => list.push((block, self.clock)),
            }
        }
        let count = list.len();
        match self.seen.iter_mut().find(|(known, _)| *known == address) {
            Some((_, seen)) => *seen = count,
            None => self.seen.push((address, count)),
        }
        act()
    }

    /// Whether what another block did at a clock came before what this one does now.
    pub fn knows(&self, releases: &Releases, block: u32, clock: u8, many: bool) -> bool {
        let known = |&(peer, until): &(u32, u8)| peer == block && (until > clock || until == u8::MAX);
        if self.peers.iter().any(known) {
            return true;
        }
        if self.seen.is_empty() {
            // Of many readers only some are known by name: a barrier of the cluster vouches for its own alone.
            return false;
        }
        // Of many readers only some are known by name; whoever synchronised at all is trusted with the rest.
        if many {
            return true;
        }
        let Ok(map) = releases.by_address.lock() else { return true };
        self.seen.iter().any(|(address, count)| {
            map.get(address).is_some_and(|list| {
                list[..(*count).min(list.len())]
                    .iter()
                    .any(|&(other, at)| other == block && (at > clock || at == u8::MAX))
            })
        })
    }
}
