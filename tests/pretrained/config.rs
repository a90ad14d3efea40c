//! `config.json`: what each family writes, what is filled in, what is refused.

use std::path::Path;

use promptmix::Error;
use promptmix::pretrained::{Activation, Checkpoint, ModelType, T5Config};

use crate::tiny_checkpoint as tiny;

fn read(json: &str) -> promptmix::Result<T5Config> {
    T5Config::from_json(Path::new("config.json"), json.as_bytes())
}

/// A v1.0 configuration with one key set to another value.
fn with(key: &str, value: serde_json::Value) -> String {
    let mut json: serde_json::Value =
        serde_json::from_str(&tiny::config_json(&tiny::config())).expect("own JSON");
    json[key] = value;
    json.to_string()
}

#[test]
fn a_short_config_takes_t5s_published_defaults() {
    let config = read(
        r#"{"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}"#,
    )
    .expect("enough");
    assert_eq!(config, T5Config::t5_small());
    assert_eq!(config.num_decoder_layers, 6);
    assert_eq!((config.pad_token_id, config.eos_token_id, config.decoder_start_token_id), (0, 1, 0));
    assert_eq!(config.activation, Activation::Relu);
    assert!(config.tie_word_embeddings);
}

#[test]
fn each_family_is_read_as_it_is_published() {
    let v1_1 = read(
        r#"{"architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 768,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
            "initializer_factor": 1.0, "is_encoder_decoder": true, "layer_norm_epsilon": 1e-06, "model_type": "t5",
            "num_decoder_layers": 12, "num_heads": 12, "num_layers": 12, "output_past": true, "pad_token_id": 0,
            "relative_attention_num_buckets": 32, "tie_word_embeddings": false, "vocab_size": 32128}"#,
    )
    .expect("v1.1");
    assert_eq!(v1_1, T5Config::t5_v1_1_base());
    let mt5 = read(
        r#"{"d_ff": 1024, "d_kv": 64, "d_model": 512, "feed_forward_proj": "gated-gelu", "model_type": "mt5",
            "num_heads": 6, "num_layers": 8, "tie_word_embeddings": false, "vocab_size": 250112}"#,
    )
    .expect("mT5");
    assert_eq!(mt5, T5Config::mt5_small());
    assert_eq!(mt5.model_type, ModelType::Mt5);
}

#[test]
fn presets_are_valid_and_of_their_published_size() {
    // Parameters, each tied embedding once, in millions: the model cards' rounded figures are 60, 220, 770, 77, 248, 783, 300.
    for (config, millions) in [
        (T5Config::t5_small(), 60.5),
        (T5Config::t5_base(), 222.9),
        (T5Config::t5_large(), 737.7),
        (T5Config::t5_v1_1_small(), 77.0),
        (T5Config::t5_v1_1_base(), 247.6),
        (T5Config::t5_v1_1_large(), 783.2),
        (T5Config::mt5_small(), 300.2),
    ] {
        config.validate().expect("a preset");
        let count: usize = config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert!((count as f64 / 1e6 - millions).abs() < 0.06, "{count} against {millions} million");
    }
}

#[test]
fn an_unknown_activation_or_model_type_is_named() {
    let error = read(&with("feed_forward_proj", "gated-swish".into())).expect_err("no such activation");
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(error.to_string().contains("gated-swish"), "{error}");
    let error = read(&with("model_type", "umt5".into())).expect_err("not a T5");
    assert!(error.to_string().contains("umt5"), "{error}");
    let silu = read(&with("feed_forward_proj", "gated-silu".into())).expect("works");
    assert_eq!(silu.activation, Activation::GatedSilu);
}

#[test]
fn a_config_that_cannot_be_is_refused_by_key() {
    let huge = serde_json::json!(1u64 << 40);
    for (key, value) in [
        ("d_model", 0.into()),
        ("d_kv", 0.into()),
        ("d_ff", 0.into()),
        ("num_heads", 0.into()),
        ("num_layers", 0.into()),
        ("num_decoder_layers", 0.into()),
        ("vocab_size", 0.into()),
        ("relative_attention_num_buckets", 0.into()),
        ("relative_attention_num_buckets", 3.into()),
        ("relative_attention_max_distance", 3.into()),
        ("dropout_rate", 1.0.into()),
        ("dropout_rate", (-0.1).into()),
        ("layer_norm_epsilon", 0.0.into()),
        ("eos_token_id", 24.into()),
        ("pad_token_id", 24.into()),
        ("decoder_start_token_id", 99.into()),
        ("num_layers", huge.clone()),
        ("num_decoder_layers", huge.clone()),
        ("d_model", u64::MAX.into()),
        ("d_kv", u64::MAX.into()),
        ("num_heads", u64::MAX.into()),
        ("relative_attention_num_buckets", u64::MAX.into()),
    ] {
        let error = read(&with(key, value)).expect_err(key);
        assert!(matches!(error, Error::Setting { .. }), "{key}: {error}");
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    // Each size alone is possible here, their product is not.
    let mut config = T5Config::t5_small();
    config.d_model = 1 << 31;
    config.d_ff = 1 << 31;
    config.validate().expect_err("2^62 parameters a matrix");
}

#[test]
fn a_malformed_config_is_an_error_with_its_line() {
    for json in
        ["", "[]", "{", "{\"d_model\": -5}", "{\"vocab_size\": \"many\"}", "\u{0}", "{\n\"d_model\": 4,\n!"]
    {
        let error = read(json).expect_err(json);
        assert!(matches!(error, Error::Format { line: Some(_), .. }), "{json}: {error}");
    }
    let error = read("{}").expect_err("nothing in it");
    assert!(error.to_string().contains("vocab_size"), "{error}");
}

/// `json` with these keys set, or taken out where they are null.
fn edited(keys: serde_json::Value) -> String {
    let mut json: serde_json::Value =
        serde_json::from_str(&tiny::config_json(&tiny::config())).expect("own JSON");
    let all = json.as_object_mut().expect("an object");
    for (key, value) in keys.as_object().expect("an object") {
        match value {
            serde_json::Value::Null => all.remove(key),
            value => all.insert(key.clone(), value.clone()),
        };
    }
    json.to_string()
}

#[test]
fn the_keys_about_the_output_mean_what_the_version_that_wrote_them_means() {
    let t5 = |tied: serde_json::Value, scaled: serde_json::Value| {
        edited(serde_json::json!({ "tie_word_embeddings": tied, "scale_decoder_outputs": scaled }))
    };
    let mt5 = |tied: serde_json::Value, version: serde_json::Value| {
        let keys = serde_json::json!({
            "model_type": "mt5", "tie_word_embeddings": tied, "transformers_version": version,
        });
        edited(keys)
    };
    let null = serde_json::Value::Null;
    for (json, scales) in [
        (t5(null.clone(), null.clone()), true),
        (t5(true.into(), null.clone()), true),
        (t5(false.into(), null.clone()), false),
        (t5(true.into(), false.into()), false),
        (t5(true.into(), true.into()), true),
        (t5(false.into(), true.into()), true),
        (mt5(null.clone(), null.clone()), false),
        (mt5(false.into(), null.clone()), false),
        (mt5(true.into(), null.clone()), true),
        (mt5(true.into(), "4.57.6".into()), true),
        (mt5(true.into(), "5.24.0".into()), false),
        (mt5(true.into(), "5.2.0.dev0".into()), false),
        (mt5(true.into(), "5".into()), false),
        (mt5(true.into(), "10.1".into()), false),
        (mt5(null.clone(), "4.57.6".into()), false),
        (mt5(false.into(), "4.57.6".into()), false),
    ] {
        assert_eq!(read(&json).expect("a configuration").scales_decoder_outputs(), scales, "{json}");
    }
}

#[test]
fn two_readings_of_a_config_are_a_warning() {
    let warnings = |keys: serde_json::Value| {
        let folder = tempfile::tempdir().expect("folder");
        let json = edited(keys);
        let config = T5Config::from_json(Path::new("config.json"), json.as_bytes()).expect("usable");
        tiny::write(folder.path(), &config, &tiny::tensors(&config), safetensors::Dtype::F32);
        std::fs::write(folder.path().join("config.json"), json).expect("written");
        Checkpoint::open(folder.path()).expect("opens").warnings().to_vec()
    };
    let gated = |version: &str, scaled: bool| {
        serde_json::json!({
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": true, "scale_decoder_outputs": scaled,
            "transformers_version": version,
        })
    };
    for version in ["5.0.0", "5.1.0", "5.1", "5.0.0.dev0", "5.0.0rc1"] {
        let found = warnings(gated(version, true));
        assert!(found.len() == 1 && found[0].contains("scale_decoder_outputs"), "{version}: {found:?}");
    }
    for version in ["5.2.0", "5.10.0", "5.24.0", "4.57.6"] {
        assert_eq!(warnings(gated(version, true)), [""; 0], "{version}");
    }
    assert_eq!(warnings(gated("5.1.0", false)), [""; 0]);
    let relu = serde_json::json!({ "scale_decoder_outputs": true, "transformers_version": "5.1.0" });
    assert_eq!(warnings(relu), [""; 0]);
    let mt5 = |version: serde_json::Value, tied: bool| serde_json::json!({ "model_type": "mt5", "tie_word_embeddings": tied, "transformers_version": version });
    let found = warnings(mt5(serde_json::Value::Null, true));
    assert!(found.len() == 1 && found[0].contains("transformers_version"), "{found:?}");
    assert_eq!(warnings(mt5("4.40.0".into(), true)), [""; 0]);
    assert_eq!(warnings(mt5("5.24.0".into(), true)), [""; 0]);
}

#[test]
fn a_value_of_another_kind_names_its_key() {
    let one = read(&with("eos_token_id", serde_json::json!([1]))).expect("a list of one id is that id");
    assert_eq!(one.eos_token_id, 1);
    for (key, value) in [
        ("eos_token_id", serde_json::json!([1, 2])),
        ("eos_token_id", serde_json::json!([])),
        ("eos_token_id", serde_json::json!("</s>")),
        ("pad_token_id", serde_json::json!([0])),
        ("d_model", serde_json::json!("512")),
        ("tie_word_embeddings", serde_json::json!("yes")),
        ("dropout_rate", serde_json::json!(vec![0.1; 40])),
        ("transformers_version", serde_json::json!(5)),
    ] {
        let error = read(&with(key, value)).expect_err(key);
        assert!(matches!(error, Error::Format { .. }), "{key}: {error}");
        let text = error.to_string();
        assert!(text.contains(&format!("{key} = ")) && text.len() < 300, "{key}: {text}");
    }
    let error = read(&with("model_type", "umt5".into())).expect_err("no T5").to_string();
    assert!(error.contains("position bias in every layer"), "{error}");
}
