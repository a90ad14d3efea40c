//! What host and kernels share, in C and as JSON: `promptmix.h`, whose rules and functions are `kernels/launch.h` and
//! `kernels/capi.h`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::source::Enum;
use super::{Field, Kind, Layout, Struct};

/// The interface of a build for other languages.
#[derive(Clone, Debug)]
pub struct Interface {
    /// A number of all that the header declares, without its comments.
    pub abi: u32,
    /// The header.
    pub header: String,
    /// Constants, enums, structs and kernels as JSON.
    pub json: String,
}

/// A name of C++ as the header spells it: `CrossArguments` is `promptmix_cross_arguments`.
pub fn c_name(name: &str) -> String {
    let mut text = String::from("promptmix");
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// Without comments and space: what makes two headers the same interface.
fn stripped(text: &str) -> String {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(str::split_whitespace).collect()
}

/// FNV-1a.
fn number(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The type in C, its bytes, and what a comment adds to it.
fn c_type(layout: &Layout, field: &Field) -> (String, usize, String) {
    match field.kind {
        Kind::Number(number, bytes) => {
            let name = match number {
                "i32" => "int32_t",
                "u32" => "uint32_t",
                "f32" => "float",
                "f64" => "double",
                "i64" => "int64_t",
                _ => "uint64_t",
            };
            (name.to_owned(), bytes, String::new())
        }
        Kind::Address(_) => ("promptmix_device_pointer".to_owned(), 8, field.of.replace("__restrict__", "")),
        Kind::Struct(file, place) => {
            let bytes = layout.structs.get(&(file, place)).map_or(0, |of| of.size);
            (c_name(&layout.files[file].structs[place].name), bytes, String::new())
        }
    }
}

impl Layout {
    /// The header with `rules` after what is generated, and the same as JSON.
    ///
    /// # Errors
    /// Two things of one name in C, or a kernel without launch bounds: the file, the line and what was expected there.
    pub fn interface(&self, rules: &[&str]) -> Result<Interface, String> {
        self.check_c_names()?;
        let mut body = String::new();
        let mut json = String::from("{\n\"abi\": ABI,\n\"constants\": {\n");
        self.constants(&mut body, &mut json)?;
        json.push_str("\n},\n\"enums\": {\n");
        self.enums(&mut body, &mut json)?;
        json.push_str("\n},\n\"structs\": {\n");
        self.structures(&mut body, &mut json);
        json.push_str("\n},\n\"kernels\": [\n");
        self.entries(&mut body, &mut json)?;
        json.push_str("\n]\n}\n");
        for text in rules {
            body.push('\n');
            body.push_str(text);
        }
        let abi = number(&stripped(&body));
        let header = format!(
            "// The kernels of promptmix for C11 and C++17: their argument structs, how they are launched, and the functions of the\n\
             // library libpromptmix. `promptmix kernels export` writes this file; it is made from the kernels' sources.\n\
             #ifndef PROMPTMIX_H\n#define PROMPTMIX_H\n\
             #include <assert.h>\n#include <stdalign.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n\n\
             // What all of this file comes to. Kernels, library and header that belong together have the same number.\n\
             #define PROMPTMIX_ABI {abi:#010x}u\n\n\
             #ifdef __cplusplus\nextern \"C\" {{\n#endif\n\n\
             // An address in device memory: a CUdeviceptr. 0 is none.\n\
             typedef uint64_t promptmix_device_pointer;\n{body}\n\
             #ifdef __cplusplus\n}}\n#endif\n#endif\n"
        );
        Ok(Interface { abi, header, json: json.replacen("ABI", &abi.to_string(), 1) })
    }

    /// Structs and enums of all files share one space of names in C.
    fn check_c_names(&self) -> Result<(), String> {
        let mut known: BTreeMap<String, &str> = BTreeMap::new();
        for (index, file) in self.files.iter().enumerate() {
            let structs = self.structs.range((index, 0)..(index + 1, 0)).map(|(_, of)| &of.name);
            for name in structs.chain(file.enums.iter().map(|of| &of.name)) {
                if let Some(other) = known.insert(c_name(name), &file.name) {
                    return file.refuse(
                        1,
                        &format!("{name} in one file, as C has one space of names"),
                        &format!("kernels/{other}'s too"),
                    );
                }
            }
        }
        Ok(())
    }

    fn constants(&self, body: &mut String, json: &mut String) -> Result<(), String> {
        let mut first = true;
        for (index, file) in self.files.iter().enumerate().filter(|(_, file)| !file.constants.is_empty()) {
            let _ = writeln!(body, "\n// Constants of kernels/{}.", file.name);
            for (name, value) in &file.constants {
                let value = self.value(index, value, 0)?;
                let name = format!("PROMPTMIX_{}_{name}", file.stem().to_ascii_uppercase());
                let shown = if value < 0 { format!("({value})") } else { value.to_string() };
                let _ = writeln!(body, "#define {name} {shown}");
                let _ = write!(json, "{}  {name:?}: {value}", if first { "" } else { ",\n" });
                first = false;
            }
        }
        Ok(())
    }

    fn enums(&self, body: &mut String, json: &mut String) -> Result<(), String> {
        let mut first = true;
        for (index, file) in self.files.iter().enumerate() {
            for Enum { name, values, .. } in &file.enums {
                let of = c_name(name);
                let _ = write!(body, "\n// {name} of kernels/{}.\ntypedef enum {of} {{\n", file.name);
                let _ = write!(json, "{}  {of:?}: {{", if first { "" } else { ",\n" });
                first = false;
                for (place, (value, number)) in values.iter().enumerate() {
                    let number = self.value(index, number, 0)?;
                    let comma = if place + 1 < values.len() { "," } else { "" };
                    let value = format!("{}_{value}", of.to_ascii_uppercase());
                    let _ = writeln!(body, "    {value} = {number}{comma}");
                    let _ = write!(json, "{value:?}: {number}{comma}");
                }
                let _ = writeln!(body, "}} {of};");
                json.push('}');
            }
        }
        Ok(())
    }

    fn structures(&self, body: &mut String, json: &mut String) {
        let mut done = Vec::new();
        for key in self.structs.keys() {
            self.structure_before(*key, &mut done);
        }
        for (place, key) in done.iter().enumerate() {
            let (file, Struct { name, fields, size, alignment, asked }) =
                (&self.files[key.0], &self.structs[key]);
            let of = c_name(name);
            let _ = write!(body, "\n// {name} of kernels/{}.\ntypedef struct {of} {{\n", file.name);
            let _ = write!(
                json,
                "{}  {of:?}: {{\"file\": {:?}, \"bytes\": {size}, \"alignment\": {alignment}, \"fields\": [",
                if place > 0 { ",\n" } else { "" },
                file.name
            );
            let mut offset = 0;
            for (place, field) in fields.iter().enumerate() {
                let (kind, bytes, pointed) = c_type(self, field);
                let counts: String = field.counts.iter().map(|count| format!("[{count}]")).collect();
                let says: Vec<&str> = [pointed.as_str(), field.comment.as_str()]
                    .into_iter()
                    .filter(|says| !says.is_empty())
                    .collect();
                let comment =
                    if says.is_empty() { String::new() } else { format!("  // {}", says.join(": ")) };
                // C has no alignment of a struct; that of its first field is as good.
                let aligned =
                    asked.filter(|_| place == 0).map_or(String::new(), |bytes| format!("alignas({bytes}) "));
                let _ = writeln!(body, "    {aligned}{kind} {}{counts};{comment}", field.name);
                let count = field.counts.iter().product::<usize>();
                let _ = write!(
                    json,
                    "{}\n    {{\"name\": {:?}, \"type\": {kind:?}, \"offset\": {offset}, \"bytes\": {}, \"count\": {count}, \"points_to\": {pointed:?}}}",
                    if place > 0 { "," } else { "" },
                    field.name,
                    bytes * count
                );
                offset += bytes * count;
            }
            let _ = write!(
                body,
                "}} {of};\nstatic_assert(sizeof({of}) == {size}, \"{of} is laid out as in the kernels\");\n"
            );
            json.push_str("]}");
        }
    }

    /// Adds a struct after those that it holds.
    fn structure_before(&self, key: (usize, usize), done: &mut Vec<(usize, usize)>) {
        if done.contains(&key) {
            return;
        }
        for field in self.structs.get(&key).map_or(&[][..], |of| &of.fields) {
            if let Kind::Struct(file, place) = field.kind {
                self.structure_before((file, place), done);
            }
        }
        done.push(key);
    }

    fn entries(&self, body: &mut String, json: &mut String) -> Result<(), String> {
        let mut rows = String::new();
        let mut count = 0;
        for (index, file) in self.files.iter().enumerate() {
            for kernel in &file.kernels {
                let Some(threads) = &kernel.threads else {
                    return file.refuse(kernel.takes.line, "__launch_bounds__ of a kernel", &kernel.name);
                };
                let threads = self.value(index, threads, 0)?;
                let key = self.find(index, &kernel.takes.text);
                let bytes = key.and_then(|key| self.structs.get(&key)).map_or(0, |of| of.size);
                let (stem, name, takes) = (file.stem(), &kernel.name, c_name(&kernel.takes.text));
                let _ = write!(
                    rows,
                    "{}        {{{name:?}, {stem:?}, {takes:?}, {bytes}, {threads}}}",
                    if count > 0 { ",\n" } else { "" }
                );
                let _ = write!(
                    json,
                    "{}  {{\"name\": {name:?}, \"file\": {stem:?}, \"arguments\": {takes:?}, \"bytes\": {bytes}, \"most_threads\": {threads}}}",
                    if count > 0 { ",\n" } else { "" }
                );
                count += 1;
            }
        }
        let _ = write!(
            body,
            "\n// A kernel: its one argument is a struct by value.\n\
             typedef struct promptmix_kernel {{\n    const char *name;\n    const char *file;       // the stem of its fatbin\n    \
             const char *arguments;  // the struct's name\n    uint32_t bytes;         // of it\n    \
             uint32_t most_threads;  // of a block\n}} promptmix_kernel;\n\n\
             // All kernels, so many as `count` gets.\n\
             static inline const promptmix_kernel *promptmix_kernel_list(size_t *count) {{\n    \
             static const promptmix_kernel kernels[] = {{\n{rows}}};\n    *count = sizeof kernels / sizeof kernels[0];\n    \
             return kernels;\n}}\n"
        );
        Ok(())
    }
}
