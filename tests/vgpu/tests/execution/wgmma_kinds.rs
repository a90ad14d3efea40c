//! `wgmma` of tf32, 8-bit floats and integers, and on which side of a barrier the fence before it may stand. The layout of a
//! factor without a permutation and the fragments are those of the PTX manual; all sums are exact.

use crate::bench::device;
use crate::compare::checks;
use vgpu::check::Check;
use vgpu::device::Arguments;
use vgpu::profile::Profile;

const ROWS: usize = 64;
const COLUMNS: usize = 16;
/// Bytes of a row of A and of a column of B.
const DEEP: usize = 32;

/// Where a byte of a row lies: rows of 16 bytes, eight of them 128 bytes apart, the second half behind all rows.
fn place(rows: usize, row: usize, byte: usize) -> usize {
    byte / 16 * rows * 16 + row / 8 * 128 + row % 8 * 16 + byte % 16
}

struct Case {
    kinds: &'static str,
    depth: usize,
    /// What follows the scale of D.
    scales: &'static str,
    /// Numbers of A and of B by their bits.
    a: &'static [(u32, f64)],
    b: &'static [(u32, f64)],
}

const E4M3: &[(u32, f64)] = &[(0x38, 1.0), (0x40, 2.0), (0xb8, -1.0), (0x30, 0.5), (0, 0.0)];
const E5M2: &[(u32, f64)] = &[(0x3c, 1.0), (0x40, 2.0), (0xbc, -1.0), (0x38, 0.5), (0xc4, -4.0)];
const S8: &[(u32, f64)] = &[(127, 127.0), (0x80, -128.0), (3, 3.0), (0xff, -1.0), (0, 0.0)];
const U8: &[(u32, f64)] = &[(255, 255.0), (0x80, 128.0), (3, 3.0), (0, 0.0), (7, 7.0)];
// The lowest 13 bits of tf32 are no part of it.
const TF32: &[(u32, f64)] =
    &[(0x3f80_0000, 1.0), (0xc000_1fff, -2.0), (0x4040_0000, 3.0), (0x3f00_0001, 0.5), (0, 0.0)];

const CASES: &[Case] = &[
    Case { kinds: "f32.tf32.tf32", depth: 8, scales: ", 1, 1", a: TF32, b: TF32 },
    Case { kinds: "f32.tf32.tf32", depth: 8, scales: ", -1, 1", a: TF32, b: TF32 },
    Case { kinds: "f32.e4m3.e4m3", depth: 32, scales: ", 1, 1", a: E4M3, b: E4M3 },
    Case { kinds: "f32.e5m2.e4m3", depth: 32, scales: ", 1, -1", a: E5M2, b: E4M3 },
    Case { kinds: "f16.e4m3.e5m2", depth: 32, scales: ", 1, 1", a: E4M3, b: E5M2 },
    Case { kinds: "s32.s8.s8", depth: 32, scales: "", a: S8, b: S8 },
    Case { kinds: "s32.u8.s8", depth: 32, scales: "", a: U8, b: S8 },
    Case { kinds: "s32.s8.u8.satfinite", depth: 32, scales: "", a: S8, b: U8 },
];

/// Copies both factors into shared memory, multiplies twice onto a start, and stores the fragments.
fn text(case: &Case, fences: [&str; 2], start: u32, from_registers: bool) -> String {
    let halves = case.kinds.starts_with("f16");
    let count = COLUMNS / if halves { 4 } else { 2 };
    let d: Vec<String> = (0..count).map(|index| format!("%f{index}")).collect();
    let clear: String = d.iter().map(|name| format!("mov.b32 {name}, {start};\n")).collect();
    let store: String =
        d.iter().enumerate().map(|(at, name)| format!("st.global.b32 [%d4+{}], {name};\n", at * 4)).collect();
    let (d, bytes) = (d.join(", "), count * 4);
    // Descriptors: A begins at 0 and its halves are 1024 bytes apart, B at 2048 and 256 bytes.
    let (a, b) = (64u64 << 16 | 8 << 32, 128u64 | 16 << 16 | 8 << 32);
    let (shape, kinds, scales) = (format!("m64n16k{}", case.depth), case.kinds, case.scales);
    // Words of A as the fragments hold them: row `16 warp + lane / 4` and eight below, bytes from `4 (lane % 4)`, and 16 on.
    let (load, left) = if from_registers {
        let parts: String = [(0, 0), (128, 0), (0, 1024), (128, 1024)]
            .iter()
            .enumerate()
            .map(|(at, (row, half))| format!("ld.shared.b32 %a{at}, [%w4+{}];\n", row + half))
            .collect();
        (parts, "{%a0, %a1, %a2, %a3}".to_string())
    } else {
        (String::new(), "%d5".to_string())
    };
    let product =
        format!("wgmma.mma_async.sync.aligned.{shape}.{kinds} {{{d}}}, {left}, %d6, %p2{scales};\n");
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry case(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .b32 %w<8>;\n.reg .b32 %f<8>;\n.reg .b32 %x<8>;\n.reg .b32 %a<4>;\n.reg .b64 %d<8>;\n.reg .pred %p<4>;\n\
         .shared .align 1024 .b8 tiles[4096];\nmov.u32 %w1, %tid.x;\nld.param.u64 %d1, [in];\nmul.wide.u32 %d2, %w1, 16;\n\
         add.s64 %d1, %d1, %d2;\nmov.u32 %w2, tiles;\nmad.lo.u32 %w3, %w1, 16, %w2;\n\
         ld.global.v4.b32 {{%x0, %x1, %x2, %x3}}, [%d1];\nst.shared.v4.b32 [%w3], {{%x0, %x1, %x2, %x3}};\n\
         setp.lt.u32 %p1, %w1, 32;\n@%p1 ld.global.v4.b32 {{%x4, %x5, %x6, %x7}}, [%d1+2048];\n\
         @%p1 st.shared.v4.b32 [%w3+2048], {{%x4, %x5, %x6, %x7}};\n{before}\nbar.sync 0;\n{after}\n\
         shr.u32 %w4, %w1, 5;\nmul.lo.u32 %w4, %w4, 256;\nand.b32 %w5, %w1, 31;\nmad.lo.u32 %w4, %w5, 4, %w4;\n\
         add.u32 %w4, %w4, %w2;\n{load}{clear}mov.b64 %d5, {a};\nmov.b64 %d6, {b};\nsetp.eq.u32 %p2, 0, 0;\n\
         wgmma.fence.sync.aligned;\n{product}{product}wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
         ld.param.u64 %d3, [out];\nmul.wide.u32 %d4, %w1, {bytes};\nadd.s64 %d4, %d3, %d4;\n{store}ret;\n}}\n",
        before = fences[0],
        after = fences[1],
    )
}

const FENCE: &str = "fence.proxy.async;";

/// Runs a case; gives its failed checks, the words of all threads, and the exact products.
fn run(case: &Case, fences: [&str; 2], start: u32, from_registers: bool) -> (Vec<Check>, Vec<u32>, Vec<f64>) {
    let wide = DEEP / case.depth;
    let pick =
        |numbers: &'static [(u32, f64)], row: usize, k: usize| numbers[(row * 7 + k * 3 + row * k) % 5];
    let mut bytes = vec![0u8; 2048 + 512];
    for (at, rows, numbers) in [(0, ROWS, case.a), (2048, COLUMNS, case.b)] {
        for row in 0..rows {
            for k in 0..case.depth {
                let bits = pick(numbers, row, k).0.to_le_bytes();
                for (byte, &value) in bits[..wide].iter().enumerate() {
                    bytes[at + place(rows, row, k * wide + byte)] = value;
                }
            }
        }
    }
    let mut exact = vec![0.0; ROWS * COLUMNS];
    for (at, sum) in exact.iter_mut().enumerate() {
        let (row, column) = (at / COLUMNS, at % COLUMNS);
        *sum = (0..case.depth).map(|k| pick(case.a, row, k).1 * pick(case.b, column, k).1).sum();
    }
    let mut device = device();
    device.profile = Profile::by_name("sm_90").unwrap();
    let module = device.load(&text(case, fences, start, from_registers)).unwrap();
    let mut bench = crate::bench::Bench { device, module };
    let input = bench.upload(&bytes);
    let out = bench.empty(ROWS * COLUMNS * 4);
    let arguments = Arguments::new().pointer(input).pointer(out);
    let outcome = bench.launch("case", [1, 1, 1], [128, 1, 1], 0, &arguments);
    let words = ROWS * COLUMNS / if case.kinds.starts_with("f16") { 2 } else { 1 };
    let words = if outcome.reports.is_empty() { bench.download(out, words) } else { Vec::new() };
    (checks(&outcome.reports), words, exact)
}

/// The number at a row and column, of the words of all threads.
fn at(case: &Case, words: &[u32], row: usize, column: usize) -> f64 {
    let thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
    let (lower, odd, block) = (row % 16 / 8, column % 2, column / 8);
    match &case.kinds[..3] {
        "f16" => {
            let word = words[thread * 4 + block * 2 + lower];
            f64::from(vgpu::number::from_f16(word >> (16 * odd) & 0xffff))
        }
        kind => {
            let word = words[thread * 8 + block * 4 + lower * 2 + odd];
            if kind == "s32" { f64::from(word as i32) } else { f64::from(f32::from_bits(word)) }
        }
    }
}

#[test]
fn every_kind_multiplies_as_its_figure_has_it() {
    for case in CASES {
        for from_registers in [false, true] {
            let (found, words, exact) = run(case, [FENCE, ""], 0, from_registers);
            assert!(found.is_empty(), "{}: {found:?}", case.kinds);
            let sign = if case.scales.contains('-') { -1.0 } else { 1.0 };
            for row in 0..ROWS {
                for column in 0..COLUMNS {
                    // Twice the product, onto nothing.
                    let (got, wanted) =
                        (at(case, &words, row, column), 2.0 * sign * exact[row * COLUMNS + column]);
                    assert_eq!(
                        got, wanted,
                        "{} row {row} column {column}, registers {from_registers}",
                        case.kinds
                    );
                }
            }
        }
    }
}

#[test]
fn integers_stay_at_their_limits_where_that_is_asked_for_and_wrap_elsewhere() {
    for case in CASES.iter().filter(|case| case.kinds.starts_with("s32")) {
        let (_, words, exact) = run(case, [FENCE, ""], i32::MAX as u32, false);
        let mut limited = 0;
        for row in 0..ROWS {
            for column in 0..COLUMNS {
                let product = exact[row * COLUMNS + column] as i64;
                let add = |sum: i64| match case.kinds.contains("satfinite") {
                    true => (sum + product).clamp(i32::MIN.into(), i32::MAX.into()),
                    false => i64::from((sum + product) as i32),
                };
                limited += usize::from(product > 0);
                assert_eq!(at(case, &words, row, column), add(add(i32::MAX.into())) as f64, "{}", case.kinds);
            }
        }
        assert!(limited > 0, "{}", case.kinds);
    }
}

#[test]
fn the_fence_may_stand_on_either_side_of_the_barrier() {
    let case = &CASES[0];
    for fences in [[FENCE, ""], ["", FENCE]] {
        assert_eq!(run(case, fences, 0, false).0, [], "{fences:?}");
    }
    // Warp 0 alone fences what it knows of, and the others are told of it by nothing.
    for fences in [["", ""], ["", "@%p1 fence.proxy.async;"]] {
        assert!(run(case, fences, 0, false).0.contains(&Check::ProxyFence), "{fences:?}");
    }
}
