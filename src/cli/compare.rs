//! `promptmix compare`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use super::device::{Chosen, Device, on_device};
use super::progress::{Bars, bar};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::config::{Method, RunConfig};
use crate::count::counted;
use crate::error::Result;
use crate::experiment::{Runner, Sources, Study, StudyMethod, Together, Workers};
use crate::files;
use crate::model::Frozen;
use crate::pretrained::{self, Checkpoint};
use crate::train::{self, Silent, Trainer};

/// Runs in one batch, where nothing else is asked for.
pub(super) const TOGETHER: usize = 8;
/// Steps that an estimate is made by.
const PROBE: u64 = 5;

/// Flags of `promptmix compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix compare study.toml --dry-run
  promptmix compare study.toml --out studies/first

The file has settings as --config of train has them, for every run, and a table of what is compared:

  model = \"t5-small\"
  steps = 300
  validate-every = 100
  [study]
  seeds = [1, 2, 3]
  learning-rates = [0.3, 1.0]
  [[study.source]]
  name = \"sst2\"
  task = \"sst2\"
  data = \"data/sst2\"
  [[study.target]]
  name = \"mrpc, 16 a class\"
  task = \"mrpc\"
  data = \"data/mrpc\"
  few-shot = 16
  class-balanced = true
  [[study.method]]
  name = \"prompt tuning\"
  method = \"prompt-tuning\"
  [[study.method]]
  name = \"ATTEMPT\"

docs/studies.md describes the rest. The same command again goes on where it was interrupted.")]
pub(super) struct Arguments {
    /// The study's TOML file
    file: PathBuf,
    /// A folder for the runs, results.json, results.tsv and table.md
    #[arg(long, required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Say what would be done and about how long it takes, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Another model than the file's: a folder or a hub id
    #[arg(long)]
    model: Option<String>,
    /// A folder that the file's relative data paths start from, instead of the one the program runs in
    #[arg(long)]
    data_root: Option<PathBuf>,
    /// Share batches among so many runs at most. On the CPU, if not given, whole runs go side by side, one a thread
    #[arg(long)]
    together: Option<NonZeroUsize>,
    #[command(flatten)]
    device: Device,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let root = self.data_root.as_deref().unwrap_or(Path::new(""));
        let study = Study::read(&self.file, self.model.as_deref(), root)?;
        let is_published = study.targets.iter().any(|target| !target.published.is_empty());
        if self.model.is_some() && is_published {
            super::warn(&["published numbers are of the file's model, not of --model".to_owned()]);
        }
        if let Some(out) = self.out.as_deref().filter(|_| !self.dry_run) {
            files::check_folder(out)?;
        }
        let model = pretrained::locate(study.model())?;
        let chosen = self.device.choose(self.out.as_deref())?;
        if chosen == Chosen::Cpu && self.together.is_none() {
            // Says what is wrong with --threads; each worker starts a thread of its own.
            Cpu::<f32>::with_caller(self.device.threads)?;
            let workers = Workers::new(&model, self.device.threads)?;
            // Once, and not by each of them.
            let checkpoint = Checkpoint::open(&model)?;
            super::warn(checkpoint.warnings());
            // The hash of a large model takes a while, and only prompts that are there already could be of another one.
            let has_prompts = study.sources.iter().any(|source| source.prompt.is_some());
            let hash = if has_prompts { Some(checkpoint.sha256()?) } else { None };
            study.check_inputs(checkpoint.config().d_model, hash, self.out.as_deref())?;
            if self.dry_run {
                let cpu = Cpu::<f32>::new(Some(1))?;
                return estimate(&study, &Frozen::load(&cpu, &model)?, workers.count());
            }
            return self.compare(&study, &workers);
        }
        let device = self.device.start(chosen, self.device.threads)?;
        on_device!(device, backend => self.run_together(&study, &Frozen::load(backend, &model)?))
    }

    fn run_together<B: Backend>(&self, study: &Study, frozen: &Frozen<'_, B>) -> Result<ExitCode> {
        super::warn(&frozen.warnings);
        let together = Together::new(frozen, self.together.map_or(TOGETHER, NonZeroUsize::get));
        let width = frozen.model.config().d_model;
        study.check_inputs(width, Some(&frozen.model_hash), self.out.as_deref())?;
        if self.dry_run { estimate(study, frozen, 1) } else { self.compare(study, &together) }
    }

    fn compare(&self, study: &Study, runner: &dyn Runner) -> Result<ExitCode> {
        let started = Instant::now();
        let out = self.out.clone().unwrap_or_default();
        let mut bars = Bars::new()?;
        let comparison = study.run(runner, &out, &mut bars)?;
        bars.finish();
        println!("{comparison}");
        println!(
            "took {:.0} s; runs, results.json, results.tsv and table.md are in {}",
            started.elapsed().as_secs_f64(),
            out.display()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// A part of what a study is going to do.
struct Stage<'a> {
    name: &'a str,
    trainings: usize,
    /// Rows that each of its trainings learns from, or all of its sources together; unknown where the hub has them.
    rows: Option<usize>,
    /// Steps of all trainings; unknown where they count in epochs of rows that the hub has.
    steps: Option<u64>,
}

/// The stages of a study.
fn stages(study: &Study) -> Result<Vec<Stage<'_>>> {
    let times = |method: &StudyMethod| {
        let sources = if method.sources == Sources::Each { study.sources.len() } else { 1 };
        method.learning_rates.len() * sources * study.places.len()
    };
    let steps = |config: &RunConfig, rows: Option<usize>| {
        let batch_size = config.batch_size * config.gradient_accumulation_steps;
        config.steps.or_else(|| Some(config.steps(rows?.div_ceil(batch_size) as u64)))
    };
    let mut stages = Vec::new();
    let (mut of_sources, mut trainings) =
        (Stage { name: "source prompts", trainings: 0, rows: Some(0), steps: Some(0) }, 0);
    for source in &study.sources {
        // A prompt that is there may come without its data.
        let rows = match source.prompt {
            Some(_) if study.scorer.is_none() => continue,
            _ => train::count_training_rows(&source.config)?,
        };
        of_sources.rows = of_sources.rows.zip(rows).map(|(all, rows)| all + rows);
        if source.prompt.is_none() {
            trainings += 1;
            of_sources.steps =
                of_sources.steps.zip(steps(&source.config, rows)).map(|(all, steps)| all + steps);
        }
    }
    let all_rows = of_sources.rows;
    if trainings > 0 {
        stages.push(Stage { trainings, ..of_sources });
    }
    if let Some(scorer) = &study.scorer {
        stages.push(Stage { name: "scorer", trainings: 1, rows: all_rows, steps: steps(scorer, all_rows) });
    }
    for target in &study.targets {
        let rows = train::count_training_rows(&target.config)?;
        let of_methods =
            target.methods.iter().map(|method| Some(steps(&method.config, rows)? * times(method) as u64));
        stages.push(Stage {
            name: &target.name,
            trainings: target.methods.iter().map(times).sum(),
            rows,
            steps: of_methods.sum(),
        });
    }
    Ok(stages)
}

/// Prints what the study is going to do, and how long its trainings take by a few steps like theirs, `at_a_time` of them.
fn estimate<B: Backend>(study: &Study, frozen: &Frozen<'_, B>, at_a_time: usize) -> Result<ExitCode> {
    let stages = stages(study)?;
    println!("{:<40} {:>9} {:>12} {:>12}", "stage", "trainings", "rows", "steps");
    let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    for Stage { name, trainings, rows, steps } in &stages {
        println!(
            "{name:<40} {trainings:>9} {:>12} {:>12}",
            number(rows.map(|rows| rows as u64)),
            number(*steps)
        );
    }
    let steps: u64 = stages.iter().filter_map(|stage| stage.steps).sum();
    let trainings: usize = stages.iter().map(|stage| stage.trainings).sum();
    let is_known = stages.iter().all(|stage| stage.steps.is_some());
    println!("{:<40} {trainings:>9} {:>12} {:>12}", "all", "", number(is_known.then_some(steps)));
    if !is_known {
        println!(
            "?: these trainings count in epochs of data sets of the hub, whose rows are counted once they are here"
        );
    }
    let methods: usize = study.targets.iter().map(|target| target.methods.len()).sum();
    println!("test rows are answered by {}, once each", counted(methods * study.places.len(), "run"));
    // Needs nothing that the study makes.
    let like_theirs = RunConfig {
        method: Method::PromptTuning,
        prompt_init: None,
        initial_prompt: None,
        initial_scorer: None,
        standardize_inputs: None,
        learn_temperature: false,
        scorer: RunConfig::default().scorer,
        seed: study.places[0].seed,
        ..study.targets[0].methods[0].config.clone()
    };
    // No `Bars`, which listen for signals: nothing is saved here, and a signal ends it at once, as ever.
    let shown = bar(PROBE, "estimate");
    let measure = || {
        let mut trainer = Trainer::new(frozen, &like_theirs, &mut Silent)?;
        let probed = PROBE.min(trainer.steps_left());
        shown.set_length(probed);
        let started = Instant::now();
        for _ in 0..probed {
            trainer.step()?;
            shown.inc(1);
        }
        Ok::<_, crate::Error>((started.elapsed().as_secs_f64() / probed as f64, trainer.training_rows()))
    };
    let measured = measure();
    shown.finish_and_clear();
    match measured {
        Ok((seconds, rows)) => {
            let of_target = format!(
                "a step like those of {} ({}; prompt tuning, a run alone) took {:.0} ms",
                study.targets[0].name,
                counted(rows.iter().sum::<usize>(), "training row"),
                1000.0 * seconds
            );
            let known = if is_known { "" } else { " for the steps that are known" };
            let all = duration(seconds * steps as f64 / at_a_time as f64);
            println!(
                "{of_target}: about {all} of training{known}, {at_a_time} at a time; validation and test rows come on top"
            );
        }
        Err(error) => println!("no estimate of the time: {error}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// So many seconds in the unit that people would use.
fn duration(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} seconds"),
        ..5400.0 => format!("{:.0} minutes", seconds / 60.0),
        _ => format!("{:.1} hours", seconds / 3600.0),
    }
}
