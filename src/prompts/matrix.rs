//! What the readers of files hand on.

/// A matrix of numbers, row-major.
pub(super) struct Matrix {
    pub(super) values: Vec<f32>,
    pub(super) rows: usize,
    pub(super) columns: usize,
}
