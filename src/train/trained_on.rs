//! What a run is trained on: the device and its number format, on which it goes on after an interruption.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backend::Backend;

/// A device and the number format of its matrix operands, as `--device` and `--precision` name them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TrainedOn {
    /// `cpu` or `cuda`.
    pub device: String,
    /// `f32` or `bf16`.
    pub precision: String,
}

impl TrainedOn {
    /// The device that this is.
    pub fn of<B: Backend>(backend: &B) -> Self {
        let (device, precision) = backend.computes_on();
        Self { device: device.into(), precision: precision.into() }
    }

    /// On what runs are trained whose folder does not say it: those of versions whose default was the CPU.
    pub(super) fn unrecorded() -> Self {
        Self { device: "cpu".into(), precision: "f32".into() }
    }
}

impl fmt::Display for TrainedOn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} in {}", self.device, self.precision)
    }
}
