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
fn nothing_to_evaluate_is_not_zero() {
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

/// Cases of `scripts/peers/metrics_golden.py`, evaluated by the versions that its output names.
mod golden {
    use promptmix::metrics::{Metric, Predictions, References, answers, evaluate};
    use serde_json::Value;

    fn cases(kind: &str) -> Vec<Value> {
        let golden: Value =
            serde_json::from_str(&std::fs::read_to_string("tests/fixtures/metrics_golden.json").unwrap())
                .unwrap();
        println!("against {}", golden["versions"]);
        let cases = golden[kind].as_array().unwrap().clone();
        assert!(cases.len() >= 25, "{} cases", cases.len());
        cases
    }

    fn list<T>(value: &Value, read: impl Fn(&Value) -> T) -> Vec<T> {
        value.as_array().unwrap().iter().map(read).collect()
    }

    fn text(value: &Value) -> String {
        value.as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn agree(
        case: &Value,
        metric: Metric,
        predictions: &Predictions,
        references: &References,
        tolerance: f64,
    ) {
        let ours = evaluate(metric, predictions, references).unwrap().unwrap();
        let theirs = case[metric.name()].as_f64().unwrap();
        assert!((ours - theirs).abs() <= tolerance, "{metric}: {ours} and {theirs} in {case}");
    }

    #[test]
    fn classification_equals_scikit_learn() {
        // Both take a handful of f64 operations on whole numbers, in other orders: two units of the last place of 1.
        let tolerance = 2.0 * f64::EPSILON;
        for case in cases("classification") {
            let classes = case["classes"].as_u64().unwrap() as u32;
            let predictions = Predictions::Classes(list(&case["predictions"], |value| {
                value.as_u64().map(|class| class as u32)
            }));
            let numbers = |name: &str| list(&case[name], |value| value.as_u64().unwrap() as u32);
            let references =
                References::Classes { labels: numbers("labels"), classes, groups: numbers("groups") };
            let metrics = [Metric::Accuracy, Metric::MacroF1, Metric::Matthews, Metric::QuestionExactMatch];
            for metric in metrics.into_iter().chain((classes == 2).then_some(Metric::F1)) {
                agree(&case, metric, &predictions, &references, tolerance);
            }
        }
    }

    #[test]
    fn correlation_equals_scipy() {
        for case in cases("correlation") {
            let predictions = Predictions::Numbers(list(&case["predictions"], Value::as_f64));
            let references = References::Numbers(list(&case["references"], |value| value.as_f64().unwrap()));
            // The other side adds up n products in plain f64, each off by up to an epsilon; two such sums and a root.
            let tolerance = 4.0 * references.len() as f64 * f64::EPSILON;
            agree(&case, Metric::Pearson, &predictions, &references, tolerance);
            agree(&case, Metric::Spearman, &predictions, &references, tolerance);
        }
    }

    #[test]
    fn answers_equal_the_script_of_squad() {
        for case in cases("answers") {
            let predictions = list(&case["predictions"], text);
            for (prediction, normalised) in predictions.iter().zip(list(&case["normalised"], text)) {
                assert_eq!(answers::normalise(prediction), normalised, "{prediction:?}");
            }
            let predictions = Predictions::Texts(predictions);
            let references = References::Texts(list(&case["references"], |accepted| list(accepted, text)));
            // The same operations in the same order.
            agree(&case, Metric::ExactMatch, &predictions, &references, 0.0);
            agree(&case, Metric::AnswerF1, &predictions, &references, 0.0);
        }
    }

    /// Where versions 1.1 and 2.0 of the script part ways, 1.1 holds: nothing left is an exact match without a shared word.
    #[test]
    fn text_without_words_is_exact_but_shares_none() {
        let pair = |prediction: &str, reference: &str| {
            (Predictions::Texts(vec![prediction.into()]), References::Texts(vec![vec![reference.into()]]))
        };
        let (predictions, references) = pair("the", "A.");
        assert_eq!(evaluate(Metric::ExactMatch, &predictions, &references).unwrap(), Some(1.0));
        assert_eq!(evaluate(Metric::AnswerF1, &predictions, &references).unwrap(), Some(0.0));
    }
}
