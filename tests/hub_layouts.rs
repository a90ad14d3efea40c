//! Every known task from its own data set on the hub, in the layout that the hub has it in. The hub is a server in this process,
//! its data sets are generated.
#![cfg(all(feature = "cli", feature = "hub", feature = "parquet"))]

use std::path::Path;
use std::sync::Arc;

use promptmix::data::{Split, SplitSource, Splits, data_of_task, data_of_tasks};
use promptmix::pretrained::T5Config;
use promptmix::tasks::{HubData, Purpose, Row, SplitRule, Target, Task, names};
use serde_json::Value;
use tempfile::TempDir;

#[path = "common/hub_data.rs"]
mod hub_data;
#[path = "common/parquet_rows.rs"]
mod parquet_rows;
#[path = "common/program.rs"]
mod program;
#[path = "common/stand_in_hub.rs"]
mod stand_in_hub;
#[expect(dead_code, reason = "one small model is enough here")]
#[path = "pretrained/tiny_checkpoint.rs"]
mod tiny_checkpoint;

use hub_data::{DataSet, FEW, MANY, Place, TEST, VALIDATION, data_set, of_task};
use stand_in_hub::{Files, StandInHub, commit_of_data};

/// A hub, and an empty cache to fetch into.
struct Setting {
    hub: StandInHub,
    cache: TempDir,
}

impl Setting {
    fn of<'a>(tasks: impl IntoIterator<Item = &'a str>) -> Self {
        let hub = StandInHub::start();
        hub_data::put(&hub, tasks);
        Self { hub, cache: tempfile::tempdir().expect("a folder") }
    }

    /// Puts a small T5 that reads bytes there, as `owner/tiny`.
    fn put_tiny_model(&self) {
        let mut config = T5Config::new(384, 8, 3, 10, 2, 5);
        config.num_decoder_layers = 1;
        let weights = tiny_checkpoint::tensors(&config);
        let files = Files::from([
            ("config.json".to_owned(), tiny_checkpoint::config_json(&config).into_bytes()),
            (
                "model.safetensors".to_owned(),
                tiny_checkpoint::safetensors_bytes(&weights, safetensors::Dtype::F32),
            ),
            ("tokenizer_config.json".to_owned(), br#"{"tokenizer_class": "ByT5Tokenizer"}"#.to_vec()),
        ]);
        self.hub.model("owner/tiny", files);
    }

    /// Whether the program succeeds with these arguments, and what it says.
    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = program::promptmix();
        command
            .args(arguments)
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_TOKEN")
            .env_remove("HF_HUB_OFFLINE");
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HOME", self.cache.path());
        let output = command.output().expect("the binary runs");
        let texts = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(!texts[1].contains("panicked"), "{arguments:?}: {}", texts[1]);
        (output.status.success(), texts.concat())
    }

    fn success(&self, arguments: &[&str]) -> String {
        let (success, said) = self.run(arguments);
        assert!(success, "{arguments:?}: {said}");
        said
    }

    fn error(&self, arguments: &[&str]) -> String {
        let (success, said) = self.run(arguments);
        assert!(!success, "{arguments:?}: {said}");
        said
    }
}

/// How many rows train, validate and test, as `tasks --show` prints it; 0 for a split that it does not.
fn sizes(said: &str) -> [usize; 3] {
    ["train", "validation", "test"].map(|split| {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("{split:<10} ")));
        line.and_then(|line| line.split(' ').next()).map_or(0, |count| count.parse().unwrap_or(0))
    })
}

/// The rows of the task in a split's file.
fn count(data: &DataSet, task: &Task, split: &str) -> usize {
    data.rows(split).map_or(0, |rows| of_task(task, rows).count())
}

/// What the first three examples of a split's file say.
fn first_examples(data: &DataSet, task: &Task, split: &str) -> Vec<String> {
    let rows = of_task(task, data.rows(split).expect("a file"));
    let examples = rows.flat_map(|fields| {
        let Value::Object(fields) = fields.clone() else { panic!("a row is an object") };
        let row = Row::new(fields, Arc::from(Path::new("rows")), 1);
        task.examples(&row, Purpose::Evaluation).expect("labelled")
    });
    examples.take(3).map(|example| format!("  {}\n  -> {}\n", example.source, example.target)).collect()
}

#[test]
fn every_known_task_reads_its_own_data_set_of_the_hub() {
    let setting = Setting::of(names());
    for name in names() {
        let (task, data) = (Task::named(name).expect("a task"), data_set(name));
        let own = task.hub.as_ref().expect("a data set");
        assert_eq!(own.id, data.id, "{name}");
        let show = ["tasks", "--show", name, "--data", "hub:"];
        let said = setting.success(&[&show[..], &["--splits", "hub"]].concat());
        // Which revision it is: the conversion where the default branch has a script alone.
        let revision = if data.place == Place::Converted { "refs/convert/parquet" } else { "main" };
        let folder = match data.place {
            Place::Root => data.id.to_owned(),
            _ => format!("{}/{}", data.id, data.configuration),
        };
        let origin =
            format!("hub: {folder} at {revision}, commit {}", &commit_of_data(data.id, revision)[..12]);
        assert!(said.contains(&origin), "{name}: no {origin:?} in {said}");
        // Where the hub has no rows to validate on, some of those that train are drawn for it.
        let holds_out =
            matches!(task.split, SplitRule::HoldOutTraining { .. }) && data.rows("validation").is_none();
        let examples = first_examples(&data, &task, "train");
        assert_eq!(examples.len(), 3);
        for example in examples.iter().filter(|_| !holds_out) {
            assert!(said.contains(example), "{name}: no {example:?} in {said}");
        }
        // The files by their names.
        let of = |split: &str| count(&data, &task, split);
        let by_files = match task.split {
            SplitRule::MatchedAndMismatched => [of("train"), of("validation_mismatched"), of("test_matched")],
            _ if holds_out => [MANY - 1_000, 1_000, TEST],
            _ => [of("train"), of("validation"), of("test")],
        };
        assert_eq!(sizes(&said), by_files, "{name}: {said}");
        // The paper's rule.
        let by_rule = match task.split {
            SplitRule::HalveValidation => [FEW, VALIDATION / 2, VALIDATION / 2],
            SplitRule::HoldOutTraining { .. } if data.rows("validation").is_some() => {
                [MANY - 1_000, 1_000, VALIDATION]
            }
            SplitRule::HoldOutTraining { .. } => [MANY - 1_000, 1_000, TEST],
            SplitRule::MatchedAndMismatched => [FEW, VALIDATION + 2, VALIDATION],
            _ => by_files,
        };
        for paper in [&["--split-validation-test"][..], &["--splits", "paper"], &[]] {
            let said = setting.success(&[&show[..], paper].concat());
            assert_eq!(sizes(&said), by_rule, "{name}, {paper:?}: {said}");
        }
        // The same data set, named; files that were fetched have no rule of their own.
        let said = setting.success(&["tasks", "--show", name, "--data", &own.address()]);
        assert_eq!(sizes(&said), by_rule, "{name}: {said}");
    }
}

#[test]
fn rows_of_a_test_file_with_hidden_labels_are_refused_with_what_makes_others() {
    let setting = Setting::of(names());
    for name in names() {
        let (task, data) = (Task::named(name).expect("a task"), data_set(name));
        let has_test = data.splits.iter().any(|(split, _)| split.starts_with("test"));
        let show = ["tasks", "--show", name, "--data", "hub:", "--split", "test", "--splits", "hub"];
        let (shown, said) = setting.run(&show);
        // What the task's own lines say of the flag is no advice.
        let said = if shown { &said } else { said.split_once("error: ").expect("an error").1 };
        let is_foreign = task.condition.is_some();
        // Answers that are missing are those of ReCoRD where no one looks at the rows together.
        let is_hidden = data.hides_test_labels && name != "superglue-record";
        assert_eq!(shown, has_test && !is_hidden && !is_foreign, "{name}: {said}");
        if is_hidden {
            assert!(said.contains("stands for a hidden label"), "{name}: {said}");
        }
        if task.split == SplitRule::Files {
            assert!(shown || !said.contains("--split-validation-test"), "it would be of no use: {said}");
            continue;
        }
        assert!(shown || said.contains("--split-validation-test"), "{name}: {said}");
        let said = setting.success(&["tasks", "--show", name, "--data", "hub:", "--split", "test"]);
        assert!(said.contains("  -> "), "{name}: {said}");
    }
}

/// What docs/tasks.md and the list call the split rule of a task.
fn rule(task: &Task) -> &'static str {
    match task.split {
        SplitRule::HalveValidation => "halve",
        SplitRule::HoldOutTraining { .. } => "hold out",
        SplitRule::MatchedAndMismatched => "matched and mismatched",
        _ => "files",
    }
}

#[test]
fn the_list_of_tasks_and_each_task_name_their_data_set_and_what_labels_mean() {
    let setting = Setting::of([]);
    let list = setting.success(&["tasks"]);
    let widest = list.lines().max_by_key(|line| line.len()).expect("lines");
    assert!(widest.len() <= 120, "{} columns: {widest}", widest.len());
    for name in names() {
        let task = Task::named(name).expect("a task");
        let hub = task.hub.as_ref().expect("a data set");
        let mut lines = list.lines().skip_while(|line| !line.starts_with(&format!("{name} ")));
        let [line, labels] = [lines.next().expect(name), lines.next().expect(name)];
        let columns: Vec<&str> =
            line.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
        let of = hub.configuration.as_deref().unwrap_or("the only one");
        // Where a name is as wide as its column, one space parts it from the next.
        assert_eq!(columns.join(" "), format!("{name} {} {of} {}", hub.id, rule(&task)));
        if let Target::Classes { classes, .. } = &task.target {
            for class in classes {
                let said = format!("{} {}", class.label, class.meaning.as_deref().expect("a meaning"));
                assert!(labels.contains(&said), "{said} in {labels}");
            }
        }
        let shown = setting.success(&["tasks", "--show", name]);
        assert!(shown.contains(&task.hub.as_ref().expect("a data set").id), "{shown}");
        // Labels are digits: each says what it stands for.
        for label in task.labels().filter(|_| task.class_count().is_some()).unwrap_or_default() {
            assert!(shown.contains(&format!("\n         {label} means ")), "{label} of {shown}");
        }
    }
    let shown = setting.success(&["tasks", "--show", "superglue-cb"]);
    assert!(shown.contains("1 means contradiction, `label` 1"), "unlike MNLI: {shown}");
    let shown = setting.success(&["tasks", "--show", "scitail"]);
    assert!(shown.contains("0 means entailment, `gold_label` or `label` entailment or entails"), "{shown}");
    assert!(shown.contains("allenai/scitail, configuration snli_format"), "{shown}");
    assert_eq!(setting.hub.asked(), Vec::<String>::new(), "nobody is asked without --data");

    let unknown = setting.error(&["tasks", "--show", "nosuch"]);
    assert!(unknown.contains("a task file") && !unknown.contains("--template"), "{unknown}");
    let folder = setting.cache.path();
    std::fs::write(folder.join("mine.toml"), "source = \"{text}\"\nlabels = \"a,b\"").expect("written");
    let mine = folder.join("mine.toml").display().to_string();
    let none = setting.error(&["tasks", "--show", &mine, "--data", "hub:"]);
    assert!(none.contains("mine has no data set of its own on the hub"), "{none}");
}

#[test]
fn the_page_on_tasks_has_a_row_for_each_with_its_data_set_and_columns() {
    let page = std::fs::read_to_string("docs/tasks.md").expect("the page");
    let rows: Vec<Vec<&str>> = page.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    for name in names() {
        let task = Task::named(name).expect("a task");
        let is_its = |row: &&Vec<&str>| {
            let first = row.get(1).map_or("", |cell| cell.trim_matches(['[', ']']));
            row.len() == 10 && first.split(", ").any(|other| other == name)
        };
        let row = rows.iter().find(is_its).unwrap_or_else(|| panic!("{name} has no row"));
        let hub = task.hub.as_ref().expect("a data set");
        assert_eq!(
            (row[2], row[3]),
            (&*hub.id, hub.configuration.as_deref().unwrap_or("the only one")),
            "{name}"
        );
        for column in task.columns() {
            let is_there = |column: &String| row[5].split([',', ' ', '.']).any(|other| other == column);
            assert!(column.iter().any(is_there), "{name}: {column:?} in {}", row[5]);
        }
        assert_eq!(row[7], rule(&task), "{name}");
        if let Target::Classes { classes, .. } = &task.target {
            // Digits in their order; words as they are written.
            for class in classes.iter().filter(|class| class.values.contains(&class.label)) {
                let meaning = class.meaning.as_deref().expect("a meaning");
                let said = format!("{} {meaning}", class.label);
                assert!(row[6].contains(&said), "{name}: {said} in {}", row[6]);
            }
        }
    }
}

#[test]
fn a_task_file_names_its_data_set_and_a_revision_of_it() {
    let setting = Setting::of(["piqa"]);
    let source = "source = \"{goal}\"\nlabels = \"a,b\"\n";
    let parse = |text: &str| Task::parse_toml(Path::new("mine.toml"), &format!("{source}{text}"));
    let task = parse("hub = \"ybisk/piqa/plain_text@refs/convert/parquet\"").expect("a task");
    let hub = task.hub.clone().expect("a data set");
    let expected = HubData {
        id: "ybisk/piqa".to_owned(),
        configuration: Some("plain_text".to_owned()),
        revision: Some("refs/convert/parquet".to_owned()),
    };
    assert_eq!(hub, expected);
    assert_eq!(task.place(Path::new("hub:")).expect("its own"), Path::new(&hub.address()));
    assert_eq!(task.place(Path::new("hub:a/b")).expect("another"), Path::new("hub:a/b"));
    for wrong in ["piqa", "a/", "a/b@", "/b", "a/b/", "a b/c", "hub:a/b", ""] {
        let error = parse(&format!("hub = \"{wrong}\"")).expect_err(wrong).to_string();
        assert!(error.contains("owner/name/configuration") && error.contains("line 3"), "{wrong}: {error}");
    }
    let file = setting.cache.path().join("mine.toml");
    let text = format!("{source}hub = \"ybisk/piqa@refs/convert/parquet\"");
    std::fs::write(&file, text).expect("written");
    let said = setting.success(&["tasks", "--show", &file.display().to_string(), "--data", "hub:"]);
    assert!(said.contains("hub: ybisk/piqa/plain_text at refs/convert/parquet, commit"), "{said}");
    assert_eq!(sizes(&said), [FEW, VALIDATION, TEST]);
}

#[test]
fn a_model_and_its_data_come_from_the_hub_in_one_run() {
    let setting = Setting::of(["rte"]);
    setting.put_tiny_model();
    let shown = setting.success(&["tasks", "--show", "rte", "--data", "hub:", "--model", "owner/tiny"]);
    assert!(shown.contains("source tokens of 36 examples"), "{shown}");
    let run = |name: &str| setting.cache.path().join(name).display().to_string();
    let train = |name: &str, more: &[&str]| {
        let out = run(name);
        let of_run = ["train", "--task", "rte", "--data", "hub:", "--model", "owner/tiny", "--out", &out];
        let small =
            ["--method", "prompt-tuning", "--steps", "1", "--batch-size", "2", "--prompt-length", "2"];
        setting.success(&[&of_run[..], &small, more, &["--device", "cpu"]].concat())
    };
    let said = train("run", &[]);
    assert!(said.contains("hub: nyu-mll/glue/rte at main, commit"), "{said}");
    assert!(said.contains("rte has the paper's splits") && said.contains("--splits hub"), "{said}");
    assert!(said.contains("36 examples from 36 rows"), "{said}");
    let evaluate = ["--device", "cpu", "--split"];
    let evaluated = |name: &str, split: &str| {
        setting.success(&[&["evaluate", "--run", &run(name)], &evaluate[..], &[split]].concat())
    };
    for split in ["validation", "test"] {
        let said = evaluated("run", split);
        assert!(said.contains(&format!("rte {split}: 12 examples")), "a half of 24: {said}");
    }
    let said = train("by-names", &["--splits", "hub"]);
    assert!(!said.contains("the paper's splits"), "{said}");
    let hidden =
        setting.error(&[&["evaluate", "--run", &run("by-names")], &evaluate[..], &["test"]].concat());
    assert!(hidden.contains("-1 stands for a hidden label: --split-validation-test"), "{hidden}");
    // Folders of before, when the names of the files were the default, stay with them.
    let file = Path::new(&run("by-names")).join("run.json");
    let of_now = std::fs::read_to_string(&file).expect("run.json");
    let mut manifest: Value = serde_json::from_str(&of_now).expect("JSON");
    manifest["config"].as_object_mut().expect("settings").remove("splits").expect("as it was given");
    assert_eq!(manifest["effective"]["splits"], "hub");
    for (has_effective, steps) in [(true, "2"), (false, "3")] {
        if !has_effective {
            manifest.as_object_mut().expect("a table").remove("effective").expect("settings");
        }
        std::fs::write(&file, manifest.to_string()).expect("written");
        assert!(evaluated("by-names", "validation").contains("rte validation: 24 examples"), "all");
        setting.success(&[
            "train",
            "--out",
            &run("by-names"),
            "--resume",
            "--steps",
            steps,
            "--device",
            "cpu",
        ]);
    }
}

#[test]
fn each_of_several_tasks_may_have_a_place_of_its_own() {
    let places = |data: &str, names: &[&str]| -> Vec<String> {
        let places = data_of_tasks(data, names).expect(data);
        places.iter().map(|place| place.display().to_string()).collect()
    };
    assert_eq!(places("data", &["a", "b"]), ["data/a", "data/b"]);
    assert_eq!(places("data", &["a"]), ["data"]);
    assert_eq!(places("hub:", &["a", "b"]), ["hub:", "hub:"]);
    assert_eq!(
        places("hub:nyu-mll/glue", &["rte", "mrpc"]),
        ["hub:nyu-mll/glue/rte", "hub:nyu-mll/glue/mrpc"]
    );
    assert_eq!(places("hub:o/n@refs/pr/1", &["a", "b"]), ["hub:o/n/a@refs/pr/1", "hub:o/n/b@refs/pr/1"]);
    assert_eq!(places("hub:, x/y ,hub:o/n/c@v1", &["a", "b", "c"]), ["hub:", "x/y", "hub:o/n/c@v1"]);
    assert_eq!(places("one,whole", &["a"]), ["one,whole"], "one task has all of it");
    let folder = tempfile::tempdir().expect("a folder");
    let comma = folder.path().join("x,y");
    std::fs::create_dir(&comma).expect("made");
    let comma = comma.display().to_string();
    assert_eq!(places(&comma, &["a", "b"]), [format!("{comma}/a"), format!("{comma}/b")]);
    assert_eq!(data_of_task(Path::new("x,hub:"), &["a", "b"], "b").expect("the second"), Path::new("hub:"));
    for (data, said) in
        [("a,b", "2 in \"a,b\""), ("a,b,", "an empty one"), ("a,b,c,d", "4 in"), (",,", "an empty one")]
    {
        let error = data_of_tasks(data, &["sst2", "rte", "mine"]).expect_err(data).to_string();
        assert!(error.contains("3 entries") && error.contains("sst2, rte, mine"), "{data}: {error}");
        assert!(error.contains(said), "{data}: {error}");
    }
    assert!(data_of_task(Path::new("a,b"), &["x", "y"], "z").is_err());
}

#[test]
fn splits_are_the_papers_or_the_hubs() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, rows: usize| {
        let row = "{\"premise\": \"p\", \"hypothesis\": \"h\", \"label\": 0}\n";
        std::fs::write(folder.path().join(name), row.repeat(rows)).expect("written");
    };
    let sizes = |task: &str, source: SplitSource| {
        let task = Task::named(task).expect("a task");
        let splits = Splits::of_task(folder.path(), &task, source).expect("splits");
        [Split::Train, Split::Validation, Split::Test]
            .map(|split| splits.get(split).expect("a split").row_count().expect("counted"))
    };
    write("train.jsonl", 1_004);
    write("validation.jsonl", 6);
    write("test.jsonl", 9);
    assert_eq!(sizes("snli", SplitSource::Paper), [4, 1_000, 6]);
    assert_eq!(sizes("snli", SplitSource::Hub), [1_004, 6, 9]);
    assert_eq!(sizes("superglue-cb", SplitSource::Paper), [1_004, 3, 3]);
    assert_eq!(sizes("superglue-cb", SplitSource::Hub), [1_004, 6, 9]);
    // The flag is the one or the other.
    assert_eq!((SplitSource::from(true), SplitSource::from(false)), (SplitSource::Paper, SplitSource::Hub));
    assert_eq!(
        ("paper".parse().ok(), "hub".parse().ok()),
        (Some(SplitSource::Paper), Some(SplitSource::Hub))
    );
    assert!("files".parse::<SplitSource>().expect_err("neither").to_string().contains("paper, hub"));

    for name in ["validation.jsonl", "test.jsonl"] {
        std::fs::remove_file(folder.path().join(name)).expect("removed");
    }
    write("validation_matched.jsonl", 3);
    write("validation_mismatched.jsonl", 5);
    write("test_matched.jsonl", 7);
    assert_eq!(sizes("mnli", SplitSource::Paper), [1_004, 5, 3]);
    assert_eq!(sizes("mnli", SplitSource::Hub), [1_004, 5, 7]);
    // Without a test file a validation file tests.
    std::fs::remove_file(folder.path().join("test_matched.jsonl")).expect("removed");
    assert_eq!(sizes("mnli", SplitSource::Hub), [1_004, 5, 3]);
}

#[test]
fn trainings_side_by_side_fetch_each_file_once() {
    let setting = Setting::of(["rte"]);
    setting.put_tiny_model();
    let mut study = String::from(
        "model = \"owner/tiny\"\ntask = \"rte\"\ndata = \"hub:\"\nsplits = \"paper\"\nsteps = 1\nprompt-length = 2\n\
         batch-size = 2\n[study]\nseeds = [1]\nlearning-rates = [0.3]\n[[study.target]]\nname = \"rte\"\n\
         [[study.method]]\nname = \"prompt tuning\"\nmethod = \"prompt-tuning\"\n",
    );
    (0..8).for_each(|source| study += &format!("[[study.source]]\nname = \"source {source}\"\n"));
    let [file, out] = ["study.toml", "out"].map(|name| setting.cache.path().join(name).display().to_string());
    std::fs::write(&file, study).expect("written");
    setting.success(&["compare", &file, "--threads", "8", "--out", &out]);
    let asked = setting.hub.asked();
    let fetched: Vec<&String> = asked.iter().filter(|path| path.contains(".parquet")).collect();
    let distinct: std::collections::BTreeSet<&String> = fetched.iter().copied().collect();
    assert!(distinct.len() >= 2, "{asked:?}");
    // Once for what the file is, once for what is in it.
    assert_eq!(fetched.len(), 2 * distinct.len(), "{fetched:?}");
}

/// The paper's tables from the hub's own layouts, start to end, but for the size of the model and the number of steps and seeds.
#[test]
fn the_papers_studies_go_from_the_hub_to_their_tables() {
    let setting = Setting::of(names());
    setting.put_tiny_model();
    let studies = Path::new(env!("CARGO_MANIFEST_DIR")).join("studies");
    for (study, targets, published) in [
        ("paper", 21, &["(published 0.857)", "(published 0.921)"][..]),
        ("paper-multi-task", 4, &["(published 0.852)", "(published 0.741)"]),
        ("paper-few-shot", 9, &[]),
        ("paper-ablations", 3, &[]),
        ("paper-sizes", 3, &[]),
    ] {
        let text = std::fs::read_to_string(studies.join(format!("{study}.toml"))).expect("a study");
        let epochs = ["epochs = 1\n", "epochs = 10\n", "epochs = 20\n", "steps = 300\n"];
        let text = epochs.iter().fold(text, |text, epochs| text.replace(epochs, "steps = 1\n"));
        let text = text.replace("seeds = [42, 43, 44, 45, 46]", "seeds = [42, 43]");
        assert!(!text.contains("epochs") && text.contains("model = \"google-t5/t5-base\""), "{text}");
        let small = "prompt-length = 2\nbottleneck-dim = 2\nbatch-size = 2\nmax-source-length = 32\nvalidation-rows = 4\n";
        let file = setting.cache.path().join(format!("{study}.toml"));
        std::fs::write(&file, format!("{small}{text}")).expect("written");
        let out = setting.cache.path().join(study);
        let [file, out] = [&file, &out].map(|path| path.display().to_string());
        let said = setting.success(&["compare", &file, "--model", "owner/tiny", "--out", &out]);
        let rows: Vec<&str> = said
            .lines()
            .skip_while(|line| !line.starts_with("| target | metric"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert_eq!(rows.len(), targets, "{said}");
        for row in rows {
            assert!(
                !row.contains("NaN") || study != "paper" || row.contains("stsb") || row.contains("matthews"),
                "{row}"
            );
        }
        for published in published {
            assert!(said.contains(published), "{study}: no {published} in {said}");
        }
        assert!(Path::new(&out).join("table.md").is_file());
        if study == "paper-multi-task" {
            let config = |run: &str| {
                let path = Path::new(&out).join(run).join("run.json");
                let run: Value = serde_json::from_slice(&std::fs::read(path).expect("a run")).expect("JSON");
                run["config"].clone()
            };
            // The scorer is trained on the sources' own tasks; the method that asks for it starts from it, the other does not.
            let scorer = config("scorer");
            assert_eq!(scorer["task"], "mnli,qnli,qqp,sst2,squad,superglue-record");
            assert_eq!(scorer["pretrain-scorer"], true);
            assert_eq!(config("runs/glue/attempt-rate-0.3-seed-42")["initial-scorer"], Value::Null);
            let trained = config("runs/glue/attempt-trained-scorer-rate-0.3-seed-42");
            assert!(trained["initial-scorer"].as_str().expect("a scorer").ends_with("scorer"), "{trained}");
            assert_eq!(trained["splits"], "paper");
        }
    }
}
