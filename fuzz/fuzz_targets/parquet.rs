//! Parquet files: any bytes are rows or an error, and an end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use promptmix::data::{count_rows, open};

fuzz_target!(|bytes: &[u8]| {
    // A panic of the parquet crate is answered with an error; the fuzzer's hook would end the process before that.
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let path = std::env::temp_dir().join(format!("promptmix-fuzz-{}.parquet", std::process::id()));
    std::fs::write(&path, bytes).expect("written");
    let counted = count_rows(&path);
    if let Ok(reader) = open(&path) {
        // Behind an error nothing more comes.
        let rows = reader.take_while(Result::is_ok).count();
        assert!(counted.is_ok_and(|counted| rows <= counted));
    }
});
