//! What the two ways into shared memory must know of each other. Loads and stores go by the generic proxy; bulk copies and
//! products of a warpgroup go by the asynchronous one, at any time between their issue and their wait.

use super::block::Room;
use super::shared::{CHUNK, Clocks};
use super::warp::Warp;
use crate::check::Check;
use crate::tensor_map::Swizzle;

const NOBODY: u16 = u16::MAX;

/// By chunk of the shared memory of a cluster: who wrote and who reads it in which way.
pub(super) struct Proxies {
    /// The warp that wrote last by a store, and how often it had fenced then.
    writers: Vec<(u16, u16)>,
    /// How a tensor copy laid the bytes out; none where something else wrote them.
    layouts: Vec<Option<Swizzle>>,
    /// Products and bulk stores that may still read.
    readers: Vec<u16>,
    reading: usize,
    /// By warp: its clock at each `fence.proxy.async`.
    fences: Vec<Vec<u16>>,
}

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
        let chunks = bytes.div_ceil(CHUNK);
        Self {
            writers: vec![(NOBODY, 0); chunks],
            layouts: vec![None; chunks],
            readers: vec![0; chunks],
            reading: 0,
            fences: vec![Vec::new(); warps],
        }
    }

    pub fn reset(&mut self) {
        self.writers.fill((NOBODY, 0));
        self.layouts.fill(None);
        self.readers.fill(0);
        self.reading = 0;
        self.fences.iter_mut().for_each(Vec::clear);
    }

    /// Notes `fence.proxy.async` of a warp.
    pub fn fence(&mut self, warp: usize, clocks: &mut Clocks) {
        self.fences[warp].push(clocks.now(warp));
        clocks.advance(warp);
    }

    /// Notes a store to a chunk; `true` when something may still read it.
    pub fn store(&mut self, chunk: usize, warp: usize) -> bool {
        self.writers[chunk] = (warp as u16, self.fences[warp].len() as u16);
        self.layouts[chunk] = None;
        self.readers[chunk] != 0
    }

    /// Notes that a bulk copy will write a chunk; `true` when something may still read it.
    pub fn fill(&mut self, chunk: usize, layout: Option<Swizzle>) -> bool {
        self.writers[chunk] = (NOBODY, 0);
        self.layouts[chunk] = layout;
        self.readers[chunk] != 0
    }

    /// Whether a warp may read a chunk by the asynchronous proxy.
    #[inline(always)]
    pub fn check(&self, chunk: usize, warp: usize, clocks: &Clocks) -> Option<Unfenced> {
        let (writer, fenced) = self.writers[chunk];
        if writer == NOBODY {
            return None;
        }
        let writer = usize::from(writer);
        match self.fences[writer].get(usize::from(fenced)) {
            None => Some(Unfenced::NoFence(writer)),
            Some(&clock) if !clocks.knows(warp, writer, clock) => Some(Unfenced::NoBarrier(writer)),
            Some(_) => None,
        }
    }

    pub fn layout(&self, chunk: usize) -> Option<Swizzle> {
        self.layouts[chunk]
    }

    pub fn begin_read(&mut self, chunk: usize) {
        self.readers[chunk] += 1;
        self.reading += 1;
    }

    pub fn end_read(&mut self, chunk: usize) {
        self.readers[chunk] -= 1;
        self.reading -= 1;
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
    if let Some(proxies) = &mut room.proxies {
        for chunk in place / CHUNK..=(place + bytes - 1) / CHUNK {
            if proxies.store(chunk, me) {
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
