//! [`Cuda`]: the whole model on a GPU. Each family of ops has a file, which finds the operands and calls the launcher of
//! [`ops`](super::ops) of that name.

mod attention;
mod cross_attention;
mod decode;
mod embedding;
mod feed_forward;
mod graph;
mod input;
mod linear;
mod loss;
mod mix;
mod norm;
mod optimizer;
mod rows;
mod tally;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceRepr};

pub use cross_attention::{CrossAttentionSaved, SourceGradient};
pub use decode::{Cache, Tokens};
pub use feed_forward::FeedForwardSaved;
pub use graph::GraphCache;
pub use loss::DeviceLoss;
pub use mix::{MixSaved, Sources};
pub use optimizer::State;
pub use rows::{Operand, PositionBias, Rows, Weight};

use self::input::{DeviceBatch, DeviceParameter};
use super::ops::linear::{Epilogue, TileTable};
use super::runtime::devices::{self, DeviceInfo};
use super::runtime::error::driver;
use super::runtime::kernels::Kernels;
use super::runtime::memory::{Buffer, Memory};
use super::runtime::operands::Precision;
use crate::backend::ops::check_length;
use crate::backend::{
    Backend, Batch, Device, DropoutStep, Example, Format, MicroBatch, OptimizerStep, Readers, Side, philox,
};
use crate::error::{Error, Result};

/// Tiles that products in parts have counters for: those of some dozen products.
const MAX_COUNTERS: usize = 4096;
/// Steps whose reports the device holds until they are read.
const PLACES: usize = super::ops::optimizer::PLACES;
/// Steps that are issued before their reports are read, unless [`Cuda::set_steps_ahead`] says otherwise: some tenths of a
/// second of work, so that reading costs nothing and a log is still lively.
const STEPS_AHEAD: usize = 16;

/// A GPU as a device. Not for use by two threads at a time.
#[derive(Debug)]
pub struct Cuda {
    kernels: Kernels,
    /// Of what lasts, and of work that is not captured.
    memory: Arc<Memory>,
    /// Where captured work places its buffers while it is issued.
    arena: RefCell<Option<Arc<Memory>>>,
    precision: Precision,
    info: DeviceInfo,
    /// Which tiles products take where they were measured.
    tiles: TileTable,
    batches: RefCell<VecDeque<Rc<DeviceBatch>>>,
    dropout: RefCell<Option<DeviceParameter<DropoutStep>>>,
    schedule: RefCell<Option<DeviceParameter<Vec<OptimizerStep>>>>,
    operations: Cell<u64>,
    graphs: Cell<bool>,
    steps_ahead: Cell<usize>,
    /// Counters of thin products' tiles: zero whenever no kernel runs.
    counters: Buffer<i32>,
    /// The first that the next product may have.
    next_counter: Cell<usize>,
}

impl Cuda {
    /// GPU number `ordinal`, computing in `precision`.
    ///
    /// # Errors
    /// No kernels in this build, no driver or one too old, no such GPU or one too old, and what the driver says.
    pub fn new(ordinal: usize, precision: Precision) -> Result<Self> {
        Self::build(ordinal, precision, false)
    }

    /// Like [`Cuda::new`], but every buffer holds NaN until it is written: for tests.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn poisoning(ordinal: usize, precision: Precision) -> Result<Self> {
        Self::build(ordinal, precision, true)
    }

    fn build(ordinal: usize, precision: Precision, poison: bool) -> Result<Self> {
        let (context, info) = devices::open(ordinal)?;
        // SAFETY: everything runs on one stream, in order, so no slice needs events to be safe.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|error| driver("make a stream", error))?;
        let memory = Memory::pool(stream.clone(), poison);
        let mut counters = memory.take::<i32>(MAX_COUNTERS)?;
        stream.memset_zeros(&mut counters).map_err(|error| driver("clear the counters", error))?;
        Ok(Self {
            kernels: Kernels::new(stream)?,
            memory,
            arena: RefCell::default(),
            graphs: Cell::new(true),
            steps_ahead: Cell::new(STEPS_AHEAD),
            precision,
            info,
            tiles: TileTable::built_in().clone(),
            batches: RefCell::default(),
            dropout: RefCell::default(),
            schedule: RefCell::default(),
            operations: Cell::new(0),
            counters,
            next_counter: Cell::new(0),
        })
    }

    /// What GPU it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The number format of matrix operands.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Its kernels and their stream, for launches of one's own.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Bytes that it has of the driver, those of captured steps included.
    pub fn allocated_bytes(&self) -> usize {
        self.memory.totals().allocated()
    }

    /// The most bytes that were in use at a time, captured work's memory as a whole.
    pub fn peak_bytes(&self) -> usize {
        self.memory.totals().peak()
    }

    /// The rate of this build's own product of `size` × `size` matrices, in operations a second, over `repeats`.
    ///
    /// # Errors
    /// What goes wrong on the device.
    pub fn product_rate(&self, size: usize, repeats: usize) -> Result<f64> {
        let example = Example { source: vec![0], target: vec![0; size], ..Example::default() };
        let batch = Batch::pack(&[example], 1, 0, 1)?;
        // Bits that toggle: a GPU multiplies constants at a higher clock than it does numbers.
        let numbers = |key: u32| -> Vec<f32> {
            let words = (0..(size * size).div_ceil(4) as u32).flat_map(|i| philox([key, 0], [i, 0, 0, 0]));
            words.take(size * size).map(|word| word as i32 as f32 / (1u32 << 31) as f32).collect()
        };
        let weight = self.weight(numbers(0), size, size, Readers::Many)?;
        let a = numbers(1);
        let a = self.activation_of(&a, size, Format::Operand)?;
        let mut out = self.activation(size, size, Format::Operand)?;
        let rows = self.described(&batch)?.rows(Side::Decoder);
        let mut product =
            || self.product(rows, a.operand()?, &weight, Epilogue::Plain { z: out.operand_mut()? });
        product()?;
        self.synchronize()?;
        let started = std::time::Instant::now();
        for _ in 0..repeats {
            product()?;
        }
        self.synchronize()?;
        Ok((2 * size * size * size * repeats) as f64 / started.elapsed().as_secs_f64())
    }

    /// Whether [`Backend::capture`] captures graphs; the default is true.
    pub fn set_graphs(&self, capture: bool) {
        self.graphs.set(capture);
    }

    /// Lets the host issue `steps` optimizer steps, 1 to 64, before it reads their reports; 16 by default.
    /// The numbers do not depend on it.
    pub fn set_steps_ahead(&self, steps: usize) {
        self.steps_ahead.set(steps.clamp(1, PLACES));
    }

    /// Lets products take the tiles of another table of measurements than this build's.
    pub fn set_tiles(&mut self, tiles: TileTable) {
        self.tiles = tiles;
    }

    /// `length` numbers of unspecified content.
    fn allocate<T: DeviceRepr>(&self, length: usize) -> Result<Buffer<T>> {
        self.arena.borrow().as_ref().unwrap_or(&self.memory).take(length)
    }

    fn upload<T: DeviceRepr>(&self, values: &[T], buffer: &mut Buffer<T>) -> Result<()> {
        check_length("an upload", buffer.len(), values.len())?;
        if values.is_empty() || self.kernels.is_dry_run() {
            return Ok(());
        }
        self.kernels.stream().memcpy_htod(values, buffer).map_err(|error| driver("copy to the GPU", error))
    }

    /// The first `length` numbers of `buffer`.
    fn download<T: DeviceRepr + Default + Clone>(&self, buffer: &Buffer<T>, length: usize) -> Result<Vec<T>> {
        self.download_part(buffer, 0..length)
    }

    /// The numbers of `buffer` in `range`; zeros in a dry run.
    fn download_part<T: DeviceRepr + Default + Clone>(
        &self,
        buffer: &Buffer<T>,
        range: Range<usize>,
    ) -> Result<Vec<T>> {
        let mut values = vec![T::default(); range.len()];
        if range.is_empty() || self.kernels.is_dry_run() {
            return Ok(values);
        }
        let view = buffer.view()?;
        let part = view.try_slice(range.clone()).ok_or_else(|| {
            let expected = format!("at least {} numbers", range.end);
            Error::tensor("what is read back", expected, buffer.len().to_string(), "")
        })?;
        let copied = self.kernels.stream().memcpy_dtoh(&part, &mut values);
        copied.map_err(|error| driver("copy from the GPU", error))?;
        self.synchronize()?;
        Ok(values)
    }

    fn clear<T: DeviceRepr + cudarc::driver::ValidAsZeroBits>(&self, buffer: &mut Buffer<T>) -> Result<()> {
        if self.kernels.is_dry_run() {
            return Ok(());
        }
        self.kernels.stream().memset_zeros(buffer).map_err(|error| driver("clear a buffer", error))
    }

    /// Counts floating-point operations of a matrix product: those of rows that there are, and of the algorithm, whatever a kernel
    /// computes twice, so that every device counts alike.
    fn count(&self, operations: usize) {
        self.operations.set(self.operations.get() + operations as u64);
    }
}

/// A buffer as an op reads it.
fn read<T>(buffer: &Buffer<T>) -> &dyn DevicePtr<T> {
    buffer
}

/// A buffer as an op writes it.
fn write<T>(buffer: &mut Buffer<T>) -> &mut dyn DevicePtrMut<T> {
    buffer
}

impl Device for Cuda {
    type Weight = Weight;
    type Rows = Rows;

    fn computes_on(&self) -> (&'static str, &'static str) {
        let precision = match self.precision {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        };
        ("cuda", precision)
    }

    fn operand_rounding(&self) -> f64 {
        match self.precision {
            Precision::Bf16 => 1.0 / 512.0,
            Precision::F32 => f64::from(f32::EPSILON) / 2.0,
        }
    }

    fn weight(&self, values: Vec<f32>, out: usize, input: usize, readers: Readers) -> Result<Weight> {
        self.frozen(&values, out, input, readers == Readers::Lookup)
    }

    fn weight_row(&self, weight: &Weight, row: usize) -> Result<Vec<f32>> {
        self.download_weight_row(weight, row)
    }

    fn free_bytes(&self) -> Option<usize> {
        let free = self.kernels.context().mem_get_info().ok().map(|(free, _)| free)?;
        // What the pools hold and nobody uses can be had again.
        let totals = self.memory.totals();
        Some(free + totals.allocated() - totals.held())
    }

    fn synchronize(&self) -> Result<()> {
        self.kernels.stream().synchronize().map_err(|error| driver("finish its work", error))
    }

    fn rows(&self, rows: usize, width: usize, format: Format) -> Result<Rows> {
        self.activation(rows, width, format)
    }

    fn zeros(&self, rows: usize, width: usize) -> Result<Rows> {
        let mut zeros = self.activation(rows, width, Format::Float)?;
        self.clear(zeros.float_mut()?)?;
        Ok(zeros)
    }

    fn release_forward(&self, x: &mut Rows) {
        if x.operand.is_some() {
            x.float = None;
        }
    }

    fn read(&self, rows: &Rows) -> Result<Vec<f64>> {
        self.download_rows(rows)
    }

    fn operations(&self) -> u64 {
        self.operations.get()
    }
}

impl Backend for Cuda {
    type GraphCache = GraphCache;

    fn capture(
        &self,
        graph_cache: &mut GraphCache,
        micro: &MicroBatch<'_>,
        work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<()> {
        self.capture_work(graph_cache, micro, work)
    }

    fn capture_chunks<K>(
        &self,
        graph_cache: &mut GraphCache,
        batch: &Batch,
        begin: impl Fn(&Batch) -> Result<K>,
        chunk: impl Fn(&Batch, &mut K, usize) -> Result<()>,
        goes_on: impl FnMut(&Batch, &K) -> Result<bool>,
    ) -> Result<()> {
        self.capture_in_chunks(graph_cache, batch, begin, chunk, goes_on)
    }

    fn foreseen_bytes(
        &self,
        micro: &MicroBatch<'_>,
        work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<usize> {
        self.dry_run_bytes(micro, work)
    }

    fn counted_operations(
        &self,
        micro: &MicroBatch<'_>,
        work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<Option<u64>> {
        self.dry_run_operations(micro, work).map(Some)
    }
}
