//! `promptmix prompts similar`.

use std::path::{Path, PathBuf};

use clap::ArgGroup;

use crate::backend::Backend;
use crate::cli::device::{Device, on_device};
use crate::cli::progress::Bars;
use crate::cli::settings::TaskFlags;
use crate::config::{Method, RunConfig};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::experiment::{EvaluationJob, Progress, Runner, Together};
use crate::metrics::Scores;
use crate::model::Frozen;
use crate::pretrained::{self, Checkpoint};
use crate::prompts::{Prompt, similarity};
use crate::train;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix prompts similar runs/mnli runs/sst2 runs/squad --to data/mrpc --task mrpc --model t5-base
  promptmix prompts similar runs/mnli runs/sst2 --to data/mrpc --task mrpc --model t5-base --prompt runs/mrpc
  promptmix prompts similar runs/mnli runs/sst2 --prompt runs/mrpc --model t5-base

With --to every source stands before the validation rows as it is, and the best comes first. With --prompt the similarity of a
source to a prompt that was learnt on the task is shown: the cosine of the angle between their mean rows. Without --to it alone
sorts them, and no row is answered.")]
#[command(group = ArgGroup::new("suits").args(["to", "prompt"]).required(true).multiple(true))]
pub(super) struct Arguments {
    /// Source prompts: files or folders of runs
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// The data of the task, as --data of train: its validation rows are answered
    #[arg(long, value_name = "DATA")]
    to: Option<PathBuf>,
    /// A prompt that was learnt on the task
    #[arg(long)]
    prompt: Option<PathBuf>,
    /// Folder or hub id of the model that all were trained with
    #[arg(long)]
    model: String,
    /// Print a line of JSON a source
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    task: TaskFlags,
    #[command(flatten)]
    device: Device,
}

/// A source, and how well it suits.
struct Suited {
    name: String,
    path: PathBuf,
    scores: Option<Scores>,
    similarity: Option<f64>,
}

impl Suited {
    /// What sources are sorted by.
    fn rank(&self) -> Option<f64> {
        match &self.scores {
            Some(scores) => scores.mean(),
            None => self.similarity,
        }
    }
}

impl Arguments {
    pub(super) fn run(self) -> Result<()> {
        let checkpoint = Checkpoint::open(&pretrained::locate(&self.model)?)?;
        let (width, hash) = (checkpoint.config().d_model, checkpoint.sha256()?);
        let load = |path: &Path| -> Result<Prompt> {
            let prompt = Prompt::load(path)?;
            prompt.check_fits(width, Some(hash))?;
            Ok(prompt)
        };
        let prompts = self.sources.iter().map(|path| load(path)).collect::<Result<Vec<_>>>()?;
        let own = self.prompt.as_deref().map(load).transpose()?;
        let names = train::source_names(&self.sources);
        let sources = self.sources.iter().zip(&names).zip(&prompts);
        let mut suited: Vec<Suited> = sources
            .map(|((path, name), prompt)| Suited {
                name: name.clone(),
                path: path.clone(),
                scores: None,
                similarity: own.as_ref().map(|own| similarity(prompt, own)),
            })
            .collect();
        match &self.to {
            Some(data) => {
                let runs = self.runs(data, &prompts)?;
                let device = self.device.open()?;
                let evaluated = on_device!(device, backend => evaluate(backend, &checkpoint, &runs))?;
                suited.iter_mut().zip(evaluated).for_each(|(source, scores)| source.scores = Some(scores));
            }
            None if !self.task.0.is_empty() => {
                let flags: Vec<String> = self.task.0.keys().map(|key| format!("--{key}")).collect();
                let advice = "give the task's data, or leave them out";
                return Err(Error::setting(flags.join(", "), "--to beside it", "none", advice));
            }
            None => {}
        }
        // The best first, what is not defined last; equals stay in order.
        suited.sort_by(|a, b| match (a.rank(), b.rank()) {
            (Some(a), Some(b)) => b.total_cmp(&a),
            (a, b) => b.is_some().cmp(&a.is_some()),
        });
        if self.json {
            suited.iter().for_each(|source| println!("{}", json(source)));
        } else {
            print(&suited);
        }
        Ok(())
    }

    /// A run for each source that starts from it and is evaluated before any step.
    fn runs(&self, data: &Path, prompts: &[Prompt]) -> Result<Vec<EvaluationJob>> {
        let mut base = RunConfig::default().with(&self.task.0)?;
        if base.is_multi_task() {
            let advice = "ask for each task by itself";
            return Err(Error::setting("--task", "one task", base.task, advice));
        }
        base.model.clone_from(&self.model);
        base.data = data.to_owned();
        (base.method, base.steps) = (Method::Spot, Some(1));
        // Nothing is learnt: one row is as good as all.
        (base.training_rows, base.batch_size) = (Some(1), 1);
        let runs = self.sources.iter().zip(prompts).map(|(source, prompt)| {
            let (sources, prompt_length) = (vec![source.clone()], prompt.length());
            let config = RunConfig { sources, prompt_length, ..base.clone() };
            config.check()?;
            Ok(EvaluationJob { config, folder: None, split: Split::Validation })
        });
        runs.collect()
    }
}

/// Answers the validation rows with each source.
fn evaluate<B: Backend>(backend: &B, checkpoint: &Checkpoint, runs: &[EvaluationJob]) -> Result<Vec<Scores>> {
    let frozen = Frozen::of_checkpoint(backend, checkpoint)?;
    crate::cli::warn(&frozen.warnings);
    let mut bars = Bars::new()?;
    bars.begin("sources", runs.len() as u64);
    let evaluated = Together::new(&frozen, 1).evaluate(runs, &mut bars);
    bars.finish();
    let mut scores = Vec::with_capacity(runs.len());
    for evaluated in evaluated? {
        scores.extend(train::complete(evaluated)?.into_iter().map(|(_, evaluation)| evaluation.scores));
    }
    Ok(scores)
}

fn json(source: &Suited) -> serde_json::Value {
    let mut line = serde_json::json!({ "source": source.name, "file": source.path.display().to_string() });
    if let Some(scores) = &source.scores {
        let metrics =
            scores.values.iter().map(|(metric, value)| (metric.to_string(), serde_json::json!(value)));
        line["mean"] = serde_json::json!(scores.mean());
        line["metrics"] = metrics.collect::<serde_json::Map<_, _>>().into();
        line["examples"] = scores.examples.into();
        line["invalid"] = scores.invalid.into();
    }
    if let Some(similarity) = source.similarity {
        line["similarity"] = similarity.into();
    }
    line
}

fn print(suited: &[Suited]) {
    let width = suited.iter().map(|source| source.name.chars().count()).max().unwrap_or(0).max(6);
    let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    for source in suited {
        let mut cells = Vec::new();
        if let Some(scores) = &source.scores {
            cells.extend(scores.values.iter().map(|(metric, value)| format!("{metric} {}", shown(*value))));
            if scores.values.len() > 1 {
                cells.push(format!("mean {}", shown(scores.mean())));
            }
            cells.push(format!("{} validation rows, {} invalid answers", scores.examples, scores.invalid));
        }
        cells.extend(source.similarity.map(|value| format!("similarity {value:.4}")));
        println!("{:<width$}  {}", source.name, cells.join("  "));
    }
}
