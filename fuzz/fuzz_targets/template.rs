//! Any text as a template, as labels and as a task in JSON: parsed or refused, never a panic.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use promptmix::tasks::{Purpose, Row, Task, Template};
use serde_json::{Map, Value};

fuzz_target!(|text: &str| {
    let row = || {
        let fields: Map<String, Value> =
            ["a", "b", "label"].into_iter().map(|name| (name.to_owned(), Value::from(text))).collect();
        Row::new(fields, Arc::from(Path::new("fuzz.jsonl")), 1)
    };
    if let Ok(template) = text.parse::<Template>() {
        assert_eq!(template.as_str(), text);
        let _ = template.fill(&row());
    }
    if let Ok(task) = Task::generic("fuzz", "{a} {b}", Some(text), "label") {
        let _ = task.examples(&row(), Purpose::Training);
        let _ = task.predictions(&[text]);
    }
    if let Ok(task) = serde_json::from_str::<Task>(text)
        && task.check().is_ok()
    {
        let _ = task.labels();
        let _ = task.examples(&row(), Purpose::Training);
    }
});
