//! Packed rows as launches take them: described on the device, as `kernels/batch.cuh` reads it.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};

use super::Mask;
use super::descriptor::{Description, describe};
use crate::backend::cuda::runtime::arguments::batch::Descriptor;
use crate::backend::cuda::runtime::arguments::dropout;
use crate::backend::cuda::runtime::capture::check_not_capturing;
use crate::backend::cuda::runtime::error::driver;
use crate::backend::cuda::runtime::operands::Operands;
use crate::backend::{Batch, DropoutStep, Example, Scope, Side, Site};
use crate::error::{Error, Result};

/// Integers that kernels read: a slice, or their address in the backend's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Words<'a> {
    Slice(&'a CudaSlice<i32>),
    /// That launches on the slice's stream write, behind cudarc's back, and so only launches there may read.
    Refilled(&'a CudaSlice<i32>),
    Saved(u64),
}

impl<'a> Words<'a> {
    /// Adds them to a launch: their address.
    pub(crate) fn read(self, operands: &mut Operands<'a>, what: &str) -> Result<u64> {
        match self {
            Self::Slice(slice) => operands.read::<i32>(what, slice, slice.len()),
            Self::Refilled(slice) => {
                operands.check_stream(what, slice.stream())?;
                operands.read::<i32>(what, slice, slice.len())
            }
            Self::Saved(address) => Ok(address),
        }
    }
}

/// A batch with its descriptor on the device.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    batch: &'a Batch,
    data: Words<'a>,
    common: Descriptor,
    /// Tiles of 64 rows over the encoder, its prompt rows and the decoder: what grids must have at least.
    tiles: [usize; 3],
}

impl<'a> Described<'a> {
    /// By the description's data on the device, what is common to its bucket, and its tiles.
    pub(crate) fn new(batch: &'a Batch, data: Words<'a>, common: Descriptor, tiles: [usize; 3]) -> Self {
        Self { batch, data, common, tiles }
    }

    /// What it describes.
    pub fn batch(&self) -> &'a Batch {
        self.batch
    }

    /// All rows of a side.
    pub fn rows(self, side: Side) -> PackedRows<'a> {
        self.scoped(side, Scope::All)
    }

    /// The rows of a side that `scope` selects.
    pub fn scoped(self, side: Side, scope: Scope) -> PackedRows<'a> {
        PackedRows { of: self, side, scope }
    }

    /// Adds the descriptor to a launch.
    pub(crate) fn read(&self, operands: &mut Operands<'a>) -> Result<Descriptor> {
        Ok(Descriptor { data: self.data.read(operands, "the batch's descriptor")?, ..self.common })
    }
}

/// The rows that an op works on: one side of a described batch, or its prompt rows.
#[derive(Clone, Copy, Debug)]
pub struct PackedRows<'a> {
    of: Described<'a>,
    side: Side,
    scope: Scope,
}

impl<'a> PackedRows<'a> {
    /// The batch.
    pub fn batch(&self) -> Described<'a> {
        self.of
    }

    /// Which side's.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Which of that side's.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// How many, or the most that there may be where the batch has a capacity.
    pub fn count(&self) -> usize {
        match self.scope {
            Scope::All => self.all(),
            Scope::Prompt => self.of.batch.examples() * self.of.batch.prompt_length(),
        }
    }

    /// How many there are, whatever the batch's capacity.
    pub(crate) fn real(&self) -> usize {
        match self.scope {
            Scope::All => self.of.batch.real_rows(self.side),
            Scope::Prompt => self.count(),
        }
    }

    /// How many the whole side has.
    pub fn all(&self) -> usize {
        self.of.batch.rows(self.side)
    }

    /// B.
    pub fn examples(&self) -> usize {
        self.of.batch.examples()
    }

    /// The most rows of an example, of the decoder.
    pub(crate) fn longest_target(&self) -> usize {
        self.of.batch.longest_target()
    }

    /// The most tiles of 64 rows, each of one example.
    pub(crate) fn tiles(&self) -> usize {
        let [encoder, prompt, decoder] = self.of.tiles;
        match (self.side, self.scope) {
            (Side::Decoder, _) => decoder,
            (Side::Encoder, Scope::All) => encoder,
            (Side::Encoder, Scope::Prompt) => prompt,
        }
    }

    /// Adds the descriptor to a launch.
    pub(crate) fn read(&self, operands: &mut Operands<'a>) -> Result<Descriptor> {
        self.of.read(operands)
    }
}

/// A batch of examples, described on the device in memory of cudarc's own: for launches that read token ids, prompts or runs.
///
/// The decoder reads the start token, here 0, and then its labels but the last:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use promptmix::backend::{Batch, Example, Side};
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::embedding::{EmbeddedRows, Embedding};
/// use promptmix::cuda::{DropoutMask, Kernels, Packed};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let example = Example { source: vec![1], target: vec![2, 1], ..Example::default() };
/// let packed = Packed::new(stream, Batch::pack(&[example], 0, 0, 3)?)?;
/// // Every number of the table's row i is i.
/// let table = stream.clone_htod(&(0..3 * 8).map(|n| (n / 8) as f32).collect::<Vec<_>>())?;
/// let mut x = stream.clone_htod(&[f32::NAN; 2 * 8])?;
/// let mut partials = stream.clone_htod(&[f32::NAN; 2])?;
/// let embedding = Embedding { rows: packed.rows(Side::Decoder), width: 8, mask: DropoutMask::default() };
/// let written = EmbeddedRows { x: &mut x, copy: None, partials: &mut partials };
/// embedding.forward(&kernels, &table, written)?;
/// assert_eq!(stream.clone_dtoh(&x)?, [[0.0; 8], [2.0; 8]].concat());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Packed {
    data: CudaSlice<i32>,
    common: Descriptor,
    batch: Batch,
    tiles: [usize; 3],
}

impl Packed {
    /// Describes `batch`, uploaded on `stream`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(stream: &Arc<CudaStream>, batch: Batch) -> Result<Self> {
        check_not_capturing(stream, "describe a batch")?;
        let Description { data, common, tiles } = describe(&batch);
        let data = stream.clone_htod(&data).map_err(|error| driver("describe a batch on the GPU", error))?;
        Ok(Self { data, common, batch, tiles })
    }

    /// The batch, as ops take it.
    pub fn described(&self) -> Described<'_> {
        Described::new(&self.batch, Words::Slice(&self.data), self.common, self.tiles)
    }

    /// All rows of a side, as ops take them.
    pub fn rows(&self, side: Side) -> PackedRows<'_> {
        self.described().rows(side)
    }
}

/// Rows with a label and a weight each, described on the device.
///
/// With equal logits the gradient of a row is its weight, here 0.5, times the mean of the head's rows less the label's:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::backend::Objective;
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::loss::{CrossEntropy, CrossEntropyRows, HiddenGradient, LossScratch, Plan};
/// use promptmix::cuda::{Kernels, LabelRows, Precision};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let rows = LabelRows::new(stream, &[3], &[0.5])?;
/// let hidden = stream.clone_htod(&[bf16::ZERO; 8])?;
/// // Every number of the head's row i is i.
/// let numbers: Vec<bf16> = (0..4 * 8).map(|n| bf16::from_f32((n / 8) as f32)).collect();
/// let lm_head = stream.clone_htod(&numbers)?;
/// let plan = Plan::new(&kernels, Precision::Bf16, 1, [4, 8])?;
/// let floats = |count: usize| stream.clone_htod(&vec![f32::NAN; count]);
/// let (mut partials, mut weighted) = (floats(plan.scratch().partials)?, floats(plan.scratch().weighted)?);
/// let (mut label_logits, mut likelihood, mut loss) = (floats(1)?, floats(1)?, floats(1)?);
/// let (mut greedy, mut d_hidden) = (stream.clone_htod(&[u32::MAX])?, floats(8)?);
/// let (labels, objective) = (rows.rows(), Objective::default());
/// CrossEntropy { labels, plan, lm_head: &lm_head, objective, mean: None }.launch(
///     &kernels,
///     &hidden,
///     LossScratch { partials: &mut partials, label_logits: &mut label_logits },
///     CrossEntropyRows { negative_log_likelihood: &mut likelihood, loss: &mut loss, greedy: &mut greedy },
///     Some(HiddenGradient { d_hidden: &mut d_hidden, weighted: &mut weighted }),
/// )?;
/// assert!((stream.clone_dtoh(&d_hidden)?[0] - 0.5 * (1.5 - 3.0)).abs() < 1e-5);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LabelRows(Packed);

impl LabelRows {
    /// One row a label; `weights` are what the rows' losses count in the gradient.
    ///
    /// # Errors
    /// No row, or another number of weights; what the driver says.
    pub fn new(stream: &Arc<CudaStream>, labels: &[u32], weights: &[f32]) -> Result<Self> {
        if labels.is_empty() || labels.len() != weights.len() {
            let found = format!("{} labels, {} weights", labels.len(), weights.len());
            return Err(Error::tensor("labels", "at least one, and a weight for each", found, ""));
        }
        let vocabulary = labels.iter().max().map_or(0, |&label| label as usize + 1);
        let example = Example { source: vec![0], target: labels.to_vec(), ..Example::default() };
        let batch = Batch::pack(&[example], 0, 0, vocabulary)?;
        let batch = batch.weighted(weights.iter().copied().map(f64::from).collect())?;
        Packed::new(stream, batch).map(Self)
    }

    /// The rows, as ops take them.
    pub fn rows(&self) -> PackedRows<'_> {
        self.0.rows(Side::Decoder)
    }
}

/// One site's dropout in a step, as ops take it; the default drops nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct DropoutMask<'a>(Option<(Words<'a>, Site)>);

impl<'a> DropoutMask<'a> {
    pub(crate) fn new(step: Words<'a>, site: Site) -> Self {
        Self(Some((step, site)))
    }

    /// Whether anything may be dropped.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Adds it to a launch: the kernels' argument.
    pub(crate) fn read(&self, operands: &mut Operands<'a>) -> Result<Mask> {
        let Some((step, site)) = self.0 else { return Ok(Mask::default()) };
        Ok(Mask { step: step.read(operands, "the step's dropout")?, site: site.0, ..Mask::default() })
    }
}

/// A step's dropout as `kernels/dropout.cuh` reads it: its numbers, and the seeds of all runs from the place of the first on.
pub(crate) fn dropout_words(step: &DropoutStep) -> Vec<i32> {
    let seeds = step.seeds();
    let mut numbers = dropout::DropoutStep {
        threshold: step.threshold(),
        scale: step.scale() as f32,
        step: step.step(),
        runs: seeds.len() as u32,
        ..Default::default()
    };
    let (first, others) = seeds.split_at(seeds.len().min(numbers.seeds.len()));
    numbers.seeds[..first.len()].copy_from_slice(first);
    [bytemuck::cast_slice(&[numbers]), bytemuck::cast_slice(others)].concat()
}

/// A step's dropout on the device, in memory of cudarc's own.
///
/// Kernels drop what [`DropoutStep::row`] says, and with a probability of 0.5 double the rest:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::backend::{DropoutStep, Side, Site, SiteKind};
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::feed_forward::EachRow;
/// use promptmix::cuda::{DeviceDropout, Kernels, Sequences};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let step = DropoutStep::new(0.5, 1, &[42]).expect("a probability above 0");
/// let site = Site::new(Side::Decoder, SiteKind::FinalNorm, 0);
/// let dropout = DeviceDropout::new(stream, &step)?;
/// let sequences = Sequences::new(stream, &[1])?;
/// let d_x = stream.clone_htod(&[3.0_f32; 64])?;
/// let mut copy = stream.clone_htod(&[bf16::NAN; 64])?;
/// let each = EachRow { rows: sequences.rows(), width: 64 };
/// each.masked_copy(&kernels, dropout.mask(site), &d_x, &mut copy)?;
/// let mut expected = [bf16::NAN; 64];
/// step.row(site, 0, 0, 0).fill(bf16::from_f32(6.0), bf16::ZERO, &mut expected);
/// assert_eq!(stream.clone_dtoh(&copy)?, expected);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DeviceDropout {
    words: CudaSlice<i32>,
}

impl DeviceDropout {
    /// Uploads `step` on `stream`. It must have a seed for every run of the batches that it is used for.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(stream: &Arc<CudaStream>, step: &DropoutStep) -> Result<Self> {
        check_not_capturing(stream, "copy dropout")?;
        let words = stream
            .clone_htod(&dropout_words(step))
            .map_err(|error| driver("copy dropout to the GPU", error))?;
        Ok(Self { words })
    }

    /// The mask of one site.
    pub fn mask(&self, site: Site) -> DropoutMask<'_> {
        DropoutMask::new(Words::Slice(&self.words), site)
    }
}
