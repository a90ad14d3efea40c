//! The functions of `kernels/capi.h` for programs in C, C++ and Python, over the same launchers as everything else.
//!
//! A panic ends at the boundary, as an error. What is in device memory stays the caller's.

mod functions;
mod handles;
mod interface;
