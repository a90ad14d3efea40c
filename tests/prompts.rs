//! The prompt store: what is saved comes back, what does not fit says why, and broken files are errors.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use promptmix::Error;
use promptmix::prompts::{Prompt, PromptMetadata, load_sources};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::tempdir;

fn values(length: usize, width: usize) -> Vec<f32> {
    (0..length * width).map(|index| index as f32 / 3.0 - 1.0).collect()
}

fn metadata() -> PromptMetadata {
    let mut metadata = PromptMetadata::default();
    metadata.task = Some("sst2".to_owned());
    metadata.model_sha256 = Some("ab".repeat(32));
    metadata.method = Some("prompt-tuning".to_owned());
    metadata.steps = Some(1200);
    metadata.learning_rate = Some(0.3);
    metadata.seed = Some(u64::MAX);
    metadata.metric = Some(("accuracy".to_owned(), 0.912_345_678_901_234_5));
    metadata
}

fn prompt(length: usize, width: usize) -> Prompt {
    Prompt::new("made", values(length, width), length, width, metadata()).expect("a prompt")
}

/// A safetensors file of one tensor.
fn file(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8], metadata: &[(&str, &str)]) -> Vec<u8> {
    let view = TensorView::new(dtype, shape.to_vec(), bytes).expect("a view");
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    safetensors::serialize([(name, view)], Some(metadata)).expect("serialised")
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn load(bytes: Vec<u8>) -> promptmix::Result<Prompt> {
    Prompt::from_bytes(Path::new("given.safetensors"), bytes)
}

#[test]
fn what_is_saved_comes_back() {
    let folder = tempdir().expect("folder");
    let path = folder.path().join("sst2.safetensors");
    let saved = prompt(7, 5);
    saved.save(&path).expect("saved");
    let loaded = Prompt::load(&path).expect("loaded");
    assert_eq!(loaded.name(), "sst2");
    assert_eq!((loaded.length(), loaded.width()), (7, 5));
    assert_eq!(loaded.values(), saved.values());
    let mut expected = metadata();
    expected.promptmix_version = Some(env!("CARGO_PKG_VERSION").to_owned());
    assert_eq!(loaded.metadata(), &expected);
    assert_eq!(loaded.clone().into_values(), saved.into_values());
}

#[test]
fn equal_prompts_are_equal_bytes_that_others_can_read() {
    let folder = tempdir().expect("folder");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    prompt(3, 4).save(&one).expect("saved");
    prompt(3, 4).save(&two).expect("saved");
    let bytes = std::fs::read(&one).expect("read");
    assert_eq!(bytes, std::fs::read(&two).expect("read"));
    let (header, about) = SafeTensors::read_metadata(&bytes).expect("as the format's own crate reads it");
    assert_eq!(header % 8, 0);
    assert_eq!(about.metadata().as_ref().expect("metadata")["task"], "sst2");
    let read = SafeTensors::deserialize(&bytes).expect("deserialised");
    assert_eq!(read.names(), ["prompt"]);
    assert_eq!(read.tensor("prompt").expect("there").data(), floats(&values(3, 4)));
}

#[test]
fn saving_replaces_the_old_file_or_leaves_it() {
    let folder = tempdir().expect("folder");
    let path = folder.path().join("p.safetensors");
    prompt(2, 2).save(&path).expect("saved");
    prompt(9, 3).save(&path).expect("saved over it");
    assert_eq!(Prompt::load(&path).expect("loaded").length(), 9);
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "no temporary file is left");
    let nowhere = folder.path().join("absent/p.safetensors");
    assert!(matches!(prompt(2, 2).save(&nowhere), Err(Error::File { .. })));
}

#[test]
fn a_bare_tensor_without_metadata_is_a_prompt() {
    let loaded = load(file("prompt", Dtype::F32, &[2, 3], &floats(&values(2, 3)), &[])).expect("loaded");
    assert_eq!(loaded.name(), "given");
    assert_eq!(loaded.metadata(), &PromptMetadata::default());
}

#[test]
fn a_prompt_is_made_only_of_finite_values_of_its_shape() {
    let make = |values: Vec<f32>, length, width| Prompt::new("p", values, length, width, metadata());
    make(vec![], 0, 4).expect_err("no rows");
    make(vec![], 4, 0).expect_err("no columns");
    make(vec![0.0; 5], 2, 3).expect_err("one short");
    make(vec![0.0; 4], usize::MAX, 2).expect_err("a product that overflows");
    let error = make(vec![0.0, 1.0, f32::NAN, f32::NAN], 2, 2).expect_err("not finite");
    assert!(error.to_string().contains("index 2"), "{error}");
}

#[test]
fn a_prompt_of_another_width_or_model_is_refused_with_the_reason() {
    let prompt = prompt(2, 8);
    prompt.check_fits(8, None).expect("no model named");
    prompt.check_fits(8, Some(&"ab".repeat(32))).expect("its own model");
    let error = prompt.check_fits(16, None).expect_err("another width").to_string();
    assert!(error.contains("16") && error.contains('8') && error.contains("d_model"), "{error}");
    let error = prompt.check_fits(8, Some(&"cd".repeat(32))).expect_err("another model").to_string();
    assert!(error.contains("abababababab") && error.contains("cdcdcdcdcdcd"), "{error}");
    let unknown = Prompt::new("p", values(2, 8), 2, 8, PromptMetadata::default()).expect("a prompt");
    unknown.check_fits(8, Some(&"cd".repeat(32))).expect("nothing is known against it");
}

#[test]
fn sources_keep_their_order_and_must_agree() {
    let folder = tempdir().expect("folder");
    let save = |name: &str, length: usize, width: usize| -> PathBuf {
        let path = folder.path().join(format!("{name}.safetensors"));
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        prompt(length, width).save(&path).expect("saved");
        path
    };
    let (a, b) = (save("b_first", 4, 8), save("a_second", 4, 8));
    let sources = load_sources(&[a.clone(), b.clone()], 8).expect("agree");
    assert_eq!(sources.iter().map(Prompt::name).collect::<Vec<_>>(), ["b_first", "a_second"]);
    assert!(load_sources(&[], 8).expect("none").is_empty());

    let error = load_sources(&[a.clone(), save("longer", 5, 8)], 8).expect_err("lengths").to_string();
    assert!(error.contains("4 rows") && error.contains("5 rows in"), "{error}");
    let error = load_sources(&[a.clone(), save("wider", 4, 9)], 8).expect_err("widths").to_string();
    assert!(error.contains("wider") && error.contains("width 9"), "{error}");
    let error = load_sources(&[a.clone(), b.clone(), a.clone()], 8).expect_err("twice").to_string();
    assert!(error.contains("twice"), "{error}");
    load_sources(&[a.clone(), folder.path().join("absent.safetensors")], 8).expect_err("missing");

    let (one, two) = (save("sst2/best", 4, 8), save("mnli/best", 4, 8));
    let sources = load_sources(&[one, a, two], 8).expect("told apart");
    assert_eq!(sources.iter().map(Prompt::name).collect::<Vec<_>>(), ["sst2/best", "b_first", "mnli/best"]);
}

#[test]
fn what_is_no_prompt_is_an_error_that_says_why() {
    let good = floats(&values(2, 3));
    for (what, bytes, said) in [
        ("an empty file", Vec::new(), "an empty file"),
        ("another name", file("soft", Dtype::F32, &[2, 3], &good, &[]), "prompt"),
        ("one dimension", file("prompt", Dtype::F32, &[6], &good, &[]), "[6]"),
        ("three dimensions", file("prompt", Dtype::F32, &[1, 2, 3], &good, &[]), "[1, 2, 3]"),
        ("half precision", file("prompt", Dtype::F16, &[3, 4], &good, &[]), "f16"),
        ("bfloat", file("prompt", Dtype::BF16, &[3, 4], &good, &[]), "bf16"),
        ("double", file("prompt", Dtype::F64, &[1, 3], &good, &[]), "f64"),
        ("no rows", file("prompt", Dtype::F32, &[0, 3], &[], &[]), "[0, 3]"),
        ("NaN", file("prompt", Dtype::F32, &[1, 2], &floats(&[1.0, f32::NAN]), &[]), "NaN at index 1"),
        (
            "another length",
            file("prompt", Dtype::F32, &[2, 3], &good, &[("length", "3"), ("width", "3")]),
            "metadata that says 3 x 3",
        ),
        ("no number", file("prompt", Dtype::F32, &[2, 3], &good, &[("steps", "many\n")]), "steps"),
        ("newer", file("prompt", Dtype::F32, &[2, 3], &good, &[("format_version", "2")]), "update promptmix"),
    ] {
        let error = load(bytes).expect_err(what);
        assert!(error.to_string().contains(said), "{what}: {error}");
    }
    let folder = tempdir().expect("folder");
    assert!(matches!(Prompt::load(&folder.path().join("absent")), Err(Error::File { .. })));
    assert!(matches!(Prompt::load(folder.path()), Err(Error::Format { .. })), "a folder");
}

/// A saved prompt's bytes; written once, as every save waits for the disk.
fn saved() -> Vec<u8> {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(save_once).clone()
}

fn save_once() -> Vec<u8> {
    let folder = tempdir().expect("folder");
    let path = folder.path().join("p.safetensors");
    prompt(3, 4).save(&path).expect("saved");
    std::fs::read(path).expect("read")
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let whole = saved();
    for cut in 0..whole.len() {
        load(whole[..cut].to_vec()).expect_err("cut");
    }
    load([whole, vec![0]].concat()).expect_err("one byte more");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_an_error_or_a_finite_prompt(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut bytes = saved();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(prompt) = load(bytes) {
            prop_assert_eq!(prompt.values().len(), prompt.length() * prompt.width());
            prop_assert!(prompt.values().iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn any_header_is_an_error_or_a_finite_prompt(json in "[\\{\\}\\[\\]\":,0-9a-zF\\-]{0,80}", data in 0usize..64) {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        let _ = load(bytes);
    }

    #[test]
    fn a_header_with_any_sizes_is_an_error_or_a_finite_prompt(
        rows in any::<u64>(), columns in any::<u64>(), from in any::<u64>(), to in any::<u64>(), small in any::<bool>()
    ) {
        let bound = if small { 9 } else { u64::MAX };
        let json = format!(
            r#"{{"prompt":{{"dtype":"F32","shape":[{},{}],"data_offsets":[{},{}]}}}}"#,
            rows % bound, columns % bound, from % bound, to % bound
        );
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + 16, 0);
        let _ = load(bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_finite_number_survives(values in prop::collection::vec(-1e30f32..1e30, 1..40), rate in 0.0f64..10.0) {
        let folder = tempdir().expect("folder");
        let path = folder.path().join("p.safetensors");
        let mut about = metadata();
        about.learning_rate = Some(rate);
        let saved = Prompt::new("p", values.clone(), values.len(), 1, about).expect("a prompt");
        saved.save(&path).expect("saved");
        let loaded = Prompt::load(&path).expect("loaded");
        prop_assert_eq!(loaded.values(), &values);
        prop_assert_eq!(loaded.metadata().learning_rate, Some(rate));
    }
}
