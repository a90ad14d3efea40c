//! Building the tokenizer that a SentencePiece model file (`spiece.model`) describes.
//!
//! Not for `tokenizer.json`, which the `tokenizers` crate reads by itself. What is built here is what that file would
//! hold for the same model, so that both give equal ids.

use std::path::Path;

use prost::Message;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, NormalizerWrapper, Precompiled, Prepend, Replace, Strip};
use tokenizers::pre_tokenizers::delimiter::CharDelimiterSplit;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

use super::added_tokens::sentinel;
use super::charsmap;
use crate::error::{Error, Result};

/// A SentencePiece model: the fields that decide how text is cut. Numbers are those of `sentencepiece_model.proto`.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24", default = "false")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35", default = "false")]
    byte_fallback: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

const KIND_UNKNOWN: i32 = 2;
const KIND_CONTROL: i32 = 3;
const KIND_USER_DEFINED: i32 = 4;
const MODEL_UNIGRAM: i32 = 1;
/// How a space is written inside a piece.
const SPACE: char = '▁';

/// The tokenizer for the model in `bytes`, and the id of its unknown piece. `sentinels` is how many `<extra_id_N>` follow the pieces, in falling order, as T5
/// numbers them: the last id is `<extra_id_0>`. Pieces and sentinels together may be at most `vocab_size`; only a model
/// that holds sentinels of its own goes without those that have no room.
///
/// # Errors
/// [`Error::Format`] if the bytes are no such model, [`Error::Unsupported`] if it is one of another kind than
/// unigram, [`Error::Setting`] if it does not fit the vocabulary.
pub(super) fn build(
    path: &Path,
    bytes: &[u8],
    sentinels: usize,
    vocab_size: usize,
) -> Result<(Tokenizer, u32)> {
    let broken = |found: String| {
        Error::format(
            path,
            None,
            "a SentencePiece unigram model",
            found,
            "the file is damaged or cut short; fetch it again",
        )
    };
    let unsupported = |what: &str| {
        Error::unsupported(
            what,
            format!("{} must be a unigram model as T5 uses", path.display()),
            "give tokenizer.json instead",
        )
    };
    let model = Model::decode(bytes).map_err(|error| broken(error.to_string()))?;
    let trainer = model.trainer.unwrap_or_default();
    let normalizer = model.normalizer.unwrap_or_default();
    if trainer.model_type() != MODEL_UNIGRAM {
        return Err(unsupported("a SentencePiece model of a type other than unigram"));
    }
    if trainer.treat_whitespace_as_suffix() {
        return Err(unsupported("whitespace as a suffix"));
    }
    if !normalizer.escape_whitespaces() {
        return Err(unsupported("unescaped whitespace"));
    }
    let unknown = model.pieces.iter().position(|piece| piece.kind() == KIND_UNKNOWN);
    let unknown = unknown.ok_or_else(|| broken("a model without an unknown piece".to_owned()))?;

    let has_sentinels =
        model.pieces.iter().any(|piece| piece.piece().trim_start_matches(SPACE) == "<extra_id_0>");
    let room = vocab_size.saturating_sub(model.pieces.len());
    let sentinels = if has_sentinels && sentinels > room { 0 } else { sentinels };
    let size = model.pieces.len().checked_add(sentinels);
    if size.is_none_or(|size| size > vocab_size) {
        return Err(Error::setting(
            "vocab_size",
            format!(
                "at least the {} pieces and {sentinels} sentinels of {}",
                model.pieces.len(),
                path.display()
            ),
            vocab_size.to_string(),
            "check that the tokenizer and config.json belong together",
        ));
    }

    let mut added = Vec::new();
    let mut vocabulary = Vec::with_capacity(model.pieces.len() + sentinels);
    for piece in &model.pieces {
        let (text, score) = (piece.piece(), piece.score());
        if text.is_empty() || !score.is_finite() {
            return Err(broken(format!("piece {} without text or a finite score", vocabulary.len())));
        }
        match piece.kind() {
            KIND_UNKNOWN | KIND_CONTROL => added.push(plain(text.to_owned(), true)),
            KIND_USER_DEFINED => added.push(plain(text.to_owned(), false)),
            _ => {}
        }
        vocabulary.push((text.to_owned(), f64::from(score)));
    }
    for number in (0..sentinels).rev() {
        added.push(plain(sentinel(number), true));
        vocabulary.push((sentinel(number), 0.0));
    }

    let crates = |error: tokenizers::Error| broken(error.to_string());
    let unigram = Unigram::from(vocabulary, Some(unknown), trainer.byte_fallback()).map_err(crates)?;
    let mut tokenizer = Tokenizer::new(unigram);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let (prefixed, collapsed) = (normalizer.add_dummy_prefix(), normalizer.remove_extra_whitespaces());
    // Where all blanks count, the mark before a text is one more than those that it begins with.
    let prepend = if prefixed && collapsed { PrependScheme::Always } else { PrependScheme::Never };
    let mut steps: Vec<PreTokenizerWrapper> = vec![Metaspace::new(SPACE, prepend, collapsed).into()];
    let charsmap = normalizer.precompiled_charsmap();
    if !charsmap.is_empty() {
        charsmap::check(charsmap).map_err(|found| broken(format!("a precompiled_charsmap with {found}")))?;
        let precompiled = Precompiled::from(charsmap)
            .map_err(|error| broken(format!("a precompiled_charsmap that cannot be read: {error}")))?;
        normalizers.push(precompiled.into());
    }
    match (prefixed, collapsed) {
        (true, true) => {
            // Spaces stand for the ends of words alone: what precedes an added token has none after it, and each word begins
            // with exactly one mark.
            normalizers.push(Strip::new(false, true).into());
            steps.insert(0, CharDelimiterSplit::new(' ').into());
        }
        (false, true) => {
            normalizers.push(Strip::new(true, true).into());
            normalizers
                .push(Replace::new(ReplacePattern::Regex(" {2,}".into()), " ").map_err(crates)?.into());
        }
        (true, false) => normalizers.push(Prepend::new(" ".into()).into()),
        (false, false) => {}
    }
    tokenizer.with_normalizer(Some(normalizers::Sequence::new(normalizers))).map_err(crates)?;
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    let decoded = if prefixed { PrependScheme::Always } else { PrependScheme::Never };
    tokenizer.with_decoder(Some(Metaspace::new(SPACE, decoded, true)));
    tokenizer.add_tokens(added).map_err(crates)?;
    Ok((tokenizer, unknown as u32))
}

/// A piece that is found before the text is normalised, as it stands.
fn plain(content: String, special: bool) -> AddedToken {
    AddedToken::from(content, special).normalized(false)
}
