//! Integer expressions of constants, enums and arrays.

use super::Layout;
use super::source::Token;

/// An integer expression that is being read.
pub(super) struct Terms<'a> {
    pub(super) layout: &'a Layout,
    pub(super) file: usize,
    pub(super) tokens: &'a [Token],
    pub(super) at: usize,
    pub(super) depth: usize,
}

/// Signs by how they bind, the loosest first.
const SIGNS: [&[&str]; 3] = [&["<<", ">>"], &["+", "-"], &["*", "/", "%"]];

impl Terms<'_> {
    /// The sign that stands here, if it binds like that.
    fn sign(&self, level: usize) -> Option<&'static str> {
        let text = |at: usize| self.tokens.get(at).map_or("", |token| token.text.as_str());
        let (one, two) = (text(self.at), [text(self.at), text(self.at + 1)].concat());
        SIGNS[level].iter().copied().find(|sign| *sign == one || *sign == two)
    }

    pub(super) fn binary(&mut self, level: usize) -> Result<i64, String> {
        if level == SIGNS.len() {
            return self.term();
        }
        let mut left = self.binary(level + 1)?;
        while let Some(sign) = self.sign(level) {
            let line = self.tokens[self.at].line;
            self.at += sign.len();
            let right = self.binary(level + 1)?;
            let bits = u32::try_from(right).ok().filter(|bits| *bits < 32);
            let result = match sign {
                "<<" => bits.and_then(|bits| left.checked_mul(1 << bits)),
                ">>" => bits.map(|bits| left >> bits),
                "+" => left.checked_add(right),
                "-" => left.checked_sub(right),
                "*" => left.checked_mul(right),
                "/" => left.checked_div(right),
                _ => left.checked_rem(right),
            };
            left = match result {
                Some(result) => result,
                None => {
                    let found = format!("{left} {sign} {right}");
                    return self.layout.files[self.file].refuse(
                        line,
                        "an integer that can be computed",
                        &found,
                    );
                }
            };
        }
        Ok(left)
    }

    fn term(&mut self) -> Result<i64, String> {
        let file = &self.layout.files[self.file];
        let Some(token) = self.tokens.get(self.at) else {
            let line = self.tokens.last().map_or(1, |token| token.line);
            return file.refuse(line, "an integer", "the end of its expression");
        };
        self.at += 1;
        match token.text.as_str() {
            "-" => Ok(-self.term()?),
            "(" => {
                let value = self.binary(0)?;
                match self.tokens.get(self.at) {
                    Some(token) if token.text == ")" => self.at += 1,
                    _ => return file.refuse(token.line, ")", "the end of its expression"),
                }
                Ok(value)
            }
            _ if token.is_name() => self.layout.named(self.file, token, self.depth),
            text => {
                let digits = text.trim_end_matches(['u', 'U', 'l', 'L']).replace('\'', "");
                let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
                    Some(digits) => i64::from_str_radix(digits, 16).ok(),
                    // An octal number is none here.
                    None => digits.parse().ok().filter(|_| digits == "0" || !digits.starts_with('0')),
                };
                match value {
                    Some(value) => Ok(value),
                    None => file.refuse(token.line, "an integer", text),
                }
            }
        }
    }
}
