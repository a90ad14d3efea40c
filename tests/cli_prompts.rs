//! `promptmix prompts`, several tasks and task files from the command line.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn manifest() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn run(arguments: &[&str]) -> (bool, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_promptmix")).args(arguments).output().expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn success(arguments: &[&str]) -> String {
    let (success, said, errors) = run(arguments);
    assert!(success, "{arguments:?}: {errors}");
    said
}

fn error(arguments: &[&str]) -> String {
    let (success, said, errors) = run(arguments);
    assert!(!success, "{arguments:?} was accepted: {said}");
    assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
    errors
}

struct Work(tempfile::TempDir);

impl Work {
    /// Data of two tasks, one of them from a file.
    fn new() -> Self {
        let work = Self(tempfile::tempdir().expect("a temporary folder"));
        work.write(
            "stars.toml",
            "source = \"stars text: {text}\"\nlabels = \"bad,good\"\nlabel-field = \"stars\"",
        );
        for (task, text, label) in [("sst2", "sentence", "label"), ("stars", "text", "stars")] {
            for (file, count) in [("train", 12), ("validation", 6)] {
                let row =
                    |i: usize| format!("{{\"{text}\": \"a film number {i}\", \"{label}\": {}}}\n", i % 2);
                work.write(&format!("data/{task}/{file}.jsonl"), &(0..count).map(row).collect::<String>());
            }
        }
        work
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, content).expect("written");
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn train(&self, out: &str, more: &[&str]) -> String {
        let (model, out) = (manifest().join("demo").display().to_string(), self.path(out));
        let fixed = ["train", "--model", &model, "--prompt-length", "4", "--steps", "2", "--batch-size", "4"];
        success(&[&fixed[..], &["--decoding", "labels", "--out", &out], more].concat())
    }
}

fn fixture(name: &str) -> String {
    manifest().join("tests/fixtures").join(name).display().to_string()
}

#[test]
fn every_subcommand_has_help_with_an_example() {
    for command in ["list", "show", "add", "remove", "import", "export", "merge"] {
        let help = success(&["prompts", command, "--help"]);
        assert!(help.contains("Example") && help.contains(&format!("promptmix prompts {command}")), "{help}");
    }
    assert!(success(&["prompts", "--help"]).contains("promptmix prompts add"));
}

#[test]
fn a_peft_adapter_is_imported_shown_listed_and_exported_again() {
    let work = Work::new();
    let (tiny, saved) = (fixture("tiny"), fixture("peft/saved"));
    let prompt = work.path("imported.safetensors");
    let said = success(&["prompts", "import", &saved, "--model", &tiny, "--task", "rte", "--out", &prompt]);
    assert!(said.contains("6 rows x 64"), "{said}");
    let shown = success(&["prompts", "show", &prompt, "--model", &tiny]);
    assert!(shown.contains("rte") && shown.contains("a PEFT adapter") && shown.contains("fits"), "{shown}");
    let listed = success(&["prompts", "list", &work.path("")]);
    assert!(listed.lines().count() == 2 && listed.contains("6 x 64"), "{listed}");
    let json = success(&["prompts", "list", "--json", &prompt]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("one line of JSON");
    assert_eq!((&json["length"], &json["task"]), (&6.into(), &"rte".into()));

    let adapter = work.path("adapter");
    success(&["prompts", "export", &prompt, "--model", &tiny, "--out", &adapter]);
    assert!(Path::new(&adapter).join("adapter_config.json").is_file());
    // Of equal width but another model: known by its hash.
    let other = fixture("tiny_v11");
    let message = error(&["prompts", "export", &prompt, "--model", &other, "--out", &work.path("other")]);
    assert!(message.contains("sha256"), "{message}");
    let demo = manifest().join("demo").display().to_string();
    let message =
        error(&["prompts", "import", &saved, "--model", &demo, "--out", &work.path("x.safetensors")]);
    assert!(message.contains("width 256") && message.contains("width 64"), "{message}");
    assert!(!Path::new(&work.path("x.safetensors")).exists());
}

#[test]
fn sources_are_merged_added_and_removed() {
    let work = Work::new();
    let data = work.path("data/sst2");
    for (name, seed) in [("one", "1"), ("two", "2")] {
        work.train(name, &["--task", "sst2", "--data", &data, "--method", "prompt-tuning", "--seed", seed]);
    }
    let [one, two] = ["one", "two"].map(|name| work.path(&format!("{name}/prompt.safetensors")));
    let both = work.path("both.safetensors");
    let said = success(&["prompts", "merge", &one, &two, "--weights", "3,1", "--out", &both]);
    assert!(said.contains("0.7500") && said.contains("0.2500"), "{said}");
    success(&["prompts", "merge", &one, &two, "--towards", &one, "--out", &both]);
    let message = error(&["prompts", "merge", &one, &two, "--weights", "1", "--out", &both]);
    assert!(message.contains("--weights"), "{message}");

    let flags = ["--task", "sst2", "--data", &data, "--rank", "4", "--sources", &one];
    work.train("run", &flags);
    let (run, more, less) = (work.path("run"), work.path("more"), work.path("less"));
    success(&["prompts", "add", "--run", &run, "--source", &two, "--out", &more]);
    let report = success(&["evaluate", "--run", &more]);
    assert!(report.matches("attention").count() == 3, "{report}");
    let message = error(&["prompts", "remove", "--run", &more, "--source", "three", "--out", &less]);
    assert!(message.contains("one, two"), "{message}");
    success(&["prompts", "remove", "--run", &more, "--source", "two", "--out", &less]);
    assert_eq!(
        success(&["evaluate", "--run", &less, "--json"]),
        success(&["evaluate", "--run", &run, "--json"])
    );
    let message =
        error(&["prompts", "remove", "--run", &less, "--source", "one", "--out", &work.path("none")]);
    assert!(message.contains("at least one"), "{message}");
    let message =
        error(&["prompts", "add", "--run", &work.path("one"), "--source", &two, "--out", &work.path("n")]);
    assert!(message.contains("prompt-tuning"), "{message}");
}

#[test]
fn two_tasks_one_from_a_file_train_are_judged_and_answer_together() {
    let work = Work::new();
    let (tasks, data) = (format!("sst2,{}", work.path("stars.toml")), work.path("data"));
    work.train(
        "run",
        &["--task", &tasks, "--data", &data, "--method", "prompt-tuning", "--sampling", "equal"],
    );
    let run = work.path("run");
    let report = success(&["evaluate", "--run", &run]);
    for said in ["sst2 validation: 6 examples", "stars validation: 6 examples", "mean over 2 tasks"] {
        assert!(report.contains(said), "{report}");
    }
    // Other data of each: a place a task.
    let places = format!("{},{}", work.path("data/sst2"), work.path("data/stars"));
    assert_eq!(success(&["evaluate", "--run", &run, "--data", &places]), report);
    let message = error(&["evaluate", "--run", &run, "--data", &format!("{places},{places}")]);
    assert!(message.contains("one a task: sst2, stars"), "{message}");
    let report = success(&["evaluate", "--run", &run, "--task", "stars"]);
    assert!(report.contains("stars") && !report.contains("sst2"), "{report}");
    work.write(
        "rows.jsonl",
        "{\"task\": \"stars\", \"text\": \"good\"}\n{\"task\": \"sst2\", \"sentence\": \"good\"}\n",
    );
    let answers = success(&["predict", "--run", &run, "--input", &work.path("rows.jsonl")]);
    let answers: Vec<serde_json::Value> =
        answers.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let said = |index: usize| answers[index]["prediction"].as_str().expect("a prediction").to_owned();
    assert!(
        ["bad", "good"].contains(&said(0).as_str()) && ["0", "1"].contains(&said(1).as_str()),
        "{answers:?}"
    );
    work.write("bare.jsonl", "{\"text\": \"good\"}\n");
    let message = error(&["predict", "--run", &run, "--input", &work.path("bare.jsonl")]);
    assert!(message.contains("sst2, stars"), "{message}");
    success(&["predict", "--run", &run, "--input", &work.path("bare.jsonl"), "--task", "stars"]);
}

#[test]
fn few_shot_runs_print_mean_and_deviation() {
    let work = Work::new();
    let data = work.path("data/sst2");
    let flags = [
        "--task",
        "sst2",
        "--data",
        &data,
        "--method",
        "prompt-tuning",
        "--few-shot",
        "3",
        "--class-balanced",
    ];
    let said = work.train("few", &[&flags[..], &["--draws", "2"]].concat());
    assert!(said.contains("data seed 42") && said.contains("data seed 43"), "{said}");
    assert!(said.contains("over 2 draws, deviation"), "{said}");
    assert!(success(&["train", "--resume", "--out", &work.path("few")]).contains("over 2 draws"));
    let said = work.train("one", &[&flags[..], &["--data-seed", "7"]].concat());
    assert!(said.contains("2 steps") && Path::new(&work.path("one/prompt.safetensors")).is_file(), "{said}");
}

#[test]
fn a_task_is_shown_with_three_rows_and_how_long_they_are() {
    let work = Work::new();
    let (data, file) = (work.path("data/stars"), work.path("stars.toml"));
    let demo = manifest().join("demo").display().to_string();
    let shown = success(&["tasks", "--show", &file, "--data", &data, "--model", &demo]);
    assert!(shown.contains("stars text: a film number 2\n  -> bad"), "{shown}");
    assert!(!shown.contains("a film number 3"), "three rows alone: {shown}");
    assert!(shown.contains("source tokens of 12 examples") && shown.contains('#'), "{shown}");
    assert!(success(&["tasks", "--show", "superglue-cb"]).contains("macro-f1"));
    assert!(error(&["tasks", "--show", "sst3"]).contains("sst2"));
}
