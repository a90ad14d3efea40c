//! Any bytes as a CSV file and as a TSV file: rows or an error, never a panic, and no row over the limit.
#![no_main]

use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use promptmix::data::{Format, Reader};

const LIMIT: usize = 1 << 12;

fuzz_target!(|content: &[u8]| {
    for format in [Format::Csv, Format::Tsv] {
        let input = Cursor::new(content.to_vec());
        let Ok(reader) = Reader::new(input, format, Path::new("fuzz.csv"), LIMIT) else { continue };
        for row in reader.flatten() {
            let bytes: usize = row.fields().values().filter_map(|value| value.as_str()).map(str::len).sum();
            assert!(bytes <= LIMIT);
            assert!(row.line() >= 2);
        }
    }
});
