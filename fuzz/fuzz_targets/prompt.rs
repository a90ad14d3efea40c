//! Prompt files: any bytes are an error or a finite prompt of its shape.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use promptmix::prompts::Prompt;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(prompt) = Prompt::from_bytes(Path::new("prompt.safetensors"), bytes.to_vec()) {
        assert_eq!(prompt.values().len(), prompt.length() * prompt.width());
        assert!(prompt.values().iter().all(|value| value.is_finite()));
    }
});
