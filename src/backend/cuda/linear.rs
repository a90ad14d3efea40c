//! Products with frozen weights: `kernels/gemm.cu`, and what a feed-forward has around them: `kernels/feed_forward.cu`.

use cudarc::driver::sys::CUdevice_attribute_enum as DeviceAttribute;
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr};
use half::bf16;

use super::dropout::MaskArgument;
use super::embedding::{check_width, launch_rows, side_number};
use super::failure::driver;
use super::kernels::{Arguments, Kernel, Kernels};
use super::memory::{Buffer, address, address_mut, check_length};
use super::rows::{NORM_COLUMNS, Operand, Rows, WIDTH_MULTIPLE, Weight};
use super::sequences::Sequences;
use super::{Cuda, Precision, failure};
use crate::backend::{Activation, Batch, FeedForward, Format, Mask, Scope, Side};
use crate::error::{Error, Result};

/// What follows a product; the numbers of `Epilogue` in the kernel file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Epilogue {
    Project = 0,
    Relu = 1,
    Add = 2,
    Plain = 3,
    ReluBackward = 4,
    NormBackward = 5,
    Float = 6,
    Accumulate = 7,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct GemmArguments {
    batch: u64,
    a: u64,
    weight: u64,
    out: u64,
    x: u64,
    x_next: u64,
    copy: u64,
    partials: u64,
    partials_next: u64,
    inner: u64,
    bits: u64,
    workspace: u64,
    counters: u64,
    mask: MaskArgument,
    side: i32,
    scope: i32,
    n: i32,
    k: i32,
    a_stride: i32,
    epilogue: i32,
    inner_parts: i32,
    epsilon: f32,
}
const _: () = assert!(size_of::<GemmArguments>() == 152);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for GemmArguments {}

#[derive(Clone, Copy)]
#[repr(C)]
struct GateArguments {
    batch: u64,
    z: u64,
    a: u64,
    dz: u64,
    inner: u64,
    mask: MaskArgument,
    side: i32,
    width: i32,
    silu: i32,
    padding: i32,
}
const _: () = assert!(size_of::<GateArguments>() == 72);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for GateArguments {}

#[derive(Clone, Copy)]
#[repr(C)]
struct RowArguments {
    batch: u64,
    d_x: u64,
    x: u64,
    x_next: u64,
    inner: u64,
    copy: u64,
    mask: MaskArgument,
    side: i32,
    width: i32,
}
const _: () = assert!(size_of::<RowArguments>() == 72);
// SAFETY: the struct of that name in the kernel file.
unsafe impl Arguments for RowArguments {}

/// A block's tile of a kernel: its rows and columns, threads, and dynamic shared memory in bytes.
#[derive(Clone, Copy, Debug)]
struct Tile {
    forward: &'static str,
    backward: &'static str,
    size: usize,
    threads: u32,
    shared: u32,
    /// Cycles that one step in k keeps a multiprocessor of an A100 busy.
    cycles: usize,
}

const LARGE: Tile = Tile {
    forward: "gemm_forward_large",
    backward: "gemm_backward_large",
    size: 128,
    threads: 128,
    // The tile of f32 that the epilogue reads; the four stages of the main loop need a little less.
    shared: 128 * 136 * 4,
    // 128 x 128 multiply-adds, 1,024 a cycle on the tensor cores.
    cycles: 16,
};
const SMALL: Tile = Tile {
    forward: "gemm_forward_small",
    backward: "gemm_backward_small",
    size: 64,
    threads: 128,
    shared: 4 * (64 + 64) * 32 * 2,
    // Shared memory bounds it: 192 passes for 32 in k.
    cycles: 6,
};
const PLAIN_F32: Tile = Tile {
    forward: "gemm_forward_f32",
    backward: "gemm_backward_f32",
    size: 64,
    threads: 256,
    shared: 0,
    // 64 x 64 multiply-adds on 64 lanes.
    cycles: 64,
};

/// The kernels between products.
const FEED_FORWARD: &str = "feed_forward";

/// Large tiles are for products that are at least so long in each direction, whatever the device.
const LARGE_FROM: usize = 1024;
/// The least depth of a part of k: the four stages of the main loop.
const LEAST_PART: usize = 4 * DEPTH;
/// The most parts of k: each costs a tile of f32 written and read.
const MOST_PARTS: usize = 8;
/// What the main loop loads at once, in k; `DEPTH` of the kernel file.
const DEPTH: usize = 32;
/// Cycles until the first stretch of k has come from memory.
const FIRST_LOAD: usize = 800;
/// Numbers of f32 of a tile that a multiprocessor moves in a cycle, in shared memory and to and from the cache alike.
const EPILOGUE_RATE: usize = 16;

/// How a product is cut up: its tile, and its blocks over columns, rows and parts of k.
#[derive(Debug)]
struct Cut {
    tile: Tile,
    grid: [u32; 3],
}

impl Cut {
    /// For \[m, k\] rows and n columns on a device of so many multiprocessors: the cut that takes the fewest cycles.
    fn new(precision: Precision, multiprocessors: usize, m: usize, n: usize, k: usize) -> Self {
        let made = |tile: Tile, parts: usize| {
            let grid = [n.div_ceil(tile.size) as u32, m.div_ceil(tile.size) as u32, parts as u32];
            Self { tile, grid }
        };
        if precision == Precision::F32 {
            return made(PLAIN_F32, 1);
        }
        let is_large = m.min(n).min(k) >= LARGE_FROM;
        let tiles = if is_large { vec![LARGE] } else { vec![LARGE, SMALL] };
        let cuts = tiles.into_iter().flat_map(|tile| (1..=MOST_PARTS).map(move |parts| (tile, parts)));
        let cuts = cuts.map(|(tile, parts)| made(tile, parts)).filter(|cut| {
            // More parts than blocks that run at once gain nothing.
            let parts = cut.grid[2] as usize;
            parts == 1 || (k / parts >= LEAST_PART && cut.tiles() * parts <= 2 * multiprocessors)
        });
        cuts.min_by_key(|cut| cut.cycles(multiprocessors, k)).unwrap_or_else(|| made(LARGE, 1))
    }

    /// About how many cycles it takes: whole waves of a block on each multiprocessor.
    fn cycles(&self, multiprocessors: usize, k: usize) -> usize {
        let parts = self.grid[2] as usize;
        let depth = k.div_ceil(DEPTH).div_ceil(parts) * DEPTH;
        // A part is written, and the last block of a tile reads them all.
        let moved = if parts > 1 { 2 + parts } else { 1 };
        let block = depth * self.tile.cycles + moved * self.tile.size * self.tile.size / EPILOGUE_RATE;
        (self.tiles() * parts).div_ceil(multiprocessors) * block + FIRST_LOAD
    }

    /// Tiles of the result.
    fn tiles(&self) -> usize {
        self.grid[0] as usize * self.grid[1] as usize
    }

    /// Counters that must be zero before, and are zero behind; none where k is whole.
    fn counters(&self) -> usize {
        if self.grid[2] > 1 { self.tiles() } else { 0 }
    }

    /// Numbers of f32 that parts of k are kept in until they are summed.
    fn workspace(&self) -> usize {
        self.counters() * self.grid[2] as usize * self.tile.size * self.tile.size
    }

    /// Launches the product.
    ///
    /// # Safety
    /// `arguments` has a matrix of the rows that this was made for, workspace and counters of its sizes, and what its
    /// epilogue reads and writes.
    unsafe fn launch(&self, kernels: &Kernels, backward: bool, arguments: &GemmArguments) -> Result<()> {
        let name = if backward { self.tile.backward } else { self.tile.forward };
        let kernel = Kernel { file: "gemm", name };
        // SAFETY: the caller's promise; rows beyond the batch's exit.
        unsafe { kernels.launch(kernel, self.grid, self.tile.threads, self.tile.shared, arguments) }
    }
}

/// A product's operands and what follows it.
struct Product<'a> {
    batch: &'a Batch,
    side: Side,
    scope: Scope,
    /// [m, k] rows, `stride` numbers apart.
    a: u64,
    stride: usize,
    weight: u64,
    n: usize,
    k: usize,
    backward: bool,
    epilogue: Epilogue,
}

/// What a feed-forward's backward needs.
#[derive(Debug)]
pub struct FeedForwardKept {
    /// ReLU: one bit an element, positive and kept, \[rows, F / 8\] bytes.
    bits: Option<Buffer<u8>>,
    /// Gated: both pre-activations, \[rows, 2·F\].
    z: Option<Rows>,
}

impl FeedForwardKept {
    pub(super) fn new(cuda: &Cuda, batch: &Batch, side: Side, feed_forward: &FeedForward<'_, Cuda>) -> Self {
        let (rows, out) = (batch.rows(side), feed_forward.w_in.out);
        if feed_forward.activation == Activation::Relu {
            Self { bits: Some(cuda.allocate(rows * out / 8)), z: None }
        } else {
            Self { bits: None, z: Some(cuda.activation(rows, out, Format::Operand)) }
        }
    }
}

impl Cuda {
    fn product(&self, product: &Product<'_>, mut arguments: GemmArguments) -> Result<()> {
        let Product { batch, side, scope, n, k, .. } = *product;
        let m = match scope {
            Scope::All => batch.rows(side),
            Scope::Prompt => batch.examples() * batch.prompt_length(),
        };
        if product.epilogue != Epilogue::Float && n % WIDTH_MULTIPLE != 0 {
            return Err(Error::tensor("a product", "a multiple of 8 columns", n.to_string(), ""));
        }
        let cut = Cut::new(self.precision, self.info.multiprocessors, m, n, k);
        let workspace: Buffer<f32> = self.allocate(cut.workspace());
        arguments.batch = self.describe(batch)?.address(self)?;
        arguments.a = product.a;
        arguments.weight = product.weight;
        arguments.workspace = self.address_of(&workspace)?;
        if cut.counters() > 0 {
            arguments.counters = self.counters(cut.counters())?;
        }
        arguments.side = side_number(side);
        arguments.scope = i32::from(scope == Scope::Prompt);
        arguments.n = n as i32;
        arguments.k = k as i32;
        arguments.a_stride = product.stride as i32;
        arguments.epilogue = product.epilogue as i32;
        self.count(2 * (m * n * k) as u64);
        // SAFETY: the callers checked the shapes of every operand against m, n and k.
        unsafe { cut.launch(self.kernels(), product.backward, &arguments) }
    }

    /// Where `tiles` counters of zero lie, which every kernel that counts leaves at zero.
    fn counters(&self, tiles: usize) -> Result<u64> {
        let mut counters = self.counters.borrow_mut();
        if counters.len() < tiles {
            return Err(Error::tensor(
                "the tiles of a thin product",
                format!("at most {}", counters.len()),
                tiles.to_string(),
                "",
            ));
        }
        Ok(address_mut(&mut counters.view_mut()?, self.kernels().stream()))
    }

    pub(super) fn launch_project(
        &self,
        batch: &Batch,
        side: Side,
        x: &Rows,
        r: &Rows,
        weight: &Weight,
        z: &mut Rows,
    ) -> Result<()> {
        let rows = batch.rows(side);
        x.expect("x", rows, weight.input)?;
        r.expect("r", rows, weight.input)?;
        z.expect("z", rows, weight.out)?;
        let arguments = GemmArguments {
            out: z.operand_address(self)?,
            partials: r.float_address(self)?,
            epsilon: r.epsilon,
            ..GemmArguments::default()
        };
        self.product(&self.forward(batch, side, x, weight, Epilogue::Project)?, arguments)
    }

    /// A forward product of rows with a weight.
    fn forward<'a>(
        &self,
        batch: &'a Batch,
        side: Side,
        a: &Rows,
        weight: &Weight,
        epilogue: Epilogue,
    ) -> Result<Product<'a>> {
        Ok(Product {
            batch,
            side,
            scope: Scope::All,
            a: a.operand_address(self)?,
            stride: a.width,
            weight: weight.operand_address(self)?,
            n: weight.out,
            k: weight.input,
            backward: false,
            epilogue,
        })
    }

    /// The same weight read the other way.
    fn backward<'a>(
        &self,
        batch: &'a Batch,
        side: Side,
        scope: Scope,
        a: u64,
        weight: &Weight,
        epilogue: Epilogue,
    ) -> Result<Product<'a>> {
        Ok(Product {
            batch,
            side,
            scope,
            a,
            stride: weight.out,
            weight: weight.operand_address(self)?,
            n: weight.input,
            k: weight.out,
            backward: true,
            epilogue,
        })
    }

    /// Rows times a weight, nothing else: `out` \[rows, out\] in the operand format.
    pub(super) fn launch_product(
        &self,
        batch: &Batch,
        side: Side,
        a: &Rows,
        weight: &Weight,
        out: &mut Rows,
    ) -> Result<()> {
        let rows = batch.rows(side);
        a.expect("a", rows, weight.input)?;
        out.expect("out", rows, weight.out)?;
        let arguments = GemmArguments { out: out.operand_address(self)?, ..GemmArguments::default() };
        self.product(&self.forward(batch, side, a, weight, Epilogue::Plain)?, arguments)
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_project_backward(
        &self,
        batch: &Batch,
        side: Side,
        scope: Scope,
        dz: &Rows,
        weight: &Weight,
        x: &Rows,
        r: &Rows,
        d_x: &mut Rows,
    ) -> Result<()> {
        let inner = dz
            .inner
            .as_ref()
            .ok_or_else(|| Error::tensor("dz", "the inner products that the op before writes", "none", ""))?;
        let (address, parts) = (self.address_of(inner)?, dz.inner_parts());
        let dz = dz.operand_address(self)?;
        self.norm_backward(batch, side, scope, dz, (address, parts), weight, x, r, d_x)
    }

    /// The dX product whose epilogue finishes the norm's backward; `inner` is where \[rows, parts\] partials lie.
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    fn norm_backward(
        &self,
        batch: &Batch,
        side: Side,
        scope: Scope,
        dz: u64,
        inner: (u64, usize),
        weight: &Weight,
        x: &Rows,
        r: &Rows,
        d_x: &mut Rows,
    ) -> Result<()> {
        let rows = batch.rows(side);
        x.expect("x", rows, weight.input)?;
        r.expect("r", rows, weight.input)?;
        d_x.expect("d_x", rows, weight.input)?;
        let arguments = GemmArguments {
            x: x.float_address(self)?,
            x_next: d_x.float_address(self)?,
            copy: d_x.copy_address(self)?,
            partials: r.float_address(self)?,
            epsilon: r.epsilon,
            inner: inner.0,
            inner_parts: inner.1 as i32,
            ..GemmArguments::default()
        };
        self.product(&self.backward(batch, side, scope, dz, weight, Epilogue::NormBackward)?, arguments)
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_add_project(
        &self,
        batch: &Batch,
        side: Side,
        y: &Rows,
        weight: &Weight,
        mask: Mask<'_>,
        epsilon: f64,
        x: &Rows,
        x_next: &mut Rows,
        r_next: &mut Rows,
    ) -> Result<()> {
        let rows = batch.rows(side);
        y.expect("y", rows, weight.input)?;
        for (what, residual) in [("x", x), ("x_next", x_next), ("r_next", r_next)] {
            residual.expect(what, rows, weight.out)?;
        }
        r_next.epsilon = epsilon as f32;
        let arguments = GemmArguments {
            x: x.float_address(self)?,
            x_next: x_next.float_address(self)?,
            copy: x_next.copy_address(self)?,
            partials_next: r_next.float_address(self)?,
            mask: self.mask(mask)?,
            ..GemmArguments::default()
        };
        self.product(&self.forward(batch, side, y, weight, Epilogue::Add)?, arguments)
    }

    /// What a dX product reads of d_x: its operand copy, or with dropout a masked one, which is then kept in `masked`.
    fn masked_gradient(
        &self,
        batch: &Batch,
        side: Side,
        d_x: &Rows,
        mask: Mask<'_>,
        masked: &mut Option<Operand>,
    ) -> Result<u64> {
        if mask.is_none() {
            return d_x.operand_address(self);
        }
        let rows = batch.rows(side);
        let copy = masked.insert(self.operand(rows * d_x.width));
        let arguments = RowArguments {
            batch: self.describe(batch)?.address(self)?,
            d_x: d_x.float_address(self)?,
            x: 0,
            x_next: 0,
            inner: 0,
            copy: copy.address(self)?,
            mask: self.mask(mask)?,
            side: side_number(side),
            width: d_x.width as i32,
        };
        self.row_kernel(self.named("mask_copy_bf16", "mask_copy_f32"), rows, &arguments)?;
        copy.address(self)
    }

    fn row_kernel<A: Arguments>(&self, name: &'static str, rows: usize, arguments: &A) -> Result<()> {
        // SAFETY: the callers checked the shapes of every operand; rows beyond the batch's exit.
        unsafe { launch_rows(self.kernels(), Kernel { file: FEED_FORWARD, name }, rows, arguments) }
    }

    pub(super) fn launch_add_project_backward(
        &self,
        batch: &Batch,
        side: Side,
        d_x: &Rows,
        weight: &Weight,
        mask: Mask<'_>,
        d_y: &mut Rows,
    ) -> Result<()> {
        let rows = batch.rows(side);
        d_x.expect("d_x", rows, weight.out)?;
        d_y.expect("d_y", rows, weight.input)?;
        let mut masked = None;
        let a = self.masked_gradient(batch, side, d_x, mask, &mut masked)?;
        let arguments = GemmArguments { out: d_y.operand_address(self)?, ..GemmArguments::default() };
        self.product(&self.backward(batch, side, Scope::All, a, weight, Epilogue::Plain)?, arguments)
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_feed_forward(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        x: &Rows,
        r: &Rows,
        x_next: &mut Rows,
        r_next: &mut Rows,
        kept: &mut FeedForwardKept,
    ) -> Result<()> {
        let FeedForward { w_in, w_out, inner_mask, output_mask, epsilon, .. } = *feed_forward;
        let (rows, width) = (batch.rows(side), w_out.input);
        x.expect("x", rows, w_in.input)?;
        r.expect("r", rows, w_in.input)?;
        let a = self.activation(rows, width, Format::Operand);
        let norm = GemmArguments {
            partials: r.float_address(self)?,
            epsilon: r.epsilon,
            ..GemmArguments::default()
        };
        match (&kept.bits, &mut kept.z) {
            (Some(bits), _) => {
                let arguments = GemmArguments {
                    out: a.operand_address(self)?,
                    bits: self.address_of(bits)?,
                    mask: self.mask(inner_mask)?,
                    ..norm
                };
                self.product(&self.forward(batch, side, x, w_in, Epilogue::Relu)?, arguments)?;
            }
            (None, Some(z)) => {
                let arguments = GemmArguments { out: z.operand_address(self)?, ..norm };
                self.product(&self.forward(batch, side, x, w_in, Epilogue::Project)?, arguments)?;
                let arguments = self.gate(batch, side, feed_forward, z, &a)?;
                self.row_kernel(self.named("gate_bf16", "gate_f32"), rows, &arguments)?;
            }
            (None, None) => return Err(failure::absent()),
        }
        self.launch_add_project(batch, side, &a, w_out, output_mask, epsilon, x, x_next, r_next)?;
        Ok(())
    }

    fn gate(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        z: &Rows,
        a: &Rows,
    ) -> Result<GateArguments> {
        Ok(GateArguments {
            batch: self.describe(batch)?.address(self)?,
            z: z.operand_address(self)?,
            a: a.operand_address(self)?,
            dz: 0,
            inner: 0,
            mask: self.mask(feed_forward.inner_mask)?,
            side: side_number(side),
            width: a.width as i32,
            silu: i32::from(feed_forward.activation == Activation::GatedSilu),
            padding: 0,
        })
    }

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_feed_forward_backward(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        kept: &FeedForwardKept,
        x: &Rows,
        r: &Rows,
        x_next: &Rows,
        d_x: &mut Rows,
    ) -> Result<()> {
        let FeedForward { w_in, w_out, inner_mask, output_mask, .. } = *feed_forward;
        let (rows, width) = (batch.rows(side), w_out.input);
        for (what, residual) in [("x", x), ("x_next", x_next), ("d_x", &*d_x)] {
            residual.expect(what, rows, w_in.input)?;
        }
        let inner: Buffer<f32> = self.allocate(rows);
        let mut masked = None;
        let a = self.masked_gradient(batch, side, d_x, output_mask, &mut masked)?;
        let d_a = self.activation(rows, width, Format::Operand);
        let out = GemmArguments { out: d_a.operand_address(self)?, ..GemmArguments::default() };
        let inner_part = (self.address_of(&inner)?, 1);
        match (&kept.bits, &kept.z) {
            (Some(bits), _) => {
                let arguments = RowArguments {
                    batch: self.describe(batch)?.address(self)?,
                    d_x: d_x.float_address(self)?,
                    x: x.float_address(self)?,
                    x_next: x_next.float_address(self)?,
                    inner: inner_part.0,
                    copy: 0,
                    mask: MaskArgument::default(),
                    side: side_number(side),
                    width: w_in.input as i32,
                };
                self.row_kernel("row_inner", rows, &arguments)?;
                let arguments =
                    GemmArguments { bits: self.address_of(bits)?, mask: self.mask(inner_mask)?, ..out };
                let product = self.backward(batch, side, Scope::All, a, w_out, Epilogue::ReluBackward)?;
                self.product(&product, arguments)?;
                let dz = d_a.operand_address(self)?;
                self.norm_backward(batch, side, Scope::All, dz, inner_part, w_in, x, r, d_x)?;
            }
            (None, Some(z)) => {
                let product = self.backward(batch, side, Scope::All, a, w_out, Epilogue::Plain)?;
                self.product(&product, out)?;
                let dz = self.activation(rows, 2 * width, Format::Operand);
                let mut arguments = self.gate(batch, side, feed_forward, z, &d_a)?;
                arguments.dz = dz.operand_address(self)?;
                arguments.inner = inner_part.0;
                self.row_kernel(self.named("gate_backward_bf16", "gate_backward_f32"), rows, &arguments)?;
                let dz = dz.operand_address(self)?;
                self.norm_backward(batch, side, Scope::All, dz, inner_part, w_in, x, r, d_x)?;
            }
            (None, None) => return Err(failure::absent()),
        }
        Ok(())
    }

    pub(super) fn launch_logits(
        &self,
        batch: &Batch,
        hidden: &Rows,
        head: &Weight,
        logits: &mut Rows,
    ) -> Result<()> {
        hidden.expect("hidden", batch.rows(Side::Decoder), head.input)?;
        logits.expect("logits", hidden.rows, head.out)?;
        let arguments = GemmArguments { out: logits.float_address(self)?, ..GemmArguments::default() };
        self.product(&self.forward(batch, Side::Decoder, hidden, head, Epilogue::Float)?, arguments)
    }

    /// d_h += a W: `a` \[rows, out\] in the operand format, d_h \[rows, in\] in f32.
    pub(super) fn launch_accumulate(
        &self,
        batch: &Batch,
        side: Side,
        a: &Rows,
        weight: &Weight,
        d_h: &mut Rows,
    ) -> Result<()> {
        a.expect("a", batch.rows(side), weight.out)?;
        d_h.expect("d_h", a.rows, weight.input)?;
        let arguments = GemmArguments { x_next: d_h.float_address(self)?, ..GemmArguments::default() };
        let a = a.operand_address(self)?;
        self.product(&self.backward(batch, side, Scope::All, a, weight, Epilogue::Accumulate)?, arguments)
    }
}

/// Products of packed rows with one stored weight \[out, in\], read both ways, for launches on cudarc's own buffers.
///
/// Rows are f32 (`x`, the residual stream) or bf16 (everything that a product reads); a norm is its rows' partial sums of
/// squares, \[rows, ceil(width / 64)\] in f32, with an epsilon, and r = 1 / sqrt(sum / width + epsilon). Without dropout.
///
/// Each product costs 2·rows·in·out operations. It moves its rows once for every 64 or 128 columns of the result, the weight
/// once for every 64 or 128 rows, and what its epilogue reads and writes once. A thin product is cut along its depth; the parts
/// lie in memory that this holds, so launches of one `Linear` belong on one stream.
#[derive(Debug)]
pub struct Linear<'a> {
    sequences: &'a Sequences,
    out: usize,
    input: usize,
    cuts: [Cut; 2],
    workspace: CudaSlice<f32>,
    counters: CudaSlice<i32>,
}

/// A norm that a product applies or goes back through: its partial sums of squares, and what is added to the mean square.
pub type Norm<'a, 'b> = (&'a CudaView<'b, f32>, f32);

impl<'a> Linear<'a> {
    /// Products of the rows of `sequences` with weights of `out` rows of `input` numbers, both multiples of 8.
    ///
    /// # Errors
    /// A width that does not fit, and what the driver says.
    pub fn new(kernels: &Kernels, sequences: &'a Sequences, out: usize, input: usize) -> Result<Self> {
        check_width(out)?;
        check_width(input)?;
        let (stream, fail) = (kernels.stream(), |error| driver("prepare a product", error));
        let multiprocessors = kernels
            .context()
            .attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(fail)?;
        let rows = sequences.rows();
        let cut = |n, k| Cut::new(Precision::Bf16, usize::try_from(multiprocessors).unwrap_or(1), rows, n, k);
        let cuts = [cut(out, input), cut(input, out)];
        let most = |of: fn(&Cut) -> usize| cuts.iter().map(of).max().unwrap_or(0).max(1);
        let workspace = stream.alloc_zeros(most(Cut::workspace)).map_err(fail)?;
        let counters = stream.alloc_zeros(most(Cut::counters)).map_err(fail)?;
        Ok(Self { sequences, out, input, cuts, workspace, counters })
    }

    /// Fails unless `found` numbers are `width` for each row.
    fn check(&self, what: &str, width: usize, found: usize) -> Result<()> {
        check_length(what, self.sequences.rows() * width, found)
    }

    /// Where a norm over `width` columns lies.
    fn norm(&self, kernels: &Kernels, norm: Norm<'_, '_>, width: usize) -> Result<GemmArguments> {
        self.check("the norm's partial sums", width.div_ceil(NORM_COLUMNS), norm.0.len())?;
        let partials = address(norm.0, kernels.stream());
        Ok(GemmArguments { partials, epsilon: norm.1, ..GemmArguments::default() })
    }

    /// Launches rows times the weight's transpose, or with `backward` times the weight; the callers checked the epilogue's operands.
    fn launch(
        &self,
        kernels: &Kernels,
        backward: bool,
        a: &CudaView<'_, bf16>,
        weight: &CudaView<'_, bf16>,
        epilogue: Epilogue,
        epilogue_operands: GemmArguments,
    ) -> Result<()> {
        let (n, k) = if backward { (self.input, self.out) } else { (self.out, self.input) };
        self.check("the rows that are multiplied", k, a.len())?;
        check_length("weight", self.out * self.input, weight.len())?;
        let stream = kernels.stream();
        let arguments = GemmArguments {
            batch: self.sequences.address(kernels),
            a: address(a, stream),
            weight: address(weight, stream),
            workspace: self.workspace.device_ptr(stream).0,
            counters: self.counters.device_ptr(stream).0,
            side: side_number(Side::Decoder),
            n: n as i32,
            k: k as i32,
            a_stride: k as i32,
            epilogue: epilogue as i32,
            ..epilogue_operands
        };
        // SAFETY: all lengths were checked, workspace and counters were made for either cut, and counters are left at zero.
        unsafe { self.cuts[usize::from(backward)].launch(kernels, backward, &arguments) }
    }

    /// z = a W^T: `a` \[rows, in\], `weight` \[out, in\], `z` \[rows, out\], all in bf16.
    ///
    /// # Errors
    /// A length that does not fit, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        a: &CudaView<'_, bf16>,
        weight: &CudaView<'_, bf16>,
        z: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        self.check("z", self.out, z.len())?;
        let operands = GemmArguments { out: address_mut(z, kernels.stream()), ..GemmArguments::default() };
        self.launch(kernels, false, a, weight, Epilogue::Plain, operands)
    }

    /// z = r · x W^T, a projection behind a norm whose gain is folded into the weight: `x` \[rows, in\] in bf16, its `norm` over
    /// in, `z` \[rows, out\] in bf16.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn project(
        &self,
        kernels: &Kernels,
        x: &CudaView<'_, bf16>,
        norm: Norm<'_, '_>,
        weight: &CudaView<'_, bf16>,
        z: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        self.check("z", self.out, z.len())?;
        let operands =
            GemmArguments { out: address_mut(z, kernels.stream()), ..self.norm(kernels, norm, self.input)? };
        self.launch(kernels, false, x, weight, Epilogue::Project, operands)
    }

    /// a = max(r · x W^T, 0), with one bit an element for backward: as [`Linear::project`], and `bits` \[rows, out / 8\].
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn project_relu(
        &self,
        kernels: &Kernels,
        x: &CudaView<'_, bf16>,
        norm: Norm<'_, '_>,
        weight: &CudaView<'_, bf16>,
        a: &mut CudaViewMut<'_, bf16>,
        bits: &mut CudaViewMut<'_, u8>,
    ) -> Result<()> {
        self.check("a", self.out, a.len())?;
        self.check("bits", self.out / 8, bits.len())?;
        let operands = GemmArguments {
            out: address_mut(a, kernels.stream()),
            bits: address_mut(bits, kernels.stream()),
            ..self.norm(kernels, norm, self.input)?
        };
        self.launch(kernels, false, x, weight, Epilogue::Relu, operands)
    }

    /// x_next = x + y W^T, the end of a sublayer: `y` \[rows, in\] in bf16; `x` and `x_next` \[rows, out\] in f32, `copy` the same
    /// in bf16, and `partials_next` \[rows, ceil(out / 64)\], which make the next norm.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub fn add(
        &self,
        kernels: &Kernels,
        y: &CudaView<'_, bf16>,
        weight: &CudaView<'_, bf16>,
        x: &CudaView<'_, f32>,
        x_next: &mut CudaViewMut<'_, f32>,
        copy: &mut CudaViewMut<'_, bf16>,
        partials_next: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        self.check("x", self.out, x.len())?;
        self.check("x_next", self.out, x_next.len())?;
        self.check("copy", self.out, copy.len())?;
        self.check("partials_next", self.out.div_ceil(NORM_COLUMNS), partials_next.len())?;
        let stream = kernels.stream();
        let operands = GemmArguments {
            x: address(x, stream),
            x_next: address_mut(x_next, stream),
            copy: address_mut(copy, stream),
            partials_next: address_mut(partials_next, stream),
            ..GemmArguments::default()
        };
        self.launch(kernels, false, y, weight, Epilogue::Add, operands)
    }

    /// z = a W^T in f32, as logits are wanted: otherwise as [`Linear::forward`].
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_float(
        &self,
        kernels: &Kernels,
        a: &CudaView<'_, bf16>,
        weight: &CudaView<'_, bf16>,
        z: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        self.check("z", self.out, z.len())?;
        let operands = GemmArguments { out: address_mut(z, kernels.stream()), ..GemmArguments::default() };
        self.launch(kernels, false, a, weight, Epilogue::Float, operands)
    }

    /// d_a = dz W: `dz` \[rows, out\], the same stored weight, `d_a` \[rows, in\], all in bf16.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn backward(
        &self,
        kernels: &Kernels,
        dz: &CudaView<'_, bf16>,
        weight: &CudaView<'_, bf16>,
        d_a: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        self.check("d_a", self.input, d_a.len())?;
        let operands = GemmArguments { out: address_mut(d_a, kernels.stream()), ..GemmArguments::default() };
        self.launch(kernels, true, dz, weight, Epilogue::Plain, operands)
    }

    /// d_z = dy W where the forward pass kept a bit, 0 elsewhere: `dy` \[rows, out\] and `dz` \[rows, in\] in bf16, `bits`
    /// \[rows, in / 8\] of the [`Linear::project_relu`] whose output this product read.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn backward_relu(
        &self,
        kernels: &Kernels,
        dy: &CudaView<'_, bf16>,
        weight: &CudaView<'_, bf16>,
        bits: &CudaView<'_, u8>,
        dz: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        self.check("dz", self.input, dz.len())?;
        self.check("bits", self.input / 8, bits.len())?;
        let operands = GemmArguments {
            out: address_mut(dz, kernels.stream()),
            bits: address(bits, kernels.stream()),
            ..GemmArguments::default()
        };
        self.launch(kernels, true, dy, weight, Epilogue::ReluBackward, operands)
    }

    /// d_x += r · dz W - r² · (inner / in) · x, backward through a [`Linear::project`] and its norm: `dz` \[rows, out\] in bf16;
    /// `x` and `d_x` \[rows, in\] in f32, `copy` of d_x in bf16; `inner` \[rows, parts\] with parts whose sum is <dz, z> of the
    /// row.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub fn backward_norm(
        &self,
        kernels: &Kernels,
        dz: &CudaView<'_, bf16>,
        weight: &CudaView<'_, bf16>,
        x: &CudaView<'_, f32>,
        norm: Norm<'_, '_>,
        inner: &CudaView<'_, f32>,
        d_x: &mut CudaViewMut<'_, f32>,
        copy: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        self.check("x", self.input, x.len())?;
        self.check("d_x", self.input, d_x.len())?;
        self.check("copy", self.input, copy.len())?;
        let parts = inner.len() / self.sequences.rows();
        self.check("inner", parts.max(1), inner.len())?;
        let stream = kernels.stream();
        let operands = GemmArguments {
            x: address(x, stream),
            x_next: address_mut(d_x, stream),
            copy: address_mut(copy, stream),
            inner: address(inner, stream),
            inner_parts: parts as i32,
            ..self.norm(kernels, norm, self.input)?
        };
        self.launch(kernels, true, dz, weight, Epilogue::NormBackward, operands)
    }
}

/// The gate between the two products of a gated feed-forward, for launches on cudarc's own buffers: a = act(z0) · z1.
///
/// z = \[z0, z1\] are pre-activations, \[rows, 2·F\] in bf16. Without dropout.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// The rows; how they are cut up does not matter.
    pub sequences: &'a Sequences,
    /// F, a multiple of 8.
    pub width: usize,
    /// Gelu (its tanh form) or silu.
    pub activation: Activation,
}

impl Gate<'_> {
    fn arguments(&self, kernels: &Kernels, z: &CudaView<'_, bf16>) -> Result<GateArguments> {
        check_width(self.width)?;
        if self.activation.projections() != 2 {
            let found = format!("{:?}", self.activation);
            return Err(Error::tensor("a gate", "a gated activation", found, "see Linear::project_relu"));
        }
        check_length("z", self.sequences.rows() * 2 * self.width, z.len())?;
        Ok(GateArguments {
            batch: self.sequences.address(kernels),
            z: address(z, kernels.stream()),
            a: 0,
            dz: 0,
            inner: 0,
            mask: MaskArgument::default(),
            side: side_number(Side::Decoder),
            width: self.width as i32,
            silu: i32::from(self.activation == Activation::GatedSilu),
            padding: 0,
        })
    }

    /// Launches the forward pass: `a` \[rows, F\] in bf16. Moves 4·F bytes a row in and 2·F out; an activation and a
    /// multiplication an element.
    ///
    /// # Errors
    /// A length, width or activation that does not fit, and what the driver says.
    pub fn forward(
        &self,
        kernels: &Kernels,
        z: &CudaView<'_, bf16>,
        a: &mut CudaViewMut<'_, bf16>,
    ) -> Result<()> {
        let rows = self.sequences.rows();
        check_length("a", rows * self.width, a.len())?;
        let arguments = GateArguments { a: address_mut(a, kernels.stream()), ..self.arguments(kernels, z)? };
        // SAFETY: every length was checked; rows beyond the last exit.
        unsafe { launch_rows(kernels, Kernel { file: FEED_FORWARD, name: "gate_bf16" }, rows, &arguments) }
    }

    /// Launches the backward pass: `dz` \[rows, 2·F\] in bf16 from `d_a` \[rows, F\] in bf16, and `inner` \[rows\], <dz, z> of
    /// each row, as [`Linear::backward_norm`] wants it. Moves 6·F bytes a row in and 4·F out.
    ///
    /// # Errors
    /// As [`Gate::forward`].
    pub fn backward(
        &self,
        kernels: &Kernels,
        z: &CudaView<'_, bf16>,
        d_a: &CudaView<'_, bf16>,
        dz: &mut CudaViewMut<'_, bf16>,
        inner: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let (rows, stream) = (self.sequences.rows(), kernels.stream());
        check_length("d_a", rows * self.width, d_a.len())?;
        check_length("dz", rows * 2 * self.width, dz.len())?;
        check_length("inner", rows, inner.len())?;
        let arguments = GateArguments {
            a: address(d_a, stream),
            dz: address_mut(dz, stream),
            inner: address_mut(inner, stream),
            ..self.arguments(kernels, z)?
        };
        let kernel = Kernel { file: FEED_FORWARD, name: "gate_backward_bf16" };
        // SAFETY: every length was checked; rows beyond the last exit.
        unsafe { launch_rows(kernels, kernel, rows, &arguments) }
    }
}

/// `inner` \[rows\] = <d_x, x_next - x> of each row of `width` numbers, all in f32: what [`Linear::backward_norm`] wants behind a
/// ReLU, which is positively homogeneous, so that this is <dz, z>. Moves 12 bytes a number.
///
/// # Errors
/// A length that does not fit, and what the driver says.
pub fn row_inner(
    kernels: &Kernels,
    sequences: &Sequences,
    width: usize,
    [d_x, x, x_next]: [&CudaView<'_, f32>; 3],
    inner: &mut CudaViewMut<'_, f32>,
) -> Result<()> {
    let (rows, stream) = (sequences.rows(), kernels.stream());
    check_width(width)?;
    for (what, of) in [("d_x", d_x), ("x", x), ("x_next", x_next)] {
        check_length(what, rows * width, of.len())?;
    }
    check_length("inner", rows, inner.len())?;
    let arguments = RowArguments {
        batch: sequences.address(kernels),
        d_x: address(d_x, stream),
        x: address(x, stream),
        x_next: address(x_next, stream),
        inner: address_mut(inner, stream),
        copy: 0,
        mask: MaskArgument::default(),
        side: side_number(Side::Decoder),
        width: width as i32,
    };
    // SAFETY: every length was checked; rows beyond the last exit.
    unsafe { launch_rows(kernels, Kernel { file: FEED_FORWARD, name: "row_inner" }, rows, &arguments) }
}
