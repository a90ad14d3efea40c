//! A sweep: every run of a list, what it came to, and the mean over runs that differ in their seeds alone.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use toml::Table;

use super::progress::Progress;
use super::runner::{EvaluationJob, Runner, Training, metrics};
use super::statistics::{mean, standard_deviation};
use crate::config::{RunConfig, SETTINGS};
use crate::data::Split;
use crate::error::Result;
use crate::train::{Outcome, repeats};

/// A run of a sweep.
#[derive(Debug)]
#[non_exhaustive]
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
#[non_exhaustive]
pub struct Sweep {
    /// The runs, in the order that they were given in.
    pub runs: Vec<SweptRun>,
}

impl Sweep {
    /// Trains the runs and answers the test rows where there are any.
    ///
    /// # Errors
    /// Those of the runner; a training's own are in its outcome.
    pub fn run(runner: &dyn Runner, trainings: &[Training], progress: &mut dyn Progress) -> Result<Self> {
        progress.begin("sweep", trainings.iter().map(|training| training.config.steps.unwrap_or(0)).sum());
        let outcomes = runner.train(trainings, progress)?;
        let jobs: Vec<EvaluationJob> = trainings
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| outcome.is_ok())
            .map(|(run, _)| EvaluationJob::new(run.config.clone(), Some(run.folder.clone()), Split::Test))
            .collect();
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

    /// The settings in which the runs differ, and the method, in the order of the declaration.
    fn swept(&self) -> Vec<&'static str> {
        let tables = self.tables();
        let keys = SETTINGS.iter().map(|setting| setting.key);
        keys.filter(|key| {
            let first = tables.first().and_then(|table| table.get(*key));
            ["method", "task"].contains(key) || tables.iter().any(|table| table.get(*key) != first)
        })
        .collect()
    }

    fn tables(&self) -> Vec<Table> {
        self.runs.iter().map(|run| Table::try_from(&run.config).unwrap_or_default()).collect()
    }

    fn metrics(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.runs.iter().flat_map(|run| &run.test) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// Runs that differ in their seeds alone, a group each, in the order of their first.
    fn repetitions(&self) -> Vec<Vec<&SweptRun>> {
        let groups = repeats(self.runs.iter().map(|run| (&run.config, "")));
        groups.into_iter().map(|group| group.into_iter().map(|place| &self.runs[place]).collect()).collect()
    }

    /// The runs as tab-separated values: the name, every setting in which they differ, steps, validation, each test metric, and
    /// mean and standard deviation of them over the runs that differ from this one in their seeds alone.
    pub fn table(&self) -> String {
        let (keys, metrics) = (self.swept(), self.metrics());
        let mut table = format!("run\t{}\tsteps\tat step\tvalidation", keys.join("\t"));
        let measures: Vec<String> = ["validation".to_owned()]
            .into_iter()
            .chain(metrics.iter().map(|m| format!("test {m}")))
            .collect();
        for measure in &measures[1..] {
            let _ = write!(table, "\t{measure}");
        }
        for measure in &measures {
            let _ = write!(table, "\t{measure}: mean\t{measure}: standard deviation");
        }
        table.push_str("\truns\n");
        let tables = self.tables();
        for group in self.repetitions() {
            let spread = |measure: usize| {
                let values: Vec<f64> =
                    group.iter().filter_map(|run| run.measure(measure, &metrics)).collect();
                (mean(&values), standard_deviation(&values))
            };
            for run in &group {
                let Ok(outcome) = &run.outcome else { continue };
                let settings = self.runs.iter().zip(&tables).find(|(other, _)| std::ptr::eq(*other, *run));
                let _ = write!(table, "{}", run.name);
                for key in &keys {
                    let value = settings.and_then(|(_, settings)| settings.get(*key));
                    let shown = value.map_or_else(String::new, |value| {
                        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                    });
                    let _ = write!(table, "\t{}", shown.replace(['\t', '\n'], " "));
                }
                let _ = write!(table, "\t{}\t{}", outcome.steps, outcome.best_step);
                for measure in 0..measures.len() {
                    let value = run.measure(measure, &metrics);
                    let _ =
                        write!(table, "\t{}", value.map_or_else(String::new, |value| format!("{value:.6}")));
                }
                for (mean, deviation) in (0..measures.len()).map(spread) {
                    // Blank where no run has the number.
                    let _ = match mean.is_nan() {
                        true => write!(table, "\t\t"),
                        false => write!(table, "\t{mean:.6}\t{deviation:.6}"),
                    };
                }
                let _ = writeln!(table, "\t{}", group.len());
            }
        }
        table
    }
}

impl SweptRun {
    /// The validation for 0, then the test metrics.
    fn measure(&self, index: usize, metrics: &[&str]) -> Option<f64> {
        let outcome = self.outcome.as_ref().ok()?;
        match index.checked_sub(1) {
            None => Some(outcome.best),
            Some(metric) => self.test.iter().find(|(name, _)| name == metrics[metric])?.1,
        }
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.runs.iter().map(|run| run.name.chars().count()).max().unwrap_or(0);
        for SweptRun { name, outcome, test, .. } in &self.runs {
            match outcome {
                Ok(Outcome { steps, best, best_step, .. }) => {
                    write!(
                        formatter,
                        "{name:<width$}  best validation {best:.4} after step {best_step} of {steps}"
                    )?;
                    for (metric, value) in test {
                        write!(formatter, "; test {metric} {:.4}", value.unwrap_or(f64::NAN))?;
                    }
                    writeln!(formatter)?;
                }
                Err(error) => writeln!(formatter, "{name:<width$}  failed: {error}")?,
            }
        }
        let metrics = self.metrics();
        let distinct: BTreeSet<usize> = self.repetitions().iter().map(Vec::len).collect();
        if distinct.iter().any(|count| *count > 1) {
            writeln!(formatter, "\nmean ± standard deviation over seeds")?;
            for group in self.repetitions() {
                write!(formatter, "{:<width$}", group[0].name)?;
                for index in 0..=metrics.len() {
                    let values: Vec<f64> =
                        group.iter().filter_map(|run| run.measure(index, &metrics)).collect();
                    if values.is_empty() {
                        continue;
                    }
                    let name = index
                        .checked_sub(1)
                        .map_or_else(|| "validation".into(), |m| format!("test {}", metrics[m]));
                    write!(formatter, "  {name} {:.4} ± {:.4}", mean(&values), standard_deviation(&values))?;
                }
                writeln!(formatter, "  ({} runs)", group.len())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: 0.5 and 0.7 have the mean 0.6 and, over one less than there are, the deviation 0.2 / √2.
    #[test]
    fn the_table_has_mean_and_deviation_over_seeds() {
        let run = |name: &str, seed: u64, rate: f64, best: f64, test: Option<f64>| {
            let config = RunConfig { seed, learning_rate: rate, ..RunConfig::default() };
            let outcome =
                Outcome { steps: 9, best, best_step: 3, trained: 1, rows: vec![8], stopped_early: false };
            let test = vec![("accuracy".to_owned(), test)];
            SweptRun { name: name.into(), config, outcome: Ok(outcome), test }
        };
        let sweep = Sweep {
            runs: vec![
                run("a", 1, 0.1, 0.5, Some(0.25)),
                run("b", 1, 0.3, 0.9, None),
                run("c", 2, 0.1, 0.7, Some(0.75)),
            ],
        };
        let lines: Vec<String> = sweep.table().lines().map(|line| line.replace('\t', " ")).collect();
        assert_eq!(
            lines[0],
            "run task method learning-rate seed steps at step validation test accuracy validation: mean validation: standard \
             deviation test accuracy: mean test accuracy: standard deviation runs"
        );
        assert_eq!(lines[1], "a  attempt 0.1 1 9 3 0.500000 0.250000 0.600000 0.141421 0.500000 0.353553 2");
        assert_eq!(lines[2], "c  attempt 0.1 2 9 3 0.700000 0.750000 0.600000 0.141421 0.500000 0.353553 2");
        assert_eq!(
            lines[3], "b  attempt 0.3 1 9 3 0.900000  0.900000 0.000000   1",
            "no test rows, no numbers"
        );
    }
}
