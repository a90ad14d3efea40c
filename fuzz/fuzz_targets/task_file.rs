//! A task's TOML file: any text is an error or a task whose parts fit.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use promptmix::tasks::Task;

fuzz_target!(|text: &str| {
    if let Ok(task) = Task::parse_toml(Path::new("task.toml"), text) {
        task.check().expect("what is read fits");
    }
});
