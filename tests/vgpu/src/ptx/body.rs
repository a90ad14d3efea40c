//! The body of a function: scopes, declarations, labels, instructions and their operands.

use super::lexer::Token;
use super::names::{Body, Scope};
use super::parser::{Parser, type_size};
use super::{Base, Class, Instruction, Location, Operand, PtxError};

/// Depth of nested `{` at which a text is taken for hostile.
const DEEPEST_SCOPE: usize = 64;

impl<'a> Parser<'a> {
    pub(super) fn body(&mut self, body: &mut Body<'a>) -> Result<(), PtxError> {
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
                    let coordinates = match coordinates {
                        Operand::Vector(coordinates) => coordinates,
                        one => vec![one],
                    };
                    return Ok(Operand::Tensor(base, offset, coordinates));
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
            // The one name of a constant that PTX defines.
            Token::Word("WARP_SZ") => {
                self.next();
                Ok(Operand::Integer(32))
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
