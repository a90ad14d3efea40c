//! `--device` and `--threads`, for every command that computes.

use crate::backend::cpu::Cpu;
use crate::error::{Error, Result};

/// Where to compute.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Device {
    /// Where to compute: cpu
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads of the CPU; one a core if not given
    #[arg(long)]
    pub(super) threads: Option<usize>,
}

impl Device {
    /// Starts the CPU.
    pub(super) fn open(&self) -> Result<Cpu<f32>> {
        match self.device.as_str() {
            "cpu" => Cpu::new(self.threads),
            cuda if cuda == "cuda" || cuda.starts_with("cuda:") => Err(Error::unsupported(
                format!("--device {cuda}"),
                "this build has no GPU kernels",
                "leave the flag out to compute on the CPU",
            )),
            other => Err(Error::setting("--device", "cpu", other, "")),
        }
    }
}
