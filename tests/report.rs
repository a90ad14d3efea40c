//! The report: one page that needs nothing else, figures beside it, and numbers that are the runs'.
#![cfg(feature = "report")]

use std::fs;
use std::path::{Path, PathBuf};

use promptmix::config::{Method, RunConfig};
use promptmix::prompts::{Prompt, PromptMetadata};
use promptmix::report;
use promptmix::train::{ExampleRecord, RunFolder, StepRecord, TaskRecord, ValidationRecord};

/// A run folder of `steps` steps, written without training.
fn run(folder: &Path, name: &str, steps: u64, sources: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let mut config = RunConfig::default();
    config.task = format!("task-of-{name}");
    config.method = if sources.is_empty() { Method::PromptTuning } else { Method::Attempt };
    config.sources = sources.iter().map(|source| folder.join(source).join("prompt.safetensors")).collect();
    let mut run = RunFolder::create(&path, &config, "0123").expect("a folder");
    let attention: Vec<f64> = match sources.len() {
        0 => Vec::new(),
        count => (0..=count).map(|_| 1.0 / (count + 1) as f64).collect(),
    };
    for step in 1..=steps {
        let record = StepRecord {
            step,
            steps,
            epoch: 1,
            loss: if step == 3 { f64::NAN } else { 2.0 / step as f64 },
            gradient_norm: 0.1,
            learning_rate: 0.3,
            scorer_learning_rate: 0.1,
            milliseconds: 12.0,
            tokens_per_second: 100.0,
            attention_entropy: None,
        };
        run.step(&record).expect("logged");
        if step % (steps / 4).max(1) == 0 {
            let record = ValidationRecord {
                step,
                metrics: vec![("accuracy".into(), Some(0.8125)), ("f1".into(), None)],
                mean: 0.8125,
                best: step == steps,
                prompts: Vec::new(),
                attention: attention.clone(),
                attention_std: vec![0.125; attention.len()],
                attention_minority: 0.25,
                invalid: 1,
                tasks: Vec::new(),
            };
            run.validation(&record).expect("logged");
        }
    }
    let example = |example| ExampleRecord {
        example,
        source: format!("<script>alert('{name}')</script> & more"),
        prediction: "positive".into(),
        attention: attention.clone(),
    };
    run.save_examples(&(0..64).map(example).collect::<Vec<_>>()).expect("written");
    let values = (0..8).map(|i| (i as f32 + name.len() as f32).sin()).collect();
    let prompt = Prompt::new(name, values, 2, 4, PromptMetadata::default()).expect("a prompt");
    prompt.save(&path.join("prompt.safetensors")).expect("saved");
    path
}

#[test]
fn a_page_is_self_contained_small_and_says_what_the_run_did() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(folder.path(), "one", 8, &[]);
    run(folder.path(), "two", 8, &[]);
    let mix = run(folder.path(), "mix", 20_000, &["one", "two", "gone"]);
    let out = folder.path().join("report");
    let page = report::write(&[mix], &out).expect("a report");
    let html = fs::read_to_string(&page).expect("text");
    assert!(html.len() < 1_000_000, "{} bytes for 20,000 steps", html.len());
    for fetching in ["http://", "https://", "src=", "@import", "url(", "<script", "<link"] {
        assert!(!html.contains(fetching), "the page holds {fetching}");
    }
    for said in [
        "task-of-mix",
        "accuracy 0.8125",
        "f1 undefined",
        "0.25",
        "own target",
        "learning-rate",
        "one",
        "gone",
    ] {
        assert!(html.contains(said), "the page does not say {said}");
    }
    assert!(html.contains("&lt;script&gt;"), "text of the data is text");
    let figures =
        ["loss", "metrics", "attention-by-step", "gradient", "learning-rate", "attention", "similarity"];
    for name in figures.into_iter().chain(["examples"]) {
        let svg = fs::read_to_string(out.join(format!("{name}.svg"))).expect("a figure");
        assert!(svg.starts_with("<svg xmlns="), "{name}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}: a coordinate that is no number");
        let png = fs::read(out.join(format!("{name}.png"))).expect("a figure");
        assert!(png.starts_with(b"\x89PNG") && png.len() > 2_000, "{name}");
    }
    // A renderer that drew no letters would leave the title's place white.
    let svg = fs::read_to_string(out.join("loss.svg")).expect("a figure");
    assert!(svg.contains("Training loss"));
}

#[test]
fn several_runs_share_a_page_with_their_targets_as_rows_of_one_heat_map() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(folder.path(), "one", 8, &[]);
    run(folder.path(), "two", 8, &[]);
    let runs: Vec<PathBuf> = ["a", "b", "c"]
        .iter()
        .zip([&["one", "two"][..], &["two"], &["one"]])
        .map(|(name, sources)| run(folder.path(), name, 8, sources))
        .collect();
    let out = folder.path().join("report");
    let html = fs::read_to_string(report::write(&runs, &out).expect("a report")).expect("text");
    let map = fs::read_to_string(out.join("attention.svg")).expect("a figure");
    // 3 rows of 3 columns: b has no weight of one, c none of two.
    assert_eq!(map.matches("<rect ").count(), 1 + 9);
    assert_eq!(map.matches(">0.33</text>").count(), 3);
    assert_eq!(map.matches(">0.50</text>").count(), 4);
    assert_eq!(map.matches(">–</text>").count(), 2);
    assert!(html.contains("What differs") && html.contains("task-of-c"));
}

#[test]
fn the_tasks_of_one_run_are_rows_of_the_heat_map() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(folder.path(), "one", 8, &[]);
    let path = run(folder.path(), "several", 8, &["one"]);
    let task = |task: &str, own: f64| TaskRecord {
        task: task.into(),
        metrics: vec![("accuracy".into(), Some(0.5))],
        mean: 0.5,
        attention: vec![1.0 - own, own],
        attention_std: vec![0.125; 2],
        attention_minority: 0.25,
        invalid: 0,
    };
    let record = ValidationRecord {
        step: 9,
        metrics: vec![("rte accuracy".into(), Some(0.5)), ("cb accuracy".into(), Some(0.5))],
        mean: 0.5,
        best: true,
        prompts: vec!["one".into(), "target".into()],
        attention: vec![0.5, 0.5],
        attention_std: vec![0.125; 2],
        attention_minority: 0.25,
        invalid: 0,
        tasks: vec![task("rte", 0.25), task("cb", 0.75)],
    };
    RunFolder::open(&path).expect("the folder").validation(&record).expect("logged");
    fs::remove_file(path.join("prompt.safetensors")).expect("removed");
    fs::create_dir(path.join("prompts")).expect("a folder");
    for name in ["rte", "cb"] {
        let values = (0..8).map(|i| (i as f32 * name.len() as f32).cos()).collect();
        let prompt = Prompt::new(name, values, 2, 4, PromptMetadata::default()).expect("a prompt");
        prompt.save(&path.join(format!("prompts/{name}.safetensors"))).expect("saved");
    }
    let out = folder.path().join("report");
    report::write(&[path], &out).expect("a report");
    let map = fs::read_to_string(out.join("attention.svg")).expect("a figure");
    for said in [">rte<", ">cb<", ">0.25</text>", ">0.75</text>"] {
        assert!(map.contains(said), "{said}");
    }
    assert_eq!(map.matches("<rect ").count(), 1 + 4);
    let similarity = fs::read_to_string(out.join("similarity.svg")).expect("a figure");
    assert!(similarity.contains("rte (learnt)") && similarity.contains("cb (learnt)"));
}

#[test]
fn a_run_that_has_only_begun_and_a_damaged_log_are_told_apart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let begun = folder.path().join("begun");
    RunFolder::create(&begun, &RunConfig::default(), "0123").expect("a folder");
    let out = folder.path().join("report");
    let html = fs::read_to_string(report::write(std::slice::from_ref(&begun), &out).expect("a report"))
        .expect("text");
    assert!(html.contains("nothing was logged yet") && html.contains("none yet"));

    // A last line that is not yet whole belongs to a run that goes on.
    let line = "{\"step\": 1, \"loss\": 0.5, \"gradient_norm\": null, \"learning_rate\": 0.1, \"milliseconds\": 3}\n";
    fs::write(begun.join("log.jsonl"), format!("{line}{{\"step\": 2, \"lo")).expect("written");
    report::write(std::slice::from_ref(&begun), &out).expect("a report");
    fs::write(begun.join("log.jsonl"), format!("{line}nonsense\n{line}")).expect("written");
    let message = report::write(&[begun], &out).expect_err("a damaged log").to_string();
    assert!(message.contains("log.jsonl, line 2"), "{message}");
    let message = report::write(&[folder.path().join("nowhere")], &out).expect_err("no run").to_string();
    assert!(message.contains("run.json"), "{message}");
}
