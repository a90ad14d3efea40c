//! What host and kernels share, read out of `kernels/` and written in Rust: the structs that kernels take or the host fills,
//! integer constants, and enums. The kernels' files are the one place that says them.
//!
//! It reads the little of C++ that those are written in, and refuses the rest of such a struct, constant or enum with its
//! file and line. Uses the standard library alone: `build.rs` includes this file, and so does its test.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

#[path = "header.rs"]
pub mod header;

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
struct Token {
    text: String,
    line: usize,
}

impl Token {
    fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    }
}

/// An integer: what an expression comes to, and so many more.
#[derive(Clone, Debug)]
struct Value {
    expression: Vec<Token>,
    more: i64,
}

#[derive(Clone, Debug)]
struct Enum {
    name: String,
    line: usize,
    values: Vec<(String, Value)>,
}

/// A struct's name, and the tokens behind it up to its closing brace.
#[derive(Clone, Debug)]
struct Body {
    name: String,
    line: usize,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    takes: Token,
    /// Threads of a block, where its launch bounds say so.
    threads: Option<Value>,
}

/// What one file declares outside of functions and classes.
#[derive(Clone, Debug, Default)]
struct File {
    name: String,
    includes: Vec<String>,
    constants: Vec<(String, Value)>,
    enums: Vec<Enum>,
    structs: Vec<Body>,
    kernels: Vec<Entry>,
    /// What stands behind the code of a line.
    comments: BTreeMap<usize, String>,
}

impl File {
    fn stem(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }

    fn refuse<T>(&self, line: usize, expected: &str, found: &str) -> Result<T, String> {
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

    fn of(source: &Source) -> Result<Self, String> {
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
                        file.structs.push(Body { name: name.text, line: name.line, tokens });
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
struct Cursor<'a> {
    file: &'a str,
    tokens: &'a [Token],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", |token| token.text.as_str())
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// The refusal of the token that was read last.
    fn refuse<T>(&self, expected: &str) -> Result<T, String> {
        let last = self.tokens.get(self.at.saturating_sub(1));
        let line = last.or(self.tokens.last()).map_or(1, |token| token.line);
        let found = last.map_or("the end", |token| token.text.as_str());
        Err(format!("kernels/{}:{line}: expected {expected}, found {found}", self.file))
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        match self.next() {
            Some(token) if token.text == text => Ok(()),
            _ => self.refuse(text),
        }
    }

    fn name(&mut self, what: &str) -> Result<Token, String> {
        match self.next() {
            Some(token) if token.is_name() => Ok(token),
            _ => self.refuse(what),
        }
    }

    /// Whether `text` comes next; it is read then.
    fn reads(&mut self, text: &str) -> bool {
        let reads = self.peek() == text;
        self.at += usize::from(reads);
        reads
    }

    /// The tokens up to the sign that closes what was opened before, and that sign.
    fn within(&mut self, opens: &str, closes: &str) -> Result<Vec<Token>, String> {
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
    fn expression(&mut self, ends: &[&str]) -> Result<Vec<Token>, String> {
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

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// A number, by its name in Rust, of so many bytes.
    Number(&'static str, usize),
    /// An address, and what lies there if that is a struct of the kernels.
    Address(Option<(usize, usize)>),
    /// A struct, by its file and place there.
    Struct(usize, usize),
}

/// A field of a struct.
#[derive(Clone, Debug)]
struct Field {
    name: String,
    kind: Kind,
    /// Of an array, from the outside.
    counts: Vec<usize>,
    /// Its type as the file has it.
    of: String,
    /// What the file says of it on its line.
    comment: String,
}

/// A struct as host and kernels share it.
#[derive(Clone, Debug)]
struct Struct {
    name: String,
    fields: Vec<Field>,
    size: usize,
    alignment: usize,
}

/// All that host and kernels share.
#[derive(Clone, Debug)]
pub struct Layout {
    files: Vec<File>,
    structs: BTreeMap<(usize, usize), Struct>,
}

/// Deeper than anything that C++ accepts here: what goes on longer goes round.
const DEEPEST: usize = 32;

/// Words of Rust that C++ takes as names.
const WORDS: [&str; 25] = [
    "as", "async", "await", "dyn", "fn", "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub",
    "ref", "trait", "type", "unsafe", "use", "where", "gen", "box", "macro", "yield", "abstract",
];

impl Layout {
    /// What `sources` share with the host.
    ///
    /// # Errors
    /// The file, the line and what was expected there.
    pub fn of(sources: &[Source]) -> Result<Self, String> {
        let files = sources.iter().map(File::of).collect::<Result<Vec<File>, String>>()?;
        let mut layout = Self { files, structs: BTreeMap::new() };
        for file in 0..layout.files.len() {
            let of_file = layout.files[file].clone();
            for (place, body) in of_file.structs.iter().enumerate() {
                if body.name.ends_with("Arguments") {
                    layout.lay_out((file, place), 0)?;
                }
            }
            for kernel in &of_file.kernels {
                let known = layout.find(file, &kernel.takes.text);
                if known.is_none() {
                    return of_file.refuse(
                        kernel.takes.line,
                        "a struct of this file or its includes",
                        &kernel.takes.text,
                    );
                }
            }
        }
        layout.check_names()?;
        Ok(layout)
    }

    /// A file and all that it includes.
    fn scope(&self, file: usize) -> Vec<usize> {
        let mut scope = vec![file];
        let mut at = 0;
        while at < scope.len() {
            for include in &self.files[scope[at]].includes {
                let found = self.files.iter().position(|other| other.name == *include);
                scope.extend(found.filter(|found| !scope.contains(found)));
            }
            at += 1;
        }
        scope
    }

    fn find(&self, file: usize, name: &str) -> Option<(usize, usize)> {
        self.scope(file).into_iter().find_map(|file| {
            let place = self.files[file].structs.iter().position(|body| body.name == name)?;
            Some((file, place))
        })
    }

    fn value(&self, file: usize, value: &Value, depth: usize) -> Result<i64, String> {
        let mut terms = Terms { layout: self, file, tokens: &value.expression, at: 0, depth };
        let sum = terms.binary(0)?;
        if let Some(token) = value.expression.get(terms.at) {
            return self.files[file].refuse(token.line, "the end of an integer expression", &token.text);
        }
        let line = value.expression.first().map_or(1, |token| token.line);
        match sum.checked_add(value.more).filter(|sum| i32::try_from(*sum).is_ok()) {
            Some(sum) => Ok(sum),
            None => self.files[file].refuse(line, "an integer of 32 bits", &sum.to_string()),
        }
    }

    fn named(&self, file: usize, token: &Token, depth: usize) -> Result<i64, String> {
        let name = token.text.as_str();
        for file in self.scope(file) {
            let of = &self.files[file];
            let values = of.constants.iter().chain(of.enums.iter().flat_map(|one| &one.values));
            if let Some((_, value)) = values.into_iter().find(|(known, _)| known == name)
                && depth < DEEPEST
            {
                return self.value(file, value, depth + 1);
            }
        }
        self.files[file].refuse(token.line, "an integer, or the name of one that is known here", name)
    }

    /// Reads a struct, and those in it and behind its pointers.
    fn lay_out(&mut self, key: (usize, usize), depth: usize) -> Result<(usize, usize), String> {
        if let Some(known) = self.structs.get(&key) {
            return Ok((known.size, known.alignment));
        }
        let file = self.files[key.0].clone();
        let body = file.structs[key.1].clone();
        if depth > DEEPEST {
            return file.refuse(body.line, "a struct that does not hold itself", &body.name);
        }
        let mut at = Cursor { file: &file.name, tokens: &body.tokens, at: 0 };
        at.expect("{")?;
        let (mut fields, mut size, mut alignment, mut behind) = (Vec::new(), 0, 1, Vec::new());
        while !at.reads("}") {
            let (line, field) = self.field(key.0, &mut at)?;
            let (one, aligned) = match field.kind {
                Kind::Number(_, bytes) => (bytes, bytes),
                Kind::Address(of) => {
                    behind.extend(of);
                    (8, 8)
                }
                Kind::Struct(file, place) => self.lay_out((file, place), depth + 1)?,
            };
            if size % aligned != 0 {
                let found = format!("{} bytes of padding that no field names", aligned - size % aligned);
                return file.refuse(
                    line,
                    &format!("{} to begin where the field before ends", field.name),
                    &found,
                );
            }
            size += one * field.counts.iter().product::<usize>();
            alignment = alignment.max(aligned);
            fields.push(field);
        }
        if fields.is_empty() || size % alignment != 0 {
            let found = format!("{size} bytes: add a field `int padding`");
            let expected = format!("{} of a multiple of {alignment} bytes", body.name);
            return file.refuse(body.line, &expected, &found);
        }
        self.structs.insert(key, Struct { name: body.name, fields, size, alignment });
        for key in behind {
            self.lay_out(key, 0)?;
        }
        Ok((size, alignment))
    }

    fn field(&self, file: usize, at: &mut Cursor<'_>) -> Result<(usize, Field), String> {
        const EXPECTED: &str = "a field of a number, a pointer, a struct of the kernels or an array of one";
        let start = at.at;
        at.reads("const");
        let first = at.name(EXPECTED)?;
        let mut of = first.text.clone();
        while of.starts_with("unsigned") || of.starts_with("long") {
            let next = at.peek();
            if !["int", "long", "unsigned"].contains(&next) {
                break;
            }
            of = format!("{of} {next}");
            at.next();
        }
        let mut address = false;
        while at.reads("*") || (address && (at.reads("const") || at.reads("__restrict__"))) {
            address = true;
        }
        let known = self.find(file, &of);
        let kind = match of.as_str() {
            _ if address => Kind::Address(known),
            "int" | "int32_t" => Kind::Number("i32", 4),
            "unsigned" | "unsigned int" | "uint32_t" => Kind::Number("u32", 4),
            "float" => Kind::Number("f32", 4),
            "double" => Kind::Number("f64", 8),
            "long long" | "long long int" | "int64_t" => Kind::Number("i64", 8),
            "unsigned long long" | "unsigned long long int" | "uint64_t" => Kind::Number("u64", 8),
            _ => match known {
                Some((file, place)) => Kind::Struct(file, place),
                None => return self.files[file].refuse(first.line, EXPECTED, &of),
            },
        };
        let words: Vec<&str> = at.tokens[start..at.at].iter().map(|token| token.text.as_str()).collect();
        let name = at.name("the name of a field")?;
        let mut counts = Vec::new();
        while at.reads("[") {
            let expression = at.expression(&["]"])?;
            let line = expression[0].line;
            let count = self.value(file, &Value { expression, more: 0 }, 0)?;
            match usize::try_from(count) {
                Ok(count) if count > 0 => counts.push(count),
                _ => return self.files[file].refuse(line, "a length of at least 1", &count.to_string()),
            }
            at.expect("]")?;
        }
        at.expect(";")?;
        if ["self", "Self", "super", "crate"].contains(&name.text.as_str()) {
            return self.files[file].refuse(name.line, "a name that Rust can have", &name.text);
        }
        let comment = self.files[file].comments.get(&name.line).cloned().unwrap_or_default();
        let of = words.join(" ").replace(" *", "*");
        Ok((name.line, Field { name: name.text, kind, counts, of, comment }))
    }

    /// Files of one stem share a module in Rust.
    fn check_names(&self) -> Result<(), String> {
        let mut known: BTreeMap<(&str, String), &str> = BTreeMap::new();
        for (index, file) in self.files.iter().enumerate() {
            let structs = self.structs.range((index, 0)..(index + 1, 0)).map(|(_, of)| &of.name);
            let names = file.constants.iter().map(|(name, _)| name).chain(structs);
            for name in names.chain(file.enums.iter().map(|of| &of.name)) {
                if let Some(other) = known.insert((file.stem(), name.clone()), &file.name) {
                    return file.refuse(
                        1,
                        &format!("{name} in one file of that stem"),
                        &format!("kernels/{other}'s too"),
                    );
                }
            }
        }
        Ok(())
    }

    /// Each kernel's file, its name, and the bytes of what it takes.
    #[allow(dead_code)] // the build does not ask: the test compares it with what the compiler says
    pub fn kernels(&self) -> impl Iterator<Item = (&str, &str, usize)> {
        self.files.iter().enumerate().flat_map(move |(index, file)| {
            file.kernels.iter().filter_map(move |kernel| {
                let of = self.structs.get(&self.find(index, &kernel.takes.text)?)?;
                Some((file.stem(), kernel.name.as_str(), of.size))
            })
        })
    }

    /// All of it in Rust: a module for the files of each stem. Around it `Arguments` must be known, which structs of
    /// that name implement.
    ///
    /// # Errors
    /// The file, the line and what was expected there.
    pub fn rust(&self) -> Result<String, String> {
        let mut modules: BTreeMap<&str, String> = BTreeMap::new();
        let mut kernels: BTreeMap<(usize, usize), Vec<&str>> = BTreeMap::new();
        for (index, file) in self.files.iter().enumerate() {
            for kernel in &file.kernels {
                let key = self.find(index, &kernel.takes.text);
                kernels.entry(key.unwrap_or_default()).or_default().push(&kernel.name);
            }
        }
        for (index, file) in self.files.iter().enumerate() {
            let text = modules.entry(file.stem()).or_default();
            for (name, value) in &file.constants {
                let number = self.value(index, value, 0)?;
                let of = if number < 0 { "i32" } else { "usize" };
                let _ = write!(
                    text,
                    "/// `{name}` of `kernels/{}`.\npub const {name}: {of} = {number};\n",
                    file.name
                );
            }
            for of in &file.enums {
                self.enumeration(index, of, text)?;
            }
            for (key, of) in self.structs.range((index, 0)..(index + 1, 0)) {
                self.structure(file, of, kernels.get(key).map_or(&[], Vec::as_slice), text);
            }
        }
        let mut whole = self.offsets();
        for (stem, text) in modules.iter().filter(|(_, text)| !text.is_empty()) {
            let _ = write!(
                whole,
                "#[allow(dead_code, clippy::enum_variant_names)] // the kernels' names, not all of which the host needs\npub mod {stem} {{\n{text}}}\n"
            );
        }
        Ok(whole)
    }

    /// The place of every field in Rust, for the test that compares it with C.
    fn offsets(&self) -> String {
        let mut text = String::from(
            "/// Every struct: its name in C, size and alignment, and its fields with their places.\n\
             #[allow(dead_code, clippy::type_complexity)] // a test alone reads this table\n\
             pub const STRUCTS: &[(&str, usize, usize, &[(&str, usize)])] = &[\n",
        );
        for ((file, _), of) in &self.structs {
            let path = format!("{}::{}", self.files[*file].stem(), of.name);
            let _ = write!(
                text,
                "({:?}, size_of::<{path}>(), align_of::<{path}>(), &[",
                header::c_name(&of.name)
            );
            for Field { name, .. } in &of.fields {
                let raw = if WORDS.contains(&name.as_str()) { "r#" } else { "" };
                let _ = write!(text, "({name:?}, std::mem::offset_of!({path}, {raw}{name})), ");
            }
            text.push_str("]),\n");
        }
        text + "];\n"
    }

    fn enumeration(&self, file: usize, of: &Enum, text: &mut String) -> Result<(), String> {
        let name = &self.files[file].name;
        let _ = write!(
            text,
            "/// `{0}` of `kernels/{name}`.\n#[derive(Clone, Copy, Debug, PartialEq, Eq)]\n#[repr(i32)]\npub enum {0} {{\n",
            of.name
        );
        let mut all = String::new();
        for (value, number) in &of.values {
            let (variant, number) = (variant(value), self.value(file, number, 0)?);
            let _ = write!(text, "/// `{value}`.\n{variant} = {number},\n");
            let _ = write!(all, "Self::{variant}, ");
        }
        if all.is_empty() {
            return self.files[file].refuse(of.line, "an enum with a value", &of.name);
        }
        let _ = write!(
            text,
            "}}\nimpl {} {{\n/// All, in order.\npub const ALL: [Self; {}] = [{all}];\n}}\n",
            of.name,
            of.values.len()
        );
        Ok(())
    }

    fn structure(&self, file: &File, of: &Struct, kernels: &[&str], text: &mut String) {
        let Struct { name, fields, size, .. } = of;
        let _ = write!(text, "/// `{name}` of `kernels/{}`, {size} bytes", file.name);
        if !kernels.is_empty() {
            let _ = write!(text, ": what {} take", kernels.join(", "));
        }
        let _ = write!(
            text,
            ".\n#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]\n#[repr(C)]\npub struct {name} {{\n"
        );
        for field in fields {
            let kind = match field.kind {
                Kind::Number(number, _) => number.to_owned(),
                Kind::Address(_) => "u64".to_owned(),
                Kind::Struct(file, place) => {
                    format!("super::{}::{}", self.files[file].stem(), self.files[file].structs[place].name)
                }
            };
            let array = field.counts.iter().rev().fold(kind, |of, count| format!("[{of}; {count}]"));
            let raw = if WORDS.contains(&field.name.as_str()) { "r#" } else { "" };
            let _ = write!(text, "/// `{0}`.\npub {raw}{0}: {array},\n", field.name);
        }
        let _ = write!(
            text,
            "}}\nimpl Default for {name} {{\nfn default() -> Self {{ bytemuck::Zeroable::zeroed() }}\n}}\n"
        );
        if name.ends_with("Arguments") {
            let _ = writeln!(text, "impl super::Arguments for {name} {{}}");
        } else {
            for bound in ["DeviceRepr", "ValidAsZeroBits"] {
                let _ = write!(
                    text,
                    "// SAFETY: laid out as in C, without padding, and any bits are one.\n\
                     unsafe impl cudarc::driver::{bound} for {name} {{}}\n"
                );
            }
        }
    }
}

/// An enum's value as Rust spells it.
fn variant(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_ascii_uppercase() + &rest.to_ascii_lowercase()
    });
    words.collect()
}

/// An integer expression that is being read.
struct Terms<'a> {
    layout: &'a Layout,
    file: usize,
    tokens: &'a [Token],
    at: usize,
    depth: usize,
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

    fn binary(&mut self, level: usize) -> Result<i64, String> {
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
