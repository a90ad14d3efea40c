//! `--device`, `--precision` and `--threads`, for every command that computes.

use crate::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{Cuda, Precision};
use crate::error::{Error, Result};

/// Where to compute.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Device {
    /// Where to compute: cpu, cuda, or cuda:N for GPU number N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number format of matrix operands on a GPU: bf16 to train; f32 is slow, to verify with
    #[arg(long, value_enum)]
    precision: Option<Format>,
    /// Threads of the CPU; one a core if not given
    #[arg(long)]
    pub(super) threads: Option<usize>,
}

/// A number format by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Bf16,
    F32,
}

/// A device that was opened: [`on_device`] runs code that is generic over it.
pub(super) enum Opened {
    /// The CPU.
    Cpu(Cpu<f32>),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>),
}

impl Opened {
    /// What computes, for people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("{} threads", cpu.threads()),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => format!("{} in {}", cuda.info().name, cuda.precision()),
        }
    }

    /// The rate of a large product alone, in operations a second.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub(super) fn product_rate(&self) -> Result<f64> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.product_rate(2048, 4)),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.product_rate(8192, 10),
        }
    }

    /// The most bytes of device memory in use at a time; `None` on the CPU.
    pub(super) fn device_memory(&self) -> Option<usize> {
        match self {
            Self::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Some(cuda.allocated_bytes()),
        }
    }
}

/// Runs an expression with the opened device as `$backend`, whichever it is.
macro_rules! on_device {
    ($opened:expr, $backend:ident => $work:expr) => {
        match &$opened {
            crate::cli::device::Opened::Cpu($backend) => $work,
            #[cfg(feature = "cuda")]
            crate::cli::device::Opened::Cuda(boxed) => {
                let $backend = boxed.as_ref();
                $work
            }
        }
    };
}
pub(super) use on_device;

impl Device {
    /// Starts the CPU or opens the GPU.
    pub(super) fn open(&self) -> Result<Opened> {
        let ordinal = match self.device.as_str() {
            "cpu" => return self.open_cpu().map(Opened::Cpu),
            "cuda" => Some(super::ranks::local_rank()),
            other => other.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        let Some(ordinal) = ordinal else {
            return Err(Error::setting("--device", "cpu, cuda or cuda:N", self.device.as_str(), ""));
        };
        self.open_cuda(ordinal)
    }

    /// Whether the CPU was asked for.
    pub(super) fn is_cpu(&self) -> bool {
        self.device == "cpu"
    }

    /// Starts the CPU, which must be what was asked for.
    pub(super) fn open_cpu(&self) -> Result<Cpu<f32>> {
        if self.device != "cpu" {
            return Err(Error::setting(
                "--device",
                "cpu",
                self.device.as_str(),
                "this command runs on the CPU alone",
            ));
        }
        if self.precision == Some(Format::Bf16) {
            return Err(Error::setting("--precision", "f32, which the CPU computes in", "bf16", ""));
        }
        Cpu::with_caller(self.threads)
    }

    #[cfg(feature = "cuda")]
    fn open_cuda(&self, ordinal: usize) -> Result<Opened> {
        let precision = match self.precision {
            Some(Format::F32) => Precision::F32,
            Some(Format::Bf16) | None => Precision::Bf16,
        };
        Cuda::new(ordinal, precision).map(|cuda| Opened::Cuda(Box::new(cuda)))
    }

    #[cfg(not(feature = "cuda"))]
    fn open_cuda(&self, ordinal: usize) -> Result<Opened> {
        Err(Error::unsupported(
            format!("--device cuda:{ordinal}"),
            "this program was built without the feature `cuda`",
            "build it with the feature; --device cpu, the default, needs none",
        ))
    }
}
