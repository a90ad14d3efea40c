//! The exponential that every softmax and gate of the CPU backend takes.

use promptmix::backend::cpu::Element;

#[test]
fn is_within_two_units_in_the_last_place() {
    let mut worst = 0.0_f64;
    for step in -86_500..=88_700 {
        let x = step as f32 / 1_000.0;
        let expected = f64::from(x).exp();
        worst = worst.max((f64::from(x.exponential()) - expected).abs() / expected);
    }
    // Half a unit for each of the last addition and its input's, in f of at most ln(2)/2: 2 · 2^-23.
    assert!(worst > 0.0 && worst < 2.0 * f64::from(f32::EPSILON), "relative error {worst:e}");
}

#[test]
fn keeps_what_is_not_a_number_and_what_is_too_large() {
    assert!(f32::NAN.exponential().is_nan());
    assert_eq!(f32::INFINITY.exponential(), f32::INFINITY);
    assert_eq!(89.0_f32.exponential(), f32::INFINITY);
    assert!(88.7_f32.exponential().is_finite());
    assert_eq!(0.0_f32.exponential(), 1.0);
}

#[test]
fn of_what_is_far_below_is_next_to_nothing() {
    for x in [f32::NEG_INFINITY, -1e30, -200.0, -86.7] {
        let value = x.exponential();
        assert!(value > 0.0 && value < 3e-38, "e^{x} is {value:e}");
    }
}
