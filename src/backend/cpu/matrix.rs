//! Strided views of matrices and the one call into the GEMM crate.

use super::element::Element;

/// A read-only matrix; element (i, j) lies at `i·row_stride + j·column_stride`.
#[derive(Clone, Copy)]
pub struct View<'a, E> {
    data: &'a [E],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, E> View<'a, E> {
    /// `rows` × `columns` at the front of `data`, rows `stride` apart.
    pub fn new(data: &'a [E], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(in_bounds(data.len(), rows, columns, stride), "matrix view out of bounds");
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The transpose, without moving a number.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The first `rows` rows.
    pub fn first_rows(self, rows: usize) -> Self {
        assert!(rows <= self.rows, "matrix view out of bounds");
        Self { rows, ..self }
    }
}

/// A matrix to write, row-major.
pub struct ViewMut<'a, E> {
    data: &'a mut [E],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a, E> ViewMut<'a, E> {
    /// `rows` × `columns` at the front of `data`, rows `stride` apart.
    pub fn new(data: &'a mut [E], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(in_bounds(data.len(), rows, columns, stride), "matrix view out of bounds");
        Self { data, rows, columns, stride }
    }
}

fn in_bounds(length: usize, rows: usize, columns: usize, stride: usize) -> bool {
    rows == 0 || columns == 0 || (stride >= columns && (rows - 1) * stride + columns <= length)
}

/// The transpose of a row-major `rows` × `columns` matrix, written tile by tile so that both sides stay cached.
pub fn transpose<E: Element>(values: &[E], rows: usize, columns: usize) -> Vec<E> {
    const TILE: usize = 32;
    let mut transposed = vec![E::zero(); values.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_column in (0..columns).step_by(TILE) {
            for row in first_row..(first_row + TILE).min(rows) {
                for column in first_column..(first_column + TILE).min(columns) {
                    transposed[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    transposed
}

/// destination = lhs·rhs, or += when `accumulate`, on `threads` threads of the current pool. Returns the operations, a
/// multiply-add being two.
pub fn multiply<E: Element>(
    destination: ViewMut<'_, E>,
    accumulate: bool,
    lhs: View<'_, E>,
    rhs: View<'_, E>,
    threads: usize,
) -> u64 {
    assert_eq!((destination.rows, destination.columns), (lhs.rows, rhs.columns), "product shape");
    assert_eq!(lhs.columns, rhs.rows, "inner length");
    let (m, n, k) = (lhs.rows, rhs.columns, lhs.columns);
    if m == 0 || n == 0 {
        return 0;
    }
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: each view's constructor checked that its last element lies in its slice, the destination is borrowed
    // uniquely and so cannot overlap the operands, and the shapes agree by the assertions above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            destination.data.as_mut_ptr(),
            1,
            destination.stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            E::one(),
            E::one(),
            false,
            false,
            false,
            parallelism,
        );
    }
    2 * m as u64 * n as u64 * k as u64
}
