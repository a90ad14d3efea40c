//! A virtual GPU.
#![deny(missing_docs)]
pub mod number;
pub mod program;
pub mod ptx;
