//! `promptmix prompts`: prompts as modules that can be looked at, exchanged, and put into and out of trained runs.

mod nearest;
mod similar;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::count::counted;
use crate::error::{Error, Result};
use crate::files;
use crate::pretrained::{self, Checkpoint};
use crate::prompts::{self, Prompt};
use crate::train::{self, RunFolder};

/// Flags of `promptmix prompts`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix prompts list runs
  promptmix prompts import released/prefix_embeddings.pt --model google-t5/t5-base --task mnli --out mnli.safetensors
  promptmix prompts add --run runs/mrpc --source qnli.safetensors --out runs/mrpc-with-qnli
  promptmix prompts similar runs/mnli runs/sst2 --to data/mrpc --task mrpc --model t5-base
  promptmix prompts nearest runs/sst2 --model t5-small --rows 10
  promptmix prompts export runs/sst2/prompt.safetensors --model t5-small --out adapter")]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// The prompts in folders, one a line
    List(List),
    /// Where a prompt came from, and its numbers in short
    Show(Show),
    /// Put a source into a trained ATTEMPT run, without training
    Add(Add),
    /// Take a source out of a trained ATTEMPT run, without training
    Remove(Remove),
    /// Read a prompt of another program: .pt, .npy, or a PEFT adapter
    Import(Import),
    /// Write a prompt as a PEFT adapter
    Export(Export),
    /// One prompt of several: their weighted mean
    Merge(Merge),
    /// The words that a prompt's rows are nearest to
    Nearest(nearest::Arguments),
    /// Which source prompt suits a task best, as it is
    Similar(Box<similar::Arguments>),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix prompts list runs prompts")]
struct List {
    /// Folders, searched with all below them, or files
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Print one line of JSON a prompt
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix prompts show runs/sst2/prompt.safetensors --model t5-small")]
struct Show {
    /// The prompt, in any format that import knows
    prompt: PathBuf,
    /// Say whether it fits this model: a folder or hub id
    #[arg(long)]
    model: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix prompts add --run runs/mrpc --source qnli.safetensors --out runs/mrpc-with-qnli

The scorer's numbers do not depend on how many prompts it mixes. To learn a few steps more with the new source:
  promptmix train --sources ... --initial-scorer runs/mrpc --initial-prompt runs/mrpc/prompt.safetensors --steps 50 ...")]
struct Add {
    /// A folder that `promptmix train` wrote
    #[arg(long)]
    run: PathBuf,
    /// The prompt to mix in, after the others
    #[arg(long, required = true, value_delimiter = ',')]
    source: Vec<PathBuf>,
    /// The new run's folder; the old one stays as it is
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix prompts remove --run runs/mrpc --source squad --out runs/mrpc-without-squad")]
struct Remove {
    /// A folder that `promptmix train` wrote
    #[arg(long)]
    run: PathBuf,
    /// A source's path or its name: its run's folder, or the file's stem
    #[arg(long, required = true, value_delimiter = ',')]
    source: Vec<String>,
    /// The new run's folder; the old one stays as it is
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix prompts import prefix_embeddings.pt --model google-t5/t5-base --task mnli --out mnli.safetensors
  promptmix prompts import google_sst2.npy --task sst2 --out sst2.safetensors
  promptmix prompts import adapter-folder --model t5-small --out imported.safetensors
  promptmix prompts import multitask-adapter --adapter-task 1 --out second.safetensors
  promptmix prompts import --scorer attempt-run-folder --out scorer.safetensors")]
struct Import {
    /// A .npy, .pt, .bin or .safetensors file, or the folder of a PEFT adapter or of a run of the authors' code
    path: PathBuf,
    /// The model it was trained with, a folder or hub id: its width is checked, its hash kept
    #[arg(long)]
    model: Option<String>,
    /// The task it was trained on
    #[arg(long)]
    task: Option<String>,
    /// Take the first ROWS rows of the file for the prompt: a PEFT adapter's weights without its adapter_config.json do not say
    /// how many are
    #[arg(long, value_name = "ROWS")]
    length: Option<usize>,
    /// Which of the tasks of a MULTITASK_PROMPT_TUNING adapter, counted from 0 [default: its only one]
    #[arg(long, value_name = "N")]
    adapter_task: Option<usize>,
    /// Read the scorer of the authors' code (attn_W_down.pt, ...) instead of a prompt
    #[arg(long)]
    scorer: bool,
    /// The file to write
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix prompts export runs/sst2/prompt.safetensors --model t5-small --out adapter")]
struct Export {
    /// The prompt
    prompt: PathBuf,
    /// The model it was trained with, a folder or hub id
    #[arg(long)]
    model: String,
    /// The adapter's folder
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix prompts merge mnli.safetensors qnli.safetensors --weights 2,1 --out both.safetensors
  promptmix prompts merge mnli.safetensors qnli.safetensors --towards mrpc.safetensors --out start.safetensors")]
struct Merge {
    /// The prompts
    #[arg(required = true)]
    prompts: Vec<PathBuf>,
    /// What each counts, over the sum of all [default: all alike]
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, conflicts_with = "towards")]
    weights: Option<Vec<f64>>,
    /// Weigh each by its similarity to this prompt, as SPoT does
    #[arg(long)]
    towards: Option<PathBuf>,
    /// The file to write
    #[arg(long)]
    out: PathBuf,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self.what {
            What::List(arguments) => arguments.run(),
            What::Show(arguments) => arguments.run(),
            What::Add(arguments) => arguments.run(),
            What::Remove(arguments) => arguments.run(),
            What::Import(arguments) => arguments.run(),
            What::Export(arguments) => arguments.run(),
            What::Merge(arguments) => arguments.run(),
            What::Nearest(arguments) => arguments.run(),
            What::Similar(arguments) => arguments.run(),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    fn run(&self) -> Result<()> {
        let mut files = Vec::new();
        for path in &self.paths {
            match path.is_dir() {
                true => search(path, DEPTH, &mut files)?,
                false => files.push((path.clone(), Prompt::load(path)?)),
            }
        }
        // Runs of a sweep are in the order of their numbers.
        files.sort_by_cached_key(|(path, _)| train::sort_key(&path.to_string_lossy()));
        if !self.json {
            println!(
                "{:<20} {:<13} {:<13} {:<14} {:>7} {:>8} {:>6} {:<24} file",
                "task", "rows x width", "model", "method", "steps", "rate", "seed", "metric"
            );
        }
        for (path, prompt) in &files {
            if self.json {
                println!("{}", json(path, prompt));
                continue;
            }
            let about = prompt.metadata();
            let hash = about.model_sha256.as_deref().map(|hash| hash.chars().take(12).collect::<String>());
            let metric = about.metric.as_ref().map(|(name, value)| format!("{name} {value:.4}"));
            let shown = |value: Option<String>| value.map_or_else(|| "-".to_owned(), |text| printable(&text));
            println!(
                "{:<20} {:<13} {:<13} {:<14} {:>7} {:>8} {:>6} {:<24} {}{}",
                shown(about.task.clone()),
                format!("{} x {}", prompt.length(), prompt.width()),
                shown(hash),
                shown(about.method.clone()),
                shown(about.steps.map(|steps| steps.to_string())),
                shown(about.learning_rate.map(|rate| rate.to_string())),
                shown(about.seed.map(|seed| seed.to_string())),
                shown(metric),
                path.display(),
                match about.origin.as_deref() {
                    Some(origin) => format!(" ({})", printable(origin)),
                    None => String::new(),
                },
            );
        }
        if files.is_empty() {
            eprintln!(
                "no prompts there; promptmix train writes prompt.safetensors into a run's folder, and prompts/ of several tasks"
            );
        }
        Ok(())
    }
}

/// `text` with its control characters escaped: a file of someone else's may hold what would move the cursor.
fn printable(text: &str) -> String {
    let mut printable = String::new();
    for c in text.chars() {
        if c.is_control() { printable.extend(c.escape_default()) } else { printable.push(c) }
    }
    printable
}

/// How deep folders are searched.
const DEPTH: usize = 8;

/// Adds the prompts below `folder`, in order of their paths. Files that are no prompts are passed over.
fn search(folder: &Path, depth: usize, files: &mut Vec<(PathBuf, Prompt)>) -> Result<()> {
    let read = |source| Error::file("read", folder, source);
    let entries = std::fs::read_dir(folder).map_err(read)?;
    let mut paths = entries.map(|entry| Ok(entry.map_err(read)?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.sort();
    for path in paths {
        // Links are not followed: they may lead in a circle.
        let is_folder = path.symlink_metadata().is_ok_and(|about| about.is_dir());
        if is_folder && depth > 1 {
            search(&path, depth - 1, files)?;
        } else if path.extension().is_some_and(|extension| extension == "safetensors")
            && let Ok(prompt) = Prompt::load(&path)
        {
            files.push((path, prompt));
        }
    }
    Ok(())
}

fn json(path: &Path, prompt: &Prompt) -> serde_json::Value {
    let about = prompt.metadata();
    serde_json::json!({
        "file": path.display().to_string(), "length": prompt.length(), "width": prompt.width(), "task": about.task,
        "model_sha256": about.model_sha256, "method": about.method, "steps": about.steps, "seed": about.seed,
        "learning_rate": about.learning_rate, "origin": about.origin, "merged_from": about.merged_from,
        "metric": about.metric.as_ref().map(|(name, _)| name), "metric_value": about.metric.as_ref().map(|(_, value)| value),
    })
}

impl Show {
    fn run(&self) -> Result<()> {
        let prompts::Imported { prompt, model, note, .. } = prompts::import(&self.prompt)?;
        let about = prompt.metadata();
        println!("{}: {} x {}", prompt.name(), counted(prompt.length(), "row"), prompt.width());
        let metric = about.metric.as_ref().map(|(name, value)| format!("{name} {value}"));
        for (name, value) in [
            ("task", about.task.clone()),
            ("model", about.model_sha256.clone().or(model)),
            ("method", about.method.clone()),
            ("steps", about.steps.map(|steps| steps.to_string())),
            ("learning rate", about.learning_rate.map(|rate| rate.to_string())),
            ("seed", about.seed.map(|seed| seed.to_string())),
            ("validation", metric),
            (
                "origin",
                about
                    .origin
                    .clone()
                    .or_else(|| about.promptmix_version.as_ref().map(|_| "promptmix train".into())),
            ),
            ("written by", about.promptmix_version.as_ref().map(|version| format!("promptmix {version}"))),
        ] {
            println!("  {name:<14} {}", printable(value.as_deref().unwrap_or("not known")));
        }
        for part in &about.merged_from {
            let of = [part.task.as_deref(), part.origin.as_deref()];
            let of: Vec<&str> = of.into_iter().flatten().collect();
            let of = if of.is_empty() { String::new() } else { format!(" ({})", of.join("; ")) };
            let of = printable(&format!("{}{of}", part.name));
            println!("  {:<14} {:.4} {of}", "merged from", part.weight);
        }
        if let Some(note) = note {
            println!("  {:<14} {note}", "note");
        }
        let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let norms: Vec<f64> = prompt.values().chunks_exact(prompt.width()).map(norm).collect();
        let mean = norms.iter().sum::<f64>() / norms.len() as f64;
        let (least, most) = norms.iter().fold((f64::MAX, 0.0_f64), |(a, b), &x| (a.min(x), b.max(x)));
        println!("  {:<14} {mean:.3} on average, {least:.3} to {most:.3}", "norm of a row");
        if let Some(model) = &self.model {
            let checkpoint = Checkpoint::open(&pretrained::locate(model)?)?;
            prompt.check_fits(checkpoint.config().d_model, Some(checkpoint.sha256()?))?;
            println!("  fits {model}");
        }
        Ok(())
    }
}

impl Add {
    fn run(&self) -> Result<()> {
        let mut sources = RunFolder::saved(&self.run)?.located(&self.run).sources;
        sources.extend(self.source.iter().cloned());
        change(&self.run, &self.out, &sources)
    }
}

impl Remove {
    fn run(&self) -> Result<()> {
        let mut sources = RunFolder::saved(&self.run)?.located(&self.run).sources;
        let names = train::source_names(&sources);
        let mut gone = Vec::new();
        for wanted in &self.source {
            let found: Vec<usize> = (0..sources.len())
                .filter(|&index| {
                    // As `evaluate` tells a source of that name from the target prompt.
                    let beside_target =
                        names[index] == train::TARGET && *wanted == format!("{} (source)", train::TARGET);
                    names[index] == *wanted || beside_target || sources[index] == Path::new(wanted)
                })
                .collect();
            let [index] = found[..] else {
                return Err(Error::setting(
                    "--source",
                    format!("one of {}", names.join(", ")),
                    wanted.clone(),
                    "name a source of the run",
                ));
            };
            gone.push(index);
        }
        let mut index = 0;
        sources.retain(|_| {
            index += 1;
            !gone.contains(&(index - 1))
        });
        change(&self.run, &self.out, &sources)
    }
}

fn change(run: &Path, out: &Path, sources: &[PathBuf]) -> Result<()> {
    let names = train::change_sources(run, out, sources)?;
    println!(
        "{} mixes {}; evaluate it: promptmix evaluate --run {}",
        out.display(),
        names.join(", "),
        out.display()
    );
    Ok(())
}

impl Import {
    fn run(&self) -> Result<()> {
        check_prompt_file(&self.out, [&*self.path])?;
        let model = match &self.model {
            Some(model) => Some(Checkpoint::open(&pretrained::locate(model)?)?),
            None => None,
        };
        let hash = match &model {
            Some(model) => Some(model.sha256()?.to_owned()),
            None => None,
        };
        if self.scorer {
            if self.length.is_some() || self.adapter_task.is_some() || self.task.is_some() {
                let found = "--length, --adapter-task or --task";
                return Err(Error::setting("--scorer", "no flag of a prompt", found, "leave it out"));
            }
            let mut scorer = prompts::SavedScorer::load(&self.path)?;
            if hash.is_some() {
                scorer.model_sha256 = hash;
            }
            scorer.save(&self.out)?;
            for (name, (shape, _)) in &scorer.segments {
                println!("{name} {shape:?}");
            }
            println!("written to {}", self.out.display());
            return Ok(());
        }
        let mut settings = prompts::ImportSettings::default();
        (settings.length, settings.adapter_task) = (self.length, self.adapter_task);
        let prompts::Imported { prompt, model: named, note, .. } =
            prompts::import_with(&self.path, &settings)?;
        let mut metadata = prompt.metadata().clone();
        if let Some(model) = &model {
            prompt.check_fits(model.config().d_model, hash.as_deref())?;
            metadata.model_sha256 = hash;
        }
        if self.task.is_some() {
            metadata.task.clone_from(&self.task);
        }
        let prompt = prompt.with_metadata(metadata);
        prompt.save(&self.out)?;
        if let Some(note) = note {
            eprintln!("{note}");
        }
        if prompt.metadata().model_sha256.is_none() {
            let named = named.map(|model| format!("; the file names {model}")).unwrap_or_default();
            eprintln!(
                "its model is not known, so a run on another one is not refused; say which by --model{named}"
            );
        }
        println!(
            "{} x {} written to {}",
            counted(prompt.length(), "row"),
            prompt.width(),
            self.out.display()
        );
        Ok(())
    }
}

impl Export {
    fn run(&self) -> Result<()> {
        files::check_folder(&self.out)?;
        let prompt = Prompt::load(&self.prompt)?;
        let checkpoint = Checkpoint::open(&pretrained::locate(&self.model)?)?;
        prompt.check_fits(checkpoint.config().d_model, Some(checkpoint.sha256()?))?;
        if prompt.metadata().method.as_deref() == Some("attempt") {
            eprintln!(
                "this is the target prompt of an ATTEMPT run alone: PEFT has no mixture, so its answers will not be the run's"
            );
        }
        prompts::export(&prompt, checkpoint.config(), &self.model, &self.out)?;
        println!("PEFT adapter of {} written to {}", counted(prompt.length(), "row"), self.out.display());
        Ok(())
    }
}

/// Whether a prompt could be written as `out` by a command that reads `inputs`: over none of them, nor over a file of a run or an
/// adapter.
fn check_prompt_file<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    files::check_output(out, inputs)?;
    RunFolder::refuse_own(out)?;
    if out.ends_with("adapter_model.safetensors") && out.with_file_name("adapter_config.json").is_file() {
        let found = format!("{}, a file of a PEFT adapter", out.display());
        return Err(Error::setting("--out", "a file of its own", found, "name another file"));
    }
    Ok(())
}

impl Merge {
    fn run(&self) -> Result<()> {
        check_prompt_file(&self.out, self.prompts.iter().chain(&self.towards).map(PathBuf::as_path))?;
        let named = self.prompts.iter().zip(train::source_names(&self.prompts));
        let loaded =
            named.map(|(path, name)| Ok(Prompt::load(path)?.with_name(name))).collect::<Result<Vec<_>>>()?;
        let weights = match (&self.weights, &self.towards) {
            (Some(weights), _) => weights.clone(),
            (None, Some(target)) => {
                let target = Prompt::load(target)?;
                for prompt in &loaded {
                    prompt.check_fits(target.width(), target.metadata().model_sha256.as_deref())?;
                }
                prompts::weights_by_similarity(&loaded, Some(&target))
            }
            (None, None) => vec![1.0; loaded.len()],
        };
        let name = self.out.file_stem().unwrap_or_default().to_string_lossy();
        let merged = prompts::merge(&name, &loaded, &weights)?;
        merged.save(&self.out)?;
        println!(
            "{} written to {}",
            merged.metadata().origin.as_deref().unwrap_or_default(),
            self.out.display()
        );
        Ok(())
    }
}
