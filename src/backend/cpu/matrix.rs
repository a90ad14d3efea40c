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

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
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

/// The transpose of a row-major `rows` × `columns` matrix.
pub fn transpose<E: Element>(values: &[E], rows: usize, columns: usize) -> Vec<E> {
    let mut transposed = vec![E::zero(); values.len()];
    let destination = ViewMut::new(&mut transposed, columns, rows, rows);
    transpose_into(View::new(values, rows, columns, columns), destination);
    transposed
}

/// Writes the transpose of a row-major `source` to `destination`, tile by tile so that both sides stay cached; what lies
/// between the destination's rows is left alone.
#[inline(always)]
pub fn transpose_into<E: Element>(source: View<'_, E>, destination: ViewMut<'_, E>) {
    const TILE: usize = 16;
    assert!(source.column_stride == 1, "a row-major source");
    assert_eq!((destination.rows, destination.columns), (source.columns, source.rows), "transpose shape");
    let (destination, stride) = (destination.data, destination.stride);
    let at = |row: usize, column: usize| &source.data[row * source.row_stride + column..];
    for first_row in (0..source.rows).step_by(TILE) {
        let height = TILE.min(source.rows - first_row);
        for first_column in (0..source.columns).step_by(TILE) {
            let width = TILE.min(source.columns - first_column);
            let mut tile = [[E::zero(); TILE]; TILE];
            if (height, width) == (TILE, TILE) {
                // Of fixed size, so that it is moved in vectors.
                for (row, tile) in tile.iter_mut().enumerate() {
                    tile.copy_from_slice(&at(first_row + row, first_column)[..TILE]);
                }
                for column in 0..TILE {
                    let out = &mut destination[(first_column + column) * stride + first_row..][..TILE];
                    for row in 0..TILE {
                        out[row] = tile[row][column];
                    }
                }
            } else {
                for row in 0..height {
                    for column in 0..width {
                        destination[(first_column + column) * stride + first_row + row] =
                            at(first_row + row, first_column)[column];
                    }
                }
            }
        }
    }
}

/// Has the GEMM crate pack the weight of a product of few rows too when several threads share it, as it does on one thread:
/// read in place, a row's columns lie pages apart. The setting is the crate's, and so the whole process's; it changes no sum.
pub fn pack_for_few_rows() {
    gemm::set_lhs_packing_threshold_multi_thread(gemm::DEFAULT_LHS_PACKING_THRESHOLD_SINGLE_THREAD);
}

/// Terms that the GEMM crate sums at a time. It cuts a longer sum by the product's size; cut here, a sum's order does not
/// depend on how many rows or columns there are. Only where `rhs` is given as the transpose of its rows and the result has at most
/// 256 numbers, as of the scorer's bottleneck for one or two examples, has the crate a kernel that sums in another order.
const DEPTH: usize = 512;

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
    for start in (0..k.max(1)).step_by(DEPTH) {
        let accumulate = accumulate || start > 0;
        // SAFETY: each view's constructor checked that its last element lies in its slice, `start` is below the inner length
        // if there is one, the destination is borrowed uniquely and so cannot overlap the operands, and the shapes agree by
        // the assertions above.
        unsafe {
            gemm::gemm(
                m,
                n,
                DEPTH.min(k - start),
                destination.data.as_mut_ptr(),
                1,
                destination.stride as isize,
                accumulate,
                lhs.data.as_ptr().add(start * lhs.column_stride),
                lhs.column_stride as isize,
                lhs.row_stride as isize,
                rhs.data.as_ptr().add(start * rhs.row_stride),
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
    }
    2 * m as u64 * n as u64 * k as u64
}
