//! The test's side: finding the shared library, putting it in the place of `libcuda.so`, steering it.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

use crate::check::Report;
use crate::driver::{Calls, Change, Summary};

/// Why there is no GPU to test on.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The shared library is missing.
    #[error("libvgpu.so was not found in {}; build it with: cargo build -p vgpu", folders(.0))]
    Missing(Vec<PathBuf>),
    /// The shared library is of other sources than this test.
    #[error("{} is of other sources than this test ({found}, expected {expected}); rebuild it with: cargo build -p vgpu", path.display())]
    Stale {
        /// The library.
        path: PathBuf,
        /// Its build.
        found: String,
        /// The build of this test.
        expected: String,
    },
    /// The shared library cannot be opened.
    #[error("{} cannot be opened: {message}", path.display())]
    Open {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        message: String,
    },
    /// A device was demanded that is not there.
    #[error("PROMPTMIX_TEST_DEVICE={0}: {1}")]
    Device(String, String),
}

fn folders(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The GPU of a test: the virtual one, or a real one where there is one.
///
/// Dropping it panics when a check failed in a launch of this thread that the test did not take with
/// [`Gpu::take_reports`].
#[derive(Debug)]
pub struct Gpu {
    functions: Option<&'static Functions>,
}

#[derive(Debug)]
struct Functions {
    take_reports: Symbol<unsafe extern "C" fn() -> *mut c_char>,
    summary: Symbol<unsafe extern "C" fn() -> *mut c_char>,
    calls: Symbol<unsafe extern "C" fn() -> *mut c_char>,
    free_text: Symbol<unsafe extern "C" fn(*mut c_char)>,
    change: Symbol<unsafe extern "C" fn(*const c_char) -> u32>,
    _library: Library,
}

/// Makes a GPU available: call it before the first CUDA call of the process.
///
/// `PROMPTMIX_TEST_DEVICE=vgpu` or `=cuda` chooses; otherwise a real GPU is taken where there is one.
///
/// # Errors
/// The virtual GPU's library is missing or stale, or the device that was chosen is not there.
pub fn load() -> Result<Gpu, HostError> {
    match std::env::var("PROMPTMIX_TEST_DEVICE").as_deref() {
        Ok("cuda") if has_real_gpu() => Ok(Gpu { functions: None }),
        Ok("cuda") => {
            Err(HostError::Device("cuda".to_string(), "no NVIDIA driver with a GPU was found".to_string()))
        }
        Ok("vgpu") => load_virtual(),
        Ok(other) => Err(HostError::Device(other.to_string(), "vgpu and cuda are known".to_string())),
        Err(_) if has_real_gpu() => Ok(Gpu { functions: None }),
        Err(_) => load_virtual(),
    }
}

/// Whether a real driver finds a device. Its library has another name than the virtual one's, so that
/// having opened it does no harm.
fn has_real_gpu() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: libcuda's initialisers are those of any CUDA program; the signatures are CUDA's.
        unsafe {
            let Ok(library) = Library::open(Some("libcuda.so.1"), RTLD_NOW) else { return false };
            let Ok(init) = library.get::<unsafe extern "C" fn(u32) -> u32>(b"cuInit\0") else { return false };
            let Ok(count) = library.get::<unsafe extern "C" fn(*mut i32) -> u32>(b"cuDeviceGetCount\0")
            else {
                return false;
            };
            let mut devices = 0;
            let found = init(0) == 0 && count(&mut devices) == 0 && devices > 0;
            // A driver that was initialised stays loaded.
            std::mem::forget(library);
            found
        }
    })
}

/// The shared library: `VGPU_LIBRARY`, or beside the running program, or a folder or two above it, or where cargo built it: documentation
/// tests run from a temporary folder. The newer of two that lie there.
///
/// # Errors
/// The folders that were searched.
pub fn find_library() -> Result<PathBuf, HostError> {
    if let Some(path) = std::env::var_os("VGPU_LIBRARY").map(PathBuf::from) {
        return if path.is_file() { Ok(path) } else { Err(HostError::Missing(vec![path])) };
    }
    let program = std::env::current_exe().unwrap_or_default();
    let mut searched = Vec::new();
    // The folder of this crate's build script lies in that of all, `debug/build/vgpu-.../out`.
    let built = Path::new(env!("OUT_DIR")).ancestors().nth(3).map(|profile| profile.join("deps"));
    for folder in program.ancestors().skip(1).take(3).chain(built.as_deref()) {
        let places = [folder.to_path_buf(), folder.join("deps")];
        // cargo test renews the one, cargo build both.
        let written = |path: &PathBuf| path.metadata().and_then(|file| file.modified()).ok();
        let found = places.iter().map(|folder| folder.join("libvgpu.so")).filter(|path| path.is_file());
        if let Some(newest) = found.max_by_key(written) {
            return Ok(newest);
        }
        searched.extend(places);
    }
    Err(HostError::Missing(searched))
}

fn load_virtual() -> Result<Gpu, HostError> {
    static LOADED: OnceLock<Result<Functions, HostError>> = OnceLock::new();
    match LOADED.get_or_init(|| open(&find_library()?)) {
        Ok(functions) => Ok(Gpu { functions: Some(functions) }),
        Err(error) => Err(error.clone()),
    }
}

fn open(path: &Path) -> Result<Functions, HostError> {
    let failed =
        |error: libloading::Error| HostError::Open { path: path.to_path_buf(), message: error.to_string() };
    // Loaded by its path, the library answers from now on to its own name, libcuda.so.
    // SAFETY: the library has no initialisers; the signatures are those that it defines.
    unsafe {
        let library = Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL).map_err(failed)?;
        let build =
            library.get::<unsafe extern "C" fn() -> *const c_char>(b"vgpu_build_id\0").map_err(failed)?;
        let found = CStr::from_ptr(build()).to_string_lossy().into_owned();
        let expected = env!("VGPU_BUILD_ID").to_string();
        if found != expected {
            return Err(HostError::Stale { path: path.to_path_buf(), found, expected });
        }
        Ok(Functions {
            take_reports: library.get(b"vgpu_take_reports\0").map_err(failed)?,
            summary: library.get(b"vgpu_summary\0").map_err(failed)?,
            calls: library.get(b"vgpu_calls\0").map_err(failed)?,
            free_text: library.get(b"vgpu_free_text\0").map_err(failed)?,
            change: library.get(b"vgpu_change\0").map_err(failed)?,
            _library: library,
        })
    }
}

impl Gpu {
    /// Whether this is the virtual GPU.
    pub fn is_virtual(&self) -> bool {
        self.functions.is_some()
    }

    /// The failed checks of this thread's launches since the last call; none on a real GPU.
    pub fn take_reports(&self) -> Vec<Report> {
        self.functions
            .map_or_else(Vec::new, |functions| functions.read(&functions.take_reports).unwrap_or_default())
    }

    /// Everything counted so far, of all threads; none on a real GPU.
    pub fn summary(&self) -> Option<Summary> {
        self.functions.and_then(|functions| functions.read(&functions.summary))
    }

    /// What this thread has asked of the driver so far; none on a real GPU.
    pub fn calls(&self) -> Option<Calls> {
        self.functions.and_then(|functions| functions.read(&functions.calls))
    }

    /// Changes settings; nothing happens on a real GPU.
    pub fn change(&self, change: &Change) {
        let text = serde_json::to_string(change).ok().and_then(|text| CString::new(text).ok());
        if let (Some(functions), Some(text)) = (self.functions, text) {
            // SAFETY: the text ends in 0 and lives through the call.
            unsafe { (functions.change)(text.as_ptr()) };
        }
    }

    /// Fails the test if a check failed in one of this thread's launches.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let reports = self.take_reports();
        if !reports.is_empty() && !std::thread::panicking() {
            panic!(
                "{} checks of the virtual GPU failed:\n{}",
                reports.len(),
                crate::device::describe(&reports)
            );
        }
    }
}

impl Functions {
    fn read<T: serde::de::DeserializeOwned>(
        &self,
        function: &Symbol<unsafe extern "C" fn() -> *mut c_char>,
    ) -> Option<T> {
        // SAFETY: the function gives a text that ends in 0, or null; it is given back once.
        unsafe {
            let text = function();
            if text.is_null() {
                return None;
            }
            let value = serde_json::from_slice(CStr::from_ptr(text).to_bytes()).ok();
            (self.free_text)(text);
            value
        }
    }
}
