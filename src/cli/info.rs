//! `promptmix info`.

use std::process::ExitCode;

use crate::backend::cpu::Cpu;
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
        println!("cpu       {} threads, {} instructions", cpu.threads(), cpu.instruction_set());
        if self.product_size > 0 {
            let rate = cpu.product_rate(self.product_size.min(16_384), 5) / 1e9;
            println!("          {rate:.1} GFLOP/s in f32, a product of {0}×{0}", self.product_size);
        }
        println!("cuda      not in this build");
        let features = [("hub", cfg!(feature = "hub")), ("cli", true)];
        let built: Vec<&str> = features.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        println!("features  {}", built.join(" "));
        Ok(ExitCode::SUCCESS)
    }
}
