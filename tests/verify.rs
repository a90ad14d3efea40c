//! Every number of the fixtures, against PyTorch's.

use std::path::{Path, PathBuf};

use promptmix::backend::cpu::Cpu;
use promptmix::verify::{Fixture, Tolerance, compare, verify};

fn fixtures() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
    folder.is_dir().then_some(folder)
}

/// Buffers are poisoned with NaN, so a value read before it is written would show.
fn check(folder: &Path) {
    let cpu = Cpu::<f32>::poisoning(Some(2)).expect("two threads");
    let report = verify(&cpu, folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    println!("{}\n{report}", folder.display());
    assert!(report.passed(), "{}:\n{report}", folder.display());
}

#[test]
fn the_bundled_fixtures_match_pytorch() {
    for name in ["tiny", "tiny_v11", "tiny_odd"] {
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name));
    }
}

#[test]
fn every_shared_fixture_matches_pytorch() {
    let Some(folder) = fixtures() else {
        println!("skipped: the folder of further fixtures, ../shared/fixtures, is not beside this checkout");
        return;
    };
    for name in ["tiny_poolmask", "tiny_long", "mini", "gpu", "gpu_v11", "gpu_odd"] {
        check(&folder.join(name));
    }
}

#[test]
fn a_comparison_fails_on_nan_on_a_wrong_length_and_on_zeros() {
    let expected = [1.0, -2.0, 3.0];
    let generous = Tolerance::Absolute(100.0);
    assert!(compare(&[1.0, -2.0, 3.5], &expected).passes(generous));
    assert!(!compare(&[1.0, f64::NAN, 3.0], &expected).passes(generous));
    assert!(!compare(&[1.0, -2.0], &expected).passes(generous));
    assert!(!compare(&[0.0, 0.0, 0.0], &expected).passes(generous));
    assert!(!compare(&[], &[]).passes(generous));
    assert!(!compare(&[1.0, -2.0, 3.5], &expected).passes(Tolerance::Absolute(0.1)));
}

#[test]
fn the_ratio_is_the_judged_figure_over_its_bound() {
    // 0.5 off, 3 at the largest, and an angle whose cosine is 4/5.
    let comparison = compare(&[1.0, -2.0, 3.5], &[1.0, -2.0, 3.0]);
    assert_eq!(comparison.ratio(Tolerance::Absolute(0.25)), 2.0);
    assert!((comparison.ratio(Tolerance::OfLargest(0.5)) - 1.0 / 3.0).abs() < 1e-12);
    let turned = compare(&[4.0, 3.0], &[1.0, 0.0]);
    assert!((turned.ratio(Tolerance::Cosine(0.4)) - 0.5).abs() < 1e-12);
    assert_eq!(compare(&[1.0], &[1.0]).ratio(Tolerance::Absolute(0.0)), 0.0);
    assert_eq!(compare(&[1.5], &[1.0]).ratio(Tolerance::Absolute(0.0)), f64::INFINITY);
    assert!(compare(&[f64::NAN], &[1.0]).ratio(Tolerance::Absolute(1.0)).is_nan());
}

#[test]
fn a_report_shows_the_figure_that_it_judges_by_its_bound_and_their_ratio() {
    let cpu = Cpu::<f32>::poisoning(Some(2)).expect("two threads");
    let mut report =
        verify(&cpu, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny")).expect("a fixture");
    // As bf16 judges: by 1 - cosine. The vectors are (4, 3) and (1, 0), so it is 0.2.
    let check = report.checks.iter_mut().find(|check| check.name == "grad.w_up").expect("a gradient");
    check.outcome = Some((compare(&[4.0, 3.0], &[1.0, 0.0]), Tolerance::Cosine(0.16)));
    let text = report.to_string();
    let columns = |name: &str| -> Vec<&str> {
        let line = text.lines().find(|line| line.starts_with(name)).expect("a line for it");
        line.split_whitespace().collect()
    };
    assert_eq!(columns("tensor").join(" "), "tensor absolute relative 1 - cosine tolerance of it");
    assert_eq!(
        columns("grad.w_up").join(" "),
        "grad.w_up 3.00e0 3.00e0 2.00e-1 1.60e-1 of 1 - cosine 1.25 FAIL"
    );
    for check in report.checks.iter().filter(|check| check.name != "grad.w_up") {
        let Some((comparison, tolerance)) = &check.outcome else { continue };
        let line = columns(&check.name);
        assert!(line.contains(&format!("{:.2}", comparison.ratio(*tolerance)).as_str()), "{line:?}");
        assert!(comparison.ratio(*tolerance) <= 1.0, "{line:?}");
    }
    // A defect has no figures, and none may look like zero.
    let check = report.checks.iter_mut().find(|check| check.name == "grad.w_up").expect("a gradient");
    check.outcome = Some((compare(&[f64::NAN, 3.0], &[1.0, 0.0]), Tolerance::Cosine(0.16)));
    let text = report.to_string();
    let line = text.lines().find(|line| line.starts_with("grad.w_up")).expect("a line for it");
    assert_eq!(line.matches("NaN").count(), 4, "{line}");
}

/// Draws of PyTorch's bf16 are of the model as it is, and of equal models whose sums and weights round otherwise.
#[test]
fn bundled_fixtures_hold_the_worst_of_several_draws_for_every_gradient() {
    for name in ["gpu", "gpu_v11", "tiny", "tiny_odd", "tiny_v11"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let fixture = Fixture::open(&folder).expect("a fixture");
        for gradient in ["p_target", "w_down", "w_up", "ln_g", "ln_b", "enc_in"] {
            let worst = fixture.tensor(&format!("bf16_distance.{gradient}")).expect("what was measured");
            // 2^-9 a rounding gives 4e-6; a gradient that is half noise would be at 0.1.
            assert!(matches!(worst.values[..], [worst] if worst > 4e-6 && worst < 0.1), "{name} {gradient}");
        }
        let attempt = std::fs::read_to_string(folder.join("attempt.json")).expect("attempt.json");
        let attempt: serde_json::Value = serde_json::from_str(&attempt).expect("JSON");
        let by = &attempt["bf16_distance"];
        assert!(by["draws"].as_u64().is_some_and(|draws| draws >= 64), "{name}: {by}");
        assert!(by["torch"].is_string() && by["transformers"].is_string(), "{name}: {by}");
    }
}
