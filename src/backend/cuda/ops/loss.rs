//! `lm_head` and its cross entropy, without logits: `kernels/loss.cu`.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::packing::PackedRows;
use super::{LossArguments, check_width};
use crate::backend::cuda::runtime::arguments::loss::{
    BLOCK_ROWS, MAX_RANGES, MAX_WARPS, TILE_BYTES, WARP_COLUMNS, WORDS,
};
use crate::backend::cuda::runtime::devices;
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::{Precision, ReadOperand};
use crate::backend::{Objective, Side};
use crate::error::{Error, Result};

/// Ranges of the slow kernel.
const RANGES_F32: usize = 16;
/// Columns that a block of the second kernel joins.
const JOINED_COLUMNS: usize = 512;

/// How `lm_head` is divided into blocks for a number of label rows: what one pass over it costs depends on the GPU's multiprocessors, which
/// are asked for once, here.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    precision: Precision,
    rows: usize,
    vocabulary: usize,
    width: usize,
    warps: usize,
    slices: usize,
    words: usize,
    ranges: usize,
}

/// Numbers of f32 that a [`CrossEntropy`] works in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScratchLengths {
    /// Of [`LossScratch::partials`].
    pub partials: usize,
    /// Of [`LossScratch::label_logits`].
    pub label_logits: usize,
    /// Of [`HiddenGradient::weighted`].
    pub weighted: usize,
}

impl Plan {
    /// For T = `rows` label rows and an `lm_head` of shape \[V, D\], D a multiple of 8, in `precision`.
    ///
    /// # Errors
    /// No row or word, a width that does not fit, and what the driver says.
    pub fn new(kernels: &Kernels, precision: Precision, rows: usize, lm_head: [usize; 2]) -> Result<Self> {
        Self::of(precision, devices::info(kernels.context())?.multiprocessors, rows, lm_head)
    }

    /// For a GPU of so many multiprocessors: ranges such that the blocks fill it once.
    pub(crate) fn of(
        precision: Precision,
        multiprocessors: usize,
        rows: usize,
        [vocabulary, width]: [usize; 2],
    ) -> Result<Self> {
        check_width(width)?;
        if rows == 0 || vocabulary == 0 {
            let found = format!("{rows} rows, {vocabulary} words");
            return Err(Error::tensor("a cross entropy", "at least one row and one word", found, ""));
        }
        let warps = width.div_ceil(WARP_COLUMNS).clamp(1, MAX_WARPS);
        let slices = width.div_ceil(warps * WARP_COLUMNS);
        let wanted = match precision {
            // Two blocks of four warps fit a multiprocessor's registers.
            Precision::Bf16 => {
                multiprocessors * (MAX_WARPS / warps).min(2) / (rows.div_ceil(BLOCK_ROWS) * slices)
            }
            Precision::F32 => RANGES_F32,
        };
        let words = vocabulary.div_ceil(wanted.clamp(1, MAX_RANGES)).next_multiple_of(WORDS);
        let ranges = vocabulary.div_ceil(words);
        Ok(Self { precision, rows, vocabulary, width, warps, slices, words, ranges })
    }

    /// What launches of it work in.
    pub fn scratch(&self) -> ScratchLengths {
        let parts = self.ranges * self.rows;
        ScratchLengths { partials: 4 * parts, label_logits: self.rows, weighted: parts * self.width }
    }

    /// Shared memory of a block: two tiles a warp, the warps' parts of the logits, and the weights.
    fn shared(&self) -> usize {
        self.warps * (2 * TILE_BYTES + 8 * 32 * 8) + 8 * 32 * 4
    }
}

/// The cross entropy of a frozen `lm_head` over labelled rows; no logits are stored.
///
/// -log p(label) with p = softmax(hidden E^T) for each row of `hidden` \[T, D\], and its gradient. Matrices are in the plan's
/// precision.
///
/// A row of zeros has equal logits, so that its loss is ln V:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::backend::Objective;
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::loss::{CrossEntropy, CrossEntropyRows, LossScratch, Plan};
/// use promptmix::cuda::{Kernels, LabelRows, Precision};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let (vocabulary, width) = (50, 8);
/// let rows = LabelRows::new(stream, &[7], &[1.0])?;
/// let hidden = stream.clone_htod(&vec![bf16::ZERO; width])?;
/// let lm_head = stream.clone_htod(&vec![bf16::ONE; vocabulary * width])?;
/// let plan = Plan::new(&kernels, Precision::Bf16, 1, [vocabulary, width])?;
/// let mut partials = stream.clone_htod(&vec![f32::NAN; plan.scratch().partials])?;
/// let [mut label_logits, mut likelihood, mut loss] =
///     [(); 3].map(|()| stream.clone_htod(&[f32::NAN]).expect("an upload"));
/// let mut greedy = stream.clone_htod(&[u32::MAX])?;
/// let cross_entropy = CrossEntropy {
///     labels: rows.rows(),
///     plan,
///     lm_head: &lm_head,
///     objective: Objective::default(),
///     mean: None,
/// };
/// let scratch = LossScratch { partials: &mut partials, label_logits: &mut label_logits };
/// let written =
///     CrossEntropyRows { negative_log_likelihood: &mut likelihood, loss: &mut loss, greedy: &mut greedy };
/// cross_entropy.launch(&kernels, &hidden, scratch, written, None)?;
/// assert!((stream.clone_dtoh(&loss)?[0] - 50.0_f32.ln()).abs() < 1e-5);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct CrossEntropy<'a> {
    /// The rows with their labels and weights: the decoder's side of a batch, or [`LabelRows`](super::packing::LabelRows).
    pub labels: PackedRows<'a>,
    /// Made for so many rows and this `lm_head`.
    pub plan: Plan,
    /// E, \[V, D\].
    pub lm_head: &'a dyn ReadOperand,
    /// Label smoothing and z-loss; the default is plain cross entropy.
    pub objective: Objective,
    /// The mean of E's rows, \[D\] in f32; label smoothing needs it.
    pub mean: Option<&'a dyn DevicePtr<f32>>,
}

/// What a [`CrossEntropy`] works in; its content is unspecified before and afterwards.
pub struct LossScratch<'a> {
    /// [`ScratchLengths::partials`] numbers.
    pub partials: &'a mut dyn DevicePtrMut<f32>,
    /// [`ScratchLengths::label_logits`] numbers.
    pub label_logits: &'a mut dyn DevicePtrMut<f32>,
}

/// What a [`CrossEntropy`] writes, T numbers each.
pub struct CrossEntropyRows<'a> {
    /// -log p(label).
    pub negative_log_likelihood: &'a mut dyn DevicePtrMut<f32>,
    /// The objective; the same without label smoothing and z-loss.
    pub loss: &'a mut dyn DevicePtrMut<f32>,
    /// The word of the highest logit, the lowest of equals.
    pub greedy: &'a mut dyn DevicePtrMut<u32>,
}

/// The gradient that a [`CrossEntropy`] writes where it is wanted.
pub struct HiddenGradient<'a> {
    /// \[T, D\] in f32: of the rows' objectives by their weights.
    pub d_hidden: &'a mut dyn DevicePtrMut<f32>,
    /// Scratch of [`ScratchLengths::weighted`] numbers.
    pub weighted: &'a mut dyn DevicePtrMut<f32>,
}

impl CrossEntropy<'_> {
    /// Fails unless the rows are labelled ones, as many as the plan's, with labels that `lm_head` has.
    fn check(&self) -> Result<()> {
        if self.labels.side() != Side::Decoder {
            let found = "those of the encoder, which have none";
            return Err(Error::tensor("labels", "rows of the decoder", found, ""));
        }
        if self.labels.all() != self.plan.rows {
            let expected = format!("{} rows, as the plan was made for", self.plan.rows);
            return Err(Error::tensor(
                "labels",
                expected,
                self.labels.all().to_string(),
                "make another plan",
            ));
        }
        let labels = self.labels.batch().batch().labels().iter().max().map_or(0, |&label| label as usize + 1);
        if self.plan.vocabulary < labels {
            let expected = format!("at least {labels} rows, for the labels");
            return Err(Error::tensor("the head", expected, self.plan.vocabulary.to_string(), ""));
        }
        Ok(())
    }

    /// Launches the loss of `hidden` \[T, D\], and with `gradient` also d_hidden.
    ///
    /// Costs 2·T·V·D operations, 4·T·V·D with a gradient, in two launches; reads E once for every 32 rows, and writes and reads
    /// T·D numbers for every range of the vocabulary. Deterministic.
    ///
    /// # Errors
    /// A length, format, or label that does not fit, label smoothing without a mean, and what the driver says.
    pub fn launch(
        &self,
        kernels: &Kernels,
        hidden: &dyn ReadOperand,
        scratch: LossScratch<'_>,
        written: CrossEntropyRows<'_>,
        gradient: Option<HiddenGradient<'_>>,
    ) -> Result<()> {
        self.check()?;
        let (plan, lengths, mut operands) = (self.plan, self.plan.scratch(), kernels.operands());
        let Plan { precision, rows, vocabulary, width, .. } = plan;
        let Objective { label_smoothing, z_loss } = self.objective;
        let with_gradient = gradient.is_some();
        let (d_hidden, weighted) = match gradient {
            Some(HiddenGradient { d_hidden, weighted }) => (
                operands.write("d_hidden", d_hidden, rows * width)?,
                operands.write("weighted", weighted, lengths.weighted)?,
            ),
            None => (0, 0),
        };
        let mean = match self.mean {
            Some(mean) if label_smoothing > 0.0 => operands.read("mean", mean, width)?,
            None if label_smoothing > 0.0 => {
                return Err(Error::tensor("mean", "the mean of the head's rows", "none", ""));
            }
            _ => 0,
        };
        let negative = written.negative_log_likelihood;
        let arguments = LossArguments {
            batch: self.labels.read(&mut operands)?,
            hidden: operands.matrix("hidden", hidden, precision, rows * width)?,
            lm_head: operands.matrix("head", self.lm_head, precision, vocabulary * width)?,
            mean,
            partials: operands.write("partials", scratch.partials, lengths.partials)?,
            label_logits: operands.write("label_logits", scratch.label_logits, lengths.label_logits)?,
            weighted,
            negative_log_likelihood: operands.write("negative_log_likelihood", negative, rows)?,
            loss: operands.write("loss", written.loss, rows)?,
            greedy: operands.write("greedy", written.greedy, rows)?,
            d_hidden,
            width: width as i32,
            vocabulary: vocabulary as i32,
            words: plan.words as i32,
            ranges: plan.ranges as i32,
            rows: rows as i32,
            slices: plan.slices as i32,
            smoothing: label_smoothing as f32,
            z_loss: z_loss as f32,
        };
        let launch = |name, grid: [usize; 3], threads: usize, shared: usize| {
            let (kernel, grid) = (Kernel { file: "loss", name }, grid.map(|blocks| blocks as u32));
            // SAFETY: every length was checked against rows, width and vocabulary, and labels lie within it; rows beyond the
            // batch's exit.
            unsafe { kernels.launch(kernel, grid, threads as u32, shared as u32, &arguments, &operands) }
        };
        match precision {
            Precision::Bf16 => {
                let slices = if with_gradient { plan.slices } else { 1 };
                let grid = [plan.ranges, rows.div_ceil(BLOCK_ROWS), slices];
                launch("loss_words_bf16", grid, plan.warps * 32, plan.shared())?;
            }
            Precision::F32 => launch("loss_words_f32", [plan.ranges, rows, 1], 128, 0)?,
        }
        let columns = if with_gradient { width.div_ceil(JOINED_COLUMNS) } else { 1 };
        launch(precision.named("loss_rows_bf16", "loss_rows_f32"), [rows, columns, 1], 128, 0)
    }
}
