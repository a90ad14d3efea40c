//! Attentional mixtures of soft prompts (ATTEMPT, Asai et al., EMNLP 2022) on a frozen T5.
//!
//! The frozen model is read once; what trains is one target prompt and a small attention module that mixes it
//! with frozen source prompts, per example. Everything is written over one [`backend`] trait.
//!
//! # Shape letters
//!
//! Used in every doc comment of this crate.
//!
//! | letter | meaning | | letter | meaning |
//! |---|---|---|---|---|
//! | B | examples in a batch | | D | model width (`d_model`) |
//! | R | packed encoder rows, sum of (M + n_b) | | H, K | heads, width of a head (`d_kv`); H·K need not be D |
//! | n_b, t_b | source tokens and target tokens of example b | | F | feed-forward width (`d_ff`) |
//! | M | prompt length | | V | vocabulary |
//! | S | source prompts in the mixture | | T | packed decoder rows, sum of t_b |
//! | Q | width of the scorer's bottleneck | | L | layers |
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable)]

pub mod backend;
pub mod choice;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod data;
pub mod demo;
pub mod error;
pub mod evaluate;
pub mod experiment;
pub mod files;
pub mod metrics;
pub mod model;
mod panics;
pub mod pretrained;
pub mod prompts;
#[cfg(feature = "report")]
pub mod report;
pub mod tasks;
pub mod train;
pub mod verify;

#[cfg(feature = "cuda")]
pub use backend::cuda;
pub use error::{Error, Result};
