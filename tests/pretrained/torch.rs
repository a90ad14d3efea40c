//! What `torch.save` wrote: state dictionaries, bare tensors, and files that must be refused without being executed.
//! The files come from `scripts/peers/torch_files.py`.

use std::path::{Path, PathBuf};

use promptmix::Error;
use promptmix::pretrained::{Checkpoint, ElementType, TensorFile};
use tempfile::{TempDir, tempdir};

use crate::{shared, tiny_checkpoint as tiny};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

/// `values(number, shape)` of the script.
fn values(number: usize, shape: &[usize]) -> Vec<f32> {
    (0..shape.iter().product()).map(|index| tiny::value(number, index)).collect()
}

/// A checkpoint folder whose weights are this file.
fn folder_with(weights: &str) -> TempDir {
    let folder = tempdir().expect("folder");
    std::fs::write(folder.path().join("config.json"), tiny::config_json(&tiny::config())).expect("written");
    std::fs::copy(fixture(weights), folder.path().join("pytorch_model.bin")).expect("copied");
    folder
}

#[test]
fn a_state_dict_is_read_in_every_type_transposed_views_included() {
    let expected = tiny::tensors(&tiny::config());
    for (file, element) in [
        ("state_dict_f32.bin", ElementType::F32),
        ("state_dict_bf16.bin", ElementType::Bf16),
        ("state_dict_f16.bin", ElementType::F16),
    ] {
        let folder = folder_with(file);
        let checkpoint = Checkpoint::open(folder.path()).expect(file);
        for (name, (shape, values)) in &expected {
            assert_eq!(&checkpoint.tensor(name, shape).expect(name), values, "{name} in {file}");
        }
        assert_eq!(checkpoint.embedding().expect("agrees"), expected["shared.weight"].1);
        assert!(checkpoint.output_is_tied());
        let open = TensorFile::open_torch(&fixture(file)).expect(file);
        assert_eq!(open.element_type("shared.weight").expect("there"), element);
    }
}

#[test]
fn the_hash_does_not_depend_on_the_file_format() {
    let folder = tempdir().expect("folder");
    tiny::write(folder.path(), &tiny::config(), &tiny::tensors(&tiny::config()), safetensors::Dtype::F32);
    let safetensors = Checkpoint::open(folder.path()).expect("opens");
    let folder = folder_with("state_dict_f32.bin");
    let torch = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(safetensors.sha256().expect("hash"), torch.sha256().expect("hash"));
}

#[test]
fn sharded_bin_files_are_read_through_their_index() {
    let folder = folder_with("state_dict_f32.bin");
    let shard = folder.path().join("pytorch_model-00001-of-00001.bin");
    std::fs::rename(folder.path().join("pytorch_model.bin"), &shard).expect("renamed");
    let map: serde_json::Map<String, serde_json::Value> = tiny::tensors(&tiny::config())
        .into_keys()
        .map(|name| (name, "pytorch_model-00001-of-00001.bin".into()))
        .collect();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(folder.path().join("pytorch_model.bin.index.json"), index).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(checkpoint.embedding().expect("there"), tiny::tensors(&tiny::config())["shared.weight"].1);
}

#[test]
fn a_bare_tensor_has_the_empty_name() {
    for name in ["bare.pt", "bare_protocol_4.pt", "parameter.pt"] {
        let file = TensorFile::open_torch(&fixture(name)).expect(name);
        assert_eq!(file.names().collect::<Vec<_>>(), [""], "{name}");
        assert_eq!(file.shape("").expect("there"), [5, 4]);
        assert_eq!(file.tensor("", &[5, 4]).expect("read"), values(2, &[5, 4]), "{name}");
    }
}

#[test]
fn a_view_is_gathered_from_its_storage() {
    let file = TensorFile::open_torch(&fixture("slice.pt")).expect("opens");
    let whole = values(3, &[6, 8]);
    let expected: Vec<f32> = (1..5)
        .flat_map(|row| (0..8).step_by(2).map(move |column| (row, column)))
        .map(|(r, c)| whole[r * 8 + c])
        .collect();
    assert_eq!(file.tensor("", &[4, 4]).expect("read"), expected);
}

#[test]
fn dictionaries_within_dictionaries_are_joined_by_dots() {
    // Beside the tensors lies an object that would run a command; it is stepped over.
    let file = TensorFile::open_torch(&fixture("nested.pt")).expect("opens");
    assert_eq!(file.names().collect::<Vec<_>>(), ["state_dict.prompt"]);
    assert_eq!(file.tensor("state_dict.prompt", &[5, 4]).expect("read"), values(2, &[5, 4]));
}

#[test]
fn other_objects_are_refused_by_name_and_never_executed() {
    for (file, named) in [("command.pt", "posix.system"), ("module.pt", "torch.nn.modules.linear.Linear")] {
        let error = TensorFile::open_torch(&fixture(file)).expect_err(file);
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    let error = TensorFile::open_torch(&fixture("script.pt")).expect_err("code");
    assert!(error.to_string().contains("TorchScript"), "{error}");
    let error = TensorFile::open_torch(&fixture("list.pt")).expect_err("a list");
    let error = error.to_string();
    assert!(error.contains("a dictionary of tensors by their names, found a list"), "{error}");
    assert!(error.contains("save the tensor itself") && !error.contains("damaged"), "{error}");
}

#[test]
fn a_view_that_repeats_its_storage_is_refused_before_it_grows() {
    let error = TensorFile::open_torch(&fixture("repeated.pt")).expect_err("4 bytes as a million elements");
    assert!(error.to_string().contains("[1000, 1000]"), "{error}");
}

#[test]
fn integers_open_but_are_no_weights() {
    let file = TensorFile::open_torch(&fixture("integers.pt")).expect("opens");
    let error = file.tensor("", &[6]).expect_err("integers").to_string();
    assert!(error.starts_with("the tensor: ") && error.contains("i64"), "{error}");
}

#[test]
fn a_file_from_before_1_6_names_its_conversion() {
    let folder = folder_with("before_1_6.bin");
    let error = Checkpoint::open(folder.path()).expect_err("legacy").to_string();
    assert!(error.contains("before 1.6"), "{error}");
    assert!(error.contains("torch.save(torch.load('pytorch_model.bin'"), "{error}");
}

#[test]
fn what_is_no_torch_file_is_said_to_be_what_it_is() {
    let path = Path::new("pytorch_model.bin");
    for (bytes, said) in [
        (&b""[..], "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\x05\x06", "a broken archive"),
        (b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "without data.pkl"),
        (b"\x80\x02}q\x00.", "6 other bytes"),
    ] {
        let error = TensorFile::torch_from_bytes(path, bytes.to_vec()).expect_err(said);
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn a_changed_pickle_fails_its_checksum() {
    let mut bytes = std::fs::read(fixture("bare.pt")).expect("read");
    let at = bytes.windows(12).position(|window| window == b"FloatStorage").expect("named in the pickle");
    bytes[at] = b'D';
    let error = TensorFile::torch_from_bytes(Path::new("bare.pt"), bytes).expect_err("changed");
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn the_shared_prompt_of_another_project_is_read() {
    let Some(folder) = shared("fixtures/foreign_prompts") else { return };
    let file = TensorFile::open_torch(&folder.join("attempt_record.pt")).expect("opens");
    let prompt = file.tensor("", &[100, 768]).expect("100 rows of T5 base");
    assert!(prompt.iter().all(|value| value.is_finite()) && prompt.iter().any(|&value| value != 0.0));
}
