//! The command line: one file a subcommand.
//!
//! Exit codes: 0 done, 1 a check failed or the work could not be done, 2 the command line itself is wrong.

// First, as its macros are those of the commands.
#[macro_use]
mod output;

mod bench;
mod compare;
mod demo;
mod device;
mod evaluate;
mod gpu;
mod info;
#[cfg(feature = "cuda")]
mod kernels;
mod pci;
mod predict;
mod progress;
mod prompts;
mod random_model;
mod ranks;
#[cfg(feature = "report")]
mod report;
mod settings;
mod sweep;
mod tasks;
#[cfg(feature = "cuda")]
mod tiles;
mod train;
mod verify;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use crate::pretrained;
use crate::train::RunManifest;

/// Attentional mixtures of soft prompts (ATTEMPT) on a frozen T5.
#[derive(Debug, Parser)]
#[command(name = "promptmix", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Learn a prompt: prompt tuning, SPoT or ATTEMPT
    Train(Box<train::Arguments>),
    /// Train a sweep: many runs over tasks, seeds and rates, several in one batch
    Sweep(sweep::Arguments),
    /// Compare methods on targets over rates and seeds, as a study's file declares them
    Compare(compare::Arguments),
    /// Evaluate a trained run on a split of its task's data
    Evaluate(evaluate::Arguments),
    /// Answer the rows of a file with a trained run
    Predict(predict::Arguments),
    /// Show runs as one HTML page with curves, attention heat maps and tables, and its figures as SVG and PNG
    #[cfg(feature = "report")]
    Report(report::Arguments),
    /// Compare this build's numbers with PyTorch's, for a fixture folder
    Verify(verify::Arguments),
    /// Measure speed and memory
    Bench(bench::Arguments),
    /// Compare prompt tuning, SPoT and ATTEMPT on generated tasks with the small T5 that comes with the program
    Demo(demo::Arguments),
    /// Look at prompts, exchange them with other programs, put them into trained runs
    Prompts(prompts::Arguments),
    /// Write the GPU kernels and their interface for programs in C, C++ or Python
    #[cfg(feature = "cuda")]
    Kernels(kernels::Arguments),
    /// List the known tasks, or show one with rows of your data
    Tasks(tasks::Arguments),
    /// Versions, devices, threads, and what was compiled in
    Info(info::Arguments),
}

/// Parses the process's arguments, runs the command and prints its error if it has one.
pub fn run() -> ExitCode {
    // A reader that has seen enough (`| head`) ends the program quietly, as it does any other. The sockets between ranks need the
    // signal ignored.
    if !ranks::launched() {
        sigpipe::reset();
    }
    // A file that grows beyond `ulimit -f` is an error of its write, which says so and leaves no part of it, and no sudden end.
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
    let arguments = match parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let ended = arguments.command.run();
    match ended.and_then(|code| output::finish().map(|()| code)) {
        Ok(code) => code,
        Err(error @ (Error::Interrupted { .. } | Error::NotBegun { .. })) => {
            eprintln!("{error}");
            ExitCode::from(progress::INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether `arguments`, without the program's name, are ones that [`run`] takes. Nothing is read or done.
///
/// # Errors
/// What the parser says of them.
pub fn check<'a>(arguments: impl IntoIterator<Item = &'a str>) -> std::result::Result<(), String> {
    let named = std::iter::once("promptmix").chain(arguments).map(Into::into);
    parse(named).map(drop).map_err(|error| error.to_string())
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> std::result::Result<Arguments, clap::Error> {
    Arguments::try_parse_from(settings::with_hyphens(arguments)).map_err(settings::with_names_of_today)
}

/// Prints what a model's files leave open.
fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
}

/// Says of which of a run's tasks the files have changed since its training.
fn say_changed(saved: &RunManifest, run: &Path) {
    // What cannot be read is an error of whoever needs it.
    let tasks = crate::train::tasks(&saved.located(run)).unwrap_or_default();
    let said = |name| {
        let remedy = "put the old file back, or train anew";
        format!("task {name} of {} makes other texts of rows than in its training: {remedy}", run.display())
    };
    warn(&saved.changed_tasks(&tasks).into_iter().map(said).collect::<Vec<_>>());
}

/// Says which of a run's things were found elsewhere than its settings have them.
fn say_moved(saved: &RunManifest, run: &Path, model: &Path) {
    let (before, now) = (&saved.config, saved.located(run));
    let say = |what: &str, before: &Path, now: &Path| {
        if before != now {
            eprintln!("{what}: {}, recorded as {}", now.display(), before.display());
        }
    };
    let from_hub = saved.model_is_folder.map_or(pretrained::is_hub_id(&before.model), |is_folder| !is_folder);
    if !from_hub {
        say("model", Path::new(&before.model), model);
    }
    say("data", &before.data, &now.data);
    before.sources.iter().zip(&now.sources).for_each(|(before, now)| say("source", before, now));
}

impl Command {
    fn run(self) -> Result<ExitCode> {
        match self {
            Self::Train(arguments) => arguments.run(),
            Self::Sweep(arguments) => arguments.run(),
            Self::Compare(arguments) => arguments.run(),
            Self::Evaluate(arguments) => arguments.run(),
            Self::Predict(arguments) => arguments.run(),
            #[cfg(feature = "report")]
            Self::Report(arguments) => arguments.run(),
            Self::Verify(arguments) => arguments.run(),
            Self::Bench(arguments) => arguments.run(),
            Self::Demo(arguments) => arguments.run(),
            Self::Prompts(arguments) => arguments.run(),
            #[cfg(feature = "cuda")]
            Self::Kernels(arguments) => arguments.run(),
            Self::Tasks(arguments) => arguments.run(),
            Self::Info(arguments) => arguments.run(),
        }
    }
}
