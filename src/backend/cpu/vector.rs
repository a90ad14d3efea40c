//! Loops over one row. All are `inline(always)` so that a caller inside [`vectorised`] gets them compiled for
//! this machine's vector width. Sums run over sixteen lanes: a fixed order, whatever the width.

use super::element::Element;

/// Runs an expression compiled for this machine's vector instructions. The closure must be inlined into the function
/// that carries them, or it is compiled for the oldest machine there is; `dispatch_once` sees to it that it is called
/// as it was written, and not through a shim that may stay outside.
macro_rules! vectorised {
    ($cpu:expr, $work:expr) => {
        $crate::backend::cpu::vector::dispatch_once(
            $cpu.arch,
            #[inline(always)]
            || $work,
        )
    };
}
pub(super) use vectorised;

/// Calls `work` with the instructions of `arch`. The bound is what matters: a closure that meets `FnOnce` first is compiled
/// as one, while one that could be called many times is called once through a shim, which the compiler may not inline.
#[inline(always)]
pub(super) fn dispatch_once<R>(arch: pulp::Arch, work: impl FnOnce() -> R) -> R {
    arch.dispatch(work)
}

/// Numbers that a sum takes side by side: the widest vector of f32.
pub const LANES: usize = 16;

/// The whole vectors at the front of a row.
#[inline(always)]
pub fn vectors<E>(row: &[E]) -> &[[E; LANES]] {
    row.as_chunks().0
}

/// As [`vectors`], to write.
#[inline(always)]
pub fn vectors_mut<E>(row: &mut [E]) -> &mut [[E; LANES]] {
    row.as_chunks_mut().0
}

/// All lanes in one number, by halves.
#[inline(always)]
fn reduce<E: Element>(mut lanes: [E; LANES], f: impl Fn(E, E) -> E) -> E {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = f(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The larger of two numbers.
#[inline(always)]
fn larger<E: Element>(a: E, b: E) -> E {
    if b > a { b } else { a }
}

/// sum_i f(a_i, b_i).
#[inline(always)]
fn fold<E: Element>(a: &[E], b: &[E], f: impl Fn(E, E) -> E) -> E {
    let mut lanes = [E::zero(); LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] = lanes[lane] + f(a[lane], b[lane]);
        }
    }
    for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[lane] = lanes[lane] + f(a, b);
    }
    reduce(lanes, |a, b| a + b)
}

/// <a, b>.
#[inline(always)]
pub fn dot<E: Element>(a: &[E], b: &[E]) -> E {
    fold(a, b, |a, b| a * b)
}

/// y += alpha·x.
#[inline(always)]
pub fn add_scaled<E: Element>(y: &mut [E], alpha: E, x: &[E]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = *y + alpha * x;
    }
}

/// y = alpha·y.
#[inline(always)]
pub fn scale<E: Element>(y: &mut [E], alpha: E) {
    for y in y.iter_mut() {
        *y = *y * alpha;
    }
}

/// y = x·y, element by element.
#[inline(always)]
pub fn multiply<E: Element>(y: &mut [E], x: &[E]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = *y * x;
    }
}

/// y = max(y, x), element by element.
#[inline(always)]
pub fn maximum_into<E: Element>(y: &mut [E], x: &[E]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = if x > *y { x } else { *y };
    }
}

/// As [`maximum_into`], but NaN once either is.
#[inline(always)]
pub fn maximum_or_nan_into<E: Element>(y: &mut [E], x: &[E]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = if *y >= x || y.is_nan() { *y } else { x };
    }
}

/// The largest value; a NaN is passed over.
#[inline(always)]
pub fn maximum<E: Element>(row: &[E]) -> E {
    let mut lanes = [E::neg_infinity(); LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        maximum_into(&mut lanes, chunk);
    }
    maximum_into(&mut lanes, rest);
    reduce(lanes, larger)
}

/// row += addend; returns the largest value, a NaN passed over.
#[inline(always)]
pub fn add_and_maximum<E: Element>(row: &mut [[E; LANES]], addend: &[[E; LANES]]) -> E {
    let mut lanes = [E::neg_infinity(); LANES];
    for (row, addend) in row.iter_mut().zip(addend) {
        // Summed apart from `row`: the compiler cannot tell here that the two do not overlap.
        let sums: [E; LANES] = std::array::from_fn(|lane| row[lane] + addend[lane]);
        maximum_into(&mut lanes, &sums);
        *row = sums;
    }
    reduce(lanes, larger)
}

/// row = e^(row - shift); returns the sum.
#[inline(always)]
pub fn exponentials<E: Element>(row: &mut [E], shift: E) -> E {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut lanes = exponentials_by_lane(chunks, shift);
    for (lane, value) in rest.iter_mut().enumerate() {
        *value = (*value - shift).exponential();
        lanes[lane] = lanes[lane] + *value;
    }
    reduce(lanes, |a, b| a + b)
}

/// As [`exponentials`], of whole vectors: a rest would keep the sums in memory instead of in a register.
#[inline(always)]
pub fn exponentials_of_vectors<E: Element>(row: &mut [[E; LANES]], shift: E) -> E {
    reduce(exponentials_by_lane(row, shift), |a, b| a + b)
}

#[inline(always)]
fn exponentials_by_lane<E: Element>(row: &mut [[E; LANES]], shift: E) -> [E; LANES] {
    let mut lanes = [E::zero(); LANES];
    for row in row {
        for lane in 0..LANES {
            row[lane] = (row[lane] - shift).exponential();
            lanes[lane] = lanes[lane] + row[lane];
        }
    }
    lanes
}

/// 1 / sqrt(mean(x²) + epsilon).
#[inline(always)]
pub fn reciprocal_rms<E: Element>(x: &[E], epsilon: E) -> E {
    let mean = dot(x, x) / E::from_f64(x.len() as f64);
    E::one() / (mean + epsilon).sqrt()
}
