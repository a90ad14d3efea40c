//! Loading of the opcodes in which lanes or warps meet: barriers, shuffles, votes, tensor cores.

use super::lanes::Kind;
use super::load::{LoadError, Loader};
use super::{
    Barrier, InstructionClass, Match, Mma, Narrow, Op, Reduce, ReduceKind, Shuffle, ShuffleKind,
    TensorFormat, Vote, VoteKind, Wmma, WmmaFactors, WmmaSum,
};
use crate::ptx::{Class, Instruction, Operand, Space};

type Result<T> = std::result::Result<T, LoadError>;

impl Loader<'_> {
    /// Loads an opcode of this family; `false` when it belongs to another.
    pub(super) fn warp_form(&mut self, instruction: &Instruction) -> Result<bool> {
        let parts: Vec<&str> = instruction.opcode.split('.').collect();
        let class = InstructionClass::Synchronize;
        match parts[0] {
            "bar" | "barrier" if parts.get(1) == Some(&"warp") => {
                let members = self.word(self.operand(0)?)?;
                self.emit_current(Op::SyncWarp(members), class, &[members], &[]);
            }
            "bar" | "barrier" => self.barrier(&parts)?,
            "membar" => {
                let wide = parts.get(1) != Some(&"cta");
                self.emit_current(Op::Fence(wide), class, &[], &[]);
            }
            "fence" => {
                let wide = parts.iter().any(|part| matches!(*part, "gpu" | "sys" | "cluster"));
                self.emit_current(Op::Fence(wide), class, &[], &[]);
            }
            "activemask" => {
                let to = self.destination(self.operand(0)?, Class::Word)?;
                self.emit_current(Op::ActiveMask(to), class, &[], &[to]);
            }
            "elect" => {
                let Operand::Pair(lane, is_elected) = self.operand(0)? else {
                    return Err(self.fail("elect.sync has two destinations"));
                };
                let lane = match lane.as_ref() {
                    Operand::Sink => None,
                    other => Some(self.destination(other, Class::Word)?),
                };
                let predicate = self.destination(is_elected, Class::Predicate)?;
                let mut defines = vec![Self::unified(Class::Predicate, predicate)];
                defines.extend(lane);
                let members = self.word(self.operand(1)?)?;
                self.emit_current(Op::Elect(lane, predicate, members), class, &[members], &defines);
            }
            "shfl" => self.shuffle(&parts)?,
            "vote" => self.vote(&parts)?,
            "match" => self.match_values(&parts)?,
            "redux" => self.reduce(&parts)?,
            "mma" => self.mma(&instruction.opcode, &parts)?,
            "movmatrix" => self.move_matrix(&instruction.opcode)?,
            "wmma" => self.wmma(&parts)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn barrier(&mut self, parts: &[&str]) -> Result<()> {
        let mut index = 0;
        let mut reduce = None;
        let mut defines = Vec::new();
        let mut uses = Vec::new();
        let is_reduce = parts.contains(&"red");
        if is_reduce {
            let kind = if parts.contains(&"popc") {
                VoteKind::Ballot
            } else if parts.contains(&"and") {
                VoteKind::All
            } else {
                VoteKind::Any
            };
            let class = if kind == VoteKind::Ballot { Class::Word } else { Class::Predicate };
            let to = self.destination(self.operand(0)?, class)?;
            defines.push(Self::unified(class, to));
            let (source, negated) = match self.operand(self.operand_count() - 1)? {
                Operand::Not(register) => (register.index, true),
                other => (self.predicate(other)?, false),
            };
            uses.push(Self::unified(Class::Predicate, source));
            reduce = Some((kind, source, negated, to));
            index = 1;
        }
        let number = self.word(self.operand(index)?)?;
        uses.push(number);
        let end = self.operand_count() - usize::from(is_reduce);
        let count = if index + 1 < end { Some(self.word(self.operand(index + 1)?)?) } else { None };
        uses.extend(count);
        let waits = !parts.contains(&"arrive");
        // bar is barrier.aligned by another name.
        let aligned = parts[0] == "bar" || parts.contains(&"aligned");
        let op = Barrier { number, count, waits, aligned, reduce };
        self.emit_current(Op::Barrier(Box::new(op)), InstructionClass::Synchronize, &uses, &defines);
        Ok(())
    }

    fn shuffle(&mut self, parts: &[&str]) -> Result<()> {
        let kind = match parts.get(2).copied() {
            Some("up") => ShuffleKind::Up,
            Some("down") => ShuffleKind::Down,
            Some("bfly") => ShuffleKind::Butterfly,
            Some("idx") => ShuffleKind::Index,
            _ => return Err(self.fail("shfl.sync with up, down, bfly or idx was expected")),
        };
        let (first, in_range) = match self.operand(0)? {
            Operand::Pair(first, second) => {
                let in_range = match second.as_ref() {
                    Operand::Sink => None,
                    other => Some(self.destination(other, Class::Predicate)?),
                };
                (first.as_ref(), in_range)
            }
            one => (one, None),
        };
        let destination = self.destination(first, Class::Word)?;
        let source = self.word(self.operand(1)?)?;
        let lane = self.word(self.operand(2)?)?;
        let clamp = self.word(self.operand(3)?)?;
        let members = self.word(self.operand(4)?)?;
        let op = Shuffle { kind, destination, source, lane, clamp, members, in_range };
        let mut defines = vec![destination];
        defines.extend(in_range.map(|slot| Self::unified(Class::Predicate, slot)));
        let uses = [source, lane, clamp, members];
        self.emit_current(Op::Shuffle(Box::new(op)), InstructionClass::Synchronize, &uses, &defines);
        Ok(())
    }

    fn vote(&mut self, parts: &[&str]) -> Result<()> {
        // ptxas takes .sync on either side of the mode.
        let mut modes = parts[1..].iter().filter(|part| **part != "sync");
        let kind = match modes.next().copied().filter(|_| parts.contains(&"sync")) {
            Some("all") => VoteKind::All,
            Some("any") => VoteKind::Any,
            Some("uni") => VoteKind::Uniform,
            Some("ballot") => VoteKind::Ballot,
            _ => return Err(self.fail("vote.sync with all, any, uni or ballot was expected")),
        };
        let class = if kind == VoteKind::Ballot { Class::Word } else { Class::Predicate };
        let destination = self.destination(self.operand(0)?, class)?;
        let (source, negated) = match self.operand(1)? {
            Operand::Not(register) => (register.index, true),
            other => (self.predicate(other)?, false),
        };
        let members = self.word(self.operand(2)?)?;
        let op = Vote { kind, destination, source, negated, members };
        let uses = [Self::unified(Class::Predicate, source), members];
        let defines = [Self::unified(class, destination)];
        self.emit_current(Op::Vote(Box::new(op)), InstructionClass::Synchronize, &uses, &defines);
        Ok(())
    }

    fn match_values(&mut self, parts: &[&str]) -> Result<()> {
        let long = parts.last() == Some(&"b64");
        let class = if long { Class::Long } else { Class::Word };
        let (first, uniform) = match self.operand(0)? {
            Operand::Pair(first, second) => {
                (first.as_ref(), Some(self.destination(second, Class::Predicate)?))
            }
            one => (one, None),
        };
        let destination = self.destination(first, Class::Word)?;
        let source = self.source(self.operand(1)?, Kind { class, bits: if long { 64 } else { 32 } })?;
        let members = self.word(self.operand(2)?)?;
        let op = Match { all: parts.contains(&"all"), long, destination, uniform, source, members };
        let mut defines = vec![destination];
        defines.extend(uniform.map(|slot| Self::unified(Class::Predicate, slot)));
        let uses = [Self::unified(class, source), members];
        self.emit_current(Op::Match(Box::new(op)), InstructionClass::Synchronize, &uses, &defines);
        Ok(())
    }

    fn reduce(&mut self, parts: &[&str]) -> Result<()> {
        let kind = match parts.get(2).copied() {
            Some("add") => ReduceKind::Add,
            Some("min") => ReduceKind::Min,
            Some("max") => ReduceKind::Max,
            Some("and") => ReduceKind::And,
            Some("or") => ReduceKind::Or,
            Some("xor") => ReduceKind::Xor,
            _ => return Err(self.fail("redux.sync with add, min, max, and, or or xor was expected")),
        };
        let kind_name = parts.last().copied().unwrap_or_default();
        if !matches!(kind_name, "s32" | "u32" | "b32") {
            return Err(self.fail("redux.sync of 32-bit integers was expected"));
        }
        let destination = self.destination(self.operand(0)?, Class::Word)?;
        let source = self.word(self.operand(1)?)?;
        let members = self.word(self.operand(2)?)?;
        let op = Reduce { kind, signed: kind_name == "s32", destination, source, members };
        self.emit_current(
            Op::Reduce(Box::new(op)),
            InstructionClass::Synchronize,
            &[source, members],
            &[destination],
        );
        Ok(())
    }

    fn mma(&mut self, opcode: &str, parts: &[&str]) -> Result<()> {
        if self.wide_mma(parts)? {
            return Ok(());
        }
        let unknown = |loader: &Self| {
            loader.fail(format!(
                "{opcode} is not known: m16n8 of bf16, f16, tf32, integers, 8-bit floats and f64, row.col, are; so are m8n8 of integers and f64"
            ))
        };
        let [_, "sync", "aligned", shape, "row", "col", to, a_kind, b_kind, c_kind] = *parts else {
            return Err(unknown(self));
        };
        let depth = match shape {
            "m16n8k4" => 4,
            "m16n8k8" => 8,
            "m16n8k16" => 16,
            _ => return Err(unknown(self)),
        };
        let format = match (a_kind, b_kind) {
            ("bf16", "bf16") => TensorFormat::Brain,
            ("f16", "f16") => TensorFormat::Half,
            ("tf32", "tf32") => TensorFormat::Tf32,
            _ => return Err(unknown(self)),
        };
        let half_accumulator = match (to, c_kind) {
            ("f32", "f32") => false,
            ("f16", "f16") if format == TensorFormat::Half => true,
            _ => return Err(unknown(self)),
        };
        let valid = match format {
            TensorFormat::Tf32 => depth == 4 || depth == 8,
            _ => depth == 8 || depth == 16,
        };
        if !valid {
            return Err(unknown(self));
        }
        let d = self.fragment(self.operand(0)?, false)?;
        let a = self.fragment(self.operand(1)?, true)?;
        let b = self.fragment(self.operand(2)?, true)?;
        let c = self.fragment(self.operand(3)?, true)?;
        // Elements of a lane: 16*depth/32 of A, 8*depth/32 of B; two a register, but for tf32.
        let per_register = if format == TensorFormat::Tf32 { 1 } else { 2 };
        let accumulators = if half_accumulator { 2 } else { 4 };
        if a.len() != depth / 2 / per_register
            || b.len() != depth / 4 / per_register
            || c.len() != accumulators
            || d.len() != accumulators
        {
            return Err(self.fail("the number of registers differs from the shape of the fragments"));
        }
        let uses: Vec<u32> = a.iter().chain(&b).chain(&c).copied().collect();
        let defines = d.clone();
        let op = Mma { format, depth, half_accumulator, d, c, a, b };
        self.emit_current(Op::Mma(Box::new(op)), InstructionClass::Tensor, &uses, &defines);
        Ok(())
    }

    fn wmma(&mut self, parts: &[&str]) -> Result<()> {
        let unknown = |loader: &Self| {
            loader.fail(
                "this wmma form is not known: those of f16, bf16, tf32, 8-bit integers and f64 are, of every shape",
            )
        };
        let shape = parts.iter().find_map(|part| match *part {
            "m16n16k16" => Some([16, 16, 16]),
            "m32n8k16" => Some([32, 8, 16]),
            "m8n32k16" => Some([8, 32, 16]),
            "m16n16k8" => Some([16, 16, 8]),
            "m8n8k4" => Some([8, 8, 4]),
            _ => None,
        });
        let Some([m, n, k]) = shape else { return Err(unknown(self)) };
        let row = |part: Option<&&str>| match part.copied() {
            Some("row") => Ok(true),
            Some("col") => Ok(false),
            _ => Err(()),
        };
        match parts.get(1).copied() {
            Some(direction @ ("load" | "store")) => {
                let store = direction == "store";
                let shape = match (parts.get(2).copied(), store) {
                    (Some("a"), false) => [m, k],
                    (Some("b"), false) => [k, n],
                    (Some("c"), false) | (Some("d"), true) => [m, n],
                    _ => return Err(unknown(self)),
                };
                let row_major = row(parts.iter().find(|part| matches!(**part, "row" | "col")))
                    .map_err(|()| unknown(self))?;
                let (size, per_register) = match parts.last().copied() {
                    Some("f32" | "tf32" | "s32") => (4, 1),
                    Some("f16" | "bf16") => (2, 2),
                    Some("s8" | "u8") => (1, 4),
                    Some("f64") => (8, 1),
                    _ => return Err(unknown(self)),
                };
                let space = if parts.contains(&"global") {
                    Space::Global
                } else if parts.contains(&"shared") || parts.contains(&"shared::cta") {
                    Space::Shared
                } else {
                    Space::Generic
                };
                let (value, place) = if store { (1, 0) } else { (0, 1) };
                let (address, _) = self.address(self.operand(place)?)?;
                let class = if size == 8 { Class::Long } else { Class::Word };
                let registers = self.fragment_of(class, self.operand(value)?, store)?;
                // Some fragments hold their elements more than once.
                let held = registers.len() * per_register * super::LANES;
                if held < shape[0] * shape[1] || !held.is_multiple_of(shape[0] * shape[1]) {
                    return Err(unknown(self));
                }
                let stride = if self.operand_count() > 2 { Some(self.word(self.operand(2)?)?) } else { None };
                let mut uses = Self::address_uses(&address);
                uses.extend(stride);
                let mut defines = Vec::new();
                let moved = registers.iter().map(|&slot| Self::unified(class, slot));
                if store { &mut uses } else { &mut defines }.extend(moved);
                let op = Wmma::Move {
                    shape,
                    per_register,
                    store,
                    row_major,
                    size,
                    space,
                    registers,
                    address,
                    stride,
                };
                self.emit_current(Op::Wmma(Box::new(op)), InstructionClass::Matrix, &uses, &defines);
            }
            Some("mma") => {
                let saturate = parts.contains(&"satfinite");
                let after = parts
                    .iter()
                    .position(|part| part.starts_with('m') && part.contains('k') && part.contains('n'));
                let types: Vec<&str> = parts[after.map_or(0, |at| at + 1)..]
                    .iter()
                    .copied()
                    .filter(|part| !matches!(*part, "satfinite" | "rn" | "rz" | "rm" | "rp"))
                    .collect();
                let sum = |name: &str| match name {
                    "f32" => Some(WmmaSum::Single),
                    "f16" => Some(WmmaSum::Half),
                    "s32" => Some(WmmaSum::Integer),
                    "f64" => Some(WmmaSum::Double),
                    _ => None,
                };
                let (factors, d_kind, c_kind) = match types[..] {
                    [d, c] => (Some(WmmaFactors::Float(TensorFormat::Half)), sum(d), sum(c)),
                    [d, a, b, c] => {
                        let factors = match (a, b) {
                            ("bf16", "bf16") => Some(WmmaFactors::Float(TensorFormat::Brain)),
                            ("tf32", "tf32") => Some(WmmaFactors::Float(TensorFormat::Tf32)),
                            ("f64", "f64") => Some(WmmaFactors::Double),
                            _ => match (Narrow::parse(a), Narrow::parse(b)) {
                                (Some(a), Some(b)) if a.family() == 0 && b.family() == 0 => {
                                    Some(WmmaFactors::Bytes(a, b))
                                }
                                _ => None,
                            },
                        };
                        (factors, sum(d), sum(c))
                    }
                    _ => return Err(unknown(self)),
                };
                let (Some(factors), Some(d_kind), Some(c_kind)) = (factors, d_kind, c_kind) else {
                    return Err(unknown(self));
                };
                let class = if factors == WmmaFactors::Double { Class::Long } else { Class::Word };
                let d = self.fragment_of(class, self.operand(0)?, false)?;
                let a = self.fragment_of(class, self.operand(1)?, true)?;
                let b = self.fragment_of(class, self.operand(2)?, true)?;
                let c = self.fragment_of(class, self.operand(3)?, true)?;
                let per = |kind: WmmaSum| if kind == WmmaSum::Half { 2 } else { 1 };
                let of_factor = match factors {
                    WmmaFactors::Float(TensorFormat::Tf32) | WmmaFactors::Double => 1,
                    WmmaFactors::Float(_) => 2,
                    WmmaFactors::Bytes(..) => 4,
                };
                let lanes = super::LANES;
                let fits = d.len() * per(d_kind) * lanes == m * n
                    && c.len() * per(c_kind) * lanes == m * n
                    && a.len() * of_factor * lanes >= m * k
                    && b.len() * of_factor * lanes >= k * n;
                if !fits {
                    return Err(unknown(self));
                }
                let unify = |slot: &u32| Self::unified(class, *slot);
                let uses: Vec<u32> = a.iter().chain(&b).chain(&c).map(unify).collect();
                let defines: Vec<u32> = d.iter().map(unify).collect();
                let sums = [d_kind, c_kind];
                let op = Wmma::Multiply { shape: [m, n, k], factors, sums, saturate, d, a, b, c };
                self.emit_current(Op::Wmma(Box::new(op)), InstructionClass::Tensor, &uses, &defines);
            }
            _ => return Err(unknown(self)),
        }
        Ok(())
    }
}
