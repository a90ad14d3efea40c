//! Libraries, which are modules without a context, what functions tell of themselves, and the linker.

use std::ffi::{CString, c_char, c_int, c_void};

use super::modules::{function, load_loudly, text};
use super::state::{Function, state};
use super::{exported, give};
use crate::codes::*;

/// Kinds of input of the linker that are text, or hold it.
const PTX: u32 = 1;
const FATBIN: u32 = 2;

/// The text of a file that a driver call names, as an image in memory.
fn read(path: *const c_char) -> Result<Vec<u8>, u32> {
    super::modules::image_of_file(text(path)?)
}

fn name_of(to: *mut *const c_char, handle: usize) -> Result<(), u32> {
    let Function { program, .. } = function(handle)?;
    let name = CString::new(program.name.as_str()).map_err(|_| INVALID_VALUE)?;
    let mut state = state();
    // The text stays where it is as long as the handle is known.
    let name = state.names.entry(handle).or_insert(name).as_ptr();
    give(to, name)
}

fn parameter(handle: usize, index: usize, offset: *mut usize, size: *mut usize) -> Result<(), u32> {
    let Function { program, .. } = function(handle)?;
    let &(bytes, at) = program.parameters.get(index).ok_or(INVALID_VALUE)?;
    give(offset, at)?;
    if size.is_null() { Ok(()) } else { give(size, bytes) }
}

fn count_of(to: *mut u32, module: usize) -> Result<(), u32> {
    give(to, state().modules.get(&module).ok_or(INVALID_HANDLE)?.kernels.len() as u32)
}

/// Handles of the first kernels of a module, by name.
fn list(to: *mut usize, room: u32, module: usize) -> Result<(), u32> {
    let mut names: Vec<String> =
        state().modules.get(&module).ok_or(INVALID_HANDLE)?.kernels.keys().cloned().collect();
    names.sort();
    for (index, name) in names.iter().take(room as usize).enumerate() {
        let handle = super::modules::function_of(module, name)?;
        // SAFETY: the caller gave room for `room` handles.
        give(unsafe { to.add(index) }, handle)?;
    }
    Ok(())
}

/// What the linker was given.
#[derive(Default)]
pub struct Link {
    /// Texts, one behind the other.
    text: String,
    /// The result, which ends in 0.
    done: Vec<u8>,
}

fn add(handle: usize, kind: u32, data: *const u8, size: usize) -> Result<(), u32> {
    let mut state = state();
    if !state.links.contains_key(&handle) || data.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller gives `size` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data, size) };
    let added = match kind {
        PTX => String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or(&[])).into_owned(),
        FATBIN => {
            super::fatbin::ptx_of_fatbin(bytes, state.device.profile.capability).map_err(|(code, why)| {
                eprintln!("vgpu: the linker: {why}");
                code
            })?
        }
        _ => {
            eprintln!(
                "vgpu: the linker was given machine code, which cannot be run here; give it PTX instead"
            );
            return Err(NO_BINARY_FOR_GPU);
        }
    };
    if let Some(link) = state.links.get_mut(&handle) {
        link.text.push_str(&added);
        link.text.push('\n');
    }
    Ok(())
}

exported! {
    fn cuLibraryLoadData(
        to: *mut usize,
        image: *const u8,
        _options: *const u32,
        _values: *const *mut c_void,
        _count: u32,
        _library_options: *const u32,
        _library_values: *const *mut c_void,
        _library_count: u32,
    ) {
        load_loudly(to, image)
    }
    fn cuLibraryLoadFromFile(
        to: *mut usize,
        path: *const c_char,
        _options: *const u32,
        _values: *const *mut c_void,
        _count: u32,
        _library_options: *const u32,
        _library_values: *const *mut c_void,
        _library_count: u32,
    ) {
        load_loudly(to, read(path)?.as_ptr())
    }
    fn cuLibraryUnload(library: usize) {
        super::modules::unload(library)
    }
    fn cuLibraryGetKernel(to: *mut usize, library: usize, name: *const c_char) {
        give(to, super::modules::function_of(library, text(name)?)?)
    }
    fn cuLibraryGetModule(to: *mut usize, library: usize) {
        if !state().modules.contains_key(&library) {
            return Err(INVALID_HANDLE);
        }
        give(to, library)
    }
    fn cuLibraryGetKernelCount(to: *mut u32, library: usize) {
        count_of(to, library)
    }
    fn cuLibraryEnumerateKernels(to: *mut usize, room: u32, library: usize) {
        list(to, room, library)
    }
    fn cuLibraryGetGlobal(to: *mut u64, bytes: *mut usize, library: usize, name: *const c_char) {
        super::modules::variable(to, bytes, library, text(name)?)
    }
    fn cuLibraryGetManaged(to: *mut u64, bytes: *mut usize, library: usize, name: *const c_char) {
        super::modules::variable(to, bytes, library, text(name)?)
    }
    fn cuKernelGetFunction(to: *mut usize, kernel: usize) {
        function(kernel)?;
        give(to, kernel)
    }
    fn cuKernelGetLibrary(to: *mut usize, kernel: usize) {
        give(to, function(kernel)?.module)
    }
    fn cuKernelGetAttribute(to: *mut c_int, attribute: u32, kernel: usize, _ordinal: c_int) {
        super::modules::attribute(to, attribute, kernel)
    }
    fn cuKernelSetAttribute(attribute: u32, value: c_int, kernel: usize, _ordinal: c_int) {
        super::modules::set_attribute(kernel, attribute, value)
    }
    fn cuKernelSetCacheConfig(_kernel: usize, _config: u32, _ordinal: c_int) {
        Ok(())
    }
    fn cuKernelGetName(to: *mut *const c_char, kernel: usize) {
        name_of(to, kernel)
    }
    fn cuKernelGetParamInfo(kernel: usize, index: usize, offset: *mut usize, size: *mut usize) {
        parameter(kernel, index, offset, size)
    }
    fn cuFuncGetName(to: *mut *const c_char, handle: usize) {
        name_of(to, handle)
    }
    fn cuFuncGetParamInfo(handle: usize, index: usize, offset: *mut usize, size: *mut usize) {
        parameter(handle, index, offset, size)
    }
    fn cuFuncGetModule(to: *mut usize, handle: usize) {
        give(to, function(handle)?.module)
    }
    fn cuFuncIsLoaded(to: *mut c_int, handle: usize) {
        function(handle)?;
        give(to, 1)
    }
    fn cuFuncLoad(handle: usize) {
        function(handle).map(|_| ())
    }
    fn cuFuncSetSharedMemConfig(handle: usize, _config: u32) {
        function(handle).map(|_| ())
    }
    fn cuModuleGetFunctionCount(to: *mut u32, module: usize) {
        count_of(to, module)
    }
    fn cuModuleEnumerateFunctions(to: *mut usize, room: u32, module: usize) {
        list(to, room, module)
    }
    fn cuModuleGetLoadingMode(to: *mut u32) {
        // Everything is made ready when a module is loaded.
        give(to, 1)
    }
    fn cuModuleLoadFatBinary(to: *mut usize, image: *const u8) {
        load_loudly(to, image)
    }
    fn cuLinkCreate_v2(_count: u32, _options: *const u32, _values: *const *mut c_void, to: *mut usize) {
        let mut state = state();
        let link = state.handle();
        state.links.insert(link, Link::default());
        give(to, link)
    }
    fn cuLinkAddData_v2(
        link: usize,
        kind: u32,
        data: *const u8,
        size: usize,
        _name: *const c_char,
        _count: u32,
        _options: *const u32,
        _values: *const *mut c_void,
    ) {
        add(link, kind, data, size)
    }
    fn cuLinkAddFile_v2(
        link: usize,
        kind: u32,
        path: *const c_char,
        _count: u32,
        _options: *const u32,
        _values: *const *mut c_void,
    ) {
        let bytes = read(path)?;
        add(link, kind, bytes.as_ptr(), bytes.len())
    }
    fn cuLinkComplete(link: usize, image: *mut *mut c_void, size: *mut usize) {
        let mut state = state();
        let link = state.links.get_mut(&link).ok_or(INVALID_VALUE)?;
        // What is linked stays text: the image is the modules of all inputs as one.
        link.done = CString::new(link.text.as_str()).map_err(|_| INVALID_PTX)?.into_bytes_with_nul();
        give(image, link.done.as_mut_ptr().cast())?;
        if size.is_null() { Ok(()) } else { give(size, link.done.len()) }
    }
    fn cuLinkDestroy(link: usize) {
        state().links.remove(&link).map(|_| ()).ok_or(INVALID_VALUE)
    }
}
