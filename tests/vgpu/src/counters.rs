//! What is counted while a kernel runs.

use serde::{Deserialize, Serialize};

use crate::program::{CLASS_NAMES, CLASSES};

/// Bytes of a sector, the unit in which global memory is moved.
pub const SECTOR: u64 = 32;

/// Requests to global memory of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalTraffic {
    /// Instructions of a warp that moved at least one byte.
    pub requests: u64,
    /// 32-byte sectors that they touched.
    pub sectors: u64,
    /// Bytes that their lanes asked for.
    pub bytes: u64,
    /// Distinct bytes that the launch touched.
    pub unique_bytes: u64,
}

/// Requests to shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedTraffic {
    /// Instructions of a warp.
    pub requests: u64,
    /// Passes over the 32 banks that they need, conflicts included.
    pub wavefronts: u64,
    /// Passes beyond those that the same bytes would need without conflicts.
    pub conflicts: u64,
}

/// All counters of a kernel. Those of memory are kept only while checks are on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The kernel.
    pub kernel: String,
    /// Launches added up here.
    pub launches: u64,
    /// Blocks launched.
    pub blocks: u64,
    /// Blocks really run; fewer than `blocks` when a sample was asked for, and the rest is scaled by it.
    pub blocks_run: u64,
    /// Threads of a block at the last launch.
    pub block_threads: u32,
    /// Dynamic shared memory of a block at the last launch, in bytes.
    pub dynamic_shared: u32,
    /// Static shared memory of a block, in bytes.
    pub static_shared: u32,
    /// Warp instructions by class, in the order of [`CLASS_NAMES`].
    pub classes: [u64; CLASSES],
    /// Lanes that were active in them.
    pub lanes: u64,
    /// Multiply-adds of the tensor cores.
    pub tensor_multiply_adds: u64,
    /// Multiply-adds of f32 `fma`, lane by lane.
    pub single_multiply_adds: u64,
    /// Loads of global memory, `cp.async` included.
    pub loads: GlobalTraffic,
    /// Stores to global memory.
    pub stores: GlobalTraffic,
    /// Atomics on global memory, lane by lane.
    pub global_atomics: u64,
    /// Loads of shared memory.
    pub shared_loads: SharedTraffic,
    /// Stores to shared memory.
    pub shared_stores: SharedTraffic,
    /// `ldmatrix` and `stmatrix`.
    pub matrix: SharedTraffic,
    /// Writes of `cp.async` into shared memory.
    pub async_stores: SharedTraffic,
    /// Branches.
    pub branches: u64,
    /// Branches at which the lanes of a warp parted.
    pub divergent_branches: u64,
    /// Barriers that a warp reached.
    pub barriers: u64,
    /// Of the multiply-adds of tensor cores, those of `wgmma`.
    #[serde(default)]
    pub warpgroup_multiply_adds: u64,
    /// Bytes of shared memory that `wgmma` read.
    #[serde(default)]
    pub warpgroup_shared_bytes: u64,
    /// Bytes that bulk copies brought from global memory, once for all blocks of a multicast.
    #[serde(default)]
    pub bulk_in_bytes: u64,
    /// Bytes that bulk copies took to global memory.
    #[serde(default)]
    pub bulk_out_bytes: u64,
    /// Bytes that a multicast put into further blocks.
    #[serde(default)]
    pub multicast_bytes: u64,
    /// Bytes of other blocks' shared memory that were loaded, stored or copied.
    #[serde(default)]
    pub peer_bytes: u64,
    /// Waits at an `mbarrier`, a barrier of the cluster or for registers that suspended a warp.
    #[serde(default)]
    pub suspended: u64,
    /// Blocks that stored anything; where time is kept, as are the next.
    #[serde(default)]
    pub working_blocks: u64,
    /// Cycles from the start to the end of such blocks if each ran alone, added up.
    #[serde(default)]
    pub path_cycles: u64,
    /// The longest of them.
    #[serde(default)]
    pub longest_path: u64,
    /// Distinct instructions that such blocks executed, added up.
    #[serde(default)]
    pub distinct_instructions: u64,
    /// Warps that executed `griddepcontrol.wait`.
    #[serde(default)]
    pub dependency_waits: u64,
    /// Launches that might begin before the grids before them had ended.
    #[serde(default)]
    pub dependent_launches: u64,
}

impl GlobalTraffic {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.bytes += other.bytes;
        self.unique_bytes += other.unique_bytes;
    }

    fn scale(&mut self, by: f64) {
        for value in [&mut self.requests, &mut self.sectors, &mut self.bytes, &mut self.unique_bytes] {
            *value = (*value as f64 * by).round() as u64;
        }
    }

    /// Sectors of a request, on average.
    pub fn sectors_per_request(&self) -> f64 {
        self.sectors as f64 / self.requests.max(1) as f64
    }

    /// Bytes moved, whole sectors each.
    pub fn moved_bytes(&self) -> u64 {
        self.sectors * SECTOR
    }
}

impl SharedTraffic {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.wavefronts += other.wavefronts;
        self.conflicts += other.conflicts;
    }

    fn scale(&mut self, by: f64) {
        for value in [&mut self.requests, &mut self.wavefronts, &mut self.conflicts] {
            *value = (*value as f64 * by).round() as u64;
        }
    }
}

impl Counters {
    /// The sum of some sets, with the name and shape of the last.
    pub fn sum(parts: &[Self]) -> Self {
        let mut sum = Self::default();
        for part in parts {
            sum.kernel.clone_from(&part.kernel);
            sum.add(part);
        }
        sum
    }

    /// Whether one launch does the same work, with as many blocks of the same size, as each of those added up here.
    pub fn is_like(&self, one: &Self) -> bool {
        let of_each = |sum: u64| sum / self.launches.max(1);
        (of_each(self.blocks), of_each(self.tensor_multiply_adds)) == (one.blocks, one.tensor_multiply_adds)
            && (self.block_threads, self.dynamic_shared) == (one.block_threads, one.dynamic_shared)
    }

    /// Adds another set; names and shapes are taken over.
    pub fn add(&mut self, other: &Self) {
        self.launches += other.launches;
        self.dependent_launches += other.dependent_launches;
        self.blocks += other.blocks;
        self.blocks_run += other.blocks_run;
        if other.block_threads > 0 {
            self.block_threads = other.block_threads;
            self.dynamic_shared = other.dynamic_shared;
            self.static_shared = other.static_shared;
        }
        for (sum, value) in self.classes.iter_mut().zip(&other.classes) {
            *sum += value;
        }
        self.lanes += other.lanes;
        self.tensor_multiply_adds += other.tensor_multiply_adds;
        self.single_multiply_adds += other.single_multiply_adds;
        self.loads.add(&other.loads);
        self.stores.add(&other.stores);
        self.global_atomics += other.global_atomics;
        self.shared_loads.add(&other.shared_loads);
        self.shared_stores.add(&other.shared_stores);
        self.matrix.add(&other.matrix);
        self.async_stores.add(&other.async_stores);
        self.branches += other.branches;
        self.divergent_branches += other.divergent_branches;
        self.barriers += other.barriers;
        self.warpgroup_multiply_adds += other.warpgroup_multiply_adds;
        self.warpgroup_shared_bytes += other.warpgroup_shared_bytes;
        self.bulk_in_bytes += other.bulk_in_bytes;
        self.bulk_out_bytes += other.bulk_out_bytes;
        self.multicast_bytes += other.multicast_bytes;
        self.peer_bytes += other.peer_bytes;
        self.suspended += other.suspended;
        self.dependency_waits += other.dependency_waits;
        self.working_blocks += other.working_blocks;
        self.path_cycles += other.path_cycles;
        self.longest_path = self.longest_path.max(other.longest_path);
        self.distinct_instructions += other.distinct_instructions;
    }

    /// Scales everything that was counted on a sample of the blocks up to all of them.
    pub fn scale(&mut self, by: f64) {
        let up = |value: &mut u64| *value = (*value as f64 * by).round() as u64;
        self.classes.iter_mut().for_each(up);
        self.loads.scale(by);
        self.stores.scale(by);
        self.shared_loads.scale(by);
        self.shared_stores.scale(by);
        self.matrix.scale(by);
        self.async_stores.scale(by);
        for value in [
            &mut self.lanes,
            &mut self.tensor_multiply_adds,
            &mut self.single_multiply_adds,
            &mut self.global_atomics,
            &mut self.branches,
            &mut self.divergent_branches,
            &mut self.barriers,
            &mut self.warpgroup_multiply_adds,
            &mut self.warpgroup_shared_bytes,
            &mut self.bulk_in_bytes,
            &mut self.bulk_out_bytes,
            &mut self.multicast_bytes,
            &mut self.peer_bytes,
            &mut self.suspended,
            &mut self.dependency_waits,
            &mut self.working_blocks,
            &mut self.path_cycles,
            &mut self.distinct_instructions,
        ] {
            up(value);
        }
    }

    /// Warp instructions, parts of composed ones left out.
    pub fn instructions(&self) -> u64 {
        self.classes[..CLASSES - 1].iter().sum()
    }

    /// Warp instructions of a class, by its name.
    pub fn class(&self, name: &str) -> u64 {
        CLASS_NAMES.iter().position(|known| *known == name).map_or(0, |index| self.classes[index])
    }

    /// Conflicts of all accesses to shared memory.
    pub fn shared_conflicts(&self) -> u64 {
        self.shared_loads.conflicts
            + self.shared_stores.conflicts
            + self.matrix.conflicts
            + self.async_stores.conflicts
    }
}
