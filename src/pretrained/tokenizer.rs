//! Text to ids and back, from `tokenizer.json` or `spiece.model`, or for a ByT5 from the bytes themselves.
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

use super::added_tokens::{Additions, is_sentinel};
use super::byte_tokenizer::{self, ByteTokenizer};
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
    inner: Inner,
    vocabulary_size: usize,
    /// What stands before each text.
    start: Vec<u32>,
    eos: u32,
    /// The id of what the vocabulary has no piece for; bytes have none.
    unknown: Option<u32>,
    /// Ids that mark rather than say something: end, and pad and decoder start where they are no pieces of text.
    marks: Vec<u32>,
}

enum Inner {
    /// Pieces of text.
    Pieces(Box<tokenizers::Tokenizer>),
    /// ByT5's bytes.
    Bytes(ByteTokenizer),
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

/// An id of the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The piece as the vocabulary writes it, `▁` for a blank; of a ByT5 a letter, or `<0xC3>` for a byte that is none. Empty for
    /// an id that is none's.
    pub text: String,
    /// What it is.
    pub kind: TokenKind,
}

/// What an id of the vocabulary stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Text,
    /// A masked span in pre-training: `<extra_id_0>` and so on.
    Sentinel,
    /// A mark, as padding and the end of a sequence.
    Special,
    /// Nothing: T5's vocabulary is padded beyond its tokenizer's.
    Unused,
}

impl TokenKind {
    /// Its name in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Sentinel => "sentinel",
            Self::Special => "special",
            Self::Unused => "unused",
        }
    }
}

/// The part of `tokenizer.json` that is checked before the whole is read.
#[derive(Deserialize)]
struct Outline {
    normalizer: Option<Value>,
    model: Option<OutlineOfModel>,
}

/// What a model does with text that it has no piece for.
#[derive(Deserialize)]
struct OutlineOfModel {
    unk_id: Option<Value>,
    unk_token: Option<Value>,
}

impl Tokenizer {
    /// Opens `tokenizer.json` in `folder`, or else `spiece.model`, for a model of this configuration, and adds the tokens
    /// that `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` name. A folder whose files name
    /// the class `ByT5Tokenizer` needs neither: its tokens are bytes.
    ///
    /// A `spiece.model` is given the sentinels `<extra_id_99>` to `<extra_id_0>` after its pieces: as many as `extra_ids` in
    /// `tokenizer_config.json` says, else 100, or none where the model is an mT5.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Format`] if neither is there or the one that is is broken, or if an added token cannot
    /// have the id that a file gives it; [`Error::Setting`] if an id lies outside `vocab_size` or `</s>` is not
    /// `eos_token_id`; [`Error::Unsupported`] for a SentencePiece model that is not unigram.
    pub fn open(folder: &Path, config: &T5Config) -> Result<Self> {
        let additions = Additions::read(folder)?;
        if additions.is_of_bytes() {
            let bytes = ByteTokenizer::new(folder, &additions, config.vocab_size)?;
            return Self::checked(folder, Inner::Bytes(bytes), None, config);
        }
        let sentinels = additions.sentinels(config.model_type);
        let json = folder.join("tokenizer.json");
        if json.exists() {
            let (mut inner, unknown) = read_json(&json, &small_file(&json, TOKENIZER_BYTES)?)?;
            guarded(&json, || additions.add_to(&mut inner, sentinels, config.vocab_size))??;
            return Self::fitted(&json, inner, unknown, config);
        }
        let model = folder.join("spiece.model");
        if !model.exists() {
            return Err(Error::format(
                folder,
                None,
                "tokenizer.json or spiece.model",
                "neither",
                "fetch the tokenizer of the checkpoint into this folder; that of a ByT5 is its tokenizer_config.json, \
                 which names the class ByT5Tokenizer",
            ));
        }
        let bytes = small_file(&model, TOKENIZER_BYTES)?;
        let build = || sentencepiece::build(&model, &bytes, sentinels, config.vocab_size);
        let (mut inner, unknown) = guarded(&model, build)??;
        guarded(&model, || additions.add_to(&mut inner, sentinels, config.vocab_size))??;
        Self::fitted(&model, inner, Some(unknown), config)
    }

    /// As [`Tokenizer::open`], from the bytes of a `tokenizer.json`; `path` only names them in errors.
    ///
    /// # Errors
    /// As there, but for [`Error::File`].
    pub fn from_json(path: &Path, bytes: &[u8], config: &T5Config) -> Result<Self> {
        let (inner, unknown) = read_json(path, bytes)?;
        Self::fitted(path, inner, unknown, config)
    }

    /// As [`Tokenizer::open`], from the bytes of a `spiece.model`; `path` only names them in errors. `sentinels` is how
    /// many follow the pieces; `None` means 100.
    ///
    /// # Errors
    /// As there, but for [`Error::File`].
    pub fn from_sentencepiece(
        path: &Path,
        bytes: &[u8],
        sentinels: Option<usize>,
        config: &T5Config,
    ) -> Result<Self> {
        let sentinels = sentinels.unwrap_or(100);
        let build = || sentencepiece::build(path, bytes, sentinels, config.vocab_size);
        let (inner, unknown) = guarded(path, build)??;
        Self::fitted(path, inner, Some(unknown), config)
    }

    /// Takes away what this crate does by itself: what stands around a text, cutting to a length, and padding, which exists
    /// nowhere here.
    fn fitted(
        path: &Path,
        mut inner: tokenizers::Tokenizer,
        unknown: Option<u32>,
        config: &T5Config,
    ) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| broken_tokenizer(path, error.to_string()))?;
        let start = guarded(path, || start_of_sequence(path, &inner, config.eos_token_id))??;
        inner.with_post_processor(None::<PostProcessorWrapper>);
        if let ModelWrapper::Unigram(unigram) = inner.get_model()
            && unigram.byte_fallback()
        {
            let mut decoders = vec![DecoderWrapper::ByteFallback(ByteFallback::new())];
            decoders.extend(inner.get_decoder().cloned());
            inner.with_decoder(Some(Sequence::new(decoders)));
        }
        Ok(Self { start, ..Self::checked(path, Inner::Pieces(Box::new(inner)), unknown, config)? })
    }

    /// Checks the vocabulary against the model's.
    fn checked(path: &Path, inner: Inner, unknown: Option<u32>, config: &T5Config) -> Result<Self> {
        let (largest, end) = match &inner {
            Inner::Pieces(pieces) => {
                (pieces.get_vocab(true).into_values().max(), pieces.token_to_id(END_OF_SEQUENCE))
            }
            Inner::Bytes(bytes) => (Some(bytes.largest()), bytes.token_to_id(END_OF_SEQUENCE)),
        };
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
        match end {
            Some(id) if id != eos => {
                return Err(Error::setting(
                    "eos_token_id",
                    format!("{id}, the id of {END_OF_SEQUENCE} in {}", path.display()),
                    eos.to_string(),
                    "check that the tokenizer and config.json belong together",
                ));
            }
            None if matches!(&inner, Inner::Pieces(pieces) if pieces.id_to_token(eos).is_none()) => {
                return Err(Error::setting(
                    "eos_token_id",
                    format!("an id that {} has", path.display()),
                    eos.to_string(),
                    "check that the tokenizer and config.json belong together",
                ));
            }
            _ => {}
        }
        // An id that stands for text is text wherever it comes, though the model pads or starts with it.
        let is_mark = |id: &u32| match &inner {
            Inner::Pieces(pieces) => pieces
                .id_to_token(*id)
                .is_none_or(|text| pieces.get_added_vocabulary().is_special_token(&text)),
            Inner::Bytes(bytes) => bytes.token(*id).is_none_or(|(_, is_special)| is_special),
        };
        let mut marks = vec![config.pad_token_id, config.decoder_start_token_id];
        marks.retain(is_mark);
        marks.push(eos);
        Ok(Self { path: path.to_owned(), inner, vocabulary_size, start: Vec::new(), eos, unknown, marks })
    }

    /// The ids of `text` between what the tokenizer puts before a text (nothing, but in T5s with a tokenizer of another family, as
    /// CodeT5's `<s>`) and the end-of-sequence id, which ends them exactly once: a text that ends in a written `</s>` gets no second
    /// one.
    ///
    /// # Errors
    /// [`Error::Format`] if the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let text = self.encode_without_eos(text)?;
        let end = (text.last() != Some(&self.eos)).then_some(self.eos);
        Ok(self.start.iter().copied().chain(text).chain(end).collect())
    }

    /// The ids of `text` and nothing more.
    ///
    /// # Errors
    /// [`Error::Format`] if the tokenizer cannot represent the text.
    pub fn encode_without_eos(&self, text: &str) -> Result<Vec<u32>> {
        let pieces = match &self.inner {
            Inner::Pieces(pieces) => pieces,
            Inner::Bytes(bytes) => return Ok(bytes.encode(text)),
        };
        match guarded(&self.path, || pieces.encode_fast(text, false))? {
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
        let pieces = match &self.inner {
            Inner::Pieces(pieces) => pieces,
            Inner::Bytes(bytes) => return Ok(bytes.decode(&ids)),
        };
        let text = guarded(&self.path, || pieces.decode(&ids, true))?;
        text.map_err(|error| broken_tokenizer(&self.path, error.to_string()))
    }

    /// One more than the largest id; at most `vocab_size`, and often below it.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// The ids below this stand for text; a ByT5's sentinels and added tokens lie above.
    pub fn text_ids(&self) -> usize {
        match self.inner {
            Inner::Pieces(_) => self.vocabulary_size,
            Inner::Bytes(_) => byte_tokenizer::PIECES as usize,
        }
    }

    /// What `id` stands for.
    pub fn token(&self, id: u32) -> Token {
        let (text, is_special) = match &self.inner {
            Inner::Pieces(pieces) => {
                let text = pieces.id_to_token(id);
                let is_special =
                    text.as_ref().is_some_and(|text| pieces.get_added_vocabulary().is_special_token(text));
                (text, is_special)
            }
            Inner::Bytes(bytes) => match bytes.token(id) {
                Some((text, is_special)) => (Some(text), is_special),
                None => (None, false),
            },
        };
        let Some(text) = text else { return Token { text: String::new(), kind: TokenKind::Unused } };
        let kind = if is_sentinel(&text) {
            TokenKind::Sentinel
        } else if is_special || self.marks.contains(&id) || self.unknown == Some(id) {
            TokenKind::Special
        } else {
            TokenKind::Text
        };
        Token { text, kind }
    }

    /// The id of text that the vocabulary has no piece for; `None` where there is a piece for every text.
    pub fn unknown_token_id(&self) -> Option<u32> {
        self.unknown
    }

    /// The id that [`Tokenizer::encode`] ends with.
    pub fn eos_token_id(&self) -> u32 {
        self.eos
    }

    /// The file it was read from, or a ByT5's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The ids that `inner`, which neither cuts nor pads, puts before each text.
///
/// # Errors
/// [`Error::Unsupported`] if it ends a text with anything but `eos`.
fn start_of_sequence(path: &Path, inner: &tokenizers::Tokenizer, eos: u32) -> Result<Vec<u32>> {
    let broken = |error: tokenizers::Error| broken_tokenizer(path, error.to_string());
    let around = inner.encode("a", true).map_err(broken)?;
    let marks = around.get_special_tokens_mask();
    let of_start = marks.iter().take_while(|&&mark| mark == 1).count();
    let of_end = marks[of_start..].iter().rev().take_while(|&&mark| mark == 1).count();
    let (mut start, end) = (around.get_ids().to_vec(), around.get_ids()[marks.len() - of_end..].to_vec());
    start.truncate(of_start);
    // A text of which nothing is left: all marks stand before it.
    if of_start == marks.len() && start.last() == Some(&eos) {
        start.pop();
    }
    if end.iter().all(|&id| id == eos) {
        return Ok(start);
    }
    let names = |ids: &[u32]| {
        let name = |&id: &u32| inner.id_to_token(id).unwrap_or_else(|| id.to_string());
        ids.iter().map(name).collect::<Vec<_>>().join(" ")
    };
    Err(Error::unsupported(
        format!("the tokenizer of {}", path.display()),
        format!(
            "it ends each text with {}, and the model ends a sequence with {}",
            names(&end),
            names(&[eos])
        ),
        "check that the tokenizer and eos_token_id of config.json belong together",
    ))
}

/// The tokenizer of a `tokenizer.json`, and the id of what it has no piece for.
fn read_json(path: &Path, bytes: &[u8]) -> Result<(tokenizers::Tokenizer, Option<u32>)> {
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
    let outline: Outline =
        serde_json::from_str(text).map_err(|error| broken(error.to_string(), Some(error.line() as u64)))?;
    if let Some(normalizer) = &outline.normalizer {
        check_charsmaps(normalizer).map_err(|found| broken(found, None))?;
    }
    let inner = guarded(path, || tokenizers::Tokenizer::from_bytes(bytes))?
        .map_err(|error| broken(error.to_string(), None))?;
    let unknown = outline.model.and_then(|model| match (model.unk_id, model.unk_token) {
        (Some(Value::Number(id)), _) => id.as_u64().and_then(|id| u32::try_from(id).ok()),
        (_, Some(Value::String(token))) => inner.token_to_id(&token),
        _ => None,
    });
    Ok((inner, unknown))
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
