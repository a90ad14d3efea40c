//! The comparison: six source prompts, then every method on a few-shot target, and on one whose rows ask different questions.

use std::path::Path;

use super::generate::{SOURCES, TARGET};
use super::methods::{AS_IS, CONSTANT, NOISE, PROMPT_TUNING, SPOT, SPOT_EACH, UNIFORM, sources, study_on};
use super::questions::{Subject, THREE_QUESTIONS};
use super::report::Report;
use super::settings::Settings;
use super::sources::data_folder;
use super::table::ATTEMPT;
use crate::config::RunConfig;
use crate::error::Result;
use crate::experiment::{Progress, Runner, Study};

/// Generates the tasks, learns the source prompts and compares the methods, all in the folder `out`, with trainings that
/// `runner` takes on the T5 in `model`. The test rows of a target are read only once every choice on it is made. What was
/// interrupted goes on.
///
/// # Errors
/// If `out` holds runs of other settings or cannot be written, and those of training.
pub fn compare(
    settings: &Settings,
    runner: &dyn Runner,
    model: &Path,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<Report> {
    settings.check()?;
    let names = SOURCES.map(|task| task.name);
    let source_validation = settings.sources.train(runner, model, &names, out, progress)?;
    let shared = |task: &str, labels| settings.sources.run(model, task, labels, data_folder(out, task));
    let seed = settings.sources.seed;
    TARGET.write(&data_folder(out, TARGET.name), settings.target.rows, seed)?;
    let config = RunConfig {
        few_shot: Some(settings.shots),
        class_balanced: true,
        ..shared(TARGET.name, TARGET.labels)
    };
    let fixed = if settings.fixed_mixtures { &[UNIFORM, CONSTANT][..] } else { &[] };
    let methods = [&[PROMPT_TUNING, AS_IS, SPOT, ATTEMPT, NOISE, SPOT_EACH], fixed].concat();
    let few_shot = study_on(TARGET.name, &settings.target, config, sources(out, &names), &methods);
    let task = THREE_QUESTIONS;
    task.write(&data_folder(out, task.name), settings.questions.rows, seed, Subject::OfKind)?;
    let fixed = if settings.fixed_mixtures { &[CONSTANT, UNIFORM][..] } else { &[CONSTANT] };
    let methods = [&[PROMPT_TUNING, AS_IS, SPOT, ATTEMPT], fixed].concat();
    let config = shared(task.name, task.labels);
    let questions = study_on(task.name, &settings.questions, config, sources(out, task.sources), &methods);
    let mut on = |study: &Study| study.compare_on(&study.targets[0], runner, out, progress);
    let (few_shot, questions) = (on(&few_shot)?, on(&questions)?);
    Report::of(settings, source_validation, &few_shot, &questions, model, out)
}
