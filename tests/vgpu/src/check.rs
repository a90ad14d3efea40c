//! What the checks report.

use serde::{Deserialize, Serialize};

use crate::codes;

/// A property that is checked while a kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// An access outside every allocation, or outside shared or local memory.
    OutOfBounds,
    /// An access to memory that was freed.
    Freed,
    /// A read of global memory that nobody wrote.
    UninitializedGlobal,
    /// A read of shared memory that nobody wrote since the block began.
    UninitializedShared,
    /// A read of local memory that the thread never wrote.
    UninitializedLocal,
    /// A register that was never written decides something.
    UninitializedRegister,
    /// An address that is not a multiple of the access's width.
    Misaligned,
    /// Two warps meet in shared memory without a barrier between them.
    SharedRaceBetweenWarps,
    /// Two lanes of a warp meet in shared memory without `__syncwarp` between them.
    SharedRaceBetweenLanes,
    /// Two blocks meet in global memory without synchronisation.
    GlobalRaceBetweenBlocks,
    /// The destination of an asynchronous copy is touched before its wait.
    AsyncCopyNotAwaited,
    /// Bytes that a store wrote are read by a product of a warpgroup or a bulk store, and no `fence.proxy.async` of the
    /// thread that wrote them, with a barrier behind it, lies between.
    ProxyFence,
    /// Bytes that a product of a warpgroup or a bulk store may still read are written.
    StageReused,
    /// Registers of a product of a warpgroup are touched while it is under way, or without `wgmma.fence` before it.
    RegisterInFlight,
    /// The descriptor of a matrix in shared memory is wrong, or differs from how the bytes were written.
    Descriptor,
    /// A barrier in shared memory gets other bytes or arrivals than it was told, is used before it is ready, or runs ahead.
    Transactions,
    /// A tensor map that is none, lies where it must not, or whose boxes never meet the tensor.
    TensorMap,
    /// Memory of another block of the cluster is touched when that block may not have begun or may have ended, or a barrier
    /// of the cluster is not reached by all.
    Cluster,
    /// A dependent grid touches memory before it has waited for the grids before it.
    DependentTooEarly,
    /// Work on two streams meets in memory, and nothing orders the one before the other.
    StreamRace,
    /// A barrier that not all lanes of a warp reach together.
    BarrierInDivergentCode,
    /// Threads wait for others that never come.
    Deadlock,
    /// A write outside the outputs that the test declared.
    UndeclaredWrite,
    /// A `.sync` instruction whose member mask differs from the lanes that came.
    MemberMask,
    /// A `trap`, a failed assertion or an invalid use of an instruction.
    Trap,
    /// The kernel did not end in time.
    Timeout,
}

impl Check {
    /// The error that a device would give, where it would notice: `CUDA_ERROR_*` by number.
    pub fn device_error(self) -> Option<u32> {
        match self {
            Self::OutOfBounds | Self::Freed => Some(codes::ILLEGAL_ADDRESS),
            Self::Misaligned => Some(codes::MISALIGNED_ADDRESS),
            Self::Trap | Self::Deadlock | Self::Descriptor => Some(codes::LAUNCH_FAILED),
            Self::Timeout => Some(codes::LAUNCH_TIMEOUT),
            _ => None,
        }
    }
}

/// One failed check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What failed.
    pub check: Check,
    /// The kernel.
    pub kernel: String,
    /// The source file, as the compiler was given it.
    pub file: String,
    /// The line in it.
    pub line: u32,
    /// The opcode.
    pub opcode: String,
    /// The line of the PTX text.
    pub ptx_line: u32,
    /// The block.
    pub block: [u32; 3],
    /// The warp in the block.
    pub warp: u32,
    /// The lane in the warp.
    pub lane: u32,
    /// Particulars: addresses, sizes, the other party.
    pub detail: String,
    /// How often the same check failed at the same instruction.
    pub count: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [x, y, z] = self.block;
        write!(
            f,
            "{:?} in {} at {}:{} ({}, PTX line {}), block ({x},{y},{z}) warp {} lane {}: {}",
            self.check,
            self.kernel,
            self.file,
            self.line,
            self.opcode,
            self.ptx_line,
            self.warp,
            self.lane,
            self.detail
        )?;
        if self.count > 1 { write!(f, " [{} times]", self.count) } else { Ok(()) }
    }
}

/// Reports of one launch: one for each check and instruction, with a count.
#[derive(Debug, Default)]
pub struct Log {
    found: std::collections::HashMap<(Check, usize), usize>,
    /// The reports, in the order found.
    pub reports: Vec<Report>,
    /// By instruction: whether a box met its tensor, and what to report if none ever does.
    boxes: std::collections::BTreeMap<usize, (bool, Report)>,
}

/// Distinct reports kept of one launch.
const MAX_REPORTS: usize = 64;

impl Log {
    /// Adds a failure at an instruction; `make` is called only for the first of its kind.
    pub fn add(&mut self, check: Check, at: usize, make: impl FnOnce() -> Report) {
        match self.found.get(&(check, at)) {
            Some(&index) => self.reports[index].count += 1,
            None if self.reports.len() < MAX_REPORTS => {
                self.found.insert((check, at), self.reports.len());
                self.reports.push(make());
            }
            None => {}
        }
    }

    /// Whether a failure at an instruction is known; it is counted then.
    pub fn knows(&mut self, check: Check, at: usize) -> bool {
        match self.found.get(&(check, at)) {
            Some(&index) => {
                self.reports[index].count += 1;
                true
            }
            None => false,
        }
    }

    /// Notes that an instruction which has copied a box copied another, and whether any of it lay inside the tensor;
    /// `false` for its first box.
    pub fn note_box(&mut self, at: usize, inside: bool) -> bool {
        let known = self.boxes.get_mut(&at);
        known.map(|(any, _)| *any |= inside).is_some()
    }

    /// Notes the first box of an instruction, with what is reported if none of its boxes lies inside.
    pub fn add_box(&mut self, at: usize, inside: bool, report: Report) {
        self.boxes.insert(at, (inside, report));
    }

    /// Reports the instructions whose boxes all lay outside.
    pub fn judge_boxes(&mut self) {
        for (at, (inside, report)) in std::mem::take(&mut self.boxes) {
            if !inside {
                self.add(Check::TensorMap, at, || report);
            }
        }
    }

    /// Adds another log's reports.
    pub fn merge(&mut self, other: Log) {
        for (at, (inside, report)) in other.boxes {
            if !self.note_box(at, inside) {
                self.add_box(at, inside, report);
            }
        }
        let mut keys: Vec<_> = other.found.into_iter().collect();
        keys.sort_by_key(|(_, index)| *index);
        for ((check, at), index) in keys {
            let report = other.reports[index].clone();
            match self.found.get(&(check, at)) {
                Some(&known) => self.reports[known].count += report.count,
                None if self.reports.len() < MAX_REPORTS => {
                    self.found.insert((check, at), self.reports.len());
                    self.reports.push(report);
                }
                None => {}
            }
        }
    }
}
