//! A task as a TOML file: all that a row of the table can say, and what is told of one that cannot be read.

use std::path::Path;

use promptmix::metrics::Metric;
use promptmix::tasks::{Purpose, Row, SplitRule, Task};
use proptest::prelude::*;
use serde_json::json;

fn parse(text: &str) -> promptmix::Result<Task> {
    Task::parse_toml(Path::new("tasks/mine.toml"), text)
}

fn row(fields: serde_json::Value) -> Row {
    let serde_json::Value::Object(fields) = fields else { panic!("an object") };
    Row::new(fields, Path::new("rows.jsonl").into(), 1)
}

#[test]
fn labels_make_a_classification_of_a_few_lines() {
    let task = parse(
        "source = \"mine text: {text} product: {product or item}\"\nlabels = \"no=bad,yes=good\"\nlabel-field = \"stars\"",
    )
    .expect("a task");
    assert_eq!(
        (task.name.as_str(), &task.metrics[..]),
        ("mine", &[Metric::Accuracy][..]),
        "named by its file"
    );
    let made = task
        .examples(&row(json!({"text": "it is", "item": "tea", "stars": "yes"})), Purpose::Training)
        .expect("an example");
    assert_eq!((made[0].source.as_str(), made[0].target.as_str()), ("mine text: it is product: tea", "good"));
}

#[test]
fn a_target_and_the_rest_of_a_table_row_can_be_said() {
    let task = parse(
        "name = \"grades\"\nsource = \"grades {text}\"\nmetrics = [\"spearman\"]\nlowercase = true\n\
         split = { hold-out-training = { rows = 50 } }\n\
         [target]\nkind = \"number\"\nfield = \"grade\"\nminimum = 0.0\nmaximum = 5.0\nstep = 0.5\n",
    )
    .expect("a task");
    assert_eq!((task.name.as_str(), task.split), ("grades", SplitRule::HoldOutTraining { rows: 50 }));
    assert_eq!((&task.metrics[..], task.lowercase), (&[Metric::Spearman][..], true));
    let made =
        task.examples(&row(json!({"text": "A B", "grade": 3.3})), Purpose::Training).expect("an example");
    assert_eq!((made[0].source.as_str(), made[0].target.as_str()), ("grades a b", "3.5"));

    let free = parse("source = \"{question}\"\nlabel-field = \"answer\"").expect("a task");
    assert_eq!(
        free.metrics,
        [Metric::ExactMatch, Metric::AnswerF1],
        "without labels the answer is free text"
    );
    let grouped = parse(
        "source = \"{q} {a}\"\nlabels = \"0,1\"\ngroup = \"{q}\"\nmetrics = [\"question-exact-match\"]\nsplit = \"halve-validation\"",
    )
    .expect("a task");
    assert!(grouped.group.is_some() && grouped.split == SplitRule::HalveValidation);
}

#[test]
fn a_row_of_the_table_written_as_a_file_is_the_same_task() {
    for name in ["sst2", "stsb", "superglue-multirc", "superglue-record", "squad", "scitail", "mnli"] {
        let task = Task::named(name).expect("a task");
        let text = toml::to_string(&task).expect("TOML");
        assert_eq!(parse(&text).expect(name), task, "{text}");
    }
}

#[test]
fn a_condition_names_the_rows_that_are_the_tasks() {
    let source = "source = \"{text}\"\nlabels = \"bad,good\"\n";
    let task = parse(&format!("{source}where = \"stars == 1 or 5\"")).expect("a task");
    let condition = task.condition.clone().expect("a condition");
    assert!(condition.holds(&row(json!({"stars": 5}))).expect("a field"));
    assert!(condition.holds(&row(json!({"stars": "1"}))).expect("a field"));
    assert!(!condition.holds(&row(json!({"stars": 3}))).expect("a field"));
    let missing = condition.holds(&row(json!({"star": 3}))).expect_err("no such field").to_string();
    assert!(missing.contains("a field `stars`"), "{missing}");
    assert!(task.columns().contains(&vec!["stars".to_owned(), "stars".to_owned()]));
    let optional = parse(&format!("{source}where = 'lang? == \"en\"'")).expect("a task");
    let optional = optional.condition.expect("a condition");
    assert!(optional.holds(&row(json!({"text": "t"}))).expect("it may be missing"));
    assert!(!optional.holds(&row(json!({"lang": "de"}))).expect("a field"));
    for wrong in ["stars", "== 5", "stars ==", "stars = 5", "stars == 1 or "] {
        let error = parse(&format!("{source}where = \"{wrong}\"")).expect_err(wrong).to_string();
        assert!(error.contains("a field, == and a value"), "{wrong}: {error}");
    }
}

#[test]
fn a_name_that_ends_in_toml_is_a_file() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("reviews.toml");
    std::fs::write(&path, "source = \"{text}\"\nlabels = \"bad,good\"").expect("written");
    assert_eq!(Task::find(&path.display().to_string()).expect("the file").name, "reviews");
    assert_eq!(Task::find("sst2").expect("the table").name, "sst2");
    let error = Task::find("absent.toml").expect_err("no file").to_string();
    assert!(error.contains("absent.toml"), "{error}");
}

#[test]
fn what_cannot_be_meant_is_named_with_file_and_line() {
    for (text, said) in [
        ("", "source"),
        ("source = \"{text}\"\nlabel = \"a,b\"", "line 2"),
        ("source = \"{text}\"\nlabel = \"a,b\"", "label"),
        ("name = \"a\"\nsource = \"no slot\"", "line 2"),
        ("source = \"{text}\"\nmetrics = [\"accuracie\"]", "line 2"),
        ("source = \"{text}\"\nlabels = \"a,b\"\nmetrics = [\"pearson\"]", "pearson"),
        ("source = \"{text}\"\nlabels = \"a,a\"", "twice"),
        ("source = \"{text}\"\nname = \"a/b\"", "a/b"),
        ("source = \"{text}\"\nname = \"a,b\"", "a,b"),
        ("source = \"{text}\"\nlabels = \"a,b\"\n[target]\nkind = \"text\"\nfield = \"x\"", "both"),
        ("source = \"{text}\"\n[target]\nkind = \"texts\"\nfield = \"x\"", "texts"),
        ("source = ", "line 1"),
        ("source = \"{text}\"\nlabels = \"a,b\"\nmetrics = [\"f1\", \"f1\"]", "f1 twice"),
        ("source = \"{text}\"\nsplit = { hold-out-training = { rows = 0 } }", "at least 1 row"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_a_task_or_an_error(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 1..5)
    ) {
        let good = "name = \"grades\"\nsource = \"{text|join} {a.b or c}\"\nmetrics = [\"spearman\"]\n\
                    split = { hold-out-training = { rows = 50 } }\n[target]\nkind = \"number\"\nfield = \"grade\"\n\
                    minimum = 0.0\nmaximum = 5.0\nstep = 0.5\n";
        let mut text: Vec<char> = good.chars().collect();
        for (at, letter) in flips {
            let at = at.index(text.len());
            text[at] = letter;
        }
        if let Ok(task) = parse(&text.into_iter().collect::<String>()) {
            prop_assert!(!task.name.is_empty() && !task.metrics.is_empty());
        }
    }
}
