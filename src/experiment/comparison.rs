//! What a study found, as files and as tables.

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::grid::MethodResults;
use super::tab_separated;
use crate::error::Result;
use crate::evaluate::{Paired, first_best, mean, standard_deviation};
use crate::files;

/// In the folder of a study: its [`Comparison`].
pub(crate) const RESULTS: &str = "results.json";

/// The columns of `results.tsv`.
const COLUMNS: &str =
    "target,method,learning rate,place,validation,test,test: mean,test: standard deviation,folder";

/// What a study found on one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TargetResults {
    /// The target.
    pub name: String,
    /// The mean validation of each source as it is, by its name, where a method asks for the best.
    pub sources: Vec<(String, f64)>,
    /// The methods.
    pub methods: Vec<MethodResults>,
    /// SHA-256 of all settings that these numbers came of.
    pub(super) settings_sha256: String,
}

impl TargetResults {
    /// The source that is best as it is, the first of equals; `None` where no method asks for it.
    pub fn best_source(&self) -> Option<&str> {
        let validation: Vec<f64> = self.sources.iter().map(|(_, validation)| *validation).collect();
        self.sources.get(first_best(&validation)).map(|(name, _)| &name[..])
    }
}

/// What a study found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Comparison {
    /// The method that the others are compared with.
    pub against: String,
    /// The places' names.
    pub places: Vec<String>,
    /// The targets.
    pub targets: Vec<TargetResults>,
}

impl Comparison {
    pub(super) fn write(&self, out: &Path) -> Result<()> {
        files::write_json(&out.join(RESULTS), self)?;
        files::replace(&out.join("results.tsv"), |file| self.write_runs(file))?;
        files::replace(&out.join("table.md"), |file| file.write_all(self.to_string().as_bytes()))
    }

    /// What the compared method is ahead of `other` by on the test rows of `target`, place by place.
    pub fn ahead_of(&self, target: &TargetResults, other: &MethodResults) -> Option<Paired> {
        let ours = target.methods.iter().find(|method| method.name == self.against)?;
        (ours.name != other.name).then(|| Paired::new(&ours.test, &other.test))
    }

    /// Writes every run as tab-separated values.
    fn write_runs<'a>(&'a self, to: impl io::Write) -> io::Result<()> {
        let mut table = tab_separated(to);
        table.write_record(COLUMNS.split(','))?;
        let of_target = |of: &'a TargetResults| of.methods.iter().map(move |method| (&of.name[..], method));
        for (target, method) in self.targets.iter().flat_map(of_target) {
            let measures = |test| [test, mean(&method.test), standard_deviation(&method.test)];
            let mut write = |rate: &str, place: &str, validation: f64, test: Option<&f64>, folder: &Path| {
                let number = |value| format!("{value:.6}");
                let tested = test.map_or_else(Default::default, |&test| measures(test).map(number));
                let [test, mean, deviation] = &tested;
                let (validation, folder) = (&number(validation), &*folder.to_string_lossy());
                let of_run = [rate, place, validation, test, mean, deviation, folder];
                table.write_record([target, &method.name].iter().chain(&of_run))
            };
            let untrained = self.places.iter().zip(&method.validation).zip(&method.test);
            for ((place, validation), test) in untrained.filter(|_| method.runs.is_empty()) {
                write("", place, *validation, Some(test), Path::new(""))?;
            }
            for (folder, rate, place, validation) in &method.runs {
                let chosen = method.chosen.iter().zip(&method.test).find(|(chosen, _)| *chosen == folder);
                write(&rate.to_string(), place, *validation, chosen.map(|(_, test)| test), folder)?;
            }
        }
        table.flush()
    }

    /// A table with a line a target.
    fn table(
        &self,
        formatter: &mut fmt::Formatter<'_>,
        heads: &[&str],
        cells: impl Fn(&TargetResults) -> Vec<String>,
    ) -> fmt::Result {
        let mut line = |first: &str, cells: &[String]| {
            let cells = [first].into_iter().chain(cells.iter().map(String::as_str));
            let cells = cells.map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>();
            writeln!(formatter, "| {} |", cells.join(" | "))
        };
        line("target", &heads.iter().map(|&head| head.to_owned()).collect::<Vec<_>>())?;
        line("---", &vec!["---".to_owned(); heads.len()])?;
        self.targets.iter().try_for_each(|target| line(&target.name, &cells(target)))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.targets.first() else { return Ok(()) };
        let names: Vec<&str> = first.methods.iter().map(|method| &method.name[..]).collect();
        let has_sources = self.targets.iter().any(|target| !target.sources.is_empty());
        match self.places.len() {
            1 => write!(formatter, "Test rows: one run")?,
            runs => write!(formatter, "Test rows: mean ± standard deviation over {runs} runs")?,
        }
        writeln!(formatter, "; learning rates chosen on validation rows.\n")?;
        let mut heads = vec!["metric"];
        heads.extend(has_sources.then_some("best source"));
        heads.extend(&names);
        self.table(formatter, &heads, |target| {
            let measured = target.methods[0].metrics.iter().map(|(metric, _)| &metric[..]);
            let measured = measured.collect::<Vec<_>>();
            let mean_of = if measured.len() > 1 { "mean of " } else { "" };
            let mut cells = vec![format!("{mean_of}{}", measured.join(", "))];
            cells.extend(has_sources.then(|| target.best_source().unwrap_or_default().to_owned()));
            cells.extend(target.methods.iter().map(|method| {
                let published = method.published.map_or(String::new(), |n| format!(" (published {n})"));
                let is_defined = |(_, values): &(_, Vec<Option<f64>>)| values.iter().all(Option::is_some);
                let remark =
                    if method.metrics.iter().all(is_defined) { "" } else { " (undefined counts as 0)" };
                let spread = match &method.test[..] {
                    [test] => format!("{test:.3}"),
                    test => format!("{:.3} ± {:.3}", mean(test), standard_deviation(test)),
                };
                format!("{spread}{remark}{published}")
            }));
            cells
        })?;
        let against = &self.against;
        writeln!(
            formatter,
            "\n{against} is ahead by, on test rows: mean and 95 % interval of paired differences, where there are several.\n"
        )?;
        let others: Vec<&str> = names.iter().copied().filter(|name| name != against).collect();
        self.table(formatter, &others, |target| {
            let ahead = target.methods.iter().filter_map(|method| self.ahead_of(target, method));
            let cell = |Paired { mean, interval: [low, high], .. }: Paired| match low.is_finite() {
                true => format!("{mean:+.3} ({low:+.3} to {high:+.3})"),
                false => format!("{mean:+.3}"),
            };
            ahead.map(cell).collect()
        })?;
        writeln!(
            formatter,
            "\nChosen source where each is tried, chosen learning rate, and numbers that trained.\n"
        )?;
        self.table(formatter, &names, |target| {
            let cell = |method: &MethodResults| {
                let rate = method.learning_rate.map(|rate| format!("{rate}; {}", method.trained_numbers));
                let rate = rate.unwrap_or_else(|| "untrained".to_owned());
                method.source.iter().cloned().chain([rate]).collect::<Vec<_>>().join("; ")
            };
            target.methods.iter().map(cell).collect()
        })
    }
}
