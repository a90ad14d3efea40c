//! Data: files of rows, their splits, and tokenised examples in the order a run reads them.
//!
//! Readers stream JSONL, CSV, TSV and Parquet; [`Splits`] says which rows train, validate and test; [`Examples`] holds them
//! tokenised; [`Batches`] gives each step its rows. Not for what a row's text is (tasks) nor for packing batches (model).

mod batches;
mod examples;
mod few_shot;
mod index;
#[cfg(feature = "parquet")]
mod parquet;
mod reader;
mod splits;

pub use batches::{Batch, Batches, epoch_order};
pub use examples::{Counts, Encode, ExampleSettings, Examples};
pub use few_shot::FewShot;
pub use index::RowIndex;
pub use reader::{Format, LINE_LIMIT, Reader, count_rows, open};
pub use splits::{Part, Rows, Split, Splits};
