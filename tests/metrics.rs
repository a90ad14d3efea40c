//! Metrics: values by hand, invalid generations, and cases where a metric is not defined.

use promptmix::metrics::{ALL, Kind, Metric, Predictions, References, Scores, evaluate};

/// Two classes unless a label says otherwise; `None` is an invalid generation.
fn classes(predictions: &[Option<u32>], labels: &[u32], classes: u32) -> (Predictions, References) {
    (
        Predictions::Classes(predictions.to_vec()),
        References::Classes { labels: labels.to_vec(), classes, groups: vec![] },
    )
}

fn of(metric: Metric, predictions: &[Option<u32>], labels: &[u32]) -> Option<f64> {
    let (predictions, references) = classes(predictions, labels, 2);
    evaluate(metric, &predictions, &references).unwrap()
}

#[test]
fn an_invalid_generation_is_never_the_opposite_label() {
    // Two right, one invalid for a positive, one invalid for a negative.
    let predictions = [Some(1), Some(0), None, None];
    let labels = [1, 0, 1, 0];
    assert_eq!(of(Metric::Accuracy, &predictions, &labels), Some(0.5));
    // tp 1, fp 0, fn 1: counted as the opposite label it would be fp 1 too, and F1 1/2.
    assert_eq!(of(Metric::F1, &predictions, &labels), Some(2.0 / 3.0));
    // The same for class 0.
    assert_eq!(of(Metric::MacroF1, &predictions, &labels), Some(2.0 / 3.0));
    // Labels 2, 2; predictions 1, 1, 2 invalid: (2·4 - (2+2)) / sqrt((16 - 6)·(16 - 8)).
    assert_eq!(of(Metric::Matthews, &predictions, &labels), Some(4.0 / 80_f64.sqrt()));
}

#[test]
fn all_invalid_scores_nothing() {
    let predictions = [None; 4];
    for metric in [Metric::Accuracy, Metric::F1, Metric::MacroF1, Metric::Matthews] {
        assert_eq!(of(metric, &predictions, &[1, 0, 1, 0]), Some(0.0), "{metric}");
    }
}

#[test]
fn one_class_alone_is_defined() {
    assert_eq!(of(Metric::F1, &[Some(0); 3], &[0; 3]), Some(0.0));
    assert_eq!(of(Metric::MacroF1, &[Some(0); 3], &[0; 3]), Some(0.5));
    assert_eq!(of(Metric::Matthews, &[Some(0); 3], &[0; 3]), Some(0.0));
    assert_eq!(of(Metric::Matthews, &[Some(1), Some(0)], &[1, 1]), Some(0.0));
    assert_eq!(of(Metric::Matthews, &[Some(1), Some(0)], &[0, 1]), Some(-1.0));
}

#[test]
fn nothing_to_judge_is_not_zero() {
    for metric in ALL {
        let (predictions, references) = match metric.kind() {
            Kind::Classes => classes(&[], &[], 2),
            Kind::Numbers => (Predictions::Numbers(vec![]), References::Numbers(vec![])),
            _ => (Predictions::Texts(vec![]), References::Texts(vec![])),
        };
        assert_eq!(evaluate(metric, &predictions, &references).unwrap(), None, "{metric}");
    }
}

#[test]
fn a_correlation_with_a_constant_is_not_defined() {
    let correlation = |metric, predictions: &[Option<f64>], references: &[f64]| {
        evaluate(
            metric,
            &Predictions::Numbers(predictions.to_vec()),
            &References::Numbers(references.to_vec()),
        )
        .unwrap()
    };
    for metric in [Metric::Pearson, Metric::Spearman] {
        assert_eq!(correlation(metric, &[Some(2.0); 3], &[1.0, 2.0, 3.0]), None);
        assert_eq!(correlation(metric, &[Some(1.0), Some(2.0), Some(3.0)], &[2.0; 3]), None);
        assert_eq!(correlation(metric, &[None; 3], &[1.0, 2.0, 3.0]), None);
        assert_eq!(correlation(metric, &[Some(1.0)], &[1.0]), None);
        assert_eq!(correlation(metric, &[Some(f64::NAN), Some(1.0)], &[1.0, 2.0]), None);
        // Invalid generations stand below every number: here they make a perfect line imperfect.
        let spoilt = correlation(metric, &[Some(1.0), Some(2.0), None], &[1.0, 2.0, 3.0]).unwrap();
        assert!(spoilt < 0.0, "{metric} {spoilt}");
        // Neither huge nor tiny numbers spill over.
        for scale in [1e300, 1e-300] {
            let line: Vec<_> = (1..=5).map(|value| Some(f64::from(value) * scale)).collect();
            let correlation = correlation(metric, &line, &[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
            assert!((correlation - 1.0).abs() <= 1e-15, "{metric} {correlation}");
        }
    }
}

#[test]
fn groups_are_right_only_as_a_whole() {
    let predictions = Predictions::Classes(vec![Some(1), Some(0), Some(1), None]);
    let references = References::Classes { labels: vec![1, 0, 0, 0], classes: 2, groups: vec![7, 7, 9, 3] };
    assert_eq!(evaluate(Metric::QuestionExactMatch, &predictions, &references).unwrap(), Some(1.0 / 3.0));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (two, three_labels) = (Predictions::Classes(vec![Some(0); 2]), classes(&[], &[0, 1, 2], 3).1);
    assert!(evaluate(Metric::Accuracy, &two, &three_labels).unwrap_err().to_string().contains("found 2"));
    let three = Predictions::Classes(vec![Some(0); 3]);
    assert!(evaluate(Metric::F1, &three, &three_labels).unwrap_err().to_string().contains("two classes"));
    assert!(evaluate(Metric::QuestionExactMatch, &three, &three_labels).is_err());
    assert!(evaluate(Metric::Pearson, &three, &three_labels).is_err());
    let outside = classes(&[], &[0, 1, 2], 2).1;
    assert!(evaluate(Metric::Accuracy, &three, &outside).unwrap_err().to_string().contains("below 2"));
    assert!("f2".parse::<Metric>().unwrap_err().to_string().contains("macro-f1"));
}

#[test]
fn names_parse_back_and_serialise_alike() {
    for metric in ALL {
        assert_eq!(metric.name().parse::<Metric>().unwrap(), metric);
        assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        assert!(metric.range().0 < metric.range().1);
    }
}

#[test]
fn the_mean_chooses_the_checkpoint() {
    let (predictions, references) = classes(&[Some(1), Some(0), None], &[1, 1, 0], 2);
    let scores = Scores::new(&[Metric::F1, Metric::Accuracy], &predictions, &references).unwrap();
    assert_eq!((scores.invalid, scores.examples), (1, 3));
    assert_eq!(scores.mean(), Some((2.0 / 3.0 + 1.0 / 3.0) / 2.0));
    let constant = (Predictions::Numbers(vec![Some(1.0); 3]), References::Numbers(vec![1.0, 2.0, 3.0]));
    let scores = Scores::new(&[Metric::Pearson], &constant.0, &constant.1).unwrap();
    assert_eq!((scores.values[0].1, scores.mean()), (None, Some(0.0)));
}
