//! Files that were damaged or made to do damage: every reader answers with an error or with something whole, at once and
//! without a memory that the file alone claims.

use std::path::Path;
use std::time::{Duration, Instant};

use promptmix::pretrained::{Checkpoint, T5Config, TensorFile};
use proptest::prelude::*;
use safetensors::Dtype;
use tempfile::tempdir;

use crate::tiny_checkpoint as tiny;

/// A zip archive of plainly stored members under `archive/`, as `torch.save` lays them out.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let name = format!("archive/{name}");
        let offset = file.len() as u32;
        let mut about = Vec::new();
        about.extend_from_slice(&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        about.extend_from_slice(&rawzip::crc32(data).to_le_bytes());
        about.extend_from_slice(&(data.len() as u32).to_le_bytes());
        about.extend_from_slice(&(data.len() as u32).to_le_bytes());
        about.extend_from_slice(&(name.len() as u16).to_le_bytes());
        about.extend_from_slice(&[0, 0]);
        file.extend_from_slice(b"PK\x03\x04");
        file.extend_from_slice(&about);
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(data);
        directory.extend_from_slice(b"PK\x01\x02\x14\0");
        directory.extend_from_slice(&about);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (start, length, count) = (file.len() as u32, directory.len() as u32, members.len() as u16);
    file.extend_from_slice(&directory);
    file.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    file.extend_from_slice(&count.to_le_bytes());
    file.extend_from_slice(&count.to_le_bytes());
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(&start.to_le_bytes());
    file.extend_from_slice(&[0, 0]);
    file
}

/// Opens a pickle beside one storage, `0`, of 64 bytes, and reads every tensor in it.
fn open_pickle(pickle: &[u8]) -> promptmix::Result<usize> {
    open_torch(archive(&[("data.pkl", pickle), ("data/0", &[0; 64])]))
}

fn open_torch(bytes: Vec<u8>) -> promptmix::Result<usize> {
    let size = bytes.len();
    let file = TensorFile::torch_from_bytes(Path::new("given.bin"), bytes)?;
    let mut read = 0;
    for name in file.names() {
        let shape = file.shape(name)?.to_vec();
        if let Ok(values) = file.tensor(name, &shape) {
            // The narrowest element has two bytes, so nothing can be longer than half the file.
            assert!(values.len() <= size / 2, "{} elements from {size} bytes", values.len());
            assert!(values.iter().all(|value| value.is_finite()));
            read += 1;
        }
    }
    Ok(read)
}

/// The pickle of a bare f32 tensor over storage `0`, with these sizes as 64-bit numbers.
fn tensor_pickle(elements: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let mut pickle = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu".to_vec();
    let long = |pickle: &mut Vec<u8>, value: i64| {
        pickle.extend_from_slice(&[0x8a, 8]);
        pickle.extend_from_slice(&value.to_le_bytes());
    };
    long(&mut pickle, elements);
    pickle.extend_from_slice(b"tQ");
    long(&mut pickle, offset);
    for numbers in [shape, strides] {
        pickle.push(b'(');
        numbers.iter().for_each(|&number| long(&mut pickle, number));
        pickle.push(b't');
    }
    pickle.extend_from_slice(b"\x89NtR.");
    pickle
}

fn in_moments<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    assert!(start.elapsed() < Duration::from_secs(20), "{what} took {:?}", start.elapsed());
    result
}

#[test]
fn the_archives_made_here_are_read_when_they_are_good() {
    assert_eq!(open_pickle(&tensor_pickle(16, 0, &[4, 4], &[4, 1])).expect("a tensor"), 1);
    assert_eq!(open_pickle(&tensor_pickle(16, 1, &[3, 5], &[1, 3])).expect("transposed"), 1);
    assert_eq!(open_pickle(&tensor_pickle(16, 0, &[], &[])).expect("a scalar"), 1);
    assert_eq!(open_pickle(&tensor_pickle(16, 0, &[0, 1 << 40], &[1, 1])).expect("empty"), 1);
}

#[test]
fn tensors_that_reach_outside_their_storage_are_refused() {
    for (elements, offset, shape, strides) in [
        (17, 0, &[4, 4][..], &[4, 1][..]),
        (-1, 0, &[4, 4], &[4, 1]),
        (i64::MAX, 0, &[4, 4], &[4, 1]),
        (16, 1, &[4, 4], &[4, 1]),
        (16, -1, &[4, 4], &[4, 1]),
        (16, i64::MAX, &[4, 4], &[4, 1]),
        (16, 0, &[4, 5], &[5, 1]),
        (16, 0, &[4, 4], &[5, 1]),
        (16, 0, &[-4, -4], &[4, 1]),
        (16, 0, &[4, 4], &[-4, 1]),
        (16, 0, &[4, 4], &[4]),
        (16, 0, &[1 << 32, 1 << 32], &[0, 0]),
        (16, 0, &[i64::MAX, 2], &[1, 1]),
        (16, 0, &[4, 4], &[i64::MAX, i64::MAX]),
        (16, 0, &[1 << 20, 1], &[0, 0]),
        (16, 0, &[1; 17], &[1; 17]),
    ] {
        let pickle = tensor_pickle(elements, offset, shape, strides);
        open_pickle(&pickle)
            .expect_err(&format!("{elements} elements from {offset}: {shape:?} by {strides:?}"));
    }
}

#[test]
fn pickles_made_to_exhaust_are_refused_in_moments() {
    let repeated = |unit: &[u8], times: usize, end: &[u8]| [unit.repeat(times).as_slice(), end].concat();
    // Each level is a dictionary that holds the one below it ten times.
    let mut laughs = b"}q\0".to_vec();
    for level in 0..40u8 {
        laughs.push(b'}');
        for key in 0..10u8 {
            laughs.extend_from_slice(&[0x8c, 1, b'a' + key, b'h', level, b's']);
        }
        laughs.extend_from_slice(&[b'q', level + 1]);
    }
    laughs.push(b'.');
    // A dictionary that holds itself.
    let own = b"}q\0\x8c\x01ah\0s.";
    // A long name, used as the prefix of many.
    let mut long = b"}q\0X\0\0\x10\0".to_vec();
    long.extend(std::iter::repeat_n(b'n', 1 << 20));
    long.extend_from_slice(b"q\x01h\0s.");
    for (what, pickle) in [
        ("no end", Vec::new()),
        ("marks", repeated(b"(", 1 << 20, b".")),
        ("nested lists", repeated(b"]", 1 << 20, &repeated(b"a", 1 << 20, b"."))),
        ("nested tuples", [&b")"[..], &repeated(b"\x85", 1 << 18, b".")].concat()),
        ("copies", [&b"N"[..], &repeated(b"2", 8 << 20, b".")].concat()),
        ("too many objects", repeated(b"N", 1 << 20, b".")),
        ("too long", repeated(b"N0", 9 << 20, b".")),
        ("laughs", laughs),
        ("a dictionary in itself", own.to_vec()),
        ("a long name", long),
        ("a string of 4 GiB", b"X\xff\xff\xff\xffa.".to_vec()),
        ("a string of 2^64 bytes", b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.".to_vec()),
        ("a number of 4 GiB", b"\x8b\xff\xff\xff\xff.".to_vec()),
        ("nothing on the stack", b".".to_vec()),
        ("what is below a mark", b"N(.".to_vec()),
        ("a mark taken twice", b"(tt.".to_vec()),
        ("a mark above the stack", b"N(0t.".to_vec()),
        ("an unknown memory", b"h\x07.".to_vec()),
        ("a call of a number", b"K\x01)R.".to_vec()),
        ("items of a number", b"K\x01NNs.".to_vec()),
        ("text instructions", b"I42\n.".to_vec()),
    ] {
        in_moments(what, || open_pickle(&pickle).expect_err(what));
    }
}

#[test]
fn a_bin_file_cut_anywhere_is_an_error() {
    let whole = archive(&[("data.pkl", &tensor_pickle(16, 0, &[4, 4], &[4, 1])), ("data/0", &[0; 64])]);
    open_torch(whole.clone()).expect("whole");
    for cut in 0..whole.len() {
        open_torch(whole[..cut].to_vec()).expect_err("cut");
    }
}

#[test]
fn archives_that_lie_are_errors() {
    let pickle = tensor_pickle(16, 0, &[4, 4], &[4, 1]);
    open_torch(archive(&[("data.pkl", &pickle)])).expect_err("no storage");
    open_torch(archive(&[("data.pkl", &pickle), ("data/0", &[0; 63])])).expect_err("a short storage");
    open_torch(archive(&[("data/0", &[0; 64])])).expect_err("no pickle");
    open_torch(archive(&[("data.pkl", &pickle), ("data/0", &[0; 64]), ("byteorder", b"big")]))
        .expect_err("big-endian");
    open_torch(archive(&[("data.pkl", &pickle), ("data/0", &[0; 64]), ("byteorder", b"little\n")]))
        .expect("little");
    let good = archive(&[("data.pkl", &pickle), ("data/0", &[0; 64])]);
    // The directory's own numbers: every byte of it, set to extremes.
    for at in good.len() - 200..good.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let _ = open_torch(bytes);
        }
    }
}

#[test]
fn a_checkpoint_cut_anywhere_is_an_error() {
    let config = tiny::config();
    let whole = tiny::safetensors_bytes(&tiny::tensors(&config), Dtype::BF16);
    let open = |bytes: Vec<u8>| TensorFile::safetensors_from_bytes(Path::new("model.safetensors"), bytes);
    open(whole.clone()).expect("whole");
    for cut in 0..whole.len() {
        open(whole[..cut].to_vec()).expect_err("cut");
    }
}

/// Sets a few bytes of `bytes`.
fn damage(bytes: &mut [u8], flips: &[(prop::sample::Index, u8)]) {
    for (at, value) in flips {
        bytes[at.index(bytes.len())] = *value;
    }
}

fn flips() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_bin_file_is_an_error_or_whole(flips in flips()) {
        let mut bytes = include_bytes!("../fixtures/torch/nested.pt").to_vec();
        damage(&mut bytes, &flips);
        let _ = open_torch(bytes);
    }

    #[test]
    fn a_damaged_pickle_under_a_good_checksum_is_an_error_or_whole(flips in flips()) {
        let mut pickle = tensor_pickle(16, 0, &[4, 4], &[4, 1]);
        damage(&mut pickle, &flips);
        let _ = open_pickle(&pickle);
    }

    #[test]
    fn any_instructions_are_an_error_or_whole(
        pickle in prop::collection::vec(
            prop::sample::select(b"\x80\x02(.012NKMJ\x8a\x8bGX\x8c\x8dBTCU)\x85\x86\x87t]lae}suqr\x94hjc\x93R\x81\x92bQ\x88\n\0\x01".to_vec()),
            0..80)
    ) {
        let _ = open_pickle(&pickle);
    }

    #[test]
    fn any_sizes_of_a_tensor_are_an_error_or_whole(
        elements in prop_oneof![-2i64..20, any::<i64>()],
        offset in prop_oneof![-2i64..20, any::<i64>()],
        shape in prop::collection::vec(prop_oneof![-1i64..6, any::<i64>()], 0..4),
        strides in prop::collection::vec(prop_oneof![-1i64..6, any::<i64>()], 0..4),
    ) {
        let _ = open_pickle(&tensor_pickle(elements, offset, &shape, &strides));
    }

    #[test]
    fn a_damaged_safetensors_file_is_an_error_or_whole(flips in flips()) {
        let tensors: tiny::Tensors =
            [("a".to_owned(), (vec![3, 2], vec![1.0; 6])), ("b".to_owned(), (vec![4], vec![2.0; 4]))].into();
        let mut bytes = tiny::safetensors_bytes(&tensors, Dtype::F16);
        damage(&mut bytes, &flips);
        if let Ok(file) = TensorFile::safetensors_from_bytes(Path::new("model.safetensors"), bytes) {
            for name in file.names() {
                let shape = file.shape(name).expect("listed").to_vec();
                if let Ok(values) = file.tensor(name, &shape) {
                    prop_assert!(values.len() <= 64 && values.iter().all(|value| value.is_finite()));
                }
            }
        }
    }

    #[test]
    fn any_config_is_an_error_or_has_addressable_tensors(
        sizes in prop::collection::vec(prop_oneof![0u64..40, any::<u64>()], 9), drop_rate in -0.5f64..1.5
    ) {
        let json = serde_json::json!({
            "vocab_size": sizes[0], "d_model": sizes[1], "d_kv": sizes[2], "d_ff": sizes[3], "num_layers": sizes[4],
            "num_decoder_layers": sizes[5], "num_heads": sizes[6], "relative_attention_num_buckets": sizes[7],
            "relative_attention_max_distance": sizes[8], "dropout_rate": drop_rate,
        });
        if let Ok(config) = T5Config::from_json(Path::new("config.json"), json.to_string().as_bytes()) {
            let elements = config.tensors().iter().try_fold(0usize, |sum, (_, shape)| {
                shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).and_then(|n| sum.checked_add(n))
            });
            prop_assert!(elements.and_then(|elements| elements.checked_mul(4)).is_some());
        }
    }

    #[test]
    fn a_damaged_config_is_an_error_or_valid(flips in flips(), cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
        let mut bytes = tiny::config_json(&tiny::config()).into_bytes();
        damage(&mut bytes, &flips);
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(config) = T5Config::from_json(Path::new("config.json"), &bytes) {
            config.validate().expect("what is read is valid");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_index_is_an_error_or_whole(flips in flips(), cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
        let config = tiny::config();
        let tensors = tiny::tensors(&config);
        let folder = tempdir().expect("folder");
        let map: serde_json::Map<String, serde_json::Value> =
            tensors.keys().map(|name| (name.clone(), "m.safetensors".into())).collect();
        let mut index = serde_json::json!({ "weight_map": map }).to_string().into_bytes();
        damage(&mut index, &flips);
        if !whole {
            index.truncate(cut.index(index.len()));
        }
        std::fs::write(folder.path().join("config.json"), tiny::config_json(&config)).expect("written");
        std::fs::write(folder.path().join("m.safetensors"), tiny::safetensors_bytes(&tensors, Dtype::F32)).expect("written");
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).expect("written");
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            for (name, shape) in config.tensors() {
                checkpoint.tensor(&name, &shape).expect("an opened checkpoint is complete");
            }
        }
    }
}
