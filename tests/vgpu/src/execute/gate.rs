//! `mbarrier` objects: arrivals and bytes, phases, and who waits for them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::access::lanes_of;
use super::block::Room;
use super::copies::strip;
use super::shared::CHUNK;
use super::timing::behind_gate;
use super::warp::{Hold, Next, Warp};
use crate::check::Check;
use crate::program::{Address, Mbarrier};

/// An `mbarrier` object.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate {
    expected: u32,
    left: i64,
    bytes: i64,
    phase: u64,
    /// What those who arrived in this phase know, and in the one before.
    pool: Vec<u16>,
    opened: Vec<u16>,
    /// Copies that land when somebody asks.
    landing: VecDeque<Landing>,
    /// The warp that initialised it, and its clock then.
    origin: (usize, u16),
    /// Whether the asynchronous proxy and other blocks may know it.
    fenced: bool,
    /// The phase of the cluster's barrier that its initialisation comes before.
    before: u64,
    /// When the last arrival or copy of this phase came, and of the one before.
    time: u64,
    opened_time: u64,
    /// Who waits, and for which phase.
    waiters: Vec<Waiter>,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    warp: usize,
    at: usize,
    lane: usize,
    phase: u64,
}

/// A bulk copy under way into shared memory.
#[derive(Clone, Debug)]
pub(super) struct Landing {
    /// Where it goes, in the shared memory of all blocks.
    pub to: usize,
    /// The bytes as they will lie there.
    pub data: Arc<Vec<u8>>,
    /// Chunks of them, counted from the first, that nobody ever wrote where they come from.
    pub unwritten: Arc<[u32]>,
    /// Who issued it: warp, instruction and lane.
    pub issuer: (usize, usize, usize),
    /// When it lands.
    pub time: u64,
    /// What the issuer knew.
    pub pool: Vec<u16>,
    /// The barrier's phase when it was issued.
    pub phase: u64,
}

/// What a gate's owner may find wrong.
enum Trouble {
    /// More arrivals than were left.
    Surplus,
    /// The phase ended with copies of it still under way.
    Early((usize, usize, usize)),
    /// A second phase ended before a waiter saw the end of the first.
    Ahead(Waiter),
}

impl Gate {
    pub fn new(count: u32, origin: (usize, u16), before: u64) -> Self {
        Self { expected: count, left: i64::from(count), origin, before, ..Self::default() }
    }

    /// Goes on to the next phase when everything that was expected has come.
    fn turn(&mut self, troubles: &mut Vec<Trouble>) -> bool {
        if self.left < 0 {
            troubles.push(Trouble::Surplus);
            self.left = 0;
        }
        if self.left != 0 || self.bytes != 0 {
            return false;
        }
        for waiter in self.waiters.iter().filter(|waiter| waiter.phase < self.phase) {
            troubles.push(Trouble::Ahead(*waiter));
        }
        self.waiters.retain(|waiter| waiter.phase == self.phase);
        self.phase += 1;
        self.left = i64::from(self.expected);
        self.opened = std::mem::take(&mut self.pool);
        self.opened_time = std::mem::take(&mut self.time);
        if let Some(late) = self.landing.iter().find(|landing| landing.phase < self.phase) {
            troubles.push(Trouble::Early(late.issuer));
        }
        true
    }

    /// Whether a phase is over: that of a parity, or that of a state.
    fn is_over(&self, parity: bool, token: u64) -> bool {
        if parity { token & 1 != self.phase & 1 } else { token as u32 != self.phase as u32 }
    }

    pub fn phase(&self) -> u64 {
        self.phase
    }

    pub fn land_later(&mut self, landing: Landing) {
        self.landing.push_back(landing);
    }

    /// Words on why its phase does not end, where that is the fault of bytes.
    pub fn miscount(&self) -> Option<String> {
        (self.left == 0 && self.bytes != 0).then(|| {
            let (what, bytes) = if self.bytes > 0 { ("expected", self.bytes) } else { ("unexpected", -self.bytes) };
            format!("all have arrived at the mbarrier, but {bytes} bytes are {what}: expect_tx differs from what the copies bring")
        })
    }
}

impl Room<'_> {
    /// Marks the gates that a warp initialised as known to copies and to other blocks.
    pub fn fence_gates(&mut self, warp: usize) {
        self.gates.values_mut().filter(|gate| gate.origin.0 == warp).for_each(|gate| gate.fenced = true);
    }

    /// The gate at a place, used by a warp, or a report.
    pub fn gate(
        &mut self,
        me: usize,
        at: usize,
        lane: usize,
        place: usize,
        remote: bool,
    ) -> Option<&mut Gate> {
        let Some(gate) = self.gates.get(&place) else {
            let name = self.cluster.name(place);
            self.report(Check::Transactions, at, me, lane, || {
                format!("the mbarrier at {name} was not initialised")
            });
            return None;
        };
        let (warp, clock) = gate.origin;
        // fence.mbarrier_init makes it known at the next barrier of the cluster, though the arrival there be relaxed.
        let met = self.cluster.met.get(me).is_some_and(|&met| met > gate.before);
        let known = self.clocks.knows(me, warp, clock) || gate.fenced && met;
        let fenced = gate.fenced || !remote;
        if self.launch.settings.checks && !(known && fenced) {
            let name = self.cluster.name(place);
            self.report(Check::Transactions, at, me, lane, || {
                if known {
                    format!("the mbarrier at {name} is used by a copy or another block, and its initialiser has executed neither fence.mbarrier_init nor fence.proxy.async")
                } else {
                    format!("the mbarrier at {name} is used, and no barrier lies between its initialisation and this")
                }
            });
        }
        self.gates.get_mut(&place)
    }

    /// Changes a gate, goes on to its next phase when that is due, and reports what is wrong with that.
    fn with_gate(&mut self, me: usize, at: usize, lane: usize, place: usize, act: impl FnOnce(&mut Gate)) {
        let mut troubles = Vec::new();
        let Some(gate) = self.gates.get_mut(&place) else { return };
        act(gate);
        self.progress += 1;
        if gate.turn(&mut troubles) {
            self.turned.push(place);
        }
        for trouble in troubles {
            let name = self.cluster.name(place);
            match trouble {
                Trouble::Surplus => self.report(Check::Transactions, at, me, lane, || {
                    format!("more arrivals at the mbarrier at {name} than it was initialised with")
                }),
                Trouble::Early((warp, at, lane)) => self.report(Check::Transactions, at, warp, lane, || {
                    format!("the phase of the mbarrier at {name} ended before this copy had come: expect_tx named fewer bytes than the copies bring")
                }),
                Trouble::Ahead(waiter) => self.report(Check::Transactions, waiter.at, waiter.warp, waiter.lane, || {
                    format!("two phases of the mbarrier at {name} ended while this waited for the first: a device may never see it")
                }),
            }
        }
    }

    /// Lets copies land that a gate counts, until its phase ends or none is left.
    fn land(&mut self, place: usize) {
        loop {
            let Some(gate) = self.gates.get_mut(&place) else { return };
            let phase = gate.phase;
            let Some(landing) = gate.landing.pop_front() else { return };
            let bytes = landing.data.len();
            self.shared.arrive(landing.to / CHUNK..(landing.to + bytes) / CHUNK);
            self.shared.data[landing.to..landing.to + bytes].copy_from_slice(&landing.data);
            for &chunk in landing.unwritten.iter() {
                self.shared.set_unwritten(landing.to / CHUNK + chunk as usize);
            }
            let (warp, at, lane) = landing.issuer;
            self.with_gate(warp, at, lane, place, |gate| {
                gate.bytes -= bytes as i64;
                gate.time = gate.time.max(landing.time);
                merge(&mut gate.pool, &landing.pool);
            });
            // The last of the blocks that a copy goes to leaves its buffer to copies to come.
            self.spare.extend(Arc::into_inner(landing.data));
            if self.gates.get(&place).is_none_or(|gate| gate.phase != phase) {
                return;
            }
        }
    }
}

/// Adds what one pool knows to another.
fn merge(into: &mut Vec<u16>, from: &[u16]) {
    into.resize(into.len().max(from.len()), 0);
    for (into, from) in into.iter_mut().zip(from) {
        *into = (*into).max(*from);
    }
}

impl Warp {
    /// What a lane names the phase by that it waits for: a parity or a state.
    fn token(&self, slot: u32, parity: bool, lane: usize) -> u64 {
        if parity {
            u64::from(self.registers.words[slot as usize].0[lane])
        } else {
            self.registers.longs[slot as usize].0[lane]
        }
    }

    pub(super) fn mbarrier(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Mbarrier,
        address: &Address,
        mask: u32,
    ) -> Next {
        if let Mbarrier::PendingCount { to, state } = op {
            let state = self.registers.longs[*state as usize].0;
            for lane in lanes_of(mask) {
                self.registers.words[*to as usize].0[lane] = (state[lane] >> 32) as u32;
            }
            return Next::Continue;
        }
        let addresses = self.addresses(address).map(strip);
        let (mut passed, mut first_place) = (0u32, None);
        let mut alike = true;
        // What a lane before was told that waits for the same: the answer to this one is no other.
        let mut told = None;
        for lane in lanes_of(mask) {
            if let (Mbarrier::Wait { token, parity, .. }, Some((same_address, same_token, over))) = (op, told)
                && same_address == addresses[lane]
                && same_token == self.token(*token, *parity, lane)
            {
                passed |= u32::from(over) << lane;
                continue;
            }
            if addresses[lane] % 8 != 0 {
                let address = addresses[lane];
                room.report(Check::Misaligned, at, me, lane, || {
                    format!("an mbarrier at shared address {address}, which is no multiple of 8")
                });
                return Next::Fault;
            }
            let Some(place) = room.locate_shared(me, at, lane, addresses[lane], 8) else {
                return Next::Fault;
            };
            let remote = room.cluster.split(addresses[lane]).0 != room.cluster.current;
            alike &= *first_place.get_or_insert(place) == place;
            let word = |warp: &Self, slot: u32| warp.registers.words[slot as usize].0[lane];
            if let Mbarrier::Init { count } = op {
                let count = word(self, *count);
                if count == 0 || count >= 1 << 20 {
                    room.report(Check::Transactions, at, me, lane, || {
                        format!("an mbarrier for {count} arrivals; 1 to 2^20 - 1 are allowed")
                    });
                    return Next::Fault;
                }
                room.gates.insert(place, Gate::new(count, (me, room.clocks.now(me)), room.cluster.phase()));
                continue;
            }
            if room.gate(me, at, lane, place, remote).is_none() {
                return Next::Fault;
            }
            match op {
                Mbarrier::Init { .. } | Mbarrier::PendingCount { .. } => {}
                Mbarrier::Invalidate => {
                    room.gates.remove(&place);
                }
                Mbarrier::Expect { bytes, complete } => {
                    let bytes = i64::from(word(self, *bytes));
                    room.with_gate(me, at, lane, place, |gate| {
                        gate.bytes += if *complete { -bytes } else { bytes };
                    });
                }
                Mbarrier::Arrive { state, count, bytes, drop, releases } => {
                    let bytes = bytes.map_or(0, |slot| i64::from(word(self, slot)));
                    let count = count.map_or(1, |slot| i64::from(word(self, slot)));
                    let mut pool = Vec::new();
                    if *releases {
                        room.clocks.give(me, &mut pool);
                    }
                    let mut before = 0;
                    let now = self.now();
                    room.with_gate(me, at, lane, place, |gate| {
                        before = u64::from(gate.phase as u32) | (gate.left.max(0) as u64) << 32;
                        gate.bytes += bytes;
                        gate.time = gate.time.max(now);
                        gate.left -= count;
                        gate.expected = gate.expected.saturating_sub(u32::from(*drop));
                        merge(&mut gate.pool, &pool);
                    });
                    if let Some(to) = state {
                        self.registers.longs[*to as usize].0[lane] = before;
                    }
                }
                Mbarrier::CopiesDone { counted } => {
                    self.land_copies(room, me, at, 1 << lane, |_, _| true);
                    let mut pool = Vec::new();
                    room.clocks.give(me, &mut pool);
                    room.with_gate(me, at, lane, place, |gate| {
                        gate.left -= i64::from(*counted);
                        merge(&mut gate.pool, &pool);
                    });
                }
                Mbarrier::Wait { token, parity, acquires, .. } => {
                    let token = self.token(*token, *parity, lane);
                    let over = |room: &Room<'_>| {
                        room.gates.get(&place).is_some_and(|gate| gate.is_over(*parity, token))
                    };
                    // What has not come yet stays under way as long as nobody needs it.
                    if !over(room) {
                        room.land(place);
                    }
                    let over = over(room);
                    told = Some((addresses[lane], token, over));
                    if over {
                        passed |= 1 << lane;
                        if let Some(gate) = room.gates.get_mut(&place) {
                            gate.waiters.retain(|waiter| waiter.warp != me);
                            if *acquires {
                                room.clocks.take(me, &gate.opened);
                            }
                            if let Some(timing) = &mut self.timing {
                                timing.wait(behind_gate(gate.opened_time));
                            }
                        }
                    }
                }
            }
        }
        if let Mbarrier::Wait { done, suspends, .. } = op {
            let expired = self.expired & mask != 0;
            if passed == 0
                && *suspends
                && alike
                && !expired
                && let Some(place) = first_place
            {
                if let Some(gate) = room.gates.get_mut(&place) {
                    let lane = mask.trailing_zeros() as usize;
                    gate.waiters.retain(|waiter| waiter.warp != me);
                    gate.waiters.push(Waiter { warp: me, at, lane, phase: gate.phase });
                }
                return Next::Park(Hold::Gate(place));
            }
            self.expired &= !mask;
            let register = &mut self.registers.predicates[*done as usize];
            *register = (*register & !mask) | passed;
        }
        Next::Continue
    }
}
