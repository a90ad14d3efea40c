//! Settings files: any text is an error, or settings that written down and read again are the same.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use promptmix::config::RunConfig;
use promptmix::config::file::parse;

fuzz_target!(|text: &str| {
    let path = Path::new("run.toml");
    let Ok(table) = parse(path, text) else { return };
    let Ok(config) = RunConfig::from_table(path, text, table) else { return };
    let Ok(written) = config.to_toml() else { return };
    let again = parse(path, &written).expect("what is written is TOML");
    assert_eq!(RunConfig::from_table(path, &written, again).expect("and settings"), config);
});
