//! How programs find the driver's functions by name, and what of the driver is private to CUDA's own libraries.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Once;

use super::{exported, give};
use crate::codes::*;

/// Functions whose versions differ in more than a suffix that every program of today wants: the name, the first CUDA
/// version that means it, and the symbol; the newest first.
const VERSIONS: &[(&str, c_int, &str)] = &[
    ("cuCtxCreate", 12_050, "cuCtxCreate_v4"),
    ("cuCtxCreate", 11_040, "cuCtxCreate_v3"),
    ("cuCtxCreate", 0, "cuCtxCreate_v2"),
    ("cuMemAdvise", 12_020, "cuMemAdvise_v2"),
    ("cuMemAdvise", 0, "cuMemAdvise"),
    ("cuMemPrefetchAsync", 12_020, "cuMemPrefetchAsync_v2"),
    ("cuMemPrefetchAsync", 0, "cuMemPrefetchAsync"),
    ("cuGraphInstantiate", 12_000, "cuGraphInstantiateWithFlags"),
    ("cuStreamGetCaptureInfo", 12_030, "cuStreamGetCaptureInfo_v3"),
    ("cuStreamGetCaptureInfo", 0, "cuStreamGetCaptureInfo_v2"),
    ("cuGetProcAddress", 12_000, "cuGetProcAddress_v2"),
    ("cuGetProcAddress", 0, "cuGetProcAddress"),
];

/// A function of this library by its symbol.
fn symbol(name: &str) -> Option<*mut c_void> {
    static OWN: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let name = CString::new(name).ok()?;
    let own = *OWN.get_or_init(|| {
        let mut place = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        let here = symbol as *const c_void;
        // SAFETY: the address is of this library, and there is room for what is told of it.
        let path = unsafe {
            if libc::dladdr(here, place.as_mut_ptr()) == 0 {
                return 0;
            }
            place.assume_init().dli_fname
        };
        // SAFETY: a path that ends in 0; the library is loaded already, and is only found again.
        unsafe { libc::dlopen(path, libc::RTLD_LAZY | libc::RTLD_NOLOAD) as usize }
    });
    if own == 0 {
        return None;
    }
    // SAFETY: a handle of dlopen, which is never closed, and a name that ends in 0.
    let found = unsafe { libc::dlsym(own as *mut c_void, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// A function by the name that programs ask for, as a CUDA version means it.
pub(crate) fn function(name: &str, version: c_int) -> Option<*mut c_void> {
    if !name.starts_with("cu") {
        return None;
    }
    match VERSIONS.iter().find(|(known, since, _)| *known == name && version >= *since) {
        Some((_, _, exact)) => symbol(exact),
        // The second form of a function is what all programs mean since addresses have 64 bits.
        None => symbol(&format!("{name}_v2")).or_else(|| symbol(name)),
    }
}

fn find(name: *const c_char, to: *mut *mut c_void, version: c_int, status: *mut u32) -> Result<(), u32> {
    const NO_SUCH_FUNCTION: u32 = 1;
    if name.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and ends in 0 by the C signature.
    let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| INVALID_VALUE)?;
    let found = function(name, version);
    if !status.is_null() {
        give(status, if found.is_some() { 0 } else { NO_SUCH_FUNCTION })?;
    }
    give(to, found.unwrap_or(std::ptr::null_mut()))?;
    // The older form has no status, and the newer tells by it alone.
    if found.is_none() && status.is_null() { Err(NOT_FOUND) } else { Ok(()) }
}

exported! {
    fn cuGetProcAddress(name: *const c_char, to: *mut *mut c_void, version: c_int, _flags: u64) {
        find(name, to, version, std::ptr::null_mut())
    }
    fn cuGetProcAddress_v2(name: *const c_char, to: *mut *mut c_void, version: c_int, _flags: u64, status: *mut u32) {
        find(name, to, version, status)
    }
    fn cuGetExportTable(to: *mut *const c_void, _table: *const [u8; 16]) {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            eprintln!(
                "vgpu: CUDA's own runtime library asks the driver for private tables, which are not modelled; the \
                 virtual GPU has a runtime of its own: link the program with nvcc -cudart shared and start it by \
                 `vgpu run`"
            );
        });
        give(to, std::ptr::null())?;
        Err(NOT_FOUND)
    }
}
