//! ByT5's tokens: the bytes of the text, and the few tokens beside them.
//!
//! Not for pieces of text. Ids: pad 0, end 1, unknown 2, byte b is b + 3, sentinels and added tokens after the last byte.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::AddedToken;

use super::added_tokens::{Additions, sentinel, special};
use crate::error::{Error, Result};

/// Tokens before the first byte: pad, end of sequence, unknown.
const FIRST: [&str; 3] = ["<pad>", "</s>", "<unk>"];
const BYTES: u32 = 256;
/// Ids below this are marks or bytes.
pub(super) const PIECES: u32 = FIRST.len() as u32 + BYTES;
/// Sentinels of a ByT5 whose files do not say how many.
const SENTINELS: usize = 125;

/// Text to ids and back, byte by byte.
pub(super) struct ByteTokenizer {
    tokens: BTreeMap<u32, AddedToken>,
    /// The id of each of the finder's patterns.
    ids: Vec<u32>,
    finder: AhoCorasick,
}

impl ByteTokenizer {
    /// The tokenizer of `folder`, whose files add these tokens, for ids below `vocab_size`. Sentinels beyond are left out.
    ///
    /// # Errors
    /// [`Error::Format`] if a token's id lies outside the vocabulary or is a byte's.
    pub(super) fn new(folder: &Path, additions: &Additions, vocab_size: usize) -> Result<Self> {
        let mut tokens: BTreeMap<u32, AddedToken> = BTreeMap::new();
        for (id, content) in (0..).zip(FIRST) {
            // Blanks around these go, unless a file says otherwise.
            let usual = || special(content).lstrip(true).rstrip(true).normalized(true);
            tokens.insert(id, additions.named(content).unwrap_or_else(usual));
        }
        for (&id, token) in additions.numbered() {
            if (FIRST.len() as u32..PIECES).contains(&id) && byte_id(&token.content) != Some(id) {
                let found = format!("{id} for `{}`, which is a byte's", token.content.escape_debug());
                let expected = format!("ids of added tokens from {PIECES} on");
                return Err(Error::format(folder, None, expected, found, "save the tokenizer again"));
            }
            tokens.insert(id, token.clone());
        }
        let mut known: HashSet<String> = tokens.values().map(|token| token.content.clone()).collect();
        let listed = additions.listed();
        let sentinels = if listed.is_empty() { additions.extra_ids().unwrap_or(SENTINELS) } else { 0 };
        let sentinels = (0..sentinels.min(vocab_size)).map(|number| special(&sentinel(number)));
        for token in listed.iter().cloned().chain(sentinels) {
            let next = tokens.last_key_value().map_or(PIECES, |(last, _)| last.saturating_add(1).max(PIECES));
            let id = byte_id(&token.content).unwrap_or(next);
            if (id as usize) < vocab_size && known.insert(token.content.clone()) {
                tokens.insert(id, token);
            }
        }
        tokens.retain(|_, token| !token.content.is_empty());
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.values().map(|token| &token.content))
            .map_err(|error| {
                let advice = "save the tokenizer again";
                Error::format(folder, None, "added tokens to look for", error.to_string(), advice)
            })?;
        let ids = tokens.keys().copied().collect();
        Ok(Self { tokens, ids, finder })
    }

    /// The ids of `text` and nothing more.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let mut parts: Vec<Part> = Vec::new();
        let mut from = 0;
        for found in self.finder.find_iter(text) {
            parts.push(Part::text(&text[from..found.start()]));
            parts.push(Part { text: text[found.range()].to_owned(), token: Some(self.ids[found.pattern()]) });
            from = found.end();
        }
        parts.push(Part::text(&text[from..]));
        parts.retain(|part| !part.text.is_empty());
        for index in 0..parts.len() {
            let Some(token) = parts[index].token.and_then(|id| self.tokens.get(&id)) else { continue };
            if token.rstrip
                && let Some(right) = parts.get_mut(index + 1)
            {
                right.text = right.text.trim_start_matches(is_blank).to_owned();
            }
            if token.lstrip && index > 0 {
                let left = &mut parts[index - 1];
                left.text.truncate(left.text.trim_end_matches(is_blank).len());
            }
            if token.single_word {
                let touches = |part: Option<&Part>, at_end: bool| {
                    let text = part.map_or("", |part| part.text.as_str());
                    let nearest = if at_end { text.chars().next_back() } else { text.chars().next() };
                    nearest.is_some_and(|letter| letter != ' ')
                };
                let left = index.checked_sub(1);
                if touches(left.and_then(|left| parts.get(left)), true)
                    || touches(parts.get(index + 1), false)
                {
                    // A part of a longer word is no token.
                    parts[index].token = None;
                }
            }
        }
        let mut ids = Vec::with_capacity(text.len());
        for part in &parts {
            match part.token {
                Some(id) => ids.push(id),
                None => ids.extend(part.text.bytes().map(|byte| u32::from(byte) + FIRST.len() as u32)),
            }
        }
        ids
    }

    /// The content of a token, or the letter or `<0xC3>` of a byte, and whether it is a special token; `None` for an id that
    /// neither has.
    pub(super) fn token(&self, id: u32) -> Option<(String, bool)> {
        if let Some(token) = self.tokens.get(&id) {
            return Some((token.content.clone(), token.special));
        }
        let byte = id.checked_sub(FIRST.len() as u32).and_then(|byte| u8::try_from(byte).ok())?;
        let is_letter = byte.is_ascii_graphic() || byte == b' ';
        Some((if is_letter { char::from(byte).to_string() } else { format!("<0x{byte:02X}>") }, false))
    }

    /// The text of `ids`; marks, special tokens, ids of nothing, and bytes that make no letter are left out.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(ids.len());
        for &id in ids {
            match (id.checked_sub(FIRST.len() as u32), self.tokens.get(&id)) {
                (Some(_), Some(token)) if !token.special => bytes.extend_from_slice(token.content.as_bytes()),
                (Some(_), Some(_)) => {}
                (Some(byte), None) => bytes.extend(u8::try_from(byte)),
                (None, _) => {}
            }
        }
        bytes.utf8_chunks().map(|chunk| chunk.valid()).collect()
    }

    /// The id of a token by its text.
    pub(super) fn token_to_id(&self, content: &str) -> Option<u32> {
        self.tokens.iter().find(|(_, token)| token.content == content).map(|(&id, _)| id)
    }

    /// The largest id.
    pub(super) fn largest(&self) -> u32 {
        self.tokens.last_key_value().map_or(PIECES - 1, |(&id, _)| id.max(PIECES - 1))
    }
}

/// A piece of the text: a token, or what stands between two.
struct Part {
    text: String,
    token: Option<u32>,
}

impl Part {
    fn text(text: &str) -> Self {
        Self { text: text.to_owned(), token: None }
    }
}

/// The id of a token that is one letter whose number is a byte's: it has that byte's, as in transformers.
fn byte_id(content: &str) -> Option<u32> {
    let mut letters = content.chars().map(u32::from);
    match (letters.next(), letters.next()) {
        (Some(letter), None) if letter < BYTES => Some(letter + FIRST.len() as u32),
        _ => None,
    }
}

/// What Python takes for a blank: Unicode's white space and four separators of ASCII.
fn is_blank(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}
