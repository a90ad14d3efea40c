//! What the engine promises beyond PyTorch's numbers: gradients, dropout, raggedness, determinism, and that frozen
//! parts cost nothing.

#[path = "../common/random.rs"]
mod random;

mod setting;

mod determinism;
mod dropout;
mod gradients;
mod temperature;
