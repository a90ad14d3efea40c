//! From a parsed function to a [`Program`].

use std::collections::HashMap;
use std::sync::Arc;

use super::lanes::Kind;
use super::{Address, Decoded, InstructionClass, Note, Op, Program, Special};
use crate::ptx::{Base, Class, Function, Instruction, Operand, Register, Space};

/// Why a kernel cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel {kernel}, PTX line {line}: {message}")]
pub struct LoadError {
    /// The kernel.
    pub kernel: String,
    /// The line of the PTX text.
    pub line: u32,
    /// What was met, and what is known instead.
    pub message: String,
}

/// Makes a program of a kernel. `symbols` gives the addresses of module-level variables, with the space they are in.
///
/// # Errors
/// An opcode, operand or variable that the executor does not know, named with its line.
pub fn load(
    function: &Function,
    files: Arc<Vec<(u32, String)>>,
    symbols: &HashMap<String, (Space, u64)>,
    dynamic_shared: &[(String, usize)],
) -> Result<Program> {
    let mut loader = Loader {
        function,
        symbols,
        locals: HashMap::new(),
        registers: function.registers,
        words: HashMap::new(),
        longs: HashMap::new(),
        predicates: HashMap::new(),
        specials: Vec::new(),
        code: Vec::new(),
        notes: Vec::new(),
        carry: None,
        opcodes: HashMap::new(),
        instruction: None,
    };
    if !super::lanes::cpu_suffices() {
        return Err(
            loader.fail("the virtual GPU needs a CPU with AVX2 and FMA on x86-64, and this one lacks them")
        );
    }
    let static_shared = loader.place_variables(dynamic_shared)?;
    let mut starts = Vec::with_capacity(function.body.len() + 1);
    for instruction in &function.body {
        starts.push(loader.code.len());
        loader.instruction = Some(instruction);
        loader.instruction(instruction)?;
    }
    starts.push(loader.code.len());
    loader.emit(Op::Exit, None, InstructionClass::Control, "exit", &[], &[]);
    loader.finish(&starts, static_shared.0, static_shared.1, files)
}

/// What loading one function has so far.
pub(super) struct Loader<'a> {
    function: &'a Function,
    symbols: &'a HashMap<String, (Space, u64)>,
    /// Addresses of shared, local and parameter variables.
    locals: HashMap<String, (Space, u64)>,
    registers: [u32; 3],
    words: HashMap<u32, u32>,
    longs: HashMap<u64, u32>,
    predicates: HashMap<bool, u32>,
    specials: Vec<(u32, Special)>,
    code: Vec<Decoded>,
    notes: Vec<Note>,
    /// The carry register, once an instruction uses it.
    pub(super) carry: Option<u32>,
    opcodes: HashMap<String, Arc<str>>,
    pub(super) instruction: Option<&'a Instruction>,
}

type Result<T> = std::result::Result<T, LoadError>;

impl<'a> Loader<'a> {
    /// An error at the instruction being loaded.
    pub(super) fn fail(&self, message: impl Into<String>) -> LoadError {
        LoadError {
            kernel: self.function.name.clone(),
            line: self.instruction.map_or(0, |instruction| instruction.line),
            message: message.into(),
        }
    }

    pub(super) fn unknown(&self) -> LoadError {
        let opcode = self.instruction.map_or("", |instruction| &instruction.opcode);
        self.fail(format!(
            "the opcode {opcode} is not known with these operands; the README of vgpu says how to add one"
        ))
    }

    fn place_variables(&mut self, dynamic_shared: &[(String, usize)]) -> Result<(usize, usize)> {
        let (mut shared, mut local) = (0usize, 0usize);
        // Module-level shared variables come first; the device has laid them out.
        for (space, end) in self
            .symbols
            .iter()
            .filter(|(_, (space, _))| *space == Space::Shared)
            .map(|(name, (_, at))| (name, *at))
        {
            // The entry "<name>#end" carries where a variable stops.
            if space.ends_with("#end") {
                shared = shared.max(end as usize);
            }
        }
        let mut dynamic = dynamic_shared.to_vec();
        for variable in &self.function.variables {
            let (end, space) = match variable.space {
                Space::Shared if variable.size == 0 => {
                    dynamic.push((variable.name.clone(), variable.align));
                    continue;
                }
                Space::Shared => (&mut shared, Space::Shared),
                // What calls pass lies with what is local.
                Space::Local | Space::Parameter => (&mut local, Space::Local),
                _ => {
                    return Err(LoadError {
                        kernel: self.function.name.clone(),
                        line: 0,
                        message: format!(
                            "the variable {} in a body is neither shared nor local",
                            variable.name
                        ),
                    });
                }
            };
            *end = end.next_multiple_of(variable.align.max(1));
            self.locals.insert(variable.name.clone(), (space, *end as u64));
            *end += variable.size;
        }
        // Dynamic shared memory begins after the static part, aligned as the text demands it and never less than CUDA does.
        let align = dynamic.iter().map(|(_, align)| *align).max().unwrap_or(1).max(16);
        let shared = shared.next_multiple_of(align);
        for (name, _) in dynamic {
            self.locals.insert(name, (Space::Shared, shared as u64));
        }
        for parameter in &self.function.parameters {
            self.locals.insert(parameter.name.clone(), (Space::Parameter, parameter.offset as u64));
        }
        if shared > 1 << 24 || local > 1 << 20 {
            return Err(
                self.fail(format!("{shared} bytes of shared or {local} bytes of local memory are too many"))
            );
        }
        Ok((shared, local.next_multiple_of(8)))
    }

    /// The address of a name, with its space.
    pub(super) fn symbol(&self, name: &str) -> Result<(Space, u64)> {
        self.locals
            .get(name)
            .or_else(|| self.symbols.get(name))
            .copied()
            .ok_or_else(|| self.fail(format!("the name {name} is not declared")))
    }

    pub(super) fn fresh(&mut self, class: Class) -> u32 {
        let index = self.registers[class as usize];
        self.registers[class as usize] += 1;
        index
    }

    /// A word register that always holds `value`.
    pub(super) fn word_constant(&mut self, value: u32) -> u32 {
        if let Some(&slot) = self.words.get(&value) {
            return slot;
        }
        let slot = self.fresh(Class::Word);
        self.words.insert(value, slot);
        slot
    }

    pub(super) fn long_constant(&mut self, value: u64) -> u32 {
        if let Some(&slot) = self.longs.get(&value) {
            return slot;
        }
        let slot = self.fresh(Class::Long);
        self.longs.insert(value, slot);
        slot
    }

    fn predicate_constant(&mut self, value: bool) -> u32 {
        if let Some(&slot) = self.predicates.get(&value) {
            return slot;
        }
        let slot = self.fresh(Class::Predicate);
        self.predicates.insert(value, slot);
        slot
    }

    pub(super) fn special(&mut self, name: &str) -> Result<u32> {
        let axis = |prefix: &str| match name.strip_prefix(prefix) {
            Some(".x") => Some(0),
            Some(".y") => Some(1),
            Some(".z") => Some(2),
            _ => None,
        };
        let special = if let Some(axis) = axis("%tid") {
            Special::Thread(axis)
        } else if let Some(axis) = axis("%ntid") {
            Special::Threads(axis)
        } else if let Some(axis) = axis("%ctaid") {
            Special::Block(axis)
        } else if let Some(axis) = axis("%nctaid") {
            Special::Blocks(axis)
        } else if let Some(axis) = axis("%cluster_ctaid") {
            Special::BlockInCluster(axis)
        } else if let Some(axis) = axis("%cluster_nctaid") {
            Special::BlocksOfCluster(axis)
        } else if let Some(axis) = axis("%clusterid") {
            Special::Cluster(axis)
        } else if let Some(axis) = axis("%nclusterid") {
            Special::Clusters(axis)
        } else {
            match name {
                "%laneid" => Special::LaneId,
                "%warpid" => Special::WarpId,
                "%nwarpid" => Special::Warps,
                "%smid" => Special::Multiprocessor,
                "%nsmid" => Special::Multiprocessors,
                "%lanemask_eq" => Special::LaneMask(0),
                "%lanemask_lt" => Special::LaneMask(1),
                "%lanemask_le" => Special::LaneMask(2),
                "%lanemask_gt" => Special::LaneMask(3),
                "%lanemask_ge" => Special::LaneMask(4),
                "%dynamic_smem_size" => Special::DynamicShared,
                "%total_smem_size" | "%aggr_smem_size" => Special::TotalShared,
                // What the system keeps of shared memory lies outside of what is modelled.
                "%reserved_smem_offset_begin" | "%reserved_smem_offset_end" | "%reserved_smem_offset_cap" => {
                    Special::Fixed(0)
                }
                "%envreg1" => Special::Workspace(true),
                "%envreg2" => Special::Workspace(false),
                name if name.starts_with("%envreg") || name.starts_with("%pm") => Special::Fixed(0),
                "%cluster_ctarank" => Special::ClusterRank,
                "%cluster_nctarank" => Special::ClusterSize,
                _ => {
                    return Err(
                        self.fail(format!("the register {name} is neither declared nor a known special one"))
                    );
                }
            }
        };
        if let Some((slot, _)) = self.specials.iter().find(|(_, known)| *known == special) {
            return Ok(*slot);
        }
        let slot = self.fresh(Class::Word);
        self.specials.push((slot, special));
        Ok(slot)
    }

    /// The slot of a register, number, name or special register, read as a type.
    pub(super) fn source(&mut self, operand: &Operand, kind: Kind) -> Result<u32> {
        let wrong = |loader: &Self, what: &str| {
            loader.fail(format!("an operand of {} bits was expected, found {what}", kind.bits))
        };
        match operand {
            Operand::Register(register) if register.class == kind.class => Ok(register.index),
            Operand::Register(_) => Err(wrong(self, "a register of another class")),
            Operand::Special(name) if name == "%is_explicit_cluster" && kind.class == Class::Predicate => {
                Ok(self.predicate_constant(self.function.cluster.is_some()))
            }
            // Grids are not numbered, and graphs have no names here; counters count nothing.
            Operand::Special(name) if matches!(name.as_str(), "%gridid" | "%current_graph_exec") => {
                Ok(match kind.class {
                    Class::Word => self.word_constant(0),
                    _ => self.long_constant(0),
                })
            }
            Operand::Special(name) if name.starts_with("%pm") && kind.class == Class::Long => {
                Ok(self.long_constant(0))
            }
            Operand::Special(name) => {
                let slot = self.special(name)?;
                if kind.class == Class::Word { Ok(slot) } else { Err(wrong(self, name)) }
            }
            Operand::Integer(value) => Ok(match kind.class {
                Class::Word => {
                    let value =
                        if kind.bits < 32 { value & ((1 << kind.bits) - 1) } else { value & 0xffff_ffff };
                    self.word_constant(value as u32)
                }
                Class::Long => self.long_constant(*value),
                Class::Predicate => self.predicate_constant(*value != 0),
            }),
            Operand::Single(bits) => match kind.class {
                Class::Word => Ok(self.word_constant(*bits)),
                Class::Long => Ok(self.long_constant(f64::from(f32::from_bits(*bits)).to_bits())),
                Class::Predicate => Err(wrong(self, "an f32 literal")),
            },
            Operand::Double(bits) => match kind.class {
                Class::Word => Ok(self.word_constant((f64::from_bits(*bits) as f32).to_bits())),
                Class::Long => Ok(self.long_constant(*bits)),
                Class::Predicate => Err(wrong(self, "an f64 literal")),
            },
            Operand::Symbol(name, offset) => {
                let address = self.symbol(name)?.1.wrapping_add(*offset as u64);
                match kind.class {
                    Class::Word => Ok(self.word_constant(address as u32)),
                    Class::Long => Ok(self.long_constant(address)),
                    Class::Predicate => Err(wrong(self, name)),
                }
            }
            other => Err(wrong(self, &format!("{other:?}"))),
        }
    }

    /// The slot of a destination register.
    pub(super) fn destination(&self, operand: &Operand, class: Class) -> Result<u32> {
        match operand {
            Operand::Register(register) if register.class == class => Ok(register.index),
            other => Err(self
                .fail(format!("a register of class {class:?} was expected as destination, found {other:?}"))),
        }
    }

    /// A source of 32 bits.
    pub(super) fn word(&mut self, operand: &Operand) -> Result<u32> {
        self.source(operand, Kind { class: Class::Word, bits: 32 })
    }

    /// A predicate source, not negated.
    pub(super) fn predicate(&mut self, operand: &Operand) -> Result<u32> {
        self.source(operand, Kind { class: Class::Predicate, bits: 1 })
    }

    /// The operand at an index.
    pub(super) fn operand(&self, index: usize) -> Result<&'a Operand> {
        self.instruction
            .and_then(|instruction| instruction.operands.get(index))
            .ok_or_else(|| self.fail(format!("operand {} is missing", index + 1)))
    }

    /// The number of operands.
    pub(super) fn operand_count(&self) -> usize {
        self.instruction.map_or(0, |instruction| instruction.operands.len())
    }

    /// An address, and the space of its symbol where it has one.
    pub(super) fn address(&mut self, operand: &Operand) -> Result<(Address, Option<Space>)> {
        let Operand::Address(base, offset) = operand else {
            return Err(self.fail(format!("an address in brackets was expected, found {operand:?}")));
        };
        self.address_of(base, *offset)
    }

    /// An address from its parts.
    pub(super) fn address_of(&mut self, base: &Base, offset: i64) -> Result<(Address, Option<Space>)> {
        Ok(match base {
            Base::Register(Register { class: Class::Predicate, .. }) => {
                return Err(self.fail("a predicate cannot be an address"));
            }
            Base::Register(register) => {
                (Address { base: Some((register.index, register.class == Class::Long)), offset }, None)
            }
            Base::Symbol(name) => {
                let (space, at) = self.symbol(name)?;
                (Address { base: None, offset: offset.wrapping_add(at as i64) }, Some(space))
            }
            Base::Absolute => (Address { base: None, offset }, None),
        })
    }

    /// A register's number over all classes; classes are told apart by their high bits until the end.
    pub(super) fn unified(class: Class, slot: u32) -> u32 {
        slot | (class as u32) << 28
    }

    /// Unified numbers of an address's register.
    pub(super) fn address_uses(address: &Address) -> Vec<u32> {
        address
            .base
            .map(|(slot, long)| Self::unified(if long { Class::Long } else { Class::Word }, slot))
            .into_iter()
            .collect()
    }

    /// Appends an instruction.
    pub(super) fn emit(
        &mut self,
        op: Op,
        guard: Option<(u32, bool)>,
        class: InstructionClass,
        opcode: &str,
        uses: &[u32],
        defines: &[u32],
    ) {
        let opcode = match self.opcodes.get(opcode) {
            Some(known) => known.clone(),
            None => {
                let new: Arc<str> = opcode.into();
                self.opcodes.insert(opcode.to_string(), new.clone());
                new
            }
        };
        let strict = !matches!(
            op,
            Op::Lanes { .. } | Op::Convert(_) | Op::Carry(_) | Op::Join(_) | Op::Split(_) | Op::Shuffle(_)
        );
        let members = op.members();
        self.code.push(Decoded { op, guard, class, followed: true, members });
        self.notes.push(Note {
            location: self.instruction.map(|instruction| instruction.location).unwrap_or_default(),
            line: self.instruction.map_or(0, |instruction| instruction.line),
            opcode,
            uses: uses.to_vec(),
            defines: defines.to_vec(),
            strict,
        });
    }

    /// Appends the current instruction under its guard.
    pub(super) fn emit_current(&mut self, op: Op, class: InstructionClass, uses: &[u32], defines: &[u32]) {
        let Some(instruction) = self.instruction else { return };
        self.emit(op, guard_of(instruction), class, &instruction.opcode, uses, defines);
    }

    fn instruction(&mut self, instruction: &'a Instruction) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let name = opcode.split('.').next().unwrap_or_default();
        match name {
            "bra" => {
                let Operand::Label(target) = self.operand(0)? else { return Err(self.unknown()) };
                self.emit_current(Op::Branch(*target), InstructionClass::Control, &[], &[]);
            }
            "brx" => {
                let index = self.word(self.operand(0)?)?;
                let Operand::Labels(targets) = self.operand(1)? else { return Err(self.unknown()) };
                let op = Op::BranchTable(index, targets.clone().into_boxed_slice());
                self.emit_current(op, InstructionClass::Control, &[index], &[]);
            }
            "ret" | "exit" => self.emit_current(Op::Exit, InstructionClass::Control, &[], &[]),
            "trap" | "brkpt" => self.emit_current(Op::Trap, InstructionClass::Control, &[], &[]),
            // A policy of caches, which none of the caches here has.
            "createpolicy" => {
                let to = self.destination(self.operand(0)?, Class::Long)?;
                let op = super::arithmetic::lookup("mov.b64").ok_or_else(|| self.unknown())?;
                let nothing = self.long_constant(0);
                let slots = super::Slots { destination: to, sources: [nothing, 0, 0, 0] };
                let op = Op::Lanes { run: op.run, slots };
                let defines = [Self::unified(Class::Long, to)];
                self.emit_current(op, InstructionClass::Move, &[], &defines);
            }
            "pragma" | "prefetch" | "prefetchu" | "discard" | "applypriority" | "nanosleep" | "pmevent" => {
                self.emit_current(Op::Nothing, InstructionClass::Synchronize, &[], &[]);
            }
            "vprintf" => {
                let count = self.destination(self.operand(0)?, Class::Word)?;
                let long = Kind { class: Class::Long, bits: 64 };
                let (format, values) =
                    (self.source(self.operand(1)?, long)?, self.source(self.operand(2)?, long)?);
                let uses = [Self::unified(Class::Long, format), Self::unified(Class::Long, values)];
                let class = InstructionClass::Synchronize;
                self.emit_current(Op::Print(count, format, values), class, &uses, &[count]);
            }
            "malloc" => {
                let to = self.destination(self.operand(0)?, Class::Long)?;
                let size = self.source(self.operand(1)?, Kind { class: Class::Long, bits: 64 })?;
                let (uses, defines) = ([Self::unified(Class::Long, size)], [Self::unified(Class::Long, to)]);
                self.emit_current(Op::Allocate(to, size), InstructionClass::Synchronize, &uses, &defines);
            }
            "free" => {
                let address = self.source(self.operand(0)?, Kind { class: Class::Long, bits: 64 })?;
                let uses = [Self::unified(Class::Long, address)];
                self.emit_current(Op::Release(address), InstructionClass::Synchronize, &uses, &[]);
            }
            "mov" => self.mov(instruction)?,
            "cvta" => self.cvta(instruction)?,
            "setp" if opcode.ends_with("x2") => self.setp_packed(instruction)?,
            "setp" => self.setp(instruction)?,
            "set" => self.set(instruction)?,
            "cvt" if opcode.starts_with("cvt.pack.") => {
                self.lanes(instruction, opcode, InstructionClass::Convert)?;
            }
            "cvt" => self.cvt(instruction)?,
            "addc" | "subc" | "madc" => self.carry(instruction)?,
            "add" | "sub" | "mad" if opcode.contains(".cc.") => self.carry(instruction)?,
            "lop3" if opcode == "lop3.b32" && matches!(self.operand(4), Ok(Operand::Integer(_))) => {
                self.lanes(instruction, "lop3.b32", InstructionClass::Integer)?;
            }
            "lop3" if opcode != "lop3.b32" => self.lop3_with_predicate(instruction)?,
            _ => {
                if self.async_form(instruction)?
                    || self.memory_form(instruction)?
                    || self.warp_form(instruction)?
                {
                    return Ok(());
                }
                self.composed(instruction)?;
            }
        }
        Ok(())
    }

    fn finish(
        mut self,
        starts: &[usize],
        static_shared: usize,
        local: usize,
        files: Arc<Vec<(u32, String)>>,
    ) -> Result<Program> {
        let end = self.code.len() - 1;
        let target = |label: usize| starts.get(label).copied().unwrap_or(end);
        for decoded in &mut self.code {
            match &mut decoded.op {
                Op::Branch(label) => *label = target(*label),
                Op::BranchTable(_, labels) => labels.iter_mut().for_each(|label| *label = target(*label)),
                _ => {}
            }
        }
        // Unified numbers become dense: words, then longs, then predicates.
        let [words, longs, _] = self.registers;
        let dense = |id: u32| match id >> 28 {
            0 => id,
            1 => words + (id & 0xfff_ffff),
            _ => words + longs + (id & 0xfff_ffff),
        };
        for (note, decoded) in self.notes.iter_mut().zip(&self.code) {
            note.uses.iter_mut().chain(&mut note.defines).for_each(|id| *id = dense(*id));
            if let Some((guard, _)) = decoded.guard {
                note.uses.push(words + longs + guard);
            }
        }
        let parameter_bytes = self
            .function
            .parameters
            .iter()
            .map(|parameter| parameter.offset + parameter.size)
            .max()
            .unwrap_or(0);
        let mut program = Program {
            name: self.function.name.clone(),
            code: self.code,
            notes: self.notes,
            registers: self.registers,
            word_constants: self.words.iter().map(|(&value, &slot)| (slot, value)).collect(),
            long_constants: self.longs.iter().map(|(&value, &slot)| (slot, value)).collect(),
            predicate_constants: self.predicates.iter().map(|(&value, &slot)| (slot, value)).collect(),
            specials: self.specials,
            definite: Vec::new(),
            parameters: self.function.parameters.iter().map(|p| (p.size, p.offset)).collect(),
            parameter_bytes,
            static_shared,
            local,
            max_threads: self.function.max_threads,
            required_threads: self.function.required_threads,
            min_blocks: self.function.min_blocks,
            max_registers: self.function.max_registers,
            cluster: self.function.cluster,
            max_cluster: self.function.max_cluster,
            target: String::new(),
            uses: super::Uses::default(),
            estimated_registers: 0,
            files,
            text: Arc::from(""),
        };
        super::fragments::mark(&mut program);
        super::padding::mark(&mut program);
        super::definite::mark(&mut program);
        program.estimated_registers = super::live::estimate(&program, self.function.max_registers);
        Ok(program)
    }
}

/// The guard of an instruction, as a slot.
pub(super) fn guard_of(instruction: &Instruction) -> Option<(u32, bool)> {
    instruction.guard.map(|(register, negated)| (register.index, negated))
}
