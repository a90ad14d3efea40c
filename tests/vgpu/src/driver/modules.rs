//! Modules, functions and occupancy.

use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;

use super::fatbin::ptx_of_image;
use super::state::{Function, Work, state};
use super::work::submit;
use super::{check, exported, give};
use crate::codes::*;
use crate::device::{ModuleError, registers_of};
use crate::profile::SHARED_DEFAULT;

/// Loads an image, and says on standard error and in the result why not.
fn load(to: *mut usize, image: *const u8) -> Result<(), (u32, String)> {
    if image.is_null() {
        return Err((INVALID_VALUE, "no image".to_string()));
    }
    let mut state = state();
    check(state.sticky).map_err(|code| (code, "an earlier launch failed".to_string()))?;
    // SAFETY: the caller gives an image as cuModuleLoadData demands.
    let text = unsafe { ptx_of_image(image, &state) }?;
    let module = state.device.load(&text).map_err(|error| {
        let code = match &error {
            ModuleError::Version(_) => UNSUPPORTED_PTX_VERSION,
            ModuleError::Target { .. } => NO_BINARY_FOR_GPU,
            ModuleError::Variable { .. } => OUT_OF_MEMORY,
            _ => INVALID_PTX,
        };
        (code, error.to_string())
    })?;
    let handle = state.handle();
    state.modules.insert(handle, module);
    give(to, handle).map_err(|code| (code, "nowhere to put the module".to_string()))
}

pub(crate) fn load_loudly(to: *mut usize, image: *const u8) -> Result<(), u32> {
    load(to, image).map_err(|(code, message)| {
        eprintln!("vgpu: the module cannot be loaded: {message}");
        code
    })
}

pub(crate) fn function(handle: usize) -> Result<Function, u32> {
    state().functions.get(&handle).cloned().ok_or(INVALID_HANDLE)
}

pub(super) fn text<'a>(name: *const c_char) -> Result<&'a str, u32> {
    if name.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and ends in 0 by the C signature.
    unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| INVALID_VALUE)
}

pub(crate) fn occupancy(handle: usize, threads: c_int, shared: usize) -> Result<u32, u32> {
    let Function { program, .. } = function(handle)?;
    let threads = u32::try_from(threads).map_err(|_| INVALID_VALUE)?;
    let shared = program.static_shared as u32 + u32::try_from(shared).map_err(|_| INVALID_VALUE)?;
    Ok(state().device.profile.occupancy(threads, registers_of(&program), shared))
}

/// The number of a target such as `sm_90a`.
fn target_number(target: &str) -> u32 {
    target.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
}

fn best_block(handle: usize, shared: usize, limit: c_int) -> Result<(c_int, c_int), u32> {
    let Function { program, .. } = function(handle)?;
    let most = match (limit, program.max_threads) {
        (0, 0) => 1024,
        (0, bound) => bound as c_int,
        (limit, _) => limit.min(1024),
    };
    let mut best = (0, 0);
    for threads in (32..=most).step_by(32) {
        let blocks = occupancy(handle, threads, shared)?;
        if blocks * threads as u32 >= best.0 {
            best = (blocks * threads as u32, threads);
        }
    }
    let blocks = best.0 / best.1.max(1) as u32 * state().device.profile.multiprocessors;
    Ok((blocks as c_int, best.1))
}

/// The image in a file, as [`load_loudly`] takes it.
pub(super) fn image_of_file(path: &str) -> Result<Vec<u8>, u32> {
    let mut bytes = std::fs::read(path).map_err(|_| FILE_NOT_FOUND)?;
    // Text must end in 0; a fatbin says its own size, which a cut-off file must not exceed.
    let length = bytes.len() as u64;
    bytes.push(0);
    bytes.resize(bytes.len().max(16), 0);
    if bytes[..4] == [0x50, 0xed, 0x55, 0xba] {
        let size = u64::from_le_bytes(bytes[8..16].try_into().unwrap_or_default());
        if length < 16 || size > length - 16 {
            return Err(INVALID_PTX);
        }
    }
    Ok(bytes)
}

/// Takes a module away, with its variables.
pub(crate) fn unload(module: usize) -> Result<(), u32> {
    let mut state = state();
    let module = state.modules.remove(&module).ok_or(INVALID_HANDLE)?;
    for (address, _) in module.variables.values() {
        state.free(*address);
    }
    Ok(())
}

/// The handle of a module's function.
pub(crate) fn function_of(module: usize, name: &str) -> Result<usize, u32> {
    let mut state = state();
    let known = state.modules.get(&module).ok_or(INVALID_HANDLE)?;
    if let Some(why) = known.refused.get(name) {
        eprintln!("vgpu: the kernel cannot be run: {why}");
        return Err(INVALID_PTX);
    }
    let program = known.kernels.get(name).cloned().ok_or(NOT_FOUND)?;
    // A module has one function of a name, with one limit, however often it is asked for.
    let is_it = |function: &Function| function.module == module && Arc::ptr_eq(&function.program, &program);
    let known = state.functions.iter().find(|(_, function)| is_it(function));
    let handle = match known {
        Some((&handle, _)) => handle,
        None => {
            let handle = state.handle();
            state.functions.insert(
                handle,
                Function { program, module, shared_limit: SHARED_DEFAULT, non_portable: false },
            );
            handle
        }
    };
    Ok(handle)
}

/// Address and size of a module's variable.
pub(crate) fn variable(to: *mut u64, bytes: *mut usize, module: usize, name: &str) -> Result<(), u32> {
    let state = state();
    let module = state.modules.get(&module).ok_or(INVALID_HANDLE)?;
    let (address, size) = module.variables.get(name).copied().ok_or(NOT_FOUND)?;
    if !to.is_null() {
        give(to, address)?;
    }
    if bytes.is_null() { Ok(()) } else { give(bytes, size) }
}

/// Tells an attribute of a function.
pub(crate) fn attribute(to: *mut c_int, attribute: u32, handle: usize) -> Result<(), u32> {
    let Function { program, shared_limit, non_portable, .. } = function(handle)?;
    let capability = state().device.profile.capability;
    let threads = (65_536 / registers_of(&program).max(1) / 32 * 32).min(1024);
    give(
        to,
        match attribute {
            0 if program.max_threads > 0 => program.max_threads.min(threads) as c_int,
            0 => threads as c_int,
            1 => program.static_shared as c_int,
            2 => 0,
            3 => program.local as c_int,
            4 => registers_of(&program) as c_int,
            // The PTX that it was made of, and the machine code that a device makes of that.
            5 => target_number(&program.target) as c_int,
            6 => (capability.0 * 10 + capability.1) as c_int,
            7 => 0,
            8 => shared_limit as c_int - program.static_shared as c_int,
            11..=13 => program.cluster.map_or(0, |cluster| cluster[attribute as usize - 11] as c_int),
            14 => c_int::from(non_portable),
            9..=16 => 0,
            _ => return Err(INVALID_VALUE),
        },
    )
}

/// Sets an attribute of a function.
pub(crate) fn set_attribute(handle: usize, attribute: u32, value: c_int) -> Result<(), u32> {
    let mut state = state();
    let most = state.device.profile.shared_per_block_optin;
    let function = state.functions.get_mut(&handle).ok_or(INVALID_HANDLE)?;
    if attribute == 8 {
        let wanted = u32::try_from(value).map_err(|_| INVALID_VALUE)? + function.program.static_shared as u32;
        if wanted > most {
            return Err(INVALID_VALUE);
        }
        function.shared_limit = wanted.max(SHARED_DEFAULT);
    }
    if attribute == 14 {
        function.non_portable = value != 0;
    }
    Ok(())
}

exported! {
    fn cuModuleLoadData(to: *mut usize, image: *const u8) {
        load_loudly(to, image)
    }
    fn cuModuleLoadDataEx(
        to: *mut usize,
        image: *const u8,
        count: u32,
        options: *const u32,
        values: *const *mut u8,
    ) {
        let outcome = load(to, image);
        let Err((code, message)) = outcome else { return Ok(()) };
        const ERROR_LOG: u32 = 5;
        const ERROR_LOG_SIZE: u32 = 6;
        let (mut log, mut room) = (std::ptr::null_mut::<u8>(), 0usize);
        for index in 0..count as usize {
            // SAFETY: the caller gives `count` options and values.
            let (option, value) = unsafe { (*options.add(index), *values.add(index)) };
            match option {
                ERROR_LOG => log = value,
                ERROR_LOG_SIZE => room = value as usize & 0xffff_ffff,
                _ => {}
            }
        }
        if !log.is_null() && room > 0 {
            let count = message.len().min(room - 1);
            // SAFETY: the caller's buffer has `room` bytes, and `count` is below it.
            unsafe {
                std::ptr::copy_nonoverlapping(message.as_ptr(), log, count);
                log.add(count).write(0);
            }
        }
        eprintln!("vgpu: the module cannot be loaded: {message}");
        Err(code)
    }
    fn cuModuleLoad(to: *mut usize, path: *const c_char) {
        load_loudly(to, image_of_file(text(path)?)?.as_ptr())
    }
    fn cuModuleUnload(module: usize) {
        unload(module)
    }
    fn cuModuleGetFunction(to: *mut usize, module: usize, name: *const c_char) {
        give(to, function_of(module, text(name)?)?)
    }
    fn cuModuleGetGlobal_v2(to: *mut u64, bytes: *mut usize, module: usize, name: *const c_char) {
        variable(to, bytes, module, text(name)?)
    }
    fn cuFuncGetAttribute(to: *mut c_int, which: u32, handle: usize) {
        attribute(to, which, handle)
    }
    fn cuFuncSetAttribute(handle: usize, attribute: u32, value: c_int) {
        set_attribute(handle, attribute, value)
    }
    fn cuFuncSetCacheConfig(_handle: usize, _config: u32) {
        Ok(())
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(to: *mut c_int, handle: usize, threads: c_int, shared: usize) {
        give(to, occupancy(handle, threads, shared)? as c_int)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        to: *mut c_int,
        handle: usize,
        threads: c_int,
        shared: usize,
        _flags: u32,
    ) {
        give(to, occupancy(handle, threads, shared)? as c_int)
    }
    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut c_int,
        block: *mut c_int,
        handle: usize,
        _shared_of_block: usize,
        shared: usize,
        limit: c_int,
    ) {
        let (blocks, threads) = best_block(handle, shared, limit)?;
        give(grid, blocks)?;
        give(block, threads)
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut c_int,
        block: *mut c_int,
        handle: usize,
        _shared_of_block: usize,
        shared: usize,
        limit: c_int,
        _flags: u32,
    ) {
        let (blocks, threads) = best_block(handle, shared, limit)?;
        give(grid, blocks)?;
        give(block, threads)
    }
    fn cuOccupancyAvailableDynamicSMemPerBlock(to: *mut usize, handle: usize, blocks: c_int, _threads: c_int) {
        let Function { program, .. } = function(handle)?;
        let profile = state().device.profile;
        let blocks = u32::try_from(blocks).ok().filter(|blocks| *blocks > 0).ok_or(INVALID_VALUE)?;
        let share = (profile.shared_per_multiprocessor / blocks).min(profile.shared_per_block_optin);
        give(to, (share as usize).saturating_sub(program.static_shared))
    }
    fn cuLaunchHostFunc(stream: usize, function: usize, data: usize) {
        if function == 0 {
            return Err(INVALID_VALUE);
        }
        check(submit(stream, Work::Call { function, data }))
    }
}
