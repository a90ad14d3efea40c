//! What the compiler's start-up code registers: images of kernels, and which function and variable of the host stands for
//! which of the device. A module is loaded when the first of it is used.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::super::modules::{function_of, load_loudly, unload, variable};
use super::super::state::state;
use super::errors::{INVALID_DEVICE_FUNCTION, INVALID_SYMBOL};
use super::{give, ready, runtime};
use crate::codes::*;

struct Image {
    /// Where the wrapper lies, which the compiler leaves in the program's memory.
    wrapper: usize,
    module: Option<usize>,
    /// Why it could not be loaded.
    failed: Option<u32>,
}

struct Variable {
    image: usize,
    name: String,
    size: usize,
    managed: bool,
}

#[derive(Default)]
struct Registry {
    images: Vec<Image>,
    /// By the address of the host's function: the image, the name, and the handle once it was asked for.
    functions: HashMap<usize, (usize, String, Option<usize>)>,
    /// By the address of the host's variable.
    variables: HashMap<usize, Variable>,
}

fn registry() -> MutexGuard<'static, Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    fn module(&mut self, index: usize) -> Result<usize, u32> {
        let image = self.images.get_mut(index).ok_or(INVALID_VALUE)?;
        if let Some(module) = image.module {
            return Ok(module);
        }
        // A failure is told once.
        if let Some(code) = image.failed {
            return Err(code);
        }
        let mut module = 0usize;
        match load_loudly(&mut module, image.wrapper as *const u8) {
            Ok(()) => image.module = Some(module),
            Err(code) => {
                image.failed = Some(code);
                return Err(code);
            }
        }
        Ok(module)
    }
}

/// The driver's handle of a kernel, by the address of its host function; a handle of the driver stands for itself.
pub(super) fn kernel(host: usize) -> Result<usize, u32> {
    let mut registry = registry();
    let Some((image, name, handle)) = registry.functions.get(&host).cloned() else {
        return if state().functions.contains_key(&host) { Ok(host) } else { Err(INVALID_DEVICE_FUNCTION) };
    };
    if let Some(handle) = handle {
        return Ok(handle);
    }
    let module = registry.module(image)?;
    let handle = function_of(module, &name)
        .map_err(|code| if code == NOT_FOUND { INVALID_DEVICE_FUNCTION } else { code })?;
    if let Some(known) = registry.functions.get_mut(&host) {
        known.2 = Some(handle);
    }
    Ok(handle)
}

/// Address and size of a variable of the device, by the address of the host's.
pub(super) fn symbol(host: usize) -> Result<(u64, usize), u32> {
    let mut registry = registry();
    let (image, name, size) = match registry.variables.get(&host) {
        Some(Variable { managed: true, size, .. }) => {
            // SAFETY: the host's variable of a managed one is a pointer to it.
            let address = unsafe { *(host as *const u64) };
            return Ok((address, *size));
        }
        Some(variable) => (variable.image, variable.name.clone(), variable.size),
        None => return Err(INVALID_SYMBOL),
    };
    let module = registry.module(image)?;
    let (mut address, mut bytes) = (0u64, size);
    variable(&mut address, &mut bytes, module, &name).map_err(|_| INVALID_SYMBOL)?;
    Ok((address, bytes))
}

fn word(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and ends in 0 as the compiler writes names.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The number of an image by the handle that stands for it.
fn number(handle: usize) -> usize {
    handle.wrapping_sub(1)
}

#[unsafe(no_mangle)]
extern "C" fn __cudaRegisterFatBinary(wrapper: usize) -> usize {
    let mut registry = registry();
    registry.images.push(Image { wrapper, module: None, failed: None });
    registry.images.len()
}

#[unsafe(no_mangle)]
extern "C" fn __cudaRegisterFatBinaryEnd(_handle: usize) {}

#[unsafe(no_mangle)]
extern "C" fn __cudaUnregisterFatBinary(handle: usize) {
    let mut registry = registry();
    let image = number(handle);
    registry.functions.retain(|_, (of, _, _)| *of != image);
    registry.variables.retain(|_, variable| variable.image != image);
    // The process may be at its end: what was loaded goes with it, and only a library that is closed gives it back.
    if let Some(module) = registry.images.get_mut(image).and_then(|image| image.module.take()) {
        let _ = unload(module);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __cudaRegisterFunction(
    handle: usize,
    host: usize,
    _device: *mut c_char,
    name: *const c_char,
    _threads: c_int,
    _thread: *mut c_void,
    _block: *mut c_void,
    _block_size: *mut c_void,
    _grid_size: *mut c_void,
    _warp_size: *mut c_int,
) {
    registry().functions.insert(host, (number(handle), word(name), None));
}

fn register_variable(handle: usize, host: usize, name: *const c_char, size: usize, managed: bool) {
    let variable = Variable { image: number(handle), name: word(name), size, managed };
    registry().variables.insert(host, variable);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __cudaRegisterVar(
    handle: usize,
    host: usize,
    _device: *mut c_char,
    name: *const c_char,
    _external: c_int,
    size: usize,
    _constant: c_int,
    _global: c_int,
) {
    register_variable(handle, host, name, size, false);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __cudaRegisterManagedVar(
    handle: usize,
    host: usize,
    _device: *mut c_char,
    name: *const c_char,
    _external: c_int,
    size: usize,
    _constant: c_int,
    _global: c_int,
) {
    register_variable(handle, host, name, size, true);
}

/// Loads the module of an image and tells the host where its managed variables lie.
#[unsafe(no_mangle)]
extern "C" fn __cudaInitModule(handle: usize) -> c_char {
    if ready().is_err() {
        return 0;
    }
    let mut registry = registry();
    let image = number(handle);
    let Ok(module) = registry.module(image) else { return 0 };
    for (host, known) in registry.variables.iter().filter(|(_, known)| known.image == image && known.managed)
    {
        let (mut address, mut bytes) = (0u64, 0usize);
        if variable(&mut address, &mut bytes, module, &known.name).is_ok() {
            // SAFETY: the compiler's start-up code gave the place of a pointer.
            unsafe { *(*host as *mut u64) = address };
        }
    }
    1
}

runtime! {
    fn cudaGetSymbolAddress(to: *mut u64, host: usize) {
        give(to, symbol(host)?.0)
    }
    fn cudaGetSymbolSize(to: *mut usize, host: usize) {
        give(to, symbol(host)?.1)
    }
    fn cudaGetFuncBySymbol(to: *mut usize, host: usize) {
        give(to, kernel(host)?)
    }
    fn cudaGetKernel(to: *mut usize, host: usize) {
        give(to, kernel(host)?)
    }
    fn __cudaGetKernel(to: *mut usize, host: usize) {
        give(to, kernel(host)?)
    }
}
