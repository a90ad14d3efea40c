//! What a comparison found, and how it is shown.

use std::fmt;
use std::path::{Path, PathBuf};

use super::generate::{SOURCES, TARGET};
use super::questions::THREE_QUESTIONS;
use super::settings::{Settings, TargetSettings};
use super::sources::source_paths;
use super::table::{ATTEMPT, AttentionByKind, Table};
use crate::error::{Error, Result};
use crate::experiment::TargetResults;

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
    /// Each source prompt's validation accuracy on the few-shot target, as it is.
    pub transfer: Vec<f64>,
    /// The methods on the few-shot target.
    pub few_shot: Table,
    /// ATTEMPT's mean weight of each source, and of the target prompt after them, on the few-shot target's test rows.
    pub attention: Vec<f64>,
    /// The methods on the target whose rows ask different questions.
    pub questions: Table,
    /// ATTEMPT's mixture of each of its kinds of row.
    pub by_kind: AttentionByKind,
    /// The folder of ATTEMPT's run with the first seed on the few-shot target.
    pub run: PathBuf,
    /// The source prompts' files.
    pub source_prompts: Vec<PathBuf>,
    /// The frozen T5's folder.
    pub model: PathBuf,
}

/// The conditions of a table, for people.
fn conditions(formatter: &mut fmt::Formatter<'_>, settings: &TargetSettings, rows: &str) -> fmt::Result {
    writeln!(
        formatter,
        "{rows}, {} steps, best of rates {:?} by {} validation rows;\n\
         accuracy on {} test rows, mean ± standard deviation of {} seeds\n",
        settings.steps,
        settings.learning_rates,
        settings.rows.validation,
        settings.rows.test,
        settings.seeds.len()
    )
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.settings;
        writeln!(
            formatter,
            "source prompts: validation accuracy on their own task, and on the first target as they are"
        )?;
        for (index, name) in self.sources.iter().enumerate() {
            let (own, target) = (self.source_validation[index], self.transfer[index]);
            writeln!(formatter, "  {name:<12} {own:.3}   {target:.3}")?;
        }
        writeln!(formatter, "\ntarget `{}`, one question: {}", TARGET.name, TARGET.question)?;
        conditions(formatter, &settings.target, &format!("{} rows a class", settings.shots))?;
        self.few_shot.fmt(formatter)?;
        writeln!(formatter, "\nATTEMPT's mean attention on its test rows")?;
        let names = self.sources.iter().map(String::as_str).chain(["the target prompt"]);
        for (name, weight) in names.zip(&self.attention) {
            writeln!(formatter, "  {name:<18} {weight:.4}")?;
        }
        let questions = THREE_QUESTIONS;
        writeln!(formatter, "\ntarget `{}`, whose rows ask different questions", questions.name)?;
        for kind in questions.kinds {
            writeln!(
                formatter,
                "  {:<12} {}, as {} asks",
                kind.name,
                kind.question,
                kind.related.join(" or ")
            )?;
        }
        conditions(formatter, &settings.questions, &format!("{} rows", settings.questions.rows.train))?;
        self.questions.fmt(formatter)?;
        writeln!(formatter, "\nATTEMPT's mean attention by kind of row, on its test rows\n")?;
        self.by_kind.fmt(formatter)
    }
}

impl Report {
    /// Of what was found in the folder `out`, with the T5 in `model`.
    pub(super) fn of(
        settings: &Settings,
        source_validation: Vec<f64>,
        few_shot: &TargetResults,
        questions: &TargetResults,
        model: &Path,
        out: &Path,
    ) -> Result<Self> {
        let attempt = |results: &TargetResults| {
            let found = results.methods.iter().find(|method| method.name == ATTEMPT);
            found.cloned().ok_or_else(|| Error::unsupported("a demonstration", "it lacks ATTEMPT", ""))
        };
        let (of_few_shot, of_questions) = (attempt(few_shot)?, attempt(questions)?);
        let (names, task) = (SOURCES.map(|task| task.name), THREE_QUESTIONS);
        Ok(Self {
            settings: settings.clone(),
            sources: names.map(str::to_owned).to_vec(),
            source_validation,
            transfer: few_shot.sources.iter().map(|(_, validation)| *validation).collect(),
            few_shot: Table::from(few_shot),
            attention: of_few_shot.attention,
            run: of_few_shot.chosen.first().map(|folder| out.join(folder)).unwrap_or_default(),
            questions: Table::from(questions),
            by_kind: AttentionByKind::new(
                task.prompts(),
                task.kinds.iter().map(|kind| kind.name.to_owned()).collect(),
                &of_questions.mixtures,
            ),
            source_prompts: source_paths(out, &names),
            model: model.to_owned(),
        })
    }

    /// A command that trains ATTEMPT on someone's own data with the source prompts of this comparison.
    pub fn next_command(&self) -> String {
        let sources: Vec<String> =
            self.source_prompts.iter().map(|path| path.display().to_string()).collect();
        format!(
            "promptmix train --model {} --template '{{text}}' --labels negative,positive --lowercase \\\n    \
             --data YOUR-FOLDER --method attempt --prompt-length {} --decoding labels --out my-run \\\n    \
             --sources {}",
            self.model.display(),
            self.settings.sources.prompt_length,
            sources.join(",")
        )
    }
}
