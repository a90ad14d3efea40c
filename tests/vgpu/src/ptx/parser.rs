//! From tokens to a syntax tree, with scopes of registers, variables and labels resolved.

use std::collections::HashMap;

use super::lexer::{Placed, Token, tokens};
use super::names::{Body, Scope, fold_inlined, resolve_labels};
use super::{Class, Function, Location, Module, Parameter, PtxError, Space, Variable};

/// Bytes of one variable at which a text is taken for hostile.
const LARGEST_VARIABLE: usize = 1 << 30;

/// Parses a PTX text.
///
/// # Errors
/// The first thing that is not PTX as nvcc writes it, with its line.
pub fn parse(text: &str) -> Result<Module, PtxError> {
    let tokens = tokens(text)?;
    let chains = vec![Vec::new()];
    let mut parser = Parser { tokens, at: 0, module: Module::default(), inlined: HashMap::new(), chains };
    parser.module()?;
    let mut module = parser.module;
    fold_inlined(&mut module, &parser.chains);
    Ok(module)
}

pub(super) struct Parser<'a> {
    pub(super) tokens: Vec<Placed<'a>>,
    pub(super) at: usize,
    module: Module,
    /// For a place inside an inlined function: the place that it was inlined at.
    inlined: HashMap<(u32, u32, u32), (u32, u32, u32)>,
    /// For every `.loc`: its place, the place that was inlined at, and so on outwards.
    chains: Vec<Vec<Location>>,
}

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Token<'a> {
        self.tokens[self.at].token
    }

    pub(super) fn peek_after(&self) -> Token<'a> {
        self.tokens[(self.at + 1).min(self.tokens.len() - 1)].token
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    pub(super) fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        // The last token is End and stays.
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub(super) fn error<T>(&self, expected: &str) -> Result<T, PtxError> {
        Err(PtxError::at(self.line(), format!("expected {expected}, found {:?}", self.peek())))
    }

    pub(super) fn accept(&mut self, mark: u8) -> bool {
        let found = self.peek() == Token::Mark(mark);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect(&mut self, mark: u8) -> Result<(), PtxError> {
        if self.accept(mark) { Ok(()) } else { self.error(&format!("'{}'", mark as char)) }
    }

    pub(super) fn accept_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Token::Word(word);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn word(&mut self, what: &str) -> Result<&'a str, PtxError> {
        match self.peek() {
            Token::Word(word) => {
                self.next();
                Ok(word)
            }
            _ => self.error(what),
        }
    }

    pub(super) fn integer(&mut self, what: &str) -> Result<u64, PtxError> {
        match self.peek() {
            Token::Integer(value) => {
                self.next();
                Ok(value)
            }
            _ => self.error(what),
        }
    }

    pub(super) fn small(&mut self, what: &str) -> Result<u32, PtxError> {
        let value = self.integer(what)?;
        u32::try_from(value).or_else(|_| self.error(&format!("{what} below 2^32")))
    }

    fn module(&mut self) -> Result<(), PtxError> {
        let mut external = false;
        loop {
            match self.peek() {
                Token::End => break,
                Token::Word(".version") => {
                    self.next();
                    self.module.version = self.version()?;
                }
                Token::Word(".target") => {
                    self.next();
                    self.module.target = self.word("a target such as sm_80")?.to_string();
                    while self.accept(b',') {
                        self.word("a target option")?;
                    }
                }
                Token::Word(".address_size") => {
                    self.next();
                    if self.integer("64")? != 64 {
                        return self.error(".address_size 64; 32-bit addresses are not supported");
                    }
                }
                Token::Word(".file") => self.file()?,
                Token::Word(".section") => self.section()?,
                Token::Word(".loc") => {
                    self.location()?;
                }
                Token::Word(word @ (".visible" | ".extern" | ".weak" | ".common")) => {
                    self.next();
                    external = word == ".extern";
                    continue;
                }
                Token::Word(".entry" | ".func") => self.function()?,
                Token::Word(".global" | ".const" | ".shared" | ".local") => {
                    let mut variables = self.variables()?;
                    variables.iter_mut().for_each(|variable| variable.external = external);
                    self.module.variables.extend(variables);
                }
                Token::Word(".pragma") => self.skip_to_semicolon()?,
                Token::Word(".alias") => {
                    self.next();
                    let alias = self.word("the name of an alias")?.to_string();
                    self.expect(b',')?;
                    let function = self.word("the name of a function")?.to_string();
                    self.expect(b';')?;
                    self.module.aliases.push((alias, function));
                }
                Token::Mark(b';') => {
                    self.next();
                }
                _ => return self.error("a directive of a module"),
            }
            external = false;
        }
        if self.module.version == (0, 0) {
            return self.error(".version (is this PTX?)");
        }
        Ok(())
    }

    fn version(&mut self) -> Result<(u32, u32), PtxError> {
        match self.next() {
            // "9.0" reads as a decimal fraction.
            Token::Double(bits) => {
                let tenths = (f64::from_bits(bits) * 10.0).round() as u32;
                Ok((tenths / 10, tenths % 10))
            }
            _ => self.error("a version such as 9.0"),
        }
    }

    fn file(&mut self) -> Result<(), PtxError> {
        self.next();
        let number = self.small("the number of a file")?;
        let Token::Text(path) = self.peek() else { return self.error("the quoted path of a file") };
        self.next();
        self.module.files.push((number, path.to_string()));
        while self.accept(b',') {
            self.integer("a timestamp or size")?;
        }
        Ok(())
    }

    fn section(&mut self) -> Result<(), PtxError> {
        self.next();
        self.word("the name of a section")?;
        self.expect(b'{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next() {
                Token::Mark(b'{') => depth += 1,
                Token::Mark(b'}') => depth -= 1,
                Token::End => return self.error("the end of a section"),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn location(&mut self) -> Result<usize, PtxError> {
        self.next();
        let here = (self.small("a file number")?, self.small("a line")?, self.small("a column")?);
        if self.accept(b',') {
            if !self.accept_word("function_name") {
                return self.error("function_name");
            }
            self.word("a label of .debug_str")?;
            if self.accept(b'+') {
                self.integer("an offset")?;
            }
            self.expect(b',')?;
            if !self.accept_word("inlined_at") {
                return self.error("inlined_at");
            }
            let outer = (self.small("a file number")?, self.small("a line")?, self.small("a column")?);
            if outer != here {
                self.inlined.insert(here, outer);
            }
        } else {
            self.inlined.remove(&here);
        }
        let (mut place, mut chain) = (here, Vec::new());
        while chain.len() < 32 {
            chain.push(Location { file: place.0, line: place.1 });
            match self.inlined.get(&place) {
                Some(&outer) => place = outer,
                None => break,
            }
        }
        self.chains.push(chain);
        Ok(self.chains.len() - 1)
    }

    pub(super) fn skip_to_semicolon(&mut self) -> Result<(), PtxError> {
        loop {
            match self.next() {
                Token::Mark(b';') => return Ok(()),
                Token::End => return self.error("';'"),
                _ => {}
            }
        }
    }

    /// `.shared .align 16 .b8 name[32], ... ;` from its state space on.
    pub(super) fn variables(&mut self) -> Result<Vec<Variable>, PtxError> {
        let space = match self.word("a state space")? {
            ".global" => Space::Global,
            ".const" => Space::Constant,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            _ => Space::Parameter,
        };
        let mut align = None;
        let mut element = None;
        let mut vector = 1;
        let mut managed = false;
        while let Token::Word(word) = self.peek() {
            if !word.starts_with('.') {
                break;
            }
            self.next();
            match word {
                ".align" => align = Some(self.small("an alignment")? as usize),
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                ".managed" | ".attribute" | ".ptr" | ".unified" => {}
                ".texref" | ".samplerref" | ".surfref" => element = Some(8),
                _ => match type_size(word) {
                    Some(size) => element = Some(size),
                    None => return self.error(&format!("the type of a variable, not {word}")),
                },
            }
            if word == ".attribute" {
                self.expect(b'(')?;
                let mut depth = 1;
                while depth > 0 {
                    match self.next() {
                        Token::Word(".managed") => managed = true,
                        Token::Mark(b'(') => depth += 1,
                        Token::Mark(b')') => depth -= 1,
                        Token::End => return self.error("')'"),
                        _ => {}
                    }
                }
            }
        }
        let Some(element) = element else { return self.error("the type of a variable") };
        let element = element * vector;
        let align = align.unwrap_or(element);
        if !align.is_power_of_two() || align > 1 << 20 {
            return self.error("an alignment that is a power of two");
        }
        let mut out = Vec::new();
        loop {
            let name = self.word("the name of a variable")?.to_string();
            let mut count = 1usize;
            while self.accept(b'[') {
                let dimension =
                    if self.peek() == Token::Mark(b']') { 0 } else { self.integer("a size")? as usize };
                self.expect(b']')?;
                count = count.saturating_mul(dimension);
            }
            let mut size = count.saturating_mul(element);
            let (mut initial, mut has_initial, mut addresses) = (Vec::new(), false, Vec::new());
            if self.accept(b'=') {
                has_initial = true;
                self.initial(element / vector, &mut initial, &mut addresses)?;
                if size == 0 {
                    size = initial.len();
                }
            }
            if size > LARGEST_VARIABLE || initial.len() > size {
                return self.error(&format!("a variable {name} of a sensible size, not {size} bytes"));
            }
            let external = false;
            out.push(Variable {
                name,
                space,
                align,
                size,
                initial,
                has_initial,
                managed,
                external,
                addresses,
            });
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b';')?;
        Ok(out)
    }

    fn initial(
        &mut self,
        element: usize,
        out: &mut Vec<u8>,
        addresses: &mut Vec<(usize, String, i64)>,
    ) -> Result<(), PtxError> {
        let nested = self.accept(b'{');
        let mut depth = usize::from(nested);
        loop {
            let negative = self.accept(b'-');
            match self.next() {
                Token::Integer(value) => {
                    let value = if negative { value.wrapping_neg() } else { value };
                    out.extend_from_slice(&value.to_le_bytes()[..element.min(8)]);
                }
                Token::Single(bits) => out.extend_from_slice(&bits.to_le_bytes()),
                Token::Double(bits) => out.extend_from_slice(&bits.to_le_bytes()),
                // An address: a name, or generic(name), with an offset.
                Token::Word(name) if element == 8 => {
                    let generic = name == "generic" && self.accept(b'(');
                    let name = if generic { self.word("the name of a variable")? } else { name };
                    if generic {
                        self.expect(b')')?;
                    }
                    let offset = if self.accept(b'+') { self.integer("an offset")? as i64 } else { 0 };
                    addresses.push((out.len(), name.to_string(), offset));
                    out.extend_from_slice(&[0; 8]);
                }
                Token::Mark(b'{') => depth += 1,
                Token::Mark(b'}') if depth > 0 => depth -= 1,
                Token::Mark(b',') if depth > 0 => {}
                _ => {
                    self.at = self.at.saturating_sub(1);
                    return self.error("a number, or the address of a variable in 64 bits, as initial value");
                }
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn function(&mut self) -> Result<(), PtxError> {
        let is_entry = self.word(".entry or .func")? == ".entry";
        let mut body = Body {
            function: Function { is_entry, ..Function::default() },
            scopes: vec![Scope::default()],
            parents: vec![0],
            labels: HashMap::new(),
            tables: HashMap::new(),
            instruction_scopes: Vec::new(),
            chain: 0,
        };
        if self.peek() == Token::Mark(b'(') {
            body.function.returns = self.parameters(&mut body)?;
        }
        body.function.name = self.word("the name of a function")?.to_string();
        if self.peek() == Token::Mark(b'(') {
            body.function.parameters = self.parameters(&mut body)?;
        }
        loop {
            match self.peek() {
                Token::Word(".maxntid") => {
                    self.next();
                    let [x, y, z] = self.triple()?;
                    body.function.max_threads = x.saturating_mul(y).saturating_mul(z);
                }
                Token::Word(".reqntid") => {
                    self.next();
                    body.function.required_threads = self.triple()?;
                }
                Token::Word(".minnctapersm") => {
                    self.next();
                    body.function.min_blocks = self.small("a number of blocks")?;
                }
                // An older name of what .minnctapersm says, and conventions of calls, which are none here.
                Token::Word(".maxnctapersm" | ".abi_preserve" | ".abi_preserve_control") => {
                    self.next();
                    self.small("a number")?;
                }
                Token::Word(".maxnreg") => {
                    self.next();
                    body.function.max_registers = self.small("a number of registers")?;
                }
                // An explicit cluster must be given by the directive below or by the launch, which says so itself.
                Token::Word(".explicitcluster" | ".noreturn" | ".blocksareclusters") => {
                    self.next();
                }
                Token::Word(".reqnctapercluster") => {
                    self.next();
                    body.function.cluster = Some(self.triple()?);
                }
                Token::Word(".maxclusterrank") => {
                    self.next();
                    body.function.max_cluster = self.small("a number of blocks")?;
                }
                Token::Word(".pragma") => self.skip_to_semicolon()?,
                Token::Mark(b'{') => break,
                Token::Mark(b';') => {
                    self.next();
                    self.module.functions.push(body.function);
                    return Ok(());
                }
                _ => return self.error("the body of a function"),
            }
        }
        self.next();
        body.function.has_body = true;
        self.body(&mut body)?;
        let function = resolve_labels(body)?;
        self.module.functions.push(function);
        Ok(())
    }

    fn triple(&mut self) -> Result<[u32; 3], PtxError> {
        let mut out = [1; 3];
        out[0] = self.small("a size")?;
        for value in &mut out[1..] {
            if self.accept(b',') {
                *value = self.small("a size")?;
            }
        }
        Ok(out)
    }

    fn parameters(&mut self, body: &mut Body<'a>) -> Result<Vec<Parameter>, PtxError> {
        self.expect(b'(')?;
        let mut out: Vec<Parameter> = Vec::new();
        let mut offset = 0usize;
        while !self.accept(b')') {
            let kind = self.word(".param or .reg")?;
            let (mut size, mut align) = (None, None);
            let mut class = Class::Word;
            while let Token::Word(word) = self.peek() {
                if !word.starts_with('.') {
                    break;
                }
                self.next();
                match word {
                    ".align" => align = Some(self.small("an alignment")? as usize),
                    ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                    ".pred" => class = Class::Predicate,
                    _ => match type_size(word) {
                        Some(bytes) => {
                            size = Some(bytes);
                            class = if bytes == 8 { Class::Long } else { Class::Word };
                        }
                        None => return self.error(&format!("the type of a parameter, not {word}")),
                    },
                }
            }
            let name = self.word("the name of a parameter")?;
            let mut size = size.unwrap_or(4);
            let align = align.unwrap_or(size).max(1);
            if self.accept(b'[') {
                let count =
                    if self.peek() == Token::Mark(b']') { 0 } else { self.integer("a size")? as usize };
                size = size.saturating_mul(count);
                self.expect(b']')?;
            }
            if size > 1 << 20 || !align.is_power_of_two() {
                return self.error("a parameter of a sensible size and alignment");
            }
            offset = offset.next_multiple_of(align);
            let register = (kind == ".reg").then(|| body.new_registers(class, 1)).flatten();
            if let Some(register) = register {
                body.scopes[0].registers.insert(name, register);
            }
            out.push(Parameter { name: name.to_string(), size, offset, register });
            offset += size;
            if !self.accept(b',') && self.peek() != Token::Mark(b')') {
                return self.error("',' or ')'");
            }
        }
        Ok(out)
    }
}

/// Bytes of a PTX type with its leading dot; none for what is no type.
pub(super) fn type_size(name: &str) -> Option<usize> {
    Some(match name {
        ".b8" | ".u8" | ".s8" | ".e4m3" | ".e5m2" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" | ".tf32" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        ".b128" => 16,
        ".pred" => 0,
        _ => return None,
    })
}
