//! Splits PTX text into tokens. Knows nothing of the grammar.

use super::PtxError;

/// One token, borrowing from the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// An identifier, directive, register or dotted opcode: `%r1`, `.loc`, `ld.global.nc.v4.u32`.
    Word(&'a str),
    /// An integer without its sign.
    Integer(u64),
    /// `0f` and eight hexadecimal digits, as bits.
    Single(u32),
    /// `0d` and sixteen hexadecimal digits, or a decimal fraction, as bits.
    Double(u64),
    /// The inside of a quoted string.
    Text(&'a str),
    /// Any other ASCII character that PTX uses.
    Mark(u8),
    /// The end of the text.
    End,
}

/// A token and the line that it stands on, counted from 1.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// The token.
    pub token: Token<'a>,
    /// Its line.
    pub line: u32,
}

/// All tokens of `text`, the last of them [`Token::End`].
///
/// # Errors
/// Characters that PTX has no use for, unfinished strings and comments, and numbers that do not fit.
pub fn tokens(text: &str) -> Result<Vec<Placed<'_>>, PtxError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4);
    let (mut at, mut line) = (0usize, 1u32);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b' ' | b'\t' | b'\r' | 0x0c => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while bytes.get(at).is_some_and(|&b| b != b'\n') {
                    at += 1;
                }
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let start = line;
                at += 2;
                loop {
                    match (bytes.get(at), bytes.get(at + 1)) {
                        (Some(b'*'), Some(b'/')) => break,
                        (Some(b'\n'), _) => line += 1,
                        (Some(_), _) => {}
                        (None, _) => return Err(PtxError::at(start, "a comment that never ends")),
                    }
                    at += 1;
                }
                at += 2;
            }
            b'"' => {
                let start = at + 1;
                let length = bytes[start..].iter().position(|&b| b == b'"' || b == b'\n');
                match length {
                    Some(length) if bytes[start + length] == b'"' => {
                        out.push(Placed {
                            token: Token::Text(slice(text, start, start + length, line)?),
                            line,
                        });
                        at = start + length + 1;
                    }
                    _ => return Err(PtxError::at(line, "a string that never ends")),
                }
            }
            b'0'..=b'9' => {
                let (token, next) = number(text, at, line)?;
                out.push(Placed { token, line });
                at = next;
            }
            _ if starts_word(byte) => {
                let start = at;
                at += 1;
                while let Some(&b) = bytes.get(at) {
                    // Directives may follow each other without a space, as `.reg.b32` does.
                    if byte == b'.' && b == b'.' {
                        break;
                    }
                    if starts_word(b) || b.is_ascii_digit() {
                        at += 1;
                    } else if b == b':'
                        && bytes.get(at + 1) == Some(&b':')
                        && bytes.get(at + 2).is_some_and(|&b| starts_word(b) || b.is_ascii_digit())
                    {
                        at += 2;
                    } else {
                        break;
                    }
                }
                out.push(Placed { token: Token::Word(slice(text, start, at, line)?), line });
            }
            b',' | b';' | b':' | b'[' | b']' | b'{' | b'}' | b'(' | b')' | b'<' | b'>' | b'|' | b'!'
            | b'@' | b'+' | b'-' | b'=' | b'*' | b'/' | b'~' | b'&' | b'^' | b'?' => {
                out.push(Placed { token: Token::Mark(byte), line });
                at += 1;
            }
            _ => {
                return Err(PtxError::at(
                    line,
                    format!("the character 0x{byte:02x}, which PTX does not use"),
                ));
            }
        }
    }
    out.push(Placed { token: Token::End, line });
    Ok(out)
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

fn slice(text: &str, start: usize, end: usize, line: u32) -> Result<&str, PtxError> {
    text.get(start..end).ok_or_else(|| PtxError::at(line, "text that is not ASCII"))
}

fn number(text: &str, start: usize, line: u32) -> Result<(Token<'_>, usize), PtxError> {
    let bytes = text.as_bytes();
    let mut end = start;
    while bytes.get(end).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'.') {
        end += 1;
    }
    // A decimal exponent may carry a sign.
    let word = slice(text, start, end, line)?;
    let bad = || PtxError::at(line, format!("the number {word:?}, which does not read or fit"));
    let hexadecimal = |digits: &str, wanted: usize| {
        if digits.len() == wanted { u64::from_str_radix(digits, 16).map_err(|_| bad()) } else { Err(bad()) }
    };
    let token = match word.get(..2) {
        Some("0f" | "0F") => Token::Single(hexadecimal(&word[2..], 8)? as u32),
        Some("0d" | "0D") => Token::Double(hexadecimal(&word[2..], 16)?),
        _ if word.contains('.') => Token::Double(word.parse::<f64>().map_err(|_| bad())?.to_bits()),
        prefix => {
            let digits = word.strip_suffix(['U', 'u']).unwrap_or(word);
            let value = match prefix {
                Some("0x" | "0X") => u64::from_str_radix(&digits[2..], 16),
                Some("0b" | "0B") => u64::from_str_radix(&digits[2..], 2),
                _ if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(&digits[1..], 8),
                _ => digits.parse(),
            };
            Token::Integer(value.map_err(|_| bad())?)
        }
    };
    Ok((token, end))
}
