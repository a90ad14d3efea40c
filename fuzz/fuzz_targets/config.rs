//! `config.json`: any bytes are an error or a valid configuration.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use promptmix::pretrained::T5Config;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = T5Config::from_json(Path::new("config.json"), bytes) {
        config.validate().expect("what is read is valid");
        for (name, shape) in config.tensors() {
            shape.iter().try_fold(4usize, |bytes, &size| bytes.checked_mul(size)).expect(&name);
        }
    }
});
