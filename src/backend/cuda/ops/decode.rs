//! One new token an example against a cache: `kernels/decode.cu`.

use cudarc::driver::DevicePtr;

use super::DecodeArguments;
use crate::backend::Heads;
use crate::backend::cuda::runtime::arguments::decode::LANE_PARTS;
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::{ReadOperand, WriteOperand};
use crate::error::{Error, Result};

/// Widest head: a lane of a warp holds so many columns.
const WIDEST_HEAD: usize = 32 * LANE_PARTS;

/// One decoding step's self attention: a new token of every example against the tokens before it and itself, whose keys and
/// values join a cache.
///
/// o = sum over j of softmax_j(q · k_j + bias\[j - position\]) v_j, without 1 / sqrt(K).
///
/// At position 0 a token sees only itself, so that o repeats its v:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::backend::Heads;
/// use promptmix::cuda::Kernels;
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::decode::DecodeStep;
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let (heads, length, max_distance) = (Heads { count: 1, width: 8 }, 4, 1);
/// // q, k and v are 1, 2 and 3.
/// let qkv: Vec<bf16> = [[1.0; 8], [2.0; 8], [3.0; 8]].concat().into_iter().map(bf16::from_f32).collect();
/// let qkv = stream.clone_htod(&qkv)?;
/// let bias = stream.clone_htod(&vec![0.0_f32; 2 * max_distance + 1])?;
/// let mut cache = stream.clone_htod(&vec![bf16::NAN; length * 2 * 8])?;
/// let mut o = stream.clone_htod(&[bf16::NAN; 8])?;
/// let step = DecodeStep { examples: 1, heads, length, position: 0, bias: (&bias, max_distance) };
/// step.forward(&kernels, &qkv, &mut cache, &mut o)?;
/// assert_eq!(stream.clone_dtoh(&o)?[0].to_f32(), 3.0);
/// # Ok(())
/// # }
/// ```
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
    /// \[H, 2·max_distance + 1\] in f32, and max_distance: what is added to the score, indexed by key - query from -max_distance on. Beyond
    /// that the end value holds.
    pub bias: (&'a dyn DevicePtr<f32>, usize),
}

impl DecodeStep<'_> {
    /// Launches it: `o` \[B, H·K\] from `qkv` \[B, 3·H·K\], q before k before v; `cache` \[B, length, 2·H·K\] holds keys
    /// before values of the positions before, and gets those of this one. All in bf16, or to verify in f32.
    ///
    /// Costs 4·(position + 1)·H·K operations an example; moves the cache up to the position once.
    ///
    /// # Errors
    /// A length, format, position or head width that does not fit, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        qkv: &dyn ReadOperand,
        cache: &mut dyn WriteOperand,
        o: &mut dyn WriteOperand,
    ) -> Result<()> {
        let Self { examples, heads, length, position, bias: (bias, max_distance) } = *self;
        if position >= length || heads.width > WIDEST_HEAD {
            let expected = format!("a position below {length} and heads of up to {WIDEST_HEAD} columns");
            let found = format!("{position}, {}", heads.width);
            return Err(Error::tensor("a decoding step", expected, found, ""));
        }
        let (total, precision, mut operands) = (heads.total(), qkv.precision(), kernels.operands());
        let arguments = DecodeArguments {
            qkv: operands.matrix("qkv", qkv, precision, examples * 3 * total)?,
            cache: operands.matrix_mut("cache", cache, precision, examples * length * 2 * total)?,
            o: operands.matrix_mut("o", o, precision, examples * total)?,
            bias: operands.read("bias", bias, heads.count * (2 * max_distance + 1))?,
            heads: heads.count as i32,
            width: heads.width as i32,
            length: length as i32,
            position: position as i32,
            max_distance: max_distance as i32,
            ..DecodeArguments::default()
        };
        let kernel = Kernel { file: "decode", name: precision.named("decode_bf16", "decode_f32") };
        let grid = [examples as u32, heads.count as u32, 1];
        // SAFETY: every length was checked, and the position lies within the cache.
        unsafe { kernels.launch(kernel, grid, 32, 0, &arguments, &operands) }
    }
}
