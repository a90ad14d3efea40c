//! The CPU backend: one file an op, matrix products through the `gemm` crate, everything around them fused.
//!
//! A row's numbers do not depend on how rows are shared out among threads, and every reduction runs in a fixed order,
//! so a step gives the same bytes for any number of threads.

mod attention;
mod cross_attention;
mod decode;
mod element;
mod linear;
mod loss;
mod matrix;
mod mix;
mod norm;
mod optimizer;
mod pool;
mod rows;
mod tally;
mod vector;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

pub use attention::PositionBias;
pub use cross_attention::CrossKept;
pub use decode::Cache;
pub use element::Element;
pub use linear::FeedForwardKept;
pub use mix::{MixKept, Sources};
pub use optimizer::State;
pub use rows::Rows;

use self::matrix::{View, ViewMut, transpose_into};
use self::pool::{Buffer, Pool};
use self::rows::Blocks;
use self::vector::vectorised;
use super::{
    Backend, Batch, CrossAttention, FeedForward, Format, Head, Heads, Loss, Mask, MicroBatch, Mixing,
    OptimizerStep, Readers, Scope, Side, StateLayout, StepReport, Tally,
};
use crate::error::{Error, Result};

/// A frozen matrix `[out, in]`, row-major.
#[derive(Debug)]
pub struct Weight<E> {
    values: Vec<E>,
    /// W^T, where many rows are read.
    transposed: Option<Vec<E>>,
    out: usize,
    input: usize,
}

impl<E: Element> Weight<E> {
    /// All numbers, row-major.
    pub fn values(&self) -> &[E] {
        &self.values
    }

    fn row(&self, row: usize) -> &[E] {
        &self.values[row * self.input..(row + 1) * self.input]
    }

    fn view(&self) -> View<'_, E> {
        View::new(&self.values, self.out, self.input, self.input)
    }

    /// W^T, where it is kept.
    fn transposed(&self) -> Option<View<'_, E>> {
        self.transposed.as_ref().map(|values| View::new(values, self.input, self.out, self.out))
    }
}

/// The CPU as a device, computing in `E`: f32, or f64 to check gradients.
#[derive(Debug)]
pub struct Cpu<E: Element = f32> {
    threads: Arc<rayon::ThreadPool>,
    /// Threads that an op shares its work out among.
    share: usize,
    pool: Arc<Pool<E>>,
    arch: pulp::Arch,
    operations: Arc<AtomicU64>,
}

impl<E: Element> Cpu<E> {
    /// The CPU with `threads` threads, or one a core for `None`. Sets the `gemm` crate's process-wide threshold from which
    /// products on several threads pack their left side to that of a single thread; its results stay the same.
    ///
    /// # Errors
    /// [`Error::Setting`] for 0 threads or if the system refuses to start them.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Self::build(threads, false, false)
    }

    /// Like [`Cpu::new`], with the calling thread as one of them, so that its steps are not handed over at every op: for a
    /// program whose thread does little else. Work from other threads gets one thread less. Where the calling thread
    /// belongs to such threads already, new ones are started.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn with_caller(threads: Option<usize>) -> Result<Self> {
        let inside = rayon::current_thread_index().is_some();
        Self::build(threads, false, !inside)
    }

    /// Like [`Cpu::new`], but every activation buffer holds NaN until it is written: for tests.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn poisoning(threads: Option<usize>) -> Result<Self> {
        Self::build(threads, true, false)
    }

    fn build(threads: Option<usize>, poison: bool, with_caller: bool) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = threads.unwrap_or(cores);
        if count == 0 || count > 1024 {
            return Err(Error::setting("--threads", "1 to 1024", count.to_string(), ""));
        }
        let builder = rayon::ThreadPoolBuilder::new().num_threads(count);
        let builder = if with_caller { builder.use_current_thread() } else { builder };
        let threads = builder.build().map_err(|error| {
            Error::setting(
                "--threads",
                "a number of threads the system can start",
                format!("{count}: {error}"),
                "",
            )
        })?;
        matrix::pack_for_few_rows();
        Ok(Self {
            threads: Arc::new(threads),
            share: count,
            pool: Pool::new(poison),
            arch: pulp::Arch::new(),
            operations: Arc::default(),
        })
    }

    /// Threads that work on a step.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// The vector instructions that its loops were compiled for.
    pub fn instruction_set(&self) -> String {
        // Its `Debug` goes on with every extension that was found.
        let name = format!("{:?}", self.arch);
        match name.split('(').next().unwrap_or_default() {
            "V4" => "AVX-512".into(),
            "V3" => "AVX2".into(),
            other => other.into(),
        }
    }

    /// Gives buffers that no step holds back to the system.
    pub fn release_memory(&self) {
        self.pool.clear();
    }

    /// The rate of a large square product in the backend's format, in operations a second: the best of `repeats`.
    pub fn product_rate(&self, size: usize, repeats: usize) -> f64 {
        let a = vec![E::one(); size * size];
        let b = vec![E::from_f64(0.5); size * size];
        let mut c = vec![E::zero(); size * size];
        let blocks = Blocks { size, inner_threads: self.threads() };
        let mut best = 0.0_f64;
        for _ in 0..repeats.max(1) {
            let started = std::time::Instant::now();
            let (a, b) = (View::new(&a, size, size, size), View::new(&b, size, size, size));
            self.run(|| self.multiply(ViewMut::new(&mut c, size, size, size), false, a, b, blocks));
            best = best.max(2.0 * (size as f64).powi(3) / started.elapsed().as_secs_f64());
        }
        best
    }

    /// The products of each row of `a`, \[A, width\], with each of `b`, \[B, width\]: \[A, B\].
    ///
    /// # Panics
    /// If a length is no multiple of the width.
    pub fn row_products(&self, a: &[E], b: &[E], width: usize) -> Vec<E> {
        assert!(a.len().is_multiple_of(width) && b.len().is_multiple_of(width), "whole rows");
        let (rows, columns) = (a.len() / width, b.len() / width);
        let mut products = vec![E::zero(); rows * columns];
        let (a, b) = (View::new(a, rows, width, width), View::new(b, columns, width, width));
        let blocks = Blocks { size: rows, inner_threads: self.threads() };
        let destination = ViewMut::new(&mut products, rows, columns, columns);
        self.run(|| self.multiply(destination, false, a, b.transposed(), blocks));
        products
    }

    /// An activation that holds `values`, \[rows, width\]; the length must be a multiple of the width.
    pub fn activation_of(&self, values: &[f64], width: usize) -> Rows<E> {
        let mut rows = self.allocate(values.len() / width, width);
        copy_narrowed(&mut rows.data, values);
        rows
    }

    fn allocate(&self, rows: usize, width: usize) -> Rows<E> {
        Rows { data: self.pool.take(rows * width), rows, width }
    }

    /// Runs `work` on this backend's threads.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.threads.install(work)
    }

    fn multiply(
        &self,
        destination: ViewMut<'_, E>,
        accumulate: bool,
        lhs: View<'_, E>,
        rhs: View<'_, E>,
        blocks: Blocks,
    ) {
        let operations = matrix::multiply(destination, accumulate, lhs, rhs, blocks.inner_threads);
        self.operations.fetch_add(operations, Ordering::Relaxed);
    }

    /// A product on the calling thread alone.
    fn multiply_alone(
        &self,
        destination: ViewMut<'_, E>,
        accumulate: bool,
        lhs: View<'_, E>,
        rhs: View<'_, E>,
    ) {
        self.multiply(destination, accumulate, lhs, rhs, Blocks { size: 0, inner_threads: 1 });
    }

    /// destination = lhs·rhs^T on the calling thread alone. The GEMM crate would gather the rows of `rhs` number by number;
    /// they are transposed in whole vectors first, or else `lhs` and the result are, where that is less.
    fn multiply_by_transpose(&self, destination: ViewMut<'_, E>, lhs: View<'_, E>, rhs: View<'_, E>) {
        let (rows, columns, inner) = (lhs.rows(), rhs.rows(), lhs.columns());
        if rows * (inner + columns) < columns * inner {
            let lhs = self.transposed(lhs);
            let mut product = self.pool.take(columns * rows);
            let lhs = View::new(&lhs, inner, rows, rows);
            self.multiply_alone(ViewMut::new(&mut product, columns, rows, rows), false, rhs, lhs);
            vectorised!(self, transpose_into(View::new(&product, columns, rows, rows), destination));
        } else {
            let rhs = self.transposed(rhs);
            self.multiply_alone(destination, false, lhs, View::new(&rhs, inner, columns, columns));
        }
    }

    /// The transpose of a row-major matrix, without gaps between its rows.
    fn transposed(&self, matrix: View<'_, E>) -> Buffer<E> {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let mut transposed = self.pool.take(rows * columns);
        vectorised!(self, transpose_into(matrix, ViewMut::new(&mut transposed, columns, rows, rows)));
        transposed
    }
}

fn widened<E: Element>(values: &[E]) -> Vec<f64> {
    values.iter().map(|value| value.widen()).collect()
}

fn copy_narrowed<E: Element>(destination: &mut [E], values: &[f64]) {
    assert_eq!(destination.len(), values.len(), "length of a state vector");
    for (destination, &value) in destination.iter_mut().zip(values) {
        *destination = E::from_f64(value);
    }
}

impl<E: Element> Backend for Cpu<E> {
    type Weight = Weight<E>;
    type Rows = Rows<E>;
    type PositionBias = PositionBias<E>;
    type Sources = Sources<E>;
    type State = State<E>;
    type FeedForwardKept = FeedForwardKept<E>;
    type CrossKept = CrossKept<E>;
    type SourceGradient = Rows<E>;
    type MixKept = MixKept<E>;
    type Cache = Cache<E>;
    type LossKept = Loss;
    type Recorder = ();

    fn operand_rounding(&self) -> f64 {
        E::epsilon().widen() / 2.0
    }

    fn weight(&self, values: Vec<f32>, out: usize, input: usize, readers: Readers) -> Self::Weight {
        assert_eq!(values.len(), out * input, "weight [out, in]");
        let values = E::from_f32_vec(values);
        let transposed = (readers == Readers::Many).then(|| matrix::transpose(&values, out, input));
        Weight { values, transposed, out, input }
    }

    fn weight_row(&self, weight: &Self::Weight, row: usize) -> Vec<f32> {
        weight.row(row).iter().map(|value| value.widen() as f32).collect()
    }

    fn record(&self, (): &mut (), micro: &MicroBatch<'_>, mut work: impl FnMut(&Batch)) {
        work(micro.batch);
    }

    fn parts(&self, batch: &Batch) -> Vec<Range<usize>> {
        rows::parts(batch, self.threads())
    }

    fn side_by_side<P: Send, T: Send>(&self, parts: Vec<P>, work: impl Fn(&Self, P) -> T + Sync) -> Vec<T> {
        // A thread that has done its part helps with the others': their ops' rows are cut for that.
        let share = self.threads().div_ceil(parts.len().max(1)).max(2).min(self.threads());
        let part = Self {
            threads: self.threads.clone(),
            share,
            pool: self.pool.clone(),
            arch: self.arch,
            operations: self.operations.clone(),
        };
        self.run(|| parts.into_par_iter().with_max_len(1).map(|of| work(&part, of)).collect())
    }

    fn cut(&self, batch: &Batch, parts: &[Range<usize>], rows: Rows<E>) -> Vec<Rows<E>> {
        if parts.len() == 1 {
            return vec![rows];
        }
        let span = |part: &Range<usize>| {
            batch.range(Side::Encoder, part.start).start..batch.range(Side::Encoder, part.end - 1).end
        };
        let copied = |part| {
            let span = span(part);
            let mut piece = self.allocate(span.len(), rows.width);
            piece.data.copy_from_slice(rows.range(span));
            piece
        };
        parts.iter().map(copied).collect()
    }

    fn join(&self, mut parts: Vec<Rows<E>>) -> Rows<E> {
        if parts.len() == 1 {
            return parts.swap_remove(0);
        }
        let width = parts[0].width;
        let mut whole = self.allocate(parts.iter().map(|part| part.rows).sum(), width);
        let pieces = rows::split_rows(&mut whole.data, width, parts.iter().map(|part| part.rows));
        for (piece, part) in pieces.into_iter().zip(&parts) {
            piece.copy_from_slice(part.values());
        }
        whole
    }

    fn rows(&self, rows: usize, width: usize, format: Format) -> Self::Rows {
        self.allocate(rows, if format == Format::Norm { 1 } else { width })
    }

    fn zeros(&self, rows: usize, width: usize) -> Self::Rows {
        let mut zeros = self.allocate(rows, width);
        zeros.data.fill(E::zero());
        zeros
    }

    fn read(&self, rows: &Self::Rows) -> Vec<f64> {
        widened(rows.values())
    }

    fn position_bias(&self, per_head: Vec<Vec<f32>>, reach: usize) -> Self::PositionBias {
        PositionBias::new(&per_head, reach)
    }

    fn sources(&self, values: &[f32], count: usize, prompt_length: usize, width: usize) -> Self::Sources {
        Sources::new(values, count, prompt_length, width)
    }

    fn state(&self, layout: &StateLayout, values: &[f64], runs: usize) -> Self::State {
        State::new(layout, values, runs)
    }

    fn read_state(&self, state: &Self::State) -> [Vec<f64>; 3] {
        [&state.values, &state.first_moment, &state.second_moment].map(|values| widened(values))
    }

    fn write_state(&self, state: &mut Self::State, values: [&[f64]; 3], updates: &[u64]) {
        copy_narrowed(&mut state.values, values[0]);
        copy_narrowed(&mut state.first_moment, values[1]);
        copy_narrowed(&mut state.second_moment, values[2]);
        state.updates.copy_from_slice(updates);
    }

    fn updates(&self, state: &Self::State) -> Vec<u64> {
        state.updates.clone()
    }

    fn read_gradient(&self, state: &Self::State) -> Vec<f64> {
        widened(&state.gradient)
    }

    fn write_gradient(&self, state: &mut Self::State, values: &[f64]) {
        copy_narrowed(&mut state.gradient, values);
    }

    fn is_finite(&self, rows: &Self::Rows) -> bool {
        rows.values().iter().all(|value| value.is_finite())
    }

    fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
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
        mix::mix(self, mixing, table, sources, state, batch, x)
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
        mix::mix_backward(self, mixing, sources, batch, kept, d_x, state)
    }

    fn attention(&self, kept: &Self::MixKept) -> Vec<f64> {
        widened(&kept.attention)
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
        norm::embed(self, table, side, batch, mask, epsilon, x, r)
    }

    fn embed_backward(&self, batch: &Batch, mask: Mask<'_>, d_x: &mut Self::Rows) {
        norm::embed_backward(self, batch, mask, d_x)
    }

    fn project(
        &self,
        _batch: &Batch,
        _side: Side,
        x: &Self::Rows,
        r: &Self::Rows,
        weight: &Self::Weight,
        z: &mut Self::Rows,
    ) {
        linear::project(self, x, r, weight, z)
    }

    fn project_backward(
        &self,
        batch: &Batch,
        _side: Side,
        scope: Scope,
        dz: &Self::Rows,
        weight: &Self::Weight,
        x: &Self::Rows,
        r: &Self::Rows,
        _below: Option<&Self::Rows>,
        d_x: &mut Self::Rows,
    ) {
        linear::project_backward(self, batch, scope, dz, weight, x, r, d_x)
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
        linear::add_project(self, batch, side, y, weight, mask, epsilon, x, x_next, r_next)
    }

    fn add_project_backward(
        &self,
        batch: &Batch,
        side: Side,
        d_x: &Self::Rows,
        weight: &Self::Weight,
        mask: Mask<'_>,
        _y: Option<(&Self::Rows, Heads)>,
        d_y: &mut Self::Rows,
    ) {
        linear::add_project_backward(self, batch, side, d_x, weight, mask, d_y)
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
        linear::feed_forward(self, batch, side, feed_forward, x, r, x_next, r_next, keep)
    }

    fn feed_forward_backward(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        kept: &Self::FeedForwardKept,
        x: &Self::Rows,
        r: &Self::Rows,
        _x_next: &Self::Rows,
        d_x: &mut Self::Rows,
    ) {
        linear::feed_forward_backward(self, batch, side, feed_forward, kept, x, r, d_x)
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
        attention::self_attention(self, batch, side, heads, bias, mask, qkv, o, log_sum_exp)
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
        attention::self_attention_backward(
            self,
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
        norm::final_norm(self, batch, side, x, r, gain, scale, mask, h)
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
        _below: Option<&Self::Rows>,
        d_x: &mut Self::Rows,
    ) {
        norm::final_norm_backward(self, batch, side, x, r, gain, scale, mask, d_h, d_x)
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
        cross_attention::cross_attention(self, batch, cross, q, h, o, keep)
    }

    fn source_gradient(&self, batch: &Batch, width: usize) -> Self::SourceGradient {
        self.zeros(batch.rows(Side::Encoder), width)
    }

    fn cross_attention_backward(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        kept: &Self::CrossKept,
        q: &Self::Rows,
        h: &Self::Rows,
        _o: &Self::Rows,
        d_o: &Self::Rows,
        d_q: Option<&mut Self::Rows>,
        d_h: &mut Self::SourceGradient,
    ) {
        cross_attention::cross_attention_backward(self, batch, cross, kept, q, h, d_o, d_q, d_h)
    }

    fn source_rows(&self, _batch: &Batch, d_h: Self::SourceGradient) -> Self::Rows {
        d_h
    }

    fn loss(
        &self,
        batch: &Batch,
        hidden: &Self::Rows,
        head: &Head<'_, Self>,
        d_hidden: Option<&mut Self::Rows>,
    ) -> Loss {
        loss::loss(self, batch, hidden, head, d_hidden)
    }

    fn read_loss(&self, kept: &Loss) -> Loss {
        kept.clone()
    }

    fn logits(&self, _batch: &Batch, hidden: &Self::Rows, head: &Self::Weight) -> Self::Rows {
        loss::logits(self, hidden, head)
    }

    fn begin_step(&self, state: &mut Self::State) {
        state.begin_step();
    }

    fn tally(&self, batch: &Batch, loss: &Self::LossKept, mix: &Self::MixKept, state: &mut Self::State) {
        tally::tally(batch, loss, mix, state);
    }

    fn read_tally(&self, state: &Self::State) -> Vec<Tally> {
        state.tallies.clone()
    }

    fn write_tally(&self, state: &mut Self::State, tallies: &[Tally]) {
        state.tallies.copy_from_slice(tallies);
    }

    fn optimizer_step(&self, state: &mut Self::State, steps: &[OptimizerStep]) {
        optimizer::step(self, state, steps);
    }

    fn reports(&self, state: &mut Self::State) -> Vec<Vec<StepReport>> {
        state.take_reports()
    }

    fn cache(&self, layers: usize, examples: usize, length: usize, heads: Heads) -> Self::Cache {
        Cache::new(layers, examples, length, heads)
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
        decode::self_attention(self, layer, position, heads, bias, qkv, cache, o)
    }
}
