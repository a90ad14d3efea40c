//! The mixture of prompts: `kernels/mix.cu`.

use cudarc::driver::{CudaSlice, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, ValidAsZeroBits};

use super::packing::{Described, DropoutMask};
use super::{MixArguments, NORM_COLUMNS, check_rows, check_width, copy_of};
use crate::backend::cuda::runtime::arguments::mix::{
    KEY_COLUMNS, MIXED, MIXED_THREADS, SCORE_THREADS, SCORE_WARPS, ScorerKind, THREADS, WARPS,
};
use crate::backend::cuda::runtime::capture::check_not_capturing;
use crate::backend::cuda::runtime::error::driver;
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::{Operands, WriteOperand, check_stream};
use crate::backend::ops::{check_mixture, pooled_vocabulary};
use crate::backend::{Mixing, Scorer, Side, StateLayout};
use crate::error::{Error, Result};

const FILE: &str = "mix";
/// The most source prompts of a mixture.
pub const MAX_SOURCES: usize = 1024;
/// The most bytes of shared memory that the scorer's rows may take: all a block has without asking.
const SCORER_BYTES: usize = 48 * 1024;
/// Columns that a block of `mix_rows` writes, four a thread.
const MIXED_COLUMNS: usize = 4 * MIXED_THREADS;

/// Fails if there are more sources than a mixture takes.
pub(crate) fn check_source_count(count: usize) -> Result<()> {
    if count <= MAX_SOURCES {
        return Ok(());
    }
    Err(Error::tensor("the sources", format!("at most {MAX_SOURCES}"), count.to_string(), ""))
}

/// The keys of prompts \[S, M, D\], \[S, D\]: each column's largest number over the M rows. Sources are frozen, so theirs are
/// made once.
pub fn pooled_keys(prompts: &[f32], prompt_length: usize, width: usize) -> Vec<f32> {
    let mut keys = Vec::with_capacity(prompts.len() / prompt_length.max(1));
    for prompt in prompts.chunks_exact((prompt_length * width).max(1)) {
        keys.extend((0..width).map(|column| {
            let rows = prompt.chunks_exact(width).map(|row| row[column]);
            rows.reduce(|most, value| if value > most { value } else { most }).unwrap_or(0.0)
        }));
    }
    keys
}

/// Frozen source prompts on the device.
#[derive(Clone, Copy)]
pub struct FrozenSources<'a> {
    /// \[S, M, D\] in f32.
    pub prompts: &'a dyn DevicePtr<f32>,
    /// Their [`pooled_keys`], \[S, D\] in f32.
    pub keys: &'a dyn DevicePtr<f32>,
}

/// Operands of the forward pass.
pub struct MixForward<'a> {
    /// The embedding table whose rows of each example's tokens are pooled, \[V, D\] in f32.
    pub table: &'a dyn DevicePtr<f32>,
    /// None for a mixture without sources.
    pub sources: Option<FrozenSources<'a>>,
    /// The trained state, \[runs, length of the layout\] in f32.
    pub values: &'a dyn DevicePtr<f32>,
    /// \[encoder rows, D\] in f32: the M prompt rows of every example are written, its token rows left alone.
    pub x: &'a mut dyn DevicePtrMut<f32>,
    /// The same rows in bf16, which products read.
    pub copy: Option<&'a mut dyn WriteOperand>,
    /// \[encoder rows, ceil(D / 64)\] in f32: the rows' sums of squares of 64 columns each, by which the next product norms them.
    pub partials: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// Dropout of the rows: the embedding's.
    pub mask: DropoutMask<'a>,
}

/// Operands of the backward pass.
pub struct MixBackward<'a> {
    /// As forward read them.
    pub sources: Option<FrozenSources<'a>>,
    /// As forward read them.
    pub values: &'a dyn DevicePtr<f32>,
    /// \[encoder rows, D\] in f32; the prompt rows are read.
    pub d_x: &'a dyn DevicePtr<f32>,
    /// \[runs, length of the layout\] in f32, which is added to.
    pub gradient: &'a mut dyn DevicePtrMut<f32>,
}

/// Adds what a launch reads; nothing where the mixture has none of it.
fn read<'a, T>(
    operands: &mut Operands<'a>,
    what: &str,
    from: &'a dyn DevicePtr<T>,
    length: usize,
) -> Result<u64> {
    if length == 0 { Ok(0) } else { operands.read(what, from, length) }
}

/// Adds what a launch writes; nothing where the mixture has none of it.
fn write<'a, T>(
    operands: &mut Operands<'a>,
    what: &str,
    to: &'a mut dyn DevicePtrMut<T>,
    length: usize,
) -> Result<u64> {
    if length == 0 { Ok(0) } else { operands.write(what, to, length) }
}

/// Numbers of what a mixture saves for backward and of its scratch memory; 0 of what its scorer does not have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    /// The mixture's weights, \[B, P\] or \[B, M, P\], and their scores.
    pub(crate) attention: usize,
    /// A row of D an example.
    rows: usize,
    /// A row of Q an example.
    scored_bottleneck: usize,
    /// One an example.
    examples: usize,
    /// Keys of the target prompts of all runs.
    target_keys: usize,
    /// Partial gradients of the weights, by prompt row.
    d_attention: usize,
    /// As `attention`, where weights have a gradient.
    d_scores: usize,
}

/// What backward needs of the forward pass, in memory of any kind.
#[derive(Debug)]
pub(crate) struct Saved<F, I> {
    attention: F,
    scores: F,
    pooled: F,
    down: F,
    standardised: F,
    reciprocal_deviation: F,
    h: F,
    target_keys: F,
    target_rows: I,
}

impl<F, I> Saved<F, I> {
    /// In memory from `floats` and `integers`, which take a length.
    pub(crate) fn new(
        lengths: &Lengths,
        floats: impl Fn(usize) -> Result<F>,
        integers: impl Fn(usize) -> Result<I>,
    ) -> Result<Self> {
        Ok(Self {
            attention: floats(lengths.attention)?,
            scores: floats(lengths.attention)?,
            pooled: floats(lengths.rows)?,
            down: floats(lengths.scored_bottleneck)?,
            standardised: floats(lengths.rows)?,
            reciprocal_deviation: floats(lengths.examples)?,
            h: floats(lengths.rows)?,
            target_keys: floats(lengths.target_keys)?,
            target_rows: integers(lengths.target_keys)?,
        })
    }

    /// The mixture's weights, \[B, P\], or \[B, M, P\] of the token scorer.
    pub(crate) fn attention(&self) -> &F {
        &self.attention
    }
}

impl<F: DevicePtrMut<f32>, I: DevicePtrMut<i32>> Saved<F, I> {
    /// Adds it to a forward pass, which writes it.
    fn write<'a>(&'a mut self, lengths: &Lengths, operands: &mut Operands<'a>) -> Result<MixArguments> {
        let deviations = &mut self.reciprocal_deviation;
        Ok(MixArguments {
            attention: write(operands, "attention", &mut self.attention, lengths.attention)?,
            scores: write(operands, "scores", &mut self.scores, lengths.attention)?,
            pooled: write(operands, "pooled", &mut self.pooled, lengths.rows)?,
            down: write(operands, "down", &mut self.down, lengths.scored_bottleneck)?,
            standardised: write(operands, "standardised", &mut self.standardised, lengths.rows)?,
            reciprocal_deviation: write(operands, "reciprocal_deviation", deviations, lengths.examples)?,
            h: write(operands, "h", &mut self.h, lengths.rows)?,
            target_keys: write(operands, "target_keys", &mut self.target_keys, lengths.target_keys)?,
            target_rows: write(operands, "target_rows", &mut self.target_rows, lengths.target_keys)?,
            ..MixArguments::default()
        })
    }
}

impl<F: DevicePtr<f32>, I: DevicePtr<i32>> Saved<F, I> {
    /// Adds it to a backward pass, which reads it.
    fn read<'a>(&'a self, lengths: &Lengths, operands: &mut Operands<'a>) -> Result<MixArguments> {
        let deviations = &self.reciprocal_deviation;
        Ok(MixArguments {
            attention: read(operands, "attention", &self.attention, lengths.attention)?,
            scores: read(operands, "scores", &self.scores, lengths.attention)?,
            pooled: read(operands, "pooled", &self.pooled, lengths.rows)?,
            down: read(operands, "down", &self.down, lengths.scored_bottleneck)?,
            standardised: read(operands, "standardised", &self.standardised, lengths.rows)?,
            reciprocal_deviation: read(operands, "reciprocal_deviation", deviations, lengths.examples)?,
            h: read(operands, "h", &self.h, lengths.rows)?,
            target_keys: read(operands, "target_keys", &self.target_keys, lengths.target_keys)?,
            target_rows: read(operands, "target_rows", &self.target_rows, lengths.target_keys)?,
            ..MixArguments::default()
        })
    }
}

/// What backward works in, in memory of any kind.
#[derive(Debug)]
pub(crate) struct Scratch<F> {
    d_attention: F,
    d_scores: F,
    d_h: F,
    d_v: F,
    d_down: F,
}

impl<F> Scratch<F> {
    /// In memory from `floats`, which takes a length.
    pub(crate) fn new(lengths: &Lengths, floats: impl Fn(usize) -> Result<F>) -> Result<Self> {
        Ok(Self {
            d_attention: floats(lengths.d_attention)?,
            d_scores: floats(lengths.d_scores)?,
            d_h: floats(lengths.rows)?,
            d_v: floats(lengths.rows)?,
            d_down: floats(lengths.scored_bottleneck)?,
        })
    }
}

/// A mixture for the examples of a batch, and the one place that launches its kernels. The caller brings what they save for
/// backward and their scratch memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mixture<'a> {
    batch: Described<'a>,
    mixing: &'a Mixing,
    layout: &'a StateLayout,
    runs: usize,
    source_count: usize,
}

impl<'m> Mixture<'m> {
    /// Of `source_count` sources and the stacked states of `runs` runs.
    ///
    /// # Errors
    /// A batch, layout, width or number of sources that does not fit.
    pub(crate) fn new(
        batch: Described<'m>,
        mixing: &'m Mixing,
        layout: &'m StateLayout,
        source_count: usize,
        runs: usize,
    ) -> Result<Self> {
        let (length, width) = (layout.prompt_length, layout.width);
        check_source_count(source_count)?;
        let sources = (source_count > 0).then_some([source_count, length, width]);
        check_mixture(mixing, batch.batch(), layout, runs, sources)?;
        check_width(width)?;
        let mixture = Self { batch, mixing, layout, runs, source_count };
        let shared = mixture.scores_shared();
        if mixing.scorer.is_some() && shared > SCORER_BYTES {
            let found =
                format!("{shared} bytes for a width of {width} and a rank of {}", layout.bottleneck_dim);
            return Err(Error::tensor(
                "the scorer",
                format!("rows of at most {SCORER_BYTES} bytes"),
                found,
                "",
            ));
        }
        Ok(mixture)
    }

    /// P.
    fn prompts(&self) -> usize {
        self.source_count + usize::from(!self.mixing.without_target)
    }

    fn examples(&self) -> usize {
        self.batch.batch().examples()
    }

    /// Whether weights come from scores at all.
    fn is_scored(&self) -> bool {
        self.mixing.scorer.is_some_and(|scorer| scorer != Scorer::Uniform)
    }

    /// How much it saves for backward, and how much scratch memory it needs.
    pub(crate) fn lengths(&self) -> Lengths {
        let (layout, prompts) = (self.layout, self.prompts());
        let attention = self.examples() * self.mixing.attention_rows(layout.prompt_length) * prompts;
        let scored = if self.is_scored() { self.examples() } else { 0 };
        let has_keys = self.mixing.scorer.is_some_and(Scorer::reads_input) && !self.mixing.without_target;
        Lengths {
            attention,
            rows: scored * layout.width,
            scored_bottleneck: scored * layout.bottleneck_dim,
            examples: scored,
            target_keys: if has_keys { self.runs * layout.targets * layout.width } else { 0 },
            d_attention: scored * layout.prompt_length * prompts,
            d_scores: if self.is_scored() { attention } else { 0 },
        }
    }

    fn encoder_rows(&self) -> usize {
        self.batch.batch().rows(Side::Encoder)
    }

    /// Bytes of shared memory of `mix_scores`: x_b, h, W_down x_b, and a sum a warp.
    fn scores_shared(&self) -> usize {
        (2 * self.layout.width + self.layout.bottleneck_dim + SCORE_WARPS) * size_of::<f32>()
    }

    /// `saved` with the shape, and what both passes read.
    fn arguments<'a>(
        &self,
        operands: &mut Operands<'a>,
        sources: Option<FrozenSources<'a>>,
        values: &'a dyn DevicePtr<f32>,
        saved: &MixArguments,
    ) -> Result<MixArguments>
    where
        'm: 'a,
    {
        let Self { batch, mixing, layout, runs, source_count } = *self;
        let (length, width) = (layout.prompt_length, layout.width);
        let (prompts, keys) = match sources {
            Some(FrozenSources { prompts, keys }) => (
                read(operands, "the sources", prompts, source_count * length * width)?,
                read(operands, "the sources' keys", keys, source_count * width)?,
            ),
            None if source_count == 0 => (0, 0),
            None => return Err(Error::tensor("the sources", source_count.to_string(), "none", "")),
        };
        let start = |name: &str| layout.segment(name).map_or(-1, |segment| segment.range.start as i64);
        Ok(MixArguments {
            batch: batch.read(operands)?,
            sources: prompts,
            source_keys: keys,
            values: read(operands, "values", values, runs * layout.len())?,
            state_length: layout.len() as i64,
            target_prompts: start("target_prompts"),
            w_down: start("w_down"),
            w_up: start("w_up"),
            weight: start("weight"),
            norm_weight: start("norm_weight"),
            norm_bias: start("norm_bias"),
            log_temperature: start("log_temperature"),
            logits: start("logits"),
            input_mean: start("input_mean"),
            input_scale: start("input_scale"),
            source_count: source_count as i32,
            prompts: self.prompts() as i32,
            scorer: kind(mixing.scorer) as i32,
            length: length as i32,
            width: width as i32,
            bottleneck_dim: layout.bottleneck_dim as i32,
            targets: layout.targets as i32,
            runs: runs as i32,
            temperature: mixing.temperature as f32,
            layer_norm_epsilon: mixing.layer_norm_epsilon as f32,
            ..*saved
        })
    }

    /// Launches the forward pass: weights, and from them the prompt rows.
    ///
    /// # Errors
    /// A length that does not fit, a table of fewer rows than the batch's vocabulary, and what the driver says.
    pub(crate) fn forward<F: DevicePtrMut<f32>, I: DevicePtrMut<i32>>(
        &self,
        kernels: &Kernels,
        of: MixForward<'_>,
        saved: &mut Saved<F, I>,
    ) -> Result<()> {
        let (layout, lengths, examples) = (self.layout, self.lengths(), self.examples());
        let (length, width) = (layout.prompt_length, layout.width);
        check_rows("table", pooled_vocabulary(self.batch.batch()), width, of.table.len())?;
        let (rows, mut operands) = (self.encoder_rows(), kernels.operands());
        let saved = saved.write(&lengths, &mut operands)?;
        let arguments = MixArguments {
            table: operands.read("table", of.table, of.table.len())?,
            x: operands.write("x", of.x, rows * width)?,
            copy: copy_of(&mut operands, of.copy, rows * width)?,
            partials: match of.partials {
                Some(partials) => {
                    operands.write("partials", partials, rows * width.div_ceil(NORM_COLUMNS))?
                }
                None => 0,
            },
            mask: of.mask.read(&mut operands)?,
            ..self.arguments(&mut operands, of.sources, of.values, &saved)?
        };
        let launch = |name, grid: [usize; 3], threads: usize, shared: usize| {
            let (kernel, grid) = (Kernel { file: FILE, name }, grid.map(|blocks| blocks as u32));
            // SAFETY: every length was checked against the shape, which fits the batch and its tokens the table.
            unsafe { kernels.launch(kernel, grid, threads as u32, shared as u32, &arguments, &operands) }
        };
        if let Some(scorer) = self.mixing.scorer {
            if lengths.target_keys > 0 {
                let grid = [width.div_ceil(KEY_COLUMNS), self.runs * layout.targets, 1];
                launch("target_keys", grid, THREADS, 0)?;
            }
            launch("mix_scores", [examples, 1, 1], SCORE_THREADS, self.scores_shared())?;
            if scorer == Scorer::Token {
                launch("token_scores", [length, examples.div_ceil(WARPS), 1], THREADS, 0)?;
            }
        }
        let grid = [length, width.div_ceil(MIXED_COLUMNS), examples.div_ceil(MIXED)];
        launch("mix_rows", grid, MIXED_THREADS, 0)
    }

    /// Launches the backward pass: what the prompt rows of d_x add to the state's gradient.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub(crate) fn backward<F: DevicePtr<f32> + DevicePtrMut<f32>, I: DevicePtr<i32>>(
        &self,
        kernels: &Kernels,
        of: MixBackward<'_>,
        saved: &Saved<F, I>,
        scratch: &mut Scratch<F>,
    ) -> Result<()> {
        let (layout, lengths, examples) = (self.layout, self.lengths(), self.examples());
        let (width, mut operands) = (layout.width, kernels.operands());
        let saved = saved.read(&lengths, &mut operands)?;
        let arguments = MixArguments {
            gradient: write(&mut operands, "gradient", of.gradient, self.runs * layout.len())?,
            x: operands.read("d_x", of.d_x, self.encoder_rows() * width)?,
            d_attention: write(&mut operands, "d_attention", &mut scratch.d_attention, lengths.d_attention)?,
            d_scores: write(&mut operands, "d_scores", &mut scratch.d_scores, lengths.d_scores)?,
            d_h: write(&mut operands, "d_h", &mut scratch.d_h, lengths.rows)?,
            d_v: write(&mut operands, "d_v", &mut scratch.d_v, lengths.rows)?,
            d_down: write(&mut operands, "d_down", &mut scratch.d_down, lengths.scored_bottleneck)?,
            ..self.arguments(&mut operands, of.sources, of.values, &saved)?
        };
        let launch = |name, grid: [usize; 3], threads: usize, shared: usize| {
            let (kernel, grid) = (Kernel { file: FILE, name }, grid.map(|blocks| blocks as u32));
            // SAFETY: every length was checked against the shape, which fits the batch.
            unsafe { kernels.launch(kernel, grid, threads as u32, shared as u32, &arguments, &operands) }
        };
        if self.is_scored() {
            let grid = [layout.prompt_length, examples.div_ceil(WARPS), 1];
            launch("mix_d_attention", grid, THREADS, 0)?;
            let shared = (width + SCORE_WARPS) * size_of::<f32>();
            launch("mix_d_scores", [examples, 1, 1], SCORE_THREADS, shared)?;
        }
        launch("mix_d_state", [layout.len().div_ceil(THREADS), self.runs, 1], THREADS, 0)
    }
}

/// As kernels number scorers.
fn kind(scorer: Option<Scorer>) -> ScorerKind {
    match scorer {
        None => ScorerKind::PlainPrompt,
        Some(Scorer::Bottleneck) => ScorerKind::Bottleneck,
        Some(Scorer::Linear) => ScorerKind::Linear,
        Some(Scorer::Dot) => ScorerKind::Dot,
        Some(Scorer::Token) => ScorerKind::Token,
        Some(Scorer::Uniform) => ScorerKind::Uniform,
        Some(Scorer::Constant) => ScorerKind::Constant,
    }
}

/// The mixture of prompts for one batch, all in f32: pool, scorer, scores, softmax and interpolation, and back.
///
/// The trained state of each run is one flat vector that a [`StateLayout`] cuts up; runs are stacked. It holds what backward
/// needs of the forward pass before it, and what backward works in: launches of one `PromptMix` belong on one stream.
///
/// Uniform weights give the mean of the sources, here 1 and 3, and the target, here 2, to which the target is added:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use promptmix::backend::{Batch, Example, Mixing, Scorer, StateLayout};
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::mix::{FrozenSources, MixForward, PromptMix, pooled_keys};
/// use promptmix::cuda::{DropoutMask, Kernels, Packed};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let example = Example { source: vec![0], target: vec![1], ..Example::default() };
/// // A prompt row before each example's tokens.
/// let packed = Packed::new(stream, Batch::pack(&[example], 1, 0, 2)?)?;
/// let mixing = Mixing { scorer: Some(Scorer::Uniform), ..Mixing::plain() };
/// let layout = StateLayout::new(&mixing, 1, 1, 8, 0, false);
/// let prompts = [[1.0_f32; 8], [3.0; 8]].concat();
/// let keys = stream.clone_htod(&pooled_keys(&prompts, 1, 8))?;
/// let prompts = stream.clone_htod(&prompts)?;
/// let (values, table) = (stream.clone_htod(&[2.0_f32; 8])?, stream.clone_htod(&[0.0_f32; 2 * 8])?);
/// let mut x = stream.clone_htod(&[f32::NAN; 2 * 8])?;
/// let mut mix = PromptMix::new(&kernels, packed.described(), &mixing, &layout, 2, 1)?;
/// let sources = Some(FrozenSources { prompts: &prompts, keys: &keys });
/// let (copy, partials, mask) = (None, None, DropoutMask::default());
/// let of = MixForward { table: &table, sources, values: &values, x: &mut x, copy, partials, mask };
/// mix.forward(&kernels, of)?;
/// assert!((stream.clone_dtoh(&x)?[0] - 4.0).abs() < 1e-5);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PromptMix<'a> {
    batch: Described<'a>,
    mixing: Mixing,
    layout: StateLayout,
    runs: usize,
    source_count: usize,
    lengths: Lengths,
    saved: Saved<CudaSlice<f32>, CudaSlice<i32>>,
    scratch: Scratch<CudaSlice<f32>>,
}

impl<'a> PromptMix<'a> {
    /// For the examples of `batch`, whose prompts are as long as the layout's, `source_count` sources (up to 1,024) and the
    /// stacked state of `runs` runs. D must be a multiple of 8, and a scorer's 2·D + Q at most 12,256.
    ///
    /// # Errors
    /// Too many sources, a batch, width or layout that does not fit the mixture, and what the driver says.
    pub fn new(
        kernels: &Kernels,
        batch: Described<'a>,
        mixing: &Mixing,
        layout: &StateLayout,
        source_count: usize,
        runs: usize,
    ) -> Result<Self> {
        fn room<T: DeviceRepr + ValidAsZeroBits>(kernels: &Kernels, length: usize) -> Result<CudaSlice<T>> {
            // A slice of no numbers cannot be made.
            let room = kernels.stream().alloc_zeros(length.max(1));
            room.map_err(|error| driver("prepare a mixture", error))
        }
        check_not_capturing(kernels.stream(), "make a PromptMix")?;
        let lengths = Mixture::new(batch, mixing, layout, source_count, runs)?.lengths();
        Ok(Self {
            batch,
            mixing: mixing.clone(),
            layout: layout.clone(),
            runs,
            source_count,
            lengths,
            saved: Saved::new(&lengths, |length| room(kernels, length), |length| room(kernels, length))?,
            scratch: Scratch::new(&lengths, |length| room(kernels, length))?,
        })
    }

    fn check_stream(&self, kernels: &Kernels) -> Result<()> {
        check_stream("a PromptMix with its scratch", self.saved.attention().stream(), kernels.stream())
    }

    /// The weights of the last forward pass: \[B, P\], or \[B, M, P\] of the token scorer, P = S + 1 with the target last (S
    /// without it); nothing of a plain prompt.
    pub fn attention(&self) -> CudaView<'_, f32> {
        self.saved.attention().slice(0..self.lengths.attention)
    }

    /// Launches the forward pass: the prompt rows of x.
    ///
    /// Costs B·M·(S + 1)·D multiply-adds for the rows, 2·D·Q + (S + 1)·D an example for the scores of the bottleneck; moves
    /// the sources once for sixteen examples and 4·B·M·D bytes out, 6·B·M·D + B·M·D / 16 with copy and partial sums.
    ///
    /// # Errors
    /// A length that does not fit, a table of fewer rows than the batch's vocabulary, and what the driver says.
    pub fn forward(&mut self, kernels: &Kernels, of: MixForward<'_>) -> Result<()> {
        self.check_stream(kernels)?;
        let Self { batch, mixing, layout, runs, source_count, saved, .. } = self;
        let mixture = Mixture { batch: *batch, mixing, layout, runs: *runs, source_count: *source_count };
        mixture.forward(kernels, of, saved)
    }

    /// Launches the backward pass: adds to the gradient what follows from d_x, after the last forward pass. No atomics.
    ///
    /// Costs B·M·(S + 2)·D multiply-adds for the weights and the target, B·2·D·Q for the bottleneck; moves d_x twice.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub fn backward(&mut self, kernels: &Kernels, of: MixBackward<'_>) -> Result<()> {
        self.check_stream(kernels)?;
        let Self { batch, mixing, layout, runs, source_count, saved, scratch, .. } = self;
        let mixture = Mixture { batch: *batch, mixing, layout, runs: *runs, source_count: *source_count };
        mixture.backward(kernels, of, saved, scratch)
    }
}
