//! Loading of the opcodes on registers alone: arithmetic with its modifiers, moves, comparisons, conversions, carries.

use super::arithmetic;
use super::convert::{self, Conversion};
use super::lanes::{Kind, LaneOp};
use super::load::{LoadError, Loader, guard_of};
use super::{Carry, InstructionClass, Op, Pack, Slots};
use crate::ptx::{Class, Instruction, Operand};

type Result<T> = std::result::Result<T, LoadError>;

impl<'a> Loader<'a> {
    /// A lane operation with `.ftz` and `.sat` composed around it.
    pub(super) fn composed(&mut self, instruction: &'a Instruction) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let parts = arithmetic::parts(opcode);
        let kind = parts.last().copied().unwrap_or_default();
        let class = classify(&parts);
        let half = matches!(kind, "f16" | "f16x2");
        let float = half || matches!(kind, "f32" | "f64");
        let flush = parts.contains(&"ftz") && (half || kind == "f32");
        let saturate = parts.contains(&"sat") && float;
        let bare: Vec<&str> =
            parts.iter().copied().filter(|part| *part != "ftz" && !(float && *part == "sat")).collect();
        let bare = bare.join(".");
        if !flush && !saturate {
            return self.lanes(instruction, &bare, class);
        }
        let op = arithmetic::lookup(&bare).ok_or_else(|| self.unknown())?;
        let guard = guard_of(instruction);
        let (flush_of, saturate_of) = match kind {
            "f16" => ("flush.f16", "saturate.f16"),
            "f16x2" => ("flush.f16x2", "saturate.f16x2"),
            "f64" => ("", "saturate.f64"),
            _ => ("flush.f32", "saturate.f32"),
        };
        let (mut sources, mut uses) = (Vec::new(), Vec::new());
        for (index, kind) in op.sources.iter().enumerate() {
            let slot = self.source(self.operand(index + 1)?, *kind)?;
            uses.push(Self::unified(kind.class, slot));
            let is_float = flush && kind.class == Class::Word;
            sources.push(if is_float { self.flushed(slot, guard, flush_of)? } else { slot });
        }
        let destination = self.destination(self.operand(0)?, op.destination.class)?;
        let defines = [Self::unified(op.destination.class, destination)];
        self.emit(lanes_op(&op, destination, &sources), guard, class, opcode, &uses, &defines);
        let mut after = Vec::new();
        if flush && op.destination.class == Class::Word {
            after.push(flush_of);
        }
        if saturate {
            after.push(saturate_of);
        }
        for part in after {
            let op = arithmetic::lookup(part).ok_or_else(|| self.unknown())?;
            self.emit(
                lanes_op(&op, destination, &[destination]),
                guard,
                InstructionClass::Part,
                part,
                &defines,
                &defines,
            );
        }
        Ok(())
    }

    fn flushed(&mut self, slot: u32, guard: Option<(u32, bool)>, name: &str) -> Result<u32> {
        let op = arithmetic::lookup(name).ok_or_else(|| self.unknown())?;
        let fresh = self.fresh(Class::Word);
        let (from, to) = (Self::unified(Class::Word, slot), Self::unified(Class::Word, fresh));
        self.emit(lanes_op(&op, fresh, &[slot]), guard, InstructionClass::Part, name, &[from], &[to]);
        Ok(fresh)
    }

    /// An opcode that is one lane operation.
    pub(super) fn lanes(
        &mut self,
        instruction: &'a Instruction,
        bare: &str,
        class: InstructionClass,
    ) -> Result<()> {
        let op = arithmetic::lookup(bare).ok_or_else(|| self.unknown())?;
        self.lane_op(instruction, &op, class)
    }

    fn lane_op(&mut self, instruction: &'a Instruction, op: &LaneOp, class: InstructionClass) -> Result<()> {
        if instruction.operands.len() != op.sources.len() + 1 {
            return Err(self.unknown());
        }
        let (mut sources, mut uses) = (Vec::new(), Vec::new());
        for (index, kind) in op.sources.iter().enumerate() {
            let operand = self.operand(index + 1)?;
            let slot = match operand {
                Operand::Not(register) => self.negated(register.index)?,
                other => self.source(other, *kind)?,
            };
            sources.push(slot);
            uses.push(Self::unified(kind.class, slot));
        }
        let destination = self.destination(self.operand(0)?, op.destination.class)?;
        let defines = [Self::unified(op.destination.class, destination)];
        self.emit_current(lanes_op(op, destination, &sources), class, &uses, &defines);
        Ok(())
    }

    /// A fresh predicate that holds the opposite of another.
    pub(super) fn negated(&mut self, slot: u32) -> Result<u32> {
        let op = arithmetic::lookup("not.pred").ok_or_else(|| self.unknown())?;
        let fresh = self.fresh(Class::Predicate);
        let (from, to) = (Self::unified(Class::Predicate, slot), Self::unified(Class::Predicate, fresh));
        self.emit(lanes_op(&op, fresh, &[slot]), None, InstructionClass::Part, "not.pred", &[from], &[to]);
        Ok(fresh)
    }

    pub(super) fn mov(&mut self, instruction: &'a Instruction) -> Result<()> {
        let kind = instruction.opcode.rsplit('.').next().unwrap_or_default();
        let bits = match kind {
            "b16" | "u16" | "s16" | "f16" | "bf16" => 16,
            "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 32,
            "b64" | "u64" | "s64" | "f64" => 64,
            "pred" => 1,
            _ => return Err(self.unknown()),
        };
        let (to, from) = (self.operand(0)?, self.operand(1)?);
        if let Operand::Special(name) = from {
            let long = match name.as_str() {
                "%clock" | "%clock_hi" | "%globaltimer_lo" | "%globaltimer_hi" => Some(false),
                "%clock64" | "%globaltimer" => Some(true),
                _ => None,
            };
            if let Some(long) = long {
                let class = if long { Class::Long } else { Class::Word };
                let destination = self.destination(to, class)?;
                let defines = [Self::unified(class, destination)];
                self.emit_current(Op::Clock(destination, long), InstructionClass::Move, &[], &defines);
                return Ok(());
            }
        }
        let pack = |loader: &mut Self, whole: u32, parts: &[Operand], sources: bool| -> Result<Pack> {
            let part_bits = bits / parts.len().max(1) as u32;
            let part_kind = Kind { class: Class::Word, bits: part_bits };
            let mut out = Vec::new();
            for part in parts {
                out.push(match part {
                    Operand::Sink => None,
                    part if sources => Some(loader.source(part, part_kind)?),
                    part => Some(loader.destination(part, Class::Word)?),
                });
            }
            if !matches!(part_bits, 8 | 16 | 32) {
                return Err(loader.unknown());
            }
            Ok(Pack { whole, long: bits == 64, bits: part_bits, parts: out })
        };
        let class = if bits == 64 { Class::Long } else { Class::Word };
        match (to, from) {
            (to, Operand::Vector(parts)) => {
                let whole = self.destination(to, class)?;
                let pack = pack(self, whole, parts, true)?;
                let uses: Vec<u32> =
                    pack.parts.iter().flatten().map(|&slot| Self::unified(Class::Word, slot)).collect();
                let defines = [Self::unified(class, whole)];
                self.emit_current(Op::Join(Box::new(pack)), InstructionClass::Move, &uses, &defines);
            }
            (Operand::Vector(parts), from) => {
                let whole = self.source(from, Kind { class, bits })?;
                let pack = pack(self, whole, parts, false)?;
                let defines: Vec<u32> =
                    pack.parts.iter().flatten().map(|&slot| Self::unified(Class::Word, slot)).collect();
                let uses = [Self::unified(class, whole)];
                self.emit_current(Op::Split(Box::new(pack)), InstructionClass::Move, &uses, &defines);
            }
            _ => {
                let bare = match bits {
                    1 => "mov.pred",
                    16 => "mov.b16",
                    32 => "mov.b32",
                    _ => "mov.b64",
                };
                self.lanes(instruction, bare, InstructionClass::Move)?;
            }
        }
        Ok(())
    }

    /// `cvta`: the window of the space is added or taken away.
    pub(super) fn cvta(&mut self, instruction: &'a Instruction) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let window = if opcode.contains(".shared") {
            super::SHARED_WINDOW
        } else if opcode.contains(".local") {
            super::LOCAL_WINDOW
        } else if opcode.contains(".param") {
            super::PARAMETER_WINDOW
        } else {
            0
        };
        if !opcode.ends_with(".u64") {
            return Err(self.unknown());
        }
        let kind = Kind { class: Class::Long, bits: 64 };
        let from = match self.operand(1)? {
            Operand::Register(register) if register.class == Class::Word => return Err(self.unknown()),
            other => self.source(other, kind)?,
        };
        let to = self.destination(self.operand(0)?, Class::Long)?;
        let op = arithmetic::lookup(if opcode.contains(".to.") { "sub.u64" } else { "add.u64" });
        let op = op.ok_or_else(|| self.unknown())?;
        let offset = self.long_constant(window);
        let (uses, defines) = ([Self::unified(Class::Long, from)], [Self::unified(Class::Long, to)]);
        self.emit_current(lanes_op(&op, to, &[from, offset]), InstructionClass::Move, &uses, &defines);
        Ok(())
    }

    /// `setp`, with its second destination and its combination with a third source.
    pub(super) fn setp(&mut self, instruction: &'a Instruction) -> Result<()> {
        let parts: Vec<&str> = instruction.opcode.split('.').collect();
        let combine = parts.iter().copied().find(|part| matches!(*part, "and" | "or" | "xor"));
        let bare: Vec<&str> =
            parts.iter().copied().filter(|part| !matches!(*part, "and" | "or" | "xor" | "ftz")).collect();
        let op = arithmetic::compare(&bare).ok_or_else(|| self.unknown())?;
        let guard = guard_of(instruction);
        let (first, second) = match self.operand(0)? {
            Operand::Pair(first, second) => (first.as_ref(), Some(second.as_ref())),
            only => (only, None),
        };
        let mut sources = Vec::new();
        let mut uses = Vec::new();
        for index in 1..3 {
            let kind = op.sources[index - 1];
            let mut slot = self.source(self.operand(index)?, kind)?;
            uses.push(Self::unified(kind.class, slot));
            if parts.contains(&"ftz") && kind.class == Class::Word {
                let name = if parts.last() == Some(&"f16") { "flush.f16" } else { "flush.f32" };
                slot = self.flushed(slot, guard, name)?;
            }
            sources.push(slot);
        }
        let target = |loader: &Self, operand: &Operand| match operand {
            Operand::Sink => Ok(None),
            other => loader.destination(other, Class::Predicate).map(Some),
        };
        let (first, second) =
            (target(self, first)?, second.map(|second| target(self, second)).transpose()?.flatten());
        let name = instruction.opcode.as_str();
        if combine.is_none() && second.is_none() {
            let Some(first) = first else { return Ok(()) };
            let defines = [Self::unified(Class::Predicate, first)];
            self.emit(
                lanes_op(&op, first, &sources),
                guard,
                InstructionClass::Compare,
                name,
                &uses,
                &defines,
            );
            return Ok(());
        }
        let third = match combine {
            Some(_) => Some(match self.operand(3)? {
                Operand::Not(register) => self.negated(register.index)?,
                other => self.predicate(other)?,
            }),
            None => None,
        };
        let answer = self.fresh(Class::Predicate);
        let answer_id = Self::unified(Class::Predicate, answer);
        self.emit(
            lanes_op(&op, answer, &sources),
            guard,
            InstructionClass::Compare,
            name,
            &uses,
            &[answer_id],
        );
        // The second destination takes the opposite of the comparison.
        let opposite = match second {
            Some(_) => Some(self.negated(answer)?),
            None => None,
        };
        for (target, answer) in [(first, Some(answer)), (second, opposite)] {
            let (Some(target), Some(answer)) = (target, answer) else { continue };
            let (bare, mut sources) = match combine {
                Some(combine) => (format!("{combine}.pred"), vec![answer]),
                None => ("mov.pred".to_string(), vec![answer]),
            };
            sources.extend(third);
            let op = arithmetic::lookup(&bare).ok_or_else(|| self.unknown())?;
            let uses: Vec<u32> = sources.iter().map(|&slot| Self::unified(Class::Predicate, slot)).collect();
            let defines = [Self::unified(Class::Predicate, target)];
            self.emit(lanes_op(&op, target, &sources), guard, InstructionClass::Part, &bare, &uses, &defines);
        }
        Ok(())
    }

    pub(super) fn cvt(&mut self, instruction: &'a Instruction) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        if let Some(op) = convert::lookup(opcode) {
            // A narrow result may also land in a 64-bit register, and a narrow source lie in one; those go the general way.
            let to = self.operand(0)?;
            let narrow = Conversion::parse(opcode).is_some_and(|conversion| conversion.from.0.bits() < 64);
            let wider = instruction.operands.iter().skip(1).any(
                |operand| matches!(operand, Operand::Register(register) if narrow && register.class == Class::Long),
            );
            if !wider && matches!(to, Operand::Register(register) if register.class == op.destination.class) {
                return self.lane_op(instruction, &op, InstructionClass::Convert);
            }
        }
        let mut conversion = Conversion::parse(opcode).ok_or_else(|| self.unknown())?;
        let Operand::Register(to) = self.operand(0)? else { return Err(self.unknown()) };
        conversion.destination = Self::unified(to.class, to.index);
        let class = if conversion.from.0.bits() == 64 { Class::Long } else { Class::Word };
        let count = instruction.operands.len() - 1;
        let mut uses = Vec::new();
        for index in 1..=count {
            let kind = Kind { class, bits: conversion.from.0.bits() * conversion.from.1 as u32 };
            let operand = self.operand(index)?;
            let slot = match operand {
                // A wider register may hold a narrow source.
                Operand::Register(register) if register.class == Class::Long => {
                    Self::unified(Class::Long, register.index)
                }
                other => Self::unified(class, self.source(other, kind)?),
            };
            uses.push(slot);
        }
        if count != if conversion.to.1 == 2 && conversion.from.1 == 1 { 2 } else { 1 } {
            return Err(self.unknown());
        }
        conversion.sources.clone_from(&uses);
        let defines = [conversion.destination];
        self.emit_current(Op::Convert(Box::new(conversion)), InstructionClass::Convert, &uses, &defines);
        Ok(())
    }

    pub(super) fn carry(&mut self, instruction: &'a Instruction) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let parts: Vec<&str> = opcode.split('.').collect();
        let kind = parts.last().copied().unwrap_or_default();
        let long = kind.ends_with("64");
        if !matches!(kind, "u32" | "s32" | "u64" | "s64" | "b32" | "b64") {
            return Err(self.unknown());
        }
        let carry = match self.carry {
            Some(carry) => carry,
            None => {
                let fresh = self.fresh(Class::Predicate);
                self.carry = Some(fresh);
                fresh
            }
        };
        let class = if long { Class::Long } else { Class::Word };
        let kind_of = Kind { class, bits: if long { 64 } else { 32 } };
        let product = parts[0].starts_with("mad").then(|| parts.contains(&"hi"));
        let mut slots = Slots { destination: self.destination(self.operand(0)?, class)?, ..Slots::default() };
        let count = if product.is_some() { 3 } else { 2 };
        if instruction.operands.len() != count + 1 {
            return Err(self.unknown());
        }
        let mut uses = Vec::new();
        for index in 0..count {
            slots.sources[index] = self.source(self.operand(index + 1)?, kind_of)?;
            uses.push(Self::unified(class, slots.sources[index]));
        }
        let op = Carry {
            subtract: parts[0].starts_with("sub"),
            product,
            signed: kind.starts_with('s'),
            long,
            reads: parts[0].ends_with('c'),
            writes: parts.contains(&"cc"),
            carry,
            slots,
        };
        let defines = [Self::unified(class, slots.destination)];
        self.emit_current(Op::Carry(Box::new(op)), InstructionClass::Integer, &uses, &defines);
        Ok(())
    }
}

pub(super) fn lanes_op(op: &LaneOp, destination: u32, sources: &[u32]) -> Op {
    let mut slots = Slots { destination, sources: [0; 4] };
    slots.sources[..sources.len()].copy_from_slice(sources);
    Op::Lanes { run: op.run, slots }
}

fn classify(parts: &[&str]) -> InstructionClass {
    use InstructionClass as C;
    let (name, kind) =
        (parts.first().copied().unwrap_or_default(), parts.last().copied().unwrap_or_default());
    match name {
        "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rsqrt" | "sqrt" | "rcp" | "div" if kind.contains('f') => {
            C::Special
        }
        "set" | "setp" | "testp" => C::Compare,
        "selp" | "slct" | "mov" => C::Move,
        _ => match kind {
            "f32" => C::Single,
            "f64" => C::Double,
            "f16" | "bf16" | "f16x2" | "bf16x2" => C::Half,
            _ => C::Integer,
        },
    }
}
