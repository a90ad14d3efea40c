//! `promptmix sweep`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::ProgressBar;

use super::device::{Device, on_device};
use super::progress;
use crate::backend::Backend;
use crate::config::{RunConfig, read_sweep};
use crate::error::{Error, Result};
use crate::files;
use crate::model::Frozen;
use crate::pretrained;
use crate::train::{
    Member, Outcome, RunFolder, Silent, StepRecord, SweepMonitor, Trainer, ValidationRecord, run_together,
};

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
    #[arg(long, default_value_t = 8)]
    together: usize,
    #[command(flatten)]
    device: Device,
}

/// A bar over all steps of all runs.
struct Shown {
    bar: ProgressBar,
    names: Vec<String>,
}

impl SweepMonitor for Shown {
    fn step(&mut self, _: usize, record: &StepRecord) {
        self.bar.inc(1);
        self.bar.set_message(format!("step {}", record.step));
    }

    fn validated(&mut self, run: usize, record: &ValidationRecord) {
        let line = format!("{}: {record}", self.names[run]);
        self.note(&line);
    }

    fn note(&mut self, text: &str) {
        if self.bar.is_hidden() { eprintln!("{text}") } else { self.bar.suspend(|| eprintln!("{text}")) }
    }
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
        if self.together == 0 {
            return Err(Error::setting("--together", "at least 1", "0", ""));
        }
        files::check_folder(&self.out)?;
        let device = self.device.open()?;
        on_device!(device, backend => self.run_on(backend, &runs))
    }

    fn run_on<B: Backend>(&self, backend: &B, runs: &[(String, RunConfig)]) -> Result<ExitCode> {
        let frozen = Frozen::load(backend, &pretrained::locate(&runs[0].1.model)?)?;
        super::warn(&frozen.warnings);
        let members = runs.iter().map(|(name, config)| self.member(&frozen, name, config));
        let mut members = members.collect::<Result<Vec<_>>>()?;
        let left = members.iter().map(|member| member.trainer.steps_left()).sum();
        let names = runs.iter().map(|(name, _)| name.clone()).collect();
        let mut shown = Shown { bar: progress::bar(left, "sweep"), names };
        let outcomes = run_together(&frozen, &mut members, self.together, &mut shown)?;
        shown.bar.finish_and_clear();
        let failed = self.report(runs, &outcomes)?;
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// A run of the sweep, from its last checkpoint if it has begun before.
    fn member<'a, B: Backend>(
        &self,
        frozen: &'a Frozen<'a, B>,
        name: &str,
        config: &RunConfig,
    ) -> Result<Member<'a, B>> {
        let mut trainer = Trainer::new(frozen, config, &mut Silent)?;
        let path = self.out.join(name);
        let folder = if path.join("run.json").exists() {
            let saved = RunFolder::saved(&path)?;
            saved.check_model(&frozen.model_hash, "--out")?;
            if saved.config != *config {
                return Err(Error::setting(
                    "--out",
                    format!("{} of this sweep", path.display()),
                    "a run of other settings",
                    "name another folder, or undo the change of the file",
                ));
            }
            trainer.resume(&path)?;
            let mut folder = RunFolder::open(&path)?;
            folder.rewind(trainer.step_count())?;
            folder
        } else {
            RunFolder::create(&path, config, &frozen.model_hash)?
        };
        Ok(Member { name: name.to_owned(), trainer, folder: Some(folder) })
    }

    /// Writes a line a run and prints them; says whether one failed.
    fn report(&self, runs: &[(String, RunConfig)], outcomes: &[Result<Outcome>]) -> Result<bool> {
        let mut table = String::from("run\ttask\tseed\tlearning rate\tsteps\tbest validation\tat step\n");
        let width = runs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for ((name, config), outcome) in runs.iter().zip(outcomes) {
            match outcome {
                Ok(Outcome { steps, best, best_step, .. }) => {
                    println!("{name:<width$}  best validation {best:.4} behind step {best_step} of {steps}");
                    let (task, seed, rate) = (&config.task, config.seed, config.learning_rate);
                    table += &format!("{name}\t{task}\t{seed}\t{rate}\t{steps}\t{best:.6}\t{best_step}\n");
                }
                Err(error) => println!("{name:<width$}  failed: {error}"),
            }
        }
        let path: &Path = &self.out.join("results.tsv");
        files::replace(path, |file| file.write_all(table.as_bytes()))?;
        println!("written to {}", path.display());
        Ok(outcomes.iter().any(Result::is_err))
    }
}
