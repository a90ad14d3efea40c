//! Attention: `kernels/attention.cu`.

use super::dropout::MaskArgument;
use super::embedding::side_number;
use super::kernels::{Arguments, Kernel};
use super::memory::Buffer;
use super::rows::{PositionBias, Rows};
use super::{Cuda, Precision};
use crate::backend::{Batch, Heads, Mask, Scope, Side};
use crate::error::{Error, Result};

/// Widest head.
const WIDEST_HEAD: usize = 128;
/// Rows of a tile.
const TILE: usize = super::ATTENTION_TILE;
/// Shared memory behind the tiles: `SIDE_BYTES` of the kernel file.
const SIDE_BYTES: usize = 2 * 64 * 8 + 4 * 64 * 4;

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct AttentionArguments {
    pub(super) batch: u64,
    pub(super) q: u64,
    pub(super) k: u64,
    pub(super) v: u64,
    pub(super) o: u64,
    pub(super) log_sum_exp: u64,
    pub(super) bias: u64,
    pub(super) d_o: u64,
    pub(super) delta: u64,
    pub(super) d_q: u64,
    pub(super) d_k: u64,
    pub(super) d_v: u64,
    pub(super) inner: u64,
    pub(super) mask: MaskArgument,
    pub(super) query_side: i32,
    pub(super) key_side: i32,
    pub(super) scope: i32,
    pub(super) heads: i32,
    pub(super) width: i32,
    pub(super) q_stride: i32,
    pub(super) kv_stride: i32,
    pub(super) reach: i32,
    pub(super) causal: i32,
    pub(super) inner_parts: i32,
}
const _: () = assert!(size_of::<AttentionArguments>() == 160);
// SAFETY: the struct of that name in the kernel header.
unsafe impl Arguments for AttentionArguments {}

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
        if width > WIDEST_HEAD || !width.is_multiple_of(8) {
            let expected = format!("a head width up to {WIDEST_HEAD} that is a multiple of 8");
            return Err(Error::tensor(
                "q",
                expected,
                width.to_string(),
                "leave --device out to compute on the CPU",
            ));
        }
        Ok(AttentionArguments {
            batch: cuda.describe(batch)?.address(cuda)?,
            mask: cuda.mask(mask)?,
            query_side: side_number(self.query_side),
            key_side: side_number(self.key_side),
            scope: i32::from(self.scope == Scope::Prompt),
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
    /// Launches one of the attention kernels over tiles of `side`, with `tiles` tiles of shared memory.
    fn attention_kernel(
        &self,
        names: [&'static str; 3],
        batch: &Batch,
        side: Side,
        shape: &Shape,
        tiles: usize,
        arguments: &AttentionArguments,
    ) -> Result<()> {
        let columns = if shape.heads.width <= 64 { 64 } else { 128 };
        let bias = if arguments.bias == 0 { 0 } else { (2 * shape.reach + 1) * 4 };
        let (name, shared) = match (self.precision(), columns) {
            (Precision::F32, _) => (names[2], 0),
            (Precision::Bf16, 64) => (names[0], tiles * TILE * columns * 2 + SIDE_BYTES + bias),
            (Precision::Bf16, _) => (names[1], tiles * TILE * columns * 2 + SIDE_BYTES + bias),
        };
        let grid = [self.describe(batch)?.tiles(side, shape.scope) as u32, shape.heads.count as u32, 1];
        let kernel = Kernel { file: "attention", name };
        // SAFETY: the callers checked every operand's shape; tiles beyond the batch's exit, rows beyond a tile's are zeros.
        unsafe { self.kernels().launch(kernel, grid, 128, shared as u32, arguments) }
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
        let names = ["attention_64", "attention_128", "attention_f32"];
        self.attention_kernel(names, batch, shape.query_side, shape, 5, &arguments)
    }

    /// d_q where it is wanted, d_k and d_v; `addresses` has all but delta.
    pub(super) fn attend_backward(
        &self,
        batch: &Batch,
        shape: &Shape,
        mask: Mask<'_>,
        addresses: AttentionArguments,
    ) -> Result<()> {
        let rows = batch.rows(shape.query_side) * shape.heads.count;
        let delta: Buffer<f32> = self.allocate(rows);
        let mut arguments = merged(shape.fill(self, batch, mask)?, addresses);
        arguments.delta = self.address_of(&delta)?;
        let kernel =
            Kernel { file: "attention", name: self.named("attention_delta_bf16", "attention_delta_f32") };
        // SAFETY: delta has a number for each row and head; rows beyond the batch's exit.
        unsafe { self.kernels().launch(kernel, [rows.div_ceil(4) as u32, 1, 1], 128, 0, &arguments)? };
        if arguments.d_q != 0 {
            let names = ["attention_queries_64", "attention_queries_128", "attention_queries_f32"];
            self.attention_kernel(names, batch, shape.query_side, shape, 6, &arguments)?;
        }
        let names = ["attention_keys_64", "attention_keys_128", "attention_keys_f32"];
        self.attention_kernel(names, batch, shape.key_side, shape, 6, &arguments)
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
        qkv.expect("qkv", rows, 3 * total)?;
        o.expect("o", rows, total)?;
        log_sum_exp.expect("log_sum_exp", rows, heads.count)?;
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
        qkv.expect("qkv", rows, 3 * total)?;
        o.expect("o", rows, total)?;
        log_sum_exp.expect("log_sum_exp", rows, heads.count)?;
        d_o.expect("d_o", rows, total)?;
        d_qkv.expect("d_qkv", scoped, 3 * total)?;
        let inner = self.allocate(scoped * 2 * heads.count);
        let inner_address = self.address_of(&inner)?;
        d_qkv.inner = Some(inner);
        let (d_q, step) = (d_qkv.operand_address(self)?, total as u64 * self.operand_bytes());
        let addresses = AttentionArguments {
            o: o.operand_address(self)?,
            log_sum_exp: log_sum_exp.float_address(self)?,
            d_o: d_o.operand_address(self)?,
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
