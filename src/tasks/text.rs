//! What is done to a field's text before it enters a source or target.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use super::row::{Field, Row, quote};
use crate::error::{Error, Result};
use crate::metrics::answers::{is_space, is_word};

/// A named change of one field's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Filter {
    /// A space on both sides of every punctuation mark, then single spaces (SQuAD and its kin).
    SpacePunctuation,
    /// `<br>` becomes a space, `<b>` and `</b>` nothing (MultiRC).
    RemoveMarkup,
    /// `@highlight` lines become sentences of the passage (ReCoRD).
    JoinHighlights,
    /// The row's two spans marked `* first *` and `# second #` (WSC).
    MarkSpans,
    /// A list's entries separated by commas.
    Join,
}

const FILTERS: [(&str, Filter); 5] = [
    ("space_punctuation", Filter::SpacePunctuation),
    ("remove_markup", Filter::RemoveMarkup),
    ("join_highlights", Filter::JoinHighlights),
    ("mark_spans", Filter::MarkSpans),
    ("join", Filter::Join),
];

impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = FILTERS.iter().find(|(_, filter)| filter == self).map_or("", |(name, _)| name);
        formatter.write_str(name)
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        FILTERS.iter().find(|(known, _)| *known == name).map(|(_, filter)| *filter).ok_or_else(|| {
            let names: Vec<_> = FILTERS.iter().map(|(name, _)| *name).collect();
            Error::setting("template filter", format!("one of {}", names.join(", ")), quote(name), "")
        })
    }
}

impl Filter {
    /// The fields that [`Filter::MarkSpans`] reads beside its own.
    pub(crate) const SPANS: [&str; 4] = ["span1_text", "span1_index", "span2_text", "span2_index"];

    /// The text after this change. `row` is where it came from.
    ///
    /// # Errors
    /// [`Error::Format`] if [`Filter::MarkSpans`] does not find a span in the text.
    pub fn apply(self, text: String, row: &Row) -> Result<String> {
        Ok(match self {
            Self::SpacePunctuation => space_punctuation(&text),
            Self::RemoveMarkup => text.replace("<br>", " ").replace("<b>", "").replace("</b>", ""),
            Self::JoinHighlights => join_highlights(&text),
            Self::MarkSpans => mark_spans(text, row)?,
            // Lists are joined when the value becomes text; what is text already stays.
            Self::Join => text,
        })
    }
}

/// The text of a JSON value: strings as they are, numbers and booleans as JSON writes them, lists only for
/// [`Filter::Join`].
pub(crate) fn value_text(value: &Value, join: bool, field: &Field, row: &Row) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Array(items) if join => {
            let texts: Result<Vec<_>> =
                items.iter().map(|item| value_text(item, false, field, row)).collect();
            texts?.join(", ")
        }
        other => {
            let advice = match other {
                Value::Array(_) => "write {field|join} for a list, or pick an entry with {field.0}",
                Value::Object(_) => "pick a value inside it with {field.name}",
                _ => "leave such rows out of the file",
            };
            return Err(row.error(format!("text in field {field}"), quote(&other.to_string()), advice));
        }
    })
}

fn space_punctuation(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len() + text.len() / 8);
    for letter in text.chars() {
        // One space stands for any run of white space, also for that around the mark before.
        if is_space(letter) {
            push_space(&mut spaced);
        } else if is_word(letter) || letter.general_category_group() == GeneralCategoryGroup::Mark {
            spaced.push(letter);
        } else {
            push_space(&mut spaced);
            spaced.push(letter);
            spaced.push(' ');
        }
    }
    spaced
}

fn push_space(text: &mut String) {
    if !text.ends_with(' ') {
        text.push(' ');
    }
}

fn join_highlights(passage: &str) -> String {
    let mut joined = String::with_capacity(passage.len());
    for (position, part) in passage.split("\n@highlight\n").enumerate() {
        if position > 0 {
            // What already ends like a sentence needs no full stop.
            joined.push_str(if joined.ends_with(['.', '?', '!', '"', '\'']) { " " } else { ". " });
        }
        joined.push_str(part);
    }
    joined
}

fn mark_spans(text: String, row: &Row) -> Result<String> {
    let [first, first_word, second, second_word] = Filter::SPANS;
    let (first, first_word) = span(row, first, first_word)?;
    let (second, second_word) = span(row, second, second_word)?;
    let marked = mark_span(&text, &first, first_word, '*', row)?;
    // The two marks around the first span are words themselves.
    let shift = if marked.is_some() && first_word < second_word { 2 } else { 0 };
    let text = marked.unwrap_or(text);
    let marked = mark_span(&text, &second, second_word.saturating_add(shift), '#', row)?;
    Ok(marked.unwrap_or(text))
}

fn span(row: &Row, text: &str, index: &str) -> Result<(String, usize)> {
    let (text, index) = (Field::new(text), Field::new(index));
    let words = value_text(row.get(&text)?, false, &text, row)?;
    if words.is_empty() {
        return Err(row.error(format!("text in field {text}"), "an empty string", ""));
    }
    let number = value_text(row.get(&index)?, false, &index, row)?;
    let number = number.trim().parse().map_err(|_| {
        row.error(format!("the number of the span's first word in field {index}"), quote(&number), "")
    })?;
    Ok((words, number))
}

/// Marks the span at word `word`; where the file's word count is off, its occurrence nearest to that word. `None` where the text
/// has the span's words with others between them: the hub's WSC has such rows, and they stay unmarked.
fn mark_span(text: &str, span: &str, word: usize, mark: char, row: &Row) -> Result<Option<String>> {
    let expected_start = word_start(text, word).unwrap_or(text.len());
    let start = if text[expected_start..].starts_with(span) {
        Some(expected_start)
    } else {
        text.match_indices(span)
            .map(|(start, _)| start)
            // Whole words before parts of words: `he` is not meant to be found in `the`.
            .min_by_key(|start| (!is_whole(text, *start, span), start.abs_diff(expected_start)))
    };
    let Some(start) = start else {
        if has_words_apart(text, span) {
            return Ok(None);
        }
        let advice = "both spans must be parts of the text, letter for letter";
        return Err(row.error(format!("the span {} in field `text`", quote(span)), quote(text), advice));
    };
    let (before, rest) = text.split_at(start);
    let (span, after) = rest.split_at(span.len());
    Ok(Some(format!("{before}{mark} {span} {mark}{after}")))
}

/// Whether the words of a span, two at least, stand in the text in their order.
fn has_words_apart(text: &str, span: &str) -> bool {
    let words: Vec<&str> =
        span.split(|letter: char| !is_word(letter)).filter(|word| !word.is_empty()).collect();
    let mut rest = text.split(|letter: char| !is_word(letter));
    words.len() > 1 && words.iter().all(|word| rest.any(|other| other == *word))
}

fn is_whole(text: &str, start: usize, span: &str) -> bool {
    let outside = [text[..start].chars().next_back(), text[start + span.len()..].chars().next()];
    !outside.into_iter().flatten().any(is_word)
}

/// Where word number `word` starts, words being separated by one white space each.
fn word_start(text: &str, word: usize) -> Option<usize> {
    let mut start = 0;
    for _ in 0..word {
        let rest = &text[start..];
        let (space, letter) = rest.char_indices().find(|(_, letter)| is_space(*letter))?;
        start += space + letter.len_utf8();
    }
    Some(start)
}
