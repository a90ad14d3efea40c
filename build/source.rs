//! What files of kernels declare: constants, enums, structs and kernels, with their includes. It reads the little of C++ that those
//! are written in, and refuses the rest of them with file and line.

use std::collections::BTreeMap;
use std::path::Path;

/// One file of kernels: its name, and what stands in it.
#[derive(Clone, Debug)]
pub struct Source {
    /// With its extension.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// Every file of kernels and every header in `folder`, in order of their names.
///
/// # Errors
/// What cannot be read.
pub fn read(folder: &Path) -> Result<Vec<Source>, String> {
    let fail = |path: &Path, error| format!("could not read {}: {error}", path.display());
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| fail(folder, error))? {
        let path = entry.map_err(|error| fail(folder, error))?.path();
        if path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
            let text = std::fs::read_to_string(&path).map_err(|error| fail(&path, error))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            sources.push(Source { name, text });
        }
    }
    sources.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(sources)
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) line: usize,
}

impl Token {
    pub(super) fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    }
}

/// An integer: what an expression comes to, and so many more.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) expression: Vec<Token>,
    pub(super) more: i64,
}

#[derive(Clone, Debug)]
pub(super) struct Enum {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) values: Vec<(String, Value)>,
}

/// A struct's name, and the tokens after it up to its closing brace.
#[derive(Clone, Debug)]
pub(super) struct Body {
    pub(super) name: String,
    pub(super) line: usize,
    /// What `alignas` says of it.
    pub(super) alignment: Option<Value>,
    pub(super) tokens: Vec<Token>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) takes: Token,
    /// Threads of a block, where its launch bounds say so.
    pub(super) threads: Option<Value>,
}

/// What one file declares outside of functions and classes.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) includes: Vec<String>,
    pub(super) constants: Vec<(String, Value)>,
    pub(super) enums: Vec<Enum>,
    pub(super) structs: Vec<Body>,
    pub(super) kernels: Vec<Entry>,
    /// What stands after the code of a line.
    pub(super) comments: BTreeMap<usize, String>,
}

impl File {
    pub(super) fn stem(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }

    pub(super) fn refuse<T>(&self, line: usize, expected: &str, found: &str) -> Result<T, String> {
        Err(format!("kernels/{}:{line}: expected {expected}, found {found}", self.name))
    }

    /// Splits text into names, numbers and signs, without comments and strings; of what the preprocessor is told, includes
    /// alone are kept.
    fn tokens(&mut self, text: &str) -> Result<Vec<Token>, String> {
        let (mut tokens, mut line, mut rest, mut begins) = (Vec::new(), 1, text, true);
        while let Some(c) = rest.chars().next() {
            let length = if c.is_whitespace() {
                1
            } else if rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                match rest.find("*/") {
                    Some(end) => end + 2,
                    None => return self.refuse(line, "*/", "the end of the file"),
                }
            } else if c == '#' && begins {
                let lines = rest.split_inclusive('\n');
                let mut length = 0;
                for one in lines {
                    length += one.len();
                    if !one.trim_end().ends_with('\\') {
                        break;
                    }
                }
                let told = rest[1..length].trim_start();
                if let Some(include) = told.strip_prefix("include").map(str::trim_start)
                    && let Some((name, _)) = include.strip_prefix('"').and_then(|name| name.split_once('"'))
                {
                    self.includes.push(name.to_owned());
                }
                length
            } else if c == '"' || c == '\'' {
                let mut escaped = false;
                let end = rest[1..].find(|found| {
                    let ends = found == c && !escaped;
                    escaped = found == '\\' && !escaped;
                    ends
                });
                match end {
                    Some(end) => end + 2,
                    None => return self.refuse(line, "the end of a string", "the end of the file"),
                }
            } else if c.is_ascii_alphanumeric() || c == '_' {
                let number = c.is_ascii_digit();
                let within =
                    |c: char| c.is_ascii_alphanumeric() || c == '_' || (number && (c == '.' || c == '\''));
                rest.find(|c| !within(c)).unwrap_or(rest.len())
            } else {
                c.len_utf8()
            };
            let token = &rest[..length.max(c.len_utf8())];
            let blank = c.is_whitespace() || token.starts_with("//") || token.starts_with("/*");
            if let Some(comment) = token.strip_prefix("//")
                && tokens.last().is_some_and(|last: &Token| last.line == line)
            {
                self.comments.insert(line, comment.trim().to_owned());
            }
            if !blank && c != '"' && c != '\'' && !(c == '#' && begins) {
                tokens.push(Token { text: token.to_owned(), line });
            }
            begins = if blank { begins || token.contains('\n') } else { token.ends_with('\n') };
            line += token.matches('\n').count();
            rest = &rest[token.len()..];
        }
        Ok(tokens)
    }

    pub(super) fn of(source: &Source) -> Result<Self, String> {
        let mut file = Self { name: source.name.clone(), ..Self::default() };
        let tokens = file.tokens(&source.text)?;
        let mut at = Cursor { file: &file.name.clone(), tokens: &tokens, at: 0 };
        let mut template = false;
        while let Some(token) = at.next() {
            match token.text.as_str() {
                "namespace" => while at.next().is_some_and(|token| token.text != "{") {},
                "using" => while at.next().is_some_and(|token| token.text != ";") {},
                "{" => drop(at.within("{", "}")?),
                "enum" => file.enums.push(at.enumeration()?),
                "constexpr" => at.constants(&mut file.constants)?,
                "__global__" => file.kernels.push(at.kernel()?),
                "template" => {
                    template = true;
                    continue;
                }
                "struct" => {
                    let mut alignment = None;
                    if at.reads("alignas") {
                        at.expect("(")?;
                        alignment = Some(Value { expression: at.expression(&[")"])?, more: 0 });
                        at.expect(")")?;
                    }
                    let name = at.name("the name of a struct")?;
                    let mut tokens = Vec::new();
                    while let Some(token) = at.next() {
                        tokens.push(token.clone());
                        match token.text.as_str() {
                            ";" => break,
                            "{" => {
                                tokens.extend(at.within("{", "}")?);
                                break;
                            }
                            _ => {}
                        }
                    }
                    // A declaration says nothing, and a template has no one layout.
                    if !template && tokens.last().is_some_and(|token| token.text != ";") {
                        file.structs.push(Body { name: name.text, line: name.line, alignment, tokens });
                    }
                }
                // Between `template` and what it is of.
                _ if template && token.text != ";" => continue,
                _ => {}
            }
            template = false;
        }
        Ok(file)
    }
}

/// Tokens that are read one after the other.
pub(super) struct Cursor<'a> {
    pub(super) file: &'a str,
    pub(super) tokens: &'a [Token],
    pub(super) at: usize,
}

impl Cursor<'_> {
    pub(super) fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", |token| token.text.as_str())
    }

    pub(super) fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// The refusal of the token that was read last.
    pub(super) fn refuse<T>(&self, expected: &str) -> Result<T, String> {
        let last = self.tokens.get(self.at.saturating_sub(1));
        let line = last.or(self.tokens.last()).map_or(1, |token| token.line);
        let found = last.map_or("the end", |token| token.text.as_str());
        Err(format!("kernels/{}:{line}: expected {expected}, found {found}", self.file))
    }

    pub(super) fn expect(&mut self, text: &str) -> Result<(), String> {
        match self.next() {
            Some(token) if token.text == text => Ok(()),
            _ => self.refuse(text),
        }
    }

    pub(super) fn name(&mut self, what: &str) -> Result<Token, String> {
        match self.next() {
            Some(token) if token.is_name() => Ok(token),
            _ => self.refuse(what),
        }
    }

    /// Whether `text` comes next; it is read then.
    pub(super) fn reads(&mut self, text: &str) -> bool {
        let reads = self.peek() == text;
        self.at += usize::from(reads);
        reads
    }

    /// The tokens up to the sign that closes what was opened before, and that sign.
    pub(super) fn within(&mut self, opens: &str, closes: &str) -> Result<Vec<Token>, String> {
        let (start, mut depth) = (self.at, 1);
        while depth > 0 {
            match self.next() {
                Some(token) if token.text == opens => depth += 1,
                Some(token) if token.text == closes => depth -= 1,
                Some(_) => {}
                None => return self.refuse(closes),
            }
        }
        Ok(self.tokens[start..self.at].to_vec())
    }

    /// An expression, up to one of `ends`, which is not read.
    pub(super) fn expression(&mut self, ends: &[&str]) -> Result<Vec<Token>, String> {
        let mut expression = Vec::new();
        while !ends.contains(&self.peek()) {
            match self.next() {
                Some(token) => expression.push(token),
                None => return self.refuse(ends[0]),
            }
        }
        if expression.is_empty() {
            self.at += 1;
            return self.refuse("an integer");
        }
        Ok(expression)
    }

    fn enumeration(&mut self) -> Result<Enum, String> {
        let name = self.name("the name of a plain enum")?;
        if name.text == "class" || name.text == "struct" {
            return self.refuse("a plain enum: `enum Name : int { .. };`");
        }
        if self.reads(":") {
            self.expect("int")?;
        }
        self.expect("{")?;
        let mut values: Vec<(String, Value)> = Vec::new();
        while !self.reads("}") {
            let of = self.name("the name of a value")?;
            let value = if self.reads("=") {
                Value { expression: self.expression(&[",", "}"])?, more: 0 }
            } else {
                let first = || Value { expression: vec![Token { text: "0".into(), line: of.line }], more: 0 };
                values
                    .last()
                    .map_or_else(first, |(_, before)| Value { more: before.more + 1, ..before.clone() })
            };
            values.push((of.text, value));
            if self.peek() != "}" {
                self.expect(",")?;
            }
        }
        self.expect(";")?;
        Ok(Enum { name: name.text, line: name.line, values })
    }

    /// Numbers that are no integers are of no use to the host.
    fn constants(&mut self, constants: &mut Vec<(String, Value)>) -> Result<(), String> {
        match self.next().as_ref().map(|token| token.text.as_str()) {
            Some("int") => {}
            Some("float" | "double") => return Ok(()),
            _ => return self.refuse("`constexpr int`, or float or double"),
        }
        loop {
            let name = self.name("the name of a constant")?;
            self.expect("=")?;
            let value = Value { expression: self.expression(&[",", ";"])?, more: 0 };
            constants.push((name.text, value));
            if self.reads(";") {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    fn kernel(&mut self) -> Result<Entry, String> {
        self.expect("void")?;
        let mut threads = None;
        if self.reads("__launch_bounds__") {
            self.expect("(")?;
            let expression = self.expression(&[",", ")"])?;
            threads = Some(Value { expression, more: 0 });
            self.within("(", ")")?;
        }
        // The driver knows the size of its clusters from the kernel itself.
        if self.reads("__cluster_dims__") {
            self.expect("(")?;
            self.within("(", ")")?;
        }
        let name = self.name("the name of a kernel")?;
        self.expect("(")?;
        while self.reads("const") || self.reads("__grid_constant__") {}
        let takes = self.name("a struct named ..Arguments")?;
        if !takes.text.ends_with("Arguments") {
            return self.refuse("a struct named ..Arguments");
        }
        self.name("the name of the one argument, taken by value")?;
        self.expect(")")?;
        Ok(Entry { name: name.text, takes, threads })
    }
}
