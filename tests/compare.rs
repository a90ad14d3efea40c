//! `promptmix compare`: a study in one file, its choices on validation rows alone, and its end whatever interrupts it.
#![cfg(all(feature = "cli", unix))]

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use promptmix::data::Split;
use promptmix::evaluate::{Paired, mean};
use promptmix::experiment::Study;
use promptmix::prompts::Prompt;
use promptmix::train::Evaluations;
use serde_json::Value;

#[path = "common/program.rs"]
mod program;

/// A folder with two data sets and a study of 24 runs: 2 targets x 3 methods x 2 rates x 2 seeds.
struct Work {
    folder: tempfile::TempDir,
}

const METHODS: &str = r#"
[[study.method]]
name = "prompt tuning"
method = "prompt-tuning"
[[study.method]]
name = "source as it is"
method = "spot"
sources = "best"
untrained = true
[[study.method]]
name = "SPoT"
method = "spot"
sources = "best"
[[study.method]]
name = "ATTEMPT"
"#;

impl Work {
    fn new() -> Self {
        let work = Self { folder: tempfile::tempdir().expect("a folder") };
        let words = [["bad", "good"], ["cold", "warm"], ["dull", "bright"]];
        for (task, pair) in ["film", "day", "room"].iter().zip(words) {
            let data = work.path(task);
            fs::create_dir(&data).expect("a folder");
            for (split, rows, first) in [("train", 40, 0), ("validation", 12, 100), ("test", 14, 200)] {
                // Every fifth row says the other thing, so that methods and rates differ in what they reach.
                let row = |i: usize| {
                    let (word, label) = (
                        pair[usize::from(i.is_multiple_of(3))],
                        (i.is_multiple_of(3)) != (i.is_multiple_of(5)),
                    );
                    let number = first + i;
                    format!(
                        "{{\"sentence\": \"a {word} {task} number {number}\", \"label\": {}}}\n",
                        u8::from(label)
                    )
                };
                fs::write(data.join(format!("{split}.jsonl")), (0..rows).map(row).collect::<String>())
                    .expect("rows");
            }
        }
        work.write(METHODS);
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, methods: &str) {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let text = format!(
            r#"model = {demo:?}
task = "sst2"
labels = "negative,positive"
prompt-length = 4
batch-size = 8
steps = 8
validate-every = 4
decoding = "labels"
[study]
seeds = [1, 2]
learning-rates = [0.3, 3.0]
[study.source-settings]
steps = 6
seed = 3
[[study.source]]
name = "day"
data = "day"
[[study.source]]
name = "film"
data = "film"
[[study.target]]
name = "room, few"
data = "room"
few-shot = 4
class-balanced = true
published = {{ "ATTEMPT" = 0.75 }}
[[study.target]]
name = "room"
data = "room"
{methods}"#
        );
        fs::write(self.path("study.toml"), text).expect("written");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::promptmix();
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    fn compare(&self, out: &str, more: &[&str]) -> Output {
        self.command(&[&["compare", "study.toml", "--out", out], more].concat()).output().expect("an end")
    }

    fn success(&self, out: &str, more: &[&str]) -> String {
        let output = self.compare(out, more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn results(&self, out: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(out).join("results.json")).expect("results"))
            .expect("JSON")
    }

    fn file(&self, out: &str, name: &str) -> String {
        fs::read_to_string(self.path(out).join(name)).expect("a file")
    }
}

fn read(work: &Work) -> promptmix::Result<Study> {
    Study::read(&work.path("study.toml"), None, Path::new(""))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number")).collect()
}

#[test]
fn a_study_chooses_on_validation_rows_and_tests_the_chosen_runs() {
    let work = Work::new();
    let output = work.compare("out", &[]);
    let heard = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{heard}");
    let said = String::from_utf8(output.stdout).expect("text");
    let results = work.results("out");
    assert_eq!(results["against"], "ATTEMPT");
    let targets = results["targets"].as_array().expect("targets");
    assert_eq!(targets.len(), 2);
    let (mut trained, mut distinct, mut best_sources) = (0, BTreeSet::new(), BTreeSet::new());
    for target in targets {
        let methods = target["methods"].as_array().expect("methods");
        assert_eq!(methods.len(), 4);
        let attempt = numbers(&methods[3]["test"]);
        // The best source as it is, the first of equals, is the one that SPoT starts from.
        let sources = target["sources"].as_array().expect("sources");
        let validation: Vec<f64> =
            sources.iter().map(|source| source[1].as_f64().expect("a number")).collect();
        let best = if validation[1] > validation[0] { "film" } else { "day" };
        let of_spot = methods[2]["runs"][0][0].as_str().expect("a folder");
        let run = fs::read(work.path("out").join(of_spot).join("run.json")).expect("a run");
        let run: Value = serde_json::from_slice(&run).expect("JSON");
        let started = run["config"]["sources"].as_array().expect("sources");
        assert_eq!(started.len(), 1);
        assert!(
            started[0].as_str().expect("a path").contains(&format!("sources/{best}/")),
            "{validation:?} {started:?}"
        );
        best_sources.insert(best);
        for method in methods {
            let runs = method["runs"].as_array().expect("runs");
            trained += runs.len();
            let (validation, test) = (numbers(&method["validation"]), numbers(&method["test"]));
            assert_eq!((validation.len(), test.len()), (2, 2));
            distinct.extend(test.iter().map(|value| value.to_bits()));
            // By hand: the rate with the best mean validation, the first of equals.
            let mean_at = |rate: f64| {
                let at =
                    runs.iter().filter(|run| run[1] == rate).map(|run| run[3].as_f64().expect("a number"));
                mean(&at.collect::<Vec<_>>())
            };
            if runs.is_empty() {
                assert_eq!(method["name"], "source as it is");
                continue;
            }
            for run in runs {
                let name = Path::new(run[0].as_str().expect("a folder")).file_name().expect("a name");
                let of = target["name"].as_str().expect("a name");
                let validated = format!("\n{of}: {}: validation at step 8:", name.display());
                assert!(heard.contains(&validated), "no {validated:?} in {heard}");
            }
            let chosen = if mean_at(3.0) > mean_at(0.3) { 3.0 } else { 0.3 };
            assert_eq!(method["learning-rate"], chosen, "{method}");
            // What `evaluate` says of the chosen runs.
            let of_chosen: Vec<&Value> = runs.iter().filter(|run| run[1] == chosen).collect();
            for (run, test) in of_chosen.iter().zip(&test) {
                let folder = format!("out/{}", run[0].as_str().expect("a folder"));
                // The run's folder keeps it, for reports.
                let kept = Evaluations::read(&work.path(&folder)).expect("kept");
                assert_eq!(kept.evaluations.len(), 1, "the test rows, once");
                let kept = &kept.evaluations[0];
                assert_eq!(
                    (kept.split, &kept.metrics[..]),
                    (Split::Test, &[("accuracy".into(), Some(*test))][..])
                );
                let output = work
                    .command(&["evaluate", "--run", &folder, "--split", "test", "--threads", "1", "--json"])
                    .output()
                    .expect("an end");
                let line: Value = serde_json::from_slice(&output.stdout).expect("JSON");
                assert_eq!(line["metrics"]["accuracy"].as_f64(), Some(*test), "{folder}");
            }
            for run in runs.iter().filter(|run| run[1] != chosen) {
                let folder = work.path("out").join(run[0].as_str().expect("a folder"));
                assert!(!folder.join("evaluation.json").exists(), "the others answer no test rows");
            }
            if method["name"] != "ATTEMPT" {
                let Paired { mean, interval: [low, high], .. } = Paired::new(&attempt, &test);
                assert!(said.contains(&format!("{mean:+.3} ({low:+.3} to {high:+.3})")), "{said}");
            }
        }
    }
    assert_eq!(trained, 2 * 3 * 2 * 2);
    assert!(distinct.len() >= 3, "results that differ: {distinct:?}");
    assert!(best_sources.contains("film"), "not always the first: {best_sources:?}");
    assert!(said.contains("(published 0.75)"), "{said}");
    // And what is not trained, on two targets with two seeds.
    let tsv = work.file("out", "results.tsv");
    assert_eq!(tsv.lines().count(), 1 + trained + 4);
    for target in work.results("out")["targets"].as_array().expect("targets") {
        for method in target["methods"].as_array().expect("methods") {
            let start = format!(
                "{}\t{}\t",
                target["name"].as_str().expect("a name"),
                method["name"].as_str().expect("a name")
            );
            let test = numbers(&method["test"]);
            let tested: Vec<Vec<&str>> = tsv
                .lines()
                .filter(|line| line.starts_with(&start))
                .map(|line| line.split('\t').collect())
                .filter(|cells: &Vec<&str>| !cells[5].is_empty())
                .collect();
            assert_eq!(tested.len(), 2, "{tsv}");
            for (cells, test) in tested.iter().zip(&test) {
                assert_eq!(cells[5], format!("{test:.6}"));
            }
            let (mean, half) = ((test[0] + test[1]) / 2.0, (test[0] - test[1]).abs() / 2.0);
            let of_both = [format!("{mean:.6}"), format!("{:.6}", half * 2.0_f64.sqrt())];
            assert!(tested.iter().all(|cells| cells[6..8] == of_both), "{tsv}");
        }
    }
    // Few rows are drawn anew for each seed.
    let data_seed = |seed: u64| {
        let run = format!("out/runs/room-few/attempt-rate-0.3-seed-{seed}/run.json");
        let run: Value = serde_json::from_slice(&fs::read(work.path(&run)).expect("a run")).expect("JSON");
        run["config"]["data-seed"].as_u64()
    };
    assert_eq!([data_seed(1), data_seed(2)], [Some(1), Some(2)]);

    // Again: nothing is trained. In shared batches: the same numbers.
    let started = Instant::now();
    assert_eq!(table(&work.success("out", &[])), table(&said));
    let again = started.elapsed();
    assert_eq!(table(&work.success("shared", &["--together", "4", "--threads", "2"])), table(&said));
    println!("again: {again:?}");
    assert_eq!(work.file("shared", "table.md"), work.file("out", "table.md"));
}

/// What is printed but for the time and the folder.
fn table(said: &str) -> String {
    said.lines().filter(|line| !line.starts_with("took")).collect::<Vec<_>>().join("\n")
}

/// Lines in the logs of all runs below a folder.
fn logged(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let count = |path: PathBuf| match path.is_dir() {
        true => logged(&path),
        false if path.ends_with("log.jsonl") => fs::read_to_string(path).map_or(0, |log| log.lines().count()),
        false => 0,
    };
    entries.flatten().map(|entry| count(entry.path())).sum()
}

#[test]
fn a_study_of_24_runs_that_is_killed_at_five_random_moments_ends_with_the_same_table() {
    let work = Work::new();
    work.success("whole", &[]);
    // Its 2 + 24 trainings log 12 + 192 steps, and validations; a kill comes between two writes or within one, or while the program starts.
    let random = |below: u64| RandomState::new().build_hasher().finish() % below;
    let mut kills = [(); 5].map(|()| (random(170) as usize, Duration::from_millis(random(25))));
    kills.sort_unstable();
    println!("lines in the logs, and then the time, before each kill: {kills:?}");
    for (lines, then) in kills {
        let mut child = work
            .command(&["compare", "study.toml", "--out", "killed"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a start");
        while logged(&work.path("killed")) < lines {
            assert!(child.try_wait().expect("a child").is_none(), "it ended before {lines} lines");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(then);
        child.kill().expect("a signal");
        child.wait().expect("an end");
    }
    assert!(!work.path("killed/results/room.json").exists(), "the last kill came before the end");
    work.success("killed", &[]);
    let is_whole = || {
        for file in ["table.md", "results.tsv", "results.json"] {
            assert!(work.file("killed", file) == work.file("whole", file), "{file}");
        }
    };
    is_whole();
    // A repetition that fails on the way leaves the tables as they are.
    fs::remove_file(work.path("killed/results/room.json")).expect("removed");
    fs::rename(work.path("room"), work.path("away")).expect("moved");
    assert!(!work.compare("killed", &[]).status.success());
    is_whole();
}

/// A figure on test rows of a run that was not chosen invites a choice on test rows.
#[test]
fn evaluating_a_study_on_test_rows_tells_which_runs_were_chosen() {
    let work = Work::new();
    work.success("out", &[]);
    let evaluate = |run: &str, split: &str| {
        let arguments = ["evaluate", "--run", run, "--split", split];
        let output = work.command(&arguments).output().expect("an end");
        let [out, said] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("text"));
        assert!(output.status.success(), "{said}");
        (out, said)
    };
    let results = work.results("out");
    let methods = || {
        let targets = results["targets"].as_array().expect("targets");
        targets.iter().flat_map(|target| target["methods"].as_array().expect("methods"))
    };
    let chosen: BTreeSet<&str> = methods()
        .flat_map(|method| method["chosen"].as_array().expect("runs"))
        .map(|run| run.as_str().expect("a folder"))
        .collect();
    assert_eq!(chosen.len(), 12, "two targets, three methods, two seeds");
    let (out, said) = evaluate("out", "test");
    assert!(
        said.contains("validation rows chose 12 of the study's 24 runs that are here, and not the other 12"),
        "{said}"
    );
    let marked: BTreeSet<&str> = out
        .lines()
        .filter(|line| line.ends_with("  chosen on validation rows"))
        .map(|line| line.split(' ').next().expect("a name"))
        .collect();
    assert_eq!(marked, chosen, "{out}");
    // A target's folder is of the study, too.
    let (out, said) = evaluate("out/runs/room", "test");
    assert!(said.contains("chose 6 of the study's 12 runs that are here"), "{said}");
    assert_eq!(out.matches("  chosen on validation rows").count(), 6, "{out}");
    let (out, said) = evaluate("out/runs/room", "validation");
    assert!(!out.contains("chosen") && !said.contains("chosen"), "{said}{out}");
}

#[test]
fn a_study_ends_on_a_signal_and_goes_on() {
    let work = Work::new();
    let child = work
        .command(&["compare", "study.toml", "--out", "out"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a start");
    let begun = work.path("out/sources/film/log.jsonl");
    let started = Instant::now();
    while !begun.exists() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(status.success());
    let output = child.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("the same command goes on"), "{said}");
    assert_eq!(said.matches("ending after the step or validation at hand").count(), 1, "{said}");
    assert!(!work.path("out/results.json").exists());
    work.success("out", &[]);
    work.success("whole", &[]);
    assert_eq!(work.file("out", "table.md"), work.file("whole", "table.md"));
}

#[test]
fn a_dry_run_counts_and_does_nothing() {
    let work = Work::new();
    let output = work.command(&["compare", "study.toml", "--dry-run"]).output().expect("an end");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Two sources of 6 steps; two targets of 3 methods, 2 rates and 2 seeds of 8 steps.
    let line = |name: &str| {
        let line =
            said.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {said}"));
        let words: Vec<&str> = line[name.len()..].split_whitespace().collect();
        words.join(" ")
    };
    assert_eq!([line("source prompts"), line("room, few"), line("all")], ["2 80 12", "12 8 96", "26 204"]);
    assert!(
        said.contains("test rows are answered by 16 runs") && said.contains("seconds of training"),
        "{said}"
    );
    // The same in epochs: 40 rows in batches of 7 are 6 steps, 8 few-shot rows are two.
    let text = fs::read_to_string(work.path("study.toml")).expect("a study");
    let epochs = text.replace("\nsteps = 8\n", "\nepochs = 3\n").replace("\nsteps = 6\n", "\nepochs = 2\n");
    let epochs = epochs.replace("batch-size = 8", "batch-size = 7");
    fs::write(work.path("study.toml"), epochs).expect("written");
    let output = work.command(&["compare", "study.toml", "--dry-run"]).output().expect("an end");
    let said = String::from_utf8(output.stdout).expect("text");
    let steps = |name: &str| {
        let line =
            said.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {said}"));
        line.split_whitespace().last().map(str::to_owned).expect("words")
    };
    assert_eq!(
        [steps("source prompts"), steps("room, few"), steps("room  "), steps("all")],
        ["24", "72", "216", "312"]
    );
    let mut left: Vec<String> = fs::read_dir(work.folder.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(left, ["day", "film", "room", "study.toml"]);
}

#[test]
fn a_study_that_cannot_be_is_refused_before_anything_is_trained() {
    let work = Work::new();
    let text = fs::read_to_string(work.path("study.toml")).expect("a study");
    for (from, to, expected) in [
        ("seeds = [1, 2]", "seeds = []", "study.seeds"),
        ("seeds = [1, 2]", "seds = [1, 2]", "seds"),
        ("sources = \"best\"", "sources = [\"nosuch\"]", "nosuch"),
        ("name = \"SPoT\"", "name = \"attempt\"", "different folders"),
        ("{ \"ATTEMPT\" = 0.75 }", "{ \"ATEMPT\" = 0.75 }", "ATEMPT"),
        ("few-shot = 4", "few-shots = 4", "few-shot"),
        ("steps = 8", "steps = 0", "--steps"),
        ("prompt-length = 4", "prompt-length = \"four\"", "four\", expected usize, in `prompt-length`"),
        ("seeds = [1, 2]", "seeds = 1", "in `seeds`"),
        ("[study]", "[stud]", "study"),
        ("untrained = true", "untrained = 1", "untrained"),
        ("[[study.target]]\nname = \"room\"", "[[study.target]]", "name"),
        ("name = \"ATTEMPT\"\n", "name = \"ATTEMPT\"\nlearning-rate = 0.5\n", "study.learning-rates"),
        ("steps = 8", "steps = 8\nseed = 5", "study.seeds"),
        ("few-shot = 4", "few-shot = 4\nsources = [\"a\"]", "study.source"),
        ("name = \"room\"", "name = \"?!\"", "different folders"),
        ("name = \"ATTEMPT\"\n", "name = \"ATTEMPT\"\nmodel = \"other\"\n", "one model"),
        ("learning-rates = [0.3, 3.0]", "learning-rates = [0.3, -3.0]", "--learning-rate"),
        ("sources = \"best\"", "sources = \"worst\"", "\"random\" or names of sources"),
        (
            "name = \"ATTEMPT\"\n",
            "name = \"ATTEMPT\"\nlearning-rates = [0.3, 0.30]\n",
            "study.method.learning-rates that name different folders",
        ),
        (
            "untrained = true",
            "untrained = true\nlearning-rates = [0.3]",
            "no `learning-rates` beside `untrained`",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        fs::write(work.path("study.toml"), text.replacen(from, to, 1)).expect("written");
        let output = work.compare("refused", &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{to}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        assert!(!work.path("refused").exists(), "{to}");
    }
    fs::write(work.path("study.toml"), text).expect("written");
    read(&work).expect("the study as it was");
}

/// What the last target reads is else found missing when all others are done.
#[test]
fn what_a_study_reads_is_looked_at_before_anything_is_trained() {
    let work = Work::new();
    let text = fs::read_to_string(work.path("study.toml")).expect("a study");
    let refused = |from: &str, to: &str, expected: &str| {
        assert!(text.contains(from), "{from}");
        fs::write(work.path("study.toml"), text.replacen(from, to, 1)).expect("written");
        for last in [["--out", "refused"].as_slice(), &["--dry-run"]] {
            let output = work.command(&[&["compare", "study.toml"], last].concat()).output().expect("an end");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(expected), "{to}: {said}");
            assert!(!work.path("refused").exists(), "{to}");
        }
    };
    refused("name = \"room\"\ndata = \"room\"", "name = \"room\"\ndata = \"nosuch\"", "nosuch");
    refused("data = \"film\"", "prompt = \"nosuch.safetensors\"", "nosuch.safetensors");
    refused(
        "name = \"ATTEMPT\"\n",
        "name = \"ATTEMPT\"\nprompt-length = 6\n",
        "4, the length of the source day",
    );
    let test = work.path("room/test.jsonl");
    let rows = fs::read_to_string(&test).expect("rows");
    fs::write(&test, rows.replace("\"label\": 0", "\"label\": -1").replace("\"label\": 1", "\"label\": -1"))
        .expect("written");
    refused("steps = 8", "steps = 8", "test.jsonl, line 1");
}

#[test]
fn a_study_in_a_folder_of_another_is_refused() {
    let work = Work::new();
    work.success("out", &[]);
    let before = work.file("out", "table.md");
    work.write(&METHODS.replace("name = \"ATTEMPT\"", "name = \"ATTEMPT\"\nscorer = \"constant\""));
    let output = work.compare("out", &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("scorer") && said.contains("constant"), "{said}");
    assert_eq!(work.file("out", "table.md"), before);
}

#[test]
fn seeds_draws_data_and_model_are_what_the_study_and_its_flags_say() {
    let work = Work::new();
    let text = fs::read_to_string(work.path("study.toml")).expect("a study");
    let few = text.replace("name = \"room\"\n", "name = \"room\"\nfew-shot = 5\n");
    let draws = few.replace("seeds = [1, 2]", "seeds = [1, 2]\ndraws = [7, 8, 9]");
    fs::write(work.path("study.toml"), &draws).expect("written");
    let study = read(&work).expect("a study");
    let places: Vec<(u64, usize)> = study.places.iter().map(|place| (place.seed, place.data)).collect();
    assert_eq!(places, [(1, 7), (1, 8), (1, 9), (2, 7), (2, 8), (2, 9)]);
    let said = work.command(&["compare", "study.toml", "--dry-run"]).output().expect("an end").stdout;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains(&format!("test rows are answered by {} runs", 2 * 4 * 6)), "{said}");

    // The data elsewhere, and a model of another name.
    fs::create_dir(work.path("rows")).expect("a folder");
    for task in ["film", "day", "room"] {
        fs::rename(work.path(task), work.path("rows").join(task)).expect("moved");
    }
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo").display().to_string();
    fs::write(work.path("study.toml"), text.replace(&format!("model = {demo:?}\n"), "")).expect("written");
    let said = String::from_utf8_lossy(&work.compare("out", &["--model", &demo]).stderr).into_owned();
    assert!(said.contains("the folder day"), "there is no data here: {said}");
    let said = work.success("other", &["--model", &demo, "--data-root", "rows"]);
    assert!(said.contains("| room, few |"), "{said}");
}

#[test]
fn the_data_root_holds_for_each_of_several_tasks_places() {
    let work = Work::new();
    let text = fs::read_to_string(work.path("study.toml")).expect("a study");
    let several = "name = \"both\"\ntask = \"sst2,rte\"\ndata = \"film,hub:\"";
    let text = text.replace("labels = \"negative,positive\"\n", "");
    fs::write(work.path("study.toml"), text.replace("name = \"room\"\ndata = \"room\"", several))
        .expect("written");
    let study = Study::read(&work.path("study.toml"), None, Path::new("/rows")).expect("a study");
    let places: Vec<&Path> = study.targets.iter().map(|target| target.config.data.as_path()).collect();
    assert_eq!(places, [Path::new("/rows/room"), Path::new("/rows/film,hub:")]);
}

/// By hand: the norm of each row is the source's, and the numbers hang on the seed alone.
#[test]
fn random_sources_have_the_norms_of_the_sources() {
    let work = Work::new();
    work.write(
        "[[study.method]]\nname = \"ATTEMPT\"\n[[study.method]]\nname = \"random\"\nsources = \"random\"\n",
    );
    let first = table(&work.success("out", &[]));
    let norms = |path: &Path| -> Vec<f32> {
        let prompt = Prompt::load(path).expect("a prompt");
        let rows = prompt.values().chunks(prompt.width());
        rows.map(|row| row.iter().map(|value| value * value).sum::<f32>().sqrt()).collect()
    };
    let random = |seed: &str, source: &str| {
        work.path("out").join("random").join(seed).join(format!("{source}.safetensors"))
    };
    for source in ["day", "film"] {
        let learnt = work.path("out").join("sources").join(source).join("prompt.safetensors");
        let expected = norms(&learnt);
        assert_eq!(expected.len(), 4);
        for seed in ["1", "2"] {
            let found = norms(&random(seed, source));
            // Sums of at most some hundred squares in f32.
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b && *b > 0.0;
            assert!(found.len() == 4 && found.iter().zip(&expected).all(near), "{found:?} {expected:?}");
        }
        let [one, two] = ["1", "2"].map(|seed| fs::read(random(seed, source)).expect("a file"));
        assert_ne!(one, two, "another for each seed");
        assert_ne!(one, fs::read(&learnt).expect("a file"));
    }
    let of_method =
        |target: usize, method: usize| work.results("out")["targets"][target]["methods"][method].clone();
    let run = of_method(0, 1)["chosen"][1].as_str().expect("a folder").to_owned();
    let run = fs::read_to_string(work.path("out").join(run).join("run.json")).expect("a run");
    assert!(run.contains("random/2/day.safetensors"), "{run}");
    assert_eq!(
        of_method(0, 1)["attention"].as_array().expect("weights").len(),
        3,
        "two sources and the target"
    );
    let prompt = fs::read(random("1", "day")).expect("a file");
    // Its folder may be written in another way, and may move.
    fs::remove_dir_all(work.path("out").join("results")).expect("removed");
    assert_eq!(table(&work.success("./out", &[])), first, "goes on with the same prompts");
    fs::rename(work.path("out"), work.path("moved")).expect("moved");
    fs::remove_dir_all(work.path("moved").join("results")).expect("removed");
    assert_eq!(table(&work.success("moved", &[])), first, "goes on where it is now");
    fs::rename(work.path("moved"), work.path("out")).expect("moved back");
    assert_eq!(fs::read(random("1", "day")).expect("a file"), prompt);
}

/// The same run counted twice would narrow the deviation and the interval.
#[test]
fn runs_that_would_be_counted_twice_are_refused() {
    let work = Work::new();
    let text = fs::read_to_string(work.path("study.toml")).expect("a study");
    for (seeds, said) in [
        ("seeds = [1, 1]", "study.seeds that name different folders"),
        ("seeds = [1, 2]\ndraws = [7, 7]", "study.draws that name different folders"),
        ("seeds = [1, 2]\ndraws = []", "at least one entry of study.draws"),
        ("seeds = [1, 2]\ndraws = [7, 8]", "target room, of which every draw has the same rows"),
    ] {
        fs::write(work.path("study.toml"), text.replace("seeds = [1, 2]", seeds)).expect("written");
        let refused = read(&work).expect_err(seeds).to_string();
        assert!(refused.contains(said), "{refused}");
    }
    fs::write(work.path("study.toml"), text.replace("[0.3, 3.0]", "[0.3, 0.30]")).expect("written");
    let refused = read(&work).expect_err("a rate twice").to_string();
    assert!(refused.contains("study.learning-rates that name different folders"), "{refused}");
    fs::write(work.path("study.toml"), format!("draws = 3\n{text}")).expect("written");
    let refused = read(&work).expect_err("no setting of a study").to_string();
    assert!(refused.contains("`study.draws` in place of `draws`"), "{refused}");
    // One draw is each run once.
    fs::write(work.path("study.toml"), text.replace("seeds = [1, 2]", "seeds = [1, 2]\ndraws = [7]"))
        .expect("written");
    read(&work).expect("a study");
}

/// Runs that went on from the old prompt and runs from the new one would be compared.
#[test]
fn a_source_prompt_that_changed_since_the_study_began_is_refused() {
    let work = Work::new();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let learn = |seed: &str| {
        let mut command =
            work.command(&["train", "--task", "sst2", "--labels", "negative,positive", "--steps", "1"]);
        command.args(["--method", "prompt-tuning", "--prompt-length", "4", "--data", "day", "--seed", seed]);
        command.arg("--model").arg(&demo).args(["--out", &format!("day-{seed}")]);
        let output = command.output().expect("an end");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        work.path(&format!("day-{seed}")).join("prompt.safetensors")
    };
    let (first, second) = (learn("1"), learn("2"));
    let prompt = work.path("day.safetensors");
    fs::copy(&first, &prompt).expect("a copy");
    let text = fs::read_to_string(work.path("study.toml")).expect("a study");
    // One target, whose settings stand before the methods'.
    let (start, rest) = text.split_once("[[study.target]]\nname = \"room, few\"").expect("the first target");
    let (_, rest) = rest.split_once("[[study.target]]").expect("the second target");
    let start =
        start.replace("name = \"day\"\ndata = \"day\"", "name = \"day\"\nprompt = \"day.safetensors\"");
    fs::write(work.path("study.toml"), format!("{start}[[study.target]]{rest}")).expect("written");
    let done = table(&work.success("out", &[]));
    assert_eq!(table(&work.success("out", &[])), done, "the same prompt");
    fs::copy(&second, &prompt).expect("a copy");
    let refused = work.compare("out", &[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("the source day as the study began with it"),
        "{said}"
    );
    fs::copy(&first, &prompt).expect("a copy");
    assert_eq!(table(&work.success("out", &[])), done, "the old prompt again");
}

/// By hand, with 2.776445 as tables of Student's t have it for four degrees of freedom at 0.975.
#[test]
fn a_paired_interval_is_that_of_the_t_table() {
    let (a, b) = ([0.98, 0.95, 0.99, 0.97, 0.96], [0.90, 0.93, 0.91, 0.96, 0.88]);
    let paired = Paired::new(&a, &b);
    assert!((paired.mean - 0.054).abs() < 1e-12);
    let expected = [0.009_576_88, 0.098_423_12];
    for (found, expected) in paired.interval.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} and not {expected}");
    }
}

#[test]
fn one_pair_says_nothing_of_its_spread() {
    let paired = Paired::new(&[0.5], &[0.25]);
    assert_eq!(paired.mean, 0.25);
    assert!(paired.interval[1].is_infinite());
}

/// By hand: the source and the rate with the best mean validation, the first of equals, and its runs alone answer the test rows.
#[test]
fn a_method_that_takes_each_source_alone_chooses_one_on_validation_rows() {
    let work = Work::new();
    let each = METHODS.replace(
        "name = \"SPoT\"\nmethod = \"spot\"\nsources = \"best\"",
        "name = \"SPoT\"\nmethod = \"spot\"\nsources = \"each\"",
    );
    work.write(&each);
    let text = fs::read_to_string(work.path("study.toml")).expect("the study");
    fs::write(work.path("study.toml"), text.replace("name = \"film\"", "name = \"film|1\""))
        .expect("written");
    work.success("out", &[]);
    let (tsv, table) = (work.file("out", "results.tsv"), work.file("out", "table.md"));
    for target in work.results("out")["targets"].as_array().expect("targets") {
        let method = &target["methods"][2];
        let runs = method["runs"].as_array().expect("runs");
        // Two sources, two rates, two seeds, in this order.
        assert_eq!(runs.len(), 8);
        let validation: Vec<f64> = runs.iter().map(|run| run[3].as_f64().expect("a number")).collect();
        let means: Vec<f64> = validation.chunks(2).map(mean).collect();
        let best = (1..4).fold(0, |best, other| if means[other] > means[best] { other } else { best });
        let (source, rate) = (["day", "film|1"][best / 2], [0.3, 3.0][best % 2]);
        assert_eq!(method["source"], source, "{means:?}");
        assert_eq!(method["learning-rate"], rate, "{means:?}");
        let name = target["name"].as_str().expect("a name");
        let chosen = table.lines().rfind(|line| line.starts_with(&format!("| {name} |"))).expect("a line");
        let cell = format!(" | {}; {rate}; ", source.replace('|', "\\|"));
        assert!(chosen.contains(&cell), "{cell} is not in {chosen}");
        for (index, run) in runs.iter().enumerate() {
            let folder = run[0].as_str().expect("a folder");
            assert!(folder.contains(["spot-day-", "spot-film-1-"][index / 4]), "{folder}");
            let line = tsv.lines().find(|line| line.ends_with(folder)).expect("a line");
            let cells: Vec<&str> = line.split('\t').collect();
            assert_eq!(cells[5].is_empty(), index / 2 != best, "{line}");
            let answered = work.path("out").join(folder).join("evaluation.json").exists();
            assert_eq!(answered, index / 2 == best, "{folder}");
        }
    }
}
