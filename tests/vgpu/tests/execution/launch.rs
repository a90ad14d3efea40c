//! How launches are run: every block once, in any order, on any number of workers.

use crate::bench::Bench;
use crate::compare::checks;
use vgpu::check::Check;
use vgpu::device::Arguments;

const COUNT: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry count(.param .u64 p)\n{\n\
    .reg .b32 %r<4>;\n.reg .b64 %rd<4>;\nld.param.u64 %rd1, [p];\nmov.u32 %r1, %ctaid.x;\n\
    mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\nmov.u32 %r2, 1;\n\
    red.global.add.u32 [%rd3], %r2;\nret;\n}\n";

#[test]
fn every_seed_runs_every_block_once() {
    for blocks in [1u32, 2, 3, 7, 64, 100, 1023] {
        for seed in [0, 1, 99] {
            let mut bench = Bench::of_text(COUNT);
            bench.device.settings.seed = seed;
            let counts = bench.upload(&vec![0u32; blocks as usize]);
            bench.clean("count", [blocks, 1, 1], [1, 1, 1], 0, &Arguments::new().pointer(counts));
            assert_eq!(bench.download::<u32>(counts, blocks as usize), vec![1; blocks as usize]);
        }
    }
}

#[test]
fn a_sample_does_not_miss_what_blocks_left_out_would_have_written() {
    let add_own = COUNT.replace("mov.u32 %r2, 1;", "ld.global.u32 %r2, [%rd3];");
    for (sample, found) in [(None, &[Check::UninitializedGlobal][..]), (Some(4), &[])] {
        let mut bench = Bench::of_text(&add_own);
        bench.device.settings.sample_blocks = sample;
        let counts = bench.empty(64 * 4);
        let outcome = bench.launch("count", [64, 1, 1], [1, 1, 1], 0, &Arguments::new().pointer(counts));
        assert_eq!(checks(&outcome.reports), found, "sample {sample:?}");
        assert_eq!(outcome.counters.blocks_run, sample.unwrap_or(64));
    }
}
