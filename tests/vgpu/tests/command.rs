//! `vgpu run` starts a program that knows nothing of the virtual GPU.

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
        (&["--profile", "sm_1"][..], "sm_80, sm_89, sm_90, sm_120"),
        (&["--seed", "x"], "--seed needs a number"),
        (&["--frob"], "--frob is no option"),
    ] {
        let output = run(options, &[]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(words), "{errors}");
    }
}
