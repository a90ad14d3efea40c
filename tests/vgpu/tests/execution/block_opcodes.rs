//! Opcodes in which lanes and warps meet: barriers, matrix moves, tensor-core shapes, mbarriers, branch tables.
//! What is expected follows from the figures and semantics of the PTX manual.

use crate::bench::Bench;
use crate::compare::checks;
use vgpu::check::Check;
use vgpu::device::Arguments;
use vgpu::number::{from_f16, to_f16};
use vgpu::profile::Profile;

/// A body that one block may run, its arguments, and where its result comes: `%w0` goes out for every thread. `%d7` points to the
/// words 100, 101, ...
fn prepared(target: &str, threads: u32, body: &str) -> (Bench, Arguments, u64) {
    let text = format!(
        ".version 9.0\n.target {target}\n.address_size 64\n.visible .entry case(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .b32 %w<16>;\n.reg .b64 %d<10>;\n.reg .pred %p<8>;\n.shared .align 16 .b8 tile[1024];\n\
         mov.u32 %w15, %tid.x;\nmov.u32 %w14, tile;\nld.param.u64 %d7, [in];\n{body}\n\
         ld.param.u64 %d8, [out];\nmul.wide.u32 %d9, %w15, 4;\nadd.s64 %d8, %d8, %d9;\nst.global.u32 [%d8], %w0;\n\
         ret;\n}}\n"
    );
    let mut device = crate::bench::device();
    device.profile = Profile::by_name(target).unwrap();
    let module = device.load(&text).unwrap();
    let mut bench = Bench { device, module };
    let input = bench.upload(&(100..100 + threads).collect::<Vec<u32>>());
    let out = bench.empty(threads as usize * 4);
    (bench, Arguments::new().pointer(input).pointer(out), out)
}

/// Runs a body on one block, as [`prepared`] has it.
fn block(target: &str, threads: u32, body: &str) -> Vec<u32> {
    let (mut bench, arguments, out) = prepared(target, threads, body);
    bench.clean("case", [1, 1, 1], [threads, 1, 1], 0, &arguments);
    bench.download::<u32>(out, threads as usize)
}

fn each(threads: u32, value: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..threads).map(value).collect()
}

#[test]
fn a_warp_that_arrives_goes_on_and_a_warp_that_syncs_sees_what_it_wrote() {
    let out = block(
        "sm_80",
        64,
        "setp.ge.u32 %p1, %w15, 32;\n@%p1 bra READ;\nshl.b32 %w1, %w15, 2;\nadd.u32 %w1, %w14, %w1;\n\
         add.u32 %w2, %w15, 5;\nst.shared.u32 [%w1], %w2;\nbar.arrive 1, 64;\nmov.u32 %w0, %w15;\nbra DONE;\n\
         READ:\nbar.sync 1, 64;\nsub.u32 %w1, %w15, 32;\nshl.b32 %w1, %w1, 2;\nadd.u32 %w1, %w14, %w1;\n\
         ld.shared.u32 %w0, [%w1];\nDONE:",
    );
    assert_eq!(out, each(64, |thread| if thread < 32 { thread } else { thread - 32 + 5 }));
}

#[test]
fn barriers_reduce_predicates_over_the_block() {
    let popc = block("sm_80", 96, "setp.lt.u32 %p1, %w15, 40;\nbar.red.popc.u32 %w0, 0, %p1;");
    assert_eq!(popc, each(96, |_| 40));
    let negated = block(
        "sm_80",
        96,
        "setp.lt.u32 %p1, %w15, 40;\nbarrier.sync.aligned 2;\nbar.red.popc.u32 %w0, 3, 96, !%p1;",
    );
    assert_eq!(negated, each(96, |_| 56));
    for (kind, most, answer) in [("and", 96, 1), ("and", 95, 0), ("or", 1, 1), ("or", 0, 0)] {
        let body = format!(
            "setp.lt.u32 %p1, %w15, {most};\nbar.red.{kind}.pred %p2, 0, %p1;\nselp.b32 %w0, 1, 0, %p2;"
        );
        assert_eq!(block("sm_80", 96, &body), each(96, |_| answer), "{kind} of {most} lanes");
    }
}

#[test]
fn stmatrix_puts_fragments_into_rows() {
    // Lane l holds elements 2l and 2l + 1 of the 64, which it numbers; lanes 0 to 7 name the rows.
    let body = |trans: &str| {
        format!(
            "shl.b32 %w1, %w15, 1;\nadd.u32 %w2, %w1, 1;\nshl.b32 %w2, %w2, 16;\nor.b32 %w1, %w1, %w2;\n\
             and.b32 %w3, %w15, 7;\nshl.b32 %w3, %w3, 4;\nadd.u32 %w3, %w14, %w3;\n\
             stmatrix.sync.aligned.m8n8.x1{trans}.shared.b16 [%w3], {{%w1}};\nbar.warp.sync -1;\n\
             shl.b32 %w4, %w15, 2;\nadd.u32 %w4, %w14, %w4;\nld.shared.u32 %w0, [%w4];"
        )
    };
    assert_eq!(block("sm_90", 32, &body("")), each(32, |lane| ((2 * lane + 1) << 16) | (2 * lane)));
    let turned = each(32, |lane| {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        ((8 * (column + 1) + row) << 16) | (8 * column + row)
    });
    assert_eq!(block("sm_90", 32, &body(".trans")), turned);
}

/// Runs one mma on registers given lane by lane, A then B then C, and gives those of D.
fn mma(opcode: &str, [a, b, c]: [usize; 3], input: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let count = a + b + c;
    let list = |from: usize, count: usize| {
        let names: Vec<String> = (from..from + count).map(|index| format!("%w{index}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let mut body = String::new();
    for index in 0..count {
        body += &format!("ld.global.u32 %w{index}, [%d1+{}];\n", index * 4);
    }
    body += &format!("{opcode} {}, {}, {}, {};\n", list(count, c), list(0, a), list(a, b), list(a + b, c));
    for index in 0..c {
        body += &format!("st.global.u32 [%d3+{}], %w{};\n", index * 4, count + index);
    }
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry case(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .b32 %w<24>;\n.reg .b32 %t;\n.reg .b64 %d<5>;\nmov.u32 %t, %tid.x;\n\
         ld.param.u64 %d0, [in];\nmul.wide.u32 %d1, %t, {};\nadd.s64 %d1, %d0, %d1;\n\
         ld.param.u64 %d2, [out];\nmul.wide.u32 %d3, %t, {};\nadd.s64 %d3, %d2, %d3;\n{body}ret;\n}}\n",
        count * 4,
        c * 4
    );
    let mut bench = Bench::of_text(&text);
    let flat: Vec<u32> = input.iter().flatten().copied().collect();
    let (x, y) = (bench.upload(&flat), bench.empty(32 * c * 4));
    bench.clean("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(x).pointer(y));
    bench.download::<u32>(y, 32 * c).chunks(c).map(<[u32]>::to_vec).collect()
}

/// Small whole numbers, exact in every format.
fn a_at(row: usize, k: usize) -> f32 {
    ((row * 3 + k * 5) % 7) as f32 - 3.0
}
fn b_at(k: usize, column: usize) -> f32 {
    ((k * 2 + column * 3) % 5) as f32 - 2.0
}
fn c_at(row: usize, column: usize) -> f32 {
    (row + 2 * column) as f32 - 11.0
}
fn d_at(depth: usize, row: usize, column: usize) -> f32 {
    c_at(row, column) + (0..depth).map(|k| a_at(row, k) * b_at(k, column)).sum::<f32>()
}

#[test]
fn m16n8k4_of_tf32_follows_its_figure() {
    let input: Vec<Vec<u32>> = (0..32)
        .map(|lane| {
            let (group, thread) = (lane / 4, lane % 4);
            let mut words = vec![a_at(group, thread), a_at(group + 8, thread), b_at(thread, group)];
            words.extend((0..4).map(|i| c_at(group + 8 * (i / 2), thread * 2 + i % 2)));
            words.into_iter().map(f32::to_bits).collect()
        })
        .collect();
    let out = mma("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", [2, 1, 4], &input);
    for (lane, words) in out.iter().enumerate() {
        for (i, &word) in words.iter().enumerate() {
            let (row, column) = (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2);
            assert_eq!(f32::from_bits(word), d_at(4, row, column), "row {row}, column {column}");
        }
    }
}

#[test]
fn f16_accumulators_are_two_a_register() {
    let pair = |low: f32, high: f32| to_f16(low) | to_f16(high) << 16;
    for depth in [8usize, 16] {
        let input: Vec<Vec<u32>> = (0..32)
            .map(|lane| {
                let (group, thread) = (lane / 4, lane % 4);
                let mut words = Vec::new();
                for i in 0..depth / 4 {
                    let (row, k) = (group + 8 * (i % 2), thread * 2 + 8 * (i / 2));
                    words.push(pair(a_at(row, k), a_at(row, k + 1)));
                }
                for i in 0..depth / 8 {
                    let k = thread * 2 + 8 * i;
                    words.push(pair(b_at(k, group), b_at(k + 1, group)));
                }
                for i in 0..2 {
                    let row = group + 8 * i;
                    words.push(pair(c_at(row, thread * 2), c_at(row, thread * 2 + 1)));
                }
                words
            })
            .collect();
        let opcode = format!("mma.sync.aligned.m16n8k{depth}.row.col.f16.f16.f16.f16");
        let out = mma(&opcode, [depth / 4, depth / 8, 2], &input);
        for (lane, words) in out.iter().enumerate() {
            for (i, &word) in words.iter().enumerate() {
                for (part, bits) in [word & 0xffff, word >> 16].into_iter().enumerate() {
                    let (row, column) = (lane / 4 + 8 * i, lane % 4 * 2 + part);
                    assert_eq!(
                        from_f16(bits),
                        d_at(depth, row, column),
                        "k{depth}: row {row}, column {column}"
                    );
                }
            }
        }
    }
}

#[test]
fn branch_tables_send_every_lane_its_own_way() {
    let out = block(
        "sm_80",
        32,
        "and.b32 %w1, %w15, 3;\nmov.u32 %w0, 0;\nWAYS: .branchtargets A, B, C, B;\nbrx.idx %w1, WAYS;\n\
         A:\nadd.u32 %w0, %w0, 1;\nB:\nadd.u32 %w0, %w0, 10;\nC:\nadd.u32 %w0, %w0, 100;",
    );
    assert_eq!(out, each(32, |lane| [111, 110, 100, 110][lane as usize % 4]));
}

#[test]
fn an_mbarrier_completes_a_phase_when_all_have_arrived() {
    // 33 arrivals: one of every lane, and a second of lane 0 after the first look.
    let out = block(
        "sm_80",
        32,
        "setp.eq.u32 %p1, %w15, 0;\n@%p1 mbarrier.init.shared.b64 [%w14], 33;\nbar.sync 0;\n\
         mbarrier.arrive.shared.b64 %d1, [%w14];\n\
         mbarrier.test_wait.shared.b64 %p2, [%w14], %d1;\nselp.b32 %w1, 1, 0, %p2;\n\
         @%p1 mbarrier.arrive.shared.b64 %d2, [%w14];\nbar.warp.sync -1;\n\
         mbarrier.test_wait.shared.b64 %p3, [%w14], %d1;\nselp.b32 %w2, 2, 0, %p3;\n\
         mbarrier.test_wait.parity.shared.b64 %p4, [%w14], 0;\nselp.b32 %w3, 4, 0, %p4;\n\
         mbarrier.test_wait.parity.shared.b64 %p5, [%w14], 1;\nselp.b32 %w4, 8, 0, %p5;\n\
         add.u32 %w0, %w1, %w2;\nadd.u32 %w0, %w0, %w3;\nadd.u32 %w0, %w0, %w4;\nbar.sync 0;\n\
         @%p1 mbarrier.inval.shared.b64 [%w14];",
    );
    assert_eq!(out, each(32, |_| 2 + 4));
}

/// Of a barrier that was just started the phase before the first is over, and the first is not.
#[test]
fn lanes_of_a_warp_may_wait_for_different_phases_of_a_barrier() {
    let out = block(
        "sm_80",
        32,
        "setp.eq.u32 %p1, %w15, 0;\n@%p1 mbarrier.init.shared.b64 [%w14], 1;\nbar.sync 0;\n\
         and.b32 %w1, %w15, 1;\nmbarrier.test_wait.parity.shared.b64 %p2, [%w14], %w1;\nselp.b32 %w0, 1, 0, %p2;",
    );
    assert_eq!(out, each(32, |lane| lane % 2));
}

/// A warp that writes behind the last of two readers, but not behind the first.
#[test]
fn a_write_must_come_after_every_reader_of_a_chunk() {
    for (first, races) in [("bar.arrive 2, 64;\n", false), ("", true)] {
        let wait = if races { "" } else { "bar.sync 2, 64;\n" };
        let body = format!(
            "mov.u32 %w0, 0;\nshr.u32 %w1, %w15, 5;\nsetp.eq.u32 %p1, %w15, 0;\n\
             @%p1 st.shared.v4.u32 [%w14], {{%w15, %w15, %w15, %w15}};\nbar.sync 0;\n\
             setp.eq.u32 %p2, %w1, 2;\n@%p2 bra WRITE;\nld.shared.v4.u32 {{%w2, %w3, %w4, %w5}}, [%w14];\n\
             setp.eq.u32 %p3, %w1, 1;\n@%p3 bra LAST;\n{first}bra DONE;\nLAST:\nbar.arrive 1, 64;\nbra DONE;\n\
             WRITE:\n{wait}bar.sync 1, 64;\nsetp.eq.u32 %p4, %w15, 64;\n\
             @%p4 st.shared.v4.u32 [%w14], {{%w15, %w15, %w15, %w15}};\nDONE:"
        );
        for seed in 0..8 {
            let (mut bench, arguments, _) = prepared("sm_80", 96, &body);
            bench.device.settings.seed = seed;
            let outcome = bench.launch("case", [1, 1, 1], [96, 1, 1], 0, &arguments);
            let found = checks(&outcome.reports);
            let expected: &[Check] = if races { &[Check::SharedRaceBetweenWarps] } else { &[] };
            assert_eq!(found, expected, "seed {seed}");
        }
    }
}

/// With checks off too, a block finds zeros in registers that nobody wrote, and nothing of the block before.
#[test]
fn a_block_finds_nothing_of_the_one_before_in_its_registers() {
    let text = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry case(.param .u64 out)\n{\n\
         .reg .b32 %w<4>;\n.reg .b64 %d<4>;\nld.param.u64 %d0, [out];\nmov.u32 %w1, %ctaid.x;\n\
         mul.wide.u32 %d1, %w1, 8;\nadd.s64 %d0, %d0, %d1;\nst.global.u32 [%d0], %w2;\nadd.u32 %w2, %w1, 7;\n\
         st.global.u32 [%d0+4], %w2;\nret;\n}\n";
    let mut bench = Bench::of_text(text);
    (bench.device.settings.checks, bench.device.settings.workers) = (false, 1);
    let out = bench.empty(8 * 8);
    bench.launch("case", [8, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
    let expected: Vec<u32> = (0..8).flat_map(|block| [0, block + 7]).collect();
    assert_eq!(bench.download::<u32>(out, 16), expected);
}

#[test]
fn arrivals_may_count_for_several() {
    let out = block(
        "sm_90",
        32,
        "setp.eq.u32 %p1, %w15, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%w14], 5;\nbar.sync 0;\n\
         @%p1 mbarrier.arrive.release.cta.shared::cta.b64 _, [%w14], 5;\nbar.warp.sync -1;\n\
         mbarrier.try_wait.parity.shared::cta.b64 %p2, [%w14], 0;\nselp.b32 %w0, 1, 0, %p2;",
    );
    assert_eq!(out, each(32, |_| 1));
}

#[test]
fn lanes_that_drop_out_are_not_expected_in_the_next_phase() {
    let out = block(
        "sm_80",
        32,
        "setp.eq.u32 %p1, %w15, 0;\n@%p1 mbarrier.init.shared.b64 [%w14], 32;\nbar.sync 0;\n\
         setp.ge.u32 %p2, %w15, 16;\n@%p2 mbarrier.arrive_drop.shared.b64 %d1, [%w14];\n\
         @!%p2 mbarrier.arrive.shared.b64 %d1, [%w14];\nbar.warp.sync -1;\n\
         mbarrier.test_wait.parity.shared.b64 %p3, [%w14], 0;\nselp.b32 %w1, 1, 0, %p3;\nbar.warp.sync -1;\n\
         @!%p2 mbarrier.arrive.shared.b64 %d1, [%w14];\nbar.warp.sync -1;\n\
         mbarrier.test_wait.parity.shared.b64 %p4, [%w14], 1;\nselp.b32 %w2, 2, 0, %p4;\nadd.u32 %w0, %w1, %w2;",
    );
    assert_eq!(out, each(32, |_| 3));
}

#[test]
fn expected_bytes_hold_a_phase_back_until_the_copy_brings_them() {
    let out = block(
        "sm_90",
        32,
        "setp.eq.u32 %p1, %w15, 0;\nadd.u32 %w13, %w14, 128;\n\
         @%p1 mbarrier.init.shared::cta.b64 [%w14], 1;\n@%p1 fence.mbarrier_init.release.cluster;\nbar.sync 0;\n\
         @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%w14], 128;\nbar.warp.sync -1;\n\
         mbarrier.test_wait.parity.shared::cta.b64 %p2, [%w14], 0;\nselp.b32 %w1, 1000, 0, %p2;\n\
         @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%w13], [%d7], 128, [%w14];\n\
         AGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 %p3, [%w14], 0;\n@!%p3 bra AGAIN;\n\
         shl.b32 %w2, %w15, 2;\nadd.u32 %w2, %w13, %w2;\nld.shared.u32 %w0, [%w2];\nadd.u32 %w0, %w0, %w1;",
    );
    assert_eq!(out, each(32, |lane| 100 + lane));
}

#[test]
fn asynchronous_copies_arrive_at_an_mbarrier() {
    let out = block(
        "sm_80",
        32,
        "setp.eq.u32 %p1, %w15, 0;\nadd.u32 %w13, %w14, 128;\n@%p1 mbarrier.init.shared.b64 [%w14], 32;\nbar.sync 0;\n\
         shl.b32 %w2, %w15, 2;\nadd.u32 %w2, %w13, %w2;\nmul.wide.u32 %d1, %w15, 4;\nadd.s64 %d1, %d7, %d1;\n\
         cp.async.ca.shared.global [%w2], [%d1], 4;\ncp.async.mbarrier.arrive.noinc.shared.b64 [%w14];\n\
         AGAIN:\nmbarrier.test_wait.parity.shared.b64 %p2, [%w14], 0;\n@!%p2 bra AGAIN;\n\
         ld.shared.u32 %w0, [%w2];",
    );
    assert_eq!(out, each(32, |lane| 100 + lane));
}

#[test]
fn powers_of_two_are_right_to_a_rounding() {
    for step in 0..200_000u32 {
        let x = -155.0 + step as f32 * 0.00147;
        let (actual, expected) = (vgpu::number::power_of_two(x), f64::from(x).exp2());
        // Half a place of f32, or of its smallest step where numbers are denormal, and what the series leaves.
        let allowed = expected.abs() * 2f64.powi(-24) * (1.0 + 1e-6) + 2f64.powi(-150);
        let difference = (f64::from(actual) - expected).abs();
        assert!(
            difference <= allowed || expected > f64::from(f32::MAX) && actual.is_infinite(),
            "2^{x}: {actual}"
        );
    }
    assert_eq!(vgpu::number::power_of_two(f32::INFINITY), f32::INFINITY);
    assert_eq!(vgpu::number::power_of_two(f32::NEG_INFINITY), 0.0);
    assert_eq!(vgpu::number::power_of_two(10.0), 1024.0);
    assert!(vgpu::number::power_of_two(f32::NAN).is_nan());
}

#[test]
fn votes_may_name_their_mode_before_they_sync() {
    let body = "setp.lt.u32 %p1, %w15, 5;\nvote.ballot.sync.b32 %w0, %p1, -1;\nvote.any.sync.pred %p2, %p1, -1;\n\
                @!%p2 mov.u32 %w0, 0;";
    assert_eq!(block("sm_80", 32, body), [0x1f; 32]);
}

/// Two blocks of a cluster: each makes a barrier for the other's arrival, meets it by arrivals that release nothing, and waits.
fn handshake(fence: &str, meeting: &str) -> Vec<Check> {
    let body = format!(
        "mov.u32 %w1, %cluster_ctarank;\nxor.b32 %w2, %w1, 1;\nsetp.eq.u32 %p1, %w15, 0;\n\
         @%p1 mbarrier.init.shared::cta.b64 [tile], 1;\n{fence}\n{meeting}\n\
         mapa.shared::cluster.u32 %w3, %w14, %w2;\n\
         @%p1 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%w3];\nmov.u32 %w4, 0;\nAGAIN:\n\
         mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [tile], %w4;\n@!%p2 bra AGAIN;\n\
         barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\nmov.u32 %w0, 1;"
    );
    let (mut bench, arguments, _) = prepared("sm_90", 32, &body);
    let shape = vgpu::execute::Shape {
        grid: [2, 1, 1],
        block: [32, 1, 1],
        cluster: [2, 1, 1],
        ..vgpu::execute::Shape::default()
    };
    checks(&bench.launch_as("case", &shape, &arguments).reports)
}

#[test]
fn a_fence_of_mbarriers_makes_arrivals_that_release_nothing_enough() {
    const FENCE: &str = "fence.mbarrier_init.release.cluster;";
    const RELAXED: &str = "barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;";
    assert_eq!(handshake(FENCE, RELAXED), []);
    assert_eq!(handshake(FENCE, "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;"), []);
    assert!(!handshake("", RELAXED).is_empty());
    assert!(!handshake(FENCE, "").is_empty());
}
