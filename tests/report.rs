//! The report: one page that needs nothing else, figures beside it, and numbers that are the runs'.
#![cfg(feature = "report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use promptmix::config::{Method, RunConfig};
use promptmix::evaluate::AttentionSpread;
use promptmix::prompts::{Prompt, PromptMetadata};
use promptmix::report;
use promptmix::train::{ExampleRecord, RunFolder, StepRecord, TaskRecord, ValidationRecord, runs_beneath};

/// A run folder of `steps` steps, written without training.
fn run(folder: &Path, name: &str, steps: u64, sources: &[&str]) -> PathBuf {
    run_with(folder, name, steps, sources, 0.8125, |_| {})
}

/// As [`run`], with other settings and another accuracy.
fn run_with(
    folder: &Path,
    name: &str,
    steps: u64,
    sources: &[&str],
    accuracy: f64,
    set: impl Fn(&mut RunConfig),
) -> PathBuf {
    let path = folder.join(name);
    let stem = path.file_name().expect("a name").to_string_lossy().into_owned();
    let mut config = RunConfig::default();
    config.task = format!("task-of-{stem}");
    config.method = if sources.is_empty() { Method::PromptTuning } else { Method::Attempt };
    config.sources = sources.iter().map(|source| folder.join(source).join("prompt.safetensors")).collect();
    set(&mut config);
    let mut run = RunFolder::create(&path, &config, "0123").expect("a folder");
    let count = match sources.len() {
        0 => 0,
        count if config.without_target() => count,
        count => count + 1,
    };
    // The first source has more of it where accuracy is higher.
    let mut attention = vec![1.0 / count.max(1) as f64; count];
    if let [first, .., last] = &mut attention[..] {
        *first += accuracy - 0.8125;
        *last -= accuracy - 0.8125;
    }
    for step in 1..=steps {
        let record = StepRecord {
            step,
            steps,
            epoch: 1,
            loss: if step == 3 { f64::NAN } else { 2.0 / step as f64 },
            gradient_norm: 0.1,
            learning_rate: config.learning_rate * (1.0 - step as f64 / steps as f64),
            scorer_learning_rate: config.scorer_learning_rate() * (1.0 - step as f64 / steps as f64),
            milliseconds: 12.0,
            sharing_runs: 1,
            tokens_per_second: 100.0,
            attention_entropy: None,
        };
        run.step(&record).expect("logged");
        if step % (steps / 4).max(1) == 0 {
            let reached = accuracy - 0.01 * (steps - step) as f64 / steps as f64;
            let record = ValidationRecord {
                step,
                metrics: vec![("accuracy".into(), Some(reached)), ("f1".into(), None)],
                mean: reached,
                best: step == steps,
                prompts: Vec::new(),
                spread: AttentionSpread::of_means(attention.clone(), vec![0.125; attention.len()], 0.25),
                invalid: 1,
                tasks: Vec::new(),
            };
            run.validation(&record).expect("logged");
        }
    }
    let example = |example| ExampleRecord {
        example,
        source: format!("<script>alert('{stem}')</script> & more"),
        prediction: "positive".into(),
        label: Some(if example % 4 == 0 { "really negative" } else { "positive" }.into()),
        attention: attention.clone(),
    };
    run.save_examples(&(0..64).map(example).collect::<Vec<_>>()).expect("written");
    let values = (0..8).map(|i| (i as f32 + stem.len() as f32).sin()).collect();
    let prompt = Prompt::new(&stem, values, 2, 4, PromptMetadata::default()).expect("a prompt");
    prompt.save(&path.join("prompt.safetensors")).expect("saved");
    path
}

/// The page of a report, as text.
fn page(runs: &[PathBuf], out: &Path) -> String {
    fs::read_to_string(report::write(runs, out).expect("a report")).expect("text")
}

/// A study: two source runs, and ATTEMPT on seven seeds at each of two learning rates, with long names.
fn study(folder: &Path) -> PathBuf {
    for source in ["natural-language-inference", "sentiment-of-film-reviews"] {
        run(folder, source, 8, &[]);
    }
    let study = folder.join("study");
    fs::create_dir(&study).expect("a folder");
    for (rate, accuracy) in [(0.1, 0.7), (0.3, 0.8)] {
        for seed in 1..=7 {
            let name = format!("recognising-textual-entailment/learning-rate-{rate}/attempt-seed-{seed}");
            let path = study.join(&name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
            let sources = ["../natural-language-inference", "../sentiment-of-film-reviews"];
            let accuracy = accuracy + 0.01 * seed as f64;
            run_with(&study, &name, 40, &sources, accuracy, |config| {
                (config.task, config.seed, config.learning_rate) = ("rte".into(), seed, rate);
            });
        }
    }
    study
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
    let html = page(&runs, &out);
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
        spread: AttentionSpread::of_means(vec![1.0 - own, own], vec![0.125; 2], 0.25),
        invalid: 0,
    };
    let record = ValidationRecord {
        step: 9,
        metrics: vec![("rte accuracy".into(), Some(0.5)), ("cb accuracy".into(), Some(0.5))],
        mean: 0.5,
        best: true,
        prompts: vec!["one".into(), "target".into()],
        spread: AttentionSpread::of_means(vec![0.5; 2], vec![0.125; 2], 0.25),
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

#[test]
fn a_folder_of_runs_is_shown_by_mean_and_deviation_over_seeds() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (study, out) = (study(folder.path()), folder.path().join("report"));
    let html = page(std::slice::from_ref(&study), &out);
    assert!(html.contains("14 runs"));
    // Of accuracies 0.71 to 0.77 and 0.81 to 0.87: the deviation of a sample of 0.01 to 0.07 is 0.0216.
    for said in ["accuracy 0.7400 ± 0.0216", "accuracy 0.8400 ± 0.0216", "f1 undefined"] {
        assert!(html.contains(said), "the page does not say {said}");
    }
    let map = fs::read_to_string(out.join("attention.svg")).expect("a figure");
    assert_eq!(map.matches("<rect ").count(), 1 + 2 * 3);
    // A third and what 0.74 and 0.84 are off 0.8125.
    for said in [">0.26</text>", ">0.36</text>", ">±0.02</text>", "learning-rate-0.1", "learning-rate-0.3"] {
        assert!(map.contains(said), "the heat map does not say {said}");
    }
    let every = fs::read_to_string(out.join("attention-by-run.svg")).expect("a figure");
    assert_eq!(every.matches("<rect ").count(), 1 + 14 * 3);
    assert!(!every.contains('±'), "one run has no spread");
    for rate in ["0.1", "0.3"] {
        for seed in 1..=7 {
            let name = format!("…learning-rate-{rate}/attempt-seed-{seed}<title>");
            assert_eq!(every.matches(&name).count(), 1, "{name}");
        }
    }
    // Several folders of runs are told apart by their names.
    let html = page(&[study.clone(), folder.path().join("natural-language-inference")], &out);
    assert!(html.contains("study/<wbr>recognising") && html.contains("15 runs"));
}

#[test]
fn runs_are_found_three_levels_beneath_in_the_order_of_their_numbers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refused = |path: &Path| report::write(&[path.to_owned()], path).expect_err("no run").to_string();
    let message = refused(folder.path());
    assert!(message.contains("three levels") && message.contains("none in"), "{message}");
    assert!(refused(&folder.path().join("gone")).contains("no folder"));
    for name in ["a/b/draw-10", "a/b/draw-9", "one", "a/b/c/too-deep"] {
        fs::create_dir_all(folder.path().join(name).parent().expect("a folder")).expect("folders");
        run(folder.path(), name, 4, &[]);
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path(), folder.path().join("a/back")).expect("a link");
    let found = runs_beneath(folder.path()).expect("runs");
    let names: Vec<&str> = found.iter().map(|run| run.name.as_str()).collect();
    assert_eq!(names, ["a/b/draw-9", "a/b/draw-10", "one"]);
}

#[test]
fn the_validation_axis_spans_what_was_measured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = run_with(folder.path(), "one", 8, &[], 0.8125, |_| {});
    let out = folder.path().join("report");
    page(&[path], &out);
    let svg = fs::read_to_string(out.join("metrics.svg")).expect("a figure");
    // Of accuracies 0.805 to 0.8125.
    let marks: Vec<f64> = svg
        .split("text-anchor=\"end\"")
        .skip(1)
        .map(|mark| mark.split(['>', '<']).nth(1).expect("a text").parse().expect("a number"))
        .collect();
    assert!(marks.len() >= 3 && marks[0] >= 0.8 && marks[marks.len() - 1] <= 0.815, "{marks:?}");
    assert!(marks.windows(2).all(|pair| pair[0] < pair[1]), "{marks:?}");
    let places = svg.split("<circle ").skip(1).map(|circle| {
        let place = circle.split("cy=\"").nth(1).expect("a place");
        place.split('"').next().expect("a number").parse::<f64>().expect("a number")
    });
    let places: Vec<f64> = places.collect();
    let span = places.iter().fold(0.0_f64, |most, place| most.max(places[0] - place));
    assert!(span > 100.0, "0.0075 are {span} of 200 pixels");
}

#[test]
fn learning_rates_are_those_of_what_trains() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(folder.path(), "one", 8, &[]);
    let out = folder.path().join("report");
    let drawn = |name: &str, sources: &[&str], set: &dyn Fn(&mut RunConfig)| {
        let html = page(&[run_with(folder.path(), name, 8, sources, 0.8125, set)], &out);
        (html, fs::read_to_string(out.join("learning-rate.svg")).expect("a figure"))
    };
    let (html, svg) = drawn("scorer", &["one"], &|config| config.pretrain_scorer = true);
    assert!(html.contains("The scorer's learning rate; no prompt trains."));
    // 0.01 at most, and not the prompt's 0.3.
    assert!(svg.contains(">0.01</text>") || svg.contains(">0.010</text>"), "{svg}");
    assert!(!svg.contains(">0.30</text>"));
    let (html, svg) = drawn("frozen", &["one"], &|config| config.freeze_scorer = true);
    assert!(html.contains("The prompt's learning rate.") && svg.contains(">0.30</text>"));
    let (_, svg) = drawn("both", &["one"], &|_| {});
    assert!(svg.contains(">prompt</text>") && svg.contains(">scorer</text>"), "{svg}");
    let (html, _) = drawn("equal", &["one"], &|config| config.scorer_learning_rate = Some(0.3));
    assert!(html.contains("The learning rate of prompt and scorer."));
}

/// What an SVG says, text by text.
fn texts(svg: &str) -> Vec<&str> {
    let ends = svg.match_indices("</text>").map(|(end, _)| &svg[..end]);
    ends.map(|before| before.rsplit('>').next().expect("a text")).collect()
}

/// The two rates of a run, of runs whose names differ in their middle alone, and of runs that have a name together and several rates.
#[test]
fn every_learning_rate_has_a_name_of_its_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(folder.path(), "one", 8, &[]);
    let out = folder.path().join("report");
    let long =
        |of: &str| format!("a-name-that-begins-as-others-do-{of}-and-ends-as-others-do-too-and-is-long");
    for names in [[long("first"), long("second")], ["seed-1".into(), "seed-2".into()]] {
        let rates = [0.1, 0.2, 0.1, 0.2];
        let more = ["seed-3".to_owned(), "seed-4".to_owned()];
        let names = names.iter().chain(more.iter().filter(|_| names[0].starts_with("seed")));
        let runs: Vec<PathBuf> = names
            .zip(rates)
            .map(|(name, rate)| {
                run_with(folder.path(), name, 8, &["one"], 0.8125, |config| {
                    config.learning_rate = rate;
                    config.scorer_learning_rate = Some(rate / 4.0);
                })
            })
            .collect();
        page(&runs, &out);
        let svg = fs::read_to_string(out.join("learning-rate.svg")).expect("a figure");
        let names: Vec<&str> = texts(&svg)
            .into_iter()
            .filter(|text| text.contains("prompt") || text.contains("scorer"))
            .collect();
        let apart: BTreeSet<&&str> = names.iter().collect();
        assert_eq!((names.len(), apart.len()), (4, 4), "{names:?}");
    }
}

#[test]
fn forty_two_lines_look_unlike_one_another_and_more_are_told_of() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runs: Vec<PathBuf> = (1..=44).map(|i| run(folder.path(), &format!("run-{i}"), 4, &[])).collect();
    let out = folder.path().join("report");
    page(&runs, &out);
    let svg = fs::read_to_string(out.join("metrics.svg")).expect("a figure");
    let attribute = |path: &str, name: &str| -> String {
        let value = path.split(&format!("{name}=\"")).nth(1).expect("an attribute");
        value.split('"').next().expect("a value").to_owned()
    };
    let looks: Vec<(String, String)> = svg
        .split("<path ")
        .skip(1)
        .map(|path| (attribute(path, "stroke"), attribute(path, "stroke-dasharray")))
        .collect();
    assert_eq!(looks.len(), 44);
    assert_eq!(looks[..42].iter().collect::<BTreeSet<_>>().len(), 42, "{looks:?}");
    assert_eq!(looks[42..], looks[..2]);
    assert!(texts(&svg).contains(&"and 2 more, in colours and dashes of the first"), "{:?}", texts(&svg));
}

#[test]
fn equal_weights_are_those_of_each_row() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(folder.path(), "one", 8, &[]);
    run(folder.path(), "two", 8, &[]);
    let out = folder.path().join("report");
    let two = run(folder.path(), "with-two", 8, &["one", "two"]);
    let one = run(folder.path(), "with-one", 8, &["one"]);
    let html = page(std::slice::from_ref(&two), &out);
    assert!(html.contains("equal weights would be 0.33. The target prompt is added"));
    let html = page(&[two.clone(), one], &out);
    assert!(html.contains("equal weights would be 0.50 in a row of 2, 0.33 in a row of 3."));
    let bare =
        run_with(folder.path(), "bare", 8, &["one", "two"], 0.8125, |config| config.without_target = true);
    let html = page(std::slice::from_ref(&bare), &out);
    assert!(html.contains("equal weights would be 0.50.") && !html.contains("added once more"));
    assert!(page(&[bare, two], &out).contains("rows without one mix their sources alone"));
}

#[test]
fn the_time_of_a_step_says_how_many_runs_it_is_of() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, out) = (run(folder.path(), "one", 8, &[]), folder.path().join("report"));
    let cell = "data-label=\"ms a step\">12</td>";
    assert!(page(std::slice::from_ref(&path), &out).contains(cell));
    let log = fs::read_to_string(path.join("log.jsonl")).expect("a log");
    assert!(!log.contains("sharing_runs"), "one run says nothing of it");
    let shared = log.replace("\"milliseconds\":12.0", "\"milliseconds\":12.0,\"sharing_runs\":4");
    fs::write(path.join("log.jsonl"), shared).expect("written");
    let html = page(&[path], &out);
    assert!(html.contains(">12 for 4 runs</td>") && html.contains("shared its batch"));
}

#[test]
fn answers_stand_beside_their_labels() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, out) = (run(folder.path(), "one", 8, &[]), folder.path().join("report"));
    let html = page(std::slice::from_ref(&path), &out);
    assert_eq!(html.matches("data-label=\"label\">really negative</td>").count(), 16);
    assert_eq!(html.matches("<td class=\"differs\" data-label=\"answer\">positive</td>").count(), 16);
    assert_eq!(html.matches("<td data-label=\"answer\">positive</td>").count(), 48);
}

/// A run that was killed in the middle, by a version that knew neither labels nor how many numbers train.
#[test]
fn a_run_folder_of_format_2_is_shown() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format-2/run");
    let html = page(std::slice::from_ref(&frozen), folder.path());
    // Target prompt, W_down and W_up of 2 x 256, weight and bias of the LayerNorm; not the mean of the inputs.
    let numbers = 3 * 2 * 256 + 2 * 256;
    assert_eq!(numbers, 2_048);
    assert!(html.contains("data-label=\"numbers trained\">2,048</td>"));
    assert!(html.contains("a fine film") && !html.contains("data-label=\"label\""));
    assert!(html.contains("data-label=\"test\">–</td>"));
}

/// What `promptmix evaluate` writes.
fn evaluation(path: &Path, split: &str, decoding: &str, step: u64, accuracy: f64) {
    let text = format!(
        "{{\"evaluations\": [{{\"split\": {split:?}, \"task\": \"rte\", \"decoding\": {decoding:?}, \"data\": \"data/rte\",
          \"best-step\": {step}, \"promptmix\": \"0.1.0\", \"examples\": 8, \"invalid\": 3,
          \"metrics\": [[\"accuracy\", {accuracy}], [\"f1\", null]], \"prompts\": [], \"attention\": [],
          \"attention-std\": [], \"attention-minority\": 0.0}}]}}"
    );
    fs::write(path.join("evaluation.json"), text).expect("written");
}

#[test]
fn test_results_come_from_what_was_evaluated_and_say_when_they_are_outdated() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("report");
    let paths: Vec<PathBuf> = (1..=3)
        .map(|seed| {
            run_with(folder.path(), &format!("seed-{seed}"), 8, &[], 0.8, |config| {
                (config.task, config.seed) = ("rte".into(), seed);
            })
        })
        .collect();
    let html = page(&paths, &out);
    assert!(html.contains("promptmix evaluate --split test"), "nothing was evaluated yet");
    evaluation(&paths[0], "test", "greedy", 8, 0.5);
    evaluation(&paths[1], "test", "greedy", 8, 0.7);
    evaluation(&paths[2], "validation", "greedy", 8, 0.9);
    let html = page(&paths, &out);
    assert!(html.contains("accuracy 0.5000<br>f1 undefined</td>"));
    assert!(html.contains("<br>test 3</td>"), "answers that are no label");
    assert!(html.contains("accuracy 0.6000 ± 0.1414 (2 runs)"), "0.5 and 0.7 of three runs");
    assert!(!html.contains("0.9000"), "validation rows are no test rows");
    // Neither an older state nor another decoding enters the mean.
    evaluation(&paths[0], "test", "greedy", 4, 0.5);
    evaluation(&paths[2], "test", "labels", 8, 0.9);
    let html = page(&paths, &out);
    assert!(html.contains("of an earlier best step") && html.contains("answers by labels decoding"));
    assert!(html.contains("accuracy 0.7000 (1 run)"), "the one that is left");
    fs::write(paths[0].join("evaluation.json"), "{").expect("written");
    let message = report::write(&paths, &out).expect_err("damaged").to_string();
    assert!(message.contains("evaluation.json") && message.contains("evaluate the run again"), "{message}");
}

#[test]
fn few_shot_draws_show_the_test_results_they_ended_with() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("report");
    let runs = folder.path().join("few-shot");
    fs::create_dir(&runs).expect("a folder");
    let draw = |seed: u64, accuracy: f64| {
        let name = format!("draw-{seed}");
        run_with(&runs, &name, 8, &[], 0.8, |config| {
            (config.task, config.data_seed, config.few_shot) = ("rte".into(), Some(seed), Some(4));
        });
        serde_json::json!({
            "data-seed": seed, "folder": name, "rows": [4], "sources": [], "learning-rate": 0.3,
            "scorer-learning-rate": 0.01, "steps": 8, "best-step": 8, "validation": 0.8,
            "test": [["accuracy", accuracy]],
        })
    };
    let draws = [draw(1, 0.25), draw(2, 0.75)];
    let summary = serde_json::json!({ "config": RunConfig::default(), "draws": draws, "summary": [] });
    fs::write(runs.join("few_shot.json"), summary.to_string()).expect("written");
    let html = page(std::slice::from_ref(&runs), &out);
    assert!(html.contains("accuracy 0.5000 ± 0.3536") && html.contains("draw-*"));
    // What was evaluated since stands before what the draws ended with.
    evaluation(&runs.join("draw-1"), "test", "greedy", 8, 0.5);
    assert!(page(&[runs], &out).contains("accuracy 0.6250 ± 0.1768"));
}

// The page in a browser

/// What can open a page here.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let found = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    found.into_iter().find(|path| path.is_file())
}

/// Lists every text that overlaps another or is cut off, in a frame that holds the page.
const MEASURE: &str = r#"
const frame = document.getElementById('page'), page = frame.contentDocument, faults = [];
const width = frame.contentWindow.innerWidth;
let texts = 0;
if (page.documentElement.scrollWidth > width) faults.push('wider: ' + page.documentElement.scrollWidth);
const say = text => JSON.stringify(text.trim().slice(0, 40));
// Corners, a pixel inside, so that texts may touch.
const corners = (x, y, w, h) => [[x, y], [x + w, y], [x + w, y + h], [x, y + h]];
// Two convex shapes overlap unless a side of one has all of the other beyond it.
const apart = (a, b) => [a, b].some(shape => shape.some((corner, i) => {
  const next = shape[(i + 1) % shape.length];
  const normal = [next[1] - corner[1], corner[0] - next[0]];
  const along = points => points.map(p => p[0] * normal[0] + p[1] * normal[1]);
  const [one, other] = [along(a), along(b)];
  return Math.max(...one) <= Math.min(...other) || Math.max(...other) <= Math.min(...one);
}));
const compare = shapes => shapes.forEach((a, i) => shapes.slice(i + 1).forEach(b => {
  if (a.of !== b.of && !apart(a.shape, b.shape)) faults.push('overlap: ' + say(a.text) + ' and ' + say(b.text));
}));
for (const svg of page.querySelectorAll('svg')) {
  const outer = svg.getBoundingClientRect(), shapes = [];
  for (const text of svg.querySelectorAll('text')) {
    texts += 1;
    const box = text.getBBox(), matrix = text.getScreenCTM();
    const shape = corners(box.x + 1, box.y + 1, box.width - 2, box.height - 2).map(([x, y]) => {
      const point = new DOMPoint(x, y).matrixTransform(matrix);
      return [point.x, point.y];
    });
    const said = [...text.childNodes].filter(node => node.nodeType === 3).map(node => node.data).join('');
    if (shape.some(([x, y]) => x < outer.left || x > outer.right || y < outer.top || y > outer.bottom))
      faults.push('cut off: ' + say(said) + ' in ' + svg.getAttribute('aria-label'));
    shapes.push({ of: text, text: said, shape });
  }
  compare(shapes);
}
const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT), shapes = [];
while (walker.nextNode()) {
  const node = walker.currentNode, range = page.createRange();
  if (!node.data.trim() || node.parentElement.closest('svg')) continue;
  range.selectNodeContents(node);
  for (const box of range.getClientRects()) {
    texts += 1;
    // On a telephone a row is a card, which needs no scrolling.
    const inCard = width <= 640 && node.parentElement.closest('.cards');
    const scrolls = node.parentElement.closest('.table, .wide') && !inCard;
    if (!scrolls && (box.left < 0 || box.right > width)) faults.push('cut off: ' + say(node.data));
    shapes.push({ of: node, text: node.data, shape: corners(box.x + 1, box.y + 1, box.width - 2, box.height - 2) });
  }
}
compare(shapes);
document.getElementById('found').textContent = JSON.stringify({ width, texts, faults: faults.slice(0, 20) });
"#;

/// The page's width as the browser has it, how many texts it shows, and what is wrong with them.
fn measured(browser: &Path, folder: &Path, html: &str, width: usize) -> (usize, usize, Vec<String>) {
    let quoted = html.replace('&', "&amp;").replace('"', "&quot;");
    // A window is never as narrow as a telephone; a frame is.
    let around = format!(
        "<!DOCTYPE html><meta charset=utf-8><iframe id=page width={width} height=900 style='border:0' srcdoc=\"{quoted}\">\
         </iframe><pre id=found></pre><script>addEventListener('load', () => {{ {MEASURE} }})</script>"
    );
    let (page, said) = (folder.join("around.html"), folder.join("said.html"));
    fs::write(&page, around).expect("written");
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("file://{}", page.display()))
        .stdout(fs::File::create(&said).expect("a file"))
        .stderr(Stdio::null())
        .spawn()
        .expect("the browser starts");
    let started = Instant::now();
    while child.try_wait().expect("a state").is_none() {
        if started.elapsed().as_secs() > 120 {
            child.kill().expect("ended");
            panic!("the browser did not end within two minutes");
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let said = fs::read_to_string(said).expect("text");
    let found = said.rsplit("<pre id=\"found\">").next().and_then(|rest| rest.split("</pre>").next());
    let found =
        found.expect("what was measured").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    let found: serde_json::Value = serde_json::from_str(&found).expect("what was measured");
    let number = |key: &str| found[key].as_u64().expect("a number") as usize;
    let faults = found["faults"].as_array().expect("a list").iter();
    let faults = faults.map(|fault| fault.as_str().expect("text").to_owned()).collect();
    (number("width"), number("texts"), faults)
}

#[test]
fn nothing_overlaps_and_nothing_is_cut_off_on_a_desk_and_on_a_telephone() {
    let Some(browser) = browser() else {
        println!(
            "skipped: neither chromium, chromium-browser nor google-chrome is on PATH to open the page with"
        );
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("report");
    let study = study(folder.path());
    for (index, path) in runs_beneath(&study).expect("runs").iter().enumerate() {
        evaluation(&path.path, "test", ["greedy", "labels"][index % 2], 40, 0.5 + 0.01 * index as f64);
    }
    let names = ["a-run-whose-one-word-goes-on-and-on-and-on-and-on-and-on-and-on", "W".repeat(60).leak()];
    let long = names.map(|name| run(folder.path(), name, 20_000, &["sentiment-of-film-reviews"]));
    let begun = folder.path().join("begun");
    RunFolder::create(&begun, &RunConfig::default(), "0123").expect("a folder");
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format-2/run");
    for runs in [vec![study], long.to_vec(), vec![long[0].clone()], vec![begun], vec![frozen]] {
        let html = page(&runs, &out);
        for width in [1280, 390] {
            let (had, texts, faults) = measured(&browser, folder.path(), &html, width);
            assert_eq!(had, width);
            assert!(texts > 60, "{texts} texts");
            assert!(faults.is_empty(), "{runs:?} at {width}: {faults:#?}");
        }
        // What is measured with sees both kinds of fault.
        let bent =
            "<svg width=50 height=20><text x=0 y=15>one text</text><text x=3 y=15>too many</text></svg>\
                    <p style='white-space:nowrap'>"
                .to_owned()
                + &"far ".repeat(400);
        let (.., faults) = measured(&browser, folder.path(), &html.replace("</body>", &bent), 390);
        for fault in [
            "wider: ",
            "overlap: \"one text\" and \"too many\"",
            "cut off: \"one text\"",
            "cut off: \"far far",
        ] {
            assert!(faults.iter().any(|found| found.starts_with(fault)), "{fault} in {faults:#?}");
        }
    }
    let html = page(&long, &out);
    let unbroken = html.replace("td { overflow-wrap: anywhere; }", "");
    assert_ne!(html, unbroken);
    let (.., faults) = measured(&browser, folder.path(), &unbroken, 390);
    assert!(faults.iter().any(|fault| fault.starts_with("cut off: \"WWWW")), "{faults:#?}");
}
