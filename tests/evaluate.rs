//! What `promptmix evaluate` finds is kept in the run's folder, and a folder of runs is evaluated as one.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use promptmix::backend::cpu::Cpu;
use promptmix::config::{Decoding, Method, RunConfig};
use promptmix::experiment::{FewShotRuns, Together};
use promptmix::model::Frozen;
use promptmix::train::{
    EvaluationRecord, Evaluations, Monitor, RunFolder, Silent, StepRecord, Trainer, ValidationRecord,
    differing_settings, repeats,
};
use serde_json::Value;

#[path = "common/program.rs"]
mod program;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// Rows of a task in three files of different lengths.
fn data(folder: &Path, name: &str) -> PathBuf {
    let data = folder.join(name);
    fs::create_dir(&data).expect("a folder");
    for (file, count) in [("train", 24), ("validation", 8), ("test", 10)] {
        let row = |i: usize| {
            format!("{{\"sentence\": \"a {} film {i}\", \"label\": {}}}\n", ["bad", "good"][i % 2], i % 2)
        };
        fs::write(data.join(format!("{file}.jsonl")), (0..count).map(row).collect::<String>())
            .expect("written");
    }
    data
}

fn config(data: &Path) -> RunConfig {
    let mut config = RunConfig::default();
    config.model = model().display().to_string();
    config.task = "sst2".into();
    config.labels = Some("negative,positive".into());
    config.data = data.to_owned();
    config.method = Method::PromptTuning;
    config.prompt_length = 2;
    config.batch_size = 4;
    config.steps = Some(2);
    config.decoding = Decoding::Labels;
    config
}

fn train(frozen: &Frozen<'_, Cpu<f32>>, config: &RunConfig, path: &Path) {
    let mut trainer = Trainer::new(frozen, config, &mut Silent).expect("a run");
    let mut run = RunFolder::create(path, config, &frozen.model_hash).expect("a folder");
    trainer.run(Some(&mut run), &mut Silent).expect("steps");
}

fn promptmix(arguments: &[&str]) -> Output {
    let mut command = program::promptmix();
    command.arg("evaluate").args(["--threads", "1"]).args(arguments).output().expect("the binary runs")
}

fn success(arguments: &[&str]) -> String {
    let output = promptmix(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn stored(run: &Path) -> Vec<Value> {
    let json = fs::read_to_string(run.join("evaluation.json")).expect("what was found");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    json["evaluations"].as_array().expect("a list").clone()
}

#[test]
fn what_was_found_is_kept_by_split_task_and_decoding() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let data = data(folder.path(), "data");
    let path = folder.path().join("run");
    train(&frozen, &config(&data), &path);
    let run = path.display().to_string();

    let json: Value =
        serde_json::from_str(&success(&["--run", &run, "--split", "test", "--json"])).expect("JSON");
    let keys: Vec<&String> = json.as_object().expect("an object").keys().collect();
    let expected = [
        "attention",
        "attention_minority",
        "attention_std",
        "examples",
        "invalid",
        "metrics",
        "prompts",
        "split",
        "task",
    ];
    assert_eq!(keys, expected, "a single run's line is as it was");
    let [test] = &stored(&path)[..] else { panic!("one entry") };
    assert_eq!(
        (&test["split"], &test["task"], &test["decoding"]),
        (&"test".into(), &"sst2".into(), &"labels".into())
    );
    assert_eq!((&test["examples"], &test["invalid"], &test["best-step"]), (&10.into(), &0.into(), &2.into()));
    assert_eq!(test["metrics"][0][1], json["metrics"]["accuracy"]);
    assert_eq!(Path::new(test["data"].as_str().expect("a path")), data);

    // Another split and another decoding come beside it, the same again in its place.
    success(&["--run", &run]);
    success(&["--run", &run, "--split", "test", "--decoding", "greedy"]);
    success(&["--run", &run, "--split", "test"]);
    let entries = stored(&path);
    let of = |entry: &Value| format!("{} {}", entry["split"], entry["decoding"]).replace('"', "");
    assert_eq!(
        entries.iter().map(of).collect::<Vec<_>>(),
        ["test labels", "validation labels", "test greedy"]
    );
    assert_eq!(&entries[0], test);

    // What is not the run's own stays out, and the user is told.
    let before = fs::read(path.join("evaluation.json")).expect("read");
    let other = self::data(folder.path(), "other").display().to_string();
    for (arguments, what) in [
        (&["--data", other.as_str()][..], "own data"),
        (&["--task", "sst2", "--labels", "no,yes"], "own task"),
    ] {
        let output = promptmix(&[&["--run", &run, "--split", "test"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("not kept") && said.contains(what), "{said}");
        assert_eq!(fs::read(path.join("evaluation.json")).expect("read"), before);
    }
    // The run's own data by another path are its own.
    let around = data.join("../data").display().to_string();
    success(&["--run", &run, "--split", "train", "--data", &around]);
    assert_eq!(stored(&path).len(), 4);

    fs::write(path.join("evaluation.json"), "{}").expect("written");
    let output = promptmix(&["--run", &run]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("evaluation.json") && said.contains("evaluate the run again"), "{said}");
    assert!(!output.status.success() && output.stdout.is_empty(), "refused before the work");
}

#[test]
fn entries_that_are_written_at_a_time_do_not_drive_each_other_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("run");
    RunFolder::create(&path, &RunConfig::default(), "0123").expect("a folder");
    let record = |task: usize, split: &str| -> EvaluationRecord {
        serde_json::from_value(serde_json::json!({
            "split": split, "task": format!("task-{task}"), "decoding": "greedy", "data": "d", "best-step": 1,
            "promptmix": "0", "examples": 1, "invalid": 0, "metrics": [["accuracy", 0.5]], "prompts": [],
            "attention": [], "attention-std": [], "attention-minority": 0.0,
        }))
        .expect("a record")
    };
    std::thread::scope(|scope| {
        for task in 0..16 {
            let path = &path;
            scope.spawn(move || {
                for split in ["train", "validation", "test"] {
                    Evaluations::store(path, record(task, split)).expect("written");
                }
            });
        }
    });
    assert_eq!(Evaluations::read(&path).expect("a file").evaluations.len(), 48);
}

#[test]
fn a_folder_of_few_shot_runs_is_evaluated_as_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = config(&data(folder.path(), "data"));
    (config.few_shot, config.draws, config.seed) = (Some(8), 3, 9);
    let path = folder.path().join("runs");
    let runs =
        FewShotRuns::run(&Together::new(&frozen, 3), &config, &path, false, &mut Silent).expect("three runs");
    let run = path.display().to_string();
    let said = success(&["--run", &run, "--split", "test"]);
    let lines: Vec<&str> = said.lines().collect();
    // What was found at the end of each draw, by the same state, is found again.
    for (line, draw) in lines.iter().zip(&runs.draws) {
        let name = draw.folder.display().to_string();
        let accuracy = draw.test[0].1.expect("a number");
        assert!(line.starts_with(&name) && line.contains(&format!("sst2 accuracy {accuracy:.4}")), "{line}");
        assert_eq!(stored(&path.join(&draw.folder))[0]["metrics"][0][1], accuracy);
    }
    assert!(
        lines[1].starts_with("draw-10 ") && lines[2].starts_with("draw-11 "),
        "in the order of their numbers"
    );
    let summary = runs.summary.iter().find(|spread| spread.name == "test accuracy").expect("a summary");
    let (mean, deviation) = (summary.mean, summary.deviation);
    let last = format!("sst2 accuracy: mean {mean:.4}, standard deviation {deviation:.4} over 3 runs");
    assert_eq!(lines[3..], [last.as_str()]);
    let lines_before: Vec<String> = lines.iter().map(|line| line.to_string()).collect();

    let json = success(&["--run", &run, "--json"]);
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<&Value> = lines.iter().map(|line| &line["run"]).collect();
    assert_eq!(names, ["draw-9", "draw-10", "draw-11"]);

    // One model serves all runs: a run that cannot find it by itself is evaluated with the others'.
    for draw in ["draw-9", "draw-11"] {
        let settings = path.join(draw).join("run.json");
        let text = fs::read_to_string(&settings).expect("settings");
        let moved = text.replace(&model().display().to_string(), "/nowhere/t5");
        assert_ne!(text, moved);
        fs::write(&settings, moved).expect("written");
    }
    assert!(!promptmix(&["--run", &path.join("draw-9").display().to_string()]).status.success());
    let again = success(&["--run", &run, "--split", "test"]);
    assert!(again.starts_with(&lines_before[..3].join("\n")), "{again}");

    // A run that has no state yet does not hold up the others; one with another rate is no repetition.
    RunFolder::create(&path.join("begun"), &config, &frozen.model_hash).expect("a folder");
    config.learning_rate = 0.1;
    config.data_seed = Some(1);
    train(&frozen, &config, &path.join("other"));
    let output = promptmix(&["--run", &run, "--split", "test"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("begun    not evaluated: ") && said.contains("learnt nothing yet"), "{said}");
    assert!(said.contains("over 4 runs") && said.contains("more than their seeds: learning-rate;"), "{said}");

    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("a folder");
    let output = promptmix(&["--run", &empty.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("three levels") && said.contains("none in"), "{said}");
}

#[test]
fn repetitions_are_runs_that_differ_in_their_seeds_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let saved: Vec<_> = [
        (1, None, 0.3, "a"),
        (2, None, 0.3, "a"),
        (1, None, 0.1, "a"),
        (1, Some(7), 0.3, "a"),
        (3, None, 0.3, "b"),
    ]
    .into_iter()
    .enumerate()
    .map(|(place, (seed, data_seed, rate, hash))| {
        let mut config = RunConfig::default();
        (config.seed, config.data_seed, config.learning_rate) = (seed, data_seed, rate);
        let path = folder.path().join(place.to_string());
        RunFolder::create(&path, &config, hash).expect("a folder");
        RunFolder::saved(&path).expect("settings")
    })
    .collect();
    let saved: Vec<_> = saved.iter().collect();
    assert_eq!(
        repeats(saved.iter().map(|saved| (&saved.config, &saved.model_hash[..]))),
        [vec![0, 1, 3], vec![2], vec![4]]
    );
    assert_eq!(differing_settings(&saved), ["learning-rate", "model"]);
    assert_eq!(differing_settings(&saved[..2]), [""; 0]);
    assert_eq!(repeats([]), Vec::<Vec<usize>>::new());
}

/// Hears the first step, while the run's folder is open.
struct Probing {
    folder: PathBuf,
    refused: Vec<String>,
}

impl Monitor for Probing {
    fn step(&mut self, _: &StepRecord) {
        let error = RunFolder::open(&self.folder).expect_err("the folder is locked");
        self.refused.push(error.to_string());
    }
    fn validating(&mut self, _: usize, _: usize) {}
    fn validated(&mut self, _: &ValidationRecord) {}
    fn note(&mut self, _: &str) {}
}

#[test]
fn a_run_records_how_many_numbers_train_and_the_label_of_each_example() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let data = data(folder.path(), "data");
    let source = folder.path().join("source");
    let path = folder.path().join("run");
    train(&frozen, &config(&data), &source);
    let width = 256;
    let own = |path: &Path| RunFolder::saved(path).expect("settings").trained_numbers;
    assert_eq!(own(&source), Some(2 * width));

    // With frozen parts and parts that never train; what is counted in the best state is what was recorded.
    for (name, preset, frozen_scorer, numbers) in [
        ("tuned", "tuned", false, 2 * width + 2 * 5 * width + 2 * width),
        ("reference", "reference", false, 2 * width + 2 * 5 * width),
        ("frozen", "tuned", true, 2 * width),
    ] {
        let mut config = config(&data);
        (config.method, config.bottleneck_dim, config.freeze_scorer) = (Method::Attempt, 5, frozen_scorer);
        config.preset = serde_json::from_value(preset.into()).expect("a preset");
        config.sources = vec![source.join("prompt.safetensors")];
        let path = folder.path().join(name);
        train(&frozen, &config, &path);
        assert_eq!(own(&path), Some(numbers), "{name}");
        let mut saved = RunFolder::saved(&path).expect("settings");
        assert_eq!((saved.trains_prompt(), saved.trains_scorer()), (true, !frozen_scorer));
        saved.trained_numbers = None;
        assert_eq!(RunFolder::trained_numbers(&path, &saved).expect("counted"), Some(numbers), "{name}");
    }

    let config = config(&data);
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    let mut run = RunFolder::create(&path, &config, &frozen.model_hash).expect("a folder");
    assert_eq!(own(&path), None, "nothing trains yet");
    let mut probing = Probing { folder: path.clone(), refused: Vec::new() };
    trainer.run(Some(&mut run), &mut probing).expect("steps");
    assert_eq!(probing.refused.len(), 2);
    assert!(probing.refused[0].contains("is training in"), "{}", probing.refused[0]);
    drop(run);
    RunFolder::open(&path).expect("free again");

    let examples = fs::read_to_string(path.join("examples.jsonl")).expect("examples");
    let labels: Vec<Value> = examples
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["label"].clone())
        .collect();
    assert_eq!(labels, ["negative", "positive"].repeat(4));
}

/// Counts the validations that are better than all before.
struct Best(usize);

impl Monitor for Best {
    fn validated(&mut self, record: &ValidationRecord) {
        self.0 += usize::from(record.best);
    }
    fn note(&mut self, _: &str) {}
}

/// Those of earlier best states are not left among them.
#[test]
fn the_examples_of_a_run_are_those_of_its_best_state_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    // What the model would say of these words is the other label, so that validations start low and grow.
    let mut config = config(&data(folder.path(), "data"));
    config.labels = Some("positive,negative".into());
    (config.learning_rate, config.warmup_steps) = (1.0, Some(0));
    (config.steps, config.validate_every) = (Some(40), Some(1));
    let path = folder.path().join("run");
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    let mut run = RunFolder::create(&path, &config, &frozen.model_hash).expect("a folder");
    let mut best = Best(0);
    trainer.run(Some(&mut run), &mut best).expect("steps");
    assert!(best.0 >= 2, "or nothing would have been replaced");
    let examples = fs::read_to_string(path.join("examples.jsonl")).expect("examples");
    let numbers: Vec<Value> = examples
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["example"].clone())
        .collect();
    assert_eq!(numbers, (0..8).map(Value::from).collect::<Vec<_>>());
}
