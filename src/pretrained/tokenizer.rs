//! Text to ids and back, from `tokenizer.json` or `spiece.model`.
//!
//! Not for building batches or cutting to a length: a source longer than the limit is the reader's concern.

use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::{ModelWrapper, PostProcessorWrapper};

use super::config::ModelType;
use super::{T5Config, charsmap, sentencepiece, small_file};
use crate::error::{Error, Result};
use crate::panics::contained;

/// The largest tokenizer file that is read; mT5's `tokenizer.json` has 16 MB.
const TOKENIZER_BYTES: u64 = 64 << 20;
/// The piece that ends a sequence in every T5.
const END_OF_SEQUENCE: &str = "</s>";

/// A T5's tokenizer. It may be used from several threads at once.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    vocabulary_size: usize,
    eos: u32,
    /// Ids that mark rather than say something: pad, end, decoder start.
    marks: [u32; 3],
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocabulary_size", &self.vocabulary_size)
            .finish_non_exhaustive()
    }
}

/// The one key of `tokenizer_config.json` that decides ids.
#[derive(Deserialize)]
struct Settings {
    extra_ids: Option<usize>,
}

/// The part of `tokenizer.json` that is checked before the whole is read.
#[derive(Deserialize)]
struct Outline {
    normalizer: Option<Value>,
}

impl Tokenizer {
    /// Opens `tokenizer.json` in `folder`, or else `spiece.model`, for a model of this configuration.
    ///
    /// A bare `spiece.model` is given the sentinels `<extra_id_99>` to `<extra_id_0>` after its pieces: as many as
    /// `extra_ids` in `tokenizer_config.json` says, else 100, and none where it holds them itself or the model is an mT5.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Format`] if neither is there or the one that is is broken, [`Error::Setting`] if an
    /// id lies outside `vocab_size` or `</s>` is not `eos_token_id`, [`Error::Unsupported`] for a SentencePiece model
    /// that is not unigram.
    pub fn open(folder: &Path, config: &T5Config) -> Result<Self> {
        let json = folder.join("tokenizer.json");
        if json.exists() {
            return Self::from_json(&json, &small_file(&json, TOKENIZER_BYTES)?, config);
        }
        let model = folder.join("spiece.model");
        if !model.exists() {
            return Err(Error::format(
                folder,
                None,
                "tokenizer.json or spiece.model",
                "neither",
                "fetch the tokenizer of the checkpoint into this folder",
            ));
        }
        let settings = folder.join("tokenizer_config.json");
        let mut sentinels = (config.model_type == ModelType::Mt5).then_some(0);
        if settings.exists() {
            let bytes = small_file(&settings, TOKENIZER_BYTES)?;
            let settings: Settings = serde_json::from_slice(&bytes).map_err(|error| {
                Error::format(&settings, Some(error.line() as u64), "a JSON object", error.to_string(), "")
            })?;
            sentinels = settings.extra_ids.or(sentinels);
        }
        Self::from_sentencepiece(&model, &small_file(&model, TOKENIZER_BYTES)?, sentinels, config)
    }

    /// As [`Tokenizer::open`], from the bytes of a `tokenizer.json`; `path` only names them in errors.
    pub fn from_json(path: &Path, bytes: &[u8], config: &T5Config) -> Result<Self> {
        let broken = |found: String, line: Option<u64>| {
            Error::format(
                path,
                line,
                "a tokenizer as the `tokenizers` library writes it",
                found,
                "the file is damaged or cut short; fetch it again",
            )
        };
        let text = std::str::from_utf8(bytes).map_err(|error| broken(error.to_string(), None))?;
        let outline: Outline = serde_json::from_str(text)
            .map_err(|error| broken(error.to_string(), Some(error.line() as u64)))?;
        if let Some(normalizer) = &outline.normalizer {
            check_charsmaps(normalizer).map_err(|found| broken(found, None))?;
        }
        let inner = guarded(path, || tokenizers::Tokenizer::from_bytes(bytes))?
            .map_err(|error| broken(error.to_string(), None))?;
        Self::fitted(path, inner, config)
    }

    /// As [`Tokenizer::open`], from the bytes of a `spiece.model`; `path` only names them in errors. `sentinels` is how
    /// many follow the pieces; `None` means 100.
    pub fn from_sentencepiece(
        path: &Path,
        bytes: &[u8],
        sentinels: Option<usize>,
        config: &T5Config,
    ) -> Result<Self> {
        let inner = guarded(path, || sentencepiece::build(path, bytes, sentinels, config.vocab_size))??;
        Self::fitted(path, inner, config)
    }

    /// Checks the vocabulary against the model's and takes away what this crate does by itself: the end of sequence,
    /// cutting to a length, and padding, which exists nowhere here.
    fn fitted(path: &Path, mut inner: tokenizers::Tokenizer, config: &T5Config) -> Result<Self> {
        inner.with_post_processor(None::<PostProcessorWrapper>);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| broken_tokenizer(path, error.to_string()))?;
        if let ModelWrapper::Unigram(unigram) = inner.get_model()
            && unigram.byte_fallback()
        {
            let mut decoders = vec![DecoderWrapper::ByteFallback(ByteFallback::new())];
            decoders.extend(inner.get_decoder().cloned());
            inner.with_decoder(Some(Sequence::new(decoders)));
        }
        let largest = inner.get_vocab(true).into_values().max();
        let Some(largest) = largest else {
            return Err(broken_tokenizer(path, "an empty vocabulary".to_owned()));
        };
        let vocabulary_size = largest as usize + 1;
        if vocabulary_size > config.vocab_size {
            return Err(Error::setting(
                "vocab_size",
                format!("at least {vocabulary_size}, for the ids of {}", path.display()),
                config.vocab_size.to_string(),
                "check that the tokenizer and config.json belong together",
            ));
        }
        let eos = config.eos_token_id;
        match inner.token_to_id(END_OF_SEQUENCE) {
            Some(id) if id != eos => {
                return Err(Error::setting(
                    "eos_token_id",
                    format!("{id}, the id of {END_OF_SEQUENCE} in {}", path.display()),
                    eos.to_string(),
                    "check that the tokenizer and config.json belong together",
                ));
            }
            None if inner.id_to_token(eos).is_none() => {
                return Err(Error::setting(
                    "eos_token_id",
                    format!("an id that {} has", path.display()),
                    eos.to_string(),
                    "check that the tokenizer and config.json belong together",
                ));
            }
            _ => {}
        }
        let marks = [config.pad_token_id, eos, config.decoder_start_token_id];
        Ok(Self { path: path.to_owned(), inner, vocabulary_size, eos, marks })
    }

    /// The ids of `text`, ended by the end-of-sequence id exactly once: a text that ends in a written `</s>` gets no
    /// second one.
    ///
    /// # Errors
    /// [`Error::Format`] if the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_without_eos(text)?;
        if ids.last() != Some(&self.eos) {
            ids.push(self.eos);
        }
        Ok(ids)
    }

    /// The ids of `text` and nothing more.
    ///
    /// # Errors
    /// [`Error::Format`] if the tokenizer cannot represent the text.
    pub fn encode_without_eos(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(&self.path, || self.inner.encode_fast(text, false))?;
        match encoding {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(broken_tokenizer(&self.path, error.to_string())),
        }
    }

    /// The text of `ids` without pad, end and other special pieces. Ids that no piece has are left out: a T5's
    /// vocabulary is padded beyond its tokenizer's. Surrounding blanks are kept.
    ///
    /// # Errors
    /// [`Error::Format`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().copied().filter(|id| !self.marks.contains(id)).collect();
        let text = guarded(&self.path, || self.inner.decode(&ids, true))?;
        text.map_err(|error| broken_tokenizer(&self.path, error.to_string()))
    }

    /// One more than the largest id; at most `vocab_size`, and often below it.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// The id that [`Tokenizer::encode`] ends with.
    pub fn eos_token_id(&self) -> u32 {
        self.eos
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Every `precompiled_charsmap` under `normalizer`.
fn check_charsmaps(normalizer: &Value) -> std::result::Result<(), String> {
    match normalizer {
        Value::Object(fields) => {
            if let Some(Value::String(encoded)) = fields.get("precompiled_charsmap") {
                let map = base64::engine::general_purpose::STANDARD
                    .decode(encoded)
                    .map_err(|error| format!("a precompiled_charsmap that is not base64: {error}"))?;
                charsmap::check(&map).map_err(|found| format!("a precompiled_charsmap with {found}"))?;
            }
            fields.values().try_for_each(check_charsmaps)
        }
        Value::Array(items) => items.iter().try_for_each(check_charsmaps),
        _ => Ok(()),
    }
}

/// Runs what the `tokenizers` crate does with a file's content. It trusts such files in places and panics where one
/// lies; that becomes an error here.
fn guarded<T>(path: &Path, run: impl FnOnce() -> T) -> Result<T> {
    contained(run).ok_or_else(|| broken_tokenizer(path, "a contradiction inside it".to_owned()))
}

fn broken_tokenizer(path: &Path, found: String) -> Error {
    Error::format(path, None, "a tokenizer that can be applied", found, "fetch the tokenizer's file again")
}
