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

/// Pairs of blocks: each writes its number and counts itself; who comes last adds the two up.
const LAST_OF_TWO: &str = ".version 9.0\n.target sm_80\n.address_size 64\n\
    .visible .entry pairs(.param .u64 own, .param .u64 counts, .param .u64 sums)\n{\n\
    .reg .b32 %r<8>;\n.reg .b64 %rd<12>;\n.reg .pred %p<2>;\nld.param.u64 %rd1, [own];\n\
    ld.param.u64 %rd2, [counts];\nld.param.u64 %rd3, [sums];\nmov.u32 %r1, %ctaid.x;\nshr.u32 %r2, %r1, 1;\n\
    mul.wide.u32 %rd4, %r1, 4;\nadd.s64 %rd5, %rd1, %rd4;\nst.global.u32 [%rd5], %r1;\nmembar.gl;\n\
    mul.wide.u32 %rd6, %r2, 4;\nadd.s64 %rd7, %rd2, %rd6;\natom.global.add.u32 %r3, [%rd7], 1;\n\
    setp.ne.u32 %p1, %r3, 1;\n@%p1 exit;\nmembar.gl;\nxor.b32 %r4, %r1, 1;\nmul.wide.u32 %rd8, %r4, 4;\n\
    add.s64 %rd9, %rd1, %rd8;\nld.global.u32 %r5, [%rd9];\nadd.u32 %r6, %r5, %r1;\nadd.s64 %rd10, %rd3, %rd6;\n\
    st.global.u32 [%rd10], %r6;\nret;\n}\n";

#[test]
fn whoever_counts_last_has_seen_what_the_others_wrote_however_workers_interleave() {
    let pairs = 20_000u32;
    let mut bench = Bench::of_text(LAST_OF_TWO);
    // In the natural order the two of a pair run at the same time.
    bench.device.settings.seed = 0;
    for workers in [2, 7] {
        bench.device.settings.workers = workers;
        let (own, sums) = (bench.empty(pairs as usize * 8), bench.empty(pairs as usize * 4));
        let counts = bench.upload(&vec![0u32; pairs as usize]);
        let arguments = Arguments::new().pointer(own).pointer(counts).pointer(sums);
        bench.clean("pairs", [2 * pairs, 1, 1], [1, 1, 1], 0, &arguments);
        let expected: Vec<u32> = (0..pairs).map(|pair| 4 * pair + 1).collect();
        assert_eq!(bench.download::<u32>(sums, pairs as usize), expected);
    }
}

/// Two blocks of a warp on one worker, so that the second has the memory of the first.
fn two_blocks_in_a_row(body: &str, checked: bool) -> Vec<u32> {
    let mut bench = Bench::of_text(&format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry rows(.param .u64 p)\n{{\n.reg .b32 %r<8>;\n\
         .reg .b64 %rd<4>;\n.reg .pred %p<2>;\n.shared .align 16 .b8 own[128];\nld.param.u64 %rd1, [p];\nmov.u32 %r1, %tid.x;\n\
         mov.u32 %r2, own;\nadd.u32 %r3, %r2, %r1;\nmad.lo.u32 %r2, %r1, 4, %r2;\nmov.u32 %r5, %ctaid.x;\n\
         mad.lo.u32 %r5, %r5, 32, %r1;\nmul.wide.u32 %rd2, %r5, 4;\nadd.s64 %rd3, %rd1, %rd2;\nmov.u32 %r4, 0x03030303;\n\
         {body}\nst.global.u32 [%rd3], %r6;\nret;\n}}\n"
    ));
    bench.device.settings.workers = 1;
    bench.device.settings.checks = checked;
    let out = bench.empty(64 * 4);
    bench.clean("rows", [2, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
    bench.download(out, 64)
}

#[test]
fn a_block_finds_nothing_of_the_block_before_it_in_its_shared_memory() {
    let found = two_blocks_in_a_row("ld.shared.u32 %r6, [%r2];\nst.shared.u32 [%r2], %r4;", false);
    assert_eq!(found, [u32::MAX; 64], "what nobody wrote has its bits set");
    // What is known of single bytes is known of a block's own.
    let bytes = "st.shared.u8 [%r3], %r4;\nbar.warp.sync -1;\n";
    let chunks = "setp.lt.u32 %p1, %r1, 8;\nmov.u32 %r7, own;\nmad.lo.u32 %r7, %r1, 16, %r7;\n\
                  @%p1 st.shared.v4.u32 [%r7], {%r4, %r4, %r4, %r4};\nbar.warp.sync -1;\n";
    let found = two_blocks_in_a_row(&format!("{bytes}{chunks}{bytes}ld.shared.u32 %r6, [%r2];"), true);
    assert_eq!(found, [0x0303_0303; 64]);
}

#[test]
fn a_text_that_is_loaded_again_has_variables_of_its_own() {
    let text = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .global .align 4 .u32 kept;\n\
         .visible .entry keep(.param .u32 value)\n{\n.reg .b32 %w<2>;\nld.param.u32 %w1, [value];\n\
         st.global.u32 [kept], %w1;\nret;\n}\n";
    let mut device = crate::bench::device();
    let first = device.load(text).unwrap();
    let module = device.load(text).unwrap();
    let (before, (again, _)) = (first.variables["kept"].0, module.variables["kept"]);
    let mut bench = Bench { device, module };
    bench.clean("keep", [1, 1, 1], [1, 1, 1], 0, &Arguments::new().int(5));
    assert_eq!((bench.download::<u32>(before, 1), bench.download::<u32>(again, 1)), (vec![0], vec![5]));
}
