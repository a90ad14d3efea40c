//! `wmma` of every shape and kind, from memory to memory: its fragments are nobody's business.

use crate::bench::Bench;
use vgpu::device::Arguments;
use vgpu::number::{from_f16, to_f16};

struct Case {
    shape: [usize; 3],
    /// Types of A, B, and C and D.
    kinds: [&'static str; 3],
    /// Registers of A, B, and C and D, by the PTX manual.
    registers: [usize; 3],
}

const CASES: &[Case] = &[
    Case { shape: [16, 16, 16], kinds: ["f16", "f16", "f32"], registers: [8, 8, 8] },
    Case { shape: [32, 8, 16], kinds: ["f16", "f16", "f16"], registers: [8, 8, 4] },
    Case { shape: [8, 32, 16], kinds: ["f16", "f16", "f32"], registers: [8, 8, 8] },
    Case { shape: [16, 16, 16], kinds: ["bf16", "bf16", "f32"], registers: [4, 4, 8] },
    Case { shape: [32, 8, 16], kinds: ["bf16", "bf16", "f32"], registers: [8, 2, 8] },
    Case { shape: [16, 16, 8], kinds: ["tf32", "tf32", "f32"], registers: [4, 4, 8] },
    Case { shape: [16, 16, 16], kinds: ["s8", "s8", "s32"], registers: [2, 2, 8] },
    Case { shape: [32, 8, 16], kinds: ["u8", "u8", "s32"], registers: [4, 1, 8] },
    Case { shape: [8, 32, 16], kinds: ["s8", "s8", "s32"], registers: [1, 4, 8] },
    Case { shape: [8, 8, 4], kinds: ["f64", "f64", "f64"], registers: [1, 1, 2] },
];

fn bytes(kind: &str, value: i32) -> Vec<u8> {
    match kind {
        "s8" | "u8" => vec![value as u8],
        "f16" => (to_f16(value as f32) as u16).to_le_bytes().to_vec(),
        "bf16" => (((value as f32).to_bits() >> 16) as u16).to_le_bytes().to_vec(),
        "s32" => value.to_le_bytes().to_vec(),
        "f64" => f64::from(value).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}

fn number(kind: &str, bytes: &[u8]) -> f64 {
    match kind {
        "f16" => f64::from(from_f16(u32::from(u16::from_le_bytes(bytes.try_into().unwrap())))),
        "s32" => f64::from(i32::from_le_bytes(bytes.try_into().unwrap())),
        "f64" => f64::from_le_bytes(bytes.try_into().unwrap()),
        _ => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
    }
}

#[test]
fn every_shape_and_kind_multiplies_what_it_loads_and_stores_it() {
    for (index, Case { shape: [m, n, k], kinds: [a, b, c], registers }) in CASES.iter().enumerate() {
        // Rows of A next to each other, or columns; B the other way round; two elements between the lines.
        let turned = index % 2 == 1;
        let (a_way, b_way) = if turned { ("col", "row") } else { ("row", "col") };
        let place = |rows: usize, columns: usize, way: &str, row: usize, column: usize| match way {
            "row" => (row * (columns + 2) + column, columns + 2),
            _ => (column * (rows + 2) + row, rows + 2),
        };
        let low = if *a == "u8" { 0 } else { -3 };
        let a_at = |row: usize, i: usize| (row * 5 + i * 3 + row * i) as i32 % 7 + low;
        let b_at = |i: usize, column: usize| (i * 2 + column * 3 + i * column) as i32 % 5 + low / 3;
        let c_at = |row: usize, column: usize| (row * 3 + column) as i32 % 11 - 5;
        let fill = |kind: &str, rows: usize, columns: usize, way: &str, at: &dyn Fn(usize, usize) -> i32| {
            let size = bytes(kind, 0).len();
            let mut out = vec![0u8; (rows + 2) * (columns + 2) * size];
            for row in 0..rows {
                for column in 0..columns {
                    let (place, _) = place(rows, columns, way, row, column);
                    out[place * size..][..size].copy_from_slice(&bytes(kind, at(row, column)));
                }
            }
            out
        };
        let class = if *c == "f64" { "b64" } else { "b32" };
        let list = |name: &str, count: usize| {
            let names: Vec<String> = (0..count).map(|at| format!("%{name}{at}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let [ra, rb, rc] = [list("a", registers[0]), list("b", registers[1]), list("c", registers[2])];
        let name = format!("m{m}n{n}k{k}");
        let kinds = match (*a, *c) {
            ("f16", _) => format!("{c}.{c}"),
            ("f64", _) => "rn.f64.f64.f64.f64".to_string(),
            _ => format!("{c}.{a}.{b}.{c}"),
        };
        let strides = [place(*m, *k, a_way, 0, 0).1, place(*k, *n, b_way, 0, 0).1, n + 2];
        let text = format!(
            ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry case(.param .u64 pa, .param .u64 pb, .param .u64 pc)\n\
             {{\n.reg .{class} %a<8>;\n.reg .{class} %b<8>;\n.reg .{class} %c<8>;\n.reg .b64 %p<4>;\nld.param.u64 %p1, [pa];\n\
             ld.param.u64 %p2, [pb];\nld.param.u64 %p3, [pc];\n\
             wmma.load.a.sync.aligned.{a_way}.{name}.global.{a} {ra}, [%p1], {};\n\
             wmma.load.b.sync.aligned.{b_way}.{name}.global.{b} {rb}, [%p2], {};\n\
             wmma.load.c.sync.aligned.row.{name}.global.{c} {rc}, [%p3], {};\n\
             wmma.mma.sync.aligned.{a_way}.{b_way}.{name}.{kinds} {rc}, {ra}, {rb}, {rc};\n\
             wmma.store.d.sync.aligned.row.{name}.global.{c} [%p3], {rc}, {};\nret;\n}}\n",
            strides[0], strides[1], strides[2], strides[2]
        );
        let mut bench = Bench::of_text(&text);
        let pa = bench.upload(&fill(a, *m, *k, a_way, &a_at));
        let pb = bench.upload(&fill(b, *k, *n, b_way, &b_at));
        let start = fill(c, *m, *n, "row", &c_at);
        let pc = bench.upload(&start);
        let arguments = Arguments::new().pointer(pa).pointer(pb).pointer(pc);
        bench.clean("case", [1, 1, 1], [32, 1, 1], 0, &arguments);
        let (out, size) = (bench.download::<u8>(pc, start.len()), bytes(c, 0).len());
        for row in 0..*m {
            for column in 0..*n {
                let wanted = (0..*k).map(|i| a_at(row, i) * b_at(i, column)).sum::<i32>() + c_at(row, column);
                let at = (row * (n + 2) + column) * size;
                let got = number(c, &out[at..at + size]);
                assert_eq!(got, f64::from(wanted), "{name} {kinds} row {row} column {column}");
            }
        }
    }
}
