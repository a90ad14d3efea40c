//! Planted faults in one chunk among many that a copy, a product or a warp touches at once: at the first, at the last, and beside
//! them, where nothing is wrong.

use crate::bench::{Bench, bf16};
use vgpu::check::Check;
use vgpu::device::{Arguments, describe};
use vgpu::execute::Outcome;

/// Chunks of the tile of `readers`.
const CHUNKS: usize = 64;

/// Two warps read a chunk, those that `synced` names meet warp 0 at a barrier, and that copies into a range of chunks.
struct Readers {
    kernel: &'static str,
    chunk: i32,
    how: [i32; 2],
    synced: i32,
    range: [i32; 2],
}

impl Readers {
    fn run(&self) -> Option<Outcome> {
        let mut bench = Bench::hopper("stretches", &[])?;
        // In the natural order warp 0 waits at the barrier until those that do not come to it have read, too.
        bench.device.settings.seed = 0;
        let blocks = if self.kernel == "readers_of_pair" { 2 } else { 1 };
        let input: Vec<f32> = (0..CHUNKS * 4).map(|at| at as f32 + 1.0).collect();
        let (x, y) = (bench.upload(&input), bench.empty(192 * 4));
        let arguments = Arguments::new().pointer(x).pointer(y).int(self.chunk).int(self.how[0]);
        let arguments = arguments.int(self.how[1]).int(self.synced).int(self.range[0]).int(self.range[1]);
        Some(bench.launch(self.kernel, [blocks, 1, 1], [96, 1, 1], 0, &arguments))
    }

    fn expect(&self, wanted: &[(Check, u64)]) -> Option<()> {
        let Self { kernel, chunk, how, synced, range } = self;
        let outcome = self.run()?;
        let what = format!("{kernel}: chunk {chunk} read as {how:?}, {synced} synced, copied {range:?}");
        expect(&what, &outcome, wanted);
        Some(())
    }
}

/// Fails unless these checks failed, each so often.
fn expect(what: &str, outcome: &Outcome, wanted: &[(Check, u64)]) {
    let mut found: Vec<(Check, u64)> = Vec::new();
    for report in &outcome.reports {
        match found.iter_mut().find(|(check, _)| *check == report.check) {
            Some((_, count)) => *count += report.count,
            None => found.push((report.check, report.count)),
        }
    }
    assert_eq!(found, wanted, "{what}: {}", describe(&outcome.reports));
}

#[test]
fn a_copy_races_with_whoever_read_any_chunk_of_it() {
    let race = [(Check::SharedRaceBetweenWarps, 1)];
    // The reader that no barrier orders is the last to have read, the first of two, or alone; it reads a word of the
    // chunk, or all of it, by a lane or several, as the other one does or differently.
    for (how, synced) in [
        ([1, 0], 2),
        ([2, 0], 2),
        ([3, 0], 2),
        ([2, 2], 1),
        ([2, 2], 2),
        ([3, 3], 1),
        ([3, 3], 2),
        ([1, 2], 1),
        ([1, 2], 2),
        ([2, 1], 1),
        ([2, 1], 2),
        ([2, 3], 2),
    ] {
        for (chunk, range) in [(17, [17, 40]), (39, [17, 40]), (20, [20, 21]), (0, [0, 64]), (63, [0, 64])] {
            let readers = Readers { kernel: "readers_of_block", chunk, how, synced, range };
            if readers.expect(&race).is_none() {
                return;
            }
        }
        // Beside the copy nobody is disturbed.
        for (chunk, range) in [(16, [17, 40]), (40, [17, 40])] {
            let readers = Readers { kernel: "readers_of_block", chunk, how, synced, range };
            readers.expect(&[]).unwrap();
        }
        // And whoever was met at the barrier has read before.
        let readers = Readers { kernel: "readers_of_block", chunk: 20, how, synced: 3, range: [17, 40] };
        readers.expect(&[]).unwrap();
    }
}

#[test]
fn a_copy_races_with_readers_of_another_block() {
    for how in [[1, 0], [0, 1], [1, 1]] {
        for (chunk, range) in [(17, [17, 40]), (39, [17, 40]), (20, [20, 21])] {
            let readers = |synced| Readers { kernel: "readers_of_pair", chunk, how, synced, range };
            let race = [(Check::SharedRaceBetweenWarps, 1)];
            if readers(0).expect(&race).is_none() {
                return;
            }
            readers(3).expect(&[]).unwrap();
        }
        for chunk in [16, 40] {
            let readers = Readers { kernel: "readers_of_pair", chunk, how, synced: 0, range: [17, 40] };
            readers.expect(&[]).unwrap();
        }
    }
}

#[test]
fn a_product_notices_one_wrong_chunk_among_many() {
    // Whole numbers, permuted as the product wants them; the last chunk belongs to no row.
    let value = |row: usize, column: usize| ((row * 5 + column * 3) % 7) as f32 - 3.0;
    let mut input = vec![0u16; 513 * 8];
    for row in 0..64 {
        for column in 0..64 {
            input[row * 64 + ((column / 8) ^ (row & 7)) * 8 + column % 8] = bf16(value(row, column));
        }
    }
    let expected: Vec<f32> =
        (0..64 * 64).map(|at| (0..64).map(|i| value(at / 64, i) * value(at % 64, i)).sum()).collect();
    // As a part of the left factor a chunk is read by one warp, and as a part of the right one by the first to come. What
    // was never written reaches a row of the product, by sixteen stores of a warp, and a column, by two stores of each.
    let unwritten = [(Check::UninitializedShared, 2), (Check::UninitializedRegister, 16 + 8 - 1)];
    let ways: [(i32, &[(Check, u64)]); 7] = [
        (1, &[(Check::AsyncCopyNotAwaited, 2)]),
        (2, &unwritten),
        (3, &[(Check::ProxyFence, 2)]),
        (4, &[]),
        (5, &[(Check::StageReused, 2)]),
        // Of the two warps that read it, the one that stored knows of it.
        (6, &[(Check::SharedRaceBetweenWarps, 1)]),
        // It is passed on as what nobody wrote is.
        (7, &unwritten[1..]),
    ];
    for (wrong, wanted) in ways {
        // The last that is read of the tile is 504, for pieces of a row are permuted; 126 is the last of a warp's.
        for chunk in [0, 1, 7, 8, 126, 300, 504, 511, 512] {
            let Some(mut bench) = Bench::hopper("stretches", &[]) else { return };
            // Warp 0 is the first to come to the product.
            bench.device.settings.seed = 0;
            let (x, y) = (bench.upload(&input), bench.empty(64 * 64 * 4));
            let arguments = Arguments::new().pointer(x).pointer(y).int(chunk).int(wrong);
            let outcome = bench.launch("square", [1, 1, 1], [128, 1, 1], 513 * 16, &arguments);
            let harmless = chunk == 512 || wrong == 6 && chunk < 128;
            let wanted = if harmless { &[] } else { wanted };
            expect(&format!("chunk {chunk}, wrong in way {wrong}"), &outcome, wanted);
            let changed = wrong != 5 && chunk < 512;
            assert!(changed || bench.download::<f32>(y, 64 * 64) == expected, "chunk {chunk}, way {wrong}");
        }
    }
}

/// A kernel of two blocks whose lanes copy `bytes` each, side by side: from `from`, behind which each block finds its own
/// 1024 bytes, to `to`, where the blocks' parts begin `shift` bytes apart.
fn lanes_side_by_side(bytes: usize) -> Bench {
    let (kind, registers) = match bytes {
        1 => ("u8", "%r3"),
        2 => ("u16", "%h1"),
        4 => ("u32", "%r3"),
        8 => ("u64", "%d6"),
        _ => ("v4.u32", "{%r3, %r4, %r5, %r6}"),
    };
    Bench::of_text(&format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n\
         .visible .entry side_by_side(.param .u64 from, .param .u64 to, .param .u32 shift)\n{{\n\
         .reg .b16 %h<2>;\n.reg .b32 %r<8>;\n.reg .b64 %d<8>;\n\
         ld.param.u64 %d1, [from];\nld.param.u64 %d2, [to];\nld.param.u32 %r7, [shift];\n\
         mov.u32 %r1, %tid.x;\nmov.u32 %r2, %ctaid.x;\n\
         mul.wide.u32 %d3, %r1, {bytes};\nadd.s64 %d1, %d1, %d3;\nadd.s64 %d2, %d2, %d3;\n\
         mul.wide.u32 %d4, %r2, 1024;\nadd.s64 %d1, %d1, %d4;\nmul.wide.u32 %d5, %r2, %r7;\nadd.s64 %d2, %d2, %d5;\n\
         ld.global.{kind} {registers}, [%d1];\nst.global.{kind} [%d2], {registers};\nret;\n}}\n"
    ))
}

#[test]
fn lanes_side_by_side_are_checked_like_any_others() {
    for bytes in [1, 2, 4, 8, 16] {
        let all = 32 * bytes;
        // Where the first lane begins in a chunk: at its begin, or inside.
        for begin in [0, bytes % 16] {
            let mut bench = lanes_side_by_side(bytes);
            bench.device.settings.workers = 1;
            let mut values: Vec<u8> = (0..2048).map(|at| (at % 1024 * 7 % 251) as u8).collect();
            // Fresh memory looks the same, and is written by it all the same.
            values[16..32].fill(0xff);
            values[1024 + 16..1024 + 32].fill(0xff);
            let (from, known) = (bench.upload(&values), bench.empty(2048));
            let run_to = |bench: &mut Bench, blocks: u32, from: u64, to: u64, shift: usize| {
                let (from, to) = (from + begin as u64, to + begin as u64);
                let arguments = Arguments::new().pointer(from).pointer(to).int(shift as i32);
                bench.launch("side_by_side", [blocks, 1, 1], [32, 1, 1], 0, &arguments)
            };
            // Where nothing is there yet: a write of what is there already is none.
            let run = |bench: &mut Bench, blocks: u32, from: u64, shift: usize| {
                let to = bench.empty(2048);
                run_to(bench, blocks, from, to, shift)
            };
            let what = |case: &str| format!("{bytes} bytes a lane from {begin} on, {case}");
            // Twice: what the second writes is there already.
            for _ in 0..2 {
                let outcome = run_to(&mut bench, 1, from, known, 0);
                expect(&what("one block"), &outcome, &[]);
                let (loads, stores) = (outcome.counters.loads, outcome.counters.stores);
                assert_eq!((loads.unique_bytes, stores.unique_bytes), (all as u64, all as u64));
                let out = bench.download::<u8>(known, begin + all);
                assert_eq!(out[begin..], values[begin..begin + all], "{}", what("one block"));
            }
            expect(&what("what was written"), &run(&mut bench, 1, known, 0), &[]);
            let race = [(Check::GlobalRaceBetweenBlocks, 1)];
            expect(&what("side by side"), &run(&mut bench, 2, from, all), &[]);
            expect(&what("a lane overlaps"), &run(&mut bench, 2, from, all - bytes), &race);
            expect(&what("both write the same"), &run(&mut bench, 2, from, 0), &[]);
            for lane in [0, 5, 31] {
                let allocation = bench.device.memory.find(from).unwrap().clone();
                let place = from + (1024 + begin + lane * bytes) as u64;
                let mut byte = [0];
                allocation.read(place, &mut byte);
                allocation.write(place, &[byte[0] ^ 1]);
                expect(&what("a lane writes something else"), &run(&mut bench, 2, from, 0), &race);
                allocation.write(place, &byte);
            }
            // One lane, or one byte, of what is read was never written.
            for (first, count) in [(0, bytes), (13 * bytes, bytes), (all - 1, 1)] {
                let fresh = bench.empty(1024);
                let allocation = bench.device.memory.find(fresh).unwrap().clone();
                let hole = begin + first;
                allocation.mark_written(fresh, hole);
                allocation.mark_written(fresh + (hole + count) as u64, 1024 - hole - count);
                let outcome = run(&mut bench, 1, fresh, 0);
                expect(&what("a hole"), &outcome, &[(Check::UninitializedGlobal, 1)]);
            }
            bench.device.settings.outputs = Some(vec![(known, (begin + all - 1) as u64)]);
            let outcome = run_to(&mut bench, 1, from, known, 0);
            expect(&what("beyond the output"), &outcome, &[(Check::UndeclaredWrite, 1)]);
        }
    }
}
