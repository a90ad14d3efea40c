//! From tokens to a syntax tree, with scopes of registers, variables and labels resolved.

use std::collections::HashMap;

use super::lexer::{Placed, Token, tokens};
use super::names::{Body, Scope, fold_inlined, resolve_labels};
use super::{
    Base, Class, Function, Instruction, Location, Module, Operand, Parameter, PtxError, Space, Variable,
};

/// Depth of nested `{` at which a text is taken for hostile.
const DEEPEST_SCOPE: usize = 64;
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

struct Parser<'a> {
    tokens: Vec<Placed<'a>>,
    at: usize,
    module: Module,
    /// For a place inside an inlined function: the place that it was inlined at.
    inlined: HashMap<(u32, u32, u32), (u32, u32, u32)>,
    /// For every `.loc`: its place, the place that was inlined at, and so on outwards.
    chains: Vec<Vec<Location>>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens[self.at].token
    }

    fn peek_after(&self) -> Token<'a> {
        self.tokens[(self.at + 1).min(self.tokens.len() - 1)].token
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        // The last token is End and stays.
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn error<T>(&self, expected: &str) -> Result<T, PtxError> {
        Err(PtxError::at(self.line(), format!("expected {expected}, found {:?}", self.peek())))
    }

    fn accept(&mut self, mark: u8) -> bool {
        let found = self.peek() == Token::Mark(mark);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, mark: u8) -> Result<(), PtxError> {
        if self.accept(mark) { Ok(()) } else { self.error(&format!("'{}'", mark as char)) }
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Token::Word(word);
        if found {
            self.next();
        }
        found
    }

    fn word(&mut self, what: &str) -> Result<&'a str, PtxError> {
        match self.peek() {
            Token::Word(word) => {
                self.next();
                Ok(word)
            }
            _ => self.error(what),
        }
    }

    fn integer(&mut self, what: &str) -> Result<u64, PtxError> {
        match self.peek() {
            Token::Integer(value) => {
                self.next();
                Ok(value)
            }
            _ => self.error(what),
        }
    }

    fn small(&mut self, what: &str) -> Result<u32, PtxError> {
        let value = self.integer(what)?;
        u32::try_from(value).or_else(|_| self.error(&format!("{what} below 2^32")))
    }

    fn module(&mut self) -> Result<(), PtxError> {
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
                Token::Word(".visible" | ".extern" | ".weak" | ".common") => {
                    self.next();
                }
                Token::Word(".entry" | ".func") => self.function()?,
                Token::Word(".global" | ".const" | ".shared" | ".local") => {
                    let variables = self.variables()?;
                    self.module.variables.extend(variables);
                }
                Token::Word(".pragma") => self.skip_to_semicolon()?,
                Token::Mark(b';') => {
                    self.next();
                }
                _ => return self.error("a directive of a module"),
            }
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

    fn location(&mut self) -> Result<usize, PtxError> {
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

    fn skip_to_semicolon(&mut self) -> Result<(), PtxError> {
        loop {
            match self.next() {
                Token::Mark(b';') => return Ok(()),
                Token::End => return self.error("';'"),
                _ => {}
            }
        }
    }

    /// `.shared .align 16 .b8 name[32], ... ;` from its state space on.
    fn variables(&mut self) -> Result<Vec<Variable>, PtxError> {
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
                while !self.accept(b')') {
                    if self.next() == Token::End {
                        return self.error("')'");
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
            let (mut initial, mut has_initial) = (Vec::new(), false);
            if self.accept(b'=') {
                has_initial = true;
                self.initial(element / vector, &mut initial)?;
                if size == 0 {
                    size = initial.len();
                }
            }
            if size > LARGEST_VARIABLE || initial.len() > size {
                return self.error(&format!("a variable {name} of a sensible size, not {size} bytes"));
            }
            out.push(Variable { name, space, align, size, initial, has_initial });
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b';')?;
        Ok(out)
    }

    fn initial(&mut self, element: usize, out: &mut Vec<u8>) -> Result<(), PtxError> {
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
                Token::Mark(b'{') => depth += 1,
                Token::Mark(b'}') if depth > 0 => depth -= 1,
                Token::Mark(b',') if depth > 0 => {}
                _ => {
                    self.at = self.at.saturating_sub(1);
                    return self
                        .error("a number as initial value (addresses as initial values are not supported)");
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
                Token::Word(".maxnreg") => {
                    self.next();
                    body.function.max_registers = self.small("a number of registers")?;
                }
                Token::Word(".explicitcluster" | ".noreturn") => {
                    body.function.wants_cluster |= self.peek() == Token::Word(".explicitcluster");
                    self.next();
                }
                Token::Word(".reqnctapercluster" | ".maxclusterrank") => {
                    self.next();
                    body.function.wants_cluster = self.triple()? != [1, 1, 1];
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

    fn body(&mut self, body: &mut Body<'a>) -> Result<(), PtxError> {
        loop {
            let line = self.line();
            match self.peek() {
                Token::Mark(b'{') => {
                    self.next();
                    let parent = body.scope().id;
                    body.parents.push(parent);
                    body.scopes.push(Scope { id: body.parents.len() - 1, ..Scope::default() });
                    if body.scopes.len() > DEEPEST_SCOPE {
                        return self.error("fewer nested scopes");
                    }
                }
                Token::Mark(b'}') => {
                    self.next();
                    body.scopes.pop();
                    if body.scopes.is_empty() {
                        return Ok(());
                    }
                }
                Token::Mark(b';') => {
                    self.next();
                }
                Token::Word(".reg") => self.registers(body)?,
                Token::Word(".shared" | ".local" | ".param" | ".global" | ".const") => {
                    for mut variable in self.variables()? {
                        let scope = body.scopes.last_mut().map_or(0, |scope| scope.id);
                        let unique = format!("{}#{scope}", variable.name);
                        let plain = self.find_name(&variable.name);
                        if let (Some(plain), Some(last)) = (plain, body.scopes.last_mut()) {
                            last.variables.insert(plain, unique.clone());
                        }
                        variable.name = unique;
                        body.function.variables.push(variable);
                    }
                }
                Token::Word(".loc") => body.chain = self.location()?,
                Token::Word(".pragma") => self.skip_to_semicolon()?,
                Token::Word(name) if self.peek_after() == Token::Mark(b':') => {
                    self.next();
                    self.next();
                    let scope = body.scope().id;
                    match self.peek() {
                        Token::Word(".branchtargets") => {
                            self.next();
                            let mut targets = Vec::new();
                            loop {
                                targets.push((self.word("a label")?, line));
                                if !self.accept(b',') {
                                    break;
                                }
                            }
                            self.expect(b';')?;
                            body.tables.insert((scope, name), targets);
                        }
                        Token::Word(".callprototype" | ".calltargets") => self.skip_to_semicolon()?,
                        _ => {
                            if body.labels.insert((scope, name), body.function.body.len()).is_some() {
                                return Err(PtxError::at(
                                    line,
                                    format!("the label {name} stands twice in one scope"),
                                ));
                            }
                        }
                    }
                }
                Token::Mark(b'@') | Token::Word(_) => self.instruction(body)?,
                _ => return self.error("an instruction"),
            }
        }
    }

    /// The text of a variable's name, as a borrow of the PTX: the last occurrence just read.
    fn find_name(&self, name: &str) -> Option<&'a str> {
        self.tokens[..self.at].iter().rev().find_map(|placed| match placed.token {
            Token::Word(word) if word == name => Some(word),
            _ => None,
        })
    }

    fn registers(&mut self, body: &mut Body<'a>) -> Result<(), PtxError> {
        self.next();
        let mut class = Class::Word;
        let mut kind = self.word("the type of registers")?;
        if matches!(kind, ".v2" | ".v4") {
            return self.error("scalar registers; vector registers are not supported");
        }
        if kind == ".align" {
            self.integer("an alignment")?;
            kind = self.word("the type of registers")?;
        }
        match (kind, type_size(kind)) {
            (".pred", _) => class = Class::Predicate,
            (_, Some(8)) => class = Class::Long,
            (_, Some(1 | 2 | 4)) => {}
            _ => return self.error(&format!("registers of up to 64 bits; {kind} is not supported")),
        }
        loop {
            let name = self.word("the name of a register")?;
            let scope = body.scopes.len() - 1;
            if self.accept(b'<') {
                let count = self.small("a number of registers")?;
                self.expect(b'>')?;
                match body.new_registers(class, count) {
                    Some(first) => body.scopes[scope].ranges.push((name, first, count)),
                    None => return self.error("fewer registers"),
                }
            } else {
                match body.new_registers(class, 1) {
                    Some(register) => {
                        body.scopes[scope].registers.insert(name, register);
                    }
                    None => return self.error("fewer registers"),
                }
            }
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn instruction(&mut self, body: &mut Body<'a>) -> Result<(), PtxError> {
        let line = self.line();
        let mut guard = None;
        if self.accept(b'@') {
            let negated = self.accept(b'!');
            let name = self.word("a predicate")?;
            match body.register(name) {
                Some(register) if register.class == Class::Predicate => guard = Some((register, negated)),
                _ => {
                    return Err(PtxError::at(
                        line,
                        format!("{name} guards an instruction but is no predicate"),
                    ));
                }
            }
        }
        let opcode = self.word("an opcode")?.to_string();
        let mut operands = Vec::new();
        if !self.accept(b';') {
            loop {
                operands.push(self.operand(body, 0)?);
                if self.accept(b'|') {
                    let second = self.operand(body, 0)?;
                    if let Some(first) = operands.pop() {
                        operands.push(Operand::Pair(Box::new(first), Box::new(second)));
                    }
                }
                if self.accept(b';') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        // The chain of places stands in for the place until the files are known, at the end of the text.
        let location = Location { file: 0, line: body.chain as u32 };
        body.instruction_scopes.push(body.scope().id);
        body.function.body.push(Instruction { guard, opcode, operands, location, line });
        Ok(())
    }

    fn operand(&mut self, body: &Body<'a>, depth: usize) -> Result<Operand, PtxError> {
        if depth > 4 {
            return self.error("a shallower operand");
        }
        match self.peek() {
            Token::Mark(b'{') => {
                self.next();
                let mut parts = Vec::new();
                while !self.accept(b'}') {
                    parts.push(self.operand(body, depth + 1)?);
                    if !self.accept(b',') && self.peek() != Token::Mark(b'}') {
                        return self.error("',' or '}'");
                    }
                }
                Ok(Operand::Vector(parts))
            }
            Token::Mark(b'(') => {
                self.next();
                let mut parts = Vec::new();
                while !self.accept(b')') {
                    parts.push(self.operand(body, depth + 1)?);
                    if !self.accept(b',') && self.peek() != Token::Mark(b')') {
                        return self.error("',' or ')'");
                    }
                }
                Ok(Operand::List(parts))
            }
            Token::Mark(b'[') => {
                self.next();
                let (base, offset) = self.address(body)?;
                if self.accept(b',') {
                    let coordinates = self.operand(body, depth + 1)?;
                    self.expect(b']')?;
                    return Ok(Operand::Tensor(base, vec![coordinates]));
                }
                self.expect(b']')?;
                Ok(Operand::Address(base, offset))
            }
            Token::Mark(b'!') => {
                self.next();
                let name = self.word("a predicate")?;
                match body.register(name) {
                    Some(register) if register.class == Class::Predicate => Ok(Operand::Not(register)),
                    _ => self.error("a predicate after '!'"),
                }
            }
            Token::Mark(b'-') => {
                self.next();
                match self.next() {
                    Token::Integer(value) => Ok(Operand::Integer(value.wrapping_neg())),
                    Token::Single(bits) => Ok(Operand::Single(bits ^ (1 << 31))),
                    Token::Double(bits) => Ok(Operand::Double(bits ^ (1 << 63))),
                    _ => self.error("a number after '-'"),
                }
            }
            Token::Integer(value) => {
                self.next();
                Ok(Operand::Integer(value))
            }
            Token::Single(bits) => {
                self.next();
                Ok(Operand::Single(bits))
            }
            Token::Double(bits) => {
                self.next();
                Ok(Operand::Double(bits))
            }
            Token::Word("_") => {
                self.next();
                Ok(Operand::Sink)
            }
            Token::Word(word) => {
                self.next();
                if let Some(register) = body.register(word) {
                    return Ok(Operand::Register(register));
                }
                if word.starts_with('%') {
                    return Ok(Operand::Special(word.to_string()));
                }
                let name = body.variable(word);
                let mut offset = 0i64;
                if self.accept(b'+') {
                    offset = self.integer("an offset")? as i64;
                }
                Ok(Operand::Symbol(name, offset))
            }
            _ => self.error("an operand"),
        }
    }

    fn address(&mut self, body: &Body<'a>) -> Result<(Base, i64), PtxError> {
        let base = match self.peek() {
            Token::Integer(value) => {
                self.next();
                return Ok((Base::Absolute, value as i64));
            }
            Token::Word(word) => {
                self.next();
                match body.register(word) {
                    Some(register) => Base::Register(register),
                    None if word.starts_with('%') => return self.error("a declared register as address"),
                    None => Base::Symbol(body.variable(word)),
                }
            }
            _ => return self.error("an address"),
        };
        let mut offset = 0i64;
        if self.accept(b'+') {
            let negative = self.accept(b'-');
            let value = self.integer("an offset")? as i64;
            offset = if negative { value.wrapping_neg() } else { value };
        } else if self.accept(b'-') {
            offset = (self.integer("an offset")? as i64).wrapping_neg();
        }
        Ok((base, offset))
    }
}

/// Bytes of a PTX type with its leading dot; none for what is no type.
fn type_size(name: &str) -> Option<usize> {
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
