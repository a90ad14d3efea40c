//! Tables of methods, and the picture of attention by kind of row.

use std::fmt;

use crate::evaluate::{Paired, mean, standard_deviation};
use crate::experiment::{MethodResults, TargetResults};

/// Who the other methods are compared with.
pub(super) const ATTEMPT: &str = "ATTEMPT";
/// Shades of a cell, from no weight to all of it.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];

/// One method of a table.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The method and what it starts from.
    pub name: String,
    /// The learning rate with the best mean validation; `None` where nothing was trained.
    pub learning_rate: Option<f64>,
    /// Numbers that trained.
    pub trained: usize,
    /// Validation accuracy, a place each.
    pub validation: Vec<f64>,
    /// Test accuracy, a place each.
    pub test: Vec<f64>,
}

impl From<&MethodResults> for Row {
    fn from(results: &MethodResults) -> Self {
        Self {
            name: results.name.clone(),
            learning_rate: results.learning_rate,
            trained: results.trained_numbers,
            validation: results.validation.clone(),
            test: results.test.clone(),
        }
    }
}

/// Methods on one target, with what ATTEMPT is ahead of each by.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Table {
    /// The methods.
    pub rows: Vec<Row>,
}

/// Named after the source that is best as it is, which stands for `{}`. Where trying each source comes to that one too, it is left out.
impl From<&TargetResults> for Table {
    fn from(results: &TargetResults) -> Self {
        let best = results.best_source();
        let reported = results.methods.iter().filter(|method| method.source.as_deref() != best);
        let row = |method: &MethodResults| {
            let mut row = Row::from(method);
            row.name = match &method.source {
                Some(source) => format!("{} ({source})", row.name),
                None => row.name.replace("{}", best.unwrap_or_default()),
            };
            row
        };
        Self { rows: reported.map(row).collect() }
    }
}

impl Table {
    /// The row called `name`.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// What ATTEMPT is ahead of `other` by on the test rows, place by place.
    pub fn ahead_of(&self, other: &Row) -> Option<Paired> {
        self.row(ATTEMPT).map(|ours| Paired::new(&ours.test, &other.test))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{:<46} {:>4} {:>7}  {:<10}  {:<15}  {:<5}  ATTEMPT is ahead by (95 %)",
            "method", "rate", "numbers", "validation", "test", "least"
        )?;
        for row in &self.rows {
            let rate = row.learning_rate.map_or("-".into(), |rate| rate.to_string());
            let least = row.test.iter().copied().fold(f64::INFINITY, f64::min);
            let test = format!("{:.3} ± {:.3}", mean(&row.test), standard_deviation(&row.test));
            write!(
                formatter,
                "{:<46} {rate:>4} {:>7}  {:<10.3}  {test:<15}  {least:.3}  ",
                row.name,
                row.trained,
                mean(&row.validation)
            )?;
            match self.ahead_of(row).filter(|_| row.name != ATTEMPT) {
                Some(ahead) => {
                    let [low, high] = ahead.interval;
                    writeln!(formatter, "{:+.3} ({low:+.3} to {high:+.3})", ahead.mean)?;
                }
                None => writeln!(formatter, "-")?,
            }
        }
        Ok(())
    }
}

/// The mean mixture of each kind of row.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AttentionByKind {
    /// What the weights belong to, the target prompt last.
    pub prompts: Vec<String>,
    /// The kinds of row.
    pub kinds: Vec<String>,
    /// The mean weights, a row a kind.
    pub attention: Vec<Vec<f64>>,
}

impl AttentionByKind {
    /// Of the mixtures of test rows whose kinds take turns.
    pub(super) fn new(prompts: Vec<String>, kinds: Vec<String>, places: &[Vec<Vec<f64>>]) -> Self {
        let count = kinds.len();
        let of_kind = |kind: usize| {
            let rows = || places.iter().flat_map(move |rows| rows.iter().skip(kind).step_by(count));
            let number = rows().count().max(1) as f64;
            (0..prompts.len())
                .map(|prompt| rows().filter_map(|row| row.get(prompt)).sum::<f64>() / number)
                .collect()
        };
        let attention = (0..count).map(of_kind).collect();
        Self { prompts, kinds, attention }
    }
}

impl fmt::Display for AttentionByKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:<12}", "")?;
        for prompt in &self.prompts {
            write!(formatter, " {prompt:^10}")?;
        }
        writeln!(formatter)?;
        for (kind, weights) in self.kinds.iter().zip(&self.attention) {
            write!(formatter, "{kind:<12}")?;
            for weight in weights {
                let shade = SHADES[((weight * 10.0).round() as usize).min(SHADES.len() - 1)];
                write!(
                    formatter,
                    " {}{weight:.2}{}",
                    shade.to_string().repeat(3),
                    shade.to_string().repeat(3)
                )?;
            }
            writeln!(formatter)?;
        }
        Ok(())
    }
}
