//! Whether a tokenizer can write a task's labels, and how it writes them.
//!
//! A label that comes back from its tokens as other text could never be answered, so answers are compared with what does
//! come back; one that has no tokens of its own cannot be learnt at all.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::pretrained::Tokenizer;
use crate::tasks::Task;

/// The labels of a task by what their tokens say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spellings {
    labels: HashMap<String, String>,
}

impl Spellings {
    /// Writes every label of `task` in tokens and reads it back. A task of free answers has none.
    ///
    /// # Errors
    /// [`Error::Setting`] that names a label with text that the tokenizer has no piece for, one that ends before its last
    /// letter, and two labels of the same tokens or the same text.
    pub fn new(tokenizer: &Tokenizer, task: &Task) -> Result<Self> {
        let refuse = |found: String| {
            Err(Error::setting(
                format!("the labels of {}", task.name),
                format!(
                    "text that the tokenizer {} can write, each label in other tokens",
                    tokenizer.path().display()
                ),
                found,
                "choose other words for them: --labels VALUE=WORD,VALUE=WORD keeps the data's values",
            ))
        };
        let mut labels: HashMap<String, String> = HashMap::new();
        let mut tokens: HashMap<Vec<u32>, String> = HashMap::new();
        for label in task.labels().unwrap_or_default() {
            let quoted = quoted(&label);
            let ids = tokenizer.encode(&label)?;
            if let Some(unknown) = tokenizer.unknown_token_id().filter(|id| ids.contains(id)) {
                let mut letters: Vec<String> = Vec::new();
                for letter in label.chars() {
                    let alone = tokenizer.encode(letter.encode_utf8(&mut [0; 4]))?;
                    if alone.contains(&unknown) && !letters.contains(&letter.to_string()) {
                        letters.push(letter.to_string());
                    }
                }
                let what = if letters.is_empty() { "part of it".to_owned() } else { letters.join(" ") };
                return refuse(format!("{quoted}, of which {what} is unknown to it"));
            }
            let end = tokenizer.eos_token_id();
            if ids.iter().position(|&id| id == end) != Some(ids.len() - 1) {
                return refuse(format!("{quoted}, which holds the end of a sequence"));
            }
            let written = tokenizer.decode(&ids)?.trim().to_owned();
            if let Some(other) = tokens.insert(ids, label.clone()) {
                return refuse(format!("{} and {quoted} in the same tokens", self::quoted(&other)));
            }
            if let Some(other) = labels.insert(written.clone(), label) {
                return refuse(format!(
                    "{} and {quoted}, both written as {}",
                    self::quoted(&other),
                    self::quoted(&written)
                ));
            }
        }
        Ok(Self { labels })
    }

    /// Labels that come back from their tokens as other text, and that text, in order of the labels.
    pub fn respelled(&self) -> Vec<(&str, &str)> {
        let pairs = self.labels.iter().map(|(written, label)| (label.as_str(), written.as_str()));
        let mut other: Vec<(&str, &str)> =
            pairs.filter(|(label, written)| label.trim() != *written).collect();
        other.sort_unstable();
        other
    }

    /// The label whose tokens say `text`; another answer stays as it is.
    pub fn label(&self, text: String) -> String {
        self.labels.get(&text).cloned().unwrap_or(text)
    }
}

fn quoted(text: &str) -> String {
    format!("`{}`", text.escape_debug())
}
