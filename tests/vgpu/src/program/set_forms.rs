//! Loading of `set`, of comparisons of two packed numbers at once, and of `lop3` with a predicate: each becomes a comparison
//! and what is made of its answer.

use super::InstructionClass;
use super::arithmetic;
use super::lanes::{Kind, LaneOp};
use super::load::{LoadError, Loader, guard_of};
use super::register_forms::lanes_op;
use crate::ptx::{Class, Instruction, Operand};

type Result<T> = std::result::Result<T, LoadError>;

impl<'a> Loader<'a> {
    /// Appends a part of a composed opcode, under the guard of the instruction.
    fn part(&mut self, bare: &str, op: &LaneOp, destination: u32, sources: &[u32]) {
        let uses: Vec<u32> =
            op.sources.iter().zip(sources).map(|(kind, &slot)| Self::unified(kind.class, slot)).collect();
        let defines = [Self::unified(op.destination.class, destination)];
        let guard = self.instruction.and_then(guard_of);
        self.emit(lanes_op(op, destination, sources), guard, InstructionClass::Part, bare, &uses, &defines);
    }

    fn named_part(&mut self, bare: &str, destination: u32, sources: &[u32]) -> Result<()> {
        let op = arithmetic::lookup(bare).ok_or_else(|| self.unknown())?;
        self.part(bare, &op, destination, sources);
        Ok(())
    }

    /// A predicate source, negated or not.
    fn condition(&mut self, operand: &Operand) -> Result<u32> {
        match operand {
            Operand::Not(register) => self.negated(register.index),
            other => self.predicate(other),
        }
    }

    /// Compares operands 1 and 2, of a packed type half by half, and combines each answer with operand 3; fresh predicates.
    fn answers(
        &mut self,
        relation: &str,
        combine: Option<&str>,
        kind: &str,
        flush: bool,
    ) -> Result<Vec<u32>> {
        let scalar = kind.strip_suffix("x2").unwrap_or(kind);
        let op = arithmetic::compare(&["setp", relation, scalar]).ok_or_else(|| self.unknown())?;
        let halves = if scalar == kind { 1 } else { 2 };
        let bits = if halves == 2 { 32 } else { op.sources[0].bits };
        let whole = Kind { class: op.sources[0].class, bits };
        let sources = [self.source(self.operand(1)?, whole)?, self.source(self.operand(2)?, whole)?];
        let condition = match combine {
            Some(_) => Some(self.condition(self.operand(3)?)?),
            None => None,
        };
        let mut out = Vec::new();
        for half in 0..halves {
            let mut parts = sources;
            for part in &mut parts {
                if half == 1 {
                    let (fresh, sixteen) = (self.fresh(Class::Word), self.word_constant(16));
                    self.named_part("shr.u32", fresh, &[*part, sixteen])?;
                    *part = fresh;
                }
                if flush {
                    let fresh = self.fresh(Class::Word);
                    self.named_part(
                        if scalar == "f16" { "flush.f16" } else { "flush.f32" },
                        fresh,
                        &[*part],
                    )?;
                    *part = fresh;
                }
            }
            let answer = self.fresh(Class::Predicate);
            self.part("setp", &op, answer, &parts);
            if let (Some(combine), Some(condition)) = (combine, condition) {
                self.named_part(&format!("{combine}.pred"), answer, &[answer, condition])?;
            }
            out.push(answer);
        }
        Ok(out)
    }

    /// `set`: ones, or 1.0, where the comparison holds.
    pub(super) fn set(&mut self, instruction: &'a Instruction) -> Result<()> {
        let (relation, combine, flush, types) = comparison(&instruction.opcode);
        let (Some(relation), [to, from]) = (relation, &types[..]) else { return Err(self.unknown()) };
        let packed = from.ends_with("x2");
        let yes = match (*to, packed) {
            ("u32" | "s32", false) => u32::MAX,
            ("u32" | "s32", true) => 0xffff,
            ("f32", false) => 1f32.to_bits(),
            ("f16", false) | ("f16x2", true) => 0x3c00,
            ("bf16", false) | ("bf16x2", true) => 0x3f80,
            ("u16" | "s16", false) => 0xffff,
            _ => return Err(self.unknown()),
        };
        let answers = self.answers(relation, combine, from, flush)?;
        let destination = self.destination(self.operand(0)?, Class::Word)?;
        let (no, yes, high) =
            (self.word_constant(0), self.word_constant(yes), self.word_constant(yes.wrapping_shl(16)));
        let target = if answers.len() == 2 { self.fresh(Class::Word) } else { destination };
        self.named_part("selp.b32", target, &[yes, no, answers[0]])?;
        if let Some(&upper) = answers.get(1) {
            let second = self.fresh(Class::Word);
            self.named_part("selp.b32", second, &[high, no, upper])?;
            self.named_part("or.b32", destination, &[target, second])?;
        }
        Ok(())
    }

    /// `setp` of two packed numbers: an answer for the lower and one for the upper.
    pub(super) fn setp_packed(&mut self, instruction: &'a Instruction) -> Result<()> {
        let (relation, combine, flush, types) = comparison(&instruction.opcode);
        let (Some(relation), [from], Operand::Pair(low, high)) = (relation, &types[..], self.operand(0)?)
        else {
            return Err(self.unknown());
        };
        let answers = self.answers(relation, combine, from, flush)?;
        for (target, answer) in [low, high].into_iter().zip(answers) {
            if !matches!(**target, Operand::Sink) {
                let to = self.destination(target, Class::Predicate)?;
                self.named_part("mov.pred", to, &[answer])?;
            }
        }
        Ok(())
    }

    /// `lop3` that also says whether its result is 0, combined with another predicate.
    pub(super) fn lop3_with_predicate(&mut self, instruction: &'a Instruction) -> Result<()> {
        let combine = match instruction.opcode.as_str() {
            "lop3.or.b32" => "or.pred",
            "lop3.and.b32" => "and.pred",
            _ => return Err(self.unknown()),
        };
        let Operand::Pair(result, predicate) = self.operand(0)? else { return Err(self.unknown()) };
        let mut sources = [0; 4];
        for (index, source) in sources.iter_mut().enumerate() {
            *source = self.word(self.operand(index + 1)?)?;
        }
        let condition = self.condition(self.operand(5)?)?;
        let value = match **result {
            Operand::Sink => self.fresh(Class::Word),
            ref other => self.destination(other, Class::Word)?,
        };
        self.named_part("lop3.b32", value, &sources)?;
        let to = self.destination(predicate, Class::Predicate)?;
        let (answer, none) = (self.fresh(Class::Predicate), self.word_constant(0));
        let op = arithmetic::compare(&["setp", "ne", "u32"]).ok_or_else(|| self.unknown())?;
        self.part("setp", &op, answer, &[value, none]);
        self.named_part(combine, to, &[answer, condition])
    }
}

/// The relation, the combination, whether subnormals are flushed, and the types of a comparison.
fn comparison(opcode: &str) -> (Option<&str>, Option<&str>, bool, Vec<&str>) {
    let mut parts = opcode.split('.').skip(1);
    let relation = parts.next();
    let (mut combine, mut flush, mut types) = (None, false, Vec::new());
    for part in parts {
        match part {
            "and" | "or" | "xor" => combine = Some(part),
            "ftz" => flush = true,
            other => types.push(other),
        }
    }
    (relation, combine, flush, types)
}
