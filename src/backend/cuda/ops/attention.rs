//! Attention: `kernels/attention.cu`, where the device has compute capability 9.0 `kernels/attention_hopper.cu`, and
//! `kernels/short_attention.cu` where examples have few rows.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::packing::{DropoutMask, PackedRows};
use super::{ATTENTION_TILE, AttentionArguments, WIDTH_MULTIPLE, side_number};
use crate::backend::cuda::runtime::arguments::attention::{BIAS_MARGIN, LANE_PARTS};
use crate::backend::cuda::runtime::arguments::attention_tile::{MASK_BYTES, SIDE_BYTES};
use crate::backend::cuda::runtime::arguments::{scope_number, short_attention};
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::{Operands, Precision, ReadOperand, WriteOperand};
use crate::backend::{Heads, Scope, Side};
use crate::error::{Error, Result};

/// The most rows of an example that a warp holds.
pub(crate) const MAX_SHORT_ROWS: usize = short_attention::MAX_ROWS;
/// Shared memory after the tiles, with dropout: two masks of a bit a query and key.
const MASKS: usize = 2 * MASK_BYTES;
/// And where rows are few, of a block's four warps.
const SHORT_MASKS: usize = 4 * short_attention::MASK_BYTES;
/// The widest head: a warp's 32 lanes hold so many columns each.
const WIDEST_HEAD: usize = 32 * LANE_PARTS;
/// Heads that a grid has room for in its second and third direction.
const MAX_HEADS: usize = 65_535;
/// Far more biases than shared memory has room for.
const MAX_DISTANCE: usize = 1 << 20;

/// What attention of less shared memory is.
const LESS_SHARED: &str =
    "a bias of a shorter maximum distance, heads up to 64 wide and no dropout take less";

/// The kernels of a pass.
struct Pass {
    /// Whether a warp has an example and head; otherwise a block a tile of rows and head.
    short: bool,
    /// bf16, for heads up to 64 wide and up to [`WIDEST_HEAD`].
    bf16: [&'static str; 2],
    /// The same with dropout.
    dropped: [&'static str; 2],
    /// For heads up to 64 wide on compute capability 9.0, without and with dropout.
    hopper: Option<[&'static str; 2]>,
    f32: &'static str,
    /// Tiles of shared memory that the bf16 kernels take, and bytes beside them.
    tiles: usize,
    side: usize,
}

const FORWARD: Pass = Pass {
    short: false,
    bf16: ["attention_64", "attention_128"],
    dropped: ["attention_dropped_64", "attention_dropped_128"],
    hopper: Some(["attention_64_hopper", "attention_dropped_64_hopper"]),
    f32: "attention_f32",
    tiles: 5,
    side: 0,
};
/// d_k and d_v, and where it is wanted d_q.
const BACKWARD: Pass = Pass {
    short: false,
    bf16: ["attention_backward_64", "attention_backward_128"],
    dropped: ["attention_backward_dropped_64", "attention_backward_dropped_128"],
    hopper: Some(["attention_backward_64_hopper", "attention_backward_dropped_64_hopper"]),
    f32: "attention_backward_f32",
    tiles: 6,
    side: SIDE_BYTES,
};
/// Forward where no example has more than [`MAX_SHORT_ROWS`].
const SHORT: Pass = Pass {
    short: true,
    bf16: ["attention_short_64", "attention_short_128"],
    dropped: ["attention_short_dropped_64", "attention_short_dropped_128"],
    hopper: None,
    f32: FORWARD.f32,
    tiles: 3,
    side: 0,
};
/// Delta, d_q, d_k and d_v at once.
const SHORT_BACKWARD: Pass = Pass {
    short: true,
    bf16: ["attention_short_backward_64", "attention_short_backward_128"],
    dropped: ["attention_short_backward_dropped_64", "attention_short_backward_dropped_128"],
    hopper: None,
    f32: BACKWARD.f32,
    tiles: 4,
    side: 0,
};

impl Pass {
    /// The kernel for these arguments on such a device, and its dynamic shared memory: tiles, what lies beside them, and the bias, which
    /// is constant for [`BIAS_MARGIN`] beyond its maximum distance at either end.
    fn instance(
        &self,
        arguments: &AttentionArguments,
        precision: Precision,
        is_hopper: bool,
    ) -> (Kernel, u32) {
        let file = if self.short { "short_attention" } else { "attention" };
        if precision == Precision::F32 {
            return (Kernel { file, name: self.f32 }, 0);
        }
        let (is_wide, is_dropped) = (arguments.width > 64, arguments.mask.step != 0);
        let names = if is_dropped { &self.dropped } else { &self.bf16 };
        let kernel = match self.hopper {
            Some(names) if is_hopper && !is_wide => {
                Kernel { file: "attention_hopper", name: names[usize::from(is_dropped)] }
            }
            _ => Kernel { file, name: names[usize::from(is_wide)] },
        };
        let masks = if is_dropped { MASKS } else { 0 };
        let beside = match self.short {
            true if is_dropped => SHORT_MASKS,
            true => 0,
            false => masks + self.side + (2 * (arguments.max_distance as usize + BIAS_MARGIN) + 1) * 4,
        };
        let columns = if is_wide { 128 } else { 64 };
        (kernel, (self.tiles * ATTENTION_TILE * columns * 2 + beside) as u32)
    }
}

/// Fails unless kernels have room for such heads; `advice` says what else to do.
pub(crate) fn check_heads(heads: Heads, advice: &str) -> Result<()> {
    let Heads { count, width } = heads;
    if !(width.is_multiple_of(WIDTH_MULTIPLE) && (1..=WIDEST_HEAD).contains(&width)) {
        let expected = format!("a head width up to {WIDEST_HEAD} that is a multiple of {WIDTH_MULTIPLE}");
        return Err(Error::tensor("q", expected, width.to_string(), advice));
    }
    if !(1..=MAX_HEADS).contains(&count) {
        return Err(Error::tensor("q", format!("1 to {MAX_HEADS} heads"), count.to_string(), advice));
    }
    Ok(())
}

/// H·K columns of a matrix, which a launch reads.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// \[rows, `stride`\] in bf16, or to verify in f32.
    pub matrix: &'a dyn ReadOperand,
    /// The first of the columns, a multiple of 8.
    pub first: usize,
    /// Numbers from row to row, a multiple of 8.
    pub stride: usize,
}

/// H·K columns of a matrix, which a launch writes; the others stay as they are.
pub struct ColumnsMut<'a> {
    /// As [`Columns::matrix`].
    pub matrix: &'a mut dyn WriteOperand,
    /// As [`Columns::first`].
    pub first: usize,
    /// As [`Columns::stride`].
    pub stride: usize,
}

/// q, k and v as both passes read them, all in one format.
#[derive(Clone, Copy)]
pub enum AttentionInput<'a> {
    /// \[rows, 3·H·K\], q before k before v: of a self attention.
    Packed(&'a dyn ReadOperand),
    /// Each by itself; of one matrix or of several. k and v lie equally many numbers from row to row.
    Apart {
        /// \[query rows, H·K\].
        q: Columns<'a>,
        /// \[key rows, H·K\].
        k: Columns<'a>,
        /// \[key rows, H·K\].
        v: Columns<'a>,
    },
}

/// Their gradients, which lie as they do themselves, on the rows of the scope.
pub enum InputGradient<'a> {
    /// \[rows, 3·H·K\].
    Packed(&'a mut dyn WriteOperand),
    /// Each by itself.
    Apart {
        /// \[query rows, H·K\], where it is wanted.
        d_q: Option<ColumnsMut<'a>>,
        /// \[key rows, H·K\].
        d_k: ColumnsMut<'a>,
        /// \[key rows, H·K\].
        d_v: ColumnsMut<'a>,
    },
}

/// <d_o, o> of each query row and head, \[query rows, H\] in f32.
pub enum Delta<'a> {
    /// As the product before found it: [`Epilogue::Delta`](super::linear::Epilogue::Delta).
    Known(&'a dyn DevicePtr<f32>),
    /// Room for it.
    Scratch(&'a mut dyn DevicePtrMut<f32>),
}

/// What backward reads.
pub struct AttentionBackward<'a> {
    /// What forward read.
    pub input: AttentionInput<'a>,
    /// What forward wrote, \[query rows, H·K\].
    pub o: &'a dyn ReadOperand,
    /// What forward wrote, \[query rows, H\] in f32.
    pub log_sum_exp: &'a dyn DevicePtr<f32>,
    /// \[query rows, H·K\].
    pub d_o: &'a dyn ReadOperand,
    /// None where [`Attention::needs_delta`] says so.
    pub delta: Option<Delta<'a>>,
}

/// What backward writes.
pub struct AttentionGradient<'a> {
    /// The gradient itself.
    pub of_input: InputGradient<'a>,
    /// Parts of each row's inner product of the gradient with the input, head by head, in f32, as
    /// [`Epilogue::NormBackward`](super::linear::Epilogue::NormBackward) wants them: of a packed gradient \[rows, 2·H\], else of d_q
    /// alone, \[query rows, H\].
    pub inner: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// Attention of packed rows over packed rows: o = softmax(softmax_scale q k^T + bias) v for each example and head.
///
/// The first row of a sequence, which in a causal attention sees only itself, repeats its v:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::backend::Heads;
/// use promptmix::cuda::attention::{Attention, AttentionInput};
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::{Kernels, Sequences};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let (sequences, heads) = (Sequences::new(stream, &[2, 3])?, Heads { count: 1, width: 8 });
/// // q, k and v of five rows; every number of row i is i.
/// let numbers: Vec<bf16> = (0..5 * 24).map(|n| bf16::from_f32((n / 24) as f32)).collect();
/// let qkv = stream.clone_htod(&numbers)?;
/// let mut o = stream.clone_htod(&[bf16::NAN; 5 * 8])?;
/// let mut log_sum_exp = stream.clone_htod(&[f32::NAN; 5])?;
/// let attention = Attention { causal: true, ..Attention::of_itself(sequences.rows(), heads) };
/// attention.forward(&kernels, AttentionInput::Packed(&qkv), &mut o, &mut log_sum_exp)?;
/// assert_eq!(stream.clone_dtoh(&o)?[2 * 8].to_f32(), 2.0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Whose queries.
    pub queries: PackedRows<'a>,
    /// Whose keys and values, of the same batch. For prompt rows of both sides, which are the encoder's, backward gives the gradients of
    /// prompt queries and prompt keys; all else is of all rows.
    pub keys: PackedRows<'a>,
    /// Head count and width; the width a multiple of 8, up to 128.
    pub heads: Heads,
    /// \[H, 2·max_distance + 1\] in f32, and max_distance: what is added to the score, indexed by key - query from -max_distance on. Beyond
    /// either end the end value holds.
    pub bias: Option<(&'a dyn DevicePtr<f32>, usize)>,
    /// Whether a row sees only itself and those before it; of rows over themselves.
    pub causal: bool,
    /// What q · k is multiplied by before the bias is added, above zero: 1 for T5, 1 / sqrt(K) for most other models.
    pub softmax_scale: f32,
    /// Dropout of the probabilities.
    pub mask: DropoutMask<'a>,
}

impl<'s> Attention<'s> {
    /// Of queries over keys, which all see each other: no bias, a softmax scale of 1, and nothing is dropped.
    pub fn new(queries: PackedRows<'s>, keys: PackedRows<'s>, heads: Heads) -> Self {
        let mask = DropoutMask::default();
        Self { queries, keys, heads, bias: None, causal: false, softmax_scale: 1.0, mask }
    }

    /// [`Attention::new`] of rows over themselves.
    pub fn of_itself(rows: PackedRows<'s>, heads: Heads) -> Self {
        Self::new(rows, rows, heads)
    }

    /// Whether backward in that format works with <d_o, o> of each row and head, which [`Delta`] gives or has room for. With few rows
    /// an example it finds it on the way, if d_q is wanted.
    pub fn needs_delta(&self, precision: Precision) -> bool {
        !self.is_short(precision)
    }

    /// Whether every example's rows fit a warp.
    pub(super) fn is_short(&self, precision: Precision) -> bool {
        let decoder = [self.queries.side(), self.keys.side()] == [Side::Decoder; 2];
        precision == Precision::Bf16 && decoder && self.queries.longest_target() <= MAX_SHORT_ROWS
    }

    /// Fails unless queries, keys and heads go together.
    fn check(&self) -> Result<()> {
        check_heads(self.heads, "")?;
        let sides = [self.queries.side(), self.keys.side()];
        if self.queries.batch().batch().id() != self.keys.batch().batch().id() {
            return Err(Error::tensor("the keys", "rows of the queries' batch", "rows of another", ""));
        }
        if self.causal && sides[0] != sides[1] {
            let found = "rows of the other side";
            return Err(Error::tensor("the keys of a causal attention", "the queries' own rows", found, ""));
        }
        if !(self.softmax_scale.is_finite() && self.softmax_scale > 0.0) {
            let found = self.softmax_scale.to_string();
            let advice = "T5 has 1, most other models 1 / sqrt(K)";
            return Err(Error::setting("softmax_scale", "a finite number above zero", found, advice));
        }
        let scopes = [self.queries.scope(), self.keys.scope()];
        let prompts = scopes == [Scope::Prompt; 2] && sides == [Side::Encoder; 2];
        if scopes == [Scope::All; 2] || prompts {
            return Ok(());
        }
        let expected = "all rows, or the encoder's prompt rows of both";
        Err(Error::tensor("the rows of queries and keys", expected, format!("{scopes:?} of {sides:?}"), ""))
    }

    /// Adds what both passes read to a launch: the arguments, and the format of all matrices.
    pub(super) fn arguments<'a>(
        &self,
        operands: &mut Operands<'a>,
        input: AttentionInput<'a>,
    ) -> Result<(AttentionArguments, Precision)>
    where
        's: 'a,
    {
        let beside = self.arguments_beside_input(operands)?;
        let (total, [queries, keys]) = (self.heads.total(), [self.queries.all(), self.keys.all()]);
        let ([q, k, v], [q_stride, kv_stride], precision) = match input {
            AttentionInput::Packed(qkv) => {
                self.check_packed()?;
                let (precision, stride) = (qkv.precision(), 3 * total);
                let at = operands.matrix("qkv", qkv, precision, queries * stride)?;
                (packed(at, total, precision), [stride; 2], precision)
            }
            AttentionInput::Apart { q, k, v } => {
                let (precision, strides) = (q.matrix.precision(), [q.stride, k.stride]);
                check_stride("v", k.stride, v.stride)?;
                let mut place = |what, of: Columns<'a>, rows: usize| {
                    check_columns(what, of.first, of.stride, total)?;
                    let at = operands.matrix(what, of.matrix, precision, rows * of.stride)?;
                    Ok::<_, Error>(at + (of.first * precision.bytes()) as u64)
                };
                let places = [place("q", q, queries)?, place("k", k, keys)?, place("v", v, keys)?];
                (places, strides, precision)
            }
        };
        let arguments =
            AttentionArguments { q, k, v, q_stride: q_stride as i32, kv_stride: kv_stride as i32, ..beside };
        Ok((arguments, precision))
    }

    /// The same without q, k and v.
    pub(super) fn arguments_beside_input<'a>(&self, operands: &mut Operands<'a>) -> Result<AttentionArguments>
    where
        's: 'a,
    {
        self.check()?;
        let (bias, max_distance) = match self.bias {
            Some((_, max_distance)) if max_distance > MAX_DISTANCE => {
                let expected = format!("a maximum distance up to {MAX_DISTANCE}");
                return Err(Error::tensor("bias", expected, max_distance.to_string(), ""));
            }
            Some((values, max_distance)) => {
                (operands.read("bias", values, self.heads.count * (2 * max_distance + 1))?, max_distance)
            }
            None => (0, 0),
        };
        Ok(AttentionArguments {
            batch: self.queries.read(operands)?,
            bias,
            mask: self.mask.read(operands)?,
            query_side: side_number(self.queries.side()),
            key_side: side_number(self.keys.side()),
            scope: scope_number(self.queries.scope()),
            heads: self.heads.count as i32,
            width: self.heads.width as i32,
            max_distance: max_distance as i32,
            causal: i32::from(self.causal),
            softmax_scale: self.softmax_scale,
            ..AttentionArguments::default()
        })
    }

    /// Fails unless queries and keys are the same rows.
    fn check_packed(&self) -> Result<()> {
        if self.queries.side() == self.keys.side() {
            return Ok(());
        }
        let advice = "give q, k and v each by itself: AttentionInput::Apart";
        Err(Error::tensor("qkv", "queries and keys of the same rows", "rows of both sides", advice))
    }

    /// Launches the kernel of a pass; of backward without d_q the part of the keys alone.
    fn launch(
        &self,
        kernels: &Kernels,
        operands: &Operands<'_>,
        pass: &Pass,
        precision: Precision,
        arguments: &AttentionArguments,
    ) -> Result<()> {
        let (kernel, shared) = pass.instance(arguments, precision, kernels.is_hopper()?);
        let tiles = match (arguments.d_k != 0, arguments.d_q != 0) {
            (false, _) => self.queries.tiles(),
            (true, false) => arguments.key_tiles as usize,
            (true, true) => arguments.key_tiles as usize + self.queries.tiles(),
        };
        let heads = self.heads.count;
        let grid = match pass.short {
            true => [(self.queries.examples() * heads).div_ceil(4) as u32, 1, 1],
            false => [tiles as u32, heads as u32, 1],
        };
        // SAFETY: `arguments` and its callers checked every operand's length; tiles beyond the batch's exit, rows beyond a tile's are
        // zeros.
        unsafe { kernels.launch(kernel, grid, 128, shared, arguments, operands) }
    }

    /// Launches the forward pass, over all rows: `o` \[query rows, H·K\], in the format of the input, and `log_sum_exp`
    /// \[query rows, H\] in f32, which backward needs.
    ///
    /// Costs 4·m·n·H·K operations for an example of m queries and n keys (half that when causal). Moves q, o and log-sum-exp once, and
    /// k and v once for every 64 queries that read them.
    ///
    /// # Errors
    /// A length, format, head or scope that does not fit, and what the driver says.
    pub fn forward<'a>(
        &self,
        kernels: &'a Kernels,
        input: AttentionInput<'a>,
        o: &'a mut dyn WriteOperand,
        log_sum_exp: &'a mut dyn DevicePtrMut<f32>,
    ) -> Result<()>
    where
        's: 'a,
    {
        if self.queries.scope() == Scope::Prompt {
            return Err(Error::tensor("an attention", "all rows of a side", "its prompt rows", ""));
        }
        let (mut operands, rows) = (kernels.operands(), self.queries.all());
        let (mut arguments, precision) = self.arguments(&mut operands, input)?;
        arguments.o = operands.matrix_mut("o", o, precision, rows * self.heads.total())?;
        arguments.log_sum_exp = operands.write("log_sum_exp", log_sum_exp, rows * self.heads.count)?;
        let pass = if self.is_short(precision) { &SHORT } else { &FORWARD };
        let (kernel, shared) = pass.instance(&arguments, precision, kernels.is_hopper()?);
        kernels.check_shared(kernel.name, shared, LESS_SHARED)?;
        self.launch(kernels, &operands, pass, precision, &arguments)
    }

    /// Launches the backward pass from `d_o` and what forward gave; the bias has no gradient.
    ///
    /// Costs 3.5 times the forward pass, in one launch, and a second for delta where it is not known and an example has more than 16
    /// rows. Deterministic, no atomics.
    ///
    /// # Errors
    /// As [`Attention::forward`]; no delta where it is needed, and inner products of a d_q that is not wanted.
    pub fn backward<'a>(
        &self,
        kernels: &'a Kernels,
        from: AttentionBackward<'a>,
        gradient: AttentionGradient<'a>,
    ) -> Result<()>
    where
        's: 'a,
    {
        let (mut operands, rows) = (kernels.operands(), self.queries.all());
        let (mut arguments, precision) = self.arguments(&mut operands, from.input)?;
        let (total, count) = (self.heads.total(), self.heads.count);
        arguments.o = operands.matrix("o", from.o, precision, rows * total)?;
        arguments.log_sum_exp = operands.read("log_sum_exp", from.log_sum_exp, rows * count)?;
        arguments.d_o = operands.matrix("d_o", from.d_o, precision, rows * total)?;
        let parts = self.read_gradient(&mut operands, gradient.of_input, precision, &mut arguments)?;
        arguments.key_tiles = self.keys.tiles() as i32;
        let (with_d_q, inner_rows) = (arguments.d_q != 0, self.queries.count());
        if let Some(inner) = gradient.inner {
            if !with_d_q {
                return Err(Error::tensor("inner", "d_q, whose products they are", "none", ""));
            }
            arguments.inner = operands.write("inner", inner, inner_rows * parts * count)?;
            arguments.inner_parts = parts as i32;
        }
        let is_short = self.is_short(precision) && with_d_q;
        let is_known = !matches!(from.delta, Some(Delta::Scratch(_)));
        arguments.delta = match from.delta {
            Some(Delta::Known(delta)) => operands.read("delta", delta, rows * count)?,
            Some(Delta::Scratch(delta)) => operands.write("delta", delta, rows * count)?,
            None if is_short => 0,
            None => return Err(Error::tensor("delta", "the numbers, or room for them", "none", "")),
        };
        if is_short {
            return self.launch(kernels, &operands, &SHORT_BACKWARD, precision, &arguments);
        }
        let (kernel, shared) = BACKWARD.instance(&arguments, precision, kernels.is_hopper()?);
        kernels.check_shared(kernel.name, shared, LESS_SHARED)?;
        if !is_known {
            let name = precision.named("attention_delta_bf16", "attention_delta_f32");
            let kernel = Kernel { file: "attention", name };
            let grid = [(rows * count).div_ceil(4) as u32, 1, 1];
            // SAFETY: delta has a number for each row and head, and d_o and o have theirs; rows beyond the batch's exit.
            unsafe { kernels.launch(kernel, grid, 128, 0, &arguments, &operands)? };
        }
        self.launch(kernels, &operands, &BACKWARD, precision, &arguments)
    }

    /// Adds the gradients to a launch; how many heads' worth of inner products a row has.
    pub(super) fn read_gradient<'a>(
        &self,
        operands: &mut Operands<'a>,
        gradient: InputGradient<'a>,
        precision: Precision,
        arguments: &mut AttentionArguments,
    ) -> Result<usize> {
        let (total, [queries, keys]) = (self.heads.total(), [self.queries.count(), self.keys.count()]);
        let [q_stride, kv_stride] = [arguments.q_stride, arguments.kv_stride].map(|stride| stride as usize);
        match gradient {
            InputGradient::Packed(d_qkv) => {
                self.check_packed()?;
                let stride = 3 * total;
                check_stride("d_qkv, as q", q_stride, stride)?;
                check_stride("d_qkv, as k", kv_stride, stride)?;
                let at = operands.matrix_mut("d_qkv", d_qkv, precision, queries * stride)?;
                [arguments.d_q, arguments.d_k, arguments.d_v] = packed(at, total, precision);
                Ok(2)
            }
            InputGradient::Apart { d_q, d_k, d_v } => {
                let mut place = |what, of: ColumnsMut<'a>, rows: usize, stride: usize| {
                    check_stride(what, stride, of.stride)?;
                    check_columns(what, of.first, stride, total)?;
                    let at = operands.matrix_mut(what, of.matrix, precision, rows * stride)?;
                    Ok::<_, Error>(at + (of.first * precision.bytes()) as u64)
                };
                if let Some(d_q) = d_q {
                    arguments.d_q = place("d_q", d_q, queries, q_stride)?;
                }
                arguments.d_k = place("d_k", d_k, keys, kv_stride)?;
                arguments.d_v = place("d_v", d_v, keys, kv_stride)?;
                Ok(1)
            }
        }
    }
}

/// Where the three parts of a packed row begin.
fn packed(at: u64, total: usize, precision: Precision) -> [u64; 3] {
    [0, 1, 2].map(|part| at + (part * total * precision.bytes()) as u64)
}

fn check_stride(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::tensor(what, format!("{expected} numbers from row to row"), found.to_string(), ""))
}

/// Fails unless `total` columns from `first` on lie within a row, which begins on 16 bytes as they do.
fn check_columns(what: &str, first: usize, stride: usize, total: usize) -> Result<()> {
    let aligned = first.is_multiple_of(WIDTH_MULTIPLE) && stride.is_multiple_of(WIDTH_MULTIPLE);
    if aligned && first.checked_add(total).is_some_and(|end| end <= stride) && stride <= i32::MAX as usize {
        return Ok(());
    }
    let expected = format!("{total} columns of a row, both from a multiple of {WIDTH_MULTIPLE} on");
    Err(Error::tensor(what, expected, format!("columns from {first} on, rows {stride} apart"), ""))
}
