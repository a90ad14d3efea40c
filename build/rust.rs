//! What host and kernels share, in Rust.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::header::c_name;
use super::source::{Enum, File};
use super::{Field, Kind, Layout, Struct};

/// Words of Rust that C++ takes as names.
const WORDS: [&str; 25] = [
    "as", "async", "await", "dyn", "fn", "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub",
    "ref", "trait", "type", "unsafe", "use", "where", "gen", "box", "macro", "yield", "abstract",
];

impl Layout {
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
            let _ = write!(text, "({:?}, size_of::<{path}>(), align_of::<{path}>(), &[", c_name(&of.name));
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
        let Struct { name, fields, size, asked, .. } = of;
        let _ = write!(text, "/// `{name}` of `kernels/{}`, {size} bytes", file.name);
        if !kernels.is_empty() {
            let _ = write!(text, ": what {} take", kernels.join(", "));
        }
        let aligned = asked.map_or(String::new(), |bytes| format!(", align({bytes})"));
        let _ = write!(
            text,
            ".\n#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]\n#[repr(C{aligned})]\npub struct {name} {{\n"
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
