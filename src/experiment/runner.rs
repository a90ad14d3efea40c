//! Who takes the trainings of a comparison: whole ones side by side on the CPU ([`Workers`](super::Workers)), or as many as
//! share a batch, on any device ([`Together`]).

use std::path::PathBuf;

use super::progress::Progress;
use crate::backend::Backend;
use crate::config::RunConfig;
use crate::data::Split;
use crate::error::{Error, Result};
use crate::model::Frozen;
use crate::train::{
    Evaluated, Member, Monitor, Outcome, StepRecord, Trainer, ValidationRecord, begin_or_resume,
    evaluate_tasks, named_metrics, run_together,
};

/// Runs that are open at a time: each holds its rows.
const OPEN_RUNS: usize = 64;

/// A training, in a run folder of its own.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Training {
    /// What it is called.
    pub name: String,
    /// Its settings.
    pub config: RunConfig,
    /// Its folder. A run that is there goes on.
    pub folder: PathBuf,
    /// Whether a run that is there has to be one of these settings, down to the last path; not where the settings are the run's
    /// own and only its files may have moved.
    pub is_compared: bool,
}

impl Training {
    /// A training called `name` by `config` in `folder`.
    pub fn new(name: impl Into<String>, config: RunConfig, folder: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), config, folder: folder.into(), is_compared: true }
    }
}

/// Rows to be answered by a run.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationJob {
    /// The settings of the run.
    pub config: RunConfig,
    /// The run's folder, whose best state answers; `None`: the state that training would start from.
    pub folder: Option<PathBuf>,
    /// Which rows.
    pub split: Split,
}

/// A result of each, or the error that kept all from it.
pub type Results<T> = Result<Vec<Result<T>>>;

/// Who takes trainings and evaluates runs.
pub trait Runner {
    /// Takes all steps that the trainings have left; results are in their order. One that fails does not hold up the others.
    ///
    /// # Errors
    /// Those of the device and of loading the model, and of a training that cannot begin; those of its steps are in its result.
    fn train(&self, trainings: &[Training], progress: &mut dyn Progress) -> Results<Outcome>;

    /// Answers rows: for each run its tasks and an evaluation of each. Ticks once a run.
    ///
    /// # Errors
    /// As [`train`](Self::train).
    fn evaluate(&self, runs: &[EvaluationJob], progress: &mut dyn Progress) -> Results<Evaluated>;
}

/// Says that trainings begin as a part of the work, with so many `other` steps besides.
pub(super) fn begin_trainings(what: &str, trainings: &[Training], other: usize, progress: &mut dyn Progress) {
    let steps: u64 = trainings.iter().map(|training| training.config.steps.unwrap_or(0)).sum();
    progress.begin(what, steps + other as u64);
}

/// Takes trainings none of which may fail, with so many `other` steps announced besides; the outcomes are in their order.
pub(crate) fn train_all(
    what: &str,
    trainings: &[Training],
    other: usize,
    runner: &dyn Runner,
    progress: &mut dyn Progress,
) -> Result<Vec<Outcome>> {
    begin_trainings(what, trainings, other, progress);
    runner.train(trainings, progress)?.into_iter().collect()
}

/// The run of a training, from its last checkpoint if it has begun before; `progress` hears of the steps that it has taken.
pub(super) fn open<'a, B: Backend>(
    frozen: &'a Frozen<'a, B>,
    training: &Training,
    progress: &mut dyn Progress,
) -> Result<Member<'a, B>> {
    let Training { name, config, folder, is_compared } = training;
    // What is said of the rows holds for other runs on them too, and is without a name.
    let mut trainer = Trainer::new(frozen, config, &mut Listener::of(None, &mut *progress))?;
    let folder = begin_or_resume(&mut trainer, folder, *is_compared)?;
    if config.steps.is_none() {
        progress.more(trainer.step_count() + trainer.steps_left());
    }
    (0..trainer.step_count()).for_each(|_| progress.step());
    Ok(Member { name: name.clone(), trainer, folder: Some(folder) })
}

/// Each metric of a run on its test rows, with the tasks' names before where there are several. What was not evaluated is noted:
/// many data sets ship no test rows, or some without labels.
pub(super) fn metrics(evaluated: Evaluated, progress: &mut dyn Progress) -> Vec<(String, Option<f64>)> {
    let several = evaluated.len() > 1;
    let mut metrics = Vec::new();
    for (task, evaluation) in evaluated {
        match evaluation {
            Ok(evaluation) => metrics.extend(named_metrics(&task, several, &evaluation)),
            Err(error) => progress.note(&format!("the test rows were not evaluated: {error}")),
        }
    }
    metrics
}

/// The end that was asked for, of a comparison, `done` runs of `all` of whose present stage are done.
pub(super) fn interrupted(done: usize, all: usize) -> Error {
    let after = format!("{done} of {all} runs of this stage");
    Error::Interrupted { after, next: "the same command goes on from there".into() }
}

/// Runs of one layout share a batch.
pub struct Together<'a, B: Backend> {
    frozen: &'a Frozen<'a, B>,
    most: usize,
}

impl<'a, B: Backend> Together<'a, B> {
    /// At most `most` runs in a batch, at least one, and no more than the device's memory holds.
    pub fn new(frozen: &'a Frozen<'a, B>, most: usize) -> Self {
        Self { frozen, most }
    }
}

impl<B: Backend> Runner for Together<'_, B> {
    fn train(&self, trainings: &[Training], progress: &mut dyn Progress) -> Results<Outcome> {
        let mut outcomes = Vec::with_capacity(trainings.len());
        for chunk in trainings.chunks(OPEN_RUNS.max(self.most)) {
            let open = |training| open(self.frozen, training, &mut *progress);
            let members = chunk.iter().map(open).collect::<Result<Vec<_>>>();
            if progress.ends() {
                return Err(interrupted(outcomes.len(), trainings.len()));
            }
            let mut members = members?;
            let mut listener = Listener::of(None, &mut *progress);
            outcomes.extend(run_together(self.frozen, &mut members, self.most, &mut listener)?);
        }
        Ok(outcomes)
    }

    fn evaluate(&self, runs: &[EvaluationJob], progress: &mut dyn Progress) -> Results<Evaluated> {
        let mut evaluated = Vec::with_capacity(runs.len());
        for run in runs {
            if progress.ends() {
                return Err(interrupted(evaluated.len(), runs.len()));
            }
            evaluated.push(evaluate_tasks(self.frozen, &run.config, run.folder.as_deref(), run.split));
            progress.step();
        }
        Ok(evaluated)
    }
}

/// Passes on what runs say, with their names.
pub(super) struct Listener<'p> {
    /// Of which run it hears.
    run: Option<String>,
    progress: &'p mut dyn Progress,
}

impl<'p> Listener<'p> {
    /// Of one run, or of none yet by name.
    pub(super) fn of(name: Option<&str>, progress: &'p mut dyn Progress) -> Self {
        Self { run: name.map(str::to_owned), progress }
    }
}

impl Monitor for Listener<'_> {
    fn of_run(&mut self, name: Option<&str>) {
        self.run = name.map(str::to_owned);
    }
    fn step(&mut self, _: &StepRecord) {
        self.progress.step();
    }
    fn validated(&mut self, record: &ValidationRecord) {
        self.note(&record.to_string());
    }
    fn note(&mut self, text: &str) {
        let of_run = self.run.as_ref().map_or_else(String::new, |name| format!("{name}: "));
        self.progress.note(&format!("{of_run}{text}"));
    }
    fn ends(&mut self) -> bool {
        self.progress.ends()
    }
}
