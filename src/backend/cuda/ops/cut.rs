//! How a product is cut into blocks: the tiles of `kernels/gemm.cu`, `kernels/gemm_hopper.cu` and `kernels/gemm_thin_hopper.cu`, and
//! what they cost.

use super::tiles::{TileConfig, TileShape, TileTable};
use crate::backend::cuda::runtime::arguments::gemm::{DEPTH, Epilogue as Follows, STAGES};
use crate::backend::cuda::runtime::arguments::{
    gemm_hopper as hopper, gemm_thin_hopper as thin, thin_hopper as thin_tile,
};
use crate::backend::cuda::runtime::devices::DeviceInfo;
use crate::backend::cuda::runtime::operands::Precision;
use crate::error::{Error, Result};

/// A block's tile of a kernel: its rows and columns, threads, and dynamic shared memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    kind: Kind,
    kernels: Names,
    rows: usize,
    columns: usize,
    threads: u32,
    shared: u32,
    /// Groups of warps that take turns at k, with stages each.
    groups: usize,
    /// Passes over shared memory, one a cycle, for `DEPTH` steps in k: what is copied in, and the fragments that warps read. Of a tile
    /// whose operands the tensor cores read themselves, cycles until they have come from the cache.
    passes: usize,
}

impl Tile {
    /// Tiles over columns and rows; of rows whole clusters' worth.
    fn tiles(&self, m: usize, n: usize) -> [usize; 2] {
        let together = if self.kind == Kind::Hopper { hopper::CLUSTER } else { 1 };
        [n.div_ceil(self.columns), m.div_ceil(self.rows).next_multiple_of(together)]
    }

    /// Blocks over columns, rows and parts of k; or clusters of at most one block a multiprocessor, which take several tiles.
    fn grid(&self, device: &DeviceInfo, m: usize, n: usize, parts: usize) -> [u32; 3] {
        let [across, along] = self.tiles(m, n);
        if self.kind == Kind::Hopper {
            let most = device.multiprocessors / hopper::CLUSTER * hopper::CLUSTER;
            return [(across * along).min(most) as u32, 1, 1];
        }
        [across as u32, along as u32, parts as u32]
    }

    /// Of the result, in a block.
    const fn numbers(&self) -> usize {
        self.rows * self.columns
    }

    /// Cycles that `DEPTH` steps in k keep a multiprocessor of that compute capability busy.
    fn cycles(&self, compute_capability: (i32, i32)) -> usize {
        let rate = if self.kind == Kind::Any { tensor_rate(compute_capability) } else { WARPGROUP_RATE };
        self.passes.max(self.numbers() * DEPTH / rate)
    }
}

impl TileShape {
    fn tile(self) -> Tile {
        match self {
            Self::Large => LARGE,
            Self::Medium => MEDIUM,
            Self::Small => SMALL,
            Self::Hopper => HOPPER,
            Self::HopperNarrow => HOPPER_NARROW,
            Self::ThinHopper => THIN_HOPPER,
        }
    }
}

/// Which file has a tile's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `kernels/gemm.cu`.
    Any,
    /// `kernels/gemm_hopper.cu`.
    Hopper,
    /// `kernels/gemm_thin_hopper.cu`.
    ThinHopper,
}

impl Kind {
    /// Its stem.
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Any => "gemm",
            Self::Hopper => "gemm_hopper",
            Self::ThinHopper => "gemm_thin_hopper",
        }
    }
}

/// What a tile's kernels are called.
#[derive(Clone, Copy, Debug)]
enum Names {
    /// Forward and backward, each with every epilogue.
    Two([&'static str; 2]),
    /// A kernel an epilogue.
    OneEach,
}

impl Tile {
    fn kernel(&self, backward: bool, follows: Follows) -> &'static str {
        if let Names::Two(names) = self.kernels {
            return names[usize::from(backward)];
        }
        let names = match (backward, follows) {
            (false, Follows::Project) => ["gemm_forward_small_project", "gemm_forward_thin_project"],
            (false, Follows::Relu) => ["gemm_forward_small_relu", "gemm_forward_thin_relu"],
            (false, Follows::Add) => ["gemm_forward_small_add", "gemm_forward_thin_add"],
            (false, Follows::Float) => ["gemm_forward_small_float", "gemm_forward_thin_float"],
            (false, _) => ["gemm_forward_small_plain", "gemm_forward_thin_plain"],
            (true, Follows::Delta) => ["gemm_backward_small_delta", "gemm_backward_thin_delta"],
            (true, Follows::ReluBackward) => ["gemm_backward_small_relu", "gemm_backward_thin_relu"],
            (true, Follows::NormBackward) => ["gemm_backward_small_norm", "gemm_backward_thin_norm"],
            (true, Follows::Accumulate) => {
                ["gemm_backward_small_accumulate", "gemm_backward_thin_accumulate"]
            }
            (true, _) => ["gemm_backward_small_plain", "gemm_backward_thin_plain"],
        };
        names[usize::from(self.kind == Kind::ThinHopper)]
    }
}

/// Shared memory of the main loop's stages, of one group, for a tile of so many rows and columns.
const fn stages(rows: usize, columns: usize) -> u32 {
    (STAGES * (rows + columns) * DEPTH * 2) as u32
}

const LARGE: Tile = Tile {
    kind: Kind::Any,
    kernels: Names::Two(["gemm_forward_large", "gemm_backward_large"]),
    rows: 128,
    columns: 128,
    threads: 128,
    // The tile of f32 that the epilogue reads; the four stages of the main loop need a little less.
    shared: 128 * 136 * 4,
    groups: 1,
    passes: 128 + 256,
};
const MEDIUM: Tile = Tile {
    kind: Kind::Any,
    kernels: Names::Two(["gemm_forward_medium", "gemm_backward_medium"]),
    rows: 80,
    columns: 128,
    threads: 128,
    shared: stages(80, 128),
    groups: 1,
    passes: 104 + 224,
};
const SMALL: Tile = Tile {
    kind: Kind::Any,
    kernels: Names::OneEach,
    rows: 64,
    columns: 64,
    threads: 256,
    shared: 2 * stages(64, 64),
    groups: 2,
    passes: 64 + 128,
};
const HOPPER: Tile = Tile {
    kind: Kind::Hopper,
    kernels: Names::Two(["gemm_forward_hopper", "gemm_backward_hopper"]),
    rows: hopper::ROWS,
    columns: hopper::COLUMNS,
    threads: 3 * hopper::GROUP as u32,
    shared: hopper::SHARED as u32,
    groups: 1,
    passes: (hopper::ROWS + hopper::COLUMNS / hopper::CLUSTER) * DEPTH * 2 / CACHE_RATE,
};
const HOPPER_NARROW: Tile = Tile {
    kernels: Names::Two(["gemm_forward_hopper_128", "gemm_backward_hopper_128"]),
    columns: hopper::NARROW_COLUMNS,
    shared: hopper::NARROW_SHARED as u32,
    passes: (hopper::ROWS + hopper::NARROW_COLUMNS / hopper::CLUSTER) * DEPTH * 2 / CACHE_RATE,
    ..HOPPER
};
const THIN_HOPPER: Tile = Tile {
    kind: Kind::ThinHopper,
    kernels: Names::OneEach,
    rows: thin_tile::ROWS,
    columns: thin_tile::COLUMNS,
    threads: thin_tile::THREADS as u32,
    shared: thin::SHARED as u32,
    groups: 1,
    passes: (thin_tile::ROWS + thin_tile::COLUMNS) * DEPTH * 2 / CACHE_RATE,
};
const PLAIN_F32: Tile = Tile {
    kind: Kind::Any,
    kernels: Names::Two(["gemm_forward_f32", "gemm_backward_f32"]),
    rows: 64,
    columns: 64,
    threads: 256,
    shared: 0,
    groups: 1,
    // There is no other to weigh it against.
    passes: 0,
};

/// Large tiles are for products that are at least so long in each direction, whatever the device.
const LARGE_FROM: usize = 1024;
/// The least depth of a part of k, of each group of warps: the four stages of the main loop.
const LEAST_PART: usize = STAGES * DEPTH;
/// The most parts of k (split-K), by all groups: each costs a tile of f32 written and read.
const MAX_PARTS: usize = 8;
/// Cycles that parts take to find each other: a tile written, a fence, a count, another fence, and the tiles read back, one
/// after the other.
const JOIN: usize = 2_000;
/// The same where they are a cluster: a barrier, and the parts read from the other multiprocessors.
const CLUSTER_JOIN: usize = 500;
/// Cycles until the first k-block has come from memory.
const FIRST_LOAD: usize = 800;
/// Numbers of f32 of a tile that a multiprocessor moves in a cycle, in shared memory and to and from the cache alike.
const EPILOGUE_RATE: usize = 16;

/// bf16 multiply-adds a cycle of a multiprocessor's tensor cores, from NVIDIA's white papers on the architectures. Of the 2,048
/// of compute capability 9.0, mma.sync gets five eighths (Luo et al. 2024, arXiv 2402.13499); all are for wgmma.
fn tensor_rate(compute_capability: (i32, i32)) -> usize {
    match compute_capability {
        (8, 0) | (10, _) => 1_024,
        (9, _) => 1_280,
        _ => 512,
    }
}

/// The same of products of a warpgroup, which compute capability 9.0 alone has.
const WARPGROUP_RATE: usize = 2_048;
/// Bytes a cycle that reach each multiprocessor of compute capability 9.0 from the cache when all ask, less than the products of a
/// large tile eat (30 to 46 were measured by others; arXiv 2402.13499 has 30 to 34).
const CACHE_RATE: usize = 39;

/// How a product is cut up: its tile, and its blocks over columns, rows and parts of k.
#[derive(Debug)]
pub(crate) struct Cut {
    precision: Precision,
    tile: Tile,
    /// Of the result.
    tiles: usize,
    grid: [u32; 3],
    /// What tables call it; none in f32, where there is no choice.
    config: Option<TileConfig>,
}

/// The parts of k that a tile of so deep a product can be cut into.
fn parts(shape: TileShape, k: usize) -> Vec<usize> {
    let groups = shape.tile().groups;
    match shape {
        TileShape::Hopper | TileShape::HopperNarrow => vec![1],
        TileShape::ThinHopper => {
            let each_has_work = |parts: &usize| k.div_ceil(thin_tile::DEPTH) >= *parts;
            [thin_tile::MIN_CLUSTER, thin::MAX_CLUSTER].into_iter().filter(each_has_work).collect()
        }
        _ => (1..=(k / groups / LEAST_PART).clamp(1, MAX_PARTS / groups)).collect(),
    }
}

/// Whether the device has kernels of that tile.
fn runs(shape: TileShape, device: &DeviceInfo) -> bool {
    shape.tile().kind == Kind::Any || device.compute_capability == (9, 0)
}

/// The ways that are worth trying of cutting a bf16 product of \[m, k\] rows and n columns on that device.
pub(crate) fn candidates(device: &DeviceInfo, [m, n, k]: [usize; 3]) -> Vec<TileConfig> {
    let configs =
        |shape: TileShape| parts(shape, k).into_iter().map(move |split_k| TileConfig { shape, split_k });
    let all = TileShape::ALL.into_iter().filter(|shape| runs(*shape, device)).flat_map(configs);
    let worth = all.filter(|config| {
        // More parts than blocks that run at once gain nothing.
        let (cut, groups) = (Cut::of(*config, device, m, n), config.split_k * config.shape.tile().groups);
        config.split_k == 1 || cut.tiles * groups <= 2 * device.multiprocessors
    });
    worth.collect()
}

impl Cut {
    /// For \[m, k\] rows and n columns on that device: the cut that the table has for the shape, otherwise the one that is expected
    /// to take the fewest cycles.
    pub(crate) fn new(
        precision: Precision,
        device: &DeviceInfo,
        table: &TileTable,
        backward: bool,
        [m, n, k]: [usize; 3],
    ) -> Self {
        if precision == Precision::F32 {
            return Self::with(precision, PLAIN_F32, device, [m, n, 1], None);
        }
        let mut configs = candidates(device, [m, n, k]);
        // What was measured for nearly as many rows may have more parts than these have work for.
        if let Some(measured) =
            table.choice(device, backward, m, n, k).filter(|config| configs.contains(config))
        {
            return Self::of(measured, device, m, n);
        }
        if m.min(n).min(k) >= LARGE_FROM {
            configs.retain(|config| {
                matches!(config.shape, TileShape::Large | TileShape::Hopper | TileShape::HopperNarrow)
            });
        }
        let cuts = configs.into_iter().map(|config| Self::of(config, device, m, n));
        let large = TileConfig { shape: TileShape::Large, split_k: 1 };
        cuts.min_by_key(|cut| cut.cycles(device, k)).unwrap_or_else(|| Self::of(large, device, m, n))
    }

    /// In bf16, as `config` says.
    ///
    /// # Errors
    /// A tile that the device has no kernel of; parts of k that are too many for the kernel or too short for its loop.
    pub(crate) fn forced(config: TileConfig, device: &DeviceInfo, [m, n, k]: [usize; 3]) -> Result<Self> {
        if !runs(config.shape, device) {
            let (major, minor) = device.compute_capability;
            return Err(Error::unsupported(
                format!("a product in tiles of {}", config.shape.name()),
                format!("{} has compute capability {major}.{minor}, and they need 9.0", device.name),
                "choose a tile of Linear::candidates",
            ));
        }
        let parts = parts(config.shape, k);
        if !parts.contains(&config.split_k) {
            let tensor = format!("a product in tiles of {}", config.shape.name());
            if parts.is_empty() {
                let expected =
                    format!("a depth of more than {}", (thin_tile::MIN_CLUSTER - 1) * thin_tile::DEPTH);
                return Err(Error::tensor(tensor, expected, k.to_string(), ""));
            }
            let expected = match parts.as_slice() {
                [1] => format!("split-K of 1 for a depth of {k}"),
                [1, .., most] => format!("split-K of 1 to {most} for a depth of {k}"),
                few => format!("split-K of {few:?} for a depth of {k}"),
            };
            return Err(Error::tensor(tensor, expected, config.split_k.to_string(), ""));
        }
        Ok(Self::of(config, device, m, n))
    }

    fn of(config: TileConfig, device: &DeviceInfo, m: usize, n: usize) -> Self {
        let sizes = [m, n, config.split_k];
        Self::with(Precision::Bf16, config.shape.tile(), device, sizes, Some(config))
    }

    fn with(
        precision: Precision,
        tile: Tile,
        device: &DeviceInfo,
        [m, n, parts]: [usize; 3],
        config: Option<TileConfig>,
    ) -> Self {
        let tiles = tile.tiles(m, n).iter().product();
        Self { precision, tile, tiles, grid: tile.grid(device, m, n, parts), config }
    }

    /// What tables call it; none in f32.
    pub(crate) fn config(&self) -> Option<TileConfig> {
        self.config
    }

    /// About how many cycles it takes: whole waves of a block on each multiprocessor.
    pub(super) fn cycles(&self, device: &DeviceInfo, k: usize) -> usize {
        let parts = self.grid[2] as usize;
        let k_blocks = k.div_ceil(DEPTH).div_ceil(parts);
        // A part is written, and the last block of a tile reads them all.
        let whole = self.tile.numbers() / EPILOGUE_RATE;
        let (moved, join) = match self.tile.kind {
            Kind::ThinHopper => (2 * whole / parts, CLUSTER_JOIN),
            _ if parts > 1 => ((2 + parts) * whole, JOIN),
            _ => (whole, 0),
        };
        let block = k_blocks * self.tile.cycles(device.compute_capability) + moved;
        (self.tiles * parts).div_ceil(device.multiprocessors) * block + join + FIRST_LOAD
    }

    /// Which format it cuts products of.
    pub(super) fn precision(&self) -> Precision {
        self.precision
    }

    /// Which file has its kernels.
    pub(super) fn kind(&self) -> Kind {
        self.tile.kind
    }

    /// Rows of A, and of the weight as it is stored, that come in one tensor copy; none where there is no such copy. Backward the
    /// weight comes 64 columns of n wide.
    pub(super) fn boxes(&self, backward: bool) -> Option<[usize; 2]> {
        match (self.tile.kind, backward) {
            (Kind::Any, _) => None,
            (Kind::Hopper, false) => Some([self.tile.rows, self.tile.columns / hopper::CLUSTER]),
            (Kind::Hopper, true) => Some([self.tile.rows, hopper::DEPTH / hopper::CLUSTER]),
            (Kind::ThinHopper, _) => Some([thin_tile::ROWS, thin_tile::DEPTH]),
        }
    }

    /// Counters that must be zero before and are zero afterwards; none without split-K, and where the parts are a cluster.
    pub(crate) fn counters(&self) -> usize {
        if self.grid[2] > 1 && self.kind() == Kind::Any { self.tiles } else { 0 }
    }

    /// Numbers of f32 that hold the parts of k (split-K) until they are summed.
    pub(crate) fn workspace(&self) -> usize {
        self.counters() * self.grid[2] as usize * self.tile.numbers()
    }

    /// The kernel, its grid, threads of a block, and bytes of dynamic shared memory.
    pub(super) fn launch(&self, backward: bool, follows: Follows) -> (&'static str, [u32; 3], u32, u32) {
        (self.tile.kernel(backward, follows), self.grid, self.tile.threads, self.tile.shared)
    }
}
