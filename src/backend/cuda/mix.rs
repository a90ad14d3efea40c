//! The mixture of prompts: `kernels/mix.cu`.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DeviceRepr, ValidAsZeroBits};

use super::Cuda;
use super::arguments::mix::{MIXED, MIXED_THREADS, MixArguments, SCORE_THREADS, ScorerKind, THREADS, WARPS};
use super::failure::driver;
use super::kernels::{Kernel, Kernels};
use super::memory::{Buffer, address, address_mut, check_length};
use super::optimizer::State;
use super::rows::{Rows, WIDTH_MULTIPLE, Weight};
use super::sequences::Packed;
use crate::backend::{Batch, Mixing, Scorer, Side, StateLayout};
use crate::error::{Error, Result};

/// The most source prompts of a mixture.
pub const MOST_SOURCES: usize = 1024;
/// The most bytes of shared memory that the scorer's rows may take: all a block has without asking.
const SCORER_BYTES: usize = 48 * 1024;

/// Columns that a block of `mix_rows` writes: four a thread.
const MIXED_COLUMNS: usize = 4 * MIXED_THREADS;

/// Frozen source prompts \[S, M, D\] and their pooled keys \[S, D\], in f32.
#[derive(Debug)]
pub struct Sources {
    count: usize,
    prompt_length: usize,
    width: usize,
    values: Buffer<f32>,
    keys: Buffer<f32>,
}

impl Sources {
    pub(super) fn new(cuda: &Cuda, values: &[f32], count: usize, prompt_length: usize, width: usize) -> Self {
        assert_eq!(values.len(), count * prompt_length * width, "sources [S, M, D]");
        let keys = pooled_keys(values, prompt_length, width);
        let mut sources = Self {
            count,
            prompt_length,
            width,
            values: cuda.allocate(values.len()),
            keys: cuda.allocate(keys.len()),
        };
        cuda.attempt(|| {
            check_sources(count)?;
            cuda.upload(values, &mut sources.values)?;
            cuda.upload(&keys, &mut sources.keys)
        });
        sources
    }

    /// The sources' numbers as the device holds them: they never change.
    pub fn read(&self, cuda: &Cuda) -> Vec<f32> {
        cuda.download(&self.values, self.values.len())
    }
}

fn check_sources(count: usize) -> Result<()> {
    if count <= MOST_SOURCES {
        return Ok(());
    }
    Err(Error::tensor("the sources", format!("at most {MOST_SOURCES}"), count.to_string(), ""))
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

/// What the mixture's backward needs.
#[derive(Debug)]
pub struct MixKept {
    attention: Buffer<f32>,
    scores: Buffer<f32>,
    pooled: Buffer<f32>,
    down: Buffer<f32>,
    standardised: Buffer<f32>,
    reciprocal_deviation: Buffer<f32>,
    h: Buffer<f32>,
    target_keys: Buffer<f32>,
    target_rows: Buffer<i32>,
}

/// A mixture's shape.
#[derive(Clone, Copy)]
struct Shape<'a> {
    mixing: &'a Mixing,
    layout: &'a StateLayout,
    batch: &'a Batch,
    runs: usize,
    source_count: usize,
}

impl Shape<'_> {
    /// P.
    fn prompts(&self) -> usize {
        self.source_count + usize::from(!self.mixing.without_target)
    }

    /// Whether weights come from scores at all.
    fn is_scored(&self) -> bool {
        self.mixing.scorer.is_some_and(|scorer| scorer != Scorer::Uniform)
    }

    /// Weights of the mixture.
    fn attention(&self) -> usize {
        self.batch.examples() * self.mixing.attention_rows(self.layout.prompt_length) * self.prompts()
    }

    /// Whether scores come from the input.
    fn reads_input(&self) -> bool {
        self.mixing.scorer.is_some_and(Scorer::reads_input)
    }

    /// Numbers of `per_example` for each example, where there is a scorer.
    fn scored(&self, per_example: usize) -> usize {
        if self.is_scored() { self.batch.examples() * per_example } else { 0 }
    }

    /// Numbers of the target prompts' keys.
    fn target_keys(&self) -> usize {
        let keys = self.reads_input() && !self.mixing.without_target;
        if keys { self.runs * self.layout.targets * self.layout.width } else { 0 }
    }

    /// Partial gradients of the weights, by prompt row.
    fn d_attention(&self) -> usize {
        self.scored(self.layout.prompt_length * self.prompts())
    }

    /// The arguments without addresses.
    fn arguments(&self) -> Result<MixArguments> {
        let Self { mixing, layout, batch, runs, source_count } = *self;
        let (length, width) = (layout.prompt_length, layout.width);
        if batch.prompt_length() != length || width % WIDTH_MULTIPLE != 0 {
            let expected = format!("{length} prompt rows, of a width that is a multiple of {WIDTH_MULTIPLE}");
            let found = format!("{} prompt rows of width {width}", batch.prompt_length());
            return Err(Error::tensor("the mixture", expected, found, ""));
        }
        let outside =
            (0..batch.examples()).find(|&b| batch.run(b) >= runs || batch.target_prompt(b) >= layout.targets);
        if let Some(b) = outside {
            let expected = format!("examples of {runs} runs with {} target prompts each", layout.targets);
            let found = format!("target {} of run {}", batch.target_prompt(b), batch.run(b));
            return Err(Error::tensor("the mixture", expected, found, ""));
        }
        if mixing.scorer == Some(Scorer::Constant) {
            let found = layout.segment("logits").map_or(0, |segment| segment.range.len());
            if found != self.prompts() {
                let expected = format!("{} logits, one a prompt", self.prompts());
                return Err(Error::tensor("the constant scorer", expected, found.to_string(), ""));
            }
        }
        let start = |name: &str| layout.segment(name).map_or(-1, |segment| segment.range.start as i64);
        Ok(MixArguments {
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
            rank: layout.rank as i32,
            targets: layout.targets as i32,
            runs: runs as i32,
            temperature: mixing.temperature as f32,
            layer_norm_epsilon: mixing.layer_norm_epsilon as f32,
            ..MixArguments::default()
        })
    }

    /// Launches the kernels that make weights and prompt rows.
    ///
    /// # Safety
    /// `arguments` are this shape's, with the addresses of buffers of its lengths.
    unsafe fn forward(&self, kernels: &Kernels, arguments: &MixArguments) -> Result<()> {
        let (layout, examples) = (self.layout, self.batch.examples());
        let (length, width) = (layout.prompt_length, layout.width);
        // SAFETY: the caller's promise.
        let launch =
            |name, grid, threads, shared| unsafe { launch(kernels, name, grid, threads, shared, arguments) };
        if let Some(scorer) = self.mixing.scorer {
            if self.target_keys() > 0 {
                launch("target_keys", [width.div_ceil(THREADS), self.runs * layout.targets, 1], THREADS, 0)?;
            }
            let shared = (2 * width + layout.rank + SCORE_THREADS / 32) * 4;
            launch("mix_scores", [examples, 1, 1], SCORE_THREADS, shared)?;
            if scorer == Scorer::Token {
                launch("token_scores", [length, examples.div_ceil(WARPS), 1], THREADS, 0)?;
            }
        }
        launch(
            "mix_rows",
            [length, width.div_ceil(MIXED_COLUMNS), examples.div_ceil(MIXED)],
            MIXED_THREADS,
            0,
        )
    }

    /// Launches the kernels that add to the state's gradient.
    ///
    /// # Safety
    /// As for [`Shape::forward`].
    unsafe fn backward(&self, kernels: &Kernels, arguments: &MixArguments) -> Result<()> {
        let (layout, examples) = (self.layout, self.batch.examples());
        // SAFETY: the caller's promise.
        let launch =
            |name, grid, threads, shared| unsafe { launch(kernels, name, grid, threads, shared, arguments) };
        if self.is_scored() {
            launch("mix_d_attention", [layout.prompt_length, examples.div_ceil(WARPS), 1], THREADS, 0)?;
            let shared = (layout.width + SCORE_THREADS / 32) * 4;
            launch("mix_d_scores", [examples, 1, 1], SCORE_THREADS, shared)?;
        }
        launch("mix_d_state", [layout.len().div_ceil(THREADS), self.runs, 1], THREADS, 0)
    }
}

/// Launches one kernel of the file.
///
/// # Safety
/// As for [`Kernels::launch`].
unsafe fn launch(
    kernels: &Kernels,
    name: &'static str,
    grid: [usize; 3],
    threads: usize,
    shared: usize,
    arguments: &MixArguments,
) -> Result<()> {
    if shared > SCORER_BYTES {
        let found =
            format!("{shared} bytes for a width of {} and a rank of {}", arguments.width, arguments.rank);
        return Err(Error::tensor("the scorer", format!("rows of at most {SCORER_BYTES} bytes"), found, ""));
    }
    let (kernel, grid) = (Kernel { file: "mix", name }, grid.map(|blocks| blocks as u32));
    // SAFETY: the caller's promise.
    unsafe { kernels.launch(kernel, grid, threads as u32, shared as u32, arguments) }
}

impl MixKept {
    pub(super) fn new(
        cuda: &Cuda,
        mixing: &Mixing,
        sources: Option<&Sources>,
        state: &State,
        batch: &Batch,
    ) -> Self {
        let shape = shape(mixing, sources, state, batch);
        let layout = shape.layout;
        Self {
            attention: cuda.allocate(shape.attention()),
            scores: cuda.allocate(shape.attention()),
            pooled: cuda.allocate(shape.scored(layout.width)),
            down: cuda.allocate(shape.scored(layout.rank)),
            standardised: cuda.allocate(shape.scored(layout.width)),
            reciprocal_deviation: cuda.allocate(shape.scored(1)),
            h: cuda.allocate(shape.scored(layout.width)),
            target_keys: cuda.allocate(shape.target_keys()),
            target_rows: cuda.allocate(shape.target_keys()),
        }
    }

    /// The mixture's weights, \[B, S + 1\], or \[B, M, S + 1\], or none.
    pub(super) fn weights(&self) -> &Buffer<f32> {
        &self.attention
    }

    pub(super) fn attention(&self, cuda: &Cuda) -> Vec<f64> {
        cuda.download(&self.attention, self.attention.len()).into_iter().map(f64::from).collect()
    }
}

fn shape<'a>(mixing: &'a Mixing, sources: Option<&Sources>, state: &'a State, batch: &'a Batch) -> Shape<'a> {
    let source_count = sources.map_or(0, |sources| sources.count);
    Shape { mixing, layout: &state.layout, batch, runs: state.runs, source_count }
}

impl Cuda {
    fn mix_arguments(
        &self,
        shape: &Shape<'_>,
        sources: Option<&Sources>,
        state: &State,
        kept: &MixKept,
        x: &Rows,
    ) -> Result<MixArguments> {
        let (length, width) = (shape.layout.prompt_length, shape.layout.width);
        x.check("x", shape.batch.rows(Side::Encoder), width)?;
        if let Some(sources) = sources
            && (sources.prompt_length, sources.width) != (length, width)
        {
            let found = format!("[{}, {}]", sources.prompt_length, sources.width);
            return Err(Error::tensor("the sources", format!("prompts of [{length}, {width}]"), found, ""));
        }
        Ok(MixArguments {
            batch: self.describe(shape.batch)?.address(self)?,
            sources: sources.map_or(Ok(0), |sources| self.address_of(&sources.values))?,
            source_keys: sources.map_or(Ok(0), |sources| self.address_of(&sources.keys))?,
            values: self.address_of(&state.values)?,
            gradient: self.address_of(&state.gradient)?,
            x: x.float_address(self)?,
            attention: self.address_of(&kept.attention)?,
            scores: self.address_of(&kept.scores)?,
            pooled: self.address_of(&kept.pooled)?,
            down: self.address_of(&kept.down)?,
            standardised: self.address_of(&kept.standardised)?,
            reciprocal_deviation: self.address_of(&kept.reciprocal_deviation)?,
            h: self.address_of(&kept.h)?,
            target_keys: self.address_of(&kept.target_keys)?,
            target_rows: self.address_of(&kept.target_rows)?,
            ..shape.arguments()?
        })
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_mix(
        &self,
        mixing: &Mixing,
        table: &Weight,
        sources: Option<&Sources>,
        state: &State,
        batch: &Batch,
        x: &mut Rows,
        kept: &mut MixKept,
    ) -> Result<()> {
        let shape = shape(mixing, sources, state, batch);
        let mut arguments = self.mix_arguments(&shape, sources, state, kept, x)?;
        arguments.table = table.float_address(self)?;
        // SAFETY: `mix_arguments` checked the shapes, and what is kept was made for them.
        unsafe { shape.forward(self.kernels(), &arguments) }
    }

    pub(super) fn launch_mix_backward(
        &self,
        mixing: &Mixing,
        sources: Option<&Sources>,
        batch: &Batch,
        kept: &MixKept,
        d_x: &Rows,
        state: &mut State,
    ) -> Result<()> {
        let shape = shape(mixing, sources, state, batch);
        let mut arguments = self.mix_arguments(&shape, sources, state, kept, d_x)?;
        let scratch = |numbers: usize| -> Buffer<f32> { self.allocate(numbers) };
        let d_attention = scratch(shape.d_attention());
        let d_scores = scratch(if shape.is_scored() { shape.attention() } else { 0 });
        let (d_h, d_v) =
            (scratch(shape.scored(shape.layout.width)), scratch(shape.scored(shape.layout.width)));
        let d_down = scratch(shape.scored(shape.layout.rank));
        arguments.d_attention = self.address_of(&d_attention)?;
        arguments.d_scores = self.address_of(&d_scores)?;
        arguments.d_h = self.address_of(&d_h)?;
        arguments.d_v = self.address_of(&d_v)?;
        arguments.d_down = self.address_of(&d_down)?;
        // SAFETY: as in `launch_mix`; scratch was made for the same shape.
        unsafe { shape.backward(self.kernels(), &arguments) }
    }
}

/// The mixture of prompts for one batch, all in f32, for launches on cudarc's own buffers: pool, scorer, scores, softmax and
/// interpolation, and back.
///
/// The trained state of each run is one flat vector that a [`StateLayout`] cuts up; runs are stacked. Sources are \[S, M, D\]
/// with their [`pooled_keys`] \[S, D\]. It holds what backward needs of the forward pass before it.
#[derive(Debug)]
pub struct PromptMix<'a> {
    batch: &'a Packed,
    mixing: Mixing,
    layout: StateLayout,
    runs: usize,
    source_count: usize,
    attention: CudaSlice<f32>,
    scores: CudaSlice<f32>,
    pooled: CudaSlice<f32>,
    down: CudaSlice<f32>,
    standardised: CudaSlice<f32>,
    reciprocal_deviation: CudaSlice<f32>,
    h: CudaSlice<f32>,
    target_keys: CudaSlice<f32>,
    target_rows: CudaSlice<i32>,
    d_attention: CudaSlice<f32>,
    d_scores: CudaSlice<f32>,
    d_h: CudaSlice<f32>,
    d_v: CudaSlice<f32>,
    d_down: CudaSlice<f32>,
}

impl<'a> PromptMix<'a> {
    /// For the examples of `batch`, whose prompts are as long as the layout's, `source_count` sources (up to 1,024) and the
    /// stacked state of `runs` runs.
    ///
    /// # Errors
    /// Too many sources, a batch that does not fit, and what the driver says.
    pub fn new(
        kernels: &Kernels,
        batch: &'a Packed,
        mixing: &Mixing,
        layout: &StateLayout,
        source_count: usize,
        runs: usize,
    ) -> Result<Self> {
        check_sources(source_count)?;
        let shape = Shape { mixing, layout, batch: batch.batch(), runs, source_count };
        shape.arguments()?;
        fn room<T: DeviceRepr + ValidAsZeroBits>(kernels: &Kernels, length: usize) -> Result<CudaSlice<T>> {
            let room = kernels.stream().alloc_zeros(length.max(1));
            room.map_err(|error| driver("prepare a mixture", error))
        }
        let floats = |length| room::<f32>(kernels, length);
        let (width, rank, weights) =
            (shape.scored(layout.width), shape.scored(layout.rank), shape.attention());
        Ok(Self {
            batch,
            mixing: mixing.clone(),
            layout: layout.clone(),
            runs,
            source_count,
            attention: floats(weights)?,
            scores: floats(weights)?,
            pooled: floats(width)?,
            down: floats(rank)?,
            standardised: floats(width)?,
            reciprocal_deviation: floats(shape.scored(1))?,
            h: floats(width)?,
            target_keys: floats(shape.target_keys())?,
            target_rows: room(kernels, shape.target_keys())?,
            d_attention: floats(shape.d_attention())?,
            d_scores: floats(weights)?,
            d_h: floats(width)?,
            d_v: floats(width)?,
            d_down: floats(rank)?,
        })
    }

    fn shape(&self) -> Shape<'_> {
        Shape {
            mixing: &self.mixing,
            layout: &self.layout,
            batch: self.batch.batch(),
            runs: self.runs,
            source_count: self.source_count,
        }
    }

    fn arguments(
        &self,
        kernels: &Kernels,
        sources: &CudaView<'_, f32>,
        source_keys: &CudaView<'_, f32>,
        values: &CudaView<'_, f32>,
        rows: usize,
    ) -> Result<MixArguments> {
        let (length, width, stream) = (self.layout.prompt_length, self.layout.width, kernels.stream());
        check_length("sources", self.source_count * length * width, sources.len())?;
        check_length("source_keys", self.source_count * width, source_keys.len())?;
        check_length("values", self.runs * self.layout.len(), values.len())?;
        check_length("the encoder's rows", self.batch.batch().rows(Side::Encoder) * width, rows)?;
        let at = |slice: &CudaSlice<f32>| slice.device_ptr(stream).0;
        Ok(MixArguments {
            batch: self.batch.address(kernels),
            sources: address(sources, stream),
            source_keys: address(source_keys, stream),
            values: address(values, stream),
            attention: at(&self.attention),
            scores: at(&self.scores),
            pooled: at(&self.pooled),
            down: at(&self.down),
            standardised: at(&self.standardised),
            reciprocal_deviation: at(&self.reciprocal_deviation),
            h: at(&self.h),
            target_keys: at(&self.target_keys),
            target_rows: self.target_rows.device_ptr(stream).0,
            d_attention: at(&self.d_attention),
            d_scores: at(&self.d_scores),
            d_h: at(&self.d_h),
            d_v: at(&self.d_v),
            d_down: at(&self.d_down),
            ..self.shape().arguments()?
        })
    }

    /// The weights of the last forward pass: \[B, P\], or \[B, M, P\] of the token scorer, P = S + 1 with the target last (S
    /// without it); nothing of a plain prompt.
    pub fn attention(&self) -> CudaView<'_, f32> {
        self.attention.slice(0..self.shape().attention())
    }

    /// Launches the forward pass: the M prompt rows of every example in `x` \[encoder rows, D\], from the embedding `table`
    /// \[V, D\], whose rows of each example's tokens are pooled, the frozen sources, and `values` \[runs, length of the layout\].
    ///
    /// Costs B·M·(S + 1)·D multiply-adds for the rows, 2·D·Q + (S + 1)·D an example for the scores of the bottleneck; moves
    /// the sources once for sixteen examples and 4·B·M·D bytes out.
    ///
    /// # Errors
    /// A length that does not fit, a token id outside the table, and what the driver says.
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub fn forward(
        &mut self,
        kernels: &Kernels,
        table: &CudaView<'_, f32>,
        sources: &CudaView<'_, f32>,
        source_keys: &CudaView<'_, f32>,
        values: &CudaView<'_, f32>,
        x: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let batch = self.batch.batch();
        let ids = (0..batch.examples())
            .flat_map(|b| batch.source(b).iter().copied().chain(batch.pooled_padding(b)));
        let largest = ids.max().unwrap_or(0) as usize;
        if table.len() < (largest + 1) * self.layout.width {
            let expected = format!("rows of {} for token ids up to {largest}", self.layout.width);
            return Err(Error::tensor("table", expected, format!("{} numbers", table.len()), ""));
        }
        let arguments = MixArguments {
            table: address(table, kernels.stream()),
            x: address_mut(x, kernels.stream()),
            ..self.arguments(kernels, sources, source_keys, values, x.len())?
        };
        // SAFETY: every length was checked, and what this holds was made for the same shape.
        unsafe { self.shape().forward(kernels, &arguments) }
    }

    /// Launches the backward pass: adds to `gradient` \[runs, length of the layout\] what `d_x` \[encoder rows, D\] makes of it
    /// behind the last forward pass, of the same sources and values. No atomics.
    ///
    /// Costs B·M·(S + 2)·D multiply-adds for the weights and the target, B·2·D·Q for the bottleneck; moves d_x twice.
    ///
    /// # Errors
    /// As [`PromptMix::forward`].
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub fn backward(
        &mut self,
        kernels: &Kernels,
        sources: &CudaView<'_, f32>,
        source_keys: &CudaView<'_, f32>,
        values: &CudaView<'_, f32>,
        d_x: &CudaView<'_, f32>,
        gradient: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        check_length("gradient", self.runs * self.layout.len(), gradient.len())?;
        let arguments = MixArguments {
            gradient: address_mut(gradient, kernels.stream()),
            x: address(d_x, kernels.stream()),
            ..self.arguments(kernels, sources, source_keys, values, d_x.len())?
        };
        // SAFETY: every length was checked, and what this holds was made for the same shape.
        unsafe { self.shape().backward(kernels, &arguments) }
    }
}

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
