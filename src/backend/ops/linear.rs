//! Products of rows with frozen weights.

use super::{Device, Heads, Mask, Matrix, Residual, check_mask, scoped_rows};
use crate::backend::{Batch, Scope, Side};
use crate::error::Result;

/// z = r · x W^T: a projection of normalised rows, the norm's weight being folded into W.
pub struct Projection<'a, D: Device> {
    /// Whose rows.
    pub batch: &'a Batch,
    /// Which of its rows.
    pub side: Side,
    /// x and r, \[rows, in\].
    pub input: &'a Residual<D>,
    /// W \[out, in\].
    pub weight: &'a D::Weight,
}

/// d_x += r·G - r²·(<G, x·r> / D)·x with G = dz W, on the rows of `scope`.
pub struct ProjectionBackward<'a, D: Device> {
    /// Whose rows.
    pub batch: &'a Batch,
    /// Which of its rows.
    pub side: Side,
    /// Which of these: under [`Scope::Prompt`] `dz` holds B·M rows; `input` and d_x always hold all.
    pub scope: Scope,
    /// \[rows of the scope, out\], as the op before wrote it: with <dz, z> of each row.
    pub dz: &'a D::Rows,
    /// W \[out, in\].
    pub weight: &'a D::Weight,
    /// What forward read.
    pub input: &'a Residual<D>,
    /// What a ReLU feed-forward began with that made x, if its backward comes next: a device may then find <d_x, x - below>
    /// of each row on the way.
    pub below: Option<&'a D::Rows>,
}

/// x_next = x + mask(y W^T): the end of a sublayer.
pub struct ResidualProjection<'a, D: Device> {
    /// Whose rows.
    pub batch: &'a Batch,
    /// Which of its rows.
    pub side: Side,
    /// \[rows, in\].
    pub y: &'a D::Rows,
    /// W \[out, in\].
    pub weight: &'a D::Weight,
    /// Dropout of the product.
    pub mask: Mask<'a>,
    /// Epsilon of the norm of x_next.
    pub epsilon: f64,
    /// x \[rows, out\].
    pub x: &'a D::Rows,
}

/// d_y = mask(d_x) W.
pub struct ResidualProjectionBackward<'a, D: Device> {
    /// Whose rows.
    pub batch: &'a Batch,
    /// Which of its rows.
    pub side: Side,
    /// \[rows, out\].
    pub d_x: &'a D::Rows,
    /// W \[out, in\].
    pub weight: &'a D::Weight,
    /// Dropout of the product.
    pub mask: Mask<'a>,
    /// What these heads of a self attention gave, if its backward comes next: a device may then find <d_y, y> of each head on
    /// the way.
    pub y: Option<(&'a D::Rows, Heads)>,
}

impl<D: Device> Projection<'_, D> {
    pub(crate) fn check(&self, z: &D::Rows) -> Result<()> {
        let (rows, [out, input]) = (self.batch.rows(self.side), self.weight.shape());
        self.input.check("x", rows, input)?;
        z.check("z", rows, out)
    }
}

impl<D: Device> ProjectionBackward<'_, D> {
    pub(crate) fn check(&self, d_x: &D::Rows) -> Result<()> {
        let (rows, [out, input]) = (self.batch.rows(self.side), self.weight.shape());
        self.dz.check("dz", scoped_rows(self.batch, self.side, self.scope)?, out)?;
        self.input.check("x", rows, input)?;
        self.below.map_or(Ok(()), |below| below.check("below", rows, input))?;
        d_x.check("d_x", rows, input)
    }
}

impl<D: Device> ResidualProjection<'_, D> {
    pub(crate) fn check(&self, next: &Residual<D>) -> Result<()> {
        check_mask(self.mask, self.batch)?;
        let (rows, [out, input]) = (self.batch.rows(self.side), self.weight.shape());
        self.y.check("y", rows, input)?;
        self.x.check("x", rows, out)?;
        next.check("x_next", rows, out)
    }
}

impl<D: Device> ResidualProjectionBackward<'_, D> {
    pub(crate) fn check(&self, d_y: &D::Rows) -> Result<()> {
        check_mask(self.mask, self.batch)?;
        let (rows, [out, input]) = (self.batch.rows(self.side), self.weight.shape());
        self.d_x.check("d_x", rows, out)?;
        self.y.map_or(Ok(()), |(y, _)| y.check("y", rows, input))?;
        d_y.check("d_y", rows, input)
    }
}

/// Products of rows with a weight that is stored once, as `[out, in]`, and read both ways. No weight has a gradient.
pub trait LinearOps: Device {
    /// Writes z \[rows, out\].
    ///
    /// # Errors
    /// A shape that does not fit, and what the driver says.
    fn project(&self, of: Projection<'_, Self>, z: &mut Self::Rows) -> Result<()>;
    /// Adds to d_x \[rows, in\].
    ///
    /// # Errors
    /// As [`LinearOps::project`].
    fn project_backward(&self, of: ProjectionBackward<'_, Self>, d_x: &mut Self::Rows) -> Result<()>;
    /// Writes x_next \[rows, out\] and its norm.
    ///
    /// # Errors
    /// As [`LinearOps::project`].
    fn add_project(&self, of: ResidualProjection<'_, Self>, next: &mut Residual<Self>) -> Result<()>;
    /// Writes d_y \[rows, in\].
    ///
    /// # Errors
    /// As [`LinearOps::project`].
    fn add_project_backward(
        &self,
        of: ResidualProjectionBackward<'_, Self>,
        d_y: &mut Self::Rows,
    ) -> Result<()>;
}
