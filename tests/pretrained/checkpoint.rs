//! The weights: every type and layout, what is missing, what conflicts, and files that lie.

use std::fs;
use std::path::Path;

use promptmix::Error;
use promptmix::pretrained::{Checkpoint, T5Config, Tokenizer};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::tempdir;

use crate::{shared, tiny_checkpoint as tiny};

#[test]
fn tensors_come_back_as_stored_in_every_type() {
    for config in [tiny::config(), tiny::gated_untied_config()] {
        let tensors = tiny::tensors(&config);
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64] {
            let folder = tempdir().expect("folder");
            tiny::write(folder.path(), &config, &tensors, dtype);
            let checkpoint = Checkpoint::open(folder.path()).expect("complete");
            assert_eq!(checkpoint.config().tensors(), config.tensors());
            assert_eq!(checkpoint.output_is_tied(), config.tie_word_embeddings);
            for (name, (shape, values)) in &tensors {
                assert!(checkpoint.contains(name));
                // Exact: the values were chosen to be representable in every type.
                assert_eq!(&checkpoint.tensor(name, shape).expect(name), values, "{name} as {dtype:?}");
                let mut into = vec![f32::NAN; values.len()];
                checkpoint.read_into(name, shape, &mut into).expect(name);
                assert_eq!(&into, values, "{name} as {dtype:?}");
            }
            assert_eq!(checkpoint.embedding().expect("shared"), tensors["shared.weight"].1);
        }
    }
}

#[test]
fn a_block_boundary_loses_nothing_in_sixteen_bits() {
    // Longer than the reader's block and no multiple of it.
    let mut config = tiny::config();
    config.vocab_size = 1291;
    let tensors = tiny::tensors(&config);
    let folder = tempdir().expect("folder");
    tiny::write(folder.path(), &config, &tensors, Dtype::F16);
    let checkpoint = Checkpoint::open(folder.path()).expect("complete");
    assert_eq!(checkpoint.embedding().expect("shared"), tensors["shared.weight"].1);
}

#[test]
fn a_tensor_longer_than_one_visit_is_whole_and_counts_its_indices_through() {
    // 3 MB in sixteen bits and 6 MB in thirty-two: each more than the two that are read at a time, and no multiple.
    let mut config = tiny::config();
    config.vocab_size = 190_001;
    let mut tensors = tiny::tensors(&config);
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64] {
        let folder = tempdir().expect("folder");
        tiny::write(folder.path(), &config, &tensors, dtype);
        let checkpoint = Checkpoint::open(folder.path()).expect("complete");
        assert!(checkpoint.embedding().expect("shared") == tensors["shared.weight"].1, "{dtype:?}");
    }
    tensors.get_mut("shared.weight").expect("there").1[1_500_001] = f32::NAN;
    let folder = tempdir().expect("folder");
    tiny::write(folder.path(), &config, &tensors, Dtype::F32);
    let error = Checkpoint::open(folder.path()).expect("opens").embedding().expect_err("not finite");
    assert!(error.to_string().contains("NaN at index 1500001 "), "{error}");
}

#[test]
fn the_wrong_shape_or_room_is_refused() {
    let folder = tempdir().expect("folder");
    tiny::write(folder.path(), &tiny::config(), &tiny::tensors(&tiny::config()), Dtype::F32);
    let checkpoint = Checkpoint::open(folder.path()).expect("complete");
    let error = checkpoint.tensor("shared.weight", &[8, 24]).expect_err("transposed");
    assert!(error.to_string().contains("[8, 24]") && error.to_string().contains("[24, 8]"), "{error}");
    checkpoint.read_into("shared.weight", &[24, 8], &mut [0.0; 191]).expect_err("one too few");
    checkpoint.tensor("shared.bias", &[24]).expect_err("no such tensor");
}

#[test]
fn missing_tensors_are_named_together_up_to_ten() {
    let config = tiny::config();
    let folder = tempdir().expect("folder");
    let mut tensors = tiny::tensors(&config);
    tensors.remove("encoder.final_layer_norm.weight");
    tensors.remove("decoder.block.0.layer.1.EncDecAttention.k.weight");
    tiny::write(folder.path(), &config, &tensors, Dtype::F32);
    let error = Checkpoint::open(folder.path()).expect_err("two short").to_string();
    assert!(error.contains("2 of them missing"), "{error}");
    assert!(error.contains("encoder.final_layer_norm.weight"), "{error}");
    assert!(error.contains("decoder.block.0.layer.1.EncDecAttention.k.weight"), "{error}");

    tensors.retain(|name, _| name == "shared.weight");
    tiny::write(folder.path(), &config, &tensors, Dtype::F32);
    let error = Checkpoint::open(folder.path()).expect_err("nearly all").to_string();
    assert_eq!(error.matches(".weight").count(), 10, "{error}");
    assert!(error.contains("and 23 more"), "{error}");
}

#[test]
fn the_embedding_is_found_under_each_of_its_names() {
    let config = tiny::config();
    let expected = tiny::tensors(&config)["shared.weight"].1.clone();
    for name in ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] {
        let folder = tempdir().expect("folder");
        let mut tensors = tiny::tensors(&config);
        let embedding = tensors.remove("shared.weight").expect("there");
        tensors.insert(name.to_owned(), embedding);
        tiny::write(folder.path(), &config, &tensors, Dtype::F32);
        let checkpoint = Checkpoint::open(folder.path()).expect(name);
        assert_eq!(checkpoint.embedding().expect(name), expected);
        let mut into = vec![0.0; expected.len()];
        checkpoint.embedding_into(&mut into).expect(name);
        assert_eq!(into, expected);
    }
}

#[test]
fn two_embeddings_that_differ_are_refused() {
    let config = tiny::config();
    let folder = tempdir().expect("folder");
    let mut tensors = tiny::tensors(&config);
    let mut other = tensors["shared.weight"].clone();
    tensors.insert("decoder.embed_tokens.weight".to_owned(), other.clone());
    tiny::write(folder.path(), &config, &tensors, Dtype::F32);
    Checkpoint::open(folder.path()).expect("equal copies").embedding().expect("equal copies");
    other.1[7] += 1.0;
    tensors.insert("decoder.embed_tokens.weight".to_owned(), other);
    tiny::write(folder.path(), &config, &tensors, Dtype::F32);
    let error = Checkpoint::open(folder.path()).expect("opens").embedding().expect_err("two embeddings");
    assert!(error.to_string().contains("decoder.embed_tokens.weight"), "{error}");
}

#[test]
fn the_output_matrix_is_the_stored_one_or_else_the_embedding() {
    let write = |config: &T5Config, tensors: &tiny::Tensors, dtype| {
        let folder = tempdir().expect("folder");
        tiny::write(folder.path(), config, tensors, dtype);
        // What is mapped stays when the folder goes.
        Checkpoint::open(folder.path()).expect("opens")
    };
    let tied = tiny::config();
    let mut tensors = tiny::tensors(&tied);

    // Tied by the key, and a copy of the embedding is stored: nothing new.
    let alone = write(&tied, &tensors, Dtype::BF16);
    let mut head = tensors["shared.weight"].clone();
    tensors.insert("lm_head.weight".to_owned(), head.clone());
    let copied = write(&tied, &tensors, Dtype::BF16);
    for checkpoint in [&alone, &copied] {
        assert!(checkpoint.output_is_tied() && checkpoint.config().scales_decoder_outputs());
        assert_eq!(checkpoint.sha256().expect("hash"), alone.sha256().expect("hash"));
    }
    let mut untied_key = tiny::config();
    untied_key.tie_word_embeddings = false;
    let untied = write(&untied_key, &tensors, Dtype::F32);
    assert!(untied.output_is_tied() && !untied.config().scales_decoder_outputs());

    // Tied by the key, and another matrix is stored: that one, scaled as the key says.
    head.1[0] += 1.0;
    tensors.insert("lm_head.weight".to_owned(), head);
    let differs = write(&tied, &tensors, Dtype::BF16);
    assert!(!differs.output_is_tied() && differs.config().scales_decoder_outputs());
    assert_ne!(differs.sha256().expect("hash"), alone.sha256().expect("hash"));
    assert!(differs.warnings().is_empty());

    // Untied by the key, and nothing is stored: the embedding, unscaled, and a word about it.
    tensors.remove("lm_head.weight");
    let absent = write(&untied_key, &tensors, Dtype::F32);
    assert!(absent.output_is_tied() && !absent.config().scales_decoder_outputs());
    assert_eq!(absent.sha256().expect("hash"), untied.sha256().expect("hash"));
    let [warning] = absent.warnings() else { panic!("one warning: {:?}", absent.warnings()) };
    assert!(warning.contains("lm_head.weight") && warning.contains("tie_word_embeddings"), "{warning}");

    // A stored matrix of another shape is none.
    let folder = tempdir().expect("folder");
    tensors.insert("lm_head.weight".to_owned(), (vec![24, 7], vec![0.5; 24 * 7]));
    tiny::write(folder.path(), &tied, &tensors, Dtype::F32);
    let error = Checkpoint::open(folder.path()).expect_err("seven columns").to_string();
    assert!(error.contains("lm_head.weight") && error.contains("[24, 7]"), "{error}");
}

#[test]
fn a_value_that_is_not_finite_is_named_with_its_index() {
    let config = tiny::config();
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64] {
            let folder = tempdir().expect("folder");
            let mut tensors = tiny::tensors(&config);
            let name = "encoder.block.1.layer.1.DenseReluDense.wo.weight";
            let values = &mut tensors.get_mut(name).expect("there").1;
            values[37] = bad;
            values[55] = bad;
            tiny::write(folder.path(), &config, &tensors, dtype);
            let checkpoint = Checkpoint::open(folder.path()).expect("opens");
            let error = checkpoint.tensor(name, &[8, 10]).expect_err("not finite").to_string();
            assert!(error.contains(name) && error.contains(&format!("{shown} at index 37 ")), "{error}");
        }
    }
}

#[test]
fn another_element_type_is_refused_at_opening() {
    let config = tiny::config();
    let folder = tempdir().expect("folder");
    tiny::write(folder.path(), &config, &tiny::tensors(&config), Dtype::I32);
    let error = Checkpoint::open(folder.path()).expect_err("i32").to_string();
    assert!(error.contains("i32") && error.contains("bf16"), "{error}");
}

/// The checkpoint of [`tiny::config`], each tensor stored as `stored` says.
fn write_stored(folder: &Path, stored: impl Fn(&str, &[usize], &[f32]) -> (Dtype, Vec<usize>, Vec<u8>)) {
    let config = tiny::config();
    let tensors = tiny::tensors(&config);
    let stored: Vec<_> =
        tensors.iter().map(|(name, (shape, values))| (name, stored(name, shape, values))).collect();
    let views = stored.iter().map(|(name, (dtype, shape, bytes))| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("a view"))
    });
    fs::write(folder.join("config.json"), tiny::config_json(&config)).expect("config");
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).expect("bytes"))
        .expect("weights");
}

#[test]
fn quantized_weights_are_said_to_need_their_scales() {
    let folder = tempdir().expect("folder");
    let name = "encoder.block.0.layer.0.SelfAttention.q.weight";
    for (dtype, halved) in [(Dtype::I8, false), (Dtype::U8, true), (Dtype::F8_E4M3, false)] {
        write_stored(folder.path(), |tensor, shape, values| {
            if tensor != name {
                return (Dtype::F32, shape.to_vec(), tiny::encode(values, Dtype::F32));
            }
            // Two numbers of four bits in a byte have another shape.
            let shape = if halved { vec![values.len() / 2, 1] } else { shape.to_vec() };
            (dtype, shape.clone(), vec![1; shape.iter().product()])
        });
        let error = Checkpoint::open(folder.path()).expect_err("quantized").to_string();
        assert!(error.contains(name) && error.contains("dequantize()"), "{error}");
        assert!(!error.contains("convert the tensor"), "{error}");
        let mut json: serde_json::Value =
            serde_json::from_str(&tiny::config_json(&tiny::config())).expect("JSON");
        json["quantization_config"] = serde_json::json!({ "quant_method": "bitsandbytes" });
        fs::write(folder.path().join("config.json"), json.to_string()).expect("config");
        let error = Checkpoint::open(folder.path()).expect_err("quantized").to_string();
        assert!(error.contains("bitsandbytes quantized") && error.contains("dequantize()"), "{error}");
    }
}

#[test]
fn tensors_that_the_model_has_no_place_for_are_counted_and_the_first_are_named() {
    let config = tiny::config();
    let folder = tempdir().expect("folder");
    let mut tensors = tiny::tensors(&config);
    let shared = tensors["shared.weight"].clone();
    for known in ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"] {
        tensors.insert(known.into(), shared.clone());
    }
    let bias = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
    tensors.insert(bias.into(), (vec![6, 5], vec![1.0; 30]));
    tiny::write(folder.path(), &config, &tensors, Dtype::F32);
    let as_published = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(as_published.warnings(), [""; 0]);
    let hash = as_published.sha256().expect("a hash").to_owned();
    drop(as_published);

    tensors.insert("encoder.block.0.layer.0.SelfAttention.q.bias".into(), (vec![15], vec![1.0; 15]));
    for part in ["q", "k", "v", "o"] {
        let name = format!("encoder.block.2.layer.0.SelfAttention.{part}.weight");
        tensors.insert(name, (vec![2], vec![1.0; 2]));
    }
    tiny::write(folder.path(), &config, &tensors, Dtype::F32);
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let [warning] = checkpoint.warnings() else { panic!("one: {:?}", checkpoint.warnings()) };
    for part in ["model.safetensors: 5 of its tensors", "SelfAttention.q.bias", "block.2", "and 1 more"] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
    assert_eq!(checkpoint.sha256().expect("a hash"), hash);
}

/// The same tensors in two files and an index.
fn write_shards(folder: &Path, config: &T5Config, tensors: &tiny::Tensors) -> serde_json::Value {
    let (mut first, mut second) = (tiny::Tensors::new(), tiny::Tensors::new());
    let mut map = serde_json::Map::new();
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        let (file, shard) = if number % 3 == 0 {
            ("model-00001-of-00002.safetensors", &mut first)
        } else {
            ("model-00002-of-00002.safetensors", &mut second)
        };
        shard.insert(name.clone(), tensor.clone());
        map.insert(name.clone(), file.into());
    }
    fs::write(folder.join("config.json"), tiny::config_json(config)).expect("written");
    for (file, shard) in
        [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)]
    {
        fs::write(folder.join(file), tiny::safetensors_bytes(&shard, Dtype::F32)).expect("written");
    }
    let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("written");
    index
}

#[test]
fn shards_hold_the_same_model_and_hash() {
    let config = tiny::gated_untied_config();
    let tensors = tiny::tensors(&config);
    let (whole, sharded) = (tempdir().expect("folder"), tempdir().expect("folder"));
    tiny::write(whole.path(), &config, &tensors, Dtype::F32);
    write_shards(sharded.path(), &config, &tensors);
    let whole = Checkpoint::open(whole.path()).expect("whole");
    let sharded = Checkpoint::open(sharded.path()).expect("sharded");
    for (name, (shape, values)) in &tensors {
        assert_eq!(&sharded.tensor(name, shape).expect(name), values);
    }
    assert_eq!(whole.sha256().expect("hash"), sharded.sha256().expect("hash"));
}

#[test]
fn a_prefix_of_all_names_is_named_and_read_past() {
    let config = tiny::gated_untied_config();
    let tensors = tiny::tensors(&config);
    let folder = tempdir().expect("folder");
    tiny::write(folder.path(), &config, &tensors, Dtype::F32);
    let plain = Checkpoint::open(folder.path()).expect("complete");
    for prefix in ["model.", "module.", "_orig_mod.", "module._orig_mod.", "model.transformer."] {
        let named: tiny::Tensors =
            tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect();
        let (whole, sharded) = (tempdir().expect("folder"), tempdir().expect("folder"));
        tiny::write(whole.path(), &config, &named, Dtype::F32);
        write_shards(sharded.path(), &config, &named);
        for folder in [whole, sharded] {
            let checkpoint = Checkpoint::open(folder.path()).expect(prefix);
            assert_eq!(checkpoint.sha256().expect("hash"), plain.sha256().expect("hash"));
            assert_eq!(checkpoint.embedding().expect("there"), tensors["shared.weight"].1);
            let [warning] = checkpoint.warnings() else { panic!("one: {:?}", checkpoint.warnings()) };
            assert!(warning.contains(&format!("`{prefix}`")), "{warning}");
        }
    }
    // Two models in one file: neither is meant more than the other.
    let both: tiny::Tensors = tensors
        .iter()
        .flat_map(|(name, tensor)| ["a.", "b."].map(|prefix| (format!("{prefix}{name}"), tensor.clone())))
        .collect();
    tiny::write(folder.path(), &config, &both, Dtype::F32);
    let error = Checkpoint::open(folder.path()).expect_err("two models").to_string();
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn a_pointer_of_git_lfs_is_named_whatever_file_it_stands_for() {
    let config = tiny::config();
    for name in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tokenizer.json",
        "spiece.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ] {
        let folder = tempdir().expect("folder");
        fs::write(folder.path().join("config.json"), tiny::config_json(&config)).expect("written");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n";
        fs::write(folder.path().join(name), pointer).expect("written");
        let of_tokenizer = name.contains("token") || name.starts_with("spiece");
        let error = if of_tokenizer {
            Tokenizer::open(folder.path(), &config).expect_err(name).to_string()
        } else {
            Checkpoint::open(folder.path()).expect_err(name).to_string()
        };
        assert!(error.contains(name) && error.contains("Git LFS"), "{name}: {error}");
        assert!(error.contains("git lfs pull"), "{name}: {error}");
    }
}

#[test]
fn a_broken_index_is_an_error() {
    let config = tiny::config();
    let folder = tempdir().expect("folder");
    let good = write_shards(folder.path(), &config, &tiny::tensors(&config));
    Checkpoint::open(folder.path()).expect("good");
    let write = |index: &serde_json::Value| {
        fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).expect("written")
    };
    for name in ["../elsewhere.safetensors", "/etc/hostname", "", "..", "a/b.safetensors"] {
        let mut index = good.clone();
        index["weight_map"]["shared.weight"] = name.into();
        write(&index);
        let error = Checkpoint::open(folder.path()).expect_err(name);
        assert!(matches!(error, Error::Format { .. }), "{name}: {error}");
    }
    let mut index = good.clone();
    index["weight_map"]["shared.weight"] = "model-00003-of-00003.safetensors".into();
    write(&index);
    let error = Checkpoint::open(folder.path()).expect_err("a shard is absent");
    assert!(error.to_string().contains("model-00003-of-00003"), "{error}");
    let mut index = good.clone();
    index["weight_map"]["no.such.tensor"] = "model-00001-of-00002.safetensors".into();
    write(&index);
    let error = Checkpoint::open(folder.path()).expect_err("the shard lacks it");
    assert!(error.to_string().contains("no.such.tensor"), "{error}");
    write(&serde_json::json!([1, 2]));
    Checkpoint::open(folder.path()).expect_err("no index at all");
}

#[test]
fn the_hash_depends_on_names_shapes_and_values() {
    let config = tiny::config();
    let tensors = tiny::tensors(&config);
    let hash = |tensors: &tiny::Tensors| {
        let folder = tempdir().expect("folder");
        tiny::write(folder.path(), &config, tensors, Dtype::F32);
        Checkpoint::open(folder.path()).expect("complete").sha256().expect("hash").to_owned()
    };
    let base = hash(&tensors);
    assert_eq!(base.len(), 64);
    assert!(base.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(base, hash(&tensors));
    let mut changed = tensors.clone();
    changed.get_mut("encoder.final_layer_norm.weight").expect("there").1[3] += 0.25;
    assert_ne!(base, hash(&changed));
    let mut swapped = tensors.clone();
    let q = swapped["encoder.block.0.layer.0.SelfAttention.q.weight"].clone();
    let k = swapped.insert("encoder.block.0.layer.0.SelfAttention.k.weight".to_owned(), q).expect("there");
    swapped.insert("encoder.block.0.layer.0.SelfAttention.q.weight".to_owned(), k);
    assert_ne!(base, hash(&swapped));
    // A tensor that is no part of the model, and a second copy of the embedding, change nothing.
    let mut more = tensors.clone();
    more.insert("decoder.extra".to_owned(), (vec![2], vec![1.0, 2.0]));
    more.insert("encoder.embed_tokens.weight".to_owned(), tensors["shared.weight"].clone());
    assert_eq!(base, hash(&more));
}

#[test]
fn a_folder_without_weights_or_config_says_what_was_looked_for() {
    let folder = tempdir().expect("folder");
    let error = Checkpoint::open(&folder.path().join("absent")).expect_err("no folder");
    assert!(error.to_string().contains("not a folder"), "{error}");
    let error = Checkpoint::open(folder.path()).expect_err("empty");
    assert!(error.to_string().contains("config.json"), "{error}");
    fs::write(folder.path().join("config.json"), tiny::config_json(&tiny::config())).expect("written");
    let error = Checkpoint::open(folder.path()).expect_err("no weights").to_string();
    for name in ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"] {
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn headers_that_lie_are_errors() {
    let config = tiny::config();
    let folder = tempdir().expect("folder");
    tiny::write(folder.path(), &config, &tiny::tensors(&config), Dtype::F32);
    let file = folder.path().join("model.safetensors");
    let good = fs::read(&file).expect("read");
    let header = |json: &str, data: usize| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let mut longest = good.clone();
    longest[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut shorter = good.clone();
    shorter[..8].copy_from_slice(&3u64.to_le_bytes());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("seven bytes", good[..7].to_vec()),
        ("only the length", good[..8].to_vec()),
        ("cut in the header", good[..40].to_vec()),
        ("one byte short", good[..good.len() - 1].to_vec()),
        ("one byte long", [good.clone(), vec![0]].concat()),
        ("header length of 2^64 - 1", longest),
        ("header length of 3", shorter),
        ("offsets reversed", header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4)),
        ("shape against length", header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4)),
        ("shape whose product overflows", {
            header(
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#,
                4,
            )
        }),
        ("offsets of 2^64 - 1", {
            header(
                r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#,
                4,
            )
        }),
        // Each length is possible, and their sum plus the header wraps around to the length of the file.
        ("offsets that wrap", {
            let entry = |name: &str, number: u64| {
                let (from, to) = (number << 60, (number + 1) << 60);
                format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{from},{to}]}}"#, 1u64 << 60)
            };
            let entries: Vec<String> =
                (0..15).map(|number| entry(&format!("tensor{number}"), number)).collect();
            header(&format!("{{{}}}", entries.join(",")), 4)
        }),
        ("a gap", header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8)),
        ("negative shape", header(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4)),
        ("unknown type", header(r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, 4)),
        ("not JSON", header("{{{{", 0)),
        ("nested without end", header(&"[".repeat(100_000), 0)),
        ("not UTF-8", [vec![2, 0, 0, 0, 0, 0, 0, 0], vec![0xff, 0xfe]].concat()),
    ];
    for (what, bytes) in cases {
        fs::write(&file, bytes).expect("written");
        let error = Checkpoint::open(folder.path()).expect_err(what);
        assert!(matches!(error, Error::Format { .. }), "{what}: {error}");
        assert!(error.to_string().contains("model.safetensors"), "{what}: {error}");
    }
}

#[test]
fn the_shared_fixtures_open_and_agree_with_their_configs() {
    let Some(fixtures) = shared("fixtures") else { return };
    let mut opened = 0;
    for entry in fs::read_dir(fixtures).expect("listed") {
        let folder = entry.expect("entry").path();
        if !folder.join("model.safetensors").exists() {
            continue;
        }
        let checkpoint = Checkpoint::open(&folder).expect("a fixture");
        assert_eq!(
            checkpoint.output_is_tied(),
            !checkpoint.contains("lm_head.weight"),
            "{}",
            folder.display()
        );
        for (name, shape) in checkpoint.config().tensors() {
            let values = checkpoint.tensor(&name, &shape).expect("a tensor");
            assert!(values.iter().any(|&value| value != 0.0), "{name} is all zero");
        }
        opened += 1;
    }
    assert!(opened >= 8, "only {opened} fixtures were found");
}
