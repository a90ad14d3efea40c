//! Buffers that outlive the step that used them, so that a step asks the system for no memory.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use super::element::Element;
use crate::error::{Error, Result};

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
        let data = self.reused(length).unwrap_or_else(|| vec![E::zero(); with_slack(length)]);
        self.lend(data, length)
    }

    /// As [`Pool::take`], of rows × width numbers.
    ///
    /// # Errors
    /// No memory for them.
    pub fn take_rows(self: &Arc<Self>, rows: usize, width: usize) -> Result<Buffer<E>> {
        let length = rows.saturating_mul(width);
        let reused = self.reused(length).map(|data| self.lend(data, length));
        // What is reused asks the system for nothing.
        reused
            .map_or_else(|| check_room::<E>("an activation", &[rows, width]).map(|()| self.take(length)), Ok)
    }

    /// The least free buffer of at least `length` numbers, unless it is far too large.
    fn reused(&self, length: usize) -> Option<Vec<E>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |candidate: usize| {
            candidate >= length && candidate <= length.saturating_mul(2).saturating_add(1024)
        };
        let best = (0..free.len()).filter(|&i| fits(free[i].len())).min_by_key(|&i| free[i].len());
        best.map(|i| free.swap_remove(i))
    }

    fn lend(self: &Arc<Self>, mut data: Vec<E>, length: usize) -> Buffer<E> {
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

/// Fails unless the system has memory for so many numbers, the product of `factors`.
pub fn check_room<E>(what: &str, factors: &[usize]) -> Result<()> {
    let length = factors.iter().try_fold(1_usize, |product, &factor| product.checked_mul(factor));
    let length = length.filter(|&length| length <= isize::MAX as usize / 2);
    if length.is_some_and(|length| Vec::<E>::new().try_reserve_exact(with_slack(length)).is_ok()) {
        return Ok(());
    }
    let found = format!("{factors:?} numbers of {} bytes", size_of::<E>());
    Err(Error::tensor(what, "a size that the system has memory for", found, "make batches smaller"))
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
