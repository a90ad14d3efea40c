//! A virtual GPU.
#![deny(missing_docs)]
pub mod check;
pub mod counters;
pub mod execute;
pub mod memory;
pub mod number;
pub mod program;
pub mod ptx;
pub mod device;
pub mod profile;
