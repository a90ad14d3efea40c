//! Calls of device functions: the callee's body takes the place of the call.
//!
//! A kernel that calls nothing is left as it is. Registers, local variables and labels of the callee are its own at
//! every call; its parameters and results are the variables that the caller passes, which live in local memory.
//! A call through a pointer tries each function of the module whose address is taken and that fits. `vprintf`, `malloc` and
//! `free`, which have no bodies, are instructions. Functions that call themselves and other functions without a body cannot be run.

use std::borrow::Cow;
use std::collections::HashMap;

use super::names::MAX_REGISTERS;
use super::{Base, Class, Function, Instruction, Module, Operand, Parameter, PtxError, Register, Space};

/// Instructions of one kernel, all its callees included, at which a text is taken for hostile.
const MAX_INSTRUCTIONS: usize = 1 << 20;
/// Calls of one kernel at which a text is taken for hostile.
const MAX_CALLS: usize = 1 << 16;
/// Calls inside calls at which a text is taken for hostile.
const DEEPEST_CALL: usize = 64;

/// A kernel with the bodies of all that it calls.
///
/// # Errors
/// A call that cannot be run, or whose operands do not fit the function.
pub fn inline<'a>(module: &Module, kernel: &'a Function) -> Result<Cow<'a, Function>, PtxError> {
    if !kernel.body.iter().any(is_call) {
        return Ok(Cow::Borrowed(kernel));
    }
    let bodies = module.functions.iter().filter(|function| function.has_body && !function.is_entry);
    let mut functions: HashMap<&str, &Function> =
        bodies.map(|function| (function.name.as_str(), function)).collect();
    for (alias, name) in &module.aliases {
        if let Some(&function) = functions.get(name.as_str()) {
            functions.insert(alias, function);
        }
    }
    let mut expansion = Expansion {
        targets: pointed_at(module, &functions),
        functions,
        out: Function {
            registers: [0; 3],
            body: Vec::new(),
            variables: Vec::new(),
            parameters: Vec::new(),
            ..kernel.clone()
        },
        calls: 0,
    };
    let mut frame = Frame { chain: vec![&kernel.name], ..Frame::default() };
    expansion.copy(kernel, &mut frame)?;
    expansion.out.parameters.clone_from(&kernel.parameters);
    Ok(Cow::Owned(expansion.out))
}

fn is_call(instruction: &Instruction) -> bool {
    instruction.opcode.split('.').next() == Some("call")
}

/// Where addresses of functions begin. Nothing lies there: they are only compared.
pub const FUNCTION_WINDOW: u64 = 0x1300_0000_0000;

/// The addresses of a module's functions, by name and by alias.
pub fn addresses(module: &Module) -> HashMap<&str, u64> {
    let callable = module.functions.iter().filter(|function| function.has_body && !function.is_entry);
    let mut out: HashMap<&str, u64> = callable
        .enumerate()
        .map(|(index, function)| (function.name.as_str(), FUNCTION_WINDOW + 16 * (index as u64 + 1)))
        .collect();
    for (alias, name) in &module.aliases {
        if let Some(&address) = out.get(name.as_str()) {
            out.insert(alias, address);
        }
    }
    out
}

/// The functions whose addresses are taken, in bodies or in variables.
fn pointed_at<'a>(module: &Module, functions: &HashMap<&str, &'a Function>) -> Vec<(u64, &'a Function)> {
    let addresses = addresses(module);
    let mut out: Vec<(u64, &Function)> = Vec::new();
    let mut take = |name: &str| {
        if let (Some(&address), Some(&function)) = (addresses.get(name), functions.get(name))
            && !out.iter().any(|(known, _)| *known == address)
        {
            out.push((address, function));
        }
    };
    let plain = module.functions.iter().flat_map(|function| &function.body).filter(|one| !is_call(one));
    for operand in plain.flat_map(|instruction| &instruction.operands) {
        if let Operand::Symbol(name, _) = operand {
            take(name);
        }
    }
    module.variables.iter().flat_map(|variable| &variable.addresses).for_each(|(_, name, _)| take(name));
    out
}

struct Expansion<'a> {
    /// Functions that a pointer may name, with their addresses.
    targets: Vec<(u64, &'a Function)>,
    functions: HashMap<&'a str, &'a Function>,
    out: Function,
    calls: usize,
}

/// One call: what names and registers of the function mean in the kernel.
#[derive(Default)]
struct Frame<'a> {
    /// The functions that are being called, the outermost first.
    chain: Vec<&'a str>,
    registers: [u32; 3],
    names: HashMap<String, String>,
}

impl Frame<'_> {
    fn is_callee(&self) -> bool {
        self.chain.len() > 1
    }

    fn register(&self, register: Register) -> Register {
        let first = self.registers[register.class as usize];
        Register { class: register.class, index: first + register.index }
    }

    fn name(&self, name: &str) -> String {
        self.names.get(name).map_or(name, String::as_str).to_string()
    }

    fn base(&self, base: &Base) -> Base {
        match base {
            Base::Register(register) => Base::Register(self.register(*register)),
            Base::Symbol(name) => Base::Symbol(self.name(name)),
            Base::Absolute => Base::Absolute,
        }
    }

    fn operand(&self, operand: &Operand) -> Operand {
        let all = |operands: &[Operand]| operands.iter().map(|operand| self.operand(operand)).collect();
        match operand {
            Operand::Register(register) => Operand::Register(self.register(*register)),
            Operand::Not(register) => Operand::Not(self.register(*register)),
            Operand::Address(base, offset) => Operand::Address(self.base(base), *offset),
            Operand::Tensor(base, offset, coordinates) => {
                Operand::Tensor(self.base(base), *offset, all(coordinates))
            }
            Operand::Vector(parts) => Operand::Vector(all(parts)),
            Operand::List(parts) => Operand::List(all(parts)),
            Operand::Pair(first, second) => {
                Operand::Pair(Box::new(self.operand(first)), Box::new(self.operand(second)))
            }
            Operand::Symbol(name, offset) => Operand::Symbol(self.name(name), *offset),
            other => other.clone(),
        }
    }
}

impl<'a> Expansion<'a> {
    /// Appends the body of a function, with everything that it calls.
    fn copy(&mut self, function: &'a Function, frame: &mut Frame<'a>) -> Result<(), PtxError> {
        let line = function.body.first().map_or(0, |instruction| instruction.line);
        for class in 0..3 {
            frame.registers[class] = self.out.registers[class];
            let total = self.out.registers[class].checked_add(function.registers[class]);
            match total.filter(|&total| total <= MAX_REGISTERS) {
                Some(total) => self.out.registers[class] = total,
                None => return Err(PtxError::at(line, "all calls together need too many registers")),
            }
        }
        for variable in &function.variables {
            let mut variable = variable.clone();
            // Shared variables are the block's, whoever calls; the others are those of the call.
            let name = match (frame.is_callee(), variable.space) {
                (false, _) => variable.name.clone(),
                (true, Space::Shared) => format!("{}::{}", function.name, variable.name),
                (true, _) => format!("{}::{}@{}", function.name, variable.name, self.calls),
            };
            frame.names.insert(std::mem::replace(&mut variable.name, name.clone()), name);
            if !self.out.variables.iter().any(|known| known.name == variable.name) {
                self.out.variables.push(variable);
            }
        }
        let (mut starts, mut own) = (Vec::with_capacity(function.body.len() + 1), Vec::new());
        for (index, instruction) in function.body.iter().enumerate() {
            starts.push(self.out.body.len());
            let mut copy = instruction.clone();
            copy.guard = copy.guard.map(|(register, negated)| (frame.register(register), negated));
            copy.operands = copy.operands.iter().map(|operand| frame.operand(operand)).collect();
            let name = instruction.opcode.split('.').next().unwrap_or_default();
            if name == "call" {
                if let Some((guard, negated)) = copy.guard {
                    let guard = Some((guard, !negated));
                    own.push(self.emit(&copy, guard, "bra", vec![Operand::Label(index + 1)]));
                }
                self.call(&copy, frame)?;
            } else if name == "ret" && frame.is_callee() {
                own.push(self.emit(&copy, copy.guard, "bra", vec![Operand::Label(function.body.len())]));
            } else {
                if frame.is_callee() && is_by_register(&copy) {
                    copy.opcode = copy.opcode.replace(".param", ".local");
                }
                own.push(self.out.body.len());
                self.out.body.push(copy);
            }
            if self.out.body.len() > MAX_INSTRUCTIONS {
                let message = format!("all calls together make more than {MAX_INSTRUCTIONS} instructions");
                return Err(PtxError::at(instruction.line, message));
            }
        }
        starts.push(self.out.body.len());
        for index in own {
            for operand in &mut self.out.body[index].operands {
                match operand {
                    Operand::Label(label) => *label = starts[*label],
                    Operand::Labels(labels) => labels.iter_mut().for_each(|label| *label = starts[*label]),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Appends an instruction at the place of another, and says where.
    fn emit(
        &mut self,
        at: &Instruction,
        guard: Option<(Register, bool)>,
        opcode: &str,
        operands: Vec<Operand>,
    ) -> usize {
        let (opcode, location, line) = (opcode.to_string(), at.location, at.line);
        self.out.body.push(Instruction { guard, opcode, operands, location, line });
        self.out.body.len() - 1
    }

    /// Appends what a call does. Its operands are the kernel's already.
    fn call(&mut self, call: &Instruction, frame: &Frame<'a>) -> Result<(), PtxError> {
        let fail = |message: String| Err(PtxError::at(call.line, message));
        let (results, rest) = match &call.operands[..] {
            [Operand::List(results), rest @ ..] => (&results[..], rest),
            rest => (&[][..], rest),
        };
        let (name, arguments) = match rest {
            [Operand::Symbol(name, 0)] => (name, &[][..]),
            [Operand::Symbol(name, 0), Operand::List(arguments)] => (name, &arguments[..]),
            [Operand::Register(pointer), Operand::List(arguments), ..] => {
                return self.call_through(call, *pointer, results, arguments, frame);
            }
            [Operand::Register(pointer), ..] => {
                return self.call_through(call, *pointer, results, &[], frame);
            }
            _ => return fail("call (results), function, (arguments) was expected".to_string()),
        };
        if name == "__assertfail" {
            self.emit(call, None, "trap", Vec::new());
            return Ok(());
        }
        if name == "vprintf" {
            return self.print(call, results, arguments);
        }
        if matches!(name.as_str(), "malloc" | "free") && !self.functions.contains_key(name.as_str()) {
            return self.use_heap(call, name, results, arguments);
        }
        let Some(&function) = self.functions.get(name.as_str()) else {
            return fail(format!("the function {name} has no body here, and none is modelled"));
        };
        if frame.chain.contains(&function.name.as_str()) {
            return fail(format!("the function {name} calls itself, which is not modelled"));
        }
        if frame.chain.len() > DEEPEST_CALL {
            return fail(format!("more than {DEEPEST_CALL} calls inside each other"));
        }
        self.enter(call, function, results, arguments, frame)
    }

    /// Appends the body of a function that is called.
    fn enter(
        &mut self,
        call: &Instruction,
        function: &'a Function,
        results: &[Operand],
        arguments: &[Operand],
        frame: &Frame<'a>,
    ) -> Result<(), PtxError> {
        let fail = |message: String| Err(PtxError::at(call.line, message));
        let name = &function.name;
        if results.len() != function.returns.len() || arguments.len() != function.parameters.len() {
            return fail(format!(
                "{name} takes {} arguments and gives {} results, not {} and {}",
                function.parameters.len(),
                function.returns.len(),
                arguments.len(),
                results.len()
            ));
        }
        self.calls += 1;
        if self.calls > MAX_CALLS {
            return fail(format!("all calls together are more than {MAX_CALLS}"));
        }
        let mut inner = Frame { chain: frame.chain.clone(), ..Frame::default() };
        inner.chain.push(&function.name);
        // Where the callee's registers will begin.
        inner.registers = self.out.registers;
        for (formal, actual) in function.parameters.iter().zip(arguments) {
            self.pass(call, formal, actual, &mut inner, true)?;
        }
        for (formal, actual) in function.returns.iter().zip(results) {
            self.pass(call, formal, actual, &mut inner, false)?;
        }
        self.copy(function, &mut inner)?;
        for (formal, actual) in function.returns.iter().zip(results) {
            if let Some(register) = formal.register {
                let operands = vec![actual.clone(), Operand::Register(inner.register(register))];
                self.emit(call, None, mov(register.class), operands);
            }
        }
        Ok(())
    }

    /// A register of its own.
    fn fresh(&mut self, class: Class) -> Register {
        let index = self.out.registers[class as usize];
        self.out.registers[class as usize] += 1;
        Register { class, index }
    }

    /// Appends what a call through a pointer does: the pointer is compared with every function that it may name.
    fn call_through(
        &mut self,
        call: &Instruction,
        pointer: Register,
        results: &[Operand],
        arguments: &[Operand],
        frame: &Frame<'a>,
    ) -> Result<(), PtxError> {
        let size = |operand: &Operand| match operand {
            Operand::Symbol(name, 0) => self
                .out
                .variables
                .iter()
                .find(|variable| variable.name == *name)
                .map(|variable| variable.size),
            _ => None,
        };
        let fits = |formals: &[Parameter], actuals: &[Operand]| {
            formals.len() == actuals.len()
                && formals.iter().zip(actuals).all(|(formal, actual)| {
                    formal.register.is_some() || size(actual).is_some_and(|size| size == formal.size)
                })
        };
        let fitting: Vec<(u64, &'a Function)> = self
            .targets
            .iter()
            .filter(|(_, function)| {
                fits(&function.parameters, arguments)
                    && fits(&function.returns, results)
                    && !frame.chain.contains(&function.name.as_str())
            })
            .copied()
            .collect();
        let differs = self.fresh(Class::Predicate);
        let mut to_end = Vec::new();
        for (address, function) in fitting {
            let operands =
                vec![Operand::Register(differs), Operand::Register(pointer), Operand::Integer(address)];
            self.emit(call, None, "setp.ne.b64", operands);
            let to_next = self.emit(call, Some((differs, false)), "bra", vec![Operand::Label(0)]);
            self.enter(call, function, results, arguments, frame)?;
            to_end.push(self.emit(call, None, "bra", vec![Operand::Label(0)]));
            self.out.body[to_next].operands = vec![Operand::Label(self.out.body.len())];
        }
        self.emit(call, None, "trap", Vec::new());
        let end = Operand::Label(self.out.body.len());
        for branch in to_end {
            self.out.body[branch].operands = vec![end.clone()];
        }
        Ok(())
    }

    /// Appends the instruction that `malloc` or `free` is here.
    fn use_heap(
        &mut self,
        call: &Instruction,
        name: &str,
        results: &[Operand],
        arguments: &[Operand],
    ) -> Result<(), PtxError> {
        let [Operand::Symbol(argument, 0)] = arguments else {
            return Err(PtxError::at(call.line, format!("{name} takes one argument")));
        };
        let place = |name: &String| Operand::Address(Base::Symbol(name.clone()), 0);
        let [value, result] = [Class::Long; 2].map(|class| Operand::Register(self.fresh(class)));
        self.emit(call, None, "ld.local.b64", vec![value.clone(), place(argument)]);
        if name == "free" {
            self.emit(call, None, "free", vec![value]);
            return Ok(());
        }
        self.emit(call, None, "malloc", vec![result.clone(), value]);
        if let [Operand::Symbol(name, 0)] = results {
            self.emit(call, None, "st.local.b64", vec![place(name), result]);
        }
        Ok(())
    }

    /// Appends the instruction that `vprintf` is here: it takes the addresses of the format and of the values.
    fn print(
        &mut self,
        call: &Instruction,
        results: &[Operand],
        arguments: &[Operand],
    ) -> Result<(), PtxError> {
        let [Operand::Symbol(format, 0), Operand::Symbol(values, 0)] = arguments else {
            return Err(PtxError::at(call.line, "vprintf takes a format and the address of values"));
        };
        let count = self.fresh(Class::Word);
        let mut operands = vec![Operand::Register(count)];
        for name in [format, values] {
            let address = self.fresh(Class::Long);
            let place = Operand::Address(Base::Symbol(name.clone()), 0);
            self.emit(call, None, "ld.local.b64", vec![Operand::Register(address), place]);
            operands.push(Operand::Register(address));
        }
        self.emit(call, None, "vprintf", operands);
        if let [Operand::Symbol(result, 0)] = results {
            let place = Operand::Address(Base::Symbol(result.clone()), 0);
            self.emit(call, None, "st.local.b32", vec![place, Operand::Register(count)]);
        }
        Ok(())
    }

    /// Makes a parameter the variable that is passed for it; what is passed in a register is moved.
    fn pass(
        &mut self,
        call: &Instruction,
        formal: &Parameter,
        actual: &Operand,
        inner: &mut Frame<'_>,
        into: bool,
    ) -> Result<(), PtxError> {
        if let Some(register) = formal.register {
            if into {
                let operands = vec![Operand::Register(inner.register(register)), actual.clone()];
                self.emit(call, None, mov(register.class), operands);
            }
            return Ok(());
        }
        let Operand::Symbol(name, 0) = actual else {
            return Err(PtxError::at(
                call.line,
                format!("a .param variable was expected for {}, found {actual:?}", formal.name),
            ));
        };
        let variable = self.out.variables.iter().find(|variable| variable.name == *name);
        if variable.is_none_or(|variable| variable.size < formal.size) {
            return Err(PtxError::at(
                call.line,
                format!("{name} is no .param variable of {} bytes, as {} needs", formal.size, formal.name),
            ));
        }
        inner.names.insert(formal.name.clone(), name.clone());
        Ok(())
    }
}

/// Whether it reaches a callee's parameters by an address in a register, or makes such a one.
fn is_by_register(instruction: &Instruction) -> bool {
    let mut parts = instruction.opcode.split('.');
    let name = parts.next().unwrap_or_default();
    let of_parameter = parts.next() == Some("param") || instruction.opcode.contains(".to.param");
    let by_register = |operand: &Operand| matches!(operand, Operand::Address(Base::Register(_), _));
    of_parameter
        && (name == "cvta" || matches!(name, "ld" | "st") && instruction.operands.iter().any(by_register))
}

fn mov(class: Class) -> &'static str {
    match class {
        Class::Word => "mov.b32",
        Class::Long => "mov.b64",
        Class::Predicate => "mov.pred",
    }
}
