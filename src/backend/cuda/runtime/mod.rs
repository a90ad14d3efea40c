//! What every launch stands on: devices, modules and launching, memory, operands, errors.

pub(crate) mod arguments;
pub(crate) mod capture;
pub(crate) mod devices;
pub(crate) mod error;
pub(crate) mod event_clock;
pub(crate) mod kernels;
pub(crate) mod memory;
pub(crate) mod operands;
pub(crate) mod staging;
pub(crate) mod table;
pub(crate) mod tensor_map;
