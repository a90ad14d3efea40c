//! `promptmix demo`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use super::compare::TOGETHER;
use super::device::{Chosen, Device, on_device};
use super::progress::Bars;
use crate::backend::cpu::Cpu;
use crate::demo::{self, Settings, StudySettings};
use crate::error::{Error, Result};
use crate::experiment::{Together, Workers};
use crate::files;
use crate::model::Frozen;

/// Flags of `promptmix demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix demo --out demo-run
  promptmix demo --study --out study-run

On the CPU as many trainings go side by side as there are threads; on a GPU trainings share batches. The tables of the README are those
of --device cpu.")]
pub(super) struct Arguments {
    /// A new folder for the model, the generated data and the runs
    #[arg(long, default_value = "demo-run")]
    out: PathBuf,
    /// Five seeds, two rates on both targets, and more controls
    #[arg(long)]
    long: bool,
    /// Instead of the demonstration: the study of the mixture, ATTEMPT against every simpler use of the same sources on three
    /// data sets with five seeds each. More than an hour on two cores; the same command goes on with what was interrupted
    #[arg(long, conflicts_with = "long")]
    study: bool,
    #[command(flatten)]
    device: Device,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        files::refuse_file(&self.out)?;
        if self.study {
            return self.run_study();
        }
        let is_empty = self.out.read_dir().map_or(true, |mut entries| entries.next().is_none());
        if !is_empty && !demo::is_bundled_model(&self.out.join("model")) {
            return Err(Error::setting(
                "--out",
                "a new or empty folder, or that of a demonstration to go on with",
                format!("{}, which holds files", self.out.display()),
                "name another folder, or remove this one",
            ));
        }
        let started = Instant::now();
        let chosen = self.device.choose(Some(&self.out))?;
        let settings = if self.long { Settings::long() } else { Settings::short() };
        let model = self.out.join("model");
        let mut bars = Bars::quiet()?;
        // The model is written once the device is known to work: what is refused before leaves the folder free.
        let report = match chosen {
            Chosen::Cpu => {
                // Says what is wrong with --threads; each worker starts a thread of its own.
                Cpu::<f32>::with_caller(self.device.threads)?;
                demo::write_model(&model)?;
                let workers = Workers::new(&model, self.device.threads)?;
                demo::compare(&settings, &workers, &model, &self.out, &mut bars)?
            }
            Chosen::Cuda { .. } => {
                let device = self.device.start(chosen, None)?;
                demo::write_model(&model)?;
                on_device!(device, backend => {
                    let frozen = Frozen::load(backend, &model)?;
                    let runner = Together::new(&frozen, TOGETHER);
                    demo::compare(&settings, &runner, &model, &self.out, &mut bars)?
                })
            }
        };
        bars.finish();
        let text = report.to_string();
        files::replace(&self.out.join("report.txt"), |file| file.write_all(text.as_bytes()))?;
        println!("{text}");
        if chosen != Chosen::Cpu {
            println!(
                "computed on a GPU; the README shows the tables of --device cpu, which differ by roundings and what follows from them"
            );
        }
        println!(
            "took {:.0} s; ATTEMPT's run of the first seed: {}",
            started.elapsed().as_secs_f64(),
            report.run.display()
        );
        println!(
            "\nnext, on data of your own (train.jsonl and validation.jsonl with the fields text and label):\n"
        );
        println!("{}", report.next_command());
        Ok(ExitCode::SUCCESS)
    }

    fn run_study(self) -> Result<ExitCode> {
        let started = Instant::now();
        let chosen = self.device.choose(Some(&self.out))?;
        let settings = StudySettings::default();
        let model = self.out.join("model");
        demo::write_model(&model)?;
        let mut bars = Bars::quiet()?;
        let report = match chosen {
            Chosen::Cpu => {
                let workers = Workers::new(&model, self.device.threads)?;
                demo::study(&settings, &workers, &model, &self.out, &mut bars)?
            }
            Chosen::Cuda { .. } => {
                let device = self.device.start(chosen, None)?;
                on_device!(device, backend => {
                    let frozen = Frozen::load(backend, &model)?;
                    let runner = Together::new(&frozen, TOGETHER);
                    demo::study(&settings, &runner, &model, &self.out, &mut bars)?
                })
            }
        };
        bars.finish();
        let text = report.to_string();
        files::replace(&self.out.join("report.txt"), |file| file.write_all(text.as_bytes()))?;
        println!(
            "{text}\ntook {:.0} s; every run is below {}",
            started.elapsed().as_secs_f64(),
            self.out.display()
        );
        Ok(ExitCode::SUCCESS)
    }
}
