//! Safetensors files: any bytes are an error or tensors that lie inside them.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use promptmix::pretrained::TensorFile;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = TensorFile::safetensors_from_bytes(Path::new("model.safetensors"), bytes.to_vec()) {
        for name in file.names() {
            let shape = file.shape(name).expect("a listed tensor").to_vec();
            if let Ok(values) = file.tensor(name, &shape) {
                assert!(values.len() <= bytes.len() / 2 && values.iter().all(|value| value.is_finite()));
            }
        }
    }
});
