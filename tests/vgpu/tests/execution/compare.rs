//! What tests compare: numbers and reports.

use vgpu::check::{Check, Report};

/// A bfloat16 as f32.
pub fn wide(bits: u16) -> f32 {
    vgpu::number::from_bf16(u32::from(bits))
}

/// Fails unless every value lies within `tolerance(expected)`; also on NaN, other lengths, and when all came out zero.
pub fn close(what: &str, actual: &[f32], expected: &[f64], tolerance: impl Fn(f64) -> f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (index, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let difference = (f64::from(actual) - expected).abs();
        let allowed = tolerance(expected);
        assert!(
            difference <= allowed,
            "{what}[{index}]: {actual} instead of {expected}, {difference} > {allowed}"
        );
    }
    assert!(
        actual.iter().any(|&value| value != 0.0) || expected.iter().all(|&value| value == 0.0),
        "{what}: all zero"
    );
}

/// The distinct checks that reports name.
pub fn checks(reports: &[Report]) -> Vec<Check> {
    let mut out: Vec<_> = reports.iter().map(|report| report.check).collect();
    out.sort_unstable();
    out.dedup();
    out
}
