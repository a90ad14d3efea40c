//! All tasks of a run, evaluated on their own data.

use std::path::Path;

use super::{EvaluationRecord, Evaluations, RunFolder, Silent, TrainedRun, Trainer};
use crate::backend::Backend;
use crate::config::RunConfig;
use crate::data::{Split, data_of_tasks};
use crate::error::Result;
use crate::evaluate::Evaluation;
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
