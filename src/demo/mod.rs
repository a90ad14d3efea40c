//! The demonstration: tasks that a generator writes, and prompt tuning, SPoT and ATTEMPT compared on them.

mod generate;
pub mod words;

pub use generate::{Generated, GeneratedTask, Rows, SOURCES, TARGET};
