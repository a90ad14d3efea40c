//! Launches, and what functions of the device tell of themselves.

use std::cell::RefCell;
use std::ffi::c_int;

use super::super::launch::{Config, Launch, launch_ex};
use super::super::modules::{attribute, occupancy, set_attribute};
use super::errors::{INVALID_CONFIGURATION, MISSING_CONFIGURATION};
use super::images::kernel;
use super::{exported, give, of_driver, runtime};
use crate::codes::*;

/// `dim3`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Dim3 {
    x: u32,
    y: u32,
    z: u32,
}

impl Dim3 {
    fn each(self) -> [u32; 3] {
        [self.x, self.y, self.z]
    }
}

/// `cudaLaunchConfig_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RuntimeConfig {
    grid: Dim3,
    block: Dim3,
    shared: usize,
    stream: usize,
    attributes: *const u8,
    count: u32,
}

/// `cudaFuncAttributes`, up to what is told here.
#[repr(C)]
pub(crate) struct FunctionAttributes {
    shared: usize,
    constant: usize,
    local: usize,
    threads: c_int,
    registers: c_int,
    ptx: c_int,
    binary: c_int,
    cache: c_int,
    dynamic: c_int,
    carveout: c_int,
    cluster_demanded: c_int,
    cluster: [c_int; 3],
    cluster_policy: c_int,
    non_portable: c_int,
    reserved: [c_int; 16],
}

/// Between `<<<...>>>` and the call behind it: grid, block, shared bytes and stream.
type Configuration = (Dim3, Dim3, usize, usize);

thread_local! {
    static CONFIGURATIONS: RefCell<Vec<Configuration>> = const { RefCell::new(Vec::new()) };
}

/// Refuses a shape that no device has, with the runtime's own error.
fn check_shape(grid: [u32; 3], block: [u32; 3]) -> Result<(), u32> {
    let threads: u64 = block.iter().map(|&side| u64::from(side)).product();
    let fits = !grid.contains(&0) && threads > 0 && threads <= 1024 && block[2] <= 64;
    if fits && grid[1] <= 65_535 && grid[2] <= 65_535 { Ok(()) } else { Err(INVALID_CONFIGURATION) }
}

fn launch(
    host: usize,
    grid: Dim3,
    block: Dim3,
    arguments: *const *const u8,
    shared: usize,
    stream: usize,
    cooperative: bool,
) -> Result<(), u32> {
    check_shape(grid.each(), block.each())?;
    Launch {
        function: kernel(host)?,
        grid: grid.each(),
        block: block.each(),
        shared: u32::try_from(shared).map_err(|_| INVALID_VALUE)?,
        stream,
        arguments,
        extra: std::ptr::null(),
        cooperative,
        cluster: None,
        dependent: false,
    }
    .go()
}

/// The driver's form of a configuration.
fn of_runtime(config: *const RuntimeConfig) -> Result<Config, u32> {
    if config.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and a cudaLaunchConfig_t by the C signature.
    let config = unsafe { config.read_unaligned() };
    check_shape(config.grid.each(), config.block.each())?;
    Ok(Config {
        grid: config.grid.each(),
        block: config.block.each(),
        shared: u32::try_from(config.shared).map_err(|_| INVALID_VALUE)?,
        stream: config.stream,
        attributes: config.attributes.cast(),
        count: config.count,
    })
}

exported! {
    fn __cudaPushCallConfiguration(grid: Dim3, block: Dim3, shared: usize, stream: usize) {
        CONFIGURATIONS.with_borrow_mut(|known| known.push((grid, block, shared, stream)));
        Ok(())
    }
    fn __cudaPopCallConfiguration(grid: *mut Dim3, block: *mut Dim3, shared: *mut usize, stream: *mut usize) {
        let known = CONFIGURATIONS.with_borrow_mut(Vec::pop).ok_or(MISSING_CONFIGURATION)?;
        give(grid, known.0)?;
        give(block, known.1)?;
        give(shared, known.2)?;
        give(stream, known.3)
    }
}

runtime! {
    fn cudaLaunchKernel(
        host: usize,
        grid: Dim3,
        block: Dim3,
        arguments: *const *const u8,
        shared: usize,
        stream: usize,
    ) {
        launch(host, grid, block, arguments, shared, stream, false)
    }
    fn __cudaLaunchKernel(
        host: usize,
        grid: Dim3,
        block: Dim3,
        arguments: *const *const u8,
        shared: usize,
        stream: usize,
    ) {
        launch(host, grid, block, arguments, shared, stream, false)
    }
    fn cudaLaunchCooperativeKernel(
        host: usize,
        grid: Dim3,
        block: Dim3,
        arguments: *const *const u8,
        shared: usize,
        stream: usize,
    ) {
        launch(host, grid, block, arguments, shared, stream, true)
    }
    fn cudaLaunchKernelExC(config: *const RuntimeConfig, host: usize, arguments: *const *const u8) {
        let config = of_runtime(config)?;
        launch_ex(&config, kernel(host)?, arguments, std::ptr::null())
    }
    fn cudaFuncGetAttributes(to: *mut FunctionAttributes, host: usize) {
        let handle = kernel(host)?;
        let ask = |which| {
            let mut value = 0;
            attribute(&mut value, which, handle).map(|()| value)
        };
        give(to, FunctionAttributes {
            shared: ask(1)? as usize,
            constant: ask(2)? as usize,
            local: ask(3)? as usize,
            threads: ask(0)?,
            registers: ask(4)?,
            ptx: ask(5)?,
            binary: ask(6)?,
            cache: ask(7)?,
            dynamic: ask(8)?,
            carveout: ask(9)?,
            cluster_demanded: ask(10)?,
            cluster: [ask(11)?, ask(12)?, ask(13)?],
            cluster_policy: ask(15)?,
            non_portable: ask(14)?,
            reserved: [0; 16],
        })
    }
    fn cudaFuncSetAttribute(host: usize, which: u32, value: c_int) {
        set_attribute(kernel(host)?, which, value)
    }
    fn cudaFuncSetCacheConfig(host: usize, _config: u32) {
        kernel(host).map(|_| ())
    }
    fn cudaOccupancyMaxActiveBlocksPerMultiprocessor(to: *mut c_int, host: usize, threads: c_int, shared: usize) {
        give(to, occupancy(kernel(host)?, threads, shared)? as c_int)
    }
    fn cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        to: *mut c_int,
        host: usize,
        threads: c_int,
        shared: usize,
        _flags: u32,
    ) {
        give(to, occupancy(kernel(host)?, threads, shared)? as c_int)
    }
    fn cudaOccupancyAvailableDynamicSMemPerBlock(to: *mut usize, host: usize, blocks: c_int, threads: c_int) {
        let handle = kernel(host)?;
        // SAFETY: the same contract.
        of_driver(unsafe {
            super::super::modules::cuOccupancyAvailableDynamicSMemPerBlock(to, handle, blocks, threads)
        })
    }
    fn cudaOccupancyMaxActiveClusters(to: *mut c_int, host: usize, config: *const RuntimeConfig) {
        let (config, handle) = (of_runtime(config)?, kernel(host)?);
        // SAFETY: the same contract, and a configuration of the driver's form.
        of_driver(unsafe { super::super::launch::cuOccupancyMaxActiveClusters(to, handle, &config) })
    }
    fn cudaOccupancyMaxPotentialClusterSize(to: *mut c_int, host: usize, config: *const RuntimeConfig) {
        let (config, handle) = (of_runtime(config)?, kernel(host)?);
        // SAFETY: the same contract, and a configuration of the driver's form.
        of_driver(unsafe { super::super::launch::cuOccupancyMaxPotentialClusterSize(to, handle, &config) })
    }
}
