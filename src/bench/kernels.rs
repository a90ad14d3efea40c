//! Every family of ops that any device has, at one shape: operands, what an op must move, and its passes.

use std::cell::RefCell;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::report::Measured;
use super::shapes::Shape;
use super::stopwatch::Stopwatch;
use crate::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{Cuda, NORM_COLUMNS, Precision};
use crate::backend::{
    Activation, Backend, Batch, CrossAttention, CrossAttentionBackward, DecodeStep, Embedding, FeedForward,
    FeedForwardBackward, FinalNorm, FinalNormBackward, Format, LmHead, Mix, Mixing, OptimizerStep,
    Projection, ProjectionBackward, PromptRows, Readers, Residual, Scope, Scorer, SelfAttention,
    SelfAttentionBackward, Side, StateLayout,
};
use crate::error::{Error, Result};

/// The families of kernels, in the order in which they are measured.
const FAMILIES: [&str; 13] = [
    "linear",
    "gate",
    "projection",
    "encoder_attention",
    "feed_forward",
    "final_norm",
    "decoder_attention",
    "cross_attention",
    "loss",
    "embedding",
    "mixture",
    "adamw",
    "decode",
];

/// Distance from which on all keys have one bias.
const MAX_DISTANCE: usize = 127;
const EPSILON: f64 = 1e-6;

/// Which kernels are measured: all, or those of some names.
pub(crate) struct Only {
    names: Vec<String>,
    seen: RefCell<Vec<bool>>,
}

impl Only {
    /// Those of a family, or of a longer beginning of a name, up to a slash or its end; all if there is no name.
    ///
    /// # Errors
    /// [`Error::Setting`] for a family that there is none of.
    pub(crate) fn new(names: Vec<String>) -> Result<Self> {
        let family = |name: &String| name.split('/').next().unwrap_or_default().to_owned();
        if let Some(unknown) = names.iter().find(|name| !FAMILIES.contains(&&*family(name))) {
            let expected = format!("{}, or one kernel of those", FAMILIES.join(", "));
            return Err(Error::setting("--only", expected, unknown, ""));
        }
        let seen = vec![false; names.len()].into();
        Ok(Self { names, seen })
    }

    /// Whether a kernel is measured.
    pub(crate) fn wants(&self, kernel: &str) -> bool {
        let mut wanted = self.names.is_empty();
        for (name, seen) in self.names.iter().zip(&mut *self.seen.borrow_mut()) {
            let rest = kernel.strip_prefix(name.as_str());
            let matches = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            *seen |= matches;
            wanted |= matches;
        }
        wanted
    }

    /// Whether any kernel of these families is.
    fn wants_any(&self, families: &[&str]) -> bool {
        let of = |name: &String| families.contains(&name.split('/').next().unwrap_or_default());
        self.names.is_empty() || self.names.iter().any(of)
    }

    /// Fails if a name was no kernel's, after all have been measured.
    pub(crate) fn check_seen(&self) -> Result<()> {
        let seen = self.seen.borrow();
        let unseen = self.names.iter().zip(&*seen).find(|(_, seen)| !**seen);
        let Some((name, _)) = unseen else { return Ok(()) };
        let advice = "name a family alone to see its kernels; linear and gate are a GPU's";
        Err(Error::setting("--only", "a kernel that this device has at these shapes", name, advice))
    }
}

/// A device whose activations can be made of numbers, and how it stores them.
pub(crate) trait Filled: Backend {
    /// An activation that holds `values`, \[rows, width\].
    fn filled(&self, values: Vec<f32>, width: usize, format: Format) -> Result<Self::Rows>;
    /// How wide its numbers are.
    fn sizes(&self) -> Sizes;
}

/// Bytes of what a device stores.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    /// A number that products read and write.
    operand: usize,
    /// The copy of a number of the residual stream that products read, where there is one.
    copy: usize,
    /// Columns of a row that have one partial sum of squares.
    norm_columns: usize,
}

impl Sizes {
    /// A number of the residual stream as products read it.
    fn read(self) -> usize {
        if self.copy > 0 { self.copy } else { 4 }
    }

    /// What is kept of the norm of rows.
    fn norm(self, rows: usize, width: usize) -> usize {
        4 * rows * width.div_ceil(self.norm_columns)
    }
}

impl Filled for Cpu<f32> {
    fn filled(&self, values: Vec<f32>, width: usize, _: Format) -> Result<Self::Rows> {
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        Ok(self.activation_of(&values, width))
    }

    fn sizes(&self) -> Sizes {
        Sizes { operand: 4, copy: 0, norm_columns: usize::MAX }
    }
}

#[cfg(feature = "cuda")]
impl Filled for Cuda {
    fn filled(&self, values: Vec<f32>, width: usize, format: Format) -> Result<Self::Rows> {
        self.activation_of(&values, width, format)
    }

    fn sizes(&self) -> Sizes {
        let (operand, copy) = if self.precision() == Precision::Bf16 { (2, 2) } else { (4, 0) };
        Sizes { operand, copy, norm_columns: NORM_COLUMNS }
    }
}

/// Measures all families but those of a GPU alone, one kernel after the other; each is handed to `found` as it is done.
///
/// # Errors
/// What an op fails with.
pub(crate) fn measure<B: Filled>(
    backend: &B,
    stopwatch: &mut dyn Stopwatch,
    shape: &Shape,
    only: &Only,
    repeats: usize,
    found: &mut dyn FnMut(Measured),
) -> Result<()> {
    let batch = shape.batch()?;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let uniform = || random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0;
    // A prime number of them, so that no two rows are alike.
    let numbers = std::iter::repeat_with(uniform).take(65_521).collect();
    let sizes = backend.sizes();
    let mut bench = Bench { backend, stopwatch, shape, batch: &batch, only, repeats, found, numbers, sizes };
    if only.wants_any(&["projection", "encoder_attention", "feed_forward", "final_norm"]) {
        bench.encoder()?;
    }
    if only.wants_any(&["decoder_attention", "cross_attention", "loss"]) {
        bench.decoder()?;
    }
    if only.wants_any(&["embedding", "mixture"]) {
        bench.prompts()?;
    }
    if only.wants_any(&["adamw"]) {
        bench.adamw()?;
    }
    if only.wants_any(&["decode"]) {
        bench.decode()?;
    }
    Ok(())
}

struct Bench<'a, B: Filled> {
    backend: &'a B,
    stopwatch: &'a mut dyn Stopwatch,
    shape: &'a Shape,
    batch: &'a Batch,
    only: &'a Only,
    repeats: usize,
    found: &'a mut dyn FnMut(Measured),
    /// Between -1 and 1.
    numbers: Vec<f32>,
    sizes: Sizes,
}

/// A mixture with what it reads.
struct Prompts<B: Filled> {
    mixing: Mixing,
    layout: StateLayout,
    table: B::Weight,
    sources: B::Sources,
    state: B::State,
}

impl<B: Filled> Bench<'_, B> {
    /// Measures `work` under a name. `bytes` are its operands and results, each once: what lies in memory between its own launches does
    /// not count.
    fn time(&mut self, kernel: &str, bytes: usize, mut work: impl FnMut() -> Result<()>) -> Result<()> {
        if !self.only.wants(kernel) {
            return Ok(());
        }
        let before = self.backend.operations();
        work()?;
        let operations = self.backend.operations() - before;
        self.backend.synchronize()?;
        let passes = self.stopwatch.passes(self.repeats, &mut work)?;
        self.backend.synchronize()?;
        (self.found)(Measured::new(&self.shape.name, kernel, operations, bytes as u64, passes));
        Ok(())
    }

    fn draw(&self, count: usize, half_width: f32) -> Vec<f32> {
        self.numbers.iter().map(|number| number * half_width).cycle().take(count).collect()
    }

    fn rows(&self, rows: usize, width: usize, format: Format) -> Result<B::Rows> {
        self.backend.filled(self.draw(rows * width, 1.0), width, format)
    }

    /// Of ordinary size: the variance of a number is 1 / (inputs).
    fn weight(&self, out: usize, input: usize, readers: Readers) -> Result<B::Weight> {
        self.backend.weight(self.draw(out * input, (3.0 / input as f32).sqrt()), out, input, readers)
    }

    fn mixture(&self) -> Result<Prompts<B>> {
        let Shape { width, prompt_length, sources, vocabulary, bottleneck, .. } = *self.shape;
        let mixing = Mixing {
            scorer: Some(Scorer::Bottleneck),
            temperature: width as f64 * std::f64::consts::E,
            without_target: false,
            layer_norm_epsilon: 1e-5,
        };
        let layout = StateLayout::new(&mixing, 1, prompt_length, width, bottleneck, false);
        let values: Vec<f64> = self.draw(layout.len(), 0.1).into_iter().map(f64::from).collect();
        let state = self.backend.state(&layout, &values, 1)?;
        let frozen = self.draw(sources * prompt_length * width, 1.0);
        let sources = self.backend.sources(&frozen, sources, prompt_length, width)?;
        let table = self.weight(vocabulary, width, Readers::Lookup)?;
        Ok(Prompts { mixing, layout, table, sources, state })
    }

    /// What the first layer of a side reads.
    fn input(&self, side: Side) -> Result<Residual<B>> {
        let Prompts { mixing, table, sources, state, .. } = self.mixture()?;
        let mut input = Residual::new(self.backend, self.batch.rows(side), self.shape.width)?;
        if side == Side::Encoder {
            let of = Mix { mixing: &mixing, sources: Some(&sources), batch: self.batch };
            let output = PromptRows { input: &mut input, mask: None, epsilon: EPSILON };
            self.backend.mix(&of, &table, &state, output)?;
        }
        let of = Embedding { table: &table, batch: self.batch, side, mask: None, epsilon: EPSILON };
        self.backend.embed(of, &mut input)?;
        Ok(input)
    }

    fn bias(&self) -> Result<B::PositionBias> {
        let of_head = |_| self.draw(2 * MAX_DISTANCE + 1, 1.0);
        self.backend.position_bias((0..self.shape.heads).map(of_head).collect(), MAX_DISTANCE)
    }

    fn encoder(&mut self) -> Result<()> {
        let (backend, batch, side, sizes) = (self.backend, self.batch, Side::Encoder, self.sizes);
        let (rows, width, total) = (batch.rows(side), self.shape.width, self.shape.heads().total());
        let input = self.input(side)?;
        let weight = self.weight(3 * total, width, Readers::Many)?;
        let mut qkv = backend.rows(rows, 3 * total, Format::Operand)?;
        let mut project =
            || backend.project(Projection { batch, side, input: &input, weight: &weight }, &mut qkv);
        project()?;
        let w_bytes = sizes.operand * 3 * total * width;
        let x_bytes = rows * width * sizes.read() + sizes.norm(rows, width);
        self.time("projection/forward", x_bytes + w_bytes + sizes.operand * rows * 3 * total, project)?;

        let d_qkv = self.attention("encoder_attention", side, &qkv)?;
        let mut d_x = self.rows(rows, width, Format::Residual)?;
        let bytes = sizes.operand * rows * 3 * total + w_bytes + x_bytes + rows * width * (8 + sizes.copy);
        self.time("projection/backward", bytes, || {
            let (scope, dz, below) = (Scope::All, &d_qkv, None);
            let of = ProjectionBackward { batch, side, scope, dz, weight: &weight, input: &input, below };
            backend.project_backward(of, &mut d_x)
        })?;
        drop((weight, qkv, d_qkv));
        self.feed_forward(&input, &mut d_x)?;

        let mut h = backend.rows(rows, width, Format::Operand)?;
        let norm_weight = self.weight(1, width, Readers::Lookup)?;
        let norm = || FinalNorm {
            batch,
            side,
            input: &input,
            norm_weight: Some(&norm_weight),
            scale: 1.0,
            mask: None,
        };
        let bytes = rows * width * (4 + sizes.operand) + sizes.norm(rows, width) + 4 * width;
        self.time("final_norm/forward", bytes, || backend.final_norm(norm(), &mut h))?;
        let d_h = self.rows(rows, width, Format::Float)?;
        let bytes = rows * width * (4 + 4 + 4 + sizes.copy) + sizes.norm(rows, width) + 4 * width;
        self.time("final_norm/backward", bytes, || {
            backend.final_norm_backward(norm(), FinalNormBackward { d_h: &d_h, below: None }, &mut d_x)
        })
    }

    /// Self attention both ways: the gradient that it leaves is what a projection's backward reads.
    fn attention(&mut self, family: &str, side: Side, qkv: &B::Rows) -> Result<B::Rows> {
        let (backend, batch, heads, sizes) = (self.backend, self.batch, self.shape.heads(), self.sizes);
        let (rows, total) = (batch.rows(side), heads.total());
        let bias = self.bias()?;
        let mut o = backend.rows(rows, total, Format::Operand)?;
        let mut log_sum_exp = backend.rows(rows, heads.count, Format::Float)?;
        let of = SelfAttention { batch, side, heads, bias: &bias, mask: None };
        let mut forward = || backend.self_attention(&of, qkv, &mut o, &mut log_sum_exp);
        forward()?;
        let biases = 4 * heads.count * (2 * MAX_DISTANCE + 1);
        let kept = rows * (sizes.operand * 4 * total + 4 * heads.count) + biases;
        self.time(&format!("{family}/forward"), kept, forward)?;
        let d_o = self.rows(rows, total, Format::Operand)?;
        let mut d_qkv = backend.rows(rows, 3 * total, Format::ProjectionGradient)?;
        let mut backward = || {
            let (scope, log_sum_exp) = (Scope::All, &log_sum_exp);
            let from = SelfAttentionBackward { scope, qkv, o: &o, log_sum_exp, d_o: &d_o };
            backend.self_attention_backward(&of, from, &mut d_qkv)
        };
        backward()?;
        self.time(&format!("{family}/backward"), kept + rows * sizes.operand * 4 * total, backward)?;
        Ok(d_qkv)
    }

    fn feed_forward(&mut self, input: &Residual<B>, d_x: &mut B::Rows) -> Result<()> {
        if !self.only.wants_any(&["feed_forward"]) {
            return Ok(());
        }
        let (backend, batch, side, sizes) = (self.backend, self.batch, Side::Encoder, self.sizes);
        let (rows, width, inner) = (batch.rows(side), self.shape.width, self.shape.inner);
        let (w_in, w_out) =
            (self.weight(inner, width, Readers::Many)?, self.weight(width, inner, Readers::Many)?);
        let of = FeedForward {
            batch,
            side,
            w_in: &w_in,
            w_out: &w_out,
            activation: Activation::Relu,
            inner_mask: None,
            output_mask: None,
            epsilon: EPSILON,
        };
        let mut next = Residual::new(backend, rows, width)?;
        let mut saved = None;
        let mut forward = || {
            saved = backend.feed_forward(&of, input, &mut next, true)?;
            Ok(())
        };
        forward()?;
        // Which activations were positive, a bit each.
        let common = sizes.operand * 2 * inner * width + rows * inner / 8;
        let residual = rows * width * (4 + sizes.copy) + sizes.norm(rows, width);
        self.time("feed_forward/forward", common + 2 * residual, forward)?;
        let missing = || Error::tensor("what a feed-forward saves", "something", "nothing", "");
        let saved = saved.ok_or_else(missing)?;
        // x, x_next, and d_x as it was and as it is.
        let bytes = common + rows * width * (4 + 4 + 8 + sizes.copy) + sizes.norm(rows, width);
        self.time("feed_forward/backward", bytes, || {
            let from = FeedForwardBackward { saved: &saved, input, x_next: &next.x };
            backend.feed_forward_backward(&of, from, d_x)
        })
    }

    fn decoder(&mut self) -> Result<()> {
        let (backend, batch, heads, sizes) = (self.backend, self.batch, self.shape.heads(), self.sizes);
        let (width, total) = (self.shape.width, heads.total());
        let (rows, targets) = (batch.rows(Side::Encoder), batch.rows(Side::Decoder));
        if self.only.wants_any(&["decoder_attention"]) {
            let qkv = self.rows(targets, 3 * total, Format::Operand)?;
            self.attention("decoder_attention", Side::Decoder, &qkv)?;
        }
        if self.only.wants_any(&["cross_attention"]) {
            let (w_k, w_v) =
                (self.weight(total, width, Readers::Few)?, self.weight(total, width, Readers::Few)?);
            let of = CrossAttention { batch, heads, w_k: &w_k, w_v: &w_v, mask: None };
            let q = self.rows(targets, total, Format::Operand)?;
            let h = self.rows(rows, width, Format::Operand)?;
            let mut o = backend.rows(targets, total, Format::Operand)?;
            let mut saved = None;
            let mut forward = || {
                saved = backend.cross_attention(&of, &q, &h, &mut o, true)?;
                Ok(())
            };
            forward()?;
            let common = sizes.operand * (rows * width + 2 * total * width + 2 * targets * total);
            self.time("cross_attention/forward", common, forward)?;
            let missing = || Error::tensor("what cross attention saves", "something", "nothing", "");
            let saved = saved.ok_or_else(missing)?;
            let d_o = self.rows(targets, total, Format::Operand)?;
            let mut d_q = backend.rows(targets, total, Format::ProjectionGradient)?;
            let bytes = common + sizes.operand * 2 * targets * total + 4 * rows * width;
            // With the sum over the layers, here one: the gradient of the encoder's rows is its result.
            self.time("cross_attention/backward", bytes, || {
                let mut d_h = backend.source_gradient(batch, width)?;
                let from = CrossAttentionBackward { saved: &saved, q: &q, h: &h, o: &o, d_o: &d_o };
                backend.cross_attention_backward(&of, from, Some(&mut d_q), &mut d_h)?;
                backend.source_rows(batch, d_h).map(drop)
            })?;
        }
        if !self.only.wants_any(&["loss"]) {
            return Ok(());
        }
        let vocabulary = self.shape.vocabulary;
        let batch = &batch.clone().weighted(vec![1.0 / targets as f64; targets])?;
        let head = self.weight(vocabulary, width, Readers::Lookup)?;
        let mean = self.weight(1, width, Readers::Lookup)?;
        let lm_head = LmHead { weight: &head, mean: &mean };
        let hidden = self.rows(targets, width, Format::Operand)?;
        let mut d_hidden = backend.rows(targets, width, Format::Float)?;
        // A label and its weight, log-likelihood, objective and greedy token a row.
        let bytes = sizes.operand * (vocabulary * width + targets * width) + 20 * targets;
        self.time("loss/forward", bytes, || backend.loss(batch, &hidden, &lm_head, None).map(drop))?;
        self.time("loss/with_gradient", bytes + 4 * targets * width, || {
            backend.loss(batch, &hidden, &lm_head, Some(&mut d_hidden)).map(drop)
        })
    }

    fn prompts(&mut self) -> Result<()> {
        let (backend, batch, sizes) = (self.backend, self.batch, self.sizes);
        let Shape { width, prompt_length, sources: count, .. } = *self.shape;
        let rows = batch.rows(Side::Encoder);
        let Prompts { mixing, layout, table, sources, mut state } = self.mixture()?;
        let (epsilon, mask, side) = (EPSILON, None, Side::Encoder);
        let mut input = Residual::new(backend, rows, width)?;
        let prompt_rows = batch.examples() * prompt_length;
        let tokens = rows - prompt_rows;
        let written = |rows: usize| rows * width * (4 + sizes.copy) + sizes.norm(rows, width);
        let of = Mix { mixing: &mixing, sources: Some(&sources), batch };
        let mut saved = backend.mix(&of, &table, &state, PromptRows { input: &mut input, mask, epsilon })?;
        // Of the sources and their keys; the state holds target prompt and scorer.
        let frozen = 4 * (count * prompt_length * width + count * width);
        let bytes = 4 * tokens * width + frozen + 4 * layout.len() + written(prompt_rows);
        self.time("mixture/forward", bytes, || {
            saved = backend.mix(&of, &table, &state, PromptRows { input: &mut input, mask, epsilon })?;
            Ok(())
        })?;
        let d_x = self.rows(rows, width, Format::Residual)?;
        let bytes = 4 * prompt_rows * width + frozen + 3 * 4 * layout.len();
        self.time("mixture/backward", bytes, || backend.mix_backward(&of, &saved, &d_x, &mut state))?;
        let bytes = tokens * (4 * width + 4) + written(tokens);
        self.time("embedding/forward", bytes, || {
            backend.embed(Embedding { table: &table, batch, side, mask, epsilon }, &mut input)
        })
    }

    fn adamw(&mut self) -> Result<()> {
        let backend = self.backend;
        let Prompts { layout, mut state, .. } = self.mixture()?;
        let gradient: Vec<f64> = self.draw(layout.len(), 1e-3).into_iter().map(f64::from).collect();
        backend.write_gradient(&mut state, &gradient)?;
        let steps = [OptimizerStep::new(1e-3, 1e-3)];
        // Gradient; numbers and both moments as they were and as they are.
        self.time("adamw/step", 28 * layout.len(), || backend.optimizer_step(&mut state, &steps))?;
        backend.reports(&mut state).map(drop)
    }

    fn decode(&mut self) -> Result<()> {
        let (backend, heads, sizes) = (self.backend, self.shape.heads(), self.sizes);
        let (examples, total, decoded) = (self.shape.examples, heads.total(), self.shape.decoded);
        let bias = self.bias()?;
        let qkv = self.rows(examples, 3 * total, Format::Operand)?;
        let mut o = backend.rows(examples, total, Format::Operand)?;
        let mut cache = backend.cache(1, examples, decoded + 1, heads)?;
        let step = |position| DecodeStep { layer: 0, position, heads, bias: &bias };
        for position in 0..decoded {
            backend.decode_self_attention(&step(position), &qkv, &mut cache, &mut o)?;
        }
        // Keys and values before it, q, k and v of the new token, those two again in the cache, and o.
        let bytes = sizes.operand * examples * total * (2 * decoded + 3 + 2 + 1);
        self.time("decode/step", bytes, || {
            backend.decode_self_attention(&step(decoded), &qkv, &mut cache, &mut o)
        })
    }
}
