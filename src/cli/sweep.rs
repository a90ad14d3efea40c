//! `promptmix sweep`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use super::device::{Device, on_device};
use super::progress::Bars;
use crate::backend::Backend;
use crate::config::{RunConfig, read_sweep};
use crate::error::{Error, Result};
use crate::experiment::{Sweep, Together, Training};
use crate::files;
use crate::model::Frozen;
use crate::pretrained;

/// Flags of `promptmix sweep`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix sweep few-shot.toml --out runs/few-shot

The file has settings as --config of train has them, and a table of lists; there is a run for every combination:

  model = \"t5-small\"
  sources = [\"runs/sst2/prompt.safetensors\", \"runs/mnli/prompt.safetensors\"]
  batch-size = 4
  steps = 200
  [sweep]
  task = [{ task = \"rte\", data = \"data/rte\" }, { task = \"cb\", data = \"data/cb\" }]
  seed = [1, 2, 3]
  learning-rate = [0.1, 0.3]

Runs of one layout share a batch. The same command again goes on where it was interrupted.")]
pub(super) struct Arguments {
    /// The TOML file of runs
    file: PathBuf,
    /// A folder for a run folder of each, and results.tsv
    #[arg(long)]
    out: PathBuf,
    /// Runs in one batch at most
    #[arg(long, default_value = "8")]
    together: NonZeroUsize,
    #[command(flatten)]
    device: Device,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let runs = read_sweep(&self.file)?;
        for (name, config) in &runs {
            config.check()?;
            if config.model != runs[0].1.model {
                let found = format!("{} and {} ({name})", runs[0].1.model, config.model);
                return Err(Error::setting("model", "one model for all runs of a sweep", found, ""));
            }
        }
        super::warn(&without_effect(&runs));
        files::check_folder(&self.out)?;
        let device = self.device.start(self.device.choose(Some(&self.out))?, self.device.threads)?;
        on_device!(device, backend => self.run_on(backend, &runs))
    }

    fn run_on<B: Backend>(&self, backend: &B, runs: &[(String, RunConfig)]) -> Result<ExitCode> {
        let frozen = Frozen::load(backend, &pretrained::locate(&runs[0].1.model)?)?;
        super::warn(&frozen.warnings);
        let trainings: Vec<Training> = runs
            .iter()
            .map(|(name, config)| Training::new(name, config.clone(), self.out.join(name)))
            .collect();
        let mut bars = Bars::new()?;
        let sweep = Sweep::run(&Together::new(&frozen, self.together.get()), "sweep", &trainings, &mut bars)?;
        bars.finish();
        print!("{sweep}");
        let path = self.out.join("results.tsv");
        files::replace(&path, |file| sweep.write_table(file))?;
        println!("written to {}", path.display());
        Ok(if sweep.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// What a user should hear of settings that no run of the sweep reads.
fn without_effect(runs: &[(String, RunConfig)]) -> Vec<String> {
    let of_runs: Vec<Vec<(&str, String)>> = runs.iter().map(|(_, config)| config.without_effect()).collect();
    let is_of_all = |key: &str| of_runs.iter().all(|of_run| of_run.iter().any(|(other, _)| *other == key));
    let first = of_runs.first().into_iter().flatten().filter(|(key, _)| is_of_all(key));
    let mut warnings: Vec<String> =
        first.map(|(key, reason)| format!("{key} has no effect: {reason}")).collect();
    let draws = RunConfig::default().draws;
    if runs.iter().any(|(_, config)| !config.draw_seeds().is_empty() && config.draws != draws) {
        let reason = "a run of a sweep learns from one draw; list data-seed under [sweep] for several";
        warnings.push(format!("draws has no effect: {reason}"));
    }
    warnings
}
