//! Buffers that outlive the step that used them, so that a step asks the system for no memory.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use super::element::Element;

/// Free buffers, by length.
#[derive(Debug)]
pub struct Pool<E> {
    free: Mutex<Vec<Vec<E>>>,
    poison: bool,
}

impl<E: Element> Pool<E> {
    /// An empty pool. With `poison`, every buffer handed out is filled with NaN first, so that a value read before it
    /// is written shows.
    pub fn new(poison: bool) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(Vec::new()), poison })
    }

    /// A buffer of `length` numbers, content unspecified.
    pub fn take(self: &Arc<Self>, length: usize) -> Buffer<E> {
        let reused = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = |candidate: usize| candidate >= length && candidate <= 2 * length + 1024;
            let best = (0..free.len()).filter(|&i| fits(free[i].len())).min_by_key(|&i| free[i].len());
            best.map(|i| free.swap_remove(i))
        };
        let mut data = reused.unwrap_or_else(|| vec![E::zero(); with_slack(length)]);
        if self.poison {
            data.fill(E::nan());
        }
        Buffer { data, length, pool: self.clone() }
    }

    /// Gives all free buffers back to the system.
    pub fn clear(&self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Ragged batches ask for many lengths; rounding up to three significant bits lets them share buffers.
fn with_slack(length: usize) -> usize {
    let granule = (length.max(1024).next_power_of_two() / 32).max(1);
    length.div_ceil(granule) * granule
}

/// A buffer on loan from its pool.
#[derive(Debug)]
pub struct Buffer<E: Element> {
    data: Vec<E>,
    length: usize,
    pool: Arc<Pool<E>>,
}

impl<E: Element> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.data[..self.length]
    }
}

impl<E: Element> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.data[..self.length]
    }
}

impl<E: Element> Drop for Buffer<E> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(data);
    }
}
