//! The CUDA backend: hand-written kernels, one file an op here and in `kernels/`, launched through cudarc.
//!
//! Two ways in. [`Cuda`] is a [`Backend`]: the whole model runs on it. And kernels can be launched alone, on
//! cudarc's own buffers and the stream of a [`Kernels`], each op by a small struct in its own module that checks shapes and
//! launches: [`linear::Linear`], [`feed_forward::Gate`], [`attention::SelfAttention`], [`cross_attention::AbsorbedCrossAttention`],
//! [`norm::FinalNorm`], [`embedding::Embedding`], [`loss::CrossEntropy`], [`mix::PromptMix`], [`optimizer::AdamW`],
//! [`decode::DecodeStep`]. [`FATBINS`] holds the compiled kernels themselves, for other loaders (see
//! `examples/embed_attention.rs`).
//!
//! Numbers: matrix operands are bf16 ([`Precision::Bf16`]) or, to verify, f32; sums, the residual stream and everything
//! trained are f32. Every reduction has a fixed order, so the same input gives the same bytes.

mod arguments;
pub mod attention;
mod batch;
pub mod cross_attention;
pub mod decode;
mod devices;
mod dropout;
pub mod embedding;
mod failure;
pub mod feed_forward;
mod gemm;
mod graph;
mod input;
mod kernels;
pub mod linear;
pub mod loss;
mod memory;
pub mod mix;
pub mod norm;
pub mod optimizer;
mod rows;
mod sequences;
mod tally;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::DeviceRepr;
use rand_chacha::rand_core::{RngCore, SeedableRng};

pub use batch::{ATTENTION_TILE, DeviceBatch};
pub use devices::{DeviceInfo, devices, driver_version, usable_device};
pub use graph::Recorder;
pub use kernels::{ARCHITECTURES, Arguments, COMPILER, FATBINS, Kernel, Kernels};
pub use memory::{Buffer, address, address_mut};
pub use rows::{NORM_COLUMNS, Operand, PositionBias, Rows, Weight};
pub use sequences::{LabelRows, Packed, PairedSequences, Sequences};

use self::cross_attention::{CrossKept, SourceGradient};
use self::decode::Cache;
use self::failure::driver;
use self::feed_forward::FeedForwardKept;
use self::input::Told;
use self::loss::LossKept;
use self::memory::Memory;
use self::mix::{MixKept, Sources};
use self::optimizer::State;
use super::{
    Backend, Batch, CrossAttention, DropoutStep, Example, FeedForward, Format, Head, Heads, Loss, Mask,
    MicroBatch, Mixing, OptimizerStep, Readers, Scope, Side, StateLayout, StepReport, Tally,
};
use crate::error::{Error, Result};

/// The number format of matrix operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// bf16 through the tensor cores: what training runs in.
    #[default]
    Bf16,
    /// f32 without tensor cores, never TF32: slow, to verify with.
    F32,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

/// Tiles that products in parts have counters for: those of some dozen products.
const MOST_COUNTERS: usize = 4096;

/// A GPU as a device. Not for use by two threads at a time.
#[derive(Debug)]
pub struct Cuda {
    kernels: Kernels,
    /// What lasts, and unrecorded work.
    memory: Arc<Memory>,
    /// Where recorded work that is under way places its buffers.
    arena: RefCell<Option<Arc<Memory>>>,
    precision: Precision,
    info: DeviceInfo,
    failure: RefCell<Option<(String, String, String)>>,
    batches: RefCell<VecDeque<Rc<DeviceBatch>>>,
    dropout: RefCell<Option<Told<DropoutStep>>>,
    schedule: RefCell<Option<Told<Vec<OptimizerStep>>>>,
    operations: Cell<u64>,
    graphs: Cell<bool>,
    steps_ahead: Cell<usize>,
    /// Counters of thin products' tiles: zero whenever no kernel runs.
    counters: RefCell<Buffer<i32>>,
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
        let mut counters = memory.take::<i32>(MOST_COUNTERS)?;
        stream
            .memset_zeros(&mut counters.view_mut()?)
            .map_err(|error| driver("clear the counters", error))?;
        Ok(Self {
            kernels: Kernels::new(stream)?,
            memory,
            arena: RefCell::default(),
            graphs: Cell::new(true),
            steps_ahead: Cell::new(optimizer::STEPS_AHEAD),
            precision,
            info,
            failure: RefCell::default(),
            batches: RefCell::default(),
            dropout: RefCell::default(),
            schedule: RefCell::default(),
            operations: Cell::new(0),
            counters: RefCell::new(counters),
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

    /// Its kernels and their stream, for raw launches.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Bytes that it has of the driver, those of captured steps included.
    pub fn allocated_bytes(&self) -> usize {
        self.memory.totals().allocated()
    }

    /// The most bytes that were in use at a time, recorded work's memory as a whole.
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
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let mut numbers =
            || (0..size * size).map(|_| random.next_u32() as i32 as f32 / (1u32 << 31) as f32).collect();
        let weight = self.weight(numbers(), size, size, Readers::Many);
        let a: Vec<f32> = numbers();
        let a = self.activation_of(&a, size, Format::Operand);
        let mut out = self.activation(size, size, Format::Operand);
        self.launch_product(&batch, Side::Decoder, &a, &weight, &mut out)?;
        self.health()?;
        let started = std::time::Instant::now();
        for _ in 0..repeats {
            self.launch_product(&batch, Side::Decoder, &a, &weight, &mut out)?;
        }
        self.health()?;
        Ok((2 * size * size * size * repeats) as f64 / started.elapsed().as_secs_f64())
    }

    /// Whether [`Backend::record`] captures graphs; it does unless told otherwise.
    pub fn set_graphs(&self, capture: bool) {
        self.graphs.set(capture);
    }

    /// Lets the host issue `steps` optimizer steps, 1 to 64, before it reads what they came to; 16 unless told otherwise.
    /// The numbers do not depend on it.
    pub fn set_steps_ahead(&self, steps: usize) {
        self.steps_ahead.set(steps.clamp(1, optimizer::PLACES));
    }

    /// Waits until all that was launched has run.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn synchronize(&self) -> Result<()> {
        self.kernels.stream().synchronize().map_err(|error| driver("finish its work", error))
    }

    /// Runs `work` unless something failed before; a failure is kept for [`Backend::health`].
    fn attempt(&self, work: impl FnOnce() -> Result<()>) {
        if self.failure.borrow().is_some() {
            return;
        }
        if let Err(error) = work() {
            let parts = match error {
                Error::Device { action, found, advice } => (action, found, advice),
                other => ("compute".to_owned(), other.to_string(), String::new()),
            };
            self.failure.borrow_mut().get_or_insert(parts);
        }
    }

    fn first_failure(&self) -> Result<()> {
        match self.failure.borrow().as_ref() {
            Some((action, found, advice)) => Err(Error::device(action, found, advice)),
            None => Ok(()),
        }
    }

    /// `length` numbers of unspecified content; a buffer that fails every use if there is no memory.
    fn allocate<T: DeviceRepr>(&self, length: usize) -> Buffer<T> {
        let mut buffer = Buffer::absent();
        self.attempt(|| {
            buffer = self.arena.borrow().as_ref().unwrap_or(&self.memory).take(length)?;
            Ok(())
        });
        buffer
    }

    fn upload<T: DeviceRepr>(&self, values: &[T], buffer: &mut Buffer<T>) -> Result<()> {
        memory::check_length("an upload", buffer.len(), values.len())?;
        if values.is_empty() || self.kernels.is_rehearsing() {
            return Ok(());
        }
        let mut view = buffer.view_mut()?;
        self.kernels.stream().memcpy_htod(values, &mut view).map_err(|error| driver("copy to the GPU", error))
    }

    /// The first `length` numbers of `buffer`; zeros if anything failed.
    fn download<T: DeviceRepr + Default + Clone>(&self, buffer: &Buffer<T>, length: usize) -> Vec<T> {
        self.download_part(buffer, 0..length)
    }

    /// The numbers of `buffer` in `range`; zeros if anything failed.
    fn download_part<T: DeviceRepr + Default + Clone>(
        &self,
        buffer: &Buffer<T>,
        range: Range<usize>,
    ) -> Vec<T> {
        let mut values = vec![T::default(); range.len()];
        self.attempt(|| {
            if range.is_empty() || self.kernels.is_rehearsing() {
                return Ok(());
            }
            let view = buffer.view()?;
            let part = view.try_slice(range).ok_or_else(failure::absent)?;
            let copied = self.kernels.stream().memcpy_dtoh(&part, &mut values);
            copied.map_err(|error| driver("copy from the GPU", error))?;
            self.synchronize()
        });
        values
    }

    fn clear<T: DeviceRepr + cudarc::driver::ValidAsZeroBits>(&self, buffer: &mut Buffer<T>) -> Result<()> {
        if self.kernels.is_rehearsing() {
            return Ok(());
        }
        let mut view = buffer.view_mut()?;
        self.kernels.stream().memset_zeros(&mut view).map_err(|error| driver("clear a buffer", error))
    }

    /// Counts floating-point operations of a matrix product.
    fn count(&self, operations: u64) {
        self.operations.set(self.operations.get() + operations);
    }
}

impl Backend for Cuda {
    type Weight = Weight;
    type Rows = Rows;
    type PositionBias = PositionBias;
    type Sources = Sources;
    type State = State;
    type FeedForwardKept = FeedForwardKept;
    type CrossKept = CrossKept;
    type SourceGradient = SourceGradient;
    type MixKept = MixKept;
    type Cache = Cache;
    type LossKept = LossKept;
    type Recorder = Recorder;

    fn operand_rounding(&self) -> f64 {
        match self.precision {
            Precision::Bf16 => 1.0 / 512.0,
            Precision::F32 => f64::from(f32::EPSILON) / 2.0,
        }
    }

    fn weight(&self, values: Vec<f32>, out: usize, input: usize, readers: Readers) -> Self::Weight {
        self.frozen(&values, out, input, readers == Readers::Lookup)
    }

    fn free_bytes(&self) -> Option<usize> {
        let free = self.kernels.context().mem_get_info().ok().map(|(free, _)| free)?;
        // What the pools hold and nobody uses can be had again.
        let totals = self.memory.totals();
        Some(free + totals.allocated() - totals.held())
    }

    fn weight_row(&self, weight: &Self::Weight, row: usize) -> Vec<f32> {
        self.download_weight_row(weight, row)
    }

    fn health(&self) -> Result<()> {
        self.attempt(|| self.synchronize());
        self.first_failure()
    }

    fn record(&self, recorder: &mut Self::Recorder, micro: &MicroBatch<'_>, work: impl FnMut(&Batch)) {
        self.attempt(|| self.record_work(recorder, micro, work));
    }

    fn foreseen_bytes(&self, micro: &MicroBatch<'_>, work: impl FnMut(&Batch)) -> usize {
        let mut bytes = 0;
        self.attempt(|| {
            bytes = self.rehearsed_bytes(micro, work)?;
            Ok(())
        });
        bytes
    }

    fn cut(&self, _batch: &Batch, parts: &[Range<usize>], rows: Rows) -> Vec<Rows> {
        assert_eq!(parts.len(), 1, "a GPU works on a batch as a whole");
        vec![rows]
    }

    fn join(&self, mut parts: Vec<Rows>) -> Rows {
        assert_eq!(parts.len(), 1, "a GPU works on a batch as a whole");
        parts.swap_remove(0)
    }

    fn rows(&self, rows: usize, width: usize, format: Format) -> Self::Rows {
        self.activation(rows, width, format)
    }

    fn zeros(&self, rows: usize, width: usize) -> Self::Rows {
        let mut zeros = self.activation(rows, width, Format::Float);
        if let Some(float) = &mut zeros.float {
            self.attempt(|| self.clear(float));
        }
        zeros
    }

    fn read(&self, rows: &Self::Rows) -> Vec<f64> {
        self.download_rows(rows)
    }

    fn position_bias(&self, per_head: Vec<Vec<f32>>, reach: usize) -> Self::PositionBias {
        self.bias(&per_head, reach)
    }

    fn sources(&self, values: &[f32], count: usize, prompt_length: usize, width: usize) -> Self::Sources {
        Sources::new(self, values, count, prompt_length, width)
    }

    fn state(&self, layout: &StateLayout, values: &[f64], runs: usize) -> Self::State {
        State::new(self, layout, values, runs)
    }

    fn read_state(&self, state: &Self::State) -> [Vec<f64>; 3] {
        state.read(self)
    }

    fn write_state(&self, state: &mut Self::State, values: [&[f64]; 3], updates: &[u64]) {
        self.attempt(|| state.write(self, values, updates));
    }

    fn updates(&self, state: &Self::State) -> Vec<u64> {
        state.updates(self)
    }

    fn read_gradient(&self, state: &Self::State) -> Vec<f64> {
        state.read_gradient(self)
    }

    fn write_gradient(&self, state: &mut Self::State, values: &[f64]) {
        self.attempt(|| state.write_gradient(self, values));
    }

    fn is_finite(&self, rows: &Self::Rows) -> bool {
        self.download_rows(rows).iter().all(|value| value.is_finite())
    }

    fn operations(&self) -> u64 {
        self.operations.get()
    }

    fn mix(
        &self,
        mixing: &Mixing,
        table: &Self::Weight,
        sources: Option<&Self::Sources>,
        state: &Self::State,
        batch: &Batch,
        x: &mut Self::Rows,
    ) -> Self::MixKept {
        let mut kept = MixKept::new(self, mixing, sources, state, batch);
        self.attempt(|| self.launch_mix(mixing, table, sources, state, batch, x, &mut kept));
        kept
    }

    fn mix_backward(
        &self,
        mixing: &Mixing,
        sources: Option<&Self::Sources>,
        batch: &Batch,
        kept: &Self::MixKept,
        d_x: &Self::Rows,
        state: &mut Self::State,
    ) {
        self.attempt(|| self.launch_mix_backward(mixing, sources, batch, kept, d_x, state));
    }

    fn attention(&self, kept: &Self::MixKept) -> Vec<f64> {
        kept.attention(self)
    }

    fn embed(
        &self,
        table: &Self::Weight,
        side: Side,
        batch: &Batch,
        mask: Mask<'_>,
        epsilon: f64,
        x: &mut Self::Rows,
        r: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_embed(table, side, batch, mask, epsilon, x, r));
    }

    fn embed_backward(&self, batch: &Batch, mask: Mask<'_>, d_x: &mut Self::Rows) {
        self.attempt(|| self.launch_embed_backward(batch, mask, d_x));
    }

    fn project(
        &self,
        batch: &Batch,
        side: Side,
        x: &Self::Rows,
        r: &Self::Rows,
        weight: &Self::Weight,
        z: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_project(batch, side, x, r, weight, z));
    }

    fn project_backward(
        &self,
        batch: &Batch,
        side: Side,
        scope: Scope,
        dz: &Self::Rows,
        weight: &Self::Weight,
        x: &Self::Rows,
        r: &Self::Rows,
        below: Option<&Self::Rows>,
        d_x: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_project_backward(batch, side, scope, dz, weight, x, r, below, d_x));
    }

    fn add_project(
        &self,
        batch: &Batch,
        side: Side,
        y: &Self::Rows,
        weight: &Self::Weight,
        mask: Mask<'_>,
        epsilon: f64,
        x: &Self::Rows,
        x_next: &mut Self::Rows,
        r_next: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_add_project(batch, side, y, weight, mask, epsilon, x, x_next, r_next));
    }

    fn add_project_backward(
        &self,
        batch: &Batch,
        side: Side,
        d_x: &Self::Rows,
        weight: &Self::Weight,
        mask: Mask<'_>,
        y: Option<(&Self::Rows, Heads)>,
        d_y: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_add_project_backward(batch, side, d_x, weight, mask, y, d_y));
    }

    fn feed_forward(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        x: &Self::Rows,
        r: &Self::Rows,
        x_next: &mut Self::Rows,
        r_next: &mut Self::Rows,
        keep: bool,
    ) -> Option<Self::FeedForwardKept> {
        let mut kept = FeedForwardKept::new(self, batch, side, feed_forward);
        self.attempt(|| self.launch_feed_forward(batch, side, feed_forward, x, r, x_next, r_next, &mut kept));
        keep.then_some(kept)
    }

    fn feed_forward_backward(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        kept: &Self::FeedForwardKept,
        x: &Self::Rows,
        r: &Self::Rows,
        x_next: &Self::Rows,
        d_x: &mut Self::Rows,
    ) {
        self.attempt(|| {
            self.launch_feed_forward_backward(batch, side, feed_forward, kept, x, r, x_next, d_x)
        });
    }

    fn self_attention(
        &self,
        batch: &Batch,
        side: Side,
        heads: Heads,
        bias: &Self::PositionBias,
        mask: Mask<'_>,
        qkv: &Self::Rows,
        o: &mut Self::Rows,
        log_sum_exp: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_self_attention(batch, side, heads, bias, mask, qkv, o, log_sum_exp));
    }

    fn self_attention_backward(
        &self,
        batch: &Batch,
        side: Side,
        scope: Scope,
        heads: Heads,
        bias: &Self::PositionBias,
        mask: Mask<'_>,
        qkv: &Self::Rows,
        o: &Self::Rows,
        log_sum_exp: &Self::Rows,
        d_o: &Self::Rows,
        d_qkv: &mut Self::Rows,
    ) {
        self.attempt(|| {
            self.launch_self_attention_backward(
                batch,
                side,
                scope,
                heads,
                bias,
                mask,
                qkv,
                o,
                log_sum_exp,
                d_o,
                d_qkv,
            )
        });
    }

    fn final_norm(
        &self,
        batch: &Batch,
        side: Side,
        x: &Self::Rows,
        r: &Self::Rows,
        gain: Option<&Self::Weight>,
        scale: f64,
        mask: Mask<'_>,
        h: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_final_norm(batch, side, x, r, gain, scale, mask, h));
    }

    fn final_norm_backward(
        &self,
        batch: &Batch,
        side: Side,
        x: &Self::Rows,
        r: &Self::Rows,
        gain: Option<&Self::Weight>,
        scale: f64,
        mask: Mask<'_>,
        d_h: &Self::Rows,
        below: Option<&Self::Rows>,
        d_x: &mut Self::Rows,
    ) {
        self.attempt(|| {
            self.launch_final_norm_backward(batch, side, x, r, gain, scale, mask, d_h, below, d_x)
        });
    }

    fn cross_attention(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        q: &Self::Rows,
        h: &Self::Rows,
        o: &mut Self::Rows,
        keep: bool,
    ) -> Option<Self::CrossKept> {
        let mut kept = CrossKept::new(self, batch, cross, q);
        self.attempt(|| self.launch_cross_attention(batch, cross, q, h, o, &mut kept));
        keep.then_some(kept)
    }

    fn cross_project(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        x: &Self::Rows,
        r: &Self::Rows,
        weight: &Self::Weight,
        q: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_cross_project(batch, cross, x, r, weight, q));
    }

    fn cross_project_backward(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        d_x: &Self::Rows,
        weight: &Self::Weight,
        mask: Mask<'_>,
        d_o: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_cross_project_backward(batch, cross, d_x, weight, mask, d_o));
    }

    fn source_gradient(&self, _batch: &Batch, width: usize) -> Self::SourceGradient {
        SourceGradient::new(width)
    }

    fn cross_attention_backward(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        kept: &Self::CrossKept,
        q: &Self::Rows,
        h: &Self::Rows,
        o: &Self::Rows,
        d_o: &Self::Rows,
        d_q: Option<&mut Self::Rows>,
        d_h: &mut Self::SourceGradient,
    ) {
        self.attempt(|| self.launch_cross_attention_backward(batch, cross, kept, q, h, o, d_o, d_q, d_h));
    }

    fn source_rows(&self, batch: &Batch, d_h: Self::SourceGradient) -> Self::Rows {
        let mut rows = self.activation(batch.rows(Side::Encoder), d_h.width(), Format::Float);
        self.attempt(|| d_h.sum(self, batch, &mut rows));
        rows
    }

    fn loss(
        &self,
        batch: &Batch,
        hidden: &Self::Rows,
        head: &Head<'_, Self>,
        d_hidden: Option<&mut Self::Rows>,
    ) -> Self::LossKept {
        let mut kept = LossKept::new(self, batch);
        self.attempt(|| self.launch_loss(batch, hidden, head, d_hidden, &mut kept));
        kept
    }

    fn read_loss(&self, kept: &Self::LossKept) -> Loss {
        kept.read(self)
    }

    fn logits(&self, batch: &Batch, hidden: &Self::Rows, head: &Self::Weight) -> Self::Rows {
        let mut logits = self.activation(hidden.rows, head.out, Format::Float);
        self.attempt(|| self.launch_logits(batch, hidden, head, &mut logits));
        logits
    }

    fn begin_step(&self, state: &mut Self::State) {
        self.attempt(|| state.begin_step(self));
    }

    fn tally(&self, batch: &Batch, loss: &Self::LossKept, mix: &Self::MixKept, state: &mut Self::State) {
        self.attempt(|| self.launch_tally(batch, loss, mix, state));
    }

    fn read_tally(&self, state: &Self::State) -> Vec<Tally> {
        state.read_tallies(self)
    }

    fn write_tally(&self, state: &mut Self::State, tallies: &[Tally]) {
        self.attempt(|| state.write_tallies(self, tallies));
    }

    fn optimizer_step(&self, state: &mut Self::State, steps: &[OptimizerStep]) {
        self.attempt(|| self.launch_optimizer(state, steps));
    }

    fn steps_ahead(&self) -> usize {
        self.steps_ahead.get()
    }

    fn reports(&self, state: &mut Self::State) -> Vec<Vec<StepReport>> {
        let mut reports = Vec::new();
        self.attempt(|| {
            reports = state.take_reports(self)?;
            Ok(())
        });
        reports
    }

    fn cache(&self, layers: usize, examples: usize, length: usize, heads: Heads) -> Self::Cache {
        Cache::new(self, layers, examples, length, heads)
    }

    fn decode_self_attention(
        &self,
        layer: usize,
        position: usize,
        heads: Heads,
        bias: &Self::PositionBias,
        qkv: &Self::Rows,
        cache: &mut Self::Cache,
        o: &mut Self::Rows,
    ) {
        self.attempt(|| self.launch_decode_self_attention(layer, position, heads, bias, qkv, cache, o));
    }
}
