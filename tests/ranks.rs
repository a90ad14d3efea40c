//! One run on several processes: the numbers of one process, whatever their count, and an end when one of them dies.
#![cfg(all(feature = "mpi", feature = "cli", unix))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

#[cfg(feature = "cuda")]
#[path = "common/kernels.rs"]
mod kernels;
#[path = "common/program.rs"]
mod program;

fn setting(steps: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (file, rows) in [("train", 18), ("validation", 6)] {
        let row = |i: usize| {
            format!("{{\"sentence\": \"a {} film {i}\", \"label\": {}}}\n", ["bad", "good"][i % 2], i % 2)
        };
        let rows: String = (0..rows).map(row).collect();
        fs::write(folder.path().join(format!("{file}.jsonl")), rows).expect("written");
    }
    // The last batch of an epoch has two rows: fewer than there may be ranks.
    let text = format!(
        "model = {:?}\ntask = \"sst2\"\nlabels = \"negative,positive\"\ndata = {:?}\nmethod = \"prompt-tuning\"\n\
         prompt-length = 4\nbatch-size = 8\nsteps = {steps}\nvalidate-every = 5\ndecoding = \"labels\"\ndropout = 0.1\n",
        Path::new(env!("CARGO_MANIFEST_DIR")).join("demo"),
        folder.path()
    );
    fs::write(folder.path().join("run.toml"), text).expect("written");
    folder
}

fn mpirun(ranks: usize) -> Command {
    let mut command = program::without_gpu(Command::new("mpirun"));
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(ranks: usize, arguments: &[&str]) -> Child {
    let mut command = mpirun(ranks);
    command.arg(program::PATH).args(arguments).args(["--threads", "1"]);
    command.spawn().expect("mpirun of the MPI that the feature was built with")
}

fn train(folder: &Path, ranks: usize, out: &str) -> PathBuf {
    let out = folder.join(out);
    let (config, out_text) = (folder.join("run.toml").display().to_string(), out.display().to_string());
    let end =
        start(ranks, &["train", "--config", &config, "--out", &out_text]).wait_with_output().expect("an end");
    assert!(end.status.success(), "{ranks} ranks: {}", String::from_utf8_lossy(&end.stderr));
    let said = String::from_utf8_lossy(&end.stdout).into_owned();
    assert_eq!(said.lines().count(), 1, "one rank speaks: {said}");
    out
}

fn log(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("log.jsonl")).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn state(run: &Path) -> Vec<u8> {
    fs::read(run.join("last.safetensors")).expect("a state")
}

#[test]
fn one_two_and_four_ranks_agree_and_give_the_same_bytes_again() {
    let folder = setting(12);
    let folder = folder.path();
    let one = train(folder, 1, "one");
    for ranks in [2, 4] {
        let several = train(folder, ranks, &format!("several{ranks}"));
        assert_eq!(log(&one).len(), log(&several).len());
        let mut worst = 0.0_f64;
        for (a, b) in log(&one).iter().zip(&log(&several)) {
            for key in ["loss", "gradient_norm"] {
                let (Some(a), Some(b)) = (a[key].as_f64(), b[key].as_f64()) else { continue };
                worst = worst.max((a - b).abs() / a.abs().max(1e-3));
            }
            assert_eq!(a["metrics"], b["metrics"]);
        }
        println!("{ranks} ranks: losses and norms within {worst:.1e} of one rank's");
        // A dozen updates of f32 sums in another grouping.
        assert!(worst > 0.0 && worst <= 1e-4, "{ranks} ranks: {worst:.1e}");
        let again = train(folder, ranks, &format!("again{ranks}"));
        assert!(state(&several) == state(&again), "{ranks} ranks twice");
    }
}

#[test]
fn a_rank_that_dies_ends_the_run_which_goes_on_from_its_checkpoint() {
    let folder = setting(400);
    let config = folder.path().join("run.toml").display().to_string();
    let out = folder.path().join("run");
    let out_text = out.display().to_string();
    let mpirun = start(2, &["train", "--config", &config, "--out", &out_text]);
    let steps = || fs::read_to_string(out.join("log.jsonl")).unwrap_or_default().lines().count();
    for _ in 0..600 {
        if steps() > 12 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!((13..400).contains(&steps()), "the run is under way");
    let ranks = children(mpirun.id());
    assert_eq!(ranks.len(), 2);
    let killed = Command::new("kill").args(["-9", &ranks[1].to_string()]).status();
    assert!(killed.expect("kill").success());
    let end = mpirun.wait_with_output().expect("an end");
    assert!(!end.status.success(), "the run ended with an error");
    let reached = steps();
    assert!(reached < 400 && out.join("last.safetensors").exists());

    // A smaller end, so that the test has one: the checkpoint says where it goes on.
    let before = log(&out).iter().filter(|line| line.get("loss").is_some()).count();
    let resumed = start(2, &["train", "--resume", "--out", &out_text]);
    for _ in 0..600 {
        if steps() > reached + 6 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let ranks = children(resumed.id());
    for rank in &ranks {
        let _ = Command::new("kill").args(["-9", &rank.to_string()]).status();
    }
    resumed.wait_with_output().expect("an end");
    let log = log(&out);
    let steps: Vec<u64> = log
        .iter()
        .filter(|line| line.get("loss").is_some())
        .filter_map(|line| line["step"].as_u64())
        .collect();
    assert!(steps.len() > before, "{} steps after {before}", steps.len());
    assert!(
        steps.iter().enumerate().all(|(index, &step)| step == index as u64 + 1),
        "no step twice, none left out"
    );
}

/// A bad setting on every rank is said, and nothing waits.
#[test]
fn an_error_ends_all_ranks() {
    let folder = setting(3);
    let config = folder.path().join("run.toml").display().to_string();
    let end =
        start(2, &["train", "--config", &config, "--out", "/proc/run"]).wait_with_output().expect("an end");
    assert!(!end.status.success());
    let said = String::from_utf8_lossy(&end.stderr).into_owned();
    assert!(said.contains("error on rank 0") && said.contains("/proc/run"), "{said}");
}

/// Each rank computes on the GPU of its number, and the run's numbers are those of one GPU, as closely as bf16 has them.
#[cfg(feature = "cuda")]
#[test]
fn each_rank_takes_a_gpu_of_its_own() {
    if !kernels::are_built() {
        return;
    }
    let folder = setting(2);
    let folder = folder.path();
    let config = folder.join("run.toml").display().to_string();
    let library = vgpu::find_library().expect("the virtual GPU's library");
    let run_on = |device: &str, ranks: usize, gpus: usize, out: &str| {
        let mut command = mpirun(ranks);
        for (name, value) in [("VGPU_DEVICES", gpus.to_string()), ("VGPU_THREADS", "1".to_string())] {
            command.arg("-x").arg(format!("{name}={value}"));
        }
        // Every rank leaves what its GPU counted in a file of its own.
        let script = format!(
            "unset CUDA_VISIBLE_DEVICES; VGPU_JSON={}/{out}-$OMPI_COMM_WORLD_RANK.json LD_PRELOAD={} exec {} train --config {config} \
             --out {} --device {device}",
            folder.display(),
            library.display(),
            program::PATH,
            folder.join(out).display()
        );
        command.args(["bash", "-c", &script]).output().expect("an end")
    };
    for (ranks, device) in [(1, "cuda"), (2, "auto")] {
        let end = run_on(device, ranks, ranks, &format!("gpus{ranks}"));
        let said = String::from_utf8_lossy(&end.stderr);
        assert!(end.status.success(), "{ranks} ranks: {said}");
        let lines = said.matches("computing on cuda:0").count();
        assert_eq!(lines, usize::from(device == "auto"), "one rank says what was chosen: {said}");
        for rank in 0..ranks {
            let json =
                fs::read(folder.join(format!("gpus{ranks}-{rank}.json"))).expect("what the GPU counted");
            let json: Value = serde_json::from_slice(&json).expect("JSON");
            assert_eq!(json["ordinal"].as_u64(), Some(rank as u64), "the GPU of rank {rank}");
            assert!(
                json["counters"].as_array().is_some_and(|kernels| kernels.len() > 5),
                "rank {rank} computed"
            );
            assert_eq!(json["reports"].as_array().map(Vec::len), Some(0), "{}", json["reports"]);
        }
    }
    let losses = |run: &str| -> Vec<f64> {
        log(&folder.join(run)).iter().filter_map(|line| line["loss"].as_f64()).collect()
    };
    let (one, two) = (losses("gpus1"), losses("gpus2"));
    assert_eq!((one.len(), two.len()), (2, 2));
    for (one, two) in one.iter().zip(&two) {
        // Sums over fewer rows may be cut up otherwise: a rounding of bf16 here and there.
        let off = (one - two).abs() / one.abs();
        assert!(off <= 2.0_f64.powi(-9), "losses {one} and {two}");
    }

    let end = run_on("cuda", 2, 1, "short");
    assert!(!end.status.success());
    let said = String::from_utf8_lossy(&end.stderr).into_owned();
    assert!(said.contains("error on rank 1") && said.contains("GPU"), "{said}");
    // Left to the program, the rank without a GPU does not compute on the CPU beside the other.
    let end = run_on("auto", 2, 1, "mixed");
    assert!(!end.status.success());
    let said = String::from_utf8_lossy(&end.stderr).into_owned();
    assert!(said.contains("expected a GPU for every rank or for none, found 1 of 2 ranks"), "{said}");
}

/// The processes that `parent` started.
fn children(parent: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("a list");
    list.split_whitespace().map(|id| id.parse().expect("a number")).collect()
}
