//! `promptmix predict`: rows in, the same rows with answers out, one JSON object a line, in order.

use std::collections::BTreeSet;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};

use serde_json::{Map, Value, json};

use super::device::{Device, on_device};
use super::progress;
use crate::backend::Backend;
use crate::config::Decoding;
use crate::count::counted;
use crate::data::{self, LINE_LIMIT, Reader};
use crate::error::{Error, Result};
use crate::files;
use crate::model::Frozen;
use crate::tasks::Row;
use crate::train::{Predictor, RunFolder};

/// Rows answered at a time: what is in memory of a long file.
const CHUNK: usize = 256;
/// The field that `--explain` writes.
const ATTENTION: &str = "attention";

/// Flags of `promptmix predict`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix predict --run runs/reviews --input new.jsonl --out answers.jsonl
  promptmix predict --run runs/mrpc --run runs/rte --input mixed.jsonl
  producer | promptmix predict --run runs/reviews --input - | consumer

With several runs, the field `run` of a row names the one that answers it: the last part of its folder's path, or NAME of
--run NAME=FOLDER. Rows of runs that were trained alike are answered in one batch.

A bad row of a file ends everything. A bad row of standard input is answered by {\"error\": ...}, and the rows after it are answered
too; the exit status is then 1.")]
pub(super) struct Arguments {
    /// A folder that `promptmix train` wrote, or NAME=FOLDER; give it again for more runs on the same model
    #[arg(long = "run", required = true)]
    runs: Vec<String>,
    /// Folder or hub id of the model that the runs were trained with, where it is not found by itself
    #[arg(long)]
    model: Option<String>,
    /// Which of a run's tasks to answer as, for rows without a field `task`, if it has several
    #[arg(long)]
    task: Option<String>,
    /// Rows as .jsonl, .json, .csv, .tsv (any of them with .gz) or .parquet, with the fields that the task reads, or - for JSON
    /// lines on standard input; labels are not needed
    #[arg(long)]
    input: PathBuf,
    /// Where to write JSONL [default: standard output]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The field of a row that names its run
    #[arg(long, default_value = "run")]
    run_field: String,
    /// The field that the answer is written to; a row that has it already is refused
    #[arg(long, default_value = "prediction", value_name = "NAME")]
    output_field: String,
    /// Add each row's attention over the sources and the target prompt, in the field `attention`
    #[arg(long)]
    explain: bool,
    /// How answers are got [default: each run's own]
    #[arg(long)]
    decoding: Option<Decoding>,
    #[command(flatten)]
    device: Device,
}

/// A run and what rows call it.
struct Named {
    name: String,
    folder: PathBuf,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let runs: Vec<Named> = self.runs.iter().map(|run| named(run)).collect();
        if let Some(index) = (1..runs.len()).find(|&i| runs[..i].iter().any(|run| run.name == runs[i].name)) {
            let advice = "tell them apart: --run NAME=FOLDER";
            return Err(Error::setting("--run", "runs of different names", &runs[index].name, advice));
        }
        if let Some(out) = &self.out {
            files::check_output(out, [&*self.input])?;
            RunFolder::refuse_own(out)?;
        }
        let device = self.device.open()?;
        on_device!(device, backend => self.run_on(backend, &runs))
    }

    fn run_on<B: Backend>(&self, backend: &B, runs: &[Named]) -> Result<ExitCode> {
        if self.explain && self.output_field == ATTENTION {
            let advice = "name another field";
            return Err(Error::setting(
                "--output-field",
                "another name than that of --explain",
                ATTENTION,
                advice,
            ));
        }
        let mut rows = Rows::open(&self.input)?;
        if let Rows::File(reader) = &rows
            && let Some(remark) = reader.remark()
        {
            eprintln!("{remark}");
        }
        let first = &runs[0].folder;
        let saved = RunFolder::saved(first)?;
        let checkpoint = saved.model(first, self.model.as_deref())?;
        super::say_moved(&saved, first, checkpoint.folder());
        let frozen = Frozen::of_checkpoint(backend, &checkpoint)?;
        drop(checkpoint);
        super::warn(&frozen.warnings);
        let folders: Vec<&Path> = runs.iter().map(|run| run.folder.as_path()).collect();
        for folder in &folders {
            super::say_changed(&RunFolder::saved(folder)?, folder);
        }
        let predictor = Predictor::open(&frozen, &folders, self.decoding)?;
        let bad_rows = match &self.out {
            None => self.answer(&predictor, runs, &mut rows, &mut std::io::stdout().lock())?,
            Some(path) => {
                progress::removing_unfinished_files()?;
                let (mut failure, mut bad_rows) = (None, 0);
                files::replace(path, |file| {
                    bad_rows = self.answer(&predictor, runs, &mut rows, file).map_err(|error| {
                        let message = error.to_string();
                        failure = Some(error);
                        std::io::Error::other(message)
                    })?;
                    Ok(())
                })
                .map_err(|error| failure.take().unwrap_or(error))?;
                bad_rows
            }
        };
        Ok(if bad_rows == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn answer<B: Backend>(
        &self,
        predictor: &Predictor<'_, B>,
        runs: &[Named],
        rows: &mut Rows,
        output: &mut dyn Write,
    ) -> Result<u64> {
        let destination = self.out.clone().unwrap_or_else(|| PathBuf::from("standard output"));
        let failed = |source| Error::file("write", &destination, source);
        let (mut left_out, mut bad_rows) = (BTreeSet::new(), 0_u64);
        let (mut truncated, mut longest) = (0_usize, 0);
        loop {
            let chunk = rows.chunk();
            if chunk.is_empty() {
                if truncated > 0 {
                    let rows = counted(truncated, "row");
                    eprintln!(
                        "warning: {rows} truncated to --max-source-length of training (the longest had {longest} tokens)"
                    );
                }
                return Ok(bad_rows);
            }
            let mut requests = Vec::with_capacity(chunk.len());
            let mut prepare = |row: Result<Row>| {
                let row = row?;
                self.check_free(&row)?;
                for name in row.left_out() {
                    if left_out.insert(name.clone()) {
                        eprintln!("warning: the answers leave out `{name}`: it holds bytes that are no text");
                    }
                }
                requests.push(predictor.request_as(self.run_of(&row, runs)?, self.task.as_deref(), &row)?);
                Ok(row)
            };
            let prepared: Vec<Result<Row>> = chunk.into_iter().map(&mut prepare).collect();
            let prepared = match rows {
                Rows::File(_) => {
                    prepared.into_iter().collect::<Result<Vec<_>>>()?.into_iter().map(Ok).collect()
                }
                Rows::Stream(_) => prepared,
            };
            let predictions = predictor.predict(&requests)?;
            for tokens in predictions.iter().filter_map(|prediction| prediction.truncated_from) {
                (truncated, longest) = (truncated + 1, longest.max(tokens));
            }
            let mut answers = requests.iter().zip(predictions);
            for row in &prepared {
                let line = match row {
                    Ok(row) => {
                        let Some((request, prediction)) = answers.next() else { break };
                        let mut added = Map::new();
                        added.insert(self.output_field.clone(), Value::from(prediction.answer));
                        if self.explain {
                            let names = predictor.prompts(request.run).iter().cloned();
                            let weights = names.zip(prediction.attention.into_iter().map(Value::from));
                            added.insert(ATTENTION.into(), Value::Object(weights.collect()));
                        }
                        data::json::with_fields(row, added)
                    }
                    Err(error) => {
                        bad_rows += 1;
                        eprintln!("error: {error}");
                        json!({ "error": error.to_string() }).to_string()
                    }
                };
                writeln!(output, "{line}").map_err(failed)?;
            }
            output.flush().map_err(failed)?;
        }
    }

    /// Nothing of a row is written over.
    fn check_free(&self, row: &Row) -> Result<()> {
        let taken =
            |name: &str| row.fields().contains_key(name) || row.left_out().iter().any(|of| of == name);
        let refuse = |name: &str, advice: &str| {
            let expected = format!("no field `{name}`, to which the answer is to be written");
            Err(row.error(expected, "one", advice))
        };
        if taken(&self.output_field) {
            return refuse(&self.output_field, "give another name with --output-field NAME");
        }
        if self.explain && taken(ATTENTION) {
            return refuse(ATTENTION, "rename it in the rows, or leave --explain out");
        }
        Ok(())
    }

    /// Which run answers a row.
    fn run_of(&self, row: &Row, runs: &[Named]) -> Result<usize> {
        if runs.len() == 1 {
            return Ok(0);
        }
        let names = || runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(", ");
        let expected = || format!("a field `{}` with one of {}", self.run_field, names());
        let Some(value) = row.fields().get(&self.run_field) else {
            return Err(row.error(
                expected(),
                "none",
                "with several runs a row must say which one answers it",
            ));
        };
        let found = runs.iter().position(|run| value.as_str() == Some(&run.name));
        found.ok_or_else(|| row.error(expected(), value.to_string(), ""))
    }
}

fn named(run: &str) -> Named {
    if let Some((name, folder)) = run.split_once('=')
        && !Path::new(run).exists()
    {
        return Named { name: name.to_owned(), folder: folder.into() };
    }
    let folder = PathBuf::from(run);
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.clone());
    let name = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Named { name, folder }
}

/// Where rows come from.
enum Rows {
    /// A file: chunks are full, so that equal files give equal batches.
    File(Reader),
    /// Standard input: a chunk is what has come so far, so that no row waits for the next.
    Stream(Receiver<Result<Row>>),
}

impl Rows {
    fn open(input: &Path) -> Result<Self> {
        if input != Path::new("-") {
            return Ok(Self::File(data::open_with_text(input)?));
        }
        let path = Path::new("standard input");
        let rows = Reader::with_text(BufReader::new(std::io::stdin()), path, LINE_LIMIT).past_bad_rows();
        let (sender, receiver) = sync_channel(CHUNK);
        let reader = std::thread::Builder::new().name("standard input".into()).spawn(move || {
            for row in rows {
                if sender.send(row).is_err() {
                    break;
                }
            }
        });
        reader.map_err(|source| Error::file("start a thread that reads", path, source))?;
        Ok(Self::Stream(receiver))
    }

    /// The next rows, or what is wrong with them; none at the end.
    fn chunk(&mut self) -> Vec<Result<Row>> {
        match self {
            Self::File(rows) => rows.by_ref().take(CHUNK).collect(),
            Self::Stream(rows) => rows.recv().into_iter().chain(rows.try_iter()).take(CHUNK).collect(),
        }
    }
}
