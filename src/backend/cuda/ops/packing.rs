//! Packed rows as launches take them: described on the device, as `kernels/batch.cuh` reads it.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};

use super::Mask;
use super::descriptor::describe;
use crate::backend::cuda::runtime::arguments::dropout;
use crate::backend::cuda::runtime::error::driver;
use crate::backend::cuda::runtime::operands::Operands;
use crate::backend::{Batch, DropoutStep, Example, Scope, Side, Site};
use crate::error::{Error, Result};

/// Integers that kernels read: a slice, or their address in the backend's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Words<'a> {
    Slice(&'a CudaSlice<i32>),
    Saved(u64),
}

impl<'a> Words<'a> {
    /// Adds them to a launch: their address.
    pub(crate) fn read(self, operands: &mut Operands<'a>, what: &str) -> Result<u64> {
        match self {
            Self::Slice(slice) => operands.read::<i32>(what, slice, slice.len()),
            Self::Saved(address) => Ok(address),
        }
    }
}

/// A batch with its descriptor on the device.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    batch: &'a Batch,
    descriptor: Words<'a>,
    /// Tiles of 64 rows over the encoder, its prompt rows and the decoder: what grids must have at least.
    tiles: [usize; 3],
}

impl<'a> Described<'a> {
    pub(crate) fn new(batch: &'a Batch, descriptor: Words<'a>, tiles: [usize; 3]) -> Self {
        Self { batch, descriptor, tiles }
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

    /// Adds the descriptor to a launch: its address.
    pub(crate) fn read(&self, operands: &mut Operands<'a>) -> Result<u64> {
        self.descriptor.read(operands, "the batch's descriptor")
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

    /// Adds the descriptor to a launch: its address.
    pub(crate) fn read(&self, operands: &mut Operands<'a>) -> Result<u64> {
        self.of.read(operands)
    }
}

/// A batch of examples, described on the device in memory of cudarc's own: for launches that read token ids, prompts or runs.
#[derive(Debug)]
pub struct Packed {
    descriptor: CudaSlice<i32>,
    batch: Batch,
    tiles: [usize; 3],
}

impl Packed {
    /// Describes `batch`, uploaded on `stream`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(stream: &Arc<CudaStream>, batch: Batch) -> Result<Self> {
        let (data, tiles) = describe(&batch);
        let descriptor =
            stream.clone_htod(&data).map_err(|error| driver("describe a batch on the GPU", error))?;
        Ok(Self { descriptor, batch, tiles })
    }

    /// The batch, as ops take it.
    pub fn described(&self) -> Described<'_> {
        Described::new(&self.batch, Words::Slice(&self.descriptor), self.tiles)
    }

    /// All rows of a side, as ops take them.
    pub fn rows(&self, side: Side) -> PackedRows<'_> {
        self.described().rows(side)
    }
}

/// Sequences packed end to end, described on the device: rows without token ids.
#[derive(Debug)]
pub struct Sequences(Packed);

impl Sequences {
    /// Sequences of the given lengths, uploaded on `stream`. Where a launch does not care how rows are cut up, one of
    /// all rows will do.
    ///
    /// # Errors
    /// No sequence, or an empty one; what the driver says.
    pub fn new(stream: &Arc<CudaStream>, lengths: &[usize]) -> Result<Self> {
        if lengths.is_empty() || lengths.contains(&0) {
            let expected = "at least one sequence, of at least one row each";
            return Err(Error::tensor("lengths", expected, format!("{lengths:?}"), ""));
        }
        let example = |&length| Example { source: vec![0], target: vec![0; length], ..Example::default() };
        let batch = Batch::pack(&lengths.iter().map(example).collect::<Vec<_>>(), 1, 0, 1)?;
        Packed::new(stream, batch).map(Self)
    }

    /// How many rows all sequences have.
    pub fn count(&self) -> usize {
        self.rows().count()
    }

    /// The rows, as ops take them.
    pub fn rows(&self) -> PackedRows<'_> {
        self.0.rows(Side::Decoder)
    }
}

/// Targets and the sources that they attend to, example by example, each side packed end to end, described on the device.
#[derive(Debug)]
pub struct PairedSequences(Packed);

impl PairedSequences {
    /// Examples of the given lengths, targets before sources, uploaded on `stream`.
    ///
    /// # Errors
    /// No example, or an empty side; what the driver says.
    pub fn new(stream: &Arc<CudaStream>, lengths: &[(usize, usize)]) -> Result<Self> {
        if lengths.is_empty() || lengths.iter().any(|&(targets, sources)| targets == 0 || sources == 0) {
            let expected = "at least one example, of at least one target and one source row each";
            return Err(Error::tensor("lengths", expected, format!("{lengths:?}"), ""));
        }
        let example = |&(targets, sources): &(usize, usize)| Example {
            source: vec![0; sources],
            target: vec![0; targets],
            ..Example::default()
        };
        let batch = Batch::pack(&lengths.iter().map(example).collect::<Vec<_>>(), 0, 0, 1)?;
        Packed::new(stream, batch).map(Self)
    }

    /// Both sides, as ops take them.
    pub fn described(&self) -> Described<'_> {
        self.0.described()
    }

    /// R: source rows of all examples.
    pub fn sources(&self) -> usize {
        self.0.rows(Side::Encoder).count()
    }

    /// T: target rows of all examples.
    pub fn targets(&self) -> usize {
        self.0.rows(Side::Decoder).count()
    }
}

/// Rows with a label and a weight each, described on the device.
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
