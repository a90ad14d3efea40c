//! A sweep: every run of a list, what it came to, and the mean over runs that differ in their seeds alone.

use std::{fmt, io};

use toml::{Table, Value};

use super::progress::Progress;
use super::runner::{EvaluationJob, Runner, Training, begin_trainings, metrics};
use super::tab_separated;
use crate::config::{RunConfig, SETTINGS};
use crate::count::counted;
use crate::data::Split;
use crate::error::Result;
use crate::evaluate::Spread;
use crate::train::{Outcome, name_of_repeats, remark_on_best, repeats};

/// What every run has that was trained.
const VALIDATION: &str = "validation";

/// A run of a sweep.
#[derive(Debug)]
pub struct SweptRun {
    /// Its name, which is its folder's.
    pub name: String,
    /// Its settings.
    pub config: RunConfig,
    /// How its training ended.
    pub outcome: Result<Outcome>,
    /// Each metric on the test rows; with several tasks their names stand before. None where there are no test rows with
    /// labels.
    pub test: Vec<(String, Option<f64>)>,
}

/// Runs that were trained.
#[derive(Debug)]
pub struct Sweep {
    /// The runs, in the order that they were given in.
    pub runs: Vec<SweptRun>,
}

impl Sweep {
    /// Trains the runs, which `progress` hears of as `what`, and answers the test rows where there are any.
    ///
    /// # Errors
    /// Those of the runner; a training's own are in its outcome.
    pub fn run(
        runner: &dyn Runner,
        what: &str,
        trainings: &[Training],
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        begin_trainings(what, trainings, 0, progress);
        let outcomes = runner.train(trainings, progress)?;
        let trained = trainings.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
        let job = |(Training { config, folder, .. }, _): (&Training, _)| EvaluationJob {
            config: config.clone(),
            folder: Some(folder.clone()),
            split: Split::Test,
        };
        let jobs: Vec<EvaluationJob> = trained.map(job).collect();
        progress.begin("test rows", jobs.len() as u64);
        let mut evaluated = runner.evaluate(&jobs, progress)?.into_iter();
        let mut runs = Vec::with_capacity(trainings.len());
        for (Training { name, config, .. }, outcome) in trainings.iter().zip(outcomes) {
            let evaluated = if outcome.is_ok() { evaluated.next().transpose()? } else { None };
            let test = evaluated.map_or_else(Vec::new, |evaluated| metrics(evaluated, progress));
            runs.push(SweptRun { name: name.clone(), config: config.clone(), outcome, test });
        }
        Ok(Self { runs })
    }

    /// Whether a run failed.
    pub fn has_failed(&self) -> bool {
        self.runs.iter().any(|run| run.outcome.is_err())
    }

    /// The validation, and each test metric that a run has.
    pub(super) fn measures(&self) -> Vec<String> {
        let mut measures = vec![VALIDATION.to_owned()];
        for (measure, _) in self.runs.iter().flat_map(SweptRun::measured) {
            if !measures.contains(&measure) {
                measures.push(measure);
            }
        }
        measures
    }

    /// Trained runs that differ in their seeds alone, a group each, in the order of their first.
    fn repetitions(&self) -> Vec<Vec<&SweptRun>> {
        let trained: Vec<&SweptRun> = self.runs.iter().filter(|run| run.outcome.is_ok()).collect();
        let groups = repeats(trained.iter().map(|run| (&run.config, "")));
        groups.into_iter().map(|group| group.into_iter().map(|place| trained[place]).collect()).collect()
    }

    /// Writes the runs as tab-separated values: the name, every setting in which they differ and the method, in the order of the
    /// declaration, steps taken and the best among them, validation, each test metric, and mean and standard deviation of them over the runs that differ from this
    /// one in their seeds alone.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write_table(&self, to: impl io::Write) -> io::Result<()> {
        let settings = |run: &SweptRun| Table::try_from(&run.config).unwrap_or_default();
        let tables: Vec<Table> = self.runs.iter().map(settings).collect();
        let differs = |key: &str| tables.iter().any(|table| table.get(key) != tables[0].get(key));
        let keys = SETTINGS.iter().map(|setting| setting.key);
        let keys: Vec<&str> = keys.filter(|&key| ["method", "task"].contains(&key) || differs(key)).collect();
        let measures = self.measures();

        let mut table = tab_separated(to);
        let mut head = vec!["run"];
        head.extend(&keys);
        head.extend(["steps taken", "best step"]);
        head.extend(measures.iter().map(String::as_str));
        let over_seeds = |of: &String| [format!("{of}: mean"), format!("{of}: standard deviation")];
        let over_seeds: Vec<String> = measures.iter().flat_map(over_seeds).collect();
        head.extend(over_seeds.iter().map(String::as_str));
        head.push("runs");
        table.write_record(head)?;
        // Blank where there is no number.
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.6}"));
        // Text without the quotes that TOML has around it.
        let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        for group in self.repetitions() {
            let mut of_group: Vec<String> = Vec::new();
            for measure in &measures {
                let spread = spread(&group, measure).filter(|spread| !spread.mean.is_nan());
                of_group.push(number(spread.as_ref().map(|spread| spread.mean)));
                // One run deviates from nothing.
                of_group.push(number(spread.filter(|_| group.len() > 1).map(|spread| spread.deviation)));
            }
            of_group.push(group.len().to_string());
            for run in &group {
                let Ok(outcome) = &run.outcome else { continue };
                let settings = settings(run);
                let mut line = vec![run.name.clone()];
                line.extend(keys.iter().map(|key| settings.get(*key).map_or_else(String::new, shown)));
                line.extend([outcome.steps.to_string(), outcome.best_step.to_string()]);
                line.extend(measures.iter().map(|measure| number(run.measure(measure))));
                line.extend(of_group.iter().cloned());
                table.write_record(line)?;
            }
        }
        table.flush()
    }
}

/// Mean and deviation of a measure over the runs that have it; `None` where none has.
pub(super) fn spread(runs: &[&SweptRun], measure: &str) -> Option<Spread> {
    let values: Vec<f64> = runs.iter().filter_map(|run| run.measure(measure)).collect();
    (!values.is_empty()).then(|| Spread::new(measure, &values))
}

impl SweptRun {
    /// The best validation and each test metric, if it was trained.
    fn measured(&self) -> Vec<(String, Option<f64>)> {
        let Ok(outcome) = &self.outcome else { return Vec::new() };
        let test = self.test.iter().map(|(metric, value)| (format!("test {metric}"), *value));
        [(VALIDATION.to_owned(), Some(outcome.best))].into_iter().chain(test).collect()
    }

    /// One of [`Sweep::measures`].
    pub(super) fn measure(&self, measure: &str) -> Option<f64> {
        self.measured().into_iter().find(|(name, _)| name == measure)?.1
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.runs.iter().map(|run| run.name.chars().count()).max().unwrap_or(0);
        for SweptRun { name, outcome, test, .. } in &self.runs {
            write!(formatter, "{name:<width$}  ")?;
            match outcome {
                Ok(Outcome { steps, best, best_step, undefined, .. }) => {
                    let remark = remark_on_best(test.iter().map(|(metric, _)| metric), undefined);
                    write!(formatter, "best validation {best:.4} after step {best_step} of {steps}{remark}")?;
                    for (metric, value) in test {
                        write!(formatter, "; test {metric} {:.4}", value.unwrap_or(f64::NAN))?;
                    }
                }
                Err(error) => write!(formatter, "failed: {error}")?,
            }
            writeln!(formatter)?;
        }
        let (groups, measures) = (self.repetitions(), self.measures());
        if groups.iter().all(|group| group.len() == 1) {
            return Ok(());
        }
        writeln!(formatter, "\nmean ± standard deviation over seeds")?;
        for group in groups {
            let names: Vec<String> = group.iter().map(|run| run.name.clone()).collect();
            write!(formatter, "{:<width$}", name_of_repeats(&names))?;
            for Spread { name, mean, deviation } in measures.iter().filter_map(|of| spread(&group, of)) {
                write!(formatter, "  {name} {mean:.4} ± {deviation:.4}")?;
            }
            writeln!(formatter, "  ({})", counted(group.len(), "run"))?;
        }
        Ok(())
    }
}
