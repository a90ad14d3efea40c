//! What the fuzz targets do, over the stored corpus: seeds, and every input that once made a reader fall.
//!
//! With `PROMPTMIX_FUZZ_CORPUS=FOLDER` the seeds are also written there, a folder a target, as `scripts/fuzz` needs them.
#![cfg(feature = "parquet")]

use std::collections::BTreeMap;
use std::path::Path;

#[path = "../fuzz/readers.rs"]
mod readers;
#[path = "../fuzz/seeds.rs"]
mod seeds;

fn finds() -> Vec<(String, String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/finds");
    let mut finds = Vec::new();
    // The folder comes with the first find.
    let Ok(targets) = std::fs::read_dir(&folder) else { return finds };
    for target in targets.flatten() {
        for file in std::fs::read_dir(target.path()).expect("a folder of a target").flatten() {
            let name = |path: std::path::PathBuf| {
                path.file_name().unwrap_or_default().to_string_lossy().into_owned()
            };
            finds.push((name(target.path()), name(file.path()), std::fs::read(file.path()).expect("read")));
        }
    }
    finds
}

#[test]
fn every_seed_and_every_find_is_an_error_or_what_it_says() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let out = std::env::var_os("PROMPTMIX_FUZZ_CORPUS");
    for (target, name, bytes) in seeds::all() {
        if let Some(out) = &out {
            let folder = Path::new(out).join(target);
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join(format!("seed-{name}")), &bytes).expect("written");
        }
        run(target, &name, &bytes);
        *counts.entry(target).or_default() += 1;
    }
    for (target, name, bytes) in finds() {
        run(&target, &name, &bytes);
    }
    for (target, _) in readers::ALL {
        assert!(counts.contains_key(target), "{target} has no seed");
    }
}

fn run(target: &str, name: &str, bytes: &[u8]) {
    let (_, read) = readers::ALL.into_iter().find(|(known, _)| *known == target).expect("a known target");
    println!("{target} {name}");
    read(bytes);
}

/// One would take two gigabytes of dictionary entries that are not there, the others a minute over a list of a billion.
#[test]
fn finds_in_headers_and_footers_are_refused_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/finds/parquet");
    for name in [
        "a-dictionary-of-more-entries-than-bytes",
        "a-page-header-with-a-list-of-a-billion",
        "a-page-header-whose-list-says-that-it-is-a-number",
        "a-footer-with-a-list-of-a-billion",
    ] {
        let find = std::fs::read(folder.join(name)).expect("read");
        let path = tempfile::Builder::new().suffix(".parquet").tempfile().expect("a file").into_temp_path();
        std::fs::write(&path, find).expect("written");
        let found = match promptmix::data::open(&path) {
            Ok(mut reader) => reader.find_map(Result::err).expect("an error"),
            Err(error) => error,
        };
        let found = found.to_string();
        let refused = ["no page header at byte", "a footer that claims more than it has"];
        assert!(refused.iter().any(|part| found.contains(part)), "{name}: {found}");
    }
}

/// A seed that its reader refuses would have the fuzzer search for the format from nothing.
#[test]
fn the_readers_accept_the_first_seed_of_their_format() {
    use promptmix::data::{Format, Reader};
    use promptmix::pretrained::{T5Config, TensorFile, Tokenizer};
    use promptmix::prompts::Prompt;
    use std::io::Cursor;

    let seed = |target: &str, name: &str| {
        let found = seeds::all().into_iter().find(|(of, seed, _)| *of == target && seed.contains(name));
        found.unwrap_or_else(|| panic!("a seed {name} of {target}")).2
    };
    let path = Path::new("seed");
    let config = T5Config::t5_small();
    Tokenizer::from_sentencepiece(path, &seed("spiece", "pieces"), None, &config)
        .expect("a SentencePiece model");
    Tokenizer::from_json(path, &seed("tokenizer_json", "unigram"), &config).expect("a tokenizer");
    Prompt::from_bytes(path, seed("prompt", "full")).expect("a prompt");
    TensorFile::safetensors_from_bytes(path, seed("safetensors", "one")).expect("a tensor file");
    TensorFile::torch_from_bytes(path, seed("torch", "bare")).expect("a file of PyTorch");
    let pickle = readers::archive(&[("data.pkl", &seed("pickle", "bare")), ("data/0", &[0; 80])]);
    TensorFile::torch_from_bytes(path, pickle).expect("a pickle");
    for name in ["plain", "sep", "returns", "empty-columns"] {
        let rows = Reader::new(Cursor::new(seed("csv", name)), Format::Csv, path, 1 << 16).expect(name);
        assert!(rows.into_iter().all(|row| row.is_ok()), "{name}");
    }
}

/// Each target calls the function of its name and is declared, so that compiling this test checks what they run.
#[test]
fn the_targets_are_the_functions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
    for (target, _) in readers::ALL {
        let text = std::fs::read_to_string(folder.join(format!("fuzz_targets/{target}.rs"))).expect(target);
        assert!(text.contains(&format!("readers::{target}(bytes)")), "{target}");
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
    }
    let files = std::fs::read_dir(folder.join("fuzz_targets")).expect("a folder").count();
    assert_eq!(files, readers::ALL.len());
}
