//! What a device must be able to do: about a dozen fused ops, each with its shapes.
//!
//! The model is written once over [`Backend`]. Every linear layer is frozen, so no op has a weight gradient, and a
//! norm is never an op of its own: its gain is folded into the weights behind it, and what is left, r = 1 / rms, is
//! one number a row that the next projection applies.
//!
//! # Conventions
//! Matrices are row-major. A weight is stored once, as `[out, in]`, and read both ways. `x` is the residual stream,
//! `r` its `[rows, 1]` reciprocal root mean squares. Gradients are `d_<name>`. Output arguments may hold anything on
//! entry unless the op says it adds to them. Shapes are the caller's promise: they are checked where an op is entered
//! and a mismatch is a bug that panics, not an error of input.

mod batch;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dropout;
mod state;

use std::ops::Range;

use crate::error::Result;
pub use batch::{Batch, Example, Objective, Scope, Side};
pub use dropout::{DropoutStep, ELEMENTS_PER_BLOCK, MaskRow, Site, SiteKind, philox};
pub use state::{Group, Mixing, OptimizerStep, Scorer, Segment, StateLayout, StepReport, Tally};

/// The feed-forward's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// max(0, z): one input projection.
    Relu,
    /// gelu(z_0) · z_1 with the tanh form of gelu; the two input projections are stacked.
    GatedGelu,
    /// silu(z_0) · z_1; the two input projections are stacked.
    GatedSilu,
}

impl Activation {
    /// Input projections stacked in the feed-forward's first weight: 1, or 2 when gated.
    pub fn projections(self) -> usize {
        if self == Self::Relu { 1 } else { 2 }
    }
}

/// A mask of one site, or none when nothing is dropped.
pub type Mask<'a> = Option<(&'a DropoutStep, Site)>;

/// How many heads an attention has and how wide each is; H·K need not be D.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// H.
    pub count: usize,
    /// K.
    pub width: usize,
}

impl Heads {
    /// H·K.
    pub fn total(self) -> usize {
        self.count * self.width
    }
}

/// How many rows read a weight at a time: a device may lay it out by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// All encoder rows, hundreds or thousands.
    Many,
    /// Decoder rows.
    Few,
    /// Decoder rows, and single rows by index, which are wanted in f32: the embedding, a gain.
    Lookup,
}

/// What an activation is for: a device may choose its number format by that. The CPU keeps all of them alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The residual stream or its gradient, in f32, and what products read of it.
    Residual,
    /// What products read and write.
    Operand,
    /// The gradient of a projection's output, which carries each row's inner product with that output.
    ProjectionGradient,
    /// f32.
    Float,
    /// The reciprocal root mean square of a row of the given width: one number a row.
    Norm,
}

/// The loss of a pass, read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// For each row of labels, -log p(label); T values.
    pub negative_log_likelihood: Vec<f64>,
    /// For each row, what is learnt from by the batch's [`Objective`]: by default the same; T values.
    pub objective: Vec<f64>,
    /// For each row, the token of the highest logit (ties go to the lowest id); T values.
    pub greedy: Vec<u32>,
}

/// A micro-batch of a training step, as [`Backend::record`] is told of it: all that may differ from one to the next.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a> {
    /// Its examples, with the weights of their label rows.
    pub batch: &'a Batch,
    /// The step's dropout.
    pub dropout: Option<&'a DropoutStep>,
    /// Whether it is the step's first: gradient and tally begin at zero.
    pub first: bool,
    /// Where it is the step's last: what the optimizer then does to each run.
    pub last: Option<&'a [OptimizerStep]>,
}

/// A device that runs the frozen model and its mixture.
pub trait Backend: Sized + 'static {
    /// A frozen matrix `[out, in]`.
    type Weight: Sync;
    /// An activation: a matrix of rows, in a number format that the backend chooses by [`Backend::rows`]'s caller.
    type Rows: Send;
    /// One short row of bias a head, indexed by key - query.
    type PositionBias: Sync;
    /// Frozen source prompts `[S, M, D]` with their pooled keys `[S, D]`.
    type Sources;
    /// Trained state of one or more runs, its gradient and its moments.
    type State;
    /// What a feed-forward's backward needs: one bit an element for ReLU, the pre-activations when gated.
    type FeedForwardKept: Send;
    /// What cross attention's backward needs.
    type CrossKept;
    /// The gradient of the encoder's rows while the decoder's layers bring their parts of it: a device may keep the parts and sum
    /// them at once.
    type SourceGradient;
    /// What the mixture's backward needs.
    type MixKept;
    /// Keys and values of the tokens decoded so far.
    type Cache;
    /// The loss of a pass, on the device until [`Backend::read_loss`] asks.
    type LossKept;
    /// What was recorded of one caller's work, to be issued again for other batches.
    type Recorder: Default;

    /// How far rounding to the format of matrix operands may move a number, relative to it: 2^-24 for f32, 2^-9 for bf16.
    fn operand_rounding(&self) -> f64;
    /// Copies a row-major `[out, in]` matrix to the device.
    fn weight(&self, values: Vec<f32>, out: usize, input: usize, readers: Readers) -> Self::Weight;
    /// Reads one row of a weight back.
    fn weight_row(&self, weight: &Self::Weight, row: usize) -> Vec<f32>;
    /// Bytes of device memory that are free, where that is a thing to run out of by itself: not on the CPU.
    fn free_bytes(&self) -> Option<usize> {
        None
    }
    /// The first thing that went wrong on the device, if anything did: ops do not say so themselves, and what they
    /// return behind a failure means nothing.
    ///
    /// # Errors
    /// That failure.
    fn health(&self) -> Result<()> {
        Ok(())
    }
    /// Does `work` for a micro-batch, or issues again what an earlier time recorded for one of like shape, fed with this
    /// one. Nothing is waited for. One recorder serves one piece of work: whatever else `work` uses must be what it was at
    /// the first call, but for the content of device memory, and what `work` leaves must lie in such memory.
    fn record(&self, recorder: &mut Self::Recorder, micro: &MicroBatch<'_>, work: impl FnMut(&Batch));
    /// Bytes of device memory that [`Backend::record`] would take for `micro` alone. Nothing is computed. Other shapes of the
    /// same recorder share these bytes. 0 where [`Backend::free_bytes`] is `None`.
    fn foreseen_bytes(&self, _micro: &MicroBatch<'_>, _work: impl FnMut(&Batch)) -> usize {
        0
    }
    /// Consecutive stretches of the batch's examples that [`Backend::side_by_side`] can work on at the same time: no op makes
    /// one example's encoder rows depend on another's. One stretch, of all, on a device whose ops fill it by themselves.
    fn parts(&self, batch: &Batch) -> Vec<Range<usize>> {
        std::iter::once(0..batch.examples()).collect()
    }
    /// Does `work` for each of `parts`, at the same time where the device can, on the backend that it is handed; the results
    /// in the order of `parts`.
    fn side_by_side<P: Send, T: Send>(&self, parts: Vec<P>, work: impl Fn(&Self, P) -> T + Sync) -> Vec<T> {
        parts.into_iter().map(|part| work(self, part)).collect()
    }
    /// Cuts the encoder rows of `batch` at the borders of `parts`, which are what [`Backend::parts`] said.
    fn cut(&self, batch: &Batch, parts: &[Range<usize>], rows: Self::Rows) -> Vec<Self::Rows>;
    /// The rows that [`Backend::cut`] would cut so.
    fn join(&self, parts: Vec<Self::Rows>) -> Self::Rows;
    /// An activation of `rows` × `width`, its content unspecified; for [`Format::Norm`], `width` is the width of the
    /// rows that it is of.
    fn rows(&self, rows: usize, width: usize, format: Format) -> Self::Rows;
    /// An activation of `rows` × `width` zeros, in [`Format::Float`].
    fn zeros(&self, rows: usize, width: usize) -> Self::Rows;
    /// Reads an activation back, row-major.
    fn read(&self, rows: &Self::Rows) -> Vec<f64>;
    /// One row of bias a head, `[H, rows[h].len()]`, for key - query from -`reach` on; beyond its ends the end value holds.
    fn position_bias(&self, per_head: Vec<Vec<f32>>, reach: usize) -> Self::PositionBias;
    /// Copies `[S, M, D]` source prompts to the device and pools their keys.
    fn sources(&self, values: &[f32], count: usize, prompt_length: usize, width: usize) -> Self::Sources;
    /// Copies `runs` stacked states of `layout` to the device; gradient and moments start at zero.
    fn state(&self, layout: &StateLayout, values: &[f64], runs: usize) -> Self::State;
    /// Reads parameters, first and second moments back: three flat vectors of all runs.
    fn read_state(&self, state: &Self::State) -> [Vec<f64>; 3];
    /// Overwrites parameters, first and second moments, and the number of updates each run has had.
    fn write_state(&self, state: &mut Self::State, values: [&[f64]; 3], updates: &[u64]);
    /// Updates that each run has had.
    fn updates(&self, state: &Self::State) -> Vec<u64>;
    /// Reads the gradient back, flat, all runs.
    fn read_gradient(&self, state: &Self::State) -> Vec<f64>;
    /// Overwrites the gradient; flat, all runs.
    fn write_gradient(&self, state: &mut Self::State, values: &[f64]);
    /// Whether all of `rows` is finite.
    fn is_finite(&self, rows: &Self::Rows) -> bool;
    /// Floating-point operations of all matrix products so far (a multiply-add is two).
    fn operations(&self) -> u64;

    /// Writes the prompt rows of `x` \[R, D\]: Z_b = P_tgt + sum_j a_j P_j, with a from the pooled input of each
    /// example. `x`'s token rows are left alone.
    fn mix(
        &self,
        mixing: &Mixing,
        table: &Self::Weight,
        sources: Option<&Self::Sources>,
        state: &Self::State,
        batch: &Batch,
        x: &mut Self::Rows,
    ) -> Self::MixKept;
    /// Adds to the state's gradient, from the prompt rows of `d_x` \[R, D\].
    fn mix_backward(
        &self,
        mixing: &Mixing,
        sources: Option<&Self::Sources>,
        batch: &Batch,
        kept: &Self::MixKept,
        d_x: &Self::Rows,
        state: &mut Self::State,
    );
    /// The mixture's weights: `[B, S + 1]`, for the token scorer `[B, M, S + 1]`; the target prompt comes last.
    fn attention(&self, kept: &Self::MixKept) -> Vec<f64>;

    /// Writes the token rows of `x` (the decoder's are all token rows) from `table`'s rows, drops by `mask` over prompt
    /// and token rows alike, and writes r of every row with `epsilon`.
    #[allow(clippy::too_many_arguments)]
    fn embed(
        &self,
        table: &Self::Weight,
        side: Side,
        batch: &Batch,
        mask: Mask<'_>,
        epsilon: f64,
        x: &mut Self::Rows,
        r: &mut Self::Rows,
    );
    /// Drops the prompt rows of `d_x` by the embedding's mask.
    fn embed_backward(&self, batch: &Batch, mask: Mask<'_>, d_x: &mut Self::Rows);

    /// z = r · x W^T: a projection behind a folded norm. x \[rows, in\], z \[rows, out\].
    fn project(
        &self,
        batch: &Batch,
        side: Side,
        x: &Self::Rows,
        r: &Self::Rows,
        weight: &Self::Weight,
        z: &mut Self::Rows,
    );
    /// d_x += r·G - r²·(<G, x·r> / D)·x with G = dz W, on the rows of `scope`. Under [`Scope::Prompt`] `dz` holds
    /// B·M rows, `d_x`, `x` and `r` all R. Where x is what a ReLU feed-forward made of `below`, and its backward comes next,
    /// a device may find <d_x, x - below> on the way.
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
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
    );
    /// x_next = x + mask(y W^T), r_next = 1 / rms(x_next): the end of a sublayer. y \[rows, in\].
    #[allow(clippy::too_many_arguments)]
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
    );
    /// d_y = mask(d_x) W. Where `y` is what these heads of a self attention gave, whose backward comes next, a device may find
    /// <d_y, y> of each head on the way.
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    fn add_project_backward(
        &self,
        batch: &Batch,
        side: Side,
        d_x: &Self::Rows,
        weight: &Self::Weight,
        mask: Mask<'_>,
        y: Option<(&Self::Rows, Heads)>,
        d_y: &mut Self::Rows,
    );

    /// The whole feed-forward sublayer: x_next = x + output_mask(inner_mask(act(r·x W_in^T)) W_out^T), and r_next.
    /// `w_in` is \[F, D\], or \[2F, D\] when gated; `w_out` \[D, F\]. Keeps what backward needs if `keep`.
    #[allow(clippy::too_many_arguments)]
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
    ) -> Option<Self::FeedForwardKept>;
    /// Turns the gradient of x_next, in `d_x`, into that of x. ReLU is positively homogeneous, so that the inner product
    /// that its norm's gradient needs is <d_x, x_next - x>.
    #[allow(clippy::too_many_arguments)]
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
    );

    /// o = softmax(q k^T + bias) v per example and head, masked by `mask` (one site a head). `qkv` is
    /// \[rows, 3·H·K\], `o` \[rows, H·K\], `log_sum_exp` \[rows, H\]. No 1/sqrt(K). The decoder's side is causal.
    #[allow(clippy::too_many_arguments)]
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
    );
    /// d_qkv from d_o. Under [`Scope::Prompt`] d_q comes for prompt queries, d_k and d_v for prompt keys only, and
    /// `d_qkv` has B·M rows.
    #[allow(clippy::too_many_arguments)]
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
    );

    /// h = mask(x · r · gain · scale): a stack's final norm. Without `gain` it was folded away.
    #[allow(clippy::too_many_arguments)]
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
    );
    /// d_x from d_h.
    #[allow(clippy::too_many_arguments)]
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
    );

    /// Cross attention over the encoder's rows h \[R, D\]: q \[T, H·K\], o \[T, H·K\], w_k and w_v \[H·K, D\]. No
    /// position bias. Absorbed where targets are short (scores q W_k · h, no keys and values), else through projected
    /// keys and values.
    fn cross_attention(
        &self,
        batch: &Batch,
        cross: &CrossAttention<'_, Self>,
        q: &Self::Rows,
        h: &Self::Rows,
        o: &mut Self::Rows,
        keep: bool,
    ) -> Option<Self::CrossKept>;
    /// q \[T, H·K\] = r · x W^T for the [`Backend::cross_attention`] that comes next with `cross`: a device may begin it here.
    fn cross_project(
        &self,
        batch: &Batch,
        _cross: &CrossAttention<'_, Self>,
        x: &Self::Rows,
        r: &Self::Rows,
        weight: &Self::Weight,
        q: &mut Self::Rows,
    ) {
        self.project(batch, Side::Decoder, x, r, weight, q);
    }
    /// d_o \[T, H·K\] = mask(d_x) W for the [`Backend::cross_attention_backward`] that comes next with `cross`.
    fn cross_project_backward(
        &self,
        batch: &Batch,
        _cross: &CrossAttention<'_, Self>,
        d_x: &Self::Rows,
        weight: &Self::Weight,
        mask: Mask<'_>,
        d_o: &mut Self::Rows,
    ) {
        self.add_project_backward(batch, Side::Decoder, d_x, weight, mask, None, d_o);
    }
    /// The gradient of the encoder's rows, \[R, D\], to which no layer has brought its part yet.
    fn source_gradient(&self, batch: &Batch, width: usize) -> Self::SourceGradient;
    /// d_q from d_o, where it is wanted, and this layer's part of d_h. `o` is what forward wrote.
    #[allow(clippy::too_many_arguments)]
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
    );
    /// d_h \[R, D\]: the sum of all layers' parts, in the order in which they came.
    fn source_rows(&self, batch: &Batch, d_h: Self::SourceGradient) -> Self::Rows;

    /// The frozen head and cross entropy in one pass over vocabulary chunks, no logits kept: hidden \[T, D\], against the
    /// batch's labels and by its objective. With `d_hidden`, also its gradient, for plain cross entropy
    /// d_hidden = w_t·(sum_v p_v E_v - E_label) with the batch's row weights w: attention with K = V = E.
    fn loss(
        &self,
        batch: &Batch,
        hidden: &Self::Rows,
        head: &Head<'_, Self>,
        d_hidden: Option<&mut Self::Rows>,
    ) -> Self::LossKept;
    /// Reads a loss back.
    fn read_loss(&self, kept: &Self::LossKept) -> Loss;
    /// All logits of hidden, \[T, V\]: for verification only.
    fn logits(&self, batch: &Batch, hidden: &Self::Rows, head: &Self::Weight) -> Self::Rows;

    /// Begins a step: clears the gradient and the tally of all runs.
    fn begin_step(&self, state: &mut Self::State);
    /// Adds a pass's part to each run's tally: the objectives of its label rows by their weights, and the entropy
    /// -sum_j a_j ln a_j of each of its rows of attention.
    fn tally(&self, batch: &Batch, loss: &Self::LossKept, mix: &Self::MixKept, state: &mut Self::State);
    /// Reads the tally of the step so far back, one a run.
    fn read_tally(&self, state: &Self::State) -> Vec<Tally>;
    /// Overwrites the tally, one a run.
    fn write_tally(&self, state: &mut Self::State, tallies: &[Tally]);
    /// AdamW with decoupled decay and clip by global norm, by one of `steps` a run. A run whose tallied loss or whose
    /// gradient is not finite is left as it is, and so it is by every later call until [`Backend::reports`] has told of it.
    fn optimizer_step(&self, state: &mut Self::State, steps: &[OptimizerStep]);
    /// How many optimizer steps may be issued between two calls of [`Backend::reports`]: the device works on while the
    /// host prepares so many.
    fn steps_ahead(&self) -> usize {
        1
    }
    /// Waits for what every optimizer step since the last call did: for each step, in order, one report a run.
    fn reports(&self, state: &mut Self::State) -> Vec<Vec<StepReport>>;

    /// An empty cache for `layers` decoder layers of `examples` examples, up to `length` tokens each.
    fn cache(&self, layers: usize, examples: usize, length: usize, heads: Heads) -> Self::Cache;
    /// Self attention of one new token an example against all tokens of the cache before it, which it joins: `qkv`
    /// \[B, 3·H·K\], `o` \[B, H·K\]. The last layer's call completes the token.
    #[allow(clippy::too_many_arguments)]
    fn decode_self_attention(
        &self,
        layer: usize,
        position: usize,
        heads: Heads,
        bias: &Self::PositionBias,
        qkv: &Self::Rows,
        cache: &mut Self::Cache,
        o: &mut Self::Rows,
    );
}

/// The frozen head.
pub struct Head<'a, B: Backend> {
    /// E, \[V, D\].
    pub weight: &'a B::Weight,
    /// The mean of E's rows, \[1, D\], for [`Readers::Lookup`]: the mean of a row's logits is one product with it.
    pub mean: &'a B::Weight,
}

/// The frozen parts and masks of a feed-forward sublayer.
pub struct FeedForward<'a, B: Backend> {
    /// \[F, D\], or \[2F, D\] when gated, gain folded in.
    pub w_in: &'a B::Weight,
    /// \[D, F\].
    pub w_out: &'a B::Weight,
    /// What stands between.
    pub activation: Activation,
    /// Dropout after the activation.
    pub inner_mask: Mask<'a>,
    /// Dropout of the sublayer's output.
    pub output_mask: Mask<'a>,
    /// Epsilon of the norm that reads x_next.
    pub epsilon: f64,
}

/// The frozen parts and mask of a cross attention.
pub struct CrossAttention<'a, B: Backend> {
    /// Head count and width.
    pub heads: Heads,
    /// \[H·K, D\], the encoder's final gain folded in.
    pub w_k: &'a B::Weight,
    /// \[H·K, D\], the encoder's final gain folded in.
    pub w_v: &'a B::Weight,
    /// Dropout of the probabilities; one site a head.
    pub mask: Mask<'a>,
}
