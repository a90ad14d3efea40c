//! The CUDA backend: hand-written kernels, launched through cudarc, in three levels.
//!
//! [`Cuda`] is a [`Backend`](super::Backend): the whole model runs on it. Below it each op is a typed launcher on cudarc's own
//! slices and views and the stream of a [`Kernels`], for any program: [`linear::Linear`], [`feed_forward::Gate`],
//! [`attention::Attention`], [`cross_attention::AbsorbedCrossAttention`], [`norm::FinalNorm`], [`embedding::Embedding`],
//! [`loss::CrossEntropy`], [`mix::PromptMix`], [`optimizer::AdamW`], [`decode::DecodeStep`]. The backend goes through the same
//! launchers. Below them lie devices, modules, memory and the launch itself. [`FATBINS`] holds the compiled kernels, for other
//! loaders (see `examples/embed_attention.rs`).
//!
//! Numbers: matrix operands are bf16 ([`Precision::Bf16`]) or, to verify, f32; sums, the residual stream and everything
//! trained are f32. Every reduction has a fixed order, so the same input gives the same bytes.

mod backend;
#[cfg(feature = "capi")]
mod capi;
mod example;
pub mod export;
mod ops;
mod runtime;

pub use backend::{
    Cache, CrossAttentionSaved, Cuda, DeviceLoss, FeedForwardSaved, GraphCache, MixSaved, Operand,
    PositionBias, Rows, SourceGradient, Sources, State, Tokens, Weight,
};
pub use cudarc;
pub use ops::packing::{Described, DeviceDropout, DropoutMask, LabelRows, Packed, PackedRows};
pub use ops::sequences::{PairedSequences, Sequences};
pub use ops::{ATTENTION_TILE, NORM_COLUMNS};
pub use ops::{
    attention, cross_attention, decode, embedding, feed_forward, linear, loss, mix, norm, optimizer, peak,
    tile_search,
};
#[cfg(feature = "cli")]
pub(crate) use runtime::devices::pci_place;
pub use runtime::devices::{DeviceInfo, devices, driver_version, first_usable_device, usable_device};
#[cfg(feature = "cli")]
pub(crate) use runtime::error::OLDEST;
pub use runtime::event_clock::{EventClock, Times};
pub use runtime::kernels::{Kernel, Kernels};
pub use runtime::memory::Buffer;
pub use runtime::operands::{Precision, ReadOperand, WriteOperand};
#[cfg(feature = "cli")]
pub(crate) use runtime::table::BUILD_COMMAND;
pub use runtime::table::{ARCHITECTURES, COMPILER, FATBINS};
