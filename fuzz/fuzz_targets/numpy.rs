//! Arrays that NumPy saved: any bytes are an error or a finite prompt of its shape.
#![no_main]

use libfuzzer_sys::fuzz_target;
use promptmix::prompts::import;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("promptmix-fuzz-{}.npy", std::process::id()));
    std::fs::write(&path, bytes).expect("written");
    if let Ok(imported) = import(&path) {
        let prompt = imported.prompt;
        assert_eq!(prompt.values().len(), prompt.length() * prompt.width());
        assert!(prompt.values().iter().all(|value| value.is_finite()));
    }
});
