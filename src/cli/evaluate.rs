//! `promptmix evaluate`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::device::{Device, on_device};
use super::progress;
use crate::backend::Backend;
use crate::config::Decoding;
use crate::count::counted;
use crate::data::{Counts, Split, data_of_task, refuse_without};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, Spread};
use crate::experiment::{Comparison, RESULTS};
use crate::files;
use crate::model::Frozen;
use crate::train::{
    self, EvaluationRecord, Evaluations, FoundRun, RunFolder, RunManifest, TrainedRun, differing_settings,
};

/// Folders upwards in which a study's results may lie: beside its runs, whose folders lie in one for each target.
const LEVELS: usize = 3;

/// Flags of `promptmix evaluate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix evaluate --run runs/mrpc --split test
  promptmix evaluate --run runs/few-shot --split test
  promptmix evaluate --run runs/mrpc --data other/mrpc

What is found for the run's own data and tasks is kept in evaluation.json in its folder, an entry a split, task and decoding,
which promptmix report shows. Other data (--data) and another task or labels (--task, --labels) are printed and not kept.

Of several runs there is a line each, and the mean and standard deviation of every metric. The exit status is 1 if one of them
could not be evaluated.")]
pub(super) struct Arguments {
    /// A folder that `promptmix train` wrote, or one with such folders at most three levels beneath it
    #[arg(long)]
    run: PathBuf,
    /// Folder or hub id of the model that the run was trained with, where it is not found by itself
    #[arg(long)]
    model: Option<String>,
    /// One of the run's tasks instead of all; or, of a run on a single task, evaluate as this one instead
    #[arg(long)]
    task: Option<String>,
    /// Label strings of --task
    #[arg(long, requires = "task")]
    labels: Option<String>,
    /// Data to evaluate, instead of the run's own
    #[arg(long)]
    data: Option<PathBuf>,
    /// train, validation or test
    #[arg(long, default_value = "validation")]
    split: Split,
    /// How answers are got [default: the run's]
    #[arg(long)]
    decoding: Option<Decoding>,
    /// Print a line of JSON for each task, of several runs for each of their tasks and with the run's name
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: Device,
}

/// A task of a run, evaluated.
struct Evaluated {
    task: String,
    prompts: Vec<String>,
    evaluation: Evaluation,
    /// What is worth knowing of how the rows were read.
    remark: Option<String>,
    /// What to say of a mixture that is the same for every example, though its scorer reads the input.
    constant_warning: Option<String>,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let found = train::runs_beneath(&self.run)?;
        let saved = found.iter().map(|run| RunFolder::saved(&run.path)).collect::<Result<Vec<_>>>()?;
        let other = saved.iter().position(|other| other.model_hash != saved[0].model_hash);
        if let (Some(model), Some(other)) = (&self.model, other) {
            let expected = format!("runs that were all trained with {model}");
            let of_another = format!("{} and {}, of different models", found[0].name, found[other].name);
            let advice = "leave it out, or evaluate the runs of each model by themselves";
            return Err(Error::setting("--model", expected, of_another, advice));
        }
        let device = self.device.open()?;
        on_device!(device, backend => match &found[..] {
            [one] if one.path == self.run => self.evaluate_one(backend, one, &saved[0]),
            _ => self.evaluate_several(backend, &found, &saved),
        })
    }

    fn evaluate_one<B: Backend>(
        &self,
        backend: &B,
        found: &FoundRun,
        saved: &RunManifest,
    ) -> Result<ExitCode> {
        let (frozen, model) = self.load(backend, std::iter::once((found, saved)))?;
        super::say_moved(saved, &found.path, &model);
        let (mut means, mut undefined) = (Vec::new(), false);
        self.evaluate(&frozen, found, saved, &mut |evaluated| {
            let scores = &evaluated.evaluation.scores;
            means.extend(scores.mean());
            undefined |= scores.values.iter().any(|(_, value)| value.is_none());
            evaluated.remark.iter().for_each(|remark| eprintln!("{remark}"));
            self.print(None, &evaluated);
        })?;
        if self.task.is_none() && saved.config.is_multi_task() && !self.json {
            let mean = means.iter().sum::<f64>() / means.len() as f64;
            let note = if undefined { "; what is undefined counts as 0" } else { "" };
            println!("mean over {} tasks {mean:.4}{note}", means.len());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Evaluates the runs model by model, each of which is loaded once; a run that cannot be evaluated does not hold up the others.
    fn evaluate_several<B: Backend>(
        &self,
        backend: &B,
        found: &[FoundRun],
        saved: &[RunManifest],
    ) -> Result<ExitCode> {
        let width = found.iter().map(|run| run.name.chars().count()).max().unwrap_or(0);
        let choice = (self.split == Split::Test).then(|| Choice::of(&self.run)).flatten();
        if let Some(choice) = &choice {
            choice.remark(found).iter().for_each(|remark| eprintln!("{remark}"));
        }
        let (mut results, mut failed, mut remarks) = (Vec::new(), false, BTreeSet::new());
        for first in 0..found.len() {
            let hash = &saved[first].model_hash;
            if saved[..first].iter().any(|other| other.model_hash == *hash) {
                continue;
            }
            let alike: Vec<usize> =
                (first..found.len()).filter(|&place| saved[place].model_hash == *hash).collect();
            let loaded = self.load(backend, alike.iter().map(|&place| (&found[place], &saved[place])));
            for place in alike {
                let name = &found[place].name;
                let mut tasks = Vec::new();
                let evaluated = match &loaded {
                    Err(error) => Err(error.to_string()),
                    Ok((frozen, model)) => {
                        super::say_moved(&saved[place], &found[place].path, model);
                        self.evaluate(frozen, &found[place], &saved[place], &mut |evaluated| {
                            if self.json {
                                self.print(Some(name), &evaluated);
                            }
                            tasks.push(evaluated);
                        })
                        .map_err(|error| error.to_string())
                    }
                };
                failed |= evaluated.is_err();
                match evaluated {
                    Err(error) if self.json => eprintln!("error: {name}: {error}"),
                    Err(error) => println!("{name:<width$}  not evaluated: {error}"),
                    Ok(()) if !self.json => {
                        let is_chosen = choice.as_ref().is_some_and(|choice| choice.took(&found[place]));
                        let mark = if is_chosen { "  chosen on validation rows" } else { "" };
                        println!("{name:<width$}  {}{mark}", line(&tasks));
                    }
                    Ok(()) => {}
                }
                // Runs on the same rows have the same to say of them.
                let said = tasks.iter().filter_map(|evaluated| evaluated.remark.as_ref());
                said.filter(|said| remarks.insert((*said).clone())).for_each(|said| eprintln!("{said}"));
                let warnings = tasks.iter().filter_map(|evaluated| evaluated.constant_warning.as_ref());
                for warning in warnings.filter(|_| !self.json) {
                    eprintln!("warning: {name}: {warning}");
                }
                results.push((place, tasks));
            }
        }
        if !self.json {
            summarise(&results, saved);
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Loads the model that these runs have in common from where one of them finds it; gives back where that was.
    fn load<'a, 'b, B: Backend>(
        &self,
        backend: &'b B,
        runs: impl Iterator<Item = (&'a FoundRun, &'a RunManifest)>,
    ) -> Result<(Frozen<'b, B>, PathBuf)> {
        let mut places = runs.map(|(found, saved)| saved.model(&found.path, self.model.as_deref()));
        let first = places.next().unwrap_or_else(|| Err(Error::setting("--run", "a run", "none", "")));
        // Where the flag names the place, the others would find no other.
        let mut others = || if self.model.is_none() { places.find_map(Result::ok) } else { None };
        let checkpoint = first.or_else(|error| others().ok_or(error))?;
        let frozen = Frozen::of_checkpoint(backend, &checkpoint)?;
        super::warn(&frozen.warnings);
        Ok((frozen, checkpoint.folder().to_owned()))
    }

    /// Evaluates the tasks of a run that were asked for, and hands each on as it is done.
    fn evaluate<B: Backend>(
        &self,
        frozen: &Frozen<'_, B>,
        found: &FoundRun,
        saved: &RunManifest,
        done: &mut dyn FnMut(Evaluated),
    ) -> Result<()> {
        // What could not be kept is refused before the work.
        Evaluations::read(&found.path)?;
        super::say_changed(saved, &found.path);
        let mut run = TrainedRun::open(frozen, &found.path, saved)?;
        let own = run.tasks().iter().map(|task| task.name.clone()).collect::<Vec<_>>();
        let Some(task) = &self.task else {
            for name in &own {
                run.select(name)?;
                done(self.evaluate_task(&run, found, saved, true)?);
            }
            return Ok(());
        };
        if own.len() > 1 && self.labels.is_some() {
            let advice = "each of the run's tasks has its own labels";
            return Err(Error::setting("--labels", "none for a run on several tasks", "some", advice));
        }
        let is_own = own.len() > 1 || own.contains(task) && self.labels.is_none();
        if is_own {
            run.select(task)?;
        } else {
            let mut config = run.config().clone();
            config.task.clone_from(task);
            config.template = None;
            config.labels.clone_from(&self.labels);
            run.set_task(train::task(&config)?)?;
        }
        done(self.evaluate_task(&run, found, saved, is_own)?);
        Ok(())
    }

    /// Evaluates the selected task, and keeps what came of it if task and data are the run's own.
    fn evaluate_task<B: Backend>(
        &self,
        run: &TrainedRun<'_, B>,
        found: &FoundRun,
        saved: &RunManifest,
        is_own_task: bool,
    ) -> Result<Evaluated> {
        let names: Vec<&str> = run.tasks().iter().map(|task| task.name.as_str()).collect();
        let own = match names.len() {
            0 | 1 => run.config().data.clone(),
            _ => data_of_task(&run.config().data, &names, &run.task().name)?,
        };
        let data = match &self.data {
            Some(data) if names.len() > 1 && self.task.is_none() => {
                refuse_without(data, &names, &run.task().name)?;
                data_of_task(data, &names, &run.task().name)?
            }
            Some(data) => data.clone(),
            None => own.clone(),
        };
        let decoding = self.decoding.unwrap_or(saved.config.decoding);
        let name = &run.task().name;
        if decoding == Decoding::Labels && run.task().labels().is_none() {
            eprintln!("warning: --decoding labels has no effect on {name}: it has no labels to choose from");
        }
        let mut remarks: Vec<String> = run.remark(&data, self.split)?.into_iter().collect();
        let bar = progress::bar(0, "evaluation");
        let evaluation = run.evaluate(&data, self.split, decoding, &mut |done, examples| {
            bar.set_length(examples as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let Counts { truncated_sources, longest_source, .. } = evaluation.counts;
        if truncated_sources > 0 {
            let (sources, most) = (counted(truncated_sources, "source"), run.config().max_source_length);
            remarks.push(format!(
                "warning: {sources} of {name} {} truncated to {most} tokens, as in training (the longest had {longest_source})",
                if truncated_sources == 1 { "was" } else { "were" }
            ));
        }
        if is_own_task && is_same_place(&data, &own) {
            let record = EvaluationRecord::new(run, &data, self.split, decoding, &evaluation);
            // A folder of others may be there to be read alone; what was found is printed all the same.
            if let Err(error) = Evaluations::store(&found.path, record) {
                eprintln!("warning: this is not kept in evaluation.json: {error}");
            }
        } else {
            let what = if is_own_task { "data" } else { "task" };
            eprintln!("not kept in evaluation.json: it is not the run's own {what}");
        }
        Ok(Evaluated {
            task: run.task().name.clone(),
            prompts: run.prompts(),
            remark: (!remarks.is_empty()).then(|| remarks.join("\n")),
            constant_warning: run.constant_warning(&evaluation),
            evaluation,
        })
    }

    /// Prints all that was found for a task; `run` names the run where there are several.
    fn print(&self, run: Option<&str>, evaluated: &Evaluated) {
        let Evaluated { task, prompts, evaluation, .. } = evaluated;
        let (scores, spread) = (&evaluation.scores, &evaluation.spread);
        if self.json {
            let metrics: serde_json::Map<String, serde_json::Value> =
                scores.values.iter().map(|(metric, value)| (metric.to_string(), (*value).into())).collect();
            let mut json = serde_json::json!({
                "task": task, "split": self.split.name(), "examples": scores.examples,
                "invalid": scores.invalid, "metrics": metrics, "prompts": prompts, "attention": spread.mean,
                "attention_std": spread.standard_deviation, "attention_minority": spread.minority,
            });
            if let Some(run) = run {
                json["run"] = run.into();
            }
            println!("{json}");
            return;
        }
        println!("{task} {}: {}", self.split, counted(scores.examples, "example"));
        for (metric, value) in &scores.values {
            match value {
                Some(value) => println!("  {metric:<16} {value:.4}"),
                None => println!("  {metric:<16} undefined: the answers or the references are all alike"),
            }
        }
        if scores.invalid > 0 {
            let are = if scores.invalid == 1 { "is" } else { "are" };
            println!("  {} {are} no label of the task", counted(scores.invalid, "answer"));
        }
        for ((name, weight), deviation) in prompts.iter().zip(&spread.mean).zip(&spread.standard_deviation) {
            println!("  attention {weight:.4} ± {deviation:.4}  {name}");
        }
        if spread.commonest.is_some() {
            println!("  {}", spread.describe_largest(prompts));
        }
        if let Some(warning) = &evaluated.constant_warning {
            eprintln!("warning: {warning}");
        }
    }
}

/// What a study chose on validation rows.
struct Choice {
    /// The folders of its runs on targets.
    runs: BTreeSet<PathBuf>,
    /// Those of them that were chosen.
    chosen: BTreeSet<PathBuf>,
}

impl Choice {
    /// That of the study that `folder` is of, or a folder in one.
    fn of(folder: &Path) -> Option<Self> {
        let whole = folder.canonicalize().ok()?;
        whole.ancestors().take(LEVELS).find_map(|study| {
            // Another program's file of that name is no study's.
            let comparison: Comparison = files::read_json(&study.join(RESULTS), "", "").ok()??;
            let methods = || comparison.targets.iter().flat_map(|target| &target.methods);
            let place = |run: &PathBuf| study.join(run);
            Some(Self {
                runs: methods().flat_map(|method| &method.runs).map(|(run, ..)| place(run)).collect(),
                chosen: methods().flat_map(|method| &method.chosen).map(place).collect(),
            })
        })
    }

    fn took(&self, run: &FoundRun) -> bool {
        run.path.canonicalize().is_ok_and(|path| self.chosen.contains(&path))
    }

    /// What test figures of `found` must not be used for, if runs are among them that were not chosen.
    fn remark(&self, found: &[FoundRun]) -> Option<String> {
        let paths: Vec<PathBuf> = found.iter().filter_map(|run| run.path.canonicalize().ok()).collect();
        let all = paths.iter().filter(|path| self.runs.contains(*path)).count();
        let others = all - paths.iter().filter(|path| self.chosen.contains(*path)).count();
        (others > 0).then(|| {
            format!(
                "validation rows chose {} of the study's {all} runs that are here, and not the other {others}: to choose by test \
                 figures among these is to choose on test rows",
                all - others
            )
        })
    }
}

/// Whether two paths lead to the same folder; of the hub's data sets, which are no folders, by their names.
fn is_same_place(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole(one) == whole(other)
}

/// What the tasks of a run came to, in a line.
fn line(tasks: &[Evaluated]) -> String {
    let of_task = |evaluated: &Evaluated| {
        let scores = &evaluated.evaluation.scores;
        let mut text = evaluated.task.clone();
        for (metric, value) in &scores.values {
            match value {
                Some(value) => text.push_str(&format!(" {metric} {value:.4}")),
                None => text.push_str(&format!(" {metric} undefined")),
            }
        }
        if scores.invalid > 0 {
            text.push_str(&format!(" ({} of {} answers are no label)", scores.invalid, scores.examples));
        }
        text
    };
    tasks.iter().map(of_task).collect::<Vec<_>>().join("  ")
}

/// Prints mean and standard deviation of every metric of every task over the runs that have it.
fn summarise(results: &[(usize, Vec<Evaluated>)], saved: &[RunManifest]) {
    let mut columns: Vec<(&str, String)> = Vec::new();
    for evaluated in results.iter().flat_map(|(_, tasks)| tasks) {
        for (metric, _) in &evaluated.evaluation.scores.values {
            let column = (evaluated.task.as_str(), metric.to_string());
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
    }
    let mut differing: Vec<String> = Vec::new();
    for (task, metric) in &columns {
        let having: Vec<(&RunManifest, &Evaluated)> = results
            .iter()
            .filter_map(|(place, tasks)| {
                Some((&saved[*place], tasks.iter().find(|evaluated| evaluated.task == *task)?))
            })
            .collect();
        let value = |evaluated: &Evaluated| {
            let mut values = evaluated.evaluation.scores.values.iter();
            values.find(|(other, _)| other.to_string() == *metric)?.1
        };
        let values: Vec<f64> = having.iter().filter_map(|(_, evaluated)| value(evaluated)).collect();
        let of = match having.len() {
            all if all == values.len() => counted(all, "run"),
            all => format!("the {} of {all} runs where it is defined", values.len()),
        };
        if values.is_empty() {
            println!("{task} {metric}: undefined in {}", counted(having.len(), "run"));
        } else {
            let Spread { mean, deviation, .. } = Spread::new(*task, &values);
            match values.len() {
                1 => println!("{task} {metric}: {mean:.4} in {of}"),
                _ => println!("{task} {metric}: mean {mean:.4}, standard deviation {deviation:.4} over {of}"),
            }
        }
        let runs: Vec<&RunManifest> = having.iter().map(|(saved, _)| *saved).collect();
        for setting in differing_settings(&runs) {
            if !differing.contains(&setting) {
                differing.push(setting);
            }
        }
    }
    if !differing.is_empty() {
        println!(
            "these runs differ in more than their seeds: {}; promptmix report shows each such group apart",
            differing.join(", ")
        );
    }
}
