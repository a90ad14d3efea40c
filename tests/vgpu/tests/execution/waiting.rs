//! Blocks that wait for blocks before theirs, which devices begin first.

use crate::bench::Bench;
use std::time::Duration;
use vgpu::device::Arguments;

/// Each block takes the count of the block before it, as soon as that is there, and gives its own.
const CHAIN: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry chain(.param .u64 out)\n{\n\
    .reg .b32 %w<4>;\n.reg .b64 %d<4>;\n.reg .pred %p<4>;\nld.param.u64 %d1, [out];\nmov.u32 %w1, %ctaid.x;\n\
    mul.wide.u32 %d2, %w1, 4;\nadd.s64 %d1, %d1, %d2;\nmov.u32 %w2, 0;\nsetp.eq.u32 %p1, %w1, 0;\n@%p1 bra GO;\n\
    WAIT:\nld.acquire.gpu.global.u32 %w2, [%d1+-4];\nsetp.eq.u32 %p2, %w2, 0;\n@%p2 bra WAIT;\nGO:\n\
    add.u32 %w2, %w2, 1;\nst.release.gpu.global.u32 [%d1], %w2;\nret;\n}\n";

#[test]
fn a_chain_of_blocks_ends_whatever_order_they_begin_in() {
    const BLOCKS: u32 = 150;
    for (seed, workers) in [(0, 1), (1, 1), (7, 2), (8, 3)] {
        let mut bench = Bench::of_text(CHAIN);
        (bench.device.settings.seed, bench.device.settings.workers) = (seed, workers);
        bench.device.settings.timeout = Duration::from_secs(120);
        let out = bench.upload(&vec![0u32; BLOCKS as usize]);
        bench.clean("chain", [BLOCKS, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
        let expected: Vec<u32> = (1..=BLOCKS).collect();
        assert_eq!(bench.download::<u32>(out, BLOCKS as usize), expected, "seed {seed}, {workers} workers");
    }
}

#[test]
fn who_waits_for_what_never_comes_is_stopped() {
    let mut bench = Bench::of_text(CHAIN);
    bench.device.settings.timeout = Duration::from_millis(300);
    // Block 0 starts from what is there and never waits; here the second grid begins at a place that nobody fills.
    let text = CHAIN.replace("setp.eq.u32 %p1, %w1, 0;", "setp.eq.u32 %p1, %w1, 1;");
    bench.module = bench.device.load(&text).unwrap();
    let out = bench.upload(&[0u32; 9]);
    let outcome = bench.launch("chain", [8, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out + 4));
    assert_eq!(crate::compare::checks(&outcome.reports), [vgpu::check::Check::Timeout]);
}
