//! What a device must be able to do: a dozen fused ops, each with its shapes.
//!
//! The model is written once over [`Backend`]. Every linear layer is frozen, so no op has a weight gradient, and a
//! norm is never an op of its own: its weight is folded into the weights that read it, and what is left, r = 1 / rms, is
//! one number a row that the next projection applies.
//!
//! # Conventions
//! Matrices are row-major. A weight is stored once, as `[out, in]`, and read both ways. `x` is the residual stream,
//! `r` its `[rows, 1]` reciprocal root mean squares. Gradients are `d_<name>`. Output arguments may hold anything on
//! entry unless the op says it adds to them. Shapes are checked where an op is entered, by the same code for every device
//! ([`ops`]): a mismatch is an error that names the operand, and nothing is computed.

mod batch;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dropout;
// Without a device nobody checks operands.
#[cfg_attr(not(any(feature = "cpu", feature = "cuda")), allow(dead_code, unused_imports))]
pub mod ops;
mod state;

use std::ops::Range;

use crate::error::Result;
/// Most threads of the CPU.
pub const MAX_THREADS: usize = 1024;

pub use batch::{Batch, Example, Objective, Scope, Side};
pub use dropout::{DropoutStep, ELEMENTS_PER_BLOCK, MaskRow, Site, SiteKind, philox};
pub use ops::{
    Activation, CrossAttention, CrossAttentionBackward, CrossAttentionOps, DecodeOps, DecodeStep, Device,
    Embedding, EmbeddingOps, FeedForward, FeedForwardBackward, FeedForwardOps, FinalNorm, FinalNormBackward,
    Format, Heads, LinearOps, LmHead, Loss, LossOps, Mask, Matrix, Mix, MixOps, NormOps, OptimizerOps,
    Projection, ProjectionBackward, PromptRows, Readers, Residual, ResidualProjection,
    ResidualProjectionBackward, SelfAttention, SelfAttentionBackward, SelfAttentionOps,
    SelfAttentionOutputBackward, StatisticsOps,
};
pub use state::{Group, Mixing, OptimizerStep, Scorer, Segment, StateLayout, StepReport, StepStatistics};

/// A micro-batch of a training step, as [`Backend::capture`] takes it: all that may differ from one to the next.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a> {
    /// Its examples, with the weights of their label rows.
    pub batch: &'a Batch,
    /// The step's dropout.
    pub dropout: Option<&'a DropoutStep>,
    /// Whether it is the step's first: gradient and statistics begin at zero.
    pub first: bool,
    /// Where it is the step's last: what the optimizer then does to each run.
    pub last: Option<&'a [OptimizerStep]>,
}

/// A device that runs the frozen model and its mixture: every family of ops, and how whole passes are issued.
pub trait Backend:
    CrossAttentionOps
    + DecodeOps
    + EmbeddingOps
    + FeedForwardOps
    + LinearOps
    + LossOps
    + MixOps
    + NormOps
    + OptimizerOps
    + SelfAttentionOps
    + StatisticsOps
{
    /// What was captured of one caller's work, to be launched again for other batches.
    type GraphCache: Default;

    /// Does `work` for a micro-batch, or launches again what an earlier call captured for one of like shape, fed with this
    /// one. Nothing is waited for. One graph cache serves one piece of work: whatever else `work` uses must be what it was at
    /// the first call, but for the content of device memory, and what `work` leaves must lie in such memory.
    ///
    /// # Errors
    /// What `work` fails with, and what the driver says.
    fn capture(
        &self,
        graph_cache: &mut Self::GraphCache,
        micro: &MicroBatch<'_>,
        work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<()>;
    /// Does work that goes on for as long as the host says, or launches again what an earlier call captured of it for a batch of
    /// like shape: `begin` and the first `chunk` as one, then further chunks one by one, until `goes_on`, which may read back what
    /// `begin` gave, says no. All get the batch with the room that the device makes for like ones. What [`Backend::capture`] asks of
    /// `work` holds for `begin` and `chunk`, but that what `begin` gives may lie in any memory. Chunks are numbered from 0; none
    /// takes more memory or other kernels than the first.
    ///
    /// # Errors
    /// What they fail with, and what the driver says.
    fn capture_chunks<K>(
        &self,
        _graph_cache: &mut Self::GraphCache,
        batch: &Batch,
        begin: impl Fn(&Batch) -> Result<K>,
        chunk: impl Fn(&Batch, &mut K, usize) -> Result<()>,
        mut goes_on: impl FnMut(&Batch, &K) -> Result<bool>,
    ) -> Result<()> {
        let mut kept = begin(batch)?;
        for number in 0.. {
            chunk(batch, &mut kept, number)?;
            if !goes_on(batch, &kept)? {
                break;
            }
        }
        Ok(())
    }
    /// Bytes of device memory that [`Backend::capture`] would take for `micro` alone. Nothing is computed. Other shapes of the
    /// same graph cache share these bytes. 0 where [`Device::free_bytes`] is `None`.
    ///
    /// # Errors
    /// As [`Backend::capture`].
    fn foreseen_bytes(
        &self,
        _micro: &MicroBatch<'_>,
        _work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<usize> {
        Ok(0)
    }
    /// Floating-point operations of the matrix products that `work` takes for `micro`. Nothing is computed. `None` where
    /// [`Device::operations`] says it: captured work is counted there by the first batch of its shape.
    ///
    /// # Errors
    /// As [`Backend::capture`].
    fn counted_operations(
        &self,
        _micro: &MicroBatch<'_>,
        _work: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<Option<u64>> {
        Ok(None)
    }
    /// Consecutive ranges of the batch's examples that [`Backend::side_by_side`] can work on at the same time: no op makes
    /// one example's encoder rows depend on another's. One range, of all, on a device whose ops fill it by themselves.
    fn parts(&self, batch: &Batch) -> Vec<Range<usize>> {
        std::iter::once(0..batch.examples()).collect()
    }
    /// Does `work` for each of `parts`, at the same time where the device can, on the backend that it is handed; the results
    /// in the order of `parts`.
    ///
    /// # Errors
    /// The first that one of them fails with.
    fn side_by_side<P: Send, T: Send>(
        &self,
        parts: Vec<P>,
        work: impl Fn(&Self, P) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        parts.into_iter().map(|part| work(self, part)).collect()
    }
    /// Cuts the encoder rows of `batch` at the borders of `parts`, which are what [`Backend::parts`] said: by default one of
    /// all.
    ///
    /// # Errors
    /// No memory for them.
    fn cut(&self, _batch: &Batch, _parts: &[Range<usize>], rows: Self::Rows) -> Result<Vec<Self::Rows>> {
        Ok(vec![rows])
    }
    /// The rows that [`Backend::cut`] would cut so.
    ///
    /// # Errors
    /// No part, and no memory for them.
    fn join(&self, parts: Vec<Self::Rows>) -> Result<Self::Rows> {
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next()) {
            (Some(whole), None) => Ok(whole),
            _ => Err(crate::error::Error::tensor(
                "the parts of a batch",
                "one, of all rows",
                "another number",
                "",
            )),
        }
    }
}
