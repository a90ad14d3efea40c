//! What host and kernels share, read out of `kernels/` and laid out as C does: the structs that kernels take or the host fills,
//! integer constants, and enums. The kernels' files are the one place that says them; `source.rs` reads them, and `rust.rs` and
//! `header.rs` write them in Rust and in C.
//!
//! Uses the standard library alone: `build.rs` includes this file, and so does its test.

use std::collections::BTreeMap;

#[path = "header.rs"]
pub mod header;
#[path = "rust.rs"]
mod rust;
#[path = "source.rs"]
mod source;
#[path = "terms.rs"]
mod terms;

use source::{Cursor, File, Token, Value};
pub use source::{Source, read};
use terms::Terms;

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
    /// The alignment that its file asks for beyond that of its fields.
    asked: Option<usize>,
}

/// All that host and kernels share.
#[derive(Clone, Debug)]
pub struct Layout {
    files: Vec<File>,
    structs: BTreeMap<(usize, usize), Struct>,
}

/// Deeper than anything that C++ accepts here: what goes on longer goes round.
const DEEPEST: usize = 32;

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

    /// Reads a struct, and those in it and after its pointers.
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
        let (mut fields, mut size, mut after) = (Vec::new(), 0, Vec::new());
        let stated = match &body.alignment {
            Some(value) => self.value(key.0, value, 0)?,
            None => 1,
        };
        if !(1..=128).contains(&stated) || stated.count_ones() != 1 {
            return file.refuse(
                body.line,
                "an alignment that is a power of two up to 128",
                &stated.to_string(),
            );
        }
        let asked = body.alignment.is_some().then_some(stated as usize);
        let mut alignment = stated as usize;
        while !at.reads("}") {
            let (line, field) = self.field(key.0, &mut at)?;
            let (one, aligned) = match field.kind {
                Kind::Number(_, bytes) => (bytes, bytes),
                Kind::Address(of) => {
                    after.extend(of);
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
        self.structs.insert(key, Struct { name: body.name, fields, size, alignment, asked });
        for key in after {
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
}
