//! Recording a piece of work as a captured graph, one a shape bucket, and launching that for other batches.
//!
//! The first batch of a bucket runs as it is and so leaves every buffer that the bucket needs in the recorder's own
//! memory; the second is captured, when nothing has to be allocated any more; every later one is one launch. What differs
//! between batches lies in device memory: the descriptor, the step's dropout, the optimizer's rates.

use std::any::Any;
use std::rc::Rc;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::batch::DeviceBatch;
use super::cross_attention::target_room;
use super::failure::driver;
use super::memory::Memory;
use super::{Cuda, Precision};
use crate::backend::{Batch, DropoutStep, Side, Site};
use crate::error::{Error, Result};

/// What makes two batches alike: they share buffers, grids and a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    examples: usize,
    prompt_length: usize,
    encoder_rows: usize,
    decoder_rows: usize,
    longest_target: usize,
    drops: bool,
}

/// Rows are rounded up to this part of themselves, so that few buckets serve and little is wasted: surplus blocks exit at
/// once, so what a bucket's width costs is memory alone.
const PARTS: usize = 8;
/// Rows are rounded up to at least this.
const LEAST: usize = 32;

fn room(rows: usize) -> usize {
    let step = (rows / PARTS).next_power_of_two().max(LEAST);
    rows.next_multiple_of(step)
}

struct Entry {
    bucket: Bucket,
    batch: Batch,
    described: Rc<DeviceBatch>,
    graph: Option<Captured>,
}

/// A captured piece of work, what it returned, and the floating-point operations of its products.
struct Captured {
    graph: CudaGraph,
    outcome: Rc<dyn Any>,
    operations: u64,
}

/// The graphs of one piece of work.
#[derive(Default)]
pub struct Recorder {
    entries: Vec<Entry>,
    memory: Option<Rc<Memory>>,
    replays: u64,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let buckets: Vec<&Bucket> = self.entries.iter().map(|entry| &entry.bucket).collect();
        formatter.debug_struct("Recorder").field("buckets", &buckets).field("replays", &self.replays).finish()
    }
}

impl Recorder {
    /// Shape buckets met so far.
    pub fn buckets(&self) -> usize {
        self.entries.len()
    }

    /// Graph launches so far.
    pub fn replays(&self) -> u64 {
        self.replays
    }
}

impl Cuda {
    pub(super) fn record_or_replay<T: 'static>(
        &self,
        recorder: &mut Recorder,
        batch: &Batch,
        dropout: Option<&DropoutStep>,
        mut work: impl FnMut(&Batch) -> T,
    ) -> Rc<T> {
        if self.precision == Precision::F32 {
            return Rc::new(work(batch));
        }
        let decoder_rows = room(batch.real_rows(Side::Decoder));
        let bucket = Bucket {
            examples: batch.examples(),
            prompt_length: batch.prompt_length(),
            encoder_rows: room(batch.real_rows(Side::Encoder)),
            decoder_rows,
            longest_target: target_room(batch.longest_target(), decoder_rows),
            drops: dropout.is_some(),
        };
        // Uploaded before anything is captured: within a graph it is only read.
        self.attempt(|| self.mask(dropout.map(|step| (step, Site(0)))).map(drop));
        let roomy = batch.with_capacity(bucket.encoder_rows, bucket.decoder_rows, bucket.longest_target);
        if !self.graphs.get() {
            // Products are cut up by the room there is for rows: with the same room the numbers are those of the graph.
            return Rc::new(work(&roomy));
        }
        let totals = || self.memory.borrow().totals().clone();
        let fresh_memory = || Memory::new(self.kernels().stream().clone(), self.poisons, totals());
        let memory = recorder.memory.get_or_insert_with(fresh_memory).clone();
        let Some(index) = recorder.entries.iter().position(|entry| entry.bucket == bucket) else {
            let mut described = None;
            self.attempt(|| {
                described = Some(self.describe(&roomy)?);
                Ok(())
            });
            let outcome = self.with_memory(&memory, || work(&roomy));
            if let Some(described) = described {
                recorder.entries.push(Entry { bucket, batch: roomy, described, graph: None });
            }
            return Rc::new(outcome);
        };
        let entry = &mut recorder.entries[index];
        self.attempt(|| self.describe_again(&entry.described, &roomy));
        if entry.graph.is_none() {
            // The batch that the bucket began with stands for all: its descriptor now holds this one.
            self.keep(&entry.described);
            let before = self.operations.get();
            let mut captured = None;
            self.attempt(|| {
                captured = Some(self.capture(&memory, || work(&entry.batch))?);
                Ok(())
            });
            let operations = self.operations.replace(before) - before;
            let whole = |(graph, outcome)| Captured { graph, outcome: Rc::new(outcome), operations };
            entry.graph = captured.map(whole);
        }
        if let Some(Captured { graph, outcome, operations }) = &entry.graph {
            self.attempt(|| graph.launch().map_err(|error| driver("launch a captured step", error)));
            self.count(*operations);
            recorder.replays += 1;
            if let Ok(outcome) = outcome.clone().downcast::<T>() {
                return outcome;
            }
        }
        Rc::new(work(batch))
    }

    fn capture<T>(&self, memory: &Rc<Memory>, work: impl FnOnce() -> T) -> Result<(CudaGraph, T)> {
        let stream = self.kernels().stream();
        let fail = |error| driver("capture a step", error);
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(fail)?;
        memory.capturing(true);
        let outcome = self.with_memory(memory, work);
        memory.capturing(false);
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).map_err(fail)?;
        let graph = graph.ok_or_else(|| Error::device("capture a step", "the driver gave no graph", ""))?;
        self.first_failure()?;
        Ok((graph, outcome))
    }

    /// Runs `work` with every buffer from `memory`.
    fn with_memory<T>(&self, memory: &Rc<Memory>, work: impl FnOnce() -> T) -> T {
        let before = self.memory.replace(memory.clone());
        let outcome = work();
        self.memory.replace(before);
        outcome
    }
}
