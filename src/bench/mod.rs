//! Measurements that others can cite: every family of kernels at the shapes of a model's batch, with the environment that they were
//! taken in, and two files of such measurements compared.
//!
//! [`kernels`] times what runs on any device; on a GPU [`products`] adds the products with their epilogues, the gate, and what the device
//! can do at most.

mod compare;
mod environment;
mod kernels;
#[cfg(feature = "cuda")]
mod products;
mod report;
mod shapes;
mod stopwatch;

pub(crate) use compare::compare;
pub(crate) use environment::Environment;
#[cfg(feature = "cuda")]
pub(crate) use environment::{datasheet, nvml};
pub(crate) use kernels::{Only, measure};
#[cfg(feature = "cuda")]
pub(crate) use products::{ceilings, layer_products, measure_products};
pub(crate) use report::{Measured, Peers, Report, read_report};
pub(crate) use shapes::{Shape, shapes};
pub(crate) use stopwatch::HostClock;
