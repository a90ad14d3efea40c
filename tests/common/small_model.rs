//! The bundled model, cut down until a step takes a millisecond on the CPU and a moment on the virtual GPU.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Its `d_model`.
pub const WIDTH: usize = 32;
/// Widths of the bundled model, and of this one.
const SMALLER: [(&str, u64, u64); 4] =
    [("d_model", 256, WIDTH as u64), ("d_ff", 512, 32), ("num_heads", 4, 2), ("d_kv", 64, 16)];

/// The first layer of each stack of the bundled model, cut down to narrow widths, before its own vocabulary: a step takes a
/// millisecond.
pub fn write(folder: &Path) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    fs::create_dir_all(folder).expect("a folder");
    fs::copy(demo.join("tokenizer.json"), folder.join("tokenizer.json")).expect("copied");
    let config = fs::read(demo.join("config.json")).expect("a configuration");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    for (key, large, small) in SMALLER {
        assert_eq!(config[key], large, "the bundled model's {key}");
        config[key] = json!(small);
    }
    config["num_layers"] = json!(1);
    config["num_decoder_layers"] = json!(1);
    fs::write(folder.join("config.json"), config.to_string()).expect("written");

    let cut = |size: usize| match size {
        256 | 512 => 32,
        4 => 2,
        other => other,
    };
    let bytes = fs::read(demo.join("model.safetensors")).expect("a model");
    let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
    let mut parts = Vec::new();
    for (name, tensor) in tensors.tensors() {
        if name.contains(".block.") && !name.contains(".block.0.") {
            continue;
        }
        let shape: Vec<usize> = tensor.shape().iter().map(|&size| cut(size)).collect();
        let columns = *tensor.shape().last().expect("a dimension");
        let size = tensor.data().len() / tensor.shape().iter().product::<usize>();
        let narrow = shape[shape.len() - 1] * size;
        let rows = if shape.len() == 1 { 1 } else { shape[0] };
        let data = tensor.data().chunks_exact(columns * size).take(rows).flat_map(|row| &row[..narrow]);
        parts.push((name, tensor.dtype(), shape, data.copied().collect::<Vec<u8>>()));
    }
    let views = parts.iter().map(|(name, element, shape, data)| {
        (name.clone(), TensorView::new(*element, shape.clone(), data).expect("a tensor"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("written");
}
