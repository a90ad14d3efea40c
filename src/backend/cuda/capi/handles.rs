//! What the handles of the C interface hold: the caller's context and stream, and what belongs to launches on it.

use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUcontext, CUstream};
use cudarc::driver::{CudaContext, CudaSlice, result, sys};

use super::super::export::ABI;
use super::super::ops::linear::Linear;
use super::super::ops::loss::Plan;
use super::super::ops::optimizer::AdamW;
use super::super::ops::packing::LabelRows;
use super::super::ops::sequences::{PairedSequences, Sequences};
use super::super::runtime::devices::driver_version;
use super::super::runtime::error::driver;
use super::super::runtime::kernels::Kernels;
use crate::error::{Error, Result};

/// `promptmix_result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Code {
    Ok = 0,
    Argument = 1,
    Abi = 2,
    Device = 3,
    Unsupported = 4,
    Defect = 5,
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Keeps the text of a failure.
fn fail(code: Code, text: &str) -> Code {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    LAST_ERROR.with(|last| *last.borrow_mut() = text);
    code
}

/// This thread's last failure, which lives until its next.
pub(super) fn last_error() -> *const std::ffi::c_char {
    LAST_ERROR.with(|last| last.borrow().as_ptr())
}

/// Runs the body of a function: no panic goes beyond, and the context that was current is current again.
pub(super) fn boundary(body: impl FnOnce() -> Result<()>) -> Code {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // A missing driver's library is a panic in cudarc.
        driver_version()?;
        let before = result::ctx::get_current().map_err(|error| driver("find the current context", error))?;
        let outcome = body();
        // SAFETY: it was current when this function began, on this thread, so that it is a context.
        let restored = unsafe { result::ctx::set_current(before.unwrap_or(std::ptr::null_mut())) };
        outcome?;
        restored.map_err(|error| driver("make the context current that was", error))
    }));
    match outcome {
        Ok(Ok(())) => Code::Ok,
        Ok(Err(error)) => {
            let code = match &error {
                Error::Setting { setting, .. } if setting == ABI_NAME => Code::Abi,
                Error::Device { .. } | Error::NonFinite { .. } => Code::Device,
                Error::Unsupported { .. } => Code::Unsupported,
                _ => Code::Argument,
            };
            fail(code, &error.to_string())
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
            let text = format!("promptmix panicked, which is a defect of it: report it ({text})");
            // What was caught may itself panic when it is dropped.
            std::mem::forget(panic);
            fail(Code::Defect, &text)
        }
    }
}

/// For the destroying functions, which return nothing.
pub(super) fn destroy<T>(handle: *mut T) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        if !handle.is_null() && driver_version().is_ok() {
            let before = result::ctx::get_current().ok().flatten();
            // SAFETY: a handle comes from `give`, and by contract is destroyed once.
            drop(unsafe { Box::from_raw(handle) });
            // SAFETY: it was current when this function began.
            let _ = unsafe { result::ctx::set_current(before.unwrap_or(std::ptr::null_mut())) };
        }
    }));
}

/// A new handle, at `to`.
pub(super) fn give<T>(to: *mut *mut T, make: impl FnOnce() -> Result<T>) -> Result<()> {
    if to.is_null() {
        return Err(null("where the handle goes"));
    }
    let handle = Box::into_raw(Box::new(make()?));
    // SAFETY: by contract a pointer that is not null is one to a handle of the caller's, which is written once.
    unsafe { to.write(handle) };
    Ok(())
}

/// What a handle of the caller's holds.
pub(super) fn held<'a, T>(what: &str, handle: *const T) -> Result<&'a T> {
    // SAFETY: by contract a handle that is not null is one that `give` gave and nobody destroyed yet, and it is destroyed only once no
    // function uses it. Nothing is changed but behind its lock.
    unsafe { handle.as_ref() }.ok_or_else(|| null(what))
}

/// A null pointer, where there must be none.
pub(super) fn null(what: &str) -> Error {
    Error::setting(what, "a pointer", "null", "")
}

/// A number as a length.
pub(super) fn length(what: &str, number: impl TryInto<usize> + Copy + std::fmt::Display) -> Result<usize> {
    let refuse = |_| Error::setting(what, "a number from 0 on", number.to_string(), "");
    number.try_into().map_err(|_| ()).map_err(refuse)
}

/// `numbers` of host memory.
pub(super) fn host<'a, T>(what: &str, at: *const T, numbers: usize) -> Result<&'a [T]> {
    if at.is_null() || !at.is_aligned() || numbers > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(null(what));
    }
    // SAFETY: by contract it points to so many numbers, which nobody changes before the function returns.
    Ok(unsafe { std::slice::from_raw_parts(at, numbers) })
}

/// What the error of another build's header is known by.
const ABI_NAME: &str = "PROMPTMIX_ABI";

/// The caller's device memory, as launchers take it; it is not freed when this is dropped.
pub(super) struct Foreign<T>(ManuallyDrop<CudaSlice<T>>);

impl<T> Foreign<T> {
    /// `numbers` at `at`, to which kernels of these launches go.
    pub(super) fn new(kernels: &Kernels, what: &str, at: u64, numbers: usize) -> Result<Self> {
        if at == 0 {
            return Err(null(what));
        }
        if numbers.checked_mul(size_of::<T>()).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            return Err(Error::setting(what, "numbers that memory has room for", numbers.to_string(), ""));
        }
        // SAFETY: by contract it is memory of the handle's context, with what the function says of it, until the stream is past the
        // launch. It is never freed here. A length that covers the gap after the last row of a strided matrix is a bound alone: no
        // kernel goes there.
        Ok(Self(ManuallyDrop::new(unsafe { kernels.stream().upgrade_device_ptr(at, numbers) })))
    }
}

impl<T> std::ops::Deref for Foreign<T> {
    type Target = CudaSlice<T>;
    fn deref(&self) -> &CudaSlice<T> {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Foreign<T> {
    fn deref_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.0
    }
}

impl<T> Drop for Foreign<T> {
    fn drop(&mut self) {
        // SAFETY: taken here and nowhere else, once.
        let slice = unsafe { ManuallyDrop::take(&mut self.0) };
        let _ = slice.leak();
    }
}

/// A `promptmix_kernels`.
pub(super) struct KernelsHandle(Mutex<Kernels>);

impl KernelsHandle {
    /// The kernels of this build in the current context.
    pub(super) fn new(abi: u32, stream: CUstream) -> Result<Self> {
        if abi != ABI {
            let (expected, found) = (format!("{ABI:#010x}, the library's"), format!("{abi:#010x}"));
            let advice = "take the promptmix.h that `promptmix kernels export` of the library's build writes";
            return Err(Error::setting(ABI_NAME, expected, found, advice));
        }
        let context = current()?;
        // Everything of a handle runs on one stream, and its order with the caller's other streams is the caller's.
        // SAFETY: no slice of this context object is used on another stream.
        unsafe { context.disable_event_tracking() };
        // SAFETY: by contract it is a stream of the current context, or null, which lives as long as this handle is launched with.
        let stream = unsafe { context.wrap_borrowed_stream(stream) };
        Kernels::new(stream).map(|kernels| Self(Mutex::new(kernels)))
    }

    /// Runs `launch` with them, one thread at a time.
    pub(super) fn with<T>(&self, launch: impl FnOnce(&Kernels) -> Result<T>) -> Result<T> {
        let kernels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kernels
            .context()
            .bind_to_thread()
            .map_err(|error| driver("make the kernels' context current", error))?;
        launch(&kernels)
    }
}

/// The current context. A primary one is held for as long as this is; another is the caller's, who destroys it last.
fn current() -> Result<Arc<CudaContext>> {
    let ask = |error| driver("find the current context", error);
    let current: CUcontext = result::ctx::get_current().map_err(ask)?.ok_or_else(|| {
        let advice = "make one current before: cuCtxSetCurrent, or in PyTorch torch.cuda.init()";
        Error::setting("the thread's current context", "a CUDA context", "none", advice)
    })?;
    let mut device = 0;
    // SAFETY: writes an int.
    unsafe { sys::cuCtxGetDevice(&raw mut device) }.result().map_err(ask)?;
    let count = CudaContext::device_count().map_err(ask)?;
    let is_it = |ordinal: &i32| result::device::get(*ordinal).is_ok_and(|found| found == device);
    let ordinal = (0..count).find(is_it).map_or(0, |ordinal| ordinal as usize);
    let (mut flags, mut active) = (0, 0);
    // SAFETY: writes two ints.
    unsafe { sys::cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) }
        .result()
        .map_err(ask)?;
    if active != 0 {
        let primary = CudaContext::new(ordinal).map_err(ask)?;
        if primary.cu_ctx() == current {
            return Ok(primary);
        }
        // SAFETY: it was current when this began.
        unsafe { result::ctx::set_current(current) }.map_err(ask)?;
    }
    // SAFETY: it is current, and of that device. cudarc would destroy it with the last reference, so one is never dropped.
    let context = unsafe { CudaContext::from_raw_context(ordinal, device, current) }.map_err(ask)?;
    std::mem::forget(context.clone());
    Ok(context)
}

/// A `promptmix_sequences`.
pub(super) enum SequencesHandle {
    /// Rows over themselves.
    Same(Sequences),
    /// Queries over other rows.
    Pairs(PairedSequences),
}

impl SequencesHandle {
    /// Of cumulative lengths, from 0.
    pub(super) fn new(kernels: &Kernels, queries: &[i32], keys: Option<&[i32]>) -> Result<Self> {
        let queries = lengths("cu_seqlens_q", queries)?;
        match keys {
            None => Sequences::new(kernels.stream(), &queries).map(Self::Same),
            Some(keys) => {
                let keys = lengths("cu_seqlens_k", keys)?;
                let pairs: Vec<(usize, usize)> = queries.into_iter().zip(keys).collect();
                PairedSequences::new(kernels.stream(), &pairs).map(Self::Pairs)
            }
        }
    }
}

/// Lengths between cumulative ones.
fn lengths(what: &str, cumulative: &[i32]) -> Result<Vec<usize>> {
    let rises = cumulative.first() == Some(&0) && cumulative.windows(2).all(|pair| pair[0] < pair[1]);
    if cumulative.len() < 2 || !rises {
        let (few, rest) = cumulative.split_at(cumulative.len().min(8));
        let found = format!("{few:?}{}", if rest.is_empty() { "" } else { ".." });
        return Err(Error::setting(what, "0, and then rising ends, one a sequence", found, ""));
    }
    Ok(cumulative.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect())
}

/// A `promptmix_linear`.
pub(super) struct LinearHandle {
    /// Before the rows that it is over.
    of: Mutex<Linear<'static>>,
    /// Where those lie.
    _rows: Box<Sequences>,
    /// Rows, out and in.
    pub(super) shape: [usize; 3],
}

impl LinearHandle {
    pub(super) fn new(kernels: &Kernels, rows: usize, out: usize, input: usize) -> Result<Self> {
        let sequences = Box::new(Sequences::new(kernels.stream(), &[rows])?);
        // SAFETY: what the product borrows lies in a box of its own, which does not move, is not changed, and is dropped after the
        // product, as fields are in order.
        let lasting: &'static Sequences = unsafe { &*std::ptr::from_ref(&*sequences) };
        let linear = Linear::new(kernels, lasting.rows(), out, input)?;
        Ok(Self { of: Mutex::new(linear), _rows: sequences, shape: [rows, out, input] })
    }

    pub(super) fn with<T>(&self, launch: impl FnOnce(&mut Linear<'static>) -> Result<T>) -> Result<T> {
        launch(&mut self.of.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A `promptmix_cross_entropy`.
pub(super) struct CrossEntropyHandle {
    pub(super) labels: LabelRows,
    pub(super) plan: Plan,
    /// Rows, vocabulary and width.
    pub(super) shape: [usize; 3],
    pub(super) scratch: Mutex<LossMemory>,
}

/// What a loss works in.
pub(super) struct LossMemory {
    pub(super) partials: CudaSlice<f32>,
    pub(super) label_logits: CudaSlice<f32>,
    pub(super) likelihood: CudaSlice<f32>,
    /// Made at the first launch with a gradient.
    pub(super) weighted: Option<CudaSlice<f32>>,
}

/// A `promptmix_adamw`.
pub(super) struct AdamWHandle {
    pub(super) of: Mutex<AdamW>,
    pub(super) length: usize,
}

// Functions may be called from any thread.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<KernelsHandle>();
    shared::<SequencesHandle>();
    shared::<LinearHandle>();
    shared::<CrossEntropyHandle>();
    shared::<AdamWHandle>();
};

/// A stream as C gives it.
pub(super) fn stream(stream: *mut c_void) -> CUstream {
    stream.cast()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::{Code, boundary, last_error};

    #[test]
    fn a_panic_ends_at_the_boundary_as_an_error() {
        let _gpu = vgpu::load().expect("a GPU, virtual or real");
        let code = boundary(|| {
            let none: &[i32] = &[];
            assert!(!none.is_empty(), "planted");
            Ok(())
        });
        assert_eq!(code, Code::Defect);
        // SAFETY: it is this thread's text, which ends in 0.
        let text = unsafe { CStr::from_ptr(last_error()) }.to_string_lossy().into_owned();
        assert_eq!(text, "promptmix panicked, which is a defect of it: report it (planted)");
        assert_eq!(boundary(|| Ok(())), Code::Ok);
    }
}
