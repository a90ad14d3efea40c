//! The CUDA backend against the CPU's, on the virtual GPU or a real one.

mod device;
mod fixtures;
mod rows;
