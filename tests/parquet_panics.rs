//! Panics of the crate that reads Parquet: none reaches the caller, and none is heard of. A process of its own, as the hook that
//! hears of panics is the process's.
#![cfg(feature = "parquet")]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use promptmix::data::open;
use random::Random;

#[path = "common/random.rs"]
#[allow(dead_code)] // whole numbers are enough here
mod random;

static HEARD: AtomicUsize = AtomicUsize::new(0);

#[test]
fn ten_thousand_damaged_files_are_rows_or_errors_and_no_panic_is_heard_of() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        HEARD.fetch_add(1, Ordering::Relaxed);
        print(panic);
    }));
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("damaged.parquet");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data_files");
    let names = ["pandas-snappy", "pyarrow-v2", "pyarrow-image", "polars-default", "pandas-lz4"];
    let files = names.map(|name| std::fs::read(fixtures.join(format!("{name}.parquet"))).expect("a fixture"));
    let (mut random, mut errors) = (Random::new(3), 0);
    for round in 0..10_000 {
        let mut bytes = files[round % files.len()].clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len().max(1));
            match random.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.below(256) as u8),
                _ if bytes.is_empty() => {}
                _ => bytes[at] = random.below(256) as u8,
            }
        }
        std::fs::write(&path, &bytes).expect("written");
        let failed = match open(&path) {
            Ok(mut rows) => rows.any(|row| row.is_err()),
            Err(_) => true,
        };
        errors += usize::from(failed);
    }
    assert!(errors > 3_000, "most damage is noticed: {errors}");
    assert_eq!(HEARD.load(Ordering::Relaxed), 0);
    // The hook is the process's still: other panics are heard of.
    std::panic::catch_unwind(|| panic!("heard")).expect_err("a panic");
    assert_eq!(HEARD.load(Ordering::Relaxed), 1);
}
