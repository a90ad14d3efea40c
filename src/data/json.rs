//! JSON as it comes: integers of any size keep their digits, and what is no JSON is named.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::tasks::Row;

/// The value of `text`. An integer beyond 64 bits is a string of its digits: as a number it would lose some.
pub(super) fn parse(text: &str) -> serde_json::Result<Value> {
    let value = serde_json::from_str::<Value>(text)?;
    if has_wide(&value) { serde_json::from_str(&with_wide_quoted(text)) } else { Ok(value) }
}

/// Whether a number may be an integer beyond 64 bits.
fn has_wide(value: &Value) -> bool {
    // 2^63: no integer below it is read as a float.
    const WIDE: f64 = 9_223_372_036_854_775_808.0;
    match value {
        Value::Number(number) => {
            number.is_f64() && number.as_f64().is_some_and(|number| number.abs() >= WIDE)
        }
        Value::Array(items) => items.iter().any(has_wide),
        Value::Object(fields) => fields.values().any(has_wide),
        _ => false,
    }
}

/// `text`, its integers beyond 64 bits in quotes.
fn with_wide_quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 16);
    let mut rest = text;
    let in_number = |letter: char| letter.is_ascii_digit() || matches!(letter, '-' | '+' | '.' | 'e' | 'E');
    while let Some(at) = rest.find(|letter: char| letter == '"' || letter == '-' || letter.is_ascii_digit()) {
        let (before, token) = rest.split_at(at);
        quoted.push_str(before);
        let end = if token.starts_with('"') {
            string_end(token)
        } else {
            token.find(|letter| !in_number(letter)).unwrap_or(token.len())
        };
        let (token, after) = token.split_at(end);
        let digits = token.strip_prefix('-').unwrap_or(token);
        let wide = digits.bytes().all(|byte| byte.is_ascii_digit())
            && token.parse::<i64>().is_err()
            && token.parse::<u64>().is_err();
        if wide && !token.starts_with('"') {
            quoted.extend(["\"", token, "\""]);
        } else {
            quoted.push_str(token);
        }
        rest = after;
    }
    quoted.push_str(rest);
    quoted
}

/// Where the string that `text` begins with ends, its quotes included.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The JSON of a row and some more fields, on one line, by name. What the row was read with stays as it was written: numbers keep
/// their digits.
pub fn with_fields(row: &Row, added: Map<String, Value>) -> String {
    let text = row.text().map(compact);
    let read =
        text.as_deref().and_then(|text| serde_json::from_str::<BTreeMap<String, &RawValue>>(text).ok());
    let mut fields: BTreeMap<String, String> = match read {
        Some(fields) => fields.into_iter().map(|(name, value)| (name, value.get().to_owned())).collect(),
        None => row.fields().iter().map(|(name, value)| (name.clone(), value.to_string())).collect(),
    };
    fields.extend(added.into_iter().map(|(name, value)| (name, value.to_string())));
    let fields: Vec<String> =
        fields.into_iter().map(|(name, value)| format!("{}:{value}", Value::String(name))).collect();
    format!("{{{}}}", fields.join(","))
}

/// JSON without the white space between its parts: what came over several lines goes on one.
fn compact(text: &str) -> String {
    let mut compact = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('"') {
        let (before, string) = rest.split_at(at);
        compact.extend(before.split_ascii_whitespace());
        let (string, after) = string.split_at(string_end(string));
        compact.push_str(string);
        rest = after;
    }
    compact.extend(rest.split_ascii_whitespace());
    compact
}

/// Why `text` is no JSON, and what to do.
pub(super) fn advice(text: &str, error: &serde_json::Error) -> String {
    // serde_json counts lines within the text it got; rows of an array may have several.
    let message = error.to_string();
    let reason = message.split(" at line ").next().unwrap_or_default();
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let at = error.column().saturating_sub(1);
    // A word is refused at one of its letters.
    let start = line.as_bytes()[..at.min(line.len())]
        .iter()
        .rposition(|byte| !(byte.is_ascii_alphabetic() || *byte == b'-'))
        .map_or(0, |before| before + 1);
    let word =
        |name: &str| line.get(start..).is_some_and(|rest| rest.trim_start_matches('-').starts_with(name));
    if let Some(name) = ["NaN", "Infinity"].into_iter().find(|name| word(name)) {
        return format!(
            "{name} at column {} is no JSON, though Python writes it for a missing or boundless number: write null, \
             or save with pandas' to_json(orient=\"records\", lines=True)",
            start + 1
        );
    }
    if error.is_eof() {
        return format!(
            "{reason} at column {}: each object stands on one line, as `jq -c` and pandas' to_json(orient=\"records\", \
             lines=True) write it",
            error.column()
        );
    }
    format!("{reason} at column {}", error.column())
}
