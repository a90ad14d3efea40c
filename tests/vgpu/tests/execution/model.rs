//! The time model against the measurements that it is fitted to, each group also left out of the fit.

use vgpu::model::{leave_one_out, measured};

#[test]
fn every_group_is_predicted_within_a_quarter_and_their_sum_within_a_tenth() {
    let lines = leave_one_out();
    assert_eq!(lines.len(), measured().groups.len());
    assert!(lines.len() >= 10, "the data file was read");
    let within = |model: f64, measured: f64, share: f64| (model / measured - 1.0).abs() <= share;
    for line in &lines {
        let (name, measured) = (&line.name, line.measured_us);
        assert!(within(line.model_us, measured, 0.25), "{name}: {} us of {measured}", line.model_us);
        assert!(
            within(line.left_out_us, measured, 0.25),
            "{name}: {} us of {measured}, left out",
            line.left_out_us
        );
    }
    let (model, whole): (f64, f64) =
        (lines.iter().map(|line| line.model_us).sum(), lines.iter().map(|line| line.measured_us).sum());
    assert!(within(model, whole, 0.1), "{model} us of {whole}");
}
