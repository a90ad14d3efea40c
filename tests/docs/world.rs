//! The folder that a page's commands run in: models, rows, and what other pages made before.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use super::page::{Page, root};
use super::{program, small_model};

pub struct World {
    folder: tempfile::TempDir,
}

const ROWS_OF_PROMPT: usize = 100;

impl World {
    pub fn new(page: &Page) -> Self {
        let world = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        if !page.blocks.iter().any(|block| block.not_run.is_none() && !block.commands().is_empty()) {
            return world;
        }
        for model in ["t5-small", "t5-base"] {
            let folder = world.folder().join(model);
            if page.name == "README.md" {
                symlink(root().join("demo"), folder).expect("a link");
            } else {
                small_model::write(&folder);
            }
        }
        world.write_data();
        if page.name == "docs/prompts.md" {
            for source in ["sst2", "mnli", "qnli", "squad"] {
                let data = format!("data/{source}");
                let out = format!("runs/{source}");
                world.prepare(&[
                    "--task",
                    source,
                    "--data",
                    &data,
                    "--method",
                    "prompt-tuning",
                    "--out",
                    &out,
                ]);
            }
            let sources = "runs/mnli,runs/squad";
            world.prepare(&[
                "--task",
                "mrpc",
                "--data",
                "data/mrpc",
                "--sources",
                sources,
                "--out",
                "runs/mrpc",
            ]);
            world.write_numpy("sst2.npy");
        }
        world
    }

    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("written");
    }

    fn prepare(&self, arguments: &[&str]) {
        let start = ["train", "--model", "t5-small", "--steps", "2"];
        let arguments: Vec<String> = start.iter().chain(arguments).map(|&word| word.to_owned()).collect();
        self.run(&arguments, &self.folder()).expect("a run to begin with");
    }

    /// Runs promptmix in `folder`, without a network.
    pub fn run(&self, arguments: &[String], folder: &Path) -> Result<(), String> {
        let output = program::promptmix()
            .args(arguments)
            .current_dir(folder)
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.folder.path().join("hub"))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() && !said.contains("panicked") {
            return Ok(());
        }
        Err(format!("{}\n{said}", output.status))
    }

    /// A few rows of every task that the pages name.
    fn write_data(&self) {
        let few = [6, 4, 4];
        let sets = [
            ("data/sst2", &["sentence"][..], 2, few),
            ("data/mnli", &["premise", "hypothesis"], 3, few),
            ("data/qnli", &["question", "sentence"], 2, few),
            ("data/mrpc", &["sentence1", "sentence2"], 2, few),
            ("data/rte", &["sentence1", "sentence2"], 2, few),
            // Sixteen of each class.
            ("data/cb", &["premise", "hypothesis"], 3, [48, 4, 4]),
            ("other/mrpc", &["sentence1", "sentence2"], 2, few),
            ("glue/mrpc", &["sentence1", "sentence2"], 2, few),
            ("glue/rte", &["sentence1", "sentence2"], 2, few),
            ("glue/cola", &["sentence"], 2, few),
            ("glue/stsb", &["sentence1", "sentence2"], 5, few),
        ];
        for (folder, fields, classes, counts) in sets {
            self.write_set(folder, counts, |i| row(fields, i, ("label", json!(i % classes))));
        }
        self.write_set("reviews", few, |i| row(&["text", "product", "item"], i, ("stars", json!(i % 2))));
        self.write_set("data/squad", few, |i| {
            row(&["question", "context"], i, ("answers", json!({ "text": ["good"], "answer_start": [0] })))
        });
        let pair = ["sentence1", "sentence2"];
        self.write_rows("new.jsonl", 3, |i| row(&pair, i, ("id", json!(i))));
        let of_run = |names: [&'static str; 2]| {
            move |i: usize| row(&["sentence", pair[0], pair[1]], i, ("run", json!(names[i % 2])))
        };
        self.write_rows("mixed.jsonl", 4, of_run(["sst2", "mrpc"]));
        self.write_rows("named.jsonl", 4, of_run(["first", "second"]));
        let tasks = ["mrpc", "rte", "cola", "stsb"];
        self.write_rows("rows.jsonl", 4, |i| {
            row(&["sentence", pair[0], pair[1]], i, ("task", json!(tasks[i])))
        });
    }

    fn write_set(&self, folder: &str, counts: [usize; 3], row: impl Fn(usize) -> Value) {
        for (split, count) in ["train", "validation", "test"].into_iter().zip(counts) {
            self.write_rows(&format!("{folder}/{split}.jsonl"), count, &row);
        }
    }

    fn write_rows(&self, name: &str, count: usize, row: impl Fn(usize) -> Value) {
        self.write(name, &(0..count).map(|i| format!("{}\n", row(i))).collect::<String>());
    }

    /// A prompt as NumPy saves it, of the smaller model's width.
    fn write_numpy(&self, name: &str) {
        let width = small_model::WIDTH;
        let mut header =
            format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({ROWS_OF_PROMPT}, {width}), }}");
        header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend((0..ROWS_OF_PROMPT * width).flat_map(|i| ((i % 7) as f32 - 3.0).to_le_bytes()));
        fs::write(self.folder.path().join(name), bytes).expect("written");
    }
}

fn row(fields: &[&str], i: usize, (last, value): (&str, Value)) -> Value {
    let text =
        |field: &&str| ((*field).to_owned(), json!(format!("a {} {field} {i}", ["bad", "good"][i % 2])));
    Value::Object(fields.iter().map(text).chain([(last.to_owned(), value)]).collect())
}
