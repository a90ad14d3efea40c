//! One new token an example against a cache: `kernels/decode.cu`.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::arguments::decode::{DecodeArguments, LANE_PARTS};
use super::kernels::{Kernel, Kernels};
use super::memory::{address, address_mut, check_length};
use super::rows::{Operand, PositionBias, Rows};
use super::{Cuda, failure};
use crate::backend::Heads;
use crate::error::{Error, Result};

/// Widest head: a warp has its columns.
const WIDEST_HEAD: usize = 32 * LANE_PARTS;

/// Keys and values decoded so far, per layer \[B, length, 2·H·K\] in the operand format.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<Operand>,
    examples: usize,
    length: usize,
}

impl Cache {
    pub(super) fn new(cuda: &Cuda, layers: usize, examples: usize, length: usize, heads: Heads) -> Self {
        let layer = || cuda.operand(examples * length * 2 * heads.total());
        Self { layers: (0..layers).map(|_| layer()).collect(), examples, length }
    }
}

impl Cuda {
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_decode_self_attention(
        &self,
        layer: usize,
        position: usize,
        heads: Heads,
        bias: &PositionBias,
        qkv: &Rows,
        cache: &mut Cache,
        o: &mut Rows,
    ) -> Result<()> {
        let total = heads.total();
        qkv.check("qkv", cache.examples, 3 * total)?;
        o.check("o", cache.examples, total)?;
        check_step(position, cache.length, heads)?;
        let arguments = DecodeArguments {
            qkv: qkv.operand_address(self)?,
            cache: cache.layers.get(layer).ok_or_else(failure::absent)?.address(self)?,
            o: o.operand_address(self)?,
            bias: self.address_of(&bias.values)?,
            heads: heads.count as i32,
            width: heads.width as i32,
            length: cache.length as i32,
            position: position as i32,
            reach: bias.reach as i32,
            padding: 0,
        };
        let kernel = Kernel { file: "decode", name: self.named("decode_bf16", "decode_f32") };
        // SAFETY: shapes were checked, and the position lies within the cache.
        unsafe { launch(self.kernels(), kernel, cache.examples, &arguments) }
    }
}

fn check_step(position: usize, length: usize, heads: Heads) -> Result<()> {
    if position < length && heads.width <= WIDEST_HEAD {
        return Ok(());
    }
    let expected = format!("a position below {length} and heads of up to {WIDEST_HEAD} columns");
    Err(Error::tensor("a decoding step", expected, format!("{position}, {}", heads.width), ""))
}

/// A warp for every example and head.
///
/// # Safety
/// As for [`Kernels::launch`].
unsafe fn launch(
    kernels: &Kernels,
    kernel: Kernel,
    examples: usize,
    arguments: &DecodeArguments,
) -> Result<()> {
    let grid = [examples as u32, arguments.heads as u32, 1];
    // SAFETY: the caller's promise.
    unsafe { kernels.launch(kernel, grid, 32, 0, arguments) }
}

/// One decoding step's self attention, for launches on cudarc's own buffers: a new token of every example against the tokens
/// before it and itself, whose keys and values join a cache.
///
/// o = sum over j of softmax_j(q · k_j + bias\[j - position\]) v_j, without 1 / sqrt(K).
#[derive(Clone, Copy)]
pub struct DecodeStep<'a> {
    /// B.
    pub examples: usize,
    /// Head count and width; the width up to 128.
    pub heads: Heads,
    /// Tokens that the cache has room for.
    pub length: usize,
    /// Where the new token stands, from 0.
    pub position: usize,
    /// \[H, 2·reach + 1\]: what is added for key - query from -reach on; beyond that the end value holds.
    pub bias: (&'a CudaView<'a, f32>, usize),
}

impl DecodeStep<'_> {
    /// Launches it: `o` \[B, H·K\] from `qkv` \[B, 3·H·K\], q before k before v; `cache` \[B, length, 2·H·K\] holds keys
    /// before values of the positions before, and gets those of this one. All in bf16.
    ///
    /// Costs 4·(position + 1)·H·K operations an example; moves the cache up to the position once.
    ///
    /// # Errors
    /// A length, position or head width that does not fit, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        qkv: &CudaView<'_, bf16>,
        cache: &mut CudaViewMut<'_, bf16>,
        o: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        let (total, stream, (bias, reach)) = (self.heads.total(), kernels.stream(), self.bias);
        check_step(self.position, self.length, self.heads)?;
        check_length("qkv", self.examples * 3 * total, qkv.len())?;
        check_length("cache", self.examples * self.length * 2 * total, cache.len())?;
        check_length("o", self.examples * total, o.len())?;
        check_length("bias", self.heads.count * (2 * reach + 1), bias.len())?;
        let arguments = DecodeArguments {
            qkv: address(qkv, stream),
            cache: address_mut(cache, stream),
            o: address_mut(o, stream),
            bias: address(bias, stream),
            heads: self.heads.count as i32,
            width: self.heads.width as i32,
            length: self.length as i32,
            position: self.position as i32,
            reach: reach as i32,
            padding: 0,
        };
        let kernel = Kernel { file: "decode", name: "decode_bf16" };
        // SAFETY: every length was checked, and the position lies within the cache.
        unsafe { launch(kernels, kernel, self.examples, &arguments) }
    }
}
