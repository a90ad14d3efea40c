//! Tensor-core fragments: code built from CUDA's own mma.h, which knows no lanes, agrees with mma.sync filled
//! by the figures of the PTX manual, and both with the product itself.

use crate::bench::{Bench, Draw, bf16};
use vgpu::device::Arguments;

/// Small whole numbers: every product and sum is exact in every format, so results must be equal.
fn wholes(draw: &mut Draw, count: usize) -> Vec<f32> {
    (0..count).map(|_| (draw.next() * 8.0).round()).collect()
}

#[test]
fn figures_and_header_agree_with_the_product() {
    let Some(mut bench) = Bench::new("fragments", &[]) else { return };
    let mut draw = Draw(4);
    for _ in 0..4 {
        let (a, b, c) = (wholes(&mut draw, 256), wholes(&mut draw, 256), wholes(&mut draw, 256));
        // B is stored by columns.
        let expected: Vec<f32> = (0..256)
            .map(|at| c[at] + (0..16).map(|k| a[at / 16 * 16 + k] * b[at % 16 * 16 + k]).sum::<f32>())
            .collect();
        for (kernel, format) in [
            ("header_bf16", "bf16"),
            ("figures_bf16", "bf16"),
            ("figures_bf16_k8", "bf16"),
            ("header_f16", "f16"),
            ("figures_f16", "f16"),
            ("figures_tf32", "f32"),
        ] {
            let mut put = |values: &[f32]| match format {
                "bf16" => bench.upload(&values.iter().map(|&value| bf16(value)).collect::<Vec<u16>>()),
                "f16" => bench.upload(
                    &values.iter().map(|&value| vgpu::number::to_f16(value) as u16).collect::<Vec<u16>>(),
                ),
                _ => bench.upload(values),
            };
            let (pa, pb) = (put(&a), put(&b));
            let (pc, pd) = (bench.upload(&c), bench.empty(1024));
            let arguments = Arguments::new().pointer(pa).pointer(pb).pointer(pc).pointer(pd);
            bench.clean(kernel, [1, 1, 1], [32, 1, 1], 0, &arguments);
            assert_eq!(bench.download::<f32>(pd, 256), expected, "{kernel}");
        }
    }
}

#[test]
fn ldmatrix_gives_the_fragments_of_a() {
    let Some(mut bench) = Bench::new("fragments", &[]) else { return };
    let input: Vec<u16> = (0..256).map(|at| at * 7 + 1).collect();
    let (pin, pout, pturned) = (bench.upload(&input), bench.empty(512), bench.empty(512));
    let arguments = Arguments::new().pointer(pin).pointer(pout).pointer(pturned);
    bench.clean("matrix_round_trip", [1, 1, 1], [32, 1, 1], 0, &arguments);
    assert_eq!(bench.download::<u16>(pout, 256), input);
    let turned: Vec<u16> = (0..256)
        .map(|at| {
            let (row, column) = (at / 16, at % 16);
            input[(row / 8 * 8 + column % 8) * 16 + column / 8 * 8 + row % 8]
        })
        .collect();
    assert_eq!(bench.download::<u16>(pturned, 256), turned);
}
