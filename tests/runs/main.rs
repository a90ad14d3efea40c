//! Runs survive: settings as files, kills at any moment, disks that fill up, and in `refused` what is not gone on with.
#![cfg(all(feature = "cli", unix))]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use promptmix::backend::{Mixing, Scorer, StateLayout};
use promptmix::config::RunConfig;
use promptmix::pretrained::TensorFile;
use promptmix::prompts::{Prompt, PromptMetadata};
use promptmix::train::{Checkpoint, LastState, RunFolder, RunManifest};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

#[path = "../common/program.rs"]
mod program;
mod refused;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = program::promptmix();
    command.args(arguments);
    command
}

fn promptmix(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn success(arguments: &[&str]) {
    let output = promptmix(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
}

/// What a command that must fail says, without a panic.
fn error(arguments: &[&str]) -> String {
    let output = promptmix(arguments);
    let error = said(&output);
    assert!(!output.status.success(), "{arguments:?} was accepted");
    assert!(!error.contains("panicked"), "{arguments:?}: {error}");
    error
}

/// Data, and a settings file for a short run on it.
struct Setting {
    folder: tempfile::TempDir,
}

impl Setting {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let rows = |count: usize| -> String {
            let row = |i: usize| {
                let (word, label) = [("bad", 0), ("good", 1)][i % 2];
                format!("{{\"sentence\": \"a {word} film {i}\", \"label\": {label}}}\n")
            };
            (0..count).map(row).collect()
        };
        fs::write(folder.path().join("train.jsonl"), rows(24)).expect("written");
        fs::write(folder.path().join("validation.jsonl"), rows(8)).expect("written");
        let setting = Self { folder };
        setting.write("run.toml", "");
        setting
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Settings, with `more` lines after them.
    fn write(&self, name: &str, more: &str) {
        let text = format!(
            "model = {:?}\ntask = \"sst2\"\nlabels = \"negative,positive\"\ndata = {:?}\nmethod = \"prompt-tuning\"\n\
             prompt-length = 2\nbatch-size = 4\nsteps = 20\nvalidate-every = 5\nsave-every = 2\ndecoding = \"labels\"\n\
             dropout = 0.1\nlabel-smoothing = 0.1\nz-loss = 0.001\n{more}",
            model(),
            self.path("")
        );
        fs::write(self.folder.path().join(name), text).expect("written");
    }

    fn train(&self, out: &str, more: &[&str]) -> Vec<String> {
        let mut words = vec!["train".into(), "--config".into(), self.path("run.toml")];
        words.extend(["--out".into(), self.path(out)]);
        words.extend(more.iter().map(|&word| word.to_owned()));
        words
    }

    fn resume(&self, out: &str) -> Vec<String> {
        ["train".into(), "--resume".into(), "--out".into(), self.path(out)].into()
    }

    fn config(&self, out: &str) -> RunConfig {
        self.saved(out).config
    }

    fn saved(&self, out: &str) -> RunManifest {
        RunFolder::saved(&self.folder.path().join(out)).expect("a run")
    }
}

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

/// The files of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let files = entries.filter(|path| path.is_file());
    files
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("a file"))
        })
        .collect()
}

/// What a run came to: its states' bytes, and its log without the times and without how many runs shared the batch that took them. Runs
/// that go on from checkpoints of different steps share fewer batches.
fn result(folder: &Path) -> (BTreeMap<String, Vec<u8>>, Vec<serde_json::Value>) {
    let mut files = files(folder);
    let log = String::from_utf8(files.remove("log.jsonl").expect("a log")).expect("text");
    files.retain(|name, _| name.ends_with(".safetensors") || name == "examples.jsonl");
    assert_eq!(files.len(), 4, "{:?}", files.keys());
    let lines = log.lines().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).expect("whole lines");
        if let Some(fields) = line.as_object_mut() {
            fields.remove("milliseconds");
            fields.remove("tokens_per_second");
            fields.remove("sharing_runs");
        }
        line
    });
    (files, lines.collect())
}

/// A checkpoint of a run that centered inputs and did not scale them ends before the scale, which is one and has no moments.
#[test]
fn a_checkpoint_without_a_scale_of_inputs_goes_on_with_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("run");
    let run = RunFolder::create(&path, &RunConfig::default(), "model").expect("a folder");
    let mixing = Mixing { scorer: Some(Scorer::Bottleneck), temperature: 1.0, ..Mixing::plain() };
    let layout = StateLayout::new(&mixing, 1, 2, 8, 3, false).with_standardized_inputs();
    let before = layout.len() - 8;
    let values = |start: f64, count: usize| (0..count).map(|i| start + i as f64).collect::<Vec<f64>>();
    for count in [before, layout.len()] {
        let state = [1.0, 2.0, 3.0].map(|start| values(start, count));
        let last = LastState { state, best: values(4.0, count), checkpoint: Checkpoint::default() };
        run.save_last(&last).expect("written");
        let found = RunFolder::load_last(&path, &layout).expect("a checkpoint").expect("one");
        if count == layout.len() {
            assert_eq!(found, last);
            continue;
        }
        let numbers = found.state.iter().chain([&found.best]);
        for ((found, start), scale) in numbers.zip([1.0, 2.0, 3.0, 4.0]).zip([1.0, 0.0, 0.0, 1.0]) {
            assert_eq!(found[..before], values(start, before)[..]);
            assert_eq!(found[before..], [scale; 8]);
        }
    }
    let short = LastState {
        state: [1.0, 2.0, 3.0].map(|start| values(start, before - 1)),
        best: values(4.0, before - 1),
        checkpoint: Checkpoint::default(),
    };
    run.save_last(&short).expect("written");
    assert!(RunFolder::load_last(&path, &layout).is_err(), "of another length");
}

/// A folder that an older program wrote, from another place, with settings by older names and a shorter state.
#[test]
fn a_run_folder_of_format_2_goes_on() {
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format-2");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for part in ["frozen", "frozen/data", "run"] {
        fs::create_dir(folder.path().join(part)).expect("a folder");
        for (name, bytes) in files(&frozen.join(part)) {
            fs::write(folder.path().join(part).join(name), bytes).expect("written");
        }
    }
    let run = folder.path().join("run").display().to_string();
    let output = command(&["train", "--resume", "--model", &model().display().to_string(), "--out", &run])
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = |path: &Path| -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let (found, expected) = (log(&folder.path().join("run/log.jsonl")), log(&frozen.join("whole.jsonl")));
    assert_eq!(found.len(), expected.len(), "60 steps and three validations");
    let at = |log: &[serde_json::Value], step: u64, key: &str| {
        let line = log.iter().find(|line| line["step"] == step && !line[key].is_null());
        line.unwrap_or_else(|| panic!("{key} at step {step}"))[key].clone()
    };
    // The first step from the stored state: machines differ in the order of sums of f32 alone.
    let [loss, before] = [&found, &expected].map(|log| at(log, 26, "loss").as_f64().expect("a number"));
    assert!((loss - before).abs() <= 1e-5 * before, "{loss} and {before}");
    // 35 updates later those differences have grown, and the mixture is still the same one.
    for step in [40, 60] {
        let [weights, before] = [&found, &expected].map(|log| at(log, step, "attention"));
        for (weight, before) in weights.as_array().unwrap().iter().zip(before.as_array().unwrap()) {
            let [weight, before] = [weight, before].map(|weight| weight.as_f64().expect("a number"));
            assert!((weight - before).abs() < 0.02, "step {step}: {weight} and {before}");
        }
        assert_eq!(at(&found, step, "mean"), at(&expected, step, "mean"));
    }
    // The tensors that the program of then ended with: the same bytes where the fixture was made; on a GPU in f32, whose sums have
    // another order, they were 7e-6 apart.
    let open = |path: PathBuf| TensorFile::open_safetensors(&path).expect("a file");
    let (last, whole) =
        (open(folder.path().join("run/last.safetensors")), open(frozen.join("whole.safetensors")));
    for name in ["parameters", "first_moment", "second_moment"] {
        let (found, expected) = (last.tensor(name, &[2_560]), whole.tensor(name, &[2_304]));
        let (found, expected) = (found.expect("of now"), expected.expect("of then"));
        // What is new since is a scale of 1 for each of the inputs, which nothing moves.
        let (found, scale) = found.split_at(expected.len());
        let is_scale = f32::from(u8::from(name == "parameters"));
        assert!(scale.iter().all(|value| *value == is_scale), "{name}");
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
        let apart = norm(&mut found.iter().zip(&expected).map(|(one, other)| one - other));
        let distance = apart / norm(&mut expected.iter().copied());
        assert!(distance < 1e-4, "{name}: {distance}");
    }
    for file in ["best.safetensors", "scorer.safetensors"] {
        let file = open(folder.path().join("run").join(file));
        let scale = file.tensor("input_scale", &[256]).expect("a scale");
        assert!(scale.iter().all(|value| *value == 1.0), "inputs stay as they were");
    }
}

/// Asserts that what a signal does was said once, and before it was done.
fn assert_is_told_first(said: &str) {
    let told =
        "ending after the step or validation at hand, with a checkpoint of what is trained; a second Ctrl-C";
    assert_eq!(said.matches(told).count(), 1, "{said}");
    assert!(said.find(told) < said.find("ended on request"), "{said}");
}

/// The first SIGINT or SIGTERM ends a run after the step at hand, with a checkpoint that no save-every asked for.
#[test]
#[cfg(unix)]
fn a_signal_ends_a_run_with_a_checkpoint() {
    let setting = Setting::new();
    let long = ["--steps", "200", "--validate-every", "200", "--save-every", "200"];
    success(&words(&setting.train("unbroken", &long)));
    let expected = result(Path::new(&setting.path("unbroken")));
    for signal in ["-INT", "-TERM"] {
        let folder = PathBuf::from(setting.path(signal));
        let child = command(&words(&setting.train(signal, &long)))
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let taken = || fs::read_to_string(folder.join("log.jsonl")).unwrap_or_default().lines().count();
        let started = Instant::now();
        while taken() < 3 {
            assert!(started.elapsed().as_secs() < 60, "no step was taken");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("a signal").success());
        let ended = child.wait_with_output().expect("an end");
        let said = String::from_utf8(ended.stderr).expect("text");
        assert_eq!(ended.status.code(), Some(130), "{signal}: {said}");
        let step = taken();
        assert!(said.contains(&format!("ended on request after step {step} of 200")), "{signal}: {said}");
        assert_is_told_first(&said);
        assert!(said.contains("--resume"), "{said}");
        assert!(step < 200);
        success(&words(&setting.resume(signal)));
        let log = fs::read_to_string(folder.join("log.txt")).expect("a log");
        assert!(
            log.contains(&format!("resumed after step {step}\n")),
            "a checkpoint of that very step: {log}"
        );
        assert!(result(&folder) == expected, "{signal} after step {step}");
    }
}

/// Kills a run with SIGKILL at a random moment, goes on until it is done, and compares; twenty times.
#[test]
fn twenty_kills_are_twenty_bit_equal_resumes() {
    let kills = 20;
    let setting = Setting::new();
    let started = Instant::now();
    success(&words(&setting.train("unbroken", &[])));
    let duration = started.elapsed();
    let expected = result(Path::new(&setting.path("unbroken")));
    assert_eq!(expected.1.len(), 20 + 4, "a line a step and a line a validation");

    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_nanos();
    let mut random = ChaCha8Rng::seed_from_u64(seed as u64);
    let mut killed_at = Vec::new();
    for kill in 0..kills {
        let out = format!("killed{kill}");
        let folder = PathBuf::from(setting.path(&out));
        let mut child = command(&words(&setting.train(&out, &[])))
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary runs");
        std::thread::sleep(duration.mul_f64(f64::from(random.next_u32()) / 2_f64.powi(32)));
        child.kill().expect("a signal");
        child.wait().expect("an end");
        let log = fs::read_to_string(folder.join("log.jsonl")).unwrap_or_default();
        killed_at.push(log.lines().count());
        // Before run.json is written there is no run to go on with, and the folder is free.
        let again =
            if folder.join("run.json").exists() { setting.resume(&out) } else { setting.train(&out, &[]) };
        success(&words(&again));
        assert!(result(&folder) == expected, "kill {kill} after log line {} (seed {seed})", killed_at[kill]);
        let left = files(&folder).into_keys().find(|name| name.starts_with(".promptmix"));
        assert_eq!(left, None, "temporary files are removed");
    }
    println!("{kills} kills after log lines {killed_at:?}: {kills} equal results");
}

#[test]
fn a_settings_file_equals_the_flags_and_flags_win() {
    let setting = Setting::new();
    let model = model().display().to_string();
    let data = setting.path("");
    let by_flags = setting.path("flags");
    let shared = ["--labels", "negative,positive", "--method", "prompt-tuning", "--prompt-length", "2"];
    let mut flags = vec!["train", "--model", &model, "--task", "sst2", "--data", &data, "--out", &by_flags];
    flags.extend(shared);
    flags.extend(["--batch-size", "4", "--steps", "1", "--validate-every", "5", "--save-every", "2"]);
    flags.extend(["--decoding", "labels", "--dropout", "0.1", "--lowercase"]);
    flags.extend(["--label-smoothing", "0.1", "--z-loss", "0.001"]);
    success(&flags);
    setting.write("run.toml", "lowercase = true\n");
    success(&words(&setting.train("file", &["--steps", "1"])));
    assert_eq!(setting.config("flags"), setting.config("file"));
    let bytes = |out: &str| fs::read(setting.path(&format!("{out}/last.safetensors"))).expect("a state");
    assert_eq!(bytes("flags"), bytes("file"));

    // What is written into the run is a settings file again, and says the same.
    let resolved = PathBuf::from(setting.path("file/config.toml"));
    assert_eq!(RunConfig::from_toml(&resolved).expect("settings"), setting.config("file"));

    // A flag turns a switch of the file off, and --epochs puts the file's steps out of force.
    let more = ["--lowercase=false", "--epochs", "1", "--seed", "7"];
    success(&words(&setting.train("won", &more)));
    let won = setting.config("won");
    assert_eq!((won.lowercase, won.epochs, won.steps, won.seed), (false, Some(1), None, 7));
}

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_nearest_right_one() {
    let setting = Setting::new();
    for (more, line, found, nearest) in [
        ("learning-rat = 0.1\n", 15, "`learning-rat`", "`learning-rate`"),
        ("learning_rate = 0.1\n", 15, "`learning_rate`", "`learning-rate`"),
        ("patience = 3\nwarmpu = 3\n", 16, "`warmpu`", "`warmup-steps`"),
        ("[optimiser]\nrate = 3\n", 15, "`optimiser`", "--help"),
        ("learning-rate = \"high\"\n", 15, "high", ""),
        ("seed = -1\n", 15, "-1", ""),
        ("seed = \n", 15, "", ""),
    ] {
        setting.write("run.toml", more);
        let message = error(&words(&setting.train("out", &[])));
        let place = format!("run.toml, line {line}:");
        assert!(
            message.contains(&place) && message.contains(found) && message.contains(nearest),
            "{more:?}: {message}"
        );
    }
    assert!(!Path::new(&setting.path("out")).exists(), "no run folder for a run that never began");
    setting.write("run.toml", "");
    let config = setting.path("nowhere.toml");
    assert!(error(&["train", "--config", &config, "--out", &setting.path("out")]).contains("nowhere.toml"));
    fs::write(setting.path("empty.toml"), "task = \"sst2\"\n").expect("written");
    let message = error(&["train", "--config", &setting.path("empty.toml"), "--out", &setting.path("out")]);
    assert!(message.contains("--model"), "{message}");
}

/// A limit on file sizes stands in for a full disk: the log cannot grow in the middle of the run.
#[test]
fn a_run_whose_disk_fills_up_goes_on_when_there_is_room_again() {
    let setting = Setting::new();
    success(&words(&setting.train("unbroken", &["--prompt-length", "1"])));
    let quoted: Vec<String> = setting.train("run", &["--prompt-length", "1"]);
    let quoted: Vec<String> = quoted.iter().map(|word| format!("'{word}'")).collect();
    let script = format!("trap '' XFSZ; ulimit -f 5; exec '{}' {}", program::PATH, quoted.join(" "));
    let output =
        program::without_gpu(Command::new("bash")).args(["-c", &script]).output().expect("bash runs");
    let message = said(&output);
    assert!(!output.status.success() && message.contains("could not"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    let folder = PathBuf::from(setting.path("run"));
    let steps = fs::read_to_string(folder.join("log.jsonl")).expect("a log").lines().count();
    assert!((3..24).contains(&steps), "the disk filled up in the middle of the run, after {steps} lines");
    success(&words(&setting.resume("run")));
    assert!(result(&folder) == result(Path::new(&setting.path("unbroken"))));
}

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, tag = "3")]
    file_version: String,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

#[test]
fn tensorboard_event_files_hold_the_log() {
    let setting = Setting::new();
    success(&words(&setting.train("run", &["--steps", "6"])));
    let files = files(Path::new(&setting.path("run")));
    let (_, bytes) = files.iter().find(|(name, _)| name.starts_with("events.out.tfevents.")).expect("events");
    // TFRecord: length, masked CRC-32C of it, the message, masked CRC-32C of it.
    let masked = |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8);
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283, "the checksum's known answer");
    let mut events: Vec<Event> = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (length, after) = rest.split_at(8);
        let (sum, after) = after.split_at(4);
        assert_eq!(sum, masked(length).to_le_bytes());
        let (message, after) = after.split_at(u64::from_le_bytes(length.try_into().expect("8")) as usize);
        let (sum, after) = after.split_at(4);
        assert_eq!(sum, masked(message).to_le_bytes());
        events.push(prost::Message::decode(message).expect("an event"));
        rest = after;
    }
    assert_eq!(events[0].file_version, "brain.Event:2");
    let losses: Vec<(i64, f32)> = events
        .iter()
        .flat_map(|event| event.summary.iter().map(move |summary| (event.step, summary)))
        .flat_map(|(step, summary)| summary.value.iter().map(move |value| (step, value)))
        .filter(|(_, value)| value.tag == "train/loss")
        .map(|(step, value)| (step, value.simple_value))
        .collect();
    let log = String::from_utf8(files["log.jsonl"].clone()).expect("text");
    let logged: Vec<(i64, f32)> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .filter_map(|line| Some((line["step"].as_i64()?, line["loss"].as_f64()? as f32)))
        .collect();
    assert_eq!((losses.len(), &losses), (6, &logged));
    let tags: Vec<&str> = events
        .iter()
        .filter_map(|event| event.summary.as_ref())
        .flat_map(|summary| summary.value.iter().map(|value| value.tag.as_str()))
        .collect();
    assert!(tags.contains(&"validation/accuracy"), "{tags:?}");
}

/// A killed sweep goes on, by the same command, to the bytes of an unbroken one.
#[test]
fn a_killed_sweep_goes_on_bit_for_bit() {
    let setting = Setting::new();
    setting.write("sweep.toml", "[sweep]\nseed = [1, 2]\nlearning-rate = [0.1, 0.3]\n");
    let file = setting.path("sweep.toml");
    let sweep = |out: &str| -> Vec<String> {
        ["sweep".into(), file.clone(), "--out".into(), setting.path(out)].into()
    };
    let started = Instant::now();
    success(&words(&sweep("unbroken")));
    let duration = started.elapsed();
    let runs: Vec<String> = ["0.1", "0.3"]
        .iter()
        .flat_map(|rate| [1, 2].map(|seed| format!("learning-rate-{rate}-seed-{seed}")))
        .collect();
    // Wherever the kills fall: between two runs' checkpoints of a step, too, from which they go on apart.
    for part in [0.3, 0.5, 0.7, 0.92] {
        let killed = setting.path("killed");
        let _ = fs::remove_dir_all(&killed);
        let mut child = command(&words(&sweep("killed")))
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary runs");
        std::thread::sleep(duration.mul_f64(part));
        child.kill().expect("a signal");
        child.wait().expect("an end");
        success(&words(&sweep("killed")));
        for run in &runs {
            let [killed, unbroken] =
                ["killed", "unbroken"].map(|sweep| setting.path(&format!("{sweep}/{run}")));
            assert!(result(Path::new(&killed)) == result(Path::new(&unbroken)), "{run}, killed at {part}");
        }
    }
    check_results(&setting);
    let table = fs::read_to_string(setting.path("killed/results.tsv")).expect("a table");
    assert_eq!(table, fs::read_to_string(setting.path("unbroken/results.tsv")).expect("a table"));
    assert_eq!(table.lines().count(), 1 + 4);

    // Another sweep does not take the folder over.
    setting.write("sweep.toml", "patience = 5\n[sweep]\nseed = [1, 2]\nlearning-rate = [0.1, 0.3]\n");
    let message = error(&words(&sweep("killed")));
    assert!(message.contains("other settings"), "{message}");
}

#[test]
fn a_run_is_not_made_shorter_than_what_it_has_taken() {
    let setting = Setting::new();
    success(&words(&setting.train("run", &["--steps", "6", "--validate-every", "6"])));
    let shorter = |flag: &str, value: &str| {
        error(&words(&[&setting.resume("run")[..], &[flag.into(), value.into()]].concat()))
    };
    let message = shorter("--steps", "4");
    assert!(message.contains("--steps: expected more than 6, found 4"), "{message}");
    assert!(message.contains("has taken its steps"), "{message}");
    // Epochs of a run that counts in steps; the steps beside them are not what is refused.
    let both = ["--epochs", "2", "--steps", "9"].map(str::to_owned);
    let message = error(&words(&[&setting.resume("run")[..], &both].concat()));
    assert!(
        message.contains("epochs 2 where the run has none") && !message.contains("steps none"),
        "{message}"
    );
    // As if it had been ended on request two steps before.
    let mut json = serde_json::to_value(setting.saved("run")).expect("JSON");
    (json["config"]["steps"], json["effective"]["steps"]) = (8.into(), 8.into());
    fs::write(setting.path("run/run.json"), json.to_string()).expect("written");
    let message = shorter("--steps", "4");
    assert!(message.contains("more than 6, found 4") && message.contains("of 8"), "{message}");
    assert!(!message.contains("has taken its steps"), "{message}");
    success(&words(&setting.resume("run")));
}

#[test]
fn a_run_that_took_no_step_is_no_obstacle_to_another() {
    let setting = Setting::new();
    let prompt =
        Prompt::new("huge", vec![3e38; 2 * 256], 2, 256, PromptMetadata::default()).expect("a prompt");
    prompt.save(Path::new(&setting.path("huge.safetensors"))).expect("written");
    let huge = ["--initial-prompt", &setting.path("huge.safetensors")];
    let message = error(&words(&setting.train("run", &huge)));
    assert!(message.contains("step 1:") && message.contains("huge.safetensors are likely too"), "{message}");
    assert!(!message.contains("--learning-rate"), "nothing was learnt yet: {message}");
    let folder = PathBuf::from(setting.path("run"));
    assert!(folder.join("run.json").exists());
    // Nor to a sweep that has a run of other settings there.
    setting.write("sweep.toml", "[sweep]\nseed = [1]\n");
    fs::create_dir(setting.path("sweep")).expect("a folder");
    fs::create_dir(setting.path("sweep/seed-1")).expect("a folder");
    for name in ["run.json", "config.toml", "log.jsonl", "log.txt", "last.safetensors"] {
        fs::copy(folder.join(name), setting.path(&format!("sweep/seed-1/{name}"))).expect("copied");
    }
    success(&["sweep", &setting.path("sweep.toml"), "--out", &setting.path("sweep")]);
    assert_eq!(setting.config("sweep/seed-1").initial_prompt, None);

    // One that may be about to take a step is.
    let held = fs::File::open(folder.join("log.txt")).expect("log.txt");
    held.try_lock().expect("nobody has it");
    let message = error(&words(&setting.train("run", &[])));
    assert!(message.contains("nothing else writes to"), "{message}");
    drop(held);
    fs::write(folder.join("notes.txt"), "mine").expect("written");
    assert!(error(&words(&setting.train("run", &[]))).contains("holds files"));
    fs::remove_file(folder.join("notes.txt")).expect("removed");
    success(&words(&setting.train("run", &[])));
    success(&words(&setting.train("alone", &[])));
    assert!(result(&folder) == result(Path::new(&setting.path("alone"))));
    assert!(error(&words(&setting.train("run", &[]))).contains("holds files"), "now it has steps");

    // Steps are in the checkpoint too: a run whose other files are gone is not written over, nor one that is damaged.
    let kept = setting.path("kept");
    fs::create_dir(&kept).expect("a folder");
    for name in ["run.json", "config.toml", "last.safetensors"] {
        fs::copy(folder.join(name), Path::new(&kept).join(name)).expect("copied");
    }
    assert!(error(&words(&setting.train("kept", &[]))).contains("holds files"));
    fs::write(Path::new(&kept).join("last.safetensors"), "damaged").expect("written");
    assert!(error(&words(&setting.train("kept", &[]))).contains("holds files"));
}

/// At a rate that the length of the run does not move.
#[test]
fn a_run_that_is_made_longer_is_the_longer_run() {
    let setting = Setting::new();
    let constant = ["--lr-scheduler", "constant", "--warmup-steps", "0"];
    let of = |steps: &'static str| [&constant[..], &["--steps", steps]].concat();
    success(&words(&setting.train("long", &of("14"))));
    success(&words(&setting.train("run", &of("10"))));
    let longer = |steps: &str| [setting.resume("run"), vec!["--steps".into(), steps.into()]].concat();
    let message = error(&words(&longer("8")));
    assert!(message.contains("more than 10"), "{message}");
    success(&words(&longer("14")));
    let [long, run] = ["long", "run"].map(|name| files(Path::new(&setting.path(name))));
    for name in ["last.safetensors", "best.safetensors", "examples.jsonl"] {
        assert!(long[name] == run[name], "{name}");
    }
    assert_eq!(setting.config("run").steps, Some(14));
    let settings = RunConfig::from_toml(Path::new(&setting.path("run/config.toml"))).expect("settings");
    assert_eq!(settings, setting.config("run"));
    // Other settings stay refused.
    let message = error(&words(&[longer("20"), vec!["--learning-rate".into(), "0.1".into()]].concat()));
    assert!(message.contains("--learning-rate") && !message.contains("--steps"), "{message}");
}

#[test]
fn a_run_remembers_the_settings_that_it_was_not_given() {
    let setting = Setting::new();
    success(&words(&setting.train("run", &["--steps", "4"])));
    let saved = RunFolder::saved(Path::new(&setting.path("run"))).expect("a run");
    assert_eq!((saved.config.warmup_steps, saved.config.weight_decay), (None, None));
    let effective = saved.effective.expect("they are recorded");
    // 6 % of 4 steps; the decay of prompt tuning; a prompt's start; the seed of the run.
    assert_eq!((effective.warmup_steps, effective.weight_decay), (Some(0), Some(1e-5)));
    assert_eq!((effective.data_seed, effective.dropout), (Some(42), Some(0.1)));
    assert_eq!((effective.temperature, effective.scorer_learning_rate), (None, None), "nothing is mixed");
    let source = setting.path("run/prompt.safetensors");
    success(&words(&setting.train("mixed", &["--steps", "4", "--method", "attempt", "--sources", &source])));
    let saved = RunFolder::saved(Path::new(&setting.path("mixed"))).expect("a run");
    let effective = saved.effective.expect("they are recorded");
    let width = 256.0;
    assert_eq!(effective.temperature, Some(width * std::f64::consts::E));
    assert_eq!((effective.scorer_learning_rate, effective.standardize_inputs), (Some(0.01), Some(true)));
    assert_eq!((effective.weight_decay, effective.steps), (Some(0.0), Some(4)));
    // They are settings: a run by them is the same run.
    fs::write(setting.path("effective.toml"), effective.to_toml().expect("TOML")).expect("written");
    let again = ["train", "--config", &setting.path("effective.toml"), "--out", &setting.path("again")];
    success(&again);
    let [mixed, again] = ["mixed", "again"].map(|name| files(Path::new(&setting.path(name))));
    assert!(mixed["last.safetensors"] == again["last.safetensors"]);
}

/// The file for programs has the same keys whatever trains.
#[test]
fn the_text_log_has_the_rates_of_what_trains() {
    let setting = Setting::new();
    let step = |name: &str, more: &[&str]| {
        success(&words(&setting.train(name, &[&["--steps", "1"], more].concat())));
        let log = fs::read_to_string(setting.path(&format!("{name}/log.txt"))).expect("a log");
        let line = log.lines().find(|line| line.starts_with("step 1/1")).expect("a step").to_owned();
        let json = fs::read_to_string(setting.path(&format!("{name}/log.jsonl"))).expect("a log");
        let json: serde_json::Value =
            serde_json::from_str(json.lines().next().expect("a step")).expect("JSON");
        assert!(json["learning_rate"].is_number() && json["scorer_learning_rate"].is_number(), "{json}");
        line.split_once("gradient ").expect("a norm").1.split(' ').skip(1).collect::<Vec<_>>().join(" ")
    };
    let rates = ["--learning-rate", "0.25", "--lr-scheduler", "constant", "--warmup-steps", "0"];
    let said = step("plain", &rates);
    assert!(said.starts_with("rate 2.500e-1 ") && !said.contains("scorer"), "{said}");
    let source = setting.path("plain/prompt.safetensors");
    let mixing = ["--method", "attempt", "--sources", &source, "--scorer-learning-rate", "0.125"];
    let mixing = [&rates[..], &mixing].concat();
    let said = step("both", &mixing);
    assert!(said.starts_with("rate 2.500e-1/1.250e-1 "), "{said}");
    let said = step("frozen", &[&mixing[..], &["--freeze-scorer"]].concat());
    assert!(said.starts_with("rate 2.500e-1 ") && !said.contains("scorer"), "{said}");
    let said = step("scorer", &[&mixing[..], &["--pretrain-scorer"]].concat());
    assert!(said.starts_with("scorer rate 1.250e-1 "), "{said}");
}

/// `results.tsv` of the unbroken sweep against the runs' own folders: what differs, and what repeats.
fn check_results(setting: &Setting) {
    let table = fs::read_to_string(setting.path("unbroken/results.tsv")).expect("a table");
    let mut lines = table.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let head = lines.next().expect("a head");
    let rows: Vec<BTreeMap<&str, &str>> =
        lines.map(|line| head.iter().copied().zip(line).collect()).collect();
    assert_eq!(rows.len(), 4);
    let number = |row: &BTreeMap<&str, &str>, key: &str| -> f64 { row[key].parse().expect(key) };
    for row in &rows {
        let config = setting.config(&format!("unbroken/{}", row["run"]));
        assert_eq!(row["method"], "prompt-tuning");
        assert_eq!(
            (number(row, "learning-rate"), number(row, "seed")),
            (config.learning_rate, config.seed as f64)
        );
        let log =
            fs::read_to_string(setting.path(&format!("unbroken/{}/log.jsonl", row["run"]))).expect("a log");
        let best = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
            .filter_map(|line| line["mean"].as_f64())
            .fold(f64::NEG_INFINITY, f64::max);
        assert!((number(row, "validation") - best).abs() < 1e-6, "{row:?}: {best}");
        // Mean and deviation over the two seeds of this rate: half their sum, and their distance over the root of 2.
        let twins: Vec<f64> = rows
            .iter()
            .filter(|other| other["learning-rate"] == row["learning-rate"])
            .map(|other| number(other, "validation"))
            .collect();
        let [a, b] = twins[..] else { panic!("two seeds: {twins:?}") };
        assert!((number(row, "validation: mean") - (a + b) / 2.0).abs() < 1e-6);
        let deviation = (a - b).abs() / 2.0_f64.sqrt();
        assert!((number(row, "validation: standard deviation") - deviation).abs() < 1e-6);
        assert_eq!(row["runs"], "2");
    }
}

/// The first SIGINT ends a sweep after the step at hand, with a checkpoint of every run of the batch.
#[test]
#[cfg(unix)]
fn a_signal_ends_a_sweep_with_checkpoints() {
    let setting = Setting::new();
    let more = "validate-every = 200\nsave-every = 200\n[sweep]\nseed = [1, 2]\n";
    setting.write("sweep.toml", more);
    let text = fs::read_to_string(setting.path("sweep.toml")).expect("a sweep");
    let text =
        text.replacen("validate-every = 5\nsave-every = 2\n", "", 1).replacen("steps = 20", "steps = 200", 1);
    fs::write(setting.path("sweep.toml"), text).expect("written");
    let sweep = |out: &str| -> Vec<String> {
        ["sweep".into(), setting.path("sweep.toml"), "--out".into(), setting.path(out)].into()
    };
    success(&words(&sweep("unbroken")));
    let child = command(&words(&sweep("ended")))
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let log = PathBuf::from(setting.path("ended/seed-2/log.jsonl"));
    let taken = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    let started = Instant::now();
    while taken() < 3 {
        assert!(started.elapsed().as_secs() < 60, "no step was taken");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill").success());
    let ended = child.wait_with_output().expect("an end");
    let said = String::from_utf8(ended.stderr).expect("text");
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("the same command goes on"), "{said}");
    assert_is_told_first(&said);
    let step = taken();
    assert!(step < 200);
    success(&words(&sweep("ended")));
    for run in ["seed-1", "seed-2"] {
        let [ended, unbroken] =
            ["ended", "unbroken"].map(|sweep| PathBuf::from(setting.path(&format!("{sweep}/{run}"))));
        let log = fs::read_to_string(ended.join("log.txt")).expect("a log");
        assert!(log.contains(&format!("resumed after step {step}\n")), "{run}: {log}");
        assert!(result(&ended) == result(&unbroken), "{run}");
    }
}

/// A run's end is an end: going on with it changes nothing.
#[test]
fn a_run_that_patience_ended_stays_ended() {
    let setting = Setting::new();
    let flags = ["--learning-rate", "0", "--validate-every", "1", "--patience", "2", "--steps", "9"];
    success(&words(&setting.train("run", &flags)));
    let folder = PathBuf::from(setting.path("run"));
    let ended = result(&folder);
    assert_eq!(ended.1.len(), 2 * 3, "three steps, each with its validation");
    let why = "--patience 2 ended after step 3: so many validations in a row were no better";
    let output = promptmix(&words(&setting.resume("run")));
    let message = said(&output);
    assert!(
        output.status.success() && message.contains("no step was taken") && message.contains(why),
        "{message}"
    );
    assert!(message.contains("another --patience"), "{message}");
    assert!(result(&folder) == ended, "no step was taken");
    // Of another length it ended all the same, longer or shorter.
    for steps in ["2", "50"] {
        let message = error(&words(&[setting.resume("run"), vec!["--steps".into(), steps.into()]].concat()));
        assert!(message.contains(why) && message.contains("another --patience"), "{message}");
        assert!(result(&folder) == ended, "no step was taken");
        assert_eq!(setting.config("run").steps, Some(9), "its length stays");
    }
}
