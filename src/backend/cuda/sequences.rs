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

    /// The most tiles of rows that a grid must have.
    pub(super) fn tiles(&self) -> usize {
        self.0.decoder_tiles
    }

    pub(super) fn address(&self, kernels: &Kernels) -> u64 {
        self.0.address(kernels)
    }
}
