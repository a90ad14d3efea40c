//! Processes that train one run together, each on a part of every step's rows.
//!
//! Only sums pass between them: label tokens before the backward pass, gradient and losses after it. A sum is taken in
//! the order of ranks on every rank, so all of them hold the same bytes, and the same from run to run.

use crate::error::Result;

/// The processes of a run.
pub trait Ranks {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn count(&self) -> usize;
    /// Adds up each of `values` over all ranks, rank 0's first. Every rank calls it, with equally many.
    ///
    /// # Errors
    /// If the processes cannot reach each other.
    fn sum(&self, values: &mut [f64]) -> Result<()>;
    /// Ends the others, which would wait for this one for ever. What went wrong should have been said before.
    fn abort(&self) {}
}

/// One process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }
    fn count(&self) -> usize {
        1
    }
    fn sum(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }
}

/// Processes that `mpirun` started.
#[cfg(feature = "mpi")]
pub struct Mpi {
    universe: mpi::environment::Universe,
}

#[cfg(feature = "mpi")]
impl Mpi {
    /// Joins the processes that were started with this one; a process of its own has none beside it.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if MPI was started before in this process.
    pub fn start() -> Result<Self> {
        let refused = || crate::error::Error::unsupported("MPI", "it was started before in this process", "");
        Ok(Self { universe: mpi::initialize().ok_or_else(refused)? })
    }
}

#[cfg(feature = "mpi")]
impl Ranks for Mpi {
    fn rank(&self) -> usize {
        use mpi::traits::Communicator;
        self.universe.world().rank().unsigned_abs() as usize
    }

    fn count(&self) -> usize {
        use mpi::traits::Communicator;
        self.universe.world().size().unsigned_abs() as usize
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        use mpi::traits::CommunicatorCollectives;
        let mut gathered = vec![0.0; values.len() * self.count()];
        self.universe.world().all_gather_into(&*values, &mut gathered[..]);
        let length = values.len();
        values.copy_from_slice(&gathered[..length]);
        for rank in gathered.chunks_exact(length.max(1)).skip(1) {
            values.iter_mut().zip(rank).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    fn abort(&self) {
        use mpi::traits::Communicator;
        self.universe.world().abort(1)
    }
}
