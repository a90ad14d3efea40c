//! The CPU backend: one file an op, matrix products through the `gemm` crate, everything around them fused.
//!
//! A row's numbers do not depend on how rows are shared out among threads, and every reduction runs in a fixed order,
//! so a step gives the same bytes for any number of threads.

mod attention;
mod cross_attention;
mod decode;
mod element;
mod embedding;
mod feed_forward;
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
pub use cross_attention::CrossAttentionSaved;
pub use decode::{Cache, Tokens};
pub use element::Element;
pub use feed_forward::FeedForwardSaved;
pub use mix::{MixSaved, Sources};
pub use optimizer::State;
pub use rows::Rows;

use self::matrix::{View, ViewMut, transpose_into};
use self::pool::{Buffer, Pool};
use self::rows::Blocks;
use self::vector::vectorised;
use super::ops::{check_row, check_weight};
use super::{Backend, Batch, Device, Format, MAX_THREADS, Matrix, MicroBatch, Readers, Side};
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

    /// W^T, where it is stored.
    fn transposed(&self) -> Option<View<'_, E>> {
        self.transposed.as_ref().map(|values| View::new(values, self.input, self.out, self.out))
    }
}

impl<E: Element> Matrix for Weight<E> {
    fn shape(&self) -> [usize; 2] {
        [self.out, self.input]
    }
}

/// The threads that `asked` comes to: one a core for `None`.
pub(crate) fn thread_count(asked: Option<usize>) -> Result<usize> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = asked.unwrap_or(cores);
    if count == 0 || count > MAX_THREADS {
        let expected = format!("1 to {MAX_THREADS}");
        return Err(Error::setting("--threads", expected, count.to_string(), ""));
    }
    Ok(count)
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
        let count = thread_count(threads)?;
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

/// Of equal lengths, which the caller checked.
fn copy_narrowed<E: Element>(destination: &mut [E], values: &[f64]) {
    assert_eq!(destination.len(), values.len(), "equal lengths");
    for (destination, &value) in destination.iter_mut().zip(values) {
        *destination = E::from_f64(value);
    }
}

impl<E: Element> Device for Cpu<E> {
    type Weight = Weight<E>;
    type Rows = Rows<E>;

    fn computes_on(&self) -> (&'static str, &'static str) {
        ("cpu", if size_of::<E>() == size_of::<f64>() { "f64" } else { "f32" })
    }

    fn operand_rounding(&self) -> f64 {
        E::epsilon().widen() / 2.0
    }

    fn weight(&self, values: Vec<f32>, out: usize, input: usize, readers: Readers) -> Result<Weight<E>> {
        check_weight(values.len(), out, input)?;
        let values = E::from_f32_vec(values);
        let transposed = (readers == Readers::Many).then(|| matrix::transpose(&values, out, input));
        Ok(Weight { values, transposed, out, input })
    }

    fn weight_row(&self, weight: &Weight<E>, row: usize) -> Result<Vec<f32>> {
        check_row(row, weight.out)?;
        Ok(weight.row(row).iter().map(|value| value.widen() as f32).collect())
    }

    fn rows(&self, rows: usize, width: usize, format: Format) -> Result<Rows<E>> {
        let width = if format == Format::Norm { 1 } else { width };
        Ok(Rows { data: self.pool.take_rows(rows, width)?, rows, width })
    }

    fn zeros(&self, rows: usize, width: usize) -> Result<Rows<E>> {
        let mut zeros = self.rows(rows, width, Format::Float)?;
        zeros.data.fill(E::zero());
        Ok(zeros)
    }

    fn read(&self, rows: &Rows<E>) -> Result<Vec<f64>> {
        Ok(widened(rows.values()))
    }

    fn is_finite(&self, rows: &Rows<E>) -> Result<bool> {
        Ok(rows.values().iter().all(|value| value.is_finite()))
    }

    fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }
}

impl<E: Element> Backend for Cpu<E> {
    type GraphCache = ();

    fn capture(
        &self,
        (): &mut (),
        micro: &MicroBatch<'_>,
        mut work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<()> {
        work(micro.batch)
    }

    fn parts(&self, batch: &Batch) -> Vec<Range<usize>> {
        rows::parts(batch, self.threads())
    }

    fn side_by_side<P: Send, T: Send>(
        &self,
        parts: Vec<P>,
        work: impl Fn(&Self, P) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        // A thread that has done its part helps with the others': their ops' rows are cut for that.
        let share = self.threads().div_ceil(parts.len().max(1)).max(2).min(self.threads());
        let part = Self {
            threads: self.threads.clone(),
            share,
            pool: self.pool.clone(),
            arch: self.arch,
            operations: self.operations.clone(),
        };
        // All of them end before one's error counts, so that it is the same one for any number of threads.
        let results: Vec<Result<T>> =
            self.run(|| parts.into_par_iter().with_max_len(1).map(|of| work(&part, of)).collect());
        results.into_iter().collect()
    }

    fn cut(&self, batch: &Batch, parts: &[Range<usize>], rows: Rows<E>) -> Result<Vec<Rows<E>>> {
        rows::check_parts(batch, parts)?;
        rows.check("the rows to cut", batch.rows(Side::Encoder), rows.width)?;
        if parts.len() == 1 {
            return Ok(vec![rows]);
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
        Ok(parts.iter().map(copied).collect())
    }

    fn join(&self, mut parts: Vec<Rows<E>>) -> Result<Rows<E>> {
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        let width = parts.first().map(|part| part.width);
        let width = width.ok_or_else(|| Error::tensor("the parts of a batch", "at least one", "none", ""))?;
        parts.iter().try_for_each(|part| part.check("the rows to join", part.rows, width))?;
        let mut whole = self.allocate(parts.iter().map(|part| part.rows).sum(), width);
        let pieces = rows::split_rows(&mut whole.data, width, parts.iter().map(|part| part.rows));
        for (piece, part) in pieces.into_iter().zip(&parts) {
            piece.copy_from_slice(part.values());
        }
        Ok(whole)
    }
}
