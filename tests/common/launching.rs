//! A program that launches kernels on cudarc's own buffers.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::bf16;
use promptmix::cuda::Kernels;

#[path = "kernels.rs"]
mod kernels;

pub struct Program {
    pub kernels: Kernels,
    pub stream: Arc<CudaStream>,
    // Dropped last: its checks fail the test.
    _gpu: vgpu::Gpu,
}

/// None, with a printed reason, in a build without kernels, which in CI fails.
pub fn program() -> Option<Program> {
    if !kernels::are_built() {
        return None;
    }
    let gpu = vgpu::load().expect("a GPU, virtual or real");
    let stream = CudaContext::new(0).expect("a context").new_stream().expect("a stream");
    let kernels = Kernels::new(stream.clone()).expect("kernels");
    Some(Program { kernels, stream, _gpu: gpu })
}

impl Program {
    /// Numbers from -1 to 1 that bf16 has, and the same on the device.
    pub fn numbers(&self, count: usize, key: usize) -> (Vec<f64>, CudaSlice<bf16>) {
        let number = |i: usize| bf16::from_f64(((i + key) * 2_654_435_761 % 1_009) as f64 / 504.5 - 1.0);
        let values: Vec<bf16> = (0..count).map(number).collect();
        let uploaded = self.stream.clone_htod(&values).expect("an upload");
        (values.into_iter().map(f64::from).collect(), uploaded)
    }
}
