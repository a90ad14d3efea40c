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

/// An endless iterator over batches; epochs follow each other, the last batch of each may be smaller. The examples of
/// several tasks are numbered one task after the other and stand mixed in the batches.
#[derive(Debug, Clone)]
pub struct Batches {
    /// Where each task's examples begin, and where the last's end.
    offsets: Vec<usize>,
    /// How many of each task an epoch reads; `None`: every example once.
    quotas: Option<Vec<usize>>,
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
        Self::mixed(&[examples], &[1.0], batch_size, seed)
    }

    /// Batches out of tasks of `sizes` examples, each drawn by its part of all `shares`. An epoch has as many examples as
    /// there are. A task that is drawn more often begins again in another order; one that is drawn less often goes on in
    /// the next epoch where it was, so that in time every example is read.
    ///
    /// # Errors
    /// [`Error::Setting`] if a size or the batch size is 0, a share is not above 0, or there are more than 2^32 - 1
    /// examples.
    pub fn mixed(sizes: &[usize], shares: &[f64], batch_size: usize, seed: u64) -> Result<Self> {
        let mut offsets = vec![0];
        for &size in sizes {
            let end = offsets[offsets.len() - 1] + size;
            if size == 0 || u32::try_from(end).is_err() {
                return Err(Error::setting("examples", "1 to 4294967295", size.to_string(), ""));
            }
            offsets.push(end);
        }
        if sizes.is_empty() || shares.len() != sizes.len() || !shares.iter().all(|&share| share > 0.0) {
            let expected = format!("{} numbers above 0, one a task", sizes.len());
            return Err(Error::setting("shares of tasks", expected, format!("{shares:?}"), ""));
        }
        if batch_size == 0 {
            return Err(Error::setting("batch size", "at least 1", "0", ""));
        }
        let quotas = quotas(offsets[sizes.len()], shares);
        let quotas = (quotas != sizes).then_some(quotas);
        Ok(Self { offsets, quotas, batch_size, seed, step: 0, order: None })
    }

    /// The task of an example, and its number within the task.
    pub fn locate(&self, example: u32) -> (usize, usize) {
        let task = self.offsets[1..].partition_point(|&end| end <= example as usize);
        (task, example as usize - self.offsets[task])
    }

    /// Steps in one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.examples().div_ceil(self.batch_size) as u64
    }

    /// Goes on as if `step` steps had been taken: what a resumed run needs.
    pub fn seek(&mut self, step: u64) {
        self.step = step;
    }

    fn examples(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }

    fn order(&self, epoch: u64) -> Vec<u32> {
        let Some(quotas) = &self.quotas else { return epoch_order(self.examples(), self.seed, epoch) };
        let mut drawn = Vec::with_capacity(self.examples());
        for (task, &quota) in quotas.iter().enumerate() {
            let (first, size) = (self.offsets[task], self.offsets[task + 1] - self.offsets[task]);
            let mut order: Option<(u64, Vec<u32>)> = None;
            for position in (0..quota as u64).map(|position| epoch * quota as u64 + position) {
                let (round, within) = (position / size as u64, position % size as u64);
                if order.as_ref().is_none_or(|(of, _)| *of != round) {
                    let purpose = format!("task {task}");
                    let mut generator = generator(purpose.as_bytes(), self.seed, round);
                    order = Some((round, permutation(size, &mut generator)));
                }
                let row = order.as_ref().map_or(0, |(_, order)| order[within as usize]);
                drawn.push(first as u32 + row);
            }
        }
        let slots = epoch_order(drawn.len(), self.seed, epoch);
        slots.into_iter().map(|slot| drawn[slot as usize]).collect()
    }
}

/// `total` in whole numbers by `shares`, at least 1 each; what rounding leaves goes to the largest remainders.
fn quotas(total: usize, shares: &[f64]) -> Vec<usize> {
    let sum: f64 = shares.iter().sum();
    let exact: Vec<f64> = shares.iter().map(|share| total as f64 * share / sum).collect();
    let mut quotas: Vec<usize> =
        exact.iter().map(|exact| (*exact + 1e-6).floor().max(1.0) as usize).collect();
    let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
    by_remainder.sort_by(|&a, &b| (exact[b] - exact[b].floor()).total_cmp(&(exact[a] - exact[a].floor())));
    for &task in by_remainder.iter().cycle().take(shares.len() * 2) {
        if quotas.iter().sum::<usize>() < total {
            quotas[task] += 1;
        }
    }
    while quotas.iter().sum::<usize>() > total {
        let Some(most) = quotas.iter_mut().max().filter(|most| **most > 1) else { break };
        *most -= 1;
    }
    quotas
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let (epoch, within) = (self.step / self.steps_per_epoch(), self.step % self.steps_per_epoch());
        let order = match self.order.take() {
            Some((of, order)) if of == epoch => order,
            _ => self.order(epoch),
        };
        let start = within as usize * self.batch_size;
        let end = start.saturating_add(self.batch_size).min(order.len());
        let batch = Batch { step: self.step, epoch, indices: order[start..end].to_vec() };
        self.order = Some((epoch, order));
        self.step += 1;
        Some(batch)
    }
}
