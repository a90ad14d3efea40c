//! One new token an example against a cache: `kernels/decode.cu`.

use super::kernels::{Arguments, Kernel};
use super::rows::{Operand, PositionBias, Rows};
use super::{Cuda, failure};
use crate::backend::Heads;
use crate::error::{Error, Result};

#[derive(Clone, Copy)]
#[repr(C)]
struct DecodeArguments {
    qkv: u64,
    cache: u64,
    o: u64,
    bias: u64,
    heads: i32,
    width: i32,
    length: i32,
    position: i32,
    reach: i32,
    padding: i32,
}
const _: () = assert!(size_of::<DecodeArguments>() == 56);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for DecodeArguments {}

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
        qkv.expect("qkv", cache.examples, 3 * total)?;
        o.expect("o", cache.examples, total)?;
        if position >= cache.length || heads.width > 128 {
            let expected = format!("a position below {} and heads of up to 128 columns", cache.length);
            return Err(Error::tensor(
                "a decoding step",
                expected,
                format!("{position}, {}", heads.width),
                "",
            ));
        }
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
        let grid = [cache.examples as u32, heads.count as u32, 1];
        let kernel = Kernel { file: "decode", name: self.named("decode_bf16", "decode_f32") };
        // SAFETY: shapes were checked, and the position lies within the cache.
        unsafe { self.kernels().launch(kernel, grid, 32, 0, &arguments) }
    }
}
