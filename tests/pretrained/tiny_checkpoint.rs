//! Small T5 checkpoints with known numbers, written where a test asks for them.

use std::collections::BTreeMap;
use std::path::Path;

use promptmix::pretrained::{Activation, T5Config};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Every size differs from every other, so that no two can be confused.
pub fn config() -> T5Config {
    let mut config = T5Config::new(24, 8, 3, 10, 2, 5);
    config.num_decoder_layers = 1;
    config.relative_attention_num_buckets = 6;
    config.relative_attention_max_distance = 20;
    config
}

pub fn gated_untied_config() -> T5Config {
    let mut config = config();
    config.activation = Activation::GatedGelu;
    config.tie_word_embeddings = false;
    config
}

/// Values that f32, bf16 and f16 all hold exactly, no two neighbours alike.
pub fn value(tensor: usize, index: usize) -> f32 {
    ((tensor * 31 + index * 7) % 255) as f32 / 64.0 - 2.0
}

pub fn tensors(config: &T5Config) -> Tensors {
    let named = config.tensors().into_iter().enumerate();
    named
        .map(|(number, (name, shape))| {
            let length = shape.iter().product();
            (name, (shape, (0..length).map(|index| value(number, index)).collect()))
        })
        .collect()
}

pub fn config_json(config: &T5Config) -> String {
    serde_json::json!({
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "feed_forward_proj": config.activation.feed_forward_proj(),
        "tie_word_embeddings": config.tie_word_embeddings,
    })
    .to_string()
}

pub fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

pub fn safetensors_bytes(tensors: &Tensors, dtype: Dtype) -> Vec<u8> {
    let stored: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(name, (shape, values))| (name, shape, encode(values, dtype))).collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(dtype, (*shape).clone(), bytes).expect("a view"))
    });
    safetensors::serialize(views, None).expect("serialised")
}

/// `config.json` and `model.safetensors` of `tensors` in `folder`.
pub fn write(folder: &Path, config: &T5Config, tensors: &Tensors, dtype: Dtype) {
    std::fs::create_dir_all(folder).expect("folder");
    std::fs::write(folder.join("config.json"), config_json(config)).expect("config");
    std::fs::write(folder.join("model.safetensors"), safetensors_bytes(tensors, dtype)).expect("weights");
}
