//! Planted faults: every broken variant is caught by the check that the table names, and the right
//! kernel of each reports nothing and computes what it should.

use crate::bench::{Bench, Draw};
use crate::compare::checks;
use vgpu::check::Check;
use vgpu::device::{Arguments, describe};
use vgpu::execute::Outcome;

/// Number of the fault in `kernels/faults.cu`, what it is, the kernel, and the check that catches it.
const TABLE: &[(u32, &str, &str, Check)] = &[
    (1, "removed barrier", "block_sum", Check::SharedRaceBetweenWarps),
    (2, "barrier in divergent code", "block_sum", Check::BarrierInDivergentCode),
    (3, "barrier that half of the warps never reach", "block_sum", Check::Deadlock),
    (4, "missing __syncwarp", "turn_tile", Check::SharedRaceBetweenLanes),
    (5, "one element past the end", "scale_rows", Check::OutOfBounds),
    (6, "offset of 32 bits", "scale_rows", Check::OutOfBounds),
    (7, "unaligned vectors", "scale_rows", Check::Misaligned),
    (8, "atomic replaced by an addition", "add_all", Check::GlobalRaceBetweenBlocks),
    (9, "missing fence before the counter", "add_in_order", Check::GlobalRaceBetweenBlocks),
    (10, "shared memory that nobody wrote", "block_sum", Check::UninitializedShared),
    (11, "missing wait for cp.async", "copy_tile", Check::AsyncCopyNotAwaited),
    (12, "local memory that nobody wrote", "local_sum", Check::UninitializedLocal),
    (13, "member mask of absent lanes", "take_neighbour", Check::MemberMask),
    (14, "tile overwritten while it is read", "two_steps", Check::SharedRaceBetweenWarps),
    (15, "rows of neighbouring blocks overlap", "write_rows", Check::GlobalRaceBetweenBlocks),
    (16, "bulk copy that is not waited for", "copy_bulk", Check::AsyncCopyNotAwaited),
    (17, "sum that starts from nothing", "start_from", Check::UninitializedRegister),
];

/// Faults in the GEMM, by the macro that plants them.
const GEMM_TABLE: &[(&str, Fault)] = &[
    ("FAULT_BARRIER", Fault::Check(Check::SharedRaceBetweenWarps)),
    ("FAULT_WAIT", Fault::Check(Check::AsyncCopyNotAwaited)),
    ("FAULT_STALE", Fault::Check(Check::AsyncCopyNotAwaited)),
    ("FAULT_PAST_THE_END", Fault::Check(Check::OutOfBounds)),
    ("FAULT_ACCUMULATOR", Fault::Check(Check::UninitializedRegister)),
    // These two are no errors of memory: one costs time, the other gives wrong numbers.
    ("FAULT_SWIZZLE", Fault::Conflicts),
    ("FAULT_FRAGMENT_ROWS", Fault::Numbers),
];

enum Fault {
    Check(Check),
    Conflicts,
    Numbers,
}

/// Runs a kernel of the table; gives its outcome, what it wrote, and what it should have written.
fn run(kernel: &str, fault: u32) -> Option<(Outcome, Vec<f32>, Vec<f32>)> {
    let flag = format!("-DFAULT={fault}");
    let arch = if kernel == "copy_bulk" { "-arch=compute_90" } else { "-arch=compute_80" };
    let text = crate::bench::ptx("faults", &[&flag, arch])?;
    let mut device = crate::bench::device();
    if kernel == "copy_bulk" {
        device.profile = vgpu::profile::Profile::by_name("sm_90").unwrap();
    }
    let module = device.load(&text).unwrap();
    let mut bench = Bench { device, module };
    // Small whole numbers, so that sums are exact in any order.
    let mut draw = Draw(u64::from(fault) + 3);
    let mut numbers =
        |count: usize| -> Vec<f32> { (0..count).map(|_| (draw.next() * 8.0).round() + 1.0).collect() };
    let (grid, block, expected, arguments, out): (u32, u32, Vec<f32>, Arguments, u64);
    match kernel {
        "block_sum" => {
            let input = numbers(512);
            let (x, y) = (bench.upload(&input), bench.empty(8));
            (grid, block) = (2, 256);
            expected = input.chunks(256).map(|row| row.iter().sum()).collect();
            (arguments, out) = (Arguments::new().pointer(x).pointer(y), y);
        }
        "turn_tile" => {
            let input = numbers(1024);
            let (x, y) = (bench.upload(&input), bench.empty(4096));
            (grid, block) = (1, 32);
            expected = (0..1024).map(|at| input[at % 32 * 32 + at / 32]).collect();
            (arguments, out) = (Arguments::new().pointer(x).pointer(y), y);
        }
        "scale_rows" => {
            let (rows, columns) = (3usize, 65usize);
            let input = numbers(rows * columns);
            let (x, y) = (bench.upload(&input), bench.empty(rows * columns * 4));
            (grid, block) = (rows as u32, 32);
            expected = input.iter().map(|value| 2.0 * value).collect();
            let sizes = Arguments::new().pointer(x).pointer(y).int(rows as i32).int(columns as i32);
            (arguments, out) = (sizes.int(columns as i32), y);
        }
        "add_all" => {
            let input = numbers(256);
            let (x, y) = (bench.upload(&input), bench.upload(&[0f32]));
            (grid, block) = (4, 64);
            expected = vec![input.iter().sum()];
            (arguments, out) = (Arguments::new().pointer(x).pointer(y).int(256), y);
        }
        "add_in_order" => {
            let input = numbers(8 * 32);
            let (x, partial) = (bench.upload(&input), bench.empty(32));
            let (y, done) = (bench.empty(4), bench.upload(&[0u32]));
            (grid, block) = (8, 32);
            expected = vec![input.iter().sum()];
            (arguments, out) = (Arguments::new().pointer(x).pointer(partial).pointer(y).pointer(done), y);
        }
        "copy_tile" => {
            let input = numbers(128);
            let (x, y) = (bench.upload(&input), bench.empty(512));
            (grid, block) = (1, 32);
            expected = input.chunks(4).rev().flatten().copied().collect();
            (arguments, out) = (Arguments::new().pointer(x).pointer(y), y);
        }
        "local_sum" => {
            // Every lane writes element 3 and reads its own.
            let picks: Vec<i32> = (0..64).map(|at| if at < 32 { at } else { 3 }).collect();
            let (x, y) = (bench.upload(&picks), bench.empty(128));
            (grid, block) = (1, 32);
            expected = (0..32).map(|lane| if lane % 16 == 3 { 7.0 } else { (lane % 16) as f32 }).collect();
            (arguments, out) = (Arguments::new().pointer(x).pointer(y).int(3), y);
        }
        "take_neighbour" => {
            let input = numbers(20);
            let (x, y) = (bench.upload(&input), bench.empty(80));
            (grid, block) = (1, 32);
            expected = (0..20).map(|at| input[at ^ 1]).collect();
            (arguments, out) = (Arguments::new().pointer(x).pointer(y).int(20), y);
        }
        "two_steps" => {
            let input = numbers(256);
            let (x, y) = (bench.upload(&input), bench.empty(1024));
            (grid, block) = (1, 128);
            expected = (0..256).map(|at| input[at / 128 * 128 + 127 - at % 128]).collect();
            (arguments, out) = (Arguments::new().pointer(x).pointer(y), y);
        }
        "write_rows" => {
            let y = bench.empty(4 * 100 * 4);
            (grid, block) = (4, 128);
            expected = (0..400).map(|at| (at / 100) as f32 + 1.0).collect();
            (arguments, out) = (Arguments::new().pointer(y).int(100), y);
        }
        "copy_bulk" => {
            let input = numbers(256);
            let (x, y) = (bench.upload(&input), bench.empty(1024));
            (grid, block) = (1, 64);
            expected = input.chunks(4).rev().flatten().copied().collect();
            (arguments, out) = (Arguments::new().pointer(x).pointer(y), y);
        }
        "start_from" => {
            let input = numbers(96);
            let (x, y) = (bench.upload(&input), bench.empty(128));
            (grid, block) = (1, 32);
            expected = (0..32).map(|lane| input[lane] + input[lane + 32] + input[lane + 64]).collect();
            (arguments, out) = (Arguments::new().pointer(x).pointer(y).int(3), y);
        }
        other => panic!("{other} is in no table"),
    }
    let outcome = bench.launch(kernel, [grid, 1, 1], [block, 1, 1], 0, &arguments);
    let actual = bench.download::<f32>(out, expected.len());
    Some((outcome, actual, expected))
}

#[test]
fn right_kernels_report_nothing() {
    let mut kernels: Vec<&str> = TABLE.iter().map(|(_, _, kernel, _)| *kernel).collect();
    kernels.sort_unstable();
    kernels.dedup();
    for kernel in kernels {
        let Some((outcome, actual, expected)) = run(kernel, 0) else { return };
        assert!(outcome.reports.is_empty(), "{kernel}: {}", describe(&outcome.reports));
        assert_eq!(actual, expected, "{kernel}");
    }
}

#[test]
fn every_planted_fault_is_caught_by_its_check() {
    for &(fault, what, kernel, check) in TABLE {
        let Some((outcome, _, _)) = run(kernel, fault) else { return };
        let found = checks(&outcome.reports);
        assert!(found.contains(&check), "fault {fault}, {what}: expected {check:?}, found {found:?}");
        let report = outcome.reports.iter().find(|report| report.check == check).unwrap();
        assert!(report.file.ends_with(".cu") || report.file.ends_with(".cuh"), "{report}");
        assert!(report.line > 0, "{report}");
        eprintln!("fault {fault:>2}, {what}: {report}");
    }
}

#[test]
fn memory_that_was_freed_is_told_from_memory_that_never_was() {
    for (freed, check) in [(true, Check::Freed), (false, Check::OutOfBounds)] {
        let Some(text) = crate::bench::ptx("faults", &["-DFAULT=0", "-arch=compute_80"]) else { return };
        let mut bench = Bench::of_text(&text);
        let (rows, columns) = (3usize, 65usize);
        let x = bench.upload(&vec![1f32; rows * columns]);
        let y = bench.empty(rows * columns * 4);
        // Another allocation does not take the address of the one that is gone.
        assert!(!freed || bench.device.memory.free(x).is_some());
        let (z, from) = (bench.empty(rows * columns * 4), if freed { x } else { x - 4096 });
        assert!(z != x && z != y);
        let sizes = Arguments::new().pointer(from).pointer(y).int(rows as i32).int(columns as i32);
        let outcome = bench.launch("scale_rows", [3, 1, 1], [32, 1, 1], 0, &sizes.int(columns as i32));
        assert_eq!(checks(&outcome.reports), [check], "{}", describe(&outcome.reports));
        assert_eq!(outcome.device_error, 700);
        assert_eq!(outcome.reports[0].detail.contains("that was freed"), freed, "{}", outcome.reports[0]);
    }
}

#[test]
fn every_planted_fault_of_the_gemm_is_caught() {
    let (m, n, k) = (130usize, 136usize, 200usize);
    for (flag, fault) in GEMM_TABLE {
        let Some(mut bench) = Bench::new("gemm", &[&format!("-D{flag}")]) else { return };
        let mut draw = Draw(5);
        let (a, b, bias) = (draw.brains(m * k), draw.brains(n * k), draw.floats(n));
        let (pa, pb, pc) = (bench.upload(&a), bench.upload(&b), bench.empty(m * n * 2));
        let pbias = bench.upload(&bias);
        let arguments = Arguments::new().pointer(pa).pointer(pb).pointer(pc).pointer(pbias);
        let arguments = arguments.int(m as i32).int(n as i32).int(k as i32);
        let outcome = bench.launch("gemm", [2, 2, 1], [256, 1, 1], 65_536, &arguments);
        let found = checks(&outcome.reports);
        match fault {
            Fault::Check(check) => {
                assert!(found.contains(check), "{flag}: expected {check:?}, found {found:?}")
            }
            Fault::Conflicts => {
                assert!(found.is_empty(), "{flag}: {found:?}");
                assert!(outcome.counters.shared_conflicts() > 0, "{flag}");
            }
            Fault::Numbers => {
                assert!(found.is_empty(), "{flag}: {found:?}");
                let first = crate::compare::wide(bench.download::<u16>(pc, 1)[0]);
                let product = |row: usize| -> f32 {
                    (0..k).map(|i| crate::compare::wide(a[row * k + i]) * crate::compare::wide(b[i])).sum()
                };
                assert!((first - (product(0) + bias[0])).abs() > 0.1, "row 0 should be wrong");
                assert!((first - (product(8) + bias[0])).abs() < 0.1, "row 0 should hold row 8");
            }
        }
    }
}

/// As nvcc widens a parameter that it loaded as one of a pair.
#[test]
fn a_half_that_nobody_reads_may_hold_nothing() {
    let run = |read: &str| {
        let text = format!(
            ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry case(.param .u64 out, .param .u32 value)\n{{\n\
             .reg .b32 %w<4>;\n.reg .b64 %d<6>;\nld.param.u32 %w1, [value];\nmov.b64 %d1, {{%w1, %w2}};\n{read}\n\
             ld.param.u64 %d3, [out];\nst.global.u64 [%d3], %d2;\nret;\n}}\n"
        );
        let mut bench = Bench::of_text(&text);
        let out = bench.empty(8);
        let arguments = Arguments::new().pointer(out).int(-7);
        let outcome = bench.launch("case", [1, 1, 1], [1, 1, 1], 0, &arguments);
        (checks(&outcome.reports), bench.download::<u32>(out, 2))
    };
    assert_eq!(run("cvt.s64.s32 %d2, %d1;"), (vec![], vec![-7i32 as u32, u32::MAX]));
    for whole in ["add.s64 %d2, %d1, 1;", "cvt.s64.s32 %d2, %d1;\nadd.s64 %d2, %d2, %d1;"] {
        assert_eq!(run(whole).0, [Check::UninitializedRegister], "{whole}");
    }
}
