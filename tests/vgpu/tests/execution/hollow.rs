//! Values that were never computed, and bytes that nobody wrote: they may be moved about, and count where somebody goes by
//! them.

use crate::bench::Bench;
use crate::compare::checks;
use vgpu::check::Check;
use vgpu::device::Arguments;

/// Runs one warp, of which every lane has the address of four shared bytes in `%w2`, and `%w3` without a value; gives the
/// failed checks and what each lane leaves in `%w0`.
fn run(body: &str) -> (Vec<Check>, Vec<u32>) {
    run_on("sm_80", body)
}

/// As [`run`], on a device of that architecture, with 128 bytes of zeros at `[%d3]` and an mbarrier's place `gate`.
fn run_on(architecture: &str, body: &str) -> (Vec<Check>, Vec<u32>) {
    let text = format!(
        ".version 9.0\n.target {architecture}\n.address_size 64\n.visible .entry case(.param .u64 out, .param .u64 zeros)\n{{\n\
         .reg .b32 %w<32>;\n.reg .b64 %d<4>;\n.reg .pred %p<8>;\n.shared .align 16 .b8 own[1024];\n\
         .shared .align 8 .b64 gate;\nld.param.u64 %d3, [zeros];\n\
         .local .align 8 .b8 apart[16];\nmov.u32 %w1, %tid.x;\nmov.u32 %w2, own;\nmad.lo.u32 %w2, %w1, 4, %w2;\n\
         mov.u32 %w0, 1;\n{body}\nld.param.u64 %d1, [out];\nmul.wide.u32 %d2, %w1, 4;\nadd.s64 %d1, %d1, %d2;\n\
         st.global.u32 [%d1], %w0;\nret;\n}}\n"
    );
    let mut bench = Bench::of_text_for(architecture, &text);
    let (out, zeros) = (bench.empty(128), bench.upload(&[0u32; 32]));
    let arguments = Arguments::new().pointer(out).pointer(zeros);
    let outcome = bench.launch("case", [1, 1, 1], [32, 1, 1], 0, &arguments);
    (checks(&outcome.reports), bench.download(out, 32))
}

#[test]
fn what_was_never_computed_may_lie_in_the_memory_of_a_block_or_a_thread() {
    for [store, load] in [
        ["st.shared.u32 [%w2], %w3;", "ld.shared.u32 %w4, [%w2];"],
        ["st.local.u32 [apart+4], %w3;", "ld.local.u32 %w4, [apart+4];"],
        ["st.shared.v2.u32 [%w2], {%w3, %w1};", "ld.shared.u32 %w4, [%w2];"],
    ] {
        let apart = if store.contains("v2") { "mad.lo.u32 %w2, %w1, 4, %w2;\n" } else { "" };
        assert_eq!(run(&format!("{apart}{store}\n{load}")), (vec![], vec![1; 32]), "{store}");
        for use_of_it in ["mov.u32 %w0, %w4;", "setp.eq.u32 %p1, %w4, 0;\n@%p1 bra HERE;\nHERE:\n"] {
            let found = run(&format!("{apart}{store}\n{load}\n{use_of_it}")).0;
            assert_eq!(found, [Check::UninitializedRegister], "{store} {use_of_it}");
        }
        // Written anew, it is as good as any.
        let again = store.replace("%w3", "5");
        assert_eq!(
            run(&format!("{apart}{store}\n{again}\n{load}\nmov.u32 %w0, %w4;")),
            (vec![], vec![5; 32]),
            "{store}"
        );
    }
}

#[test]
fn what_was_never_computed_does_not_leave_a_block_unseen() {
    let stored = |value: &str| format!("st.shared.u32 [%w2], {value};\n");
    let lane_0 = "setp.eq.u32 %p1, %w1, 0;\n";
    let out = "bar.warp.sync -1;\nfence.proxy.async;\nbar.warp.sync -1;\n\
               @%p1 cp.async.bulk.global.shared::cta.bulk_group [%d3], [own], 128;\n\
               @%p1 cp.async.bulk.commit_group;\n@%p1 cp.async.bulk.wait_group 0;\nbar.warp.sync -1;";
    for (architecture, leaves) in
        [("sm_80", "atom.shared.add.u32 %w4, [%w2], 1;".to_string()), ("sm_90", format!("{lane_0}{out}"))]
    {
        let body = |value: &str| stored(value) + &leaves;
        assert_eq!(run_on(architecture, &body("5")), (vec![], vec![1; 32]), "{leaves}");
        assert_eq!(run_on(architecture, &body("%w3")).0, [Check::UninitializedRegister], "{leaves}");
    }
}

#[test]
fn what_a_bulk_copy_brings_takes_the_place_of_what_was_never_computed() {
    let body = "st.shared.u32 [%w2], %w3;\nsetp.eq.u32 %p1, %w1, 0;\nmov.u32 %w5, gate;\n\
                @%p1 mbarrier.init.shared.b64 [%w5], 1;\nbar.warp.sync -1;\nfence.proxy.async;\nbar.warp.sync -1;\n\
                mov.u32 %w6, own;\n@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%w5], 128;\n\
                @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%w6], [%d3], 128, [%w5];\n\
                WAIT:\nmbarrier.try_wait.parity.shared.b64 %p2, [%w5], 0;\n@!%p2 bra WAIT;\nld.shared.u32 %w0, [%w2];";
    assert_eq!(run_on("sm_90", body), (vec![], vec![0; 32]));
}

#[test]
fn the_other_half_of_a_pair_keeps_its_value() {
    let body = "mad.lo.u32 %w2, %w1, 4, %w2;\nst.shared.v2.u32 [%w2], {%w3, %w1};\nld.shared.v2.u32 {%w4, %w0}, [%w2];";
    assert_eq!(run(body), (vec![], (0..32).collect()));
}

#[test]
fn what_nobody_wrote_is_told_of_at_the_load_when_somebody_goes_by_it() {
    for (load, check) in [
        ("ld.shared.u32 %w4, [%w2];", Check::UninitializedShared),
        ("ld.local.u32 %w4, [apart+8];", Check::UninitializedLocal),
    ] {
        assert_eq!(run(load), (vec![], vec![1; 32]), "{load}");
        assert_eq!(run(&format!("{load}\nadd.u32 %w5, %w4, 1;\nmov.u32 %w0, %w5;")).0, [check], "{load}");
    }
}

#[test]
fn a_predicate_that_cannot_matter_may_hold_nothing() {
    let body = |mixed: &str| {
        format!(
            "ld.shared.u32 %w4, [%w2];\nsetp.eq.u32 %p1, %w4, 0;\nsetp.lt.u32 %p2, %w1, 40;\nsetp.gt.u32 %p3, %w1, 40;\n\
             {mixed}\nselp.u32 %w0, 6, 7, %p4;"
        )
    };
    assert_eq!(run(&body("and.pred %p4, %p1, %p3;")), (vec![], vec![7; 32]));
    assert_eq!(run(&body("or.pred %p4, %p1, %p2;")), (vec![], vec![6; 32]));
    for mixed in ["and.pred %p4, %p1, %p2;", "or.pred %p4, %p1, %p3;", "xor.pred %p4, %p1, %p3;"] {
        assert_eq!(run(&body(mixed)).0, [Check::UninitializedShared], "{mixed}");
    }
}

#[test]
fn rows_of_a_product_that_nobody_wrote_harm_only_themselves() {
    // Of sixteen rows of ones the upper eight are written: ldmatrix finds rows 8 to 15 in lanes 8 to 15 and 24 to 31.
    let body = |keep: &str| {
        format!(
            "mov.u32 %w2, own;\nmad.lo.u32 %w2, %w1, 16, %w2;\nand.b32 %w4, %w1, 8;\nsetp.eq.u32 %p1, %w4, 0;\n\
             mov.u32 %w5, 0x3f803f80;\n@%p1 st.shared.v4.u32 [%w2], {{%w5, %w5, %w5, %w5}};\nbar.warp.sync -1;\n\
             ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%w6, %w7, %w8, %w9}}, [%w2];\nmov.u32 %w10, 0;\n\
             mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%w11, %w12, %w13, %w14}}, {{%w6, %w7, %w8, %w9}}, \
             {{%w5, %w5}}, {{%w10, %w10, %w10, %w10}};\nmov.u32 %w0, {keep};"
        )
    };
    for upper in ["%w11", "%w12"] {
        assert_eq!(run(&body(upper)), (vec![], vec![16f32.to_bits(); 32]), "{upper}");
    }
    for lower in ["%w13", "%w14"] {
        assert_eq!(run(&body(lower)).0, [Check::UninitializedShared], "{lower}");
    }
}
