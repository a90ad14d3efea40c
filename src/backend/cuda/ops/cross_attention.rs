//! Cross attention absorbed into the rows that it is over: `kernels/cross_attention.cu`; `cross_attention_hopper.rs` has what takes its
//! place where the device has compute capability 9.0.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::attention::check_heads;
use super::linear::Norm;
use super::packing::{Described, DropoutMask};
use super::{CrossArguments, NORM_COLUMNS, ProjectedArguments, SourceArguments, WIDTH_MULTIPLE};
use crate::backend::cuda::runtime::arguments::cross_attention::{MAX_LAYERS, SLICE};
use crate::backend::cuda::runtime::kernels::{Arguments, Kernel, Kernels};
use crate::backend::cuda::runtime::operands::{Operands, Precision, ReadOperand, WriteOperand};
use crate::backend::{Heads, Side};
use crate::error::{Error, Result};

const FILE: &str = "cross_attention";
/// Blocks that a product of heads should have at least: about the multiprocessors of a GPU of a data centre.
const BLOCKS: usize = 108;
/// Shared memory of a block in bytes: the products' stages, and after them the log-sum-exp and delta of 64 rows.
const SHARED: u32 = 48 * 1024 + 2 * 64 * 4;
/// The same where the product before is made too: its stages, a tile of the next product's weight, and its result.
const SHARED_PROJECTED: u32 = (48 + 16 + 8) * 1024;
/// The widest head whose product is computed in one kernel with the next.
const WIDEST_PROJECTED: usize = 64;
/// The widest row of a source: far beyond any model's, and no product of sizes overflows.
const WIDEST_SOURCE: usize = 1 << 16;

/// What the grids and buffers of an absorbed cross attention are made for: T targets, the decoder's rows of a batch, over R sources, the
/// encoder's rows, D wide.
#[derive(Clone, Copy, Debug)]
pub struct AbsorbedShape<'a> {
    /// How targets and sources are cut into examples.
    pub batch: Described<'a>,
    /// Head count and width; the width a multiple of 8, up to 128.
    pub heads: Heads,
    /// D, a multiple of 8.
    pub depth: usize,
}

/// Numbers in the buffers of an absorbed cross attention; where there are none, an empty slice will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbsorbedLengths {
    /// Of q', mixed, d_mixed and d_q', each: T·H·D.
    pub wide: usize,
    /// Of scores, p and ds, each.
    pub pairs: usize,
    /// Of the sums; 0 in f32.
    pub sums: usize,
    /// Of what forward drops: in f32 that of p, 0 in bf16.
    pub dropped: usize,
    /// Of the parts of <d_q, q>: T·H·ceil(K / 64), in f32 T·H.
    pub inner: usize,
}

impl AbsorbedShape<'_> {
    /// How long the buffers must be that the caller brings.
    ///
    /// # Errors
    /// Heads or a depth that kernels have no room for.
    pub fn lengths(&self, precision: Precision) -> Result<AbsorbedLengths> {
        check_heads(self.heads, "")?;
        if !(self.depth.is_multiple_of(WIDTH_MULTIPLE) && (1..=WIDEST_SOURCE).contains(&self.depth)) {
            let expected = format!("[R, D] with D a multiple of {WIDTH_MULTIPLE}, up to {WIDEST_SOURCE}");
            return Err(Error::tensor("h", expected, format!("D {}", self.depth), ""));
        }
        let (rows, targets) = (self.longest_rows(), self.targets() * self.heads.count);
        // With the gaps between examples.
        let pairs = (self.sources().next_multiple_of(8) + 8 * self.batch.batch().examples()) * rows;
        let (sums, dropped, parts) = match precision {
            // A maximum and a sum, of each row and tile.
            Precision::Bf16 => (2 * self.tiles() * rows, 0, self.heads.width.div_ceil(64)),
            Precision::F32 => (0, pairs, 1),
        };
        Ok(AbsorbedLengths { wide: targets * self.depth, pairs, sums, dropped, inner: targets * parts })
    }

    /// Whether [`AbsorbedCrossAttention::project`] has a kernel for it: heads up to 64 wide, in bf16.
    pub fn projects(&self, precision: Precision) -> bool {
        precision == Precision::Bf16 && self.heads.width <= WIDEST_PROJECTED
    }

    /// Launches the sum of what layers of this shape bring to the gradient of the sources, `d_h` \[R, D\] in f32, which with `adds` is
    /// added to what is there: ds^T q' + p^T d_mixed of each layer, in order.
    ///
    /// Costs 4·t·H·n·D operations a layer for an example of t targets and n sources, in one launch for every 24 layers.
    ///
    /// # Errors
    /// A length or format that does not fit, and what the driver says.
    pub fn sum_sources(
        &self,
        kernels: &Kernels,
        layers: &[AbsorbedPart<'_>],
        d_h: &mut dyn DevicePtrMut<f32>,
        adds: bool,
    ) -> Result<()> {
        let Some(first) = layers.first() else { return Ok(()) };
        let precision = first.ds.precision();
        let lengths = self.lengths(precision)?;
        let mut steps = Steps::new(kernels, *self, precision)?;
        let operands = &mut steps.operands;
        steps.of.d_h = operands.write("d_h", d_h, self.sources() * self.depth)?;
        let mut places = Vec::new();
        for layer in layers {
            places.push(Places {
                ds: operands.matrix("ds", layer.ds, precision, lengths.pairs)?,
                p: operands.matrix("p", layer.p, precision, lengths.pairs)?,
                absorbed_q: operands.matrix("q'", layer.absorbed_q, precision, lengths.wide)?,
                d_mixed: operands.matrix("d_mixed", layer.d_mixed, precision, lengths.wide)?,
            });
        }
        steps.sum(&places, adds)
    }

    pub(super) fn targets(&self) -> usize {
        self.batch.batch().rows(Side::Decoder)
    }

    pub(super) fn sources(&self) -> usize {
        self.batch.batch().rows(Side::Encoder)
    }

    pub(super) fn examples(&self) -> usize {
        self.batch.batch().examples()
    }

    /// The most targets of an example.
    fn longest(&self) -> usize {
        self.batch.batch().longest_target()
    }

    /// The most rows of an example among \[T, H\].
    pub(super) fn longest_rows(&self) -> usize {
        self.longest() * self.heads.count
    }

    /// The most tiles of sources.
    fn tiles(&self) -> usize {
        self.batch.rows(Side::Encoder).tiles()
    }

    /// Fragments of 16 targets that a block narrows: as many as leave enough blocks.
    fn fragments(&self) -> usize {
        let heads = self.heads.width.div_ceil(64) * self.heads.count;
        let blocks = |fragments: usize| self.targets().div_ceil(16 * fragments) * heads;
        [4, 2].into_iter().find(|&fragments| blocks(fragments) >= BLOCKS).unwrap_or(1)
    }
}

/// A layer's part of the gradient of the sources, as [`AbsorbedCrossAttention::backward`] leaves it.
#[derive(Clone, Copy)]
pub struct AbsorbedPart<'a> {
    /// As [`AbsorbedGradient::ds`].
    pub ds: &'a dyn ReadOperand,
    /// As [`AbsorbedGradient::p`].
    pub p: &'a dyn ReadOperand,
    /// q' \[T, H, D\].
    pub absorbed_q: &'a dyn ReadOperand,
    /// \[T, H, D\].
    pub d_mixed: &'a dyn ReadOperand,
}

/// Where a part lies.
struct Places {
    ds: u64,
    p: u64,
    absorbed_q: u64,
    d_mixed: u64,
}

/// A launch of a sequence.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// Rows of H·K columns, times a weight, to rows of H·D.
    Widen,
    /// Rows of H·D columns, times a weight read the other way, to rows of H·K, and where `q` is given their inner products with its.
    Narrow,
    /// q' · h.
    Scores,
    /// ds and p.
    ScoresBackward,
    /// mixed.
    Mix,
    /// d_q'.
    MixBackward,
    /// d_h of up to [`MAX_LAYERS`] layers.
    Sources,
}

impl Step {
    /// The kernels, in bf16 and in f32.
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::Widen => ["cross_widen_bf16", "cross_widen_f32"],
            Self::Narrow => ["cross_narrow_bf16", "cross_narrow_f32"],
            Self::Scores => ["cross_scores_bf16", "cross_scores_f32"],
            Self::ScoresBackward => ["cross_scores_backward_bf16", "cross_scores_backward_f32"],
            Self::Mix => ["cross_mix_bf16", "cross_mix_f32"],
            Self::MixBackward => ["cross_backward_bf16", "cross_backward_f32"],
            Self::Sources => ["cross_sources_bf16", "cross_sources_f32"],
        }
    }

    pub(super) fn grid(self, of: &AbsorbedShape<'_>, precision: Precision) -> [usize; 3] {
        let (heads, targets) = (of.heads.count, of.targets());
        // Slices of columns, blocks of 64 rows that an example may have, and rows of scores.
        let (columns, parts, rows) =
            (of.depth.div_ceil(SLICE), of.longest_rows().div_ceil(64), targets * heads);
        match (precision, self) {
            (Precision::Bf16, Self::Widen) => [columns, targets.div_ceil(64), heads],
            (Precision::Bf16, Self::Narrow) => {
                [of.heads.width.div_ceil(64), targets.div_ceil(16 * of.fragments()), heads]
            }
            (Precision::Bf16, Self::Scores | Self::ScoresBackward) => [of.tiles(), parts, 1],
            (Precision::Bf16, Self::Mix | Self::MixBackward) => [columns, parts, of.batch.batch().examples()],
            (Precision::Bf16, Self::Sources) => [columns, of.tiles(), 1],
            (Precision::F32, Self::Widen) => [columns, targets, heads],
            (Precision::F32, Self::Narrow) => [1, targets, heads],
            (Precision::F32, Self::Scores | Self::ScoresBackward) => [rows, 1, 1],
            (Precision::F32, Self::Mix | Self::MixBackward) => [columns, rows, 1],
            (Precision::F32, Self::Sources) => [columns, of.sources(), 1],
        }
    }
}

/// The launches of a sequence, over the operands of all of them; `of` has what they share.
pub(super) struct Steps<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) shape: AbsorbedShape<'a>,
    pub(super) precision: Precision,
    pub(super) operands: Operands<'a>,
    of: CrossArguments,
}

impl<'a> Steps<'a> {
    fn new(kernels: &'a Kernels, shape: AbsorbedShape<'a>, precision: Precision) -> Result<Self> {
        let mut operands = kernels.operands();
        let of = CrossArguments {
            batch: shape.batch.read(&mut operands)?,
            heads: shape.heads.count as i32,
            width: shape.heads.width as i32,
            depth: shape.depth as i32,
            longest: shape.longest() as i32,
            fragments: shape.fragments() as i32,
            ..CrossArguments::default()
        };
        Ok(Self { kernels, shape, precision, operands, of })
    }

    pub(super) fn launch<A: Arguments>(&self, step: Step, arguments: &A) -> Result<()> {
        let [bf16, f32] = step.names();
        let shared = if self.precision == Precision::Bf16 { SHARED } else { 0 };
        let kernel = Kernel { file: FILE, name: self.precision.named(bf16, f32) };
        let grid = step.grid(&self.shape, self.precision).map(|blocks| blocks as u32);
        // SAFETY: every operand was checked against the shape, which the grids follow; the kernels read counts from the descriptor and
        // leave what lies after them alone. Pairs begin at multiples of eight and lie a multiple of eight apart, so that rows of them
        // are aligned where the whole is.
        unsafe { self.kernels.launch(kernel, grid, 128, shared, arguments, &self.operands) }
    }

    /// d_h, the sum of what these layers bring, or with `adds` what was there and that sum.
    fn sum(&self, layers: &[Places], adds: bool) -> Result<()> {
        for (index, layers) in layers.chunks(MAX_LAYERS).enumerate() {
            let (count, adds) = (layers.len() as i32, i32::from(adds || index > 0));
            let mut arguments =
                SourceArguments { of: self.of, layers: count, adds, ..SourceArguments::default() };
            for (i, layer) in layers.iter().enumerate() {
                (arguments.weights[2 * i], arguments.weights[2 * i + 1]) = (layer.ds, layer.p);
                (arguments.rows[2 * i], arguments.rows[2 * i + 1]) = (layer.absorbed_q, layer.d_mixed);
            }
            self.launch(Step::Sources, &arguments)?;
        }
        Ok(())
    }
}

/// Cross attention absorbed into the rows that it is over.
///
/// o = W_v mixed with mixed = softmax(q W_k · h) h for each target row and head, without 1 / sqrt(K): no key and no value of a
/// source row is computed. Targets \[T, H·K\] and sources h \[R, D\] are packed end to end. It pays where a target has fewer
/// rows than a head has columns. All matrices are in the format of `w_k`, bf16 or to verify f32.
///
/// A target over a single source row attends to nothing else, so that o = W_v h:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::backend::Heads;
/// use promptmix::cuda::cross_attention::{AbsorbedCrossAttention, AbsorbedForward, AbsorbedShape, Wide};
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::{DropoutMask, Kernels, PairedSequences};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let pairs = PairedSequences::new(stream, &[(1, 1)])?;
/// let shape = AbsorbedShape { batch: pairs.described(), heads: Heads { count: 1, width: 8 }, depth: 16 };
/// let upload = |value: f32, count: usize| stream.clone_htod(&vec![bf16::from_f32(value); count]);
/// let (w_k, w_v) = (upload(1.0, 8 * 16)?, upload(0.5, 8 * 16)?);
/// let attention = AbsorbedCrossAttention { shape, w_k: &w_k, w_v: &w_v, mask: DropoutMask::default() };
/// let (lengths, q, h) = (attention.lengths()?, upload(1.0, 8)?, upload(3.0, 16)?);
/// let (mut absorbed_q, mut mixed) = (upload(f32::NAN, lengths.wide)?, upload(f32::NAN, lengths.wide)?);
/// let mut scores = stream.clone_htod(&vec![f32::NAN; lengths.pairs])?;
/// let mut sums = stream.clone_htod(&vec![f32::NAN; lengths.sums])?;
/// let (mut o, mut unused) = (upload(f32::NAN, 8)?, upload(f32::NAN, 1)?);
/// let forward = AbsorbedForward {
///     q: &q,
///     h: &h,
///     absorbed_q: Wide::Made(&mut absorbed_q),
///     scores: &mut scores,
///     sums: &mut sums,
///     dropped: &mut unused.slice_mut(0..0), // In bf16 it has no numbers.
///     mixed: &mut mixed,
///     o: &mut o,
/// };
/// attention.forward(&kernels, forward)?;
/// assert_eq!(stream.clone_dtoh(&o)?[0].to_f32(), 16.0 * 0.5 * 3.0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct AbsorbedCrossAttention<'a> {
    /// Which rows, and how wide.
    pub shape: AbsorbedShape<'a>,
    /// \[H·K, D\].
    pub w_k: &'a dyn ReadOperand,
    /// \[H·K, D\].
    pub w_v: &'a dyn ReadOperand,
    /// Dropout of the probabilities; one site a head.
    pub mask: DropoutMask<'a>,
}

/// What rows of H·K columns are widened to, \[T, H, D\]: of q, times W_k, q'; of d_o, times W_v, d_mixed.
pub enum Wide<'a> {
    /// As [`AbsorbedCrossAttention::project`] left it.
    Known(&'a dyn ReadOperand),
    /// Room for it: it is made in a launch more.
    Made(&'a mut dyn WriteOperand),
}

/// Two products in a row: a projection, and the one that widens its result.
pub struct AbsorbedProjection<'a> {
    /// \[T, D\]: x, or d_x.
    pub a: &'a dyn ReadOperand,
    /// Of x, for q; none for d_o.
    pub norm: Option<Norm<'a>>,
    /// W_q \[H·K, D\] for q, W_o \[D, H·K\] for d_o.
    pub weight: &'a dyn ReadOperand,
    /// \[T, H·K\]: q = r · x W_q^T, or d_o = d_x W_o.
    pub to: &'a mut dyn WriteOperand,
    /// \[T, H, D\]: q', or d_mixed.
    pub wide: &'a mut dyn WriteOperand,
}

/// Operands of the forward pass; lengths by [`AbsorbedCrossAttention::lengths`].
pub struct AbsorbedForward<'a> {
    /// \[T, H·K\].
    pub q: &'a dyn ReadOperand,
    /// \[R, D\].
    pub h: &'a dyn ReadOperand,
    /// q' = q W_k of each head, \[T, H, D\], which backward needs.
    pub absorbed_q: Wide<'a>,
    /// Scores of every pair of a row (a target and head, in this order) and a source row of its example, in f32, which backward needs;
    /// in f32 their softmax. Example b's lie from (o + 8·b)·longest·H on, with o its first source row rounded up to eight; row by row,
    /// n rounded up to eight apart.
    pub scores: &'a mut dyn DevicePtrMut<f32>,
    /// Maximum and sum of exponentials of each row and tile, which backward needs.
    pub sums: &'a mut dyn DevicePtrMut<f32>,
    /// Scratch in f32: the probabilities with dropout.
    pub dropped: &'a mut dyn WriteOperand,
    /// \[T, H, D\], scratch.
    pub mixed: &'a mut dyn WriteOperand,
    /// \[T, H·K\].
    pub o: &'a mut dyn WriteOperand,
}

/// What backward reads.
pub struct AbsorbedBackward<'a> {
    /// What forward read, \[R, D\].
    pub h: &'a dyn ReadOperand,
    /// q' of the forward pass.
    pub absorbed_q: &'a dyn ReadOperand,
    /// What forward wrote.
    pub scores: &'a dyn DevicePtr<f32>,
    /// What forward wrote.
    pub sums: &'a dyn DevicePtr<f32>,
    /// What forward wrote, \[T, H·K\].
    pub o: &'a dyn ReadOperand,
    /// \[T, H·K\].
    pub d_o: &'a dyn ReadOperand,
    /// d_mixed = d_o W_v of each head, \[T, H, D\].
    pub d_mixed: Wide<'a>,
}

/// What backward writes.
pub struct AbsorbedGradient<'a> {
    /// The gradients of the scores, placed as the scores.
    pub ds: &'a mut dyn WriteOperand,
    /// The probabilities with dropout, placed as the scores.
    pub p: &'a mut dyn WriteOperand,
    /// The gradient of q, where it is wanted.
    pub d_q: Option<QueryGradient<'a>>,
    /// \[R, D\] in f32, to which the gradient of h is added; without it [`AbsorbedShape::sum_sources`] sums that of many layers at once.
    pub d_h: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// What backward writes of q's gradient.
pub struct QueryGradient<'a> {
    /// d_q' \[T, H, D\], scratch.
    pub d_absorbed_q: &'a mut dyn WriteOperand,
    /// \[T, H·K\].
    pub d_q: &'a mut dyn WriteOperand,
    /// q \[T, H·K\], and room for the parts of <d_q, q> of each row in f32, where they are wanted.
    pub inner: Option<(&'a dyn ReadOperand, &'a mut dyn DevicePtrMut<f32>)>,
}

impl<'s> AbsorbedCrossAttention<'s> {
    /// How long the buffers must be that the caller brings.
    ///
    /// # Errors
    /// Heads or a depth that kernels have no room for.
    pub fn lengths(&self) -> Result<AbsorbedLengths> {
        self.shape.lengths(self.precision())
    }

    fn precision(&self) -> Precision {
        self.w_k.precision()
    }

    /// Numbers of q and its like.
    fn narrow(&self) -> usize {
        self.shape.targets() * self.shape.heads.total()
    }

    /// Adds \[H·K, D\] weights to a launch.
    fn weight<'a>(
        &self,
        operands: &mut Operands<'a>,
        what: &str,
        weight: &'a dyn ReadOperand,
    ) -> Result<u64> {
        operands.matrix(what, weight, self.precision(), self.shape.heads.total() * self.shape.depth)
    }

    /// The launches of a pass over `h`.
    fn steps<'a>(&self, kernels: &'a Kernels, h: &'a dyn ReadOperand) -> Result<Steps<'a>>
    where
        's: 'a,
    {
        let mut steps = Steps::new(kernels, self.shape, self.precision())?;
        let numbers = self.shape.sources() * self.shape.depth;
        steps.of.h = steps.operands.matrix("h", h, self.precision(), numbers)?;
        steps.of.mask = self.mask.read(&mut steps.operands)?;
        Ok(steps)
    }

    /// Adds wide rows to a launch: where they lie, and whether they are there.
    fn wide<'a>(
        &self,
        operands: &mut Operands<'a>,
        what: &str,
        rows: Wide<'a>,
        length: usize,
    ) -> Result<(u64, bool)> {
        match rows {
            Wide::Known(rows) => Ok((operands.matrix(what, rows, self.precision(), length)?, true)),
            Wide::Made(rows) => Ok((operands.matrix_mut(what, rows, self.precision(), length)?, false)),
        }
    }

    /// Launches the product before the attention, or before its backward, and the one that widens its result, as one.
    ///
    /// Costs 2·T·H·K·D operations for the second product, and as many for the first in every 128 columns of D, each of which makes it
    /// anew: little enough for few targets. Reads a once for every head and 128 columns, its weight for every 64 targets and 128
    /// columns, and the second product's weight for every 64 targets.
    ///
    /// # Errors
    /// Heads or a format that [`AbsorbedShape::projects`] says no of, a length that does not fit, and what the driver says.
    pub fn project<'a>(&self, kernels: &'a Kernels, of: AbsorbedProjection<'a>) -> Result<()>
    where
        's: 'a,
    {
        let (shape, precision, lengths) = (&self.shape, self.precision(), self.lengths()?);
        if !shape.projects(precision) {
            let found = format!("{} in {precision}", shape.heads.width);
            let expected = format!("a head width up to {WIDEST_PROJECTED}, in bf16");
            return Err(Error::tensor("a widened product", expected, found, "make it by itself"));
        }
        let targets = shape.targets();
        let mut steps = Steps::new(kernels, *shape, precision)?;
        let operands = &mut steps.operands;
        let [first, weight, after, what, what_wide] = match of.norm {
            Some(_) => ["x", "w_q", "w_k", "q", "q'"],
            None => ["d_x", "w_o", "w_v", "d_o", "d_mixed"],
        };
        let (name, weight_after) = match of.norm {
            Some(_) => ("cross_project_bf16", self.w_k),
            None => ("cross_project_backward_bf16", self.w_v),
        };
        let a = operands.matrix(first, of.a, precision, targets * shape.depth)?;
        let weight = self.weight(operands, weight, of.weight)?;
        let (partials, epsilon) = match of.norm {
            Some(Norm { partials, epsilon }) => {
                let length = targets * shape.depth.div_ceil(NORM_COLUMNS);
                (operands.read("the norm's partial sums", partials, length)?, epsilon)
            }
            None => (0, 0.0),
        };
        steps.of.weight = self.weight(operands, after, weight_after)?;
        let middle = operands.matrix_mut(what, of.to, precision, self.narrow())?;
        steps.of.to = operands.matrix_mut(what_wide, of.wide, precision, lengths.wide)?;
        let arguments = ProjectedArguments {
            of: steps.of,
            a,
            weight,
            partials,
            middle,
            epsilon,
            ..ProjectedArguments::default()
        };
        if steps.project(&arguments, of.norm.is_none())? {
            return Ok(());
        }
        let grid = Step::Widen.grid(shape, precision).map(|blocks| blocks as u32);
        let kernel = Kernel { file: FILE, name };
        // SAFETY: every operand was checked against the shape; rows beyond the batch's exit.
        unsafe { kernels.launch(kernel, grid, 128, SHARED_PROJECTED, &arguments, &steps.operands) }
    }

    /// Launches the forward pass: `o` \[T, H·K\] from `q` \[T, H·K\] and `h` \[R, D\].
    ///
    /// Costs 4·t·H·D·(n + K) operations for an example of t targets and n sources, in four launches, one less where q' is known; reads
    /// the weights once for every 64 targets, and h twice for every 64 / H targets of its example. With compute capability 9.0 scores and
    /// mixture are one launch, which reads h once.
    ///
    /// # Errors
    /// A length, format or head width that does not fit, and what the driver says.
    pub fn forward<'a>(&self, kernels: &'a Kernels, of: AbsorbedForward<'a>) -> Result<()>
    where
        's: 'a,
    {
        let (lengths, precision) = (self.lengths()?, self.precision());
        let mut steps = self.steps(kernels, of.h)?;
        let operands = &mut steps.operands;
        let [w_k, w_v] = [self.weight(operands, "w_k", self.w_k)?, self.weight(operands, "w_v", self.w_v)?];
        let q = operands.matrix("q", of.q, precision, self.narrow())?;
        let (absorbed_q, is_known) = self.wide(operands, "q'", of.absorbed_q, lengths.wide)?;
        let mixed = operands.matrix_mut("mixed", of.mixed, precision, lengths.wide)?;
        let o = operands.matrix_mut("o", of.o, precision, self.narrow())?;
        let shared = CrossArguments {
            absorbed_q,
            scores: operands.write("scores", of.scores, lengths.pairs)?,
            sums: operands.write("sums", of.sums, lengths.sums)?,
            p: operands.matrix_mut("dropped", of.dropped, precision, lengths.dropped)?,
            ..steps.of
        };
        if !is_known {
            steps.launch(Step::Widen, &CrossArguments { from: q, weight: w_k, to: absorbed_q, ..shared })?;
        }
        let mixing = CrossArguments { to: mixed, ..shared };
        if !steps.attend(&mixing, false)? {
            steps.launch(Step::Scores, &shared)?;
            steps.launch(Step::Mix, &mixing)?;
        }
        steps.narrow(&CrossArguments { from: mixed, weight: w_v, to: o, ..shared })
    }

    /// Launches the backward pass from `d_o` \[T, H·K\] and what forward left.
    ///
    /// Costs twice the forward pass, in five launches: one less where d_mixed is known, two less without d_q, one less without d_h, and one
    /// less with d_q on compute capability 9.0. Deterministic, no atomics.
    ///
    /// # Errors
    /// As [`AbsorbedCrossAttention::forward`].
    pub fn backward<'a>(
        &self,
        kernels: &'a Kernels,
        from: AbsorbedBackward<'a>,
        gradient: AbsorbedGradient<'a>,
    ) -> Result<()>
    where
        's: 'a,
    {
        let (lengths, precision) = (self.lengths()?, self.precision());
        let mut steps = self.steps(kernels, from.h)?;
        let operands = &mut steps.operands;
        let [w_k, w_v] = [self.weight(operands, "w_k", self.w_k)?, self.weight(operands, "w_v", self.w_v)?];
        let d_o = operands.matrix("d_o", from.d_o, precision, self.narrow())?;
        let (d_mixed, is_known) = self.wide(operands, "d_mixed", from.d_mixed, lengths.wide)?;
        let mut narrow = CrossArguments::default();
        let with_d_q = gradient.d_q.is_some();
        if let Some(of) = gradient.d_q {
            narrow.from = operands.matrix_mut("d_q'", of.d_absorbed_q, precision, lengths.wide)?;
            narrow.to = operands.matrix_mut("d_q", of.d_q, precision, self.narrow())?;
            if let Some((q, inner)) = of.inner {
                narrow.q = operands.matrix("q", q, precision, self.narrow())?;
                narrow.inner = operands.write("inner", inner, lengths.inner)?;
            }
        }
        let with_d_h = gradient.d_h.is_some();
        if let Some(d_h) = gradient.d_h {
            steps.of.d_h = operands.write("d_h", d_h, self.shape.sources() * self.shape.depth)?;
        }
        let shared = CrossArguments {
            absorbed_q: operands.matrix("q'", from.absorbed_q, precision, lengths.wide)?,
            scores: operands.read("scores", from.scores, lengths.pairs)?,
            sums: operands.read("sums", from.sums, lengths.sums)?,
            o: operands.matrix("o", from.o, precision, self.narrow())?,
            d_o,
            d_mixed,
            ds: operands.matrix_mut("ds", gradient.ds, precision, lengths.pairs)?,
            p: operands.matrix_mut("p", gradient.p, precision, lengths.pairs)?,
            d_absorbed_q: narrow.from,
            ..steps.of
        };
        if !is_known {
            steps.launch(Step::Widen, &CrossArguments { from: d_o, weight: w_v, to: d_mixed, ..shared })?;
        }
        let at_once = steps.attend(&shared, true)?;
        if !at_once {
            steps.launch(Step::ScoresBackward, &shared)?;
        }
        if with_d_q {
            if !at_once {
                steps.launch(Step::MixBackward, &shared)?;
            }
            let CrossArguments { from, to, q, inner, .. } = narrow;
            steps.narrow(&CrossArguments { from, weight: w_k, to, q, inner, ..shared })?;
        }
        if !with_d_h {
            return Ok(());
        }
        let part = Places { ds: shared.ds, p: shared.p, absorbed_q: shared.absorbed_q, d_mixed };
        steps.sum(&[part], true)
    }
}
