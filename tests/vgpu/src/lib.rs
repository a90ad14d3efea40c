//! A virtual GPU: a `libcuda` that runs the PTX that nvcc made, on the CPU, and checks while it runs what
//! hardware does not.
//!
//! Tests call [`load`] before their first CUDA call and then use the CUDA driver as ever:
//!
//! ```no_run
//! let gpu = vgpu::load().expect("a GPU, or the virtual one");
//! // ... cudarc, or anything else that opens libcuda.so ...
//! gpu.finish(); // fails the test if a check failed
//! ```
//!
//! The crate is two libraries of one source: the `cdylib` is the `libcuda`, the `rlib` finds and steers it.
//! What it cannot show: real time, weak memory ordering, and what ptxas alone does to a kernel.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::unreachable)]

pub mod check;
pub(crate) mod codes;
pub mod compiled;
pub mod counters;
pub mod device;
mod driver;
pub mod execute;
mod host;
pub mod memory;
pub mod model;
pub mod number;
pub mod prediction;
pub mod profile;
pub mod program;
pub mod ptx;
mod shadow;
pub mod tensor_map;

pub use driver::{Calls, Change, Summary};
pub use host::{Gpu, HostError, find_library, load};
