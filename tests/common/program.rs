//! The program as tests start it: the one place that names it, so that none computes on a GPU that this machine happens to have.
#![allow(dead_code, reason = "each test program starts it in its own way")]

use std::process::Command;

/// Where it is.
pub const PATH: &str = env!("CARGO_BIN_EXE_promptmix");

/// The program, which sees no GPU: its numbers are the CPU's on every machine.
pub fn promptmix() -> Command {
    without_gpu(Command::new(PATH))
}

/// A command that starts the program, which sees no GPU.
pub fn without_gpu(mut command: Command) -> Command {
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// The program on a machine with the virtual GPU, and with no other.
pub fn on_virtual_gpu() -> Command {
    let mut command = Command::new(PATH);
    command.env_remove("CUDA_VISIBLE_DEVICES");
    command.env("LD_PRELOAD", vgpu::find_library().expect("the virtual GPU's library"));
    command
}
