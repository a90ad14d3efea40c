//! Squares numbers on device 0, which is whatever libcuda.so the process finds; with the argument `past`, one
//! element too many; with `many`, 64 blocks of 32. The smallest program that `vgpu run` is tried on.

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

const PTX: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry square(.param .u64 p)\n{\n\
    .reg .b32 %r<5>;\n.reg .f32 %f<2>;\n.reg .b64 %rd<4>;\nld.param.u64 %rd1, [p];\nmov.u32 %r1, %tid.x;\n\
    mov.u32 %r2, %ctaid.x;\nmov.u32 %r3, %ntid.x;\nmad.lo.s32 %r4, %r2, %r3, %r1;\n\
    mul.wide.u32 %rd2, %r4, 4;\nadd.s64 %rd3, %rd1, %rd2;\nld.global.f32 %f1, [%rd3];\nmul.f32 %f1, %f1, %f1;\n\
    st.global.f32 [%rd3], %f1;\nret;\n}\n";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let word = std::env::args().nth(1).unwrap_or_default();
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let function = context.load_module(Ptx::from_src(PTX))?.load_function("square")?;
    let many = word == "many";
    let input: Vec<f32> = if many { vec![3.0; 2048] } else { vec![1.0, 2.0, 3.0] };
    let mut numbers = stream.clone_htod(&input)?;
    let (blocks, threads) = match word.as_str() {
        "many" => (64, 32),
        "past" => (1, 4),
        _ => (1, 3),
    };
    let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the kernel takes one pointer; it stays inside unless it was asked not to, which is the point then.
    unsafe { stream.launch_builder(&function).arg(&mut numbers).launch(config) }?;
    let output = stream.clone_dtoh(&numbers)?;
    if many {
        println!("{} of {} squared", output.iter().filter(|&&value| value == 9.0).count(), output.len());
    } else {
        println!("{output:?} on {}", context.name()?);
    }
    Ok(())
}
