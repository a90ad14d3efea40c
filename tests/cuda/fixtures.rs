//! Whole passes against PyTorch's numbers, in both precisions.

use std::path::Path;

use promptmix::cuda::Precision;
use promptmix::verify::verify;

use crate::device::device;

fn check(fixture: &str, precision: Precision) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures").join(fixture);
    if !folder.is_dir() {
        eprintln!("skipped: no folder {}", folder.display());
        return;
    }
    let Some(device) = device(precision) else { return };
    let report = verify(&device.cuda, &folder).expect("a fixture");
    eprintln!("{fixture} {precision:?}\n{report}");
    assert!(report.passed(), "{fixture} {precision:?}\n{report}");
}

#[test]
fn f32_follows_pytorch() {
    for fixture in ["gpu", "gpu_v11", "gpu_odd"] {
        check(fixture, Precision::F32);
    }
}

#[test]
fn bf16_is_as_close_as_pytorch_own() {
    for fixture in ["gpu", "gpu_v11", "gpu_odd"] {
        check(fixture, Precision::Bf16);
    }
}
