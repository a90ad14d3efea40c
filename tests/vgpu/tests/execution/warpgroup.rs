//! Products by `wgmma` out of what tensor copies bring: against f64 on awkward shapes, and against ldmatrix and mma.sync.

use crate::bench::{Bench, Draw};
use crate::compare::{close, wide};
use crate::maps::{MAP_BF16, MAP_SWIZZLE_128, tensor_map};
use vgpu::device::Arguments;
use vgpu::execute::{Outcome, Shape};

/// One product of the kernel file: C (m x n) of A (m x k) and B, which is n x k or, turned, k x n. Rows of all are padded to
/// 16 bytes, as tensor maps demand; what is padded was never written.
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub turned: bool,
    pub pairs: bool,
}

impl Product {
    /// Runs it on a device; gives what came of it, C, and C by f64.
    pub fn run(&self, bench: &mut Bench) -> (Outcome, Vec<f32>, Vec<f64>) {
        let &Self { m, n, k, turned, pairs } = self;
        let (rows, columns) = if turned { (k, n) } else { (n, k) };
        let mut draw = Draw((m * n + k) as u64);
        let (a, b) = (draw.brains(m * k), draw.brains(rows * columns));
        let (pa, pitch_a) = upload_rows(bench, &a, k);
        let (pb, pitch_b) = upload_rows(bench, &b, columns);
        let out = bench.empty(m * n * 4);
        // The pairs bring half of the rows of a box of B each.
        let height = if pairs { 32 } else { 64 };
        let map_a = tensor_map(MAP_BF16, pa, [k as u64, m as u64], pitch_a, [64, 128], MAP_SWIZZLE_128);
        let size_b = [columns as u64, rows as u64];
        let map_b = tensor_map(MAP_BF16, pb, size_b, pitch_b, [64, height], MAP_SWIZZLE_128);
        let arguments = Arguments::new().and(&map_a).and(&map_b).pointer(out);
        let arguments = arguments.int(m as i32).int(n as i32).int(k as i32);
        let name = match (turned, pairs) {
            (false, false) => "product_rows",
            (true, false) => "product_columns",
            (false, true) => "product_rows_in_pairs",
            (true, true) => "product_columns_in_pairs",
        };
        let row_tiles = if pairs { m.div_ceil(256) * 2 } else { m.div_ceil(128) };
        let shape = Shape {
            grid: [row_tiles as u32, n.div_ceil(64) as u32, 1],
            block: [384, 1, 1],
            dynamic_shared: 3 * 24_576,
            cluster: [if pairs { 2 } else { 1 }, 1, 1],
            ..Shape::default()
        };
        let outcome = bench.launch_as(name, &shape, &arguments);
        let number = |bits: u16| f64::from(wide(bits));
        let right =
            |i: usize, column: usize| number(if turned { b[i * n + column] } else { b[column * k + i] });
        let expected =
            (0..m * n).map(|at| (0..k).map(|i| number(a[at / n * k + i]) * right(i, at % n)).sum()).collect();
        (outcome, bench.download::<f32>(out, m * n), expected)
    }
}

/// Rows padded to multiples of 16 bytes; the padding stays unwritten.
fn upload_rows(bench: &mut Bench, values: &[u16], width: usize) -> (u64, u64) {
    let pitch = (width * 2).next_multiple_of(16);
    let address = bench.empty(values.len() / width * pitch);
    let allocation = bench.device.memory.find(address).unwrap();
    for (row, values) in values.chunks(width).enumerate() {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let at = address + (row * pitch) as u64;
        allocation.write(at, &bytes);
        allocation.mark_written(at, bytes.len());
    }
    (address, pitch as u64)
}

#[test]
fn products_agree_with_f64_on_awkward_shapes_both_ways() {
    for pairs in [false, true] {
        for turned in [false, true] {
            for (m, n, k) in [(128, 64, 64), (1, 1, 1), (130, 72, 200), (257, 129, 65), (77, 200, 333)] {
                let Some(mut bench) = Bench::hopper("warpgroup", &[]) else { return };
                let product = Product { m, n, k, turned, pairs };
                let (outcome, actual, expected) = product.run(&mut bench);
                let what = format!("{m} x {n} x {k}, turned {turned}, pairs {pairs}");
                assert!(outcome.reports.is_empty(), "{what}: {}", vgpu::device::describe(&outcome.reports));
                // f32 sums of k products of values up to 1, each rounded once.
                let allowed = k as f64 * f64::from(f32::EPSILON);
                close(&what, &actual, &expected, |_| allowed);
                let blocks = outcome.counters.blocks as usize;
                let steps = k.div_ceil(64);
                assert_eq!(
                    outcome.counters.warpgroup_multiply_adds as usize,
                    blocks * steps * 128 * 64 * 64,
                    "{what}: two warpgroups of 64 x 64 by steps of 64"
                );
            }
        }
    }
}

#[test]
fn every_seed_gives_the_same_numbers() {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for seed in [0, 1, 99] {
        let Some(mut bench) = Bench::hopper("warpgroup", &[]) else { return };
        bench.device.settings.seed = seed;
        let (outcome, actual, _) =
            Product { m: 300, n: 100, k: 200, turned: false, pairs: true }.run(&mut bench);
        assert!(outcome.reports.is_empty(), "{}", vgpu::device::describe(&outcome.reports));
        all.push(actual.into_iter().map(f32::to_bits).collect());
    }
    assert!(all.iter().all(|one| *one == all[0]));
}

#[test]
fn rows_behind_the_last_may_be_anything_and_reach_no_number() {
    // The map says 128 rows, of which 70 were written; rows beyond them are computed and not stored.
    let Some(mut bench) = Bench::hopper("warpgroup", &[]) else { return };
    let (m, n, k) = (70usize, 64usize, 64usize);
    let mut draw = Draw(3);
    let (a, b) = (draw.brains(m * k), draw.brains(n * k));
    let (pa, out) = (bench.empty(128 * k * 2), bench.empty(128 * n * 4));
    let bytes: Vec<u8> = a.iter().flat_map(|value| value.to_le_bytes()).collect();
    let allocation = bench.device.memory.find(pa).unwrap().clone();
    allocation.write(pa, &bytes);
    allocation.mark_written(pa, bytes.len());
    let pb = bench.upload(&b);
    let map_a = tensor_map(MAP_BF16, pa, [k as u64, 128], 128, [64, 128], MAP_SWIZZLE_128);
    let map_b = tensor_map(MAP_BF16, pb, [k as u64, n as u64], 128, [64, 64], MAP_SWIZZLE_128);
    for (stored, clean) in [(m, true), (m + 1, false)] {
        let arguments = Arguments::new().and(&map_a).and(&map_b).pointer(out);
        let arguments = arguments.int(stored as i32).int(n as i32).int(k as i32);
        let outcome = bench.launch("product_rows", [1, 1, 1], [384, 1, 1], 3 * 24_576, &arguments);
        let found = crate::compare::checks(&outcome.reports);
        let expected = if clean { vec![] } else { vec![vgpu::check::Check::UninitializedRegister] };
        assert_eq!(found, expected, "{}", vgpu::device::describe(&outcome.reports));
    }
    assert!(bench.download::<f32>(out, m * n).iter().all(|value| value.is_finite()));
}

#[test]
fn wgmma_agrees_with_ldmatrix_and_mma_to_the_bit() {
    let Some(mut bench) = Bench::hopper("warpgroup", &[]) else { return };
    let mut draw = Draw(8);
    let (a, b) = (draw.brains(64 * 64), draw.brains(64 * 64));
    let (pa, pb) = (bench.upload(&a), bench.upload(&b));
    let map = |address| tensor_map(MAP_BF16, address, [64, 64], 128, [64, 64], MAP_SWIZZLE_128);
    let outs = [0; 3].map(|_| bench.empty(64 * 64 * 4));
    let mut arguments = Arguments::new().and(&map(pa)).and(&map(pb));
    for out in outs {
        arguments = arguments.pointer(out);
    }
    bench.clean("three_ways", [1, 1, 1], [128, 1, 1], 16_384, &arguments);
    let results = outs.map(|out| bench.download::<f32>(out, 64 * 64));
    let expected: Vec<f64> = (0..64 * 64)
        .map(|at| {
            let number = |bits: u16| f64::from(wide(bits));
            (0..64).map(|i| number(a[at / 64 * 64 + i]) * number(b[at % 64 * 64 + i])).sum()
        })
        .collect();
    for result in &results {
        close("D", result, &expected, |_| 64.0 * f64::from(f32::EPSILON));
        assert_eq!(result, &results[0], "both sum in order of k");
    }
}
