//! Planted faults of what compute capability 9.0 brings: each is caught by the check that the table names, and by no other
//! unless its harm spreads; the right kernels report nothing.

use crate::bench::{Bench, Draw};
use crate::compare::checks;
use crate::maps::tensor_map;
use crate::warpgroup::Product;
use vgpu::check::Check;
use vgpu::device::{Arguments, describe};
use vgpu::execute::{Outcome, Shape};
use vgpu::memory::{Concurrent, StreamBit};

/// `CU_TENSOR_MAP_DATA_TYPE_FLOAT32`.
const MAP_F32: u32 = 7;

/// Faults of the product, by the macro that plants them.
const PRODUCT: &[(&str, Check)] = &[
    ("FAULT_PARITY", Check::AsyncCopyNotAwaited),
    ("FAULT_RELEASE", Check::StageReused),
    ("FAULT_PRODUCT_FENCE", Check::RegisterInFlight),
    ("FAULT_PRODUCT_WAIT", Check::RegisterInFlight),
    ("FAULT_BYTES_FEWER", Check::Transactions),
    ("FAULT_BYTES_MORE", Check::Transactions),
    ("FAULT_BYTES_OF_ONE", Check::Transactions),
    ("FAULT_INIT_FENCE", Check::Transactions),
    ("FAULT_INIT_BARRIER", Check::Transactions),
    ("FAULT_ARRIVALS", Check::Transactions),
    ("FAULT_COORDINATES", Check::TensorMap),
    ("FAULT_GRID_CONSTANT", Check::TensorMap),
    ("FAULT_DESCRIPTOR_START", Check::Descriptor),
    ("FAULT_DESCRIPTOR_BITS", Check::Descriptor),
    ("FAULT_DESCRIPTOR_REACH", Check::Descriptor),
    ("FAULT_DESCRIPTOR_MODE", Check::Descriptor),
    ("FAULT_REGISTERS", Check::Deadlock),
];

/// Number of the fault in `kernels/async_faults.cu`, what it is, the kernel, and the check that catches it.
const TABLE: &[(u32, &str, &str, Check)] = &[
    (1, "no fence between stores and wgmma", "square", Check::ProxyFence),
    (2, "the fence behind the barrier, by one warp alone", "square", Check::ProxyFence),
    (3, "sums read before their wait", "square", Check::RegisterInFlight),
    (4, "tile overwritten before the wait", "square", Check::StageReused),
    (5, "sums changed without a fence", "square", Check::RegisterInFlight),
    (6, "a warp of the four missing", "square", Check::MemberMask),
    (11, "no fence between stores and a bulk store", "turn_rows", Check::ProxyFence),
    (12, "source of a bulk store overwritten", "turn_rows", Check::StageReused),
    (13, "block ends before a bulk store has read", "turn_rows", Check::AsyncCopyNotAwaited),
    (14, "tensor copy that is not waited for", "turn_rows", Check::AsyncCopyNotAwaited),
    (21, "no barrier of the cluster at entry", "exchange", Check::Cluster),
    (22, "no barrier of the cluster at exit", "exchange", Check::Cluster),
    (23, "peer's tile overwritten while it is read", "pass_on", Check::SharedRaceBetweenWarps),
    (24, "half a warp at an aligned barrier of the cluster", "exchange", Check::Cluster),
    (31, "more arrivals than expected", "hand_over", Check::Transactions),
    (32, "a phase that runs ahead", "hand_over", Check::Transactions),
    (33, "a phase that never comes", "hand_over", Check::Deadlock),
    (34, "barrier used before it is initialised", "hand_over", Check::Transactions),
    (41, "early read of an earlier grid's output", "add_behind", Check::DependentTooEarly),
    (42, "early write", "add_behind", Check::DependentTooEarly),
    (43, "a grid that never waits", "add_behind", Check::DependentTooEarly),
    (44, "a kernel without the instruction", "add_behind", Check::DependentTooEarly),
];

/// Runs a kernel of the table; gives its outcome, what it wrote, and what it should have written.
fn run(kernel: &str, fault: u32) -> Option<(Outcome, Vec<f32>, Vec<f32>)> {
    let mut bench = Bench::hopper("async_faults", &[&format!("-DFAULT={fault}")])?;
    let mut draw = Draw(u64::from(fault) + 5);
    let mut wholes = |count: usize| -> Vec<f32> { (0..count).map(|_| (draw.next() * 4.0).round()).collect() };
    let run = |bench: &mut Bench, grid: u32, block: u32, shared: u32, arguments: &Arguments| {
        bench.launch(kernel, [grid, 1, 1], [block, 1, 1], shared, arguments)
    };
    let outcome;
    let (expected, out): (Vec<f32>, u64);
    match kernel {
        "square" => {
            let input = wholes(64 * 64);
            let bits: Vec<u16> = input.iter().map(|&value| crate::bench::bf16(value)).collect();
            let x = bench.upload(&bits);
            out = bench.empty(64 * 64 * 4);
            expected = (0..64 * 64)
                .map(|at| (0..64).map(|i| input[at / 64 * 64 + i] * input[at % 64 * 64 + i]).sum())
                .collect();
            outcome = run(&mut bench, 1, 128, 8192, &Arguments::new().pointer(x).pointer(out));
        }
        "turn_rows" => {
            let input = wholes(32 * 32);
            let x = bench.upload(&input);
            out = bench.empty(32 * 32 * 4);
            let map = |address| tensor_map(MAP_F32, address, [32, 32], 128, [32, 32], 0);
            expected = (0..32 * 32).map(|at| input[(31 - at / 32) * 32 + at % 32]).collect();
            outcome = run(&mut bench, 1, 32, 0, &Arguments::new().and(&map(x)).and(&map(out)));
        }
        "exchange" => {
            let input = wholes(2);
            let x = bench.upload(&input);
            out = bench.empty(8);
            expected = vec![input[1], input[0]];
            outcome = run(&mut bench, 2, 64, 0, &Arguments::new().pointer(x).pointer(out));
        }
        "pass_on" => {
            let input = wholes(4 * 32);
            let x = bench.upload(&input);
            out = bench.empty(4 * 32 * 4);
            expected = (0..4 * 32).map(|at| input[at ^ 32]).collect();
            outcome = run(&mut bench, 2, 32, 0, &Arguments::new().pointer(x).pointer(out));
        }
        "hand_over" => {
            let input = wholes(4 * 32);
            let x = bench.upload(&input);
            out = bench.empty(4 * 32 * 4);
            expected = input;
            outcome = run(&mut bench, 1, 64, 0, &Arguments::new().pointer(x).pointer(out));
        }
        "add_behind" => {
            let (input, start) = (wholes(64), wholes(64));
            let x = bench.upload(&input);
            out = bench.empty(65 * 4);
            let first = bench.upload(&start);
            expected = (0..64).map(|at| start[at] + input[at]).collect();
            outcome = behind(&mut bench, x, out, first);
        }
        other => panic!("{other} is in no table"),
    }
    let actual = bench.download::<f32>(out, expected.len());
    Some((outcome, actual, expected))
}

/// Writes `first` to `out` by a launch, and adds `x` by one that may begin before that has ended.
fn behind(bench: &mut Bench, x: u64, out: u64, first: u64) -> Outcome {
    let copy = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry copy(.param .u64 a, .param .u64 b)\n{\n\
        .reg .b32 %r<3>;\n.reg .b64 %d<5>;\nld.param.u64 %d1, [a];\nld.param.u64 %d2, [b];\nmov.u32 %r1, %tid.x;\n\
        mul.wide.u32 %d3, %r1, 4;\nadd.s64 %d1, %d1, %d3;\nadd.s64 %d2, %d2, %d3;\nld.global.u32 %r2, [%d1];\n\
        st.global.u32 [%d2], %r2;\nret;\n}\n";
    let module = bench.device.load(copy).unwrap();
    let shape = Shape { block: [64, 1, 1], ..Shape::default() };
    let arguments = Arguments::new().pointer(first).pointer(out);
    let writes = bench.device.prepare(&module.kernels["copy"], &shape, arguments.bytes());
    assert!(writes.run().reports.is_empty());
    let shape = Shape { dependent: true, ..shape };
    let arguments = Arguments::new().pointer(x).pointer(out);
    let mut adds = bench.device.prepare(&bench.program("add_behind"), &shape, arguments.bytes());
    adds.order(StreamBit::of(0), Concurrent::default(), Some(writes.epoch()));
    adds.run()
}

#[test]
fn right_kernels_of_clusters_and_copies_report_nothing() {
    let mut kernels: Vec<&str> = TABLE.iter().map(|(_, _, kernel, _)| *kernel).collect();
    kernels.dedup();
    for kernel in kernels {
        let Some((outcome, actual, expected)) = run(kernel, 0) else { return };
        assert!(outcome.reports.is_empty(), "{kernel}: {}", describe(&outcome.reports));
        assert_eq!(actual, expected, "{kernel}");
    }
}

/// Faults that go on to harm what other checks watch.
const NOT_ALONE: &[&str] =
    &["FAULT_PARITY", "FAULT_PRODUCT_WAIT", "FAULT_BYTES_OF_ONE", "FAULT_ARRIVALS", "fault 31", "fault 32"];

fn caught(what: &str, outcome: &Outcome, check: Check) {
    let found = checks(&outcome.reports);
    let alone = !NOT_ALONE.iter().any(|name| what.starts_with(name));
    let as_wanted = if alone { found == [check] } else { found.contains(&check) };
    assert!(as_wanted, "{what}: expected {check:?}, found {found:?}: {}", describe(&outcome.reports));
    let report = outcome.reports.iter().find(|report| report.check == check).unwrap();
    assert!(report.line > 0 && (report.file.ends_with(".cu") || report.file.ends_with(".cuh")), "{report}");
    eprintln!("{what}: {report}");
}

#[test]
fn every_planted_fault_of_clusters_and_copies_is_caught_by_its_check_alone() {
    for &(fault, what, kernel, check) in TABLE {
        let Some((outcome, _, _)) = run(kernel, fault) else { return };
        caught(&format!("fault {fault}, {what}"), &outcome, check);
    }
}

#[test]
fn every_planted_fault_of_the_product_is_caught_by_its_check_alone() {
    for &(flag, check) in PRODUCT {
        let Some(mut bench) = Bench::hopper("warpgroup", &[&format!("-D{flag}")]) else { return };
        let product = Product { m: 256, n: 64, k: 320, turned: false, pairs: false };
        let (outcome, _, _) = product.run(&mut bench);
        caught(flag, &outcome, check);
    }
}
