//! `promptmix predict`: rows in, the same rows with answers out, one JSON object a line, in order.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use super::device::{Device, on_device};
use super::train::DecodingName;
use crate::backend::Backend;
use crate::data;
use crate::error::{Error, Result};
use crate::files;
use crate::model::Frozen;
use crate::pretrained;
use crate::tasks::Row;
use crate::train::{RunFolder, Saved, TrainedRun};

/// Rows answered at a time: what is in memory of a long file.
const CHUNK: usize = 256;

/// Flags of `promptmix predict`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix predict --run runs/reviews --input new.jsonl --out answers.jsonl")]
pub(super) struct Arguments {
    /// A folder that `promptmix train` wrote
    #[arg(long)]
    run: PathBuf,
    /// Which of the run's tasks to answer as, if it has several
    #[arg(long)]
    task: Option<String>,
    /// Rows as .jsonl, .csv, .tsv or .parquet, with the fields that the task reads; labels are not needed
    #[arg(long)]
    input: PathBuf,
    /// Where to write JSONL [default: standard output]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Add each row's attention over the sources and the target prompt
    #[arg(long)]
    explain: bool,
    /// How answers are got [default: the run's]
    #[arg(long, value_enum)]
    decoding: Option<DecodingName>,
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
        let rows = data::open(&self.input)?;
        let frozen = Frozen::load(backend, &pretrained::locate(&saved.config.model)?)?;
        let mut run = TrainedRun::open(&frozen, &self.run, saved)?;
        match (&self.task, run.tasks()) {
            (Some(task), _) => run.select(task)?,
            (None, [_]) => {}
            (None, tasks) => {
                let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
                return Err(Error::setting("--task", format!("one of {}", names.join(", ")), "none", ""));
            }
        }
        match &self.out {
            None => self.answer(&run, rows, &mut std::io::stdout().lock())?,
            Some(path) => {
                let mut failure = None;
                files::replace(path, |file| {
                    self.answer(&run, rows, file).map_err(|error| {
                        let message = error.to_string();
                        failure = Some(error);
                        std::io::Error::other(message)
                    })
                })
                .map_err(|error| failure.take().unwrap_or(error))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn answer<B: Backend>(
        &self,
        run: &TrainedRun<'_, B>,
        mut rows: impl Iterator<Item = Result<Row>>,
        output: &mut dyn Write,
    ) -> Result<()> {
        let decoding = self.decoding.map_or(run.config().decoding, Into::into);
        let destination = self.out.clone().unwrap_or_else(|| PathBuf::from("standard output"));
        loop {
            let chunk = rows.by_ref().take(CHUNK).collect::<Result<Vec<Row>>>()?;
            if chunk.is_empty() {
                return Ok(());
            }
            let texts = chunk.iter().map(|row| run.task().source_text(row)).collect::<Result<Vec<_>>>()?;
            let (answers, attention) = run.answer(&texts, decoding)?;
            for ((row, answer), attention) in chunk.iter().zip(answers).zip(attention) {
                let mut fields = row.fields().clone();
                fields.insert("prediction".into(), Value::from(answer));
                if self.explain {
                    fields.insert("attention".into(), Value::from(attention));
                }
                writeln!(output, "{}", Value::Object(fields))
                    .map_err(|source| Error::file("write", &destination, source))?;
            }
        }
    }
}
