//! The processes that `mpirun` started beside this one.

use std::rc::Rc;

use crate::error::{Error, Result};
use crate::train::{Alone, Ranks};

/// Where launchers say how many processes they started, and which of them this is.
const COUNTS: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];
const RANKS: [&str; 2] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"];
/// Where they say which of a machine's processes this is, and how many it has.
const LOCAL_RANKS: [&str; 2] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"];
const LOCAL_COUNTS: [&str; 2] = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"];

fn number(names: [&str; 2]) -> Option<usize> {
    names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok())
}

/// Which of this machine's processes this is: the GPU it takes if none is named.
pub(super) fn local_rank() -> usize {
    number(LOCAL_RANKS).unwrap_or(0)
}

/// Whether this is the process that speaks for all.
pub(super) fn is_first() -> bool {
    number(RANKS).unwrap_or(0) == 0
}

/// How many of the processes are on this machine, which share its cores.
pub(super) fn local_count() -> usize {
    number(LOCAL_COUNTS).unwrap_or(1).max(1)
}

/// Whether a launcher started several processes.
pub(super) fn launched() -> bool {
    number(COUNTS).unwrap_or(1) > 1
}

/// Refuses processes of which some compute on a GPU and others do not: they would wait for the slowest, and its numbers are others.
pub(super) fn check_same(ranks: &dyn Ranks, is_gpu: bool) -> Result<()> {
    let mut on_gpus = [f64::from(u8::from(is_gpu))];
    ranks.sum(&mut on_gpus)?;
    let (on_gpus, count) = (on_gpus[0] as usize, ranks.count());
    if on_gpus == 0 || on_gpus == count {
        return Ok(());
    }
    Err(Error::setting(
        "--device",
        "a GPU for every rank or for none",
        format!("{on_gpus} of {count} ranks with one"),
        "start ranks on machines with GPUs alone, or take --device cpu; promptmix info says on each machine what it has",
    ))
}

/// Joins the processes that a launcher started, if one did.
pub(super) fn join() -> Result<Rc<dyn Ranks>> {
    if !launched() {
        return Ok(Rc::new(Alone));
    }
    start()
}

#[cfg(feature = "mpi")]
fn start() -> Result<Rc<dyn Ranks>> {
    let mpi = crate::train::Mpi::start()?;
    // A rank that unwinds would wait at its end for the others, and they in their next sum for it.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
    Ok(Rc::new(mpi))
}

#[cfg(not(feature = "mpi"))]
fn start() -> Result<Rc<dyn Ranks>> {
    Err(Error::unsupported(
        "training on several ranks",
        "this program was built without the feature `mpi`",
        "build it with --features mpi, or start it without mpirun",
    ))
}
