//! Data: files of rows, their splits, and tokenised examples in the order a run reads them.
//!
//! Readers stream JSONL, CSV, TSV and Parquet; [`Splits`] says which rows train, validate and test; [`Examples`] holds them
//! tokenised; [`Batches`] gives each step its rows. Not for what a row's text is (tasks) nor for packing batches (model).

mod array;
mod batches;
mod examples;
mod few_shot;
mod folder;
mod format;
mod index;
pub mod json;
mod lines;
mod objects;
#[cfg(feature = "parquet")]
mod parquet;
mod places;
mod reader;
mod records;
mod splits;
mod tsv;

pub use batches::{Batch, Batches, epoch_order};
#[cfg(feature = "training")]
pub(crate) use examples::tokenise;
pub use examples::{Counts, Encode, ExampleSettings, Examples};
pub use few_shot::FewShot;
pub use folder::is_split_file;
pub use format::Format;
pub use index::RowIndex;
pub use lines::LINE_LIMIT;
#[cfg(feature = "training")]
pub(crate) use places::moved_places;
#[cfg(feature = "training")]
pub(crate) use places::refuse_without;
pub use places::{data_of_task, data_of_tasks, data_parts};
pub use reader::{Reader, count_rows, open, open_columns, open_with_text};
pub use splits::{Part, Rows, Split, SplitSource, Splits};
