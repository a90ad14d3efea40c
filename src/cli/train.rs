//! `promptmix train`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use toml::{Table, Value};

use super::device::{Chosen, Device, on_device};
use super::progress::{Bars, Shown};
use super::ranks;
use super::settings::SettingFlags;
use crate::backend::Backend;
use crate::config::RunConfig;
use crate::count::counted;
use crate::error::{Error, Result};
use crate::evaluate::Spread;
use crate::experiment::{Draw, FewShotRuns, Together};
use crate::model::Frozen;
use crate::pretrained;
use crate::train::{self, Monitor, Ranks, RunFolder, RunManifest, Silent, Trainer};

/// Few-shot runs that share a batch.
const DRAWS: usize = 5;

/// Flags of `promptmix train`; what is left out takes the default of the settings.
#[derive(Debug, clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  promptmix train --model t5-small --task sst2 --data data/sst2 --method prompt-tuning --out runs/sst2
  promptmix train --model t5-small --task mrpc --data data/mrpc --method attempt \\
      --sources runs/sst2/prompt.safetensors,runs/mnli/prompt.safetensors --out runs/mrpc
  promptmix train --model t5-small --template 'review: {text}' --labels bad,good --label-field stars \\
      --data reviews --method prompt-tuning --out runs/reviews
  promptmix train --model t5-small --task mrpc,rte,cola --data glue --sampling equal \\
      --sources mnli.safetensors,qnli.safetensors --out runs/glue
  promptmix train --model t5-small --task cb --data data/cb --few-shot 16 --class-balanced \\
      --sources mnli.safetensors --initial-scorer runs/glue --out runs/cb-16
  promptmix train --config mrpc.toml --learning-rate 0.1 --out runs/mrpc
  promptmix train --resume --out runs/mrpc
  mpirun -n 4 promptmix train --config mrpc.toml --out runs/mrpc

A file for --config has the flags as keys (`learning-rate = 0.3`); a run's config.toml is one."
)]
pub(super) struct Arguments {
    /// A TOML file of settings; flags win over it
    #[arg(long)]
    config: Option<PathBuf>,
    /// The run folder to write
    #[arg(long)]
    out: PathBuf,
    /// Go on with the interrupted run in --out, by its own settings; --model and --data say where those lie now if they moved, and
    /// --steps or --epochs make the run longer
    #[arg(long, conflicts_with = "config")]
    resume: bool,
    #[command(flatten)]
    settings: SettingFlags,
    #[command(flatten)]
    device: Device,
}

/// The error of a length by `config` that the run, which was `begun`, has taken already.
fn too_short<B: Backend>(trainer: &Trainer<'_, B>, config: &RunConfig, begun: &RunManifest) -> Error {
    let taken = trainer.step_count();
    let asked = trainer.effective().steps.unwrap_or_default();
    let (flag, found) = match config.epochs {
        Some(epochs) if begun.config.epochs != config.epochs => {
            ("--epochs", format!("{epochs}, which make {}", counted(asked, "step")))
        }
        _ => ("--steps", asked.to_string()),
    };
    let whole = begun.effective.as_ref().map_or(begun.config.steps, |effective| effective.steps);
    let advice = match whole.filter(|whole| *whole > taken) {
        Some(whole) => format!("it has taken {taken} of {whole}: leave the flag out to go on to its end"),
        None => "a run that has taken its steps goes on with more of them".to_owned(),
    };
    let more = if flag == "--epochs" {
        format!("more than {}", counted(taken, "step"))
    } else {
        format!("more than {taken}")
    };
    Error::setting(flag, more, found, advice)
}

/// Refuses a length by `config` that makes few-shot runs of the settings `saved` no longer: some of them may be done.
fn refuse_shorter_draws(config: &RunConfig, saved: &RunConfig) -> Result<()> {
    // In epochs where both are.
    let (before, now) = (saved.steps(1), config.steps(1));
    let is_comparable = saved.steps.is_some() == config.steps.is_some();
    if saved.draw_seeds().is_empty() || !is_comparable || now > before {
        return Ok(());
    }
    let flag = if config.steps.is_some() { "--steps" } else { "--epochs" };
    let advice = "leave the flag out to go on to the end that the runs were begun with";
    Err(Error::setting(flag, format!("more than {before}"), now.to_string(), advice))
}

/// Why a run that patience ended takes no step, and what would.
fn out_of_patience<B: Backend>(trainer: &Trainer<'_, B>, config: &RunConfig) -> (String, &'static str) {
    let patience = config.patience.unwrap_or_default();
    let why = format!(
        "one that --patience {patience} ended after step {}: so many validations in a row were no better",
        trainer.step_count()
    );
    (why, "train a new run with another --patience, from this one's prompt by --initial-prompt")
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let ranks = ranks::join()?;
        let done = self.run_rank(&ranks);
        if let (Err(error), true) = (&done, ranks.count() > 1) {
            eprintln!("error on rank {}: {error}", ranks.rank());
            ranks.abort();
        }
        done
    }

    fn run_rank(self, ranks: &Rc<dyn Ranks>) -> Result<ExitCode> {
        let (config, begun) = if self.resume { self.begun()? } else { (self.config()?, None) };
        for (flag, is_missing) in
            [("--model", config.model.is_empty()), ("--data", config.data.as_os_str().is_empty())]
        {
            if is_missing {
                return Err(Error::setting(flag, "a value", "none", "give the flag, or its key in --config"));
            }
        }
        config.check()?;
        let mut threads = self.device.threads.or(config.threads);
        if ranks.count() > 1 && threads.is_none() {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            threads = Some((cores / ranks::local_count()).max(1));
        }
        let chosen = self.device.choose(self.resume.then_some(&self.out))?;
        ranks::check_same(ranks.as_ref(), chosen != Chosen::Cpu)?;
        let device = self.device.start(chosen, threads)?;
        if !self.resume && ranks.rank() == 0 {
            RunFolder::check_new(&self.out)?;
        }
        let mut monitor: Box<dyn Monitor> = match (ranks.rank(), ranks.count()) {
            (0, 1) => Box::new(Shown::new().ending_on_signals()?),
            // Ranks would end after different steps, and the last wait for the others.
            (0, _) => Box::new(Shown::new()),
            _ => Box::new(Silent),
        };
        if !self.resume {
            for (key, reason) in config.without_effect() {
                monitor.note(&format!("warning: --{key} has no effect: {reason}"));
            }
        }
        on_device!(device, backend => self.run_on(backend, &config, begun.as_ref(), ranks, monitor.as_mut()))
    }

    fn run_on<B: Backend>(
        &self,
        backend: &B,
        config: &RunConfig,
        begun: Option<&RunManifest>,
        ranks: &Rc<dyn Ranks>,
        monitor: &mut dyn Monitor,
    ) -> Result<ExitCode> {
        let frozen = match begun {
            Some(begun) => {
                let checkpoint = begun.model(&self.out, self.text("model"))?;
                if ranks.rank() == 0 {
                    super::say_moved(begun, &self.out, checkpoint.folder());
                }
                Frozen::of_checkpoint(backend, &checkpoint)?
            }
            None => Frozen::load(backend, &pretrained::locate(&config.model)?)?,
        };
        frozen.warnings.iter().for_each(|warning| monitor.note(&format!("warning: {warning}")));
        if !config.draw_seeds().is_empty() {
            if ranks.count() > 1 {
                let reason = "each is small, and they run one after the other";
                return Err(Error::unsupported("several draws on several ranks", reason, "leave mpirun out"));
            }
            return self.run_draws(&frozen, config);
        }
        let mut trainer = Trainer::new(&frozen, config, monitor)?.on_ranks(ranks.clone());
        // All ranks hold the same state; one of them writes it down.
        let mut folder = match (ranks.rank(), self.resume) {
            (0, false) => Some(RunFolder::create(&self.out, config, &frozen.model_hash)?),
            (0, true) => Some(train::resume(&mut trainer, &self.out)?),
            (_, false) => None,
            (_, true) => {
                RunFolder::saved(&self.out)?.check_model(&frozen.model_hash, "--resume")?;
                trainer.resume(&self.out)?;
                None
            }
        };
        let length = |config: &RunConfig| (config.steps, config.epochs);
        let longer = begun.filter(|begun| length(&begun.config) != length(config));
        if trainer.is_out_of_patience() {
            let (why, advice) = out_of_patience(&trainer, config);
            if longer.is_some() {
                return Err(Error::setting("--resume", "a run that goes on", why, advice));
            }
            monitor.note(&format!("no step was taken: the run is {why}; to learn more, {advice}"));
        } else if let Some(begun) = longer.filter(|_| trainer.steps_left() == 0) {
            return Err(too_short(&trainer, config, begun));
        }
        monitor.note(&format!("{} numbers train; the model and its sources never change", trainer.trained()));
        let outcome = trainer.run(folder.as_mut(), monitor)?;
        let why = if outcome.stopped_early { ", stopped by --patience" } else { "" };
        let metrics: Vec<String> =
            trainer.tasks().flat_map(|task| &task.metrics).map(ToString::to_string).collect();
        let of = match &metrics[..] {
            [] | [_] => String::new(),
            several if trainer.tasks().count() == 1 => format!(" (mean of {})", several.join(" and ")),
            _ => " (mean over the tasks)".to_owned(),
        };
        let undefined = outcome.undefined.join(", ");
        let best = match outcome.undefined.len() {
            0 => format!("{:.4}{of}", outcome.best),
            all if all == metrics.len() => {
                format!("undefined ({undefined}: the answers or the references are all alike)")
            }
            _ => format!("{:.4}{of}, where {undefined} is undefined and counts as 0,", outcome.best),
        };
        if ranks.rank() == 0 {
            println!(
                "{}{why}; best validation {best} after step {}; written to {}",
                counted(outcome.steps, "step"),
                outcome.best_step,
                self.out.display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn run_draws<B: Backend>(&self, frozen: &Frozen<'_, B>, config: &RunConfig) -> Result<ExitCode> {
        let mut bars = Bars::new()?;
        let runs =
            FewShotRuns::run(&Together::new(frozen, DRAWS), config, &self.out, self.resume, &mut bars)?;
        bars.finish();
        for Draw { data_seed, folder, outcome, test, .. } in &runs.draws {
            println!(
                "data seed {data_seed}: best validation {:.4} after step {} of {}{}; {}",
                outcome.best,
                outcome.best_step,
                outcome.steps,
                train::remark_on_best(test.iter().map(|(metric, _)| metric), &outcome.undefined),
                self.out.join(folder).display()
            );
        }
        let draws = runs.draws.len();
        for Spread { name, mean, deviation, .. } in &runs.summary {
            match draws {
                1 => println!("{name}: {mean:.4} of one draw"),
                _ => println!("{name}: {mean:.4} on average over {draws} draws, deviation {deviation:.4}"),
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The settings of the run in --out to go on with, their paths where they are found now, and what it recorded.
    fn begun(&self) -> Result<(RunConfig, Option<RunManifest>)> {
        let (saved, begun) = match FewShotRuns::begun(&self.out)? {
            Some(begun) => begun,
            None => {
                let saved = RunFolder::saved(&self.out)?;
                (saved.config.clone(), Some(saved))
            }
        };
        self.refuse_other_settings(&saved)?;
        let mut config = begun.as_ref().map_or_else(|| saved.clone(), |begun| begun.located(&self.out));
        if let Some(length) = self.length() {
            config = config.with(&length)?;
            refuse_shorter_draws(&config, &saved)?;
        }
        if begun.is_none() {
            config.model = self.text("model").map_or(config.model, str::to_owned);
        }
        config.data = self.text("data").map_or(config.data, PathBuf::from);
        Ok((config, begun))
    }

    /// A setting of text that was given as a flag.
    fn text(&self, key: &str) -> Option<&str> {
        self.settings.0.get(key).and_then(Value::as_str)
    }

    /// How long the run is to be, if a flag says so.
    fn length(&self) -> Option<Table> {
        let of_length = |(key, _): &(&String, &Value)| ["steps", "epochs"].contains(&key.as_str());
        let length: Table =
            self.settings.0.iter().filter(of_length).map(|(k, v)| (k.clone(), v.clone())).collect();
        (!length.is_empty()).then_some(length)
    }

    /// A run goes on as it began: a flag that would change a setting of it is an error, not ignored. Runs may be made longer.
    fn refuse_other_settings(&self, saved: &RunConfig) -> Result<()> {
        let mut settings = self.settings.0.clone();
        // These say where things lie now.
        let length: &[&str] = if saved.steps.is_none() { &["steps", "epochs"] } else { &["steps"] };
        for key in ["model", "data"].iter().chain(length) {
            settings.remove(*key);
        }
        let mut differences = saved.differences(&saved.with(&settings)?);
        // Whether steps were given or not, epochs take their place; it is those that are refused.
        differences.retain(|difference| difference.key != "steps");
        if differences.is_empty() {
            return Ok(());
        }
        let flags: Vec<String> =
            differences.iter().map(|difference| format!("--{}", difference.key)).collect();
        let values: Vec<String> = differences.iter().map(ToString::to_string).collect();
        Err(Error::setting(
            flags.join(", "),
            "the run's own settings with --resume",
            values.join(", "),
            "leave the flags out, or train a new run with them, from this one's prompt by --initial-prompt",
        ))
    }

    /// The settings of the file and the flags; a flag wins.
    fn config(&self) -> Result<RunConfig> {
        let base = match &self.config {
            Some(path) => RunConfig::from_toml(path)?,
            None => RunConfig::default(),
        };
        let mut config = base.with(&self.settings.0)?;
        config.threads = self.device.threads.or(config.threads);
        Ok(config)
    }
}
