//! Kernels in the form that the executor runs: one flat array of decoded instructions, operands
//! resolved to register slots, constants and special registers laid out as registers of their own.

pub mod arithmetic;
mod async_forms;
pub mod convert;
mod definite;
mod floating;
mod fragments;
pub mod lanes;
mod live;
mod load;
mod memory_forms;
mod op;
mod op_async;
mod padding;
mod register_forms;
mod set_forms;
mod warp_forms;
mod wide_mma_forms;

use crate::ptx::Location;
pub use convert::Conversion;
pub(crate) use fragments::is_copy;
pub use lanes::{FULL, LANES, Registers, Run, Slots};
pub use load::{LoadError, load};
pub use op::*;
pub use op_async::*;

/// Generic addresses of shared memory start here.
pub const SHARED_WINDOW: u64 = 0x1000_0000_0000;
/// Generic addresses of local memory start here.
pub const LOCAL_WINDOW: u64 = 0x1100_0000_0000;
/// Generic addresses of kernel arguments start here.
pub const PARAMETER_WINDOW: u64 = 0x1200_0000_0000;
/// Size of each of those windows.
pub const WINDOW: u64 = 0x0100_0000_0000;

/// What kind of work an instruction is, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum InstructionClass {
    /// Moves, selections and the like.
    Move,
    /// Integer arithmetic and logic.
    Integer,
    /// f32 arithmetic.
    Single,
    /// f64 arithmetic.
    Double,
    /// f16 and bf16 arithmetic.
    Half,
    /// Special functions: exponentials, roots, reciprocals.
    Special,
    /// Conversions.
    Convert,
    /// Comparisons.
    Compare,
    /// Branches and exits.
    Control,
    /// Loads of global memory.
    LoadGlobal,
    /// Stores to global memory.
    StoreGlobal,
    /// Loads and stores of shared memory.
    Shared,
    /// Loads and stores of local memory.
    Local,
    /// Reads of arguments and constants.
    Constant,
    /// Atomics and reductions in memory.
    Atomic,
    /// `cp.async` and its groups.
    AsyncCopy,
    /// `ldmatrix` and `stmatrix`.
    Matrix,
    /// Tensor-core products.
    Tensor,
    /// Barriers, fences, votes and shuffles.
    Synchronize,
    /// Parts of composed instructions, which do not count.
    Part,
}

/// Number of [`InstructionClass`] values.
pub const CLASSES: usize = InstructionClass::Part as usize + 1;
/// Names of the classes, in order.
pub const CLASS_NAMES: [&str; CLASSES] = [
    "move",
    "integer",
    "single",
    "double",
    "half",
    "special",
    "convert",
    "compare",
    "control",
    "load_global",
    "store_global",
    "shared",
    "local",
    "constant",
    "atomic",
    "async_copy",
    "matrix",
    "tensor",
    "synchronize",
    "part",
];

/// One decoded instruction.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// What it does.
    pub op: Op,
    /// The predicate that guards it, and whether that is negated.
    pub guard: Option<(u32, bool)>,
    /// Its kind of work.
    pub class: InstructionClass,
    /// Whether it touches a register that may be read before it has a value, or that holds a fragment of a `wgmma`.
    pub followed: bool,
    /// Which lanes it waits for.
    pub members: Members,
}

/// What the reports and counters want to know of an instruction.
#[derive(Clone, Debug)]
pub struct Note {
    /// Its place in the source.
    pub location: Location,
    /// Its place in the PTX.
    pub line: u32,
    /// Its opcode.
    pub opcode: std::sync::Arc<str>,
    /// Registers read, numbered over all classes.
    pub uses: Vec<u32>,
    /// Registers written, numbered over all classes.
    pub defines: Vec<u32>,
    /// Whether reading a register that was never written is an error here, rather than passed on.
    pub strict: bool,
}

/// A special register that has a slot of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// `%tid`
    Thread(usize),
    /// `%ntid`
    Threads(usize),
    /// `%ctaid`
    Block(usize),
    /// `%nctaid`
    Blocks(usize),
    /// `%laneid`
    LaneId,
    /// `%warpid`
    WarpId,
    /// `%nwarpid`
    Warps,
    /// `%smid`
    Multiprocessor,
    /// `%nsmid`
    Multiprocessors,
    /// `%lanemask_eq`, `_lt`, `_le`, `_gt`, `_ge`
    LaneMask(u8),
    /// `%dynamic_smem_size`
    DynamicShared,
    /// `%total_smem_size`
    TotalShared,
    /// `%cluster_ctaid`
    BlockInCluster(usize),
    /// `%cluster_nctaid`
    BlocksOfCluster(usize),
    /// `%cluster_ctarank`
    ClusterRank,
    /// `%cluster_nctarank`
    ClusterSize,
    /// `%clusterid`
    Cluster(usize),
    /// `%nclusterid`
    Clusters(usize),
    /// `%envreg1` and `%envreg2`: the upper (`true`) and the lower half of the address where a
    /// cooperative grid keeps its barrier, as the library of cooperative groups reads them.
    Workspace(bool),
    /// The same everywhere.
    Fixed(u32),
}

/// What a kernel uses that costs the executor something.
#[derive(Clone, Debug, Default)]
pub struct Uses {
    /// Bulk copies or `wgmma`, which reach shared memory by another way than loads and stores.
    pub async_proxy: bool,
    /// `griddepcontrol.wait`.
    pub dependency_wait: bool,
    /// By register, numbered over all classes: whether it holds a fragment of a `wgmma`, or a copy of one. Empty
    /// where there is none.
    pub fragments: Vec<bool>,
}

/// A kernel, ready to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Its instructions; the last is an exit.
    pub code: Vec<Decoded>,
    /// One note an instruction.
    pub notes: Vec<Note>,
    /// Registers of each class: words, longs, predicates.
    pub registers: [u32; 3],
    /// Constant words.
    pub word_constants: Vec<(u32, u32)>,
    /// Constant longs.
    pub long_constants: Vec<(u32, u64)>,
    /// Constant predicates.
    pub predicate_constants: Vec<(u32, bool)>,
    /// Special registers.
    pub specials: Vec<(u32, Special)>,
    /// By register, numbered over all classes: whether it has a value wherever it is read.
    pub definite: Vec<bool>,
    /// Size and offset of every argument.
    pub parameters: Vec<(usize, usize)>,
    /// Bytes of all arguments.
    pub parameter_bytes: usize,
    /// Bytes of static shared memory.
    pub static_shared: usize,
    /// Bytes of local memory of a thread.
    pub local: usize,
    /// Most threads of a block, 0 when not stated.
    pub max_threads: u32,
    /// Threads of a block that are demanded, zeros when not stated.
    pub required_threads: [u32; 3],
    /// Blocks on a multiprocessor that are asked for.
    pub min_blocks: u32,
    /// Most registers of a thread by `.maxnreg`, 0 when not stated.
    pub max_registers: u32,
    /// Blocks of a cluster that are demanded; none where the launch may choose.
    pub cluster: Option<[u32; 3]>,
    /// Most blocks of a cluster by `.maxclusterrank`, 0 when not stated.
    pub max_cluster: u32,
    /// The PTX target, such as `sm_90a`.
    pub target: String,
    /// What of the asynchronous proxy it uses.
    pub uses: Uses,
    /// Registers of a thread, as the number of values alive at once suggests.
    pub estimated_registers: u32,
    /// Paths of the source files, by number.
    pub files: std::sync::Arc<Vec<(u32, String)>>,
    /// The PTX of its module, for the real compiler; empty where nobody keeps it.
    pub text: std::sync::Arc<str>,
}

impl Program {
    /// The path of a source file, or a placeholder.
    pub fn file(&self, number: u32) -> &str {
        self.files
            .iter()
            .find(|(n, _)| *n == number)
            .map_or("(no source line; compile with -lineinfo)", |(_, p)| p)
    }
}
