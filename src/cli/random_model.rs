//! A model of given dimensions with made-up weights, for measuring.

use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::Result;
use crate::model::Tensors;
use crate::pretrained::T5Config;

/// Dimensions by name, or from a `config.json`.
pub(super) fn dimensions(name: &str) -> Result<T5Config> {
    Ok(match name {
        "t5-small" => T5Config::t5_small(),
        "t5-base" => T5Config::t5_base(),
        "t5-large" => T5Config::t5_large(),
        "t5-3b" => T5Config::t5_3b(),
        "t5-v1_1-small" => T5Config::t5_v1_1_small(),
        "t5-v1_1-base" => T5Config::t5_v1_1_base(),
        path => T5Config::read(Path::new(path))?,
    })
}

/// Weights drawn by name, so that every tensor is its own and the same in each run.
pub(super) struct RandomModel {
    pub(super) config: T5Config,
}

impl Tensors for RandomModel {
    fn config(&self) -> &T5Config {
        &self.config
    }

    /// Gains are 1; the rest is uniform with a variance of 1 / (inputs), which keeps activations of ordinary size.
    fn read_into(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<()> {
        if shape.len() == 1 {
            values.fill(1.0);
            return Ok(());
        }
        let seed = name.bytes().fold(0_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let inputs = if name == "shared.weight" { 1 } else { shape[1] };
        let half_width = (3.0 / inputs as f32).sqrt();
        for value in values {
            *value = (random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0) * half_width;
        }
        Ok(())
    }

    fn output_is_tied(&self) -> Result<bool> {
        Ok(self.config.tie_word_embeddings)
    }
}
