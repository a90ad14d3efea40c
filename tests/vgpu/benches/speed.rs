//! How fast the virtual GPU is: multiply-adds a second through a bf16 tensor-core GEMM, unchecked and checked,
//! and the cost of a launch of many trivial blocks.
//!
//! `cargo bench -p vgpu` prints the figures; the best of three runs counts, as other work on the machine only
//! slows. The rate for each second of processor time is what a core that is left alone would give.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use support::{Bench, Draw};
use vgpu::device::Arguments;

const TRIVIAL: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry trivial(.param .u64 p)\n{\n\
    .reg .b32 %r<3>;\n.reg .b64 %rd<4>;\nld.param.u64 %rd1, [p];\nmov.u32 %r1, %ctaid.x;\n\
    mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\nst.global.u32 [%rd3], %r1;\nret;\n}\n";

/// Processor time of this process, in seconds.
fn processor_time() -> f64 {
    // SAFETY: rusage is plain data, and getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_utime.tv_sec as f64 + usage.ru_utime.tv_usec as f64 / 1e6
}

fn main() {
    let (m, n, k) = (1024usize, 1024usize, 512usize);
    for checks in [false, true] {
        let Some(mut bench) = Bench::new("gemm", &[]) else { return };
        bench.device.settings.checks = checks;
        let mut draw = Draw(1);
        let (a, b, bias) = (draw.brains(m * k), draw.brains(n * k), draw.floats(n));
        let (pa, pb, pbias, pc) =
            (bench.upload(&a), bench.upload(&b), bench.upload(&bias), bench.empty(m * n * 2));
        let arguments = Arguments::new().pointer(pa).pointer(pb).pointer(pc).pointer(pbias);
        let arguments = arguments.int(m as i32).int(n as i32).int(k as i32);
        let (mut best, mut least) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..3 {
            let (start, used) = (Instant::now(), processor_time());
            bench.clean("gemm", [8, 8, 1], [256, 1, 1], 65_536, &arguments);
            best = best.min(start.elapsed().as_secs_f64());
            least = least.min(processor_time() - used);
        }
        let billions = (m * n * k) as f64 / 1e9;
        println!(
            "gemm {m}x{n}x{k}, checks {checks}: {:.0} ms, {:.2} G multiply-adds/s; {:.2} G per processor second",
            best * 1e3,
            billions / best,
            billions / least
        );
    }
    for checks in [false, true] {
        let mut bench = Bench::of_text(TRIVIAL);
        bench.device.settings.checks = checks;
        let out = bench.empty(400_000);
        let start = Instant::now();
        bench.clean("trivial", [100_000, 1, 1], [1, 1, 1], 0, &Arguments::new().pointer(out));
        println!("100,000 trivial blocks, checks {checks}: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        assert_eq!(bench.download::<u32>(out, 100_000), (0..100_000).collect::<Vec<u32>>());
    }
}
