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
