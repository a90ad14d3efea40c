//! Instructions in which the lanes of a warp meet, and the barriers in which warps do.

use super::block::Room;
use super::warp::{Next, Warp};
use crate::check::Check;
use crate::program::{Barrier, FULL, LANES, Match, Reduce, ReduceKind, Shuffle, ShuffleKind, Vote, VoteKind};

impl Warp {
    /// Checks that all 32 lanes came, as tensor cores ask.
    pub(super) fn whole_warp(&self, room: &mut Room<'_>, me: usize, at: usize, mask: u32) {
        let live = room.live_lanes[me];
        if mask != FULL {
            room.report(Check::MemberMask, at, me, mask.trailing_zeros() as usize, || {
                format!("all 32 lanes must execute this together; {live:08x} live and {mask:08x} came")
            });
        }
    }

    pub(super) fn shuffle<const CHECKS: bool>(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Shuffle,
        mask: u32,
    ) {
        let source = self.registers.words[op.source as usize].0;
        let distance = self.registers.words[op.lane as usize].0;
        let clamp = self.registers.words[op.clamp as usize].0;
        let source_valid = if CHECKS { self.valid[op.source as usize] } else { FULL };
        let (mut in_range, mut out, mut valid) = (0u32, source, 0u32);
        for lane in 0..LANES as u32 {
            let (limit, segment) = (clamp[lane as usize] & 31, clamp[lane as usize] >> 8 & 31);
            let by = distance[lane as usize] & 31;
            let most = (lane & segment) | (limit & !segment);
            let (from, fits) = match op.kind {
                ShuffleKind::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= most as i32),
                ShuffleKind::Down => (lane + by, lane + by <= most),
                ShuffleKind::Butterfly => (lane ^ by, lane ^ by <= most),
                ShuffleKind::Index => {
                    let from = (lane & segment) | (by & !segment);
                    (from, from <= most)
                }
            };
            let from = if fits { from & 31 } else { lane };
            in_range |= u32::from(fits) << lane;
            out[lane as usize] = source[from as usize];
            valid |= (source_valid >> from & 1) << lane;
            if mask >> lane & 1 != 0 && mask >> from & 1 == 0 {
                room.report(Check::MemberMask, at, me, lane as usize, || {
                    format!("the value of lane {from} is read, which does not take part")
                });
            }
        }
        crate::program::lanes::merge(&mut self.registers.words[op.destination as usize].0, &out, mask);
        if CHECKS {
            let into = &mut self.valid[op.destination as usize];
            *into = (*into & !mask) | (valid & mask);
        }
        if let Some(predicate) = op.in_range {
            let register = &mut self.registers.predicates[predicate as usize];
            *register = (*register & !mask) | (in_range & mask);
        }
    }

    pub(super) fn vote(&mut self, op: &Vote, mask: u32) {
        let bits = self.registers.predicates[op.source as usize];
        let held = if op.negated { !bits } else { bits } & mask;
        let answer = match op.kind {
            VoteKind::Ballot => return self.set_words(op.destination, held, mask),
            VoteKind::All => held == mask,
            VoteKind::Any => held != 0,
            VoteKind::Uniform => held == 0 || held == mask,
        };
        let register = &mut self.registers.predicates[op.destination as usize];
        *register = if answer { *register | mask } else { *register & !mask };
    }

    pub(super) fn match_values(&mut self, op: &Match, mask: u32) {
        let values: [u64; LANES] = if op.long {
            self.registers.longs[op.source as usize].0
        } else {
            self.registers.words[op.source as usize].0.map(u64::from)
        };
        let same = |value: u64| {
            (0..LANES).fold(0u32, |out, lane| out | u32::from(values[lane] == value) << lane) & mask
        };
        let first = same(values[mask.trailing_zeros() as usize & 31]);
        for (lane, &value) in values.iter().enumerate() {
            if mask >> lane & 1 != 0 {
                let found = same(value);
                let found = if op.all { if found == mask { mask } else { 0 } } else { found };
                self.registers.words[op.destination as usize].0[lane] = found;
            }
        }
        if let Some(predicate) = op.uniform {
            let register = &mut self.registers.predicates[predicate as usize];
            *register = if first == mask { *register | mask } else { *register & !mask };
        }
    }

    pub(super) fn reduce(&mut self, op: &Reduce, mask: u32) {
        let values = self.registers.words[op.source as usize].0;
        let answer =
            (0..LANES).filter(|lane| mask >> lane & 1 != 0).map(|lane| values[lane]).reduce(|a, b| match op
                .kind
            {
                ReduceKind::Add => a.wrapping_add(b),
                ReduceKind::And => a & b,
                ReduceKind::Or => a | b,
                ReduceKind::Xor => a ^ b,
                ReduceKind::Min if op.signed => (a as i32).min(b as i32) as u32,
                ReduceKind::Max if op.signed => (a as i32).max(b as i32) as u32,
                ReduceKind::Min => a.min(b),
                ReduceKind::Max => a.max(b),
            });
        self.set_words(op.destination, answer.unwrap_or(0), mask);
    }

    pub(super) fn barrier(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Barrier,
        mask: u32,
    ) -> Next {
        let lane = mask.trailing_zeros() as usize;
        let number = self.registers.words[op.number as usize].0[lane & 31] as usize;
        if number >= super::block::BARRIERS {
            room.report(Check::Trap, at, me, lane, || {
                format!("barrier {number} does not exist; there are 16")
            });
            return Next::Fault;
        }
        let warps = room.live_lanes.len();
        let expected = op.count.map_or(0, |slot| self.registers.words[slot as usize].0[lane & 31]);
        if !expected.is_multiple_of(32) {
            room.report(Check::Trap, at, me, lane, || {
                format!("a barrier for {expected} threads; the number must be a multiple of 32")
            });
            return Next::Fault;
        }
        let index = room.cluster.current * super::block::BARRIERS + number;
        let barrier = &mut room.barriers[index];
        barrier.arrived.resize(warps, 0);
        barrier.waiting.resize(warps, false);
        if barrier.arrived[me] & mask != 0 {
            room.report(Check::BarrierInDivergentCode, at, me, lane, || {
                format!("a warp comes to barrier {number} again before it opened")
            });
            return Next::Fault;
        }
        let first = barrier.arrived[me] == 0;
        barrier.arrived[me] |= mask;
        barrier.expected = expected;
        barrier.waiting[me] |= op.waits;
        barrier.time = barrier.time.max(self.now());
        if first {
            room.clocks.give(me, &mut barrier.pool);
        }
        if let Some((_, source, negated, _)) = op.reduce {
            let bits = self.registers.predicates[source as usize];
            let held = if negated { !bits } else { bits } & mask;
            barrier.votes.0 += mask.count_ones();
            barrier.votes.1 += held.count_ones();
        }
        room.progress += 1;
        if op.waits { Next::Wait(index) } else { Next::Continue }
    }
}
