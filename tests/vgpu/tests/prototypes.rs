//! Kernels of the kinds that a transformer needs, right to their number format, with no check failing.

mod support;

use support::{Bench, Draw, bf16, close, wide};
use vgpu::device::Arguments;

/// Half a place of bf16, relative: its significand has 8 bits.
const BF16_ROUNDING: f64 = 1.0 / 256.0;
/// What an f32 sum of `length` products of values up to 1 may lose.
fn sum_error(length: usize) -> f64 {
    length as f64 * f64::from(f32::EPSILON)
}

#[test]
fn gemm_agrees_with_f64_on_awkward_shapes() {
    for (m, n, k) in [(128, 128, 64), (130, 136, 200), (1, 8, 8), (77, 129, 40)] {
        let Some(mut bench) = Bench::new("gemm", &[]) else { return };
        let mut draw = Draw(m as u64);
        let (a, b, bias) = (draw.brains(m * k), draw.brains(n * k), draw.floats(n));
        let (pa, pb, pbias) = (bench.upload(&a), bench.upload(&b), bench.upload(&bias));
        let pc = bench.empty(m * n * 2);
        let arguments = Arguments::new()
            .pointer(pa)
            .pointer(pb)
            .pointer(pc)
            .pointer(pbias)
            .int(m as i32)
            .int(n as i32)
            .int(k as i32);
        let grid = [n.div_ceil(128) as u32, m.div_ceil(128) as u32, 1];
        let outcome = bench.clean("gemm", grid, [256, 1, 1], 65_536, &arguments);
        assert_eq!(outcome.counters.shared_conflicts(), 0, "the swizzle leaves no conflicts");
        let actual: Vec<f32> = bench.download::<u16>(pc, m * n).into_iter().map(wide).collect();
        let expected: Vec<f64> = (0..m * n)
            .map(|at| {
                let (row, column) = (at / n, at % n);
                let product: f64 = (0..k)
                    .map(|i| f64::from(wide(a[row * k + i])) * f64::from(wide(b[column * k + i])))
                    .sum();
                product + f64::from(bias[column])
            })
            .collect();
        close("C", &actual, &expected, |value| value.abs() * BF16_ROUNDING + sum_error(k));
        let _ = bf16(0.0);
    }
}
