//! Products with frozen weights: `kernels/gemm.cu`.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr};
use half::bf16;

use super::arguments::gemm::{Epilogue, GemmArguments};
use super::arguments::{scope_number, side_number};
use super::devices;
use super::embedding::check_width;
use super::failure::driver;
use super::gemm::Cut;
use super::kernels::Kernels;
use super::memory::{Buffer, address, address_mut, check_aligned, check_length};
use super::rows::{NORM_COLUMNS, Rows, WIDTH_MULTIPLE, Weight};
use super::sequences::Sequences;
use super::{Cuda, Precision};
use crate::backend::{Batch, Heads, Mask, Scope, Side};
use crate::error::{Error, Result};

/// A product's operands and what follows it.
pub(super) struct Product<'a> {
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

impl Cuda {
    pub(super) fn product(&self, product: &Product<'_>, mut arguments: GemmArguments) -> Result<()> {
        let Product { batch, side, scope, n, k, .. } = *product;
        let m = match scope {
            Scope::All => batch.rows(side),
            Scope::Prompt => batch.examples() * batch.prompt_length(),
        };
        if product.epilogue != Epilogue::Float && n % WIDTH_MULTIPLE != 0 {
            return Err(Error::tensor("a product", "a multiple of 8 columns", n.to_string(), ""));
        }
        let cut = Cut::new(self.precision, &self.info, m, n, k);
        let workspace: Buffer<f32> = self.allocate(cut.workspace());
        arguments.batch = self.describe(batch)?.address(self)?;
        arguments.a = product.a;
        arguments.weight = product.weight;
        arguments.workspace = self.address_of(&workspace)?;
        if cut.counters() > 0 {
            arguments.counters = self.counters(cut.counters())?;
        }
        arguments.side = side_number(side);
        arguments.scope = scope_number(scope);
        arguments.n = n as i32;
        arguments.k = k as i32;
        arguments.a_stride = product.stride as i32;
        self.count(2 * (m * n * k) as u64);
        // SAFETY: the callers checked the shapes of every operand against m, n and k.
        unsafe { cut.launch(self.kernels(), product.backward, product.epilogue, arguments) }
    }

    /// Where `tiles` counters of zero lie, which every kernel that counts leaves at zero. Products take turns at them, so that two
    /// that run at the same time never share one.
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
        let next = self.next_counter.get();
        let first = if next + tiles <= counters.len() { next } else { 0 };
        self.next_counter.set(first + tiles);
        let all = address_mut(&mut counters.view_mut()?, self.kernels().stream());
        Ok(all + (first * size_of::<i32>()) as u64)
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
        x.check("x", rows, weight.input)?;
        r.check("r", rows, weight.input)?;
        z.check("z", rows, weight.out)?;
        let arguments = GemmArguments {
            out: z.operand_address(self)?,
            partials: r.float_address(self)?,
            epsilon: r.epsilon,
            ..GemmArguments::default()
        };
        self.product(&self.forward(batch, side, x, weight, Epilogue::Project)?, arguments)
    }

    /// A forward product of rows with a weight.
    pub(super) fn forward<'a>(
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
    pub(super) fn backward<'a>(
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
        a.check("a", rows, weight.input)?;
        out.check("out", rows, weight.out)?;
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
        below: Option<&Rows>,
        d_x: &mut Rows,
    ) -> Result<()> {
        let inner = dz
            .inner
            .as_ref()
            .ok_or_else(|| Error::tensor("dz", "the inner products that the op before writes", "none", ""))?;
        let (address, parts) = (self.address_of(inner)?, dz.inner_parts());
        let dz = dz.operand_address(self)?;
        self.norm_backward(batch, side, scope, dz, (address, parts), weight, x, r, below, d_x)
    }

    /// The dX product whose epilogue finishes the norm's backward; `inner` is where \[rows, parts\] partials lie.
    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn norm_backward(
        &self,
        batch: &Batch,
        side: Side,
        scope: Scope,
        dz: u64,
        inner: (u64, usize),
        weight: &Weight,
        x: &Rows,
        r: &Rows,
        below: Option<&Rows>,
        d_x: &mut Rows,
    ) -> Result<()> {
        let rows = batch.rows(side);
        x.check("x", rows, weight.input)?;
        r.check("r", rows, weight.input)?;
        d_x.check("d_x", rows, weight.input)?;
        let parts = weight.input.div_ceil(NORM_COLUMNS);
        let (below, inner_next) = self.inner_of(below, rows, weight.input, parts, d_x)?;
        let y = if below == 0 { x.copy_address(self)? } else { 0 };
        let arguments = GemmArguments {
            below,
            y,
            inner_next,
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

    /// Where `below` lies, and the partial inner products that `d_x` gets of each row; neither without `below`.
    pub(super) fn inner_of(
        &self,
        below: Option<&Rows>,
        rows: usize,
        width: usize,
        parts: usize,
        d_x: &mut Rows,
    ) -> Result<(u64, u64)> {
        d_x.inner = None;
        let Some(below) = below else { return Ok((0, 0)) };
        below.check("below", rows, width)?;
        let inner = d_x.inner.insert(self.allocate(rows * parts));
        Ok((below.float_address(self)?, self.address_of(inner)?))
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
        y.check("y", rows, weight.input)?;
        for (what, residual) in [("x", x), ("x_next", x_next), ("r_next", r_next)] {
            residual.check(what, rows, weight.out)?;
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

    #[allow(clippy::too_many_arguments)] // an op's operands are its signature
    pub(super) fn launch_add_project_backward(
        &self,
        batch: &Batch,
        side: Side,
        d_x: &Rows,
        weight: &Weight,
        mask: Mask<'_>,
        y: Option<(&Rows, Heads)>,
        d_y: &mut Rows,
    ) -> Result<()> {
        let rows = batch.rows(side);
        d_x.check("d_x", rows, weight.out)?;
        d_y.check("d_y", rows, weight.input)?;
        let mut masked = None;
        let a = self.masked_gradient(batch, side, d_x, mask, &mut masked)?;
        let mut arguments = GemmArguments { out: d_y.operand_address(self)?, ..GemmArguments::default() };
        let mut epilogue = Epilogue::Plain;
        d_y.inner = None;
        if let Some((y, heads)) = y.filter(|(_, heads)| self.wants_delta(batch, side, *heads)) {
            y.check("y", rows, weight.input)?;
            let delta = d_y.inner.insert(self.allocate(rows * heads.count));
            (arguments.y, arguments.inner_next) = (y.operand_address(self)?, self.address_of(delta)?);
            epilogue = Epilogue::Delta;
        }
        self.product(&self.backward(batch, side, Scope::All, a, weight, epilogue)?, arguments)
    }

    pub(super) fn launch_logits(
        &self,
        batch: &Batch,
        hidden: &Rows,
        head: &Weight,
        logits: &mut Rows,
    ) -> Result<()> {
        hidden.check("hidden", batch.rows(Side::Decoder), head.input)?;
        logits.check("logits", hidden.rows, head.out)?;
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
        a.check("a", batch.rows(side), weight.out)?;
        d_h.check("d_h", a.rows, weight.input)?;
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
/// once for every 64, 80 or 128 rows, and what its epilogue reads and writes once. A thin product is cut along its depth; the parts
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
        let (device, rows) = (devices::info(kernels.context())?, sequences.rows());
        let cut = |n, k| Cut::new(Precision::Bf16, &device, rows, n, k);
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
            ..epilogue_operands
        };
        check_aligned(&[
            ("the rows that are multiplied", arguments.a),
            ("weight", arguments.weight),
            ("the result", arguments.out),
            ("x", arguments.x),
            ("x_next or d_x", arguments.x_next),
            ("copy", arguments.copy),
        ])?;
        // SAFETY: all lengths and alignments were checked, workspace and counters were made for either cut, and counters are left at zero.
        unsafe { self.cuts[usize::from(backward)].launch(kernels, backward, epilogue, arguments) }
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
