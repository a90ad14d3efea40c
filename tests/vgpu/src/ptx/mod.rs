//! PTX as text and as a syntax tree: registers, labels and variables resolved, opcodes not yet
//! understood. What an opcode means is for [`crate::program`].

mod body;
mod inline;
mod lexer;
mod names;
mod parser;

pub use inline::{addresses, inline};
pub use parser::parse;

/// What is wrong with a PTX text, and on which of its lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct PtxError {
    /// Line of the PTX text, counted from 1.
    pub line: u32,
    /// What was found there, and what was expected.
    pub message: String,
}

impl PtxError {
    /// An error on a line.
    pub fn at(line: u32, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// Where the three kinds of registers live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 8, 16 and 32 bits.
    Word,
    /// 64 bits.
    Long,
    /// One bit a lane.
    Predicate,
}

/// A virtual register of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Register {
    /// Which file it lives in.
    pub class: Class,
    /// Its number in that file.
    pub index: u32,
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Not stated: the address says.
    Generic,
    /// Device memory.
    Global,
    /// Constant memory.
    Constant,
    /// Memory of a block.
    Shared,
    /// Memory of a thread.
    Local,
    /// Arguments of a kernel, or of a call.
    Parameter,
}

/// A module-level or function-level variable.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub space: Space,
    /// Alignment in bytes.
    pub align: usize,
    /// Size in bytes; 0 for `extern __shared__ x[]`.
    pub size: usize,
    /// Leading bytes of its initial value; the rest is zero.
    pub initial: Vec<u8>,
    /// Whether the text gave an initial value.
    pub has_initial: bool,
    /// Whether the host reaches it too (`.attribute(.managed)`).
    pub managed: bool,
    /// Whether it is only declared, and another text defines it.
    pub external: bool,
    /// Addresses of other variables among the initial values: where they stand, of which variable, and an offset.
    pub addresses: Vec<(usize, String, i64)>,
}

/// A parameter of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub size: usize,
    /// Offset in the argument buffer, in bytes.
    pub offset: usize,
    /// Set when the callee takes it in a register.
    pub register: Option<Register>,
}

/// A place in the source that the compiler named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// Number of the file, 0 for none.
    pub file: u32,
    /// Line.
    pub line: u32,
}

/// The base of an address.
#[derive(Clone, Debug, PartialEq)]
pub enum Base {
    /// A register.
    Register(Register),
    /// A variable or parameter.
    Symbol(String),
    /// Nothing: the offset is the address.
    Absolute,
}

/// One operand of an instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register.
    Register(Register),
    /// A negated predicate.
    Not(Register),
    /// A special register such as `%tid.x`.
    Special(String),
    /// An integer, sign applied, as 64 bits.
    Integer(u64),
    /// An f32 literal, as bits.
    Single(u32),
    /// An f64 literal, as bits.
    Double(u64),
    /// `[base+offset]`.
    Address(Base, i64),
    /// `[base+offset, {x, y}]` and its like: an address with coordinates.
    Tensor(Base, i64, Vec<Operand>),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// A variable's name with an offset, taken as an address.
    Symbol(String, i64),
    /// A label: index of the instruction that it stands before.
    Label(usize),
    /// A list of labels (`.branchtargets`).
    Labels(Vec<usize>),
    /// `_`.
    Sink,
    /// `(a, b)` of a call.
    List(Vec<Operand>),
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// The predicate that guards it, and whether that is negated.
    pub guard: Option<(Register, bool)>,
    /// The opcode with its modifiers.
    pub opcode: String,
    /// Its operands in order.
    pub operands: Vec<Operand>,
    /// The place in the source.
    pub location: Location,
    /// The line of the PTX text.
    pub line: u32,
}

/// A kernel or a device function.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Whether it is a kernel.
    pub is_entry: bool,
    /// Parameters in order.
    pub parameters: Vec<Parameter>,
    /// Values given back (device functions).
    pub returns: Vec<Parameter>,
    /// Registers of each class: words, longs, predicates.
    pub registers: [u32; 3],
    /// The body; empty for a declaration.
    pub body: Vec<Instruction>,
    /// Whether a body was given.
    pub has_body: bool,
    /// Shared, local and call-parameter variables declared in it.
    pub variables: Vec<Variable>,
    /// `.maxntid`, as a product; 0 when not stated.
    pub max_threads: u32,
    /// `.reqntid`; zeros when not stated.
    pub required_threads: [u32; 3],
    /// `.minnctapersm`; 0 when not stated.
    pub min_blocks: u32,
    /// `.maxnreg`; 0 when not stated.
    pub max_registers: u32,
    /// `.reqnctapercluster`; none when not stated.
    pub cluster: Option<[u32; 3]>,
    /// `.maxclusterrank`; 0 when not stated.
    pub max_cluster: u32,
}

/// A parsed PTX text.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// `.version`.
    pub version: (u32, u32),
    /// `.target`, first word: `sm_80`.
    pub target: String,
    /// `.file`, by number.
    pub files: Vec<(u32, String)>,
    /// Module-level variables.
    pub variables: Vec<Variable>,
    /// Functions, kernels among them.
    pub functions: Vec<Function>,
    /// Further names of functions.
    pub aliases: Vec<(String, String)>,
}
