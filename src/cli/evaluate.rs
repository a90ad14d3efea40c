//! `promptmix evaluate`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::device::{Device, on_device};
use super::progress;
use crate::backend::Backend;
use crate::config::Decoding;
use crate::data::{Split, data_of_task};
use crate::error::{Error, Result};
use crate::model::Frozen;
use crate::train::{self, RunFolder, Saved, TrainedRun};

/// Flags of `promptmix evaluate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix evaluate --run runs/mrpc --data data/mrpc --split test")]
pub(super) struct Arguments {
    /// A folder that `promptmix train` wrote
    #[arg(long)]
    run: PathBuf,
    /// Folder or hub id of the model that the run was trained with, where it is not found by itself
    #[arg(long)]
    model: Option<String>,
    /// One of the run's tasks instead of all; or, of a run on a single task, judge as this one instead
    #[arg(long)]
    task: Option<String>,
    /// Label strings of --task
    #[arg(long, requires = "task")]
    labels: Option<String>,
    /// Data to judge, instead of the run's own
    #[arg(long)]
    data: Option<PathBuf>,
    /// train, validation or test
    #[arg(long, default_value = "validation")]
    split: Split,
    /// How answers are got [default: the run's]
    #[arg(long)]
    decoding: Option<Decoding>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: Device,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let saved = RunFolder::saved(&self.run)?;
        let device = self.device.open()?;
        on_device!(device, backend => self.run_on(backend, &saved))
    }

    fn run_on<B: Backend>(&self, backend: &B, saved: &Saved) -> Result<ExitCode> {
        let checkpoint = saved.model(&self.run, self.model.as_deref())?;
        super::say_moved(saved, &self.run, checkpoint.folder());
        let frozen = Frozen::of_checkpoint(backend, &checkpoint)?;
        drop(checkpoint);
        super::warn(&frozen.warnings);
        let mut run = TrainedRun::open(&frozen, &self.run, saved)?;
        let own = run.tasks().iter().map(|task| task.name.clone()).collect::<Vec<_>>();
        let Some(task) = &self.task else {
            let mut means = Vec::new();
            for name in &own {
                run.select(name)?;
                means.extend(self.judge(&run, saved)?);
            }
            if own.len() > 1 && !self.json {
                println!(
                    "mean over {} tasks {:.4}",
                    own.len(),
                    means.iter().sum::<f64>() / means.len() as f64
                );
            }
            return Ok(ExitCode::SUCCESS);
        };
        if own.len() > 1 && self.labels.is_some() {
            let advice = "each of the run's tasks has its own labels";
            return Err(Error::setting("--labels", "none for a run on several tasks", "some", advice));
        }
        if own.len() > 1 || own.contains(task) && self.labels.is_none() {
            run.select(task)?;
        } else {
            let mut config = run.config().clone();
            config.task.clone_from(task);
            config.template = None;
            config.labels.clone_from(&self.labels);
            run.set_task(train::task(&config)?)?;
        }
        self.judge(&run, saved)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Judges the selected task and prints what came of it; gives back the mean metric.
    fn judge<B: Backend>(&self, run: &TrainedRun<'_, B>, saved: &Saved) -> Result<Option<f64>> {
        let names: Vec<&str> = run.tasks().iter().map(|task| task.name.as_str()).collect();
        let data = match &self.data {
            Some(data) if names.len() > 1 && self.task.is_none() => {
                data_of_task(data, &names, &run.task().name)?
            }
            Some(data) => data.clone(),
            None if names.len() > 1 => data_of_task(&run.config().data, &names, &run.task().name)?,
            None => run.config().data.clone(),
        };
        let decoding = self.decoding.unwrap_or(saved.config.decoding);
        let bar = progress::bar(0, "evaluation");
        let evaluation = run.evaluate(&data, self.split, decoding, &mut |done, examples| {
            bar.set_length(examples as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let spread = &evaluation.spread;
        let prompts = run.prompts();
        let scores = &evaluation.scores;
        if self.json {
            let metrics: serde_json::Map<String, serde_json::Value> =
                scores.values.iter().map(|(metric, value)| (metric.to_string(), (*value).into())).collect();
            let json = serde_json::json!({
                "task": run.task().name, "split": self.split.name(), "examples": scores.examples,
                "invalid": scores.invalid, "metrics": metrics, "prompts": prompts, "attention": spread.mean,
                "attention_std": spread.standard_deviation, "attention_minority": spread.minority,
            });
            println!("{json}");
            return Ok(scores.mean());
        }
        println!("{} {}: {} examples", run.task().name, self.split, scores.examples);
        for (metric, value) in &scores.values {
            match value {
                Some(value) => println!("  {metric:<16} {value:.4}"),
                None => println!("  {metric:<16} undefined: the answers or the references are all alike"),
            }
        }
        if scores.invalid > 0 {
            println!("  {} answers are no label of the task", scores.invalid);
        }
        for ((name, weight), deviation) in prompts.iter().zip(&spread.mean).zip(&spread.standard_deviation) {
            println!("  attention {weight:.4} ± {deviation:.4}  {name}");
        }
        if spread.commonest.is_some() {
            println!("  {}", spread.describe_largest(&prompts));
        }
        if run.is_needlessly_constant(&evaluation) {
            eprintln!("warning: {}", spread.constant_warning());
        }
        Ok(scores.mean())
    }
}
