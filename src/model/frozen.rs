//! A frozen model on a device, with its tokenizer.

use std::path::Path;

use super::T5;
use crate::backend::Backend;
use crate::error::Result;
use crate::pretrained::{self, Tokenizer};

/// What every run on one model shares: it is read once and never changes.
pub struct Frozen<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// T5 on it.
    pub model: T5<B>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// SHA-256 of the model's tensors, which prompts carry.
    pub model_hash: String,
    /// What whoever uses the model should hear: where its files allow two readings, which was taken.
    pub warnings: Vec<String>,
}

impl<'a, B: Backend> Frozen<'a, B> {
    /// Reads the model in `folder` and copies it to the device; the files are let go again.
    ///
    /// # Errors
    /// Those of reading a checkpoint or a tokenizer, and of the device.
    pub fn load(backend: &'a B, folder: &Path) -> Result<Self> {
        Self::of_checkpoint(backend, &pretrained::Checkpoint::open(folder)?)
    }

    /// As [`Frozen::load`], from a checkpoint that is open already.
    ///
    /// # Errors
    /// As there.
    pub fn of_checkpoint(backend: &'a B, checkpoint: &pretrained::Checkpoint) -> Result<Self> {
        let tokenizer = Tokenizer::open(checkpoint.folder(), checkpoint.config())?;
        let model_hash = checkpoint.sha256()?.to_owned();
        let model = T5::load(backend, checkpoint)?;
        Ok(Self { backend, model, tokenizer, model_hash, warnings: checkpoint.warnings().to_vec() })
    }
}
