//! What one decoded instruction does, and its operands as register slots.

use super::op_async::{BulkCopy, ClusterBarrier, Mbarrier, Proxy, TensorCopy, Wgmma};
use super::{Conversion, Run, Slots};
use crate::ptx::Space;

/// An address: an optional register and a constant.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// The register, and whether it is a 64-bit one.
    pub base: Option<(u32, bool)>,
    /// What is added to it.
    pub offset: i64,
}

/// One element of a load or store.
#[derive(Clone, Copy, Debug)]
pub struct Element {
    /// The register slot; none for `_`.
    pub slot: Option<u32>,
    /// Whether it is a 64-bit register.
    pub long: bool,
}

/// A load or a store.
#[derive(Clone, Debug)]
pub struct Access {
    /// The state space.
    pub space: Space,
    /// Bytes of one element.
    pub size: usize,
    /// Whether narrow loads extend the sign.
    pub signed: bool,
    /// `.volatile`, `.relaxed`, `.acquire` or `.release`: may meet other blocks' accesses.
    pub strong: bool,
    /// `.acquire` or `.release` orders others around it.
    pub ordered: bool,
    /// The elements, in order of address.
    pub elements: Vec<Element>,
    /// Where.
    pub address: Address,
}

impl Access {
    /// Whether it reaches memory of a block or a thread, or may.
    pub fn is_inner(&self) -> bool {
        matches!(self.space, Space::Shared | Space::Local | Space::Generic)
    }

    /// Where its elements' registers lie among those that the note of a store reads: behind the address.
    pub fn stored(&self) -> std::ops::Range<usize> {
        let first = usize::from(self.address.base.is_some());
        first..first + self.elements.iter().filter(|element| element.slot.is_some()).count()
    }
}

/// What an atomic does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicKind {
    /// Integer addition.
    Add,
    /// f32 addition.
    AddSingle,
    /// f64 addition.
    AddDouble,
    /// f16 addition.
    AddHalf,
    /// bf16 addition.
    AddBrain,
    /// Two f16 additions.
    AddHalfPair,
    /// Two bf16 additions.
    AddBrainPair,
    /// Signed minimum.
    MinSigned,
    /// Signed maximum.
    MaxSigned,
    /// Unsigned minimum.
    MinUnsigned,
    /// Unsigned maximum.
    MaxUnsigned,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// Exchange.
    Exchange,
    /// Compare and swap.
    CompareSwap,
    /// Increment with wrap.
    Increment,
    /// Decrement with wrap.
    Decrement,
}

/// `atom` and `red`.
#[derive(Clone, Debug)]
pub struct Atomic {
    /// What it does.
    pub kind: AtomicKind,
    /// The state space.
    pub space: Space,
    /// Bytes of one element.
    pub size: usize,
    /// Old values; empty for `red`.
    pub destinations: Vec<u32>,
    /// Operands, one an element.
    pub operands: Vec<u32>,
    /// What is swapped in by a compare and swap.
    pub swap: Option<u32>,
    /// Where.
    pub address: Address,
    /// Whether it carries acquire or release semantics itself.
    pub ordered: bool,
}

/// How `shfl` picks its source lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShuffleKind {
    /// `.up`
    Up,
    /// `.down`
    Down,
    /// `.bfly`
    Butterfly,
    /// `.idx`
    Index,
}

/// What `vote` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteKind {
    /// `.all`
    All,
    /// `.any`
    Any,
    /// `.uni`
    Uniform,
    /// `.ballot`
    Ballot,
}

/// What `redux` computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceKind {
    /// Sum.
    Add,
    /// Minimum.
    Min,
    /// Maximum.
    Max,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
}

/// Element formats of tensor-core operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorFormat {
    /// bfloat16.
    Brain,
    /// IEEE half.
    Half,
    /// tf32.
    Tf32,
}

/// `mma.sync`, row.col, m16n8.
#[derive(Clone, Debug)]
pub struct Mma {
    /// Format of A and B.
    pub format: TensorFormat,
    /// Depth: 4, 8 or 16.
    pub depth: usize,
    /// Whether C and D hold halves, two a register.
    pub half_accumulator: bool,
    /// D, C, A, B slots.
    pub d: Vec<u32>,
    /// C.
    pub c: Vec<u32>,
    /// A.
    pub a: Vec<u32>,
    /// B.
    pub b: Vec<u32>,
}

/// An element of the factors of a [`WideMma`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrow {
    /// s8
    S8,
    /// u8
    U8,
    /// s4
    S4,
    /// u4
    U4,
    /// e4m3
    E4M3,
    /// e5m2
    E5M2,
    /// f64
    Double,
}

impl Narrow {
    /// The element of a type name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "s8" => Self::S8,
            "u8" => Self::U8,
            "s4" => Self::S4,
            "u4" => Self::U4,
            "e4m3" => Self::E4M3,
            "e5m2" => Self::E5M2,
            "f64" => Self::Double,
            _ => return None,
        })
    }

    /// Elements of a register.
    pub fn per_register(self) -> usize {
        match self {
            Self::S4 | Self::U4 => 8,
            Self::Double => 1,
            _ => 4,
        }
    }

    /// Types that one product may mix have the same number.
    pub fn family(self) -> u32 {
        match self {
            Self::S8 | Self::U8 => 0,
            Self::S4 | Self::U4 => 1,
            Self::E4M3 | Self::E5M2 => 2,
            Self::Double => 3,
        }
    }
}

/// What a [`WideMma`] sums in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WideSum {
    /// s32, which wraps or stays at its limits.
    Integer {
        /// Whether it stays at its limits.
        saturate: bool,
    },
    /// f32
    Single,
    /// f16, two a register.
    Half,
    /// f64
    Double,
}

/// `mma.sync`, row.col, of integers, 8-bit floats or f64.
#[derive(Clone, Debug)]
pub struct WideMma {
    /// Elements of A.
    pub a_kind: Narrow,
    /// Elements of B.
    pub b_kind: Narrow,
    /// What sums are.
    pub sum: WideSum,
    /// Rows of A: 8 or 16.
    pub rows: usize,
    /// Columns of A.
    pub depth: usize,
    /// D, C, A, B slots.
    pub d: Vec<u32>,
    /// C.
    pub c: Vec<u32>,
    /// A.
    pub a: Vec<u32>,
    /// B.
    pub b: Vec<u32>,
}

/// What the factors of a `wmma` product are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WmmaFactors {
    /// f16, bf16 or tf32.
    Float(TensorFormat),
    /// s8 or u8, of A and of B.
    Bytes(Narrow, Narrow),
    /// f64.
    Double,
}

/// What the sums of a `wmma` product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WmmaSum {
    /// f32.
    Single,
    /// f16, two a register.
    Half,
    /// s32.
    Integer,
    /// f64.
    Double,
}

/// `wmma.load`, `wmma.store` and `wmma.mma`.
#[derive(Clone, Debug)]
pub enum Wmma {
    /// A load or, for the accumulator, a store.
    Move {
        /// Rows and columns.
        shape: [usize; 2],
        /// Elements of a register.
        per_register: usize,
        /// Whether it is a store.
        store: bool,
        /// Whether elements of a row are neighbours.
        row_major: bool,
        /// Bytes of an element.
        size: usize,
        /// State space.
        space: Space,
        /// Registers of the fragment.
        registers: Vec<u32>,
        /// Where.
        address: Address,
        /// Elements from one row (or column) to the next; none for packed.
        stride: Option<u32>,
    },
    /// D = A B + C.
    Multiply {
        /// Rows of A, columns of B, and columns of A.
        shape: [usize; 3],
        /// What A and B are of.
        factors: WmmaFactors,
        /// What D is of, and C.
        sums: [WmmaSum; 2],
        /// Whether integers stay at their limits.
        saturate: bool,
        /// D, A, B, C.
        d: Vec<u32>,
        /// A.
        a: Vec<u32>,
        /// B.
        b: Vec<u32>,
        /// C.
        c: Vec<u32>,
    },
}

/// `ldmatrix` and `stmatrix`, m8n8, b16.
#[derive(Clone, Debug)]
pub struct MatrixMove {
    /// `stmatrix`.
    pub store: bool,
    /// `.trans`.
    pub transposed: bool,
    /// One register a matrix.
    pub registers: Vec<u32>,
    /// Row addresses, one a lane.
    pub address: Address,
}

/// What one instruction does.
#[derive(Clone, Debug)]
pub enum Op {
    /// Nothing: hints.
    Nothing,
    /// A pure operation on registers.
    Lanes {
        /// The code.
        run: Run,
        /// Its operands.
        slots: Slots,
    },
    /// A conversion without a form of its own.
    Convert(Box<Conversion>),
    /// Addition with carry in and out through the carry register.
    Carry(Box<Carry>),
    /// `mov` of a vector into one register.
    Join(Box<Pack>),
    /// `mov` of one register into a vector.
    Split(Box<Pack>),
    /// A load.
    Load(Box<Access>),
    /// A store.
    Store(Box<Access>),
    /// An atomic.
    Atomic(Box<Atomic>),
    /// A branch.
    Branch(usize),
    /// A branch through a table.
    BranchTable(u32, Box<[usize]>),
    /// `ret` and `exit`.
    Exit,
    /// `trap`.
    Trap,
    /// `bar.sync`, `barrier.sync`, `bar.arrive`, `bar.red`.
    Barrier(Box<Barrier>),
    /// `bar.warp.sync`, with its mask.
    SyncWarp(u32),
    /// `membar` and `fence`: whether it reaches past the block.
    Fence(bool),
    /// `cp.async` of 4, 8 or 16 bytes.
    AsyncCopy(Box<AsyncCopy>),
    /// `cp.async.commit_group`.
    AsyncCommit,
    /// `cp.async.wait_group` and `wait_all` (0, and uncommitted too).
    AsyncWait(u32, bool),
    /// `cp.async.bulk` between global and shared memory, or within the shared memory of a cluster.
    BulkCopy(Box<BulkCopy>),
    /// `cp.async.bulk.tensor` either way.
    TensorCopy(Box<TensorCopy>),
    /// `cp.async.bulk.commit_group`.
    BulkCommit,
    /// `cp.async.bulk.wait_group`: groups that may be left, and whether only their sources are waited for (`.read`).
    BulkWait(u32, bool),
    /// A fence between the generic and the asynchronous proxy, or behind the initialisation of barriers.
    ProxyFence(Proxy),
    /// `wgmma.mma_async`.
    Wgmma(Box<Wgmma>),
    /// `wgmma.fence`.
    WgmmaFence,
    /// `wgmma.commit_group`.
    WgmmaCommit,
    /// `wgmma.wait_group`: groups that may be left.
    WgmmaWait(u32),
    /// `barrier.cluster.arrive` and `.wait`.
    ClusterBarrier(ClusterBarrier),
    /// `setmaxnreg`: whether up, and the registers of a thread.
    Registers(bool, u32),
    /// `griddepcontrol.wait`.
    DependencyWait,
    /// `griddepcontrol.launch_dependents`.
    LaunchDependents,
    /// `ldmatrix` and `stmatrix`.
    Matrix(Box<MatrixMove>),
    /// `mma.sync`.
    Mma(Box<Mma>),
    /// `mma.sync` of integers, 8-bit floats or f64.
    WideMma(Box<WideMma>),
    /// `movmatrix`: to, from.
    Turn(u32, u32),
    /// `wmma`.
    Wmma(Box<Wmma>),
    /// `shfl.sync`.
    Shuffle(Box<Shuffle>),
    /// `vote.sync`.
    Vote(Box<Vote>),
    /// `match.sync`.
    Match(Box<Match>),
    /// `redux.sync`.
    Reduce(Box<Reduce>),
    /// `activemask`.
    ActiveMask(u32),
    /// `elect.sync`: where the leader's lane goes, where each lane learns whether it leads, and the member mask.
    Elect(Option<u32>, u32, u32),
    /// An `mbarrier` operation.
    Mbarrier(Box<Mbarrier>, Address),
    /// `%clock` and its like: whether 64 bits.
    Clock(u32, bool),
    /// `vprintf`: where the count of values goes, and the registers with the addresses of format and values.
    Print(u32, u32, u32),
    /// `malloc`: where the address goes, and the register with the size.
    Allocate(u32, u32),
    /// `free`: the register with the address.
    Release(u32),
    /// `isspacep`.
    IsSpace(Space, u32, u32),
}

/// Addition or subtraction with a carry.
#[derive(Clone, Copy, Debug)]
pub struct Carry {
    /// Subtract instead of add.
    pub subtract: bool,
    /// Whether the first two sources are multiplied: low or high half.
    pub product: Option<bool>,
    /// Whether the product is signed.
    pub signed: bool,
    /// Whether the registers are 64-bit.
    pub long: bool,
    /// Whether the carry is added.
    pub reads: bool,
    /// Whether the carry is set.
    pub writes: bool,
    /// The carry register.
    pub carry: u32,
    /// Its operands.
    pub slots: Slots,
}

/// A register and the parts it is made of.
#[derive(Clone, Debug)]
pub struct Pack {
    /// The whole.
    pub whole: u32,
    /// Whether the whole is a 64-bit register.
    pub long: bool,
    /// Bits of a part.
    pub bits: u32,
    /// The parts, lowest first; none for `_`.
    pub parts: Vec<Option<u32>>,
}

/// A barrier of a block.
#[derive(Clone, Debug)]
pub struct Barrier {
    /// Its number.
    pub number: u32,
    /// Threads that take part; none for all.
    pub count: Option<u32>,
    /// Whether the warp waits (`bar.arrive` does not).
    pub waits: bool,
    /// Whether all lanes of a warp must come together.
    pub aligned: bool,
    /// `bar.red`: what is computed, of which predicate, into what.
    pub reduce: Option<(VoteKind, u32, bool, u32)>,
}

/// A 4, 8 or 16 byte asynchronous copy into shared memory.
#[derive(Clone, Debug)]
pub struct AsyncCopy {
    /// To shared memory.
    pub to: Address,
    /// From global memory.
    pub from: Address,
    /// Bytes written.
    pub size: usize,
    /// Bytes read, the rest being zero; none for all.
    pub source_size: Option<u32>,
    /// A predicate that, when set, reads nothing.
    pub ignore: Option<u32>,
}

/// `shfl.sync`.
#[derive(Clone, Copy, Debug)]
pub struct Shuffle {
    /// How the source lane is found.
    pub kind: ShuffleKind,
    /// Destination and source.
    pub destination: u32,
    /// Source.
    pub source: u32,
    /// Lane or distance.
    pub lane: u32,
    /// Clamp and segment.
    pub clamp: u32,
    /// Member mask.
    pub members: u32,
    /// Whether the source lane was in range.
    pub in_range: Option<u32>,
}

/// `vote.sync`.
#[derive(Clone, Copy, Debug)]
pub struct Vote {
    /// What is asked.
    pub kind: VoteKind,
    /// Where the answer goes: a word for a ballot, else a predicate.
    pub destination: u32,
    /// The predicate.
    pub source: u32,
    /// Whether it is negated.
    pub negated: bool,
    /// Member mask.
    pub members: u32,
}

/// `match.sync`.
#[derive(Clone, Copy, Debug)]
pub struct Match {
    /// `.all` rather than `.any`.
    pub all: bool,
    /// Whether the value is 64-bit.
    pub long: bool,
    /// The mask found.
    pub destination: u32,
    /// Whether all match.
    pub uniform: Option<u32>,
    /// The value.
    pub source: u32,
    /// Member mask.
    pub members: u32,
}

/// `redux.sync`.
#[derive(Clone, Copy, Debug)]
pub struct Reduce {
    /// What is computed.
    pub kind: ReduceKind,
    /// Whether values are signed.
    pub signed: bool,
    /// Where the answer goes.
    pub destination: u32,
    /// The value.
    pub source: u32,
    /// Member mask.
    pub members: u32,
}

/// Which lanes of a warp an instruction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// None: every lane goes on by itself.
    None,
    /// Those that the mask in this word register names.
    Named(u32),
    /// All that live, as `.aligned` has it.
    All,
}

impl Op {
    /// Which lanes it waits for.
    pub fn members(&self) -> Members {
        match self {
            Self::SyncWarp(members) | Self::Elect(_, _, members) => Members::Named(*members),
            Self::Shuffle(op) => Members::Named(op.members),
            Self::Vote(op) => Members::Named(op.members),
            Self::Match(op) => Members::Named(op.members),
            Self::Reduce(op) => Members::Named(op.members),
            Self::Matrix(_) | Self::Mma(_) | Self::WideMma(_) | Self::Turn(..) | Self::Wmma(_) => {
                Members::All
            }
            Self::Wgmma(_) | Self::WgmmaFence | Self::WgmmaCommit | Self::WgmmaWait(_) => Members::All,
            Self::Registers(..) => Members::All,
            Self::Barrier(op) if op.aligned => Members::All,
            Self::ClusterBarrier(op) if op.aligned => Members::All,
            _ => Members::None,
        }
    }
}
