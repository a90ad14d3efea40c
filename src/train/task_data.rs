//! One task of a run: its training and validation examples.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Monitor;
use crate::backend::Backend;
use crate::config::{Decoding, RunConfig};
use crate::data::{
    ExampleSettings, Examples, FewShot, Part, Split, SplitSource, Splits, data_of_tasks, is_split_file,
};
use crate::error::{Error, Result};
use crate::evaluate::Spellings;
use crate::model::Frozen;
use crate::pretrained::{FoundData, find_data};
use crate::prompts::Prompt;
use crate::tasks::{Purpose, SplitRule, Task};

/// A task and its tokenised rows.
pub(super) struct TaskData {
    pub(super) task: Task,
    /// Where its rows lie: a folder, or a data set of the hub.
    pub(super) place: PathBuf,
    pub(super) training: Examples,
    pub(super) validation: Examples,
    /// Tokens of an answer at most.
    pub(super) longest_target: usize,
}

impl TaskData {
    /// Reads and tokenises the rows of `task` that `config` asks for.
    pub(super) fn load<B: Backend>(
        frozen: &Frozen<'_, B>,
        config: &RunConfig,
        task: Task,
        place: PathBuf,
        monitor: &mut dyn Monitor,
    ) -> Result<Self> {
        let tokenizer = &frozen.tokenizer;
        let encode = |text: &str| tokenizer.encode(text);
        let known = config.template.as_ref().and_then(|_| Task::named(&config.task).ok());
        if let Some(known) = known.filter(|known| known.metrics != task.metrics) {
            let names =
                |task: &Task| task.metrics.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
            monitor.note(&format!(
                "--template makes {} a task of one's own, evaluated by {} and not by {}; a task file (promptmix tasks --help) names its metrics",
                task.name,
                names(&task),
                names(&known)
            ));
        }
        for (label, written) in Spellings::new(tokenizer, &task)?.respelled() {
            monitor.note(&format!(
                "the tokenizer writes the label `{}` as `{}`: an answer is the label if it is that",
                label.escape_debug(),
                written.escape_debug()
            ));
        }
        if config.decoding == Decoding::Labels && task.labels().is_none() {
            let name = &task.name;
            monitor.note(&format!(
                "warning: --decoding labels has no effect on {name}: it has no labels to choose from"
            ));
        }
        if let Some(note) = other_tasks(config, &task)? {
            monitor.note(&note);
        }
        let longest_target = longest_target(frozen, config, &task)?;
        let found = find(&task, &place)?;
        if let Some(origin) = &found.origin {
            monitor.note(origin);
        }
        let splits = of_task(config, &task, &place, &found.folder)?;
        if config.split_source().is_none() && task.split != SplitRule::Files && task.owns(&place) {
            monitor.note(&format!(
                "{} has the paper's splits (docs/tasks.md); --splits hub takes its files by their names",
                task.name
            ));
        }
        let all = splits.get(Split::Train)?;
        let draw = |shots, class_balanced| {
            FewShot { shots, class_balanced, seed: config.data_seed() }.draw(all, &task)
        };
        let training_rows = match (config.few_shot, config.training_rows) {
            (Some(shots), _) => draw(shots, config.class_balanced)?,
            (None, Some(most)) if all.row_count()? > most => draw(most, false)?,
            _ => all.clone(),
        };
        let load = |part: &Part, purpose, most: Option<usize>, monitor: &mut dyn Monitor| {
            let mut settings = ExampleSettings::new(config.max_source_length, longest_target, purpose);
            settings.max_rows = most;
            let origin = part.origin();
            // Millions of rows take minutes, in which a user may think better of it.
            let rows = part.rows_for(&task)?.map(|row| {
                if monitor.ends_before_first_step() {
                    return Err(Error::NotBegun { during: format!("rows were read from {origin}") });
                }
                row
            });
            Examples::of_rows(rows, &origin, &task, &encode, &settings)
        };
        let validation_rows = splits.get(Split::Validation)?;
        for (split, part) in [(Split::Train, all), (Split::Validation, validation_rows)] {
            let stem = part.path().file_stem().unwrap_or_default();
            let named = stem.to_string_lossy().starts_with(split.name());
            if !named {
                monitor.note(&format!("{split} rows come from {}", part.origin()));
            }
            if let Some(remark) = part.rows_for(&task)?.remark() {
                monitor.note(remark);
            }
        }
        let training = load(&training_rows, Purpose::Training, None, monitor)?;
        let validation = load(validation_rows, Purpose::Evaluation, config.validation_rows, monitor)?;
        let of = if config.is_multi_task() { format!(" of {}", task.name) } else { String::new() };
        monitor.note(&format!("training{of}: {}", training.counts()));
        monitor.note(&format!("validation{of}: {}", validation.counts()));
        Ok(Self { task, place, training, validation, longest_target })
    }
}

/// SHA-256 over the token ids of `examples`, in order: what a run's numbers depend on.
pub(super) fn sha256<'a>(examples: impl Iterator<Item = &'a Examples>) -> String {
    let mut hasher = Sha256::new();
    let mut side = |ids: Vec<u32>| {
        hasher.update((ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    };
    for examples in examples {
        for row in 0..examples.len() {
            side(examples.source(row));
            side(examples.target(row));
        }
    }
    format!("{:x}", hasher.finalize())
}

/// Looks at the files and the first row of each of `splits` that a run of `config` reads on this machine. Data sets of the hub are not
/// fetched for this.
///
/// # Errors
/// Those of the settings and the data.
pub fn check_data(config: &RunConfig, splits: &[Split]) -> Result<()> {
    let tasks = super::tasks(config)?;
    let names: Vec<&str> = tasks.iter().map(|task| &task.name[..]).collect();
    for (task, place) in tasks.iter().zip(data_of_tasks(&config.data.to_string_lossy(), &names)?) {
        let folder = task.place(&place)?;
        if folder.to_string_lossy().starts_with("hub:") {
            continue;
        }
        let found = of_task(config, task, &place, &folder)?;
        for &split in splits {
            let purpose = if split == Split::Train { Purpose::Training } else { Purpose::Evaluation };
            if let Some(row) = found.get(split)?.rows_for(task)?.next() {
                task.examples(&row?, purpose)?;
            }
        }
    }
    Ok(())
}

/// The rows that the run by `config` would learn from, counted without reading them into examples; `None` where a task's are a data set
/// of the hub, which is not fetched for this.
///
/// # Errors
/// Those of the settings and the data.
#[cfg(feature = "cli")]
pub(crate) fn count_training_rows(config: &RunConfig) -> Result<Option<usize>> {
    let tasks = super::tasks(config)?;
    let names: Vec<&str> = tasks.iter().map(|task| &task.name[..]).collect();
    let mut rows = 0;
    for (task, place) in tasks.iter().zip(data_of_tasks(&config.data.to_string_lossy(), &names)?) {
        let folder = task.place(&place)?;
        if folder.to_string_lossy().starts_with("hub:") {
            return Ok(None);
        }
        let classes = if config.class_balanced { task.class_count().unwrap_or(1) as usize } else { 1 };
        rows += match config.few_shot {
            Some(shots) => shots * classes,
            None => {
                let all = open_splits(config, task, &folder)?.get(Split::Train)?.row_count()?;
                all.min(config.training_rows.unwrap_or(usize::MAX))
            }
        };
    }
    Ok(Some(rows))
}

/// The splits of a task's data in `folder`, which may be one of the hub's.
pub(super) fn open_splits(config: &RunConfig, task: &Task, folder: &Path) -> Result<Splits> {
    of_task(config, task, folder, &find(task, folder)?.folder)
}

/// The splits of the files in `folder`, which are the data of `task` at `place`.
fn of_task(config: &RunConfig, task: &Task, place: &Path, folder: &Path) -> Result<Splits> {
    Splits::of_task(folder, task, SplitSource::of(config.split_source(), task, place))
}

/// The folder of a task's data, which is fetched if it is one of the hub's.
fn find(task: &Task, folder: &Path) -> Result<FoundData> {
    find_data(&task.place(folder)?, &is_split_file)
}

/// Tokens of an answer of `task` at most.
///
/// # Errors
/// [`Error::Setting`] if `--max-target-length` would cut a label: what is left of it is another word, and answers are compared with
/// whole labels.
pub(super) fn longest_target<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    task: &Task,
) -> Result<usize> {
    let of_labels = task.longest_target(|text: &str| frozen.tokenizer.encode(text))?;
    let Some(length) = config.max_target_length else { return Ok(of_labels) };
    if task.labels().is_some() && length < of_labels {
        return Err(Error::setting(
            "--max-target-length",
            format!("at least {of_labels}, the tokens of the longest label of {}", task.name),
            length.to_string(),
            "leave the flag out: labels say how long a target is",
        ));
    }
    Ok(length)
}

/// The examples of a split of a task's data, to be evaluated.
pub(super) fn split_examples<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    task: &Task,
    folder: &Path,
    split: Split,
    longest_target: usize,
) -> Result<Examples> {
    let splits = open_splits(config, task, folder)?;
    let settings = ExampleSettings::new(config.max_source_length, longest_target, Purpose::Evaluation);
    let tokenizer = &frozen.tokenizer;
    let encode = |text: &str| tokenizer.encode(text);
    Examples::load(splits.get(split)?, task, &encode, &settings)
}

/// What a user should hear who pre-trains a scorer on other tasks than its sources were learnt on; said with the first of the
/// run's tasks.
fn other_tasks(config: &RunConfig, task: &Task) -> Result<Option<String>> {
    if !config.pretrain_scorer {
        return Ok(None);
    }
    let tasks: Vec<String> = super::tasks(config)?.into_iter().map(|task| task.name).collect();
    if tasks.first() != Some(&task.name) {
        return Ok(None);
    }
    let (mut learnt, mut unknown) = (Vec::new(), Vec::new());
    for (path, name) in config.sources.iter().zip(super::source_names(&config.sources)) {
        match Prompt::load(path)?.metadata().task.clone() {
            Some(task) => learnt.push((name, task)),
            None => unknown.push(name),
        }
    }
    let without_source: Vec<&str> = tasks
        .iter()
        .filter(|task| !learnt.iter().any(|(_, other)| other == *task))
        .map(String::as_str)
        .collect();
    let without_rows: Vec<String> = learnt
        .iter()
        .filter(|(_, task)| !tasks.contains(task))
        .map(|(name, task)| if name == task { name.clone() } else { format!("{name} (learnt on {task})") })
        .collect();
    let mut parts = Vec::new();
    if !without_source.is_empty() {
        parts.push(format!("no source prompt is known to be learnt on {}", without_source.join(", ")));
    }
    if !without_rows.is_empty() {
        parts.push(format!("the scorer is not trained on the task of {}", without_rows.join(", ")));
    }
    if !parts.is_empty() && !unknown.is_empty() {
        parts.push(format!("the task of {} is not recorded", unknown.join(", ")));
    }
    let said = |parts: &[String]| {
        format!("warning: --pretrain-scorer is meant for the sources' own tasks: {}", parts.join("; "))
    };
    Ok((!parts.is_empty()).then(|| said(&parts)))
}
