//! Loading of `mma.sync` of integers, 8-bit floats and f64.

use super::lanes::Kind;
use super::load::{LoadError, Loader};
use super::op::{Narrow, WideMma, WideSum};
use super::{InstructionClass, Op};
use crate::ptx::{Class, Operand};

type Result<T> = std::result::Result<T, LoadError>;

impl Loader<'_> {
    /// Loads an `mma` of such types; `false` for another.
    pub(super) fn wide_mma(&mut self, parts: &[&str]) -> Result<bool> {
        let [_, "sync", "aligned", shape, "row", "col", rest @ ..] = parts else { return Ok(false) };
        // The manual has it before the types; ptxas takes it behind them too, as CUTLASS writes it.
        let (saturate, rest) = match rest {
            ["satfinite", rest @ ..] | [rest @ .., "satfinite"] => (true, rest),
            rest => (false, rest),
        };
        let &[to, a_kind, b_kind, c_kind] = rest else { return Ok(false) };
        let (Some(a_kind), Some(b_kind)) = (Narrow::parse(a_kind), Narrow::parse(b_kind)) else {
            return Ok(false);
        };
        let sum = match (to, c_kind) {
            ("s32", "s32") => WideSum::Integer { saturate },
            ("f32", "f32") => WideSum::Single,
            ("f16", "f16") => WideSum::Half,
            ("f64", "f64") => WideSum::Double,
            _ => return Ok(false),
        };
        let (rows, depth) = match (shape, a_kind) {
            (&"m8n8k16", Narrow::S8 | Narrow::U8) => (8, 16),
            (&"m16n8k16", Narrow::S8 | Narrow::U8) => (16, 16),
            (&"m16n8k32", Narrow::S8 | Narrow::U8 | Narrow::E4M3 | Narrow::E5M2) => (16, 32),
            (&"m16n8k16", Narrow::E4M3 | Narrow::E5M2) => (16, 16),
            (&"m8n8k32", Narrow::S4 | Narrow::U4) => (8, 32),
            (&"m16n8k32", Narrow::S4 | Narrow::U4) => (16, 32),
            (&"m16n8k64", Narrow::S4 | Narrow::U4) => (16, 64),
            (&"m8n8k4", Narrow::Double) => (8, 4),
            (&"m16n8k4", Narrow::Double) => (16, 4),
            (&"m16n8k8", Narrow::Double) => (16, 8),
            (&"m16n8k16", Narrow::Double) => (16, 16),
            _ => return Ok(false),
        };
        let fits = match a_kind {
            Narrow::S8 | Narrow::U8 | Narrow::S4 | Narrow::U4 => matches!(sum, WideSum::Integer { .. }),
            Narrow::E4M3 | Narrow::E5M2 => !saturate && matches!(sum, WideSum::Single | WideSum::Half),
            Narrow::Double => !saturate && sum == WideSum::Double,
        };
        if !fits || a_kind.family() != b_kind.family() {
            return Ok(false);
        }
        let class = if a_kind == Narrow::Double { Class::Long } else { Class::Word };
        let d = self.fragment_of(class, self.operand(0)?, false)?;
        let a = self.fragment_of(class, self.operand(1)?, true)?;
        let b = self.fragment_of(class, self.operand(2)?, true)?;
        let c = self.fragment_of(class, self.operand(3)?, true)?;
        let per_register = a_kind.per_register();
        let sums = if sum == WideSum::Half { rows * 8 / 64 } else { rows * 8 / 32 };
        if a.len() != rows * depth / 32 / per_register
            || b.len() != depth / 4 / per_register
            || c.len() != sums
            || d.len() != sums
        {
            return Err(self.fail("the number of registers differs from the shape of the fragments"));
        }
        let unified =
            |slots: &[u32]| -> Vec<u32> { slots.iter().map(|&slot| Self::unified(class, slot)).collect() };
        let uses = [unified(&a), unified(&b), unified(&c)].concat();
        let defines = unified(&d);
        let op = WideMma { a_kind, b_kind, sum, rows, depth, d, c, a, b };
        self.emit_current(Op::WideMma(Box::new(op)), InstructionClass::Tensor, &uses, &defines);
        Ok(true)
    }

    pub(super) fn fragment_of(&mut self, class: Class, operand: &Operand, sources: bool) -> Result<Vec<u32>> {
        let parts = match operand {
            Operand::Vector(parts) => &parts[..],
            one => std::slice::from_ref(one),
        };
        let kind = Kind { class, bits: if class == Class::Long { 64 } else { 32 } };
        parts
            .iter()
            .map(|part| if sources { self.source(part, kind) } else { self.destination(part, class) })
            .collect()
    }

    /// `movmatrix`: the eight rows of a matrix over the lanes, turned over.
    pub(super) fn move_matrix(&mut self, opcode: &str) -> Result<()> {
        if opcode != "movmatrix.sync.aligned.m8n8.trans.b16" {
            return Err(self.unknown());
        }
        let from = self.word(self.operand(1)?)?;
        let to = self.destination(self.operand(0)?, Class::Word)?;
        self.emit_current(Op::Turn(to, from), InstructionClass::Matrix, &[from], &[to]);
        Ok(())
    }
}
