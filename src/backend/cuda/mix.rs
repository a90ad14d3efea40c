//! The mixture of prompts: `kernels/mix.cu`.

use super::Cuda;
use super::kernels::{Arguments, Kernel};
use super::memory::Buffer;
use super::optimizer::State;
use super::rows::{Rows, WIDTH_MULTIPLE, Weight};
use crate::backend::{Batch, Mixing, Scorer, Side, StateLayout};
use crate::error::{Error, Result};

/// The most source prompts of a mixture.
pub const MOST_SOURCES: usize = 1024;
/// The most bytes of shared memory that the scorer's rows may take: all a block has without asking.
const SCORER_BYTES: usize = 48 * 1024;
/// Threads of most kernels of the file, and the warps that they are.
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
/// Examples that share one reading of the sources.
const MIXED: usize = 16;
/// Columns that a block of `mix_rows` writes.
const MIXED_COLUMNS: usize = 512;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct MixArguments {
    batch: u64,
    table: u64,
    sources: u64,
    source_keys: u64,
    values: u64,
    gradient: u64,
    x: u64,
    attention: u64,
    scores: u64,
    pooled: u64,
    down: u64,
    standardised: u64,
    reciprocal_deviation: u64,
    h: u64,
    target_keys: u64,
    target_rows: u64,
    d_attention: u64,
    d_scores: u64,
    d_h: u64,
    d_v: u64,
    d_down: u64,
    state_length: i64,
    target_prompts: i64,
    w_down: i64,
    w_up: i64,
    weight: i64,
    norm_weight: i64,
    norm_bias: i64,
    log_temperature: i64,
    source_count: i32,
    prompts: i32,
    scorer: i32,
    length: i32,
    width: i32,
    rank: i32,
    targets: i32,
    runs: i32,
    temperature: f32,
    layer_norm_epsilon: f32,
}
const _: () = assert!(size_of::<MixArguments>() == 272);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for MixArguments {}

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
        let mut keys = Vec::with_capacity(count * width);
        for prompt in values.chunks_exact((prompt_length * width).max(1)) {
            keys.extend((0..width).map(|column| {
                let rows = prompt.chunks_exact(width).map(|row| row[column]);
                rows.reduce(|most, value| if value > most { value } else { most }).unwrap_or(0.0)
            }));
        }
        let mut sources = Self {
            count,
            prompt_length,
            width,
            values: cuda.allocate(values.len()),
            keys: cuda.allocate(keys.len()),
        };
        cuda.attempt(|| {
            if count > MOST_SOURCES {
                return Err(Error::tensor(
                    "the sources",
                    format!("at most {MOST_SOURCES}"),
                    count.to_string(),
                    "",
                ));
            }
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

/// Weights of the mixture a batch has.
fn attention_length(
    mixing: &Mixing,
    sources: Option<&Sources>,
    layout: &StateLayout,
    batch: &Batch,
) -> usize {
    let prompts = sources.map_or(0, |sources| sources.count) + usize::from(!mixing.without_target);
    batch.examples() * mixing.attention_rows(layout.prompt_length) * prompts
}

impl MixKept {
    pub(super) fn new(
        cuda: &Cuda,
        mixing: &Mixing,
        sources: Option<&Sources>,
        state: &State,
        batch: &Batch,
    ) -> Self {
        let layout = &state.layout;
        let length = attention_length(mixing, sources, layout, batch);
        let scored = mixing.scorer.is_some_and(|scorer| scorer != Scorer::Uniform);
        let (examples, width) = (if scored { batch.examples() } else { 0 }, layout.width);
        let keys = if scored && !mixing.without_target { state.runs * layout.targets * width } else { 0 };
        Self {
            attention: cuda.allocate(length),
            scores: cuda.allocate(length),
            pooled: cuda.allocate(examples * width),
            down: cuda.allocate(examples * layout.rank),
            standardised: cuda.allocate(examples * width),
            reciprocal_deviation: cuda.allocate(examples),
            h: cuda.allocate(examples * width),
            target_keys: cuda.allocate(keys),
            target_rows: cuda.allocate(keys),
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

impl Cuda {
    fn mix_arguments(
        &self,
        mixing: &Mixing,
        sources: Option<&Sources>,
        state: &State,
        batch: &Batch,
        kept: &MixKept,
        x: &Rows,
    ) -> Result<MixArguments> {
        let layout = &state.layout;
        let (length, width) = (layout.prompt_length, layout.width);
        x.expect("x", batch.rows(Side::Encoder), width)?;
        if batch.prompt_length() != length || width % WIDTH_MULTIPLE != 0 {
            let expected = format!("{length} prompt rows, of a width that is a multiple of {WIDTH_MULTIPLE}");
            let found = format!("{} prompt rows of width {width}", batch.prompt_length());
            return Err(Error::tensor("the mixture", expected, found, ""));
        }
        if let Some(sources) = sources
            && (sources.prompt_length, sources.width) != (length, width)
        {
            let found = format!("[{}, {}]", sources.prompt_length, sources.width);
            return Err(Error::tensor("the sources", format!("prompts of [{length}, {width}]"), found, ""));
        }
        let start = |name: &str| layout.segment(name).map_or(-1, |segment| segment.range.start as i64);
        let source_count = sources.map_or(0, |sources| sources.count);
        Ok(MixArguments {
            batch: self.describe(batch)?.address(self)?,
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
            state_length: layout.len() as i64,
            target_prompts: start("target_prompts"),
            w_down: start("w_down"),
            w_up: start("w_up"),
            weight: start("weight"),
            norm_weight: start("norm_weight"),
            norm_bias: start("norm_bias"),
            log_temperature: start("log_temperature"),
            source_count: source_count as i32,
            prompts: (source_count + usize::from(!mixing.without_target)) as i32,
            scorer: scorer_number(mixing.scorer),
            length: length as i32,
            width: width as i32,
            rank: layout.rank as i32,
            targets: layout.targets as i32,
            runs: state.runs as i32,
            temperature: mixing.temperature as f32,
            layer_norm_epsilon: mixing.layer_norm_epsilon as f32,
            ..MixArguments::default()
        })
    }

    fn mix_kernel(
        &self,
        name: &'static str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        arguments: &MixArguments,
    ) -> Result<()> {
        if shared > SCORER_BYTES {
            let found =
                format!("{shared} bytes for a width of {} and a rank of {}", arguments.width, arguments.rank);
            return Err(Error::tensor(
                "the scorer",
                format!("rows of at most {SCORER_BYTES} bytes"),
                found,
                "",
            ));
        }
        let grid = grid.map(|blocks| blocks as u32);
        // SAFETY: `mix_arguments` checked the shapes, and kept and scratch buffers were made for them.
        unsafe {
            self.kernels().launch(
                Kernel { file: "mix", name },
                grid,
                threads as u32,
                shared as u32,
                arguments,
            )
        }
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
        let mut arguments = self.mix_arguments(mixing, sources, state, batch, kept, x)?;
        arguments.table = table.float_address(self)?;
        let (layout, examples) = (&state.layout, batch.examples());
        let (length, width) = (layout.prompt_length, layout.width);
        if let Some(scorer) = mixing.scorer {
            if scorer != Scorer::Uniform && !mixing.without_target {
                let grid = [width.div_ceil(THREADS), state.runs * layout.targets, 1];
                self.mix_kernel("target_keys", grid, THREADS, 0, &arguments)?;
            }
            let shared = (2 * width + layout.rank + WARPS) * 4;
            self.mix_kernel("mix_scores", [examples, 1, 1], THREADS, shared, &arguments)?;
            if scorer == Scorer::Token {
                self.mix_kernel(
                    "token_scores",
                    [length, examples.div_ceil(WARPS), 1],
                    THREADS,
                    0,
                    &arguments,
                )?;
            }
        }
        let grid = [length, width.div_ceil(MIXED_COLUMNS), examples.div_ceil(MIXED)];
        self.mix_kernel("mix_rows", grid, 128, 0, &arguments)
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
        let mut arguments = self.mix_arguments(mixing, sources, state, batch, kept, d_x)?;
        let (layout, examples) = (&state.layout, batch.examples());
        let (length, width) = (layout.prompt_length, layout.width);
        let scored = mixing.scorer.is_some_and(|scorer| scorer != Scorer::Uniform);
        let scratch = |numbers: usize| -> Buffer<f32> { self.allocate(if scored { numbers } else { 0 }) };
        let d_attention = scratch(length * examples * arguments.prompts as usize);
        let d_scores = scratch(kept.attention.len());
        let (d_h, d_v) = (scratch(examples * width), scratch(examples * width));
        let d_down = scratch(examples * layout.rank);
        arguments.d_attention = self.address_of(&d_attention)?;
        arguments.d_scores = self.address_of(&d_scores)?;
        arguments.d_h = self.address_of(&d_h)?;
        arguments.d_v = self.address_of(&d_v)?;
        arguments.d_down = self.address_of(&d_down)?;
        if scored {
            let grid = [length, examples.div_ceil(WARPS), 1];
            self.mix_kernel("mix_d_attention", grid, THREADS, 0, &arguments)?;
            let shared = (width + WARPS) * 4;
            self.mix_kernel("mix_d_scores", [examples, 1, 1], THREADS, shared, &arguments)?;
        }
        let grid = [layout.len().div_ceil(THREADS), state.runs, 1];
        self.mix_kernel("mix_d_state", grid, THREADS, 0, &arguments)
    }
}

fn scorer_number(scorer: Option<Scorer>) -> i32 {
    match scorer {
        None => -1,
        Some(Scorer::Bottleneck) => 0,
        Some(Scorer::Linear) => 1,
        Some(Scorer::Dot) => 2,
        Some(Scorer::Token) => 3,
        Some(Scorer::Uniform) => 4,
    }
}
