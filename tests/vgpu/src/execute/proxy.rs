//! What the two ways into shared memory must know of each other. Loads and stores go by the generic proxy; bulk copies and
//! products of a warpgroup go by the asynchronous one, at any time between their issue and their wait.

use std::collections::VecDeque;
use std::ops::Range;

use super::block::Room;
use super::chunk::{CHUNK, NOBODY};
use super::clocks::Clocks;
use super::warp::Warp;
use crate::check::Check;
use crate::tensor_map::Swizzle;

/// What the two ways must know of one chunk.
#[derive(Clone, Copy)]
struct Way {
    /// The warp that wrote last by a store, and how often it had fenced then.
    writer: u16,
    fenced: u16,
    /// The writer's clock then.
    clock: u16,
    /// Products and bulk stores that may still read.
    readers: u16,
    /// How a tensor copy laid the bytes out; none where something else wrote them.
    layout: Option<Swizzle>,
}

const FRESH: Way = Way { writer: NOBODY, fenced: 0, clock: 0, readers: 0, layout: None };

/// By chunk of the shared memory of a cluster: who wrote and who reads it in which way.
pub(super) struct Proxies {
    ways: Vec<Way>,
    /// By warp: its clock at each `fence.proxy.async`.
    fences: Vec<Vec<u16>>,
    /// By warp: the last of them again, with what the warp knew of the others.
    known: Vec<VecDeque<(u16, Box<[u16]>)>>,
}

/// Fences of a warp whose knowledge is kept.
const MAX_KNOWN: usize = 16;

/// What is wrong with a read by the asynchronous proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfenced {
    /// The warp that wrote has not fenced since.
    NoFence(usize),
    /// It has, but no barrier lies between its fence and the read.
    NoBarrier(usize),
}

impl Proxies {
    pub fn new(bytes: usize, warps: usize) -> Self {
        Self {
            ways: vec![FRESH; bytes.div_ceil(CHUNK)],
            fences: vec![Vec::new(); warps],
            known: vec![VecDeque::new(); warps],
        }
    }

    pub fn reset(&mut self) {
        self.ways.fill(FRESH);
        self.fences.iter_mut().for_each(Vec::clear);
        self.known.iter_mut().for_each(VecDeque::clear);
    }

    /// Notes `fence.proxy.async` of a warp.
    pub fn fence(&mut self, warp: usize, clocks: &mut Clocks) {
        let now = clocks.now(warp);
        self.fences[warp].push(now);
        clocks.advance(warp);
        let known = &mut self.known[warp];
        let mut room = if known.len() < MAX_KNOWN { None } else { known.pop_front().map(|(_, room)| room) };
        match &mut room {
            Some(room) => room.copy_from_slice(clocks.of(warp)),
            None => room = Some(clocks.of(warp).into()),
        }
        known.extend(room.map(|room| (now, room)));
    }

    /// Notes a store to a chunk; `true` when something may still read it.
    pub fn store(&mut self, chunk: usize, warp: usize, clock: u16) -> bool {
        let way = &mut self.ways[chunk];
        way.writer = warp as u16;
        way.fenced = self.fences[warp].len() as u16;
        way.clock = clock;
        way.layout = None;
        way.readers != 0
    }

    /// Notes that a bulk copy will write some chunks; the first that something may still read.
    pub fn fill(&mut self, chunks: Range<usize>, layout: Option<Swizzle>) -> Option<usize> {
        let mut reused = None;
        for (way, chunk) in self.ways[chunks.clone()].iter_mut().zip(chunks) {
            if way.readers != 0 {
                reused = reused.or(Some(chunk));
            }
            *way = Way { writer: NOBODY, layout, ..*way };
        }
        reused
    }

    /// Whether a product of a warp may read a chunk. The fence may also stand behind the barrier, where the warp that
    /// multiplies executes it itself, as Triton has it.
    #[inline(always)]
    pub fn check_product(&self, chunk: usize, warp: usize, clocks: &Clocks) -> Option<Unfenced> {
        let unfenced = self.check(chunk, warp, clocks)?;
        if self.is_fenced_between(&self.ways[chunk], warp, clocks) { None } else { Some(unfenced) }
    }

    /// Whether a warp may read a chunk by the asynchronous proxy.
    #[inline(always)]
    pub fn check(&self, chunk: usize, warp: usize, clocks: &Clocks) -> Option<Unfenced> {
        let way = &self.ways[chunk];
        if way.writer == NOBODY {
            return None;
        }
        let writer = usize::from(way.writer);
        match self.fences[writer].get(usize::from(way.fenced)) {
            None => Some(Unfenced::NoFence(writer)),
            Some(&clock) if !clocks.knows(warp, writer, clock) => Some(Unfenced::NoBarrier(writer)),
            Some(_) => None,
        }
    }

    /// Whether another warp than the writer fenced when it knew of a store, and a reader knows of that: the reader itself,
    /// most often. The fence may stand anywhere on the way from the store to the read.
    #[cold]
    #[inline(never)]
    fn is_fenced_between(&self, way: &Way, reader: usize, clocks: &Clocks) -> bool {
        let writer = usize::from(way.writer);
        self.known.iter().enumerate().any(|(warp, fences)| {
            let last = fences.iter().rev().find(|(clock, _)| clocks.knows(reader, warp, *clock));
            last.is_some_and(|(_, known)| known[writer] > way.clock)
        })
    }

    #[inline(always)]
    pub fn layout(&self, chunk: usize) -> Option<Swizzle> {
        self.ways[chunk].layout
    }

    #[inline(always)]
    pub fn begin_read(&mut self, chunk: usize) {
        self.ways[chunk].readers += 1;
    }

    #[inline(always)]
    pub fn end_read(&mut self, chunk: usize) {
        self.ways[chunk].readers -= 1;
    }
}

impl Warp {
    /// Notes that a lane stores to bytes of shared memory, in a program that also reaches them asynchronously.
    #[inline(always)]
    pub(super) fn note_store(
        &self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        lane: usize,
        place: usize,
        bytes: usize,
    ) {
        if room.proxies.is_some() {
            note_store(room, me, at, lane, place, bytes);
        }
    }
}

#[cold]
fn note_store(room: &mut Room<'_>, me: usize, at: usize, lane: usize, place: usize, bytes: usize) {
    let mut reused = None;
    let clock = room.clocks.now(me);
    if let Some(proxies) = &mut room.proxies {
        for chunk in place / CHUNK..=(place + bytes - 1) / CHUNK {
            if proxies.store(chunk, me, clock) {
                reused = reused.or(Some(chunk));
            }
        }
    }
    if let Some(chunk) = reused {
        report_reuse(room, me, at, lane, chunk);
    }
}

/// Reports a write to a chunk that something may still read.
pub(super) fn report_reuse(room: &mut Room<'_>, me: usize, at: usize, lane: usize, chunk: usize) {
    let place = room.cluster.name(chunk * CHUNK);
    room.report(Check::StageReused, at, me, lane, || {
        format!(
            "{place} is written while a wgmma or a bulk store that nobody has waited for may still read it"
        )
    });
}

/// Reports a read by the asynchronous proxy of what a store wrote.
pub(super) fn report_unfenced(
    room: &mut Room<'_>,
    me: usize,
    at: usize,
    lane: usize,
    chunk: usize,
    unfenced: Unfenced,
) {
    let place = room.cluster.name(chunk * CHUNK);
    let warps = room.cluster.warps.max(1);
    room.report(Check::ProxyFence, at, me, lane, || match unfenced {
        Unfenced::NoFence(writer) => format!(
            "{place} was stored to by warp {}, which has not executed fence.proxy.async since",
            writer % warps
        ),
        Unfenced::NoBarrier(writer) => format!(
            "{place} was stored to by warp {}; no barrier lies between its fence.proxy.async and this read",
            writer % warps
        ),
    });
}
