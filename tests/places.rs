//! Runs whose folder, model and data have moved, flags beside --resume, and places that cannot be written to.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

#[path = "common/program.rs"]
mod program;

/// A folder with a model, data and, after [`Project::train`], a run; all named by relative paths.
struct Project(tempfile::TempDir);

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("listed").flatten() {
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const TRAIN: &str = "train --model model --template {text} --labels negative,positive --data data --method prompt-tuning \
                     --prompt-length 4 --steps 2 --batch-size 4 --threads 1 --out run";

impl Project {
    fn new() -> Self {
        let project = Self(tempfile::tempdir().expect("a temporary folder"));
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo"), &project.path("a/model"));
        fs::create_dir(project.path("a/data")).expect("a folder");
        let row = |i: usize| {
            format!("{{\"text\": \"a {} film {i}\", \"label\": {}}}\n", ["bad", "good"][i % 2], i % 2)
        };
        for (file, rows) in [("train", 8), ("validation", 4)] {
            let rows: String = (0..rows).map(row).collect();
            fs::write(project.path(&format!("a/data/{file}.jsonl")), rows).expect("written");
        }
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, folder: &str, command: &str) -> Output {
        program::promptmix()
            .current_dir(self.path(folder))
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.path("no-cache"))
            .args(command.split_whitespace())
            .output()
            .expect("the binary runs")
    }

    fn success(&self, folder: &str, command: &str) -> String {
        let output = self.run(folder, command);
        assert!(output.status.success(), "{command}: {}", said(&output));
        said(&output)
    }

    fn error(&self, folder: &str, command: &str) -> String {
        let output = self.run(folder, command);
        let said = said(&output);
        assert!(!output.status.success(), "{command} was accepted: {said}");
        assert!(!said.contains("panicked"), "{command}: {said}");
        said
    }

    fn train(&self) {
        self.success("a", TRAIN);
    }

    fn rename(&self, from: &str, to: &str) {
        fs::create_dir_all(self.path(to).parent().expect("a parent")).expect("a folder");
        fs::rename(self.path(from), self.path(to)).expect("moved");
    }
}

const ANSWER: &str = "predict --input data/train.jsonl --threads 1 --run";

#[test]
fn a_whole_project_that_moved_answers_from_anywhere() {
    let project = Project::new();
    project.train();
    let before = project.success("a", &format!("{ANSWER} run"));
    project.rename("a", "b/c");
    // From the project's folder, from beside it and from another: the run knows where its things lie.
    assert_eq!(project.success("b/c", &format!("{ANSWER} run")), before);
    for (folder, run, input) in
        [("b", "c/run", "c/data/train.jsonl"), ("", "b/c/run", "b/c/data/train.jsonl")]
    {
        let command = format!("predict --input {input} --threads 1 --run {run}");
        let said = project.success(folder, &command);
        assert!(said.contains(before.lines().next().expect("a line")), "{said}");
        assert!(said.contains("model: ") && said.contains("recorded as model"), "{said}");
    }
    // The data is found as the model is.
    let said = project.success("", "evaluate --threads 1 --run b/c/run");
    assert!(said.contains("4 examples") && said.contains("recorded as data"), "{said}");
    let said = project.success("", "train --resume --threads 1 --out b/c/run");
    assert!(said.contains("2 steps"), "{said}");
}

#[test]
fn of_several_places_of_data_each_is_looked_for_by_itself() {
    let project = Project::new();
    project.train();
    project.rename("a", "b/c");
    let run = project.path("b/c/run");
    let mut saved = promptmix::train::RunFolder::saved(&run).expect("a run");
    saved.config.task = "sst2,rte,cola".to_owned();
    saved.config.data = PathBuf::from("data,hub:,elsewhere");
    let now = saved.located(&run).data.display().to_string();
    let places: Vec<&str> = now.split(',').collect();
    assert!(Path::new(places[0]).is_dir() && places[0].ends_with("b/c/data"), "{now}");
    assert_eq!(places[1..], ["hub:", "elsewhere"]);
}

#[test]
fn a_run_is_answered_where_its_model_still_is() {
    let project = Project::new();
    project.train();
    // The run alone went away; where it was trained the model still lies.
    project.rename("a/run", "b/run");
    fs::create_dir(project.path("b/model")).expect("a folder of the same name");
    let said = project.success("b", "predict --input ../a/data/train.jsonl --threads 1 --run run");
    assert!(said.contains("\"prediction\""), "{said}");
}

#[test]
fn a_model_that_moved_by_itself_is_named_by_a_flag() {
    let project = Project::new();
    project.train();
    project.rename("a/run", "b/run");
    project.rename("a/data", "b/rows");
    project.rename("a/model", "c/t5");
    let input = "predict --input rows/train.jsonl --threads 1 --run run";
    let error = project.error("b", input);
    for part in ["--model", "`model`", "SHA-256", "no such folder"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("hub"), "it was a folder, and none of the hub's: {error}");
    project.success("b", &format!("{input} --model ../c/t5"));
    let evaluated = project.success("b", "evaluate --threads 1 --run run --model ../c/t5 --data rows");
    assert!(evaluated.contains("4 examples"), "{evaluated}");
    let error = project.error("b", "evaluate --threads 1 --run run --model ../c/t5");
    assert!(error.contains("data"), "{error}");
    project.success("b", "train --resume --threads 1 --out run --model ../c/t5 --data rows");
}

#[test]
fn another_model_of_the_same_name_is_passed_over() {
    let project = Project::new();
    project.train();
    let before = project.success("a", &format!("{ANSWER} run"));
    project.rename("a", "b");
    // Another model where the program runs now, of the recorded name: the one beside the run has the recorded hash.
    copy(&project.path("b/model"), &project.path("c/model"));
    let weights = project.path("c/model/model.safetensors");
    let mut bytes = fs::read(&weights).expect("read");
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).expect("written");
    let said = project.success("c", "predict --input ../b/data/train.jsonl --threads 1 --run ../b/run");
    assert!(said.contains(before.lines().next().expect("a line")), "{said}");
    let error =
        project.error("c", "predict --input ../b/data/train.jsonl --threads 1 --run ../b/run --model model");
    assert!(error.contains("--model") && error.contains("one on"), "{error}");
    fs::remove_dir_all(project.path("b/model")).expect("removed");
    let error = project.error("c", "predict --input ../b/data/train.jsonl --threads 1 --run ../b/run");
    assert!(error.contains("one on"), "only the other model is left: {error}");
}

#[test]
fn a_run_folder_of_an_older_version_looks_at_the_hub_last() {
    let project = Project::new();
    project.train();
    let path = project.path("a/run/run.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    let fields = json.as_object_mut().expect("an object");
    assert!(fields.remove("trained-in").is_some() && fields.remove("model-is-folder").is_some());
    fs::write(&path, json.to_string()).expect("written");
    project.success("a", &format!("{ANSWER} run"));
    project.success("", "predict --input a/data/train.jsonl --threads 1 --run a/run");
    project.rename("a/model", "c/t5");
    let error = project.error("a", &format!("{ANSWER} run"));
    assert!(error.contains("from the hub") && error.contains("--model FOLDER"), "{error}");
}

#[test]
fn sources_are_found_beside_a_run_that_moved() {
    let project = Project::new();
    project.train();
    let attempt = TRAIN
        .replace("prompt-tuning", "attempt --rank 4 --sources run/prompt.safetensors")
        .replace("--out run", "--out mixed");
    project.success("a", &attempt);
    let before = project.success("a", &format!("{ANSWER} mixed"));
    project.rename("a", "b");
    let said = project.success("", "predict --input b/data/train.jsonl --threads 1 --run b/mixed");
    assert!(said.contains(before.lines().next().expect("a line")), "{said}");
    assert!(said.contains("source: ") && said.contains("recorded as run/prompt.safetensors"), "{said}");
}

/// A task's file may be edited after training: other texts are told of, other metrics are the same texts.
#[test]
fn a_task_file_that_changed_since_training_is_told_of() {
    let project = Project::new();
    let write = |text: &str| fs::write(project.path("a/own.toml"), text).expect("written");
    let before = "source = \"say: {text}\"\nlabels = \"negative,positive\"\n";
    write(before);
    project.success("a", &TRAIN.replace("--template {text} --labels negative,positive", "--task own.toml"));
    let evaluate = "evaluate --threads 1 --run run";
    let told = "warning: task own of run makes other texts of rows than in its training";
    for (text, is_told) in [
        (before.replace("say: ", ""), true),
        (before.replace("negative,positive", "positive,negative"), true),
        (before.to_owned() + "lowercase = true\n", true),
        (before.to_owned() + "metrics = [\"f1\"]\n", false),
        (before.to_owned(), false),
    ] {
        write(&text);
        for command in [format!("{ANSWER} run"), evaluate.into()] {
            assert_eq!(project.success("a", &command).contains(told), is_told, "{text}");
        }
        // These rows have no capital.
        if is_told && !text.contains("lowercase") {
            let said = project.error("a", "train --resume --steps 4 --threads 1 --out run");
            assert!(said.contains("its task's file"), "{said}");
        }
    }
}

/// A mixture is of its sources' numbers: a source that was trained anew gives other answers, so it is refused, and of two files
/// of one name the run's own is taken.
#[test]
fn a_source_with_other_numbers_is_refused_and_passed_over() {
    let project = Project::new();
    let source = |out: &str, seed: &str| {
        project
            .success("a", &format!("{} --seed {seed}", TRAIN.replace("--out run", &format!("--out {out}"))));
    };
    source("film", "1");
    let mix = TRAIN.replace("--method prompt-tuning", "--sources film").replace("--out run", "--out mixture");
    project.success("a", &mix);
    let before = project.success("a", &format!("{ANSWER} mixture"));
    project.rename("a/film", "a/kept");
    source("film", "2");
    for command in [format!("{ANSWER} mixture"), "evaluate --threads 1 --run mixture".into()] {
        let said = project.error("a", &command);
        assert!(said.contains("the source that the run was trained with in film"), "{said}");
        assert!(said.contains("put the old file back"), "{said}");
    }
    let said = project.error("a", "train --resume --steps 4 --threads 1 --out mixture");
    assert!(said.contains("--resume: expected the source"), "{said}");
    let said = project.error("a", "prompts add --run mixture --source kept --out both");
    assert!(said.contains("the source that the run was trained with in film"), "{said}");
    // The remedy.
    project.rename("a/film", "a/anew");
    project.rename("a/kept", "a/film");
    assert_eq!(project.success("a", &format!("{ANSWER} mixture")), before);
    project.success("a", "prompts add --run mixture --source anew --out both");
    project.success("a", "prompts remove --run both --source anew --out again");
    assert_eq!(project.success("a", &format!("{ANSWER} again")), before);
    // Where the program runs there is another film; the run's own lies beside it.
    for moved in ["mixture", "film"] {
        project.rename(&format!("a/{moved}"), &format!("b/{moved}"));
    }
    project.rename("a/anew", "a/film");
    let said = project.success("a", &format!("{ANSWER} ../b/mixture"));
    assert!(said.contains(before.lines().next().expect("a line")), "{said}");
    assert!(said.contains("source: ") && said.contains("recorded as film"), "{said}");
    // What starts from a source needs it no more.
    let spot = TRAIN.replace("prompt-tuning", "spot --sources film").replace("--out run", "--out spot");
    project.success("a", &spot);
    fs::remove_dir_all(project.path("a/film")).expect("removed");
    project.success("a", &format!("{ANSWER} spot"));
}

#[test]
fn a_flag_that_would_change_a_run_is_refused_beside_resume() {
    let project = Project::new();
    project.train();
    let log = fs::read(project.path("a/run/log.jsonl")).expect("a log");
    let error = project
        .error("a", "train --resume --out run --steps 8 --learning-rate 0.01 --batch-size 2 --threads 1");
    for part in ["--learning-rate", "--batch-size", "2 where the run has 4", "--resume"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    for flags in [
        "--epochs 3",
        "--seed 7",
        "--task sst2",
        "--template {text}!",
        "--labels bad,good",
        "--method attempt",
        "--sources run/prompt.safetensors",
        "--lowercase",
        "--patience 2",
        "--decoding labels",
        "--dropout 0.5",
    ] {
        let error = project.error("a", &format!("train --resume --out run --threads 1 {flags}"));
        let flag = flags.split(' ').next().expect("a flag");
        assert!(error.contains(flag) && error.contains("--resume"), "{flags}: {error}");
    }
    assert_eq!(fs::read(project.path("a/run/log.jsonl")).expect("a log"), log, "nothing was touched");
    // What changes nothing is no reason to refuse, nor is the number of threads.
    let same =
        "train --resume --out run --steps 2 --labels negative,positive --model model --data data --threads 2";
    assert!(project.success("a", same).contains("2 steps"));
}

#[test]
fn a_place_that_cannot_be_written_to_is_refused_before_the_model_is_read() {
    let project = Project::new();
    project.train();
    // A model that cannot be read would be the next error.
    fs::write(project.path("a/model/model.safetensors"), "no weights").expect("written");
    fs::write(project.path("a/file"), "").expect("written");
    for (out, part) in [("run", "holds files"), ("file/run", "file")] {
        for more in ["", " --few-shot 2 --draws 2"] {
            let command = TRAIN.replace("--out run", &format!("--out {out}{more}"));
            let error = project.error("a", &command);
            assert!(error.contains(part) && !error.contains("safetensors"), "{command}: {error}");
            assert!(!error.contains("os error"), "{command}: {error}");
        }
    }
    for out in ["data", "absent/answers.jsonl", "file/answers.jsonl"] {
        let error = project.error("a", &format!("{ANSWER} run --out {out}"));
        assert!(!error.contains("safetensors") && !error.contains("os error"), "{out}: {error}");
    }
    fs::write(
        project.path("a/sweep.toml"),
        "model = \"model\"\nmethod = \"prompt-tuning\"\n[sweep]\nseed = [1]\n",
    )
    .expect("written");
    let error = project.error("a", "sweep sweep.toml --out file/runs");
    assert!(error.contains("file, a file") && !error.contains("safetensors"), "{error}");
    let error = project.error("a", "report run --out file");
    assert!(error.contains("found file, a file"), "{error}");
    assert!(!project.path("a/absent").exists());
}
