//! `--device`, `--precision` and `--threads`, for every command that computes.

use std::path::Path;

use super::gpu::{self, Gpu};
use super::ranks;
use crate::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{Cuda, Precision};
use crate::count::counted;
use crate::error::{Error, Result};
use crate::train::{self, TrainedOn};

/// The device that a command takes if none is named.
const AUTO: &str = "auto";

/// Where to compute.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Device {
    /// Where to compute: cpu, cuda, or cuda:N for GPU number N; auto is a GPU if this program can use one, else the CPU, and where
    /// runs go on what they began on
    #[arg(long, default_value = AUTO)]
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
pub(super) enum Format {
    Bf16,
    F32,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// What [`Device::choose`] decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// The CPU, in f32.
    Cpu,
    /// GPU number `ordinal`.
    Cuda { ordinal: usize, precision: Format },
}

impl Chosen {
    fn trained_on(self) -> TrainedOn {
        let (device, precision) = match self {
            Self::Cpu => ("cpu", Format::F32),
            Self::Cuda { precision, .. } => ("cuda", precision),
        };
        TrainedOn { device: device.into(), precision: precision.name().into() }
    }
}

/// The variable by which the virtual GPU keeps the time that its events then tell.
#[cfg(feature = "cuda")]
pub(super) const TIMING: &str = "VGPU_TIMING";

/// Whether the events of a virtual GPU tell the time of its model, and not the host's.
#[cfg(feature = "cuda")]
pub(super) fn tells_model_time() -> bool {
    std::env::var(TIMING).is_ok_and(|value| value == "1")
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
            Self::Cpu(cpu) => counted(cpu.threads(), "thread"),
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

/// Says a line of standard error, once for all processes of a run.
fn say(line: &str) {
    if ranks::is_first() {
        eprintln!("{line}");
    }
}

impl Device {
    /// Chooses and opens a device for work that nothing has begun before.
    pub(super) fn open(&self) -> Result<Opened> {
        self.start(self.choose(None)?, self.threads)
    }

    /// Decides where to compute, and says so if it was left to the program: a GPU that it takes, or that is there and not taken. Runs in
    /// the folder `begun` or beneath it go on on what they began on, unless a flag says otherwise.
    pub(super) fn choose(&self, begun: Option<&Path>) -> Result<Chosen> {
        let begun = begun.map_or(Ok(Vec::new()), train::trained_on)?;
        let is_auto = self.device == AUTO;
        let chosen = match &begun[..] {
            [] if is_auto => self.find()?,
            [(run, on)] if is_auto => self.go_on(run, on)?,
            [(run, on), (other, differs), ..] if is_auto => {
                return Err(Error::setting(
                    "--device",
                    "runs that all began on one device",
                    format!("{} on {on} and {} on {differs}", run.display(), other.display()),
                    "say on which they go on: --device cpu or --device cuda",
                ));
            }
            _ => self.forced()?,
        };
        if chosen == Chosen::Cpu && self.precision == Some(Format::Bf16) {
            let advice = if is_auto { "no GPU is taken" } else { "" };
            return Err(Error::setting("--precision", "f32, which the CPU computes in", "bf16", advice));
        }
        if let Some((run, on)) = begun.iter().find(|(_, on)| *on != chosen.trained_on()) {
            say(&format!(
                "{} was trained on {on} and goes on on {}: its numbers are no longer those of an unbroken run",
                run.display(),
                chosen.trained_on()
            ));
        }
        if chosen != Chosen::Cpu && self.threads.is_some() {
            say("--threads has no effect on a GPU");
        }
        Ok(chosen)
    }

    /// The device that a flag names.
    fn forced(&self) -> Result<Chosen> {
        let ordinal = match self.device.as_str() {
            "cpu" => return Ok(Chosen::Cpu),
            "cuda" => Some(ranks::local_rank()),
            other => other.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        let precision = self.precision.unwrap_or(Format::Bf16);
        ordinal
            .map(|ordinal| Chosen::Cuda { ordinal, precision })
            .ok_or_else(|| Error::setting("--device", "auto, cpu, cuda or cuda:N", self.device.as_str(), ""))
    }

    /// A GPU if there is one to use, else the CPU.
    fn find(&self) -> Result<Chosen> {
        match gpu::find() {
            Gpu::None => Ok(Chosen::Cpu),
            Gpu::Unused(error) => {
                say(&format!("computing on the CPU, not on a GPU: {}", why(&error)));
                Ok(Chosen::Cpu)
            }
            Gpu::Usable { ordinal, name } => {
                let precision = self.precision.unwrap_or(Format::Bf16);
                say(&taken(ordinal, &name, precision));
                Ok(Chosen::Cuda { ordinal, precision })
            }
        }
    }

    /// What the run in the folder `run` began on.
    fn go_on(&self, run: &Path, on: &TrainedOn) -> Result<Chosen> {
        let found = gpu::find();
        if on.device == "cpu" {
            if let Gpu::Usable { ordinal, name } = &found {
                say(&format!(
                    "computing on the CPU, on which {} began, not on cuda:{ordinal}, {name}; --device cuda goes on there",
                    run.display()
                ));
            }
            return Ok(Chosen::Cpu);
        }
        let recorded = if on.precision == Format::F32.name() { Format::F32 } else { Format::Bf16 };
        let precision = self.precision.unwrap_or(recorded);
        let reason = match &found {
            Gpu::Usable { ordinal, name } => {
                say(&taken(*ordinal, name, precision));
                return Ok(Chosen::Cuda { ordinal: *ordinal, precision });
            }
            Gpu::None => "no GPU was found".to_owned(),
            Gpu::Unused(error) => why(error),
        };
        Err(Error::setting(
            "--device",
            format!("a GPU, on which {} began, in {}", run.display(), on.precision),
            reason,
            "go on on a machine with a GPU, or by --device cpu, with numbers that are no longer those of an unbroken run",
        ))
    }

    /// Starts the CPU with so many threads, or opens the GPU.
    pub(super) fn start(&self, chosen: Chosen, threads: Option<usize>) -> Result<Opened> {
        match chosen {
            Chosen::Cpu => Cpu::with_caller(threads).map(Opened::Cpu),
            Chosen::Cuda { ordinal, precision } => open_cuda(ordinal, precision),
        }
    }
}

/// The line of a GPU that is taken.
fn taken(ordinal: usize, name: &str, precision: Format) -> String {
    format!("computing on cuda:{ordinal}, {name}, in {}; --device cpu takes the CPU", precision.name())
}

/// Why a GPU is not used and what would help: without what was not asked for, a flag.
fn why(error: &Error) -> String {
    match error {
        Error::Unsupported { what, reason, advice } if what.starts_with("--device") => {
            format!("{reason} ({advice})")
        }
        other => other.to_string(),
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize, precision: Format) -> Result<Opened> {
    let precision = match precision {
        Format::F32 => Precision::F32,
        Format::Bf16 => Precision::Bf16,
    };
    Cuda::new(ordinal, precision).map(|cuda| Opened::Cuda(Box::new(cuda)))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize, _: Format) -> Result<Opened> {
    Err(gpu::not_in_this_build())
}
