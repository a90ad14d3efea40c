//! Squares numbers on device 0, which is whatever libcuda.so the process finds; with the argument `past`, one
//! element too many. The smallest program that `vgpu run` is tried on.

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

const PTX: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry square(.param .u64 p)\n{\n\
    .reg .b32 %r<2>;\n.reg .f32 %f<2>;\n.reg .b64 %rd<4>;\nld.param.u64 %rd1, [p];\nmov.u32 %r1, %tid.x;\n\
    mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\nld.global.f32 %f1, [%rd3];\nmul.f32 %f1, %f1, %f1;\n\
    st.global.f32 [%rd3], %f1;\nret;\n}\n";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let past = std::env::args().nth(1).is_some_and(|word| word == "past");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let function = context.load_module(Ptx::from_src(PTX))?.load_function("square")?;
    let mut numbers = stream.clone_htod(&[1f32, 2.0, 3.0])?;
    let threads = if past { 4 } else { 3 };
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the kernel takes one pointer; it stays inside unless it was asked not to, which is the point then.
    unsafe { stream.launch_builder(&function).arg(&mut numbers).launch(config) }?;
    println!("{:?} on {}", stream.clone_dtoh(&numbers)?, context.name()?);
    Ok(())
}
