//! Products with frozen weights.

use super::{Buffer, Cuda, Precision, Rows, Weight, write};
use crate::backend::cuda::ops::cut::Cut;
use crate::backend::cuda::ops::feed_forward::EachRow;
use crate::backend::cuda::ops::linear::{Epilogue, Norm, NormBackward, Product, Workspace};
use crate::backend::cuda::ops::packing::{PackedRows, Words};
use crate::backend::cuda::ops::{NORM_COLUMNS, attention};
use crate::backend::cuda::runtime::operands::ReadOperand;
use crate::backend::{
    Batch, Heads, LinearOps, Mask, Matrix, Projection, ProjectionBackward, Residual, ResidualProjection,
    ResidualProjectionBackward, Side,
};
use crate::error::{Error, Result};

/// What the backward pass of a norm needs beside the product.
pub(super) struct Gradient<'a> {
    /// \[rows, n\] of the sublayer's input, and its norm.
    pub(super) input: &'a Residual<Cuda>,
    /// Partial inner products <dz, z>.
    pub(super) inner: &'a Buffer<f32>,
    /// What the feed-forward below began with, where it wants inner products.
    pub(super) below: Option<&'a Rows>,
}

impl Cuda {
    /// Rows times a weight's transpose.
    pub(super) fn product(
        &self,
        rows: PackedRows<'_>,
        a: &dyn ReadOperand,
        weight: &Weight,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        self.launch_product(rows, a, weight, false, epilogue)
    }

    /// Rows times a weight.
    pub(super) fn product_backward(
        &self,
        rows: PackedRows<'_>,
        a: &dyn ReadOperand,
        weight: &Weight,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        self.launch_product(rows, a, weight, true, epilogue)
    }

    fn launch_product(
        &self,
        rows: PackedRows<'_>,
        a: &dyn ReadOperand,
        weight: &Weight,
        backward: bool,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        let product = Product { rows, a, weight: weight.operand(), shape: weight.shape(), backward };
        let ([n, k], cut) = (product.sizes(), self.cut(&product));
        let mut parts: Buffer<f32> = self.allocate(cut.workspace())?;
        let counters = self.counters(cut.counters())?;
        self.count(2 * rows.real() * n * k);
        product.launch(self.kernels(), &cut, Workspace { parts: write(&mut parts), counters }, epilogue)
    }

    /// How a product is cut.
    pub(super) fn cut(&self, product: &Product<'_>) -> Cut {
        let [n, k] = product.sizes();
        Cut::new(self.precision(), self.info(), &self.tiles, product.backward, [product.rows.count(), n, k])
    }

    /// `tiles` counters of zero, which every kernel that counts leaves at zero. Products take turns at them, so that two
    /// that run at the same time never share one.
    fn counters(&self, tiles: usize) -> Result<Option<Words<'static>>> {
        if tiles == 0 {
            return Ok(None);
        }
        let most = self.counters.len();
        if most < tiles {
            let expected = format!("at most {most}");
            return Err(Error::tensor("the tiles of a thin product", expected, tiles.to_string(), ""));
        }
        let next = self.next_counter.get();
        let first = if next + tiles <= most { next } else { 0 };
        self.next_counter.set(first + tiles);
        Ok(Some(Words::Saved(self.counters.address() + (first * size_of::<i32>()) as u64)))
    }

    /// The norm of rows, as a product applies it.
    pub(super) fn norm<'a>(&self, r: &'a Rows) -> Result<Norm<'a>> {
        Ok(Norm { partials: r.float()?, epsilon: r.epsilon })
    }

    /// What a dX product reads of d_x: its operand copy, or with dropout a masked one, which then lies in `masked`.
    pub(super) fn masked_gradient<'a>(
        &self,
        rows: PackedRows<'_>,
        d_x: &'a Rows,
        mask: Mask<'_>,
        masked: &'a mut Option<super::Operand>,
    ) -> Result<&'a dyn ReadOperand> {
        if mask.is_none() {
            return d_x.operand();
        }
        let copy = masked.insert(self.operand(rows.count() * d_x.width)?);
        let each = EachRow { rows, width: d_x.width };
        each.masked_copy(self.kernels(), self.mask(mask)?, d_x.float()?, copy.as_write())?;
        Ok(copy.as_read())
    }

    /// The dX product whose epilogue finishes the norm's backward.
    pub(super) fn norm_backward(
        &self,
        rows: PackedRows<'_>,
        dz: &dyn ReadOperand,
        weight: &Weight,
        of: &Gradient<'_>,
        d_x: &mut Rows,
    ) -> Result<()> {
        let parts = weight.shape()[1].div_ceil(NORM_COLUMNS);
        let mut inner_next = match of.below {
            Some(_) => Some(self.allocate(rows.all() * parts)?),
            None => None,
        };
        d_x.inner = None;
        let (float, copy) = d_x.residual_mut()?;
        let epilogue = Epilogue::NormBackward(NormBackward {
            x: of.input.x.operand()?,
            norm: self.norm(&of.input.r)?,
            inner: of.inner,
            d_x: float,
            copy,
            inner_next: match (of.below, &mut inner_next) {
                (Some(below), Some(inner)) => Some((below.operand()?, write(inner))),
                _ => None,
            },
        });
        self.product_backward(rows, dz, weight, epilogue)?;
        d_x.inner = inner_next;
        Ok(())
    }

    /// Whether the backward pass of a self attention reads <d_o, o> of each head that the product before it can find: columns of a
    /// head are those of a partial sum, and tiles of rows are what it works on.
    fn wants_delta(&self, batch: &Batch, side: Side, heads: Heads) -> bool {
        let short = side == Side::Decoder && batch.longest_target() <= attention::MAX_SHORT_ROWS;
        self.precision() == Precision::Bf16 && heads.width == NORM_COLUMNS && !short
    }
}

impl LinearOps for Cuda {
    fn project(&self, of: Projection<'_, Self>, z: &mut Rows) -> Result<()> {
        of.check(z)?;
        let rows = self.described(of.batch)?.rows(of.side);
        let epilogue = Epilogue::Project { norm: self.norm(&of.input.r)?, z: z.operand_mut()? };
        self.product(rows, of.input.x.operand()?, of.weight, epilogue)
    }

    fn project_backward(&self, of: ProjectionBackward<'_, Self>, d_x: &mut Rows) -> Result<()> {
        of.check(d_x)?;
        let missing = || Error::tensor("dz", "the inner products that the op before writes", "none", "");
        let inner = of.dz.inner.as_ref().ok_or_else(missing)?;
        let rows = self.described(of.batch)?.scoped(of.side, of.scope);
        let gradient = Gradient { input: of.input, inner, below: of.below };
        self.norm_backward(rows, of.dz.operand()?, of.weight, &gradient, d_x)
    }

    fn add_project(&self, of: ResidualProjection<'_, Self>, next: &mut Residual<Self>) -> Result<()> {
        of.check(next)?;
        let rows = self.described(of.batch)?.rows(of.side);
        next.r.epsilon = of.epsilon as f32;
        let (x_next, copy) = next.x.residual_mut()?;
        let epilogue = Epilogue::Add {
            mask: self.mask(of.mask)?,
            x: of.x.float()?,
            x_next,
            copy,
            partials_next: next.r.float_mut()?,
        };
        self.product(rows, of.y.operand()?, of.weight, epilogue)
    }

    fn add_project_backward(&self, of: ResidualProjectionBackward<'_, Self>, d_y: &mut Rows) -> Result<()> {
        of.check(d_y)?;
        let rows = self.described(of.batch)?.rows(of.side);
        let mut masked = None;
        let a = self.masked_gradient(rows, of.d_x, of.mask, &mut masked)?;
        d_y.inner = None;
        let wanted = of.y.filter(|(_, heads)| self.wants_delta(of.batch, of.side, *heads));
        let Some((y, heads)) = wanted else {
            return self.product_backward(rows, a, of.weight, Epilogue::Plain { z: d_y.operand_mut()? });
        };
        let mut delta = self.allocate(rows.count() * heads.count)?;
        let epilogue = Epilogue::Delta { y: y.operand()?, z: d_y.operand_mut()?, inner: write(&mut delta) };
        self.product_backward(rows, a, of.weight, epilogue)?;
        d_y.inner = Some(delta);
        Ok(())
    }
}
