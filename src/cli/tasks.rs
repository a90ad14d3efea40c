//! `promptmix tasks`.

use std::process::ExitCode;

use crate::error::Result;
use crate::tasks::{Task, names};

/// Flags of `promptmix tasks`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix tasks")]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        println!("{:<20} {:<34} {:<22} source", "task", "labels", "metrics");
        for name in names() {
            let task = Task::named(name)?;
            let labels = task.labels().map_or("free answers".to_owned(), |labels| labels.join(" "));
            let labels: String = if labels.len() > 32 {
                labels.chars().take(29).chain("...".chars()).collect()
            } else {
                labels
            };
            let metrics: Vec<String> = task.metrics.iter().map(ToString::to_string).collect();
            println!("{name:<20} {labels:<34} {:<22} {}", metrics.join(" "), task.source.as_str());
        }
        Ok(ExitCode::SUCCESS)
    }
}
