//! One warp: its registers, its paths of execution, and the loop that runs them.
//!
//! Lanes that part at a branch become paths of their own; the path with the lowest instruction runs
//! until it meets the next one, where they join again. A path that has had a long turn lets the
//! others go first, so that lanes may wait for each other.

use std::collections::HashMap;

use super::block::Room;
use super::bulk::Outgoing;
use super::copies::PendingCopy;
use super::flight::Flight;
use super::hollow::Origin;
use super::timing::Timing;
use crate::check::Check;
use crate::program::{Address, FULL, LANES, Members, Op, Program, Registers, VoteKind};
use crate::ptx::Space;

/// Lanes that stand at one instruction.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// The instruction that comes next.
    pub at: usize,
    /// The lanes.
    pub lanes: u32,
    /// What they wait for.
    pub hold: Option<Hold>,
    /// Where the answer of a `bar.red` goes.
    pub reduce: Option<(VoteKind, u32)>,
    /// Whether others go first.
    pub parked: bool,
    /// The lanes without which it does not go on, its own among them; 0 for none.
    pub awaits: u32,
}

impl Path {
    /// Lanes that can run.
    pub fn new(at: usize, lanes: u32) -> Self {
        Self { at, lanes, hold: None, reduce: None, parked: false, awaits: 0 }
    }

    /// Whether it waits for nobody.
    fn is_ready(&self) -> bool {
        self.hold.is_none() && self.awaits == 0
    }
}

/// What lanes wait for outside of their warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// A barrier of the block, numbered over the cluster; they go on behind it.
    Barrier(usize),
    /// A phase of the `mbarrier` at a place; they execute the instruction again.
    Gate(usize),
    /// The barrier of the cluster; likewise.
    Cluster,
    /// Registers that other warps give up; likewise.
    Registers,
    /// Products that the other warps of the warpgroup, named by its first warp, have yet to issue; likewise.
    Warpgroup(usize),
    /// The end of the grids before this one; likewise.
    Grids,
}

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// All its paths ended or wait, or its turn is over.
    Turn,
    /// A device would have stopped here.
    Fault,
}

/// What an instruction asks of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Go on.
    Continue,
    /// These lanes wait at a barrier.
    Wait(usize),
    /// These lanes wait, and then execute the instruction again.
    Park(Hold),
    /// A device would stop.
    Fault,
}

/// A warp.
pub(super) struct Warp {
    pub registers: Registers,
    pub paths: Vec<Path>,
    /// Which lanes of every register were written.
    pub valid: Vec<u32>,
    valid_at_start: Vec<u32>,
    pub copies: Vec<PendingCopy>,
    pub groups: [u32; LANES],
    /// Bulk groups that each lane has committed, and what it sends by them.
    pub bulk_groups: [u32; LANES],
    pub outgoing: Vec<Outgoing>,
    /// Products of a warpgroup that are under way; none where the kernel has none or nothing is checked.
    pub flight: Option<Flight>,
    /// The phase of the cluster's barrier that it arrived in last.
    pub cluster_phase: u64,
    /// Lanes whose `try_wait` gives up, as a device's does after some time.
    pub expired: u32,
    /// Whether it comes after the wait for earlier grids.
    pub waited: std::cell::Cell<bool>,
    /// Registers of a thread, where the kernel changes them.
    pub held_registers: u32,
    /// Its time, where that is wanted.
    pub timing: Option<Box<Timing>>,
    pub local: Vec<u8>,
    pub local_written: Vec<u8>,
    /// Whether the store under way brings values that were never computed.
    pub hollow: bool,
    /// Whether local memory holds such, or a load found bytes of it that nobody wrote.
    pub local_hollow: bool,
    /// Whether such values came into registers of which all have a value otherwise: from then on each is followed.
    pub alert: bool,
    /// By register: the load that brought what nobody wrote.
    pub origins: HashMap<u32, Origin>,
    /// Words and longs that may be read before they are written, and the predicates: what a block finds as zeros.
    clears: [Vec<u32>; 2],
    predicates: usize,
}

impl Warp {
    /// A warp with room for a program.
    pub fn new(program: &Program, checks: bool, timed: bool) -> Self {
        let [words, longs, predicates] = program.registers.map(|count| count as usize);
        let local = program.local * LANES;
        Self {
            registers: Registers {
                words: vec![crate::program::lanes::Words([0; LANES]); words],
                longs: vec![crate::program::lanes::Longs([0; LANES]); longs],
                predicates: vec![0; predicates],
            },
            paths: Vec::new(),
            valid: vec![0; if checks { words + longs + predicates } else { 0 }],
            valid_at_start: vec![0; if checks { words + longs + predicates } else { 0 }],
            copies: Vec::new(),
            groups: [0; LANES],
            bulk_groups: [0; LANES],
            outgoing: Vec::new(),
            flight: (checks && !program.uses.fragments.is_empty())
                .then(|| Flight::new(&program.uses.fragments)),
            cluster_phase: 0,
            expired: 0,
            waited: std::cell::Cell::new(false),
            held_registers: 0,
            timing: timed.then(|| Box::new(Timing::new(program))),
            local: vec![0xff; local],
            local_written: vec![0; if checks { local } else { 0 }],
            hollow: false,
            local_hollow: false,
            alert: false,
            origins: HashMap::new(),
            clears: [Vec::new(), Vec::new()],
            predicates,
        }
    }

    /// Fills the constant registers, which stay for all blocks.
    pub fn set_constants(&mut self, program: &Program) {
        let [words, longs, _] = program.registers.map(|count| count as usize);
        let mut fixed = Vec::new();
        for &(slot, value) in &program.word_constants {
            self.registers.words[slot as usize].0 = [value; LANES];
            fixed.push(slot as usize);
        }
        for (slot, _) in &program.specials {
            fixed.push(*slot as usize);
        }
        for &(slot, value) in &program.long_constants {
            self.registers.longs[slot as usize].0 = [value; LANES];
            fixed.push(words + slot as usize);
        }
        for &(slot, value) in &program.predicate_constants {
            self.registers.predicates[slot as usize] = if value { FULL } else { 0 };
            self.predicates = self.predicates.min(slot as usize);
            fixed.push(words + longs + slot as usize);
        }
        // What is written before it is read wherever it is read needs no clearing.
        let clears = |first: usize, count: usize| {
            let own = (first..first + count).filter(|id| !program.definite[*id] && !fixed.contains(id));
            own.map(|id| (id - first) as u32).collect()
        };
        self.clears = [clears(0, words), clears(words, longs)];
        if !self.valid_at_start.is_empty() {
            for slot in fixed {
                self.valid_at_start[slot] = FULL;
            }
            for (valid, _) in
                self.valid_at_start.iter_mut().zip(&program.definite).filter(|(_, definite)| **definite)
            {
                *valid = FULL;
            }
        }
    }

    /// Starts a block.
    pub fn begin(&mut self, registers: u32, lanes: u32) {
        let [words, longs] = &self.clears;
        words.iter().for_each(|&slot| self.registers.words[slot as usize].0 = [0; LANES]);
        longs.iter().for_each(|&slot| self.registers.longs[slot as usize].0 = [0; LANES]);
        self.registers.predicates[..self.predicates].fill(0);
        self.valid.copy_from_slice(&self.valid_at_start);
        self.paths.clear();
        self.paths.push(Path::new(0, lanes));
        self.copies.clear();
        self.groups = [0; LANES];
        self.bulk_groups = [0; LANES];
        self.outgoing.clear();
        if let Some(flight) = &mut self.flight {
            flight.reset();
        }
        self.cluster_phase = 0;
        self.expired = 0;
        self.waited.set(false);
        self.held_registers = registers;
        if let Some(timing) = &mut self.timing {
            timing.reset();
        }
        self.local.fill(0xff);
        self.local_written.fill(super::hollow::UNWRITTEN);
        self.hollow = false;
        self.local_hollow = false;
        self.alert = false;
        self.origins.clear();
    }

    /// Whether any path can run.
    pub fn has_ready(&self) -> bool {
        self.paths.iter().any(Path::is_ready)
    }

    /// Lets the paths go on that wait at a barrier; `votes` is of how many lanes and for how many it held.
    pub fn release(&mut self, barrier: usize, votes: (u32, u32)) {
        for path in &mut self.paths {
            if path.hold != Some(Hold::Barrier(barrier)) {
                continue;
            }
            path.hold = None;
            if let Some((kind, to)) = path.reduce.take() {
                let (of, held) = votes;
                match kind {
                    VoteKind::Ballot => {
                        for lane in 0..LANES {
                            if path.lanes >> lane & 1 != 0 {
                                self.registers.words[to as usize].0[lane] = held;
                            }
                        }
                    }
                    _ => {
                        let answer = if kind == VoteKind::All { held == of } else { held > 0 };
                        let register = &mut self.registers.predicates[to as usize];
                        *register = if answer { *register | path.lanes } else { *register & !path.lanes };
                    }
                }
            }
        }
    }

    /// Lets the paths go on that wait for something; `true` when there are any.
    pub fn wake(&mut self, hold: Hold) -> bool {
        let mut any = false;
        for path in self.paths.iter_mut().filter(|path| path.hold == Some(hold)) {
            path.hold = None;
            any = true;
        }
        any
    }

    /// Whether lanes wait for something.
    pub fn waits_for(&self, hold: Hold) -> bool {
        self.paths.iter().any(|path| path.hold == Some(hold))
    }

    /// Lets those go on that a device would not suspend for ever, without what they wait for; `true` when there are any.
    pub fn expire(&mut self) -> bool {
        let mut any = false;
        for path in &mut self.paths {
            if let Some(Hold::Gate(_)) = path.hold {
                path.hold = None;
                self.expired |= path.lanes;
                any = true;
            }
        }
        any
    }

    /// Takes the ready path with the lowest instruction, joined with all that stand there too, and says
    /// where the next one stands.
    fn select(&mut self) -> Option<(usize, u32, usize)> {
        let ready = |path: &Path| path.is_ready() && !path.parked;
        if !self.paths.iter().any(ready) {
            self.paths.iter_mut().for_each(|path| path.parked = false);
        }
        let at = self.paths.iter().filter(|path| ready(path)).map(|path| path.at).min()?;
        let mut lanes = 0;
        self.paths.retain(|path| {
            let take = ready(path) && path.at == at;
            if take {
                lanes |= path.lanes;
            }
            !take
        });
        Some((at, lanes, self.lowest()))
    }

    /// The lowest instruction that a path stands at which can run and is not parked.
    fn lowest(&self) -> usize {
        let ready = self.paths.iter().filter(|path| path.is_ready() && !path.parked);
        ready.map(|path| path.at).min().unwrap_or(usize::MAX)
    }

    /// Runs until everything waits or `turn` instructions are over.
    pub fn run(&mut self, room: &mut Room<'_>, me: usize, turn: u64) -> Pause {
        #[allow(unused_unsafe, reason = "only x86-64 has features that make it unsafe")]
        // SAFETY: loading made sure that the CPU has the features that the code was compiled for.
        unsafe {
            if room.launch.settings.checks {
                self.go::<true>(room, me, turn)
            } else {
                self.go::<false>(room, me, turn)
            }
        }
    }

    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    fn go<const CHECKS: bool>(&mut self, room: &mut Room<'_>, me: usize, turn: u64) -> Pause {
        let program = room.launch.program;
        let mut left = turn;
        let Some((mut at, mut lanes, mut next)) = self.select() else { return Pause::Turn };
        loop {
            if at >= next {
                self.paths.push(Path::new(at, lanes));
                match self.select() {
                    Some(chosen) => (at, lanes, next) = chosen,
                    None => return Pause::Turn,
                }
            }
            if left == 0 {
                self.paths.push(Path { parked: true, ..Path::new(at, lanes) });
                return Pause::Turn;
            }
            left -= 1;
            let here = at;
            let decoded = &program.code[here];
            at += 1;
            let mut mask = lanes;
            if let Some((guard, negated)) = decoded.guard {
                let bits = self.registers.predicates[guard as usize];
                mask &= if negated { !bits } else { bits };
            }
            if decoded.members != Members::None
                && mask != 0
                && !self.all_came(room, me, decoded.members, mask)
            {
                mask = self.meet(room, me, here, mask, &mut lanes);
                // Of lanes that part here, those that can run stand at this very instruction.
                next = self.lowest();
                if mask == 0 {
                    if lanes == 0 {
                        match self.select() {
                            Some(chosen) => (at, lanes, next) = chosen,
                            None => return Pause::Turn,
                        }
                    }
                    continue;
                }
            }
            room.counters.classes[decoded.class as usize] += 1;
            if CHECKS {
                room.counters.lanes += u64::from(mask.count_ones());
                if self.timing.is_some() {
                    self.time(room, here);
                }
                if decoded.followed || self.alert {
                    self.follow_validity(room, me, here, lanes, mask);
                    if self.flight.is_some() && !matches!(decoded.op, Op::Wgmma(_)) {
                        self.follow_fragments(room, me, here);
                    }
                }
            }
            if let Op::Branch(target) = decoded.op {
                room.counters.branches += 1;
                if mask == lanes {
                    at = target;
                } else if mask != 0 {
                    room.counters.divergent_branches += 1;
                    self.paths.push(Path::new(target, mask));
                    lanes &= !mask;
                    next = next.min(target);
                }
                continue;
            }
            if mask == 0 {
                continue;
            }
            let outcome = match &decoded.op {
                Op::Lanes { run, slots } => {
                    // SAFETY: loading made sure that the CPU has the features that the code was compiled for.
                    unsafe { run(&mut self.registers, mask, slots) };
                    continue;
                }
                Op::Branch(_) | Op::Nothing => Next::Continue,
                Op::Convert(conversion) => self.convert(conversion, mask),
                Op::Carry(carry) => self.carry(carry, mask),
                Op::Join(pack) => self.join(pack, mask),
                Op::Split(pack) => self.split(pack, mask),
                Op::Load(access) => self.load::<CHECKS>(room, me, here, access, mask),
                Op::Store(access) => self.store::<CHECKS>(room, me, here, access, mask),
                Op::Atomic(atomic) => self.atomic::<CHECKS>(room, me, here, atomic, mask),
                Op::BranchTable(index, targets) => {
                    room.counters.branches += 1;
                    let index = self.registers.words[*index as usize].0;
                    for (lane, &index) in index.iter().enumerate() {
                        if mask >> lane & 1 != 0 {
                            let target =
                                targets.get(index as usize).copied().unwrap_or(program.code.len() - 1);
                            match self.paths.iter_mut().find(|path| path.at == target && path.is_ready()) {
                                Some(path) => path.lanes |= 1 << lane,
                                None => self.paths.push(Path::new(target, 1 << lane)),
                            }
                        }
                    }
                    lanes &= !mask;
                    if lanes != 0 {
                        self.paths.push(Path::new(at, lanes));
                    }
                    match self.select() {
                        Some(chosen) => (at, lanes, next) = chosen,
                        None => return Pause::Turn,
                    }
                    continue;
                }
                Op::Exit => {
                    self.exit_lanes(room, me, mask);
                    lanes &= !mask;
                    next = self.lowest();
                    if lanes == 0 {
                        match self.select() {
                            Some(chosen) => (at, lanes, next) = chosen,
                            None => return Pause::Turn,
                        }
                    }
                    continue;
                }
                Op::Trap => {
                    let lane = mask.trailing_zeros() as usize;
                    room.report(Check::Trap, here, me, lane, || "the kernel stopped itself".to_string());
                    Next::Fault
                }
                Op::Barrier(barrier) => {
                    room.counters.barriers += 1;
                    self.barrier(room, me, here, barrier, mask)
                }
                Op::SyncWarp(_) => {
                    room.clocks.ticks[me] += 1;
                    Next::Continue
                }
                Op::Fence(wide) => {
                    if *wide {
                        room.knowledge.fence();
                    }
                    Next::Continue
                }
                Op::AsyncCopy(copy) => self.async_copy::<CHECKS>(room, me, here, copy, mask),
                Op::AsyncCommit => {
                    for lane in 0..LANES {
                        self.groups[lane] += mask >> lane & 1;
                    }
                    Next::Continue
                }
                Op::AsyncWait(leave, uncommitted) => {
                    self.async_wait(room, me, here, *leave, *uncommitted, mask);
                    Next::Continue
                }
                Op::BulkCopy(copy) => self.bulk_copy(room, me, here, copy, mask),
                Op::TensorCopy(copy) => self.tensor_copy(room, me, here, copy, mask),
                Op::BulkCommit => {
                    self.bulk_commit(mask);
                    Next::Continue
                }
                Op::BulkWait(leave, sources) => {
                    self.bulk_wait(room, *leave, *sources, mask);
                    Next::Continue
                }
                Op::ProxyFence(proxy) => {
                    self.proxy_fence(room, me, *proxy);
                    Next::Continue
                }
                Op::Wgmma(op) => self.wgmma::<CHECKS>(room, me, here, op, mask),
                Op::WgmmaFence => {
                    if let Some(flight) = &mut self.flight {
                        flight.fence();
                    }
                    Next::Continue
                }
                Op::WgmmaCommit => {
                    self.commit_products(room, me);
                    Next::Continue
                }
                Op::WgmmaWait(leave) => self.wait_for_products(room, me, *leave),
                Op::ClusterBarrier(op) => self.cluster_barrier(room, me, here, *op, mask),
                Op::Registers(up, count) => self.change_registers(room, me, here, *up, *count),
                Op::DependencyWait => self.wait_for_grids(room, me),
                Op::LaunchDependents => {
                    let block = room.cluster.current;
                    room.cluster.members[block].triggered = true;
                    Next::Continue
                }
                Op::Matrix(matrix) => self.matrix::<CHECKS>(room, me, here, matrix, mask),
                Op::Mma(mma) => {
                    self.whole_warp(room, me, here, mask);
                    room.counters.tensor_multiply_adds += (16 * 8 * mma.depth) as u64;
                    self.mma(mma);
                    Next::Continue
                }
                Op::WideMma(mma) => {
                    self.whole_warp(room, me, here, mask);
                    room.counters.tensor_multiply_adds += (mma.rows * 8 * mma.depth) as u64;
                    self.wide_mma(mma);
                    Next::Continue
                }
                Op::Turn(to, from) => {
                    self.whole_warp(room, me, here, mask);
                    let turned = super::product::turned(&self.registers.words[*from as usize].0);
                    self.registers.words[*to as usize].0 = turned;
                    Next::Continue
                }
                Op::Wmma(wmma) => {
                    self.whole_warp(room, me, here, mask);
                    self.wmma::<CHECKS>(room, me, here, wmma)
                }
                Op::Shuffle(shuffle) => {
                    self.shuffle::<CHECKS>(room, me, here, shuffle, mask);
                    Next::Continue
                }
                Op::Vote(vote) => {
                    self.vote(vote, mask);
                    Next::Continue
                }
                Op::Match(values) => {
                    self.match_values(values, mask);
                    Next::Continue
                }
                Op::Reduce(reduce) => {
                    self.reduce(reduce, mask);
                    Next::Continue
                }
                Op::ActiveMask(to) => {
                    self.set_words(*to, mask, mask);
                    Next::Continue
                }
                Op::Elect(lane, predicate, _) => {
                    let leader = mask.trailing_zeros();
                    if let Some(to) = lane {
                        self.set_words(*to, leader, mask);
                    }
                    let register = &mut self.registers.predicates[*predicate as usize];
                    *register = (*register & !mask) | 1 << leader;
                    Next::Continue
                }
                Op::Mbarrier(op, address) => self.mbarrier(room, me, here, op, address, mask),
                Op::Print(count, format, values) => {
                    self.print(room, me, here, mask, [*count, *format, *values])
                }
                Op::Allocate(to, size) => self.allocate(room, mask, *to, *size),
                Op::Release(address) => self.give_back(room, me, here, mask, *address),
                Op::Clock(to, long) => {
                    // Instructions so far stand for time.
                    let now = room.counters.classes.iter().sum::<u64>();
                    for lane in 0..LANES {
                        if mask >> lane & 1 != 0 {
                            if *long {
                                self.registers.longs[*to as usize].0[lane] = now;
                            } else {
                                self.registers.words[*to as usize].0[lane] = now as u32;
                            }
                        }
                    }
                    Next::Continue
                }
                Op::IsSpace(space, to, from) => {
                    let from = self.registers.longs[*from as usize].0;
                    let mut answer = 0;
                    for (lane, address) in from.iter().enumerate() {
                        let found = space_of(*address);
                        let constant = *space == Space::Constant;
                        answer |= u32::from(found == *space && !constant) << lane;
                    }
                    let register = &mut self.registers.predicates[*to as usize];
                    *register = (*register & !mask) | (answer & mask);
                    Next::Continue
                }
            };
            match outcome {
                Next::Continue => {}
                Next::Fault => {
                    self.paths.push(Path::new(here, lanes));
                    return Pause::Fault;
                }
                Next::Park(hold) => {
                    room.counters.suspended += 1;
                    self.paths.push(Path { hold: Some(hold), ..Path::new(here, mask) });
                    lanes &= !mask;
                    if lanes != 0 {
                        self.paths.push(Path::new(at, lanes));
                    }
                    match self.select() {
                        Some(chosen) => (at, lanes, next) = chosen,
                        None => return Pause::Turn,
                    }
                }
                Next::Wait(number) => {
                    let reduce = match &decoded.op {
                        Op::Barrier(barrier) => barrier.reduce.map(|(kind, _, _, to)| (kind, to)),
                        _ => None,
                    };
                    self.paths.push(Path {
                        hold: Some(Hold::Barrier(number)),
                        reduce,
                        ..Path::new(at, mask)
                    });
                    lanes &= !mask;
                    if lanes != 0 {
                        self.paths.push(Path::new(at, lanes));
                    }
                    match self.select() {
                        Some(chosen) => (at, lanes, next) = chosen,
                        None => return Pause::Turn,
                    }
                }
            }
        }
    }

    /// Passes on which lanes of the registers were written, and reports where an unwritten one decides something.
    fn follow_validity(&mut self, room: &mut Room<'_>, me: usize, at: usize, lanes: u32, mask: u32) {
        let note = &room.launch.program.notes[at];
        let mut valid = FULL;
        // What is put into the memory of a block or a thread decides nothing yet.
        let inner = match &room.launch.program.code[at].op {
            Op::Store(access) if access.is_inner() => access.stored(),
            _ => 0..0,
        };
        self.hollow = false;
        for (index, &id) in note.uses.iter().enumerate() {
            if inner.contains(&index) {
                self.hollow |= mask & !self.valid[id as usize] != 0;
            } else {
                valid &= self.valid[id as usize];
            }
        }
        // A branch is decided in all lanes, not only in those that take it.
        let concerned =
            if note.strict { lanes & if note.uses.len() <= 1 { FULL } else { mask } } else { mask };
        let mut passed = valid;
        if valid != FULL && self.pass_product(room, at) {
            return;
        }
        if note.strict {
            if valid & concerned != concerned {
                let lane = (!valid & concerned).trailing_zeros() as usize;
                self.report_hollow(room, me, at, lane);
            }
            passed = FULL;
        } else if valid & mask != mask {
            passed = self.pass_hollow(room, at, valid);
        }
        for &id in &note.defines {
            let into = &mut self.valid[id as usize];
            *into = (*into & !mask) | (passed & mask);
        }
    }

    /// The addresses of all lanes.
    #[inline(always)]
    pub fn addresses(&self, address: &Address) -> [u64; LANES] {
        match address.base {
            Some((slot, true)) => {
                let base = &self.registers.longs[slot as usize].0;
                std::array::from_fn(|lane| base[lane].wrapping_add(address.offset as u64))
            }
            Some((slot, false)) => {
                let base = &self.registers.words[slot as usize].0;
                std::array::from_fn(|lane| u64::from(base[lane].wrapping_add(address.offset as u32)))
            }
            None => [address.offset as u64; LANES],
        }
    }

    /// Sets lanes of a word register to one value.
    pub fn set_words(&mut self, slot: u32, value: u32, mask: u32) {
        for lane in 0..LANES {
            if mask >> lane & 1 != 0 {
                self.registers.words[slot as usize].0[lane] = value;
            }
        }
    }

    fn exit_lanes(&mut self, room: &mut Room<'_>, me: usize, mask: u32) {
        room.live_lanes[me] &= !mask;
        self.miss(room, me, mask);
        // Copies that nobody waits for still land.
        self.land_copies(room, me, 0, mask, |_, _| true);
        self.end_bulk(room, me, mask);
        room.progress += 1;
        if room.live_lanes[me] == 0 {
            room.leave();
        }
    }
}

/// The space of a generic address.
pub(super) fn space_of(address: u64) -> Space {
    use crate::program::{LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW, WINDOW};
    let inside = |start: u64| address >= start && address < start + WINDOW;
    if inside(SHARED_WINDOW) {
        Space::Shared
    } else if inside(LOCAL_WINDOW) {
        Space::Local
    } else if inside(PARAMETER_WINDOW) {
        Space::Parameter
    } else {
        Space::Global
    }
}
