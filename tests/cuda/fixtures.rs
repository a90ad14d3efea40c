//! Whole passes against PyTorch's numbers, in both precisions.

use promptmix::cuda::Precision;
use promptmix::verify::{Fixture, Tolerance, verify};

use crate::device::{Device, device, launching_device, project};

/// Whole passes of the fixture. In bf16 each gradient is judged by what was measured of it, where that was.
fn check(fixture: &str, precision: Precision) {
    check_on(fixture, precision, device);
}

fn check_on(fixture: &str, precision: Precision, device: fn(Precision) -> Option<Device>) {
    let places = ["tests/fixtures", "../shared/fixtures"].map(|place| project().join(place).join(fixture));
    let Some(folder) = places.iter().find(|folder| folder.is_dir()) else {
        eprintln!("skipped: no folder {}", places[1].display());
        return;
    };
    let Some(device) = device(precision) else { return };
    let report = verify(&device.cuda, folder).expect("a fixture");
    eprintln!("{fixture} {precision:?}\n{report}");
    assert!(report.passed(), "{fixture} {precision:?}\n{report}");
    let measured = Fixture::open(folder).expect("a fixture");
    for name in measured.names().filter_map(|name| name.strip_prefix("bf16_distance.")) {
        let check = report.checks.iter().find(|check| check.name == format!("grad.{name}"));
        let (_, tolerance) = check.and_then(|check| check.outcome.as_ref()).expect("a gradient");
        let worst = measured.tensor(&format!("bf16_distance.{name}")).expect("a tensor").values[0];
        assert_eq!(*tolerance == Tolerance::Cosine(worst), precision == Precision::Bf16, "{fixture} {name}");
    }
}

#[test]
fn f32_follows_pytorch() {
    for fixture in ["gpu", "gpu_v11", "gpu_odd"] {
        check(fixture, Precision::F32);
    }
}

#[test]
fn bf16_is_as_close_as_some_draw_of_pytorch_own() {
    for fixture in ["gpu", "gpu_v11", "gpu_odd"] {
        check(fixture, Precision::Bf16);
    }
}

/// Products and cross attention by clusters need a width of more than 192: `hopper` runs this again where there are such.
#[test]
fn a_model_that_is_wide_enough_for_clusters() {
    check("mini", Precision::Bf16);
}

/// With launches that follow each other: on compute capability 9.0 each may begin before the one before it has ended.
#[test]
fn launches_in_a_row_follow_pytorch_too() {
    check_on("mini", Precision::Bf16, launching_device);
}
