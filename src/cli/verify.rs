//! `promptmix verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::device::{Device, on_device};
use crate::error::Result;
use crate::verify::verify;

/// Flags of `promptmix verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix verify tests/fixtures/tiny

A fixture folder holds config.json, model.safetensors, attempt.json and fixture.safetensors. Every number in it is compared
or listed; the exit code is 1 if one differs by more than its tolerance, or is forgotten.")]
pub(super) struct Arguments {
    /// Fixture folders
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    #[command(flatten)]
    device: Device,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let device = self.device.open()?;
        let mut passed = true;
        for folder in &self.folders {
            let report = on_device!(device, backend => verify(backend, folder)?);
            super::warn(&report.warnings);
            println!("{}\n{report}", folder.display());
            let verdict = if report.passed() { "passed" } else { "FAILED" };
            println!("{}: {verdict}\n", folder.display());
            passed &= report.passed();
        }
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
