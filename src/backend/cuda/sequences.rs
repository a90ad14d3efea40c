//! Packed rows as the raw launches take them: described on the device, in memory of cudarc's own.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::batch::describe;
use super::failure::driver;
use super::kernels::Kernels;
use crate::backend::{Batch, Example, Side};
use crate::error::{Error, Result};

/// A batch of examples, described on the device: for the raw launches that read token ids, prompts or runs.
#[derive(Debug)]
pub struct Packed {
    descriptor: CudaSlice<i32>,
    batch: Batch,
    /// The most attention tiles of the decoder's rows.
    decoder_tiles: usize,
}

impl Packed {
    /// Describes `batch`, uploaded on `stream`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(stream: &Arc<CudaStream>, batch: Batch) -> Result<Self> {
        let (data, [_, _, decoder_tiles]) = describe(&batch);
        let descriptor =
            stream.clone_htod(&data).map_err(|error| driver("describe a batch on the GPU", error))?;
        Ok(Self { descriptor, batch, decoder_tiles })
    }

    /// What it describes.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Where the descriptor lies.
    pub(super) fn address(&self, kernels: &Kernels) -> u64 {
        self.descriptor.device_ptr(kernels.stream()).0
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
            let found = format!("{lengths:?}");
            return Err(Error::tensor(
                "lengths",
                "at least one sequence, of at least one row each",
                found,
                "",
            ));
        }
        let example = |&length| Example { source: vec![0], target: vec![0; length], ..Example::default() };
        let batch = Batch::pack(&lengths.iter().map(example).collect::<Vec<_>>(), 1, 0, 1)?;
        Packed::new(stream, batch).map(Self)
    }

    /// Rows of all sequences.
    pub fn rows(&self) -> usize {
        self.0.batch.rows(Side::Decoder)
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.0.batch.examples()
    }

    /// Rows of the longest.
    pub(super) fn longest(&self) -> usize {
        self.0.batch.longest_target()
    }

    /// The most tiles of rows that a grid must have.
    pub(super) fn tiles(&self) -> usize {
        self.0.decoder_tiles
    }

    pub(super) fn address(&self, kernels: &Kernels) -> u64 {
        self.0.address(kernels)
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

    /// R: source rows of all examples.
    pub fn sources(&self) -> usize {
        self.0.batch.rows(Side::Encoder)
    }

    /// T: target rows of all examples.
    pub fn targets(&self) -> usize {
        self.0.batch.rows(Side::Decoder)
    }

    /// Examples, sources, targets, and the most targets of an example.
    pub(super) fn counts(&self) -> (usize, usize, usize, usize) {
        (self.0.batch.examples(), self.sources(), self.targets(), self.0.batch.longest_target())
    }

    pub(super) fn address(&self, kernels: &Kernels) -> u64 {
        self.0.address(kernels)
    }
}

/// Rows with a label and a weight each, described on the device.
#[derive(Debug)]
pub struct LabelRows {
    packed: Packed,
    vocabulary: usize,
}

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
        let batch = batch.weighted(weights.iter().copied().map(f64::from).collect());
        Ok(Self { packed: Packed::new(stream, batch)?, vocabulary })
    }

    /// How many.
    pub fn rows(&self) -> usize {
        self.packed.batch.rows(Side::Decoder)
    }

    /// The least vocabulary that has all labels.
    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    pub(super) fn address(&self, kernels: &Kernels) -> u64 {
        self.packed.address(kernels)
    }
}
