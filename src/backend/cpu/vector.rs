//! Loops over one row. All are `inline(always)` so that a caller inside [`vectorised`] gets them compiled for
//! this machine's vector width. Sums run over sixteen lanes: a fixed order, whatever the width.

use super::element::Element;

/// Runs an expression compiled for this machine's vector instructions. The closure must be inlined into the function
/// that carries them, or it is compiled for the oldest machine there is.
macro_rules! vectorised {
    ($cpu:expr, $work:expr) => {
        $cpu.arch.dispatch(
            #[inline(always)]
            || $work,
        )
    };
}
pub(super) use vectorised;

const LANES: usize = 16;

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
    lanes.iter().fold(E::zero(), |sum, &lane| sum + lane)
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
    lanes.iter().fold(E::neg_infinity(), |most, &lane| if lane > most { lane } else { most })
}

/// row += the front of `addend`; returns the largest value, a NaN passed over.
#[inline(always)]
pub fn add_and_maximum<E: Element>(row: &mut [E], addend: &[E]) -> E {
    let addend = &addend[..row.len()];
    let mut lanes = [E::neg_infinity(); LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let (addends, addend_rest) = addend.as_chunks::<LANES>();
    for (chunk, addend) in chunks.iter_mut().zip(addends) {
        add_scaled(chunk, E::one(), addend);
        maximum_into(&mut lanes, chunk);
    }
    add_scaled(rest, E::one(), addend_rest);
    maximum_into(&mut lanes, rest);
    lanes.iter().fold(E::neg_infinity(), |most, &lane| if lane > most { lane } else { most })
}

/// row = e^(row - shift); returns the sum.
#[inline(always)]
pub fn exponentials<E: Element>(row: &mut [E], shift: E) -> E {
    let mut lanes = [E::zero(); LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = (chunk[lane] - shift).exponential();
            lanes[lane] = lanes[lane] + chunk[lane];
        }
    }
    for (lane, value) in rest.iter_mut().enumerate() {
        *value = (*value - shift).exponential();
        lanes[lane] = lanes[lane] + *value;
    }
    lanes.iter().fold(E::zero(), |sum, &lane| sum + lane)
}

/// 1 / sqrt(mean(x²) + epsilon).
#[inline(always)]
pub fn reciprocal_rms<E: Element>(x: &[E], epsilon: E) -> E {
    let mean = dot(x, x) / E::from_f64(x.len() as f64);
    E::one() / (mean + epsilon).sqrt()
}
