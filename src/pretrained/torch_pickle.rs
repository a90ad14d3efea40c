//! Finding the tensors in what `torch.save` wrote, without executing anything the file says.
//!
//! The format is a zip archive whose members are stored uncompressed: `<name>/data.pkl`, a Python pickle that describes
//! the objects, and one `<name>/data/<key>` for each storage. Unpickling in Python may call any function; the
//! interpreter here only moves values on a stack. It recognises storages, tensors, dictionaries, lists and tuples, and
//! keeps of everything else the name of what would have been called. Not for writing, nor for the format before
//! PyTorch 1.6, which is refused with the command that converts it.
//!
//! Objects live in one arena and refer to each other by index, so a file that nests without end costs no recursion, and
//! their number is bounded, so a small file cannot claim a large memory.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use super::entry::{ElementType, Entry, instead};
use crate::error::{Error, Result};

/// The largest pickle that is read. The largest T5's is below 200 kB.
const PICKLE_BYTES: usize = 16 << 20;
/// The most Python objects in one pickle.
const MAX_OBJECTS: usize = 1 << 18;
/// The most dictionary items that are visited; bounds dictionaries that contain one another many times.
const MAX_ITEMS: usize = 1 << 18;
/// The longest name of a tensor; T5's longest has 60 bytes.
const NAME_BYTES: usize = 512;
/// The most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 16;
/// How deep dictionaries within dictionaries are searched for tensors.
const DEPTH: usize = 4;
/// The first bytes of a file that PyTorch before 1.6 wrote: protocol 2 and the pickled magic number.
const LEGACY_MAGIC: [u8; 14] =
    [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Every tensor in the archive by name. Names of tensors in dictionaries within dictionaries are joined by dots; a tensor
/// that is the whole file has the empty name.
pub(super) fn entries(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Entry>> {
    let convert = || {
        let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        format!(
            "convert it once where PyTorch is installed: python -c \"import torch; \
             torch.save(torch.load('{file}', map_location='cpu', weights_only=True), '{file}')\""
        )
    };
    let broken = |found: String| {
        Error::format(
            path,
            None,
            "a file that torch.save of PyTorch 1.6 or newer wrote",
            found,
            "the file is damaged or cut short; fetch or export it again",
        )
    };
    let is_tar = bytes.get(257..262) == Some(b"ustar");
    if bytes.starts_with(&LEGACY_MAGIC) || is_tar {
        return Err(Error::format(
            path,
            None,
            "a file that torch.save of PyTorch 1.6 or newer wrote (a zip archive)",
            "one in the format before 1.6",
            convert(),
        ));
    }
    if !bytes.starts_with(b"PK") {
        return Err(broken(instead(bytes)));
    }
    let archive = Archive::read(bytes).map_err(broken)?;
    if archive.is_script {
        return Err(Error::unsupported(
            "a TorchScript program",
            format!("{} holds code, not only weights", path.display()),
            "save the model's state_dict() with torch.save and use that file",
        ));
    }
    if !archive.is_little_endian {
        return Err(Error::unsupported(
            "big-endian weights",
            format!("{} was written on a big-endian machine", path.display()),
            convert(),
        ));
    }
    let (nodes, top) = Interpreter::run(&archive).map_err(broken)?;
    let mut found = BTreeMap::new();
    match &nodes[top] {
        Node::Tensor(entry) => {
            found.insert(String::new(), entry.clone());
        }
        Node::Dict(_) => collect(&nodes, top, "", DEPTH, &mut 0, &mut found).map_err(broken)?,
        Node::Foreign { module, name } => {
            return Err(Error::unsupported(
                format!("the Python object `{}`", shorten(&format!("{module}.{name}"))),
                format!("{} must hold tensors or a dictionary of tensors", path.display()),
                "save the model's state_dict() with torch.save and use that file",
            ));
        }
        other => return Err(without_tensors(path, other.kind())),
    }
    if found.is_empty() {
        return Err(without_tensors(path, "a dictionary without tensors under names"));
    }
    Ok(found)
}

/// The error of a file that is whole and holds `found`.
fn without_tensors(path: &Path, found: &str) -> Error {
    let expected = "a tensor, or a dictionary of tensors by their names";
    let advice =
        "save the tensor itself, torch.save(tensor, file), or a dictionary such as a model's state_dict()";
    Error::format(path, None, expected, found, advice)
}

/// What is wrong with a file, to follow "found".
type Attempt<T> = std::result::Result<T, String>;

struct Archive<'a> {
    pickle: &'a [u8],
    /// Bytes in the file of each storage, by key.
    storages: HashMap<String, Range<usize>>,
    is_script: bool,
    is_little_endian: bool,
}

impl<'a> Archive<'a> {
    fn read(bytes: &'a [u8]) -> Attempt<Self> {
        let archive =
            rawzip::ZipArchive::from_slice(bytes).map_err(|error| format!("a broken archive: {error}"))?;
        let mut members = HashMap::new();
        let mut pickle = None;
        // The code of a TorchScript program is compressed; nothing that is read here ever is.
        let (mut is_script, mut compressed) = (false, false);
        for member in archive.entries() {
            let member = member.map_err(|error| format!("a broken archive: {error}"))?;
            let entry = archive
                .get_entry(member.wayfinder())
                .map_err(|error| format!("an archive member past the end of the file: {error}"))?;
            let (from, to) = entry.compressed_data_range();
            let range = usize::try_from(from).ok().zip(usize::try_from(to).ok()).map(|(from, to)| from..to);
            let Some(range) = range.filter(|range| bytes.get(range.clone()).is_some()) else {
                return Err("an archive member past the end of the file".to_owned());
            };
            let Ok(name) = std::str::from_utf8(member.file_path().as_bytes()) else {
                return Err("an archive member whose name is not UTF-8".to_owned());
            };
            let Some((_, name)) = name.split_once('/') else {
                continue;
            };
            is_script |= name == "constants.pkl";
            if member.compression_method() != rawzip::CompressionMethod::STORE
                || member.compressed_size_hint() != member.uncompressed_size_hint()
            {
                compressed = true;
                continue;
            }
            if name == "data.pkl" {
                let data = &bytes[range.clone()];
                if rawzip::crc32(data) != member.crc32() {
                    return Err("a data.pkl whose checksum does not match".to_owned());
                }
                pickle = Some(data);
            }
            members.insert(name.to_owned(), range);
        }
        if compressed && !is_script {
            return Err("compressed archive members, where torch.save stores them plainly".to_owned());
        }
        let Some(pickle) = pickle else {
            return Err("an archive without data.pkl".to_owned());
        };
        if pickle.len() > PICKLE_BYTES {
            return Err(format!("a data.pkl of {} bytes", pickle.len()));
        }
        let is_little_endian =
            members.get("byteorder").is_none_or(|range| bytes[range.clone()].trim_ascii() == b"little");
        let storages = members
            .into_iter()
            .filter_map(|(name, range)| Some((name.strip_prefix("data/")?.to_owned(), range)))
            .collect();
        Ok(Self { pickle, storages, is_script, is_little_endian })
    }
}

/// A Python object; others are referred to by their index in the arena.
enum Node<'a> {
    None,
    Bool,
    Int(i64),
    Float,
    Text(&'a str),
    Bytes,
    Tuple(Vec<usize>),
    List,
    Dict(Vec<(usize, usize)>),
    Global {
        module: &'a str,
        name: &'a str,
    },
    Storage {
        element: ElementType,
        width: usize,
        range: Range<usize>,
    },
    Tensor(Entry),
    /// What something unknown would have made, by the name of what would have been called.
    Foreign {
        module: &'a str,
        name: &'a str,
    },
}

impl Node<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a truth value",
            Self::Int(_) | Self::Float => "a number",
            Self::Text(_) => "a string",
            Self::Bytes => "bytes",
            Self::Tuple(_) => "a tuple",
            Self::List => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global { .. } => "a class",
            Self::Storage { .. } => "a bare storage",
            Self::Tensor(_) => "a tensor",
            Self::Foreign { .. } => "an object",
        }
    }
}

/// Adds the tensors under `node`, a dictionary, to `found`; `visited` counts items over the whole search.
fn collect(
    nodes: &[Node<'_>],
    node: usize,
    prefix: &str,
    depth: usize,
    visited: &mut usize,
    found: &mut BTreeMap<String, Entry>,
) -> Attempt<()> {
    let Node::Dict(items) = &nodes[node] else {
        return Ok(());
    };
    for &(key, value) in items {
        *visited += 1;
        if *visited > MAX_ITEMS {
            return Err(format!("dictionaries of more than {MAX_ITEMS} items"));
        }
        let Node::Text(key) = nodes[key] else {
            continue;
        };
        if prefix.len() + key.len() > NAME_BYTES {
            continue;
        }
        match &nodes[value] {
            Node::Tensor(entry) => {
                found.insert(format!("{prefix}{key}"), entry.clone());
            }
            Node::Dict(_) if depth > 1 => {
                collect(nodes, value, &format!("{prefix}{key}."), depth - 1, visited, found)?;
            }
            _ => {}
        }
    }
    Ok(())
}

struct Interpreter<'a> {
    archive: &'a Archive<'a>,
    rest: &'a [u8],
    nodes: Vec<Node<'a>>,
    stack: Vec<usize>,
    /// Heights of the stack at open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, usize>,
}

impl<'a> Interpreter<'a> {
    /// The arena and the index in it of the pickled object.
    fn run(archive: &'a Archive<'a>) -> Attempt<(Vec<Node<'a>>, usize)> {
        let mut interpreter = Self {
            archive,
            rest: archive.pickle,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let opcode = interpreter.byte()?;
            if opcode == b'.' {
                let top = interpreter.pop()?;
                return Ok((interpreter.nodes, top));
            }
            interpreter.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Attempt<()> {
        match opcode {
            // PROTO, FRAME: nothing depends on them.
            0x80 => {
                self.take(1)?;
            }
            0x95 => {
                self.take(8)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Node::None)?,
            0x88 | 0x89 => self.push(Node::Bool)?,
            b'K' => {
                let value = self.byte()?;
                self.push(Node::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))?;
            }
            0x8a => {
                let length = self.byte()?;
                self.long(length.into())?;
            }
            0x8b => {
                let length = self.length()?;
                self.long(length)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Node::Float)?;
            }
            b'X' => {
                let length = self.length()?;
                self.text(length)?;
            }
            0x8c => {
                let length = self.byte()?;
                self.text(length.into())?;
            }
            0x8d => {
                let length = self.long_length()?;
                self.text(length)?;
            }
            b'B' | b'T' => {
                let length = self.length()?;
                self.bytes(length)?;
            }
            b'C' | b'U' => {
                let length = self.byte()?;
                self.bytes(length.into())?;
            }
            0x8e | 0x96 => {
                let length = self.long_length()?;
                self.bytes(length)?;
            }
            b')' => self.push(Node::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(count).filter(|&from| from >= self.floor());
                let from = from.ok_or("a pickle that takes more than it has")?;
                let items = self.stack.split_off(from);
                self.push(Node::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items))?;
            }
            b']' | 0x8f => self.push(Node::List)?,
            b'l' => {
                self.pop_mark()?;
                self.push(Node::List)?;
            }
            b'a' => {
                self.pop()?;
            }
            b'e' | 0x90 => {
                self.pop_mark()?;
            }
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            b'q' => {
                let key = self.byte()?;
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            0x94 => {
                let key = u32::try_from(self.memo.len()).map_err(|_| "too large a memo")?;
                self.remember(key)?;
            }
            b'h' => {
                let key = self.byte()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global { module, name })?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) = (&self.nodes[module], &self.nodes[name]) else {
                    return Err("a class that is not named by strings".to_owned());
                };
                let (module, name) = (*module, *name);
                self.push(Node::Global { module, name })?;
            }
            // REDUCE and NEWOBJ: a callable and its arguments.
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let made = self.call(callable, arguments)?;
                self.push(made)?;
            }
            // NEWOBJ_EX has keyword arguments above the positional ones.
            0x92 => {
                self.pop()?;
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let made = self.call(callable, arguments)?;
                self.push(made)?;
            }
            // BUILD sets attributes, which no tensor's numbers depend on.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage)?;
            }
            other => {
                return Err(format!("the pickle instruction {other:#04x}, which torch.save does not write"));
            }
        }
        Ok(())
    }

    /// What `_rebuild_tensor_v2` and the few other known callables make; a note of the name for every other.
    fn call(&self, callable: usize, arguments: usize) -> Attempt<Node<'a>> {
        let (module, name) = match &self.nodes[callable] {
            Node::Global { module, name } => (*module, *name),
            Node::Foreign { module, name } => return Ok(Node::Foreign { module, name }),
            other => return Err(format!("a pickle that calls {}", other.kind())),
        };
        let Node::Tuple(arguments) = &self.nodes[arguments] else {
            return Err(format!("a pickle that calls {name} without a tuple"));
        };
        match (module, name) {
            ("collections", "OrderedDict") if arguments.is_empty() => Ok(Node::Dict(Vec::new())),
            ("torch", "Size") => match arguments.first().map(|&first| &self.nodes[first]) {
                Some(Node::Tuple(sizes)) if sizes.len() <= MAX_DIMENSIONS => Ok(Node::Tuple(sizes.clone())),
                _ => Err("a torch.Size without sizes".to_owned()),
            },
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => {
                self.rebuild_tensor(arguments).map(Node::Tensor)
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                match arguments.first().map(|&first| &self.nodes[first]) {
                    Some(Node::Tensor(entry)) => Ok(Node::Tensor(entry.clone())),
                    _ => Err("a parameter without a tensor".to_owned()),
                }
            }
            _ => Ok(Node::Foreign { module, name }),
        }
    }

    /// Arguments: storage, offset, sizes, strides; what follows them concerns gradients.
    fn rebuild_tensor(&self, arguments: &[usize]) -> Attempt<Entry> {
        let argument = |index: usize| arguments.get(index).map(|&node| &self.nodes[node]);
        let (
            Some(Node::Storage { element, width, range }),
            Some(Node::Int(offset)),
            Some(Node::Tuple(shape)),
            Some(Node::Tuple(strides)),
        ) = (argument(0), argument(1), argument(2), argument(3))
        else {
            return Err("a tensor without storage, offset, sizes and strides".to_owned());
        };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        let outside = || format!("a tensor of shape {shape:?} outside its storage");
        if shape.len() != strides.len() {
            return Err(format!("a tensor of {} sizes and {} strides", shape.len(), strides.len()));
        }
        let offset = usize::try_from(*offset).map_err(|_| outside())?;
        let stored = range.len() / width;
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        // More elements than the storage has would be a view that repeats them.
        let elements = elements.filter(|&elements| elements <= stored).ok_or_else(outside)?;
        let mut follows = 1;
        let mut is_contiguous = true;
        // One past the last element that the view touches, counted from the offset.
        let mut extent = usize::from(elements > 0);
        for (&size, &stride) in shape.iter().zip(&strides).rev() {
            if size != 1 {
                is_contiguous &= stride == follows;
                follows = usize::saturating_mul(follows, size);
                if elements > 0 {
                    extent = (size - 1)
                        .checked_mul(stride)
                        .and_then(|more| extent.checked_add(more))
                        .ok_or_else(outside)?;
                }
            }
        }
        if elements > 0 && offset.checked_add(extent).is_none_or(|end| end > stored) {
            return Err(outside());
        }
        let from = if elements > 0 { range.start + offset * width } else { range.start };
        let strides = (!is_contiguous && elements > 0).then_some(strides);
        let bytes = from..from + extent * width;
        Ok(Entry { element: *element, shape, bytes, strides })
    }

    fn sizes(&self, items: &[usize]) -> Attempt<Vec<usize>> {
        let size = |&item: &usize| match &self.nodes[item] {
            Node::Int(size) => usize::try_from(*size).ok(),
            _ => None,
        };
        if items.len() > MAX_DIMENSIONS {
            return Err(format!("a tensor of {} dimensions", items.len()));
        }
        items.iter().map(size).collect::<Option<_>>().ok_or("a tensor whose sizes are not numbers".to_owned())
    }

    /// A persistent id is `("storage", torch.FloatStorage, key, device, elements)`.
    fn storage(&self, id: usize) -> Attempt<Node<'a>> {
        let Node::Tuple(parts) = &self.nodes[id] else {
            return Err("a persistent id that is no tuple".to_owned());
        };
        let part = |index: usize| parts.get(index).map(|&node| &self.nodes[node]);
        let (
            Some(Node::Text("storage")),
            Some(Node::Global { module: "torch" | "torch.storage", name }),
            Some(Node::Text(key)),
            Some(Node::Int(elements)),
        ) = (part(0), part(1), part(2), part(4))
        else {
            return Err("a persistent id that is no storage".to_owned());
        };
        let (element, width) = match *name {
            "FloatStorage" => (ElementType::F32, 4),
            "BFloat16Storage" => (ElementType::Bf16, 2),
            "HalfStorage" => (ElementType::F16, 2),
            "DoubleStorage" => (ElementType::F64, 8),
            "LongStorage" => (ElementType::Other("i64"), 8),
            "IntStorage" => (ElementType::Other("i32"), 4),
            "ShortStorage" => (ElementType::Other("i16"), 2),
            "CharStorage" => (ElementType::Other("i8"), 1),
            "ByteStorage" => (ElementType::Other("u8"), 1),
            "BoolStorage" => (ElementType::Other("bool"), 1),
            "ComplexFloatStorage" => (ElementType::Other("complex"), 8),
            other => return Err(format!("storage of the type `{}`", shorten(other))),
        };
        let range =
            self.archive.storages.get(*key).ok_or_else(|| format!("no data for storage {}", shorten(key)))?;
        let claimed = usize::try_from(*elements).ok().and_then(|elements| elements.checked_mul(width));
        match claimed {
            Some(claimed) if claimed <= range.len() => {
                Ok(Node::Storage { element, width, range: range.start..range.start + claimed })
            }
            _ => Err(format!("storage {key} of {elements} elements in {} bytes", range.len())),
        }
    }

    fn set_items(&mut self, items: &[usize]) -> Attempt<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::Dict(known) => known.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            Node::Foreign { .. } => {}
            other => return Err(format!("a pickle that sets items of {}", other.kind())),
        }
        Ok(())
    }

    fn push(&mut self, node: Node<'a>) -> Attempt<()> {
        if self.nodes.len() >= MAX_OBJECTS {
            return Err(format!("a pickle of more than {MAX_OBJECTS} objects"));
        }
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// The height of the stack below which lies what an open mark protects.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Attempt<usize> {
        let top = self.stack.get(self.floor()..).and_then(<[usize]>::last);
        top.copied().ok_or("a pickle that takes more than it has".to_owned())
    }

    fn pop(&mut self) -> Attempt<usize> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Everything above the last mark, and the mark.
    fn pop_mark(&mut self) -> Attempt<Vec<usize>> {
        let mark = self.marks.pop().ok_or("a pickle without the mark it refers to")?;
        if mark > self.stack.len() {
            return Err("a pickle that takes more than it has".to_owned());
        }
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, key: u32) -> Attempt<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Attempt<()> {
        let node = *self.memo.get(&key).ok_or("a pickle that recalls what it never stored")?;
        self.stack.push(node);
        Ok(())
    }

    fn take(&mut self, count: usize) -> Attempt<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("a pickle that ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Attempt<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or("a pickle that ends too early")?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Attempt<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn length(&mut self) -> Attempt<usize> {
        let length = u32::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| "a pickle that ends too early".to_owned())
    }

    fn long_length(&mut self) -> Attempt<usize> {
        let length = u64::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| "a pickle that ends too early".to_owned())
    }

    fn line(&mut self) -> Attempt<&'a str> {
        let length =
            self.rest.iter().position(|&byte| byte == b'\n').ok_or("a pickle that ends too early")?;
        let line = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| "a class name that is not UTF-8".to_owned())
    }

    fn text(&mut self, length: usize) -> Attempt<()> {
        let text =
            std::str::from_utf8(self.take(length)?).map_err(|_| "a string that is not UTF-8".to_owned())?;
        self.push(Node::Text(text))
    }

    fn bytes(&mut self, length: usize) -> Attempt<()> {
        self.take(length)?;
        self.push(Node::Bytes)
    }

    /// A little-endian two's-complement integer of any length; one beyond 64 bits is of no use here.
    fn long(&mut self, length: usize) -> Attempt<()> {
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|&last| last >= 0x80);
        let mut filled = if negative { [0xff; 8] } else { [0; 8] };
        match filled.get_mut(..length) {
            Some(low) => {
                low.copy_from_slice(bytes);
                self.push(Node::Int(i64::from_le_bytes(filled)))
            }
            None => self.push(Node::Foreign { module: "builtins", name: "int" }),
        }
    }
}

/// A name from a file as a message shows it: printable and of bounded length.
fn shorten(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}
