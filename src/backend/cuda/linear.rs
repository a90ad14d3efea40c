//! Products with frozen weights: `kernels/gemm.cu`, and what a feed-forward has around them: `kernels/feed_forward.cu`.

use super::dropout::MaskArgument;
use super::embedding::{ROWS_OF_BLOCK, side_number};
use super::kernels::{Arguments, Kernel};
use super::memory::Buffer;
use super::rows::{Operand, Rows, WIDTH_MULTIPLE, Weight};
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
struct Tile {
    forward: &'static str,
    backward: &'static str,
    size: usize,
    threads: u32,
    shared: u32,
}

const LARGE: Tile = Tile {
    forward: "gemm_forward_large",
    backward: "gemm_backward_large",
    size: 128,
    threads: 128,
    // The tile of f32 that the epilogue reads; the four stages of the main loop need a little less.
    shared: 128 * 136 * 4,
};
const SMALL: Tile = Tile {
    forward: "gemm_forward_small",
    backward: "gemm_backward_small",
    size: 64,
    threads: 128,
    shared: 4 * (64 + 64) * 32 * 2,
};
const PLAIN_F32: Tile =
    Tile { forward: "gemm_forward_f32", backward: "gemm_backward_f32", size: 64, threads: 256, shared: 0 };

/// The least depth of a part of k: four stages of 32 twice over.
const LEAST_PART: usize = 256;
/// The most parts of k: each costs a tile of f32 written and read.
const MOST_PARTS: usize = 8;

/// How a product is cut up: its tile, and into how many parts of k.
fn plan(precision: Precision, multiprocessors: usize, m: usize, n: usize, k: usize) -> (Tile, usize) {
    if precision == Precision::F32 {
        return (PLAIN_F32, 1);
    }
    let tiles = |tile: &Tile| m.div_ceil(tile.size) * n.div_ceil(tile.size);
    // A large tile does twice the work a byte of shared memory, once there are enough of them to go round.
    if 3 * tiles(&LARGE) >= 2 * multiprocessors {
        return (LARGE, 1);
    }
    let parts = (multiprocessors / tiles(&SMALL).max(1)).min(k / LEAST_PART).clamp(1, MOST_PARTS);
    (SMALL, parts)
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
        let (tile, parts) = plan(self.precision, self.info.multiprocessors, m, n, k);
        let grid = [n.div_ceil(tile.size) as u32, m.div_ceil(tile.size) as u32, parts as u32];
        let tiles = (grid[0] * grid[1]) as usize;
        let workspace: Buffer<f32> =
            self.allocate(if parts > 1 { tiles * parts * tile.size * tile.size } else { 0 });
        arguments.batch = self.describe(batch)?.address(self)?;
        arguments.a = product.a;
        arguments.weight = product.weight;
        arguments.workspace = self.address_of(&workspace)?;
        if parts > 1 {
            arguments.counters = self.counters(tiles)?;
        }
        arguments.side = side_number(side);
        arguments.scope = i32::from(scope == Scope::Prompt);
        arguments.n = n as i32;
        arguments.k = k as i32;
        arguments.a_stride = product.stride as i32;
        arguments.epilogue = product.epilogue as i32;
        let name = if product.backward { tile.backward } else { tile.forward };
        self.count(2 * (m * n * k) as u64);
        // SAFETY: the callers checked the shapes of every operand against m, n and k; rows beyond the batch's exit.
        unsafe {
            self.kernels().launch(Kernel { file: "gemm", name }, grid, tile.threads, tile.shared, &arguments)
        }
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
        Ok(super::memory::address_mut(&mut counters.view_mut()?, self.kernels().stream()))
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
        let grid = [rows.div_ceil(ROWS_OF_BLOCK) as u32, 1, 1];
        // SAFETY: the callers checked the shapes of every operand; rows beyond the batch's exit.
        unsafe { self.kernels().launch(Kernel { file: "feed_forward", name }, grid, 128, 0, arguments) }
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
