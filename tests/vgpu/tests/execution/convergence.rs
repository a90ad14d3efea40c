//! Instructions that lanes execute together: lanes that come late are waited for, lanes that never come are reported.
//!
//! The virtual GPU runs the lowest instruction first, so a block of code behind the meeting point makes lanes late.

use crate::bench::Bench;
use crate::compare::checks;
use vgpu::check::Check;
use vgpu::device::{Arguments, describe};
use vgpu::execute::Outcome;

/// Runs a body on some warps; `%w0` goes out for every thread. `%w15` is the thread, `%w14` a shared tile.
fn run(threads: u32, body: &str) -> (Outcome, Vec<u32>) {
    let text = format!(
        ".version 9.0\n.target sm_90\n.address_size 64\n.visible .entry case(.param .u64 out)\n{{\n\
         .reg .b32 %w<32>;\n.reg .b64 %d<4>;\n.reg .pred %p<8>;\n.shared .align 16 .b8 tile[1024];\n\
         mov.u32 %w15, %tid.x;\nmov.u32 %w14, tile;\nmov.u32 %w0, 7;\n{body}\n\
         ld.param.u64 %d1, [out];\nmul.wide.u32 %d2, %w15, 4;\nadd.s64 %d1, %d1, %d2;\nst.global.u32 [%d1], %w0;\n\
         ret;\n}}\n"
    );
    let mut device = crate::bench::device();
    device.profile = vgpu::profile::Profile::by_name("sm_90").unwrap();
    let module = device.load(&text).unwrap();
    let mut bench = Bench { device, module };
    let out = bench.empty(threads as usize * 4);
    let outcome = bench.launch("case", [1, 1, 1], [threads, 1, 1], 0, &Arguments::new().pointer(out));
    let words = bench.download::<u32>(out, threads as usize);
    (outcome, words)
}

/// The opcode runs under the lanes below 10 first; the others make a detour that lies behind it.
fn late(opcode: &str) -> String {
    format!(
        "mov.u32 %w1, 100;\nsetp.ge.u32 %p1, %w15, 10;\n@%p1 bra LATE;\nMEET:\n{opcode}\nbra DONE;\n\
         LATE:\nadd.u32 %w1, %w15, 200;\nbra MEET;\nDONE:"
    )
}

/// What a lane brings to the meeting of [`late`].
fn brings(lane: u32) -> u32 {
    if lane < 10 { 100 } else { lane + 200 }
}

/// What a lane gets.
type Lane = fn(u32) -> u32;

/// Opcodes with member masks or `.aligned`, and what each lane gets of what all bring.
fn table() -> Vec<(&'static str, Lane)> {
    vec![
        ("shfl.sync.bfly.b32 %w0, %w1, 31, 31, -1;", |lane| brings(lane ^ 31)),
        ("shfl.sync.idx.b32 %w0|%p2, %w1, 20, 31, -1;", |_| 220),
        ("setp.eq.u32 %p2, %w1, 100;\nvote.sync.ballot.b32 %w0, %p2, -1;", |_| 0x3ff),
        ("match.any.sync.b32 %w0, %w1, -1;", |lane| if lane < 10 { 0x3ff } else { 1 << lane }),
        ("redux.sync.max.u32 %w0, %w1, -1;", |_| 231),
        ("elect.sync %w0|%p2, -1;", |_| 0),
        // Every lane reads what its neighbour wrote before they met.
        (
            "shl.b32 %w2, %w15, 2;\nadd.u32 %w2, %w2, %w14;\nst.shared.u32 [%w2], %w1;\nbar.warp.sync -1;\n\
             xor.b32 %w2, %w2, 64;\nld.shared.u32 %w0, [%w2];",
            |lane| brings(lane ^ 16),
        ),
        // Every lane stores its own word; row r of the matrix is the words of lanes 4 r to 4 r + 3, as stored.
        (
            "shl.b32 %w2, %w15, 2;\nadd.u32 %w2, %w2, %w14;\nst.shared.u32 [%w2], %w1;\nand.b32 %w3, %w15, 7;\n\
             shl.b32 %w3, %w3, 4;\nadd.u32 %w3, %w3, %w14;\nbar.sync 0;\n\
             @%p1 bra AGAIN;\nLOAD:\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {%w0}, [%w3];\nbra OUT;\n\
             AGAIN:\nbra LOAD;\nOUT:",
            brings,
        ),
        // A is all ones and column n of B all n, so column n of D is 8 n; register 1 is column 2 (lane % 4) + 1.
        (
            "mov.b32 %w4, 0x3f803f80;\nmov.b32 %w5, 0;\nshr.u32 %w6, %w15, 2;\ncvt.rn.f32.u32 %w7, %w6;\n\
             shr.u32 %w7, %w7, 16;\nshl.b32 %w8, %w7, 16;\nor.b32 %w7, %w7, %w8;\n\
             mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%w8, %w9, %w10, %w11}, {%w4, %w4}, {%w7}, \
             {%w5, %w5, %w5, %w5};\ncvt.rzi.u32.f32 %w0, %w9;",
            |lane| 8 * (2 * (lane % 4) + 1),
        ),
        ("bar.sync 0;\nmov.u32 %w0, %w1;", brings),
        ("setp.eq.u32 %p2, %w1, 100;\nbar.red.popc.u32 %w0, 0, %p2;", |_| 10),
    ]
}

#[test]
fn lanes_that_come_late_are_waited_for() {
    for (opcode, expected) in table() {
        let (outcome, words) = run(32, &late(opcode));
        assert!(outcome.reports.is_empty(), "{opcode}: {}", describe(&outcome.reports));
        assert_eq!(words, (0..32).map(expected).collect::<Vec<u32>>(), "{opcode}");
    }
}

#[test]
fn lanes_that_meet_count_as_one_instruction() {
    let together = run(32, "mov.u32 %w1, 100;\nshfl.sync.bfly.b32 %w0, %w1, 31, 31, -1;").0.counters;
    let apart = run(32, &late("shfl.sync.bfly.b32 %w0, %w1, 31, 31, -1;")).0.counters;
    assert_eq!(together.class("synchronize"), 1);
    assert_eq!(apart.class("synchronize"), 1);
}

#[test]
fn lanes_that_never_come_are_reported() {
    for (opcode, _) in table() {
        // From lane 10 on they go past the instruction and end.
        let body =
            format!("mov.u32 %w1, 100;\nsetp.ge.u32 %p1, %w15, 10;\n@%p1 bra PAST;\n{opcode}\nPAST:\n");
        let (outcome, _) = run(32, &body);
        let expected = if opcode.contains("bar.sync 0") || opcode.contains("bar.red") {
            Check::BarrierInDivergentCode
        } else {
            Check::MemberMask
        };
        let found = checks(&outcome.reports);
        assert!(found.contains(&expected), "{opcode}: {found:?}");
        let report = outcome.reports.iter().find(|report| report.check == expected).unwrap();
        assert!(report.detail.contains("fffffc00 ended without coming"), "{report}");
    }
}

#[test]
fn lanes_that_ended_before_are_not_waited_for() {
    let body = "mov.u32 %w1, 100;\nsetp.ge.u32 %p1, %w15, 10;\n@%p1 exit;\nredux.sync.add.u32 %w0, %w1, -1;";
    let (outcome, words) = run(32, body);
    assert!(outcome.reports.is_empty(), "{}", describe(&outcome.reports));
    assert_eq!(words[..10], [1000; 10]);
}

#[test]
fn groups_of_lanes_with_masks_of_their_own_do_not_wait_for_each_other() {
    // Groups of eight lanes; each sums its own threads.
    let mask = "and.b32 %w2, %w15, 24;\nmov.u32 %w3, 255;\nshl.b32 %w3, %w3, %w2;\n";
    let sum = |lane: u32| (lane / 8 * 8..lane / 8 * 8 + 8).sum::<u32>();
    let (outcome, words) = run(32, &format!("{mask}redux.sync.add.u32 %w0, %w15, %w3;"));
    assert!(outcome.reports.is_empty(), "{}", describe(&outcome.reports));
    assert_eq!(words, (0..32).map(sum).collect::<Vec<u32>>());
    // The same when lanes of every group come late.
    let body = format!(
        "{mask}and.b32 %w4, %w15, 3;\nsetp.eq.u32 %p1, %w4, 1;\n@%p1 bra LATE;\n\
         MEET:\nredux.sync.add.u32 %w0, %w15, %w3;\nbra DONE;\nLATE:\nbra MEET;\nDONE:"
    );
    let (outcome, words) = run(32, &body);
    assert!(outcome.reports.is_empty(), "{}", describe(&outcome.reports));
    assert_eq!(words, (0..32).map(sum).collect::<Vec<u32>>());
}

#[test]
fn a_lane_that_does_not_name_itself_is_reported() {
    let (outcome, _) = run(32, "vote.sync.any.pred %p2, %p1, 0x7fffffff;\nmov.u32 %w0, 1;");
    let found = checks(&outcome.reports);
    assert!(found.contains(&Check::MemberMask), "{found:?}");
    assert!(outcome.reports.iter().any(|report| report.lane == 31), "{}", describe(&outcome.reports));
}

#[test]
fn warp_barriers_at_two_places_are_one() {
    let body = "shl.b32 %w2, %w15, 2;\nadd.u32 %w2, %w2, %w14;\nst.shared.u32 [%w2], %w15;\n\
                setp.ge.u32 %p1, %w15, 16;\n@%p1 bra UPPER;\nbar.warp.sync -1;\nbra READ;\n\
                UPPER:\nbar.warp.sync -1;\nREAD:\nxor.b32 %w2, %w2, 64;\nld.shared.u32 %w0, [%w2];";
    let (outcome, words) = run(32, body);
    assert!(outcome.reports.is_empty(), "{}", describe(&outcome.reports));
    assert_eq!(words, (0..32).map(|lane| lane ^ 16).collect::<Vec<u32>>());
}

#[test]
fn lanes_that_wait_for_each_other_at_different_instructions_are_reported() {
    // Two warps, as the second must not be taken for what the first waits for.
    let body = "setp.ge.u32 %p1, %w15, 16;\n@%p1 bra UPPER;\nredux.sync.add.u32 %w0, %w15, -1;\nbra DONE;\n\
                UPPER:\nredux.sync.max.u32 %w0, %w15, -1;\nDONE:\nbar.sync 0;";
    let (outcome, _) = run(64, body);
    assert_eq!(checks(&outcome.reports), [Check::MemberMask], "{}", describe(&outcome.reports));
    assert!(outcome.reports[0].detail.contains("wait elsewhere"), "{}", outcome.reports[0]);
    assert_eq!(outcome.reports[0].warp, 0);
}
