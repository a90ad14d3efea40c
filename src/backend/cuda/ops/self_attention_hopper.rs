//! The launches of short self attention with the product beside it where the device has compute capability 9.0:
//! `kernels/self_attention_hopper.cu`.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::attention::{Attention, AttentionInput, InputGradient};
use super::linear::Norm;
use super::tiles::{TileConfig, TileShape};
use super::{NORM_COLUMNS, SelfAttentionHopperArguments};
use crate::backend::Scope;
use crate::backend::cuda::runtime::arguments::{
    gemm_thin_hopper, self_attention_hopper as hopper, thin_hopper as thin,
};
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::{Operands, Precision, ReadOperand, WriteOperand};
use crate::backend::cuda::runtime::tensor_map::tensor_map;
use crate::error::Result;

/// What the product r·x W^T and the attention of what it gives read and write.
pub(crate) struct ProjectedForward<'a> {
    /// \[T, D\].
    pub(crate) x: &'a dyn ReadOperand,
    /// Its norm.
    pub(crate) norm: Norm<'a>,
    /// W \[3·H·K, D\].
    pub(crate) weight: &'a dyn ReadOperand,
    /// \[T, 3·H·K\].
    pub(crate) qkv: &'a mut dyn WriteOperand,
    /// \[T, H·K\].
    pub(crate) o: &'a mut dyn WriteOperand,
    /// \[T, H\].
    pub(crate) log_sum_exp: &'a mut dyn DevicePtrMut<f32>,
}

/// What the product d_x W_o and the attention's backward read and write.
pub(crate) struct OutputBackward<'a> {
    /// \[T, D\], masked.
    pub(crate) d_x: &'a dyn ReadOperand,
    /// W_o \[D, H·K\].
    pub(crate) weight: &'a dyn ReadOperand,
    /// \[T, 3·H·K\], which forward read.
    pub(crate) qkv: &'a dyn ReadOperand,
    /// \[T, H\], which forward wrote.
    pub(crate) log_sum_exp: &'a dyn DevicePtr<f32>,
    /// \[T, 3·H·K\].
    pub(crate) d_qkv: &'a mut dyn WriteOperand,
    /// \[T, 2·H\], of the gradient with qkv.
    pub(crate) inner: &'a mut dyn DevicePtrMut<f32>,
}

impl<'s> Attention<'s> {
    /// Whether a cluster can have a head with all its examples, and the product beside the attention by the way: of examples whose rows
    /// fit a warp, all of them a tile, and heads as wide as one.
    pub(crate) fn joins_products(&self, kernels: &Kernels, precision: Precision) -> Result<bool> {
        let fits = self.is_short(precision)
            && self.queries.scope() == Scope::All
            && self.queries.all() <= thin::ROWS
            && self.heads.width == thin::COLUMNS;
        Ok(fits && kernels.is_hopper()?)
    }

    /// Parts of `depth`, which are a cluster, of a launch with the projection; none where a block would have no part, or had not room
    /// for all of it.
    pub(crate) fn parts_of_projection(&self, multiprocessors: usize, depth: usize) -> Option<usize> {
        let k_blocks = depth.div_ceil(thin::DEPTH);
        let fits = |parts: &usize| {
            (*parts..=parts * hopper::MAX_WIDE_STAGES).contains(&k_blocks)
                && (*parts == thin::MIN_CLUSTER || self.heads.count * parts <= multiprocessors)
        };
        [gemm_thin_hopper::MAX_CLUSTER, thin::MIN_CLUSTER].into_iter().find(fits)
    }

    /// Launches the product r·x W^T in so many parts of its depth, and the attention of what it gives, as one: what the two give one
    /// after the other, where the product is cut into as many parts bit for bit. For what [`Attention::joins_products`] and
    /// [`Attention::parts_of_projection`] say yes of.
    ///
    /// Costs what both do.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub(crate) fn project_forward<'a>(
        &self,
        kernels: &'a Kernels,
        parts: usize,
        depth: usize,
        of: ProjectedForward<'a>,
    ) -> Result<()>
    where
        's: 'a,
    {
        let (rows, total, precision) = (self.queries.all(), self.heads.total(), Precision::Bf16);
        let mut operands = kernels.operands();
        let mut arguments = self.arguments_beside_input(&mut operands)?;
        arguments.o = operands.matrix_mut("o", of.o, precision, rows * total)?;
        arguments.log_sum_exp = operands.write("log_sum_exp", of.log_sum_exp, rows * self.heads.count)?;
        let x = operands.matrix("x", of.x, precision, rows * depth)?;
        let weight = operands.matrix("w_qkv", of.weight, precision, 3 * total * depth)?;
        let stages = depth.div_ceil(thin::DEPTH).div_ceil(parts);
        let arguments = SelfAttentionHopperArguments {
            a: tensor_map(x, [rows, depth], [thin::ROWS, thin::DEPTH])?,
            weight: tensor_map(weight, [3 * total, depth], [thin::COLUMNS, thin::DEPTH])?,
            of: arguments,
            partials: operands.read(
                "the norm's partial sums",
                of.norm.partials,
                rows * depth.div_ceil(NORM_COLUMNS),
            )?,
            qkv: operands.matrix_mut("qkv", of.qkv, precision, rows * 3 * total)?,
            depth: depth as i32,
            stages: stages as i32,
            epsilon: of.norm.epsilon,
            ..SelfAttentionHopperArguments::default()
        };
        let name = match arguments.of.mask.step {
            0 => "self_attention_forward_hopper",
            _ => "self_attention_forward_dropped_hopper",
        };
        // As the kernel lays it out: the sums lie where the stages were.
        let after = (stages * hopper::BYTES_WIDE_STAGE).max(hopper::PARTS * thin::BYTES_SUMS);
        // SAFETY: every operand was checked against the rows, heads and depth, which the maps and the grid follow; counts come from the
        // descriptor.
        unsafe {
            self.launch_clusters(
                kernels,
                name,
                parts,
                after + hopper::FORWARD_BARRIER_FROM + 8,
                &arguments,
                &operands,
            )
        }
    }

    /// Launches a kernel with a cluster of so many parts a head.
    ///
    /// # Safety
    /// As of [`Kernels::launch`].
    unsafe fn launch_clusters(
        &self,
        kernels: &Kernels,
        name: &'static str,
        parts: usize,
        shared: usize,
        arguments: &SelfAttentionHopperArguments,
        operands: &Operands<'_>,
    ) -> Result<()> {
        let kernel = Kernel { file: "self_attention_hopper", name };
        let (parts, threads) = (parts as u32, thin::THREADS as u32);
        let (grid, cluster) = ([parts, self.heads.count as u32, 1], [parts, 1, 1]);
        // SAFETY: the caller's promise.
        unsafe { kernels.launch_clusters(kernel, grid, cluster, threads, shared as u32, arguments, operands) }
    }

    /// Launches the product d_x W_o, cut as `config` says, and the attention's backward of what it gives, as one: what the two give one
    /// after the other, bit for bit. For what [`Attention::joins_products`] says yes of, and a cut into a cluster's parts of k.
    ///
    /// Costs what both do. d_o is nowhere in memory.
    ///
    /// # Errors
    /// As [`Attention::backward`].
    pub(crate) fn output_backward<'a>(
        &self,
        kernels: &'a Kernels,
        config: TileConfig,
        depth: usize,
        of: OutputBackward<'a>,
    ) -> Result<()>
    where
        's: 'a,
    {
        debug_assert_eq!(config.shape, TileShape::ThinHopper, "parts of k that are a cluster");
        let mut operands = kernels.operands();
        let (mut arguments, precision) = self.arguments(&mut operands, AttentionInput::Packed(of.qkv))?;
        let (rows, total, count) = (self.queries.all(), self.heads.total(), self.heads.count);
        arguments.log_sum_exp = operands.read("log_sum_exp", of.log_sum_exp, rows * count)?;
        let gradient = InputGradient::Packed(of.d_qkv);
        let parts = self.read_gradient(&mut operands, gradient, precision, &mut arguments)?;
        arguments.inner = operands.write("inner", of.inner, rows * parts * count)?;
        arguments.inner_parts = parts as i32;
        let d_x = operands.matrix("d_x", of.d_x, precision, rows * depth)?;
        let weight = operands.matrix("w_o", of.weight, precision, depth * total)?;
        let name = match arguments.mask.step {
            0 => "self_attention_backward_hopper",
            _ => "self_attention_backward_dropped_hopper",
        };
        let stages = depth.div_ceil(thin::DEPTH).div_ceil(config.split_k).min(gemm_thin_hopper::STAGES);
        let arguments = SelfAttentionHopperArguments {
            a: tensor_map(d_x, [rows, depth], [thin::ROWS, thin::DEPTH])?,
            weight: tensor_map(weight, [depth, total], [thin::DEPTH, thin::COLUMNS])?,
            of: arguments,
            depth: depth as i32,
            stages: stages as i32,
            ..SelfAttentionHopperArguments::default()
        };
        // As the kernel lays it out: the sums lie where the stages were.
        let after = (stages * thin::BYTES_STAGE).max(thin::BYTES_SUMS.next_multiple_of(1024));
        let shared = after + hopper::STAGE_BARRIERS_FROM + stages * 8;
        // SAFETY: as of the projection.
        unsafe { self.launch_clusters(kernels, name, config.split_k, shared, &arguments, &operands) }
    }
}
