//! `promptmix prompts`, several tasks and task files from the command line.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};

use promptmix::backend::cpu::Cpu;
use promptmix::pretrained::{Checkpoint, T5Config, Tokenizer};
use promptmix::prompts::{Prompt, PromptMetadata, nearest};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

#[path = "common/program.rs"]
mod program;
#[path = "common/random.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod random;

use random::Random;

fn manifest() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn run(arguments: &[&str]) -> (bool, String, String) {
    let output = program::promptmix().args(arguments).output().expect("the binary runs");
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
    for command in ["list", "show", "add", "remove", "import", "export", "merge", "nearest", "similar"] {
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
    for weights in ["1", "1,-1", "nan,1", "inf,1", "1e308,1e308"] {
        let message = error(&["prompts", "merge", &one, &two, "--weights", weights, "--out", &both]);
        assert!(message.contains("--weights: expected 2 numbers with a finite sum"), "{message}");
    }
    // Nothing that is read is written over, nor what belongs to a run.
    let before = [&one, &two, &both].map(|path| fs::read(path).expect("a prompt"));
    for (prompts, out, part) in [
        ([&both, &one], &both, "which is read"),
        ([&both, &both], &one, "a file of a run"),
        ([&work.path("one"), &both], &one, "a file of a run"),
    ] {
        let message = error(&["prompts", "merge", prompts[0], prompts[1], "--out", out]);
        assert!(message.contains("--out") && message.contains(part), "{message}");
    }
    let (folder, part) = (work.path("one"), work.path("part.safetensors"));
    assert!(success(&["prompts", "import", &folder, "--length", "1", "--out", &part]).contains("1 row"));
    let of = |path: &str| Prompt::load(Path::new(path)).expect("a prompt").metadata().clone();
    assert_eq!(of(&part), of(&one), "its first rows are of the same model and task");
    let message = error(&["prompts", "import", &folder, "--adapter-task", "1", "--out", &part]);
    assert!(message.contains("--adapter-task"), "{message}");
    let message = error(&["prompts", "import", &both, "--out", &work.path("one/../both.safetensors")]);
    assert!(message.contains("which is read"), "{message}");
    assert!(before == [&one, &two, &both].map(|path| fs::read(path).expect("a prompt")));

    let flags = ["--task", "sst2", "--data", &data, "--rank", "4", "--sources", &one];
    work.train("run", &flags);
    let (run, more, less) = (work.path("run"), work.path("more"), work.path("less"));
    success(&["prompts", "add", "--run", &run, "--source", &two, "--out", &more]);
    let best = || fs::read(work.path("more/best.safetensors")).expect("the state");
    let before = best();
    let refused = error(&["train", "--resume", "--steps", "9", "--out", &more]);
    assert!(refused.contains("trained in another") && refused.contains("--initial-scorer"), "{refused}");
    assert!(best() == before, "what was trained stays");
    let report = success(&["evaluate", "--run", &more]);
    assert!(report.matches("attention").count() == 3, "{report}");
    work.train("alone", &[&flags[..], &["--without-target"]].concat());
    let message = error(&["prompts", "show", &work.path("alone")]);
    assert!(message.contains("as --without-target says"), "{message}");
    // Finite numbers whose scores are not: nothing is written that could not be read.
    let (huge, beyond) = (work.path("huge.safetensors"), work.path("beyond"));
    let prompt = Prompt::load(Path::new(&two)).expect("a prompt");
    let (rows, width, about) = (prompt.length(), prompt.width(), prompt.metadata().clone());
    let values = vec![3e38; rows * width];
    Prompt::new("huge", values, rows, width, about).expect("a prompt").save(Path::new(&huge)).expect("saved");
    success(&["prompts", "add", "--run", &run, "--source", &huge, "--out", &beyond]);
    let message = error(&["evaluate", "--run", &beyond]);
    assert!(message.contains("the mixture's weights: expected finite numbers"), "{message}");
    assert!(!Path::new(&beyond).join("evaluation.json").exists());
    // Where a source is called as the target prompt is, evaluate says which is which.
    let (namesake, mixed) = (work.path("target.safetensors"), work.path("mixed"));
    fs::copy(&two, &namesake).expect("copied");
    success(&["prompts", "add", "--run", &run, "--source", &namesake, "--out", &mixed]);
    assert!(success(&["evaluate", "--run", &mixed]).contains("target (source)"));
    let without = work.path("without");
    success(&["prompts", "remove", "--run", &mixed, "--source", "target (source)", "--out", &without]);
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
fn two_tasks_one_from_a_file_train_are_evaluated_and_answer_together() {
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
    let said = work.train("single", &[&flags[..], &["--draws", "1"]].concat());
    assert!(
        said.contains(" of one draw") && !said.contains("deviation"),
        "one run deviates from nothing: {said}"
    );
    let summary = || fs::read_to_string(work.path("few/few_shot.json")).expect("a summary");
    let before = summary();
    assert!(success(&["train", "--resume", "--out", &work.path("few")]).contains("over 2 draws"));
    fs::rename(&data, work.path("away")).expect("moved");
    error(&["train", "--resume", "--out", &work.path("few")]);
    assert_eq!(summary(), before, "what was found stays");
    fs::rename(work.path("away"), &data).expect("moved back");
    let longer =
        |steps| ["train", "--resume", "--out", &work.path("few"), "--steps", steps].map(str::to_owned);
    let shorter = longer("2");
    let message = error(&shorter.each_ref().map(String::as_str));
    assert!(message.contains("--steps: expected more than 2, found 2"), "{message}");
    let said = success(&longer("4").each_ref().map(String::as_str));
    assert_eq!(said.matches("of 4").count(), 2, "each draw is longer: {said}");
    assert!(success(&["train", "--resume", "--out", &work.path("few")]).contains("of 4"), "and stays so");
    let said = work.train("one", &[&flags[..], &["--data-seed", "7"]].concat());
    assert!(said.contains("2 steps") && Path::new(&work.path("one/prompt.safetensors")).is_file(), "{said}");
}

#[test]
fn few_shot_runs_that_were_refused_leave_the_folder_to_the_command_that_is_put_right() {
    let work = Work::new();
    let (data, out) = (work.path("data/sst2"), work.path("few"));
    let flags = |rows: &'static str| {
        ["--task", "sst2", "--data", &data, "--draws", "2", "--few-shot", rows].map(str::to_owned)
    };
    let refused = |rows| {
        let (flags, model) = (flags(rows), manifest().join("demo").display().to_string());
        let fixed = ["train", "--model", &model, "--method", "prompt-tuning", "--steps", "2", "--out", &out];
        error(&fixed.into_iter().chain(flags.iter().map(String::as_str)).collect::<Vec<_>>())
    };
    assert!(refused("1000").contains("1000"));
    assert!(!Path::new(&out).exists(), "nothing was learnt");
    // What a kill leaves before the first step.
    work.write("few/few_shot_settings.toml", "draws = 2\n");
    work.write("few/draw-42/log.txt", "");
    work.write("few/draw-42/config.toml", "");
    assert!(refused("1000").contains("1000"));
    assert_eq!(fs::read_dir(&out).expect("a folder").count(), 0, "what the kill left is gone");
    work.write("few/notes.txt", "mine");
    assert!(refused("3").contains("holds files"));
    fs::remove_file(work.path("few/notes.txt")).expect("removed");
    let flags = flags("3");
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--method", "prompt-tuning"]).collect();
    assert!(work.train("few", &flags).contains("over 2 draws"));
    assert!(refused("4").contains("holds files"), "runs that were done stay");
    fs::remove_dir_all(work.path("few/draw-42")).expect("removed");
    fs::remove_dir_all(work.path("few/draw-43")).expect("removed");
    assert!(refused("4").contains("holds files"), "and so does what they came to");
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
    for part in ["one", "other"] {
        let row = "{\"sentence\": \"a film\", \"label\": 1}\n";
        work.write(&format!("data/parts/train/{part}.jsonl"), row);
    }
    let shown = success(&["tasks", "--show", "sst2", "--data", &work.path("data/parts"), "--split", "train"]);
    assert!(shown.contains("2 rows of") && shown.contains("train/one.jsonl and 1 more"), "{shown}");
    assert!(success(&["tasks", "--show", "superglue-cb"]).contains("macro-f1"));
    assert!(error(&["tasks", "--show", "sst3"]).contains("sst2"));
}

/// A T5 of random weights whose embedding is longer than what is read of a file at a time, a row across the border.
fn random_model(folder: &Path) {
    let text = fs::read_to_string(fixture("tiny") + "/config.json").expect("a configuration");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    (json["d_model"], json["vocab_size"]) = (24.into(), 25_000.into());
    let bytes = serde_json::to_vec(&json).expect("JSON");
    fs::write(folder.join("config.json"), &bytes).expect("written");
    let config = T5Config::from_json(&folder.join("config.json"), &bytes).expect("a T5");
    let mut random = Random::new(5);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let values = random.normals(count, 1.0);
            (name, shape, values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a view"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("written");
}

#[test]
fn nearest_words_are_those_of_a_plain_computation_in_f64() {
    let folder = tempfile::tempdir().expect("a folder");
    random_model(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).expect("a T5");
    let words = checkpoint.embedding().expect("an embedding");
    let width = 24;
    assert!(words.len() * 4 > 2 << 20 && !(2_usize << 20).is_multiple_of(width * 4), "a border within a row");
    let mut random = Random::new(9);
    let mut values: Vec<f32> = random.normals(5 * width, 3.0).into_iter().map(|value| value as f32).collect();
    // A word twice as long, a row of zeros, and one so large that its products overflow f32.
    (0..width).for_each(|i| values[i] = 2.0 * words[24_321 * width + i]);
    values[width..2 * width].fill(0.0);
    values[2 * width..3 * width].iter_mut().for_each(|value| *value *= 1e37);
    let prompt = Prompt::new("made", values.clone(), 5, width, PromptMetadata::default()).expect("a prompt");
    let cpu = Cpu::new(Some(1)).expect("threads");
    let found = nearest(&checkpoint, &cpu, &prompt, 5, 7).expect("words");
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    for (row, found) in values.chunks_exact(width).zip(&found) {
        let mut expected: Vec<(usize, f64)> = words
            .chunks_exact(width)
            .map(|word| {
                let norms = dot(row, row).sqrt() * dot(word, word).sqrt();
                if norms > 0.0 { dot(row, word) / norms } else { 0.0 }
            })
            .enumerate()
            .collect();
        expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        assert_eq!(found.len(), 7);
        for (found, (id, similarity)) in found.iter().zip(expected) {
            assert_eq!(found.id as usize, id);
            assert!((found.similarity - similarity).abs() < 1e-12, "{found:?} {similarity}");
        }
    }
    assert_eq!((found[0][0].id, found[1][6].id), (24_321, 6));
    let message = nearest(&checkpoint, &cpu, &prompt, 6, 7).expect_err("a row too many").to_string();
    assert!(message.contains("--rows: expected 1 to 5"), "{message}");
    nearest(&checkpoint, &cpu, &prompt, 5, 0).expect_err("no words");
}

#[test]
fn a_prompt_of_words_is_nearest_to_those_words_and_marks_are_marked() {
    let work = Work::new();
    let demo = manifest().join("demo");
    let checkpoint = Checkpoint::open(&demo).expect("the demo model");
    let words = checkpoint.embedding().expect("an embedding");
    let width = checkpoint.config().d_model;
    let tokenizer = Tokenizer::open(&demo, checkpoint.config()).expect("a tokenizer");
    let sentinel = tokenizer.encode_without_eos("<extra_id_3>").expect("ids");
    let [sentinel] = sentinel[..] else { panic!("{sentinel:?} is no sentinel") };
    let ids = [7_u32, 250, 1, sentinel];
    let values = ids.iter().flat_map(|&id| &words[id as usize * width..][..width]).copied().collect();
    let path = work.path("words.safetensors");
    let prompt = Prompt::new("words", values, 4, width, PromptMetadata::default()).expect("a prompt");
    prompt.save(Path::new(&path)).expect("saved");
    let demo = demo.display().to_string();
    let said = success(&["prompts", "nearest", &path, "--model", &demo, "--json"]);
    let rows: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(rows.len(), 4);
    for ((row, id), kind) in rows.iter().zip(ids).zip(["text", "text", "special", "sentinel"]) {
        let first = &row["nearest"][0];
        assert_eq!((&first["id"], &first["kind"]), (&id.into(), &kind.into()), "{row}");
        assert_eq!(first["similarity"], 1.0);
        assert!(row["nearest"][1]["similarity"].as_f64().expect("a number") < 1.0, "{row}");
    }
    assert_eq!(rows[3]["nearest"][0]["token"], "<extra_id_3>");
    let said = success(&["prompts", "nearest", &path, "--model", &demo, "--rows", "3", "--top", "2"]);
    assert_eq!(said.lines().count(), 4, "{said}");
    assert!(said.contains("</s> (special) 1.0000") && !said.contains("extra_id_3"), "{said}");
    let message = error(&["prompts", "nearest", &path, "--model", &fixture("tiny")]);
    assert!(message.contains("width 64"), "{message}");
}

#[test]
fn a_prompt_that_starts_from_the_vocabulary_is_words() {
    let work = Work::new();
    let flags = ["--method", "prompt-tuning", "--prompt-init", "vocabulary", "--learning-rate", "0"];
    work.train("run", &[&flags[..], &["--task", "sst2", "--data", &work.path("data/sst2")]].concat());
    let demo = manifest().join("demo").display().to_string();
    let said = success(&["prompts", "nearest", &work.path("run"), "--model", &demo, "--top", "1", "--json"]);
    for line in said.lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(
            (&row["nearest"][0]["similarity"], &row["nearest"][0]["kind"]),
            (&1.0.into(), &"text".into())
        );
    }
    assert_eq!(said.lines().count(), 4);
}

#[test]
fn sources_are_sorted_by_what_compare_finds_for_each_as_it_is() {
    let work = Work::new();
    let demo = manifest().join("demo").display().to_string();
    // Sources that learnt the rule of the rows, or to say always the one thing or the other.
    let row = |i: usize, label: usize| {
        format!("{{\"sentence\": \"a {} film {i}\", \"label\": {label}}}\n", ["bad", "good"][i % 2])
    };
    for (split, rows) in [("train", 0..24), ("validation", 100..119), ("test", 200..206)] {
        for (name, label) in [("films", [0, 1]), ("rare", [1, 1]), ("frequent", [0, 0])] {
            // Two rows in three of the validation say one thing, so that it matters which of the two.
            let rows = rows.clone().map(|i| if i % 3 == 0 { 2 * i } else { i });
            let text = rows.map(|i| row(i, label[i % 2])).collect::<String>();
            work.write(&format!("{name}/{split}.jsonl"), &text);
        }
    }
    let films = work.path("films");
    let task = ["--task", "sst2", "--labels", "negative,positive"];
    for (name, data) in [("short", "rare"), ("middle", "frequent"), ("long-0.5", "films")] {
        let data = work.path(data);
        let flags = ["--data", &data, "--method", "prompt-tuning", "--validate-every", "60", "--steps", "60"];
        let flags =
            [&task[..], &flags, &["--learning-rate", "3", "--decoding", "labels", "--batch-size", "8"]]
                .concat();
        let (model, out) = (["train", "--prompt-length", "4", "--model", &demo], ["--out", &work.path(name)]);
        success(&[&model[..], &flags, &out].concat());
    }
    let names = ["short", "middle", "long-0.5"];
    let [short, middle, long] = names.map(|name| work.path(name));
    // One is given as a file, the others as folders.
    let sources = [short.as_str(), &format!("{middle}/prompt.safetensors"), &long];
    let flags = ["--to", &films, "--model", &demo, "--decoding", "labels", "--prompt", &long, "--json"];
    let said = success(&[&["prompts", "similar"], &sources[..], &task, &flags].concat());
    let found: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let study = format!(
        "model = {demo:?}\ntask = \"sst2\"\nlabels = \"negative,positive\"\nprompt-length = 4\nbatch-size = 8\n\
         steps = 1\ndecoding = \"labels\"\n[study]\nseeds = [1]\nlearning-rates = [0.3]\n\
         {}[[study.target]]\nname = \"films\"\ndata = {films:?}\n[[study.method]]\nname = \"as it is\"\n\
         method = \"spot\"\nsources = \"best\"\nuntrained = true\n",
        names
            .map(|name| format!("[[study.source]]\nname = {name:?}\nprompt = {:?}\n", work.path(name)))
            .concat()
    );
    work.write("study.toml", &study);
    success(&["compare", &work.path("study.toml"), "--out", &work.path("study")]);
    let results = fs::read(work.path("study/results.json")).expect("results");
    let results: serde_json::Value = serde_json::from_slice(&results).expect("JSON");
    let compared = results["targets"][0]["sources"].as_array().expect("sources").clone();
    let mean = |name: &str| {
        let line = found.iter().find(|line| line["source"] == name).expect("a line");
        assert_eq!(line["examples"], 19);
        line["mean"].as_f64().expect("a number")
    };
    let mut means = Vec::new();
    for (name, source) in names.iter().zip(&compared) {
        assert_eq!((&source[0], source[1].as_f64()), (&(*name).into(), Some(mean(name))));
        let evaluated = success(&["evaluate", "--run", &work.path(name), "--data", &films, "--json"]);
        let evaluated: serde_json::Value = serde_json::from_str(evaluated.trim()).expect("JSON");
        assert_eq!(evaluated["metrics"]["accuracy"].as_f64(), Some(mean(name)), "{evaluated}");
        means.push(mean(name));
    }
    assert!(means[0] < means[1] && means[1] < means[2], "sources that differ: {means:?}");
    let sorted: Vec<f64> = found.iter().map(|line| line["mean"].as_f64().expect("a number")).collect();
    assert!(sorted.is_sorted_by(|a, b| a >= b), "{sorted:?}");

    // Similarity is that of the library, and sorts alone where no data are given.
    let said =
        success(&[&["prompts", "similar"], &sources[..], &["--model", &demo, "--prompt", &long]].concat());
    assert!(said.starts_with("long-0.5") && said.contains("similarity 1.0000"), "{said}");
    let load = |path: &str| Prompt::load(Path::new(path)).expect("a prompt");
    let expected = promptmix::prompts::similarity(&load(&middle), &load(&long));
    let line = found.iter().find(|line| line["source"] == "middle").expect("a line");
    assert_eq!(line["similarity"].as_f64(), Some(expected));
    let message = error(&["prompts", "similar", &short, "--model", &demo]);
    assert!(message.contains("--to") && message.contains("--prompt"), "{message}");
    let message =
        error(&["prompts", "similar", &short, "--model", &demo, "--prompt", &long, "--task", "sst2"]);
    assert!(message.contains("--to"), "{message}");
}

#[test]
fn a_merged_prompt_says_of_what_it_is_the_mean() {
    let work = Work::new();
    let data = work.path("data/sst2");
    for name in ["one", "two"] {
        work.train(name, &["--task", "sst2", "--data", &data, "--method", "prompt-tuning"]);
    }
    let (saved, imported) = (fixture("peft/saved"), work.path("imported.safetensors"));
    success(&["prompts", "import", &saved, "--out", &imported]);
    let (both, again) = (work.path("both.safetensors"), work.path("again.safetensors"));
    let [one, two] = ["one", "two/prompt.safetensors"].map(|name| work.path(name));
    let said = success(&["prompts", "merge", &one, &two, "--weights", "3,1", "--out", &both]);
    assert!(said.contains("0.7500 one, 0.2500 two"), "{said}");
    let merged = Prompt::load(Path::new(&both)).expect("a prompt");
    let parts: Vec<(&str, f64, Option<&str>)> = merged
        .metadata()
        .merged_from
        .iter()
        .map(|part| (part.name.as_str(), part.weight, part.task.as_deref()))
        .collect();
    assert_eq!(parts, [("one", 0.75, Some("sst2")), ("two", 0.25, Some("sst2"))]);
    let shown = success(&["prompts", "show", &both]);
    assert!(shown.contains("merged from    0.7500 one (sst2)"), "{shown}");
    let listed = success(&["prompts", "list", &both]);
    assert!(listed.contains("(the mean of 0.7500 one, 0.2500 two)"), "{listed}");
    let json: serde_json::Value =
        serde_json::from_str(&success(&["prompts", "list", "--json", &both])).expect("JSON");
    assert_eq!(json["merged_from"][1]["weight"], 0.25);
    // Where a part came from goes with it.
    success(&["prompts", "merge", &imported, "--out", &again]);
    let shown = success(&["prompts", "show", &again]);
    assert!(shown.contains("1.0000 imported (a PEFT adapter, saved)"), "{shown}");
}

#[test]
fn a_list_tells_the_runs_of_a_sweep_apart_in_the_order_of_their_numbers() {
    let work = Work::new();
    let demo = manifest().join("demo").display().to_string();
    let sweep = format!(
        "model = {demo:?}\ntask = \"sst2\"\ndata = {:?}\nmethod = \"prompt-tuning\"\nprompt-length = 4\n\
         steps = 1\n[sweep]\nseed = [2, 10]\nlearning-rate = [0.5]\n",
        work.path("data/sst2")
    );
    work.write("sweep.toml", &sweep);
    success(&["sweep", &work.path("sweep.toml"), "--out", &work.path("sweep")]);
    let listed = success(&["prompts", "list", &work.path("sweep")]);
    let runs: Vec<Vec<&str>> = listed.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        runs.iter().map(|run| &run[7..9]).collect::<Vec<_>>(),
        [["0.5", "2"], ["0.5", "10"]],
        "{listed}"
    );
}

#[test]
fn the_folder_of_a_run_stands_for_its_prompt() {
    let work = Work::new();
    let data = work.path("data/sst2");
    for (name, seed) in [("one-0.1", "1"), ("one-0.2", "2")] {
        work.train(name, &["--task", "sst2", "--data", &data, "--method", "prompt-tuning", "--seed", seed]);
    }
    let [one, two] = ["one-0.1", "one-0.2"].map(|name| work.path(name));
    let sources = format!("{one},{two}/prompt.safetensors");
    let attempt = ["--task", "sst2", "--data", &data, "--rank", "4"];
    work.train("run", &[&attempt[..], &["--sources", &sources]].concat());
    let as_files = format!("{one}/prompt.safetensors,{two}/prompt.safetensors");
    work.train("files", &[&attempt[..], &["--sources", &as_files]].concat());
    let evaluate = |run: &str| success(&["evaluate", "--run", &work.path(run), "--json"]);
    let evaluated: serde_json::Value = serde_json::from_str(evaluate("run").trim()).expect("JSON");
    assert_eq!(evaluated["prompts"], serde_json::json!(["one-0.1", "one-0.2", "target"]));
    assert_eq!(evaluate("run"), evaluate("files"));
    let twice = format!("{one},{one}/prompt.safetensors");
    let model = manifest().join("demo").display().to_string();
    let train = |sources: &str| {
        let fixed =
            ["train", "--model", &model, "--prompt-length", "4", "--steps", "1", "--out", &work.path("no")];
        error(&[&fixed[..], &attempt, &["--sources", sources]].concat())
    };
    assert!(train(&twice).contains("twice"));
    assert!(train(&work.path("data")).contains("a folder without prompt.safetensors"));

    let (run, more, less) = (work.path("run"), work.path("more"), work.path("less"));
    success(&["prompts", "remove", "--run", &run, "--source", "one-0.2", "--out", &less]);
    let said = success(&["prompts", "add", "--run", &less, "--source", &two, "--out", &more]);
    assert!(said.contains("one-0.1") && said.contains("one-0.2"), "{said}");
    assert_eq!(evaluate("more"), evaluate("run"));
    assert!(success(&["prompts", "show", &one]).starts_with("one-0.1: 4 rows"));

    // Of several tasks none is the run's prompt.
    let both = format!("sst2,{}", work.path("stars.toml"));
    work.train("tasks", &["--task", &both, "--data", &work.path("data"), "--method", "prompt-tuning"]);
    let message = train(&work.path("tasks"));
    assert!(
        message.contains("prompts/sst2.safetensors") && message.contains("prompts/stars.safetensors"),
        "{message}"
    );

    // A run whose prompt was removed has a scorer too, and is still none that learnt a scorer alone.
    fs::remove_file(format!("{run}/prompt.safetensors")).expect("removed");
    let message = train(&run);
    assert!(message.contains("a run without its prompt.safetensors"), "{message}");
    success(&["train", "--resume", "--out", &run]);
    success(&["prompts", "show", &run]);
}

/// The system ends a program at once whose file grows beyond `ulimit -f`, unless it takes the signal.
#[test]
#[cfg(unix)]
fn a_file_beyond_the_limit_of_sizes_is_an_error_that_leaves_no_part_of_it() {
    let work = Work::new();
    let [part, other] = ["part.safetensors", "other.safetensors"].map(|name| work.path(name));
    let prompt = Prompt::new("part", vec![0.5; 64 * 256], 64, 256, PromptMetadata::default());
    prompt.expect("a prompt").save(Path::new(&part)).expect("saved");
    let mut shell = program::without_gpu(std::process::Command::new("sh"));
    fs::copy(&part, &other).expect("copied");
    let merge = ["prompts", "merge", &part, &other, "--out", &work.path("both.safetensors")];
    shell.args(["-c", "ulimit -f 8; exec \"$0\" \"$@\"", program::PATH]).args(merge);
    let output = shell.output().expect("an end");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ulimit -f"), "{said}");
    let entries = fs::read_dir(work.0.path()).expect("a folder").flatten();
    let known = ["data", "stars.toml", "part.safetensors", "other.safetensors"];
    let left: Vec<_> =
        entries.map(|entry| entry.file_name()).filter(|name| known.iter().all(|own| name != own)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_scorer_is_pretrained_on_other_tasks_than_the_sources_with_a_note_that_names_them() {
    let work = Work::new();
    let (stars, data) = (work.path("stars.toml"), work.path("data"));
    let sst2 = work.path("data/sst2");
    work.train("sst2", &["--task", "sst2", "--data", &sst2, "--method", "prompt-tuning"]);
    work.train("named", &["--task", &stars, "--data", &work.path("data/stars"), "--method", "prompt-tuning"]);
    let demo = manifest().join("demo").display().to_string();
    let notes = |out: &str, task: &str, data: &str, sources: &[&str]| {
        let sources: Vec<String> = sources.iter().map(|name| work.path(name)).collect();
        let fixed = ["train", "--model", &demo, "--prompt-length", "4", "--steps", "1", "--rank", "4"];
        let (_, _, errors) = run(&[
            &fixed[..],
            &["--pretrain-scorer", "--task", task, "--data", data, "--sources", &sources.join(",")],
            &["--out", &work.path(out)],
        ]
        .concat());
        errors
    };
    let both = format!("sst2,{stars}");
    let said = notes("a", &both, &data, &["sst2", "named"]);
    assert!(said.contains("training of stars") && !said.contains("--pretrain-scorer"), "{said}");
    let said = notes("b", &both, &data, &["sst2"]);
    assert!(said.contains("no source prompt is known to be learnt on stars"), "{said}");
    assert_eq!(said.matches("--pretrain-scorer").count(), 1, "once for all tasks: {said}");
    let said = notes("c", "sst2", &sst2, &["sst2", "named"]);
    assert!(said.contains("not trained on the task of named (learnt on stars)"), "{said}");
}

#[test]
fn info_gives_no_advice_about_a_flag_that_it_was_not_given() {
    let said = success(&["info", "--product-size", "0"]);
    assert!(said.contains("cuda ") && !said.contains("leave"), "{said}");
}

/// What others wrote into a file must not steer the terminal.
#[test]
fn texts_of_a_prompts_file_are_printed_without_control_characters() {
    let work = Work::new();
    let path = work.path("strange.safetensors");
    let mut about = PromptMetadata::default();
    (about.task, about.origin) = (Some("\u{1b}[31mred\nnew".into()), Some("a\tb".into()));
    Prompt::new("strange", vec![1.0; 4], 2, 2, about)
        .expect("a prompt")
        .save(Path::new(&path))
        .expect("saved");
    for command in ["list", "show"] {
        let said = success(&["prompts", command, &path]);
        assert!(said.contains("\\u{1b}[31mred\\nnew") && said.contains("a\\tb"), "{said}");
        assert!(!said.contains(['\u{1b}', '\t']), "{said}");
    }
}

/// Training says how many sources it truncates; whoever is answered is to know it too.
#[test]
fn rows_that_are_truncated_are_told_of_where_they_are_answered() {
    let work = Work::new();
    let data = work.path("data/sst2");
    let flags = ["--task", "sst2", "--data", &data, "--method", "prompt-tuning", "--max-source-length"];
    work.train("long", &[&flags[..], &["64"]].concat());
    work.train("short", &[&flags[..], &["4"]].concat());
    work.write(
        "rows.jsonl",
        "{\"sentence\": \"a film\"}\n{\"sentence\": \"a film that is long and slow and sad\"}\n",
    );
    let said = |command: &[&str]| {
        let (success, _, said) = run(command);
        assert!(success, "{said}");
        said
    };
    for name in ["long", "short"] {
        let folder = work.path(name);
        let evaluated = said(&["evaluate", "--run", &folder]);
        let predicted = said(&["predict", "--run", &folder, "--input", &work.path("rows.jsonl")]);
        assert_eq!(evaluated.contains("of sst2 were truncated to 4 tokens"), name == "short", "{evaluated}");
        assert_eq!(predicted.contains("truncated"), name == "short", "{predicted}");
    }
}
