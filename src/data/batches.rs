//! Which examples each step reads: a new permutation every epoch, a function of seed and epoch alone.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{Error, Result};

/// The order of `examples` in `epoch`, counted from 0. Equal on every machine and with any number of threads.
pub fn epoch_order(examples: usize, seed: u64, epoch: u64) -> Vec<u32> {
    permutation(examples, &mut generator(b"epoch order", seed, epoch))
}

/// A generator that shares no numbers with those of other purposes, seeds or rounds. `purpose` has at most 16 bytes.
pub(super) fn generator(purpose: &[u8], seed: u64, round: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&round.to_le_bytes());
    for (byte, letter) in key[16..].iter_mut().zip(purpose) {
        *byte = *letter;
    }
    ChaCha8Rng::from_seed(key)
}

/// A permutation of 0..n: Fisher and Yates, from the front.
pub(super) fn permutation(n: usize, generator: &mut impl RngCore) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for position in 0..n.saturating_sub(1) {
        let other = position + below((n - position) as u64, generator) as usize;
        order.swap(position, other);
    }
    order
}

/// A whole number below `bound`, every one equally likely (Lemire 2019: multiply, reject the uneven rest).
fn below(bound: u64, generator: &mut impl RngCore) -> u64 {
    let uneven = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(generator.next_u64()) * u128::from(bound);
        if product as u64 >= uneven {
            return (product >> 64) as u64;
        }
    }
}

/// What one step reads.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batch {
    /// Steps before this one.
    pub step: u64,
    /// Epochs before this one's.
    pub epoch: u64,
    /// Indices into the examples, in reading order.
    pub indices: Vec<u32>,
}

/// An endless iterator over batches; epochs follow each other, the last batch of each may be smaller.
#[derive(Debug, Clone)]
pub struct Batches {
    examples: usize,
    batch_size: usize,
    seed: u64,
    step: u64,
    order: Option<(u64, Vec<u32>)>,
}

impl Batches {
    /// Batches of `batch_size` out of `examples`.
    ///
    /// # Errors
    /// [`Error::Setting`] if either is 0, or there are more than 2^32 - 1 examples.
    pub fn new(examples: usize, batch_size: usize, seed: u64) -> Result<Self> {
        if examples == 0 || u32::try_from(examples).is_err() {
            return Err(Error::setting("examples", "1 to 4294967295", examples.to_string(), ""));
        }
        if batch_size == 0 {
            return Err(Error::setting("batch size", "at least 1", "0", ""));
        }
        Ok(Self { examples, batch_size, seed, step: 0, order: None })
    }

    /// Steps in one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.examples.div_ceil(self.batch_size) as u64
    }

    /// Goes on as if `step` steps had been taken: what a resumed run needs.
    pub fn seek(&mut self, step: u64) {
        self.step = step;
    }
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let (epoch, within) = (self.step / self.steps_per_epoch(), self.step % self.steps_per_epoch());
        let order = match self.order.take() {
            Some((of, order)) if of == epoch => order,
            _ => epoch_order(self.examples, self.seed, epoch),
        };
        let start = within as usize * self.batch_size;
        let end = start.saturating_add(self.batch_size).min(order.len());
        let batch = Batch { step: self.step, epoch, indices: order[start..end].to_vec() };
        self.order = Some((epoch, order));
        self.step += 1;
        Some(batch)
    }
}
