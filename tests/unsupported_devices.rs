//! What a user is told where `--device cuda` cannot work: each cause has an error of its own, with what would help.
#![cfg(all(feature = "cuda", feature = "cli", unix))]

#[path = "common/kernels.rs"]
mod kernels;
#[path = "common/program.rs"]
mod program;

/// The standard output and error of `promptmix`, on a virtual GPU changed by `setting`, and its exit status.
fn promptmix(arguments: &[&str], setting: (&str, &str)) -> (String, String, Option<i32>) {
    let end = program::promptmix()
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("LD_PRELOAD", vgpu::find_library().expect("the virtual GPU's library"))
        .env(setting.0, setting.1)
        .output()
        .expect("an end");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(&end.stdout), text(&end.stderr), end.status.code())
}

#[test]
fn each_cause_has_an_error_of_its_own_that_info_prints_too() {
    if !kernels::are_built() {
        return;
    }
    for (device, setting, parts) in [
        ("cuda", ("VGPU_DEVICES", "0"), ["the driver finds no GPU", "nvidia-smi"]),
        ("cuda", ("VGPU_DRIVER", "12080"), ["the driver speaks CUDA 12.8", "update the NVIDIA driver"]),
        ("cuda", ("VGPU_CAPABILITY", "75"), ["need 8.0 or newer", "--device cpu computes without it"]),
        (
            "cuda:3",
            ("VGPU_DEVICES", "2"),
            ["there are 2, numbered from 0, and 3 was asked for", "nvidia-smi"],
        ),
    ] {
        let (_, said, status) = promptmix(&["verify", "tests/fixtures/gpu", "--device", device], setting);
        assert_eq!(status, Some(1), "{setting:?}: {said}");
        let (info, _, status) = promptmix(&["info", "--product-size", "0"], setting);
        assert_eq!(status, Some(0), "{setting:?}: {info}");
        for part in parts {
            assert!(said.contains(part), "{setting:?}: {said}");
            // The number of a GPU that is not there is nothing that info could be asked for.
            assert!(info.contains(part) || device != "cuda", "{setting:?}: {info}");
        }
        assert!(!said.contains("panicked"), "{setting:?}: {said}");
    }
    let (info, _, _) = promptmix(&["info", "--product-size", "0"], ("VGPU_DEVICES", "1"));
    assert!(info.contains("Virtual GPU") && !info.contains("not supported"), "{info}");
}
