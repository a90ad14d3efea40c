//! The launches of absorbed cross attention where the device has compute capability 9.0: `kernels/cross_attention_hopper.cu` and the
//! products of `kernels/gemm_thin_hopper.cu`.

use super::cross_attention::{AbsorbedShape, Step, Steps};
use super::{
    CrossArguments, CrossAttentionHopperArguments, CrossProjectHopperArguments, GemmArguments,
    ProjectedArguments, side_number,
};
use crate::backend::Side;
use crate::backend::cuda::runtime::arguments::cross_attention::PAIR_TILE;
use crate::backend::cuda::runtime::arguments::gemm::Epilogue;
use crate::backend::cuda::runtime::arguments::gemm_hopper::GemmHopperArguments;
use crate::backend::cuda::runtime::arguments::hopper::{MAX_SHARED, TensorMap};
use crate::backend::cuda::runtime::arguments::{
    cross_attention_hopper as hopper, gemm_thin_hopper, thin_hopper as thin,
};
use crate::backend::cuda::runtime::kernels::Kernel;
use crate::backend::cuda::runtime::operands::Precision;
use crate::backend::cuda::runtime::tensor_map::tensor_map;
use crate::error::Result;

const FILE: &str = "cross_attention_hopper";
/// Shared memory of a block that leaves room for another on its multiprocessor, which keeps 1 KiB of each.
const HALF_SHARED: usize = (MAX_SHARED + 1024) / 2 - 1024;

impl AbsorbedShape<'_> {
    /// Slices of D, of which clusters have work for each of their blocks and shared memory for all; none of other depths.
    fn slices(&self) -> Option<usize> {
        let slices = self.depth.div_ceil(thin::DEPTH);
        (hopper::CLUSTER..=hopper::CLUSTER * hopper::MAX_SLICES).contains(&slices).then_some(slices)
    }
}

impl Steps<'_> {
    /// Slices of D where the device, the format and the shape have kernels for compute capability 9.0.
    fn hopper(&self) -> Result<Option<usize>> {
        let fits = self.precision == Precision::Bf16 && self.shape.targets() > 0 && self.shape.sources() > 0;
        let slices = self.shape.slices().filter(|_| fits);
        Ok(if slices.is_some() && self.kernels.is_hopper()? { slices } else { None })
    }

    /// The map of a matrix of D columns, or of the weights' H·K, that comes in boxes of 64 by 64.
    fn map(address: u64, shape: [usize; 2]) -> Result<TensorMap> {
        tensor_map(address, shape, [thin::ROWS, thin::DEPTH])
    }

    /// Launches the attention of q' over h, or what is backward of it, of d_mixed, as clusters, where the device and the shape have
    /// that; whether it did.
    pub(super) fn attend(&self, shared: &CrossArguments, backward: bool) -> Result<bool> {
        let Some(slices) = self.hopper()? else { return Ok(false) };
        let (depth, heads) = (self.shape.depth, self.shape.heads.count);
        // Blocks of a cluster, and slices of D of each.
        let parts = [thin::MIN_CLUSTER, gemm_thin_hopper::MAX_CLUSTER];
        let parts = if slices <= parts[0] * hopper::MAX_ATTENDED { parts[0] } else { parts[1] };
        let count = slices.div_ceil(parts);
        let room = self.shape.longest_rows().min(thin::ROWS);
        // As the kernel lays it out.
        let bytes = |stages: usize, at_once: usize| {
            let operands = (stages * count + stages.max(count)) * thin::BYTES_OPERAND;
            operands + hopper::BYTES_ATTENTION_BARRIERS + at_once * room * hopper::BYTES_ROW_OF_SUMS
        };
        let most = |shared: usize, at_once: usize| {
            (1..=hopper::MAX_TILES).rev().find(|&stages| bytes(stages, at_once) <= shared)
        };
        // Clusters of blocks that have a multiprocessor each cannot take all of them. So two share one, where a tile more than an
        // example has on average still finds room.
        let average = self.shape.sources().div_ceil(self.shape.examples()).div_ceil(PAIR_TILE);
        let halves = [2, 1].into_iter().find_map(|at_once| {
            most(HALF_SHARED, at_once).filter(|&stages| stages > average).map(|stages| (stages, at_once))
        });
        let (stages, at_once) = match halves {
            Some(halves) => halves,
            None => (most(MAX_SHARED, 2).unwrap_or(1), 2),
        };
        let name = if backward { "cross_attention_backward_hopper" } else { "cross_attention_hopper" };
        let left = if backward { shared.d_mixed } else { shared.absorbed_q };
        let arguments = CrossAttentionHopperArguments {
            left: Self::map(left, [self.shape.targets() * heads, depth])?,
            h: Self::map(shared.h, [self.shape.sources(), depth])?,
            of: *shared,
            stages: stages as i32,
            count: count as i32,
            room: room as i32,
            at_once: at_once as i32,
            ..CrossAttentionHopperArguments::default()
        };
        let [_, rows, examples] = Step::Mix.grid(&self.shape, self.precision).map(|blocks| blocks as u32);
        let cluster = [parts as u32, 1, 1];
        let kernel = Kernel { file: FILE, name };
        let (grid, threads, shared) =
            ([cluster[0], rows, examples], thin::THREADS as u32, bytes(stages, at_once) as u32);
        // SAFETY: every operand was checked against the shape, which the maps and the grid follow; counts come from the descriptor.
        unsafe {
            self.kernels.launch_clusters(kernel, grid, cluster, threads, shared, &arguments, &self.operands)
        }?;
        Ok(true)
    }

    /// Launches a narrow, as a product of clusters where the device and the shape have one: rows of D columns a head.
    pub(super) fn narrow(&self, arguments: &CrossArguments) -> Result<()> {
        let (heads, depth, rows) = (self.shape.heads, self.shape.depth, self.shape.targets());
        if !heads.width.is_multiple_of(thin::COLUMNS) || self.hopper()?.is_none() {
            return self.launch(Step::Narrow, arguments);
        }
        let (follows, name) = match arguments.q {
            0 => (Epilogue::Plain, "gemm_forward_thin_plain"),
            _ => (Epilogue::Delta, "gemm_forward_thin_delta"),
        };
        let n = heads.total();
        let product = GemmHopperArguments {
            a: Self::map(arguments.from, [rows, heads.count * depth])?,
            weight: Self::map(arguments.weight, [n, depth])?,
            of: GemmArguments {
                batch: arguments.batch,
                out: arguments.to,
                y: arguments.q,
                inner_next: arguments.inner,
                side: side_number(Side::Decoder),
                n: n as i32,
                k: depth as i32,
                epilogue: follows as i32,
                ..GemmArguments::default()
            },
            rows: rows as i32,
            head_columns: heads.width as i32,
        };
        let cluster = [1, 1, thin::MIN_CLUSTER as u32];
        let grid = [(n / thin::COLUMNS) as u32, rows.div_ceil(thin::ROWS) as u32, cluster[2]];
        let kernel = Kernel { file: "gemm_thin_hopper", name };
        let (threads, shared) = (thin::THREADS as u32, gemm_thin_hopper::SHARED as u32);
        // SAFETY: every operand was checked against the shape, which the maps and the grid follow; rows beyond the batch's exit.
        unsafe {
            self.kernels.launch_clusters(kernel, grid, cluster, threads, shared, &product, &self.operands)
        }
    }

    /// Launches the two products of a projection as clusters, where the device and the shape have that; whether it did.
    pub(super) fn project(&self, projection: &ProjectedArguments, backward: bool) -> Result<bool> {
        let Some(slices) = self.hopper()? else { return Ok(false) };
        let (heads, depth, rows) = (self.shape.heads, self.shape.depth, self.shape.targets());
        let total = heads.total();
        let arguments = CrossProjectHopperArguments {
            a: Self::map(projection.a, [rows, depth])?,
            weight: Self::map(projection.weight, if backward { [depth, total] } else { [total, depth] })?,
            next: Self::map(projection.of.weight, [total, depth])?,
            batch: projection.of.batch,
            partials: projection.partials,
            middle: projection.middle,
            to: projection.of.to,
            heads: heads.count as i32,
            width: heads.width as i32,
            depth: depth as i32,
            epsilon: projection.epsilon,
            ..CrossProjectHopperArguments::default()
        };
        // As the kernel lays it out.
        let most = slices.div_ceil(hopper::CLUSTER);
        let operands = (most * thin::BYTES_STAGE).max(thin::BYTES_SUMS.next_multiple_of(1024));
        let shared = operands + (most + 1) * thin::BYTES_OPERAND + hopper::BYTES_BARRIERS;
        let grid = [hopper::CLUSTER as u32, rows.div_ceil(thin::ROWS) as u32, heads.count as u32];
        let name = if backward { "cross_project_backward_hopper" } else { "cross_project_hopper" };
        let kernel = Kernel { file: FILE, name };
        // SAFETY: every operand was checked against the shape, which the maps and the grid follow; counts come from the descriptor.
        unsafe {
            self.kernels.launch(kernel, grid, thin::THREADS as u32, shared as u32, &arguments, &self.operands)
        }?;
        Ok(true)
    }
}
