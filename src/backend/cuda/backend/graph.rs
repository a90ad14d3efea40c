//! A piece of work is captured as a CUDA graph, one a shape bucket, and the graph is launched for other batches.
//!
//! A dry run with the first micro-batch of a bucket says what memory it needs; then it is captured. It and every later one are
//! one copy and one launch. Work whose length the host decides meanwhile, as decoding is, is several graphs, launched one after the
//! other with a look at what the last one left. All buckets of a graph cache share one arena. When a larger bucket comes the arena is
//! replaced, and graphs that were captured in the old one are captured again when they are next needed. What differs between
//! batches lies in device memory: the descriptor, the step's dropout, the optimizer's rates.

use std::sync::Arc;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::cross_attention::target_room;
use super::input::Input;
use super::{Cuda, Memory, Precision, driver};
use crate::backend::cuda::ops::packing::dropout_words;
use crate::backend::{Batch, Device, MicroBatch, Objective, Side};
use crate::error::{Error, Result};

/// What makes two micro-batches alike: they share grids, the layout of their input, and a graph.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bucket {
    examples: usize,
    prompt_length: usize,
    encoder_rows: usize,
    decoder_rows: usize,
    longest_target: usize,
    /// Words of its dropout.
    dropout: usize,
    /// What its label rows learn from: kernels are given its numbers when they are captured.
    objective: Objective,
    first: bool,
    /// Tokens that are decoded at most, each of all examples, where the batch is decoded.
    decoding: Option<usize>,
    /// Runs that its optimizer step updates, if it is the step's last.
    last: Option<usize>,
}

/// Rows are rounded up to this part of themselves, so that few buckets serve and little is wasted: surplus blocks exit at
/// once, so what a bucket's width costs is memory alone.
const PARTS: usize = 8;
/// Rows are rounded up to at least this.
const LEAST: usize = 32;

/// Shapes of answers whose graphs stay: questions come in any number, and no two numbers share a graph.
const MAX_ANSWER_SHAPES: usize = 32;

fn room(rows: usize) -> usize {
    let step = (rows / PARTS).next_power_of_two().max(LEAST);
    rows.next_multiple_of(step)
}

impl Bucket {
    fn of(micro: &MicroBatch<'_>) -> Self {
        let (decoding, rows) = (micro.batch.decoding(), micro.batch.real_rows(Side::Decoder));
        // A decoding step has one row an example, and examples are as many in all of a bucket.
        let (decoder_rows, longest_target) = match decoding {
            Some(_) => (rows, micro.batch.longest_target()),
            None => (room(rows), target_room(micro.batch.longest_target(), room(rows))),
        };
        Self {
            examples: micro.batch.examples(),
            prompt_length: micro.batch.prompt_length(),
            encoder_rows: room(micro.batch.real_rows(Side::Encoder)),
            decoder_rows,
            longest_target,
            dropout: micro.dropout.map_or(0, |step| dropout_words(step).len()),
            objective: micro.batch.objective(),
            first: micro.first,
            decoding,
            last: micro.last.map(<[_]>::len),
        }
    }

    /// The same batch with the bucket's room for rows.
    fn roomy(&self, batch: &Batch) -> Batch {
        batch.clone().with_capacity(self.encoder_rows, self.decoder_rows, self.longest_target)
    }
}

#[derive(Debug)]
struct Entry {
    bucket: Bucket,
    /// The batch that the bucket began with stands for all in captures: what the host asks of it they have in common.
    batch: Batch,
    input: Input,
    /// Bytes that its work takes.
    bytes: usize,
    /// What was captured of its work, its chunks in order.
    graphs: Vec<Captured>,
}

#[derive(Clone, Copy, Debug)]
struct Needs {
    bytes: usize,
    operations: u64,
}

struct Captured {
    graph: CudaGraph,
    /// Floating-point operations of its products.
    operations: u64,
}

impl std::fmt::Debug for Captured {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a graph")
    }
}

/// The graphs of one piece of work, and the memory that they run in.
#[derive(Debug, Default)]
pub struct GraphCache {
    // Graphs go before the memory whose addresses they hold.
    entries: Vec<Entry>,
    arena: Option<Arc<Memory>>,
    replays: u64,
    captures: u64,
}

impl GraphCache {
    /// Shape buckets met so far; of answers those whose graphs stay.
    pub fn buckets(&self) -> usize {
        self.entries.len()
    }

    /// Graph launches so far.
    pub fn replays(&self) -> u64 {
        self.replays
    }

    /// Captures so far: one a bucket, or one for each chunk of its work that was needed, and one more for each that is needed again
    /// after a larger bucket.
    pub fn captures(&self) -> u64 {
        self.captures
    }

    /// Bytes that all buckets share.
    pub fn arena_bytes(&self) -> usize {
        self.arena.as_ref().map_or(0, |arena| arena.bytes())
    }
}

impl Cuda {
    pub(super) fn capture_work(
        &self,
        graph_cache: &mut GraphCache,
        micro: &MicroBatch<'_>,
        mut work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<()> {
        let (index, roomy) = self.entry_of(graph_cache, micro, &mut work)?;
        let arena = self.arena_of(graph_cache, index)?;
        let entry = &mut graph_cache.entries[index];
        entry.input.send(&roomy, micro)?;
        entry.input.announce(self, micro);
        if !self.captures() {
            return self.within(&arena, || work(&entry.batch));
        }
        if entry.graphs.is_empty() {
            entry.graphs.push(self.capture_graph(&arena, || work(&entry.batch))?);
            graph_cache.captures += 1;
        }
        self.replay(&entry.graphs[0])?;
        graph_cache.replays += 1;
        Ok(())
    }

    /// What `begin` gives lies in the arena, which is empty between two batches: so at the same places for every batch of a bucket.
    pub(super) fn capture_in_chunks<K>(
        &self,
        graph_cache: &mut GraphCache,
        batch: &Batch,
        begin: impl Fn(&Batch) -> Result<K>,
        chunk: impl Fn(&Batch, &mut K, usize) -> Result<()>,
        mut goes_on: impl FnMut(&Batch, &K) -> Result<bool>,
    ) -> Result<()> {
        let micro = &MicroBatch { batch, dropout: None, first: false, last: None };
        let first = |batch: &Batch| {
            let mut kept = begin(batch)?;
            chunk(batch, &mut kept, 0)?;
            Ok(kept)
        };
        let (index, roomy) = self.entry_of(graph_cache, micro, |batch| first(batch).map(drop))?;
        let arena = self.arena_of(graph_cache, index)?;
        let entry = &mut graph_cache.entries[index];
        entry.input.send(&roomy, micro)?;
        entry.input.announce(self, micro);
        let mut kept = match (self.captures(), entry.graphs.is_empty()) {
            (false, _) => self.within(&arena, || first(&entry.batch))?,
            (true, true) => {
                let mut kept = None;
                let captured = self.capture_graph(&arena, || {
                    kept = Some(first(&entry.batch)?);
                    Ok(())
                })?;
                entry.graphs.push(captured);
                graph_cache.captures += 1;
                kept.ok_or_else(|| Error::device("capture a step", "nothing was issued", ""))?
            }
            // The captured launches write it: only where it lies must be known.
            (true, false) => self.without_launches(&arena, || begin(&entry.batch))?.0,
        };
        for number in 0.. {
            if self.captures() {
                if number == entry.graphs.len() {
                    // What reads back may have put other descriptors in the place of this one.
                    entry.input.announce(self, micro);
                    let work = || chunk(&entry.batch, &mut kept, number);
                    entry.graphs.push(self.capture_graph(&arena, work)?);
                    graph_cache.captures += 1;
                }
                self.replay(&entry.graphs[number])?;
                graph_cache.replays += 1;
            } else if number > 0 {
                entry.input.announce(self, micro);
                self.within(&arena, || chunk(&entry.batch, &mut kept, number))?;
            }
            if !goes_on(&roomy, &kept)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether work is captured. Slow arithmetic is to verify with, launch by launch.
    fn captures(&self) -> bool {
        self.precision != Precision::F32 && self.graphs.get()
    }

    fn replay(&self, captured: &Captured) -> Result<()> {
        captured.graph.launch().map_err(|error| driver("launch a captured step", error))?;
        self.operations.set(self.operations.get() + captured.operations);
        Ok(())
    }

    /// Which entry is the bucket of `micro`, made of a dry run of its work if there is none; and the micro-batch's batch with the
    /// bucket's room.
    fn entry_of(
        &self,
        graph_cache: &mut GraphCache,
        micro: &MicroBatch<'_>,
        work: impl FnOnce(&Batch) -> Result<()>,
    ) -> Result<(usize, Batch)> {
        let bucket = Bucket::of(micro);
        let roomy = bucket.roomy(micro.batch);
        if let Some(index) = graph_cache.entries.iter().position(|entry| entry.bucket == bucket) {
            return Ok((index, roomy));
        }
        let input = Input::new(self, &roomy, micro)?;
        let bytes = self.dry_run(&input, micro, || work(&roomy))?.bytes;
        if bucket.decoding.is_some() && graph_cache.entries.len() >= MAX_ANSWER_SHAPES {
            // Nothing of it runs any more: what it said was read.
            graph_cache.entries.remove(0);
        }
        let batch = roomy.clone();
        graph_cache.entries.push(Entry { bucket, batch, input, bytes, graphs: Vec::new() });
        Ok((graph_cache.entries.len() - 1, roomy))
    }

    /// The cache's arena, large enough for one of its buckets.
    fn arena_of(&self, graph_cache: &mut GraphCache, index: usize) -> Result<Arc<Memory>> {
        let bytes = graph_cache.entries[index].bytes;
        if let Some(arena) = graph_cache.arena.as_ref().filter(|arena| arena.bytes() >= bytes) {
            return Ok(arena.clone());
        }
        // Nothing may run in the old one any more, and it is given back first, so that both never stand side by side.
        self.synchronize()?;
        graph_cache.entries.iter_mut().for_each(|entry| entry.graphs.clear());
        graph_cache.arena = None;
        Ok(graph_cache.arena.insert(self.memory.arena(bytes)?).clone())
    }

    /// Issues `work` without launching anything, to learn what it takes. It also loads every kernel, which a capture must
    /// not.
    fn dry_run(
        &self,
        input: &Input,
        micro: &MicroBatch<'_>,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Needs> {
        let memory = self.memory.dry_run();
        input.announce(self, micro);
        let done = self.without_launches(&memory, work);
        input.retract(self);
        let ((), operations) = done?;
        Ok(Needs { bytes: memory.bytes(), operations })
    }

    /// What `work` gives when it is issued with memory of `arena` and nothing is launched, and the floating-point operations of
    /// its products, which are not counted.
    fn without_launches<T>(&self, arena: &Arc<Memory>, work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
        let before = self.operations.get();
        self.kernels().dry_run(true);
        let done = self.within(arena, work);
        self.kernels().dry_run(false);
        let operations = self.operations.replace(before) - before;
        Ok((done?, operations))
    }

    /// Bytes of the arena that `work` would need for `micro`.
    pub(super) fn dry_run_bytes(
        &self,
        micro: &MicroBatch<'_>,
        mut work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<usize> {
        let roomy = Bucket::of(micro).roomy(micro.batch);
        let input = Input::new(self, &roomy, micro)?;
        Ok(self.dry_run(&input, micro, || work(&roomy))?.bytes)
    }

    /// Floating-point operations of `work` for `micro`, without the room of its bucket.
    pub(super) fn dry_run_operations(
        &self,
        micro: &MicroBatch<'_>,
        mut work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<u64> {
        let input = Input::new(self, micro.batch, micro)?;
        Ok(self.dry_run(&input, micro, || work(micro.batch))?.operations)
    }

    fn capture_graph(&self, arena: &Arc<Memory>, work: impl FnOnce() -> Result<()>) -> Result<Captured> {
        let stream = self.kernels().stream();
        let fail = |error| driver("capture a step", error);
        let before = self.operations.get();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(fail)?;
        let done = self.within(arena, work);
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).map_err(fail);
        let operations = self.operations.replace(before) - before;
        // What failed within says more than the capture that it broke.
        done?;
        let graph = graph?.ok_or_else(|| Error::device("capture a step", "the driver gave no graph", ""))?;
        Ok(Captured { graph, operations })
    }

    /// Does `work` with every buffer from `arena`.
    fn within<T>(&self, arena: &Arc<Memory>, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.arena.replace(Some(arena.clone()));
        let done = work();
        self.arena.replace(before);
        done
    }
}
