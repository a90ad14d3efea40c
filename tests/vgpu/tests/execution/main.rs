//! Programs on the virtual GPU, without the driver: opcodes, kernels, checks that fail as they should, counters.

#[path = "../support/bench.rs"]
mod bench;
#[path = "../support/maps.rs"]
mod maps;
#[path = "../support/tools.rs"]
mod tools;

mod async_faults;
mod block_opcodes;
mod boxes;
mod calls;
mod compare;
mod compiled;
mod convergence;
mod counters;
mod coverage;
mod descriptors;
mod faults;
mod fragments;
mod hollow;
mod hostile;
mod kernels;
mod launch;
mod model;
mod opcodes;
mod stretches;
mod waiting;
mod warpgroup;
mod wgmma_kinds;
mod wide_mma;
mod wmma;
