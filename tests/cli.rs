//! The command line: help with examples, the whole way from data to answers, and what bad input is told.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use promptmix::prompts::{Prompt, PromptMetadata};

#[path = "common/program.rs"]
mod program;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn promptmix(arguments: &[&str]) -> Output {
    program::promptmix().args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The error of a command that must fail, without a panic, in one message.
fn error(arguments: &[&str]) -> String {
    let output = promptmix(arguments);
    let error = text(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} was accepted: {}", text(&output.stdout));
    assert!(!error.contains("panicked"), "{arguments:?}: {error}");
    error
}

fn success(arguments: &[&str]) -> String {
    let output = promptmix(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

struct Data(tempfile::TempDir);

impl Data {
    fn new() -> Self {
        let data = Self(tempfile::tempdir().expect("a temporary folder"));
        let rows = |count: usize| -> String {
            let row = |i: usize| {
                let (word, label) = if i.is_multiple_of(2) { ("bad", 0) } else { ("good", 1) };
                format!("{{\"sentence\": \"a {word} film {i}\", \"label\": {label}}}\n")
            };
            (0..count).map(row).collect()
        };
        data.write("train.jsonl", &rows(16));
        data.write("validation.jsonl", &rows(8));
        data
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.0.path().join(name), content).expect("written");
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// A short training command into `out`, with `more` flags.
    fn train(&self, out: &str, more: &[&str]) -> Vec<String> {
        let model = model().display().to_string();
        let mut command: Vec<String> = [
            "train",
            "--model",
            &model,
            "--task",
            "sst2",
            "--labels",
            "negative,positive",
            "--data",
            &self.path(""),
            "--prompt-length",
            "4",
            "--steps",
            "2",
            "--batch-size",
            "4",
            "--method",
            "prompt-tuning",
            "--out",
            &self.path(out),
        ]
        .map(str::to_owned)
        .into();
        command.extend(more.iter().map(|&flag| flag.to_owned()));
        command
    }
}

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    let report = cfg!(feature = "report").then_some("report");
    let commands = ["train", "sweep", "evaluate", "predict", "verify", "tasks", "info", "demo"];
    let kernels = cfg!(feature = "cuda").then_some("kernels");
    for command in commands.into_iter().chain(report).chain(kernels) {
        let help = success(&[command, "--help"]);
        assert!(
            help.contains("Example") && help.contains(&format!("promptmix {command}")),
            "{command}: {help}"
        );
    }
    assert!(success(&["bench", "step", "--help"]).contains("promptmix bench step"));
    assert!(success(&["--version"]).starts_with("promptmix "));
}

/// The parser knows older names of flags, too, and would offer them.
#[test]
fn the_tip_for_a_flag_that_there_is_not_names_a_flag_of_today() {
    let older: Vec<(&str, &str)> = promptmix::config::SETTINGS
        .iter()
        .flat_map(|setting| setting.aliases.iter().map(|alias| (*alias, setting.key)))
        .collect();
    assert!(older.contains(&("clip", "max-grad-norm")), "{older:?}");
    let mut were_offered = 0;
    for (alias, key) in &older {
        let message = error(&["train", &format!("--{alias}{}", &alias[alias.len() - 1..])]);
        let Some((_, tip)) = message.split_once("a similar argument exists: '--") else { continue };
        let tip = tip.split('\'').next().expect("a name");
        assert!(older.iter().all(|(alias, _)| *alias != tip), "{alias}: {message}");
        were_offered += usize::from(tip == *key);
    }
    assert!(were_offered * 2 > older.len(), "{were_offered} of {}", older.len());
    assert!(error(&["train", "--clipp", "3"]).contains("exists: '--max-grad-norm'"));
}

#[test]
fn train_evaluate_and_predict_go_from_data_to_answers() {
    let data = Data::new();
    success(&words(&data.train("source", &[])));
    let source = data.path("source/prompt.safetensors");
    let flags = ["--method", "attempt", "--sources", &source, "--rank", "8"];
    let mut command = data.train("run", &[]);
    let method = command.iter().position(|word| word == "--method").expect("a method");
    command.drain(method..method + 2);
    command.extend(flags.map(str::to_owned));
    assert!(success(&words(&command)).contains("2 steps"));

    let run = data.path("run");
    let report = success(&["evaluate", "--run", &run, "--decoding", "labels"]);
    assert!(
        report.contains("8 examples") && report.contains("accuracy") && report.contains("target"),
        "{report}"
    );
    let json = success(&["evaluate", "--run", &run, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("one line of JSON");
    assert_eq!(json["examples"], 8);

    data.write("new.csv", "sentence,id\nit is good,7\n\"bad, bad\",8\n");
    let input = data.path("new.csv");
    let answers =
        success(&["predict", "--run", &run, "--input", &input, "--explain", "--decoding", "labels"]);
    let answers: Vec<serde_json::Value> =
        answers.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    assert_eq!(answers.len(), 2);
    assert_eq!((&answers[0]["id"], &answers[1]["sentence"]), (&"7".into(), &"bad, bad".into()));
    for answer in &answers {
        assert!(["negative", "positive"].contains(&answer["prediction"].as_str().unwrap_or_default()));
        let weights = answer["attention"].as_object().expect("weights");
        let sum: f64 = weights.values().filter_map(serde_json::Value::as_f64).sum();
        assert!(weights.len() == 2 && weights.contains_key("source") && (sum - 1.0).abs() < 1e-5, "{answer}");
    }
    assert!(error(&words(&command)).contains("--resume"), "the run is not overwritten");
    success(&["train", "--resume", "--out", &run]);
}

#[test]
fn one_of_a_thing_is_said_in_the_singular() {
    let data = Data::new();
    let one = "{\"sentence\": \"a bad film\", \"label\": 0}\n";
    data.write("train.jsonl", one);
    data.write("validation.jsonl", one);
    let train = data.train("one", &[]);
    let output = promptmix(
        &words(&train).into_iter().map(|word| if word == "2" { "1" } else { word }).collect::<Vec<_>>(),
    );
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for expected in ["training: 1 example from 1 row\n", "1 step; best validation"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let said = success(&["evaluate", "--run", &data.path("one")]);
    assert!(said.contains("validation: 1 example\n"), "{said}");
    let said = success(&["tasks", "--show", "sst2", "--data", &data.path("")]);
    assert!(said.contains("train      1 row of"), "{said}");
}

#[test]
fn a_broken_model_is_named_with_what_is_wrong_with_it() {
    let data = Data::new();
    let with_model = |folder: &str| {
        let mut command = data.train("out", &[]);
        let at = command.iter().position(|word| word == "--model").expect("a model") + 1;
        command[at] = folder.to_owned();
        error(&words(&command))
    };
    let copy = |name: &str| {
        let folder = data.0.path().join(name);
        fs::create_dir(&folder).expect("a folder");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(model().join(file), folder.join(file)).expect("copied");
        }
        folder
    };
    assert!(with_model(&data.path("nowhere/at/all")).contains("nowhere"));

    let missing = copy("missing");
    fs::remove_file(missing.join("model.safetensors")).expect("removed");
    assert!(with_model(&missing.display().to_string()).contains("safetensors"));

    let truncated = copy("truncated");
    let bytes = fs::read(truncated.join("model.safetensors")).expect("read");
    fs::write(truncated.join("model.safetensors"), &bytes[..bytes.len() / 2]).expect("written");
    assert!(with_model(&truncated.display().to_string()).contains("model.safetensors"));

    let other = copy("other");
    let config = fs::read_to_string(other.join("config.json")).expect("read");
    fs::write(other.join("config.json"), config.replace("\"d_ff\": 512", "\"d_ff\": 640")).expect("written");
    let message = with_model(&other.display().to_string());
    assert!(message.contains("640") && message.contains("512"), "{message}");

    let smaller = copy("smaller");
    fs::write(
        smaller.join("config.json"),
        config.replace("gated-gelu", "relu").replace("\"relu\"", "\"swish\""),
    )
    .expect("written");
    assert!(with_model(&smaller.display().to_string()).contains("swish"));
    assert!(!Path::new(&data.path("out")).exists(), "no run folder for a run that never began");
}

#[test]
fn broken_data_is_named_by_file_and_line() {
    let data = Data::new();
    let out = words_of(&data);
    data.write("train.jsonl", "{\"sentence\": \"fine\", \"label\": 1}\n{\"sentence\": \"cut\n");
    let message = error(&words(&out));
    assert!(message.contains("train.jsonl, line 2"), "{message}");
    data.write("train.jsonl", "{\"sentence\": \"fine\", \"label\": 7}\n");
    let message = error(&words(&out));
    assert!(message.contains("line 1") && message.contains('7'), "{message}");
    data.write("train.jsonl", "{\"text\": \"no such field\", \"label\": 1}\n");
    let message = error(&words(&out));
    assert!(message.contains("sentence") && message.contains("text"), "{message}");
    data.write("train.jsonl", "");
    assert!(error(&words(&out)).contains("train.jsonl"));
    data.write("train.jsonl", "{\"sentence\": \"fine\", \"label\": 1}\n");
    fs::remove_file(data.0.path().join("validation.jsonl")).expect("removed");
    assert!(error(&words(&out)).contains("validation"));
}

fn words_of(data: &Data) -> Vec<String> {
    data.train("out", &[])
}

#[test]
fn settings_that_cannot_work_are_refused_with_what_would() {
    let data = Data::new();
    for (flags, said) in [
        (&["--steps", "0"][..], "--steps"),
        (&["--dropout", "1"], "--dropout"),
        (&["--label-smoothing", "1"], "--label-smoothing"),
        (&["--z-loss", "-0.1"], "--z-loss"),
        (&["--learning-rate", "nan"], "--learning-rate"),
        (&["--epochs", "2"], "--epochs or --steps"),
        (&["--sources", "a.safetensors"], "--sources"),
        (&["--sources", "a.safetensors,,b.safetensors"], "--sources"),
        (&["--labels", "0=negative,0=positive"], "labels: expected one word for each class"),
        (&["--few-shot", "1000"], "1000"),
        (&["--threads", "0"], "--threads"),
        (&["--device", "tpu"], "--device"),
        // With a driver or without, with kernels or without: what computes all the same.
        (&["--device", "cuda"], "cpu"),
    ] {
        let base: Vec<String> = data.train("out", &[]);
        let mut command: Vec<String> = Vec::new();
        let mut words = base.into_iter().peekable();
        while let Some(word) = words.next() {
            // A flag given twice would be refused by the parser, before the settings are looked at.
            if flags.first() == Some(&word.as_str()) {
                words.next();
                continue;
            }
            command.push(word);
        }
        command.extend(flags.iter().map(|&flag| flag.to_owned()));
        let message = error(&self::words(&command));
        assert!(message.contains(said), "{flags:?}: {message}");
    }
}

#[test]
fn training_says_which_settings_have_no_effect() {
    let data = Data::new();
    let command = data.train("out", &["--temperature", "3", "--scorer", "dot"]);
    let output = promptmix(&words(&command));
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for key in ["temperature", "scorer"] {
        let warning = format!("warning: --{key} has no effect: prompt-tuning has no mixture");
        assert!(said.contains(&warning), "{said}");
    }
    assert_eq!(said.matches("has no effect").count(), 2, "{said}");
    // There are labels to choose from only where the task has some.
    let (folder, free) = (data.path(""), data.path("free"));
    let model = model().display().to_string();
    let command = [
        "train",
        "--model",
        &model,
        "--template",
        "say {sentence}",
        "--label-field",
        "sentence",
        "--data",
        &folder,
    ];
    let more =
        ["--method", "prompt-tuning", "--prompt-length", "2", "--steps", "1", "--max-target-length", "3"];
    let command = [&command[..], &more, &["--decoding", "labels", "--out", &free]].concat();
    for command in [&command[..], &["evaluate", "--run", &free]] {
        let said = text(&promptmix(command).stderr);
        assert!(said.contains("warning: --decoding labels has no effect on custom"), "{said}");
    }
    // Of a sweep what no run reads; the rate of the scorer is one run's.
    data.write(
        "sweep.toml",
        &format!(
            "model = {:?}\ntask = \"sst2\"\nlabels = \"negative,positive\"\ndata = {:?}\nprompt-length = 4\nsteps = 1\n\
             few-shot = 2\ndraws = 3\nsampling = \"equal\"\nscorer-learning-rate = 0.5\nbottleneck-dim = 4\n[sweep]\n\
             method = [{{ method = \"prompt-tuning\" }}, {{ method = \"attempt\", sources = [{:?}] }}]\n",
            model,
            folder,
            data.path("out"),
        ),
    );
    let output = promptmix(&["sweep", &data.path("sweep.toml"), "--out", &data.path("swept")]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("warning: sampling has no effect: there is one task"), "{said}");
    assert!(said.contains("warning: draws has no effect: a run of a sweep learns from one draw"), "{said}");
    assert_eq!(said.matches("has no effect").count(), 2, "{said}");
}

/// Rows of several data sets are told apart by a column that a user's own file need not have.
#[test]
fn rows_without_the_column_that_a_task_chooses_by_are_told_of_once_a_file() {
    let data = Data::new();
    let row = |i: usize, more: &str| {
        format!("{{\"question\": \"which {i}\", \"context\": \"it is {i}\", \"answers\": [\"{i}\"]{more}}}\n")
    };
    let rows = |count: usize, more: &str| (0..count).map(|i| row(i, more)).collect::<String>();
    let (model, folder) = (model().display().to_string(), data.0.path().display().to_string());
    let train = |out: &str, more: &[&str]| {
        let out = data.path(out);
        let base = ["train", "--model", &model, "--task", "newsqa", "--data", &folder, "--out", &out];
        let short =
            ["--method", "prompt-tuning", "--prompt-length", "2", "--steps", "1", "--batch-size", "2"];
        let output = promptmix(&[&base[..], &short, &["--validation-rows", "2"], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let told = |file: &str| {
        format!(
            "{}: its first row has no `subset`; every row without it counts as the task's",
            data.path(file)
        )
    };
    data.write("train.jsonl", &rows(1004, ""));
    data.write("validation.jsonl", &rows(3, ", \"subset\": \"NewsQA\""));
    let said = train("files", &[]);
    assert_eq!(said.matches("has no `subset`").count(), 1, "{said}");
    assert!(said.contains(&told("train.jsonl")) && said.contains("training: 1004 examples"), "{said}");
    // Both splits come from the one file.
    let said = train("paper", &["--splits", "paper"]);
    assert_eq!(said.matches(&told("train.jsonl")).count(), 1, "{said}");
    assert!(said.contains("training: 4 examples"), "{said}");
    let shown = success(&["tasks", "--show", "newsqa", "--data", &folder]);
    assert!(shown.contains(&told("train.jsonl")) && shown.contains("line 1\n"), "{shown}");
    data.write("train.jsonl", &(rows(3, ", \"subset\": \"NewsQA\"") + &row(3, ", \"subset\": \"SQuAD\"")));
    let said = train("named", &[]);
    assert!(!said.contains("has no `subset`") && said.contains("training: 3 examples"), "{said}");
    // So is whoever asks for test rows, once for all runs on them. The paper's rule has too few rows now.
    fs::remove_dir_all(data.path("paper")).expect("removed");
    data.write("test.jsonl", &rows(2, ""));
    for runs in ["named", ""] {
        let output = promptmix(&["evaluate", "--run", &data.path(runs), "--split", "test"]);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches(&told("test.jsonl")).count(), 1, "{said}");
    }
}

#[test]
fn labels_and_templates_may_begin_with_a_hyphen_and_no_flag_is_taken_for_one() {
    let data = Data::new();
    for (file, rows) in [("train", 4), ("validation", 2)] {
        let row = |i: usize| format!("{{\"sentence\": \"film {i}\", \"label\": {}}}\n", ["-1", "1"][i % 2]);
        data.write(&format!("{file}.jsonl"), &(0..rows).map(row).collect::<String>());
    }
    let (model, folder) = (model().display().to_string(), data.0.path().display().to_string());
    let out = data.0.path().join("signed").display().to_string();
    let train = ["train", "--model", &model, "--data", &folder, "--method", "prompt-tuning", "--steps", "1"];
    let train = [&train[..], &["--prompt-length", "2", "--out", &out]].concat();
    let with = |more: &[&'static str]| [&train[..], more].concat();
    let message = error(&with(&["--template", "- {sentence}", "--labels", "bad,good"]));
    assert!(message.contains("--labels -1=negative,1=positive"), "{message}");
    let message = error(&with(&["--template", "- {sentence}", "--labels", "--seed", "3"]));
    assert!(message.contains("a value is required for '--labels"), "{message}");
    success(&with(&["--template", "- {sentence}", "--labels", "-1=bad,1=good"]));
    data.write("own.toml", "source = \"- {sentence}\"\nlabels = \"-1=bad,1=good\"\n");
    let task = data.0.path().join("own.toml").display().to_string();
    success(&["evaluate", "--run", &out, "--task", &task, "--labels", "-1=awful,1=fine"]);
}

#[test]
fn prompts_of_another_width_are_refused() {
    let data = Data::new();
    let narrow = Prompt::new("narrow", vec![0.5; 4 * 64], 4, 64, PromptMetadata::default())
        .expect("a prompt of width 64");
    let path = data.path("narrow.safetensors");
    narrow.save(Path::new(&path)).expect("saved");
    let mut command = data.train("out", &["--sources", &path]);
    let method = command.iter().position(|word| word == "prompt-tuning").expect("a method");
    command[method] = "attempt".into();
    let message = error(&words(&command));
    assert!(message.contains("64") && message.contains("256"), "{message}");
}

/// A limit on file sizes stands in for a full disk: the write fails in the middle, with an error instead of a signal.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_leaves_no_half_written_file() {
    let data = Data::new();
    let command = data.train("run", &[]);
    let quoted: Vec<String> = command.iter().map(|word| format!("'{word}'")).collect();
    let script = format!("trap '' XFSZ; ulimit -f 4; exec '{}' {}", program::PATH, quoted.join(" "));
    let output =
        program::without_gpu(Command::new("bash")).args(["-c", &script]).output().expect("bash runs");
    let message = text(&output.stderr);
    assert!(!output.status.success() && message.contains("could not write"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    let left: Vec<String> = fs::read_dir(data.path("run"))
        .expect("the run folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".safetensors") || name.starts_with(".promptmix"))
        .collect();
    assert!(left.is_empty(), "half-written or temporary files were left: {left:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_ends_no_work_and_is_an_error() {
    let data = Data::new();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
    for arguments in [&["tasks"][..], &["info"], &["tasks", "--show", "cola"]] {
        let mut command = program::promptmix();
        let output = command.args(arguments).stdout(full()).output().expect("the binary runs");
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(message.contains("could not write standard output"), "{arguments:?}: {message}");
    }
    // What a training says on the way may be lost, and its result is there whether or not it could be told.
    let trained = |name: &str, command: &mut Command| {
        let status = command.args(data.train(name, &[])).status().expect("the binary runs");
        assert!(data.0.path().join(name).join("prompt.safetensors").exists(), "{name}");
        status.code()
    };
    assert_eq!(trained("silent", program::promptmix().stderr(full())), Some(0));
    assert_eq!(trained("untold", program::promptmix().stdout(full())), Some(1));
}

#[test]
fn verify_exits_with_1_when_a_number_is_off() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny");
    assert!(success(&["verify", &tiny.display().to_string()]).contains("passed"));
    let data = Data::new();
    let folder = data.0.path().join("bent");
    fs::create_dir(&folder).expect("a folder");
    for entry in fs::read_dir(&tiny).expect("the fixture") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("copied");
    }
    // The last byte of the file is the highest of the last tensor's last number: its sign and exponent.
    let file = folder.join("model.safetensors");
    let mut bytes = fs::read(&file).expect("read");
    let last = bytes.len() - 1;
    bytes[last] ^= 0x80;
    fs::write(&file, bytes).expect("written");
    let output = promptmix(&["verify", &folder.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("FAIL"));
}

#[test]
fn bench_step_reports_what_it_measured_as_json() {
    let json = success(&[
        "bench",
        "step",
        "--dims",
        &model().join("config.json").display().to_string(),
        "--batch-size",
        "2",
        "--source-lengths",
        "5",
        "--prompt-length",
        "3",
        "--repeats",
        "2",
        "--no-product",
        "--json",
    ]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("one line of JSON");
    for key in ["forward", "step"] {
        let median = json[key]["median_ms"].as_f64().expect("a number");
        assert!(median > 0.0 && json[key]["counted_gflop"].as_f64() > Some(0.0), "{json}");
    }
}

/// Pearson's and Spearman's correlation of answers that are all alike are not defined: nothing was measured, and nothing says 0.
#[test]
fn a_best_validation_that_is_not_defined_is_called_that() {
    let data = Data::new();
    let pairs = |count: usize| -> String {
        let pair = |i: usize| {
            format!("{{\"sentence1\": \"a\", \"sentence2\": \"b {i}\", \"label\": {}}}\n", i % 6 % 5)
        };
        (0..count).map(pair).collect()
    };
    fs::create_dir(data.path("stsb")).expect("a folder");
    data.write("stsb/train.jsonl", &pairs(12));
    data.write("stsb/validation.jsonl", &pairs(8));
    let (model, folder, out) = (model().display().to_string(), data.path("stsb"), data.path("run"));
    let said = success(&[
        "train",
        "--model",
        &model,
        "--task",
        "stsb",
        "--data",
        &folder,
        "--out",
        &out,
        "--method",
        "prompt-tuning",
        "--prompt-length",
        "2",
        "--steps",
        "1",
        "--batch-size",
        "4",
    ]);
    assert!(
        said.contains("best validation undefined (pearson, spearman: ") && !said.contains("0.0000"),
        "{said}"
    );
    let prompt = Prompt::load(Path::new(&out)).expect("a prompt");
    assert_eq!(prompt.metadata().metric, None, "no value that was never measured");
}

/// Files of many runs have commands of their own, which who gives one to another command is told.
#[test]
fn a_file_of_many_runs_is_told_which_command_takes_it() {
    let data = Data::new();
    data.write("sweep.toml", "model = \"m\"\n[sweep]\nseed = [1, 2]\n");
    data.write("study.toml", "model = \"m\"\n[study]\nseeds = [1, 2]\n");
    let out = data.path("out");
    let train = |name: &str| error(&["train", "--config", &data.path(name), "--out", &out]);
    let (sweep, study) = (train("sweep.toml"), train("study.toml"));
    assert!(
        sweep.contains("line 2") && sweep.contains(&format!("promptmix sweep {}", data.path("sweep.toml"))),
        "{sweep}"
    );
    assert!(
        study.contains("line 2") && study.contains(&format!("promptmix compare {}", data.path("study.toml"))),
        "{study}"
    );
    let said = error(&["sweep", &data.path("study.toml"), "--out", &out]);
    assert!(said.contains("promptmix compare"), "{said}");
}

#[test]
fn a_prompt_that_is_cut_short_is_trained_again_and_not_fetched() {
    let data = Data::new();
    success(&words(&data.train("run", &[])));
    let prompt = data.path("run/prompt.safetensors");
    let bytes = fs::read(&prompt).expect("read");
    fs::write(&prompt, &bytes[..20]).expect("written");
    let said = error(&["prompts", "show", &prompt]);
    assert!(said.contains("if a run wrote it, put back a copy or train again"), "{said}");
}

#[test]
#[cfg(feature = "cuda")]
fn kernels_are_written_into_no_file() {
    let data = Data::new();
    data.write("file", "");
    for place in ["file", "file/inside"] {
        let said = error(&["kernels", "export", &data.path(place)]);
        let (file, wanted) = (data.path("file"), "FOLDER: expected a folder to write to");
        assert!(said.contains(wanted) && said.contains(&format!("{file}, which is no folder")), "{said}");
    }
    assert_eq!(fs::read(data.path("file")).expect("still there"), b"");
}

#[test]
fn verify_says_what_a_models_files_leave_open() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny");
    let data = Data::new();
    let folder = data.0.path().join("more");
    fs::create_dir(&folder).expect("a folder");
    for entry in fs::read_dir(&tiny).expect("the fixture") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("copied");
    }
    // The same file with a tensor more, which no T5 has.
    let file = folder.join("model.safetensors");
    let bytes = fs::read(&file).expect("read");
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a header's length");
    let (header, tensors) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: serde_json::Value = serde_json::from_slice(header).expect("a header");
    let range = [tensors.len(), tensors.len() + 4];
    header["adapter.weight"] = serde_json::json!({ "dtype": "F32", "shape": [1], "data_offsets": range });
    let header = header.to_string().into_bytes();
    fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], &header, tensors, &[0; 4]].concat())
        .expect("written");
    let output = promptmix(&["verify", &folder.display().to_string()]);
    let said = text(&output.stderr);
    assert!(
        output.status.success() && said.contains("warning: ") && said.contains("adapter.weight"),
        "{said}"
    );
}
