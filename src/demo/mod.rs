//! The demonstration: tasks that a generator writes, and prompt tuning, SPoT and ATTEMPT compared on them with a small T5
//! that comes with the program.
//!
//! Every method takes the same steps at the same learning rates on the same few rows; rates are chosen by validation rows,
//! and test rows are read once everything is chosen.

#[cfg(feature = "cli")]
mod bundled;
mod compare;
mod generate;
mod report;
pub mod words;

#[cfg(feature = "cli")]
pub use bundled::write_model;
pub use compare::{Progress, Settings, compare};
pub use generate::{Generated, GeneratedTask, Rows, SOURCES, TARGET};
pub use report::{Report, Row};
