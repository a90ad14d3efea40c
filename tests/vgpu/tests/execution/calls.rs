//! Calls of device functions: arguments and results, calls inside calls, divergent calls, and what cannot be called.

use crate::bench::Bench;
use crate::compare::checks;
use vgpu::check::Check;
use vgpu::device::{Arguments, describe};

const THREADS: usize = 96;

/// Runs `calls.cu` on some numbers; gives its reports, its sums and what the library computed.
fn run(input: &[f32]) -> Option<(vgpu::execute::Outcome, Vec<f32>, Vec<u64>)> {
    let mut bench = Bench::new("calls", &[])?;
    let x = bench.upload(input);
    let (out, library) = (bench.empty(input.len() * 4), bench.empty(input.len() * 16));
    let arguments = Arguments::new().pointer(x).pointer(out).pointer(library).int(input.len() as i32);
    let outcome = bench.launch("calls", [1, 1, 1], [THREADS as u32, 1, 1], 0, &arguments);
    let sums = bench.download(out, input.len());
    let library = bench.download(library, input.len() * 2);
    Some((outcome, sums, library))
}

#[test]
fn functions_of_a_kernel_and_of_the_library_compute_what_they_should() {
    let input: Vec<f32> = (0..THREADS - 5).map(|at| at as f32 * 0.5).collect();
    let Some((outcome, sums, library)) = run(&input) else { return };
    assert!(outcome.reports.is_empty(), "{}", describe(&outcome.reports));
    for (i, &x) in input.iter().enumerate() {
        let picked = |i: usize| (x + (i % 3) as f32) * 0.5;
        let number = match i % 3 {
            0 => x,
            1 => picked(i),
            _ => picked(i) + picked(i + 1),
        };
        let expected = if number > 40.0 { 1.0 } else { 1.0 + number };
        assert_eq!(sums[i], expected, "thread {i}");
        let (power, sine) = (f64::from_bits(library[2 * i]), f64::from_bits(library[2 * i + 1]));
        let exact = f64::from(x).powf(1.5);
        assert!((power - exact).abs() <= 1e-14 * exact, "{x}^1.5: {power}, not {exact}");
        let exact = (f64::from(x) * 1e6).sin();
        assert!((sine - exact).abs() <= 1e-14, "sine of {x} million: {sine}, not {exact}");
    }
}

#[test]
fn a_failed_assertion_stops_the_kernel_at_its_line() {
    let mut input = vec![1f32; THREADS];
    input[70] = 100.0;
    let Some((outcome, _, _)) = run(&input) else { return };
    assert_eq!(checks(&outcome.reports), [Check::Trap], "{}", describe(&outcome.reports));
    let report = &outcome.reports[0];
    let source = include_str!("../kernels/calls.cu");
    let line = source.lines().position(|line| line.contains("assert(in[i]")).unwrap() as u32 + 1;
    assert_eq!((report.warp, report.lane, report.line), (2, 6, line), "{report}");
    assert_eq!(outcome.device_error, 719);
}

/// A kernel that writes `%w0` for every thread `%w1`, with functions before it.
fn text(functions: &str, body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n{functions}\n.visible .entry case(.param .u64 out)\n{{\n\
         .reg .b32 %w<8>;\n.reg .b64 %d<4>;\n.reg .pred %p<4>;\nmov.u32 %w1, %tid.x;\nmov.u32 %w0, 0;\n{body}\n\
         ld.param.u64 %d1, [out];\nmul.wide.u32 %d2, %w1, 4;\nadd.s64 %d1, %d1, %d2;\nst.global.u32 [%d1], %w0;\n\
         ret;\n}}\n"
    )
}

fn words(text: &str) -> Vec<u32> {
    let mut bench = Bench::of_text(text);
    let out = bench.empty(128);
    bench.clean("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
    bench.download(out, 32)
}

#[test]
fn arguments_in_registers_and_guarded_calls() {
    // The function returns early for small numbers, and has labels and registers named as the kernel's.
    let function = ".func (.reg .b32 %w0) triple(.reg .b32 %w1)\n{\n.reg .b32 %w2;\n.reg .pred %p1;\n\
                    mov.u32 %w0, 1;\nsetp.lt.u32 %p1, %w1, 4;\n@%p1 bra END;\n@!%p1 mul.lo.u32 %w2, %w1, 3;\n\
                    mov.u32 %w0, %w2;\nEND:\nret;\n}\n";
    let body =
        "setp.lt.u32 %p1, %w1, 20;\n@%p1 call (%w0), triple, (%w1);\n@%p1 bra END;\nmov.u32 %w0, 7;\nEND:\n";
    let expected: Vec<u32> = (0..32)
        .map(|i| {
            if i >= 20 {
                7
            } else if i < 4 {
                1
            } else {
                3 * i
            }
        })
        .collect();
    assert_eq!(words(&text(function, body)), expected);
}

#[test]
fn every_call_has_local_variables_of_its_own_and_the_block_its_shared_ones() {
    // The function counts its calls in shared memory, and gives back its argument by way of a local variable.
    let function = ".func (.param .b32 result) keep(.param .b32 number)\n{\n.reg .b32 %w<4>;\n\
                    .local .align 4 .b8 own[4];\n.shared .align 4 .u32 count;\nld.param.b32 %w1, [number];\n\
                    st.local.b32 [own], %w1;\nmov.u32 %w2, 1;\nred.shared.add.u32 [count], %w2;\n\
                    ld.local.b32 %w3, [own];\nst.param.b32 [result], %w3;\nret;\n}\n";
    let call = |number: &str, to: &str| {
        format!(
            "{{\n.param .b32 a;\n.param .b32 r;\nst.param.b32 [a], {number};\ncall.uni (r), keep, (a);\n\
             ld.param.b32 {to}, [r];\n}}\n"
        )
    };
    let body = format!("{}{}add.u32 %w0, %w2, %w3;", call("%w1", "%w2"), call("100", "%w3"));
    let mut bench = Bench::of_text(&text(function, &body));
    let out = bench.empty(128);
    let outcome = bench.launch("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
    // Nobody set the counter before, which is what shows that there is one, and that both calls met it.
    assert_eq!(checks(&outcome.reports), [Check::UninitializedShared], "{}", describe(&outcome.reports));
    assert_eq!(outcome.counters.static_shared, 16);
    assert_eq!(bench.download::<u32>(out, 32), (100..132).collect::<Vec<u32>>());
}

#[test]
fn what_cannot_be_called_is_an_error_that_says_why() {
    let itself = ".func again(.param .b32 n)\n{\n.reg .b32 %w<4>;\n{\n.param .b32 a;\nst.param.b32 [a], 1;\n\
                  call.uni again, (a);\n}\nret;\n}\n";
    // Each function calls the one before it twice.
    let doubling = |first: &str| {
        let mut out = format!(".func f0()\n{{\n{first}}}\n");
        for level in 1..40 {
            let before = level - 1;
            out += &format!(".func f{level}()\n{{\ncall.uni f{before};\ncall.uni f{before};\n}}\n");
        }
        out
    };
    let nops = "membar.cta;\n".repeat(1000);
    for (functions, body, words) in [
        (itself, "{\n.param .b32 a;\nst.param.b32 [a], 1;\ncall.uni again, (a);\n}", "again calls itself"),
        (
            ".extern .func (.param .b32 r) cudaLaunchDeviceV2(.param .b64 f, .param .b64 v);",
            "{\n.param .b64 a;\n.param .b64 b;\n.param .b32 r;\ncall.uni (r), cudaLaunchDeviceV2, (a, b);\n}",
            "cudaLaunchDeviceV2 has no body",
        ),
        (
            itself,
            "{\n.param .b32 a;\n.param .b32 b;\ncall.uni again, (a, b);\n}",
            "takes 1 arguments and gives 0 results, not 2 and 0",
        ),
        (itself, "{\n.param .b8 a;\ncall.uni again, (a);\n}", "is no .param variable of 4 bytes"),
        (&doubling(""), "call.uni f39;", "all calls together are more than 65536"),
        (&doubling(&nops), "call.uni f39;", "make more than 1048576 instructions"),
        (&doubling(".reg .b32 %w<60000>;\n"), "call.uni f39;", "need too many registers"),
    ] {
        let error = crate::bench::device().load(&text(functions, body)).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains(words)), "{words}: {error:?}");
    }
}

/// Functions of a number, a table of two of them, and a prototype; `other` has another one.
const POINTED: &str = ".func (.param .b32 r) twice(.param .b32 n)\n{\n.reg .b32 %w<3>;\nld.param.b32 %w1, [n];\n\
    add.u32 %w1, %w1, %w1;\nst.param.b32 [r], %w1;\nret;\n}\n.func (.param .b32 r) square(.param .b32 n)\n{\n\
    .reg .b32 %w<3>;\nld.param.b32 %w1, [n];\nmul.lo.u32 %w1, %w1, %w1;\nst.param.b32 [r], %w1;\nret;\n}\n\
    .func (.param .b64 r) other(.param .b64 n)\n{\n.reg .b64 %d<3>;\nld.param.b64 %d1, [n];\nst.param.b64 [r], %d1;\n\
    ret;\n}\n.global .align 8 .u64 table[3] = {twice, square, other};\n";

/// Calls the function of the table that a lane's number modulo `of` picks.
fn through_table(of: u32) -> String {
    let body = format!(
        "rem.u32 %w2, %w1, {of};\nmul.wide.u32 %d2, %w2, 8;\nmov.u64 %d1, table;\nadd.s64 %d1, %d1, %d2;\n\
         ld.global.u64 %d3, [%d1];\n{{\n.param .b32 a;\n.param .b32 r;\nst.param.b32 [a], %w1;\n\
         proto: .callprototype (.param .b32 _) _ (.param .b32 _);\ncall (r), %d3, (a), proto;\nld.param.b32 %w0, [r];\n}}"
    );
    text(POINTED, &body)
}

#[test]
fn a_call_through_a_pointer_reaches_the_function_that_each_lane_names() {
    let expected: Vec<u32> = (0..32).map(|i| if i % 2 == 0 { 2 * i } else { i * i }).collect();
    assert_eq!(words(&through_table(2)), expected);
    // An address in a register rather than in memory.
    let taken = through_table(2).replace("ld.global.u64 %d3, [%d1];", "mov.u64 %d3, square;");
    assert_eq!(words(&taken), (0..32).map(|i| i * i).collect::<Vec<u32>>());
}

#[test]
fn a_pointer_to_what_has_another_prototype_stops_the_kernel() {
    let mut bench = Bench::of_text(&through_table(3));
    let out = bench.empty(128);
    let outcome = bench.launch("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
    assert_eq!(checks(&outcome.reports), [Check::Trap], "{}", describe(&outcome.reports));
}

#[test]
fn one_kernel_of_many_that_cannot_be_run_leaves_the_others() {
    let good = text("", "mov.u32 %w0, 5;");
    let bad = ".visible .entry bad()\n{\ncall.uni nowhere;\nret;\n}\n";
    let mut bench = Bench::of_text(&format!("{good}{bad}"));
    let why = bench.module.refused.get("bad").map(ToString::to_string);
    assert!(why.as_ref().is_some_and(|why| why.contains("nowhere has no body")), "{why:?}");
    let out = bench.empty(128);
    bench.clean("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
    assert_eq!(bench.download::<u32>(out, 32), [5; 32]);
}

/// Allocates 64 bytes a thread, puts the thread's number into them, and frees the address in a register at the end: `%d2`, or in `%d3`
/// an address inside.
fn heap(freed: &str) -> String {
    text(
        ".extern .func (.param .b64 r) malloc(.param .b64 s);\n.extern .func free(.param .b64 p);",
        &format!(
            "{{\n.param .b64 a;\n.param .b64 r;\nst.param.b64 [a], 64;\ncall.uni (r), malloc, (a);\nld.param.b64 %d2, [r];\n}}\n\
             add.s64 %d3, %d2, 16;\nst.u32 [%d2+60], %w1;\nbar.sync 0;\nld.u32 %w0, [%d2+60];\n\
             {{\n.param .b64 a;\nst.param.b64 [a], {freed};\ncall.uni free, (a);\n}}"
        ),
    )
}

#[test]
fn every_thread_has_memory_of_its_own_from_the_heap_as_long_as_there_is_some() {
    let mut bench = Bench::of_text(&heap("%d2"));
    // Room for two grids' worth, so that the third must have what the first gave back.
    bench.device.heap_bytes = 32 * 64 * 4 * 2;
    let out = bench.empty(128);
    for _ in 0..3 {
        bench.clean("case", [4, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
        assert_eq!(bench.download::<u32>(out, 32), (0..32).collect::<Vec<u32>>());
    }
    bench.module = bench.device.load(&heap("%d3")).unwrap();
    let outcome = bench.launch("case", [1, 1, 1], [32, 1, 1], 0, &Arguments::new().pointer(out));
    assert_eq!(checks(&outcome.reports), [Check::Freed], "{}", describe(&outcome.reports));
}
