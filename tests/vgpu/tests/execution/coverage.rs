//! What of the PTX ISA is known: for every instruction of the manual, forms as nvcc writes them are loaded in a kernel of their
//! own. The table in the README is made of that, and this test fails where the two differ.
//!
//! `VGPU_WRITE_README=1 cargo test -p vgpu --test execution coverage` writes the table anew.

use std::fmt::Write as _;

use vgpu::device::Device;
use vgpu::profile::Profile;

/// Instructions by name, and forms that stand for them.
type Instructions = (&'static str, &'static [&'static str]);

/// A section of the manual and, for each of its instructions, forms that stand for it. A form is an opcode with operands over
/// registers `%w` (32 bits or less), `%d` (64 bits) and `%p`, the shared array `tile` and the argument `arg`.
const FORMS: &[(&str, &[Instructions])] = &[
    (
        "Integer arithmetic",
        &[
            (
                "add, sub",
                &[
                    "add.s32 %w1, %w2, %w3",
                    "add.u64 %d1, %d2, 5",
                    "sub.s16 %w1, %w2, %w3",
                    "add.sat.s32 %w1, %w2, %w3",
                ],
            ),
            (
                "mul",
                &[
                    "mul.lo.s32 %w1, %w2, %w3",
                    "mul.hi.u64 %d1, %d2, %d3",
                    "mul.wide.u16 %w1, %w2, %w3",
                    "mul.wide.s32 %d1, %w2, %w3",
                ],
            ),
            (
                "mad",
                &[
                    "mad.lo.s32 %w1, %w2, %w3, %w4",
                    "mad.wide.u32 %d1, %w2, %w3, %d4",
                    "mad.hi.s32 %w1, %w2, %w3, %w4",
                ],
            ),
            ("mul24, mad24", &["mul24.lo.u32 %w1, %w2, %w3", "mad24.lo.s32 %w1, %w2, %w3, %w4"]),
            ("sad", &["sad.u32 %w1, %w2, %w3, %w4"]),
            ("div, rem", &["div.s32 %w1, %w2, %w3", "rem.u64 %d1, %d2, %d3"]),
            ("abs, neg", &["abs.s32 %w1, %w2", "neg.s64 %d1, %d2"]),
            (
                "min, max",
                &[
                    "min.s32 %w1, %w2, %w3",
                    "max.u64 %d1, %d2, %d3",
                    "min.s16x2 %w1, %w2, %w3",
                    "add.u16x2 %w1, %w2, %w3",
                    "max.relu.s32 %w1, %w2, %w3",
                ],
            ),
            (
                "popc, clz, bfind, brev",
                &[
                    "popc.b64 %w1, %d2",
                    "clz.b32 %w1, %w2",
                    "bfind.u32 %w1, %w2",
                    "bfind.shiftamt.s32 %w1, %w2",
                    "brev.b64 %d1, %d2",
                ],
            ),
            (
                "bfe, bfi, bmsk, szext, fns",
                &[
                    "bfe.u32 %w1, %w2, %w3, %w4",
                    "bfi.b64 %d1, %d2, %d3, %w4, %w5",
                    "bmsk.clamp.b32 %w1, %w2, %w3",
                    "szext.wrap.s32 %w1, %w2, %w3",
                    "fns.b32 %w1, %w2, %w3, %w4",
                ],
            ),
            (
                "cvt.pack, instructions on four bytes",
                &[
                    "cvt.pack.sat.u8.s32.b32 %w1, %w2, %w3, %w4",
                    "vabsdiff4.u32.u32.u32.add %w1, %w2, %w3, %w4",
                    "vadd4.u32.u32.u32 %w1, %w2, %w3, %w4",
                ],
            ),
            ("dp4a, dp2a", &["dp4a.u32.s32 %w1, %w2, %w3, %w4", "dp2a.lo.s32.u32 %w1, %w2, %w3, %w4"]),
            (
                "add.cc, addc, sub.cc, subc, mad.cc, madc",
                &[
                    "add.cc.u32 %w1, %w2, %w3",
                    "addc.u32 %w1, %w2, %w3",
                    "sub.cc.u64 %d1, %d2, %d3",
                    "subc.cc.u32 %w1, %w2, %w3",
                    "mad.lo.cc.u32 %w1, %w2, %w3, %w4",
                    "madc.hi.u32 %w1, %w2, %w3, %w4",
                ],
            ),
        ],
    ),
    (
        "Floating point",
        &[
            (
                "add, sub, mul, fma, mad",
                &[
                    "add.f32 %w1, %w2, %w3",
                    "sub.rn.ftz.f32 %w1, %w2, %w3",
                    "mul.rz.f64 %d1, %d2, %d3",
                    "fma.rn.f32 %w1, %w2, %w3, %w4",
                    "fma.rn.sat.f32 %w1, %w2, %w3, %w4",
                    "mad.rn.f32 %w1, %w2, %w3, %w4",
                ],
            ),
            ("add.f32x2 and its kind", &["add.rn.f32x2 %d1, %d2, %d3"]),
            (
                "div, rcp, sqrt, rsqrt",
                &[
                    "div.rn.f32 %w1, %w2, %w3",
                    "div.approx.ftz.f32 %w1, %w2, %w3",
                    "div.full.f32 %w1, %w2, %w3",
                    "rcp.rn.f64 %d1, %d2",
                    "sqrt.rn.f32 %w1, %w2",
                    "sqrt.approx.f32 %w1, %w2",
                    "rsqrt.approx.ftz.f64 %d1, %d2",
                    "sqrt.rz.f64 %d1, %d2",
                    "div.rp.f64 %d1, %d2, %d3",
                ],
            ),
            (
                "abs, neg, min, max, copysign, testp",
                &[
                    "abs.ftz.f32 %w1, %w2",
                    "neg.f64 %d1, %d2",
                    "min.NaN.f32 %w1, %w2, %w3",
                    "min.xorsign.abs.f32 %w1, %w2, %w3",
                    "max.f32 %w1, %w2, %w3",
                    "copysign.f32 %w1, %w2, %w3",
                    "testp.finite.f32 %p1, %w2",
                ],
            ),
            ("three-input min, max", &["max.f32 %w1, %w2, %w3, %w4"]),
            (
                "sin, cos, lg2, ex2, tanh",
                &[
                    "sin.approx.f32 %w1, %w2",
                    "cos.approx.ftz.f32 %w1, %w2",
                    "lg2.approx.f32 %w1, %w2",
                    "ex2.approx.ftz.f32 %w1, %w2",
                    "tanh.approx.f32 %w1, %w2",
                    "ex2.approx.f16x2 %w1, %w2",
                    "tanh.approx.bf16x2 %w1, %w2",
                ],
            ),
            (
                "f16 and bf16 arithmetic",
                &[
                    "add.f16 %w1, %w2, %w3",
                    "add.ftz.sat.f16x2 %w1, %w2, %w3",
                    "fma.rn.bf16x2 %w1, %w2, %w3, %w4",
                    "mul.rn.f16x2 %w1, %w2, %w3",
                    "fma.rn.relu.f16x2 %w1, %w2, %w3, %w4",
                    "max.NaN.bf16x2 %w1, %w2, %w3",
                    "neg.bf16 %w1, %w2",
                    "sub.bf16x2 %w1, %w2, %w3",
                ],
            ),
        ],
    ),
    (
        "Comparison, logic, moves",
        &[
            (
                "set, setp, selp, slct",
                &[
                    "set.lt.u32.f32 %w1, %w2, %w3",
                    "set.gtu.bf16x2.bf16x2 %w1, %w2, %w3",
                    "setp.ge.and.s32 %p1|%p2, %w2, %w3, %p3",
                    "setp.eq.f16x2 %p1|%p2, %w2, %w3",
                    "setp.neu.f64 %p1, %d2, %d3",
                    "selp.b64 %d1, %d2, %d3, %p1",
                    "slct.f32.s32 %w1, %w2, %w3, %w4",
                ],
            ),
            (
                "and, or, xor, not, cnot, lop3",
                &[
                    "and.b32 %w1, %w2, 7",
                    "or.pred %p1, %p2, %p3",
                    "xor.b64 %d1, %d2, %d3",
                    "not.b16 %w1, %w2",
                    "cnot.b32 %w1, %w2",
                    "lop3.b32 %w1, %w2, %w3, %w4, 0xea",
                    "lop3.or.b32 %w1|%p1, %w2, %w3, %w4, 0xea, %p2",
                ],
            ),
            (
                "shl, shr, shf, prmt",
                &[
                    "shl.b64 %d1, %d2, %w3",
                    "shr.s32 %w1, %w2, %w3",
                    "shf.l.wrap.b32 %w1, %w2, %w3, %w4",
                    "shf.r.clamp.b32 %w1, %w2, %w3, %w4",
                    "prmt.b32 %w1, %w2, %w3, %w4",
                    "prmt.b32.f4e %w1, %w2, %w3, %w4",
                ],
            ),
            (
                "mov, cvta, isspacep, mapa, getctarank",
                &[
                    "mov.b64 %d1, {%w1, %w2}",
                    "mov.b32 {%w1, %w2}, %w3",
                    "mov.u32 %w1, tile",
                    "cvta.to.global.u64 %d1, %d2",
                    "cvta.shared.u64 %d1, %d2",
                    "isspacep.shared %p1, %d2",
                    "mapa.shared::cluster.u32 %w1, %w2, %w3",
                    "getctarank.u64 %w1, %d2",
                ],
            ),
            (
                "cvt",
                &[
                    "cvt.rn.f32.s32 %w1, %w2",
                    "cvt.rzi.s64.f32 %d1, %w2",
                    "cvt.rn.bf16x2.f32 %w1, %w2, %w3",
                    "cvt.rn.f16.f32 %w1, %w2",
                    "cvt.f32.bf16 %w1, %w2",
                    "cvt.rna.tf32.f32 %w1, %w2",
                    "cvt.sat.u8.s32 %w1, %w2",
                    "cvt.rn.relu.f16x2.f32 %w1, %w2, %w3",
                    "cvt.rpi.f32.f32 %w1, %w2",
                ],
            ),
            (
                "cvt of 8-bit floats",
                &["cvt.rn.satfinite.e4m3x2.f32 %w1, %w2, %w3", "cvt.rn.f16x2.e4m3x2 %w1, %w2"],
            ),
            ("cvt.pack", &["cvt.pack.sat.s8.s32.b32 %w1, %w2, %w3, %w4"]),
            (
                "shfl, elect",
                &[
                    "shfl.sync.bfly.b32 %w1|%p1, %w2, 1, 31, -1",
                    "shfl.sync.idx.b32 %w1, %w2, %w3, 31, %w4",
                    "elect.sync %w1|%p1, %w2",
                ],
            ),
        ],
    ),
    (
        "Memory",
        &[
            (
                "ld, ldu, st",
                &[
                    "ld.global.nc.L1::no_allocate.v4.u32 {%w1, %w2, %w3, %w4}, [%d1]",
                    "ld.shared.v2.f32 {%w1, %w2}, [tile+8]",
                    "ld.const.u8 %w1, [%d2]",
                    "ld.param.u64 %d1, [arg]",
                    "ld.volatile.global.s16 %w1, [%d2]",
                    "ld.acquire.gpu.global.u32 %w1, [%d2]",
                    "ld.relaxed.sys.u64 %d1, [%d2]",
                    "ldu.global.f32 %w1, [%d2]",
                    "st.global.cs.v2.b64 [%d1], {%d2, %d3}",
                    "st.shared::cluster.u32 [%w1], %w2",
                    "st.release.cta.u32 [%d1], %w2",
                    "ld.global.L1::evict_last.L2::256B.f32 %w1, [%d2]",
                ],
            ),
            (
                "ld, st with a cache policy",
                &[
                    "ld.global.L2::cache_hint.u32 %w1, [%d2], %d3",
                    "createpolicy.fractional.L2::evict_first.b64 %d1, 0f3f800000",
                    "createpolicy.fractional.L2::evict_last.b64 %d1",
                ],
            ),
            (
                "ld, st of 32 bytes",
                &[
                    "ld.global.v8.f32 {%w1, %w2, %w3, %w4, %w5, %w6, %w7, %w8}, [%d1]",
                    "st.global.v4.b64 [%d1], {%d2, %d3, %d4, %d5}",
                ],
            ),
            (
                "atom, red",
                &[
                    "atom.global.add.u32 %w1, [%d1], %w2",
                    "atom.shared.cas.b64 %d1, [%w1], %d2, %d3",
                    "atom.global.cas.b16 %w1, [%d1], %w2, %w3",
                    "red.global.add.f32 [%d1], %w2",
                    "red.relaxed.gpu.global.add.noftz.bf16x2 [%d1], %w2",
                    "atom.acq_rel.gpu.global.exch.b32 %w1, [%d1], %w2",
                    "atom.global.v4.f32.add {%w1, %w2, %w3, %w4}, [%d1], {%w5, %w6, %w7, %w8}",
                    "red.shared.max.s32 [%w1], %w2",
                    "atom.global.inc.u32 %w1, [%d1], %w2",
                    "red.global.add.f64 [%d1], %d2",
                ],
            ),
            ("atom, st and ld of 128 bits", &["atom.global.cas.b128 %d1, [%d1], %d2, %d3"]),
            (
                "red.async, st.async, st.bulk",
                &[
                    "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%w1], %w2, [%w3]",
                    "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%w1], %w2, [%w3]",
                    "st.bulk.weak.shared::cta [%d1], %d2, 0",
                ],
            ),
            (
                "prefetch, discard, applypriority",
                &[
                    "prefetch.global.L2 [%d1]",
                    "prefetchu.L1 [%d1]",
                    "prefetch.tensormap [%d1]",
                    "discard.global.L2 [%d1], 128",
                    "applypriority.global.L2::evict_normal [%d1], 128",
                ],
            ),
            (
                "cp.async",
                &[
                    "cp.async.ca.shared.global [%w1], [%d1], 4",
                    "cp.async.cg.shared.global.L2::128B [%w1], [%d1], 16, %w2",
                    "cp.async.commit_group",
                    "cp.async.wait_group 1",
                    "cp.async.wait_all",
                    "cp.async.mbarrier.arrive.noinc.shared.b64 [%w1]",
                ],
            ),
            (
                "cp.async.bulk",
                &[
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%w1], [%d1], %w2, [%w3]",
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%w1], [%d1], %w2, [%w3], %w4",
                    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%w1], [%w2], %w3, [%w4]",
                    "cp.async.bulk.global.shared::cta.bulk_group [%d1], [%w1], %w2",
                    "cp.async.bulk.commit_group",
                    "cp.async.bulk.wait_group.read 0",
                    "cp.async.bulk.prefetch.L2.global [%d1], %w1",
                ],
            ),
            (
                "cp.async.bulk.tensor, tiled",
                &[
                    "cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%w1], [%d1, {%w2}], [%w3]",
                    "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%w1], [%d1, {%w2, %w3, %w4, %w5, %w6}], [%w7], %w8, %d2",
                    "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%d1, {%w1, %w2}], [%w3]",
                    "cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%d1, {%w1, %w2}]",
                ],
            ),
            (
                "cp.async.bulk.tensor, im2col and gathered",
                &[
                    "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%w1], [%d1, {%w2, %w3, %w4}], [%w5], {%w6}",
                ],
            ),
            (
                "cp.reduce.async.bulk",
                &[
                    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%d1], [%w1], %w2",
                    "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%d1, {%w1, %w2}], [%w3]",
                ],
            ),
            (
                "tensormap.replace",
                &["tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%w1], %d1"],
            ),
            ("multimem", &["multimem.ld_reduce.relaxed.sys.global.add.f32 %w1, [%d1]"]),
            (
                "tex, tld4, txq, suld, sust, sured, suq",
                &[
                    "tex.1d.v4.f32.s32 {%w1, %w2, %w3, %w4}, [%d1, {%w5}]",
                    "suld.b.1d.b32.trap {%w1}, [%d1, {%w2}]",
                    "txq.width.b32 %w1, [%d1]",
                ],
            ),
        ],
    ),
    (
        "Control and synchronisation",
        &[
            ("bra, brx, call, ret, exit, trap", &["ret", "exit", "trap", "brkpt"]),
            (
                "bar, barrier",
                &[
                    "bar.sync 0",
                    "bar.arrive 1, 64",
                    "barrier.sync.aligned 2, 64",
                    "bar.red.popc.u32 %w1, 0, %p1",
                    "barrier.sync %w1",
                    "bar.warp.sync %w1",
                ],
            ),
            (
                "barrier.cluster",
                &[
                    "barrier.cluster.arrive.release.aligned",
                    "barrier.cluster.wait.acquire.aligned",
                    "barrier.cluster.arrive.relaxed",
                ],
            ),
            (
                "membar, fence",
                &["membar.gl", "membar.cta", "fence.acq_rel.gpu", "fence.sc.sys", "fence.acq_rel.cluster"],
            ),
            (
                "fence.proxy, fence.mbarrier_init",
                &[
                    "fence.proxy.async",
                    "fence.proxy.async.shared::cta",
                    "fence.mbarrier_init.release.cluster",
                    "fence.proxy.tensormap::generic.release.gpu",
                    "fence.proxy.alias",
                ],
            ),
            (
                "mbarrier",
                &[
                    "mbarrier.init.shared.b64 [%w1], %w2",
                    "mbarrier.inval.shared.b64 [%w1]",
                    "mbarrier.arrive.shared.b64 %d1, [%w1]",
                    "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 %d1, [%w1], %w2",
                    "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%w1], %w2",
                    "mbarrier.arrive_drop.shared.b64 %d1, [%w1]",
                    "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%w1], %w2",
                    "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%w1], %w2",
                    "mbarrier.test_wait.shared.b64 %p1, [%w1], %d1",
                    "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p1, [%w1], %w2, %w3",
                    "mbarrier.pending_count.b64 %w1, %d1",
                ],
            ),
            (
                "vote, match, activemask, redux",
                &[
                    "vote.sync.ballot.b32 %w1, %p1, -1",
                    "vote.sync.all.pred %p1, %p2, -1",
                    "match.any.sync.b32 %w1, %w2, -1",
                    "match.all.sync.b64 %w1|%p1, %d2, -1",
                    "activemask.b32 %w1",
                    "redux.sync.add.s32 %w1, %w2, -1",
                ],
            ),
            ("redux of f32", &["redux.sync.min.f32 %w1, %w2, -1"]),
            (
                "griddepcontrol, setmaxnreg, nanosleep, pmevent",
                &[
                    "griddepcontrol.wait",
                    "griddepcontrol.launch_dependents",
                    "setmaxnreg.dec.sync.aligned.u32 40",
                    "nanosleep.u32 %w1",
                    "pmevent 7",
                ],
            ),
            (
                "clusterlaunchcontrol",
                &[
                    "clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.b128 [%w1], [%w2]",
                ],
            ),
            ("stacksave, stackrestore, alloca", &["stacksave.u64 %d1", "alloca.u64 %d1, 64"]),
        ],
    ),
    (
        "Matrices",
        &[
            (
                "ldmatrix, stmatrix",
                &[
                    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%w1, %w2, %w3, %w4}, [%w5]",
                    "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%w1, %w2}, [%w5]",
                    "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%w5], {%w1, %w2, %w3, %w4}",
                ],
            ),
            ("movmatrix", &["movmatrix.sync.aligned.m8n8.trans.b16 %w1, %w2"]),
            (
                "mma.sync of bf16, f16, tf32",
                &[
                    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%w1, %w2, %w3, %w4}, {%w5, %w6, %w7, %w8}, {%w9, %w10}, {%w1, %w2, %w3, %w4}",
                    "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%w1, %w2}, {%w5, %w6}, {%w9}, {%w1, %w2}",
                    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%w1, %w2, %w3, %w4}, {%w5, %w6, %w7, %w8}, {%w9, %w10}, {%w1, %w2, %w3, %w4}",
                ],
            ),
            (
                "mma.sync of integers, 8-bit floats, f64",
                &[
                    "mma.sync.aligned.m16n8k64.row.col.satfinite.s32.s4.u4.s32 {%w1, %w2, %w3, %w4}, {%w5, %w6, %w7, %w8}, {%w9, %w10}, {%w1, %w2, %w3, %w4}",
                    "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%d1, %d2, %d3, %d4}, {%d1, %d2, %d3, %d4}, {%d5, %d6}, {%d1, %d2, %d3, %d4}",
                    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%w1, %w2, %w3, %w4}, {%w5, %w6, %w7, %w8}, {%w9, %w10}, {%w1, %w2, %w3, %w4}",
                    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%w1, %w2, %w3, %w4}, {%w5, %w6, %w7, %w8}, {%w9, %w10}, {%w1, %w2, %w3, %w4}",
                ],
            ),
            (
                "mma.sync of bits, m8n8k4 of f16",
                &[
                    "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%w1, %w2, %w3, %w4}, {%w5, %w6, %w7, %w8}, {%w9, %w10}, {%w1, %w2, %w3, %w4}",
                ],
            ),
            (
                "mma.sp",
                &[
                    "mma.sp.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%w1, %w2, %w3, %w4}, {%w5, %w6}, {%w7, %w8}, {%w1, %w2, %w3, %w4}, %w9, 0",
                ],
            ),
            (
                "wmma of bf16, f16, tf32, s8, f64",
                &[
                    "wmma.load.a.sync.aligned.row.m16n16k16.shared.bf16 {%w1, %w2, %w3, %w4}, [%w5], %w6",
                    "wmma.load.a.sync.aligned.row.m32n8k16.shared.f16 {%w1, %w2, %w3, %w4, %w5, %w6, %w7, %w8}, [%w5], %w6",
                    "wmma.load.b.sync.aligned.col.m16n16k8.global.tf32 {%w1, %w2, %w3, %w4}, [%d5], %w6",
                    "wmma.mma.sync.aligned.row.col.m8n32k16.s32.s8.s8.s32.satfinite {%w1, %w2, %w3, %w4, %w5, %w6, %w7, %w8}, {%w9}, {%w1, %w2, %w3, %w4}, {%w1, %w2, %w3, %w4, %w5, %w6, %w7, %w8}",
                    "wmma.store.d.sync.aligned.row.m8n8k4.global.f64 [%d5], {%d1, %d2}, %w6",
                ],
            ),
            ("wmma of s4, bits", &["wmma.load.a.sync.aligned.row.m8n8k32.global.s4 {%w1}, [%d5], %w6"]),
            (
                "wgmma of bf16, f16, tf32, 8-bit floats, integers",
                &[
                    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%w1, %w2, %w3, %w4}, %d1, %d2, %p1, 1, 1, 0, 1",
                    "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {%w1, %w2}, {%w5, %w6, %w7, %w8}, %d2, %p1, 1, 1, 0",
                    "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%w1, %w2, %w3, %w4}, %d1, %d2, %p1, 1, 1",
                    "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%w1, %w2, %w3, %w4}, %d1, %d2, %p1, 1, 1",
                    "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.u8.satfinite {%w1, %w2, %w3, %w4}, %d1, %d2, %p1",
                    "wgmma.fence.sync.aligned",
                    "wgmma.commit_group.sync.aligned",
                    "wgmma.wait_group.sync.aligned 0",
                ],
            ),
            (
                "wgmma of bits; wgmma.sp",
                &[
                    "wgmma.mma_async.sync.aligned.m64n8k256.s32.b1.b1.and.popc {%w1, %w2, %w3, %w4}, %d1, %d2, %p1",
                    "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%w1, %w2, %w3, %w4}, %d1, %d2, %w5, 0, %p1, 1, 1, 0, 0",
                ],
            ),
            ("tcgen05", &["tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%w1], 32"]),
        ],
    ),
    (
        "Video",
        &[(
            "vadd, vset, vmad and their kind",
            &["vadd.s32.u32.s32.sat %w1, %w2, %w3", "vmad.s32.s32.u32 %w1, %w2, %w3, %w4"],
        )],
    ),
    (
        "Special registers",
        &[
            (
                "of threads, blocks, clusters",
                &[
                    "mov.u32 %w1, %tid.x",
                    "mov.u32 %w1, %ntid.z",
                    "mov.u32 %w1, %ctaid.y",
                    "mov.u32 %w1, %nctaid.x",
                    "mov.u32 %w1, %laneid",
                    "mov.u32 %w1, %warpid",
                    "mov.u32 %w1, %nwarpid",
                    "mov.u32 %w1, %smid",
                    "mov.u32 %w1, %nsmid",
                    "mov.u32 %w1, %clusterid.x",
                    "mov.u32 %w1, %nclusterid.x",
                    "mov.u32 %w1, %cluster_ctaid.x",
                    "mov.u32 %w1, %cluster_nctaid.x",
                    "mov.u32 %w1, %cluster_ctarank",
                    "mov.u32 %w1, %cluster_nctarank",
                    "mov.pred %p1, %is_explicit_cluster",
                    "mov.u64 %d1, %gridid",
                    "mov.u32 %w1, %lanemask_lt",
                ],
            ),
            (
                "of clocks and sizes",
                &[
                    "mov.u32 %w1, %clock",
                    "mov.u32 %w1, %clock_hi",
                    "mov.u64 %d1, %clock64",
                    "mov.u64 %d1, %globaltimer",
                    "mov.u32 %w1, %globaltimer_lo",
                    "mov.u32 %w1, %dynamic_smem_size",
                    "mov.u32 %w1, %total_smem_size",
                    "mov.u32 %w1, %aggr_smem_size",
                    "mov.u32 %w1, %reserved_smem_offset_begin",
                ],
            ),
            (
                "of the environment and counters",
                &[
                    "mov.b32 %w1, %envreg3",
                    "mov.u32 %w1, %pm0",
                    "mov.u64 %d1, %pm0_64",
                    "mov.u64 %d1, %current_graph_exec",
                ],
            ),
            ("WARP_SZ", &["mov.u32 %w1, WARP_SZ", "setp.eq.u32 %p1, %w1, WARP_SZ"]),
        ],
    ),
];

/// Directives and what else is written outside of instructions, as pieces of a module before its kernel, and of the kernel:
/// between its parameters and its body, and at the beginning of the body.
type Pieces = (&'static str, &'static [[&'static str; 3]]);

const DIRECTIVES: &[Pieces] = &[
    (
        "of launches: .maxntid, .reqntid, .minnctapersm, .maxnctapersm, .maxnreg",
        &[
            [".pragma \"nounroll\";", ".maxntid 128, 1, 1 .minnctapersm 2", ""],
            ["", ".reqntid 64 .maxnreg 64", ""],
            ["", ".maxntid 128 .maxnctapersm 2", ""],
        ],
    ),
    (
        ".reqnctapercluster, .explicitcluster, .maxclusterrank, .blocksareclusters",
        &[
            ["", ".reqnctapercluster 2, 1, 1", ""],
            ["", ".explicitcluster .maxclusterrank 8", ""],
            ["", ".reqntid 32, 1, 1 .reqnctapercluster 2 .blocksareclusters", ""],
        ],
    ),
    (
        ".pragma, .file, .loc, .section",
        &[
            [".file 1 \"a.cu\"\n.section .debug_str { .b8 97, 0 }", "", ".loc 1 3 4"],
            ["", "", ".pragma \"nounroll\";"],
        ],
    ),
    (
        ".visible, .extern, .weak, .common, .alias, .noreturn",
        &[
            [".common .global .align 4 .b32 shared_word;", "", ""],
            [".weak .global .align 4 .u32 weak_word = 3;", "", ""],
            [".extern .shared .align 16 .b8 room[];", "", ""],
            [".extern .func (.param .b32 r) elsewhere (.param .b32 x);", "", ""],
            [".visible .func quiet () .noreturn { trap; }", "", ""],
            [".func one () { ret; }\n.alias other, one;", "", ""],
        ],
    ),
    (
        "variables: .global, .const, .shared, .local, .align, .v2, .v4, .attribute, initial values",
        &[
            [".global .attribute(.managed) .align 4 .b32 word;", "", ""],
            [".global .attribute(.unified(1, 2)) .align 4 .b32 word;", "", ""],
            [".const .align 8 .f64 two[2] = {0d3FF8000000000000, 2.5};", "", ""],
            [".global .align 16 .v4 .f32 vector;", "", ".local .align 8 .b8 depot[24];"],
            [".global .align 8 .u64 to = generic(of);\n.global .align 4 .u32 of;", "", ""],
        ],
    ),
    (
        ".branchtargets, .calltargets, .callprototype",
        &[
            ["", "", "brx.idx %w1, list;\nlist: .branchtargets one, two;\none: two:"],
            ["", "", "proto: .callprototype _ (.param .b32 _);"],
        ],
    ),
    (
        "calls through pointers",
        &[["", "", "call (%w1), %d1, (%w2), proto;\nproto: .callprototype (.reg .b32 _) _ (.reg .b32 _);"]],
    ),
    ("functions that call themselves", &[[".func again () { call again; ret; }", "", "call again;"]]),
    (
        "printf, malloc, free",
        &[
            [
                ".extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 a);",
                "",
                "{ .param .b64 f; .param .b64 a; .param .b32 r; st.param.b64 [f], 0; st.param.b64 [a], 0; call.uni (r), vprintf, (f, a); }",
            ],
            [
                ".extern .func (.param .b64 r) malloc (.param .b64 s);",
                "",
                "{ .param .b64 s; .param .b64 r; st.param.b64 [s], 8; call.uni (r), malloc, (s); }",
            ],
        ],
    ),
    (
        "textures, surfaces and samplers that are parameters",
        &[["", "", "tex.1d.v4.s32.s32 {%w1, %w2, %w3, %w4}, [%d1, {%w5}];"]],
    ),
    (".b128", &[["", "", ".reg .b128 %q<2>;\nmov.b128 %q1, {%d1, %d2};"]]),
];

/// Whether such a module loads.
fn module_is_known([before, between, inside]: &[&str; 3]) -> bool {
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n{before}\n.visible .entry case(.param .u64 arg) {between}\n{{\n\
         .reg .b32 %w<16>;\n.reg .b64 %d<8>;\n.reg .pred %p<4>;\n{inside}\nret;\n}}\n"
    );
    let mut device = Device::new(Profile::by_name("sm_90").unwrap());
    device.load(&text).is_ok()
}

/// Whether a form loads: in a kernel for 9.0a, and none for newer architectures.
fn is_known(form: &str) -> bool {
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry case(.param .u64 arg)\n{{\n.reg .b32 %w<16>;\n\
         .reg .b64 %d<8>;\n.reg .pred %p<4>;\n.shared .align 16 .b8 tile[64];\n{form};\nret;\n}}\n"
    );
    let mut device = Device::new(Profile::by_name("sm_90").unwrap());
    device.load(&text).is_ok()
}

fn table() -> String {
    let mut out = String::from("| of the PTX ISA | known | left out |\n|---|---|---|\n");
    for (section, instructions) in FORMS {
        let (mut known, mut left) = (Vec::new(), Vec::new());
        for (name, forms) in *instructions {
            let refused: Vec<&str> = forms.iter().filter(|form| !is_known(form)).copied().collect();
            if refused.is_empty() {
                known.push((*name).to_string());
            } else if refused.len() == forms.len() {
                left.push((*name).to_string());
            } else {
                known.push((*name).to_string());
                left.extend(
                    refused.iter().map(|form| format!("`{}`", form.split(' ').next().unwrap_or(form))),
                );
            }
        }
        writeln!(out, "| {section} | {} | {} |", known.join("; "), left.join("; ")).unwrap();
    }
    let (mut known, mut left) = (Vec::new(), Vec::new());
    for (name, pieces) in DIRECTIVES {
        let loads = pieces.iter().filter(|pieces| module_is_known(pieces)).count();
        assert!(loads == 0 || loads == pieces.len(), "{name}: {loads} of {} load", pieces.len());
        if loads == 0 { left.push(*name) } else { known.push(*name) }
    }
    writeln!(out, "| Directives, calls, types | {} | {} |", known.join("; "), left.join("; ")).unwrap();
    out
}

#[test]
fn the_readme_says_what_is_known() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (start, end) =
        ("<!-- coverage: made by tests/execution/coverage.rs -->\n", "<!-- end of coverage -->");
    let (before, rest) = text.split_once(start).expect("the README has a place for the table");
    let (old, after) = rest.split_once(end).expect("the README says where the table ends");
    let new = table();
    if std::env::var_os("VGPU_WRITE_README").is_some() {
        std::fs::write(&path, format!("{before}{start}{new}{end}{after}")).unwrap();
    } else {
        assert_eq!(old, new, "VGPU_WRITE_README=1 writes the table anew");
    }
}

#[test]
fn instructions_of_newer_architectures_are_refused_by_name() {
    for (target, form) in [
        ("sm_90a", "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%w1], 32"),
        ("sm_90a", "clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p1, %d1"),
        (
            "sm_120a",
            "mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e4m3.e2m1.f32 {%w1, %w2}, {%w3}, {%w4}, {%w5}",
        ),
    ] {
        let text = format!(
            ".version 9.0\n.target {target}\n.address_size 64\n.visible .entry case()\n{{\n.reg .b32 %w<8>;\n.reg .b64 %d<8>;\n\
             .reg .pred %p<4>;\n{form};\nret;\n}}\n"
        );
        let mut device = Device::new(Profile::by_name(target.trim_end_matches('a')).unwrap());
        let error = device.load(&text).err().unwrap().to_string();
        let opcode = form.split(' ').next().unwrap();
        assert!(error.contains(opcode) && error.contains("not modelled"), "{error}");
    }
}
