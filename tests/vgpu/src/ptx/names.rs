//! Names inside a function: scopes of registers and variables, labels, and places in the source.

use std::collections::HashMap;

use super::{Class, Function, Location, Module, Operand, PtxError, Register};

/// Registers of one function at which a text is taken for hostile.
pub(super) const MAX_REGISTERS: u32 = 1 << 20;

/// Names visible in one `{ }` of a body.
#[derive(Default)]
pub(super) struct Scope<'a> {
    pub(super) id: usize,
    pub(super) registers: HashMap<&'a str, Register>,
    /// Names like `%r<12>`: prefix, first register and count.
    pub(super) ranges: Vec<(&'a str, Register, u32)>,
    pub(super) variables: HashMap<&'a str, String>,
}

pub(super) struct Body<'a> {
    pub(super) function: Function,
    pub(super) scopes: Vec<Scope<'a>>,
    /// Parent of every scope ever opened.
    pub(super) parents: Vec<usize>,
    pub(super) labels: HashMap<(usize, &'a str), usize>,
    pub(super) tables: HashMap<(usize, &'a str), Vec<(&'a str, u32)>>,
    /// Scope of every instruction.
    pub(super) instruction_scopes: Vec<usize>,
    /// The chain of places that the last `.loc` gave.
    pub(super) chain: usize,
}

impl<'a> Body<'a> {
    pub(super) fn scope(&self) -> &Scope<'a> {
        // A body is parsed only while a scope is open.
        &self.scopes[self.scopes.len() - 1]
    }

    pub(super) fn new_registers(&mut self, class: Class, count: u32) -> Option<Register> {
        let total = &mut self.function.registers[class as usize];
        let index = *total;
        *total = total.checked_add(count).filter(|&total| total <= MAX_REGISTERS)?;
        Some(Register { class, index })
    }

    pub(super) fn register(&self, name: &str) -> Option<Register> {
        for scope in self.scopes.iter().rev() {
            if let Some(&register) = scope.registers.get(name) {
                return Some(register);
            }
            let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
            let Ok(number) = name[digits..].parse::<u32>() else { continue };
            for &(prefix, first, count) in &scope.ranges {
                // A prefix may itself end in digits.
                if prefix.len() <= name.len() && name.starts_with(prefix) {
                    let number = if prefix.len() == digits {
                        number
                    } else {
                        match name[prefix.len()..].parse() {
                            Ok(number) => number,
                            Err(_) => continue,
                        }
                    };
                    if number < count {
                        return Some(Register { class: first.class, index: first.index + number });
                    }
                }
            }
        }
        None
    }

    pub(super) fn variable(&self, name: &str) -> String {
        self.scopes
            .iter()
            .rev()
            .find_map(|scope| scope.variables.get(name).cloned())
            .unwrap_or_else(|| name.to_string())
    }

    pub(super) fn lookup<T: Clone>(
        &self,
        map: &HashMap<(usize, &'a str), T>,
        mut scope: usize,
        name: &str,
    ) -> Option<T> {
        loop {
            if let Some((_, found)) = map.iter().find(|((s, n), _)| *s == scope && *n == name) {
                return Some(found.clone());
            }
            if scope == 0 {
                return None;
            }
            scope = self.parents[scope];
        }
    }
}

/// Turns the names that branches go to into indices of instructions.
pub(super) fn resolve_labels(mut body: Body<'_>) -> Result<Function, PtxError> {
    let mut instructions = std::mem::take(&mut body.function.body);
    // A flat map makes the common case quick: nvcc's own labels are unique in a function.
    let outer: HashMap<&str, usize> = body
        .labels
        .iter()
        .filter(|((scope, _), _)| *scope == 0)
        .map(|((_, name), &at)| (*name, at))
        .collect();
    let find = |scope: usize, name: &str| match outer.get(name) {
        Some(&at) if scope == 0 => Some(at),
        _ => body.lookup(&body.labels, scope, name),
    };
    for (instruction, &scope) in instructions.iter_mut().zip(&body.instruction_scopes) {
        let base = instruction.opcode.split('.').next().unwrap_or_default();
        if !matches!(base, "bra" | "brx") {
            continue;
        }
        for operand in &mut instruction.operands {
            let Operand::Symbol(name, _) = operand else { continue };
            let missing =
                |name: &str| PtxError::at(instruction.line, format!("a branch to {name}, which is no label"));
            if base == "bra" {
                *operand = Operand::Label(find(scope, name).ok_or_else(|| missing(name))?);
            } else {
                let table = body.lookup(&body.tables, scope, name).ok_or_else(|| missing(name))?;
                let targets: Result<Vec<usize>, PtxError> =
                    table.iter().map(|(name, _)| find(scope, name).ok_or_else(|| missing(name))).collect();
                *operand = Operand::Labels(targets?);
            }
        }
    }
    body.function.body = instructions;
    Ok(body.function)
}

/// Gives every instruction the innermost place of its chain that lies outside the toolkit's headers.
pub(super) fn fold_inlined(module: &mut Module, chains: &[Vec<Location>]) {
    let foreign: Vec<u32> = module
        .files
        .iter()
        .filter(|(_, path)| path.contains("/include/") && (path.contains("/cu13/") || path.contains("/cuda")))
        .map(|(number, _)| *number)
        .collect();
    for function in &mut module.functions {
        for instruction in &mut function.body {
            let chain = chains.get(instruction.location.line as usize).map_or(&[][..], |chain| chain);
            let own = chain.iter().find(|place| !foreign.contains(&place.file));
            instruction.location = own.or(chain.first()).copied().unwrap_or_default();
        }
    }
}
