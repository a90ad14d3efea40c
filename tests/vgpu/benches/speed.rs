//! How fast the virtual GPU is: multiply-adds a second through bf16 GEMMs by mma.sync and by wgmma, unchecked and checked,
//! instructions a second through attention and a row kernel, and the cost of a launch of many trivial blocks.
//!
//! `cargo bench -p vgpu --bench speed` prints the figures; the best of three runs counts, as other work on the machine only
//! slows. The rate for each second of processor time is what a core that is left alone would give.

#[path = "../tests/support/bench.rs"]
mod bench;
#[path = "../tests/support/maps.rs"]
mod maps;
#[path = "../tests/support/tools.rs"]
mod tools;

use std::time::Instant;

use bench::{Bench, Draw};
use maps::{MAP_BF16, MAP_SWIZZLE_128, tensor_map};
use vgpu::counters::Counters;
use vgpu::device::Arguments;

const TRIVIAL: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry trivial(.param .u64 p)\n{\n\
    .reg .b32 %r<3>;\n.reg .b64 %rd<4>;\nld.param.u64 %rd1, [p];\nmov.u32 %r1, %ctaid.x;\n\
    mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\nst.global.u32 [%rd3], %r1;\nret;\n}\n";

/// Processor time of this process, its own and the system's for it, in seconds.
fn processor_time() -> f64 {
    // SAFETY: rusage is plain data, and getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// The best of three runs, by the clock and in processor time, in seconds.
fn best(mut run: impl FnMut()) -> (f64, f64) {
    let (mut clock, mut processor) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..3 {
        let (start, used) = (Instant::now(), processor_time());
        run();
        clock = clock.min(start.elapsed().as_secs_f64());
        processor = processor.min(processor_time() - used);
    }
    (clock, processor)
}

fn gemm(checks: bool) -> Option<()> {
    let (m, n, k) = (1024usize, 1024usize, 512usize);
    let mut bench = Bench::new("gemm", &[])?;
    bench.device.settings.checks = checks;
    let mut draw = Draw(1);
    let (a, b, bias) = (draw.brains(m * k), draw.brains(n * k), draw.floats(n));
    let (pa, pb, pbias, pc) =
        (bench.upload(&a), bench.upload(&b), bench.upload(&bias), bench.empty(m * n * 2));
    let arguments = Arguments::new().pointer(pa).pointer(pb).pointer(pc).pointer(pbias);
    let arguments = arguments.int(m as i32).int(n as i32).int(k as i32);
    let (clock, processor) = best(|| {
        bench.clean("gemm", [8, 8, 1], [256, 1, 1], 65_536, &arguments);
    });
    let billions = (m * n * k) as f64 / 1e9;
    println!(
        "gemm {m}x{n}x{k}, checks {checks}: {:.0} ms, {:.2} G multiply-adds/s; {:.2} G per processor second",
        clock * 1e3,
        billions / clock,
        billions / processor
    );
    Some(())
}

/// The same by wgmma, out of what tensor copies bring.
fn warpgroup(checks: bool) -> Option<()> {
    let (m, n, k) = (1024usize, 1024usize, 512usize);
    let mut bench = Bench::hopper("warpgroup", &[])?;
    bench.device.settings.checks = checks;
    let mut draw = Draw(1);
    let (pa, pb) = (bench.upload(&draw.brains(m * k)), bench.upload(&draw.brains(n * k)));
    let pc = bench.empty(m * n * 4);
    let map = |address, rows: usize, height| {
        let size = [k as u64, rows as u64];
        tensor_map(MAP_BF16, address, size, 2 * k as u64, [64, height], MAP_SWIZZLE_128)
    };
    let arguments = Arguments::new().and(&map(pa, m, 128)).and(&map(pb, n, 64)).pointer(pc);
    let arguments = arguments.int(m as i32).int(n as i32).int(k as i32);
    let (clock, processor) = best(|| {
        bench.clean("product_rows", [8, 16, 1], [384, 1, 1], 3 * 24_576, &arguments);
    });
    let billions = (m * n * k) as f64 / 1e9;
    println!(
        "wgmma {m}x{n}x{k}, checks {checks}: {:.0} ms, {:.2} G multiply-adds/s; {:.2} G per processor second",
        clock * 1e3,
        billions / clock,
        billions / processor
    );
    Some(())
}

/// Flash attention: products, exponentials, shuffles, shared loads.
fn attention(checks: bool) -> Option<()> {
    let (heads, n) = (8usize, 512usize);
    let mut bench = Bench::new("attention", &[])?;
    bench.device.settings.checks = checks;
    let mut draw = Draw(2);
    let count = heads * n * 64;
    let (pq, pk, pv) = (
        bench.upload(&draw.brains(count)),
        bench.upload(&draw.brains(count)),
        bench.upload(&draw.brains(count)),
    );
    let pbias = bench.upload(&draw.floats(heads * (2 * n - 1)));
    let (po, plse) = (bench.empty(count * 2), bench.empty(heads * n * 4));
    let arguments =
        Arguments::new().pointer(pq).pointer(pk).pointer(pv).pointer(pbias).pointer(po).pointer(plse);
    let arguments = arguments.int(n as i32).int(n as i32);
    let mut counters = Counters::default();
    let (clock, processor) = best(|| {
        let outcome = bench.clean("attention", [n as u32 / 64, heads as u32, 1], [128, 1, 1], 0, &arguments);
        counters = outcome.counters;
    });
    let instructions = instructions(&counters);
    println!(
        "attention {heads}x{n}x64, checks {checks}: {:.0} ms, {:.2} G multiply-adds/s; {:.2} G per processor second, \
         {:.1} M warp instructions per processor second",
        clock * 1e3,
        counters.tensor_multiply_adds as f64 / 1e9 / clock,
        counters.tensor_multiply_adds as f64 / 1e9 / processor,
        instructions / 1e6 / processor
    );
    Some(())
}

/// Row kernels: f32 loads, exponentials, reductions over a block.
fn rows(checks: bool) -> Option<()> {
    let (rows, vocabulary) = (128usize, 8192usize);
    let mut bench = Bench::new("rows", &[])?;
    bench.device.settings.checks = checks;
    let mut draw = Draw(3);
    let (plogits, plabels) = (bench.upload(&draw.brains(rows * vocabulary)), bench.upload(&vec![5i64; rows]));
    let (pd, ploss) = (bench.empty(rows * vocabulary * 4), bench.empty(rows * 4));
    let arguments = Arguments::new().pointer(plogits).pointer(plabels).pointer(pd).pointer(ploss);
    let arguments = arguments.int(vocabulary as i32);
    let mut counters = Counters::default();
    let (clock, processor) = best(|| {
        let outcome = bench.clean("cross_entropy", [rows as u32, 1, 1], [256, 1, 1], 0, &arguments);
        counters = outcome.counters;
    });
    println!(
        "cross entropy {rows}x{vocabulary}, checks {checks}: {:.0} ms; {:.1} M warp instructions per processor second",
        clock * 1e3,
        instructions(&counters) / 1e6 / processor
    );
    Some(())
}

fn instructions(counters: &Counters) -> f64 {
    counters.classes.iter().sum::<u64>() as f64
}

fn main() {
    // `cargo bench -p vgpu -- gemm checked` runs the figures that it names.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |name: &str, checks: bool| {
        let checks = if checks { "checked" } else { "unchecked" };
        words.iter().all(|word| word == name || word == checks)
    };
    type Bench = fn(bool) -> Option<()>;
    let benches: [(&str, Bench); 5] = [
        ("gemm", gemm),
        ("warpgroup", warpgroup),
        ("attention", attention),
        ("rows", rows),
        ("trivial", trivial),
    ];
    for checks in [false, true] {
        for (name, bench) in benches {
            // Without a compiler there is nothing to run; a line on standard error says so.
            if wanted(name, checks) && bench(checks).is_none() {
                return;
            }
        }
    }
}

/// A launch of many blocks that do next to nothing.
fn trivial(checks: bool) -> Option<()> {
    let mut bench = Bench::of_text(TRIVIAL);
    bench.device.settings.checks = checks;
    let out = bench.empty(400_000);
    let start = Instant::now();
    bench.clean("trivial", [100_000, 1, 1], [1, 1, 1], 0, &Arguments::new().pointer(out));
    println!("100,000 trivial blocks, checks {checks}: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    assert_eq!(bench.download::<u32>(out, 100_000), (0..100_000).collect::<Vec<u32>>());
    Some(())
}
