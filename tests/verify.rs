//! Every number of the fixtures, against PyTorch's.

use std::path::{Path, PathBuf};

use promptmix::backend::cpu::Cpu;
use promptmix::verify::{Tolerance, compare, verify};

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
