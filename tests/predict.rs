//! Answers of several runs: their rows share a batch, and each gets what its run says alone.
#![cfg(feature = "cli")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use promptmix::backend::cpu::Cpu;
use promptmix::config::{Decoding, Method, RunConfig};
use promptmix::model::Frozen;
use promptmix::train::{Predictor, Request, RunFolder, Silent, Trainer};

#[path = "common/program.rs"]
mod program;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// Four runs in folders of their own: two of prompt tuning that rank labels of different tasks, one that answers freely,
/// and one of ATTEMPT.
fn runs(frozen: &Frozen<'_, Cpu<f32>>, folder: &Path) -> Vec<PathBuf> {
    let data = folder.join("data");
    fs::create_dir(&data).expect("a folder");
    for file in ["train", "validation"] {
        let row = |i: usize| {
            format!("{{\"sentence\": \"a {} film {i}\", \"label\": {}}}\n", ["bad", "good"][i % 2], i % 2)
        };
        let rows: String = (0..12).map(row).collect();
        fs::write(data.join(format!("{file}.jsonl")), rows).expect("written");
    }
    let mut config = RunConfig::default();
    config.model = model().display().to_string();
    config.task = "sst2".into();
    config.labels = Some("negative,positive".into());
    config.data = data;
    config.method = Method::PromptTuning;
    config.prompt_length = 4;
    config.batch_size = 4;
    config.steps = Some(3);
    config.decoding = Decoding::Labels;
    let mut other = config.clone();
    (other.seed, other.template) = (2, Some("film: {sentence}".into()));
    (other.task, other.labels) = ("custom".into(), Some("awful,rather dull,really good".into()));
    let mut free = config.clone();
    (free.seed, free.decoding) = (3, Decoding::Greedy);
    let mut attempt = config.clone();
    (attempt.method, attempt.bottleneck_dim) = (Method::Attempt, 8);
    attempt.sources = ["one", "two"].map(|name| folder.join(name).join("prompt.safetensors")).into();
    [("one", config), ("two", other), ("three", free), ("four", attempt)]
        .into_iter()
        .map(|(name, config)| {
            let path = folder.join(name);
            let mut trainer = Trainer::new(frozen, &config, &mut Silent).expect("a run");
            let mut run = RunFolder::create(&path, &config, &frozen.model_hash).expect("a folder");
            trainer.run(Some(&mut run), &mut Silent).expect("three steps");
            path
        })
        .collect()
}

#[test]
fn rows_of_different_tasks_and_runs_answer_together_as_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let runs = runs(&frozen, folder.path());
    let folders: Vec<&Path> = runs.iter().map(PathBuf::as_path).collect();
    let predictor = Predictor::open(&frozen, &folders, None).expect("four runs");
    assert_eq!(predictor.stacks(), 2, "the three of prompt tuning share a batch");
    assert_eq!(predictor.prompts(3), ["one", "two", "target"]);

    let texts = ["a good film", "a rather long and very bad film about nothing much", "fine", "dull"];
    let requests: Vec<Request> =
        (0..14).map(|i| Request::new([2, 0, 3, 1][i % 4], texts[(i / 2) % 4])).collect();
    let together = predictor.predict(&requests).expect("answers");
    assert_eq!(together.len(), requests.len());
    for (request, prediction) in requests.iter().zip(&together) {
        let alone = Predictor::open(&frozen, &[folders[request.run]], None).expect("a run");
        let alone = &alone.predict(&[Request::new(0, request.text.clone())]).expect("an answer")[0];
        assert_eq!(prediction.answer, alone.answer, "{request:?}");
        assert_eq!(prediction.attention.len(), alone.attention.len());
        for (a, b) in prediction.attention.iter().zip(&alone.attention) {
            assert!((a - b).abs() <= 1e-6, "{request:?}: {a} and {b}");
        }
    }
    let labels = ["awful", "rather dull", "really good"];
    let of_run = |run| requests.iter().zip(&together).filter(move |(request, _)| request.run == run);
    assert!(of_run(1).all(|(_, prediction)| labels.contains(&prediction.answer.as_str())));
    let sums = of_run(3).map(|(_, prediction)| prediction.attention.iter().sum::<f64>());
    assert!(sums.into_iter().all(|sum| (sum - 1.0).abs() < 1e-5));
    assert!(predictor.predict(&[Request::new(4, "no such run")]).is_err());
    assert_eq!(predictor.predict(&[]).expect("nothing to do"), []);
}

fn promptmix(arguments: &[&str]) -> Command {
    let mut command = program::promptmix();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn lines_stream_through_in_order_and_none_waits_for_the_next() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let runs = runs(&frozen, folder.path());
    let [one, two] = [0, 1].map(|run: usize| runs[run].display().to_string());
    let renamed = format!("second={two}");
    let arguments = ["predict", "--run", &one, "--run", &renamed, "--input", "-", "--decoding", "labels"];
    let mut child = promptmix(&arguments).spawn().expect("the binary runs");
    let mut input = child.stdin.take().expect("a pipe");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    for number in 0..5 {
        let run = ["one", "second"][number % 2];
        writeln!(input, "{{\"sentence\": \"film {number}\", \"run\": \"{run}\", \"id\": {number}}}")
            .expect("a line");
        // The answer comes while the input is still open.
        let line = output.next().expect("an answer").expect("text");
        let answer: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(answer["id"], number);
        let expected: &[&str] =
            if run == "one" { &["negative", "positive"] } else { &["awful", "rather dull", "really good"] };
        assert!(expected.contains(&answer["prediction"].as_str().expect("text")), "{line}");
    }
    // Each bad row has its own line, and none of the good ones is lost, whatever shares a batch with it.
    let overlong = format!("{{\"sentence\": \"{}\"}}", "a".repeat(17 << 20));
    let rows = [
        &overlong,
        "{\"sentence\": \"film\", \"run\": \"third\"}",
        "{\"sentence\": \"film\", \"run\": \"one\", \"id\": 7}",
        "{\"sentence\": ",
        "{\"text\": \"film\", \"run\": \"one\"}",
        "{\"sentence\": \"film\", \"run\": \"one\", \"id\": 10}",
    ];
    input.write_all((rows.join("\n") + "\n").as_bytes()).expect("lines");
    drop(input);
    let answers: Vec<serde_json::Value> =
        output.map(|line| serde_json::from_str(&line.expect("text")).expect("JSON")).collect();
    assert_eq!(answers.len(), rows.len());
    for (answer, part) in answers.iter().zip(["line 6", "line 7", "", "line 9", "line 10", ""]) {
        match answer["error"].as_str() {
            Some(error) => assert!(!part.is_empty() && error.contains(part), "{error}"),
            None => assert!(part.is_empty() && answer["prediction"].is_string(), "{answer}"),
        }
    }
    let end = child.wait_with_output().expect("an end");
    let message = String::from_utf8_lossy(&end.stderr).into_owned();
    assert_eq!(end.status.code(), Some(1));
    assert!(message.contains("line 7") && message.contains("one of one, second"), "{message}");

    let twice =
        promptmix(&["predict", "--run", &one, "--run", &one, "--input", "-"]).output().expect("an end");
    assert!(String::from_utf8_lossy(&twice.stderr).contains("NAME=FOLDER"));
}

#[test]
fn an_answer_goes_beside_what_a_row_has_and_changes_none_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let run = runs(&frozen, folder.path())[0].display().to_string();
    let input = folder.path().join("rows.jsonl");
    let input = input.to_str().expect("a path");
    let predict = |rows: &str, more: &[&str]| {
        fs::write(input, rows).expect("written");
        let end = promptmix(&[&["predict", "--run", &run, "--input", input], more].concat())
            .output()
            .expect("an end");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (text(end.stdout), text(end.stderr), end.status.code())
    };
    let rows = "{\"sentence\": \"a film\", \"id\": 123456789012345678901234567890, \"x\": [1.50, 1E3]}\n";
    let (out, err, code) = predict(rows, &[]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("{\"id\":123456789012345678901234567890,\"prediction\":\""), "{out}");
    assert!(out.ends_with(",\"sentence\":\"a film\",\"x\":[1.50,1E3]}\n"), "{out}");
    // What predict wrote goes in again under another name, and never over the old answer.
    let (_, err, code) = predict(&out, &[]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("line 1") && err.contains("`prediction`") && err.contains("--output-field"),
        "{err}"
    );
    let (again, err, code) = predict(&out, &["--output-field", "second"]);
    assert_eq!(code, Some(0), "{err}");
    let again: serde_json::Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(again["second"], again["prediction"]);
    // Only --explain writes a field of this name.
    let rows = "{\"sentence\": \"a film\", \"attention\": 1}\n";
    assert_eq!(predict(rows, &[]).2, Some(0));
    let (_, err, code) = predict(rows, &["--explain"]);
    assert!(code == Some(1) && err.contains("`attention`"), "{err}");
    let (_, err, code) = predict(rows, &["--explain", "--output-field", "attention"]);
    assert!(code == Some(1) && err.contains("--output-field"), "{err}");
}

#[test]
fn answers_are_not_written_over_the_rows_that_are_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let run = runs(&frozen, folder.path())[0].display().to_string();
    let input = folder.path().join("rows.csv");
    let rows = "sentence,id\na film,1\n";
    fs::write(&input, rows).expect("written");
    let same = folder.path().join("one/../rows.csv");
    let predict = |out: &Path| {
        let [input, out] = [&*input, out].map(|path| path.to_str().expect("a path"));
        let command = ["predict", "--run", &run, "--input", input, "--out", out, "--decoding", "labels"];
        promptmix(&command).output().expect("an end")
    };
    let refused = predict(&same);
    assert!(!refused.status.success() && fs::read_to_string(&input).expect("the rows") == rows);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("--out") && message.contains("which is read"), "{message}");
    let state = Path::new(&run).join("best.safetensors");
    let before = fs::read(&state).expect("the run's state");
    let refused = predict(&state);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("a file of a run"), "{message}");
    assert!(fs::read(&state).expect("the run's state") == before);
    let answers = folder.path().join("answers.jsonl");
    assert!(predict(&answers).status.success());
    let answered = fs::read(&answers).expect("answers");
    assert!(!predict(Path::new("-")).status.success(), "a file of this name is ./-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        // A link stays one, and a file keeps who may read it.
        fs::set_permissions(&answers, fs::Permissions::from_mode(0o600)).expect("a mode");
        fs::write(&answers, "old").expect("written");
        let link = folder.path().join("link.jsonl");
        symlink(&answers, &link).expect("a link");
        assert!(predict(&link).status.success());
        assert!(link.is_symlink() && fs::read(&answers).expect("answers") == answered);
        assert_eq!(answers.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
        // A pipe is written to.
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).expect("what comes")
        });
        assert!(predict(&pipe).status.success());
        assert!(reader.join().expect("a reader") == answered && !pipe.is_file());
    }
}

/// A signal ends it as it ends any program, and leaves neither half of the answers nor a temporary file.
#[cfg(unix)]
#[test]
fn a_signal_leaves_the_old_answers_and_no_temporary_file() {
    use std::os::unix::process::ExitStatusExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let run = runs(&frozen, folder.path())[0].display().to_string();
    let written = tempfile::tempdir().expect("a temporary folder");
    let answers = written.path().join("answers.jsonl");
    fs::write(&answers, "old").expect("written");
    for (name, number) in [("-INT", 2), ("-TERM", 15)] {
        let out = answers.to_str().expect("a path");
        let mut child = promptmix(&["predict", "--run", &run, "--input", "-", "--out", out])
            .spawn()
            .expect("the binary runs");
        let mut rows = child.stdin.take().expect("a pipe");
        writeln!(rows, "{{\"sentence\": \"a film\"}}").expect("a row");
        // An answer lies there: before that the folder was tried with a file that is gone again.
        let files = || fs::read_dir(written.path()).expect("a folder").flatten();
        let is_half = |file: fs::DirEntry| {
            file.path() != answers && file.metadata().is_ok_and(|metadata| metadata.len() > 0)
        };
        let started = std::time::Instant::now();
        while !files().any(is_half) {
            assert!(started.elapsed().as_secs() < 60, "no temporary file");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().expect("a signal").success());
        let ended = child.wait().expect("an end");
        assert_eq!(ended.signal(), Some(number));
        assert_eq!((files().count(), fs::read_to_string(&answers).expect("answers").as_str()), (1, "old"));
    }
}

/// `promptmix ... | head -1`
#[cfg(unix)]
#[test]
fn a_reader_that_has_seen_enough_ends_the_program_without_a_word() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let run = runs(&frozen, folder.path())[0].display().to_string();
    let input = folder.path().join("rows.jsonl");
    fs::write(&input, "{\"sentence\": \"a film\"}\n".repeat(3_000)).expect("written");
    let arguments = ["predict", "--run", &run, "--input", input.to_str().expect("a path")];
    let mut child = promptmix(&arguments).spawn().expect("the binary runs");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert!(line.contains("prediction"), "{line}");
    drop(output);
    let end = child.wait_with_output().expect("an end");
    assert_eq!(String::from_utf8_lossy(&end.stderr), "");

    let mut child = promptmix(&["tasks"]).spawn().expect("the binary runs");
    drop(child.stdout.take());
    let end = child.wait_with_output().expect("an end");
    assert_eq!(String::from_utf8_lossy(&end.stderr), "");
}
