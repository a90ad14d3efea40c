//! `promptmix tasks`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::RunConfig;
use crate::count::counted;
use crate::data::{ExampleSettings, Examples, Part, Split, SplitSource, Splits, is_split_file};
use crate::error::{Error, Result};
use crate::pretrained::{self, T5Config, Tokenizer};
use crate::tasks::{Class, HubData, Purpose, SplitRule, Target, Task, names};

/// Rows that are shown.
const ROWS: usize = 3;
/// Bars of the histogram, and characters of the longest.
const BARS: usize = 12;
const BAR_WIDTH: usize = 40;
/// No source is this long; the histogram counts whole ones.
const NO_LIMIT: usize = 1_000_000_000;

/// Flags of `promptmix tasks`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix tasks
  promptmix tasks --show sst2 --data data/sst2 --model t5-small
  promptmix tasks --show sst2 --data hub:
  promptmix tasks --show piqa --data hub:ybisk/piqa/plain_text@refs/convert/parquet
  promptmix tasks --show reviews.toml --data reviews

A task of your own is a TOML file, which --task and --show take like a name:
  name = \"reviews\"
  source = \"reviews text: {text} product: {product or item}\"
  labels = \"bad,good\"          # for the values 0 and 1; or \"no=bad,yes=good\"; without labels the answer is free text
  label-field = \"stars\"
  metrics = [\"f1\", \"accuracy\"]
  where = \"lang == en or de\"    # rows of the files that are the task's
  hub = \"owner/name/folder\"     # its data set on the hub, for --data hub:
  split = \"halve-validation\"   # or { hold-out-training = { rows = 1000 } }; applied by --splits paper, and by default to --data hub:")]
pub(super) struct Arguments {
    /// Show one task, a name or a .toml file, with rows of --data
    #[arg(long)]
    show: Option<String>,
    /// Folder with the task's train, validation and maybe test; hub: for the task's own data set on the hub, hub:owner/name/folder
    /// for another, either of a revision with @revision after it
    #[arg(long, requires = "show")]
    data: Option<PathBuf>,
    /// Count tokens as the tokenizer of this model does: a folder or hub id
    #[arg(long, requires = "data")]
    model: Option<String>,
    /// train, validation or test
    #[arg(long, default_value = "train")]
    split: Split,
    /// Who says which rows validate and test: the paper's rule for the task, which is the default for its own data set on the hub, or
    /// the files' names
    #[arg(long)]
    splits: Option<SplitSource>,
    /// The same as --splits paper
    #[arg(long)]
    split_validation_test: bool,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        match &self.show {
            Some(name) => self.show(name)?,
            None => list()?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, name: &str) -> Result<()> {
        let task = Task::find(name)?;
        println!("task     {}", task.name);
        println!("source   {}", task.source);
        println!("labels   {}", labels(&task));
        if let Target::Classes { field, classes, unlabelled } = &task.target {
            for class in classes {
                let meaning =
                    class.meaning.as_deref().map_or(String::new(), |meaning| format!(" means {meaning}"));
                println!("         {}{meaning}, {field} {}", class.label, class.values.join(" or "));
            }
            if !unlabelled.is_empty() {
                println!(
                    "         rows with {field} {} have no label and are left out",
                    unlabelled.join(" or ")
                );
            }
        }
        println!("metrics  {}", metrics(&task));
        if let Some(condition) = &task.condition {
            println!("rows     {condition}");
        }
        println!("splits   {}", splits(task.split));
        match &task.hub {
            Some(hub) => {
                println!("hub      {}, configuration {}: --data hub:", hub.id, configuration(hub));
            }
            None => println!("hub      none of its own: --data hub:owner/name"),
        }
        let Some(data) = &self.data else {
            println!("\ngive --data to see rows of it");
            return Ok(());
        };
        let given = self.splits.or(self.split_validation_test.then_some(SplitSource::Paper));
        let source = SplitSource::of(given, &task, data);
        let data = pretrained::find_data(&task.place(data)?, &is_split_file)?;
        if let Some(origin) = &data.origin {
            println!("{origin}");
        }
        let splits = Splits::of_task(&data.folder, &task, source)?;
        for split in [Split::Train, Split::Validation, Split::Test] {
            if let Ok(part) = splits.get(split) {
                match part.row_count() {
                    Ok(rows) => println!("{split:<10} {} of {}", counted(rows, "row"), part.origin()),
                    // The test file of a data set that holds several tasks may have other tasks alone.
                    Err(error) if split != self.split => println!("{split:<10} {error}"),
                    Err(error) => return Err(error),
                }
            }
        }
        let part = splits.get(self.split)?;
        let mut shown = 0;
        let rows = part.rows_for(&task)?;
        if let Some(remark) = rows.remark() {
            println!("{remark}");
        }
        for row in rows {
            let row = row?;
            for example in task.examples(&row, Purpose::Evaluation)? {
                shown += 1;
                println!(
                    "\n{}, line {}\n  {}\n  -> {}",
                    row.path().display(),
                    row.line(),
                    example.source,
                    example.target
                );
            }
            if shown >= ROWS {
                break;
            }
        }
        match &self.model {
            Some(model) => histogram(&task, part, model),
            None => {
                println!("\ngive --model to see how many tokens the sources have");
                Ok(())
            }
        }
    }
}

/// Two lines a task, of at most 120 columns.
fn list() -> Result<()> {
    let line = |name: &str, id: &str, configuration: &str, rule: &str| {
        println!("{name:<20} {id:<30} {configuration:<16} {rule}");
    };
    line("task", "hub id", "configuration", "split rule of --splits paper");
    println!("    labels and what they mean; metrics");
    for name in names() {
        let task = Task::named(name)?;
        let (id, configuration) = match &task.hub {
            Some(hub) => (&hub.id[..], configuration(hub)),
            None => ("none of its own", ""),
        };
        line(name, id, configuration, rule(task.split));
        println!("    {}; {}", meanings(&task), metrics(&task));
    }
    println!("\npromptmix tasks --show NAME shows one, with its source text and what its split rule does");
    Ok(())
}

fn configuration(hub: &HubData) -> &str {
    hub.configuration.as_deref().unwrap_or("the only one")
}

fn metrics(task: &Task) -> String {
    task.metrics.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// A rule in few words, those of docs/tasks.md.
fn rule(rule: SplitRule) -> &'static str {
    match rule {
        SplitRule::HalveValidation => "halve",
        SplitRule::HoldOutTraining { .. } => "hold out",
        SplitRule::MatchedAndMismatched => "matched and mismatched",
        _ => "files",
    }
}

/// A task's labels, each with what it means, or what its answers are.
fn meanings(task: &Task) -> String {
    match &task.target {
        Target::Classes { classes, .. } => {
            let label = |class: &Class| match &class.meaning {
                Some(meaning) => format!("{} {meaning}", class.label),
                None => class.label.clone(),
            };
            classes.iter().map(label).collect::<Vec<_>>().join(", ")
        }
        Target::Number { minimum, maximum, step, .. } => {
            format!("a number from {minimum} to {maximum}, in steps of {step}")
        }
        _ => labels(task),
    }
}

/// What the task's files are, and what its rule makes of them.
fn splits(rule: SplitRule) -> String {
    let with = |what: &str| format!("a file each; with --data hub: or --splits paper {what}");
    match rule {
        SplitRule::HalveValidation => with("one half of the validation file validates and the other tests"),
        SplitRule::HoldOutTraining { rows } => with(&format!(
            "{rows} rows of the training file validate and the validation file tests; so also where there are a training and a test file alone, \
             and then the test file tests"
        )),
        SplitRule::MatchedAndMismatched => {
            "validation_mismatched validates and test, test_matched or validation_matched tests, the first there is; with \
             --data hub: or --splits paper validation_matched tests"
                .to_owned()
        }
        _ => "a file each".to_owned(),
    }
}

fn labels(task: &Task) -> String {
    task.labels().map_or("free answers".to_owned(), |labels| labels.join(" "))
}

/// Prints how many sources have how many tokens, and how many the default limit would cut.
fn histogram(task: &Task, part: &Part, model: &str) -> Result<()> {
    let folder = pretrained::locate(model)?;
    let config = T5Config::read(&config_path(&folder)?)?;
    let tokenizer = Tokenizer::open(&folder, &config)?;
    let encode = |text: &str| tokenizer.encode(text);
    let settings = ExampleSettings::new(NO_LIMIT, NO_LIMIT, Purpose::Training);
    let examples = Examples::load(part, task, &encode, &settings)?;
    let mut lengths: Vec<usize> = (0..examples.len()).map(|index| examples.source_length(index)).collect();
    lengths.sort_unstable();
    let at = |share: f64| lengths[((lengths.len() - 1) as f64 * share) as usize];
    println!(
        "\nsource tokens of {}: {} to {}, half up to {}, 95 % up to {}",
        counted(lengths.len(), "example"),
        at(0.0),
        at(1.0),
        at(0.5),
        at(0.95)
    );
    let width = (at(1.0) + 1).div_ceil(BARS).max(1);
    let mut counts = vec![0_usize; at(1.0) / width + 1];
    for length in &lengths {
        counts[length / width] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    for (bar, count) in counts.iter().enumerate() {
        let marks = "#".repeat((count * BAR_WIDTH).div_ceil(most));
        println!("{:>6} to {:<6} {count:>8} {marks}", bar * width, (bar + 1) * width - 1);
    }
    let limit = RunConfig::default().max_source_length;
    let cut = lengths.len() - lengths.partition_point(|&length| length <= limit);
    println!("longer than the default --max-source-length {limit}, which would lose their end: {cut}");
    println!("target tokens: up to {}", examples.counts().longest_target);
    Ok(())
}

fn config_path(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("config.json");
    if path.is_file() {
        return Ok(path);
    }
    let found = format!("none in {}", folder.display());
    Err(Error::setting("--model", "a model's folder with config.json", found, ""))
}
