//! The head and its cross entropy, without logits: `kernels/loss.cu`.

use cudarc::driver::sys::CUdevice_attribute_enum as DeviceAttribute;
use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::arguments::loss::{BLOCK_ROWS, LossArguments, MOST_RANGES, MOST_WARPS, WARP_COLUMNS, WORDS};
use super::failure::driver;
use super::kernels::{Kernel, Kernels};
use super::memory::{Buffer, address, address_mut, check_length};
use super::rows::{Rows, WIDTH_MULTIPLE};
use super::sequences::LabelRows;
use super::{Cuda, Precision};
use crate::backend::{Batch, Head, Loss, Objective, Side};
use crate::error::{Error, Result};

/// Ranges of the slow kernel.
const RANGES_F32: usize = 16;

/// How the vocabulary is cut up.
#[derive(Clone, Copy, Debug)]
struct Plan {
    warps: usize,
    slices: usize,
    words: usize,
    ranges: usize,
}

impl Plan {
    /// For room for `rows` rows: ranges such that the blocks fill the GPU once.
    fn of(
        precision: Precision,
        multiprocessors: usize,
        rows: usize,
        vocabulary: usize,
        width: usize,
    ) -> Self {
        let warps = width.div_ceil(WARP_COLUMNS).clamp(1, MOST_WARPS);
        let slices = width.div_ceil(warps * WARP_COLUMNS);
        let wanted = match precision {
            // Two blocks of four warps fit a multiprocessor's registers.
            Precision::Bf16 => {
                multiprocessors * (MOST_WARPS / warps).min(2) / (rows.div_ceil(BLOCK_ROWS) * slices)
            }
            Precision::F32 => RANGES_F32,
        };
        let words = vocabulary.div_ceil(wanted.clamp(1, MOST_RANGES)).next_multiple_of(WORDS);
        Self { warps, slices, words, ranges: vocabulary.div_ceil(words) }
    }

    /// Shared memory of a block: two tiles a warp, the warps' parts of the logits, and the weights.
    fn shared(&self) -> u32 {
        (self.warps * (2 * WORDS * WARP_COLUMNS * 2 + 8 * 32 * 8) + 8 * 32 * 4) as u32
    }

    /// Numbers of the partial results of `rows` rows, and of their weighted sums of `width` columns.
    fn lengths(&self, rows: usize, width: usize) -> [usize; 2] {
        [4 * self.ranges * rows, self.ranges * rows * width]
    }

    /// Launches both kernels; `arguments` has the addresses, the sizes and the objective.
    fn launch(&self, kernels: &Kernels, precision: Precision, arguments: LossArguments) -> Result<()> {
        let arguments = LossArguments {
            words: self.words as i32,
            ranges: self.ranges as i32,
            slices: self.slices as i32,
            ..arguments
        };
        let (rows, with_gradient) = (arguments.rows as usize, arguments.weighted != 0);
        let slices = if with_gradient { self.slices } else { 1 };
        let (name, grid, threads, shared) = match precision {
            Precision::Bf16 => (
                ["loss_words_bf16", "loss_rows_bf16"],
                [self.ranges, rows.div_ceil(BLOCK_ROWS), slices],
                self.warps * 32,
                self.shared(),
            ),
            Precision::F32 => (["loss_words_f32", "loss_rows_f32"], [self.ranges, rows, 1], 128, 0),
        };
        let launch = |name, grid: [usize; 3], threads, shared| {
            let kernel = Kernel { file: "loss", name };
            // SAFETY: whoever made `arguments` checked every operand against rows, width and vocabulary, and labels lie within
            // it; rows beyond the batch's exit.
            unsafe { kernels.launch(kernel, grid.map(|blocks| blocks as u32), threads, shared, &arguments) }
        };
        launch(name[0], grid, threads as u32, shared)?;
        let columns = if with_gradient { (arguments.width as usize).div_ceil(512) } else { 1 };
        launch(name[1], [rows, columns, 1], 128, 0)
    }
}

/// The loss of a pass, on the device until it is read.
#[derive(Debug)]
pub struct LossKept {
    negative_log_likelihood: Buffer<f32>,
    objective: Buffer<f32>,
    greedy: Buffer<u32>,
    rows: usize,
}

impl LossKept {
    pub(super) fn new(cuda: &Cuda, batch: &Batch) -> Self {
        let rows = batch.rows(Side::Decoder);
        Self {
            negative_log_likelihood: cuda.allocate(rows),
            objective: cuda.allocate(rows),
            greedy: cuda.allocate(rows),
            rows,
        }
    }

    /// \[T\]: what training minimises.
    pub(super) fn objective(&self) -> &Buffer<f32> {
        &self.objective
    }

    pub(super) fn read(&self, cuda: &Cuda) -> Loss {
        let read = |buffer| cuda.download(buffer, self.rows).into_iter().map(f64::from).collect();
        Loss {
            negative_log_likelihood: read(&self.negative_log_likelihood),
            objective: read(&self.objective),
            greedy: cuda.download(&self.greedy, self.rows),
        }
    }
}

impl Cuda {
    pub(super) fn launch_loss(
        &self,
        batch: &Batch,
        hidden: &Rows,
        head: &Head<'_, Self>,
        d_hidden: Option<&mut Rows>,
        kept: &mut LossKept,
    ) -> Result<()> {
        let (rows, vocabulary, width) = (batch.rows(Side::Decoder), head.weight.out, head.weight.input);
        hidden.check("hidden", rows, width)?;
        let plan = Plan::of(self.precision(), self.info().multiprocessors, rows, vocabulary, width);
        let [partials, weighted] = plan.lengths(rows, width);
        let partials: Buffer<f32> = self.allocate(partials);
        let label_logits: Buffer<f32> = self.allocate(rows);
        let weighted: Buffer<f32> = self.allocate(if d_hidden.is_some() { weighted } else { 0 });
        let Objective { label_smoothing, z_loss } = batch.objective();
        let mut arguments = LossArguments {
            batch: self.describe(batch)?.address(self)?,
            hidden: hidden.operand_address(self)?,
            head: head.weight.operand_address(self)?,
            partials: self.address_of(&partials)?,
            label_logits: self.address_of(&label_logits)?,
            negative_log_likelihood: self.address_of(&kept.negative_log_likelihood)?,
            loss: self.address_of(&kept.objective)?,
            greedy: self.address_of(&kept.greedy)?,
            width: width as i32,
            vocabulary: vocabulary as i32,
            rows: rows as i32,
            smoothing: label_smoothing as f32,
            z_loss: z_loss as f32,
            ..LossArguments::default()
        };
        if label_smoothing > 0.0 {
            arguments.mean = head.mean.float_address(self)?;
        }
        let products = 1 + u64::from(d_hidden.is_some());
        if let Some(d_hidden) = d_hidden {
            d_hidden.check("d_hidden", rows, width)?;
            arguments.weighted = self.address_of(&weighted)?;
            arguments.d_hidden = d_hidden.float_address(self)?;
        }
        self.count(products * 2 * (rows * vocabulary * width) as u64);
        plan.launch(self.kernels(), self.precision(), arguments)
    }
}

/// A frozen head's cross entropy over labelled rows, for launches on cudarc's own buffers, in bf16; no logits are kept.
///
/// -log p(label) with p = softmax(hidden E^T) for each row of `hidden` \[T, D\], and its gradient.
#[derive(Clone, Copy)]
pub struct CrossEntropy<'a> {
    /// The rows' labels and weights.
    pub labels: &'a LabelRows,
    /// E, \[V, D\].
    pub head: &'a CudaView<'a, bf16>,
    /// D, a multiple of 8.
    pub width: usize,
    /// Label smoothing and z-loss; the default is plain cross entropy.
    pub objective: Objective,
    /// The mean of E's rows, \[D\]; label smoothing needs it.
    pub mean: Option<&'a CudaView<'a, f32>>,
}

/// What [`CrossEntropy`] writes, T numbers each.
pub struct CrossEntropyRows<'a, 'b> {
    /// -log p(label).
    pub negative_log_likelihood: &'a mut CudaViewMut<'b, f32>,
    /// The objective; the same without label smoothing and z-loss.
    pub loss: &'a mut CudaViewMut<'b, f32>,
    /// The word of the highest logit, the lowest of equals.
    pub greedy: &'a mut CudaViewMut<'b, u32>,
}

impl CrossEntropy<'_> {
    fn plan(&self, kernels: &Kernels) -> Result<(Plan, usize)> {
        let vocabulary = self.head.len() / self.width.max(1);
        if !self.width.is_multiple_of(WIDTH_MULTIPLE) || vocabulary < self.labels.vocabulary() {
            let expected = format!("at least {} rows of a multiple of 8", self.labels.vocabulary());
            let found = format!("{vocabulary} of {}", self.width);
            return Err(Error::tensor("head", expected, found, ""));
        }
        check_length("head", vocabulary * self.width, self.head.len())?;
        let attribute = DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors =
            kernels.context().attribute(attribute).map_err(|error| driver("describe the GPU", error))?;
        let multiprocessors = usize::try_from(multiprocessors).unwrap_or(1);
        let rows = self.labels.rows();
        Ok((Plan::of(Precision::Bf16, multiprocessors, rows, vocabulary, self.width), vocabulary))
    }

    /// Numbers of scratch that the launches need: without and with a gradient.
    ///
    /// # Errors
    /// A head that does not fit, and what the driver says.
    pub fn scratch_lengths(&self, kernels: &Kernels) -> Result<[usize; 2]> {
        let rows = self.labels.rows();
        let [partials, weighted] = self.plan(kernels)?.0.lengths(rows, self.width);
        // The label's logits lie behind the partial results, rounded up so that what follows is aligned.
        let without = partials + rows.next_multiple_of(4);
        Ok([without, without + weighted])
    }

    /// Launches the loss of `hidden` \[T, D\], and with `d_hidden` \[T, D\] its gradient by the rows' weights.
    ///
    /// Costs 2·T·V·D operations, 4·T·V·D with a gradient, in two launches; reads E once for every 32 rows, and writes and reads
    /// T·D numbers for every range of the vocabulary. Deterministic.
    ///
    /// # Errors
    /// A length that does not fit, label smoothing without a mean, and what the driver says.
    pub fn launch(
        &self,
        kernels: &Kernels,
        hidden: &CudaView<'_, bf16>,
        scratch: &mut CudaViewMut<'_, f32>,
        written: &mut CrossEntropyRows<'_, '_>,
        d_hidden: Option<&mut CudaViewMut<'_, f32>>,
    ) -> Result<()> {
        let (stream, rows, width) = (kernels.stream(), self.labels.rows(), self.width);
        let (plan, vocabulary) = self.plan(kernels)?;
        let lengths = self.scratch_lengths(kernels)?;
        let Objective { label_smoothing, z_loss } = self.objective;
        check_length("hidden", rows * width, hidden.len())?;
        check_length("scratch", lengths[usize::from(d_hidden.is_some())], scratch.len())?;
        for (what, found) in [
            ("negative_log_likelihood", written.negative_log_likelihood.len()),
            ("loss", written.loss.len()),
            ("greedy", written.greedy.len()),
        ] {
            check_length(what, rows, found)?;
        }
        let mut mean = 0;
        if label_smoothing > 0.0 {
            let missing = || Error::tensor("mean", "the mean of the head's rows", "none", "");
            let values = self.mean.ok_or_else(missing)?;
            check_length("mean", width, values.len())?;
            mean = address(values, stream);
        }
        let [partials, _] = plan.lengths(rows, width);
        let start = address_mut(scratch, stream);
        let mut arguments = LossArguments {
            batch: self.labels.address(kernels),
            hidden: address(hidden, stream),
            head: address(self.head, stream),
            mean,
            partials: start,
            label_logits: start + 4 * partials as u64,
            negative_log_likelihood: address_mut(written.negative_log_likelihood, stream),
            loss: address_mut(written.loss, stream),
            greedy: address_mut(written.greedy, stream),
            width: width as i32,
            vocabulary: vocabulary as i32,
            rows: rows as i32,
            smoothing: label_smoothing as f32,
            z_loss: z_loss as f32,
            ..LossArguments::default()
        };
        if let Some(d_hidden) = d_hidden {
            check_length("d_hidden", rows * width, d_hidden.len())?;
            arguments.weighted = start + 4 * lengths[0] as u64;
            arguments.d_hidden = address_mut(d_hidden, stream);
        }
        plan.launch(kernels, Precision::Bf16, arguments)
    }
}
