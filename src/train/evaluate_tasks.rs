//! All tasks of a run, evaluated on their own data.

use std::path::Path;

use super::{EvaluationRecord, Evaluations, RunFolder, Silent, TrainedRun, Trainer};
use crate::backend::Backend;
use crate::config::RunConfig;
use crate::data::{Split, data_of_tasks};
use crate::error::Result;
use crate::evaluate::{Evaluation, mean};
use crate::model::Frozen;

/// The tasks of a run, and what it answered to the rows of each.
pub type Evaluated = Vec<(String, Result<Evaluation>)>;

/// Answers `split` of the data of each task of the run by `config`: by its best state in `folder`, where what came of it is kept
/// as `promptmix evaluate` keeps it, or without a folder by the state that training starts from.
///
/// # Errors
/// If the run cannot be opened, or what came of it cannot be kept; those of a task are in its result.
pub(crate) fn evaluate_tasks<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    folder: Option<&Path>,
    split: Split,
) -> Result<Evaluated> {
    let Some(folder) = folder else {
        let trainer = Trainer::new(frozen, config, &mut Silent)?;
        let parameters = trainer.parameters()?;
        let evaluate = |task| trainer.evaluate_task(task, split, Some(&parameters), &mut |_| {});
        let tasks = trainer.tasks().enumerate();
        return Ok(tasks.map(|(index, task)| (task.name.clone(), evaluate(index))).collect());
    };
    let mut run = TrainedRun::open(frozen, folder, &RunFolder::saved(folder)?)?;
    let names: Vec<String> = run.tasks().iter().map(|task| task.name.clone()).collect();
    let of_tasks: Vec<&str> = names.iter().map(String::as_str).collect();
    let places = data_of_tasks(&config.data.to_string_lossy(), &of_tasks)?;
    let mut evaluated = Vec::with_capacity(names.len());
    for (name, place) in names.iter().zip(places) {
        run.select(name)?;
        let evaluation = run.evaluate(&place, split, config.decoding, &mut |_, _| {});
        if let Ok(evaluation) = &evaluation {
            let record = EvaluationRecord::new(&run, &place, split, config.decoding, evaluation);
            Evaluations::store(folder, record)?;
        }
        evaluated.push((name.clone(), evaluation));
    }
    Ok(evaluated)
}

/// The evaluations of a run that answered the rows of all its tasks.
///
/// # Errors
/// The first task's that it did not.
pub(crate) fn complete(evaluated: Result<Evaluated>) -> Result<Vec<(String, Evaluation)>> {
    evaluated?.into_iter().map(|(task, evaluation)| Ok((task, evaluation?))).collect()
}

/// The metrics of a task, with its name before where it is one of several.
pub(crate) fn named_metrics(
    task: &str,
    several: bool,
    evaluation: &Evaluation,
) -> Vec<(String, Option<f64>)> {
    let of = if several { format!("{task} ") } else { String::new() };
    let values = evaluation.scores.values.iter();
    values.map(|(metric, value)| (format!("{of}{metric}"), *value)).collect()
}

/// The mean over tasks of the mean over their metrics; NaN where one is not defined.
pub(crate) fn mean_metric(evaluations: &[(String, Evaluation)]) -> f64 {
    let means = evaluations.iter().map(|(_, evaluation)| evaluation.scores.mean().unwrap_or(f64::NAN));
    means.sum::<f64>() / evaluations.len() as f64
}

/// Each metric of runs that answered the rows of the same tasks, an entry a run.
pub(crate) fn metrics_of_runs(runs: &[Vec<(String, Evaluation)>]) -> Vec<(String, Vec<Option<f64>>)> {
    let of_run = |tasks: &Vec<(String, Evaluation)>| -> Vec<(String, Option<f64>)> {
        tasks.iter().flat_map(|(task, evaluation)| named_metrics(task, tasks.len() > 1, evaluation)).collect()
    };
    let runs: Vec<_> = runs.iter().map(of_run).collect();
    let at = |index: usize| runs.iter().filter_map(move |run| run.get(index)).map(|(_, value)| *value);
    let names = runs.first().into_iter().flatten().enumerate();
    names.map(|(index, (name, _))| (name.clone(), at(index).collect())).collect()
}

/// The mean mixture over runs and tasks.
pub(crate) fn mean_attention(runs: &[Vec<(String, Evaluation)>]) -> Vec<f64> {
    let means: Vec<&Vec<f64>> =
        runs.iter().flatten().map(|(_, evaluation)| &evaluation.spread.mean).collect();
    let prompts = means.iter().map(|mean| mean.len()).min().unwrap_or(0);
    (0..prompts).map(|prompt| mean(&means.iter().map(|mean| mean[prompt]).collect::<Vec<_>>())).collect()
}
