//! Whole passes against PyTorch's numbers, in both precisions.

use promptmix::cuda::Precision;
use promptmix::verify::verify;

use crate::device::{device, project};

fn check(fixture: &str, precision: Precision) {
    let places = ["tests/fixtures", "../shared/fixtures"].map(|place| project().join(place).join(fixture));
    let Some(folder) = places.iter().find(|folder| folder.is_dir()) else {
        eprintln!("skipped: no folder {}", places[1].display());
        return;
    };
    let Some(device) = device(precision) else { return };
    let report = verify(&device.cuda, folder).expect("a fixture");
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
