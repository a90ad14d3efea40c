//! What orders work on a device: streams, events, waits of the host, the rules of the default stream, edges of graphs.
//!
//! Work runs at once and in the order it was given, so what a program left unordered is found by clocks: every piece of work
//! knows which work of each stream came before it. What is not known so may happen at the same time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::check::{Check, Report};
use crate::memory::{Allocation, Concurrent, StreamBit, Stretch};

/// By stream: how much of its work came before.
pub type Clock = BTreeMap<usize, u64>;

/// The legacy default stream's two handles.
const LEGACY: [usize; 2] = [0, 1];
/// Work that is kept in mind while the host waits for none of it.
const MAX_UNDERWAY: usize = 2048;

/// A piece of work that may still be under way for all that the host knows.
struct Underway {
    stream: usize,
    number: u64,
    name: Arc<str>,
}

/// What is known of the order of work.
#[derive(Default)]
pub struct Order {
    streams: HashMap<usize, Clock>,
    /// By stream: its work so far.
    counts: HashMap<usize, u64>,
    /// What the host has waited for.
    host: Clock,
    /// Launches by their number in memory.
    launches: Vec<(u16, Underway)>,
    /// Copies, fills and frees.
    stretches: Vec<(Stretch, Underway)>,
    bits: HashMap<usize, StreamBit>,
    /// By stream: the first launch that a dependent one may overtake.
    chains: HashMap<usize, u16>,
}

fn join(into: &mut Clock, from: &Clock) {
    for (&stream, &number) in from {
        let known = into.entry(stream).or_default();
        *known = (*known).max(number);
    }
}

impl Order {
    /// What comes before the next work on a stream; `blocking` says of streams that they wait for the legacy stream.
    pub fn before(&mut self, stream: usize, blocking: impl Fn(usize) -> bool) -> Clock {
        let mut clock = self.streams.get(&stream).cloned().unwrap_or_default();
        join(&mut clock, &self.host);
        if LEGACY.contains(&stream) {
            for (other, known) in &self.streams {
                if blocking(*other) || LEGACY.contains(other) {
                    join(&mut clock, known);
                }
            }
        } else if blocking(stream) {
            LEGACY
                .iter()
                .filter_map(|legacy| self.streams.get(legacy))
                .for_each(|known| join(&mut clock, known));
        }
        self.streams.insert(stream, clock.clone());
        clock
    }

    /// A stream learns a clock.
    pub fn learn(&mut self, stream: usize, clock: &Clock) {
        join(self.streams.entry(stream).or_default(), clock);
    }

    /// A stream knows just what a clock knows.
    pub fn set(&mut self, stream: usize, clock: Clock) {
        self.streams.insert(stream, clock);
    }

    /// The host has waited for all that a clock knows.
    pub fn wait(&mut self, clock: &Clock) {
        join(&mut self.host, clock);
        let host = &self.host;
        let open = |work: &Underway| host.get(&work.stream).is_none_or(|&known| known < work.number);
        self.launches.retain(|(_, work)| open(work));
        self.stretches.retain(|(_, work)| open(work));
        let counts = &self.counts;
        self.chains.retain(|stream, _| counts.get(stream) > host.get(stream));
    }

    /// The host has waited for everything.
    pub fn wait_for_all(&mut self) {
        let mut all = Clock::new();
        self.streams.values().for_each(|clock| join(&mut all, clock));
        self.wait(&all);
    }

    fn number(&mut self, stream: usize) -> u64 {
        let number = self.counts.entry(stream).or_default();
        *number += 1;
        self.streams.entry(stream).or_default().insert(stream, *number);
        *number
    }

    /// What may run at the same time as work that a clock comes before.
    pub fn concurrent(&self, clock: &Clock) -> Concurrent {
        let open = |work: &Underway| clock.get(&work.stream).is_none_or(|&known| known < work.number);
        let launches = self.launches.iter().filter(|(_, work)| open(work));
        let stretches = self.stretches.iter().filter(|(_, work)| open(work));
        Concurrent::new(
            launches.map(|(epoch, work)| (*epoch, work.name.clone())).collect(),
            stretches.map(|(stretch, work)| (*stretch, work.name.clone())).collect(),
        )
    }

    /// The bit of a stream.
    pub fn bit(&mut self, stream: usize) -> StreamBit {
        let next = self.bits.len();
        *self.bits.entry(stream).or_insert_with(|| StreamBit::of(next))
    }

    /// Notes a launch, and gives the first launch that it may overtake.
    pub fn launch(&mut self, stream: usize, epoch: u16, name: &str, dependent: bool) -> Option<u16> {
        let number = self.number(stream);
        self.launches.push((epoch, Underway { stream, number, name: name.into() }));
        if self.launches.len() > MAX_UNDERWAY {
            self.launches.remove(0);
        }
        // Launch numbers start anew after a while, and then older ones mean nothing.
        if epoch == 1 {
            self.launches.retain(|(known, _)| *known == 1);
            self.chains.clear();
        }
        let since = self.chains.get(&stream).copied().filter(|_| dependent);
        if since.is_none() {
            self.chains.insert(stream, epoch);
        }
        since
    }

    /// Notes work that touches a stretch of memory; gives a report where it meets other work there.
    pub fn touch(
        &mut self,
        stream: usize,
        clock: &Clock,
        stretch: Stretch,
        name: &str,
        allocation: Option<&Allocation>,
    ) -> Option<Report> {
        let bit = self.bit(stream);
        let is_shared = allocation.is_none_or(|allocation| {
            allocation.note_stream(bit);
            allocation.is_shared(bit)
        });
        let concurrent = is_shared.then(|| self.concurrent(clock));
        self.chains.remove(&stream);
        let number = self.number(stream);
        self.stretches.push((stretch, Underway { stream, number, name: name.into() }));
        if self.stretches.len() > MAX_UNDERWAY {
            self.stretches.remove(0);
        }
        let concurrent = concurrent?;
        let other = concurrent
            .meets(&stretch)
            .or_else(|| allocation.and_then(|allocation| allocation.meets(stretch, &concurrent)))?;
        Some(report(name, stretch, &other))
    }

    /// Forgets what touched memory that is freed: its addresses are not given again, and to touch them is an error of its own.
    pub fn forget(&mut self, start: u64, bytes: usize) {
        let freed = Stretch { start, bytes, write: true };
        self.stretches.retain(|(stretch, _)| !freed.meets(stretch));
    }

    /// Notes work that touches no memory.
    pub fn pass(&mut self, stream: usize) {
        self.chains.remove(&stream);
        self.number(stream);
    }
}

fn report(name: &str, stretch: Stretch, other: &str) -> Report {
    Report {
        check: Check::StreamRace,
        kernel: name.to_string(),
        file: "(no kernel)".to_string(),
        line: 0,
        opcode: String::new(),
        ptx_line: 0,
        block: [0; 3],
        warp: 0,
        lane: 0,
        detail: format!(
            "{} bytes at 0x{:x} are also touched by {other}, and no event, wait or default-stream rule orders the two",
            stretch.bytes, stretch.start
        ),
        count: 1,
    }
}
