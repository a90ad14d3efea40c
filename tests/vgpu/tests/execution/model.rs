//! The time model against the measurements that it is fitted to, each group also left out of the fit.

use vgpu::counters::Counters;
use vgpu::model::{ASSUMED, Constants, LATENCIES, THROUGHPUT, leave_one_out, measured, steps, time};
use vgpu::profile::{PROFILES, Profile};

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

/// What the constants were not fitted to: whole steps in graphs, of another size, and eight runs in one batch and alone.
#[test]
fn steps_that_are_in_no_fit_are_predicted_within_a_tenth() {
    let lines = steps();
    assert!(lines.len() >= 6, "the data file has the steps");
    for (name, measured, model) in lines {
        assert!((model / measured - 1.0).abs() <= 0.1, "{name}: {model} ms of {measured}");
    }
}

/// Behind a grid that may still run a launch costs less of its own, on devices that have such launches; how much less nobody measured.
#[test]
fn a_launch_that_may_begin_early_costs_less_by_a_range() {
    let constants = Constants::fitted();
    let group = &measured().groups[0].launches[0];
    let plain = &group.counters;
    let early = Counters { dependent_launches: plain.launches, ..plain.clone() };
    let of = |profile: &str, counters| {
        time(Profile::by_name(profile).expect("a profile"), &constants, counters, group.registers)
    };
    let (before, behind) = (of("h200", plain), of("h200", &early));
    assert_eq!(before.range, [before.seconds; 2]);
    assert!(behind.range[0] < behind.seconds && behind.seconds < behind.range[1], "{behind:?}");
    assert!((behind.range[1] - before.seconds).abs() < 1e-12, "at most what it cost before");
    assert_eq!(of("sm_80", &early), of("sm_80", plain));
}

#[test]
fn every_figure_of_a_device_and_every_assumed_constant_has_its_source() {
    for profile in &PROFILES {
        let of = |word: &str| profile.sources.iter().any(|source| source.of.contains(word));
        assert!(of("rates") && of("bandwidth") && of("shared memory"), "{}", profile.name);
        assert_eq!(of("processing clusters"), !profile.processing_clusters.is_empty(), "{}", profile.name);
        let unfitted = profile.sources.iter().any(|source| source.title.starts_with("not fitted"));
        assert_eq!(unfitted, !profile.fitted, "{}", profile.name);
        assert!(profile.fitted || profile.sustained_khz == profile.clock_khz, "{}", profile.name);
    }
    for one in ASSUMED.iter().chain(&THROUGHPUT).chain(&LATENCIES) {
        assert!(one.range[0] <= one.value && one.value <= one.range[1], "{}: {}", one.name, one.value);
        assert!(!one.source.is_empty(), "{}", one.name);
    }
}
