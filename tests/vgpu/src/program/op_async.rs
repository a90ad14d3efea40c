//! What instructions of the asynchronous proxy do: barriers that count bytes, bulk and tensor copies, products of a
//! warpgroup, barriers of a cluster.

use super::op::{Address, Narrow, TensorFormat};

/// `mbarrier` operations on a 64-bit object in shared memory.
#[derive(Clone, Debug)]
pub enum Mbarrier {
    /// `init`, with the expected arrivals.
    Init {
        /// Expected arrivals.
        count: u32,
    },
    /// `inval`.
    Invalidate,
    /// `arrive`, also `arrive.expect_tx` and `arrive_drop`.
    Arrive {
        /// Where the state goes.
        state: Option<u32>,
        /// Arrivals; one when not stated.
        count: Option<u32>,
        /// Bytes that are expected.
        bytes: Option<u32>,
        /// Whether this lane leaves later phases.
        drop: bool,
        /// Whether what came before is released with it.
        releases: bool,
    },
    /// `expect_tx` alone, or `complete_tx`, which takes bytes away.
    Expect {
        /// The bytes.
        bytes: u32,
        /// Whether they have come.
        complete: bool,
    },
    /// `test_wait` and `try_wait`.
    Wait {
        /// Where the answer goes.
        done: u32,
        /// The state, or the parity.
        token: u32,
        /// Whether the token is a parity.
        parity: bool,
        /// `try_wait`: the hardware may suspend the thread.
        suspends: bool,
        /// Whether what others released is acquired.
        acquires: bool,
    },
    /// `pending_count`: arrivals that a state leaves open.
    PendingCount {
        /// Where the count goes.
        to: u32,
        /// The state.
        state: u32,
    },
    /// `cp.async.mbarrier.arrive`: arrives when this lane's earlier copies are done.
    CopiesDone {
        /// `.noinc`.
        counted: bool,
    },
}

/// Where a bulk copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkWay {
    /// From global memory to shared memory, of several blocks where a mask names them.
    ToShared,
    /// From shared to global memory, by a bulk group.
    ToGlobal,
    /// From this block's shared memory to that of another block of the cluster.
    ToPeer,
}

/// A bulk copy.
#[derive(Clone, Debug)]
pub struct BulkCopy {
    /// Where it goes.
    pub way: BulkWay,
    /// Destination.
    pub to: Address,
    /// Source.
    pub from: Address,
    /// Bytes.
    pub size: u32,
    /// The `mbarrier` that counts the bytes.
    pub barrier: Option<Address>,
    /// The blocks of the cluster that it goes to; none for one.
    pub blocks: Option<u32>,
}

/// `cp.async.bulk.tensor`, and its prefetch.
#[derive(Clone, Debug)]
pub struct TensorCopy {
    /// Where it goes; none for a prefetch.
    pub way: Option<BulkWay>,
    /// The tensor map.
    pub map: Address,
    /// Coordinates of the box, innermost first.
    pub coordinates: Vec<u32>,
    /// The box in shared memory.
    pub shared: Address,
    /// The `mbarrier` that counts the bytes.
    pub barrier: Option<Address>,
    /// The blocks of the cluster that it goes to; none for one.
    pub blocks: Option<u32>,
}

/// A fence of memory proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// `fence.proxy.async`.
    Async,
    /// `fence.mbarrier_init`.
    BarrierInit,
    /// Those of tensor maps, constants and aliases, which order nothing that is modelled.
    Other,
}

/// `wgmma.mma_async`: D = A B + D of 64 rows by four warps, 32 bytes of each row of A and column of B deep.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// Format of A and B, unless they are of bytes.
    pub format: TensorFormat,
    /// What A and B are of, where that is bytes.
    pub bytes: Option<[Narrow; 2]>,
    /// Whether D holds integers, and then whether they stay at their limits.
    pub integer: Option<bool>,
    /// Columns of B and D.
    pub columns: usize,
    /// Whether D holds halves, two a register.
    pub half_accumulator: bool,
    /// D.
    pub d: Vec<u32>,
    /// A.
    pub a: WgmmaLeft,
    /// The descriptor of B, a 64-bit register.
    pub b: u32,
    /// A predicate: whether D is added.
    pub accumulates: u32,
    /// Whether the product is negated.
    pub negates: bool,
    /// Whether A (from shared memory) and B have their rows and columns, not k, innermost.
    pub turned: [bool; 2],
}

impl Wgmma {
    /// Columns of A.
    pub fn depth(&self) -> usize {
        match (self.bytes, self.format) {
            (Some(_), _) => 32,
            (None, TensorFormat::Tf32) => 8,
            (None, _) => 16,
        }
    }

    /// Whether A and B are of sixteen bits, which has a faster way.
    pub fn is_plain(&self) -> bool {
        self.depth() == 16
    }
}

/// Where the left factor of a `wgmma` comes from.
#[derive(Clone, Debug)]
pub enum WgmmaLeft {
    /// From shared memory, by the descriptor in a 64-bit register.
    Shared(u32),
    /// From four registers.
    Registers([u32; 4]),
}

/// `barrier.cluster`.
#[derive(Clone, Copy, Debug)]
pub struct ClusterBarrier {
    /// `.wait`, else `.arrive`.
    pub waits: bool,
    /// Whether all lanes of a warp must come together.
    pub aligned: bool,
    /// Whether it releases (arrive) or acquires (wait).
    pub orders: bool,
}
