//! `promptmix report`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::error::Result;
use crate::files;
use crate::report;

/// Flags of `promptmix report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix report runs/mrpc
  promptmix report runs/mrpc runs/rte runs/cb --out comparison
  promptmix report runs/few-shot

Runs whose settings differ in seed and data-seed alone are also shown by mean and standard deviation. Test results are those
that few-shot runs end with or promptmix evaluate --split test has found.")]
pub(super) struct Arguments {
    /// Folders that `promptmix train` wrote, or with such folders at most three levels beneath them; a run may still be going on
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where to write report.html, and each figure as SVG and PNG [default: the folder report in the first of them]
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let out = self.out.unwrap_or_else(|| self.runs[0].join("report"));
        files::refuse_file(&out)?;
        let page = report::write(&self.runs, &out)?;
        println!("{}", page.display());
        Ok(ExitCode::SUCCESS)
    }
}
