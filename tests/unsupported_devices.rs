//! What a user is told where `--device cuda` cannot work: each cause has an error of its own, with what would help.
#![cfg(all(feature = "cuda", feature = "cli", unix))]

use std::process::Command;

#[path = "common/kernels.rs"]
mod kernels;

/// The error of `promptmix verify` on `device`, on a virtual GPU changed by `settings`.
fn refusal(device: &str, settings: &[(&str, &str)]) -> String {
    let end = Command::new(env!("CARGO_BIN_EXE_promptmix"))
        .args(["verify", "tests/fixtures/gpu", "--device", device])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("LD_PRELOAD", vgpu::find_library().expect("the virtual GPU's library"))
        .envs(settings.iter().copied())
        .output()
        .expect("an end");
    let said = String::from_utf8_lossy(&end.stderr).into_owned();
    assert_eq!(end.status.code(), Some(1), "{device} {settings:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn each_cause_has_an_error_of_its_own() {
    if !kernels::are_built() {
        return;
    }
    for (device, settings, parts) in [
        ("cuda", ("VGPU_DEVICES", "0"), ["the driver finds no GPU", "nvidia-smi"]),
        (
            "cuda:3",
            ("VGPU_DEVICES", "2"),
            ["there are 2, numbered from 0, and 3 was asked for", "nvidia-smi"],
        ),
        ("cuda", ("VGPU_DRIVER", "12080"), ["the driver speaks CUDA 12.8", "update the NVIDIA driver"]),
        ("cuda", ("VGPU_CAPABILITY", "75"), ["need 8.0 or newer", "leave --device out"]),
    ] {
        let said = refusal(device, &[settings]);
        for part in parts {
            assert!(said.contains(part), "{settings:?}: {said}");
        }
    }
}
