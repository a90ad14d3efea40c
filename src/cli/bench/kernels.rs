//! `promptmix bench kernels` and `promptmix bench compare`: every kernel at the shapes of models, and two such measurements side by side.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{Cuda, EventClock, Precision, linear, pci_place, peak::Vendor};
use crate::bench::{self, Environment, HostClock, Measured, Only, Peers, Report, Shape};
use crate::cli::device::{Device, Opened};
#[cfg(feature = "cuda")]
use crate::cli::device::{TIMING, tells_model_time};
use crate::count::counted;
use crate::error::{Error, Result};
use crate::files;

/// Flushes of the cache before a pass on a GPU: some hundred microseconds.
#[cfg(feature = "cuda")]
const FLUSHES: usize = 4;

/// Flags of `promptmix bench kernels`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix bench kernels --shapes t5-base --device cuda
  promptmix bench kernels --shapes t5-small,t5-base,t5-large,t5-3b --device cuda --json kernels.json
  promptmix bench kernels --shapes shapes.toml --only linear --only cross_attention/forward

A file of shapes is like src/bench/presets.toml.")]
pub(super) struct Kernels {
    /// t5-small, t5-base, t5-large, t5-3b, or a TOML file of shapes; several with commas between
    #[arg(long, value_delimiter = ',', default_value = "t5-base")]
    shapes: Vec<String>,
    /// Measure this family of kernels, or this kernel, alone; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// Passes timed of each kernel with nothing in the cache, and as many with everything: 1 to 30, as many as reports of the optimizer
    /// may wait to be read. 20 if not given, and 2 on the virtual GPU, which takes as long each time
    #[arg(long)]
    repeats: Option<usize>,
    /// Put beside what other programs take, by a file that scripts/peers/kernel_peers.py wrote
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Write everything that was found, with the environment, to this file
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: Device,
}

/// Flags of `promptmix bench compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix bench compare before.json after.json")]
pub(super) struct Compare {
    /// What bench kernels --json wrote first
    first: PathBuf,
    /// What it wrote then
    second: PathBuf,
}

impl Compare {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (first, second) = (bench::read_report(&self.first)?, bench::read_report(&self.second)?);
        print!("{}", bench::compare(&first, &second));
        Ok(ExitCode::SUCCESS)
    }
}

impl Kernels {
    pub(super) fn run(self) -> Result<ExitCode> {
        if let Some(repeats) = self.repeats.filter(|repeats| !(1..=30).contains(repeats)) {
            return Err(Error::setting("--repeats", "1 to 30", repeats.to_string(), ""));
        }
        let mut shapes: Vec<Shape> = Vec::new();
        for shape in
            self.shapes.iter().map(|named| bench::shapes(named)).collect::<Result<Vec<_>>>()?.concat()
        {
            if shapes.iter().any(|known| known.name == shape.name) {
                return Err(Error::setting(
                    "--shapes",
                    "shapes of different names",
                    format!("{} twice", shape.name),
                    "",
                ));
            }
            shapes.push(shape);
        }
        let only = Only::new(self.only.clone())?;
        let peers = self.peer.as_deref().map(Peers::read).transpose()?;
        if let Some(path) = &self.json {
            files::check_file(path)?;
        }
        let mut report = match self.device.open()? {
            Opened::Cpu(cpu) => self.on_cpu(&cpu, &shapes, &only)?,
            #[cfg(feature = "cuda")]
            Opened::Cuda(cuda) => self.on_gpu(&cuda, &shapes, &only)?,
        };
        only.check_seen()?;
        if let Some(peers) = &peers {
            if peers.device != report.environment.device {
                eprintln!("the peers' times are of {}, not of {}", peers.device, report.environment.device);
            }
            peers.missing.iter().for_each(|missing| eprintln!("no peer: {missing}"));
            for kernel in &mut report.kernels {
                kernel.peers.extend(peers.of(&kernel.shape, &kernel.kernel));
            }
        }
        report.shapes = shapes;
        print!("{}", report.table());
        if let Some(path) = &self.json {
            report.write(path)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn on_cpu(&self, cpu: &Cpu<f32>, shapes: &[Shape], only: &Only) -> Result<Report> {
        let repeats = self.repeats.unwrap_or(20);
        let environment = Environment::new(format!("CPU, {}", counted(cpu.threads(), "thread")), "f32");
        let mut report = Report::new(false, repeats, environment);
        report.ceilings.product = "not measured: the device is no GPU".into();
        report.ceilings.copy = report.ceilings.product.clone();
        let mut clock = HostClock::new();
        for (at, shape) in shapes.iter().enumerate() {
            say(shape, at, shapes.len(), &report.environment.device);
            let found = &mut |kernel: Measured| report.kernels.push(done(kernel));
            bench::measure(cpu, &mut clock, shape, only, repeats, found)?;
        }
        Ok(report)
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self, cuda: &Cuda, shapes: &[Shape], only: &Only) -> Result<Report> {
        let info = cuda.info();
        if cuda.precision() != Precision::Bf16 {
            let advice = "what is measured is what training runs";
            return Err(Error::setting("--precision", "bf16", "f32", advice));
        }
        let is_predicted = info.is_virtual();
        if is_predicted && !tells_model_time() {
            let advice = format!("run it with {TIMING}=1");
            let expected = "1 on the virtual GPU, so that its events tell the time of its model";
            return Err(Error::setting(TIMING, expected, std::env::var(TIMING).unwrap_or_default(), advice));
        }
        let repeats = self.repeats.unwrap_or(if is_predicted { 2 } else { 20 });
        let mut environment = Environment::new(info.name.clone(), "bf16");
        let (major, minor) = info.compute_capability;
        environment.compute_capability = Some(format!("{major}.{minor}"));
        environment.multiprocessors = Some(info.multiprocessors);
        let speaks = crate::backend::cuda::driver_version()?;
        environment.driver_cuda = Some(format!("{}.{}", speaks / 1000, speaks % 1000 / 10));
        let monitor = bench::nvml::Monitor::open(pci_place(cuda.kernels().context())?);
        let before = monitor.as_ref().ok().map(bench::nvml::Monitor::sample);
        if let Err(why) = &monitor {
            eprintln!("clocks, power and temperature are not known: {why}");
        }

        let mut clock = EventClock::new(cuda.kernels(), if is_predicted { 1 } else { FLUSHES })?;
        // It would look for the driver's own library, whose place the virtual GPU takes.
        let vendor = if is_predicted {
            Err("the GPU is virtual".into())
        } else {
            Vendor::open(cuda.kernels().stream())
        };
        let mut ceilings = bench::ceilings(&mut clock, vendor.as_ref().map_err(String::as_str), repeats)?;
        ceilings.datasheet = bench::datasheet(&info.name)?;
        let mut report = Report::new(is_predicted, repeats, environment);
        for (at, shape) in shapes.iter().enumerate() {
            say(shape, at, shapes.len(), &info.name);
            let found = &mut |mut kernel: Measured| {
                kernel.judge(&ceilings, is_predicted);
                report.kernels.push(done(kernel));
            };
            let table = linear::TileTable::built_in();
            bench::measure_products(&mut clock, vendor.as_ref().ok(), table, shape, only, repeats, found)?;
            bench::measure(cuda, &mut clock, shape, only, repeats, found)?;
        }
        report.ceilings = ceilings;
        match (monitor, before) {
            (Ok(monitor), Some(before)) => {
                report.environment.nvml = Some(monitor.describe(before, monitor.sample()));
                report.environment.nvml_missing = None;
            }
            (monitor, _) => report.environment.nvml_missing = monitor.err(),
        }
        Ok(report)
    }
}

/// Says which shape comes now: it may take minutes.
fn say(shape: &Shape, at: usize, all: usize, device: &str) {
    eprintln!("shape {} of {all}, {}, on {device}", at + 1, shape.name);
}

/// Says that a kernel is done.
fn done(kernel: Measured) -> Measured {
    let time = kernel.passes().map_or(f64::NAN, |passes| passes.cold_us.p50);
    eprintln!("  {} {time:.2} us", kernel.kernel);
    kernel
}
