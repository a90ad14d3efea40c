#![no_main]

#[path = "../readers.rs"]
#[allow(dead_code)] // the other targets' functions
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| readers::safetensors(bytes));
