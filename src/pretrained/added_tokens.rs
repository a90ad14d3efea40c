//! What a tokenizer's folder adds to its vocabulary: `tokenizer_config.json`, and in older folders `special_tokens_map.json`
//! and `added_tokens.json`.
//!
//! Not for the vocabulary itself. Tokens are added in the order in which transformers adds them, so that those that no
//! file gives an id get the same one here.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::config::ModelType;
use super::small_file;
use crate::error::{Error, Result};

/// The largest of the files that is read; one with thousands of tokens is below a megabyte.
const FILE_BYTES: u64 = 64 << 20;
/// Sentinels of a T5 whose files do not say how many.
const SENTINELS: usize = 100;
/// More than any tokenizer has; bounds what a file can ask for.
const MAX_SENTINELS: usize = 1 << 20;
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// A token as the files describe it.
#[derive(Clone, Debug, Deserialize)]
struct Written {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    /// The other of `special` where it is not given.
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Written {
    fn token(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

/// A token, or its text alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Named {
    Text(String),
    Whole(Written),
}

impl Named {
    fn special(&self) -> AddedToken {
        match self {
            Self::Text(text) => special(text),
            Self::Whole(written) => Written { special: true, ..written.clone() }.token(),
        }
    }
}

/// The keys of `tokenizer_config.json` that decide ids.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    tokenizer_class: Option<String>,
    extra_ids: Option<usize>,
    added_tokens_decoder: Option<BTreeMap<u32, Written>>,
    additional_special_tokens: Option<Vec<Named>>,
    pad_token: Option<Named>,
    eos_token: Option<Named>,
    unk_token: Option<Named>,
    /// What newer files call `additional_special_tokens`; a map in some models.
    extra_special_tokens: Option<Listed>,
}

/// The keys of `special_tokens_map.json` that do.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SpecialTokens {
    additional_special_tokens: Option<Vec<Named>>,
    pad_token: Option<Named>,
    eos_token: Option<Named>,
    unk_token: Option<Named>,
    extra_special_tokens: Option<Listed>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Listed {
    List(Vec<Named>),
    Map(BTreeMap<String, Named>),
}

impl Listed {
    fn into_tokens(self) -> Vec<Named> {
        match self {
            Self::List(tokens) => tokens,
            Self::Map(tokens) => tokens.into_values().collect(),
        }
    }
}

/// What a folder adds.
#[derive(Debug, Default)]
pub(super) struct Additions {
    /// `tokenizer_class`, where a file names it.
    class: Option<String>,
    /// `extra_ids`, where the file says.
    extra_ids: Option<usize>,
    /// Tokens with their ids, in the order of these.
    numbered: BTreeMap<u32, AddedToken>,
    /// The file that they came from.
    numbered_in: PathBuf,
    /// Special tokens without ids.
    listed: Vec<AddedToken>,
    /// Pad, end of sequence and unknown, where a file says more of them than their text.
    named: Vec<AddedToken>,
}

impl Additions {
    /// Reads the files of `folder`; those that are not there add nothing.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Format`] for a file that cannot be read, with the key where one has a wrong value.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let settings: Settings = read(&folder.join(CONFIG))?.unwrap_or_default();
        if let Some(count) = settings.extra_ids.filter(|&count| count > MAX_SENTINELS) {
            let expected = format!("extra_ids of at most {MAX_SENTINELS}");
            let advice = "fetch the tokenizer's files again";
            return Err(Error::format(folder.join(CONFIG), None, expected, count.to_string(), advice));
        }
        let mut listed: Vec<Named> = settings.additional_special_tokens.unwrap_or_default();
        listed.extend(settings.extra_special_tokens.map(Listed::into_tokens).unwrap_or_default());
        let mut named = vec![settings.pad_token, settings.eos_token, settings.unk_token];
        let mut numbered = BTreeMap::new();
        let mut numbered_in = folder.join(CONFIG);
        match settings.added_tokens_decoder {
            Some(written) => numbered.extend(written.iter().map(|(&id, token)| (id, token.token()))),
            // Older tokenizers wrote the same into two more files.
            None => {
                let specials: SpecialTokens = read(&folder.join(SPECIAL))?.unwrap_or_default();
                named.extend([specials.pad_token, specials.eos_token, specials.unk_token]);
                listed.extend(specials.additional_special_tokens.unwrap_or_default());
                listed.extend(specials.extra_special_tokens.map(Listed::into_tokens).unwrap_or_default());
                let path = folder.join(ADDED);
                let added: BTreeMap<String, u32> = read(&path)?.unwrap_or_default();
                let names: HashSet<String> =
                    listed.iter().map(|token| token.special().content.clone()).collect();
                for (content, id) in added {
                    let is_special = names.contains(&content);
                    let token = AddedToken::from(content.clone(), is_special).normalized(!is_special);
                    if let Some(other) = numbered.insert(id, token) {
                        let found = format!("{id} for {} and for {content}", other.content);
                        return Err(Error::format(&path, None, "one id for each token", found, ""));
                    }
                }
                numbered_in = path;
            }
        }
        let mut seen = HashSet::new();
        let listed =
            listed.iter().map(Named::special).filter(|token| seen.insert(token.content.clone())).collect();
        let named = named.into_iter().flatten().filter(|named| matches!(named, Named::Whole(_)));
        Ok(Self {
            class: class_of(folder, settings.tokenizer_class),
            extra_ids: settings.extra_ids,
            numbered,
            numbered_in,
            listed,
            named: named.map(|named| named.special()).collect(),
        })
    }

    /// Whether the files name the tokenizer of ByT5.
    pub(super) fn is_of_bytes(&self) -> bool {
        self.class.as_deref() == Some("ByT5Tokenizer")
    }

    /// How many sentinels the tokenizer of a model of this type has. An mT5 has its own among its pieces.
    pub(super) fn sentinels(&self, model_type: ModelType) -> usize {
        let class = self.class.as_deref().unwrap_or("T5Tokenizer");
        let of_t5 = ["T5Tokenizer", "MT5Tokenizer"].contains(&class.trim_end_matches("Fast"));
        let usual = if model_type == ModelType::Mt5 { 0 } else { SENTINELS };
        if of_t5 { self.extra_ids.unwrap_or(usual) } else { 0 }
    }

    /// What the files say of pad, end of sequence or unknown beside its text; the last file that says it counts.
    pub(super) fn named(&self, content: &str) -> Option<AddedToken> {
        self.named.iter().rev().find(|token| token.content == content).cloned()
    }

    /// `extra_ids`, where a file gives it.
    pub(super) fn extra_ids(&self) -> Option<usize> {
        self.extra_ids
    }

    /// The special tokens that stand in lists, in their order, without ids.
    pub(super) fn listed(&self) -> &[AddedToken] {
        &self.listed
    }

    /// The tokens that have ids.
    pub(super) fn numbered(&self) -> &BTreeMap<u32, AddedToken> {
        &self.numbered
    }

    /// Adds the tokens to `tokenizer`, and makes its sentinels, so many, tokens that are found in the text as they stand.
    /// Sentinels that it lacks are added too, as far as ids below `vocab_size` go.
    ///
    /// # Errors
    /// [`Error::Format`] if a token cannot have the id that its file gives it: then the files contradict one another.
    pub(super) fn add_to(
        &self,
        tokenizer: &mut Tokenizer,
        sentinels: usize,
        vocab_size: usize,
    ) -> Result<()> {
        let broken = |error: tokenizers::Error| {
            Error::format(&self.numbered_in, None, "tokens that can be added", error.to_string(), "")
        };
        tokenizer.add_tokens(self.numbered.values().cloned()).map_err(broken)?;
        for (&id, token) in &self.numbered {
            let found = tokenizer.token_to_id(&token.content);
            if found != Some(id) {
                let found = match found {
                    Some(found) => format!("{found}, as the vocabulary has it or as the ids before it end"),
                    None => "an empty token".to_owned(),
                };
                return Err(Error::format(
                    &self.numbered_in,
                    None,
                    format!("the id {id} for the added token `{}`", token.content.escape_debug()),
                    found,
                    "save the tokenizer again as a whole, with its tokenizer.json",
                ));
            }
        }
        let known: HashSet<String> =
            tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let new = self.listed.iter().filter(|token| !known.contains(&token.content));
        tokenizer.add_tokens(new.cloned().collect::<Vec<_>>()).map_err(broken)?;
        let mut room = vocab_size.saturating_sub(next_id(tokenizer));
        let mut marks = Vec::new();
        for number in 0..sentinels.min(vocab_size) {
            let name = sentinel(number);
            if known.contains(&name) {
                continue;
            }
            if tokenizer.token_to_id(&name).is_none() {
                if room == 0 {
                    continue;
                }
                room -= 1;
            }
            marks.push(special(&name));
        }
        tokenizer.add_tokens(marks).map_err(broken)?;
        Ok(())
    }
}

/// A sentinel's name.
pub(super) fn sentinel(number: usize) -> String {
    format!("<extra_id_{number}>")
}

/// Whether a piece is a sentinel; those of an mT5 begin with a blank.
pub(super) fn is_sentinel(piece: &str) -> bool {
    let name = piece.strip_prefix('▁').unwrap_or(piece);
    let number = name.strip_prefix("<extra_id_").and_then(|rest| rest.strip_suffix('>'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A token that marks rather than says something, found in the text as it stands.
pub(super) fn special(content: &str) -> AddedToken {
    AddedToken::from(content.to_owned(), true).normalized(false)
}

/// The class of the folder's tokenizer: as `tokenizer_config.json` names it, else as `config.json` does.
fn class_of(folder: &Path, named: Option<String>) -> Option<String> {
    #[derive(Deserialize)]
    struct Config {
        tokenizer_class: Option<String>,
    }
    named.or_else(|| {
        // What is wrong with that file is for the reader of the model to say.
        let config = read::<Config>(&folder.join("config.json")).ok().flatten();
        config.and_then(|config| config.tokenizer_class)
    })
}

/// The id after the largest.
fn next_id(tokenizer: &Tokenizer) -> usize {
    let added = tokenizer.get_added_tokens_decoder().into_keys().max().map_or(0, |id| id as usize + 1);
    tokenizer.get_vocab_size(false).max(added)
}

/// The JSON object in the file at `path`; `None` where there is no such file.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = small_file(path, FILE_BYTES)?;
    let parsed: serde_json::Result<Map<String, Value>> = serde_json::from_slice(&bytes);
    let broken = |line: Option<u64>, found: String| {
        let expected = "the settings of a tokenizer as a JSON object";
        Error::format(path, line, expected, found, "fetch the tokenizer's files again")
    };
    let object = parsed.map_err(|error| broken(Some(error.line() as u64), error.to_string()))?;
    let whole = Value::Object(object.clone());
    serde_json::from_value(whole).map(Some).map_err(|error| {
        // Which key it was is found by trying each alone.
        let alone = |(key, value): (String, Value)| {
            let one = Value::Object(Map::from_iter([(key.clone(), value)]));
            serde_json::from_value::<T>(one).is_err().then_some(key)
        };
        let key = object.into_iter().find_map(alone).unwrap_or_default();
        broken(None, format!("under `{}`: {error}", key.escape_debug()))
    })
}
