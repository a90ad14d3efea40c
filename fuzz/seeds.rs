//! The seed corpus: what each reader is made for, small, so that mutations start behind the first magic number. Some are the
//! files of the tests, some are written here.

use std::path::{Path, PathBuf};

use promptmix::config::RunConfig;
use promptmix::prompts::{Prompt, PromptMetadata};

use super::readers;

/// A seed's target, name and content.
pub type Seed = (&'static str, String, Vec<u8>);

/// Every seed of every target.
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    files(&mut seeds);
    rows(&mut seeds);
    prompts(&mut seeds);
    models(&mut seeds);
    settings(&mut seeds);
    seeds
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find(|folder| folder.join("tests/fixtures").is_dir())
        .expect("the repository")
        .join("tests/fixtures")
}

/// The data files of other programs, each for the target of its format.
fn files(seeds: &mut Vec<Seed>) {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(tests().join("data_files"))
        .expect("a folder")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    for path in paths {
        let target = match path.extension().and_then(|extension| extension.to_str()) {
            Some("csv" | "tsv") => "csv",
            Some("json" | "jsonl" | "ndjson") => "jsonl",
            Some("parquet") => "parquet",
            _ => continue,
        };
        add_file(seeds, target, &path);
    }
}

fn add_file(seeds: &mut Vec<Seed>, target: &'static str, path: &Path) {
    let name = path.strip_prefix(tests()).unwrap_or(path).display().to_string().replace('/', "-");
    seeds.push((target, name, std::fs::read(path).expect("a fixture")));
}

/// Rows with what is special about each format.
fn rows(seeds: &mut Vec<Seed>) {
    let texts: [(&'static str, &str, &str); 14] = [
        ("csv", "plain", "text,label\na,1\n\"b, \"\"c\"\"\",0\r\n\n\"two\nlines\",1\n"),
        ("csv", "sep", "sep=;\r\ntext;label\r\na;1\r\n"),
        ("csv", "returns", "text,label\ra,1\r\"b\nc\",0\r"),
        ("csv", "empty-columns", "text,label,,\na,1,,\n"),
        ("csv", "quoted-tabs", "text\tlabel\n\"he said \"\"x\"\"\"\t1\n\"a\tb\"\t0\n\"c\nd\"\t1\n"),
        ("csv", "all-quoted", "\"text\"\t\"label\"\n\"a\"\t\"1\"\n"),
        ("csv", "glue", "index\tsentence\tlabel\n0\t\"open\t1\n1\tclose\"\t0\n"),
        ("csv", "mark", "\u{feff}text|label\nü|1\n"),
        (
            "jsonl",
            "wide",
            "{\"id\": 123456789012345678901234567890, \"s\": \"\\\\ \\\" \\u00e4\", \"label\": 1}\n",
        ),
        (
            "jsonl",
            "array",
            "[{\"sentence\": \"a\", \"label\": 0},\n {\"sentence\": \"]\\\"\", \"label\": [1, {\"x\": -1e5}]}]\n",
        ),
        ("jsonl", "returns", "{\"text\": \"a\", \"label\": true}\r{\"text\": null}\r"),
        ("jsonl", "nan", "{\"text\": \"a\", \"score\": NaN}\n"),
        (
            "jsonl",
            "squad",
            "{\"question\": \"q?\", \"context\": \"c\", \"answers\": {\"text\": [\"a\"], \"answer_start\": [0]}}\n",
        ),
        (
            "jsonl",
            "wsc",
            "{\"text\": \"a b c\", \"span1_text\": \"a\", \"span1_index\": 0, \"span2_text\": \"c\", \"span2_index\": 2, \"label\": 1}\n",
        ),
    ];
    seeds.extend(texts.map(|(target, name, text)| (target, name.to_owned(), text.as_bytes().to_vec())));
    for name in promptmix::tasks::names() {
        let fields =
            ["sentence", "sentence1", "sentence2", "premise", "hypothesis", "question", "text", "word"];
        let fields: Vec<String> = fields.iter().map(|field| format!("\"{field}\": \"a {name}.\"")).collect();
        let row = format!(
            "{{{}, \"label\": 1, \"idx\": {{\"paragraph\": 1, \"question\": 0}}}}\n",
            fields.join(", ")
        );
        if name.ends_with('c') {
            seeds.push(("jsonl", name.to_owned(), row.into_bytes()));
        }
    }
}

fn prompts(seeds: &mut Vec<Seed>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("prompt.safetensors");
    let mut about = PromptMetadata::default();
    for (name, filled) in [("bare", false), ("full", true)] {
        if filled {
            about.task = Some("sst2".into());
            about.metric = Some(("accuracy".into(), 0.5));
            about.model_sha256 = Some("ab".repeat(32));
        }
        let prompt =
            Prompt::new(name, vec![0.5, -1.0, 2.0, 0.0, 1e-3, 7.0], 3, 2, about.clone()).expect("a prompt");
        prompt.save(&path).expect("written");
        let bytes = std::fs::read(&path).expect("read");
        seeds.push(("prompt", name.to_owned(), bytes.clone()));
        seeds.push(("safetensors", format!("prompt-{name}"), bytes));
    }
    for (element, order, shape) in
        [("<f4", "False", "(2, 3)"), (">f8", "True", "(1, 3)"), ("<f2", "False", "(1, 4, 3)")]
    {
        let mut header = format!("{{'descr': '{element}', 'fortran_order': {order}, 'shape': {shape}, }}");
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut array = b"\x93NUMPY\x01\x00".to_vec();
        array.extend((header.len() as u16).to_le_bytes());
        array.extend(header.bytes());
        array.extend([0x3f; 24]);
        seeds.push(("numpy", element[1..].to_owned(), array));
    }
}

fn models(seeds: &mut Vec<Seed>) {
    let fixtures = tests();
    for folder in ["tiny", "tiny_v11", "tiny_odd"] {
        add_file(seeds, "config", &fixtures.join(folder).join("config.json"));
    }
    let mut torch: Vec<PathBuf> = std::fs::read_dir(fixtures.join("torch"))
        .expect("a folder")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    torch.sort();
    for path in
        torch.into_iter().filter(|path| std::fs::metadata(path).is_ok_and(|about| about.len() < 1 << 14))
    {
        if path.extension().is_some_and(|extension| extension == "pt" || extension == "bin") {
            let bytes = std::fs::read(&path).expect("read");
            if let Some(pickle) = stored_pickle(&bytes) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                seeds.push(("pickle", name, pickle));
            }
            add_file(seeds, "torch", &path);
        }
    }
    seeds.push((
        "torch",
        "archive".into(),
        readers::archive(&[("data.pkl", b"\x80\x02}q\0."), ("data/0", &[0; 8])]),
    ));
    for (name, map) in [
        ("whole", r#"{"weight_map": {"shared.weight": "m.safetensors"}}"#),
        (
            "elsewhere",
            r#"{"metadata": {"total_size": 8}, "weight_map": {"shared.weight": "../m.safetensors"}}"#,
        ),
    ] {
        seeds.push(("shard_index", name.into(), map.as_bytes().to_vec()));
    }
    // One tensor of two numbers.
    let header =
        br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(&[0; 8]);
    seeds.push(("safetensors", "one".into(), file));
    seeds.push(("spiece", "pieces".into(), sentencepiece()));
    seeds.push(("tokenizer_json", "unigram".into(), tokenizer_json().into_bytes()));
}

/// The pickle of an archive whose members are stored plainly: between its first member's header and the next signature.
fn stored_pickle(bytes: &[u8]) -> Option<Vec<u8>> {
    let find = |what: &[u8], from: usize| {
        bytes.get(from..)?.windows(what.len()).position(|part| part == what).map(|at| from + at)
    };
    let name = find(b"data.pkl", 0)?;
    let start = find(b"\x80\x02", name)?;
    let end = find(b"PK", start)?;
    Some(bytes[start..end].to_vec())
}

/// Pieces of a model in SentencePiece's protocol buffer: the specials, a blank, three letters.
fn sentencepiece() -> Vec<u8> {
    let mut model = Vec::new();
    for (piece, score, kind) in [
        ("<pad>", 0.0_f32, 3_u8),
        ("</s>", 0.0, 3),
        ("<unk>", 0.0, 2),
        ("\u{2581}", -1.0, 1),
        ("a", -2.0, 1),
        ("b", -2.5, 1),
        ("\u{2581}a", -3.0, 1),
    ] {
        let mut entry = vec![0x0a, piece.len() as u8];
        entry.extend_from_slice(piece.as_bytes());
        entry.push(0x15);
        entry.extend_from_slice(&score.to_le_bytes());
        entry.extend_from_slice(&[0x18, kind]);
        model.extend_from_slice(&[0x0a, entry.len() as u8]);
        model.extend_from_slice(&entry);
    }
    // The trainer's settings (unigram, the ids of the specials) and the normaliser's (its name).
    let trainer = [
        0x18, 1, 0xc0, 2, 2, 0xc8, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0xd0, 2, 1,
        0xd8, 2, 0,
    ];
    model.extend_from_slice(&[0x12, trainer.len() as u8]);
    model.extend_from_slice(&trainer);
    model.extend_from_slice(&[0x1a, 10, 0x0a, 8]);
    model.extend_from_slice(b"identity");
    model
}

fn tokenizer_json() -> String {
    let vocabulary =
        [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u{2581}", -1.0), ("a", -2.0), ("\u{2581}a", -3.0)];
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 0, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 2, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
        },
        "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": false}
    })
    .to_string()
}

fn settings(seeds: &mut Vec<Seed>) {
    let mut config = RunConfig::default();
    config.task = "sst2".into();
    let written = config.to_toml().expect("settings as TOML");
    seeds.push(("settings", "default".into(), written.into_bytes()));
    let few = "model = \"t5-small\"\ntask = \"sst2\"\nmethod = \"attempt\"\nsources = [\"a.safetensors\"]\nlearning-rate = 0.3\n";
    seeds.push(("settings", "few".into(), few.into()));
    let task = "name = \"reviews\"\nsource = \"reviews text: {text} product: {product or item}\"\nlabels = \"no=bad,yes=good\"\n\
                label-field = \"stars\"\nmetrics = [\"f1\", \"accuracy\"]\nsplit = { hold-out-training = { rows = 1000 } }\n";
    seeds.push(("task_file", "labels".into(), task.into()));
    let number = "source = \"{a|space_punctuation} {b.0}\"\n[target]\nkind = \"number\"\nfield = \"score\"\nminimum = 0.0\nmaximum = 5.0\nstep = 0.2\n";
    seeds.push(("task_file", "number".into(), number.into()));
    for (name, text) in [
        ("slots", "x: {a or b|join} {{y}} {label.text.0|remove_markup}"),
        ("labels", "0=negative,1=positive"),
    ] {
        seeds.push(("template", name.into(), text.into()));
    }
    for name in ["sst2", "squad", "stsb", "superglue-wsc.fixed"] {
        let task = promptmix::tasks::Task::named(name).expect("a task");
        seeds.push(("template", name.into(), serde_json::to_vec(&task).expect("JSON")));
    }
}
