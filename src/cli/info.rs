//! `promptmix info`.

use std::process::ExitCode;

use super::gpu::{self, Gpu};
use crate::backend::cpu::Cpu;
use crate::count::counted;
use crate::error::Result;

/// Flags of `promptmix info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix info")]
pub(super) struct Arguments {
    /// Size of the square product that the rate is measured with; 0 measures nothing
    #[arg(long, default_value_t = 1024)]
    product_size: usize,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        println!("promptmix {}", env!("CARGO_PKG_VERSION"));
        println!("system    {} {}", std::env::consts::OS, std::env::consts::ARCH);
        let cpu = Cpu::<f32>::new(None)?;
        println!("cpu       {}, {} instructions", counted(cpu.threads(), "thread"), cpu.instruction_set());
        if self.product_size > 0 {
            let rate = cpu.product_rate(self.product_size.min(16_384), 5) / 1e9;
            println!("          {rate:.1} GFLOP/s in f32, a product of {0}×{0}", self.product_size);
        }
        cuda();
        let features = [
            ("cli", true),
            ("cuda", cfg!(feature = "cuda")),
            ("hub", cfg!(feature = "hub")),
            ("parquet", cfg!(feature = "parquet")),
            ("report", cfg!(feature = "report")),
            ("vendor", cfg!(feature = "vendor")),
            ("mpi", cfg!(feature = "mpi")),
            ("require-nvcc", cfg!(feature = "require-nvcc")),
        ];
        let built: Vec<&str> = features.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        println!("features  {}", built.join(" "));
        println!("next      {}", next());
        Ok(ExitCode::SUCCESS)
    }
}

/// The command to type next: what is missing before a GPU that is there can be used, else the demonstration.
fn next() -> String {
    let demo = "promptmix demo --out demo-run";
    match gpu::find() {
        Gpu::None => demo.to_owned(),
        Gpu::Usable { ordinal, .. } => format!("{demo}  # takes cuda:{ordinal}, as every command does"),
        Gpu::Unused(_) => match missing() {
            Missing::Kernels(command) => command.to_owned(),
            #[cfg(feature = "cuda")]
            Missing::Driver => "promptmix info  # when the NVIDIA driver is installed or updated".to_owned(),
            #[cfg(feature = "cuda")]
            Missing::NewerGpu => format!("{demo}  # takes the CPU: the GPU is too old"),
        },
    }
}

/// What a GPU that is there and cannot be used waits for.
enum Missing {
    Kernels(&'static str),
    #[cfg(feature = "cuda")]
    Driver,
    #[cfg(feature = "cuda")]
    NewerGpu,
}

#[cfg(feature = "cuda")]
fn missing() -> Missing {
    use crate::backend::cuda::{BUILD_COMMAND, FATBINS, OLDEST, devices};

    match devices() {
        _ if FATBINS.is_empty() => Missing::Kernels(BUILD_COMMAND),
        Ok(devices)
            if !devices.is_empty() && devices.iter().all(|device| device.compute_capability < OLDEST) =>
        {
            Missing::NewerGpu
        }
        _ => Missing::Driver,
    }
}

#[cfg(not(feature = "cuda"))]
fn missing() -> Missing {
    Missing::Kernels("cargo build --release --features cuda,require-nvcc")
}

/// What was compiled in, what the driver finds, and for each GPU that cannot be used why not.
#[cfg(feature = "cuda")]
fn cuda() {
    use crate::backend::cuda::{ARCHITECTURES, COMPILER, FATBINS, devices, driver_version, usable_device};

    let bytes: usize = FATBINS.iter().map(|(_, image)| image.len()).sum();
    let architectures: Vec<String> = ARCHITECTURES.iter().map(|number| format!("sm_{number}")).collect();
    match (FATBINS.len(), usable_device(0)) {
        (0, Err(error)) => println!("cuda      {error}"),
        (files, _) => println!(
            "cuda      {files} kernel files, {:.1} MB: {} PTX of compute_80; {COMPILER}",
            bytes as f64 / 1e6,
            architectures.join(" ")
        ),
    }
    match driver_version() {
        Ok(version) => {
            println!("          the driver speaks CUDA {}.{}", version / 1000, version % 1000 / 10)
        }
        Err(error) => return println!("          {error}"),
    }
    let devices = match devices() {
        Ok(devices) => devices,
        Err(error) => return println!("          {error}"),
    };
    for device in &devices {
        let (major, minor) = device.compute_capability;
        println!(
            "          cuda:{} {}, compute capability {major}.{minor}, {} multiprocessors, {:.1} GiB",
            device.ordinal,
            device.name,
            device.multiprocessors,
            device.memory as f64 / f64::from(1 << 30)
        );
    }
    if !FATBINS.is_empty() {
        for ordinal in 0..devices.len().max(1) {
            if let Err(error) = usable_device(ordinal) {
                println!("          {error}");
            }
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda() {
    println!("cuda      built without the feature `cuda`");
}
