//! Source templates: `"review: {sentence} aspect: {aspect}"`.
//!
//! A slot is `{field}`, `{field or other}` (the first there is), `{path.to.value}`, each optionally followed by filters:
//! `{passage|join_highlights}`. `{{` and `}}` are braces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::row::{Field, Row, quote};
use super::text::{Filter, value_text};
use crate::error::{Error, Result};

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template {
    written: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Literal(String),
    Slot { field: Field, filters: Vec<Filter> },
}

impl Template {
    /// The fields the slots name, in order.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Slot { field, .. } => Some(field),
            Piece::Literal(_) => None,
        })
    }

    /// The filters of the slots, in order.
    pub fn filters(&self) -> impl Iterator<Item = Filter> {
        self.pieces
            .iter()
            .flat_map(|piece| match piece {
                Piece::Slot { filters, .. } => filters.as_slice(),
                Piece::Literal(_) => &[],
            })
            .copied()
    }

    /// The template with `row`'s values in its slots.
    ///
    /// # Errors
    /// [`Error::Format`] with file, line and field if a value is missing or is not text.
    pub fn fill(&self, row: &Row) -> Result<String> {
        let mut filled = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => filled.push_str(text),
                Piece::Slot { field, filters } => {
                    let value = row.get(field)?;
                    let mut text = value_text(value, filters.contains(&Filter::Join), field, row)?;
                    for filter in filters {
                        text = filter.apply(text, row)?;
                    }
                    filled.push_str(&text);
                }
            }
        }
        Ok(filled)
    }

    /// As written by the user.
    pub fn as_str(&self) -> &str {
        &self.written
    }
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(written: &str) -> Result<Self> {
        let unfit = |found: String, advice: &str| {
            Error::setting("template", "text with {field} slots", found, advice.to_owned())
        };
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = written;
        while let Some(brace) = rest.find(['{', '}']) {
            literal.push_str(&rest[..brace]);
            let from_brace = &rest[brace..];
            if let Some(after) = from_brace.strip_prefix("{{") {
                literal.push('{');
                rest = after;
            } else if let Some(after) = from_brace.strip_prefix("}}") {
                literal.push('}');
                rest = after;
            } else if let Some(after) = from_brace.strip_prefix('{') {
                let (slot, after) =
                    after.split_once('}').filter(|(slot, _)| !slot.contains('{')).ok_or_else(|| {
                        unfit(format!("an open brace at {}", quote(from_brace)), "write {{ for a brace")
                    })?;
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(parse_slot(slot)?);
                rest = after;
            } else {
                return Err(unfit(
                    format!("a closing brace at {}", quote(from_brace)),
                    "write }} for a brace",
                ));
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        let template = Self { written: written.to_owned(), pieces };
        if template.fields().next().is_none() {
            return Err(unfit(quote(written), "without a slot every source would be the same"));
        }
        Ok(template)
    }
}

fn parse_slot(slot: &str) -> Result<Piece> {
    let mut parts = slot.split('|').map(str::trim);
    let field = Field::new(parts.next().unwrap_or_default());
    if field.alternatives().any(str::is_empty) {
        return Err(Error::setting("template", "a field name in every slot", format!("{{{slot}}}"), ""));
    }
    let filters = parts.map(str::parse).collect::<Result<_>>()?;
    Ok(Piece::Slot { field, filters })
}

impl TryFrom<String> for Template {
    type Error = Error;

    fn try_from(written: String) -> Result<Self> {
        written.parse()
    }
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.written
    }
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}
