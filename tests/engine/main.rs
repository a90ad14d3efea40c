//! What the engine promises beyond PyTorch's numbers: gradients, dropout, raggedness, determinism, and that frozen
//! parts cost nothing.

#[path = "../common/random.rs"]
mod random;

#[path = "../common/setting.rs"]
mod setting;

mod accumulation;
mod determinism;
mod dropout;
mod frozen_model;
mod gradients;
mod not_a_number;
mod ragged;
mod temperature;
