//! Any bytes as a JSONL file, and its rows as rows of tasks: rows or an error, never a panic.
#![no_main]

use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use promptmix::data::{Format, Reader};
use promptmix::tasks::{Purpose, Task, names};

fuzz_target!(|content: &[u8]| {
    let input = Cursor::new(content.to_vec());
    let Ok(reader) = Reader::new(input, Format::Jsonl, Path::new("fuzz.jsonl"), 1 << 12) else { return };
    for row in reader {
        let Ok(row) = row else { return };
        for name in names() {
            let Ok(task) = Task::named(name) else { panic!("{name} is a task of the table") };
            let _ = task.examples(&row, Purpose::Training);
            let _ = task.examples(&row, Purpose::Evaluation);
        }
    }
});
