//! Loading of the opcodes that touch memory.

use super::lanes::Kind;
use super::load::{LoadError, Loader};
use super::{Access, AsyncCopy, Atomic, AtomicKind, Element, InstructionClass, MatrixMove, Mbarrier, Op};
use crate::ptx::{Class, Instruction, Operand, Space};

type Result<T> = std::result::Result<T, LoadError>;

fn size_of(kind: &str) -> Option<usize> {
    Some(match kind {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}

fn space_of(parts: &[&str]) -> Space {
    for part in parts {
        match *part {
            "global" => return Space::Global,
            "const" => return Space::Constant,
            "shared" | "shared::cta" | "shared::cluster" => return Space::Shared,
            "local" => return Space::Local,
            "param" | "param::entry" => return Space::Parameter,
            _ => {}
        }
    }
    Space::Generic
}

impl Loader<'_> {
    /// Loads an opcode of this family; `false` when it belongs to another.
    pub(super) fn memory_form(&mut self, instruction: &Instruction) -> Result<bool> {
        let parts: Vec<&str> = instruction.opcode.split('.').collect();
        match parts[0] {
            "ld" | "ldu" | "st" => self.access(&parts)?,
            "atom" | "red" => self.atomic(&parts)?,
            "cp" if parts.get(2) != Some(&"bulk") => self.copy(&parts)?,
            "ldmatrix" | "stmatrix" => self.matrix(&parts)?,
            "isspacep" => {
                let space = space_of(&parts);
                let to = self.destination(self.operand(0)?, Class::Predicate)?;
                let from = self.source(self.operand(1)?, Kind { class: Class::Long, bits: 64 })?;
                let (uses, defines) =
                    ([Self::unified(Class::Long, from)], [Self::unified(Class::Predicate, to)]);
                self.emit_current(Op::IsSpace(space, to, from), InstructionClass::Compare, &uses, &defines);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn unsupported(&self, what: &str) -> LoadError {
        self.fail(format!("{what} is not known; the README of vgpu says how to add it"))
    }

    fn access(&mut self, parts: &[&str]) -> Result<()> {
        let kind = parts.last().copied().unwrap_or_default();
        let size = size_of(kind).ok_or_else(|| self.unsupported(&format!("an access of type {kind}")))?;
        let known = [
            "ld",
            "ldu",
            "st",
            "global",
            "const",
            "shared",
            "shared::cta",
            "shared::cluster",
            "local",
            "param",
            "param::entry",
            "nc",
            "volatile",
            "relaxed",
            "acquire",
            "release",
            "weak",
            "gpu",
            "sys",
            "cta",
            "cluster",
            "v2",
            "v4",
            "v8",
            "ca",
            "cg",
            "cs",
            "lu",
            "cv",
            "wb",
            "wt",
            "L1::no_allocate",
            "L1::evict_last",
            "L1::evict_first",
            "L1::evict_normal",
            "L1::evict_unchanged",
            "L2::64B",
            "L2::128B",
            "L2::256B",
            "L2::cache_hint",
            "unified",
        ];
        if let Some(odd) = parts[..parts.len() - 1].iter().find(|part| !known.contains(*part)) {
            return Err(self.unsupported(&format!("the modifier .{odd} of a load or store")));
        }
        let store = parts[0] == "st";
        let mut space = space_of(parts);
        let (value, place) = if store { (1, 0) } else { (0, 1) };
        let (address, symbol_space) = self.address(self.operand(place)?)?;
        if space == Space::Generic {
            // A name carries its space; a plain address finds its own when it runs.
            space = symbol_space.unwrap_or(Space::Generic);
        }
        let parts_of: Vec<&Operand> = match self.operand(value)? {
            Operand::Vector(parts) => parts.iter().collect(),
            one => vec![one],
        };
        let expected = parts.iter().find_map(|part| match *part {
            "v2" => Some(2),
            "v4" => Some(4),
            "v8" => Some(8),
            _ => None,
        });
        if parts_of.len() != expected.unwrap_or(1) || parts_of.len() * size > 32 {
            return Err(self.fail("the number of registers differs from the width of the access"));
        }
        let (mut elements, mut touched) = (Vec::new(), Vec::new());
        for operand in parts_of {
            let element = match operand {
                Operand::Sink if !store => Element { slot: None, long: false },
                Operand::Register(register) if register.class != Class::Predicate => {
                    if size == 8 && register.class == Class::Word {
                        return Err(self.fail("a 64-bit access needs 64-bit registers"));
                    }
                    Element { slot: Some(register.index), long: register.class == Class::Long }
                }
                other if store => {
                    let class = if size == 8 { Class::Long } else { Class::Word };
                    let slot = self.source(other, Kind { class, bits: size as u32 * 8 })?;
                    Element { slot: Some(slot), long: class == Class::Long }
                }
                other => return Err(self.fail(format!("a load needs a register, found {other:?}"))),
            };
            if let Some(slot) = element.slot {
                touched.push(Self::unified(if element.long { Class::Long } else { Class::Word }, slot));
            }
            elements.push(element);
        }
        let strong = parts.iter().any(|part| matches!(*part, "volatile" | "relaxed" | "acquire" | "release"));
        let ordered = parts.iter().any(|part| matches!(*part, "acquire" | "release"));
        // Arguments and results of calls are local variables here, and registers on a device.
        let passes = space == Space::Parameter && symbol_space == Some(Space::Local);
        if passes {
            space = Space::Local;
        }
        let class = match space {
            _ if passes => InstructionClass::Move,
            Space::Shared => InstructionClass::Shared,
            Space::Local => InstructionClass::Local,
            Space::Parameter | Space::Constant => InstructionClass::Constant,
            _ if store => InstructionClass::StoreGlobal,
            _ => InstructionClass::LoadGlobal,
        };
        let access =
            Access { space, size, signed: kind.starts_with('s'), strong, ordered, elements, address };
        let mut uses = Self::address_uses(&access.address);
        if store {
            uses.extend(&touched);
            self.emit_current(Op::Store(Box::new(access)), class, &uses, &[]);
        } else {
            self.emit_current(Op::Load(Box::new(access)), class, &uses, &touched);
        }
        Ok(())
    }

    fn atomic(&mut self, parts: &[&str]) -> Result<()> {
        if parts.get(1) == Some(&"async") {
            return Err(self.unsupported("an asynchronous reduction"));
        }
        let kind = parts.last().copied().unwrap_or_default();
        let size = size_of(kind).ok_or_else(|| self.unsupported(&format!("an atomic of type {kind}")))?;
        let signed = kind.starts_with('s');
        let what = parts[1..]
            .iter()
            .find_map(|part| {
                Some(match (*part, kind) {
                    ("add", "f32") => AtomicKind::AddSingle,
                    ("add", "f64") => AtomicKind::AddDouble,
                    ("add", "f16") => AtomicKind::AddHalf,
                    ("add", "bf16") => AtomicKind::AddBrain,
                    ("add", "f16x2") => AtomicKind::AddHalfPair,
                    ("add", "bf16x2") => AtomicKind::AddBrainPair,
                    ("add", _) => AtomicKind::Add,
                    ("min", _) if signed => AtomicKind::MinSigned,
                    ("max", _) if signed => AtomicKind::MaxSigned,
                    ("min", "u32" | "u64") => AtomicKind::MinUnsigned,
                    ("max", "u32" | "u64") => AtomicKind::MaxUnsigned,
                    ("and", _) => AtomicKind::And,
                    ("or", _) => AtomicKind::Or,
                    ("xor", _) => AtomicKind::Xor,
                    ("exch", _) => AtomicKind::Exchange,
                    ("cas", _) => AtomicKind::CompareSwap,
                    ("inc", "u32") => AtomicKind::Increment,
                    ("dec", "u32") => AtomicKind::Decrement,
                    _ => return None,
                })
            })
            .ok_or_else(|| self.unsupported("this atomic"))?;
        let returns = parts[0] == "atom";
        let mut index = 0;
        let class = if size == 8 { Class::Long } else { Class::Word };
        let mut destinations = Vec::new();
        if returns {
            match self.operand(0)? {
                Operand::Vector(parts) => {
                    for part in parts {
                        destinations.push(self.destination(part, class)?);
                    }
                }
                // The old value is dropped.
                Operand::Sink => {}
                one => destinations.push(self.destination(one, class)?),
            }
            index = 1;
        }
        let (address, symbol_space) = self.address(self.operand(index)?)?;
        let value_kind = Kind { class, bits: size as u32 * 8 };
        let mut operands = Vec::new();
        match self.operand(index + 1)? {
            Operand::Vector(parts) => {
                for part in parts {
                    operands.push(self.source(part, value_kind)?);
                }
            }
            one => operands.push(self.source(one, value_kind)?),
        }
        let swap = match what {
            AtomicKind::CompareSwap => Some(self.source(self.operand(index + 2)?, value_kind)?),
            _ => None,
        };
        if !destinations.is_empty() && destinations.len() != operands.len() {
            return Err(self.fail("as many results as operands are needed"));
        }
        let mut space = space_of(parts);
        if space == Space::Generic {
            space = symbol_space.unwrap_or(Space::Generic);
        }
        let ordered = parts.iter().any(|part| matches!(*part, "acquire" | "release" | "acq_rel"));
        let mut uses = Self::address_uses(&address);
        uses.extend(operands.iter().chain(&swap).map(|&slot| Self::unified(class, slot)));
        let defines: Vec<u32> = destinations.iter().map(|&slot| Self::unified(class, slot)).collect();
        let atomic = Atomic { kind: what, space, size, destinations, operands, swap, address, ordered };
        self.emit_current(Op::Atomic(Box::new(atomic)), InstructionClass::Atomic, &uses, &defines);
        Ok(())
    }

    fn copy(&mut self, parts: &[&str]) -> Result<()> {
        let class = InstructionClass::AsyncCopy;
        if parts.get(1) != Some(&"async") {
            return Err(self.unsupported("this copy"));
        }
        match parts.get(2).copied() {
            Some("commit_group") => self.emit_current(Op::AsyncCommit, class, &[], &[]),
            Some("wait_all") => self.emit_current(Op::AsyncWait(0, true), class, &[], &[]),
            Some("wait_group") => {
                let Operand::Integer(left) = self.operand(0)? else {
                    return Err(self.fail("cp.async.wait_group takes a number"));
                };
                self.emit_current(Op::AsyncWait(*left as u32, false), class, &[], &[]);
            }
            Some("mbarrier") => {
                let (address, _) = self.address(self.operand(0)?)?;
                let op = Mbarrier::CopiesDone { counted: parts.contains(&"noinc") };
                let uses = Self::address_uses(&address);
                self.emit_current(Op::Mbarrier(Box::new(op), address), class, &uses, &[]);
            }
            Some("ca" | "cg") => {
                let (to, _) = self.address(self.operand(0)?)?;
                let (from, _) = self.address(self.operand(1)?)?;
                let Operand::Integer(size @ (4 | 8 | 16)) = *self.operand(2)? else {
                    return Err(self.fail("cp.async copies 4, 8 or 16 bytes"));
                };
                if parts[2] == "cg" && size != 16 {
                    return Err(self.fail("cp.async.cg copies 16 bytes"));
                }
                let (mut source_size, mut ignore) = (None, None);
                let mut uses = Self::address_uses(&to);
                uses.extend(Self::address_uses(&from));
                let hinted = parts.contains(&"L2::cache_hint");
                if self.operand_count() > 3 + usize::from(hinted) {
                    match self.operand(3)? {
                        Operand::Register(register) if register.class == Class::Predicate => {
                            ignore = Some(register.index);
                            uses.push(Self::unified(Class::Predicate, register.index));
                        }
                        other => {
                            let slot = self.word(other)?;
                            source_size = Some(slot);
                            uses.push(slot);
                        }
                    }
                }
                let copy = AsyncCopy { to, from, size: size as usize, source_size, ignore };
                self.emit_current(Op::AsyncCopy(Box::new(copy)), class, &uses, &[]);
            }
            _ => return Err(self.unsupported("this copy")),
        }
        Ok(())
    }

    fn matrix(&mut self, parts: &[&str]) -> Result<()> {
        let store = parts[0] == "stmatrix";
        let known = [
            "ldmatrix",
            "stmatrix",
            "sync",
            "aligned",
            "m8n8",
            "x1",
            "x2",
            "x4",
            "trans",
            "shared",
            "shared::cta",
            "b16",
        ];
        if !parts.contains(&"m8n8") || parts.iter().any(|part| !known.contains(part)) {
            return Err(self.unsupported("this matrix move"));
        }
        let count = parts.iter().find_map(|part| match *part {
            "x1" => Some(1),
            "x2" => Some(2),
            "x4" => Some(4),
            _ => None,
        });
        let (value, place) = if store { (1, 0) } else { (0, 1) };
        let (address, _) = self.address(self.operand(place)?)?;
        let registers = self.fragment(self.operand(value)?, store)?;
        if count != Some(registers.len()) {
            return Err(self.fail("the number of registers differs from the number of matrices"));
        }
        let mut uses = Self::address_uses(&address);
        let mut defines = Vec::new();
        if store { &mut uses } else { &mut defines }.extend(&registers);
        let op = MatrixMove { store, transposed: parts.contains(&"trans"), registers, address };
        self.emit_current(Op::Matrix(Box::new(op)), InstructionClass::Matrix, &uses, &defines);
        Ok(())
    }

    /// The word registers of a vector operand.
    pub(super) fn fragment(&mut self, operand: &Operand, sources: bool) -> Result<Vec<u32>> {
        let parts: Vec<&Operand> = match operand {
            Operand::Vector(parts) => parts.iter().collect(),
            one => vec![one],
        };
        let mut out = Vec::new();
        for part in parts {
            out.push(if sources { self.word(part)? } else { self.destination(part, Class::Word)? });
        }
        Ok(out)
    }
}
