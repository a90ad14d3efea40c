//! Launches: plain, cooperative, and with attributes.

use std::ffi::c_int;

use super::modules::{function, occupancy};
use super::state::{Function, Work, state};
use super::work::submit;
use super::{check, exported, give};
use crate::codes::*;
use crate::device::registers_of;
use crate::execute::Shape;

/// Blocks of a cluster that every device with clusters runs.
const PORTABLE: u32 = 8;

/// Everything that a launch is told.
pub(crate) struct Launch {
    pub function: usize,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub stream: usize,
    pub arguments: *const *const u8,
    /// Arguments in another form: pairs of a key and a value, or nothing.
    pub extra: *const *const u8,
    pub cooperative: bool,
    pub cluster: Option<[u32; 3]>,
    pub dependent: bool,
}

/// Keys of `extra`: its end, the buffer of all arguments, and the place of its size.
const END: usize = 0;
const BUFFER: usize = 1;
const SIZE: usize = 2;
/// Pairs of `extra` at which a list is taken for one that does not end.
const MAX_PAIRS: usize = 8;

/// The arguments in a buffer that is laid out as the kernel's parameters.
///
/// # Safety
/// `extra` is a list as `cuLaunchKernel` takes it.
unsafe fn packed(extra: *const *const u8, bytes: usize) -> Result<Vec<u8>, u32> {
    let (mut buffer, mut size) = (std::ptr::null::<u8>(), None);
    for pair in 0..MAX_PAIRS {
        // SAFETY: the list goes on, as no end was met.
        let key = unsafe { *extra.add(2 * pair) } as usize;
        if key == END {
            break;
        }
        // SAFETY: a value follows every key.
        let value = unsafe { *extra.add(2 * pair + 1) };
        match key {
            BUFFER => buffer = value,
            // SAFETY: the value is the place of a size.
            SIZE if !value.is_null() => size = Some(unsafe { value.cast::<usize>().read_unaligned() }),
            _ => return Err(INVALID_VALUE),
        }
    }
    match size {
        // A buffer may be padded at its end.
        Some(size) if !buffer.is_null() && size >= bytes => {
            // SAFETY: the caller's buffer has `size` bytes, and no more are read.
            Ok(unsafe { std::slice::from_raw_parts(buffer, bytes) }.to_vec())
        }
        _ => Err(INVALID_VALUE),
    }
}

impl Launch {
    /// Checks the launch and gives it to its stream.
    pub fn go(self) -> Result<(), u32> {
        let stream = self.stream;
        check(submit(stream, self.work()?))
    }

    /// Checks the launch, and makes it a piece of work.
    pub fn work(self) -> Result<Work, u32> {
        let Function { program, shared_limit, non_portable, .. } = function(self.function)?;
        let shape = Shape {
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.shared,
            cooperative: self.cooperative,
            cluster: self.cluster.or(program.cluster).unwrap_or([1; 3]),
            dependent: self.dependent,
            ..Shape::default()
        };
        if shape.cluster_blocks() > PORTABLE && !non_portable {
            eprintln!(
                "vgpu: {}: clusters of more than {PORTABLE} blocks need NON_PORTABLE_CLUSTER_SIZE_ALLOWED",
                program.name
            );
            return Err(INVALID_CLUSTER_SIZE);
        }
        state().device.check_limits(&program, &shape, shared_limit).map_err(|error| {
            eprintln!("vgpu: {error}");
            error.code
        })?;
        let mut arguments = vec![0u8; program.parameter_bytes];
        if self.arguments.is_null() && !self.extra.is_null() {
            // SAFETY: a list as the C signature has it.
            arguments = unsafe { packed(self.extra, program.parameter_bytes) }?;
            return Ok(Work::Launch { program, shape, arguments });
        }
        for (index, &(size, offset)) in program.parameters.iter().enumerate() {
            if self.arguments.is_null() {
                return Err(INVALID_VALUE);
            }
            // SAFETY: the caller gives one pointer for every parameter, each to a value of its size.
            unsafe {
                let value = *self.arguments.add(index);
                if value.is_null() {
                    return Err(INVALID_VALUE);
                }
                std::ptr::copy_nonoverlapping(value, arguments[offset..].as_mut_ptr(), size);
            }
        }
        Ok(Work::Launch { program, shape, arguments })
    }
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Config {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub stream: usize,
    pub attributes: *const Attribute,
    pub count: u32,
}

/// `CUlaunchAttribute`: a number, and 64 bytes whose meaning it says.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Attribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

/// What the attributes of a launch say.
#[derive(Default)]
struct Attributes {
    cooperative: bool,
    cluster: Option<[u32; 3]>,
    dependent: bool,
}

impl Config {
    /// Reads a configuration of the caller.
    fn of(config: *const Self) -> Result<(Self, Attributes), u32> {
        if config.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, and a CUlaunchConfig by the C signature.
        let config = unsafe { config.read_unaligned() };
        let mut out = Attributes::default();
        if config.count > 0 && config.attributes.is_null() {
            return Err(INVALID_VALUE);
        }
        for index in 0..config.count as usize {
            // SAFETY: the caller gives `count` attributes.
            let Attribute { id, value, .. } = unsafe { config.attributes.add(index).read_unaligned() };
            match id {
                COOPERATIVE => out.cooperative = value[0] != 0,
                CLUSTER => out.cluster = Some([value[0], value[1], value[2]]),
                SERIALIZATION => out.dependent = value[0] != 0,
                // These change where and when a kernel runs, not what it may do.
                IGNORE
                | ACCESS_POLICY
                | SYNCHRONIZATION_POLICY
                | CLUSTER_POLICY
                | PRIORITY
                | DOMAIN_MAP
                | DOMAIN => {}
                other => {
                    eprintln!("vgpu: launch attribute {other} is not modelled");
                    return Err(NOT_SUPPORTED);
                }
            }
        }
        Ok((config, out))
    }
}

const IGNORE: u32 = 0;
const ACCESS_POLICY: u32 = 1;
const COOPERATIVE: u32 = 2;
const SYNCHRONIZATION_POLICY: u32 = 3;
const CLUSTER: u32 = 4;
const CLUSTER_POLICY: u32 = 5;
const SERIALIZATION: u32 = 6;
const PRIORITY: u32 = 8;
const DOMAIN_MAP: u32 = 9;
const DOMAIN: u32 = 10;

/// A launch with attributes.
pub(crate) fn launch_ex(
    config: *const Config,
    function: usize,
    arguments: *const *const u8,
    extra: *const *const u8,
) -> Result<(), u32> {
    let (config, attributes) = Config::of(config)?;
    if attributes.dependent && state().device.profile.capability.0 < 9 {
        eprintln!("vgpu: programmatic stream serialization needs compute capability 9.0");
        return Err(NOT_SUPPORTED);
    }
    Launch {
        function,
        grid: config.grid,
        block: config.block,
        shared: config.shared,
        stream: config.stream,
        arguments,
        extra,
        cooperative: attributes.cooperative,
        cluster: attributes.cluster,
        dependent: attributes.dependent,
    }
    .go()
}

exported! {
    fn cuLaunchKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: usize,
        arguments: *const *const u8,
        extra: *const *const u8,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        Launch { function, grid, block, shared, stream, arguments, extra, cooperative: false, cluster: None, dependent: false }.go()
    }
    fn cuLaunchCooperativeKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: usize,
        arguments: *const *const u8,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        Launch { function, grid, block, shared, stream, arguments, extra: std::ptr::null(), cooperative: true, cluster: None, dependent: false }.go()
    }
    fn cuLaunchKernelEx(
        config: *const Config,
        function: usize,
        arguments: *const *const u8,
        extra: *const *const u8,
    ) {
        launch_ex(config, function, arguments, extra)
    }
    fn cuOccupancyMaxActiveClusters(to: *mut c_int, handle: usize, config: *const Config) {
        let (config, attributes) = Config::of(config)?;
        let Function { program, .. } = function(handle)?;
        let cluster = attributes.cluster.or(program.cluster).unwrap_or([1; 3]);
        let threads: u32 = config.block.iter().product();
        let fit = occupancy(handle, threads as c_int, config.shared as usize)?;
        give(to, state().device.profile.clusters(cluster.iter().product(), fit) as c_int)
    }
    fn cuOccupancyMaxPotentialClusterSize(to: *mut c_int, handle: usize, config: *const Config) {
        let (config, _) = Config::of(config)?;
        let Function { program, non_portable, .. } = function(handle)?;
        let threads: u32 = config.block.iter().product();
        let profile = state().device.profile;
        let shared = program.static_shared as u32 + config.shared;
        let fit = profile.occupancy(threads, registers_of(&program), shared);
        let most = if non_portable { crate::execute::MAX_BLOCKS } else { PORTABLE };
        let size = (1..=most).rev().filter(|size| size.is_power_of_two()).find(|&size| profile.clusters(size, fit) > 0);
        give(to, size.unwrap_or(0) as c_int)
    }
}
