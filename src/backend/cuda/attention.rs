//! Attention: `kernels/attention.cu`, and `kernels/short_attention.cu` where examples have few rows.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::arguments::attention::{AttentionArguments, BIAS_MARGIN, LANE_PARTS, MASK_BYTES, SIDE_BYTES};
use super::arguments::{scope_number, short_attention, side_number};
use super::kernels::{Kernel, Kernels};
use super::memory::{Buffer, address, address_mut, check_aligned, check_length};
use super::rows::{NORM_COLUMNS, PositionBias, Rows};
use super::sequences::Sequences;
use super::{Cuda, Precision};
use crate::backend::{Batch, Heads, Mask, Scope, Side};
use crate::error::{Error, Result};

/// Widest head: a warp has its columns.
const WIDEST_HEAD: usize = 32 * LANE_PARTS;
/// Rows of a tile.
const TILE: usize = super::ATTENTION_TILE;
/// Shared memory behind the tiles with dropout: two masks of a bit a query and key.
const MASKS: usize = 2 * MASK_BYTES;
/// And where rows are few, of a block's four warps.
const SHORT_MASKS: usize = 4 * short_attention::MASK_BYTES;

pub(super) fn check_width(width: usize, advice: &str) -> Result<()> {
    if width <= WIDEST_HEAD && width.is_multiple_of(8) && width > 0 {
        return Ok(());
    }
    let expected = format!("a head width up to {WIDEST_HEAD} that is a multiple of 8");
    Err(Error::tensor("q", expected, width.to_string(), advice))
}

/// The most rows of an example that a warp holds.
pub(super) const MOST_SHORT_ROWS: usize = short_attention::MOST_ROWS;

/// The kernels of a pass.
struct Pass {
    /// Whether a warp has an example and head; otherwise a block a tile of rows and head.
    short: bool,
    /// bf16, for heads up to 64 wide and up to [`WIDEST_HEAD`].
    bf16: [&'static str; 2],
    /// The same with dropout.
    dropped: [&'static str; 2],
    f32: &'static str,
    /// Tiles of shared memory that the bf16 kernels take, and bytes beside them.
    tiles: usize,
    side: usize,
}

const FORWARD: Pass = Pass {
    short: false,
    bf16: ["attention_64", "attention_128"],
    dropped: ["attention_dropped_64", "attention_dropped_128"],
    f32: "attention_f32",
    tiles: 5,
    side: 0,
};
/// d_q.
const QUERIES: Pass = Pass {
    short: false,
    bf16: ["attention_queries_64", "attention_queries_128"],
    dropped: ["attention_queries_dropped_64", "attention_queries_dropped_128"],
    f32: "attention_queries_f32",
    tiles: 6,
    side: 0,
};
/// d_k and d_v.
const KEYS: Pass = Pass {
    short: false,
    bf16: ["attention_keys_64", "attention_keys_128"],
    dropped: ["attention_keys_dropped_64", "attention_keys_dropped_128"],
    f32: "attention_keys_f32",
    tiles: 6,
    side: SIDE_BYTES,
};

/// Forward where no example has more than [`MOST_SHORT_ROWS`].
const SHORT: Pass = Pass {
    short: true,
    bf16: ["attention_short_64", "attention_short_128"],
    dropped: ["attention_short_dropped_64", "attention_short_dropped_128"],
    f32: FORWARD.f32,
    tiles: 3,
    side: 0,
};
/// Delta, d_q, d_k and d_v at once.
const SHORT_BACKWARD: Pass = Pass {
    short: true,
    bf16: ["attention_short_backward_64", "attention_short_backward_128"],
    dropped: ["attention_short_backward_dropped_64", "attention_short_backward_dropped_128"],
    f32: QUERIES.f32,
    tiles: 4,
    side: 0,
};

impl Pass {
    fn file(&self) -> &'static str {
        if self.short { "short_attention" } else { "attention" }
    }

    /// The grid over so many examples and tiles.
    fn grid(&self, examples: usize, tiles: usize, heads: Heads) -> [u32; 3] {
        match self.short {
            true => [(examples * heads.count).div_ceil(4) as u32, 1, 1],
            false => [tiles as u32, heads.count as u32, 1],
        }
    }

    /// The bf16 kernel for these arguments, and its dynamic shared memory: tiles, what lies beside them, and the bias, which is
    /// constant for [`BIAS_MARGIN`] beyond either end of its reach.
    fn instance(&self, arguments: &AttentionArguments) -> (&'static str, u32) {
        let (index, columns) = if arguments.width <= 64 { (0, 64) } else { (1, 128) };
        let (names, masks) = if arguments.mask.is_some() { (&self.dropped, MASKS) } else { (&self.bf16, 0) };
        let beside = match self.short {
            true if masks > 0 => SHORT_MASKS,
            true => 0,
            false => masks + self.side + (2 * (arguments.reach as usize + BIAS_MARGIN) + 1) * 4,
        };
        (names[index], (self.tiles * TILE * columns * 2 + beside) as u32)
    }
}

/// Which rows ask which, and how they lie.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) query_side: Side,
    pub(super) key_side: Side,
    pub(super) scope: Scope,
    pub(super) heads: Heads,
    pub(super) q_stride: usize,
    pub(super) kv_stride: usize,
    pub(super) reach: usize,
}

impl Shape {
    fn fill(&self, cuda: &Cuda, batch: &Batch, mask: Mask<'_>) -> Result<AttentionArguments> {
        let width = self.heads.width;
        check_width(width, "leave --device out to compute on the CPU")?;
        Ok(AttentionArguments {
            batch: cuda.describe(batch)?.address(cuda)?,
            mask: cuda.mask(mask)?,
            query_side: side_number(self.query_side),
            key_side: side_number(self.key_side),
            scope: scope_number(self.scope),
            heads: self.heads.count as i32,
            width: width as i32,
            q_stride: self.q_stride as i32,
            kv_stride: self.kv_stride as i32,
            reach: self.reach as i32,
            causal: i32::from(self.query_side == Side::Decoder && self.key_side == Side::Decoder),
            ..AttentionArguments::default()
        })
    }
}

impl Cuda {
    /// Launches the kernel of a pass over tiles of `side`.
    fn attention_kernel(
        &self,
        pass: &Pass,
        batch: &Batch,
        side: Side,
        shape: &Shape,
        arguments: &AttentionArguments,
    ) -> Result<()> {
        let (name, shared) = match self.precision() {
            Precision::F32 => (pass.f32, 0),
            Precision::Bf16 => pass.instance(arguments),
        };
        let tiles = self.describe(batch)?.tiles(side, shape.scope);
        let grid = pass.grid(batch.examples(), tiles, shape.heads);
        let kernel = Kernel { file: pass.file(), name };
        // SAFETY: the callers checked every operand's shape; tiles beyond the batch's exit, rows beyond a tile's are zeros.
        unsafe { self.kernels().launch(kernel, grid, 128, shared, arguments) }
    }

    /// Whether every example's rows fit a warp.
    fn is_short(&self, batch: &Batch, shape: &Shape) -> bool {
        let decoder = [shape.query_side, shape.key_side] == [Side::Decoder; 2];
        self.precision() == Precision::Bf16 && decoder && batch.longest_target() <= MOST_SHORT_ROWS
    }

    /// Whether the backward pass of a self attention reads <d_o, o> of each head that the product before it can find: columns of a
    /// head are those of a partial sum, and tiles of rows are what it works on.
    pub(super) fn wants_delta(&self, batch: &Batch, side: Side, heads: Heads) -> bool {
        let short = side == Side::Decoder && batch.longest_target() <= MOST_SHORT_ROWS;
        self.precision() == Precision::Bf16 && heads.width == NORM_COLUMNS && !short
    }

    /// o and log-sum-exp; `arguments` has the addresses.
    pub(super) fn attend(
        &self,
        batch: &Batch,
        shape: &Shape,
        mask: Mask<'_>,
        addresses: AttentionArguments,
    ) -> Result<()> {
        let arguments = merged(shape.fill(self, batch, mask)?, addresses);
        let (queries, keys) = (batch.rows(shape.query_side), batch.rows(shape.key_side));
        self.count((4 * queries * shape.heads.total() * keys / batch.examples().max(1)) as u64);
        let pass = if self.is_short(batch, shape) { &SHORT } else { &FORWARD };
        self.attention_kernel(pass, batch, shape.query_side, shape, &arguments)
    }

    /// d_q where it is wanted, d_k and d_v; `addresses` has all, delta only where it is known.
    pub(super) fn attend_backward(
        &self,
        batch: &Batch,
        shape: &Shape,
        mask: Mask<'_>,
        addresses: AttentionArguments,
    ) -> Result<()> {
        if self.is_short(batch, shape) {
            let arguments = merged(shape.fill(self, batch, mask)?, addresses);
            return self.attention_kernel(&SHORT_BACKWARD, batch, shape.query_side, shape, &arguments);
        }
        let mut arguments = merged(shape.fill(self, batch, mask)?, addresses);
        let rows = batch.rows(shape.query_side) * shape.heads.count;
        let delta: Buffer<f32> = self.allocate(if arguments.delta == 0 { rows } else { 0 });
        if arguments.delta == 0 {
            arguments.delta = self.address_of(&delta)?;
            let kernel =
                Kernel { file: "attention", name: self.named("attention_delta_bf16", "attention_delta_f32") };
            // SAFETY: delta has a number for each row and head; rows beyond the batch's exit.
            unsafe { self.kernels().launch(kernel, [rows.div_ceil(4) as u32, 1, 1], 128, 0, &arguments)? };
        }
        if arguments.d_q != 0 {
            self.attention_kernel(&QUERIES, batch, shape.query_side, shape, &arguments)?;
        }
        self.attention_kernel(&KEYS, batch, shape.key_side, shape, &arguments)
    }

    /// Bytes of a number in the operand format.
    pub(super) fn operand_bytes(&self) -> u64 {
        match self.precision() {
            Precision::Bf16 => 2,
            Precision::F32 => 4,
        }
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_self_attention(
        &self,
        batch: &Batch,
        side: Side,
        heads: Heads,
        bias: &PositionBias,
        mask: Mask<'_>,
        qkv: &Rows,
        o: &mut Rows,
        log_sum_exp: &mut Rows,
    ) -> Result<()> {
        let (rows, total) = (batch.rows(side), heads.total());
        qkv.check("qkv", rows, 3 * total)?;
        o.check("o", rows, total)?;
        log_sum_exp.check("log_sum_exp", rows, heads.count)?;
        let addresses = AttentionArguments {
            o: o.operand_address(self)?,
            log_sum_exp: log_sum_exp.float_address(self)?,
            ..self.self_addresses(heads, bias, qkv)?
        };
        self.attend(batch, &self_shape(side, Scope::All, heads, bias), mask, addresses)
    }

    fn self_addresses(&self, heads: Heads, bias: &PositionBias, qkv: &Rows) -> Result<AttentionArguments> {
        if bias.heads != heads.count {
            return Err(Error::tensor(
                "the position bias",
                format!("{} heads", heads.count),
                bias.heads.to_string(),
                "",
            ));
        }
        let (q, step) = (qkv.operand_address(self)?, heads.total() as u64 * self.operand_bytes());
        let bias = self.address_of(&bias.values)?;
        Ok(AttentionArguments { q, k: q + step, v: q + 2 * step, bias, ..AttentionArguments::default() })
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_self_attention_backward(
        &self,
        batch: &Batch,
        side: Side,
        scope: Scope,
        heads: Heads,
        bias: &PositionBias,
        mask: Mask<'_>,
        qkv: &Rows,
        o: &Rows,
        log_sum_exp: &Rows,
        d_o: &Rows,
        d_qkv: &mut Rows,
    ) -> Result<()> {
        let (rows, total) = (batch.rows(side), heads.total());
        let scoped = if scope == Scope::Prompt { batch.examples() * batch.prompt_length() } else { rows };
        qkv.check("qkv", rows, 3 * total)?;
        o.check("o", rows, total)?;
        log_sum_exp.check("log_sum_exp", rows, heads.count)?;
        d_o.check("d_o", rows, total)?;
        d_qkv.check("d_qkv", scoped, 3 * total)?;
        let inner = self.allocate(scoped * 2 * heads.count);
        let inner_address = self.address_of(&inner)?;
        d_qkv.inner = Some(inner);
        let (d_q, step) = (d_qkv.operand_address(self)?, total as u64 * self.operand_bytes());
        let addresses = AttentionArguments {
            o: o.operand_address(self)?,
            log_sum_exp: log_sum_exp.float_address(self)?,
            d_o: d_o.operand_address(self)?,
            delta: d_o.inner.as_ref().map_or(Ok(0), |delta| self.address_of(delta))?,
            d_q,
            d_k: d_q + step,
            d_v: d_q + 2 * step,
            inner: inner_address,
            inner_parts: 2,
            ..self.self_addresses(heads, bias, qkv)?
        };
        self.attend_backward(batch, &self_shape(side, scope, heads, bias), mask, addresses)
    }
}

fn self_shape(side: Side, scope: Scope, heads: Heads, bias: &PositionBias) -> Shape {
    let stride = 3 * heads.total();
    Shape {
        query_side: side,
        key_side: side,
        scope,
        heads,
        q_stride: stride,
        kv_stride: stride,
        reach: bias.reach,
    }
}

/// The shape's numbers with the operands' addresses.
fn merged(shape: AttentionArguments, addresses: AttentionArguments) -> AttentionArguments {
    let AttentionArguments {
        batch,
        mask,
        query_side,
        key_side,
        scope,
        heads,
        width,
        q_stride,
        kv_stride,
        reach,
        causal,
        ..
    } = shape;
    AttentionArguments {
        batch,
        mask,
        query_side,
        key_side,
        scope,
        heads,
        width,
        q_stride,
        kv_stride,
        reach,
        causal,
        ..addresses
    }
}

/// A self attention over packed sequences, for launches on cudarc's own buffers.
///
/// o = softmax(q k^T + bias) v for each sequence and head, without 1 / sqrt(K). Rows are packed end to end: `qkv` is
/// \[rows, 3·H·K\], q before k before v, in bf16.
#[derive(Clone, Copy)]
pub struct SelfAttention<'a> {
    /// How the rows are cut into sequences.
    pub sequences: &'a Sequences,
    /// Head count and width; the width a multiple of 8, up to 128.
    pub heads: Heads,
    /// Whether a row sees only itself and those before it.
    pub causal: bool,
    /// \[H, 2·reach + 1\]: what is added for key - query from -reach on; beyond either end the end value holds.
    pub bias: Option<(&'a CudaView<'a, f32>, usize)>,
}

impl SelfAttention<'_> {
    fn arguments(&self, kernels: &Kernels, qkv: &CudaView<'_, bf16>) -> Result<AttentionArguments> {
        let Heads { count, width } = self.heads;
        let (rows, total) = (self.sequences.rows(), self.heads.total());
        check_width(width, "")?;
        check_length("qkv", rows * 3 * total, qkv.len())?;
        let (mut bias, mut reach) = (0, 0);
        if let Some((values, of)) = self.bias {
            check_length("bias", count * (2 * of + 1), values.len())?;
            (bias, reach) = (address(values, kernels.stream()), of);
        }
        let (q, step) = (address(qkv, kernels.stream()), total as u64 * 2);
        let side = side_number(Side::Decoder);
        Ok(AttentionArguments {
            batch: self.sequences.address(kernels),
            q,
            k: q + step,
            v: q + 2 * step,
            bias,
            query_side: side,
            key_side: side,
            heads: count as i32,
            width: width as i32,
            q_stride: 3 * total as i32,
            kv_stride: 3 * total as i32,
            reach: reach as i32,
            causal: i32::from(self.causal),
            ..AttentionArguments::default()
        })
    }

    fn is_short(&self) -> bool {
        self.sequences.longest() <= MOST_SHORT_ROWS
    }

    fn launch(&self, kernels: &Kernels, pass: &Pass, arguments: &AttentionArguments) -> Result<()> {
        check_aligned(&[
            ("qkv", arguments.q),
            ("o", arguments.o),
            ("d_o", arguments.d_o),
            ("d_qkv", arguments.d_q),
        ])?;
        let (name, shared) = pass.instance(arguments);
        let grid = pass.grid(self.sequences.count(), self.sequences.tiles(), self.heads);
        // SAFETY: `arguments` and its callers checked every operand's length; rows beyond a tile's are zeros.
        unsafe { kernels.launch(Kernel { file: pass.file(), name }, grid, 128, shared, arguments) }
    }

    /// Launches the forward pass: `o` \[rows, H·K\] and `log_sum_exp` \[rows, H\], which backward needs.
    ///
    /// Costs 4·n²·H·K operations for a sequence of n rows (half that when causal), and moves qkv, o and log-sum-exp once for
    /// every 64 queries that read them.
    ///
    /// # Errors
    /// A length or head width that does not fit, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        qkv: &CudaView<'_, bf16>,
        o: &mut CudaViewMut<'_, bf16>,
        log_sum_exp: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let rows = self.sequences.rows();
        check_length("o", rows * self.heads.total(), o.len())?;
        check_length("log_sum_exp", rows * self.heads.count, log_sum_exp.len())?;
        let arguments = AttentionArguments {
            o: address_mut(o, kernels.stream()),
            log_sum_exp: address_mut(log_sum_exp, kernels.stream()),
            ..self.arguments(kernels, qkv)?
        };
        self.launch(kernels, if self.is_short() { &SHORT } else { &FORWARD }, &arguments)
    }

    /// Launches the backward pass: `d_qkv` \[rows, 3·H·K\] from `d_o` \[rows, H·K\] and what forward gave; the bias has no
    /// gradient. `delta` \[rows, H\] is scratch. Costs 2.5 times the forward pass; deterministic, no atomics.
    ///
    /// # Errors
    /// As [`SelfAttention::forward`].
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub fn backward(
        &self,
        kernels: &Kernels,
        qkv: &CudaView<'_, bf16>,
        o: &CudaView<'_, bf16>,
        log_sum_exp: &CudaView<'_, f32>,
        d_o: &CudaView<'_, bf16>,
        delta: &mut CudaViewMut<'_, f32>,
        d_qkv: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        let (rows, total, stream) = (self.sequences.rows(), self.heads.total(), kernels.stream());
        check_length("o", rows * total, o.len())?;
        check_length("d_o", rows * total, d_o.len())?;
        check_length("log_sum_exp", rows * self.heads.count, log_sum_exp.len())?;
        check_length("delta", rows * self.heads.count, delta.len())?;
        check_length("d_qkv", rows * 3 * total, d_qkv.len())?;
        let (d_q, step) = (address_mut(d_qkv, stream), total as u64 * 2);
        let arguments = AttentionArguments {
            o: address(o, stream),
            log_sum_exp: address(log_sum_exp, stream),
            d_o: address(d_o, stream),
            delta: address_mut(delta, stream),
            d_q,
            d_k: d_q + step,
            d_v: d_q + 2 * step,
            ..self.arguments(kernels, qkv)?
        };
        if self.is_short() {
            return self.launch(kernels, &SHORT_BACKWARD, &arguments);
        }
        let kernel = Kernel { file: "attention", name: "attention_delta_bf16" };
        let grid = [(rows * self.heads.count).div_ceil(4) as u32, 1, 1];
        // SAFETY: delta has a number for each row and head, and every other length was checked.
        unsafe { kernels.launch(kernel, grid, 128, 0, &arguments)? };
        self.launch(kernels, &QUERIES, &arguments)?;
        self.launch(kernels, &KEYS, &arguments)
    }
}
