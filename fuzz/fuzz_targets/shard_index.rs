//! A shard index beside one shard: any bytes are an error or a checkpoint whose tensors can all be read.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use promptmix::pretrained::Checkpoint;

/// One layer of width 2 with one head each way.
const CONFIG: &str = r#"{"vocab_size": 2, "d_model": 2, "d_kv": 2, "d_ff": 2, "num_layers": 1, "num_heads": 1,
    "relative_attention_num_buckets": 4}"#;
/// Its embedding and nothing else; a map that claims more of it is refused.
const SHARD: &[u8] =
    b"\x49\0\0\0\0\0\0\0{\"shared.weight\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[0,8]}}    \0\0\0\0\0\0\0\0";

fuzz_target!(|bytes: &[u8]| {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("promptmix-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("config.json"), CONFIG).expect("written");
        std::fs::write(folder.join("m.safetensors"), SHARD).expect("written");
        folder
    });
    std::fs::write(folder.join("model.safetensors.index.json"), bytes).expect("written");
    if let Ok(checkpoint) = Checkpoint::open(folder) {
        for (name, shape) in checkpoint.config().tensors() {
            checkpoint.tensor(&name, &shape).expect("an opened checkpoint is complete");
        }
    }
});
