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
#[cfg(feature = "cli")]
mod bench;
pub mod choice;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "training")]
pub mod config;
#[cfg(feature = "data")]
mod count;
#[cfg(feature = "data")]
pub mod data;
#[cfg(feature = "training")]
pub mod demo;
pub mod error;
#[cfg(feature = "training")]
pub mod evaluate;
#[cfg(feature = "training")]
pub mod experiment;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "tasks")]
pub mod metrics;
#[cfg(feature = "training")]
pub mod model;
#[cfg(any(feature = "parquet", feature = "pretrained"))]
mod panics;
#[cfg(feature = "pretrained")]
pub mod pretrained;
#[cfg(feature = "training")]
pub mod prompts;
#[cfg(feature = "report")]
pub mod report;
#[cfg(feature = "tasks")]
pub mod tasks;
#[cfg(feature = "training")]
pub mod train;
#[cfg(feature = "training")]
pub mod verify;

#[cfg(feature = "cuda")]
pub use backend::cuda;
pub use error::{Error, Result};
