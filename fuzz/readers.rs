//! What each fuzz target does with its bytes: every reader of the program must take any bytes for an error or for a value that keeps
//! its promises, and come to an end. The targets call these functions, and so does a test over the stored corpus.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use promptmix::config::RunConfig;
use promptmix::config::file::parse;
use promptmix::data::{Format, Reader, count_rows, json, open};
use promptmix::pretrained::{Checkpoint, T5Config, TensorFile, Tokenizer};
use promptmix::prompts::{Prompt, import};
use promptmix::tasks::{Purpose, Row, Task, Template, names};
use serde_json::{Map, Value};

/// Reads whatever bytes it is given, and does not panic.
pub type Target = fn(&[u8]);

/// Every target and its function.
pub const ALL: [(&str, Target); 15] = [
    ("config", config),
    ("csv", csv),
    ("jsonl", jsonl),
    ("numpy", numpy),
    ("parquet", parquet),
    ("pickle", pickle),
    ("prompt", prompt),
    ("safetensors", safetensors),
    ("settings", settings),
    ("shard_index", shard_index),
    ("spiece", spiece),
    ("task_file", task_file),
    ("template", template),
    ("tokenizer_json", tokenizer_json),
    ("torch", torch),
];

/// Bytes that a row may have here: more than any input has, so that nothing is refused for its length alone.
const LIMIT: usize = 1 << 16;

/// A file of this thread's own with this content: what only a path can be read from.
fn file(extension: &str, bytes: &[u8]) -> PathBuf {
    let name = format!("promptmix-fuzz-{}-{:?}.{extension}", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

/// `config.json`: an error or a valid configuration.
pub fn config(bytes: &[u8]) {
    if let Ok(config) = T5Config::from_json(Path::new("config.json"), bytes) {
        config.validate().expect("what is read is valid");
        for (name, shape) in config.tensors() {
            shape.iter().try_fold(4usize, |bytes, &size| bytes.checked_mul(size)).expect(&name);
        }
    }
}

/// Rows of CSV and of TSV, none over the limit.
pub fn csv(bytes: &[u8]) {
    for format in [Format::Csv, Format::Tsv] {
        let input = Cursor::new(bytes.to_vec());
        let Ok(reader) = Reader::new(input, format, Path::new("fuzz.csv"), LIMIT) else { continue };
        for row in reader.flatten() {
            let size: usize = row.fields().values().filter_map(|value| value.as_str()).map(str::len).sum();
            assert!(size <= bytes.len().min(LIMIT), "a row has no more than the file");
            assert!(row.line() >= 2);
        }
    }
}

/// Rows of JSON, lines or an array, as rows of tasks; each goes out on one line that is the same row.
pub fn jsonl(bytes: &[u8]) {
    let reader = Reader::with_text(Cursor::new(bytes.to_vec()), Path::new("fuzz.jsonl"), LIMIT);
    for row in reader {
        let Ok(row) = row else { return };
        let mut added = Map::new();
        added.insert("promptmix answer".into(), Value::from("a"));
        let line = json::with_fields(&row, added);
        assert!(!line.contains('\n'));
        let Ok(Value::Object(fields)) = serde_json::from_str(&line) else { panic!("{line} is an object") };
        assert!(row.fields().keys().all(|name| fields.contains_key(name)));
        for name in names() {
            let Ok(task) = Task::named(name) else { panic!("{name} is a task of the table") };
            let _ = task.examples(&row, Purpose::Training);
            let _ = task.examples(&row, Purpose::Evaluation);
        }
    }
}

/// An array that NumPy saved: an error or a finite prompt of its shape.
pub fn numpy(bytes: &[u8]) {
    let path = file("npy", bytes);
    if let Ok(imported) = import(&path) {
        check_prompt(&imported.prompt);
    }
}

/// A Parquet file: an error, or as many rows as it says.
pub fn parquet(bytes: &[u8]) {
    let path = file("parquet", bytes);
    let counted = count_rows(&path);
    if let Ok(reader) = open(&path) {
        let (mut rows, mut failed) = (0, false);
        for row in reader {
            rows += usize::from(row.is_ok());
            failed |= row.is_err();
        }
        let counted = counted.expect("what is opened can be counted");
        assert!(rows <= counted && (failed || rows == counted), "{rows} of {counted}");
    }
}

/// The pickle of a `torch.save` archive, under a good checksum and beside one storage of 64 bytes.
pub fn pickle(bytes: &[u8]) {
    torch(&archive(&[("data.pkl", bytes), ("data/0", &[0; 64])]));
}

/// A zip archive of plainly stored members.
pub fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let (name, offset) = (format!("archive/{name}"), file.len() as u32);
        let length = (data.len() as u32).to_le_bytes();
        let mut about = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        about.extend_from_slice(&rawzip::crc32(data).to_le_bytes());
        about.extend_from_slice(&length);
        about.extend_from_slice(&length);
        about.extend_from_slice(&[name.len() as u8, 0, 0, 0]);
        for (to, signature) in [(&mut file, &b"PK\x03\x04"[..]), (&mut directory, b"PK\x01\x02\x14\0")] {
            to.extend_from_slice(signature);
            to.extend_from_slice(&about);
        }
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(data);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (start, length, count) = (file.len() as u32, directory.len() as u32, members.len() as u8);
    file.extend_from_slice(&directory);
    file.extend_from_slice(&[b'P', b'K', 5, 6, 0, 0, 0, 0, count, 0, count, 0]);
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(&start.to_le_bytes());
    file.extend_from_slice(&[0, 0]);
    file
}

/// A prompt's own file: an error or a finite prompt of its shape.
pub fn prompt(bytes: &[u8]) {
    if let Ok(prompt) = Prompt::from_bytes(Path::new("prompt.safetensors"), bytes.to_vec()) {
        check_prompt(&prompt);
    }
}

fn check_prompt(prompt: &Prompt) {
    assert_eq!(prompt.values().len(), prompt.length() * prompt.width());
    assert!(prompt.values().iter().all(|value| value.is_finite()));
}

/// A safetensors file: an error or tensors that lie inside it.
pub fn safetensors(bytes: &[u8]) {
    if let Ok(file) = TensorFile::safetensors_from_bytes(Path::new("model.safetensors"), bytes.to_vec()) {
        check_tensors(&file, bytes.len());
    }
}

/// What `torch.save` writes: an error or tensors that lie inside it.
pub fn torch(bytes: &[u8]) {
    if let Ok(file) = TensorFile::torch_from_bytes(Path::new("pytorch_model.bin"), bytes.to_vec()) {
        check_tensors(&file, bytes.len());
    }
}

fn check_tensors(file: &TensorFile, size: usize) {
    for name in file.names() {
        let shape = file.shape(name).expect("a listed tensor").to_vec();
        if let Ok(values) = file.tensor(name, &shape) {
            assert!(values.len() <= size / 2 && values.iter().all(|value| value.is_finite()));
        }
    }
}

/// A settings file: an error, or settings that written down and read again are the same.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let path = Path::new("run.toml");
    let Ok(table) = parse(path, text) else { return };
    let Ok(config) = RunConfig::from_table(path, text, table) else { return };
    let Ok(written) = config.to_toml() else { return };
    let again = parse(path, &written).expect("what is written is TOML");
    assert_eq!(RunConfig::from_table(path, &written, again).expect("and settings"), config);
}

/// A shard index beside one shard: an error or a checkpoint whose tensors can all be read.
pub fn shard_index(bytes: &[u8]) {
    // One layer of width 2 with one head each way.
    const CONFIG: &str = r#"{"vocab_size": 2, "d_model": 2, "d_kv": 2, "d_ff": 2, "num_layers": 1, "num_heads": 1,
        "relative_attention_num_buckets": 4}"#;
    // Its embedding and nothing else; a map that claims more of it is refused.
    const SHARD: &[u8] = b"\x49\0\0\0\0\0\0\0{\"shared.weight\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[0,8]}}    \0\0\0\0\0\0\0\0";
    thread_local! {
        static FOLDER: PathBuf = {
            let name = format!("promptmix-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join("config.json"), CONFIG).expect("written");
            std::fs::write(folder.join("m.safetensors"), SHARD).expect("written");
            folder
        };
    }
    FOLDER.with(|folder| {
        std::fs::write(folder.join("model.safetensors.index.json"), bytes).expect("written");
        if let Ok(checkpoint) = Checkpoint::open(folder) {
            for (name, shape) in checkpoint.config().tensors() {
                checkpoint.tensor(&name, &shape).expect("an opened checkpoint is complete");
            }
        }
    });
}

/// `spiece.model`: an error or a tokenizer that stays inside its vocabulary.
pub fn spiece(bytes: &[u8]) {
    let config = T5Config::t5_small();
    if let Ok(tokenizer) = Tokenizer::from_sentencepiece(Path::new("spiece.model"), bytes, None, &config) {
        use_tokenizer(&tokenizer, config.vocab_size);
    }
}

/// `tokenizer.json`: likewise.
pub fn tokenizer_json(bytes: &[u8]) {
    let config = T5Config::t5_small();
    if let Ok(tokenizer) = Tokenizer::from_json(Path::new("tokenizer.json"), bytes, &config) {
        use_tokenizer(&tokenizer, config.vocab_size);
    }
}

fn use_tokenizer(tokenizer: &Tokenizer, vocabulary: usize) {
    for text in ["", "a b  c", "\u{fb01}\u{301} \u{1f469}\u{200d}\u{1f467} \0\u{a0}", "<extra_id_0></s>x"] {
        if let Ok(ids) = tokenizer.encode(text) {
            assert_eq!(ids.last(), Some(&tokenizer.eos_token_id()));
            assert!(ids.iter().all(|&id| (id as usize) < vocabulary));
            let _ = tokenizer.decode(&ids);
        }
    }
}

/// A task's TOML file: an error or a task whose parts fit.
pub fn task_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(task) = Task::parse_toml(Path::new("task.toml"), text) {
        task.check().expect("what is read fits");
    }
}

/// A template, labels, and a task in JSON: parsed or refused.
pub fn template(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
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
}
