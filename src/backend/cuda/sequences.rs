//! Packed sequences as the raw launches take them.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::batch::describe;
use super::failure::driver;
use super::kernels::Kernels;
use crate::backend::{Batch, Example, Side};
use crate::error::{Error, Result};

/// Sequences packed end to end, described on the device.
#[derive(Debug)]
pub struct Sequences {
    descriptor: CudaSlice<i32>,
    rows: usize,
    tiles: usize,
}

impl Sequences {
    /// Sequences of the given lengths, uploaded on `stream`.
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
        let (data, [_, _, tiles]) = describe(&batch);
        let descriptor =
            stream.clone_htod(&data).map_err(|error| driver("describe sequences on the GPU", error))?;
        Ok(Self { descriptor, rows: batch.rows(Side::Decoder), tiles })
    }

    /// Rows of all sequences.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The most tiles of rows that a grid must have.
    pub(super) fn tiles(&self) -> usize {
        self.tiles
    }

    pub(super) fn address(&self, kernels: &Kernels) -> u64 {
        self.descriptor.device_ptr(kernels.stream()).0
    }
}

/// Targets and the sources that they attend to, example by example, each side packed end to end, described on the device.
#[derive(Debug)]
pub struct PairedSequences {
    descriptor: CudaSlice<i32>,
    examples: usize,
    sources: usize,
    targets: usize,
    longest: usize,
}

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
        let descriptor = stream
            .clone_htod(&describe(&batch).0)
            .map_err(|error| driver("describe sequences on the GPU", error))?;
        let (sources, targets) = (batch.rows(Side::Encoder), batch.rows(Side::Decoder));
        let (examples, longest) = (batch.examples(), batch.longest_target());
        Ok(Self { descriptor, examples, sources, targets, longest })
    }

    /// R: source rows of all examples.
    pub fn sources(&self) -> usize {
        self.sources
    }

    /// T: target rows of all examples.
    pub fn targets(&self) -> usize {
        self.targets
    }

    /// Examples, sources, targets, and the most targets of an example.
    pub(super) fn counts(&self) -> (usize, usize, usize, usize) {
        (self.examples, self.sources, self.targets, self.longest)
    }

    pub(super) fn address(&self, kernels: &Kernels) -> u64 {
        self.descriptor.device_ptr(kernels.stream()).0
    }
}

/// Rows with a label and a weight each, described on the device.
#[derive(Debug)]
pub struct LabelRows {
    descriptor: CudaSlice<i32>,
    rows: usize,
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
        let descriptor = stream
            .clone_htod(&describe(&batch).0)
            .map_err(|error| driver("describe labels on the GPU", error))?;
        Ok(Self { descriptor, rows: labels.len(), vocabulary })
    }

    /// How many.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The least vocabulary that has all labels.
    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    pub(super) fn address(&self, kernels: &Kernels) -> u64 {
        self.descriptor.device_ptr(kernels.stream()).0
    }
}
