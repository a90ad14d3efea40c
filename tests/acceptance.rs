//! `scripts/gpu-acceptance run`: on the virtual GPU, and with stand-ins for the programs that it calls, what is broken off, left for
//! another call, failing, skipped or without a GPU.
#![cfg(all(feature = "cuda", feature = "cli", unix))]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "common/kernels.rs"]
mod kernels;
#[path = "common/program.rs"]
mod program;
#[path = "common/script.rs"]
mod script;

const STAGES: [&str; 7] = ["correct", "step", "tiles", "kernels", "profile", "dense", "peers"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A packed folder, results beside it, and a folder of programs that come first on the path.
struct Packed {
    folder: tempfile::TempDir,
}

/// How a run ended.
struct End {
    status: Option<i32>,
    said: String,
}

/// Answers as the program does, quickly. `$folder` is where it notes what it was called with, and finds what it shall fail at.
const STAND_IN: &str = r#"#!/bin/bash
folder="$(cd "$(dirname "$0")/../.." && pwd)"
echo "$*" >>"$folder/calls"
[[ -f "$folder/fail" ]] && grep -qxF "$(cat "$folder/fail")" <<<"$*" && { echo "it broke"; exit 7; }
case "$*" in
  *--dropout*) [[ -f "$folder/slow" ]] && sleep "$(cat "$folder/slow")" ;;
esac
case "$1 $2" in
  "info "*) [[ -f "$folder/no-gpu" ]] && { echo "no driver here"; exit 0; }
    echo "          cuda:0 $(cat "$folder/gpu"), compute capability 9.0, 132 multiprocessors, 139.8 GiB" ;;
  "bench --help") echo "  step   Time"; [[ -f "$folder/old" ]] || echo "  kernels  Time" ;;
  "bench tiles")
    while [[ $# -gt 0 ]]; do [[ "$1" == --table ]] && echo "device,measured" >"$2"; shift; done
    echo "m qkv forward 1x2x3: 64x64, split-K 1 2.0 us; 80x128, split-K 1 1.0 us is fastest, the choice takes 100 % more"
    echo "m output forward 1x2x3: 64x64, split-K 1 2.0 us; the fastest" ;;
  "bench step") echo '{"forward":{"median_ms":1.5},"step":{"max_ms":9.0,"median_ms":4.0},"share_of_product_rate":0.6}' ;;
esac
"#;

impl Packed {
    /// With stand-ins for the program and its suite, on a machine with a GPU of that name.
    fn new(gpu: &str) -> Self {
        let packed = Self { folder: tempfile::tempdir().expect("a folder") };
        for folder in ["pack/bin", "pack/scripts/peers", "pack/tests/fixtures/gpu", "path"] {
            fs::create_dir_all(packed.path(folder)).expect("a folder");
        }
        for script in ["gpu-acceptance", "acceptance-table"] {
            let from = repository().join("scripts").join(script);
            packed.program(&format!("pack/scripts/{script}"), &fs::read_to_string(from).expect("a script"));
        }
        packed.write("gpu", gpu);
        packed.write("pack/PACK", "promptmix 1.2.3\ncommit abc\n");
        packed.write("pack/predicted.csv", "h200,step-t5-small,3.9\nh200,step-t5-base,8.0\nsm_90,step-t5-base,4.0\nh200,t5-base a_kernel,10\n");
        packed.program("pack/bin/promptmix", STAND_IN);
        packed.program("pack/bin/suite", "#!/bin/bash\necho test result: ok\n");
        // Whatever this machine has, the stand-in's has no profiler, sanitizer or peers.
        packed.program(
            "path/python3",
            "#!/bin/bash\necho \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1\n",
        );
        packed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn program(&self, name: &str, text: &str) {
        script::write(&self.path(name), text);
    }

    fn run(&self, stages: &[&str], variables: &[(&str, &str)]) -> End {
        let path = format!("{}:/usr/bin:/bin", self.path("path").display());
        let mut command = Command::new(self.path("pack/scripts/gpu-acceptance"));
        command
            .arg("run")
            .arg(self.path("out"))
            .args(stages)
            .env("PATH", path)
            .envs(variables.iter().copied());
        let end = command.output().expect("an end");
        let said = [end.stdout, end.stderr].concat();
        End { status: end.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn table(&self) -> String {
        self.read("out/acceptance.txt")
    }

    /// The whole report, which must be JSON, and how often each step has a result in it.
    fn results(&self, step: &str) -> usize {
        let report: serde_json::Value =
            serde_json::from_str(&self.read("out/acceptance.json")).expect("a report that is JSON");
        report.as_array().expect("a list").iter().filter(|line| line["step"] == step).count()
    }
}

#[test]
fn the_stages_are_listed_with_seconds_that_fit_ten_minutes() {
    let listed =
        Command::new(repository().join("scripts/gpu-acceptance")).arg("list").output().expect("an end");
    let text = String::from_utf8(listed.stdout).expect("text");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let names: Vec<&str> = lines.iter().map(|words| words[0]).collect();
    assert_eq!(names, STAGES);
    assert!(
        lines.iter().all(|words| (1..600).contains(&words[1].parse::<u32>().expect("seconds"))),
        "{text}"
    );
}

#[test]
fn predicted_stands_beside_measured_and_what_is_far_off_is_marked() {
    let packed = Packed::new("NVIDIA H200");
    let end = packed.run(&[], &[("ACCEPTANCE_SECONDS", "100000")]);
    assert_eq!(end.status, Some(0), "{}", end.said);
    let table = packed.table();
    assert!(end.said.ends_with(&table) && table.ends_with("accepted\n"), "{table}");
    let row = |figure: &str| {
        let line = table.lines().find(|line| line.starts_with(&format!("{figure} "))).unwrap_or_default();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("step-t5-small"), "ms 3.90 4.00 1.03");
    assert_eq!(row("step-t5-base"), "ms 8.00 4.00 0.50 off by more than a quarter");
    assert_eq!(row("step-t5-base-dropout"), "ms - 4.00 -");
    assert_eq!(row("dense-t5-3b,"), "share of a product % - 60.00 -");
    for said in [
        "promptmix 1.2.3, commit abc, on NVIDIA H200",
        "tiles: the choice is the fastest of all for 1 of 2 products",
        "m qkv forward 1x2x3",
        "skipped: kernels-peers: python3 has no torch that finds a GPU",
        "skipped: peer-t5-base-torch: ModuleNotFoundError: No module named 'torch'",
        "skipped: peer-t5-base-jax: ModuleNotFoundError",
        "skipped: sanitizer: compute-sanitizer is not on the path",
    ] {
        assert!(table.contains(said), "{said} in {table}");
    }
    assert!(!table.contains("m output forward"), "{table}");
    for step in [
        "device",
        "suite",
        "verify-gpu-f32",
        "verify-gpu-bf16",
        "step-t5-small-runs",
        "step-t5-base-tiles",
        "dense-t5-large",
        "kernels",
    ] {
        assert_eq!(packed.results(step), 1, "{step}");
    }
    let kernels = "bench kernels --shapes t5-small,t5-base,t5-large,t5-3b --repeats 20 --device cuda --json ";
    assert!(packed.read("calls").contains(kernels), "{}", packed.read("calls"));
    // All of it has results: nothing is done again.
    let calls = packed.read("calls");
    let end = packed.run(&[], &[]);
    assert_eq!(end.status, Some(0), "{}", end.said);
    assert_eq!(packed.read("calls"), format!("{calls}info --product-size 0\n"));
}

#[test]
fn a_build_without_bench_kernels_skips_their_stage() {
    let packed = Packed::new("NVIDIA H200");
    packed.write("old", "");
    let end = packed.run(&["kernels"], &[]);
    assert_eq!(end.status, Some(0), "{}", end.said);
    assert!(
        packed.table().contains("skipped: kernels: this build has no bench kernels"),
        "{}",
        packed.table()
    );
}

#[test]
fn a_profile_is_summed_by_kernel_and_one_that_is_not_allowed_is_skipped() {
    let packed = Packed::new("NVIDIA H200");
    let line = |kernel: &str, time: &str| format!("echo '\"0\",\"{kernel}(Args)\",\"{time}\"'\n");
    let head = "#!/bin/bash\necho '==PROF== Connected'\necho '\"ID\",\"Kernel Name\",\"gpu__time_duration.sum\"'\necho '\"\",\"\",\"ns\"'\n";
    let ncu = [head, &line("a_kernel", "9,000"), &line("b", "500"), &line("a_kernel", "11000")].concat();
    packed.program("path/ncu", &ncu);
    let end = packed.run(&["profile"], &[]);
    assert_eq!(end.status, Some(0), "{}", end.said);
    let table = packed.table();
    let row = |figure: &str| table.lines().find(|line| line.starts_with(figure)).expect(figure).to_owned();
    assert!(row("t5-base a_kernel").contains("10.00        20.00      2.00  off by more"), "{table}");
    assert!(row("t5-base b ").contains("0.50"), "{table}");
    assert!(table.ends_with("NOT FINISHED: correct step tiles kernels dense peers\n"), "{table}");

    let packed = Packed::new("NVIDIA H200");
    packed.program("path/ncu", "#!/bin/bash\necho '==ERROR== ERR_NVGPUCTRPERM - no permission'\nexit 1\n");
    let end = packed.run(&["profile"], &[]);
    assert_eq!(end.status, Some(0), "{}", end.said);
    assert!(
        packed.table().contains("skipped: profile-t5-small: this machine answers ERR_NVGPUCTRPERM"),
        "{}",
        packed.table()
    );
}

#[test]
fn a_stage_that_fails_fails_the_whole_and_the_rest_is_done_and_reported() {
    let packed = Packed::new("NVIDIA H200");
    packed.write("fail", "verify tests/fixtures/gpu --device cuda --precision bf16");
    let end = packed.run(&["correct", "tiles"], &[]);
    assert_eq!(end.status, Some(1), "{}", end.said);
    assert!(end.said.contains("it broke"), "{}", end.said);
    let table = packed.table();
    assert!(table.contains("FAILED with 7: verify-gpu-bf16") && table.ends_with("NOT ACCEPTED\n"), "{table}");
    assert!(!table.contains("FAILED with 7: verify-gpu-f32"), "{table}");
    assert_eq!([packed.results("suite"), packed.results("step-t5-base-tiles")], [1, 1]);
    // A failure stays one in later calls.
    fs::remove_file(packed.path("fail")).expect("removed");
    assert_eq!(packed.run(&["step"], &[]).status, Some(1));
}

#[test]
fn a_run_that_is_broken_off_goes_on_with_what_has_no_result() {
    let packed = Packed::new("NVIDIA H200");
    packed.write("slow", "30");
    let mut child = Command::new(packed.path("pack/scripts/gpu-acceptance"))
        .args(["run".as_ref(), packed.path("out").as_os_str(), "step".as_ref()])
        .spawn()
        .expect("a run");
    let begun = std::time::Instant::now();
    while !packed.read("calls").contains("--dropout") {
        assert!(begun.elapsed().as_secs() < 60, "the second step begins");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().expect("killed");
    child.wait().expect("an end");
    assert_eq!([packed.results("step-t5-small"), packed.results("step-t5-small-dropout")], [1, 0]);
    assert!(packed.table().contains("step-t5-small "), "{}", packed.table());
    assert!(packed.table().contains("NOT FINISHED"), "{}", packed.table());
    // Half a line, as a machine that goes down leaves it.
    let half = format!("{}{{\"step\":\"step-t5-sm", packed.read("out/results.jsonl"));
    packed.write("out/results.jsonl", &half);
    fs::remove_file(packed.path("slow")).expect("removed");
    let end = packed.run(&["step"], &[]);
    assert_eq!(end.status, Some(0), "{}", end.said);
    assert!(!end.said.contains("== step-t5-small\n"), "{}", end.said);
    for step in ["step-t5-small", "step-t5-small-dropout", "step-t5-base-alone"] {
        assert_eq!(packed.results(step), 1, "{step}");
    }
}

#[test]
fn what_does_not_fit_a_call_is_left_for_the_next_and_said() {
    let packed = Packed::new("NVIDIA H200");
    let end = packed.run(&["correct", "step"], &[("ACCEPTANCE_SECONDS", "100")]);
    assert_eq!(end.status, Some(3), "{}", end.said);
    assert!(end.said.contains("left for another call: stage step, which takes up to 170 s"), "{}", end.said);
    assert!(
        packed.table().ends_with("NOT FINISHED: step tiles kernels profile dense peers\n"),
        "{}",
        packed.table()
    );
}

#[test]
fn a_step_that_does_not_end_has_failed_if_it_had_the_time_of_its_stage() {
    let packed = Packed::new("NVIDIA H200");
    packed.write("slow", "60");
    let end = packed.run(&["step"], &[("ACCEPTANCE_SECONDS", "12"), ("ACCEPTANCE_DIMS", "t5-base")]);
    assert_eq!(end.status, Some(1), "{}", end.said);
    assert!(packed.table().contains("FAILED with 124: step-t5-base-dropout"), "{}", packed.table());
    assert_eq!([packed.results("step-t5-base"), packed.results("step-t5-base-runs")], [1, 0]);
}

#[test]
fn a_step_that_has_only_what_others_leave_over_is_left_for_another_call() {
    let packed = Packed::new("NVIDIA H200");
    packed.write("slow", "8");
    let end = packed.run(&["step"], &[("ACCEPTANCE_SECONDS", "14")]);
    assert_eq!(end.status, Some(3), "{}", end.said);
    let said = "left for another call, which gives it more time: step-t5-base-dropout";
    assert!(end.said.contains(said), "{}", end.said);
    assert_eq!([packed.results("step-t5-small-dropout"), packed.results("step-t5-base-dropout")], [1, 0]);
    assert!(packed.table().ends_with("NOT FINISHED: correct step tiles kernels profile dense peers\n"));
}

#[test]
fn without_a_gpu_nothing_runs_and_results_of_another_device_or_build_are_not_continued() {
    let packed = Packed::new("NVIDIA H200");
    packed.write("no-gpu", "");
    let end = packed.run(&[], &[]);
    assert_eq!(end.status, Some(1), "{}", end.said);
    assert!(
        end.said.contains("no driver here") && end.said.contains("no GPU: nothing was run"),
        "{}",
        end.said
    );
    assert!(!packed.path("out").exists());
    fs::remove_file(packed.path("no-gpu")).expect("removed");
    assert_eq!(packed.run(&["kernels"], &[]).status, Some(0));
    packed.write("gpu", "NVIDIA H100");
    let end = packed.run(&["kernels"], &[]);
    assert_eq!(end.status, Some(2), "{}", end.said);
    assert!(end.said.contains("holds results of another build or device"), "{}", end.said);
    assert!(packed.table().contains("on NVIDIA H200"), "{}", packed.table());
    let end = packed.run(&["tile"], &[]);
    assert_eq!(end.status, Some(2), "{}", end.said);
    assert!(end.said.contains("no stage is called tile: expected correct step"), "{}", end.said);
    // A folder of something else.
    fs::remove_dir_all(packed.path("out")).expect("removed");
    fs::create_dir(packed.path("out")).expect("a folder");
    packed.write("out/mine", "");
    assert_eq!(packed.run(&["kernels"], &[]).status, Some(2));
}

#[test]
fn on_the_virtual_gpu_fixtures_tiles_and_the_step_run_as_they_are_packed() {
    if !kernels::are_built() {
        return;
    }
    let packed = Packed::new("");
    fs::remove_file(packed.path("pack/bin/promptmix")).expect("removed");
    symlink(program::PATH, packed.path("pack/bin/promptmix")).expect("a link");
    symlink(vgpu::find_library().expect("the library"), packed.path("path/libcuda.so")).expect("a link");
    fs::remove_dir(packed.path("pack/tests/fixtures/gpu")).expect("removed");
    symlink(repository().join("tests/fixtures/gpu"), packed.path("pack/tests/fixtures/gpu")).expect("a link");
    packed.write(
        "tiny.json",
        r#"{"vocab_size": 64, "d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4,
            "feed_forward_proj": "relu", "model_type": "t5"}"#,
    );
    let tiny = packed.path("tiny.json").display().to_string();
    let variables = [
        ("LD_LIBRARY_PATH", &*packed.path("path").display().to_string()),
        ("ACCEPTANCE_DIMS", &*tiny),
        ("ACCEPTANCE_BATCH", "2"),
        ("ACCEPTANCE_REPEATS", "1"),
        ("ACCEPTANCE_LENGTHS", "5"),
        ("ACCEPTANCE_FLAGS", "--prompt-length 2 --sources 1 --no-product"),
        ("ACCEPTANCE_TILES", &*format!("--dims {tiny} --rows 9,2")),
    ];
    let end = packed.run(&["correct", "tiles"], &variables);
    assert_eq!(end.status, Some(0), "{}", end.said);
    let table = packed.table();
    assert!(table.contains("on Virtual GPU (sm_80, after A100)"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("step-tiny-tiles")), "{table}");
    for fixture in ["verify-gpu-f32", "verify-gpu-bf16"] {
        assert!(packed.read(&format!("out/{fixture}.txt")).contains("tests/fixtures/gpu: passed"));
    }
    let tiles: serde_json::Value = serde_json::from_str(&packed.read("out/tiles.json")).expect("JSON");
    assert_eq!(tiles["times"], "of the host: the GPU is virtual");
    let products = tiles["products"].as_array().expect("a list");
    // Of n and k of a layer, 64 and 192, forward and backward, on two sides; each once.
    assert_eq!(products.len(), 8, "{products:?}");
    for product in products {
        let candidates = product["candidates"].as_array().expect("a list");
        assert_eq!(candidates.len(), 3, "{product}");
        assert!(candidates.iter().all(|candidate| candidate["us"].as_f64() > Some(0.0)), "{product}");
        assert!(candidates.iter().any(|candidate| candidate["tile"] == product["fastest"]["tile"]));
    }
    let csv = packed.read("out/tiles.csv");
    assert_eq!(csv.lines().count(), 1 + products.len(), "{csv}");
    let read = promptmix::cuda::linear::TileTable::read(&packed.path("out/tiles.csv")).expect("a table");
    assert_eq!(read.len(), products.len());
}
