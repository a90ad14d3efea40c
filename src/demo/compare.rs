//! The comparison: six source prompts, then every method on a few-shot target, and on one whose rows ask different questions.

use std::path::Path;

use super::generate::{SOURCES, TARGET};
use super::methods::{CONSTANT, NOISE, SPOT_EACH, UNIFORM, study_on};
use super::questions::{Subject, THREE_QUESTIONS};
use super::report::Report;
use super::settings::Settings;
use super::sources::{data_folder, sources};
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
    let fixed = if settings.fixed_mixtures { &[][..] } else { &[UNIFORM, CONSTANT] };
    let few_shot = study_on(TARGET.name, &settings.target, config, sources(out, &names), fixed);
    let task = THREE_QUESTIONS;
    task.write(&data_folder(out, task.name), settings.questions.rows, seed, Subject::OfKind)?;
    let left_out =
        if settings.fixed_mixtures { &[NOISE, SPOT_EACH][..] } else { &[NOISE, SPOT_EACH, UNIFORM] };
    let (config, of_task) = (shared(task.name, task.labels), sources(out, task.sources));
    let questions = study_on(task.name, &settings.questions, config, of_task, left_out);
    let mut on = |study: &Study| study.compare_on(&study.targets[0], runner, out, progress);
    let (few_shot, questions) = (on(&few_shot)?, on(&questions)?);
    Report::of(settings, source_validation, &few_shot, &questions, model, out)
}
