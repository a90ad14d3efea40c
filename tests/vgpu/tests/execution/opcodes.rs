//! A vector of cases per opcode, edge values included. Every case is one kernel of one instruction, run on
//! a full warp whose lanes take the rows of the case in turn.

use crate::bench::Bench;
use vgpu::device::Arguments;

/// Runs `opcode d, sources...` for every row of source bits, and gives the bits of d.
fn run(opcode: &str, types: &[&str], rows: &[Vec<u64>]) -> Vec<u64> {
    let width = |kind: &str| match kind {
        "b16" => 2,
        "b64" => 8,
        _ => 4,
    };
    let prefix = |kind: &str| match kind {
        "b16" => "h",
        "b64" => "d",
        _ => "w",
    };
    let sources = types.len() - 1;
    let mut body = String::new();
    let mut operands = vec![format!("%{}0", prefix(types[0]))];
    for (index, kind) in types[1..].iter().enumerate() {
        let register = format!("%{}{}", prefix(kind), index + 1);
        body += &format!("ld.global.{kind} {register}, [%a2+{}];\n", index * 8);
        operands.push(register);
    }
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry case(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .b16 %h<6>;\n.reg .b32 %w<6>;\n.reg .b64 %d<6>;\n.reg .b32 %t<2>;\n.reg .b64 %a<5>;\n.reg .pred %p<4>;\n\
         ld.param.u64 %a0, [in];\nld.param.u64 %a1, [out];\nmov.u32 %t0, %tid.x;\nmul.wide.u32 %a3, %t0, {stride};\n\
         add.s64 %a2, %a0, %a3;\n{body}{opcode} {operands};\nmul.wide.u32 %a3, %t0, 8;\nadd.s64 %a4, %a1, %a3;\n\
         st.global.{to} [%a4], {result};\nret;\n}}\n",
        stride = sources * 8,
        operands = operands.join(", "),
        to = types[0],
        result = operands[0],
    );
    let mut bench = Bench::of_text(&text);
    let input: Vec<u64> = rows.iter().flatten().copied().collect();
    let (x, y) = (bench.upload(&input), bench.upload(&vec![0u64; rows.len()]));
    let threads = rows.len() as u32;
    bench.clean("case", [1, 1, 1], [threads, 1, 1], 0, &Arguments::new().pointer(x).pointer(y));
    let mask = u64::MAX >> (64 - 8 * width(types[0]));
    bench.download::<u64>(y, rows.len()).into_iter().map(|value| value & mask).collect()
}

/// Checks an opcode on rows of sources and the result, all as bits.
fn check(opcode: &str, types: &[&str], cases: &[(&[u64], u64)]) {
    let rows: Vec<Vec<u64>> = cases.iter().map(|(sources, _)| sources.to_vec()).collect();
    for ((sources, expected), actual) in cases.iter().zip(run(opcode, types, &rows)) {
        assert_eq!(actual, *expected, "{opcode} of {sources:x?}: {actual:x} instead of {expected:x}");
    }
}

const W1: &[&str] = &["b32", "b32"];
const W2: &[&str] = &["b32", "b32", "b32"];
const W3: &[&str] = &["b32", "b32", "b32", "b32"];
const W4: &[&str] = &["b32", "b32", "b32", "b32", "b32"];
const D1: &[&str] = &["b64", "b64"];
const D2: &[&str] = &["b64", "b64", "b64"];
const H2: &[&str] = &["b16", "b16", "b16"];

/// The bits of an f32.
fn f(value: f32) -> u64 {
    u64::from(value.to_bits())
}
/// The bits of an f64.
fn d(value: f64) -> u64 {
    value.to_bits()
}
/// An i32 as bits.
fn i(value: i32) -> u64 {
    u64::from(value as u32)
}

const NAN: u64 = 0x7fff_ffff;
const QUIET: u64 = 0x7fc0_1234;
const INFINITY: u64 = 0x7f80_0000;
const MINUS_ZERO: u64 = 0x8000_0000;
const TINY: u64 = 1;

#[test]
fn integers_wrap_saturate_and_divide() {
    check("add.s32", W2, &[(&[i(i32::MAX), 1], i(i32::MIN)), (&[0, 0], 0)]);
    check("add.sat.s32", W2, &[(&[i(i32::MAX), 1], i(i32::MAX)), (&[i(i32::MIN), i(-1)], i(i32::MIN))]);
    check("sub.sat.s32", W2, &[(&[i(i32::MIN), 1], i(i32::MIN)), (&[5, 7], i(-2))]);
    check("mul.lo.s32", W2, &[(&[i(-3), 7], i(-21)), (&[0x1_0001, 0x1_0001], 0x2_0001)]);
    check("mul.hi.s32", W2, &[(&[i(-1), 1], i(-1)), (&[i(i32::MIN), i(i32::MIN)], 0x4000_0000)]);
    check("mul.hi.u32", W2, &[(&[0xffff_ffff, 0xffff_ffff], 0xffff_fffe)]);
    check("mul.wide.s32", &["b64", "b32", "b32"], &[(&[i(-1), 0x7fff_ffff], (-0x7fff_ffffi64) as u64)]);
    check("mul.wide.u32", &["b64", "b32", "b32"], &[(&[0xffff_ffff, 0xffff_ffff], 0xffff_fffe_0000_0001)]);
    check("mul.wide.s16", &["b32", "b16", "b16"], &[(&[0xffff, 0x7fff], i(-0x7fff))]);
    check("mad.lo.s32", W3, &[(&[i(-3), 7, 1], i(-20))]);
    check("mad.hi.u32", W3, &[(&[0x8000_0000, 4, 7], 9)]);
    check("mad.wide.s32", &["b64", "b32", "b32", "b64"], &[(&[i(-2), 3, 10], 4)]);
    check("mul.hi.u64", D2, &[(&[u64::MAX, u64::MAX], u64::MAX - 1)]);
    check("mul.hi.s64", D2, &[(&[(-1i64) as u64, 5], u64::MAX)]);
    check("div.s32", W2, &[(&[i(-7), 2], i(-3)), (&[i(i32::MIN), i(-1)], i(i32::MIN))]);
    check("rem.s32", W2, &[(&[i(-7), 2], i(-1)), (&[7, i(-2)], 1)]);
    check("div.u32", W2, &[(&[0xffff_ffff, 2], 0x7fff_ffff)]);
    check("div.u64", D2, &[(&[u64::MAX, 10], u64::MAX / 10)]);
    check("min.s32", W2, &[(&[i(-1), 1], i(-1))]);
    check("min.u32", W2, &[(&[i(-1), 1], 1)]);
    check("max.s64", D2, &[(&[(-1i64) as u64, 1], 1)]);
    check("abs.s32", W1, &[(&[i(-5)], 5), (&[i(i32::MIN)], i(i32::MIN))]);
    check("neg.s32", W1, &[(&[5], i(-5))]);
    check("sad.s32", W3, &[(&[i(-5), 5, 1], 11)]);
    check("mul24.lo.s32", W2, &[(&[0xff_ffff, 2], i(-2))]);
    check("add.u16", H2, &[(&[0xffff, 2], 1)]);
    check("max.s16", H2, &[(&[0xffff, 1], 1)]);
    check("dp4a.s32.s32", W3, &[(&[0xff02_0304, 0x0101_0101, 10], 18)]);
}

#[test]
fn shifts_clamp_and_funnels_wrap() {
    check("shl.b32", W2, &[(&[1, 31], 0x8000_0000), (&[1, 32], 0), (&[1, 0xffff_ffff], 0)]);
    check("shr.u32", W2, &[(&[0x8000_0000, 31], 1), (&[0x8000_0000, 32], 0)]);
    check(
        "shr.s32",
        W2,
        &[(&[0x8000_0000, 31], i(-1)), (&[0x8000_0000, 99], i(-1)), (&[0x4000_0000, 99], 0)],
    );
    check("shr.s64", &["b64", "b64", "b32"], &[(&[1 << 63, 64], u64::MAX), (&[1 << 62, 64], 0)]);
    check("shl.b64", &["b64", "b64", "b32"], &[(&[1, 63], 1 << 63), (&[1, 64], 0)]);
    check("shf.l.wrap.b32", W3, &[(&[0x8000_0000, 1, 1], 3), (&[7, 9, 32], 9)]);
    check("shf.l.clamp.b32", W3, &[(&[7, 9, 32], 7), (&[7, 9, 40], 7)]);
    check("shf.r.wrap.b32", W3, &[(&[1, 1, 1], 0x8000_0000), (&[7, 9, 33], 0x8000_0003)]);
    check("shf.r.clamp.b32", W3, &[(&[7, 9, 32], 9), (&[7, 9, 40], 9)]);
}

#[test]
fn bits_are_found_moved_and_mixed() {
    check("popc.b32", W1, &[(&[0xffff_ffff], 32), (&[0], 0)]);
    check("clz.b32", W1, &[(&[0], 32), (&[1], 31)]);
    check("clz.b64", &["b32", "b64"], &[(&[0], 64), (&[1], 63)]);
    check("brev.b32", W1, &[(&[1], 0x8000_0000), (&[0xf0], 0x0f00_0000)]);
    check("bfind.u32", W1, &[(&[0], 0xffff_ffff), (&[0x8000_0000], 31)]);
    check("bfind.s32", W1, &[(&[i(-1)], 0xffff_ffff), (&[i(-2)], 0)]);
    check("bfe.u32", W3, &[(&[0xabcd_ef01, 8, 8], 0xef), (&[0xff, 0, 0], 0), (&[0xffff_ffff, 28, 32], 0xf)]);
    check(
        "bfe.s32",
        W3,
        &[(&[0x80, 4, 4], i(-8)), (&[0x8000_0000, 28, 32], i(-8)), (&[0x8000_0000, 40, 4], i(-1))],
    );
    check(
        "bfi.b32",
        W4,
        &[(&[0xf, 0, 4, 4], 0xf0), (&[1, 7, 32, 4], 7), (&[1, 7, 4, 0], 7), (&[0xff, 0, 28, 8], 0xf000_0000)],
    );
    check("bfi.b64", &["b64", "b64", "b64", "b32", "b32"], &[(&[0xff, 0, 60, 8], 0xf000_0000_0000_0000)]);
    check(
        "prmt.b32",
        W3,
        &[(&[0x0302_0100, 0x0706_0504, 0x7531], 0x0705_0301), (&[0x80, 0, 0x8888], 0xffff_ffff)],
    );
    check("prmt.b32.rc16", W3, &[(&[0x0302_0100, 0, 1], 0x0302_0302)]);
    check(
        "lop3.b32",
        W4,
        &[(&[0xf0, 0xcc, 0xaa, 0x96], 0xf0 ^ 0xcc ^ 0xaa), (&[0xf0, 0xcc, 0xaa, 0x80], 0xf0 & 0xcc & 0xaa)],
    );
    check("cnot.b32", W1, &[(&[0], 1), (&[9], 0)]);
    check("not.b64", D1, &[(&[0], u64::MAX)]);
    check("szext.clamp.s32", W2, &[(&[0xff, 8], i(-1)), (&[0x7f, 8], 0x7f), (&[5, 0], 0)]);
    check("bmsk.clamp.b32", W2, &[(&[4, 4], 0xf0), (&[28, 8], 0xf000_0000), (&[40, 1], 0)]);
}

#[test]
fn singles_round_and_keep_to_the_rules_of_nan() {
    check(
        "add.f32",
        W2,
        &[(&[f(1.0), f(2.0)], f(3.0)), (&[QUIET, f(1.0)], NAN), (&[INFINITY, 0xff80_0000], NAN)],
    );
    check("add.rn.f32", W2, &[(&[f(1.0), f(2f32.powi(-25))], f(1.0))]);
    check(
        "add.rp.f32",
        W2,
        &[(&[f(1.0), f(2f32.powi(-25))], f(1.0) + 1), (&[f(-1.0), f(2f32.powi(-25))], f(-1.0) - 1)],
    );
    check(
        "add.rm.f32",
        W2,
        &[(&[f(1.0), f(-1.0)], MINUS_ZERO), (&[f(-1.0), f(-2f32.powi(-25))], f(-1.0) + 1)],
    );
    check("add.rz.f32", W2, &[(&[f(1.0), f(-2f32.powi(-25))], f(1.0) - 1)]);
    check("add.f32", W2, &[(&[TINY, TINY], 2), (&[MINUS_ZERO, MINUS_ZERO], MINUS_ZERO)]);
    check("add.ftz.f32", W2, &[(&[TINY, TINY], 0), (&[TINY, f(1.0)], f(1.0))]);
    check("add.sat.f32", W2, &[(&[f(1.0), f(1.0)], f(1.0)), (&[f(-3.0), f(1.0)], 0), (&[NAN, 0], 0)]);
    // (1 + 2^-23)^2 = 1 + 2^-22 + 2^-46.
    check("mul.rz.f32", W2, &[(&[f(1.0) + 1, f(1.0) + 1], f(1.0) + 2)]);
    check("mul.rp.f32", W2, &[(&[f(1.0) + 1, f(1.0) + 1], f(1.0) + 3)]);
    check(
        "fma.rn.f32",
        W3,
        &[(&[f(1.0) + 1, f(1.0) + 1, f(-1.0)], f((1.0f32 + f32::EPSILON).mul_add(1.0 + f32::EPSILON, -1.0)))],
    );
    check(
        "fma.rz.f32",
        W3,
        &[
            (&[f(1.0), f(1.0), f(2f32.powi(-30))], f(1.0)),
            (&[f(1.0), f(1.0), f(-2f32.powi(-30))], f(1.0) - 1),
        ],
    );
    check("div.rn.f32", W2, &[(&[f(1.0), f(3.0)], f(1.0 / 3.0)), (&[f(1.0), 0], INFINITY), (&[0, 0], NAN)]);
    check(
        "div.rp.f32",
        W2,
        &[(&[f(1.0), f(3.0)], f(1.0 / 3.0)), (&[f(2.0), f(3.0)], f(2.0 / 3.0)), (&[f(1.0), f(10.0)], f(0.1))],
    );
    check("sqrt.rn.f32", W1, &[(&[f(2.0)], f(2f32.sqrt())), (&[f(-1.0)], NAN), (&[MINUS_ZERO], MINUS_ZERO)]);
    check("rcp.rn.f32", W1, &[(&[0], INFINITY), (&[INFINITY], 0)]);
    check("rsqrt.approx.f32", W1, &[(&[f(4.0)], f(0.5)), (&[0], INFINITY)]);
    check("ex2.approx.f32", W1, &[(&[f(3.0)], f(8.0)), (&[0xff80_0000], 0), (&[f(-149.0)], TINY)]);
    check("ex2.approx.ftz.f32", W1, &[(&[f(-149.0)], 0)]);
    check("lg2.approx.f32", W1, &[(&[f(8.0)], f(3.0)), (&[0], 0xff80_0000), (&[f(-1.0)], NAN)]);
    check("min.f32", W2, &[(&[NAN, f(1.0)], f(1.0)), (&[0, MINUS_ZERO], MINUS_ZERO), (&[QUIET, NAN], NAN)]);
    check("max.f32", W2, &[(&[f(-1.0), NAN], f(-1.0)), (&[MINUS_ZERO, 0], 0)]);
    check("max.NaN.f32", W2, &[(&[NAN, f(1.0)], NAN), (&[f(2.0), f(1.0)], f(2.0))]);
    check("abs.f32", W1, &[(&[f(-1.5)], f(1.5))]);
    check("copysign.f32", W2, &[(&[f(-1.0), f(2.0)], f(-2.0))]);
}

#[test]
fn doubles_round_too() {
    check("add.rn.f64", D2, &[(&[d(0.1), d(0.2)], d(0.1 + 0.2))]);
    check("add.rz.f64", D2, &[(&[d(1.0), d(-1e-30)], d(1.0) - 1)]);
    check("add.rp.f64", D2, &[(&[d(1.0), d(1e-30)], d(1.0) + 1)]);
    check("fma.rm.f64", &["b64", "b64", "b64", "b64"], &[(&[d(1.0), d(1.0), d(-1e-30)], d(1.0) - 1)]);
    check("min.f64", D2, &[(&[d(f64::NAN), d(1.0)], d(1.0))]);
    check("div.rn.f64", D2, &[(&[d(1.0), d(3.0)], d(1.0 / 3.0))]);
}

#[test]
fn halves_round_once() {
    // 1 + 2^-8 lies between two bf16 and goes to the even one.
    check(
        "add.bf16",
        H2,
        &[(&[0x3f80, 0x3b80], 0x3f80), (&[0x3f80, 0x3c00], 0x3f81), (&[0x7fc1, 0x3f80], 0x7fff)],
    );
    // The exact difference lies halfway and goes to the even neighbour.
    check("fma.rn.bf16", &["b16", "b16", "b16", "b16"], &[(&[0x3f81, 0x3f81, 0xbf80], 0x3c80)]);
    check("fma.rn.bf16x2", W3, &[(&[0x4000_3f80, 0x4040_3f80, 0x3f80_3f80], 0x40e0_4000)]);
    check("fma.rn.relu.bf16x2", W3, &[(&[0x3f80_3f80, 0xbf80_3f80, 0], 0x0000_3f80)]);
    check(
        "mul.f16",
        H2,
        &[(&[0x7bff, 0x4000], 0x7c00), (&[0x0001, 0x3800], 0x0000), (&[0x0003, 0x3800], 0x0002)],
    );
    check("add.f16x2", W2, &[(&[0x3c00_4000, 0x3c00_4000], 0x4000_4400)]);
    check("max.bf16x2", W2, &[(&[0x7fff_3f80, 0x3f80_4000], 0x3f80_4000)]);
    check("neg.bf16x2", W1, &[(&[0x3f80_bf80], 0xbf80_3f80)]);
}

#[test]
fn conversions_round_clamp_and_extend() {
    let hw: &[&str] = &["b16", "b32"];
    let wh: &[&str] = &["b32", "b16"];
    check(
        "cvt.rn.bf16.f32",
        hw,
        &[(&[0x3f80_8000], 0x3f80), (&[0x3f81_8000], 0x3f82), (&[NAN], 0x7fff), (&[0x7f7f_ffff], 0x7f80)],
    );
    check("cvt.rz.bf16.f32", hw, &[(&[0x3f81_ffff], 0x3f81), (&[0x7f7f_ffff], 0x7f7f)]);
    check("cvt.rn.relu.bf16.f32", hw, &[(&[f(-2.0)], 0), (&[f(2.0)], 0x4000)]);
    check(
        "cvt.rn.f16.f32",
        hw,
        &[
            (&[f(65519.0)], 0x7bff),
            (&[f(65520.0)], 0x7c00),
            (&[f(2f32.powi(-25))], 0),
            (&[f(2f32.powi(-24))], 1),
        ],
    );
    check("cvt.f32.f16", wh, &[(&[0x0001], f(2f32.powi(-24))), (&[0xfc00], 0xff80_0000)]);
    check("cvt.rn.bf16x2.f32", W2, &[(&[f(2.0), f(1.0)], 0x4000_3f80)]);
    check("cvt.rn.satfinite.e4m3x2.f32", &["b16", "b32", "b32"], &[(&[f(1000.0), f(1.0)], 0x7e38)]);
    check("cvt.rna.tf32.f32", W1, &[(&[0x3f80_1000], 0x3f80_2000), (&[0x3f80_0fff], 0x3f80_0000)]);
    check(
        "cvt.rzi.s32.f32",
        W1,
        &[(&[f(-1.9)], i(-1)), (&[NAN], 0), (&[f(3e9)], i(i32::MAX)), (&[0xff80_0000], i(i32::MIN))],
    );
    check("cvt.rni.s32.f32", W1, &[(&[f(2.5)], 2), (&[f(3.5)], 4)]);
    check("cvt.rmi.s32.f32", W1, &[(&[f(-1.1)], i(-2))]);
    check("cvt.rpi.u32.f32", W1, &[(&[f(1.1)], 2), (&[f(-5.0)], 0)]);
    check("cvt.rzi.u32.f32", W1, &[(&[f(-1.0)], 0), (&[f(5e9)], 0xffff_ffff)]);
    check("cvt.rzi.s64.f32", &["b64", "b32"], &[(&[NAN], 1 << 63), (&[f(-2.5)], (-2i64) as u64)]);
    check("cvt.rn.f32.s32", W1, &[(&[i(16_777_217)], f(16_777_216.0)), (&[i(-1)], f(-1.0))]);
    check("cvt.rp.f32.s32", W1, &[(&[i(16_777_217)], f(16_777_218.0))]);
    check("cvt.rn.f32.u64", &["b32", "b64"], &[(&[u64::MAX], f(18_446_744_073_709_551_616.0))]);
    check("cvt.rz.f32.u64", &["b32", "b64"], &[(&[u64::MAX], f(18_446_744_073_709_551_616f32.next_down()))]);
    check("cvt.rn.f32.f64", &["b32", "b64"], &[(&[d(1e300)], INFINITY), (&[d(0.1)], f(0.1))]);
    check("cvt.rz.f32.f64", &["b32", "b64"], &[(&[d(1e300)], 0x7f7f_ffff)]);
    check("cvt.sat.u8.s32", W1, &[(&[i(300)], 255), (&[i(-3)], 0)]);
    check("cvt.sat.s8.s32", W1, &[(&[i(300)], 127), (&[i(-300)], i(-128))]);
    check("cvt.s32.s8", W1, &[(&[0x80], i(-128))]);
    check("cvt.u32.u8", W1, &[(&[0xff80], 0x80)]);
    check("cvt.s64.s32", &["b64", "b32"], &[(&[i(-1)], u64::MAX)]);
    check("cvt.u32.u64", &["b32", "b64"], &[(&[0x1_2345_6789], 0x2345_6789)]);
    check("cvt.sat.f32.f32", W1, &[(&[f(1.5)], f(1.0)), (&[NAN], 0), (&[f(-1.0)], 0)]);
    check("cvt.rzi.f32.f32", W1, &[(&[f(-1.7)], f(-1.0))]);
}

/// Runs a body on one warp; `%w0` goes out for every lane.
fn warp(body: &str) -> Vec<u32> {
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry case(.param .u64 out)\n{{\n\
         .reg .b32 %w<16>;\n.reg .b64 %d<8>;\n.reg .pred %p<8>;\n.shared .align 16 .b8 tile[1024];\n\
         mov.u32 %w15, %tid.x;\n{body}\n\
         ld.param.u64 %d6, [out];\nmul.wide.u32 %d7, %w15, 4;\nadd.s64 %d6, %d6, %d7;\nst.global.u32 [%d6], %w0;\nret;\n}}\n"
    );
    let mut bench = Bench::of_text(&text);
    let out = bench.empty(128);
    bench.clean("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
    bench.download::<u32>(out, 32)
}

#[test]
fn lanes_shuffle_vote_and_match() {
    let each = |value: &dyn Fn(u32) -> u32| (0..32).map(value).collect::<Vec<u32>>();
    assert_eq!(warp("shfl.sync.bfly.b32 %w0, %w15, 5, 31, -1;"), each(&|lane| lane ^ 5));
    assert_eq!(
        warp("shfl.sync.up.b32 %w0, %w15, 3, 0, -1;"),
        each(&|lane| if lane < 3 { lane } else { lane - 3 })
    );
    assert_eq!(
        warp("shfl.sync.down.b32 %w0, %w15, 3, 31, -1;"),
        each(&|lane| if lane > 28 { lane } else { lane + 3 })
    );
    assert_eq!(warp("shfl.sync.idx.b32 %w0, %w15, 7, 31, -1;"), each(&|_| 7));
    // Segments of eight: the clamp keeps a shuffle within its own.
    assert_eq!(warp("shfl.sync.idx.b32 %w0, %w15, 1, 6175, -1;"), each(&|lane| lane / 8 * 8 + 1));
    assert_eq!(
        warp("shfl.sync.down.b32 %w0|%p1, %w15, 4, 6175, -1;\nselp.b32 %w0, %w0, 99, %p1;"),
        each(&|lane| if lane % 8 < 4 { lane + 4 } else { 99 })
    );
    assert_eq!(warp("setp.lt.u32 %p1, %w15, 9;\nvote.sync.ballot.b32 %w0, %p1, -1;"), each(&|_| 0x1ff));
    assert_eq!(
        warp("setp.lt.u32 %p1, %w15, 9;\nvote.sync.any.pred %p2, !%p1, -1;\nselp.b32 %w0, 1, 0, %p2;"),
        each(&|_| 1)
    );
    assert_eq!(
        warp("setp.lt.u32 %p1, %w15, 32;\nvote.sync.all.pred %p2, %p1, -1;\nselp.b32 %w0, 1, 0, %p2;"),
        each(&|_| 1)
    );
    assert_eq!(
        warp("and.b32 %w1, %w15, 3;\nmatch.any.sync.b32 %w0, %w1, -1;"),
        each(&|lane| 0x1111_1111 << (lane % 4))
    );
    assert_eq!(warp("and.b32 %w1, %w15, 0;\nmatch.all.sync.b32 %w0|%p1, %w1, -1;"), each(&|_| u32::MAX));
    assert_eq!(warp("redux.sync.add.s32 %w0, %w15, -1;"), each(&|_| 496));
    assert_eq!(warp("sub.s32 %w1, %w15, 5;\nredux.sync.min.s32 %w0, %w1, -1;"), each(&|_| -5i32 as u32));
    assert_eq!(warp("activemask.b32 %w0;"), each(&|_| u32::MAX));
}

#[test]
fn predicates_carry_and_packs() {
    let each = |value: &dyn Fn(u32) -> u32| (0..32).map(value).collect::<Vec<u32>>();
    assert_eq!(
        warp(
            "setp.gt.u32 %p0, %w15, 3;\nsetp.lt.and.u32 %p1|%p2, %w15, 8, %p0;\nselp.b32 %w1, 1, 0, %p1;\nselp.b32 %w2, 2, 0, %p2;\nadd.s32 %w0, %w1, %w2;"
        ),
        each(&|lane| if lane <= 3 {
            0
        } else if lane < 8 {
            1
        } else {
            2
        })
    );
    assert_eq!(
        warp("mov.u32 %w1, -1;\nadd.cc.u32 %w2, %w1, %w15;\naddc.u32 %w0, 0, 0;"),
        each(&|lane| u32::from(lane > 0))
    );
    assert_eq!(
        warp("sub.cc.u32 %w2, %w15, 16;\nsubc.u32 %w0, 0, 0;"),
        each(&|lane| if lane < 16 { u32::MAX } else { 0 })
    );
    assert_eq!(
        warp(
            "mov.b64 %d1, {%w15, 7};\nmov.b64 {_, %w1}, %d1;\nmov.b64 {%w2, _}, %d1;\nmad.lo.s32 %w0, %w1, 100, %w2;"
        ),
        each(&|lane| 700 + lane)
    );
    assert_eq!(
        warp(
            "setp.eq.f32 %p1, 0f7FC00000, 0f7FC00000;\nsetp.neu.f32 %p2, 0f7FC00000, 0f3F800000;\nselp.b32 %w1, 1, 0, %p1;\nselp.b32 %w2, 2, 0, %p2;\nadd.s32 %w0, %w1, %w2;"
        ),
        each(&|_| 2)
    );
}

#[test]
fn shared_atomics_and_narrow_accesses() {
    let each = |value: &dyn Fn(u32) -> u32| (0..32).map(value).collect::<Vec<u32>>();
    let zeroed = "mov.u64 %d0, tile;\nmul.wide.u32 %d1, %w15, 4;\nadd.s64 %d1, %d0, %d1;\nst.shared.u32 [%d1], 0;\nbar.warp.sync -1;\n";
    let read = "bar.warp.sync -1;\nld.shared.u32 %w0, [tile];";
    let run = |body: &str| warp(&format!("{zeroed}{body}\n{read}"));
    assert_eq!(run("red.shared.add.u32 [tile], %w15;"), each(&|_| 496));
    assert_eq!(run("red.shared.max.s32 [tile], %w15;"), each(&|_| 31));
    assert_eq!(run("red.shared.or.b32 [tile], %w15;"), each(&|_| 31));
    assert_eq!(run("atom.shared.inc.u32 %w3, [tile], 9;"), each(&|_| 2));
    assert_eq!(run("atom.shared.cas.b32 %w3, [tile], 0, 5;"), each(&|_| 5));
    assert_eq!(
        run("cvt.rn.f32.u32 %w1, %w15;\nred.shared.add.f32 [tile], %w1;"),
        each(&|_| 496f32.to_bits())
    );
    // Bytes: a signed load extends the sign.
    assert_eq!(
        warp(
            "cvt.u64.u32 %d1, %w15;\nmov.u64 %d0, tile;\nadd.s64 %d1, %d0, %d1;\nor.b32 %w1, %w15, 128;\nst.shared.u8 [%d1], %w1;\nld.shared.s8 %w0, [%d1];"
        ),
        each(&|lane| lane | 0xffff_ff80)
    );
}

#[test]
fn comparisons_set_ones_and_compare_two_halves() {
    // Halves: 1, 2 and NaN.
    let (one, two, nan) = (0x3c00u64, 0x4000u64, 0x7e00u64);
    check(
        "set.lt.u32.f32",
        W2,
        &[(&[f(1.0), f(2.0)], 0xffff_ffff), (&[f(2.0), f(1.0)], 0), (&[NAN, f(1.0)], 0)],
    );
    check("set.ltu.u32.f32", W2, &[(&[NAN, f(1.0)], 0xffff_ffff)]);
    check("set.ge.f32.s32", W2, &[(&[i(-1), i(-1)], f(1.0)), (&[i(-2), i(-1)], 0)]);
    check("set.ge.f32.u32", W2, &[(&[i(-1), 5], f(1.0))]);
    check("set.eq.ftz.s32.f32", W2, &[(&[TINY, MINUS_ZERO], 0xffff_ffff)]);
    check("set.eq.s32.f32", W2, &[(&[TINY, MINUS_ZERO], 0)]);
    check("set.nan.f16.f16", H2, &[(&[nan, nan], 0x3c00), (&[one, one], 0)]);
    check("set.gt.bf16.bf16", H2, &[(&[0x4000, 0x3f80], 0x3f80), (&[0x3f80, 0x4000], 0)]);
    check(
        "set.gt.f16x2.f16x2",
        W2,
        &[(&[one << 16 | two, two << 16 | one], 0x3c00), (&[two << 16, 0], 0x3c00_0000)],
    );
    check("set.le.bf16x2.bf16x2", W2, &[(&[0x3f80_4000, 0x4000_3f80], 0x3f80_0000)]);
    check(
        "set.neu.u32.f16x2",
        W2,
        &[(&[nan << 16 | one, nan << 16 | one], 0xffff_0000), (&[one, two], 0xffff)],
    );
    let packed = |body: &str| warp(&format!("mov.b32 %w1, 0x3C004000;\nmov.b32 %w2, 0x40003C00;\n{body}"))[0];
    let both = "selp.b32 %w3, 1, 0, %p1;\nselp.b32 %w4, 2, 0, %p2;\nadd.s32 %w0, %w3, %w4;";
    assert_eq!(packed(&format!("setp.gt.f16x2 %p1|%p2, %w1, %w2;\n{both}")), 1);
    assert_eq!(packed(&format!("setp.lt.f16x2 %p1|%p2, %w1, %w2;\n{both}")), 2);
    assert_eq!(
        packed(&format!("setp.eq.u32 %p3, %w1, 0;\nsetp.ne.xor.f16x2 %p1|%p2, %w1, %w2, !%p3;\n{both}")),
        0
    );
    // Halves that are too small to be normal are zeros to .ftz, and no others are.
    check("set.eq.ftz.u32.f16", &["b32", "b16", "b16"], &[(&[1, 0x8000], 0xffff_ffff), (&[one, 0], 0)]);
    let half = |op: &str, a: u32, b: u32| {
        warp(&format!(
            "mov.b32 %w1, {a};\nmov.b32 %w2, {b};\nsetp.{op}.f16 %p1, %w1, %w2;\nselp.b32 %w0, 1, 0, %p1;"
        ))[0]
    };
    assert_eq!((half("lt.ftz", 0x3c00, 0x4000), half("eq.ftz", 1, 0), half("eq", 1, 0)), (1, 1, 0));
    // A logic of three with a predicate.
    let lop =
        |body: &str| warp(&format!("mov.b32 %w1, 12;\nmov.b32 %w2, 10;\nmov.b32 %w3, 3;\n{body}\n{both}"))[0];
    let with = "setp.eq.u32 %p3, %w1, 0;\nmov.pred %p2, %p3;\nlop3";
    assert_eq!(lop(&format!("{with}.or.b32 %w5|%p1, %w1, %w2, %w3, 0x80, %p3;")), 0, "12 & 10 & 3 is 0");
    assert_eq!(lop(&format!("{with}.or.b32 %w5|%p1, %w1, %w2, %w3, 0xfe, %p3;")), 1);
    assert_eq!(lop(&format!("{with}.and.b32 %w5|%p1, %w1, %w2, %w3, 0xfe, %p3;")), 0);
}

#[test]
fn packed_integers_and_modifiers_of_halves() {
    const HALF3: &[&str] = &["b16", "b16", "b16", "b16"];
    check("dp2a.lo.u32.u32", W3, &[(&[0xffff_0002, 0x00ff_ff03, 1], 0xffff * 0xff + 7)]);
    check("dp2a.hi.u32.u32", W3, &[(&[0xffff_0002, 0x0203_0000, 1], 2 * 0xffff + 7)]);
    check("dp2a.lo.s32.u32", W3, &[(&[0xffff_0002, 0x0000_ff03, 0], i(6 - 255))]);
    check("dp2a.hi.u32.s32", W3, &[(&[0xffff_0002, 0xff03_0000, 0], i(6 - 0xffff))]);
    check("vabsdiff4.u32.u32.u32", W3, &[(&[0x0102_ff00, 0x0201_00ff, 9], 0x0101_ffff)]);
    check("vabsdiff4.u32.u32.u32.add", W3, &[(&[0x0102_ff00, 0x0201_00ff, 9], 521)]);
    check("cvt.pack.sat.u16.s32", W2, &[(&[70_000, i(-1)], 0xffff_0000), (&[3, 4], 0x3_0004)]);
    check("cvt.pack.sat.s16.s32", W2, &[(&[i(-70_000), i(-1)], 0x8000_ffff)]);
    check("cvt.pack.sat.u8.s32.b32", W3, &[(&[300, i(-5), 0xabcd_1234], 0x1234_ff00)]);
    check("cvt.pack.sat.s8.s32.b32", W3, &[(&[300, i(-5), 0xabcd_1234], 0x1234_7ffb)]);
    check("max.relu.s32", W2, &[(&[i(-5), i(-7)], 0), (&[5, i(-7)], 5)]);
    check("min.relu.s32", W2, &[(&[i(-5), 7], 0), (&[5, 7], 5)]);
    check("add.s16x2", W2, &[(&[0xffff_0001, 0x0001_ffff], 0)]);
    check("max.s16x2", W2, &[(&[0xffff_0001, 0x0001_ffff], 0x0001_0001)]);
    check("min.u16x2", W2, &[(&[0xffff_0001, 0x0001_ffff], 0x0001_0001)]);
    check("min.relu.s16x2", W2, &[(&[0xffff_0005, 0x0001_0007], 5)]);
    // 1.5 + 1 stays at 1, and what is below 0 at 0.
    check(
        "add.sat.f16",
        H2,
        &[(&[0x3e00, 0x3c00], 0x3c00), (&[0xbe00, 0x3c00], 0), (&[0x3400, 0x3400], 0x3800)],
    );
    check("add.sat.f16x2", W2, &[(&[0x3e00_be00, 0x3c00_3c00], 0x3c00_0000)]);
    check("fma.rn.sat.f16", HALF3, &[(&[0x4000, 0x4000, 0x3c00], 0x3c00)]);
    check("add.ftz.f16", H2, &[(&[1, 1], 0), (&[1, 0x3c00], 0x3c00)]);
    check("add.f16", H2, &[(&[1, 1], 2)]);
    check("mul.ftz.f16x2", W2, &[(&[0x3c00_0001, 0x3c00_3c00], 0x3c00_0000)]);
    check("fma.rn.sat.f64", &["b64", "b64", "b64", "b64"], &[(&[d(2.0), d(3.0), d(1.0)], d(1.0))]);
    check("min.xorsign.abs.f32", W2, &[(&[f(-3.0), f(2.0)], f(-2.0)), (&[f(-3.0), f(-2.0)], f(2.0))]);
    check("max.xorsign.abs.f32", W2, &[(&[f(-3.0), f(2.0)], f(-3.0)), (&[NAN, NAN], NAN)]);
    check("max.NaN.xorsign.abs.f32", W2, &[(&[NAN, f(-2.0)], NAN), (&[f(1.0), f(-2.0)], f(-2.0))]);
    check("add.rn.f32x2", D2, &[(&[f(1.0) << 32 | f(2.0), f(3.0) << 32 | f(-5.0)], f(4.0) << 32 | f(-3.0))]);
    // A modifier that is not known is none that may be passed over.
    for opcode in ["add.rn.oob.f16", "min.abs.f32", "min.xorsign.abs.f16"] {
        let text = format!(
            ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n.reg.b32 %r<3>;\n{opcode} %r0, %r1, %r2;\nret;\n}}\n"
        );
        let error = crate::bench::device().load(&text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(opcode), "{error}");
    }
}

#[test]
fn an_unknown_opcode_is_named() {
    let text = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n.reg .b32 %r<3>;\nvadd4.u32.u32.u32 %r1, %r2, 0, 1;\nret;\n}\n";
    let error = crate::bench::device().load(text).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("vadd4.u32.u32.u32") && error.contains("line 7"), "{error}");
}

#[test]
fn the_nth_set_bit_is_found_upwards_and_downwards() {
    // Bits 2, 3 and 5 of a mask.
    let find =
        |base: u32, offset: i32| warp(&format!("mov.u32 %w1, 44;\nfns.b32 %w0, %w1, {base}, {offset};"))[0];
    let none = u32::MAX;
    for (base, offset, found) in [
        (0, 1, 2),
        (2, 1, 2),
        (0, 3, 5),
        (0, 4, none),
        (3, 0, 3),
        (4, 0, none),
        (31, -1, 5),
        (4, -2, 2),
        (1, -1, none),
    ] {
        assert_eq!(find(base, offset), found, "from {base}, the {offset}th");
    }
}

#[test]
fn the_size_of_a_warp_has_a_name() {
    assert_eq!(warp("mov.u32 %w0, WARP_SZ;"), [32; 32]);
}

#[test]
fn f64_rounds_as_it_is_told_beyond_every_limit() {
    let (least, most) = (f64::from_bits(1), f64::MAX);
    let third = 1.0f64 / 3.0;
    check("div.rn.f64", D2, &[(&[d(1.0), d(3.0)], d(third))]);
    check("div.rz.f64", D2, &[(&[d(1.0), d(3.0)], d(third)), (&[d(-2.0), d(3.0)], d(-2.0 / 3.0))]);
    check("div.rp.f64", D2, &[(&[d(1.0), d(3.0)], d(third.next_up())), (&[d(6.0), d(3.0)], d(2.0))]);
    check("div.rm.f64", D2, &[(&[d(-1.0), d(3.0)], d(-(third.next_up()))), (&[d(least), d(2.0)], 0)]);
    check("rcp.rp.f64", D1, &[(&[d(3.0)], d(third.next_up())), (&[d(0.0)], d(f64::INFINITY))]);
    let root = 2f64.sqrt();
    // 1.414213562373095145 is nearest to the root of 2, and below it is 1.414213562373094923.
    check("sqrt.rn.f64", D1, &[(&[d(2.0)], d(root))]);
    check("sqrt.rm.f64", D1, &[(&[d(2.0)], d(root.next_down())), (&[d(4.0)], d(2.0))]);
    check("sqrt.rp.f64", D1, &[(&[d(2.0)], d(root))]);
    // What leaves the range downwards stays at the largest number, and what vanishes at the least.
    check("mul.rz.f64", D2, &[(&[d(most), d(2.0)], d(most)), (&[d(least), d(0.5)], 0)]);
    check("mul.rp.f64", D2, &[(&[d(least), d(0.5)], d(least)), (&[d(-most), d(2.0)], d(-most))]);
    check("add.rm.f64", D2, &[(&[d(most), d(most)], d(most)), (&[d(1.0), d(-1.0)], d(-0.0))]);
    check("add.rp.f64", D2, &[(&[d(-most), d(-most)], d(-most)), (&[d(1.0), d(least)], d(1f64.next_up()))]);
}
