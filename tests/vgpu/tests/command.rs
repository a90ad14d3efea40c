//! `vgpu run` starts a program that knows nothing of the virtual GPU.

#[path = "support/tools.rs"]
mod tools;

use std::path::PathBuf;
use std::process::{Command, Output};

/// Runs the example under `vgpu run` with options.
fn run(options: &[&str], arguments: &[&str]) -> Output {
    let deps = std::env::current_exe().unwrap();
    let example: PathBuf = deps.ancestors().nth(2).unwrap().join("examples/square");
    assert!(
        example.is_file(),
        "{} is missing; cargo test -p vgpu builds it, or cargo build -p vgpu --examples",
        example.display()
    );
    Command::new(env!("CARGO_BIN_EXE_vgpu"))
        .arg("run")
        .args(options)
        .arg("--")
        .arg(example)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_program_runs_and_its_counters_are_written() {
    let json = std::env::temp_dir().join(format!("vgpu-{}.json", std::process::id()));
    let output = run(&["--profile", "sm_90", "--json", json.to_str().unwrap()], &[]);
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    assert!(out.contains("[1.0, 4.0, 9.0] on Virtual GPU (sm_90"), "{out}");
    assert!(errors.contains("no check failed") && errors.contains("square"), "{errors}");
    let summary: vgpu::Summary = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();
    assert_eq!(summary.counters[0].kernel, "square");
    assert_eq!(summary.counters[0].loads.bytes, 12);
    assert_eq!(summary.predictions[0].floor_bytes, 24);
}

/// Runs a program of another language under `vgpu run`.
fn run_foreign(program: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vgpu")).args(["run", "--"]).args(program).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), errors)
}

fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no {program}");
    }
    found
}

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");

#[test]
fn a_python_program_runs() {
    if !is_there("python3") {
        return;
    }
    let (out, errors) = run_foreign(&["python3", &format!("{EXAMPLES}/square.py")]);
    assert_eq!(out, "[1.0, 4.0, 9.0]\n");
    assert!(errors.contains("no check failed") && errors.contains("square"), "{errors}");
}

#[test]
fn a_program_of_the_runtime_runs_and_its_kernels_print() {
    let Some(nvcc) = tools::cuda_tool("nvcc") else {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs without nvcc; run scripts/install-cuda-compiler first"
        );
        return;
    };
    if !is_there("g++") {
        return;
    }
    let program = format!("{}/square-cu-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let library = vgpu::find_library().unwrap();
    // The runtime is the library's own, whatever file the linker takes it from.
    let built = Command::new(nvcc)
        .args(["-cudart", "none", "-gencode", "arch=compute_80,code=compute_80", "-o", &program])
        .arg(format!("{EXAMPLES}/square.cu"))
        .arg("-Xlinker")
        .arg(&library)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let (out, errors) = run_foreign(&[&program]);
    std::fs::remove_file(&program).unwrap();
    let expected = "before\nthread 0 of 32 has 1.0\n1.0 4.0 9.0\ncudaErrorInvalidConfiguration\n";
    assert_eq!(out, expected, "{errors}");
    assert!(errors.contains("no check failed") && errors.contains("square"), "{errors}");
}

#[test]
fn a_c_program_runs() {
    if !is_there("cc") {
        return;
    }
    let program = format!("{}/square-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let built = Command::new("cc")
        .args(["-Wall", "-Werror", "-o", &program])
        .args([&format!("{EXAMPLES}/square.c"), "-ldl"])
        .status()
        .unwrap();
    assert!(built.success());
    let (out, errors) = run_foreign(&[&program]);
    std::fs::remove_file(&program).unwrap();
    assert_eq!(out, "[1.0, 4.0, 9.0]\n");
    assert!(errors.contains("no check failed") && errors.contains("square"), "{errors}");
}

#[test]
fn the_table_has_what_ptxas_says_where_it_is_installed() {
    let json = std::env::temp_dir().join(format!("vgpu-ptxas-{}.json", std::process::id()));
    for wanted in [true, false] {
        let options: &[&str] = if wanted { &[] } else { &["--no-ptxas"] };
        let output = run(&[&["--json", json.to_str().unwrap()], options].concat(), &[]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        let summary: vgpu::Summary = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        std::fs::remove_file(&json).unwrap();
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        if wanted && vgpu::compiled::Tools::find(root).is_some() {
            assert!(errors.contains("kernel (compiled by ptxas)"), "{errors}");
            let compiled = &summary.compiled[0];
            assert_eq!((compiled.kernel.as_str(), compiled.target.as_str()), ("square", "sm_80"));
            assert!(compiled.registers > 0 && compiled.instructions > 4, "{compiled:?}");
            assert_eq!(summary.predictions[0].registers, compiled.registers);
        } else {
            assert!(!errors.contains("ptxas"), "{errors}");
            assert!(summary.compiled.is_empty());
        }
    }
}

#[test]
fn a_sample_of_blocks_stands_for_all() {
    let json = std::env::temp_dir().join(format!("vgpu-sample-{}.json", std::process::id()));
    let output = run(&["--sample-blocks", "8", "--json", json.to_str().unwrap()], &["many"]);
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    // Eight blocks of 32 threads ran, and no more.
    assert!(out.contains("256 of 2048 squared"), "{out}");
    let summary: vgpu::Summary = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();
    let counters = &summary.counters[0];
    assert_eq!((counters.blocks, counters.blocks_run), (64, 8));
    // What was counted is scaled to all blocks: each loads and stores 128 bytes, which are 4 sectors.
    assert_eq!((counters.loads.requests, counters.loads.sectors), (64, 256));
    assert_eq!((counters.loads.bytes, counters.stores.unique_bytes), (8192, 8192));
    assert_eq!(summary.predictions[0].floor_bytes, 16_384);
}

#[test]
fn a_sample_of_more_blocks_than_there_are_runs_them_all() {
    let output = run(&["--sample-blocks", "1000"], &["many"]);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("2048 of 2048 squared"), "{out}");
}

#[test]
fn a_failed_check_fails_the_program() {
    let output = run(&[], &["past"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(101), "{errors}");
    assert!(errors.contains("OutOfBounds in square"), "{errors}");
}

#[test]
fn wrong_options_are_explained() {
    for (options, words) in [
        (&["--profile", "sm_1"][..], "sm_80, sm_89, sm_90, h200, sm_100, sm_120"),
        (&["--seed", "x"], "--seed needs a number"),
        (&["--sample-blocks", "some"], "--sample-blocks needs a number"),
        (&["--frob"], "--frob is no option"),
    ] {
        let output = run(options, &[]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(words), "{errors}");
    }
}
