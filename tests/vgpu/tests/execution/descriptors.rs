//! `wgmma` on one warpgroup over all widths, both orders of either factor, all permutations, bf16 and f16. Tiles are laid out
//! here by the canonical layouts of the PTX manual; whole numbers make every sum exact.

use crate::bench::{Bench, bf16, device};
use vgpu::device::Arguments;
use vgpu::number::{from_f16, to_f16};
use vgpu::profile::Profile;

/// Bytes of a tile of either factor.
const TILE: usize = 16_384;

/// How a factor lies in shared memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Bytes within which pieces of 16 bytes change places; 16 for none.
    span: usize,
    /// Whether rows, not k, are innermost.
    turned: bool,
}

impl Layout {
    /// The mode, the leading and the stride byte offset of a descriptor for `rows` rows of sixteen.
    fn fields(self, rows: usize) -> (u64, u64, u64) {
        let mode = match self.span {
            16 => 0,
            128 => 1,
            64 => 2,
            _ => 3,
        };
        let span = self.span as u64;
        match (self.span, self.turned) {
            // Eight rows of 16 bytes make a core matrix; the second half of k follows behind all rows.
            (16, false) => (mode, rows as u64 * 16, 128),
            // Eight depths of 16 bytes; the next eight depths follow, then the next eight rows.
            (16, true) => (mode, 128, 256),
            (_, false) => (mode, 16, 8 * span),
            // An atom is eight depths of a span; sixteen depths are two of them, then come the next rows.
            (_, true) => (mode, 16 * span, 8 * span),
        }
    }

    /// Where the byte pair of an element lies in a tile whose address is a multiple of 1024.
    fn place(self, rows: usize, row: usize, k: usize) -> usize {
        let span = self.span;
        let plain = match (span, self.turned) {
            (16, false) => k / 8 * rows * 16 + row / 8 * 128 + row % 8 * 16 + k % 8 * 2,
            (16, true) => row / 8 * 256 + k / 8 * 128 + k % 8 * 16 + row % 8 * 2,
            (_, false) => row * span + k * 2,
            (_, true) => {
                let per = span / 2;
                row / per * 16 * span + k * span + row % per * 2
            }
        };
        plain ^ (plain >> 7 & (span / 16 - 1)) << 4
    }
}

struct Case {
    columns: usize,
    left: Option<Layout>,
    right: Layout,
    half: bool,
    half_sums: bool,
    negates: bool,
    adds: bool,
}

fn a_at(row: usize, k: usize) -> f32 {
    ((row * 3 + k * 5) % 7) as f32 - 3.0
}
fn b_at(k: usize, column: usize) -> f32 {
    ((k * 2 + column * 3) % 5) as f32 - 2.0
}
fn c_at(row: usize, column: usize) -> f32 {
    ((row + 2 * column) % 23) as f32 - 11.0
}

impl Case {
    /// A kernel that copies both tiles into shared memory as they are, multiplies, and stores D as registers.
    fn text(&self) -> String {
        let count = self.columns / if self.half_sums { 4 } else { 2 };
        let registers: Vec<String> = (0..count).map(|index| format!("%c{index}")).collect();
        let names = registers.join(", ");
        let kind = if self.half { "f16" } else { "bf16" };
        let sums = if self.half_sums { "f16" } else { "f32" };
        let mut body = String::new();
        for (index, name) in registers.iter().enumerate() {
            body += &format!("ld.global.u32 {name}, [%d4+{}];\n", index * 4);
        }
        let (left, turned_left) = match self.left {
            Some(layout) => ("%d1".to_string(), format!("{}, ", u8::from(layout.turned))),
            None => {
                for index in 0..4 {
                    body += &format!("ld.global.u32 %a{index}, [%d6+{}];\n", index * 4);
                }
                ("{%a0, %a1, %a2, %a3}".to_string(), String::new())
            }
        };
        let negates = if self.negates { -1 } else { 1 };
        body += &format!(
            "wgmma.fence.sync.aligned;\nwgmma.mma_async.sync.aligned.m64n{}k16.{sums}.{kind}.{kind} {{{names}}}, {left}, %d2, \
             {}, {negates}, 1, {turned_left}{};\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
            self.columns,
            u8::from(self.adds),
            u8::from(self.right.turned)
        );
        for (index, name) in registers.iter().enumerate() {
            body += &format!("st.global.u32 [%d4+{}], {name};\n", index * 4);
        }
        format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry case(.param .u64 tiles, .param .u64 sums, \
             .param .u64 left, .param .u64 a, .param .u64 b)\n{{\n.reg .b32 %r<8>;\n.reg .b32 %a<4>;\n.reg .b32 %c<{count}>;\n\
             .reg .b64 %d<10>;\n.reg .pred %p;\n.shared .align 1024 .b8 tile[{}];\nmov.u32 %r1, %tid.x;\n\
             ld.param.u64 %d1, [a];\nld.param.u64 %d2, [b];\nld.param.u64 %d3, [tiles];\nld.param.u64 %d4, [sums];\n\
             ld.param.u64 %d6, [left];\nmul.wide.u32 %d5, %r1, {};\nadd.s64 %d4, %d4, %d5;\nmul.wide.u32 %d5, %r1, 16;\n\
             add.s64 %d6, %d6, %d5;\nadd.s64 %d3, %d3, %d5;\nmov.u32 %r2, tile;\nshl.b32 %r3, %r1, 4;\nadd.u32 %r2, %r2, %r3;\n\
             mov.u32 %r3, 0;\nCOPY:\nld.global.v2.u64 {{%d7, %d8}}, [%d3];\nst.shared.v2.u64 [%r2], {{%d7, %d8}};\n\
             add.s64 %d3, %d3, 2048;\nadd.u32 %r2, %r2, 2048;\nadd.u32 %r3, %r3, 2048;\nsetp.lt.u32 %p, %r3, {};\n\
             @%p bra COPY;\nfence.proxy.async.shared::cta;\nbar.sync 0;\n{body}ret;\n}}\n",
            2 * TILE,
            count * 4,
            2 * TILE
        )
    }

    fn number(&self, value: f32) -> u16 {
        if self.half { to_f16(value) as u16 } else { bf16(value) }
    }

    fn check(&self) {
        let what = format!(
            "{} columns, A {:?}, B {:?}, f16 {}, f16 sums {}, negated {}, added {}",
            self.columns, self.left, self.right, self.half, self.half_sums, self.negates, self.adds
        );
        let mut device = device();
        device.profile = Profile::by_name("sm_90").unwrap();
        let module = device.load(&self.text()).unwrap();
        let mut bench = Bench { device, module };
        let mut tiles = vec![0u8; 2 * TILE];
        let mut put = |at: usize, bits: u16| tiles[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        let descriptor = |start: usize, layout: Layout, rows: usize| {
            let (mode, leading, stride) = layout.fields(rows);
            (start as u64 >> 4) | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62
        };
        for k in 0..16 {
            if let Some(layout) = self.left {
                (0..64).for_each(|row| put(layout.place(64, row, k), self.number(a_at(row, k))));
            }
            let layout = self.right;
            (0..self.columns).for_each(|column| {
                put(TILE + layout.place(self.columns, column, k), self.number(b_at(k, column)))
            });
        }
        // A in registers, and D, as the figures of mma.m16n8k16 have them, sixteen rows a warp.
        let mut left = Vec::new();
        let mut start = Vec::new();
        for thread in 0..128usize {
            let (warp, lane) = (thread / 32, thread % 32);
            for index in 0..4 {
                let (row, k) = (warp * 16 + lane / 4 + 8 * (index % 2), 2 * (lane % 4) + 8 * (index / 2));
                left.push(
                    u32::from(self.number(a_at(row, k))) | u32::from(self.number(a_at(row, k + 1))) << 16,
                );
            }
            for (row, column) in self.places(warp, lane) {
                start.push(if self.half_sums {
                    to_f16(c_at(row, column)) | to_f16(c_at(row, column + 1)) << 16
                } else {
                    c_at(row, column).to_bits()
                });
            }
        }
        let (ptiles, psums, pleft) = (bench.upload(&tiles), bench.upload(&start), bench.upload(&left));
        let a = self.left.map_or(0, |layout| descriptor(0, layout, 64));
        let b = descriptor(TILE, self.right, self.columns);
        let arguments = Arguments::new().pointer(ptiles).pointer(psums).pointer(pleft).pointer(a).pointer(b);
        let outcome = bench.launch("case", [1, 1, 1], [128, 1, 1], 0, &arguments);
        assert!(outcome.reports.is_empty(), "{what}: {}", vgpu::device::describe(&outcome.reports));
        let actual = bench.download::<u32>(psums, start.len());
        let expected = |row: usize, column: usize| {
            let product: f32 = (0..16).map(|k| a_at(row, k) * b_at(k, column)).sum();
            let product = if self.negates { -product } else { product };
            product + if self.adds { c_at(row, column) } else { 0.0 }
        };
        let mut words = actual.into_iter();
        for thread in 0..128usize {
            for (row, column) in self.places(thread / 32, thread % 32) {
                let word = words.next().unwrap();
                if self.half_sums {
                    let pair = [from_f16(word & 0xffff), from_f16(word >> 16)];
                    assert_eq!(pair, [expected(row, column), expected(row, column + 1)], "{what}: row {row}");
                } else {
                    assert_eq!(
                        f32::from_bits(word),
                        expected(row, column),
                        "{what}: row {row}, column {column}"
                    );
                }
            }
        }
    }

    /// The row and the (first) column of each register of D of a thread.
    fn places(&self, warp: usize, lane: usize) -> Vec<(usize, usize)> {
        let per_block = if self.half_sums { 2 } else { 4 };
        (0..self.columns / 8 * per_block)
            .map(|index| {
                let (block, index) = (index / per_block, index % per_block);
                let upper = if self.half_sums { index } else { index / 2 };
                let odd = if self.half_sums { 0 } else { index % 2 };
                (warp * 16 + lane / 4 + 8 * upper, block * 8 + lane % 4 * 2 + odd)
            })
            .collect()
    }
}

#[test]
fn every_width_agrees_with_the_product() {
    let plain = Layout { span: 128, turned: false };
    for columns in (8..=256).step_by(8) {
        let case = Case {
            columns,
            left: Some(plain),
            right: plain,
            half: false,
            half_sums: false,
            negates: false,
            adds: columns % 16 == 0,
        };
        // Rows of 128 bytes leave room for 128 columns in a tile; wider ones take rows of 32.
        let narrow = Layout { span: 32, turned: false };
        Case { right: if columns > 128 { narrow } else { plain }, ..case }.check();
    }
}

#[test]
fn every_layout_agrees_with_the_product() {
    for span in [16, 32, 64, 128] {
        for (turned_left, turned_right) in [(false, false), (false, true), (true, false), (true, true)] {
            for half in [false, true] {
                Case {
                    columns: 128,
                    left: Some(Layout { span, turned: turned_left }),
                    right: Layout { span, turned: turned_right },
                    half,
                    half_sums: half && turned_left,
                    negates: turned_right,
                    adds: true,
                }
                .check();
            }
        }
        let right = Layout { span, turned: span == 64 };
        Case { columns: 64, left: None, right, half: false, half_sums: false, negates: false, adds: true }
            .check();
    }
}
