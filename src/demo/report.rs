//! What a comparison found, and how it is shown.

use std::fmt;
use std::path::PathBuf;

use super::compare::{Settings, mean};
use super::generate::TARGET;

/// The place of ATTEMPT among the rows.
const ATTEMPT: usize = 2;

/// One method of the table.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The method and what it starts from.
    pub name: String,
    /// The learning rate with the best mean validation.
    pub learning_rate: f64,
    /// Validation accuracy, a seed each.
    pub validation: Vec<f64>,
    /// Test accuracy, a seed each.
    pub test: Vec<f64>,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// How it was made.
    pub settings: Settings,
    /// The source tasks' names.
    pub sources: Vec<String>,
    /// Each source prompt's validation accuracy on its own task.
    pub source_validation: Vec<f64>,
    /// Each source prompt's validation accuracy on the target, as it is.
    pub transfer: Vec<f64>,
    /// Prompt tuning, SPoT, ATTEMPT, and the controls.
    pub rows: Vec<Row>,
    /// ATTEMPT's mean weight of each source, and of the target prompt behind them, on the test rows of all seeds.
    pub attention: Vec<f64>,
    /// Mean of the entropy of its weights, in nats.
    pub entropy: f64,
    /// The folder of ATTEMPT's run with the first seed.
    pub run: PathBuf,
    /// The source prompts' files.
    pub source_prompts: Vec<PathBuf>,
    /// The frozen T5's folder.
    pub model: PathBuf,
}

/// Mean and sample deviation.
fn spread(values: &[f64]) -> (f64, f64) {
    let mean = mean(values);
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt())
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.settings;
        writeln!(
            formatter,
            "source prompts: validation accuracy on their own task, and on the target as they are"
        )?;
        for (index, name) in self.sources.iter().enumerate() {
            let (own, target) = (self.source_validation[index], self.transfer[index]);
            writeln!(formatter, "  {name:<12} {own:.3}   {target:.3}")?;
        }
        writeln!(
            formatter,
            "\ntarget `{}` ({}):\n{} rows a class, {} steps, best of rates {:?} by {} validation rows;\n\
             accuracy on {} test rows, mean ± deviation of {} seeds\n",
            TARGET.name,
            TARGET.question,
            settings.shots,
            settings.steps,
            settings.learning_rates,
            settings.target_rows.validation,
            settings.target_rows.test,
            settings.seeds.len()
        )?;
        let heads = ["method", "rate", "validation", "test", "ATTEMPT is ahead by"];
        writeln!(
            formatter,
            "{:<46} {:>5}  {:<10}  {:<15}  {}",
            heads[0], heads[1], heads[2], heads[3], heads[4]
        )?;
        let attempt = self.rows.get(ATTEMPT).map_or(&[][..], |row| &row.test);
        for (index, row) in self.rows.iter().enumerate() {
            let (test, deviation) = spread(&row.test);
            write!(
                formatter,
                "{:<46} {:>5}  {:<10.3}  {test:.3} ± {deviation:.3}  ",
                row.name,
                row.learning_rate,
                mean(&row.validation)
            )?;
            if index == ATTEMPT {
                writeln!(formatter, "  -")?;
                continue;
            }
            let ahead: Vec<f64> =
                attempt.iter().zip(&row.test).map(|(attempt, other)| attempt - other).collect();
            let (ahead, deviation) = spread(&ahead);
            writeln!(formatter, "  {ahead:+.3} ± {deviation:.3}")?;
        }
        writeln!(formatter, "\nATTEMPT's mean attention on the test rows")?;
        let names = self.sources.iter().map(String::as_str).chain(["the target prompt"]);
        for (name, weight) in names.zip(&self.attention) {
            writeln!(formatter, "  {name:<18} {weight:.4}")?;
        }
        writeln!(
            formatter,
            "  its entropy is {:.3}; equal weights would have {:.3}",
            self.entropy,
            (self.attention.len() as f64).ln()
        )
    }
}

impl Report {
    /// A command that trains ATTEMPT on someone's own data with the source prompts of this comparison.
    pub fn next_command(&self) -> String {
        let sources: Vec<String> =
            self.source_prompts.iter().map(|path| path.display().to_string()).collect();
        format!(
            "promptmix train --model {} --template '{{text}}' --labels negative,positive --lowercase \\\n    \
             --data YOUR-FOLDER --method attempt --prompt-length {} --decoding labels --out my-run \\\n    \
             --sources {}",
            self.model.display(),
            self.settings.prompt_length,
            sources.join(",")
        )
    }
}
