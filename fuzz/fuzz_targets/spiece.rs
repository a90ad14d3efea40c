//! `spiece.model`: any bytes are an error or a tokenizer that stays inside its vocabulary.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use promptmix::pretrained::{T5Config, Tokenizer};

fuzz_target!(|bytes: &[u8]| {
    let config = T5Config::t5_small();
    if let Ok(tokenizer) = Tokenizer::from_sentencepiece(Path::new("spiece.model"), bytes, None, &config) {
        use_tokenizer(&tokenizer, config.vocab_size);
    }
});

fn use_tokenizer(tokenizer: &Tokenizer, vocabulary: usize) {
    for text in ["", "a b  c", "\u{fb01}\u{301} \u{1f469}\u{200d}\u{1f467} \0\u{a0}", "<extra_id_0></s>x"] {
        if let Ok(ids) = tokenizer.encode(text) {
            assert_eq!(ids.last(), Some(&tokenizer.eos_token_id()));
            assert!(ids.iter().all(|&id| (id as usize) < vocabulary));
            let _ = tokenizer.decode(&ids);
        }
    }
}
