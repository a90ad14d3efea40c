//! `mma.sync` of integers, 8-bit floats and f64: every register is filled by the formulas of the figures of the PTX manual, by
//! number of the element, and for bytes also by `ldmatrix`, which knows no columns.

use crate::bench::{Bench, Draw};
use vgpu::device::Arguments;

/// A shape: opcode, rows, depth, bits of an element, and the figures of A and B: element, group and thread to row and column.
struct Case {
    opcode: &'static str,
    rows: usize,
    depth: usize,
    bits: usize,
    a: fn(usize, usize, usize) -> (usize, usize),
    b: fn(usize, usize, usize) -> (usize, usize),
}

const CASES: &[Case] = &[
    Case {
        opcode: "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
        rows: 16,
        depth: 32,
        bits: 8,
        a: |i, g, t| {
            let upper = i < 4 || (8..12).contains(&i);
            (if upper { g } else { g + 8 }, t * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
        },
        b: |i, g, t| (t * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, g),
    },
    // CUTLASS has the word at the end.
    Case {
        opcode: "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32.satfinite",
        rows: 16,
        depth: 32,
        bits: 8,
        a: |i, g, t| {
            let upper = i < 4 || (8..12).contains(&i);
            (if upper { g } else { g + 8 }, t * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
        },
        b: |i, g, t| (t * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, g),
    },
    Case {
        opcode: "mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32",
        rows: 16,
        depth: 16,
        bits: 8,
        a: |i, g, t| (if i < 4 { g } else { g + 8 }, t * 4 + (i & 3)),
        b: |i, g, t| (t * 4 + i, g),
    },
    Case {
        opcode: "mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32",
        rows: 8,
        depth: 16,
        bits: 8,
        a: |i, g, t| (g, t * 4 + i),
        b: |i, g, t| (t * 4 + i, g),
    },
    Case {
        opcode: "mma.sync.aligned.m16n8k64.row.col.s32.s4.u4.s32",
        rows: 16,
        depth: 64,
        bits: 4,
        a: |i, g, t| {
            let upper = i < 8 || (16..24).contains(&i);
            (if upper { g } else { g + 8 }, t * 8 + (i & 7) + if i < 16 { 0 } else { 32 })
        },
        b: |i, g, t| (t * 8 + (i & 7) + if i < 8 { 0 } else { 32 }, g),
    },
    Case {
        opcode: "mma.sync.aligned.m16n8k32.row.col.s32.u4.s4.s32",
        rows: 16,
        depth: 32,
        bits: 4,
        a: |i, g, t| (if i < 8 { g } else { g + 8 }, t * 8 + (i & 7)),
        b: |i, g, t| (t * 8 + i, g),
    },
    Case {
        opcode: "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32",
        rows: 16,
        depth: 32,
        bits: 8,
        a: |i, g, t| {
            let upper = i < 4 || (8..12).contains(&i);
            (if upper { g } else { g + 8 }, t * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
        },
        b: |i, g, t| (t * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, g),
    },
    Case {
        opcode: "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64",
        rows: 8,
        depth: 4,
        bits: 64,
        a: |_, g, t| (g, t),
        b: |_, g, t| (t, g),
    },
    Case {
        opcode: "mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64",
        rows: 16,
        depth: 4,
        bits: 64,
        a: |i, g, t| (if i == 0 { g } else { g + 8 }, t),
        b: |_, g, t| (t, g),
    },
    Case {
        opcode: "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64",
        rows: 16,
        depth: 8,
        bits: 64,
        a: |i, g, t| (if i % 2 == 0 { g } else { g + 8 }, if i < 2 { t } else { t + 4 }),
        b: |i, g, t| (if i == 0 { t } else { t + 4 }, g),
    },
    Case {
        opcode: "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64",
        rows: 16,
        depth: 16,
        bits: 64,
        a: |i, g, t| (if i % 2 == 0 { g } else { g + 8 }, i / 2 * 4 + t),
        b: |i, g, t| (i * 4 + t, g),
    },
];

/// The bits of a small whole number as an element of a type.
fn encode(kind: &str, value: i64) -> u64 {
    match kind {
        "f64" => (value as f64).to_bits(),
        "e4m3" | "e5m2" => {
            let fraction = if kind == "e4m3" { 3 } else { 2 };
            let bias = if kind == "e4m3" { 7 } else { 15 };
            let size = value.unsigned_abs();
            let sign = if value < 0 { 0x80 } else { 0 };
            if size == 0 {
                return sign;
            }
            let exponent = u64::from(size.ilog2());
            sign | (exponent + bias) << fraction | (size << fraction >> exponent) & ((1 << fraction) - 1)
        }
        "s4" | "u4" => value as u64 & 15,
        _ => value as u64 & 0xff,
    }
}

/// A kernel that loads so many registers of each fragment a lane, multiplies, and stores the sums.
fn kernel(opcode: &str, long: bool, [a, b, c]: [usize; 3]) -> String {
    let (kind, size) = if long { ("b64", 8) } else { ("b32", 4) };
    let names = |from: usize, count: usize| {
        (from..from + count).map(|index| format!("%v{index}")).collect::<Vec<_>>().join(", ")
    };
    let loads: String = (0..a + b + c)
        .map(|index| format!("ld.global.{kind} %v{index}, [%d1+{}];\n", index * size))
        .collect();
    let stores: String = (0..c)
        .map(|index| format!("st.global.{kind} [%d2+{}], %v{};\n", index * size, a + b + index))
        .collect();
    format!(
        ".version 9.0\n.target sm_90\n.address_size 64\n.visible .entry case(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .{kind} %v<32>;\n.reg .b32 %t;\n.reg .b64 %d<4>;\nld.param.u64 %d1, [in];\nld.param.u64 %d2, [out];\n\
         mov.u32 %t, %tid.x;\nmul.wide.u32 %d3, %t, {};\nadd.s64 %d1, %d1, %d3;\nmul.wide.u32 %d3, %t, {};\n\
         add.s64 %d2, %d2, %d3;\n{loads}{opcode} {{{sums}}}, {{{}}}, {{{}}}, {{{sums}}};\n{stores}ret;\n}}\n",
        (a + b + c) * size,
        c * size,
        names(0, a),
        names(a, b),
        sums = names(a + b, c),
    )
}

#[test]
fn products_of_integers_bytes_and_f64_follow_the_figures() {
    for case in CASES {
        let parts: Vec<&str> = case.opcode.split('.').collect();
        let [.., to, a_kind, b_kind, _] = parts[..] else { panic!("{}", case.opcode) };
        let mut draw = Draw(9);
        let mut whole = |kind: &str| {
            let value = (draw.next() * 7.0).round() as i64;
            if kind.starts_with('u') { value.abs() } else { value }
        };
        let a: Vec<Vec<i64>> =
            (0..case.rows).map(|_| (0..case.depth).map(|_| whole(a_kind)).collect()).collect();
        let b: Vec<Vec<i64>> = (0..case.depth).map(|_| (0..8).map(|_| whole(b_kind)).collect()).collect();
        let c: Vec<Vec<i64>> = (0..case.rows).map(|_| (0..8).map(|_| whole("s32")).collect()).collect();
        let (long, per) = (case.bits == 64, 32usize.div_ceil(case.bits).max(1));
        let counts = [case.rows * case.depth / 32 / per, case.depth / 4 / per, case.rows / 4];
        let (mut words, mut longs): (Vec<u32>, Vec<u64>) = (Vec::new(), Vec::new());
        let place = |index: usize, lane: usize| (lane / 4 + 8 * (index / 2), 2 * (lane % 4) + index % 2);
        let sum_bits = |value: i64| match to {
            "f32" => u64::from((value as f32).to_bits()),
            "f64" => (value as f64).to_bits(),
            _ => u64::from(value as u32),
        };
        for lane in 0..32 {
            let (group, thread) = (lane / 4, lane % 4);
            let mut put = |values: Vec<u64>| {
                for register in values.chunks(per) {
                    let joined = register
                        .iter()
                        .enumerate()
                        .fold(0u64, |all, (at, one)| all | one << (at * case.bits % 64));
                    if long { longs.push(joined) } else { words.push(joined as u32) }
                }
            };
            put((0..counts[0] * per)
                .map(|i| {
                    let (row, column) = (case.a)(i, group, thread);
                    encode(a_kind, a[row][column])
                })
                .collect());
            put((0..counts[1] * per)
                .map(|i| {
                    let (row, column) = (case.b)(i, group, thread);
                    encode(b_kind, b[row][column])
                })
                .collect());
            for index in 0..counts[2] {
                let (row, column) = place(index, lane);
                let bits = sum_bits(c[row][column]);
                if long { longs.push(bits) } else { words.push(bits as u32) }
            }
        }
        let mut device = crate::bench::device();
        device.profile = vgpu::profile::Profile::by_name("sm_90").unwrap();
        let module = device.load(&kernel(case.opcode, long, counts)).unwrap();
        let mut bench = Bench { device, module };
        let input = if long { bench.upload(&longs) } else { bench.upload(&words) };
        let out = bench.empty(32 * counts[2] * 8);
        bench.clean("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(input).pointer(out));
        let found: Vec<u64> = if long {
            bench.download(out, 32 * counts[2])
        } else {
            bench.download::<u32>(out, 32 * counts[2]).into_iter().map(u64::from).collect()
        };
        for (at, bits) in found.iter().enumerate() {
            let (row, column) = place(at % counts[2], at / counts[2]);
            let expected = c[row][column] + (0..case.depth).map(|k| a[row][k] * b[k][column]).sum::<i64>();
            assert_eq!(*bits, sum_bits(expected), "{} row {row} column {column}", case.opcode);
        }
    }
}

/// Sums that leave s32 wrap, or with `.satfinite` stay at its ends.
#[test]
fn sums_of_integers_wrap_or_stay_at_their_limits() {
    for (modifier, expected) in [("", i32::MIN + 15), (".satfinite", i32::MAX)] {
        let opcode = format!("mma.sync.aligned.m8n8k16.row.col{modifier}.s32.u8.u8.s32");
        let mut bench = Bench::of_text(&kernel(&opcode, false, [1, 1, 2]).replace("sm_90", "sm_80"));
        let lane = [0x0101_0101, 0x0101_0101, i32::MAX as u32, 5];
        let input = bench.upload(&lane.repeat(32));
        let out = bench.empty(256);
        bench.clean("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(input).pointer(out));
        assert_eq!(bench.download::<u32>(out, 2), [expected as u32, 21], "{opcode}");
    }
}

/// `ldmatrix` of rows of 16 bytes gives the fragments of a product of bytes, and `movmatrix` turns what it gives.
#[test]
fn ldmatrix_gives_the_fragments_of_bytes_and_movmatrix_turns_them() {
    let text = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry case(.param .u64 in, .param .u64 out)\n{\n\
        .reg .b32 %r<20>;\n.reg .b64 %d<6>;\n.shared .align 16 .b8 tile[768];\nld.param.u64 %d1, [in];\n\
        ld.param.u64 %d2, [out];\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %d3, %r0, 16;\nadd.s64 %d1, %d1, %d3;\n\
        mov.u32 %r1, tile;\nshl.b32 %r2, %r0, 4;\nadd.u32 %r3, %r1, %r2;\n\
        ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%d1];\nst.shared.v4.b32 [%r3], {%r4, %r5, %r6, %r7};\n\
        and.b32 %r8, %r0, 15;\nmul.wide.u32 %d4, %r8, 16;\nld.param.u64 %d5, [in];\nadd.s64 %d4, %d4, %d5;\n\
        ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%d4+512];\nshl.b32 %r9, %r8, 4;\nadd.u32 %r9, %r1, %r9;\n\
        st.shared.v4.b32 [%r9+512], {%r4, %r5, %r6, %r7};\nbar.sync 0;\n\
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];\n\
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r10, %r11}, [%r9+512];\n\
        mov.b32 %r12, 0;\nmov.b32 %r13, 0;\nmov.b32 %r14, 0;\nmov.b32 %r15, 0;\n\
        mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r12, %r13, %r14, %r15}, {%r4, %r5, %r6, %r7}, {%r10, %r11}, \
        {%r12, %r13, %r14, %r15};\n\
        ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r16}, [%r3];\nmovmatrix.sync.aligned.m8n8.trans.b16 %r17, %r4;\n\
        mul.wide.u32 %d3, %r0, 24;\nadd.s64 %d2, %d2, %d3;\nst.global.v2.b32 [%d2], {%r12, %r13};\n\
        st.global.v2.b32 [%d2+8], {%r14, %r15};\nst.global.v2.b32 [%d2+16], {%r16, %r17};\nret;\n}\n";
    let mut bench = Bench::of_text(text);
    let mut draw = Draw(3);
    let mut bytes = |count: usize| -> Vec<i8> { (0..count).map(|_| (draw.next() * 100.0) as i8).collect() };
    let (a, b) = (bytes(512), bytes(256));
    // Matrices of 8 rows of 16 bytes: A by rows 0..8, 8..16 of the left half, then of the right; B by columns.
    let a_rows = (0..32).flat_map(|row| {
        let (row, half) = (row % 16, row / 16);
        a[row * 32 + 16 * half..][..16].to_vec()
    });
    let b_rows = (0..16).flat_map(|row| {
        let (column, half) = (row % 8, row / 8);
        (0..16).map(|k| b[(16 * half + k) * 8 + column]).collect::<Vec<i8>>()
    });
    let all: Vec<u8> = a_rows.chain(b_rows).map(|byte| byte as u8).collect();
    let words: Vec<u32> =
        all.chunks(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    let (input, out) = (bench.upload(&words), bench.empty(32 * 24));
    bench.clean("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(input).pointer(out));
    let found: Vec<u32> = bench.download(out, 32 * 6);
    for (lane, registers) in found.chunks(6).enumerate() {
        for (index, &sum) in registers[..4].iter().enumerate() {
            let (row, column) = (lane / 4 + 8 * (index / 2), 2 * (lane % 4) + index % 2);
            let expected: i32 =
                (0..32).map(|k| i32::from(a[row * 32 + k]) * i32::from(b[k * 8 + column])).sum();
            assert_eq!(sum as i32, expected, "row {row} column {column}");
        }
        assert_eq!(registers[4], registers[5], "lane {lane}, turned on its way and afterwards");
    }
}
