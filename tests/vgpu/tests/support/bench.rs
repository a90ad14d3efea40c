//! Compiled kernels on a device, and numbers for them. Whoever takes this in takes in `tools.rs` beside it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::tools::cuda_tool;
use vgpu::device::{Arguments, Device, Module, describe};
use vgpu::execute::{Outcome, Shape};
use vgpu::profile::PROFILES;
use vgpu::program::Program;

/// The PTX of a test kernel, compiled once for every content. None without a compiler, which in CI fails.
pub fn ptx(kernel: &str, flags: &[&str]) -> Option<String> {
    let Some(nvcc) = cuda_tool("nvcc") else {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs without nvcc; run scripts/install-cuda-compiler first"
        );
        eprintln!("skipped: no nvcc; run scripts/install-cuda-compiler");
        return None;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    let source = folder.join(format!("{kernel}.cu"));
    let mut hasher = DefaultHasher::new();
    std::fs::read(&source).unwrap().hash(&mut hasher);
    for header in ["warp.cuh", "warpgroup.cuh"] {
        std::fs::read(folder.join(header)).unwrap().hash(&mut hasher);
    }
    nvcc.hash(&mut hasher);
    flags.hash(&mut hasher);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ptx");
    std::fs::create_dir_all(&cache).unwrap();
    let cached = cache.join(format!("{kernel}-{:016x}.ptx", hasher.finish()));
    if let Ok(text) = std::fs::read_to_string(&cached) {
        return Some(text);
    }
    // Tests of one process compile at the same time.
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Relaxed));
    let fresh = cache.join(format!("{kernel}-{:016x}.{process}.{count}.new", hasher.finish()));
    let arch =
        if flags.iter().any(|flag| flag.starts_with("-arch")) { None } else { Some("-arch=compute_80") };
    let output = Command::new(nvcc)
        .args(["-ptx", "-lineinfo", "-O3", "-std=c++17"])
        .args(arch)
        .args(flags)
        .arg(&source)
        .arg("-o")
        .arg(&fresh)
        .output()
        .unwrap();
    assert!(output.status.success(), "nvcc: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&fresh, &cached).unwrap();
    Some(std::fs::read_to_string(&cached).unwrap())
}

/// A device with checks, a fixed seed and two workers.
pub fn device() -> Device {
    let mut device = Device::new(&PROFILES[0]);
    device.settings.checks = true;
    device.settings.seed = 7;
    device.settings.workers = 2;
    device.settings.timeout = std::time::Duration::from_secs(60);
    device
}

/// A device and a module loaded on it.
pub struct Bench {
    pub device: Device,
    pub module: Module,
}

impl Bench {
    /// A compiled test kernel on a device; none without a compiler.
    pub fn new(kernel: &str, flags: &[&str]) -> Option<Self> {
        Some(Self::of_text(&ptx(kernel, flags)?))
    }

    /// A test kernel for compute capability 9.0a on such a device; none without a compiler.
    pub fn hopper(kernel: &str, flags: &[&str]) -> Option<Self> {
        let flags: Vec<&str> = flags.iter().copied().chain(["-arch=compute_90a"]).collect();
        Some(Self::of_text_for("sm_90", &ptx(kernel, &flags)?))
    }

    /// A PTX text on a device.
    pub fn of_text(text: &str) -> Self {
        Self::of_text_for(PROFILES[0].name, text)
    }

    /// A PTX text on a device of that profile.
    pub fn of_text_for(profile: &str, text: &str) -> Self {
        let mut device = device();
        device.profile = vgpu::profile::Profile::by_name(profile).unwrap();
        let module = device.load(text).unwrap();
        Self { device, module }
    }

    pub fn program(&self, name: &str) -> Arc<Program> {
        self.module.kernels[name].clone()
    }

    pub fn upload<T: Number>(&mut self, values: &[T]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.bytes()).collect();
        self.device.upload(&bytes).unwrap()
    }

    pub fn empty(&mut self, bytes: usize) -> u64 {
        self.device.memory.allocate(bytes).unwrap()
    }

    pub fn download<T: Number>(&self, address: u64, count: usize) -> Vec<T> {
        let size = std::mem::size_of::<T>();
        let bytes = self.device.download(address, count * size).unwrap();
        bytes.chunks_exact(size).map(T::of).collect()
    }

    /// Launches without judging.
    pub fn launch(
        &mut self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: &Arguments,
    ) -> Outcome {
        let shape = Shape { grid, block, dynamic_shared: shared, ..Shape::default() };
        self.launch_as(kernel, &shape, arguments)
    }

    /// Launches in a shape of its own, in the kernel's clusters if it demands some, without judging.
    pub fn launch_as(&mut self, kernel: &str, shape: &Shape, arguments: &Arguments) -> Outcome {
        let program = self.program(kernel);
        assert_eq!(program.parameter_bytes, arguments.bytes().len(), "arguments of {kernel}");
        let shape = Shape { cluster: program.cluster.unwrap_or(shape.cluster), ..shape.clone() };
        self.device.launch(&program, &shape, arguments.bytes()).unwrap()
    }

    /// Launches and demands that no check fails.
    pub fn clean(
        &mut self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: &Arguments,
    ) -> Outcome {
        let outcome = self.launch(kernel, grid, block, shared, arguments);
        assert!(outcome.reports.is_empty(), "{}", describe(&outcome.reports));
        outcome
    }
}

/// A number that device memory holds.
pub trait Number: Copy {
    fn bytes(self) -> Vec<u8>;
    fn of(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Number for $type {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn of(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64, i32, i64, f32, f64);

/// A bfloat16 of an f32.
pub fn bf16(value: f32) -> u16 {
    vgpu::number::to_bf16(value) as u16
}
/// Numbers drawn evenly from -1 to 1.
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
    pub fn brains(&mut self, count: usize) -> Vec<u16> {
        (0..count).map(|_| bf16(self.next())).collect()
    }
}
